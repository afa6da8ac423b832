"""What dead writers left in the spool. A writer holds a lock (flock) on its file for as long as it lives."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from node.errors import StoreError
from node.log import get_logger
from node.store.landing import sealed_name

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
    folder: Path, before_s: float, restore: Callable[[Path, str], None], sync_names: Callable[[], None]
) -> int:
    """The same for files that may be acknowledged instances: the first name goes only where another is durable.

    Parameters
    ----------
    restore
        Gives a file, which is whole and has no other name, the name that it was to get, and makes that durable.
    sync_names
        Makes the other names of all files durable.
    """
    removed, synced = 0, False
    for entry in list(os.scandir(folder)):
        path = Path(entry.path)
        with _dead(path) as fd:
            if fd is None:
                continue
            told = os.fstat(fd)
            if told.st_nlink == 1 and told.st_size:
                name = sealed_name(fd)
                if name and not _restored(restore, path, name):
                    continue
            elif told.st_nlink > 1 and not synced:
                sync_names()
                synced = True
            if told.st_mtime <= before_s:
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def _restored(restore: Callable[[Path, str], None], path: Path, name: str) -> bool:
    """What the disk refuses to give its name stays for the next time: nobody else is kept from starting."""
    try:
        restore(path, name)
    except (OSError, StoreError) as error:
        log.error("landing.not_restored", because=type(error).__name__)
        return False
    log.warning("landing.restored", path=name)
    return True


def _remove_if_dead(path: Path, before_s: float) -> bool:
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
        except OSError:
            yield None
        else:
            yield fd
    finally:
        os.close(fd)
