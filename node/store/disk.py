"""What lies under a path: free space, and the kinds of file system that a database must not lie on."""

from __future__ import annotations

import os
from pathlib import Path

from node.errors import StoreError

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
        point = parts[1].encode("utf-8", "surrogateescape").decode("unicode_escape")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later mount on the same point hides the earlier
            best, kind = point, parts[2]
    return kind


def refuse_network_filesystem(path: Path, mounts: str | None = None) -> None:
    """Raise `StoreError` if SQLite at ``path`` would lie on a network file system."""
    kind = filesystem_type(path, mounts)
    if kind in NETWORK_FILESYSTEMS:
        raise StoreError(
            f"SQLite cannot be trusted on a network file system ({kind})",
            hint="put the database on a local disk, or use PostgreSQL",
            retryable=False,
        )


def free_bytes(path: Path) -> int:
    """Bytes that this process may still write under ``path``; 0 when inodes have run out."""
    told = os.statvfs(path)
    if told.f_files and not told.f_favail:
        return 0
    return told.f_bavail * told.f_frsize
