"""The statements behind `Reception.record`, built once: they run for every instance that arrives.

Building a statement costs SQLAlchemy more than SQLite needs to run it; so these are written against plain
tables, with named parameters, when the module is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from node.errors import StoreError
from node.model import Instance, SeriesKey, SeriesState
from node.store.tables import Base, CarriedRow, InstanceRow, SeriesRow, TrashRow


def _table(of: type[Base]) -> Table:
    table = of.__table__
    assert isinstance(table, Table)
    return table


_series, _instance, _carried = _table(SeriesRow), _table(InstanceRow), _table(CarriedRow)
_trash = _table(TrashRow)
_AT_ONCE = 500

_NEWEST = (
    select(_series.c.id, _series.c.generation, _series.c.state)
    .where(
        _series.c.series_uid == bindparam("series_uid"),
        _series.c.study_uid == bindparam("study_uid"),
    )
    .order_by(_series.c.generation.desc())
    .limit(1)
    .with_for_update(key_share=True)
)
_CURRENT = (
    select(
        _instance.c.id,
        _instance.c.sop_instance_uid,
        _instance.c.series_id,
        _instance.c.sha256,
        _instance.c.path,
        _instance.c.size,
        _instance.c.offset,
        _instance.c.transfer_syntax_uid,
        _series.c.state,
    )
    .join(_series, _series.c.id == _instance.c.series_id)
    .where(_instance.c.current, _instance.c.sop_instance_uid.in_(bindparam("uids", expanding=True)))
)
_INSERT = insert(_instance)
_RESCUE = delete(_trash).where(_trash.c.path.in_(bindparam("paths", expanding=True)))
_REWRITE = (
    update(_instance)
    .where(_instance.c.id == bindparam("row"))
    .values(
        size=bindparam("new_size"),
        offset=bindparam("new_offset"),
        transfer_syntax_uid=bindparam("new_syntax"),
    )
)


def _grow(greatest: Any) -> Any:
    return (
        update(_series)
        .where(_series.c.id == bindparam("row"), _series.c.state == SeriesState.OPEN.value)
        .values(
            count=_series.c.count + bindparam("more"),
            size=_series.c.size + bindparam("bytes"),
            last_received_at=greatest(
                _series.c.last_received_at, bindparam("last", type_=_series.c.last_received_at.type)
            ),
        )
    )


def _carry(dialect: Any) -> Any:
    statement = dialect.insert(_carried)
    return statement.on_conflict_do_update(
        index_elements=["series_id", "association"],
        set_={n: _carried.c[n] + statement.excluded[n] for n in ("n_new", "n_seen")},
    )


_GROW = {"sqlite": _grow(func.max), "postgresql": _grow(func.greatest)}
_CARRY = {"sqlite": _carry(sqlite), "postgresql": _carry(postgresql)}
_OPEN = {
    name: dialect.insert(_series).on_conflict_do_nothing()
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The instance that is in force under a SOP Instance UID; ``id`` 0 if it is of this very batch."""

    id: int
    series_id: int
    sha256: str
    path: str
    size: int
    offset: int
    transfer_syntax_uid: str
    state: SeriesState


def key_of(one: Instance) -> SeriesKey:
    return SeriesKey(
        study_uid=one.study_uid, series_uid=one.series_uid, calling_ae=one.calling_ae, called_ae=one.called_ae
    )


def order_of(one: Instance) -> tuple[str, str]:
    """What makes two instances one series, whoever sent them: a scanner and a PACS that routes the same
    study here, or two titles of one scanner. Series are locked and opened in this order, the same for all,
    against deadlocks."""
    return one.series_uid, one.study_uid


def row_of(one: Instance, series_id: int) -> dict[str, Any]:
    """An instance as a row of its series."""
    return {
        "series_id": series_id,
        "sop_class_uid": one.sop_class_uid,
        "sop_instance_uid": one.sop_instance_uid,
        "transfer_syntax_uid": one.transfer_syntax_uid,
        "association": one.association,
        "path": one.path,
        "size": one.size,
        "offset": one.offset,
        "sha256": one.sha256,
        "received_at": one.received_at,
        "current": True,
        "indexed": 0,
    }


def known_of(one: Instance, series_id: int) -> Known:
    """What `current` will tell of an instance once it is inserted."""
    return Known(
        id=0,
        series_id=series_id,
        sha256=one.sha256,
        path=one.path,
        size=one.size,
        offset=one.offset,
        transfer_syntax_uid=one.transfer_syntax_uid,
        state=SeriesState.OPEN,
    )


def current(connection: Connection, uids: Sequence[str]) -> dict[str, Known]:
    """The instances in force under these SOP Instance UIDs."""
    known: dict[str, Known] = {}
    for start in range(0, len(uids), _AT_ONCE):
        for row in connection.execute(_CURRENT, {"uids": list(uids[start : start + _AT_ONCE])}):
            known[row.sop_instance_uid] = Known(
                id=row.id,
                series_id=row.series_id,
                sha256=row.sha256,
                path=row.path,
                size=row.size,
                offset=row.offset,
                transfer_syntax_uid=row.transfer_syntax_uid,
                state=SeriesState(row.state),
            )
    return known


def insert_rows(connection: Connection, values: Sequence[Mapping[str, Any]]) -> None:
    """Insert instances, in one order whoever does it, against deadlocks."""
    if values:
        ordered = sorted(values, key=lambda v: str(v["sop_instance_uid"]))
        connection.execute(_INSERT, [dict(v) for v in ordered])


def rewrite(connection: Connection, known: Known, one: Instance) -> None:
    """The same data set lies there again, perhaps behind another file meta."""
    if (known.size, known.offset, known.transfer_syntax_uid) != (
        one.size,
        one.offset,
        one.transfer_syntax_uid,
    ):
        values = {"new_size": one.size, "new_offset": one.offset, "new_syntax": one.transfer_syntax_uid}
        connection.execute(_REWRITE, {"row": known.id, **values})


def rescue(connection: Connection, paths: Iterable[str]) -> None:
    """Take files out of the trash: they are wanted again."""
    paths = list(paths)
    for start in range(0, len(paths), _AT_ONCE):
        connection.execute(_RESCUE, {"paths": paths[start : start + _AT_ONCE]})


def carry(connection: Connection, counts: Mapping[tuple[int, str], tuple[int, int]]) -> None:
    """Count what associations carried: (series, association) -> (new, seen)."""
    connection.execute(
        _CARRY[connection.dialect.name],
        [
            {"series_id": series_id, "association": association, "n_new": new, "n_seen": seen}
            for (series_id, association), (new, seen) in sorted(counts.items())
        ],
    )


class OpenSeries:
    """The newest generation of each series of a batch, locked, and what the batch adds to it."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self._newest: dict[tuple[str, str], tuple[int, int, SeriesState] | None] = {}
        self._added: dict[int, tuple[int, int]] = {}
        self._last: dict[int, datetime] = {}

    def lock(self, keys: Iterable[SeriesKey]) -> None:
        """Read the newest generations. On PostgreSQL their rows are locked, so that none closes meanwhile."""
        for key in sorted({(k.series_uid, k.study_uid) for k in keys}):
            row = self._c.execute(_NEWEST, dict(zip(("series_uid", "study_uid"), key, strict=True))).first()
            self._newest[key] = (row.id, row.generation, SeriesState(row.state)) if row else None

    def take(self, one: Instance) -> int:
        """The series row that takes this instance: the newest if it is open, else generation n+1."""
        newest = self._newest[order_of(one)]
        if newest is None or newest[2] is not SeriesState.OPEN:
            newest = self._open(key_of(one), (newest[1] if newest else 0) + 1, one.received_at)
        self.add(newest[0], 1, one.size)
        self.touch(newest[0], one.received_at)
        return newest[0]

    def add(self, series_id: int, count: int, size: int) -> None:
        before = self._added.get(series_id, (0, 0))
        self._added[series_id] = (before[0] + count, before[1] + size)

    def touch(self, series_id: int, at: datetime) -> None:
        """Something of this series was sent, new or not: the quiet time begins anew if it is open."""
        self._last[series_id] = max(at, self._last.get(series_id, at))

    def write(self) -> None:
        if self._last:
            self._c.execute(
                _GROW[self._c.dialect.name],
                [
                    {"row": i, "more": added[0], "bytes": added[1], "last": last}
                    for i, last in sorted(self._last.items())
                    for added in (self._added.get(i, (0, 0)),)
                ],
            )

    def _open(self, key: SeriesKey, generation: int, at: datetime) -> tuple[int, int, SeriesState]:
        values = {
            "generation": generation,
            "state": SeriesState.OPEN.value,
            "count": 0,
            "size": 0,
            "opened_at": at,
            "last_received_at": at,
        }
        # another receiver may open the same generation at the same moment: its row is then taken
        self._c.execute(_OPEN[self._c.dialect.name], {**_named(key), **values})
        self.lock([key])
        newest = self._newest[key.series_uid, key.study_uid]
        if newest is None or newest[2] is not SeriesState.OPEN:
            raise StoreError("a series closed while it was being opened")
        return newest


def _named(key: SeriesKey) -> dict[str, str]:
    return {
        "series_uid": key.series_uid,
        "study_uid": key.study_uid,
        "calling_ae": key.calling_ae,
        "called_ae": key.called_ae,
    }
