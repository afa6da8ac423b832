"""What a destination said of each instance of a delivery, and the record that sums it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from node.model import Outcome
from node.store import events, provenance, rows
from node.store.dialect import upsert
from node.store.tables import (
    DeliveryRow,
    DerivedInstanceRow,
    DerivedRow,
    InstanceRow,
    JobRow,
    OutcomeRow,
    SeriesRow,
)


def read_outcomes(connection: Connection, delivery_id: int) -> dict[str, Outcome]:
    table, _ = instances_of(connection, delivery_id)
    found = connection.execute(
        select(
            table.sop_instance_uid,
            OutcomeRow.status,
            OutcomeRow.done,
            OutcomeRow.retryable,
            OutcomeRow.comment,
        )
        .join(table, table.id == OutcomeRow.instance_id)
        .where(OutcomeRow.delivery_id == delivery_id)
        .order_by(OutcomeRow.instance_id)
    )
    return {row.sop_instance_uid: Outcome(**row._mapping) for row in found}


def write_outcomes(connection: Connection, delivery_id: int, outcomes: Sequence[Outcome]) -> None:
    table, mine = instances_of(connection, delivery_id)
    ids: dict[str, int] = {}
    for start in range(0, len(outcomes), 500):
        uids = [one.sop_instance_uid for one in outcomes[start : start + 500]]
        found = select(table.sop_instance_uid, table.id).where(mine, table.sop_instance_uid.in_(uids))
        ids |= rows.pairs(connection.execute(found).all())
    known = [one for one in outcomes if one.sop_instance_uid in ids]
    if not known:
        return
    statement = upsert(connection, OutcomeRow)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["delivery_id", "instance_id"],
            set_={name: statement.excluded[name] for name in ("status", "done", "retryable", "comment")},
            where=OutcomeRow.done.is_(False),
        ),
        [
            {
                "delivery_id": delivery_id,
                "instance_id": ids[one.sop_instance_uid],
                "status": one.status,
                "done": one.done,
                "retryable": one.retryable,
                "comment": rows.clean(one.comment, 200),
            }
            for one in known
        ],
    )


def progress(connection: Connection, deliveries: Sequence[rows.AnyRow]) -> dict[int, tuple[int, int]]:
    """How many instances each of some deliveries has, and how many of them are done, by its id."""
    far = {row.id: (0, 0) for row in deliveries}
    for table, of, about in (
        (DerivedInstanceRow, DerivedInstanceRow.derived_id, DeliveryRow.derived_id),
        (InstanceRow, InstanceRow.series_id, DeliveryRow.series_id),
    ):
        mine = {row.id: row._mapping[about.key] for row in deliveries if row._mapping[about.key] is not None}
        if not mine:
            continue
        total = select(of, func.count()).where(of.in_(set(mine.values()))).group_by(of)
        done = (
            select(OutcomeRow.delivery_id, of, func.count())
            .join(table, table.id == OutcomeRow.instance_id)
            .where(OutcomeRow.delivery_id.in_(list(mine)), OutcomeRow.done)
            .group_by(OutcomeRow.delivery_id, of)
        )
        n_instances = rows.pairs(connection.execute(total).all())
        n_done = {(i, whole): n for i, whole, n in connection.execute(done)}
        far |= {i: (n_instances.get(whole, 0), n_done.get((i, whole), 0)) for i, whole in mine.items()}
    return far


def instances_of(connection: Connection, delivery_id: int) -> tuple[Any, ColumnElement[bool]]:
    """The table that a delivery's instances are in, and which of them."""
    of = connection.execute(
        select(DeliveryRow.derived_id, DeliveryRow.series_id).where(DeliveryRow.id == delivery_id)
    ).first()
    if of is not None and of.series_id is not None:
        return InstanceRow, InstanceRow.series_id == of.series_id
    return DerivedInstanceRow, DerivedInstanceRow.derived_id == (of.derived_id if of is not None else -1)


def tell_delivery(
    connection: Connection, delivery_id: int, kind: str, body: Mapping[str, Any], at: datetime
) -> None:
    """Compact: how many instances got which status, and by name only those that did not get 0000H. Which
    instances these were is in the record of the derivation; of originals, in the rows of their series."""
    one = connection.execute(
        select(
            DeliveryRow.destination, DeliveryRow.attempt, DeliveryRow.derived_id, DeliveryRow.series_id
        ).where(DeliveryRow.id == delivery_id)
    ).one()
    outcomes = read_outcomes(connection, delivery_id)
    statuses: dict[str, int] = {}
    for outcome in outcomes.values():
        name = "none" if outcome.status < 0 else f"{outcome.status:04X}H"
        statuses[name] = statuses.get(name, 0) + 1
    if one.series_id is None:
        what, subjects, series_id = _of_derived(connection, one.derived_id)
    else:
        what, subjects, series_id = _of_originals(connection, one.series_id)
    document = {
        **body,
        **what,
        "delivery": delivery_id,
        "destination": one.destination,
        "attempt": one.attempt,
        "statuses": dict(sorted(statuses.items())),
        "exceptions": [[uid, o.status] for uid, o in outcomes.items() if o.status != 0][:100],
    }
    provenance.append(connection, kind, subjects, document, at)
    if kind == "delivery.failed":
        told = {"delivery": delivery_id, "destination": one.destination, "failure": body.get("failure", "")}
        events.add(connection, "error", kind, told, at, series_id=series_id)


def _of_derived(connection: Connection, derived_id: int) -> tuple[dict[str, Any], tuple[str, ...], int]:
    row = connection.execute(
        select(
            DerivedRow.study_uid,
            DerivedRow.series_uid,
            SeriesRow.series_uid.label("source_series"),
            SeriesRow.id.label("series_id"),
        )
        .join(JobRow, JobRow.id == DerivedRow.job_id)
        .join(SeriesRow, SeriesRow.id == JobRow.series_id)
        .where(DerivedRow.id == derived_id)
    ).one()
    what = {"derived": derived_id, "derived_series": row.series_uid}
    return what, (row.study_uid, row.source_series, row.series_uid), row.series_id


def _of_originals(connection: Connection, series_id: int) -> tuple[dict[str, Any], tuple[str, ...], int]:
    row = connection.execute(
        select(SeriesRow.study_uid, SeriesRow.series_uid, SeriesRow.generation).where(
            SeriesRow.id == series_id
        )
    ).one()
    what = {
        "originals_of": series_id,
        "generation": row.generation,
        "source_series": row.series_uid,
    }
    return what, (row.study_uid, row.series_uid), series_id
