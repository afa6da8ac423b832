"""The last good configuration on disk, for a role that starts again while config.yaml is bad.

It lies in the spool beside the instances, whose protection it shares: the text is kept as it was written,
with ``${NAME}`` unresolved, and only its owner may read it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from node.config.load import read_text
from node.errors import ConfigError, StoreError

_NAME = "last-good.yaml"


def last_good(spool: Path) -> Path:
    """Where it lies (absolute)."""
    return spool.resolve() / _NAME


def keep(path: Path, text: str) -> None:
    """Put ``text`` in place of what was kept before, whole or not at all, and durably.

    Raises
    ------
    StoreError
        The disk refused; what was kept before still is.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()  # left by a process of this number that was killed
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise StoreError(
            f"the last good configuration cannot be kept: {error.strerror}",
            hint="check free space and the owner of the spool",
        ) from None


def kept(path: Path | None) -> str | None:
    """What is kept; None if nothing is, or nothing that can be read."""
    if path is None:
        return None
    try:
        return read_text(path)
    except ConfigError:
        return None
