"""The express lane of `Reception.record`: a batch in which nothing is out of the ordinary.

Nearly every batch is instances never seen before, of series that are open: six small statements. SQLAlchemy
takes ten times as long to carry them out as SQLite does, and everybody who sends waits for it; so here they
go to the driver as they are, inside the transaction that SQLAlchemy holds. Anything else, the first instance
of a series included, is left to reception.py, before a row is written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from node.model import Association, AssociationEnd, Instance, SeriesState

_MOST: Final = 500

_KNOWN: Final = "SELECT 1 FROM instance WHERE {} AND sop_instance_uid IN ({}) LIMIT 1"
_IN_FORCE: Final = {True: '"current"', False: '"current" = 1'}
"""By PostgreSQL or not: to the letter what the partial index says, or it is not used."""

_NEWEST: Final = (
    "SELECT id, state FROM series WHERE series_uid = ? AND study_uid = ? ORDER BY generation DESC LIMIT 1"
)
_INSERT: Final = (
    "INSERT INTO instance (series_id, sop_class_uid, sop_instance_uid, transfer_syntax_uid, association,"
    ' path, size, "offset", sha256, received_at, "current", indexed)'
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {}, 0)"
)
_RESCUE: Final = "DELETE FROM trash WHERE path IN ({})"
_GROW: Final = (
    'UPDATE series SET "count" = "count" + ?, size = size + ?, last_received_at = {}(last_received_at, ?)'
    " WHERE id = ?"
)
_CARRY: Final = (
    "INSERT INTO carried (series_id, association, n_new, n_seen) VALUES (?, ?, ?, ?) ON CONFLICT"
    " (series_id, association) DO UPDATE SET n_new = carried.n_new + excluded.n_new,"
    " n_seen = carried.n_seen + excluded.n_seen"
)


_OPENED: Final = (
    "INSERT INTO association (id, calling_ae, called_ae, address, receiver, opened_at, ended_at, ending)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)
_ENDED: Final = "UPDATE association SET ended_at = ?, ending = ? WHERE id = ? AND ended_at IS NULL"


class UnusualError(Exception):
    """There is something to decide about a batch: nothing of it is to be written here."""


def take_all(
    cursor: sqlite3.Cursor,
    batch: Sequence[Instance],
    opened: Sequence[Association],
    ended: Sequence[tuple[str, AssociationEnd, datetime]],
    receiver: str,
) -> list[int]:
    """As `take`, with the notes on associations that ride along, on SQLite's own cursor in a transaction.

    Raises
    ------
    UnusualError
        The transaction is to be rolled back, and the batch to be recorded the long way.
    """
    uids = {one.sop_instance_uid for one in batch}
    if len(uids) < len(batch) or len(batch) > _MOST:
        raise UnusualError
    ids = _take(cursor, batch, uids, False)
    if ids is None:
        raise UnusualError
    note(cursor, opened, ended, receiver)
    return ids


def note(
    cursor: sqlite3.Cursor,
    opened: Sequence[Association],
    ended: Sequence[tuple[str, AssociationEnd, datetime]],
    receiver: str,
) -> None:
    """Write openings and endings of associations, on SQLite's own cursor in a transaction."""
    if opened:
        _many(cursor, _OPENED, [_opened(one, receiver) for one in opened])
    for association, end, at in ended:
        cursor.execute(_ENDED, (_time(at, False), end.value, association))


def _opened(one: Association, receiver: str) -> tuple[Any, ...]:
    ended_at = None if one.ended_at is None else _time(one.ended_at, False)
    return (
        one.id, one.calling_ae, one.called_ae, one.address, receiver, _time(one.opened_at, False), ended_at,
        one.end.value,
    )  # fmt: skip


def take(connection: Connection, batch: Sequence[Instance]) -> list[int] | None:
    """Record a batch, if there is nothing to decide about it.

    Parameters
    ----------
    connection
        In a write transaction.
    batch
        Instances whose files are durable.

    Returns
    -------
    list or None
        The series of each instance, all of them new; None if nothing was written.
    """
    uids = {one.sop_instance_uid for one in batch}
    if len(uids) < len(batch) or len(batch) > _MOST:
        return None
    cursor = connection.connection.cursor()
    try:
        return _take(cursor, batch, uids, connection.dialect.name == "postgresql")
    except connection.dialect.loaded_dbapi.Error as error:
        # As SQLAlchemy would have told it: db.py makes a StoreError of that, and knows which to try again.
        raise DBAPIError("", None, error) from error
    finally:
        cursor.close()


def _take(cursor: Any, batch: Sequence[Instance], uids: set[str], postgresql: bool) -> list[int] | None:
    mark = "%s" if postgresql else "?"
    if _one(cursor, _KNOWN.format(_IN_FORCE[postgresql], _marks(len(uids), mark)), list(uids)) is not None:
        return None
    series: dict[tuple[str, ...], int] = {}
    for key in sorted({_key(one) for one in batch}):  # in one order whoever does it, against deadlocks
        newest = _one(cursor, _sql(_NEWEST, mark) + (" FOR NO KEY UPDATE" if postgresql else ""), key)
        if newest is None or newest[1] != SeriesState.OPEN.value:
            return None
        series[key] = newest[0]
    ids = [series[_key(one)] for one in batch]
    grown: dict[int, tuple[int, int, datetime]] = {}
    carried: dict[tuple[int, str], int] = {}
    for one, series_id in zip(batch, ids, strict=True):
        count, size, last = grown.get(series_id, (0, 0, one.received_at))
        grown[series_id] = (count + 1, size + one.size, max(last, one.received_at))
        carried[series_id, one.association] = carried.get((series_id, one.association), 0) + 1
    insert = _sql(_INSERT, mark).format("TRUE" if postgresql else "1")
    ordered = sorted(zip(batch, ids, strict=True), key=lambda pair: pair[0].sop_instance_uid)
    _many(cursor, insert, [_row(one, series_id, postgresql) for one, series_id in ordered])
    cursor.execute(_RESCUE.format(_marks(len(batch), mark)), [one.path for one in batch])
    grow = _sql(_GROW, mark).format("greatest" if postgresql else "max")
    _many(
        cursor,
        grow,
        [(count, size, _time(last, postgresql), i) for i, (count, size, last) in sorted(grown.items())],
    )
    _many(cursor, _sql(_CARRY, mark), [(i, a, n, n) for (i, a), n in sorted(carried.items())])
    return ids


def _key(one: Instance) -> tuple[str, ...]:
    return one.series_uid, one.study_uid


def _row(one: Instance, series_id: int, postgresql: bool) -> tuple[Any, ...]:
    return (
        series_id,
        one.sop_class_uid,
        one.sop_instance_uid,
        one.transfer_syntax_uid,
        one.association,
        one.path,
        one.size,
        one.offset,
        one.sha256,
        _time(one.received_at, postgresql),
    )


def _time(at: datetime, postgresql: bool) -> Any:
    """As tables.Utc stores it."""
    return at if postgresql else at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _sql(statement: str, mark: str) -> str:
    return statement.replace("?", mark)


def _marks(n: int, mark: str) -> str:
    return ", ".join([mark] * n)


def _one(cursor: Any, statement: str, values: Sequence[Any]) -> Any:
    cursor.execute(statement, values)
    return cursor.fetchone()


def _many(cursor: Any, statement: str, rows: list[tuple[Any, ...]]) -> None:
    """One row is not worth the driver's preparations for many."""
    if len(rows) == 1:
        cursor.execute(statement, rows[0])
    else:
        cursor.executemany(statement, rows)
