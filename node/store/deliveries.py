"""The outbox: derived series, and originals, on their way to destinations, with one outcome per instance."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Text, cast, func, or_, select, update

from node.errors import StoreError, TransitionRefused
from node.model import Delivery, DeliveryState, DerivedSeries, Outcome
from node.store import moves, originals, outbox, rows
from node.store.db import Database, to_json
from node.store.derived import read_derived
from node.store.dialect import hold_files
from node.store.originals import Cargo
from node.store.outcomes import progress, read_outcomes, tell_delivery, write_outcomes
from node.store.pledges import awaited, drop_pledge, open_pledge, reset_pledge
from node.store.tables import DeliveryRow, DerivedRow, JobRow, OutcomeRow, SeriesRow

Settled = Literal["sent", "more", "waits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readdressed:
    """How many deliveries, and how many jobs whose deliveries are still to come, have other settings now."""

    deliveries: int
    jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryDetail:
    """A delivery with how far it is: ``n_done`` of ``n_instances`` are held by the destination."""

    delivery: Delivery
    n_instances: int
    n_done: int
    started_at: datetime | None
    finished_at: datetime | None


class Deliveries:
    """`Store.deliveries`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def claim(
        self,
        owner: str,
        lease_s: float,
        now: datetime,
        *,
        destination: str | None = None,
        destinations_paused: Collection[str] = (),
        originals: bool = False,
        after: int = 0,
    ) -> Delivery | None:
        """Take the oldest delivery that is due, of one destination or of all that are not paused.

        Parameters
        ----------
        originals
            Deliveries of originals, which are a queue of their own, instead of those of derived series.
        after
            Look behind this delivery first: series that grow at the same time take turns.
        """
        condition = moves.due(DeliveryRow, DeliveryState.PENDING, DeliveryState.SENDING, now)
        condition = condition & (
            DeliveryRow.series_id.is_not(None) if originals else DeliveryRow.derived_id.is_not(None)
        )
        if destination is not None:  # the states again: else all that was ever sent there is read
            states = (DeliveryState.PENDING.value, DeliveryState.SENDING.value)
            condition = condition & (DeliveryRow.destination == destination) & DeliveryRow.state.in_(states)
        if destinations_paused:
            condition = condition & DeliveryRow.destination.not_in(list(destinations_paused))
        with self._db.read() as connection:  # the usual case costs no write lock
            if connection.execute(select(DeliveryRow.id).where(condition).limit(1)).first() is None:
                return None
        with self._db.write() as connection:
            for which in (condition & (DeliveryRow.id > after), condition)[0 if after else 1 :]:
                row = moves.claim(connection, DeliveryRow, which, DeliveryState.SENDING, owner, lease_s, now)
                if row is not None:
                    return rows.delivery(row)
            return None

    def heartbeat(self, delivery_id: int, owner: str, attempt: int, until: datetime) -> bool:
        """Extend the lease; False if the delivery is no longer this owner's."""
        with self._db.write() as connection:
            return moves.extend(
                connection, DeliveryRow, delivery_id, DeliveryState.SENDING, owner, attempt,
                {"lease_until": until},
            )  # fmt: skip

    def outcomes(self, delivery_id: int) -> dict[str, Outcome]:
        """The last outcome of every instance that has one, by SOP Instance UID."""
        with self._db.read() as connection:
            return read_outcomes(connection, delivery_id)

    def record_outcomes(
        self, delivery_id: int, owner: str, attempt: int, outcomes: Sequence[Outcome]
    ) -> bool:
        """Write outcomes as they come; a done instance stays done. False, and nothing written, if the
        delivery is no longer this owner's."""
        with self._db.write() as connection:
            held = moves.extend(
                connection, DeliveryRow, delivery_id, DeliveryState.SENDING, owner, attempt, {"failure": ""}
            )
            if held:
                write_outcomes(connection, delivery_id, outcomes)
            return held

    def finish(
        self,
        delivery_id: int,
        owner: str,
        attempt: int,
        at: datetime,
        body: Mapping[str, Any] | None = None,
        *,
        outcomes: Sequence[Outcome] = (),
    ) -> None:
        """SENDING -> SENT, with a provenance record, once every instance is done.

        Raises
        ------
        TransitionRefused
            The delivery is no longer this owner's.
        StoreError
            Not every instance is done (R36).
        """

        def work(connection: Connection) -> None:
            moved = moves.move(
                connection, DeliveryRow, delivery_id, DeliveryState.SENT,
                fence=(owner, attempt), values={"finished_at": at, "failure": ""},
            )  # fmt: skip
            if not moved and _is_sent(connection, delivery_id, attempt):
                return  # repeated after a commit whose outcome was unknown
            moves.must(moved, f"delivery {delivery_id}")
            write_outcomes(connection, delivery_id, outcomes)
            of = connection.execute(rows.whole(DeliveryRow).where(DeliveryRow.id == delivery_id)).all()
            n_instances, n_done = progress(connection, of)[delivery_id]
            if n_done != n_instances:
                raise StoreError(f"only {n_done} of {n_instances} instances are done", retryable=False)
            tell_delivery(connection, delivery_id, "series.delivered", body or {}, at)
            open_pledge(connection, delivery_id, at)

        self._db.transact(work)

    def settle(
        self,
        delivery_id: int,
        owner: str,
        attempt: int,
        at: datetime,
        body: Mapping[str, Any] | None = None,
    ) -> Settled:
        """End a try at originals that left nothing to try now: SENDING -> SENT with a provenance record if
        the series has ended and every instance of it is done, else PENDING, and the try does not count.

        Returns
        -------
        str
            ``sent``; ``more`` if instances came meanwhile; ``waits`` for the next instance or the series' end.

        Raises
        ------
        TransitionRefused
            The delivery is no longer this owner's.
        """

        def work(connection: Connection) -> Settled:
            held = moves.extend(  # first the lock, then the look: who records an instance waits
                connection, DeliveryRow, delivery_id, DeliveryState.SENDING, owner, attempt, {"failure": ""}
            )
            if not held and _is_sent(connection, delivery_id, attempt):
                return "sent"  # repeated after a commit whose outcome was unknown
            moves.must(held, f"delivery {delivery_id}")
            of = select(DeliveryRow.series_id).where(DeliveryRow.id == delivery_id)
            series_id = connection.execute(of).scalar_one()
            if series_id is None:
                raise StoreError("a delivery of a derived series is finished, not settled", retryable=False)
            waits = originals.settle(connection, delivery_id, series_id, at)
            to = DeliveryState.SENT if waits is None else DeliveryState.PENDING
            values: Mapping[str, Any] = {"finished_at": at, "wakes": False}
            if waits is not None:
                values = {**waits, "attempt": attempt - 1}
            moves.move(connection, DeliveryRow, delivery_id, to, fence=(owner, attempt), values=values)
            if waits is not None:
                return "more" if waits["not_before"] <= at else "waits"
            tell_delivery(connection, delivery_id, "originals.delivered", body or {}, at)
            open_pledge(connection, delivery_id, at)
            return "sent"

        return self._db.transact(work)

    def retry_later(
        self,
        delivery_id: int,
        owner: str,
        attempt: int,
        not_before: datetime,
        failure: str,
        *,
        wakes: bool = False,
    ) -> bool:
        """SENDING -> PENDING until ``not_before``, or, where it ``wakes``, until the next instance of its
        series comes; False if the delivery is no longer this owner's."""
        with self._db.write() as connection:
            return moves.move(
                connection, DeliveryRow, delivery_id, DeliveryState.PENDING,
                fence=(owner, attempt), only_from=(DeliveryState.SENDING,),
                values={"not_before": not_before, "failure": rows.clean(failure), "wakes": wakes},
            )  # fmt: skip

    def fail(
        self,
        delivery_id: int,
        owner: str,
        attempt: int,
        failure: str,
        at: datetime,
        body: Mapping[str, Any] | None = None,
    ) -> bool:
        """SENDING -> FAILED, for a person; False if the delivery is no longer this owner's."""
        with self._db.write() as connection:
            moved = moves.move(
                connection, DeliveryRow, delivery_id, DeliveryState.FAILED,
                fence=(owner, attempt), values={"failure": rows.clean(failure), "finished_at": at},
            )  # fmt: skip
            if moved:
                told = {**(body or {}), "failure": rows.clean(failure)}
                tell_delivery(connection, delivery_id, "delivery.failed", told, at)
            return moved

    def release(self, delivery_id: int, owner: str, attempt: int, at: datetime) -> bool:
        """Give a delivery back unfinished (SIGTERM): PENDING at once, and the attempt does not count."""
        with self._db.write() as connection:
            return moves.move(
                connection, DeliveryRow, delivery_id, DeliveryState.PENDING,
                fence=(owner, attempt), only_from=(DeliveryState.SENDING,),
                values={"attempt": attempt - 1, "not_before": at, "wakes": False},
            )  # fmt: skip

    def postpone(self, destination: str, settings: Mapping[str, Any], until: datetime) -> int:
        """Put off all that waits for a destination with these settings until that time; returns how many. One by one
        they would be claimed and put back at each try of a destination that is away.

        The settings are those that were tried: a delivery may have been given others meanwhile.
        """
        row = DeliveryRow
        with self._db.write() as connection:
            return connection.execute(
                update(row)
                .where(
                    row.state == DeliveryState.PENDING.value,
                    row.destination == destination,
                    row.not_before < until,
                    cast(row.settings, Text) == to_json(dict(settings)),
                )
                .values(not_before=until, wakes=False)
                .execution_options(synchronize_session=False)
            ).rowcount

    def requeue_expired(self, now: datetime) -> builtins.list[int]:
        """SENDING under a lease that ran out -> PENDING; returns their ids. Claiming does not need it."""
        with self._db.write() as connection:
            return list(
                connection.execute(
                    update(DeliveryRow)
                    .where(DeliveryRow.state == DeliveryState.SENDING.value, DeliveryRow.lease_until <= now)
                    .values(state=DeliveryState.PENDING.value, lease_owner="", lease_until=None)
                    .returning(DeliveryRow.id)
                ).scalars()
            )

    def shorten_pauses(self, now: datetime, step_s: float) -> int:
        """After a step of the clock by ``step_s`` < 0: see `moves.shorten_pauses`."""
        with self._db.write() as connection:
            return moves.shorten_pauses(connection, DeliveryRow, DeliveryState.PENDING, now, step_s)

    def retry(self, delivery_id: int, at: datetime) -> None:
        """A person's retry: SENT, COMMITTED, FAILED or CANCELLED -> PENDING. A delivery that was SENT is sent anew,
        whole, and its destination asked anew to commit to it; one that failed goes on with what is missing.

        Raises
        ------
        TransitionRefused
            Also where retention has removed the instances.
        """
        with self._db.write() as connection:
            hold_files(connection)
            purged = connection.execute(
                select(func.coalesce(DerivedRow.purged_at, SeriesRow.purged_at))
                .select_from(DeliveryRow)
                .outerjoin(DerivedRow, DeliveryRow.derived_id == DerivedRow.id)
                .outerjoin(SeriesRow, DeliveryRow.series_id == SeriesRow.id)
                .where(DeliveryRow.id == delivery_id)
            ).scalar_one_or_none()
            if purged is not None:
                told = f"delivery {delivery_id}: its instances were removed by retention"
                raise TransitionRefused(told, hint="retry its job, or send the series again")
            if _is_sent(connection, delivery_id, None):
                connection.execute(
                    update(OutcomeRow)
                    .where(OutcomeRow.delivery_id == delivery_id)
                    .values(done=False, retryable=True, comment="sent anew by hand")
                )
            moved = moves.move(
                connection, DeliveryRow, delivery_id, DeliveryState.PENDING,
                only_from=(
                    DeliveryState.SENT, DeliveryState.COMMITTED, DeliveryState.FAILED, DeliveryState.CANCELLED,
                ),
                values={"attempt": 0, "not_before": at, "created_at": at, "failure": "", "finished_at": None},
            )  # fmt: skip
            moves.must(moved, f"delivery {delivery_id}")
            reset_pledge(connection, delivery_id)

    def cancel(self, delivery_id: int, at: datetime) -> None:
        """A person's end of a delivery that was not sent.

        Raises
        ------
        TransitionRefused
        """
        with self._db.write() as connection:
            moved = moves.move(
                connection, DeliveryRow, delivery_id, DeliveryState.CANCELLED, values={"finished_at": at}
            )
            moves.must(moved, f"delivery {delivery_id}")
            drop_pledge(connection, delivery_id)

    def readdress(self, destination: str, settings: Mapping[str, Any], at: datetime) -> Readdressed:
        """A person's move of all that is not sent to where a destination is now. See `outbox.readdress`."""

        def work(connection: Connection) -> Readdressed:
            return Readdressed(
                deliveries=outbox.readdress(connection, destination, settings, at),
                jobs=outbox.readdress_jobs(connection, destination, settings),
            )

        return self._db.transact(work)

    # reading --------------------------------------------------------------------------------------

    def waiting(self, destination: str) -> int:
        """How many deliveries to a destination are on their way, or sent and not committed to yet."""
        on_their_way = DeliveryRow.state.in_((DeliveryState.PENDING.value, DeliveryState.SENDING.value))
        with self._db.read() as connection:
            counted = select(func.count()).where(
                DeliveryRow.destination == destination, or_(on_their_way, awaited())
            )
            return int(connection.execute(counted).scalar_one())

    def get(self, delivery_id: int) -> Delivery | None:
        with self._db.read() as connection:
            row = connection.execute(rows.whole(DeliveryRow).where(DeliveryRow.id == delivery_id)).first()
            return rows.delivery(row) if row is not None else None

    def detail(self, delivery_id: int) -> DeliveryDetail | None:
        """A delivery with how far it is."""
        return next(iter(self.details([delivery_id])), None)

    def details(self, delivery_ids: Collection[int]) -> builtins.list[DeliveryDetail]:
        """Deliveries with how far they are, in the order of their ids given; of those that are not there, none."""
        with self._db.read() as connection:
            found = connection.execute(rows.whole(DeliveryRow).where(DeliveryRow.id.in_(list(delivery_ids))))
            by_id = {row.id: row for row in found}
            far = progress(connection, list(by_id.values()))
        return [
            DeliveryDetail(
                delivery=rows.delivery(row),
                n_instances=far[i][0],
                n_done=far[i][1],
                started_at=row.started_at,
                finished_at=row.finished_at,
            )
            for i in delivery_ids
            if (row := by_id.get(i)) is not None
        ]

    def list(
        self,
        states: Collection[DeliveryState] = (),
        *,
        destination: str | None = None,
        derived_id: int | None = None,
        series_id: int | None = None,
        limit: int = 100,
        before_id: int | None = None,
    ) -> builtins.list[Delivery]:
        """The newest first; ``before_id`` pages on. ``series_id``: of originals of this received series."""
        statement = rows.whole(DeliveryRow)
        if destination is not None:
            statement = statement.where(DeliveryRow.destination == destination)
        if derived_id is not None:
            statement = statement.where(DeliveryRow.derived_id == derived_id)
        if series_id is not None:
            statement = statement.where(DeliveryRow.series_id == series_id)
        if before_id is not None:
            statement = statement.where(DeliveryRow.id < before_id)
        with self._db.read() as connection:
            found = rows.newest(connection, statement, DeliveryRow, [s.value for s in states], limit)
        return [rows.delivery(row) for row in found]

    def counts(self) -> dict[tuple[str, DeliveryState], int]:
        """How many deliveries are in each state, by destination."""
        with self._db.read() as connection:
            found = connection.execute(
                select(DeliveryRow.destination, DeliveryRow.state, func.count()).group_by(
                    DeliveryRow.destination, DeliveryRow.state
                )
            )
            return {(destination, DeliveryState(state)): n for destination, state, n in found}

    def count(self, state: DeliveryState) -> int:
        """How many deliveries are in a state."""
        statement = select(func.count()).select_from(DeliveryRow).where(DeliveryRow.state == state.value)
        with self._db.read() as connection:
            return connection.execute(statement).scalar_one()

    def due_destinations(self, now: datetime) -> builtins.list[str]:
        """Destinations that have something to send now, the one that waits longest first."""
        return list(dict.fromkeys(name for name, _ in self.due_queues(now)))

    def due_queues(self, now: datetime) -> builtins.list[tuple[str, bool]]:
        """The queues that have something to send now, the one that waits longest first: a destination's
        name, and whether it is that of the originals."""
        condition = moves.due(DeliveryRow, DeliveryState.PENDING, DeliveryState.SENDING, now)
        of_originals = DeliveryRow.series_id.is_not(None).label("originals")
        with self._db.read() as connection:
            found = connection.execute(
                select(DeliveryRow.destination, of_originals)
                .where(condition)
                .group_by(DeliveryRow.destination, of_originals)
                .order_by(func.min(DeliveryRow.not_before), DeliveryRow.destination, of_originals)
            )
            return [(name, bool(originals)) for name, originals in found]

    def cargo(self, delivery: Delivery) -> Cargo | None:
        """What is to be sent of a delivery; None if its series is no longer on record."""
        with self._db.read() as connection:
            if delivery.series_id is not None:
                return originals.cargo(connection, delivery.id, delivery.series_id)
            made = read_derived(connection, DerivedRow.id == delivery.derived_id)
            if not made:
                return None
            return Cargo(
                series_uid=made[0].series_uid,
                instances=made[0].instances,
                known=read_outcomes(connection, delivery.id),
                n_instances=len(made[0].instances),
            )

    def derived(self, derived_id: int | None) -> DerivedSeries | None:
        """A derived series with its instances, in the order in which they were derived."""
        return None if derived_id is None else next(iter(self._derived(DerivedRow.id == derived_id)), None)

    def derived_by_series_uid(self, series_uid: str) -> builtins.list[DerivedSeries]:
        """Derived series of this UID; more than one when late instances were appended to it."""
        return self._derived(DerivedRow.series_uid == series_uid)

    def derived_of_job(self, job_id: int) -> DerivedSeries | None:
        """What a job made."""
        return next(iter(self._derived(DerivedRow.job_id == job_id)), None)

    def derived_of_series(self, source_series_uid: str) -> builtins.list[DerivedSeries]:
        """All that was derived from a received series, over all generations, senders and jobs."""
        jobs = (
            select(JobRow.id)
            .join(SeriesRow, SeriesRow.id == JobRow.series_id)
            .where(SeriesRow.series_uid == source_series_uid)
        )
        return self._derived(DerivedRow.job_id.in_(jobs))

    def _derived(self, *where: Any) -> builtins.list[DerivedSeries]:
        with self._db.read() as connection:
            return read_derived(connection, *where)


def _is_sent(connection: Connection, delivery_id: int, attempt: int | None) -> bool:
    statement = select(DeliveryRow.id).where(
        DeliveryRow.id == delivery_id,
        DeliveryRow.state.in_((DeliveryState.SENT.value, DeliveryState.COMMITTED.value)),
    )
    if attempt is not None:
        statement = statement.where(DeliveryRow.attempt == attempt)
    return connection.execute(statement).first() is not None
