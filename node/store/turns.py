"""Whose turn it is: periodic tasks run once in their period, on whichever node comes first (R54)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import and_, or_, update

from node.store.db import Database
from node.store.dialect import upsert
from node.store.tables import TurnRow

_NEVER = datetime(2000, 1, 1, tzinfo=UTC)


class Turns:
    """`Store.turns`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def take(self, name: str, owner: str, now: datetime, *, every_s: float, lease_s: float = 3600.0) -> bool:
        """Whether this owner shall run a task now; True for exactly one of those who ask.

        True if it was last begun at least ``every_s`` ago, and is not running under a lease. A beginning
        that lies in the future (the clock was put back) does not keep it from running.
        """
        with self._db.write() as connection:
            first = upsert(connection, TurnRow).values(
                name=name, owner="", started_at=_NEVER, until=_NEVER, finished_at=_NEVER
            )
            connection.execute(first.on_conflict_do_nothing(index_elements=["name"]))
            due = or_(
                and_(
                    TurnRow.started_at <= now - timedelta(seconds=every_s),
                    or_(TurnRow.finished_at.is_not(None), TurnRow.until <= now),
                ),
                TurnRow.started_at > now + timedelta(seconds=60),
            )
            return bool(
                connection.execute(
                    update(TurnRow)
                    .where(TurnRow.name == name, due)
                    .values(
                        owner=owner, started_at=now, until=now + timedelta(seconds=lease_s), finished_at=None
                    )
                ).rowcount
            )

    def done(self, name: str, owner: str, at: datetime) -> None:
        """Tell that the task ended, well or not; harmless if somebody else has taken over."""
        with self._db.write() as connection:
            connection.execute(
                update(TurnRow).where(TurnRow.name == name, TurnRow.owner == owner).values(finished_at=at)
            )
