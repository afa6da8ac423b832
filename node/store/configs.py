"""Every configuration that was ever in force."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert

from node.store import rows
from node.store.db import Database
from node.store.tables import ConfigRow


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedConfig:
    """One version: its digest, its text as written (no secret is in it) and its diff to the one before."""

    id: int
    at: datetime
    digest: str
    text: str
    diff: str


class Configs:
    """`Store.configs`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def applied(self, digest: str, text: str, diff: str, at: datetime) -> bool:
        """Note that a version took effect; False if it is the one in force already."""

        def work(connection: Connection) -> bool:
            last = connection.execute(rows.whole(ConfigRow).order_by(ConfigRow.id.desc()).limit(1)).first()
            if last is not None and last.digest == digest:
                return False
            connection.execute(insert(ConfigRow).values(digest=digest, text=text, diff=diff, at=at))
            return True

        return self._db.transact(work)

    def current(self) -> AppliedConfig | None:
        """The version that took effect last."""
        return next(iter(self.history(limit=1)), None)

    def get(self, digest: str) -> AppliedConfig | None:
        """A version by its digest (its last application)."""
        statement = (
            rows.whole(ConfigRow).where(ConfigRow.digest == digest).order_by(ConfigRow.id.desc()).limit(1)
        )
        with self._db.read() as connection:
            return next(
                (AppliedConfig(**row._mapping) for row in connection.execute(statement.limit(1))), None
            )

    def history(self, limit: int = 100) -> list[AppliedConfig]:
        """The newest first."""
        statement = rows.whole(ConfigRow).order_by(ConfigRow.id.desc()).limit(limit)
        with self._db.read() as connection:
            return [AppliedConfig(**row._mapping) for row in connection.execute(statement)]
