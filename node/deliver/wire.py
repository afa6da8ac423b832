"""A socket on which nothing waits for ever.

Every wait has an end of its own: to connect, for the peer to take another byte, for an answer. A peer that is
frozen (SIGSTOP, a hung virtual machine, a full disk under its receiver) keeps acknowledging on the TCP level
for as long as its kernel has room; pynetdicom's sender was seen to wait for ever there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from node.errors import PeerUnreachable

LARGEST_PDU = 1 << 20
"""No answer to an SCU is longer than this; a longer one is cut before it is allocated."""

_MOST_PIECES = 512
"""Given to the kernel at once; it takes 1024 at the most (IOV_MAX)."""
_AT_ONCE = 640 * 1024
"""Bytes after which no further piece is given to it at once: of more it keeps more, and how much a peer that reads
nothing has left unread would be seen later."""

_HEAD_START_S: Final = 1.0
"""How long an address has for itself before the next one of the same name is tried as well."""

_Address: TypeAlias = tuple[int, int, int, str, Any]
"""As getaddrinfo gives it: family, kind, protocol, canonical name, address."""


class Wire:
    """A connected TCP (or TLS) socket with deadlines.

    Parameters
    ----------
    sock
        Connected; owned from now on.
    timeout_s
        How long the peer may take no byte, or give none, before it is given up.
    """

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._patience_s = -1.0
        self._is_open = True
        self._came = bytearray()
        """What came and was not asked for yet: an answer is read in one go."""

    @property
    def gathers(self) -> bool:
        """Whether :meth:`gather` can be used; TLS has one piece after the other in records of its own."""
        return not isinstance(self._sock, ssl.SSLSocket)

    def send(self, data: bytes | memoryview, deadline: float) -> None:
        """Write all of ``data``; ``deadline`` is on the monotonic clock.

        Raises
        ------
        PeerUnreachable
            If the peer takes no byte for the timeout, if the deadline passes, or if the connection breaks.
        """
        view = memoryview(data)
        while view:
            view = view[self._put(self._sock.send, view, deadline) :]

    def gather(self, pieces: Sequence[bytes | memoryview], deadline: float) -> None:
        """Write pieces one behind the other, without copying them together; as :meth:`send`."""
        left, at = list(pieces), 0
        while at < len(left):
            end, n_bytes = at, 0
            while end < len(left) and n_bytes < _AT_ONCE and end - at < _MOST_PIECES:
                n_bytes += len(left[end])
                end += 1
            n = self._put(self._sock.sendmsg, left[at:end], deadline)
            while at < len(left) and n >= len(left[at]):
                n -= len(left[at])
                at += 1
            if n:
                left[at] = memoryview(left[at])[n:]

    def _put(self, put: Callable[[Any], int], what: object, deadline: float) -> int:
        left = deadline - time.monotonic()
        if left <= 0:
            raise PeerUnreachable("the peer took the data too slowly")
        self._be_patient(left)
        try:
            return put(what)
        except TimeoutError:
            raise PeerUnreachable("the peer stopped taking data") from None
        except OSError as error:
            raise _broken(error) from None

    def receive(self, size: int, deadline: float) -> bytes:
        """Read exactly ``size`` bytes until ``deadline``.

        Raises
        ------
        PeerUnreachable
            If they do not come, or the connection ends first.
        """
        came = self._came
        while len(came) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerUnreachable("no answer")
            self._be_patient(left)
            try:
                _acknowledge_at_once(self._sock)
                piece = self._sock.recv(65536)
            except TimeoutError:
                continue  # the deadline decides
            except OSError as error:
                raise _broken(error) from None
            if not piece:
                raise PeerUnreachable("the peer closed the connection")
            came += piece
        got = bytes(came[:size])
        del came[:size]
        return got

    def _be_patient(self, left: float) -> None:
        """Let the next call wait for the timeout, and no longer than ``left``; said to the system where it changed."""
        patience_s = min(self._timeout_s, left)
        if patience_s != self._patience_s:
            self._sock.settimeout(patience_s)
            self._patience_s = patience_s

    def receive_pdu(self, deadline: float) -> tuple[int, bytes]:
        """The next PDU: its type and its body without the six-byte header (PS3.8 9.3.1)."""
        kind, _, length = struct.unpack(">BBL", self.receive(6, deadline))
        if length > LARGEST_PDU:
            raise PeerUnreachable("the peer announced an answer of impossible length")
        return kind, self.receive(length, deadline)

    def is_quiet(self) -> bool:
        """Whether there is nothing to read: neither bytes nor the end of the connection."""
        if self._came:
            return False
        look = select.poll()
        look.register(self._sock, select.POLLIN)
        return not look.poll(0)

    def close(self, *, drop: bool = False) -> None:
        """Close; never raises and never waits for the peer.

        ``drop`` resets the connection: what the kernel still holds for a peer that takes nothing is
        thrown away, and the peer learns that this association is over.
        """
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(OSError):
                if drop:
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    self._sock.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                self._sock.close()


def connect(
    host: str, port: int, timeout_s: float, tls: ssl.SSLContext | None = None, *, server_name: str = ""
) -> Wire:
    """Connect within ``timeout_s`` seconds, over all addresses of ``host`` together.

    Raises
    ------
    PeerUnreachable
        If there is no address, nobody listens, nobody answers, or the TLS handshake fails.
    """
    deadline = time.monotonic() + timeout_s
    try:
        addresses: list[_Address] = [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise PeerUnreachable(
            f"{host} has no address", hint="Check the address of this destination and the name server."
        ) from None
    reason, hint = "nobody answers", ""
    while addresses and time.monotonic() < deadline:
        try:
            sock, address = _first(addresses, deadline)
        except TimeoutError:
            break
        except OSError as error:
            reason = _words(error)
            break
        try:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            if tls is not None:
                # The socket's time-out bounds the handshake as a whole.
                sock = tls.wrap_socket(sock, server_hostname=server_name or host)
            return Wire(sock, timeout_s)
        except TimeoutError:
            reason = "nobody answers"
        except ssl.SSLError as error:
            reason = f"the TLS handshake failed ({error.reason or 'closed'})"
            hint = _TLS_HINT
        except OSError as error:
            reason = _words(error)
        sock.close()
        addresses.remove(address)
    raise PeerUnreachable(f"{host}:{port} cannot be reached: {reason}", hint=hint)


def _first(addresses: Sequence[_Address], deadline: float) -> tuple[socket.socket, _Address]:
    """A connection to the first address that takes one: each is tried beside those before it (RFC 8305).

    One after the other, with the deadline for all of them, a dead address of a name would keep us from the live one.

    Raises
    ------
    OSError
        All failed: what the last one said.
    TimeoutError
        Nobody answers.
    """
    coming = list(addresses)
    waiting: dict[int, tuple[socket.socket, _Address]] = {}
    look = select.poll()
    next_at, why = 0.0, OSError()
    try:
        while coming or waiting:
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError
            if coming and (now >= next_at or not waiting):
                family, kind, protocol, _, where = address = coming.pop(0)
                next_at = now + _HEAD_START_S
                try:
                    sock = socket.socket(family, kind, protocol)
                except OSError as error:  # no such family here
                    next_at, why = now, error
                    continue
                _prepare(sock)
                sock.setblocking(False)
                number = sock.connect_ex(where)
                if number not in (0, errno.EINPROGRESS):
                    next_at, why = now, OSError(number, os.strerror(number))
                    sock.close()
                    continue
                waiting[sock.fileno()] = sock, address
                look.register(sock, select.POLLOUT)
            until = min(deadline, next_at) if coming else deadline
            for fd, _ in look.poll(max(0, int((until - time.monotonic()) * 1000)) + 1):
                sock, address = waiting.pop(fd)
                look.unregister(fd)
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not number:
                    return sock, address
                next_at, why = now, OSError(number, os.strerror(number))
                sock.close()
        raise why
    finally:
        for sock, _ in waiting.values():
            sock.close()


_TLS_HINT = (
    "It must speak TLS 1.2 or later with an ECDHE suite of AES-GCM or ChaCha20 (BCP 195), and show a certificate for "
    "this host name of one of `tls.authorities`; check both ends' certificates and their dates."
)


def _prepare(sock: socket.socket) -> None:
    # Nagle's algorithm and delayed acknowledgements together cost 40 ms an instance.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # No TCP_USER_TIMEOUT: Linux counts it on while the peer's window is too small for what is at the head of our
    # queue, even where the peer takes bytes all the time. A slow PACS with a small buffer was cut off by it.


def _acknowledge_at_once(sock: socket.socket) -> None:
    """A peer with Nagle's algorithm on (Orthanc, DCMTK's default) sends an answer in two pieces and keeps the
    second until the first is acknowledged; Linux forgets this wish after each send, so it is said again."""
    if hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):  # only a wish, and not every socket is TCP
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _broken(error: OSError) -> PeerUnreachable:
    return PeerUnreachable(f"the connection broke: {_words(error)}")


def _words(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "the peer closed it"
    return (error.strerror or type(error).__name__).lower()
