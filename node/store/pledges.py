"""What destinations commit to: asked for once all of a delivery is there, kept until they have answered (PS3.4 J).

A delivery is SENT by the word of its C-STORE responses, and COMMITTED by that of the destination's storage commitment.
What it says it does not hold is sent again, a few times; then it is for a person.
"""

from __future__ import annotations

import builtins
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Text, and_, cast, delete, exists, or_, select, update
from sqlalchemy.orm import aliased

from node.dicom.commitment import Reference, Told
from node.model import DeliveryState, Pledge, PledgeState
from node.store import events, moves, owners, rows
from node.store.clock import WATCH
from node.store.db import Database
from node.store.dialect import hold_files, upsert
from node.store.outcomes import instances_of, tell_delivery
from node.store.tables import AskedRow, DeliveryRow, OutcomeRow, PledgeRow

MOST_ROUNDS: Final = 3
"""So often what is missing is sent again, before it is for a person."""

SOON: Final = timedelta(seconds=2)
"""After the last C-STORE response: many a PACS looks at what it got only when the association has ended."""

ONCE_MORE: Final = timedelta(hours=1)
"""For the answer of a destination whose time ran out while this node was away."""

_FAR: Final = timedelta(days=31)
_VOID: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""When a request was made whose answer says nothing any more. No clock is asked: two hosts have two."""

_OPEN: Final = (PledgeState.DUE.value, PledgeState.ASKED.value, PledgeState.RESENT.value)
_WAITS: Final = (PledgeState.DUE.value, PledgeState.ASKED.value)

Answer = Literal["committed", "resent", "given_up", "stale", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A request that is to be made now, under a Transaction UID that is on record already."""

    delivery_id: int
    destination: str
    settings: Mapping[str, Any]
    transaction_uid: str
    references: tuple[Reference, ...]
    attempt: int
    failure: str


class Pledges:
    """`Store.pledges`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def due(self, now: datetime) -> builtins.list[str]:
        """Destinations that are to be asked for something now."""
        with self._db.read() as connection:
            found = select(PledgeRow.destination).where(_due(now)).distinct()
            return sorted(connection.execute(found).scalars())

    def claim(
        self, destination: str, transaction_uid: str, owner: str, lease_s: float, now: datetime
    ) -> Asking | None:
        """Take one that is due at a destination, and write down the Transaction UID that it is asked with.

        What was not answered by the time that it was to be is asked for again.
        """
        condition = and_(_due(now), PledgeRow.destination == destination)
        oldest = select(PledgeRow.delivery_id).where(condition).order_by(PledgeRow.not_before).limit(1)
        with self._db.write() as connection:
            if connection.dialect.name == "postgresql":
                oldest = oldest.with_for_update(skip_locked=True)
            delivery_id = connection.execute(oldest).scalar_one_or_none()
            if delivery_id is None:
                return None
            until = now + timedelta(seconds=lease_s)
            row = connection.execute(
                update(PledgeRow)
                .where(PledgeRow.delivery_id == delivery_id)
                .values(state=PledgeState.DUE.value, lease_owner=owner, lease_until=until)
                .returning(PledgeRow.attempt, PledgeRow.failure)
                .execution_options(synchronize_session=False)
            ).one()
            connection.execute(
                upsert(connection, AskedRow).values(
                    transaction_uid=transaction_uid, delivery_id=delivery_id, at=now
                )
            )
            of = connection.execute(
                select(DeliveryRow.settings).where(DeliveryRow.id == delivery_id)
            ).scalar_one()
            table, mine = instances_of(connection, delivery_id)
            found = select(table.sop_class_uid, table.sop_instance_uid).where(mine).order_by(table.id)
            references = tuple((c, i) for c, i in connection.execute(found))
        return Asking(
            delivery_id=delivery_id,
            destination=destination,
            settings=of,
            transaction_uid=transaction_uid,
            references=references,
            attempt=row.attempt,
            failure=row.failure,
        )

    def asked(self, one: Asking, owner: str, now: datetime, again_at: datetime) -> bool:
        """DUE -> ASKED: the destination has taken the request. False if it has answered already."""
        return self._move(
            one, owner, state=PledgeState.ASKED.value, not_before=again_at, asked_at=now,
            attempt=one.attempt + 1, failure="",
        )  # fmt: skip

    def later(self, one: Asking, owner: str, until: datetime, failure: str, *, alone: bool = False) -> bool:
        """The destination did not take the request: it waits until then.

        Parameters
        ----------
        alone
            The destination is there, and it is this request that it did not take. Else all that is to be asked at the
            same address waits as well.
        """
        moved = self._move(one, owner, not_before=until, failure=rows.clean(failure), attempt=one.attempt + 1)
        if alone or not moved:
            return moved
        theirs, its = aliased(DeliveryRow), aliased(DeliveryRow)
        where = select(cast(its.settings, Text)).where(its.id == one.delivery_id).scalar_subquery()
        with self._db.write() as connection:
            others = and_(
                PledgeRow.destination == one.destination,
                PledgeRow.state.in_(_WAITS),
                PledgeRow.lease_until.is_(None),
                PledgeRow.not_before < until,
                exists().where(theirs.id == PledgeRow.delivery_id, cast(theirs.settings, Text) == where),
            )
            connection.execute(update(PledgeRow).where(others).values(not_before=until))
        return moved

    def resume(self, now: datetime) -> int:
        """What nobody was here to hear about when its time ran out is asked for once more; returns for how many.

        For a process that begins: after a long absence all that waits would be given up unasked.
        """
        late = and_(PledgeRow.state.in_(_WAITS), PledgeRow.give_up_at <= now, _free(now))
        with self._db.read() as connection:
            if connection.execute(select(PledgeRow.delivery_id).where(late).limit(1)).first() is None:
                return 0
        anew = {"not_before": now, "give_up_at": now + ONCE_MORE, "lease_owner": "", "lease_until": None}
        with self._db.write() as connection:
            return connection.execute(update(PledgeRow).where(late).values(**anew)).rowcount

    def give_up(self, now: datetime) -> builtins.list[Pledge]:
        """-> GIVEN_UP, with an alarm, for all that no answer came for in all that time; returns them."""
        late = and_(PledgeRow.state.in_(_WAITS), PledgeRow.give_up_at <= now, _free(now))
        with self._db.read() as connection:
            if connection.execute(select(PledgeRow.delivery_id).where(late).limit(1)).first() is None:
                return []
        with self._db.write() as connection:
            moved = (
                update(PledgeRow)
                .where(late)
                .values(state=PledgeState.GIVEN_UP.value, lease_owner="", lease_until=None)
            )
            moved = moved.returning(*PledgeRow.__table__.columns)
            found = connection.execute(moved.execution_options(synchronize_session=False))
            given_up = [_read(row) for row in found]
            for one in given_up:
                why = one.failure or "the destination took the request and never told the result"
                _alarm(connection, one, why, now)
        return given_up

    def result(self, told: Told, at: datetime) -> Answer:
        """What a destination says of a request: the delivery is COMMITTED, or what is missing is sent again.

        Returns
        -------
        str
            ``committed``; ``resent``; ``given_up`` where that was done often enough; ``stale`` if it speaks of a time
            before something was sent again, or the delivery is under way; ``unknown`` if nothing was asked so.
        """

        def work(connection: Connection) -> Answer:
            hold_files(connection)
            asked = connection.execute(
                select(AskedRow.delivery_id, AskedRow.at).where(
                    AskedRow.transaction_uid == told.transaction_uid
                )
            ).first()
            if asked is None:
                return "unknown"
            lock = select(DeliveryRow.state).where(DeliveryRow.id == asked.delivery_id)
            # With the key shared: a claim holds its pledge while it refers to the delivery.
            state = connection.execute(lock.with_for_update(key_share=True)).scalar_one()
            if state == DeliveryState.COMMITTED.value:
                return "committed"
            row = connection.execute(
                rows.whole(PledgeRow).where(PledgeRow.delivery_id == asked.delivery_id)
            ).first()
            if row is None or state != DeliveryState.SENT.value or asked.at == _VOID:
                return "stale"
            one = _read(row)
            table, mine = instances_of(connection, one.delivery_id)
            uids = rows.pairs(connection.execute(select(table.sop_instance_uid, table.id).where(mine)).all())
            missing = {
                uid: told.failed.get(uid) for uid in uids if uid not in told.committed or uid in told.failed
            }
            if not uids:
                return "stale"  # retention has removed them: somebody gave up on the answer
            if not missing:
                moves.must(
                    moves.move(connection, DeliveryRow, one.delivery_id, DeliveryState.COMMITTED),
                    f"delivery {one.delivery_id}",
                )
                _set(connection, one.delivery_id, state=PledgeState.KEPT.value, failure="")
                body = {"transaction": told.transaction_uid, "instances": len(uids)}
                tell_delivery(connection, one.delivery_id, "series.committed", body, at)
                return "committed"
            why = _why(missing, len(uids))
            if one.rounds >= MOST_ROUNDS:
                _set(connection, one.delivery_id, state=PledgeState.GIVEN_UP.value, failure=why)
                if (one.state, one.failure) != (PledgeState.GIVEN_UP, why):  # else it is only told once more
                    _alarm(connection, one, why, at)
                return "given_up"
            _send_again(connection, one, [uids[uid] for uid in missing], why, at)
            return "resent"

        return self._db.transact(work)

    def release_dead(self) -> int:
        """Take back at once what processes of this host held that no longer run; returns how many."""
        with self._db.read() as connection:
            found = select(PledgeRow.lease_owner).where(
                PledgeRow.state == PledgeState.DUE.value, PledgeRow.lease_until.is_not(None)
            )
            dead = [o for o in connection.execute(found.distinct()).scalars() if owners.certainly_dead(o)]
        if not dead:
            return 0
        with self._db.write() as connection:
            held = update(PledgeRow).where(PledgeRow.lease_owner.in_(dead))
            return connection.execute(held.values(lease_owner="", lease_until=None)).rowcount

    def get(self, delivery_id: int) -> Pledge | None:
        """How far a delivery is committed to; None if its destination is not asked."""
        with self._db.read() as connection:
            row = connection.execute(
                rows.whole(PledgeRow).where(PledgeRow.delivery_id == delivery_id)
            ).first()
            return _read(row) if row is not None else None

    def _move(self, one: Asking, owner: str, **values: Any) -> bool:
        with self._db.write() as connection:
            mine = and_(
                PledgeRow.delivery_id == one.delivery_id,
                PledgeRow.state == PledgeState.DUE.value,
                PledgeRow.lease_owner == owner,
            )
            values = {"lease_owner": "", "lease_until": None, **values}
            return bool(connection.execute(update(PledgeRow).where(mine).values(**values)).rowcount)


def _send_again(connection: Connection, one: Pledge, ids: Sequence[int], why: str, at: datetime) -> None:
    """SENT -> PENDING, with these instances missing."""
    for start in range(0, len(ids), 500):
        connection.execute(
            update(OutcomeRow)
            .where(
                OutcomeRow.delivery_id == one.delivery_id,
                OutcomeRow.instance_id.in_(ids[start : start + 500]),
            )
            .values(done=False, retryable=True, comment="not committed: sent again")
        )
    again = {"attempt": 0, "not_before": at, "created_at": at, "failure": "", "finished_at": None}
    moves.must(
        moves.move(connection, DeliveryRow, one.delivery_id, DeliveryState.PENDING, values=again),
        f"delivery {one.delivery_id}",
    )
    _set(connection, one.delivery_id, state=PledgeState.RESENT.value, rounds=one.rounds + 1, failure=why)
    told_so = {"delivery": one.delivery_id, "destination": one.destination, "why": why}
    events.add(connection, "warning", "delivery.not_committed", told_so, at)


def open_pledge(connection: Connection, delivery_id: int, at: datetime) -> None:
    """All of a delivery is there: if its destination is to commit to that, it is to be asked."""
    one = connection.execute(
        select(DeliveryRow.destination, DeliveryRow.settings).where(DeliveryRow.id == delivery_id)
    ).one()
    _void(connection, delivery_id)
    if not one.settings.get("commit"):  # any more: it was readdressed while it was sent again
        drop_pledge(connection, delivery_id)
        return
    fresh = _fresh(one.settings, at, SOON)
    row = upsert(connection, PledgeRow).values(
        delivery_id=delivery_id, destination=one.destination, rounds=0, **fresh
    )
    connection.execute(row.on_conflict_do_update(index_elements=["delivery_id"], set_=fresh))


def readdress_pledges(
    connection: Connection, destination: str, settings: Mapping[str, Any], at: datetime
) -> int:
    """Ask a destination with other settings for what it has not answered for yet; returns for how many deliveries.

    Where those ask for no commitment any more, nothing is waited for.
    """
    mine = and_(DeliveryRow.destination == destination, awaited())
    found = select(DeliveryRow.id, DeliveryRow.settings).where(mine).order_by(DeliveryRow.id)
    found = found.with_for_update(key_share=True)  # else it may be COMMITTED before it is changed
    n = 0
    for one in connection.execute(found).all():
        if one.settings == dict(settings):
            continue
        n += 1
        change = update(DeliveryRow).where(DeliveryRow.id == one.id)
        connection.execute(change.values(settings=dict(settings)))
        _void(connection, one.id)  # what was asked elsewhere says nothing of here
        if settings.get("commit"):
            _set(connection, one.id, **_fresh(settings, at, timedelta(0)))
        else:
            drop_pledge(connection, one.id)
    return n


def reset_pledge(connection: Connection, delivery_id: int) -> None:
    """A person sends a delivery again: what was tried before does not count; nothing is asked before all is there."""
    _set(connection, delivery_id, state=PledgeState.RESENT.value, rounds=0)


def drop_pledge(connection: Connection, delivery_id: int) -> None:
    """Nothing is asked for a delivery any more."""
    connection.execute(delete(PledgeRow).where(PledgeRow.delivery_id == delivery_id))


def awaited() -> ColumnElement[bool]:
    """Condition on `DeliveryRow`: it is sent, and its destination has not answered yet whether it holds all of it."""
    asked = exists().where(PledgeRow.delivery_id == DeliveryRow.id, PledgeRow.state.in_(_OPEN))
    return and_(DeliveryRow.state == DeliveryState.SENT.value, asked.correlate(DeliveryRow))


def _due(now: datetime) -> ColumnElement[bool]:
    late: ColumnElement[bool] = or_(PledgeRow.not_before <= now, PledgeRow.not_before > now + _FAR)
    return and_(PledgeRow.state.in_(_WAITS), late, _free(now), PledgeRow.give_up_at > now)


def _free(now: datetime) -> ColumnElement[bool]:
    """Nobody is at it: a lease that ran out is nobody's."""
    free: ColumnElement[bool] = PledgeRow.lease_until.is_(None)
    if WATCH.settled:
        free = or_(free, PledgeRow.lease_until <= now, PledgeRow.lease_until > now + _FAR)
    return free


def _fresh(settings: Mapping[str, Any], at: datetime, after: timedelta) -> dict[str, Any]:
    """A pledge for which nobody was asked yet."""
    return {
        "state": PledgeState.DUE.value,
        "attempt": 0,
        "opened_at": at,
        "not_before": at + after,
        "give_up_at": at + timedelta(seconds=float(settings.get("commit_within", 0))),
        "asked_at": None,
        "lease_owner": "",
        "lease_until": None,
        "failure": "",
    }


def _void(connection: Connection, delivery_id: int) -> None:
    """Answers to what was asked before are of no use."""
    connection.execute(update(AskedRow).where(AskedRow.delivery_id == delivery_id).values(at=_VOID))


def _set(connection: Connection, delivery_id: int, **values: Any) -> None:
    values = {"lease_owner": "", "lease_until": None, **values}
    connection.execute(update(PledgeRow).where(PledgeRow.delivery_id == delivery_id).values(**values))


def _why(missing: Mapping[str, int | None], n: int) -> str:
    reasons: Collection[str] = sorted(
        {"not mentioned" if reason is None else f"{reason:04X}H" for reason in missing.values()}
    )
    return f"{len(missing)} of {n} instances are not committed ({', '.join(reasons)})"


def _alarm(connection: Connection, one: Pledge, why: str, at: datetime) -> None:
    body = {"delivery": one.delivery_id, "destination": one.destination, "why": why}
    events.add(connection, "error", "delivery.uncommitted", body, at)


def _read(row: rows.AnyRow) -> Pledge:
    return Pledge(
        delivery_id=row.delivery_id,
        destination=row.destination,
        state=PledgeState(row.state),
        attempt=row.attempt,
        rounds=row.rounds,
        not_before=row.not_before,
        give_up_at=row.give_up_at,
        asked_at=row.asked_at,
        failure=row.failure,
    )
