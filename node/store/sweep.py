"""What dead writers left in the spool. A writer holds a lock (flock) on its file for as long as it lives."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from node.errors import StoreError
from node.log import get_logger
from node.store.landing import is_whole, sealed_name

log = get_logger()


def tmp(folder: Path, before_s: float) -> int:
    """Remove dead files that were last written before a time (POSIX, seconds); returns how many."""
    return sum(_remove_if_dead(Path(entry.path), before_s) for entry in list(os.scandir(folder)))


def scratch(folder: Path, before_s: float) -> int:
    """The same for folders that have a lock in them."""
    removed = 0
    for entry in list(os.scandir(folder)):
        lock = Path(entry.path) / ".lock"
        if not lock.exists() or _remove_if_dead(lock, before_s):
            shutil.rmtree(entry.path, ignore_errors=True)
            removed += 1
    return removed


def landing(
    folder: Path,
    before_s: float,
    restore: Callable[[Path, str], None],
    sync_names: Callable[[Sequence[str]], None],
) -> int:
    """The same for files that may be acknowledged instances: the first name goes only where another is durable.

    What the disk refuses stays for the next time: one bad file or folder keeps nobody from starting.

    Parameters
    ----------
    restore
        Gives a file, which is whole and has no other name, the name that it was to get, and makes that durable.
    sync_names
        Makes names of the spool durable.
    """
    removed = 0
    for entry in list(os.scandir(folder)):
        path = Path(entry.path)
        try:
            if _young(path, before_s, empty=True):
                continue
            with _dead(path) as fd:
                if fd is not None and _has_landed(path, fd, before_s, restore, sync_names):
                    path.unlink(missing_ok=True)
                    removed += 1
        except (OSError, StoreError) as error:
            log.error("landing.left", because=type(error).__name__)
    return removed


def _has_landed(
    path: Path,
    fd: int,
    before_s: float,
    restore: Callable[[Path, str], None],
    sync_names: Callable[[Sequence[str]], None],
) -> bool:
    """See to the final name of a dead file; whether its first one may go."""
    told = os.fstat(fd)
    if not told.st_size:  # its maker may be between making and locking it
        return told.st_mtime <= before_s
    name = sealed_name(fd)
    if told.st_nlink > 1:
        sync_names([name])
    elif name and is_whole(fd):
        os.fsync(fd)  # its writer may have died before it came to that
        restore(path, name)
        log.warning("landing.restored", path=name)
    return True


def _young(path: Path, before_s: float, *, empty: bool = False) -> bool:
    """Whether a file may not be locked yet by who has just made it; to try it might keep its maker from doing so."""
    try:
        told = path.lstat()
    except OSError:  # it is gone, then nobody needs to look at it
        return True
    return told.st_mtime > before_s and not (empty and told.st_size)


def _remove_if_dead(path: Path, before_s: float) -> bool:
    if _young(path, before_s):
        return False
    with _dead(path) as fd:
        if fd is None or os.fstat(fd).st_mtime > before_s:
            return False
        path.unlink(missing_ok=True)
        return True


@contextmanager
def _dead(path: Path) -> Iterator[int | None]:
    """A file whose writer is dead, locked; None if it lives, or the file is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_it = os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))  # noqa: PTH116
        except OSError:
            is_it = False
        yield fd if is_it else None
    finally:
        os.close(fd)
