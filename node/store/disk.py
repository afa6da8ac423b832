"""What lies under a path: free space, folders, and file systems that a database must not lie on."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from pathlib import Path
from typing import Any

from node.errors import READ_ONLY_HINT, OutOfSpace, StoreError

NETWORK_FILESYSTEMS = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "smb2", "afs", "ncpfs", "9p", "ceph", "glusterfs",
        "lustre", "gpfs", "beegfs", "ocfs2", "gfs2", "orangefs", "pvfs2", "davfs", "coda", "ncp",
        "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.davfs2", "fuse.s3fs", "fuse.rclone",
        "fuse.cephfs", "fuse.smbnetfs", "fuse.juicefs", "fuse.gcsfuse", "fuse.goofys",
    }
)  # fmt: skip
"""Types in /proc/mounts on which locks and shared memory of SQLite's WAL do not hold."""


def filesystem_type(path: Path, mounts: str | None = None) -> str:
    """Type of the file system that holds ``path``, as in /proc/mounts; "" where that cannot be read."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        point = _unescaped(parts[1])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later mount on the same point hides the earlier
            best, kind = point, parts[2]
    return kind


def _unescaped(point: str) -> str:
    """A mount point as it is: /proc/mounts writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)


def refuse_network_filesystem(path: Path, mounts: str | None = None) -> None:
    """Raise `StoreError` if SQLite at ``path`` would lie on a network file system."""
    kind = filesystem_type(path, mounts)
    if kind in NETWORK_FILESYSTEMS:
        raise StoreError(
            f"SQLite cannot be trusted on a network file system ({kind})",
            hint="put the database on a local disk, or use PostgreSQL",
            retryable=False,
        )


def free_bytes(path: Path | str) -> int:
    """Bytes that this process may still write under ``path``; 0 when inodes have run out."""
    told = os.statvfs(path)
    if told.f_files and not told.f_favail:
        return 0
    return told.f_bavail * told.f_frsize


def make_folder(path: Path) -> bool:
    """Make one folder of ours; True if it is new. A link planted in its place is refused."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise StoreError(
                "something else lies where a folder of the spool should be", retryable=False
            ) from None
        return False
    return True


def make_folders(path: Path, mode: int = 0o777) -> None:
    """Make a folder with those above it that are absent (these with the usual mode), all of them durable."""
    absent = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    for made in absent:
        sync_folder(made.parent)


def sync_folder(path: Path | str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_SYNC_FILE_RANGE_WRITE = 2


def _sync_file_range() -> Any:
    """Linux has it, and Python does not; None where there is none."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_begin = _sync_file_range()


def begin_writing(fd: int) -> None:
    """Have the kernel write a file's bytes to the disk, and do not wait for it.

    It promises nothing: not even an error is told, the sync that has to follow will tell it.
    """
    if _begin is not None:
        _begin(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_error(error: OSError, step: str) -> StoreError:
    """What a refusal of the disk means to the store: `OutOfSpace`, or a `StoreError` to be retried."""
    told = f"spool: {step} failed ({errno.errorcode.get(error.errno or 0, 'unknown')})"
    if error.errno in _FULL:
        return OutOfSpace(told, hint="free space on the spool's file system")
    hints = {errno.EROFS: READ_ONLY_HINT, errno.EACCES: "check who owns the spool, and who this is"}
    return StoreError(told, hint=hints.get(error.errno or 0, ""))
