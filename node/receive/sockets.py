"""A peer's socket, never blocking, under pynetdicom's name for it.

Linux tells a sender that its bytes arrived only after up to 40 ms; a sender with Nagle's algorithm on
(DCMTK has it, and so do scanners) waits for that. A quick acknowledgement after every read is worth
a factor of twenty with such a peer.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from typing import Any, Final

from pynetdicom.transport import AssociationSocket

_QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)
_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, InterruptedError)


class SendTimeoutError(OSError):
    """The peer does not read what we send."""


def prepare(sock: socket.socket, unheard_s: float) -> None:
    """Options of a socket that we accepted: at once, and not for ever."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if _USER_TIMEOUT is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(unheard_s * 1000))


def secured(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """The socket as a TLS server's, which :meth:`handshake` has to follow; the old one is used up."""
    return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


def handshake(sock: ssl.SSLSocket, within_s: float) -> None:
    """Make a TLS server's handshake; raises OSError (ssl.SSLError, TimeoutError) if it fails or is slow."""
    sock.settimeout(within_s)  # ssl takes this as the deadline of the whole handshake
    sock.do_handshake()


class DoorSocket(AssociationSocket):  # type: ignore[misc]
    """Reads and writes without blocking for longer than it was told.

    Parameters
    ----------
    assoc
        pynetdicom's association.
    sock
        Connected socket.
    send_s
        How long a peer may take to make room for what we send, in seconds.
    """

    def __init__(self, assoc: Any, sock: socket.socket, *, send_s: float) -> None:
        super().__init__(assoc, client_socket=sock)
        sock.setblocking(False)
        self._send_s = send_s
        self._plain = not isinstance(sock, ssl.SSLSocket)
        self._readable = select.poll()
        self._readable.register(sock.fileno(), select.POLLIN)

    def read(self, buffer: memoryview) -> int:
        """Read what is there; bytes read, 0 at the end of the stream, -1 if nothing is there now.

        Raises
        ------
        OSError
            The connection broke.
        """
        try:
            n_bytes: int = self.socket.recv_into(buffer)
        except _NOT_NOW:
            return -1
        if n_bytes and _QUICKACK is not None:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        return n_bytes

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to read, or an end, at most this long."""
        return bool(self._readable.poll(int(seconds * 1000) + 1))

    def send(self, bytestream: bytes) -> None:
        """Send all of it; should that fail, the state machine hears that the connection closed."""
        try:
            self.send_all(bytestream)
        except OSError:
            self.event_queue.put("Evt17")

    def send_all(self, data: bytes) -> None:
        """Send all of it.

        Raises
        ------
        OSError
            The connection broke, or (:class:`SendTimeoutError`) the peer made no room in time.
        """
        sock = self.socket
        if sock is None:
            raise SendTimeoutError("the connection is closed")
        view = memoryview(data)
        until = 0.0
        while view:
            try:
                view = view[sock.send(view) :]
            except _NOT_NOW as not_now:
                now = time.monotonic()
                until = until or now + self._send_s
                if now >= until:
                    raise SendTimeoutError("the peer does not read") from None
                wanted = select.POLLIN if isinstance(not_now, ssl.SSLWantReadError) else select.POLLOUT
                poll = select.poll()
                poll.register(sock.fileno(), wanted)
                poll.poll(int((until - now) * 1000) + 1)

    def _shutdown_socket(self) -> None:
        sock = self.socket
        if sock is not None:
            cut(sock)
            close(sock)


def cut(sock: socket.socket) -> None:
    """End a connection in both directions; whoever waits for it wakes up."""
    with contextlib.suppress(OSError):
        # Not ssl's own, which takes its state away from under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def close(sock: socket.socket) -> None:
    """Close a socket, whatever state it is in."""
    with contextlib.suppress(OSError):
        sock.close()
