"""Room that is kept for the database, so that a full disk can still be recorded (reliability.md section 2).

A file beside the SQLite database holds blocks that nobody else can take. The first transaction that finds no room
removes it: that transaction is refused (A700H at the door), those after it can be written: what was held, failed,
put off. It is made again once there is room.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from node.store.disk import free_bytes

SIZE: Final = 32 * 1024 * 1024


class Reserve:
    """The file that keeps the room. Safe between threads and processes: whoever comes second finds it done.

    Parameters
    ----------
    path
        Where it lies: on the file system of the database.
    size
        Bytes.
    """

    def __init__(self, path: Path, size: int = SIZE) -> None:
        self.path = path
        self.size = size

    @property
    def kept(self) -> bool:
        """Whether the room is there."""
        try:
            return self.path.stat().st_size >= self.size
        except OSError:
            return False

    def keep(self) -> bool:
        """Make the file if there is room for it four times over; returns whether it is there."""
        if self.kept:
            return True
        try:
            if free_bytes(self.path.parent) < 4 * self.size:
                return False
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self.size)
            finally:
                os.close(descriptor)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> bool:
        """Give the room to the database; returns whether there was any."""
        with contextlib.suppress(OSError):
            self.path.unlink()
            return True
        return False
