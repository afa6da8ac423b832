"""What follows from a finished job, written in its transaction: derived series, outbox, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from node.model import DeliveryState, DerivedInstance, JobState
from node.store import provenance, rows
from node.store.dialect import upsert
from node.store.outcomes import tell_delivery
from node.store.pledges import readdress_pledges
from node.store.tables import (
    DeliveryRow,
    DerivedInstanceRow,
    DerivedRow,
    InstanceRow,
    JobRow,
    OutcomeRow,
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


def readdress(connection: Connection, destination: str, settings: Mapping[str, Any], at: datetime) -> int:
    """Give what is not sent to a destination these settings, and send it anew, whole; returns how many deliveries.

    Whatever the old address confirmed says nothing of the new one; an instance that is there already does no harm.
    What is just being sent is taken from whoever sends it. What has failed stays failed, for a person to retry. What
    was sent and is not committed yet is asked for at the new address, and sent there if that does not hold it.
    """
    row = DeliveryRow
    open_ = (DeliveryState.PENDING.value, DeliveryState.SENDING.value, DeliveryState.FAILED.value)
    waiting = connection.execute(
        select(row.id, row.state, row.settings)
        .where(row.destination == destination, row.state.in_(open_))
        .order_by(row.id)
        .with_for_update(key_share=True)  # else it may be sent, or cancelled, before it is changed
    )
    n = 0
    for one in waiting.all():
        if one.settings == dict(settings):
            continue
        n += 1
        values: dict[str, Any] = {"settings": dict(settings), "lease_owner": "", "lease_until": None}
        if one.state != DeliveryState.FAILED.value:
            values |= {"state": DeliveryState.PENDING.value, "not_before": at, "wakes": False, "failure": ""}
            values["created_at"] = at  # the new address has all of `retry.for`
        connection.execute(update(row).where(row.id == one.id).values(**values))
        connection.execute(
            update(OutcomeRow)
            .where(OutcomeRow.delivery_id == one.id)
            .values(done=False, retryable=True, comment="to be sent to another address")
        )
        told = {"from": place(one.settings), "to": place(settings)}
        tell_delivery(connection, one.id, "delivery.readdressed", told, at)
    return n + readdress_pledges(connection, destination, settings, at)


def readdress_jobs(connection: Connection, destination: str, settings: Mapping[str, Any]) -> int:
    """The same of jobs that are not done, whose deliveries are still to be made; returns how many jobs."""
    open_ = [s.value for s in JobState if s not in (JobState.DONE, JobState.CANCELLED)]  # by the index
    n = 0
    for one in connection.execute(
        select(JobRow.id, JobRow.destinations).where(JobRow.state.in_(open_))
    ).all():
        if one.destinations.get(destination, settings) != dict(settings):
            n += 1
            changed = {**one.destinations, destination: dict(settings)}
            connection.execute(update(JobRow).where(JobRow.id == one.id).values(destinations=changed))
    return n


def place(settings: Mapping[str, Any]) -> str:
    """Where settings lead, in a few words and without secrets."""
    if settings.get("kind") != "dimse":
        return str(settings.get("path", settings.get("kind", "")))
    address = settings.get("address", "")
    if isinstance(address, Mapping):
        address = f"{address.get('host', '')}:{address.get('port', '')}"
    return f"{settings.get('ae_title', '')}@{address}"


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
