"""What an operator may want to see: conflicts, held work, refused configurations. Never patient data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, insert

from node.errors import StoreError
from node.store import rows
from node.store.db import Database
from node.store.tables import EventRow

Level = Literal["info", "warning", "error", "critical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """``name`` is dotted and in the past tense, as in the log; ``body`` is JSON without patient data."""

    id: int
    at: datetime
    level: Level
    name: str
    series_id: int | None
    body: Mapping[str, Any]


def add(
    connection: Connection,
    level: Level,
    name: str,
    body: Mapping[str, Any],
    at: datetime,
    *,
    series_id: int | None = None,
) -> None:
    """Write an event inside a transaction that is under way."""
    connection.execute(
        insert(EventRow).values(level=level, name=name, body=dict(body), at=at, series_id=series_id)
    )


class Events:
    """`Store.events`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(
        self, level: Level, name: str, body: Mapping[str, Any], at: datetime, *, series_id: int | None = None
    ) -> None:
        """Write one event."""
        with self._db.write() as connection:
            add(connection, level, name, body, at, series_id=series_id)

    def tell(self, level: Level, name: str, body: Mapping[str, Any]) -> bool:
        """Write one event of now; False if the database is away."""
        try:
            self.add(level, name, body, datetime.now(UTC))
        except StoreError:
            return False
        return True

    def list(
        self,
        *,
        since: datetime | None = None,
        name: str = "",
        level: Level | None = None,
        series_id: int | None = None,
        limit: int = 100,
    ) -> list[Event]:
        """The newest events first."""
        statement = rows.whole(EventRow).order_by(EventRow.id.desc()).limit(limit)
        if since is not None:
            statement = statement.where(EventRow.at >= since)
        if name:
            statement = statement.where(EventRow.name == name)
        if level is not None:
            statement = statement.where(EventRow.level == level)
        if series_id is not None:
            statement = statement.where(EventRow.series_id == series_id)
        with self._db.read() as connection:
            return [Event(**row._mapping) for row in connection.execute(statement)]
