"""A peer that accepts one presentation context, reads messages of a known length and answers each with 0000H.

With a folder it keeps two of this node's promises and nothing else: each message lies in a file, synced and digested
(SHA-256, while the disk works), before it is answered. It knows no DICOM, no names and no database, and has a process
for each association: what is above it on a machine is what these two promises cost anybody there.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from node.store.disk import begin_writing
from tests.bench.traffic import CT, EXPLICIT, RELEASE, _item, read_pdu

_BLOCK = 128 * 1024


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


def store(sock: socket.socket, message_bytes: int, folder: Path) -> None:
    """One association, to its release; each message in a file of its own, synced before it is answered."""
    buffer, answer = memoryview(bytearray(message_bytes)), _success()
    read_pdu(sock)
    sock.sendall(_accept())
    n = 0
    while True:
        fd = os.open(folder / f"{os.getpid()}-{n}", os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            got = written = 0
            while got < message_bytes:
                n_bytes = sock.recv_into(buffer[got:])
                if not n_bytes:
                    return
                got += n_bytes
                if got == len(RELEASE) and bytes(buffer[:got]) == RELEASE:
                    sock.sendall(b"\6\0\0\0\0\4\0\0\0\0")
                    return
                if got - written >= _BLOCK or got == message_bytes:
                    written += os.write(fd, buffer[written:got])
            begin_writing(fd)
            hashlib.sha256(buffer).digest()
            os.fdatasync(fd)
        finally:
            os.close(fd)
        sock.sendall(answer)
        n += 1


def _one(serve_it: Callable[[socket.socket], None], sock: socket.socket) -> None:
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            serve_it(sock)
        except ConnectionError:
            return


def _reap(*_signal: object) -> None:
    """So that their CPU time is counted as their parent's."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    port, message_bytes, *kept = sys.argv[1:]
    with socket.create_server(("127.0.0.1", int(port))) as listening:
        if not kept:
            while True:
                _one(partial(serve, message_bytes=int(message_bytes)), listening.accept()[0])
        signal.signal(signal.SIGCHLD, _reap)
        while True:
            sock = listening.accept()[0]
            if os.fork() == 0:
                listening.close()
                _one(partial(store, message_bytes=int(message_bytes), folder=Path(kept[0])), sock)
                os._exit(0)
            sock.close()


if __name__ == "__main__":
    main()
