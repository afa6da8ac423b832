"""What the receiver writes: associations, and batches of instances that are durable in the spool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, delete, insert, select, update

from node.errors import StoreError
from node.model import Association, AssociationEnd, Instance, SeriesKey, SeriesState
from node.store import conflicts, rows
from node.store.db import Database
from node.store.dialect import greatest, hold_files, upsert
from node.store.spool import Spool
from node.store.tables import (
    AssociationRow,
    CarriedRow,
    ConflictRow,
    DerivedInstanceRow,
    InstanceRow,
    SeriesRow,
    TrashRow,
)

Kind = Literal["new", "same", "conflict_kept_first", "replaced"]
Duplicates = Literal["keep_first", "replace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of one instance of a batch.

    ``series_id`` is the generation that holds it (or held the first one). ``stale_path`` is the file
    that is now kept aside: the new one where the first was kept, the old one where it was replaced, ""
    otherwise. Nothing is to be removed by the caller: retention does that.
    """

    kind: Kind
    series_id: int
    stale_path: str = ""


class Reception:
    """`Store.reception`."""

    def __init__(self, database: Database, spool: Spool) -> None:
        self._db = database
        self._spool = spool

    # associations ---------------------------------------------------------------------------------

    def open_association(self, association: Association, *, receiver: str = "") -> None:
        """Note an accepted association; ``receiver`` names the process, for `lose_open_associations`."""
        self.note_associations([association], receiver=receiver)

    def end_association(self, association_id: str, end: AssociationEnd, at: datetime) -> None:
        """Note how an association ended. Only the first ending counts."""
        with self._db.write() as connection:
            _end(connection, association_id, end, at)

    def note_associations(
        self,
        opened: Sequence[Association] = (),
        ended: Sequence[tuple[str, AssociationEnd, datetime]] = (),
        *,
        receiver: str = "",
    ) -> None:
        """Many openings and endings in one commit (one-association-per-instance scanners make many)."""
        with self._db.write() as connection:
            if opened:
                statement = upsert(connection, AssociationRow).on_conflict_do_nothing(index_elements=["id"])
                connection.execute(statement, [rows.association_values(a, receiver) for a in opened])
            for association_id, end, at in ended:
                _end(connection, association_id, end, at)

    def lose_open_associations(self, at: datetime, *, receiver: str = "") -> int:
        """Mark as LOST whatever this receiver had open when it died; returns how many."""
        with self._db.write() as connection:
            return connection.execute(
                update(AssociationRow)
                .where(AssociationRow.ended_at.is_(None), AssociationRow.receiver == receiver)
                .values(ended_at=at, ending=AssociationEnd.LOST.value)
            ).rowcount

    # instances ------------------------------------------------------------------------------------

    def record(self, batch: Sequence[Instance], *, duplicates: Duplicates = "keep_first") -> list[Recorded]:
        """Write a batch in one durable transaction; one answer for each instance, in order.

        The files must be published and their folders synced before. Calling it again with the same batch
        is harmless and is what to do when the outcome of a commit is unknown: those come back "same".

        Raises
        ------
        StoreError
            Nothing of the batch is recorded (answer A700H): the database is away, or a file has vanished.
        """
        return self._db.transact(lambda c: self._record(c, batch, duplicates)) if batch else []

    def adopt(self, instance: Instance) -> Recorded:
        """Record a file that was found in the spool without a row. It never displaces another."""
        return self.record([instance], duplicates="keep_first")[0]

    def known_path(self, relative: str) -> bool:
        """Whether any row (received, derived, kept aside, to be removed) speaks of this file."""
        with self._db.read() as connection:
            return is_known(connection, relative)

    def _record(
        self, connection: Connection, batch: Sequence[Instance], duplicates: Duplicates
    ) -> list[Recorded]:
        hold_files(connection)
        open_series = _OpenSeries(connection)
        for key in sorted({_key(i) for i in batch}, key=_order):  # in one order, against deadlocks
            open_series.lock(key)
        found = _current(connection, [i.sop_instance_uid for i in batch])
        told: list[Recorded] = []
        fresh: list[dict[str, Any]] = []
        for one in batch:
            known = found.get(one.sop_instance_uid)
            if known is None:
                self._must_exist(one.path)
                series_id = open_series.take(one)
                fresh.append(_row(one, series_id))
                found[one.sop_instance_uid] = _Known(
                    id=0, series_id=series_id, sha256=one.sha256, path=one.path, state=SeriesState.OPEN
                )
                told.append(Recorded(kind="new", series_id=series_id))
                continue
            if known.id == 0:  # twice in one batch: its row must be there to be compared
                _insert(connection, fresh)
                fresh = []
                known = _current(connection, [one.sop_instance_uid])[one.sop_instance_uid]
            told.append(self._again(connection, open_series, one, known, duplicates))
            found.update(_current(connection, [one.sop_instance_uid]))
        _insert(connection, fresh)
        connection.execute(delete(TrashRow).where(TrashRow.path.in_([i.path for i in batch])))
        open_series.write()
        _carry(connection, batch, told)
        return told

    def _again(
        self,
        connection: Connection,
        open_series: _OpenSeries,
        one: Instance,
        known: _Known,
        duplicates: Duplicates,
    ) -> Recorded:
        """A UID that is there already: a no-op, or a conflict handled by the policy."""
        if known.sha256 == one.sha256:
            if known.path != one.path:  # same bytes told under another series folder: keep the first
                return Recorded(kind="same", series_id=known.series_id)
            connection.execute(  # publish() laid the same data set over it, perhaps behind another preamble
                update(InstanceRow)
                .where(InstanceRow.id == known.id)
                .values(size=one.size, offset=one.offset, transfer_syntax_uid=one.transfer_syntax_uid)
            )
            open_series.touch(known.series_id, one.received_at)
            return Recorded(kind="same", series_id=known.series_id)
        self._must_exist(one.path)
        if duplicates == "keep_first":
            if conflicts.keep_aside(connection, _row(one, known.series_id), "first", one.received_at):
                conflicts.tell(connection, known.series_id, "kept_first", one)
            return Recorded(kind="conflict_kept_first", series_id=known.series_id, stale_path=one.path)
        return self._replace(connection, open_series, one, known)

    def _replace(
        self, connection: Connection, open_series: _OpenSeries, one: Instance, known: _Known
    ) -> Recorded:
        """The later bytes win. In a series that is still open they take the place of the earlier; in one
        that is closed the earlier stay what was worked on, and the later belong to the next generation."""
        old = connection.execute(rows.whole(InstanceRow).where(InstanceRow.id == known.id)).one()
        conflicts.keep_aside(connection, old._asdict(), "replaced", one.received_at)
        connection.execute(update(InstanceRow).where(InstanceRow.id == known.id).values(current=False))
        connection.execute(  # should the later bytes have been kept aside before, under another policy
            delete(ConflictRow).where(
                ConflictRow.sop_instance_uid == one.sop_instance_uid, ConflictRow.sha256 == one.sha256
            )
        )
        if known.state is SeriesState.OPEN and _same_series(connection, known.series_id, one):
            series_id = known.series_id
            # a row of its own: a header that is being read of the old bytes must not end up on the new
            _insert(connection, [_row(one, series_id)])
            connection.execute(delete(InstanceRow).where(InstanceRow.id == known.id))
            open_series.resize(series_id, one.size - old.size)
            open_series.touch(series_id, one.received_at)
        else:
            series_id = open_series.take(one)
            _insert(connection, [_row(one, series_id)])
        conflicts.tell(connection, series_id, "replaced", one)
        return Recorded(kind="replaced", series_id=series_id, stale_path=known.path)

    def _must_exist(self, path: str) -> None:
        if not self._spool.exists(path):
            raise StoreError("a file vanished from the spool before it was recorded")


def is_known(connection: Connection, relative: str) -> bool:
    """Whether any row speaks of this file of the spool."""
    for table in (InstanceRow, DerivedInstanceRow, ConflictRow, TrashRow):
        if connection.execute(select(1).where(table.path == relative).limit(1)).first():
            return True
    return False


@dataclass(slots=True, kw_only=True)
class _Known:
    id: int
    series_id: int
    sha256: str
    path: str
    state: SeriesState


class _OpenSeries:
    """The newest generation of each series of a batch, locked, and what the batch adds to it."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self._newest: dict[SeriesKey, tuple[int, int, SeriesState] | None] = {}
        self._added: dict[int, tuple[int, int]] = {}
        self._last: dict[int, datetime] = {}

    def lock(self, key: SeriesKey) -> None:
        """Read the newest generation; on PostgreSQL its row is locked, so that it cannot close meanwhile."""
        row = self._c.execute(
            select(SeriesRow.id, SeriesRow.generation, SeriesRow.state)
            .where(*rows.key_is(key))
            .order_by(SeriesRow.generation.desc())
            .limit(1)
            .with_for_update()
        ).first()
        self._newest[key] = (row.id, row.generation, SeriesState(row.state)) if row else None

    def take(self, one: Instance) -> int:
        """The series row that takes this instance: the newest if it is open, else generation n+1."""
        key = _key(one)
        newest = self._newest[key]
        if newest is None or newest[2] is not SeriesState.OPEN:
            newest = self._open(key, (newest[1] if newest else 0) + 1, one.received_at)
        series_id = newest[0]
        count, size = self._added.get(series_id, (0, 0))
        self._added[series_id] = (count + 1, size + one.size)
        self.touch(series_id, one.received_at)
        return series_id

    def resize(self, series_id: int, by: int) -> None:
        count, size = self._added.get(series_id, (0, 0))
        self._added[series_id] = (count, size + by)

    def touch(self, series_id: int, at: datetime) -> None:
        self._last[series_id] = max(at, self._last.get(series_id, at))

    def write(self) -> None:
        for series_id in sorted(self._last):
            count, size = self._added.get(series_id, (0, 0))
            last = self._last[series_id]
            self._c.execute(
                update(SeriesRow)
                .where(SeriesRow.id == series_id, SeriesRow.state == SeriesState.OPEN.value)
                .values(
                    count=SeriesRow.count + count,
                    size=SeriesRow.size + size,
                    last_received_at=greatest(self._c, SeriesRow.last_received_at, last),
                )
            )

    def _open(self, key: SeriesKey, generation: int, at: datetime) -> tuple[int, int, SeriesState]:
        values = {
            "study_uid": key.study_uid,
            "series_uid": key.series_uid,
            "calling_ae": key.calling_ae,
            "called_ae": key.called_ae,
            "generation": generation,
            "state": SeriesState.OPEN.value,
            "count": 0,
            "size": 0,
            "opened_at": at,
            "last_received_at": at,
        }
        # another receiver may open the same generation at the same moment: its row is then taken
        self._c.execute(upsert(self._c, SeriesRow).values(**values).on_conflict_do_nothing())
        self.lock(key)
        newest = self._newest[key]
        if newest is None or newest[2] is not SeriesState.OPEN:
            raise StoreError("a series closed while it was being opened")
        return newest


def _key(one: Instance) -> SeriesKey:
    return SeriesKey(
        study_uid=one.study_uid, series_uid=one.series_uid, calling_ae=one.calling_ae, called_ae=one.called_ae
    )


def _order(key: SeriesKey) -> tuple[str, str, str, str]:
    return key.series_uid, key.study_uid, key.calling_ae, key.called_ae


def _row(one: Instance, series_id: int) -> dict[str, Any]:
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
    }


def _insert(connection: Connection, values: Sequence[Mapping[str, Any]]) -> None:
    if values:
        ordered = sorted(values, key=lambda v: str(v["sop_instance_uid"])) if len(values) > 1 else values
        connection.execute(insert(InstanceRow), [dict(v) for v in ordered])


def _current(connection: Connection, uids: Sequence[str]) -> dict[str, _Known]:
    known: dict[str, _Known] = {}
    for start in range(0, len(uids), 500):
        for row in connection.execute(
            select(
                InstanceRow.id,
                InstanceRow.sop_instance_uid,
                InstanceRow.series_id,
                InstanceRow.sha256,
                InstanceRow.path,
                SeriesRow.state,
            )
            .join(SeriesRow, SeriesRow.id == InstanceRow.series_id)
            .where(InstanceRow.current, InstanceRow.sop_instance_uid.in_(uids[start : start + 500]))
        ):
            known[row.sop_instance_uid] = _Known(
                id=row.id,
                series_id=row.series_id,
                sha256=row.sha256,
                path=row.path,
                state=SeriesState(row.state),
            )
    return known


def _same_series(connection: Connection, series_id: int, one: Instance) -> bool:
    row = connection.execute(rows.whole(SeriesRow).where(SeriesRow.id == series_id)).one()
    return rows.series_key(row) == _key(one)


def _carry(connection: Connection, batch: Sequence[Instance], told: Sequence[Recorded]) -> None:
    counts: dict[tuple[int, str], tuple[int, int]] = {}
    for one, what in zip(batch, told, strict=True):
        new, seen = counts.get((what.series_id, one.association), (0, 0))
        counts[what.series_id, one.association] = (new + (what.kind in ("new", "replaced")), seen + 1)
    for (series_id, association), (new, seen) in sorted(counts.items()):
        statement = upsert(connection, CarriedRow).values(
            series_id=series_id, association=association, n_new=new, n_seen=seen
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["series_id", "association"],
                set_={"n_new": CarriedRow.n_new + new, "n_seen": CarriedRow.n_seen + seen},
            )
        )


def _end(connection: Connection, association_id: str, end: AssociationEnd, at: datetime) -> None:
    connection.execute(
        update(AssociationRow)
        .where(AssociationRow.id == association_id, AssociationRow.ended_at.is_(None))
        .values(ended_at=at, ending=end.value)
    )
