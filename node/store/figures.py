"""How much there is of what, for whoever watches the node: few rows looked at, all of them by an index.

What waits or failed is counted as it is. What is finished is not counted, for there is ever more of it: instances
are summed up from where the last look ended (`Settled`), and all else that is done is told by the provenance, whose
records are numbered without gaps and never change (`history`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select

from node.model import CommitmentState, DeliveryState, JobState, PledgeState, SeriesState
from node.store import rows
from node.store.db import Database
from node.store.tables import (
    ChainRow,
    CommitmentRow,
    DeliveryRow,
    DerivedRow,
    JobRow,
    PledgeRow,
    ProvenanceRow,
    SeriesRow,
)

_UNDECIDED = (SeriesState.OPEN, SeriesState.CLOSED)
UNFINISHED = tuple(s.value for s in (JobState.QUEUED, JobState.RUNNING, JobState.HELD, JobState.FAILED))
UNSENT = tuple(s.value for s in (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.FAILED))
"""States of jobs and deliveries that are counted as they are."""

UNPLEDGED = tuple(s.value for s in (PledgeState.DUE, PledgeState.ASKED, PledgeState.RESENT))
_TOLD_FOR = timedelta(days=7)
"""How long an uncommitted delivery is told of: nobody may be left to see to it."""

_WAITING = (DeliveryState.PENDING.value, DeliveryState.SENDING.value)
_YOUNG_S = 60.0
"""Series that an instance came for within so long are not settled: a transaction may be on its way yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Instances and bytes of the series up to ``series``, which get no more; of those before, nobody counted."""

    series: int
    instances: int = 0
    n_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Deliveries of one kind to one destination in one state; ``oldest`` of those that wait for the destination."""

    n: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A look at the database.

    Attributes
    ----------
    instances, n_bytes
        Received since ``settled`` began to be counted.
    series
        By state; those that are decided are left out.
    jobs
        By engine and state; those that are done or cancelled are left out. ``oldest_job`` waits longest.
    deliveries
        By destination, whether originals, and state; those that are sent or cancelled are left out.
    commitments
        By state.
    pledges
        What destinations are asked to commit to, by destination and state; GIVEN_UP for a week.
    """

    instances: int
    n_bytes: int
    settled: Settled
    series: Mapping[str, int]
    jobs: Mapping[tuple[str, str], int]
    oldest_job: datetime | None
    deliveries: Mapping[tuple[str, bool, str], Waiting]
    commitments: Mapping[str, int]
    pledges: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in the provenance: the number of a record and its hash; 0 is before the first."""

    id: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When the steps of a delivered series were done; None where one was not."""

    last_received: datetime
    closed: datetime | None
    job_started: datetime | None
    job_finished: datetime | None
    sending: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """A record of the provenance. ``engine`` is that of its job, ``times`` those of what was delivered."""

    id: int
    at: datetime
    kind: str
    body: Mapping[str, Any]
    engine: str = ""
    times: Times | None = None


class FigureStore:
    """Looks; changes nothing.

    Parameters
    ----------
    database
        Any of the node's; its schema is taken to be up to date.
    """

    def __init__(self, database: Database) -> None:
        self._db = database

    def begin(self) -> tuple[Settled, Place]:
        """Where somebody begins who counts from now on."""
        with self._db.read() as connection:
            last = connection.execute(select(func.max(SeriesRow.id))).scalar_one() or 0
            return Settled(series=last), _head(connection)

    def look(self, settled: Settled, now: datetime) -> Figures:
        """Count.

        Parameters
        ----------
        settled
            What an earlier look, of this process or another, gave back.
        now
            Time of day.
        """
        with self._db.read() as connection:
            after, settled = _received(connection, settled, now)
            return Figures(
                instances=settled.instances + after[0],
                n_bytes=settled.n_bytes + after[1],
                settled=settled,
                series=_by_state(connection, SeriesRow, _UNDECIDED),
                jobs=_jobs(connection),
                oldest_job=connection.execute(
                    select(func.min(JobRow.created_at)).where(JobRow.state == JobState.QUEUED.value)
                ).scalar_one(),
                deliveries=_deliveries(connection),
                commitments=_by_state(connection, CommitmentRow, tuple(CommitmentState)),
                pledges=_pledges(connection, now),
            )

    def history(self, after: Place, limit: int) -> tuple[Sequence[Happening], Place]:
        """What was recorded after a place, oldest first, at most ``limit`` records; and how far that leads.

        Where that place is no more, because the database was made anew or restored, it leads to the end.
        """
        with self._db.read() as connection:
            if not _holds(connection, after):
                return (), _head(connection)
            found = connection.execute(
                rows.whole(ProvenanceRow)
                .where(ProvenanceRow.id > after.id)
                .order_by(ProvenanceRow.id)
                .limit(limit)
            ).all()
            if not found:
                return (), after
            told = [(row, json.loads(zlib.decompress(row.document))["body"]) for row in found]
            engines = _engines(connection, (body.get("job") for _, body in told))
            times = _times(connection, [b["delivery"] for _, b in told if "delivery" in b and "derived" in b])
        happenings = [
            Happening(
                id=row.id,
                at=row.at,
                kind=row.kind,
                body=body,
                engine=engines.get(body.get("job", 0), ""),
                times=times.get(body.get("delivery", 0)),
            )
            for row, body in told
        ]
        return happenings, Place(id=found[-1].id, hash=found[-1].hash)

    def kept_bytes(self) -> int:
        """Bytes of received instances in the spool. It goes through all of their series: not to be asked often."""
        kept = select(func.sum(SeriesRow.size)).where(SeriesRow.purged_at.is_(None))
        with self._db.read() as connection:
            return int(connection.execute(kept).scalar_one() or 0)


def _received(connection: Connection, settled: Settled, now: datetime) -> tuple[tuple[int, int], Settled]:
    """Instances and bytes of the series after those that are settled, and what is settled by now."""
    # By the bare id a planner may walk through all there is until it comes to one that is young.
    young = select(func.min(SeriesRow.id + 0)).where(
        SeriesRow.purged_at.is_(None), SeriesRow.last_received_at > now - timedelta(seconds=_YOUNG_S)
    )
    growing = select(func.min(SeriesRow.id)).where(SeriesRow.state == SeriesState.OPEN.value)
    last = connection.execute(select(func.max(SeriesRow.id))).scalar_one() or 0
    bounds: list[int | None] = [connection.execute(q).scalar_one() for q in (young, growing)]
    upto = max(settled.series, min([last, *(bound - 1 for bound in bounds if bound is not None)]))
    done = _sum(connection, settled.series, upto)
    settled = Settled(series=upto, instances=settled.instances + done[0], n_bytes=settled.n_bytes + done[1])
    return _sum(connection, upto, last), settled


def _sum(connection: Connection, after: int, upto: int) -> tuple[int, int]:
    if upto <= after:
        return 0, 0
    found = connection.execute(
        select(func.sum(SeriesRow.count), func.sum(SeriesRow.size)).where(
            SeriesRow.id > after, SeriesRow.id <= upto
        )
    ).one()
    return int(found[0] or 0), int(found[1] or 0)


def _by_state(connection: Connection, table: Any, states: Sequence[Any]) -> dict[str, int]:
    found = connection.execute(
        select(table.state, func.count())
        .where(table.state.in_([s.value for s in states]))
        .group_by(table.state)
    ).all()
    return {s.value: 0 for s in states} | rows.pairs(found)


def _jobs(connection: Connection) -> dict[tuple[str, str], int]:
    found = connection.execute(
        select(JobRow.engine, JobRow.state, func.count())
        .where(JobRow.state.in_(UNFINISHED))
        .group_by(JobRow.engine, JobRow.state)
    )
    return {(engine, state): n for engine, state, n in found}


def _pledges(connection: Connection, now: datetime) -> dict[tuple[str, str], int]:
    wanted = or_(
        PledgeRow.state.in_(UNPLEDGED),
        and_(PledgeRow.state == PledgeState.GIVEN_UP.value, PledgeRow.give_up_at > now - _TOLD_FOR),
    )
    found = select(PledgeRow.destination, PledgeRow.state, func.count()).where(wanted)
    grouped = connection.execute(found.group_by(PledgeRow.destination, PledgeRow.state))
    return {(destination, state): n for destination, state, n in grouped}


def _deliveries(connection: Connection) -> dict[tuple[str, bool, str], Waiting]:
    """One that ``wakes`` waits for its series, not for its destination."""
    originals = DeliveryRow.series_id.is_not(None).label("originals")
    which = (DeliveryRow.destination, originals, DeliveryRow.state)
    counts = connection.execute(
        select(*which, func.count()).where(DeliveryRow.state.in_(UNSENT)).group_by(*which)
    ).all()
    oldest = connection.execute(
        select(*which, func.min(DeliveryRow.created_at))
        .where(DeliveryRow.state.in_(_WAITING), DeliveryRow.wakes.is_(False))
        .group_by(*which)
    ).all()
    since = {(name, bool(o), state): at for name, o, state, at in oldest}
    return {
        (name, bool(o), state): Waiting(n=n, oldest=since.get((name, bool(o), state)))
        for name, o, state, n in counts
    }


def _head(connection: Connection) -> Place:
    chain = connection.execute(select(ChainRow.head, ChainRow.hash).where(ChainRow.id == 1)).first()
    return Place(id=chain.head, hash=chain.hash) if chain is not None else Place(id=0, hash="")


def _holds(connection: Connection, place: Place) -> bool:
    if place.id == 0:
        return True
    found = connection.execute(
        select(ProvenanceRow.hash).where(ProvenanceRow.id == place.id)
    ).scalar_one_or_none()
    return found == place.hash


def _engines(connection: Connection, jobs: Iterable[int | None]) -> dict[int, str]:
    wanted = {job for job in jobs if job is not None}
    found = select(JobRow.id, JobRow.engine).where(JobRow.id.in_(wanted))
    return rows.pairs(connection.execute(found).all()) if wanted else {}


def _times(connection: Connection, delivered: Sequence[int]) -> dict[int, Times]:
    """By the id of the delivery, of a derived series."""
    if not delivered:
        return {}
    found = connection.execute(
        select(
            DeliveryRow.id,
            SeriesRow.last_received_at,
            SeriesRow.closed_at,
            JobRow.started_at,
            JobRow.finished_at,
            DeliveryRow.started_at.label("sending"),
        )
        .join(DerivedRow, DerivedRow.id == DeliveryRow.derived_id)
        .join(JobRow, JobRow.id == DerivedRow.job_id)
        .join(SeriesRow, SeriesRow.id == JobRow.series_id)
        .where(DeliveryRow.id.in_(delivered))
    )
    return {
        row.id: Times(
            last_received=row.last_received_at,
            closed=row.closed_at,
            job_started=row.started_at,
            job_finished=row.finished_at,
            sending=row.sending,
        )
        for row in found
    }
