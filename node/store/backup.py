"""A consistent copy of a live SQLite database, by SQLite's own means: its files are never just copied."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from node.errors import StoreError
from node.store.db import Database
from node.store.migrate import current


def backup_sqlite(database: Database, target: Path) -> None:
    """Write a copy to ``target``, whole or not at all.

    Raises
    ------
    StoreError
        The copy could not be written; ``target`` is as it was.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(sqlite3.connect(partial)) as copy:
            pooled = database.engine.raw_connection()
            try:
                driver = pooled.driver_connection
                assert isinstance(driver, sqlite3.Connection)
                driver.backup(copy)
            finally:
                pooled.close()
            copy.execute("PRAGMA journal_mode=DELETE")
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"the backup could not be written: {type(error).__name__}") from None


def sound(database: Database) -> bool:
    """Whether a SQLite database can be read whole (``PRAGMA quick_check``) and has its schema."""
    try:
        with database.read() as connection:
            told = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
            return told == "ok" and bool(current(connection))
    except StoreError as error:
        if error.retryable:
            raise
        return False


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
