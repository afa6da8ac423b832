"""Originals on their way: received instances that a destination gets as they came (``forward_originals``).

One delivery for each received series and destination, written in the transaction that records the series'
first instance. It grows with the series: an instance without a done outcome is one that is still to be sent,
so nothing has to be queued by instance, and nothing that is on record can be forgotten.

While the series is open its delivery never fails and never ends. It sleeps when nothing is to be sent, the
next instance wakes it, and so does the end of the series; only then what is refused is tried again, and failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, exists, func, null, or_, select, update

from node.model import DeliveryState, DerivedInstance, Instance, Outcome, SeriesState
from node.store import rows
from node.store.dialect import upsert
from node.store.tables import DeliveryRow, InstanceRow, OutcomeRow, SeriesRow

Forward = Mapping[str, Mapping[str, Any]]
"""Destinations that get originals: name -> settings, as they stand when an instance is recorded."""

AT_ONCE = 256
"""Instances of an open series that are sent before another series has its turn."""

_ASLEEP = timedelta(hours=12)
"""Longer than anybody waits for a series to end; what wakes a sleeping delivery is an instance or that end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """What is to be sent of a delivery.

    ``known`` are the last outcomes, by SOP Instance UID. Of originals only what is missing is told, with ``n_done``
    that the destination holds already, of ``n_instances``. ``growing``: the series may have more to come.
    """

    series_uid: str
    instances: tuple[DerivedInstance | Instance, ...]
    known: Mapping[str, Outcome]
    n_instances: int
    n_done: int = 0
    growing: bool = False


def queue(connection: Connection, took: Iterable[tuple[int, Instance]], forward: Forward) -> None:
    """Queue instances that were just recorded, in their own transaction.

    Nobody is sent what he sent himself: a destination that has the sender's AE title is left out.

    Parameters
    ----------
    took
        (row of the series, instance) of everything that is new.
    """
    wanted: dict[tuple[int, str], datetime] = {}
    for series_id, one in took:
        for name, settings in forward.items():
            if str(settings.get("ae_title", "")).strip() != one.calling_ae.strip() or not one.calling_ae:
                key = series_id, name
                wanted[key] = max(one.received_at, wanted.get(key, one.received_at))
    if not wanted:
        return
    statement = upsert(connection, DeliveryRow)
    new = statement.excluded
    failed = DeliveryRow.state == DeliveryState.FAILED.value
    asleep = and_(
        DeliveryRow.state == DeliveryState.PENDING.value,
        DeliveryRow.wakes,
        DeliveryRow.not_before > new.not_before,
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["series_id", "destination"],
            set_={
                "state": DeliveryState.PENDING.value,
                "not_before": new.not_before,
                "created_at": case((failed, new.created_at), else_=DeliveryRow.created_at),
                "attempt": case((failed, 0), else_=DeliveryRow.attempt),
                "finished_at": null(),
            },
            where=or_(asleep, failed),
        ),
        [
            {
                "series_id": series_id,
                "destination": name,
                "settings": dict(forward[name]),
                "state": DeliveryState.PENDING.value,
                "attempt": 0,
                "not_before": at,
                "created_at": at,
                "wakes": True,
            }
            for (series_id, name), at in sorted(wanted.items())
        ],
    )


def wake(connection: Connection, series_id: int, at: datetime) -> None:
    """The series has ended: what sleeps is to be looked at a last time."""
    connection.execute(
        update(DeliveryRow)
        .where(
            DeliveryRow.series_id == series_id,
            DeliveryRow.state == DeliveryState.PENDING.value,
            DeliveryRow.wakes,
        )
        .values(not_before=at)
    )


def unsent(series_id: Any, states: Iterable[str]) -> ColumnElement[bool]:
    """Condition: originals of this series are on their way in a state that is none of ``states``."""
    return exists().where(DeliveryRow.series_id == series_id, DeliveryRow.state.not_in(list(states)))


def cargo(connection: Connection, delivery_id: int, series_id: int) -> Cargo | None:
    """What is missing of a series at a destination, what was never tried first; None without the series."""
    series = connection.execute(
        select(SeriesRow.series_uid, SeriesRow.state).where(SeriesRow.id == series_id)
    ).first()
    if series is None:
        return None
    growing = series.state == SeriesState.OPEN.value
    outcome = and_(OutcomeRow.delivery_id == delivery_id, OutcomeRow.instance_id == InstanceRow.id)
    found = connection.execute(
        rows.INSTANCE_WITH_KEY.add_columns(
            OutcomeRow.status,
            OutcomeRow.done,
            OutcomeRow.retryable,
            OutcomeRow.comment,
        )
        .outerjoin(OutcomeRow, outcome)
        .where(InstanceRow.series_id == series_id, _missing(growing))
        .order_by(OutcomeRow.status.is_not(None), InstanceRow.id)
        .limit(AT_ONCE if growing else None)
    ).all()
    n_instances, n_done = _counts(connection, delivery_id, series_id)
    return Cargo(
        series_uid=series.series_uid,
        instances=tuple(rows.instance(row) for row in found),
        known={
            row.sop_instance_uid: Outcome(
                sop_instance_uid=row.sop_instance_uid,
                status=row.status,
                done=row.done,
                retryable=row.retryable,
                comment=row.comment,
            )
            for row in found
            if row.status is not None
        },
        n_instances=n_instances,
        n_done=n_done,
        growing=growing,
    )


def settle(connection: Connection, delivery_id: int, series_id: int, at: datetime) -> dict[str, Any] | None:
    """What a delivery that has nothing more to try becomes: the columns to write, None if all is sent.

    To be called with the delivery's row locked: whoever records an instance waits for that, and then finds
    the row as it is left here.
    """
    growing = (
        connection.execute(select(SeriesRow.state).where(SeriesRow.id == series_id)).scalar_one()
        == SeriesState.OPEN.value
    )
    outcome = and_(OutcomeRow.delivery_id == delivery_id, OutcomeRow.instance_id == InstanceRow.id)
    more = connection.execute(
        select(InstanceRow.id)
        .outerjoin(OutcomeRow, outcome)
        .where(InstanceRow.series_id == series_id, _missing(growing))
        .limit(1)
    ).first()
    if more is None and not growing:
        return None
    refused = connection.execute(
        select(func.count())
        .select_from(OutcomeRow)
        .where(OutcomeRow.delivery_id == delivery_id, OutcomeRow.done.is_(False))
    ).scalar_one()
    told = f"{refused} instances refused; tried again when the series has ended" if refused else ""
    return {"not_before": at if more is not None else at + _ASLEEP, "wakes": True, "failure": told}


def _missing(growing: bool) -> ColumnElement[bool]:
    """Of an open series what was refused for good is left alone until it ends."""
    untried = OutcomeRow.status.is_(None)
    undone = OutcomeRow.done.is_(False)
    return or_(untried, and_(undone, OutcomeRow.retryable)) if growing else or_(untried, undone)


def _counts(connection: Connection, delivery_id: int, series_id: int) -> tuple[int, int]:
    total = select(func.count()).select_from(InstanceRow).where(InstanceRow.series_id == series_id)
    done = (
        select(func.count())
        .select_from(OutcomeRow)
        .join(InstanceRow, InstanceRow.id == OutcomeRow.instance_id)
        .where(OutcomeRow.delivery_id == delivery_id, OutcomeRow.done)
    )
    return connection.execute(total).scalar_one(), connection.execute(done).scalar_one()
