"""What a destination said of each instance of a delivery, and the record that sums it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from node.model import Outcome
from node.store import events, provenance, rows
from node.store.dialect import upsert
from node.store.tables import DeliveryRow, DerivedInstanceRow, DerivedRow, JobRow, OutcomeRow, SeriesRow


def read_outcomes(connection: Connection, delivery_id: int) -> dict[str, Outcome]:
    found = connection.execute(
        select(
            DerivedInstanceRow.sop_instance_uid,
            OutcomeRow.status,
            OutcomeRow.done,
            OutcomeRow.retryable,
            OutcomeRow.comment,
        )
        .join(DerivedInstanceRow, DerivedInstanceRow.id == OutcomeRow.instance_id)
        .where(OutcomeRow.delivery_id == delivery_id)
        .order_by(OutcomeRow.instance_id)
    )
    return {row.sop_instance_uid: Outcome(**row._mapping) for row in found}


def write_outcomes(connection: Connection, delivery_id: int, outcomes: Sequence[Outcome]) -> None:
    ids = rows.pairs(
        connection.execute(
            select(DerivedInstanceRow.sop_instance_uid, DerivedInstanceRow.id)
            .join(DeliveryRow, DeliveryRow.derived_id == DerivedInstanceRow.derived_id)
            .where(DeliveryRow.id == delivery_id)
        ).all()
    )
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


def progress(connection: Connection, delivery_id: int) -> tuple[int, int]:
    n_instances = connection.execute(
        select(func.count())
        .select_from(DerivedInstanceRow)
        .join(DeliveryRow, DeliveryRow.derived_id == DerivedInstanceRow.derived_id)
        .where(DeliveryRow.id == delivery_id)
    ).scalar_one()
    n_done = connection.execute(
        select(func.count())
        .select_from(OutcomeRow)
        .where(OutcomeRow.delivery_id == delivery_id, OutcomeRow.done)
    ).scalar_one()
    return n_instances, n_done


def tell_delivery(
    connection: Connection, delivery_id: int, kind: str, body: Mapping[str, Any], at: datetime
) -> None:
    """Compact: how many instances got which status, and by name only those that did not get 0000H. Which
    instances these were is in the record of the derivation."""
    row = connection.execute(
        select(
            DeliveryRow.destination,
            DeliveryRow.attempt,
            DerivedRow.id,
            DerivedRow.study_uid,
            DerivedRow.series_uid,
            SeriesRow.series_uid.label("source_series"),
            SeriesRow.id.label("series_id"),
        )
        .join(DerivedRow, DerivedRow.id == DeliveryRow.derived_id)
        .join(JobRow, JobRow.id == DerivedRow.job_id)
        .join(SeriesRow, SeriesRow.id == JobRow.series_id)
        .where(DeliveryRow.id == delivery_id)
    ).one()
    outcomes = read_outcomes(connection, delivery_id)
    statuses: dict[str, int] = {}
    for one in outcomes.values():
        name = "none" if one.status < 0 else f"{one.status:04X}H"
        statuses[name] = statuses.get(name, 0) + 1
    document = {
        **body,
        "delivery": delivery_id,
        "derived": row.id,
        "destination": row.destination,
        "attempt": row.attempt,
        "derived_series": row.series_uid,
        "statuses": dict(sorted(statuses.items())),
        "exceptions": [[uid, one.status] for uid, one in outcomes.items() if one.status != 0][:100],
    }
    provenance.append(connection, kind, (row.study_uid, row.source_series, row.series_uid), document, at)
    if kind == "delivery.failed":
        told = {"delivery": delivery_id, "destination": row.destination, "failure": body.get("failure", "")}
        events.add(connection, "error", kind, told, at, series_id=row.series_id)
