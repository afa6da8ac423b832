"""What is sent: one encoded data set in the spool, checked against its digest before a byte of it leaves.

A data set of ordinary size is read once, hashed and sent from the same memory, so that what was checked is
what is sent; a larger one is hashed from the file and then streamed from it. Reading and hashing run one
instance ahead of the socket: hashing in a thread, reading alone while the peer is at work on what it was sent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

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
    """A data set held in memory.

    Parameters
    ----------
    at_once
        Whether the kernel is given it whole, without a copy, and not window by window. Measured to a peer on the same
        machine: saves a tenth; costs a tenth where a thread hashes the next one meanwhile, for want of cores.
    """

    def __init__(self, data: bytes | memoryview, *, at_once: bool = False) -> None:
        self._data = memoryview(data)
        self.at_once = at_once

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def view(self) -> memoryview:
        """All of it, until it is closed."""
        return self._data

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
            body: Body = MemoryBody(memoryview(data), at_once=not parcel.sha256)
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


class Ahead(Generic[T, R]):
    """Items with their prepared form, which is made one item ahead. Use as a context manager.

    What takes long is prepared by a thread, from the moment on at which the item before it is asked for. What does not
    is prepared by whoever calls :meth:`look`, and should be while there is something to wait for: a thread would cost
    more than it does. Whoever stops early wastes at most one preparation; its result is closed if it has a ``close``.

    Parameters
    ----------
    is_quick
        Whether the preparation of an item takes next to no time.
    """

    def __init__(
        self, items: Iterable[T], prepare: Callable[[T], R], is_quick: Callable[[T], bool] = lambda _: False
    ) -> None:
        self._items = iter(items)
        self._prepare, self._is_quick = prepare, is_quick
        self._next: tuple[T, Future[R] | None] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")

    def __enter__(self) -> Ahead[T, R]:
        self._advance()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._pool.shutdown(wait=True)
        future = self._next[1] if self._next is not None else None
        if future is not None and future.exception() is None:
            close = getattr(future.result(), "close", None)
            if close is not None:
                close()

    def __iter__(self) -> Iterator[tuple[T, Callable[[], R]]]:
        """Each item with a call that gives its prepared form.

        The call raises what ``prepare`` raised, and must be made for every item that was yielded.
        """
        while self._next is not None:
            self.look()
            item, future = self._next
            assert future is not None
            self._advance()
            yield item, future.result

    def look(self) -> None:
        """Prepare the next item, where that takes next to no time and was not done yet."""
        if self._next is not None and self._next[1] is None:
            future: Future[R] = Future()
            try:
                future.set_result(self._prepare(self._next[0]))
            except Exception as error:
                future.set_exception(error)
            self._next = self._next[0], future

    def _advance(self) -> None:
        self._next = None
        for item in self._items:
            quick = self._is_quick(item)
            self._next = item, None if quick else self._pool.submit(self._prepare, item)
            break
