"""State transitions: each is one compare-and-swap UPDATE, checked against the tables of node/model.py.

Whoever works on a row holds a lease: its owner's name, the attempt's number and a time until which it is
theirs. Owner and attempt are the fence: once another worker took over, every write of the first is
refused, however late it comes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Connection, and_, or_, select, update

from node.errors import TransitionRefused
from node.model import DELIVERY_EDGES, JOB_EDGES, SERIES_EDGES, DeliveryState, JobState, SeriesState
from node.store.clock import WATCH
from node.store.rows import AnyRow
from node.store.tables import DeliveryRow, JobRow, SeriesRow

S = TypeVar("S", bound=StrEnum)
Leased = type[JobRow] | type[DeliveryRow]


def sources(edges: Mapping[S, Collection[S]], to: S) -> list[str]:
    """The states from which an edge leads to ``to``."""
    return [state.value for state, next_states in edges.items() if to in next_states]


def move_series(connection: Connection, series_id: int, to: SeriesState, *where: Any, **values: Any) -> bool:
    """Move a series along an edge; False if it is in no state that leads there, or ``where`` fails."""
    return bool(
        connection.execute(
            update(SeriesRow)
            .where(SeriesRow.id == series_id, SeriesRow.state.in_(sources(SERIES_EDGES, to)), *where)
            .values(state=to.value, **values)
        ).rowcount
    )


def _edges(table: Leased, to: StrEnum) -> list[str]:
    if isinstance(to, JobState):
        return sources(JOB_EDGES, to)
    assert isinstance(to, DeliveryState)
    return sources(DELIVERY_EDGES, to)


def move(
    connection: Connection,
    table: Leased,
    row_id: int,
    to: JobState | DeliveryState,
    *,
    fence: tuple[str, int] | None = None,
    only_from: Collection[StrEnum] | None = None,
    values: Mapping[str, Any] | None = None,
) -> bool:
    """Move a job or a delivery along an edge and drop its lease; False if that is not possible now.

    Parameters
    ----------
    fence
        (owner, attempt) that must still hold the lease; None for a person's move.
    only_from
        Narrows the states that may be left.
    """
    states = _edges(table, to)
    if only_from is not None:
        states = [s for s in states if s in {o.value for o in only_from}]
    statement = update(table).where(table.id == row_id, table.state.in_(states))
    if fence is not None:
        statement = statement.where(table.lease_owner == fence[0], table.attempt == fence[1])
    changed = {"state": to.value, "lease_owner": "", "lease_until": None, **(values or {})}
    return bool(connection.execute(statement.values(**changed)).rowcount)


def must(moved: bool, what: str) -> None:
    """Raise `TransitionRefused` unless a row was moved."""
    if not moved:
        raise TransitionRefused(
            f"{what} was moved by somebody else, or is in no state that allows this", hint="read it again"
        )


_FAR = timedelta(days=1)
"""No pause and no lease is as long as this: a time further ahead was written while the clock was wrong."""


def due(table: Leased, waiting: StrEnum, working: StrEnum, now: datetime) -> Any:
    """Condition: waiting and due, or being worked on under a lease that ran out (R53: or set by a clock that
    was ahead, and was put right since).

    Right after a step of the clock no lease counts as run out: its holder may just not have beaten since.
    """
    waits = and_(table.state == waiting.value, or_(table.not_before <= now, table.not_before > now + _FAR))
    if not WATCH.settled:
        return waits
    ran_out = or_(table.lease_until <= now, table.lease_until > now + _FAR)
    return or_(waits, and_(table.state == working.value, ran_out))


def shorten_pauses(
    connection: Connection, table: Leased, waiting: StrEnum, now: datetime, step_s: float
) -> int:
    """The clock was put back by ``-step_s`` seconds: what waits for a time is due that much earlier; returns how
    much of it there is. What was put off by the new clock already is only tried sooner."""
    step = timedelta(seconds=step_s)
    ahead = select(table.id, table.not_before).where(table.state == waiting.value, table.not_before > now)
    found = connection.execute(ahead).all()
    for row in found:
        connection.execute(
            update(table)
            .where(table.id == row.id, table.state == waiting.value)
            .values(not_before=max(now, row.not_before + step))
        )
    return len(found)


def claim(
    connection: Connection,
    table: Leased,
    condition: Any,
    working: StrEnum,
    owner: str,
    lease_s: float,
    now: datetime,
) -> AnyRow | None:
    """Take a row that is due, the first that was made (R29): attempt + 1 and a new lease, in one UPDATE.

    PostgreSQL: SKIP LOCKED, so that claimers never wait for each other. SQLite: the transaction holds
    the write lock from its beginning.
    """
    # By the bare id PostgreSQL walks through all that was ever done until it comes to what waits.
    first = table.id + 0
    oldest = select(table.id).where(condition).order_by(first).limit(1).with_for_update(skip_locked=True)
    return connection.execute(
        update(table)
        .where(table.id == oldest.scalar_subquery(), condition)
        .values(
            state=working.value,
            attempt=table.attempt + 1,
            lease_owner=owner,
            lease_until=now + timedelta(seconds=lease_s),
            started_at=now,
        )
        .returning(*table.__table__.columns)
        .execution_options(synchronize_session=False)
    ).first()


def extend(
    connection: Connection,
    table: Leased,
    row_id: int,
    working: StrEnum,
    owner: str,
    attempt: int,
    values: Mapping[str, Any],
) -> bool:
    """Heartbeat: write ``values`` if the lease is still this owner's."""
    return bool(
        connection.execute(
            update(table)
            .where(
                table.id == row_id,
                table.state == working.value,
                table.lease_owner == owner,
                table.attempt == attempt,
            )
            .values(**values)
        ).rowcount
    )
