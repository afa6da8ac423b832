"""The accept thread: it only accepts, counts and hands over, so that no peer can hold it up.

Mends what pynetdicom's server leaves open: a listen backlog of 5, half-open connections counted as
associations, TLS handshakes on the accept thread, a copy of every context for every connection.

A connection that has not become an association holds a thread, and nothing else: where there is no room for a
newcomer, one of them makes room. Whoever idles or drips thus never keeps out a peer that speaks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from pynetdicom.transport import AssociationServer

from node.log import get_logger
from node.receive import sockets
from node.receive.alarm import Alarm
from node.receive.crowd import Crowd, Elsewhere, key_of

log = get_logger()

BACKLOG: Final = 512
"""Connections that the kernel keeps for us: scanners that open one association an instance come in bursts."""

COURTESY: Final = 16
"""Connections over an address's limit that are still read, to be rejected by the book (2/3/2)."""

PATIENCE_S: Final = 1.0
"""How long a connection may take to become an association before it has to make room for a newcomer."""

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S: Final = 0.1

_STEP_S: Final = 0.002
_STEPS: Final = 5
"""How long a receiver that has more connections than another leaves it the next one, and how often it looks."""


def plain(address: str) -> str:
    """An IP address as people know it: IPv4 also where it came in through an IPv6 socket."""
    return address.removeprefix("::ffff:")


class Visitor(Protocol):
    """A connection that the gate has counted."""

    @property
    def address(self) -> str:
        """The peer's IP address."""

    def cut(self) -> None:
        """Break the connection."""


class Gate:
    """Counts connections and established associations. Thread-safe.

    Parameters
    ----------
    seconds
        Monotonic seconds.
    crowd
        Where several receivers serve one port: limits hold for all of them together, to the association. Of
        connections that are none yet there may be one too many for each receiver that accepts at the same moment.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic, crowd: Crowd | None = None) -> None:
        self._seconds = seconds
        self._crowd = crowd
        self._lock = threading.Lock()
        self._inside: dict[Visitor, float] = {}
        self._by_address: Counter[str] = Counter()
        self._established: dict[Visitor, tuple[str, str]] = {}
        self._places: dict[Visitor, int] = {}
        self._called_out: list[Visitor] = []

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Sequence[Elsewhere]]:
        """Nobody else counts inside this block; gives what other receivers have."""
        with self._lock:
            if self._crowd is None:
                yield ()
                return
            with self._crowd.turn() as others:
                called = self._crowd.called_out()
                for visitor in [v for v, place in self._places.items() if place in called]:
                    self._forget(visitor)
                    self._called_out.append(visitor)
                yield others

    def may_enter(self, address: str, *, per_address: int, in_all: int) -> bool:
        """Whether one more connection from here is worth a thread."""
        with self._turn() as others:
            from_here = self._by_address[address] + sum(one.address == address for one in others)
            return from_here < per_address + COURTESY and len(self._inside) + len(others) < in_all

    def idler(self, address: str, *, per_address: int) -> Visitor | None:
        """Who has to make room for one more connection from here, None if nobody has to.

        Only a connection that is no association yet. If this address is crowded: its own oldest, if that should
        be an association by now. Else the oldest of the address that has most of them, if that has more than
        this one would have; else the oldest of all that should be an association by now.
        """
        with self._turn() as others:
            idle = {
                v: since for v, since in self._inside.items() if v not in self._established
            }  # oldest first
            if others:
                idle |= {one: one.since for one in others if not one.established}
                idle = dict(sorted(idle.items(), key=lambda item: item[1]))
            latest = self._seconds() - PATIENCE_S
            late = (v for v, since in idle.items() if since <= latest)
            from_here = self._by_address[address] + sum(one.address == address for one in others)
            if from_here >= per_address + COURTESY:
                return next((v for v in late if v.address == address), None)
            shares = Counter(v.address for v in idle)
            greedy, share = shares.most_common(1)[0] if shares else ("", 0)
            if share > shares[address] + 1:
                return next(v for v in idle if v.address == greedy)
            return next(late, None)

    def enter(self, visitor: Visitor) -> None:
        with self._turn():
            self._inside[visitor] = now = self._seconds()
            self._by_address[visitor.address] += 1
            if self._crowd is not None:
                self._places[visitor] = self._crowd.enter(visitor.address, now)

    def leave(self, visitor: Visitor) -> None:
        """Harmless when called twice."""
        with self._turn():
            if self._crowd is not None and isinstance(visitor, Elsewhere):
                self._crowd.call_out(visitor)
            else:
                self._forget(visitor)

    def _forget(self, visitor: Visitor) -> None:
        self._established.pop(visitor, None)
        if visitor in self._inside:
            del self._inside[visitor]
            self._by_address[visitor.address] -= 1
            if self._by_address[visitor.address] <= 0:
                del self._by_address[visitor.address]
            if self._crowd is not None:
                self._crowd.leave(self._places.pop(visitor))

    def called_out(self) -> list[Visitor]:
        """Those that have to make room for a newcomer at another receiver: each is told once, to be cut."""
        if self._crowd is None or not (self._crowd.n_called_out or self._called_out):
            return []
        with self._turn():
            out, self._called_out = self._called_out, []
            return out

    def establish(
        self, visitor: Visitor, title: str, *, per_title: int | None, per_address: int, in_all: int
    ) -> str:
        """Count an association as established; says where there are as many already, "" if nowhere.

        Returns
        -------
        str
            ``"address"``, ``"title"``, ``"all"`` or ``""``.
        """
        with self._turn() as others:
            elsewhere = [one for one in others if one.established]
            here = list(self._established.values())
            from_here = sum(address == visitor.address for address, _ in here)
            by_title = sum(each == title for _, each in here)
            if elsewhere:
                from_here += sum(one.address == visitor.address for one in elsewhere)
                by_title += sum(one.title == key_of(title) for one in elsewhere)
            if from_here >= per_address:
                return "address"
            if per_title is not None and by_title >= per_title:
                return "title"
            if len(here) + len(elsewhere) >= in_all:
                return "all"
            if visitor in self._inside:  # it may just have had to make room
                self._established[visitor] = visitor.address, title
                if self._crowd is not None:
                    self._crowd.establish(self._places[visitor], title)
            return ""

    def unseat(self, visitor: Visitor) -> None:
        """An association has ended, though its connection may stay for a while: it is a connection like any other,
        and has to make room where a newcomer needs it. Harmless when called twice."""
        with self._turn():
            if self._established.pop(visitor, None) is not None and self._crowd is not None:
                self._crowd.unseat(self._places[visitor])

    @property
    def n_connections(self) -> int:
        return len(self._inside)

    @property
    def n_established(self) -> int:
        return len(self._established)

    @property
    def n_elsewhere(self) -> int:
        """Connections of other receivers of this port."""
        return self._crowd.n_elsewhere if self._crowd is not None else 0

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
    shared
        A bound socket that several receivers listen on, in place of one of its own at ``address``; and what they know
        of each other.
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
        shared: tuple[socket.socket, Crowd] | None = None,
    ) -> None:
        self._gate = gate
        self._shared = shared
        self.socket: Any
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
        if self._shared is None:
            sockets.cut(self.socket)  # wakes the thread, and whoever connects from here on is refused
        else:
            if not self._shared[1].opened(False):  # else the others listen on
                sockets.cut(self.socket)  # their supervisor may be dead: nobody else would close it
        if self._thread is not None:
            super(AssociationServer, self).shutdown()  # pynetdicom's own wants to be in the AE's list
            self._thread.join()
            self._thread = None
        self.server_close()

    def server_bind(self) -> None:
        """As pynetdicom does, or take the socket that is bound already."""
        if self._shared is None:
            super().server_bind()
            return
        self.socket.close()
        self.socket = self._shared[0]
        self._shared[1].opened(True)  # before it listens: the last one that goes shuts the socket
        self.socket.setblocking(False)  # another receiver may be the first to accept
        self.server_address = self.socket.getsockname()

    def server_close(self) -> None:
        """Close the listening socket; for the other receivers it stays open."""
        if self._shared is None:
            super().server_close()
        else:
            self.socket.close()

    def get_request(self) -> tuple[socket.socket, tuple[Any, ...]]:
        """The next connection; where another receiver has fewer, that may take it first."""
        if self._shared is not None:
            self._step_back(self._shared[1])
        try:
            request, address = self.socket.accept()
        except OSError as error:
            if error.errno in _OUT_OF_FILES:
                # The listening socket stays readable: without a pause this would spin until a file is closed.
                self._alarm.tell("door.exhausted", error=errno.errorcode.get(error.errno or 0, ""))
                self._tired.wait(_PAUSE_S)
            raise
        return request, address

    def _step_back(self, crowd: Crowd) -> None:
        for _ in range(_STEPS):
            if not crowd.busiest or self._tired.wait(_STEP_S):
                break
        if self._tired.is_set():
            raise BlockingIOError  # the others go on, and nobody is to be turned away by the one that does not

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
        for visitor in self._gate.called_out():
            visitor.cut()

    def _bind_defaults(self) -> None:
        """No handlers: pynetdicom's write messages, with what is in them, to the log."""
