"""The little in which the two databases differ inside a statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql, sqlite


def upsert(connection: Connection, table: Any) -> Any:
    """An INSERT that knows ON CONFLICT, of the dialect in use."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def greatest(connection: Connection, *values: Any) -> Any:
    """The greatest of several values of one row."""
    return (func.greatest if connection.dialect.name == "postgresql" else func.max)(*values)
