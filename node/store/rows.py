"""Rows to dataclasses of node/model.py and back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select, union

from node.model import (
    Action,
    Association,
    AssociationEnd,
    Decision,
    Delivery,
    DeliveryState,
    DerivedInstance,
    Instance,
    Job,
    JobState,
    Lease,
    Series,
    SeriesKey,
    SeriesState,
    Verdict,
)
from node.store.codec import unpack_series_header
from node.store.tables import (
    AssociationRow,
    Base,
    ConflictRow,
    InstanceRow,
    SeriesRow,
)

AnyRow = Row[Any]


def whole(table: type[Base]) -> Select[Any]:
    """``SELECT`` of every column of a table, as plain columns."""
    return select(*table.__table__.columns)


SERIES: Select[Any] = select(
    *(c for c in SeriesRow.__table__.columns if c.name not in ("base", "decision", "decided_at", "purged_at"))
)
"""Series without their long documents; `series` reads it."""

INSTANCE_WITH_KEY: Select[Any] = select(
    *(c for c in InstanceRow.__table__.columns if c.name != "header"),
    SeriesRow.study_uid,
    SeriesRow.series_uid,
    func.coalesce(AssociationRow.calling_ae, SeriesRow.calling_ae).label("calling_ae"),
    func.coalesce(AssociationRow.called_ae, SeriesRow.called_ae).label("called_ae"),
)
INSTANCE_WITH_KEY = INSTANCE_WITH_KEY.join(SeriesRow, SeriesRow.id == InstanceRow.series_id).outerjoin(
    AssociationRow, AssociationRow.id == InstanceRow.association
)
"""Instances with the UIDs of their series and the AE titles of the association that brought them (of the
series, where it is not on record); `instance` reads it."""


def newest(
    connection: Connection, statement: Select[Any], table: Any, states: Collection[str], limit: int
) -> list[AnyRow]:
    """The rows of a table that were made last, of some states or of all.

    State by state: each is read from its end and no further than needed, where together all would be sorted.
    """
    newest_first = statement.order_by(table.id.desc()).limit(limit)
    if not states:
        return list(connection.execute(newest_first).all())
    found = [
        row
        for state in dict.fromkeys(states)
        for row in connection.execute(newest_first.where(table.state == state))
    ]
    return sorted(found, key=lambda row: row.id, reverse=True)[:limit]


def series_key(row: AnyRow) -> SeriesKey:
    return SeriesKey(
        study_uid=row.study_uid, series_uid=row.series_uid, calling_ae=row.calling_ae, called_ae=row.called_ae
    )


def key_is(key: SeriesKey) -> tuple[ColumnElement[bool], ...]:
    """Condition: every generation of this series, whoever sent it."""
    return SeriesRow.series_uid == key.series_uid, SeriesRow.study_uid == key.study_uid


def series(row: AnyRow) -> Series:
    return Series(
        id=row.id,
        key=series_key(row),
        generation=row.generation,
        state=SeriesState(row.state),
        header=unpack_series_header(row.header) if row.header is not None else None,
        count=row._mapping["count"],  # a row is a tuple: .count is its method
        opened_at=row.opened_at,
        last_received_at=row.last_received_at,
        closed_at=row.closed_at,
        closed_because=row.closed_because,
        config_digest=row.config_digest,
    )


def instance(row: AnyRow) -> Instance:
    return Instance(
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        study_uid=row.study_uid,
        series_uid=row.series_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        calling_ae=row.calling_ae,
        called_ae=row.called_ae,
        association=row.association,
        path=row.path,
        size=row.size,
        offset=row.offset,
        sha256=row.sha256,
        received_at=row.received_at,
    )


def association(row: AnyRow) -> Association:
    return Association(
        id=row.id,
        calling_ae=row.calling_ae,
        called_ae=row.called_ae,
        address=row.address,
        opened_at=row.opened_at,
        ended_at=row.ended_at,
        end=AssociationEnd(row.ending),
    )


def association_values(one: Association, receiver: str) -> dict[str, Any]:
    return {
        "id": one.id,
        "calling_ae": one.calling_ae,
        "called_ae": one.called_ae,
        "address": one.address,
        "receiver": receiver,
        "opened_at": one.opened_at,
        "ended_at": one.ended_at,
        "ending": one.end.value,
    }


def job(row: AnyRow) -> Job:
    return Job(
        id=row.id,
        series_id=row.series_id,
        rule=row.rule,
        engine=row.engine,
        params=row.params,
        destinations=tuple(row.destinations),
        derivation_key=row.derivation_key,
        state=JobState(row.state),
        attempt=row.attempt,
        not_before=row.not_before,
        created_at=row.created_at,
        only_after_generation=row.only_after_generation,
        revision=row.revision,
        lease=_lease(row),
        failure=row.failure,
        config_digest=row.config_digest,
    )


def delivery(row: AnyRow) -> Delivery:
    return Delivery(
        id=row.id,
        derived_id=row.derived_id,
        series_id=row.series_id,
        destination=row.destination,
        settings=row.settings,
        state=DeliveryState(row.state),
        attempt=row.attempt,
        not_before=row.not_before,
        created_at=row.created_at,
        lease=_lease(row),
        failure=row.failure,
    )


def derived_instance(row: AnyRow) -> DerivedInstance:
    return DerivedInstance(
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        source_sop_instance_uid=row.source_sop_instance_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        path=row.path,
        size=row.size,
        offset=row.offset,
        sha256=row.sha256,
    )


def series_of(uid: str, *more: Select[Any]) -> ColumnElement[bool]:
    """Condition: the series of a received Study, Series or SOP Instance UID, in force or superseded.

    ``more`` select ids of further series. Each is looked for by itself: PostgreSQL has no index for this *or* that.
    """
    return SeriesRow.id.in_(
        union(
            select(SeriesRow.id).where(SeriesRow.series_uid == uid),
            select(SeriesRow.id).where(SeriesRow.study_uid == uid),
            select(InstanceRow.series_id).where(InstanceRow.current, InstanceRow.sop_instance_uid == uid),
            select(ConflictRow.series_id).where(ConflictRow.sop_instance_uid == uid),
            *more,
        )
    )


def decision_document(one: Decision) -> dict[str, Any]:
    """A decision as JSON; verdicts as rows without their field names, to be small."""
    return {
        "rule": one.rule,
        "action": one.action.value,
        "reason": one.reason,
        "engine": one.engine,
        "destinations": list(one.destinations),
        "verdicts": [[v.rule, v.keyword, v.wanted, v.found, v.held] for v in one.verdicts],
    }


def decision(document: Mapping[str, Any]) -> Decision:
    return Decision(
        rule=document["rule"],
        action=Action(document["action"]),
        reason=document["reason"],
        engine=document["engine"],
        destinations=tuple(document["destinations"]),
        verdicts=tuple(
            Verdict(rule=r, keyword=k, wanted=w, found=f, held=h) for r, k, w, f, h in document["verdicts"]
        ),
    )


def derived_values(one: DerivedInstance) -> dict[str, Any]:
    return asdict(one)


def _lease(row: AnyRow) -> Lease | None:
    return (
        Lease(owner=row.lease_owner, until=row.lease_until) if row.lease_owner and row.lease_until else None
    )


def clean(text: str, limit: int = 2000) -> str:
    """Text that every database takes: no NUL, no lone surrogate, not endless."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")[:limit]


def pairs(found: Iterable[Any]) -> dict[Any, Any]:
    """Rows of two columns as a mapping."""
    return {key: value for key, value in found}  # noqa: C416
