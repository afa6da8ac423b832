"""What gather reads and writes: series, their instances' headers, the associations that carried them."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, func, literal_column, select, update

from node.errors import StoreError
from node.model import (
    Action,
    Association,
    Decision,
    Instance,
    InstanceHeader,
    Series,
    SeriesHeader,
    SeriesState,
)
from node.store import codec, events, moves, originals, outlooks, provenance, rows
from node.store.db import Database
from node.store.jobs import NewJob, insert_job, supersede_jobs
from node.store.tables import AssociationRow, CarriedRow, DerivedRow, InstanceRow, JobRow, SeriesRow

_UNREAD: ColumnElement[int] = literal_column("0")
"""To the letter what the partial index says, or it is not used."""

_DECIDED = {
    Action.ENHANCE: SeriesState.ROUTED,
    Action.IGNORE: SeriesState.IGNORED,
    Action.REJECT: SeriesState.REJECTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """How much of a series one association carried: ``n_new`` instances that were new or took another's
    place, of ``n_seen`` in all (duplicates included). ``association`` is None if its row is unknown."""

    association_id: str
    association: Association | None
    n_new: int
    n_seen: int


class SeriesStore:
    """`Store.series`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    # indexing -------------------------------------------------------------------------------------

    def unindexed(self, limit: int = 500) -> builtins.list[tuple[int, Instance]]:
        """Instances whose header was not read yet, oldest first, with their row ids."""
        with self._db.read() as connection:
            found = connection.execute(
                rows.INSTANCE_WITH_KEY.where(InstanceRow.indexed == _UNREAD)
                .order_by(InstanceRow.id)
                .limit(limit)
            )
            return [(row.id, rows.instance(row)) for row in found]

    def index(
        self,
        items: Sequence[tuple[int, InstanceHeader]],
        merged: Mapping[int, SeriesHeader] | None = None,
    ) -> None:
        """Store the headers of many instances in one transaction.

        Parameters
        ----------
        items
            (row id from `unindexed`, header).
        merged
            Series row id -> what a rule may see of it now, as the caller merged it.
        """

        def work(connection: Connection) -> None:
            series_of = rows.pairs(
                connection.execute(
                    select(InstanceRow.id, InstanceRow.series_id).where(
                        InstanceRow.id.in_([i for i, _ in items])
                    )
                ).all()
            )
            bases: dict[int, Mapping[str, Any]] = {}
            for instance_id, header in sorted(items, key=lambda item: item[0]):
                series_id = series_of.get(instance_id)
                if series_id is None:
                    continue
                if series_id not in bases:
                    bases[series_id] = _base(connection, series_id, header)
                connection.execute(
                    update(InstanceRow)
                    .where(
                        InstanceRow.id == instance_id, InstanceRow.sop_instance_uid == header.sop_instance_uid
                    )
                    .values(indexed=1, header=codec.pack(header, bases[series_id]))
                )
            for series_id, seen in sorted((merged or {}).items()):
                connection.execute(
                    update(SeriesRow)
                    .where(SeriesRow.id == series_id)
                    .values(header=codec.pack_series_header(seen))
                )

        self._db.transact(work)

    def mark_unreadable(self, instance_id: int, reason: str, at: datetime) -> None:
        """Note that an instance's header cannot be read; it stays, and counts, without a header."""
        with self._db.write() as connection:
            row = connection.execute(
                update(InstanceRow)
                .where(InstanceRow.id == instance_id, InstanceRow.indexed == _UNREAD)
                .values(indexed=2)
                .returning(InstanceRow.series_id, InstanceRow.sop_instance_uid)
            ).first()
            if row:
                body = {"instance": row.sop_instance_uid, "reason": reason}
                events.add(connection, "warning", "instance.unreadable", body, at, series_id=row.series_id)

    def pending(self, series_id: int) -> int:
        """How many instances of this generation wait to be indexed."""
        return self._count(InstanceRow.series_id == series_id, InstanceRow.indexed == _UNREAD)

    def unreadable(self, series_id: int) -> int:
        """How many instances of this generation could not be read."""
        return self._count(InstanceRow.series_id == series_id, InstanceRow.indexed == 2)

    # reading --------------------------------------------------------------------------------------

    def get(self, series_id: int) -> Series | None:
        return next(iter(self._series(SeriesRow.id == series_id)), None)

    def open_series(self) -> builtins.list[Series]:
        """Every series that still takes instances, oldest first."""
        return self._series(SeriesRow.state == SeriesState.OPEN.value)

    def closed_series(self, limit: int = 100) -> builtins.list[Series]:
        """Every series that waits for a decision, oldest first."""
        return self._series(SeriesRow.state == SeriesState.CLOSED.value, limit=limit)

    def find(self, uid: str) -> builtins.list[Series]:
        """All generations of a Study, Series or SOP Instance UID (received)."""
        return self._series(rows.series_of(uid))

    def generations(self, series_id: int) -> builtins.list[Series]:
        """All generations of the same series, first to last."""
        one = self._must(series_id)
        return self._series(*rows.key_is(one.key))

    def list(
        self,
        *,
        states: Collection[SeriesState] = (),
        study_uid: str = "",
        limit: int = 100,
        before_id: int | None = None,
    ) -> builtins.list[Series]:
        """The newest first; ``before_id`` pages on."""
        statement = rows.SERIES
        if study_uid:
            statement = statement.where(SeriesRow.study_uid == study_uid)
        if before_id is not None:
            statement = statement.where(SeriesRow.id < before_id)
        with self._db.read() as connection:
            found = rows.newest(connection, statement, SeriesRow, [s.value for s in states], limit)
        return [rows.series(row) for row in found]

    def since(self, at: datetime) -> builtins.list[Series]:
        """Every series that got an instance since then, the newest first."""
        latest = rows.SERIES.where(SeriesRow.last_received_at >= at)
        with self._db.read() as connection:  # two looks: what was removed was so after its last instance came
            found = [
                row
                for which in (SeriesRow.purged_at.is_(None), SeriesRow.purged_at >= at)
                for row in connection.execute(latest.where(which))
            ]
        return [rows.series(row) for row in sorted(found, key=lambda row: row.id, reverse=True)]

    def counts(self) -> dict[SeriesState, int]:
        """How many series are in each state."""
        with self._db.read() as connection:
            found = connection.execute(select(SeriesRow.state, func.count()).group_by(SeriesRow.state))
            return {SeriesState(state): n for state, n in found}

    def decision(self, series_id: int) -> Decision | None:
        """What the rules said, with every verdict; None if not decided."""
        with self._db.read() as connection:
            document = connection.execute(
                select(SeriesRow.decision).where(SeriesRow.id == series_id)
            ).scalar_one_or_none()
        return rows.decision(document) if document is not None else None

    def decisions(self, series_ids: Collection[int]) -> dict[int, Decision]:
        """What the rules said of some series, by their id; those that were not decided are not among them."""
        statement = select(SeriesRow.id, SeriesRow.decision).where(
            SeriesRow.id.in_(list(series_ids)), SeriesRow.decision.is_not(None)
        )
        with self._db.read() as connection:
            return {row.id: rows.decision(row.decision) for row in connection.execute(statement)}

    def headers(self, series_id: int, *, all_generations: bool = False) -> builtins.list[InstanceHeader]:
        """The headers of the instances that were readable, in order of arrival.

        With ``all_generations``, those in force over every generation up to and beyond this one.
        """
        statement = (
            select(InstanceRow.header, SeriesRow.base)
            .join(SeriesRow, SeriesRow.id == InstanceRow.series_id)
            .where(InstanceRow.indexed == 1)
            .order_by(InstanceRow.id)
        )
        with self._db.read() as connection:
            scoped = self._scope(connection, statement, series_id, all_generations, None)
            return [codec.unpack(row.header, row.base) for row in connection.execute(scoped)]

    def instances(
        self, series_id: int, *, all_generations: bool = False, up_to_generation: int | None = None
    ) -> builtins.list[Instance]:
        """Instances in order of arrival.

        By default those of this generation, as it was closed (one whose bytes were replaced later is
        still among them). With ``all_generations`` or ``up_to_generation`` the ones in force of the same
        series, over all generations or those up to the one named, inclusive.
        """
        statement = rows.INSTANCE_WITH_KEY.order_by(InstanceRow.id)
        with self._db.read() as connection:
            scoped = self._scope(connection, statement, series_id, all_generations, up_to_generation)
            return [rows.instance(row) for row in connection.execute(scoped)]

    def carried(self, series_id: int) -> builtins.list[Carried]:
        """Which associations carried this generation, in the order they were opened, and how much."""
        statement = (
            select(
                CarriedRow.association, CarriedRow.n_new, CarriedRow.n_seen, *AssociationRow.__table__.columns
            )
            .outerjoin(AssociationRow, AssociationRow.id == CarriedRow.association)
            .where(CarriedRow.series_id == series_id)
            .order_by(AssociationRow.opened_at, CarriedRow.association)
        )
        with self._db.read() as connection:
            return [
                Carried(
                    association_id=row.association,
                    association=rows.association(row) if row.id is not None else None,
                    n_new=row.n_new,
                    n_seen=row.n_seen,
                )
                for row in connection.execute(statement)
            ]

    def associations(self, series_id: int) -> builtins.list[Association]:
        """The associations that carried this generation."""
        return [c.association for c in self.carried(series_id) if c.association is not None]

    def senders(self, series_id: int) -> builtins.list[tuple[str, str]]:
        """(calling, called) AE titles of all who sent this series, over every generation, first to last."""
        found: dict[tuple[str, str], None] = {}
        for one in self.generations(series_id):
            found[one.key.calling_ae, one.key.called_ae] = None
            found.update(dict.fromkeys((a.calling_ae, a.called_ae) for a in self.associations(one.id)))
        return [*found]

    def derived_gone(self, series_id: int) -> bool:
        """Whether retention has removed something that was made of this series, in any generation of it."""
        ids = [one.id for one in self.generations(series_id)]
        with self._db.read() as connection:
            found = (
                select(DerivedRow.id)
                .join(JobRow, JobRow.id == DerivedRow.job_id)
                .where(JobRow.series_id.in_(ids), DerivedRow.purged_at.is_not(None))
            )
            return connection.execute(found.limit(1)).first() is not None

    def open_associations(self, calling_ae: str, address: str | None = None) -> builtins.list[Association]:
        """Associations of this sender that have not ended."""
        statement = rows.whole(AssociationRow).where(
            AssociationRow.calling_ae == calling_ae, AssociationRow.ended_at.is_(None)
        )
        if address is not None:
            statement = statement.where(AssociationRow.address == address)
        with self._db.read() as connection:
            return [
                rows.association(row)
                for row in connection.execute(statement.order_by(AssociationRow.opened_at))
            ]

    def studies_of(self, association_id: str) -> frozenset[str]:
        """Study UIDs of what an association carried so far; empty if it stored nothing yet."""
        with self._db.read() as connection:
            return frozenset(
                connection.execute(
                    select(SeriesRow.study_uid)
                    .join(CarriedRow, CarriedRow.series_id == SeriesRow.id)
                    .where(CarriedRow.association == association_id)
                ).scalars()
            )

    # moving ---------------------------------------------------------------------------------------

    def close(self, series_id: int, because: str, at: datetime, *, count: int | None = None) -> bool:
        """OPEN -> CLOSED; later instances open the next generation.

        ``count`` is how many instances the caller judged: if another arrived meanwhile, or took an
        instance's place and was not indexed yet, nothing happens and False comes back.
        """
        unread = exists().where(InstanceRow.series_id == series_id, InstanceRow.indexed == _UNREAD)
        extra = () if count is None else (SeriesRow.count == count, ~unread)
        with self._db.write() as connection:
            # First the lock, then the look: PostgreSQL's UPDATE would wait for a receiver that is at work on
            # the series, and then judge by the instances from before the wait.
            connection.execute(
                select(SeriesRow.id).where(SeriesRow.id == series_id).with_for_update(key_share=True)
            )
            closed = moves.move_series(
                connection, series_id, SeriesState.CLOSED, SeriesRow.state == SeriesState.OPEN.value, *extra,
                closed_at=at, closed_because=rows.clean(because),
            )  # fmt: skip
            if closed:
                originals.wake(connection, series_id, at)
                _tell_if_late(connection, series_id, at)
            return closed

    def route(
        self,
        series_id: int,
        decision: Decision,
        jobs: Sequence[NewJob],
        config_digest: str,
        at: datetime,
    ) -> builtins.list[int]:
        """CLOSED -> ROUTED, IGNORED or REJECTED with the decision, its verdicts and its jobs, in one
        transaction; returns the jobs' ids. A job that was already queued for this series is not doubled;
        one that an earlier decision queued and this one does not want is cancelled, unless it runs.

        Raises
        ------
        TransitionRefused
            The series is not CLOSED (any more).
        """

        def work(connection: Connection) -> builtins.list[int]:
            moved = moves.move_series(
                connection, series_id, _DECIDED[decision.action], SeriesRow.state == SeriesState.CLOSED.value,
                decision=rows.decision_document(decision), decided_at=at, config_digest=config_digest,
            )  # fmt: skip
            moves.must(moved, f"series {series_id}")
            outlooks.drop(connection, series_id)
            ids = [insert_job(connection, series_id, new, config_digest, at) for new in jobs]
            supersede_jobs(connection, series_id, ids, at)
            one = connection.execute(rows.whole(SeriesRow).where(SeriesRow.id == series_id)).one()
            body = {
                "series": series_id,
                "generation": one.generation,
                "closed_because": one.closed_because,
                "count": one.count,
                "calling_ae": one.calling_ae,
                "called_ae": one.called_ae,
                "decision": rows.decision_document(decision),
                "jobs": ids,
                "config": config_digest,
            }
            provenance.append(connection, "series.routed", (one.study_uid, one.series_uid), body, at)
            return ids

        return self._db.transact(work)

    def reopen_for_routing(self, series_id: int, at: datetime) -> None:
        """A person's retry: back to CLOSED, to be decided again by the rules now in force.

        Raises
        ------
        TransitionRefused
        """
        with self._db.write() as connection:
            moved = moves.move_series(
                connection,
                series_id,
                SeriesState.CLOSED,
                SeriesRow.state != SeriesState.OPEN.value,
                SeriesRow.purged_at.is_(None),
                decision=None,
            )
            moves.must(moved, f"series {series_id}")
            events.add(connection, "info", "series.retried", {}, at, series_id=series_id)

    # ----------------------------------------------------------------------------------------------

    def _must(self, series_id: int) -> Series:
        one = self.get(series_id)
        if one is None:
            raise StoreError(f"no series {series_id}", retryable=False)
        return one

    def _series(self, *where: Any, limit: int | None = None) -> builtins.list[Series]:
        statement = rows.SERIES.where(*where).order_by(SeriesRow.id).limit(limit)
        with self._db.read() as connection:
            return [rows.series(row) for row in connection.execute(statement)]

    def _count(self, *where: Any) -> int:
        with self._db.read() as connection:
            return connection.execute(
                select(func.count()).select_from(InstanceRow).where(*where)
            ).scalar_one()

    def _scope(
        self, connection: Connection, statement: Any, series_id: int, everything: bool, up_to: int | None
    ) -> Any:
        if not everything and up_to is None:
            return statement.where(InstanceRow.series_id == series_id)
        one = connection.execute(rows.whole(SeriesRow).where(SeriesRow.id == series_id)).first()
        if one is None:
            raise StoreError(f"no series {series_id}", retryable=False)
        scoped = statement.where(*rows.key_is(rows.series_key(one)), InstanceRow.current)
        return scoped if up_to is None else scoped.where(SeriesRow.generation <= up_to)


def _base(connection: Connection, series_id: int, header: InstanceHeader) -> Mapping[str, Any]:
    base: Mapping[str, Any] | None = connection.execute(
        select(SeriesRow.base).where(SeriesRow.id == series_id).with_for_update(key_share=True)
    ).scalar_one()
    if base is None:
        base = codec.pack_base(header)
        connection.execute(update(SeriesRow).where(SeriesRow.id == series_id).values(base=base))
    return base


def _tell_if_late(connection: Connection, series_id: int, at: datetime) -> None:
    """A generation beyond the first is what came late: a scanner that does so often wants other settings."""
    row = connection.execute(
        select(SeriesRow.generation, SeriesRow.count).where(SeriesRow.id == series_id)
    ).one()
    if row.generation > 1:
        body = {"generation": row.generation, "n_instances": row.count}
        events.add(connection, "warning", "series.late", body, at, series_id=series_id)
