"""The queue of enhancements: claimed by lease, kept by heartbeat, fenced by owner and attempt."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select

from node.errors import StoreError, TransitionRefused
from node.model import Job, JobState
from node.store import events, moves, outbox, provenance, rows
from node.store.db import Database
from node.store.dialect import hold_files
from node.store.outbox import NewDerived as NewDerived
from node.store.spool import Spool
from node.store.tables import DerivedRow, JobRow, SeriesRow


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be queued. ``destinations`` maps each destination's name to its settings as they are now
    (its kind included): what is queued goes there whatever becomes of config.yaml (R37)."""

    rule: str
    engine: str
    params: Mapping[str, Any]
    destinations: Mapping[str, Mapping[str, Any]]
    derivation_key: str
    only_after_generation: int = 0
    revision: int = 1
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetail:
    """A job with what a person asks about it. ``progress`` is what the last heartbeat told."""

    job: Job
    progress: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    started_at: datetime | None
    finished_at: datetime | None
    derived_id: int | None


class Jobs:
    """`Store.jobs`."""

    def __init__(self, database: Database, spool: Spool) -> None:
        self._db = database
        self._spool = spool

    def claim(
        self, owner: str, lease_s: float, now: datetime, *, exclude_engines: Collection[str] = ()
    ) -> Job | None:
        """Take the oldest job that is due: QUEUED and ``not_before`` <= now, or RUNNING under a lease
        that ran out. Its attempt is counted up; exactly one claimer gets it.

        Parameters
        ----------
        owner
            Names the worker; unique among all processes and threads that live.
        lease_s
            Seconds until another may take over, unless `heartbeat` extends it.
        exclude_engines
            Entries of ``engines:`` not to be taken now.
        """
        condition = moves.due(JobRow, JobState.QUEUED, JobState.RUNNING, now)
        if exclude_engines:
            condition = condition & JobRow.engine.not_in(list(exclude_engines))
        if not self._any(condition):  # the usual case costs no write lock
            return None
        with self._db.write() as connection:
            row = moves.claim(connection, JobRow, condition, JobState.RUNNING, owner, lease_s, now)
            return rows.job(row) if row is not None else None

    def heartbeat(
        self,
        job_id: int,
        owner: str,
        attempt: int,
        until: datetime,
        progress: Mapping[str, Any] | None = None,
    ) -> bool:
        """Extend the lease and tell the progress; False if the job is no longer this owner's."""
        values: dict[str, Any] = {"lease_until": until}
        if progress is not None:
            values["progress"] = dict(progress)
        with self._db.write() as connection:
            return moves.extend(connection, JobRow, job_id, JobState.RUNNING, owner, attempt, values)

    def finish(
        self,
        job_id: int,
        owner: str,
        attempt: int,
        derived: NewDerived,
        body: Mapping[str, Any],
        at: datetime,
        *,
        deliveries: Sequence[tuple[str, Mapping[str, Any]]] | None = None,
    ) -> int:
        """RUNNING -> DONE with all that follows from it, in one transaction; returns the derived id.

        Derived series and instances, one delivery per destination (the outbox) and a provenance record
        are written together or not at all. Repeating the call, as after a commit whose outcome is
        unknown, or finishing a job that was run again, adds nothing twice.

        Parameters
        ----------
        body
            Provenance: engine, card, weights, versions, device, timings, figures. The store adds the
            digests of source and derived instances.
        deliveries
            (destination, settings); None for those that the job was queued with.

        Raises
        ------
        TransitionRefused
            The job is no longer this owner's: whatever was computed is not to be used.
        StoreError
            A derived file is not in the spool; the job stays as it is.
        """

        def work(connection: Connection) -> int:
            done = connection.execute(
                select(DerivedRow.id)
                .join(JobRow, JobRow.id == DerivedRow.job_id)
                .where(JobRow.id == job_id, JobRow.state == JobState.DONE.value, JobRow.attempt == attempt)
            ).scalar_one_or_none()
            if done is not None:
                return done
            moved = moves.move(
                connection, JobRow, job_id, JobState.DONE,
                fence=(owner, attempt), values={"finished_at": at, "failure": ""},
            )  # fmt: skip
            moves.must(moved, f"job {job_id}")
            for one in derived.instances:
                if not self._spool.exists(one.path):
                    raise StoreError("a derived file vanished from the spool before it was recorded")
            job = connection.execute(rows.whole(JobRow).where(JobRow.id == job_id)).one()
            derived_id = outbox.write_derived(connection, job_id, derived, at)
            wanted = list(job.destinations.items()) if deliveries is None else list(deliveries)
            outbox.write_deliveries(connection, derived_id, wanted, at)
            outbox.tell_derivation(connection, job, derived, derived_id, [d for d, _ in wanted], body, at)
            return derived_id

        return self._db.transact(work)

    def fail(
        self,
        job_id: int,
        owner: str,
        attempt: int,
        failure: str,
        state: JobState,
        at: datetime,
        *,
        not_before: datetime | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> bool:
        """End an attempt without a result: RUNNING -> QUEUED (again at ``not_before``), HELD or FAILED.

        ``failure`` is one sentence without patient data. A provenance record is written for HELD and
        FAILED. False if the job is no longer this owner's.
        """
        values: dict[str, Any] = {"failure": rows.clean(failure)}
        if state is JobState.QUEUED:
            values["not_before"] = not_before or at
        else:
            values["finished_at"] = at
        with self._db.write() as connection:
            moved = moves.move(
                connection, JobRow, job_id, state,
                fence=(owner, attempt), only_from=(JobState.RUNNING,), values=values,
            )  # fmt: skip
            if moved and state is not JobState.QUEUED:
                _tell_failure(connection, job_id, state, failure, body or {}, at)
            return moved

    def release(self, job_id: int, owner: str, attempt: int, at: datetime) -> bool:
        """Give a job back unfinished (SIGTERM): QUEUED at once, and the attempt does not count."""
        with self._db.write() as connection:
            return moves.move(
                connection, JobRow, job_id, JobState.QUEUED,
                fence=(owner, attempt), only_from=(JobState.RUNNING,),
                values={"attempt": attempt - 1, "not_before": at},
            )  # fmt: skip

    def requeue_expired(self, now: datetime, *, max_attempts: int | None = None) -> list[int]:
        """RUNNING under a lease that ran out -> QUEUED; returns their ids. Claiming does not need it.

        With ``max_attempts`` a job whose every worker vanished that often is HELD instead: it may well be
        what ends them.
        """
        with self._db.write() as connection:
            expired = connection.execute(
                select(JobRow.id, JobRow.lease_owner, JobRow.attempt)
                .where(JobRow.state == JobState.RUNNING.value, JobRow.lease_until <= now)
                .with_for_update(skip_locked=True)
            ).all()
            for row in expired:
                held = max_attempts is not None and row.attempt >= max_attempts
                failure = f"its worker vanished {row.attempt} times" if held else "its worker vanished"
                moves.move(
                    connection, JobRow, row.id, JobState.HELD if held else JobState.QUEUED,
                    fence=(row.lease_owner, row.attempt), values={"failure": failure},
                )  # fmt: skip
                if held:
                    _tell_failure(connection, row.id, JobState.HELD, failure, {}, now)
            return [row.id for row in expired]

    def shorten_pauses(self, now: datetime, step_s: float) -> int:
        """After a step of the clock by ``step_s`` < 0: see `moves.shorten_pauses`."""
        with self._db.write() as connection:
            return moves.shorten_pauses(connection, JobRow, JobState.QUEUED, now, step_s)

    def retry(self, job_id: int, at: datetime) -> None:
        """A person's retry: DONE, FAILED, HELD or CANCELLED -> QUEUED, attempts counted afresh.

        Raises
        ------
        TransitionRefused
            Also where retention has removed the received instances.
        """
        with self._db.write() as connection:
            hold_files(connection)  # retention waits, and then sees what was asked for here
            purged = connection.execute(
                select(SeriesRow.purged_at)
                .join(JobRow, JobRow.series_id == SeriesRow.id)
                .where(JobRow.id == job_id)
            ).scalar_one_or_none()
            if purged is not None:
                told = f"job {job_id}: its received instances were removed by retention"
                raise TransitionRefused(told, hint="send the series again")
            values = {"attempt": 0, "not_before": at, "failure": "", "finished_at": None, "progress": None}
            moved = moves.move(connection, JobRow, job_id, JobState.QUEUED, only_from=_ENDED, values=values)
            moves.must(moved, f"job {job_id}")

    def cancel(self, job_id: int, at: datetime) -> None:
        """A person's end of a job in any state but DONE; what runs notices at its next heartbeat.

        Raises
        ------
        TransitionRefused
        """
        with self._db.write() as connection:
            moved = moves.move(connection, JobRow, job_id, JobState.CANCELLED, values={"finished_at": at})
            moves.must(moved, f"job {job_id}")

    def get(self, job_id: int) -> Job | None:
        with self._db.read() as connection:
            row = connection.execute(rows.whole(JobRow).where(JobRow.id == job_id)).first()
            return rows.job(row) if row is not None else None

    def detail(self, job_id: int) -> JobDetail | None:
        """A job with its progress, its destinations' settings and what came of it."""
        with self._db.read() as connection:
            row = connection.execute(rows.whole(JobRow).where(JobRow.id == job_id)).first()
            if row is None:
                return None
            derived_id = connection.execute(
                select(DerivedRow.id).where(DerivedRow.job_id == job_id)
            ).scalar_one_or_none()
            return JobDetail(
                job=rows.job(row),
                progress=row.progress or {},
                settings=row.destinations,
                started_at=row.started_at,
                finished_at=row.finished_at,
                derived_id=derived_id,
            )

    def list(
        self,
        states: Collection[JobState] = (),
        *,
        series_id: int | None = None,
        limit: int = 100,
        before_id: int | None = None,
    ) -> builtins.list[Job]:
        """The newest first; ``before_id`` pages on."""
        statement = rows.whole(JobRow)
        if series_id is not None:
            statement = statement.where(JobRow.series_id == series_id)
        if before_id is not None:
            statement = statement.where(JobRow.id < before_id)
        with self._db.read() as connection:
            found = rows.newest(connection, statement, JobRow, [s.value for s in states], limit)
        return [rows.job(row) for row in found]

    def by_key(self, derivation_key: str) -> builtins.list[Job]:
        """All jobs with this derivation key."""
        statement = rows.whole(JobRow).where(JobRow.derivation_key == derivation_key).order_by(JobRow.id)
        with self._db.read() as connection:
            return [rows.job(row) for row in connection.execute(statement)]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        with self._db.read() as connection:
            found = connection.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
            return {JobState(state): n for state, n in found}

    def count(self, state: JobState) -> int:
        """How many jobs are in a state."""
        statement = select(func.count()).select_from(JobRow).where(JobRow.state == state.value)
        with self._db.read() as connection:
            return connection.execute(statement).scalar_one()

    def oldest_due(self, now: datetime) -> datetime | None:
        """Since when the job at the head of the queue has been due; None if none is (a watchdog's figure)."""
        with self._db.read() as connection:
            return connection.execute(
                select(func.min(JobRow.not_before)).where(
                    JobRow.state == JobState.QUEUED.value, JobRow.not_before <= now
                )
            ).scalar_one_or_none()

    def _any(self, condition: Any) -> bool:
        with self._db.read() as connection:
            return connection.execute(select(JobRow.id).where(condition).limit(1)).first() is not None


_ENDED = (JobState.DONE, JobState.FAILED, JobState.HELD, JobState.CANCELLED)


def insert_job(connection: Connection, series_id: int, new: NewJob, config_digest: str, at: datetime) -> int:
    """Queue a job inside a transaction; one that is there under the same key is queued again if a person
    had it decided afresh, never doubled."""
    due = new.not_before or at
    known = connection.execute(
        select(JobRow.id).where(JobRow.series_id == series_id, JobRow.derivation_key == new.derivation_key)
    ).scalar_one_or_none()
    values = {
        "rule": new.rule,
        "engine": new.engine,
        "params": dict(new.params),
        "destinations": {name: dict(settings) for name, settings in new.destinations.items()},
        "only_after_generation": new.only_after_generation,
        "revision": new.revision,
        "config_digest": config_digest,
    }
    if known is not None:
        moves.move(
            connection, JobRow, known, JobState.QUEUED,
            only_from=_ENDED,
            values={**values, "attempt": 0, "not_before": due, "failure": "", "finished_at": None},
        )  # fmt: skip
        return known
    job_id: int = connection.execute(
        insert(JobRow)
        .values(
            series_id=series_id,
            derivation_key=new.derivation_key,
            state=JobState.QUEUED.value,
            attempt=0,
            not_before=due,
            created_at=at,
            **values,
        )
        .returning(JobRow.id)
    ).scalar_one()
    return job_id


def supersede_jobs(connection: Connection, series_id: int, keep: Collection[int], at: datetime) -> None:
    """Cancel what waits of an earlier decision about a series, but for the jobs of the new one."""
    waiting = (JobState.QUEUED, JobState.HELD)
    found = select(JobRow.id).where(
        JobRow.series_id == series_id,
        JobRow.id.not_in(list(keep)),
        JobRow.state.in_([s.value for s in waiting]),
    )
    values = {"finished_at": at, "failure": "superseded by a new decision"}
    for job_id in connection.execute(found).scalars().all():
        moves.move(connection, JobRow, job_id, JobState.CANCELLED, only_from=waiting, values=values)


def _tell_failure(
    connection: Connection, job_id: int, state: JobState, failure: str, body: Mapping[str, Any], at: datetime
) -> None:
    row = connection.execute(
        select(JobRow.series_id, JobRow.attempt, JobRow.engine, SeriesRow.study_uid, SeriesRow.series_uid)
        .join(SeriesRow, SeriesRow.id == JobRow.series_id)
        .where(JobRow.id == job_id)
    ).one()
    document = {**body, "job": job_id, "state": state.value, "failure": failure, "attempt": row.attempt}
    provenance.append(connection, f"job.{state.value.lower()}", (row.study_uid, row.series_uid), document, at)
    told = {"job": job_id, "engine": row.engine, "failure": failure}
    events.add(connection, "error", f"job.{state.value.lower()}", told, at, series_id=row.series_id)
