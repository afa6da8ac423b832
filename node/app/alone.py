"""One node for one spool and one SQLite database: a second one would take the first one's work and signs of life."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from node.config.schema import StoreSettings
from node.errors import StoreError
from node.store.disk import make_folders
from node.store.place import sqlite_file


@contextmanager
def alone(settings: StoreSettings) -> Iterator[None]:
    """Hold what a node holds as long as it lives; roles that are started from here do not hold it.

    Raises
    ------
    StoreError
        Another process of this host holds it.
    """
    spool = Path(settings.spool).absolute()
    make_folders(spool, 0o700)
    files = [spool / "node.lock"]
    database = sqlite_file(settings.database)
    if database is not None:
        make_folders(database.parent)
        files.append(database.with_name(f"{database.name}.lock"))
    with ExitStack() as held:
        for file in files:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            held.callback(os.close, descriptor)
            try:
                # Not flock, which a forked role would go on holding after the end of its supervisor.
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"a node runs here already: it holds {file}",
                    hint="`luminode health` tells how it does; a second node needs a spool and a database of its own",
                    retryable=False,
                ) from None
        yield
