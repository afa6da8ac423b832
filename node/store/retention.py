"""Removing what is done and old. What is not done is never removed, however full the disk is (R58).

Done means, for a received series: every generation of it has a decision, every job of it is DONE or was
cancelled by a person, and everything made of it, and its originals where they are forwarded, was sent wherever
it was to go (or that was cancelled).
Failed and held work is not done: a person may retry it, and needs the bytes.

Rows go first, their paths into the trash, in one transaction; files follow, in another in which nobody
can record a file. A crash between the two leaves trash, never a row without its file, nor a file that
reconciliation would take for newly received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, not_, or_, select, update
from sqlalchemy.orm import aliased

from node.model import DeliveryState, JobState, SeriesState
from node.store import originals, pledges, provenance
from node.store.db import Database
from node.store.dialect import own_files, upsert
from node.store.spool import Spool
from node.store.tables import (
    AssociationRow,
    CarriedRow,
    ConflictRow,
    DeliveryRow,
    DerivedInstanceRow,
    DerivedRow,
    InstanceRow,
    JobRow,
    OutcomeRow,
    SeriesRow,
    TrashRow,
)

_SENT = (DeliveryState.SENT.value, DeliveryState.COMMITTED.value, DeliveryState.CANCELLED.value)
_WORKED = (JobState.DONE.value, JobState.CANCELLED.value)
_UNDECIDED = (SeriesState.OPEN.value, SeriesState.CLOSED.value)
_FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
_BATCH = 50
"""Files removed under one lock: a receiver waits no longer than that takes."""
_ROWS = 500
"""Rows of associations removed in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purgeable:
    """What `Retention.purge` would remove: ids of received and of derived series, and their bytes."""

    series: tuple[int, ...]
    derived: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What was removed."""

    n_series: int = 0
    n_derived: int = 0
    n_files: int = 0
    n_bytes: int = 0


class Retention:
    """`Store.retention`."""

    def __init__(self, database: Database, spool: Spool) -> None:
        self._db = database
        self._spool = spool

    def purgeable(
        self, *, received_before: datetime, derived_before: datetime, limit: int = 200
    ) -> Purgeable:
        """What is done and older than that, the oldest first. Changes nothing."""
        with self._db.read() as connection:
            series = _ids(
                connection, SeriesRow, _series_done(received_before), SeriesRow.last_received_at, limit
            )
            derived = _ids(
                connection, DerivedRow, _derived_done(derived_before), DerivedRow.created_at, limit
            )
            received = select(func.sum(InstanceRow.size)).where(InstanceRow.series_id.in_(series))
            made = select(func.sum(DerivedInstanceRow.size)).where(DerivedInstanceRow.derived_id.in_(derived))
            n_bytes = sum(int(connection.execute(q).scalar_one() or 0) for q in (received, made))
        return Purgeable(series=tuple(series), derived=tuple(derived), n_bytes=n_bytes)

    def purge(
        self, *, received_before: datetime, derived_before: datetime, at: datetime, limit: int = 200
    ) -> Purged:
        """Remove up to ``limit`` series of each kind, the oldest first; call again until none is removed.

        What becomes of a series in the meantime is looked at again in the transaction that removes it.
        """
        found = self.purgeable(received_before=received_before, derived_before=derived_before, limit=limit)
        breath = self._db.breath()
        n_series = n_derived = 0
        for series_id in found.series:
            n_series += self._purge_series(series_id, received_before, at)
            breath.take()
        for derived_id in found.derived:
            n_derived += self._purge_derived(derived_id, derived_before, at)
            breath.take()
        self._forget_associations(received_before)
        files = self.empty_trash()
        return Purged(n_series=n_series, n_derived=n_derived, n_files=files.n_files, n_bytes=files.n_bytes)

    def forget_done(self, at: datetime) -> int:
        """Remove all that is done, however young; returns how many series (a restored backup has no files
        of them)."""
        n = 0
        while True:
            done = self.purge(received_before=_FOREVER, derived_before=_FOREVER, at=at)
            if not done.n_series and not done.n_derived:
                return n
            n += done.n_series + done.n_derived

    def empty_trash(self) -> Purged:
        """Remove files that no row needs any more (`purge` does it too; at start, after a crash)."""
        n_files = n_bytes = 0
        breath = self._db.breath()
        while True:
            with self._db.write() as connection:
                own_files(connection)
                paths = list(
                    connection.execute(select(TrashRow.path).order_by(TrashRow.path).limit(_BATCH)).scalars()
                )
                gone = [p for p in paths if not _needed(connection, p)]
                sizes = [self._size(p) for p in gone]
                for path in gone:
                    self._spool.remove(path)
                # Before the trash forgets them; a whole folder may be gone, as after a change of disks.
                self._spool.sync_dirs([p for p in gone if self._spool.path(p).parent.is_dir()])
                connection.execute(delete(TrashRow).where(TrashRow.path.in_(paths)))
            n_files += sum(s is not None for s in sizes)
            n_bytes += sum(s or 0 for s in sizes)
            if len(paths) < _BATCH:
                return Purged(n_files=n_files, n_bytes=n_bytes)
            breath.take()

    def _purge_series(self, series_id: int, before: datetime, at: datetime) -> bool:
        def work(connection: Connection) -> bool:
            own_files(connection)
            row = connection.execute(
                update(SeriesRow)
                .where(SeriesRow.id == series_id, _series_done(before))
                .values(purged_at=at)
                .returning(SeriesRow.study_uid, SeriesRow.series_uid, SeriesRow.generation)
            ).first()
            if row is None:
                return False
            size = select(func.count(), func.sum(InstanceRow.size)).where(InstanceRow.series_id == series_id)
            n, n_bytes = connection.execute(size).one()
            for table in (InstanceRow, ConflictRow):
                _trash(connection, table.path, table.series_id == series_id, at)
                connection.execute(delete(table).where(table.series_id == series_id))
            forwarded = select(DeliveryRow.id).where(DeliveryRow.series_id == series_id)
            connection.execute(delete(OutcomeRow).where(OutcomeRow.delivery_id.in_(forwarded)))
            connection.execute(delete(CarriedRow).where(CarriedRow.series_id == series_id))
            body = {
                "series": series_id,
                "generation": row.generation,
                "count": n,
                "bytes": int(n_bytes or 0),
            }
            provenance.append(connection, "series.purged", (row.study_uid, row.series_uid), body, at)
            return True

        return self._db.transact(work)

    def _purge_derived(self, derived_id: int, before: datetime, at: datetime) -> bool:
        def work(connection: Connection) -> bool:
            own_files(connection)
            row = connection.execute(
                update(DerivedRow)
                .where(DerivedRow.id == derived_id, _derived_done(before))
                .values(purged_at=at)
                .returning(DerivedRow.study_uid, DerivedRow.series_uid)
            ).first()
            if row is None:
                return False
            mine = DerivedInstanceRow.derived_id == derived_id
            n = connection.execute(select(func.count()).select_from(DerivedInstanceRow).where(mine))
            body = {"derived": derived_id, "count": n.scalar_one()}
            _trash(connection, DerivedInstanceRow.path, mine, at)
            sent = select(DeliveryRow.id).where(DeliveryRow.derived_id == derived_id)
            connection.execute(delete(OutcomeRow).where(OutcomeRow.delivery_id.in_(sent)))
            connection.execute(delete(DerivedInstanceRow).where(mine))
            provenance.append(connection, "derived.purged", (row.study_uid, row.series_uid), body, at)
            return True

        return self._db.transact(work)

    def _forget_associations(self, before: datetime) -> None:
        """Associations that ended long ago and carried nothing that is still here. Looked for without a lock."""
        breath = self._db.breath()
        empty = ~exists().where(CarriedRow.association == AssociationRow.id)
        old = (
            select(AssociationRow.id)
            .where(AssociationRow.ended_at < before, empty)
            .order_by(AssociationRow.ended_at)
            .limit(_ROWS)
        )
        while True:
            with self._db.read() as connection:
                ids = list(connection.execute(old).scalars())
            if ids:
                with self._db.write() as connection:
                    connection.execute(delete(AssociationRow).where(AssociationRow.id.in_(ids), empty))
            if len(ids) < _ROWS:
                return
            breath.take()

    def _size(self, path: str) -> int | None:
        try:
            return self._spool.path(path).stat().st_size
        except OSError:
            return None


def _series_done(before: datetime) -> ColumnElement[bool]:
    """A received series of which no generation is fresh, undecided or still being worked on."""
    any_generation = aliased(SeriesRow)
    unsent = exists().where(
        DerivedRow.job_id == JobRow.id,
        DeliveryRow.derived_id == DerivedRow.id,
        or_(DeliveryRow.state.not_in(_SENT), pledges.awaited()),
    )
    unworked = exists().where(
        JobRow.series_id == any_generation.id, or_(JobRow.state.not_in(_WORKED), unsent)
    )
    keeps = (
        exists()
        .where(
            any_generation.series_uid == SeriesRow.series_uid,
            any_generation.study_uid == SeriesRow.study_uid,
            or_(
                any_generation.state.in_(_UNDECIDED),
                any_generation.last_received_at >= before,
                unworked,
                originals.unsent(any_generation.id, _SENT),
                exists().where(DeliveryRow.series_id == any_generation.id, pledges.awaited()),
            ),
        )
        .correlate(SeriesRow)
    )
    return and_(
        SeriesRow.purged_at.is_(None),
        SeriesRow.state.not_in(_UNDECIDED),
        SeriesRow.last_received_at < before,
        ~keeps,
    )


def _derived_done(before: datetime) -> ColumnElement[bool]:
    """A derived series whose job rests and which was sent wherever it was to go."""
    working = exists().where(JobRow.id == DerivedRow.job_id, JobRow.state.not_in(_WORKED))
    unsent = exists().where(
        DeliveryRow.derived_id == DerivedRow.id,
        or_(DeliveryRow.state.not_in(_SENT), pledges.awaited()),
    )
    return and_(DerivedRow.purged_at.is_(None), DerivedRow.created_at < before, ~working, ~unsent)


def unfinished(connection: Connection) -> set[str]:
    """Files of the spool that something needs which is not done: what a backup must hold."""
    series = select(SeriesRow.id).where(SeriesRow.purged_at.is_(None), not_(_series_done(_FOREVER)))
    derived = select(DerivedRow.id).where(DerivedRow.purged_at.is_(None), not_(_derived_done(_FOREVER)))
    wanted = (
        select(InstanceRow.path).where(InstanceRow.series_id.in_(series)),
        select(ConflictRow.path).where(ConflictRow.series_id.in_(series)),
        select(DerivedInstanceRow.path).where(DerivedInstanceRow.derived_id.in_(derived)),
    )
    return {path for statement in wanted for path in connection.execute(statement).scalars()}


def _ids(
    connection: Connection, table: Any, condition: ColumnElement[bool], age: Any, limit: int
) -> list[int]:
    found = select(table.id).where(condition).order_by(age, table.id).limit(limit)
    return list(connection.execute(found).scalars())


def _trash(connection: Connection, path: Any, condition: ColumnElement[bool], at: datetime) -> None:
    paths: Sequence[str] = connection.execute(select(path).where(condition).distinct()).scalars().all()
    if paths:
        statement = upsert(connection, TrashRow).on_conflict_do_nothing(index_elements=["path"])
        connection.execute(statement, [{"path": p, "at": at} for p in paths])


def _needed(connection: Connection, path: str) -> bool:
    tables = (InstanceRow, DerivedInstanceRow, ConflictRow)
    return any(connection.execute(select(1).where(t.path == path).limit(1)).first() for t in tables)
