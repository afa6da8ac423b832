"""What the receiver writes: associations, and batches of instances that are durable in the spool."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, delete, select, update

from node.errors import StoreError
from node.model import Association, AssociationEnd, Instance, SeriesState
from node.store import arrivals, conflicts, express, originals, rows
from node.store.arrivals import Known, OpenSeries
from node.store.db import Database
from node.store.dialect import hold_files, upsert
from node.store.originals import Forward
from node.store.spool import Spool
from node.store.tables import (
    AssociationRow,
    ConflictRow,
    DerivedInstanceRow,
    InstanceRow,
    SeriesRow,
    TrashRow,
)

Kind = Literal["new", "same", "conflict_kept_first", "replaced"]
Duplicates = Literal["keep_first", "replace"]
Ended: TypeAlias = tuple[str, AssociationEnd, datetime]
"""An association's id, how it ended, and when."""


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
        ended: Sequence[Ended] = (),
        *,
        receiver: str = "",
    ) -> None:
        """Many openings and endings in one commit (one-association-per-instance scanners make many)."""
        if self._db.kind == "sqlite":
            with self._db.express() as cursor:
                express.note(cursor, opened, ended, receiver)
            return
        with self._db.write() as connection:
            _note(connection, opened, ended, receiver)

    def lose_open_associations(self, at: datetime, *, receiver: str = "", also: Sequence[str] = ()) -> int:
        """Mark as LOST whatever this receiver had open when it died, and others that are no more; returns how many."""
        with self._db.write() as connection:
            return connection.execute(
                update(AssociationRow)
                .where(AssociationRow.ended_at.is_(None), AssociationRow.receiver.in_([receiver, *also]))
                .values(ended_at=at, ending=AssociationEnd.LOST.value)
            ).rowcount

    # instances ------------------------------------------------------------------------------------

    def record(
        self,
        batch: Sequence[Instance],
        *,
        duplicates: Duplicates = "keep_first",
        opened: Sequence[Association] = (),
        ended: Sequence[Ended] = (),
        receiver: str = "",
        forward: Forward | None = None,
        before_commit: Callable[[], None] | None = None,
    ) -> list[Recorded]:
        """Write a batch in one durable transaction; one answer for each instance, in order.

        What `note_associations` would write may ride along. What is new of the batch is queued for the
        destinations that ``forward`` names, in the same transaction.

        The files must be published and their names durable before, or be made so by ``before_commit``: that is
        called last, may be called again if the transaction is, and undoes it if it raises. Calling `record`
        again with the same batch is harmless and is what to do when the outcome of a commit is unknown: those
        come back "same".

        Raises
        ------
        StoreError
            Nothing of the batch is recorded (answer A700H): the database is away, or a file has vanished.
        """

        def work(connection: Connection) -> list[Recorded]:
            _note(connection, opened, ended, receiver)
            told = self._record(connection, batch, duplicates)
            self._durable(batch, before_commit)
            if forward:
                took = [
                    (what.series_id, one)
                    for one, what in zip(batch, told, strict=True)
                    if what.kind in ("new", "replaced")
                ]
                originals.queue(connection, took, forward)
            return told

        if batch and not forward and self._db.kind == "sqlite":
            with contextlib.suppress(express.UnusualError):
                return self._usual(batch, opened, ended, receiver, before_commit)
        return self._db.transact(work) if batch or opened or ended else []

    def _usual(
        self,
        batch: Sequence[Instance],
        opened: Sequence[Association],
        ended: Sequence[Ended],
        receiver: str,
        before_commit: Callable[[], None] | None,
    ) -> list[Recorded]:
        with self._db.express() as cursor:
            ids = express.take_all(cursor, batch, opened, ended, receiver)
            self._durable(batch, before_commit)
        return [Recorded(kind="new", series_id=series_id) for series_id in ids]

    def adopt(self, instance: Instance, *, forward: Forward | None = None) -> Recorded:
        """Record a file that was found in the spool without a row. It never displaces another.

        Its sender went with its row: where the rest of its series is known, it joins that, so that a
        crash does not split a series in two.
        """
        with self._db.read() as connection:
            known = connection.execute(
                select(SeriesRow.calling_ae, SeriesRow.called_ae)
                .where(SeriesRow.series_uid == instance.series_uid, SeriesRow.study_uid == instance.study_uid)
                .order_by(SeriesRow.id.desc())
                .limit(1)
            ).first()
        if known is not None:
            instance = replace(instance, calling_ae=known.calling_ae, called_ae=known.called_ae)
        return self.record([instance], duplicates="keep_first", forward=forward)[0]

    def known_path(self, relative: str) -> bool:
        """Whether any row (received, derived, kept aside, to be removed) speaks of this file."""
        with self._db.read() as connection:
            return is_known(connection, relative)

    def _record(
        self, connection: Connection, batch: Sequence[Instance], duplicates: Duplicates
    ) -> list[Recorded]:
        hold_files(connection)
        usual = express.take(connection, batch)
        if usual is not None:
            return [Recorded(kind="new", series_id=series_id) for series_id in usual]
        series = arrivals.OpenSeries(connection)
        series.lock({arrivals.key_of(one) for one in batch})
        found = arrivals.current(connection, [one.sop_instance_uid for one in batch])
        told: dict[int, Recorded] = {}
        fresh: list[dict[str, Any]] = []
        # series by series, in one order whoever does it: two receivers then wait for, not on, each other
        for at, one in sorted(enumerate(batch), key=lambda item: arrivals.order_of(item[1])):
            known = found.get(one.sop_instance_uid)
            if known is None:
                series_id = series.take(one)
                fresh.append(arrivals.row_of(one, series_id))
                found[one.sop_instance_uid] = arrivals.known_of(one, series_id)
                told[at] = Recorded(kind="new", series_id=series_id)
                continue
            if known.id == 0:  # twice in one batch: the first must have its row to be spoken of
                arrivals.insert_rows(connection, fresh)
                fresh.clear()
                known = arrivals.current(connection, [one.sop_instance_uid])[one.sop_instance_uid]
            told[at] = self._again(connection, series, one, known, duplicates)
            if told[at].kind == "replaced" or found[one.sop_instance_uid].id == 0:
                found.update(arrivals.current(connection, [one.sop_instance_uid]))
        arrivals.insert_rows(connection, fresh)
        arrivals.rescue(connection, (one.path for one in batch))
        series.write()
        answers = [told[at] for at in range(len(batch))]
        arrivals.carry(connection, _carried(batch, answers))
        return answers

    def _again(
        self,
        connection: Connection,
        series: OpenSeries,
        one: Instance,
        known: Known,
        duplicates: Duplicates,
    ) -> Recorded:
        """A UID that is there already: a no-op, or a conflict handled by the policy."""
        if known.sha256 == one.sha256:
            arrivals.rewrite(connection, known, one)
            series.touch(known.series_id, one.received_at)
            return Recorded(kind="same", series_id=known.series_id)
        if duplicates == "replace":
            return self._replace(connection, series, one, known)
        row = arrivals.row_of(one, known.series_id)
        if conflicts.keep_aside(connection, row, "first", one.received_at):
            conflicts.tell(connection, known.series_id, "kept_first", one)
        series.touch(known.series_id, one.received_at)
        return Recorded(kind="conflict_kept_first", series_id=known.series_id, stale_path=one.path)

    def _replace(self, connection: Connection, series: OpenSeries, one: Instance, known: Known) -> Recorded:
        """The later bytes win. In a series that is still open they take the place of the earlier; in one
        that is closed the earlier stay what was worked on, and the later belong to the next generation."""
        old = connection.execute(rows.whole(InstanceRow).where(InstanceRow.id == known.id)).one()
        holder = connection.execute(
            rows.whole(SeriesRow).where(SeriesRow.id == known.series_id).with_for_update(key_share=True)
        ).one()
        same_series = (holder.series_uid, holder.study_uid) == arrivals.order_of(one)
        in_place = holder.state == SeriesState.OPEN.value and same_series
        conflicts.keep_aside(connection, old._asdict(), "replaced", one.received_at)
        conflicts.forget(connection, one)
        connection.execute(update(InstanceRow).where(InstanceRow.id == known.id).values(current=False))
        if in_place:
            series_id = known.series_id
            series.add(series_id, 0, one.size - known.size)
            series.touch(series_id, one.received_at)
        else:
            series_id = series.take(one)
        # a row of its own: a header that is just being read of the old bytes must not end up on the new
        arrivals.insert_rows(connection, [arrivals.row_of(one, series_id)])
        if in_place:
            connection.execute(delete(InstanceRow).where(InstanceRow.id == known.id))
        conflicts.tell(connection, series_id, "replaced", one)
        return Recorded(kind="replaced", series_id=series_id, stale_path=known.path)

    def _durable(self, batch: Sequence[Instance], before_commit: Callable[[], None] | None) -> None:
        """No row without its file: nobody removes one while this transaction is under way."""
        if before_commit is not None:
            before_commit()
        for one in batch:
            self._must_exist(one.path)

    def _must_exist(self, path: str) -> None:
        if not self._spool.exists(path):
            raise StoreError("a file vanished from the spool before it was recorded")


def is_known(connection: Connection, relative: str) -> bool:
    """Whether any row speaks of this file of the spool."""
    for table in (InstanceRow, DerivedInstanceRow, ConflictRow, TrashRow):
        if connection.execute(select(1).where(table.path == relative).limit(1)).first():
            return True
    return False


def _carried(batch: Sequence[Instance], told: Sequence[Recorded]) -> dict[tuple[int, str], tuple[int, int]]:
    counts: dict[tuple[int, str], tuple[int, int]] = {}
    for one, what in zip(batch, told, strict=True):
        new, seen = counts.get((what.series_id, one.association), (0, 0))
        counts[what.series_id, one.association] = (new + (what.kind in ("new", "replaced")), seen + 1)
    return counts


def _note(
    connection: Connection, opened: Sequence[Association], ended: Sequence[Ended], receiver: str
) -> None:
    if opened:
        statement = upsert(connection, AssociationRow).on_conflict_do_nothing(index_elements=["id"])
        connection.execute(statement, [rows.association_values(a, receiver) for a in opened])
    for association_id, end, at in ended:
        _end(connection, association_id, end, at)


def _end(connection: Connection, association_id: str, end: AssociationEnd, at: datetime) -> None:
    connection.execute(
        update(AssociationRow)
        .where(AssociationRow.id == association_id, AssociationRow.ended_at.is_(None))
        .values(ended_at=at, ending=end.value)
    )
