"""What will be asked of series that are still coming, so that a worker may begin before they are complete.

Nothing depends on these rows: they say what the rules would decide now. A series' row goes in the transaction that
routes it, and whoever worked ahead keeps what it made only if the job asks for the same.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select, update

from node.model import SeriesState
from node.store.db import Database
from node.store.dialect import upsert
from node.store.tables import OutlookRow, SeriesRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What an open series would be routed to.

    Attributes
    ----------
    params
        As of the job that it would get.
    owner
        The worker that works ahead on it, "" for none.
    whole
        With how many instances it looked complete, waiting for no more than somebody to come back; 0 for never.
    tries
        How often a worker began to: one that brings down its workers is left alone until it is complete.
    """

    series_id: int
    engine: str
    params: Mapping[str, Any]
    owner: str = ""
    whole: int = 0
    tries: int = 0


class Outlooks:
    """`Store.outlooks`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def expect(self, series_id: int, engine: str, params: Mapping[str, Any]) -> None:
        """Say what an open series would be routed to; another engine or other parameters begin anew, and a series
        that was closed meanwhile is left alone."""
        with self._db.write() as connection:
            if not _open(connection, series_id):
                return  # closed meanwhile; its row would stay for ever
            told = {"engine": engine, "params": dict(params)}
            found = connection.execute(
                select(OutlookRow.engine, OutlookRow.params).where(OutlookRow.series_id == series_id)
            ).first()
            if found is not None and (found.engine, found.params) == (engine, told["params"]):
                return
            new = upsert(connection, OutlookRow).values(series_id=series_id, owner="", tries=0, **told)
            connection.execute(
                new.on_conflict_do_update(
                    index_elements=["series_id"], set_={**told, "owner": "", "tries": 0}
                )
            )

    def whole(self, series_id: int, n_instances: int) -> None:
        """Say that a series looks complete with so many instances; harmless if nothing is expected of it."""
        with self._db.write() as connection:
            connection.execute(
                update(OutlookRow).where(OutlookRow.series_id == series_id).values(whole=n_instances)
            )

    def forget(self, series_id: int) -> None:
        """The rules would do nothing with this series; harmless if they were not expected to."""
        with self._db.write() as connection:
            drop(connection, series_id)

    def list(self) -> builtins.list[Outlook]:
        """All, in the order in which their series were opened."""
        with self._db.read() as connection:
            found = connection.execute(select(*OutlookRow.__table__.columns).order_by(OutlookRow.series_id))
            return [
                Outlook(
                    series_id=row.series_id, engine=row.engine, params=row.params, owner=row.owner,
                    whole=row.whole, tries=row.tries,
                )
                for row in found
            ]  # fmt: skip

    def give_back(self, series_id: int, owner: str) -> None:
        """Let go of a series for no fault of its own: it counts as never begun."""
        with self._db.write() as connection:
            connection.execute(
                update(OutlookRow)
                .where(OutlookRow.series_id == series_id, OutlookRow.owner == owner, OutlookRow.tries > 0)
                .values(owner="", tries=OutlookRow.tries - 1)
            )

    def begin(self, outlook: Outlook, owner: str) -> bool:
        """Begin to work ahead, if nobody else did since ``outlook`` was read."""
        with self._db.write() as connection:
            return bool(
                connection.execute(
                    update(OutlookRow)
                    .where(
                        OutlookRow.series_id == outlook.series_id,
                        OutlookRow.owner == outlook.owner,
                        OutlookRow.tries == outlook.tries,
                        OutlookRow.engine == outlook.engine,
                    )
                    .values(owner=owner, tries=outlook.tries + 1)
                ).rowcount
            )


def _open(connection: Connection, series_id: int) -> bool:
    state = connection.execute(
        select(SeriesRow.state).where(SeriesRow.id == series_id).with_for_update(key_share=True)
    ).scalar_one_or_none()
    return state == SeriesState.OPEN.value


def drop(connection: Connection, series_id: int) -> None:
    """The series is routed, or will not be enhanced."""
    connection.execute(delete(OutlookRow).where(OutlookRow.series_id == series_id))
