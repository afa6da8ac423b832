"""A peer that speaks DICOM by hand, so that it can speak it as oddly as a test wants; data sets to send."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CT, MR, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
APPLICATION = "1.2.840.10008.3.1.1.1"

RELEASE = b"\5\0\0\0\0\4\0\0\0\0"
ABORT = b"\7\0\0\0\0\4\0\0\0\0"


# --- data sets ------------------------------------------------------------------------------------


def element(group: int, number: int, vr: str, value: bytes) -> bytes:
    """One element in Explicit VR Little Endian; odd values get their padding."""
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB", "OW", "UN") else b" "
    if vr in ("OB", "OW", "UN", "SQ", "UT"):
        return struct.pack("<HH2sHL", group, number, vr.encode(), 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr.encode(), len(value)) + value


def data_set(
    uid: str,
    series: str = "1.2.3.4",
    study: str = "1.2.3",
    sop_class: str = CT,
    pixels: bytes = b"\0\1" * 64,
    name: str = "TEST",
) -> bytes:
    """A small CT-like data set in Explicit VR Little Endian; an empty UID is left out."""
    parts = [(8, 0x16, sop_class), (8, 0x18, uid), (0x20, 0x0D, study), (0x20, 0x0E, series)]
    uids = {
        (group, number): element(group, number, "UI", value.encode())
        for group, number, value in parts
        if value
    }
    small = element(0x28, 0x10, "US", b"\x08\0") + element(0x28, 0x11, "US", b"\x08\0")
    return b"".join(
        (
            uids.get((8, 0x16), b""), uids.get((8, 0x18), b""), element(8, 0x60, "CS", b"CT"),
            element(0x10, 0x10, "PN", name.encode()), uids.get((0x20, 0x0D), b""),
            uids.get((0x20, 0x0E), b""), element(0x28, 2, "US", b"\1\0"), small,
            element(0x7FE0, 0x10, "OW", pixels),
        )
    )  # fmt: skip


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def part10_data_set(path: Path) -> tuple[str, str, str, bytes]:
    """SOP class, SOP instance, transfer syntax and encoded data set of a Part 10 file, cut out by hand."""
    raw = path.read_bytes()
    assert raw[128:132] == b"DICM"
    found: dict[int, str] = {}
    at = 132
    while struct.unpack_from("<H", raw, at)[0] == 2:
        _, number, vr = struct.unpack_from("<HH2s", raw, at)
        if vr in (b"OB", b"OW", b"UN", b"SQ", b"UT"):
            length, at = struct.unpack_from("<L", raw, at + 8)[0], at + 12
        else:
            length, at = struct.unpack_from("<H", raw, at + 6)[0], at + 8
        found[number] = raw[at : at + length].rstrip(b"\0 ").decode("latin-1")
        at += length
    return found[2], found[3], found[0x10], raw[at:]


# --- messages -------------------------------------------------------------------------------------


def command_set(values: Mapping[int, bytes]) -> bytes:
    """Elements of group 0000H, with the group length."""
    body = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in sorted(values.items()))
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def us(number: int) -> bytes:
    return struct.pack("<H", number)


def ui(uid: str) -> bytes:
    return uid.encode("latin-1") + b"\0" * (len(uid) % 2)


def store_rq(uid: str, sop_class: str = CT, number: int = 1, *, data_type: int = 1) -> bytes:
    """The command set of a C-STORE-RQ."""
    return command_set(
        {
            2: ui(sop_class),
            0x100: us(1),
            0x110: us(number),
            0x700: us(0),
            0x800: us(data_type),
            0x1000: ui(uid),
        }
    )


def echo_rq(number: int = 1) -> bytes:
    return command_set({2: ui(VERIFICATION), 0x100: us(0x30), 0x110: us(number), 0x800: us(0x101)})


def cancel_rq(number: int = 1) -> bytes:
    return command_set({0x100: us(0xFFF), 0x120: us(number), 0x800: us(0x101)})


def pdv(context: int, control: int, data: bytes) -> bytes:
    return struct.pack(">LBB", len(data) + 2, context, control) + data


def p_data(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return struct.pack(">BBL", 4, 0, len(body)) + body


def message(context: int, command: bytes, data: bytes | None, size: int = 16000) -> bytes:
    """A whole message in PDUs of one PDV each, as most senders make them."""
    out = [p_data(pdv(context, 3, command))]
    if data is not None:
        pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        out += [
            p_data(pdv(context, 2 if n == len(pieces) else 0, piece)) for n, piece in enumerate(pieces, 1)
        ]
    return b"".join(out)


# --- association ----------------------------------------------------------------------------------


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def associate_rq(
    contexts: Sequence[tuple[int, str, Sequence[str]]],
    *,
    calling: str = "CT1",
    called: str = "LUMINODE",
    largest_pdu: int = 16384,
    application: str = APPLICATION,
    version: int = 1,
    extra: bytes = b"",
    extra_user: bytes = b"",
) -> bytes:
    body = struct.pack(
        ">HH16s16s32x", version, 0, called.encode("latin-1").ljust(16), calling.encode("latin-1").ljust(16)
    )
    body += item(0x10, application.encode()) + extra
    for number, abstract, transfers in contexts:
        syntaxes = item(0x30, abstract.encode()) + b"".join(item(0x40, t.encode()) for t in transfers)
        body += item(0x20, bytes((number, 0, 0, 0)) + syntaxes)
    user = item(0x51, struct.pack(">L", largest_pdu)) + item(0x52, b"1.2.3.99") + extra_user
    body += item(0x50, user)
    return struct.pack(">BBL", 1, 0, len(body)) + body


@dataclass
class Answer:
    """A DIMSE response."""

    field: int
    message: int
    status: int
    comment: str
    values: dict[int, bytes]


@dataclass
class Peer:
    """A connection to a receiver; a context manager that closes it."""

    port: int
    host: str = "127.0.0.1"
    source: str = ""
    timeout: float = 20.0
    accepted: dict[int, str] = field(default_factory=dict)
    results: dict[int, int] = field(default_factory=dict)
    largest_pdu: int = 0

    def __post_init__(self) -> None:
        source = (self.source, 0) if self.source else None
        self.sock = socket.create_connection(
            (self.host, self.port), timeout=self.timeout, source_address=source
        )
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read(self) -> tuple[int, bytes]:
        """The next PDU: its type and body. (0, b"") if the connection ended."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            head = self._exactly(6)
            return head[0], self._exactly(struct.unpack(">L", head[2:])[0])
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return 0, b""

    def _exactly(self, n: int) -> bytes:
        out = bytearray()
        while len(out) < n:
            got = self.sock.recv(n - len(out))
            if not got:
                raise EOFError
            out += got
        return bytes(out)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        self.send(request)
        kind, body = self.read()
        if kind == 2:
            self._accepted(body[68:])
        return kind, body

    def associate(self, *classes: str, syntaxes: Sequence[str] = (EXPLICIT,), **more: object) -> None:
        """Associate with one context for each class; they get the numbers 1, 3, 5..."""
        contexts = [(2 * n + 1, each, syntaxes) for n, each in enumerate(classes or (CT, VERIFICATION))]
        kind, body = self.ask(associate_rq(contexts, **more))  # type: ignore[arg-type]
        assert kind == 2, (kind, body)

    def _accepted(self, raw: bytes) -> None:
        for kind, value in items(raw):
            if kind == 0x21:
                self.results[value[0]] = value[2]
                for _, syntax in items(value[4:]):
                    if value[2] == 0:
                        self.accepted[value[0]] = syntax.decode()
            elif kind == 0x50:
                for sub, content in items(value):
                    if sub == 0x51:
                        self.largest_pdu = struct.unpack(">L", content)[0]

    def answer(self) -> Answer:
        """The next DIMSE response, its fragments joined."""
        raw = bytearray()
        while True:
            kind, body = self.read()
            assert kind == 4, f"PDU {kind} {body.hex()} instead of a response"
            at, last = 0, False
            while at < len(body):
                length, _, control = struct.unpack_from(">LBB", body, at)
                raw += body[at + 6 : at + 4 + length]
                last = bool(control & 2)
                at += 4 + length
            if last:
                break
        values: dict[int, bytes] = {}
        at = 0
        while at < len(raw):
            _, tag, length = struct.unpack_from("<HHL", raw, at)
            values[tag] = bytes(raw[at + 8 : at + 8 + length])
            at += 8 + length
        number = {tag: struct.unpack("<H", values[tag])[0] for tag in (0x100, 0x120, 0x900)}
        comment = values.get(0x902, b"").decode().rstrip()
        return Answer(number[0x100], number[0x120], number[0x900], comment, values)

    def store(self, uid: str, data: bytes, context: int = 1, number: int = 1, sop_class: str = CT) -> Answer:
        self.send(message(context, store_rq(uid, sop_class, number), data))
        return self.answer()

    def release(self) -> int:
        """Release; the type of the PDU that came back (6 if all is well)."""
        self.send(RELEASE)
        return self.read()[0]


def items(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(raw):
        kind, length = struct.unpack_from(">BxH", raw, at)
        yield kind, raw[at + 4 : at + 4 + length]
        at += 4 + length
