"""What is sent: seeded slices, encoded beforehand, by a sender that is never the slow part.

All messages of a run have one length and differ in their SOP Instance UID alone, which is written into one buffer
in its three places: so a sender costs a copy to the kernel, and a thousand slices cost the memory of one.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
ROOT = "1.2.826.0.1.3680043.10.1"
RELEASE = b"\5\0\0\0\0\4\0\0\0\0"

_MARK = "99999"
_CONTEXTS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of slice: its class, modality and matrix (``side`` by ``side``, 16 bit)."""

    sop_class: str
    modality: str
    side: int


CT512 = Kind(sop_class=CT, modality="CT", side=512)
MR256 = Kind(sop_class=MR, modality="MR", side=256)


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    if vr in (b"OB", b"OW"):
        return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(kind: Kind, uid: str, series: str, seed: int) -> bytes:
    """A slice of noise, in Explicit VR Little Endian."""
    side = struct.pack("<H", kind.side)
    pixels = random.Random(seed).randbytes(kind.side * kind.side * 2)
    texts = {
        (8, 0x16): (b"UI", kind.sop_class), (8, 0x18): (b"UI", uid), (8, 0x60): (b"CS", kind.modality),
        (0x10, 0x10): (b"PN", "BENCH"), (0x10, 0x20): (b"LO", "BENCH"),
        (0x20, 0x0D): (b"UI", f"{series}.1"), (0x20, 0x0E): (b"UI", series),
    }  # fmt: skip
    numbers = {
        2: b"\1\0", 4: b"", 0x10: side, 0x11: side, 0x100: b"\x10\0", 0x101: b"\x10\0", 0x102: b"\x0f\0",
        0x103: b"\0\0",
    }  # fmt: skip
    return b"".join(
        [element(*tag, vr, value.encode()) for tag, (vr, value) in texts.items()]
        + [element(0x28, n, b"US" if v else b"CS", v or b"MONOCHROME2") for n, v in numbers.items()]
        + [element(0x7FE0, 0x10, b"OW", pixels)]
    )


def part10(kind: Kind, uid: str, series: str, seed: int) -> bytes:
    """The same slice as a Part 10 file."""
    meta = b"".join(
        element(2, number, vr, value)
        for number, vr, value in (
            (1, b"OB", b"\0\1"), (2, b"UI", kind.sop_class.encode()), (3, b"UI", uid.encode()),
            (0x10, b"UI", EXPLICIT.encode()), (0x12, b"UI", ROOT.encode()),
        )
    )  # fmt: skip
    return (
        bytes(128)
        + b"DICM"
        + element(2, 0, b"UL", struct.pack("<L", len(meta)))
        + meta
        + data_set(kind, uid, series, seed)
    )


def write_files(folder: Path, kind: Kind, n: int, seed: int) -> list[Path]:
    """``n`` slices of one series as Part 10 files."""
    folder.mkdir(parents=True)
    series = f"{ROOT}.{seed}"
    whole = part10(kind, f"{series}.{_MARK}", series, seed)
    paths = []
    for i in range(n):
        paths.append(folder / f"IM{i:05d}.dcm")
        paths[-1].write_bytes(whole.replace(f"{series}.{_MARK}".encode(), f"{series}.{i:05d}".encode()))
    return paths


class Template:
    """One C-STORE-RQ of a series in PDUs of ``pdu`` bytes; :meth:`numbered` makes it the next instance's."""

    def __init__(self, kind: Kind, seed: int, pdu: int = 16384) -> None:
        series = f"{ROOT}.{seed}"
        uid = f"{series}.{_MARK}"
        out = bytearray()
        for control, data in ((1, _command(kind, uid)), (0, data_set(kind, uid, series, seed))):
            for at in range(0, len(data), pdu - 6):
                piece = data[at : at + pdu - 6]
                last = 2 if at + len(piece) == len(data) else 0
                out += struct.pack(">BBLLBB", 4, 0, len(piece) + 6, len(piece) + 2, 1, control | last) + piece
        self._message = out
        self._places: list[int] = []
        mark = f".{_MARK}".encode()
        at = out.find(mark)
        while at >= 0:
            self._places.append(at + 1)
            at = out.find(mark, at + 1)
        if len(self._places) != 2:
            raise ValueError("the UID is not where it should be")

    def __len__(self) -> int:
        return len(self._message)

    def numbered(self, number: int) -> bytearray:
        """The message of instance ``number``; the next call overwrites it."""
        digits = f"{number:05d}".encode()
        for at in self._places:
            self._message[at : at + 5] = digits
        return self._message


def _command(kind: Kind, uid: str) -> bytes:
    body = b"".join(
        struct.pack("<HHL", 0, tag, len(value)) + value
        for tag, value in (
            (2, _even(kind.sop_class)), (0x100, b"\1\0"), (0x110, b"\1\0"), (0x700, b"\0\0"), (0x800, b"\1\0"),
            (0x1000, _even(uid)),
        )
    )  # fmt: skip
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _even(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _request(kind: Kind, ae_title: str, many: bool) -> bytes:
    body = struct.pack(">HH16s16s32x", 1, 0, ae_title.encode().ljust(16), b"BENCH".ljust(16))
    body += _item(0x10, b"1.2.840.10008.3.1.1.1")
    syntaxes = (EXPLICIT, "1.2.840.10008.1.2") if many else (EXPLICIT,)
    classes = [kind.sop_class, *_classes()[: _CONTEXTS - 1]] if many else [kind.sop_class]
    for i, each in enumerate(classes):
        offers = b"".join(_item(0x40, s.encode()) for s in syntaxes)
        body += _item(0x20, bytes((2 * i + 1, 0, 0, 0)) + _item(0x30, each.encode()) + offers)
    body += _item(0x50, _item(0x51, struct.pack(">L", 16384)) + _item(0x52, ROOT.encode()))
    return struct.pack(">BBL", 1, 0, len(body)) + body


def _classes() -> list[str]:
    from pynetdicom.presentation import AllStoragePresentationContexts

    return [str(each.abstract_syntax) for each in AllStoragePresentationContexts]


def read_pdu(sock: socket.socket) -> tuple[int, bytes]:
    """Type and body of the next PDU; what comes in pieces is acknowledged at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    head = _exactly(sock, 6)
    return head[0], _exactly(sock, struct.unpack(">L", head[2:])[0])


def _exactly(sock: socket.socket, n_bytes: int) -> bytes:
    out = bytearray()
    while len(out) < n_bytes:
        got = sock.recv(n_bytes - len(out))
        if not got:
            raise ConnectionError("the peer closed")
        out += got
    return bytes(out)


def associate(port: int, request: bytes) -> socket.socket:
    """A connection on which the peer has accepted the association."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(request)
    kind, _ = read_pdu(sock)
    if kind != 2:
        raise ConnectionError(f"association refused: PDU {kind}")
    return sock


def release(sock: socket.socket) -> None:
    sock.sendall(RELEASE)
    read_pdu(sock)
    sock.close()


def blast(
    port: int, kind: Kind, n: int, seed: int, *, ae_title: str, one_each: bool = False, many: bool = False
) -> float:
    """Send ``n`` instances; the seconds from the first byte of the first to the answer to the last.

    ``one_each`` opens an association for each; ``many`` proposes 120 contexts instead of one.
    """
    template, request = Template(kind, seed), _request(kind, ae_title, many)
    sock = associate(port, request)
    began = time.perf_counter()
    for i in range(n):
        if one_each and i:
            release(sock)
            sock = associate(port, request)
        sock.sendall(template.numbered(i))
        _, answer = read_pdu(sock)
        at = answer.index(b"\0\0\0\x09\2\0\0\0") + 8
        if answer[at : at + 2] != b"\0\0":
            raise ConnectionError(f"status {answer[at : at + 2].hex()}")
    took = time.perf_counter() - began
    release(sock)
    return took


def blast_all(
    port: int, kind: Kind, n: int, seed: int, associations: int, *, ae_title: str, one_each: bool, many: bool
) -> float:
    """As `blast`, ``n`` over several associations at once; the seconds of the slowest."""
    if associations == 1:
        return blast(port, kind, n, seed, ae_title=ae_title, one_each=one_each, many=many)
    times: list[float] = []

    def one(number: int) -> None:
        each = n // associations
        times.append(
            blast(port, kind, each, seed * 1000 + number, ae_title=ae_title, one_each=one_each, many=many)
        )

    threads = [threading.Thread(target=one, args=(i,)) for i in range(associations)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(times) < associations:
        raise ConnectionError("an association failed")
    return max(times)


def idle(port: int, n: int, ae_title: str) -> list[socket.socket]:
    """``n`` associations that say nothing."""
    request = _request(CT512, ae_title, False)
    return [associate(port, request) for _ in range(n)]
