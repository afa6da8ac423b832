"""The accept thread: it only accepts, counts and hands over, so that no peer can hold it up.

Mends what pynetdicom's server leaves open: a listen backlog of 5, half-open connections counted as
associations, TLS handshakes on the accept thread, a copy of every context for every connection.

A connection that has not become an association holds a thread, and nothing else: where there is no room for a
newcomer, one of them makes room. Whoever idles or drips thus never keeps out a peer that speaks.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Protocol

from pynetdicom.transport import AssociationServer

from node.log import get_logger
from node.receive import sockets
from node.receive.alarm import Alarm

log = get_logger()

BACKLOG: Final = 512
"""Connections that the kernel keeps for us: scanners that open one association an instance come in bursts."""

COURTESY: Final = 16
"""Connections over an address's limit that are still read, to be rejected by the book (2/3/2)."""

PATIENCE_S: Final = 1.0
"""How long a connection may take to become an association before it has to make room for a newcomer."""

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S: Final = 0.1


def plain(address: str) -> str:
    """An IP address as people know it: IPv4 also where it came in through an IPv6 socket."""
    return address.removeprefix("::ffff:")


class Visitor(Protocol):
    """A connection that the gate has counted."""

    address: str

    def cut(self) -> None:
        """Break the connection."""


class Gate:
    """Counts connections and established associations. Thread-safe.

    Parameters
    ----------
    seconds
        Monotonic seconds.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._inside: dict[Visitor, float] = {}
        self._by_address: Counter[str] = Counter()
        self._established: dict[Visitor, tuple[str, str]] = {}

    def may_enter(self, address: str, *, per_address: int, in_all: int) -> bool:
        """Whether one more connection from here is worth a thread."""
        with self._lock:
            return self._by_address[address] < per_address + COURTESY and len(self._inside) < in_all

    def idler(self, address: str, *, per_address: int) -> Visitor | None:
        """Who has to make room for one more connection from here, None if nobody has to.

        Only a connection that is no association yet. If this address is crowded: its own oldest, if that should
        be an association by now. Else the oldest of the address that has most of them, if that has more than
        this one would have; else the oldest of all that should be an association by now.
        """
        with self._lock:
            idle = {
                v: since for v, since in self._inside.items() if v not in self._established
            }  # oldest first
            latest = self._seconds() - PATIENCE_S
            late = (v for v, since in idle.items() if since <= latest)
            if self._by_address[address] >= per_address + COURTESY:
                return next((v for v in late if v.address == address), None)
            shares = Counter(v.address for v in idle)
            greedy, share = shares.most_common(1)[0] if shares else ("", 0)
            if share > shares[address] + 1:
                return next(v for v in idle if v.address == greedy)
            return next(late, None)

    def enter(self, visitor: Visitor) -> None:
        with self._lock:
            self._inside[visitor] = self._seconds()
            self._by_address[visitor.address] += 1

    def leave(self, visitor: Visitor) -> None:
        """Harmless when called twice."""
        with self._lock:
            self._established.pop(visitor, None)
            if visitor in self._inside:
                del self._inside[visitor]
                self._by_address[visitor.address] -= 1
                if self._by_address[visitor.address] <= 0:
                    del self._by_address[visitor.address]

    def establish(
        self, visitor: Visitor, title: str, *, per_title: int | None, per_address: int, in_all: int
    ) -> str:
        """Count an association as established; says where there are as many already, "" if nowhere.

        Returns
        -------
        str
            ``"address"``, ``"title"``, ``"all"`` or ``""``.
        """
        with self._lock:
            there = list(self._established.values())
            if sum(address == visitor.address for address, _ in there) >= per_address:
                return "address"
            if per_title is not None and sum(each == title for _, each in there) >= per_title:
                return "title"
            if len(self._established) >= in_all:
                return "all"
            if visitor in self._inside:  # it may just have had to make room
                self._established[visitor] = visitor.address, title
            return ""

    @property
    def n_connections(self) -> int:
        return len(self._inside)

    @property
    def n_established(self) -> int:
        return len(self._established)

    def visitors(self) -> list[Any]:
        with self._lock:
            return list(self._inside)


class Guard(AssociationServer):  # type: ignore[misc]
    """Listens, and gives every connection that passes its caps to ``welcome``.

    Parameters
    ----------
    ae
        pynetdicom's application entity.
    address
        Host and port; port 0 takes a free one.
    gate, alarm
        Where connections are counted, and refused ones are told.
    limits
        Returns (connections per address, connections in all) that hold now.
    welcome
        Takes a connected socket and the peer's address tuple; must return at once.
    """

    request_queue_size = BACKLOG

    def __init__(
        self,
        ae: Any,
        address: tuple[str, int],
        *,
        gate: Gate,
        alarm: Alarm,
        limits: Callable[[], tuple[int, int]],
        welcome: Callable[[socket.socket, tuple[Any, ...]], None],
    ) -> None:
        self._gate = gate
        self._alarm = alarm
        self._limits = limits
        self._welcome = welcome
        self._tired = threading.Event()
        self._thread: threading.Thread | None = None
        self.seen_at = time.monotonic()
        super().__init__(ae, address, ae.ae_title, [])

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        """Accept connections in a thread of its own until :meth:`close`."""
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.2}, name="door:accept", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop accepting and close the listening socket; connections go on."""
        self._tired.set()
        sockets.cut(self.socket)  # wakes the thread, and whoever connects from here on is refused
        if self._thread is not None:
            super(AssociationServer, self).shutdown()  # pynetdicom's own wants to be in the AE's list
            self._thread.join()
            self._thread = None
        self.server_close()

    def get_request(self) -> tuple[socket.socket, tuple[Any, ...]]:
        try:
            request, address = self.socket.accept()
        except OSError as error:
            if error.errno in _OUT_OF_FILES:
                # The listening socket stays readable: without a pause this would spin until a file is closed.
                self._alarm.tell("door.exhausted", error=errno.errorcode.get(error.errno or 0, ""))
                self._tired.wait(_PAUSE_S)
            raise
        return request, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection is worth a thread, or worth more than one that idles."""
        per_address, in_all = self._limits()
        address = plain(client_address[0])
        if self._gate.may_enter(address, per_address=per_address, in_all=in_all):
            return True
        idler = self._gate.idler(address, per_address=per_address)
        if idler is None:
            self._alarm.tell("connection.refused", address=address)
            return False
        self._alarm.tell("connection.made_room", address=idler.address)
        self._gate.leave(idler)
        idler.cut()
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        self._welcome(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called in an exception handler by socketserver, which would print a traceback."""
        log.error("door.failed", address=client_address[0], threads=threading.active_count(), pid=os.getpid())

    def service_actions(self) -> None:
        """A sign of life; pynetdicom collects garbage here, every minute or so, while everybody waits."""
        self.seen_at = time.monotonic()

    def _bind_defaults(self) -> None:
        """No handlers: pynetdicom's write messages, with what is in them, to the log."""
