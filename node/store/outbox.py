"""What follows from a finished job, written in its transaction: derived series, outbox, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from node.model import DeliveryState, DerivedInstance
from node.store import provenance, rows
from node.store.dialect import upsert
from node.store.tables import (
    DeliveryRow,
    DerivedInstanceRow,
    DerivedRow,
    InstanceRow,
    SeriesRow,
    TrashRow,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDerived:
    """A derived series whose instances lie, published and synced, in the spool's derived area."""

    study_uid: str
    series_uid: str
    number: int
    description: str
    instances: Sequence[DerivedInstance] = field(default_factory=tuple)


_REWRITTEN = ("path", "size", "offset", "sha256", "transfer_syntax_uid")


def write_derived(connection: Connection, job_id: int, derived: NewDerived, at: datetime) -> int:
    known = connection.execute(select(DerivedRow.id).where(DerivedRow.job_id == job_id)).scalar_one_or_none()
    values = {
        "study_uid": derived.study_uid,
        "series_uid": derived.series_uid,
        "number": derived.number,
        "description": derived.description,
        "created_at": at,
        "purged_at": None,
    }
    if known is None:
        derived_id: int = connection.execute(
            insert(DerivedRow).values(job_id=job_id, **values).returning(DerivedRow.id)
        ).scalar_one()
    else:
        derived_id = known
        connection.execute(update(DerivedRow).where(DerivedRow.id == derived_id).values(**values))
    instances = [{"derived_id": derived_id, **rows.derived_values(i)} for i in derived.instances]
    for start in range(0, len(instances), 500):
        batch = instances[start : start + 500]
        statement = upsert(connection, DerivedInstanceRow)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["derived_id", "sop_instance_uid"],
                set_={
                    n: statement.excluded[n]
                    for n in ("path", "size", "offset", "sha256", "transfer_syntax_uid")
                },
            ),
            batch,
        )
        connection.execute(delete(TrashRow).where(TrashRow.path.in_([i["path"] for i in batch])))
    return derived_id


def write_deliveries(
    connection: Connection, derived_id: int, wanted: Sequence[tuple[str, Mapping[str, Any]]], at: datetime
) -> None:
    known = set(
        connection.execute(
            select(DeliveryRow.destination).where(DeliveryRow.derived_id == derived_id)
        ).scalars()
    )
    fresh = [
        {
            "derived_id": derived_id,
            "destination": name,
            "settings": dict(settings),
            "state": DeliveryState.PENDING.value,
            "attempt": 0,
            "not_before": at,
            "created_at": at,
        }
        for name, settings in wanted
        if name not in known
    ]
    if fresh:
        connection.execute(insert(DeliveryRow), fresh)


def tell_derivation(
    connection: Connection,
    job: rows.AnyRow,
    derived: NewDerived,
    derived_id: int,
    destinations: Sequence[str],
    body: Mapping[str, Any],
    at: datetime,
) -> None:
    """The provenance of one derivation: what was made of what, digest by digest."""
    series = connection.execute(rows.whole(SeriesRow).where(SeriesRow.id == job.series_id)).one()
    sources = rows.pairs(
        connection.execute(
            select(InstanceRow.sop_instance_uid, InstanceRow.sha256)
            .join(SeriesRow, SeriesRow.id == InstanceRow.series_id)
            .where(*rows.key_is(rows.series_key(series)), InstanceRow.current)
        ).all()
    )
    document = {
        **body,
        "job": job.id,
        "rule": job.rule,
        "derivation_key": job.derivation_key,
        "attempt": job.attempt,
        "config": job.config_digest,
        "derived": derived_id,
        "destinations": list(destinations),
        "source_series": series.series_uid,
        "derived_series": derived.series_uid,
        "instances": [
            [
                i.sop_instance_uid,
                i.sha256,
                i.source_sop_instance_uid,
                sources.get(i.source_sop_instance_uid, ""),
            ]
            for i in derived.instances
        ],
    }
    subjects = [series.study_uid, series.series_uid, derived.series_uid]
    for one in derived.instances:
        subjects += [one.source_sop_instance_uid, one.sop_instance_uid]
    provenance.append(connection, "series.derived", tuple(dict.fromkeys(subjects)), document, at)
