"""What is sent: one encoded data set in the spool, checked against its digest before a byte of it leaves.

A data set of ordinary size is read once, hashed and sent from the same memory, so that what was checked is
what is sent; a larger one is hashed from the file and then streamed from it. Reading and hashing run one
instance ahead of the socket, in one thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from node.errors import DeliveryError

IN_MEMORY = 32 << 20
"""Data sets up to this many bytes are held in memory, two at a time."""

_PIECE = 1 << 20


class ParcelDamaged(DeliveryError):
    """The spooled bytes are not those that were stored: never sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One instance to send.

    ``path`` is a Part 10 file; its encoded data set begins at byte ``offset`` and the file has ``size``
    bytes. ``sha256`` (hex) is of the data set; empty means unknown, then it is not checked.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path
    offset: int
    size: int
    sha256: str = ""
    series_uid: str = ""


class Body(Protocol):
    """An encoded data set that can be copied out piece by piece."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def fill(self, slots: Sequence[memoryview], at: int) -> None:
        """Copy from byte ``at`` on into ``slots``, all of which lie within the data set."""

    def close(self) -> None:
        """Give back what it holds."""


class MemoryBody:
    """A data set held in memory."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)

    @property
    def size(self) -> int:
        return len(self._data)

    def fill(self, slots: Sequence[memoryview], at: int) -> None:
        for slot in slots:
            slot[:] = self._data[at : at + len(slot)]
            at += len(slot)

    def close(self) -> None:
        self._data.release()


class FileBody:
    """A data set streamed from its file."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._offset = offset
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def fill(self, slots: Sequence[memoryview], at: int) -> None:
        wanted = sum(len(s) for s in slots)
        got = os.preadv(self._fd, slots, self._offset + at)
        if got != wanted:  # a short read of a regular file: finish it slot by slot
            for slot in slots:
                _read_all(self._fd, slot, self._offset + at)
                at += len(slot)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def open_parcel(parcel: Parcel) -> Body:
    """Read and check a parcel.

    Raises
    ------
    ParcelDamaged
        If the file is gone, has another size, cannot be read, or its data set has another digest.
    """
    length = parcel.size - parcel.offset
    try:
        fd = os.open(parcel.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ParcelDamaged(f"the spooled file cannot be opened ({error.strerror})") from None
    keep = False
    try:
        if length <= 0 or os.fstat(fd).st_size != parcel.size:
            raise ParcelDamaged("the spooled file has another size than the one recorded")
        if length <= IN_MEMORY:
            data = bytearray(length)
            _read_all(fd, memoryview(data), parcel.offset)
            digest = hashlib.sha256(data).hexdigest() if parcel.sha256 else ""
            body: Body = MemoryBody(memoryview(data))
        else:
            digest = _digest(fd, parcel.offset, length) if parcel.sha256 else ""
            body = FileBody(fd, parcel.offset, length)
            keep = True
        if digest != parcel.sha256:
            keep = False
            raise ParcelDamaged("the spooled file has changed since it was written")
        return body
    except OSError as error:
        keep = False
        raise ParcelDamaged(f"the spooled file cannot be read ({error.strerror})") from None
    finally:
        if not keep:
            os.close(fd)


def _read_all(fd: int, into: memoryview, at: int) -> None:
    while into:
        n = os.preadv(fd, [into], at)
        if n == 0:
            raise OSError(5, "the file ends too early")
        into = into[n:]
        at += n


def _digest(fd: int, offset: int, length: int) -> str:
    digest = hashlib.sha256()
    piece = bytearray(_PIECE)
    while length > 0:
        view = memoryview(piece)[: min(length, _PIECE)]
        _read_all(fd, view, offset)
        digest.update(view)
        offset += len(view)
        length -= len(view)
    return digest.hexdigest()


T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterable[T], prepare: Callable[[T], R]) -> Iterator[tuple[T, Callable[[], R]]]:
    """Yield each item with a call that gives its prepared form, which is made one item ahead.

    The call raises what ``prepare`` raised, and must be made for every item that was yielded. Whoever stops
    early wastes at most one preparation; its result is closed if it has a ``close``.
    """
    waiting: tuple[T, Future[R]] | None = None
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                ready, waiting = waiting, (item, pool.submit(prepare, item))
                if ready is not None:
                    yield ready[0], ready[1].result
            if waiting is not None:
                ready, waiting = waiting, None
                yield ready[0], ready[1].result
        finally:
            if waiting is not None and waiting[1].exception() is None:
                close = getattr(waiting[1].result(), "close", None)
                if close is not None:
                    close()
