"""Files that have durable names before anything is written to them: where the receiver lets instances land.

A new name is durable only once its folder was synced, and whoever sends would wait for that. So names are made
ahead of time: empty files in ``landing/``, the folder synced. An instance is written into one of them, synced, and
given its final name as a second one (a hard link); that need not be durable before the sender is told, for the first
name is. A moment later a thread syncs the folders of the final names, once for all that came, and only then takes the
first names away.

After a power cut the final name of an instance that was acknowledged may thus be gone. So the 128 bytes before
``DICM``, which PS3.10 7.1 leaves to whoever writes a file, say before the file is synced what its name will be and
which digest its data set has: a file that has the digest is whole, and `Spool.sweep_tmp` gives it its name again.

Where there are no hard links, or no name is ready, files are made and named as everywhere else in the spool.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import resource
import secrets
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from node.errors import StoreError
from node.failpoints import failpoint
from node.log import get_logger
from node.store.disk import disk_error, sync_folder

log = get_logger()

_MOST_FILES: Final = 192
_SHARE: Final = 8
"""Files held open at most, and their share of those that the process may open: a third of them are ready, the others
are instances whose final names are not durable yet."""

_SOON_S: Final = 0.02
"""How long final names wait for others to be made durable with."""

_AGAIN_S: Final = 1.0
"""How long the thread waits after the disk refused something."""

_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
)

_SEAL: Final = struct.Struct("<8s72s32sL")
_MAGIC: Final = b"LUMINODE"
_RECEIVED: Final = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}\.dcm")


def seal(relative: str, sha256: str, offset: int) -> bytes:
    """What the preamble of a file says: its name in the spool, the digest of its data set, and where that begins."""
    return _SEAL.pack(_MAGIC, relative.encode(), bytes.fromhex(sha256), offset)


def sealed_name(fd: int) -> str:
    """The name that an open file was to get; "" where it does not say. Raises OSError."""
    preamble = os.pread(fd, _SEAL.size, 0)
    if len(preamble) < _SEAL.size:
        return ""
    magic, name, _, _ = _SEAL.unpack(preamble)
    relative: str = name.rstrip(b"\0").decode("ascii", "replace")
    return relative if magic == _MAGIC and _RECEIVED.fullmatch(relative) else ""


def is_whole(fd: int) -> bool:
    """Whether an open file that says its name has the digest that it says. Raises OSError."""
    _, _, digest, offset = _SEAL.unpack(os.pread(fd, _SEAL.size, 0))
    with open(fd, "rb", closefd=False) as file:
        file.seek(offset)
        return bool(hashlib.file_digest(file, "sha256").digest() == digest)


def most_files() -> int:
    """How many files may be held open now."""
    may_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_FILES if may_open == resource.RLIM_INFINITY else min(_MOST_FILES, may_open // _SHARE)


@dataclass(frozen=True, slots=True)
class _Landed:
    """An instance with two names; the open descriptor holds the lock that says that its keeper lives."""

    first: str
    fd: int
    relative: str


class Landing:
    """Names made ahead. Thread-safe; each process has its own.

    Parameters
    ----------
    folder
        Where the names are made, absolute, with a slash at its end.
    sync_names
        Makes the names of published files, given relative to the spool, durable.
    """

    def __init__(self, folder: str, sync_names: Callable[[Iterable[str]], None]) -> None:
        self._folder = folder
        self._sync_names = sync_names
        self._ready: deque[tuple[str, int]] = deque()
        self._landed: deque[_Landed] = deque()
        # Their folder could not be synced, and a second try that succeeds would prove nothing: they stay.
        self._stranded: list[_Landed] = []
        self._most = most_files()
        self._links = True
        self._troubled = False
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Make the first names, and start the thread that makes more; without any the spool does as it always did."""
        self._stopped.clear()
        if not self._tend():
            self._wanted.set()
        self._thread = threading.Thread(target=self._run, name="spool:landing", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; names that are left are made durable, and what was made ahead is removed."""
        self._stopped.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with contextlib.suppress(OSError, StoreError):  # what stays is settled by the next sweep
            self._settle()
        self._trim(0)
        for one in (*self._landed, *self._stranded):
            os.close(one.fd)
        self._landed.clear()
        self._stranded.clear()

    def take(self) -> tuple[str, int] | None:
        """A file to write into: its durable name and its locked descriptor; None if there is none now."""
        kept = len(self._landed) + len(self._stranded)
        if self._troubled or not self._links or kept >= self._most - self._most // 3:
            return None
        try:
            taken = self._ready.popleft()
        except IndexError:
            taken = None
        if len(self._ready) < self._most // 6 and not self._wanted.is_set():
            self._wanted.set()
        return taken

    def name(self, first: str, fd: int, relative: str, final: str) -> bool:
        """Give a synced file of `take` its final name as well.

        Returns
        -------
        False if it has to be renamed instead: the name is taken, or this file system has no hard links. Else the
        descriptor is kept here, and the name is as good as durable.

        Raises
        ------
        OSError
            The disk refused it.
        """
        try:
            os.link(first, final)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._links = False
            return False
        self._landed.append(_Landed(first, fd, relative))
        if not self._wanted.is_set():
            self._wanted.set()
        return True

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wanted.wait()
            if len(self._ready) >= self._most // 6:
                self._stopped.wait(_SOON_S)
            self._wanted.clear()
            if not self._tend():
                self._stopped.wait(_AGAIN_S)
                self._wanted.set()

    def _tend(self) -> bool:
        """Settle what landed, make names ahead. Returns whether the disk took it."""
        try:
            self._settle()
            self._most = most_files()
            if self._links:
                self._make(self._most // 3)
            else:
                self._trim(0)
        except Exception as error:
            if not self._troubled:
                told = error.message if isinstance(error, StoreError) else ""
                log.warning("landing.troubled", because=type(error).__name__, told=told)
            self._troubled = True
            return False
        self._troubled = False
        return True

    def _make(self, n: int) -> None:
        new: list[tuple[str, int]] = []
        self._trim(n)  # fewer files may be open than could be
        try:
            while len(self._ready) + len(new) < n:
                new.append(_new(self._folder + secrets.token_hex(16)))
            sync_folder(self._folder)
        except OSError as error:
            for one in new:
                _forget(*one)
            raise disk_error(error, "making of a name") from None
        failpoint("landing.made")
        self._ready.extend(new)

    def _trim(self, n: int) -> None:
        with contextlib.suppress(IndexError):  # the last one was taken meanwhile
            while len(self._ready) > n:
                _forget(*self._ready.pop())

    def _settle(self) -> None:
        """Make the final names of what landed durable, then take the first names away."""
        batch = [self._landed[at] for at in range(len(self._landed))]
        if not batch:
            return
        try:
            self._sync_names({one.relative for one in batch})
        except BaseException:
            self._stranded += [self._landed.popleft() for _ in batch]
            raise
        failpoint("landing.settled")
        for one in batch:
            self._landed.popleft()
            _forget(one.first, one.fd)


def _new(path: str) -> tuple[str, int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _forget(path, fd)
        raise
    return path, fd


def _forget(path: str, fd: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108
    os.close(fd)
