"""Bytes on disk. Names are hashes: nothing that came over the network is ever part of a path.

::

    spool/tmp/<random>                      being written; never acknowledged
    spool/landing/<random>                  the receiver's: empty, being written, or not yet settled (landing.py)
    spool/<xx>/<sha256>.dcm                 received; xx = first 2 hex digits of sha256(Series UID)
    spool/derived/<xx>/<sha256>.dcm         made by this node; can be made again
    spool/scratch/<name>/                   a worker's decoded pixels; swept when its writer is gone

``<sha256>`` = sha256(SOP Instance UID + newline + sha256 of the encoded data set): the same instance
always has the same name, other bytes under the same UID have another. One series lies in one folder, so
that a batch costs one directory sync.

The commit order is reliability.md section 2: write, `SpoolWriter.sync`, `SpoolWriter.publish`,
`Spool.sync_dirs` unless the file is `SpoolWriter.anchored`, then the database. A write or sync that failed is never
tried again on the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import Literal

from node.errors import StoreError
from node.store import sweep
from node.store.disk import begin_writing, disk_error, free_bytes, make_folder, make_folders, sync_folder
from node.store.landing import Landing, seal

Area = Literal["received", "derived"]

_FOLDERS = tuple(f"{n:02x}" for n in range(256))
_RELATIVE = re.compile(r"(?:derived/)?[0-9a-f]{2}/[0-9a-f]{64}\.dcm")
_PIECES = 512
"""Pieces of one writev; the kernel's limit is 1024."""

_BLOCK = 256 * 1024
"""Bytes read back at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFile:
    """A file found in the spool: ``path`` relative to it, ``area`` by where it lies, ``size`` in bytes."""

    path: str
    area: Area
    size: int
    modified_s: float


def spool_path(series_uid: str, sop_instance_uid: str, sha256: str, area: Area = "received") -> str:
    """Relative path under which an instance lies.

    Parameters
    ----------
    series_uid, sop_instance_uid
        As received; only their hashes are used.
    sha256
        Hex digest of the encoded data set.
    area
        ``received`` or ``derived``.
    """
    folder = hashlib.sha256(series_uid.encode("utf-8", "surrogateescape")).hexdigest()[:2]
    name = hashlib.sha256(f"{sop_instance_uid}\n{sha256}".encode("utf-8", "surrogateescape")).hexdigest()
    return f"{'derived/' if area == 'derived' else ''}{folder}/{name}.dcm"


class SpoolWriter:
    """One file being written. Not shared between threads while it is written to.

    Use `write` as often as needed, then `sync`, then `publish`; or `discard` at any time. The file is
    locked (flock) as long as its writer lives, which is how `Spool.sweep_tmp` knows the dead.

    Attributes
    ----------
    size
        Bytes written so far.
    anchored
        After `publish`: the file can be found again without its new name, which is being made durable.
    """

    __slots__ = ("_fd", "_landing", "_path", "_sealed", "_spool", "anchored", "size")

    def __init__(self, spool: Spool, path: str, fd: int, landing: Landing | None = None) -> None:
        self._spool = spool
        self._path = path
        self._fd = fd
        self._landing = landing
        self._sealed = False
        self.size = 0
        self.anchored = False

    @property
    def path(self) -> Path:
        """Where the file lies for now (absolute), until it is published."""
        return Path(self._path)

    def write(self, data: memoryview | bytes | bytearray) -> int:
        """Append all of ``data``; returns its length in bytes.

        Raises
        ------
        OutOfSpace
            The disk, a quota or a limit is full.
        StoreError
            Anything else that the disk refused.
        """
        view = memoryview(data).cast("B")
        total = len(view)
        try:
            done = os.write(self._fd, view)
            while done < total:
                done += os.write(self._fd, view[done:])
        except OSError as error:
            raise disk_error(error, "write") from None
        self.size += total
        return total

    def write_all(self, pieces: Sequence[memoryview]) -> int:
        """Append pieces, one behind the other, in as few system calls as possible; as `write` otherwise."""
        total = sum(map(len, pieces))
        try:
            for start in range(0, len(pieces), _PIECES):
                some = pieces[start : start + _PIECES]
                done = os.writev(self._fd, some)
                if done < sum(map(len, some)):  # the disk is about to be full: byte by byte of what is left
                    rest = memoryview(b"".join(some))[done:]
                    while rest:
                        rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise disk_error(error, "write") from None
        self.size += total
        return total

    def read_back(self, take: Callable[[bytes], object], start: int, end: int) -> None:
        """Give bytes that were written to ``take``, in blocks; mostly they are in memory still."""
        try:
            while start < end:
                block = os.pread(self._fd, min(_BLOCK, end - start), start)
                if not block:
                    raise StoreError("spool: a file is shorter than what was written to it")
                take(block)
                start += len(block)
        except OSError as error:
            raise disk_error(error, "read") from None

    def start_sync(self) -> None:
        """Have the disk begin with what was written, without waiting; `sync` then has less to wait for."""
        begin_writing(self._fd)

    def seal(self, series_uid: str, sop_instance_uid: str, sha256: str, offset: int) -> None:
        """Say in a file's preamble how it will be named, where that makes its name durable; before `sync`.

        Raises
        ------
        OutOfSpace, StoreError
        """
        if self._landing is not None:
            try:
                os.pwrite(self._fd, seal(spool_path(series_uid, sop_instance_uid, sha256), sha256, offset), 0)
            except OSError as error:
                raise disk_error(error, "write") from None
            self._sealed = True

    def sync(self) -> None:
        """Bring the bytes to stable storage (fdatasync). On failure the writer can only be discarded."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise disk_error(error, "sync") from None

    def publish(self, series_uid: str, sop_instance_uid: str, sha256: str, area: Area = "received") -> str:
        """Give the file its final name and close it; returns the path relative to the spool.

        The name is durable only after `Spool.sync_dirs`, which nobody has to wait for if the file is then
        `anchored`. A file that already has that name holds the same data set; it is replaced, which heals it
        should its bytes have rotted.
        """
        relative = spool_path(series_uid, sop_instance_uid, sha256, area)
        try:
            self._spool._own(relative)
            final = self._spool._absolute(relative)
            if self._sealed and self._landing is not None:
                self.anchored = self._landing.name(self._path, self._fd, relative, final)
            if self.anchored:
                self._fd = -1
                return relative
            os.rename(self._path, final)  # noqa: PTH104
        except StoreError:
            self.discard()
            raise
        except OSError as error:
            self._spool._ours.clear()  # should somebody have removed the folder: look again next time
            self.discard()
            raise disk_error(error, "rename") from None
        self._close()
        return relative

    def discard(self) -> None:
        """Remove the file; harmless after `publish` and when called twice."""
        if self._fd >= 0:
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)  # noqa: PTH108
            finally:
                self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.discard()


class Spool:
    """The folder of received and derived instances. Thread-safe and process-safe.

    Parameters
    ----------
    root
        The folder; made (0700) if it does not exist. One file system: renames must be atomic.

    Raises
    ------
    StoreError
        The folder cannot be used, or holds a link where a folder of ours should be.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self._root = f"{self.root}/"
        self._tmp = os.path.join(self.root, "tmp", "")  # noqa: PTH118
        self._landing: Landing | None = None
        self._ours: set[str] = set()
        self._durable: set[str] = set()
        try:
            make_folders(self.root, 0o700)
            for name in ("tmp", "landing", "scratch", "derived"):
                make_folder(self.root / name)
            self._ours.update(self._folders())
            for folder in (self.root / "derived", self.root):
                sync_folder(folder)
        except OSError as error:
            raise disk_error(error, "open") from None
        self._durable.update(self._ours)  # as what was there before the sync was just made

    def _folders(self) -> list[str]:
        """The folders of instances that exist, received before derived."""
        names = [*_FOLDERS, *(f"derived/{xx}" for xx in _FOLDERS)]
        there = {e.name for e in os.scandir(self.root) if e.is_dir(follow_symlinks=False)}
        there |= {
            f"derived/{e.name}" for e in os.scandir(self.root / "derived") if e.is_dir(follow_symlinks=False)
        }
        return [name for name in names if name in there]

    def _own(self, relative: str) -> None:
        """Make sure that a file's folder is there, and is a folder of ours."""
        folder = relative.rpartition("/")[0]
        if folder not in self._ours:
            if make_folder(self.root / folder):
                self._durable.discard(folder)  # somebody had removed it, and its name with it
            self._ours.add(folder)

    def create(self, *, ahead: bool = True) -> SpoolWriter:
        """A new, empty, locked file with a random name (mode 0600).

        Parameters
        ----------
        ahead
            It may be one that was made ahead.

        Raises
        ------
        OutOfSpace, StoreError
        """
        taken = self._landing.take() if ahead and self._landing is not None else None
        if taken is not None:
            return SpoolWriter(self, *taken, self._landing)
        path = self._tmp + secrets.token_hex(16)  # no Path: this runs for every instance
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(error, "create") from None
        writer = SpoolWriter(self, path, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with contextlib.suppress(OSError):
                writer.discard()
            raise disk_error(error, "create") from None
        return writer

    def land(self) -> None:
        """From now on `create` gives files whose names are durable already; for the one who receives.

        Raises
        ------
        StoreError
        """
        landing = Landing(f"{self._root}landing/", self._sync_landed)
        landing.start()
        self._landing = landing

    def landed(self) -> None:
        """End of `land`: all names are settled."""
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.stop()

    def _sync_landed(self, paths: Iterable[str]) -> None:
        """As `sync_dirs`, where retention may have removed a file meanwhile, and its folder with it."""
        self.sync_dirs([p for p in paths if self.exists(p)])

    def sync_dirs(self, paths: Iterable[str]) -> None:
        """Make the names of published files durable: one fsync for every folder among ``paths``.

        Where this process has not done so yet, the folder's own name is made durable too: another
        process may have made it and not come to that.
        """
        try:
            for folder in sorted({p.rpartition("/")[0] for p in paths}):
                sync_folder(self._root + folder)
                if folder not in self._durable:
                    sync_folder((self.root / folder).parent)
                    self._durable.add(folder)
        except OSError as error:
            raise disk_error(error, "sync of a folder") from None

    def path(self, relative: str) -> Path:
        """Absolute path of a file of the spool.

        Raises
        ------
        StoreError
            ``relative`` is not a name that this spool makes.
        """
        return Path(self._absolute(relative))

    def open(self, relative: str) -> BufferedReader:
        """Open a file for reading; a link in its place is refused."""
        try:
            return os.fdopen(os.open(self.path(relative), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
        except OSError as error:
            raise disk_error(error, "open") from None

    def exists(self, relative: str) -> bool:
        """Whether a regular file lies there (a link does not count)."""
        try:
            return stat.S_ISREG(os.lstat(self._absolute(relative)).st_mode)
        except OSError:
            return False

    def _absolute(self, relative: str) -> str:
        """As `path`, for what runs for every instance that arrives."""
        if not _RELATIVE.fullmatch(relative):
            raise StoreError("not a path of the spool", retryable=False)
        return self._root + relative

    def verify(self, relative: str, offset: int, sha256: str) -> bool:
        """Whether the data set that begins at ``offset`` still has the digest it came with (R13)."""
        try:
            with self.open(relative) as file:
                file.seek(offset)
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except (OSError, StoreError):
            return False

    def free_bytes(self) -> int:
        """Bytes that can still be written; 0 when inodes have run out."""
        return free_bytes(self.root)

    def remove(self, relative: str) -> None:
        """Remove a file; one that is gone already is no error. Only `Retention` decides that it may."""
        try:
            self.path(relative).unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, "remove") from None

    def walk(self) -> Iterator[SpoolFile]:
        """Every published file, folder by folder, received before derived."""
        for folder in self._folders():
            area: Area = "derived" if folder.startswith("derived/") else "received"
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    relative = f"{folder}/{entry.name}"
                    if not (_RELATIVE.fullmatch(relative) and entry.is_file(follow_symlinks=False)):
                        continue
                    try:
                        told = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield SpoolFile(path=relative, area=area, size=told.st_size, modified_s=told.st_mtime)

    def sweep_tmp(self, now: datetime, *, grace_s: float = 5.0) -> int:
        """Remove what dead writers left under ``tmp/``, ``landing/`` and ``scratch/``; returns how many.

        A living writer holds a lock on its file and is left alone, in whichever process it lives. Files
        younger than ``grace_s`` are left too: their writer may be between creating and locking.

        What landed whole, and whose name a power cut took, gets its name back, and stays.
        """
        before_s = now.timestamp() - grace_s
        removed = sweep.landing(self.root / "landing", before_s, self._restore, self.sync_dirs)
        return (
            removed + sweep.tmp(self.root / "tmp", before_s) + sweep.scratch(self.root / "scratch", before_s)
        )

    def _restore(self, first: Path, relative: str) -> None:
        self._own(relative)
        with contextlib.suppress(FileExistsError):  # the same instance came again meanwhile
            os.link(first, self._absolute(relative))
        self.sync_dirs([relative])

    def scratch(self, name: str) -> Scratch:
        """A folder for a worker's intermediate files, removed by `Scratch.close` or by the next sweep."""
        return Scratch(self.root / "scratch" / f"{_safe(name)}-{secrets.token_hex(4)}")


class Scratch:
    """A locked, private folder; use as a context manager. ``folder`` is its absolute path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700)
            self._fd = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise disk_error(error, "scratch") from None

    def close(self) -> None:
        """Remove the folder and all in it; harmless when called twice."""
        if self._fd >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:32] or "work"
