"""Peers that misbehave as told: a scripted SCP on a raw socket, and a proxy that makes a network slow."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"


def dimse_settings(port: int, ae_title: str, **more: Any) -> dict[str, Any]:
    """The settings of a ``dimse`` destination on the loopback."""
    return {"kind": "dimse", "ae_title": ae_title, "address": f"{HOST}:{port}", "timeout": 10, **more}


@dataclass(frozen=True)
class Reject:
    """Answer A-ASSOCIATE-RJ with (result, source, reason)."""

    result: int
    source: int
    reason: int


ABORT, PROVIDER_ABORT, SILENCE, GARBAGE, CLOSE, RESET, RELEASE = (
    "abort", "provider abort", "silence", "garbage", "close", "reset", "release",
)  # fmt: skip
WRONG_MESSAGE, WRONG_COMMAND, ENDLESS, NOT_READ = (
    "wrong message id",
    "wrong command",
    "endless pdu",
    "not read",
)


@dataclass(frozen=True)
class Status:
    """Answer with a status and an Error Comment."""

    status: int
    comment: str = ""


@dataclass
class Stored:
    """One C-STORE as it came over the wire."""

    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes


@dataclass
class ScriptedScp:
    """An SCP on a raw socket that does what it is told.

    Parameters
    ----------
    associate
        n (from 0) -> None to accept, a :class:`Reject`, or one of the words.
    store
        (n over all associations, SOP Instance UID) -> a status, a :class:`Status`, or one of the words.
        What is not done with a failure status is kept in ``stored``.
    accepts
        (SOP class, transfer syntax) -> whether to accept the presentation context.
    max_pdu
        Announced maximum; 0 is without limit.
    reads_at_most
        After so many bytes of an association nothing is read any more, and nothing closed; 0 is no limit.
    goes_after, how
        After so many answers of an association it is ended from here, at once and in this way; 0 is never.
    """

    associate: Callable[[int], Reject | str | None] = lambda _n: None
    store: Callable[[int, str], int | Status | str] = lambda _n, _uid: 0x0000
    accepts: Callable[[str, str], bool] = lambda _c, _s: True
    max_pdu: int = 16384
    reads_at_most: int = 0
    goes_after: int = 0
    how: str = "release"
    stored: list[Stored] = field(default_factory=list)
    n_associations: int = 0
    n_stores: int = 0
    n_released: int = 0
    largest_pdu: int = 0
    calling: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server((HOST, 0), backlog=64)
        if self.reads_at_most:  # or the kernel reads on by itself
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def settings(self, **more: Any) -> dict[str, Any]:
        """A destination's settings that lead here."""
        return dimse_settings(self.port, "SCRIPTED", **more)

    def uids(self) -> list[str]:
        """SOP Instance UIDs of what it holds, each once."""
        return sorted({s.sop_instance_uid for s in self.stored})

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._talk(sock)
        except (OSError, EOFError, struct.error):
            pass
        except Exception as error:
            self.faults.append(repr(error))
            raise

    def _talk(self, sock: socket.socket) -> None:
        kind, body = self._pdu(sock)
        assert kind == 1, kind
        with self._lock:
            n, self.n_associations = self.n_associations, self.n_associations + 1
            self.calling.append(body[20:36].decode().strip())
        what = self.associate(n)
        if isinstance(what, Reject):
            sock.sendall(struct.pack(">BBLBBBB", 3, 0, 4, 0, what.result, what.source, what.reason))
            return
        if what is not None:
            self._misbehave(sock, what)
            return
        contexts, answer = self._negotiate(body)
        sock.sendall(answer)
        command, data, n_read, n_answered = b"", b"", 0, 0
        while not self.reads_at_most or n_read < self.reads_at_most:
            kind, body = self._pdu(sock)
            n_read += len(body)
            if kind == 5:
                self.n_released += 1
                sock.sendall(b"\x06\0\0\0\0\4\0\0\0\0")
                return
            if kind == 7:
                return
            assert kind == 4, kind
            self.largest_pdu = max(self.largest_pdu, len(body))
            at = 0
            while at < len(body):
                length, context, control = struct.unpack_from(">LBB", body, at)
                piece = body[at + 6 : at + 4 + length]
                at += 4 + length
                if control & 1:
                    command += piece
                else:
                    data += piece
                if control & 2 and (not control & 1 or _elements(command)[0x0800] == b"\x01\x01"):
                    n_answered += 1
                    goes = n_answered == self.goes_after
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, int(goes))  # in one segment
                    if not self._respond(sock, context, contexts, command, data):
                        return
                    command = data = b""
                    if goes:
                        sock.sendall(bytes((5 if self.how == RELEASE else 7, 0, 0, 0, 0, 4, 0, 0, 0, 0)))
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
                        self._pdu(sock)
                        sock.close()
                        return

    def _respond(
        self, sock: socket.socket, context: int, contexts: dict[int, str], command: bytes, data: bytes
    ) -> bool:
        got = _elements(command)
        message = int.from_bytes(got[0x0110], "little")
        if got[0x0100] == b"\x30\x00":
            sock.sendall(_response(context, 0x8030, message, 0, ""))
            return True
        uid = got[0x1000].rstrip(b"\0").decode()
        with self._lock:
            n, self.n_stores = self.n_stores, self.n_stores + 1
        what = self.store(n, uid)
        failed = isinstance(what, int) and not _holds(what)
        failed = failed or (isinstance(what, Status) and not _holds(what.status))
        if not failed:
            with self._lock:
                self.stored.append(Stored(uid, contexts[context], data))
        if isinstance(what, int):
            what = Status(what)
        if isinstance(what, Status):
            sock.sendall(_response(context, 0x8001, message, what.status, what.comment))
            return True
        if what == WRONG_MESSAGE:
            sock.sendall(_response(context, 0x8001, message + 7, 0, ""))
            return True
        if what == WRONG_COMMAND:
            sock.sendall(_response(context, 0x8030, message, 0, ""))
            return True
        self._misbehave(sock, what)
        return False

    def _misbehave(self, sock: socket.socket, what: str) -> None:
        if what == ABORT:
            sock.sendall(struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 0, 0))
        elif what == PROVIDER_ABORT:
            sock.sendall(struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 2, 6))
        elif what == GARBAGE:
            sock.sendall(b"\x04\0\0\0\0\x0cHTTP/1.1 400")
            time.sleep(0.2)
        elif what == ENDLESS:
            sock.sendall(b"\x04\0\xff\xff\xff\xff" + b"\0" * 64)
            time.sleep(0.2)
        elif what == RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif what == RELEASE:
            sock.sendall(b"\x05\0\0\0\0\4\0\0\0\0")
            self._pdu(sock)
        elif what == SILENCE:
            return  # the socket stays open, and nothing comes any more
        sock.close()

    def _pdu(self, sock: socket.socket) -> tuple[int, bytes]:
        kind, _, length = struct.unpack(">BBL", _exactly(sock, 6))
        return kind, _exactly(sock, length)

    def _negotiate(self, body: bytes) -> tuple[dict[int, str], bytes]:
        contexts: dict[int, str] = {}
        items = b""
        for kind, item in _items(body[68:]):
            if kind != 0x20:
                continue
            context = item[0]
            subs = list(_items(item[4:]))
            abstract = next(v for k, v in subs if k == 0x30).rstrip(b"\0").decode()
            syntaxes = [v.rstrip(b"\0").decode() for k, v in subs if k == 0x40]
            taken = next((s for s in syntaxes if self.accepts(abstract, s)), None)
            if taken is not None:
                contexts[context] = taken
            sub = _item(0x40, (taken or syntaxes[0]).encode())
            items += _item(0x21, bytes((context, 0, 0 if taken else 4, 0)) + sub)
        user = _item(0x51, struct.pack(">L", self.max_pdu)) + _item(0x52, b"1.2.3.4")
        rest = _item(0x10, b"1.2.840.10008.3.1.1.1") + items + _item(0x50, user)
        fixed = struct.pack(">HH", 1, 0) + body[4:36] + b"\0" * 32
        return contexts, struct.pack(">BBL", 2, 0, len(fixed) + len(rest)) + fixed + rest


def _holds(status: int) -> bool:
    return status in (0x0000, 0x0111) or 0xB000 <= status <= 0xBFFF


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _items(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(body):
        kind, _, length = struct.unpack_from(">BBH", body, at)
        yield kind, body[at + 4 : at + 4 + length]
        at += 4 + length


def _elements(command: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(command):
        _, number, length = struct.unpack_from("<HHL", command, at)
        found[number] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def _response(context: int, command: int, message: int, status: int, comment: str) -> bytes:
    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    body = element(0x0100, struct.pack("<H", command)) + element(0x0120, struct.pack("<H", message))
    body += element(0x0800, b"\x01\x01") + element(0x0900, struct.pack("<H", status))
    if comment:
        raw = comment.encode()
        body += element(0x0902, raw + b" " * (len(raw) % 2))
    body = element(0x0000, struct.pack("<L", len(body))) + body
    return struct.pack(">BBLLBB", 4, 0, len(body) + 6, len(body) + 2, context, 3) + body


def _exactly(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        piece = sock.recv(min(size - len(got), 1 << 20))
        if not piece:
            raise EOFError
        got += piece
    return bytes(got)


@dataclass
class SlowProxy:
    """A TCP proxy in front of a port: so many bytes a second towards it, in chunks, with a delay."""

    port_behind: int
    bytes_per_s: float = 1e9
    chunk: int = 65536
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        self._listener = socket.socket()
        # Small buffers, set before listening, or the kernel takes a whole image at once.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        self._listener.bind((HOST, 0))
        self._listener.listen(16)
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection((HOST, self.port_behind))
            except OSError:
                return
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [near, far]
            threading.Thread(target=self._pump, args=(near, far, self.bytes_per_s), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, 1e9), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, rate: float) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(self.chunk):
                time.sleep(self.delay_s + len(piece) / rate)
                sink.sendall(piece)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
