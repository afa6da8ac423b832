"""A peer that accepts one presentation context, reads messages of a known length and answers each with 0000H."""

from __future__ import annotations

import socket
import struct
import sys

from tests.bench.traffic import CT, EXPLICIT, RELEASE, _item, read_pdu


def _accept() -> bytes:
    body = struct.pack(">HH16s16s32x", 1, 0, b"SINK".ljust(16), b"BENCH".ljust(16))
    body += _item(0x10, b"1.2.840.10008.3.1.1.1")
    body += _item(0x21, b"\1\0\0\0" + _item(0x40, EXPLICIT.encode()))
    body += _item(0x50, _item(0x51, struct.pack(">L", 16384)) + _item(0x52, b"1.2.3"))
    return struct.pack(">BBL", 2, 0, len(body)) + body


def _success() -> bytes:
    elements = (
        (2, CT.encode() + b"\0"),
        (0x100, b"\1\x80"),
        (0x120, b"\1\0"),
        (0x800, b"\1\1"),
        (0x900, b"\0\0"),
    )
    body = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in elements)
    command = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
    return struct.pack(">BBLLBB", 4, 0, len(command) + 6, len(command) + 2, 1, 3) + command


def serve(sock: socket.socket, message_bytes: int) -> None:
    """One association, to its release."""
    buffer, answer = memoryview(bytearray(1 << 20)), _success()
    read_pdu(sock)
    sock.sendall(_accept())
    got = 0
    while n_bytes := sock.recv_into(buffer):
        got += n_bytes
        if got == message_bytes:
            sock.sendall(answer)
            got = 0
        elif got == len(RELEASE) and bytes(buffer[: len(RELEASE)]) == RELEASE:
            sock.sendall(b"\6\0\0\0\0\4\0\0\0\0")


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
        while True:
            sock, _ = listening.accept()
            with sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    serve(sock, int(sys.argv[2]))
                except ConnectionError:
                    continue


if __name__ == "__main__":
    main()
