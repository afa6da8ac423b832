"""The little in which the two databases differ inside a statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite


def upsert(connection: Connection, table: Any) -> Any:
    """An INSERT that knows ON CONFLICT, of the dialect in use."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


_FILES_LOCK = 0x4C554D01


def hold_files(connection: Connection) -> None:
    """Until this transaction ends no file leaves the spool: what is recorded in it was there.

    SQLite: a write transaction is alone anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock_shared(_FILES_LOCK)))


def own_files(connection: Connection) -> None:
    """Until this transaction ends nobody records a file: what is removed in it has no row."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_FILES_LOCK)))
