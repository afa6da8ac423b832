"""Requests for storage commitment (PS3.4 J): written down before they are answered, kept until their result is told.

``ASKED > READY > TOLD | GIVEN_UP``. Whoever works on one holds a lease; every write of one who has lost it is refused.
"""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select, update

from node.dicom.status import Status
from node.model import Commitment, CommitmentState, DeliveryState, PledgeState, Promise
from node.store import owners, rows
from node.store.clock import WATCH
from node.store.db import Database, to_json
from node.store.dialect import upsert
from node.store.tables import CommitmentRow, ConflictRow, DeliveryRow, InstanceRow, OutcomeRow, PledgeRow

_FAR = timedelta(hours=1)
"""No pause is as long as this: a time further ahead was written while the clock was wrong (R53)."""
_FRESH = timedelta(minutes=10)
"""A result is told while it is as young as this: files rot, and people cancel deliveries, while nobody listens."""
_AT_ONCE = 500
_OPEN = (CommitmentState.ASKED.value, CommitmentState.READY.value)
_PLEDGING = (PledgeState.DUE.value, PledgeState.ASKED.value, PledgeState.RESENT.value)
_SENDING = (DeliveryState.PENDING.value, DeliveryState.SENDING.value)

Way = Literal["safe", "waits", "unsafe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An instance that is on record. ``way``: whether what was promised of it is so, may come to be, or is not."""

    sop_class_uid: str
    path: str
    offset: int
    sha256: str
    way: Way


class Commitments:
    """`Store.commitments`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def ask(
        self,
        transaction_uid: str,
        references: Sequence[tuple[str, str]],
        *,
        calling_ae: str,
        called_ae: str,
        address: str,
        promise: Promise,
        report_to: Mapping[str, Any] | None,
        at: datetime,
        answer_by: datetime,
        give_up_at: datetime,
    ) -> bool:
        """Write a request down; False if this Transaction UID is in use for another one.

        The same again, by the same peer, is told again: at once if its result is not told yet, and else after a new
        look, for what was so then may be so no more.
        """
        told = [calling_ae.strip(), sorted(references)]
        digest = hashlib.sha256(to_json(told).encode()).hexdigest()
        fresh = {
            "called_ae": called_ae,
            "address": address,
            "promise": promise,
            "report_to": dict(report_to) if report_to is not None else None,
            "tellable": report_to is not None,
            "give_up_at": give_up_at,
            "attempt": 0,
            "not_before": at,
            "failure": "",
        }
        anew = {
            "state": CommitmentState.ASKED.value,
            "asked_at": at,
            "answer_by": answer_by,
            "failed": {},
            "n_failed": 0,
            "ready_at": None,
            "told_at": None,
            "lease_owner": "",
            "lease_until": None,
        }

        def work(connection: Connection) -> bool:
            first = upsert(connection, CommitmentRow).values(
                transaction_uid=transaction_uid,
                calling_ae=calling_ae,
                digest=digest,
                count=len(references),
                requested=[list(each) for each in references],
                **fresh,
                **anew,
            )
            once = first.on_conflict_do_nothing(index_elements=["transaction_uid"])
            if connection.execute(once.returning(CommitmentRow.id)).first() is not None:
                return True
            mine = and_(CommitmentRow.transaction_uid == transaction_uid, CommitmentRow.digest == digest)
            known = connection.execute(select(CommitmentRow.state).where(mine)).scalar_one_or_none()
            if known is None:
                return False
            values = fresh if known in _OPEN else {**fresh, **anew}
            connection.execute(update(CommitmentRow).where(mine).values(**values))
            return True

        return self._db.transact(work)

    def claim(
        self,
        state: CommitmentState,
        owner: str,
        lease_s: float,
        now: datetime,
        *,
        calling_ae: str | None = None,
        address: str | None = None,
        but: Collection[str] = (),
    ) -> Commitment | None:
        """Take one that is due: ASKED to be looked at, or READY to be told.

        Parameters
        ----------
        calling_ae
            Of READY ones: those of this peer that listens nowhere, instead of those of peers that do.
        address
            With it: asked from there; None: from wherever.
        but
            Calling AE titles whose requests are left alone.
        """
        row = CommitmentRow
        late: ColumnElement[bool] = or_(row.not_before <= now, row.not_before > now + _FAR)
        free: ColumnElement[bool] = row.lease_until.is_(None)
        if WATCH.settled:
            free = or_(free, row.lease_until <= now, row.lease_until > now + _FAR)
        condition = and_(row.state == state.value, late, free)
        if state is CommitmentState.READY:
            mine = and_(row.calling_ae == calling_ae, row.tellable.is_(False))
            mine = mine if address is None else and_(mine, row.address == address)
            condition = and_(condition, row.tellable if calling_ae is None else mine)
        if but:
            condition = and_(condition, row.calling_ae.not_in(but))
        with self._db.read() as connection:  # the usual case costs no write lock
            if connection.execute(select(row.id).where(condition).limit(1)).first() is None:
                return None
        first = select(row.id).where(condition).order_by(row.not_before, row.id).limit(1)
        with self._db.write() as connection:
            if connection.dialect.name == "postgresql":
                first = first.with_for_update(skip_locked=True)
            row_id = connection.execute(first).scalar_one_or_none()
            if row_id is None:
                return None
            until = now + timedelta(seconds=lease_s)
            connection.execute(
                update(row).where(row.id == row_id).values(lease_owner=owner, lease_until=until)
            )
            return _read(connection.execute(rows.whole(row).where(row.id == row_id)).one())

    def held(self, sop_instance_uids: Iterable[str], promise: Promise) -> dict[str, Held]:
        """What is on record of these instances, and how far what is promised of them is so."""
        wanted = list(dict.fromkeys(sop_instance_uids))
        found: dict[str, Held] = {}
        for at in range(0, len(wanted), _AT_ONCE):
            with self._db.read() as connection:
                found |= _held(connection, wanted[at : at + _AT_ONCE], promise)
        return found

    def extend(self, commitment_id: int, owner: str, until: datetime) -> bool:
        """Extend the lease; False if it is no longer this owner's."""
        mine = and_(CommitmentRow.id == commitment_id, CommitmentRow.lease_owner == owner)
        with self._db.write() as connection:
            return bool(
                connection.execute(update(CommitmentRow).where(mine).values(lease_until=until)).rowcount
            )

    def ready(self, commitment_id: int, owner: str, failed: Mapping[str, int], at: datetime) -> bool:
        """ASKED -> READY with its result; False if it is no longer this owner's."""
        values = {"failed": dict(failed), "n_failed": len(failed), "ready_at": at, "not_before": at}
        return self._move(commitment_id, owner, "ASKED", state=CommitmentState.READY.value, **values)

    def told(self, commitment_id: int, owner: str, at: datetime) -> bool:
        """READY -> TOLD: the requester has said that it knows."""
        return self._move(
            commitment_id, owner, "READY", state=CommitmentState.TOLD.value, told_at=at, failure=""
        )

    def again(self, one: Commitment, owner: str, now: datetime) -> bool:
        """READY -> ASKED if its result is too old to be told, for what was so then may be so no more."""
        if one.ready_at is not None and abs(now - one.ready_at) <= _FRESH:  # two hosts, two clocks
            return False
        anew = {"failed": {}, "n_failed": 0, "ready_at": None, "not_before": now}
        self._move(one.id, owner, "READY", state=CommitmentState.ASKED.value, **anew)
        return True

    def give_up(self, now: datetime) -> builtins.list[Commitment]:
        """READY -> GIVEN_UP for all whose requester could not be told in all that time; returns them."""
        row = CommitmentRow
        late = and_(
            row.state == CommitmentState.READY.value, row.give_up_at <= now, row.lease_until.is_(None)
        )
        with self._db.read() as connection:
            if connection.execute(select(row.id).where(late).limit(1)).first() is None:
                return []
        with self._db.write() as connection:
            moved = update(row).where(late).values(state=CommitmentState.GIVEN_UP.value)
            found = connection.execute(
                moved.returning(*row.__table__.columns).execution_options(synchronize_session=False)
            )
            return [_read(each) for each in found]

    def later(self, one: Commitment, owner: str, until: datetime, failure: str = "", *, tried: bool) -> bool:
        """Put back until then; ``tried`` counts, and puts off all that waits for the same place."""
        attempt = one.attempt + tried
        moved = self._move(
            one.id, owner, one.state.value, not_before=until, attempt=attempt, failure=rows.clean(failure)
        )
        if moved and tried and one.report_to is not None:
            others = and_(
                CommitmentRow.state == CommitmentState.READY.value,
                CommitmentRow.calling_ae == one.calling_ae,
                CommitmentRow.tellable,
                CommitmentRow.lease_until.is_(None),
                CommitmentRow.not_before < until,
            )
            with self._db.write() as connection:
                connection.execute(update(CommitmentRow).where(others).values(not_before=until))
        return moved

    def release_dead(self) -> int:
        """Take back at once what processes of this host held that no longer run; returns how many."""
        row = CommitmentRow
        with self._db.read() as connection:
            found = select(row.lease_owner).where(row.state.in_(_OPEN), row.lease_until.is_not(None))
            dead = [o for o in connection.execute(found.distinct()).scalars() if owners.certainly_dead(o)]
        if not dead:
            return 0
        with self._db.write() as connection:
            return connection.execute(
                update(row)
                .where(row.state.in_(_OPEN), row.lease_owner.in_(dead))
                .values(lease_owner="", lease_until=None)
            ).rowcount

    def list(self, states: Collection[CommitmentState] = (), *, limit: int = 50) -> builtins.list[Commitment]:
        """The newest first."""
        with self._db.read() as connection:
            told = [s.value for s in states]
            found = rows.newest(connection, rows.whole(CommitmentRow), CommitmentRow, told, limit)
            return [_read(row) for row in found]

    def get(self, commitment_id: int) -> Commitment | None:
        with self._db.read() as connection:
            row = connection.execute(
                rows.whole(CommitmentRow).where(CommitmentRow.id == commitment_id)
            ).first()
            return _read(row) if row is not None else None

    def forget(self, before: datetime) -> int:
        """Remove what was asked before then and needs nothing more; returns how many."""
        with self._db.write() as connection:
            done = CommitmentRow.state.not_in(_OPEN)
            return connection.execute(
                delete(CommitmentRow).where(done, CommitmentRow.asked_at < before)
            ).rowcount

    def _move(self, commitment_id: int, owner: str, from_: str, **values: Any) -> bool:
        row = CommitmentRow
        with self._db.write() as connection:
            return bool(
                connection.execute(
                    update(row)
                    .where(row.id == commitment_id, row.state == from_, row.lease_owner == owner)
                    .values(lease_owner="", lease_until=None, **values)
                ).rowcount
            )


def _held(connection: Connection, wanted: Sequence[str], promise: Promise) -> dict[str, Held]:
    """Other bytes under a UID make it unsafe: nobody can tell which of the two the peer means.

    Nor does a PACS say which bytes it holds that answers 0111H, that it has this UID already. Where a destination is
    asked to commit itself (``commit``), its C-STORE response alone is not enough.
    """
    of = and_(
        DeliveryRow.series_id == InstanceRow.series_id,
        DeliveryRow.state != DeliveryState.CANCELLED.value,
    )
    folder = DeliveryRow.settings["kind"].as_string() == "folder"  # it has compared the bytes
    has_outcome = (
        exists()
        .where(
            OutcomeRow.delivery_id == DeliveryRow.id,
            OutcomeRow.instance_id == InstanceRow.id,
            OutcomeRow.done,
            or_(OutcomeRow.status != Status.DUPLICATE_SOP_INSTANCE.value, folder),
        )
        .correlate(DeliveryRow, InstanceRow)  # else it asks for any instance of the delivery
    )
    asked = func.coalesce(DeliveryRow.settings["commit"].as_boolean(), False)
    pledged = exists().where(PledgeRow.delivery_id == DeliveryRow.id).correlate(DeliveryRow)
    n = select(func.count()).select_from(DeliveryRow).where(of)
    missing = n.where(
        or_(~has_outcome, and_(asked, ~pledged.where(PledgeRow.state == PledgeState.KEPT.value)))
    )
    on_its_way = or_(
        DeliveryRow.state.in_(_SENDING),
        and_(DeliveryRow.state == DeliveryState.SENT.value, pledged.where(PledgeRow.state.in_(_PLEDGING))),
    )
    was_there = (
        exists()
        .where(
            OutcomeRow.delivery_id == DeliveryRow.id,
            OutcomeRow.instance_id == InstanceRow.id,
            OutcomeRow.done,
            OutcomeRow.status == Status.DUPLICATE_SOP_INSTANCE.value,
        )
        .correlate(DeliveryRow, InstanceRow)
    )
    columns = (
        n.correlate(InstanceRow).scalar_subquery().label("n"),
        missing.correlate(InstanceRow).scalar_subquery().label("missing"),
        missing.where(on_its_way).correlate(InstanceRow).scalar_subquery().label("coming"),
        n.where(was_there, ~folder).correlate(InstanceRow).scalar_subquery().label("unsure"),
        exists().where(ConflictRow.sop_instance_uid == InstanceRow.sop_instance_uid).label("conflict"),
    )
    found = connection.execute(
        select(
            InstanceRow.sop_instance_uid,
            InstanceRow.sop_class_uid,
            InstanceRow.path,
            InstanceRow.offset,
            InstanceRow.sha256,
            *columns,
        ).where(InstanceRow.sop_instance_uid.in_(wanted), InstanceRow.current)
    )
    return {
        row.sop_instance_uid: Held(
            sop_class_uid=row.sop_class_uid,
            path=row.path,
            offset=row.offset,
            sha256=row.sha256,
            way="unsafe" if row.conflict else _way(promise, row),
        )
        for row in found
    }


def _way(promise: Promise, of: rows.AnyRow) -> Way:
    """How safe an instance is that has ``n`` destinations, ``missing`` of which do not hold it yet, and ``unsure`` of
    which said 0111H: what such a one holds nobody knows, and it is sent nothing more."""
    if promise == "kept":
        return "safe"
    if of.n == 0:
        return "unsafe"
    if promise == "held":
        return "safe" if of.n > of.unsure else "unsafe"
    if of.missing == 0:
        return "safe"
    return "waits" if of.missing == of.coming else "unsafe"


def _read(row: rows.AnyRow) -> Commitment:
    return Commitment(
        id=row.id,
        transaction_uid=row.transaction_uid,
        calling_ae=row.calling_ae,
        called_ae=row.called_ae,
        address=row.address,
        references=tuple((sop_class, instance) for sop_class, instance in row.requested),
        promise=row.promise,
        report_to=row.report_to,
        state=CommitmentState(row.state),
        asked_at=row.asked_at,
        answer_by=row.answer_by,
        failed=row.failed,
        attempt=row.attempt,
        not_before=row.not_before,
        ready_at=row.ready_at,
        told_at=row.told_at,
        give_up_at=row.give_up_at,
        failure=row.failure,
    )
