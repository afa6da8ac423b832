"""What the receivers of one port know of each other: who is connected to which of them.

They are processes, and limits hold for all of them together. So each writes down its connections in a table in
memory that all of them have mapped, in a region of its own, and looks at the regions of the others when it counts.
One lock makes a look and what follows from it one step. A receiver that dies releases the lock on its region, however
it dies, and whoever counts next strikes out what stands there. One that hangs is counted on, and holds up nobody:
whoever cannot have the lock in a moment goes on without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from node.errors import ReceiveError

MOST: Final = 16
"""Receivers that may share a port."""

_ROOM: Final = 8448
"""Connections of one receiver: twice the most associations that a configuration may ask for, and some."""

_HEAD: Final = struct.Struct("<IIII")
"""Entries in use or free again, connections, whether it accepts any, and how many of them it has to show out."""

_ENTRY: Final = struct.Struct("<QQd64s32s")
"""State, serial number, when it came (monotonic seconds), address, AE title."""

_FREE, _HERE, _ESTABLISHED, _CALLED_OUT = range(4)

_REGION: Final = -(-(_HEAD.size + _ROOM * _ENTRY.size) // mmap.PAGESIZE) * mmap.PAGESIZE
_COUNTS, _WRITES, _LIVES = 0, 1, 2
"""Bytes of the table that are locked: by who counts, by who writes to the database, and from there on each region."""

_LOCK: Final = struct.Struct("@hhqqi4x")
"""struct flock of Linux on 64 bits."""

_MOMENT_S: Final = 1.0
_WINK_S: Final = 0.0002
_HURT_S: Final = 30.0
"""How long one waits for a lock, how often it looks, and how long it does not wait at all after it waited in vain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """The place of one of several receivers of a port.

    ``number`` counts from 1, ``of`` says how many there are. ``door`` and ``table`` are descriptors that their
    supervisor gave to all of them: the bound socket, and the shared memory (memfd_create).
    """

    number: int
    of: int
    door: int
    table: int


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A connection of another receiver; ``since`` is monotonic seconds, ``title`` is "" until it is established."""

    address: str
    since: float
    established: bool
    title: bytes
    region: int
    at: int
    serial: int

    def cut(self) -> None:
        """Its own receiver does that, when it finds it called out."""


class Crowd:
    """The table, as one of the receivers sees it. Thread-safe where it says so; else in a `turn`.

    Parameters
    ----------
    table
        Descriptor of the shared memory (memfd_create), which all of them were given; it stays the caller's.
    number
        Which of them this is, from 1.

    Raises
    ------
    ReceiveError
        This system has no such table, or a living receiver has that number.
    """

    def __init__(self, table: int, number: int) -> None:
        self._own = number - 1
        self._lock = threading.RLock()
        self._depth = {_COUNTS: 0, _WRITES: 0}
        self._held = {_COUNTS: False, _WRITES: False}
        self._patient_at = {_COUNTS: 0.0, _WRITES: 0.0}
        self._free: list[int] = []
        self._serial = 0
        try:
            # Opened anew: locks of one open file description do not keep each other out.
            self._fd = os.open(f"/proc/self/fd/{table}", os.O_RDWR | os.O_CLOEXEC)
            os.ftruncate(self._fd, MOST * _REGION)
            self._memory = mmap.mmap(self._fd, MOST * _REGION)
            until = time.monotonic() + _MOMENT_S
            while not self._try(_LIVES + self._own):  # who counts tries it as well, for a moment
                if time.monotonic() > until:
                    raise ReceiveError(0, f"receiver {number} is there already", hint="end it first")
                time.sleep(_WINK_S)
        except OSError as error:
            raise ReceiveError(
                0,
                f"several receivers cannot share a port here ({type(error).__name__})",
                hint="set node.receivers to 1",
            ) from None
        _HEAD.pack_into(self._memory, self._own * _REGION, 0, 0, 0, 0)

    def close(self) -> None:
        """Leave the table; what stands in this one's region counts no more."""
        self._memory.close()
        os.close(self._fd)

    # for all threads ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def turn(self) -> Iterator[list[Elsewhere]]:
        """Nobody else counts inside this block; gives the connections of all others."""
        with self._lock, self._locked(_COUNTS):
            yield self._others()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else writes to the database inside this block, if that can be had in a moment.

        SQLite has no queue of writers: who finds it locked sleeps, for longer than most transactions take. To be
        held by one thread at a time.
        """
        with self._locked(_WRITES):
            yield

    def opened(self, accepts: bool) -> bool:
        """Tell whether this one accepts connections; returns whether any other does."""
        with self.turn():
            high, n, _, called = self._head(self._own)
            _HEAD.pack_into(self._memory, self._own * _REGION, high, n, accepts, called)
            return any(self._head(i)[2] for i in range(MOST) if i != self._own)

    @property
    def n_elsewhere(self) -> int:
        """Connections of the others."""
        return sum(self._head(i)[1] for i in range(MOST) if i != self._own)

    @property
    def busiest(self) -> bool:
        """Whether another receiver that accepts connections has fewer of them than this one."""
        own = self._head(self._own)[1]
        return any(
            n < own for i in range(MOST) if i != self._own for _, n, open_, _ in [self._head(i)] if open_
        )

    @property
    def n_called_out(self) -> int:
        """How many of this one's connections others have called out."""
        return self._head(self._own)[3]

    # in a turn ----------------------------------------------------------------------------------------

    def enter(self, address: str, since: float) -> int:
        """Write down a connection; returns its place, -1 if there is none."""
        high, n, open_, called = self._head(self._own)
        if not self._free:
            if high >= _ROOM:
                return -1
            self._free.append(high)
            high += 1
        at = self._free.pop()
        self._serial += 1
        _ENTRY.pack_into(
            self._memory, self._where(at), _HERE, self._serial, since, address.encode()[:64], b""
        )
        _HEAD.pack_into(self._memory, self._own * _REGION, high, n + 1, open_, called)
        return at

    def establish(self, at: int, title: str) -> None:
        """Write down that a connection is an association."""
        if at >= 0:
            _, serial, since, address, _ = self._entry(self._own, at)
            _ENTRY.pack_into(
                self._memory, self._where(at), _ESTABLISHED, serial, since, address, key_of(title)
            )  # fmt: skip

    def unseat(self, at: int) -> None:
        """Write down that a connection is an association no more."""
        if at >= 0:
            state, serial, since, address, _ = self._entry(self._own, at)
            if state == _ESTABLISHED:
                _ENTRY.pack_into(self._memory, self._where(at), _HERE, serial, since, address, b"")

    def leave(self, at: int) -> None:
        """Strike a connection out."""
        if at < 0:
            return
        high, n, open_, called = self._head(self._own)
        state = self._entry(self._own, at)[0]
        _ENTRY.pack_into(self._memory, self._where(at), _FREE, 0, 0.0, b"", b"")
        self._free.append(at)
        if state == _CALLED_OUT:
            called = max(0, called - 1)
        else:
            n = max(0, n - 1)
        _HEAD.pack_into(self._memory, self._own * _REGION, high, n, open_, called)

    def call_out(self, one: Elsewhere) -> None:
        """Have another receiver cut a connection that is no association; it counts no more."""
        state, serial, since, address, title = self._entry(one.region, one.at)
        if (state, serial) != (_HERE, one.serial):
            return
        where = self._where(one.at, one.region)
        _ENTRY.pack_into(self._memory, where, _CALLED_OUT, serial, since, address, title)
        high, n, open_, called = self._head(one.region)
        _HEAD.pack_into(self._memory, one.region * _REGION, high, max(0, n - 1), open_, called + 1)

    def called_out(self) -> set[int]:
        """Places of this one's connections that others have called out."""
        if not self._head(self._own)[3]:
            return set()
        return {at for at, entry in enumerate(self._entries(self._own)) if entry[0] == _CALLED_OUT}

    # inside -------------------------------------------------------------------------------------------

    def _others(self) -> list[Elsewhere]:
        found = []
        for region in range(MOST):
            if region == self._own or not any(self._head(region)):
                continue
            if self._try(_LIVES + region):  # it is dead
                _HEAD.pack_into(self._memory, region * _REGION, 0, 0, 0, 0)
                self._release(_LIVES + region)
                continue
            for at, (state, serial, since, address, title) in enumerate(self._entries(region)):
                if state in (_HERE, _ESTABLISHED):
                    plain = address.rstrip(b"\0").decode("ascii", "replace")
                    found.append(
                        Elsewhere(plain, since, state == _ESTABLISHED, title, region, at, serial)
                    )  # fmt: skip
        return found

    def _head(self, region: int) -> tuple[int, int, int, int]:
        high, n, open_, called = _HEAD.unpack_from(self._memory, region * _REGION)
        return min(high, _ROOM), n, open_, called

    def _where(self, at: int, region: int | None = None) -> int:
        return (self._own if region is None else region) * _REGION + _HEAD.size + at * _ENTRY.size

    def _entry(self, region: int, at: int) -> tuple[int, int, float, bytes, bytes]:
        state, serial, since, address, title = _ENTRY.unpack_from(self._memory, self._where(at, region))
        return state, serial, since, address, title

    def _entries(self, region: int) -> Sequence[tuple[int, int, float, bytes, bytes]]:
        start = self._where(0, region)
        raw = self._memory[start : start + self._head(region)[0] * _ENTRY.size]
        return list(_ENTRY.iter_unpack(raw))

    @contextlib.contextmanager
    def _locked(self, byte: int) -> Iterator[None]:
        if not self._depth[byte]:
            self._held[byte] = self._within_a_moment(byte)
        self._depth[byte] += 1
        try:
            yield
        finally:
            self._depth[byte] -= 1
            if not self._depth[byte] and self._held[byte]:
                self._release(byte)

    def _within_a_moment(self, byte: int) -> bool:
        began = time.monotonic()
        while not self._try(byte):
            now = time.monotonic()
            if began < self._patient_at[byte]:
                return False
            if now > began + _MOMENT_S:
                self._patient_at[byte] = now + _HURT_S
                return False
            time.sleep(_WINK_S)
        return True

    def _try(self, byte: int) -> bool:
        try:
            self._order(fcntl.F_WRLCK, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _release(self, byte: int) -> None:
        self._order(fcntl.F_UNLCK, byte)

    def _order(self, kind: int, byte: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def key_of(title: str) -> bytes:
    """An AE title as the table holds it."""
    return title.encode("utf-8", "surrogateescape")[:32].ljust(32, b"\0")


def possible() -> bool:
    """Whether this system has what a crowd needs."""
    try:
        table = os.memfd_create("luminode-receivers", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        return False
    try:
        Crowd(table, 1).close()
    except ReceiveError:
        return False
    finally:
        os.close(table)
    return True
