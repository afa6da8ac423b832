"""A small HTTP server that nobody can hold up: one request a connection, bounded in time, size and number.

A request's head is read whole, against one deadline, before anything looks at it: a client that drips bytes has as
long as any other, and the oldest of those that still drip makes room for a newcomer. Who may not ask has a few places
of its own to be told so.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, cast

from node.errors import MonitoringError
from node.log import get_logger

log = get_logger()

MOST: Final = 16
"""Connections of those who may ask, at once."""
STRANGERS: Final = 4
"""Connections of others."""
TIME_S: Final = 5.0
"""How long a client may take for its request, and again for the answer."""
LARGEST: Final = 8192
"""Bytes of a request's head."""
BACKLOG: Final = 64
_TICK_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent back."""

    status: HTTPStatus
    kind: str
    body: bytes


Page = Callable[[str], Answer]
"""Makes an answer; it is given the request's Accept header."""


class Server:
    """Listens from the start; :meth:`serve` answers.

    Parameters
    ----------
    host, port
        Where to listen; port 0 takes a free one.
    page
        Finds the page of a path, None where there is none.
    admits
        Whether somebody at an IP address may ask.

    Raises
    ------
    MonitoringError
        The address cannot be listened on.
    """

    def __init__(
        self, host: str, port: int, *, page: Callable[[str], Page | None], admits: Callable[[str], bool]
    ) -> None:
        self._page = page
        self._admits = admits
        self._lock = threading.Lock()
        self._guests: dict[_Visit, float] = {}
        self._strangers: set[_Visit] = set()
        try:
            self._socket = _listening(host, port)
        except OSError as error:
            raise MonitoringError(
                f"cannot listen on {host}:{port}: {error.strerror or type(error).__name__}",
                hint="the port is taken or needs a privilege, or this machine has no such address",
            ) from None

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        return int(self._socket.getsockname()[1])

    def serve(self, stop: threading.Event) -> None:
        """Answer whoever asks until ``stop`` is set; then the port is closed, and every connection cut."""
        try:
            while not stop.is_set():
                try:
                    sock, address = self._socket.accept()
                except TimeoutError:
                    continue
                except OSError:  # no more files, or a peer that left at once
                    stop.wait(_TICK_S)
                    continue
                self._welcome(sock, str(address[0]))
        finally:
            self._socket.close()
            with self._lock:
                inside = [*self._guests, *self._strangers]
            for visit in inside:
                visit.cut()

    def _welcome(self, sock: socket.socket, address: str) -> None:
        visit = _Visit(sock, self._page if self._admits(address) else _turn_away)
        with self._lock:
            if not self._has_room(visit):
                sock.close()
                return
        try:
            threading.Thread(target=self._attend, args=(visit,), name="web", daemon=True).start()
        except RuntimeError:  # no more threads
            self._leave(visit)
            sock.close()

    def _has_room(self, visit: _Visit) -> bool:
        """Take a place; of those who may ask, the one that has been at its request for longest makes room."""
        if visit.find is _turn_away:
            if len(self._strangers) >= STRANGERS:
                return False
            self._strangers.add(visit)
            return True
        if len(self._guests) >= MOST:
            slow = next((one for one in self._guests if not one.heard), None)  # the oldest comes first
            if slow is None:
                return False
            del self._guests[slow]
            slow.cut()
        self._guests[visit] = time.monotonic()
        return True

    def _attend(self, visit: _Visit) -> None:
        try:
            visit.attend()
        except OSError:
            log.debug("web.broken_off")
        except Exception as error:
            log.error("web.failed", error=type(error).__name__)
        finally:
            self._leave(visit)
            visit.cut()
            visit.sock.close()

    def _leave(self, visit: _Visit) -> None:
        with self._lock:
            self._guests.pop(visit, None)
            self._strangers.discard(visit)


class _Visit:
    """One connection: a request, its answer, the end."""

    def __init__(self, sock: socket.socket, find: Callable[[str], Page | None]) -> None:
        self.sock = sock
        self.find = find
        self.heard = False

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def attend(self) -> None:
        head = _head(self.sock, time.monotonic() + TIME_S)
        if not head:
            return
        self.heard = True
        answer = _Handler(cast(Any, self.sock), head, self.find).answer()
        self.sock.settimeout(TIME_S)  # of all of it: sendall has one deadline
        self.sock.sendall(answer)
        self.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(
            OSError
        ):  # a reset, because of what was sent and not read, may overtake the answer
            self.sock.settimeout(_TICK_S)
            self.sock.recv(LARGEST)


def _head(sock: socket.socket, until: float) -> bytes:
    """All that comes up to the empty line, or too much of it; nothing where the client is too slow or goes."""
    head = b""
    while len(head) <= LARGEST and b"\r\n\r\n" not in head and b"\n\n" not in head:
        left = until - time.monotonic()
        if left <= 0:
            return b""
        sock.settimeout(left)
        piece = sock.recv(4096)
        if not piece:
            return b""
        head += piece
    return head


class _Handler(BaseHTTPRequestHandler):
    """The library's parser over a request that is here, and an answer that is not yet sent."""

    protocol_version = "HTTP/1.0"  # no connection is kept
    default_request_version = "HTTP/1.0"  # what is no request gets an answer with a status line all the same
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def __init__(self, sock: Any, head: bytes, find: Callable[[str], Page | None]) -> None:
        self._head = head
        self._find = find
        super().__init__(sock, ("", 0), cast(Any, None))

    def setup(self) -> None:
        """No files over the socket."""
        self.rfile = io.BufferedReader(cast(Any, io.BytesIO(self._head)))
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        """What was written is kept for :meth:`answer`."""

    def answer(self) -> bytes:
        """What to send."""
        return self.wfile.getvalue() if isinstance(self.wfile, io.BytesIO) else b""

    def handle(self) -> None:
        """One request, unless it is too large for one."""
        self.requestline, self.request_version, self.command = "", "HTTP/1.0", ""
        if len(self._head) > LARGEST:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        self.handle_one_request()

    def do_GET(self) -> None:
        """The page of this path, if it has one."""
        page = self._find(self.path.partition("?")[0])
        if page is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            told = page(self.headers.get("Accept", ""))
        except Exception as error:
            log.error("web.failed", error=type(error).__name__)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(told.status)
        self.send_header("Content-Type", told.kind)
        self.send_header("Content-Length", str(len(told.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(told.body)

    do_HEAD = do_GET  # noqa: N815

    def _no(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _no  # noqa: N815

    def version_string(self) -> str:
        """No versions of what runs here for those who only knock."""
        return "Luminode"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: what is asked for every few seconds is no event."""


def _turn_away(_path: str) -> Page:
    told = b"403 this address may not ask: see monitoring.allow_from in the node's config.yaml\n"
    return lambda _accept: Answer(status=HTTPStatus.FORBIDDEN, kind="text/plain; charset=utf-8", body=told)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.settimeout(_TICK_S)
    except OSError:
        sock.close()
        raise
    return sock
