"""The record of what was done: append-only, each link holding the hash of the one before.

A link's document is the canonical JSON of ``at``, ``kind``, ``subjects`` and ``body`` (keys sorted, no
spaces, ASCII); ``hash`` = SHA-256(previous hash in hex + document). It is stored compressed, exactly as
hashed. Links are numbered without gaps under one lock; triggers refuse UPDATE and DELETE, and `verify`
finds whoever went around them.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from node.model import Decision, Delivery, DerivedSeries, Instance, Job, Provenance, Series
from node.store import rows
from node.store.db import Database
from node.store.derived import read_derived
from node.store.tables import (
    ChainRow,
    DeliveryRow,
    DerivedInstanceRow,
    DerivedRow,
    InstanceRow,
    JobRow,
    ProvenanceRow,
    SeriesRow,
    SubjectRow,
)

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `ProvenanceStore.verify` found: ``first_bad`` is the id of the first link that does not hold,
    None if all do; ``fault`` says what is wrong with it."""

    ok: bool
    checked: int
    first_bad: int | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All that is known about a UID: the records about it, and the rows that still exist.

    ``uid`` may be of a study, a series or an instance, received or derived. ``instances`` are the
    received ones it names (all of a series, for a series).
    """

    uid: str
    records: tuple[Provenance, ...]
    series: tuple[Series, ...]
    decisions: Mapping[int, Decision]
    instances: tuple[Instance, ...]
    jobs: tuple[Job, ...]
    derived: tuple[DerivedSeries, ...]
    deliveries: tuple[Delivery, ...]


def append(
    connection: Connection, kind: str, subjects: Sequence[str], body: Mapping[str, Any], at: datetime
) -> int:
    """Add a link inside a transaction that is under way; returns its id."""
    chain = connection.execute(
        select(ChainRow.head, ChainRow.hash).where(ChainRow.id == 1).with_for_update()
    ).one()
    document = canonical(kind, subjects, body, at)
    digest = link(chain.hash, document)
    record_id: int = chain.head + 1
    connection.execute(
        insert(ProvenanceRow).values(
            id=record_id,
            at=at,
            kind=kind,
            document=zlib.compress(document, 6),
            previous=chain.hash,
            hash=digest,
        )
    )
    keys = {subject_key(uid) for uid in subjects}
    if keys:
        connection.execute(insert(SubjectRow), [{"key": k, "provenance_id": record_id} for k in sorted(keys)])
    connection.execute(update(ChainRow).where(ChainRow.id == 1).values(head=record_id, hash=digest))
    return record_id


def canonical(kind: str, subjects: Sequence[str], body: Mapping[str, Any], at: datetime) -> bytes:
    """The bytes that a link's hash covers."""
    document = {
        "at": at.astimezone(UTC).isoformat(timespec="microseconds"),
        "body": body,
        "kind": kind,
        "subjects": list(subjects),
    }
    return json.dumps(
        document, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False
    ).encode("ascii")


def link(previous: str, document: bytes) -> str:
    """SHA-256 (hex) of the previous link's hash and a document."""
    return hashlib.sha256(previous.encode("ascii") + document).hexdigest()


def subject_key(uid: str) -> int:
    """The first 64 bits of the UID's SHA-256, as a signed number."""
    return int.from_bytes(
        hashlib.sha256(uid.encode("utf-8", "surrogateescape")).digest()[:8], "big", signed=True
    )


class ProvenanceStore:
    """`Store.provenance`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def append(self, kind: str, subjects: Sequence[str], body: Mapping[str, Any], at: datetime) -> int:
        """Add one record in a transaction of its own; returns its id.

        Parameters
        ----------
        kind
            Dotted, past tense: ``series.derived``.
        subjects
            UIDs (study, series, instance) that the record can be found by.
        body
            JSON-able, finite numbers only, no patient data.
        """
        return self._db.transact(lambda connection: append(connection, kind, subjects, body, at))

    def get(self, record_id: int) -> Provenance | None:
        with self._db.read() as connection:
            row = connection.execute(rows.whole(ProvenanceRow).where(ProvenanceRow.id == record_id)).first()
            return _record(row) if row is not None else None

    def records(self, uid: str) -> list[Provenance]:
        """Records about a UID, oldest first."""
        with self._db.read() as connection:
            return _records(connection, uid)

    def story(self, uid: str) -> Story:
        """Everything known about a source or derived UID; all empty if nothing is."""
        with self._db.read() as connection:
            return _story(connection, uid)

    def verify(self) -> Report:
        """Walk the whole chain: every hash, every link to the one before, no gap, and the head."""
        previous, checked = GENESIS, 0
        with self._db.read() as connection:
            chain = connection.execute(select(ChainRow.head, ChainRow.hash).where(ChainRow.id == 1)).first()
            if chain is None:
                return Report(ok=False, checked=0, fault="the head of the chain is missing")
            statement = rows.whole(ProvenanceRow).order_by(ProvenanceRow.id)
            for row in connection.execution_options(yield_per=200).execute(statement):
                fault = _fault(row, checked + 1, previous)
                if fault:
                    return Report(ok=False, checked=checked, first_bad=checked + 1, fault=fault)
                previous, checked = row.hash, checked + 1
        if (chain.head, chain.hash) != (checked, previous):
            return Report(
                ok=False,
                checked=checked,
                first_bad=checked + 1,
                fault="links are missing at the end of the chain",
            )
        return Report(ok=True, checked=checked)


def _fault(row: rows.AnyRow, expected_id: int, previous: str) -> str:
    if row.id != expected_id:
        return f"link {expected_id} is missing"
    try:
        document = zlib.decompress(row.document)
        told = json.loads(document)
    except (zlib.error, ValueError, TypeError):
        return "the document cannot be read"
    if row.previous != previous or link(previous, document) != row.hash:
        return "the hash does not match the document"
    if told["kind"] != row.kind or datetime.fromisoformat(told["at"]) != row.at:
        return "the columns do not match the document"
    return ""


def _record(row: rows.AnyRow) -> Provenance:
    told = json.loads(zlib.decompress(row.document))
    return Provenance(
        id=row.id,
        at=row.at,
        kind=row.kind,
        subjects=tuple(told["subjects"]),
        body=told["body"],
        previous=row.previous,
        hash=row.hash,
    )


def _records(connection: Connection, uid: str) -> list[Provenance]:
    found = connection.execute(
        rows.whole(ProvenanceRow)
        .join(SubjectRow, SubjectRow.provenance_id == ProvenanceRow.id)
        .where(SubjectRow.key == subject_key(uid))
        .order_by(ProvenanceRow.id)
    )
    return [one for one in map(_record, found) if uid in one.subjects]  # keys are 64 bits: be sure


def _story(connection: Connection, uid: str) -> Story:
    records = {r.id: r for r in _records(connection, uid)}
    told = {  # rows of instances go with retention: what was recorded of them leads to their series
        record.body[name]
        for record in records.values()
        for name in ("source_series", "derived_series")
        if name in record.body
    }
    source = select(JobRow.series_id).join(DerivedRow, DerivedRow.job_id == JobRow.id)
    of_made = source.join(DerivedInstanceRow, DerivedInstanceRow.derived_id == DerivedRow.id)
    of_uid = rows.series_of(
        uid,
        select(SeriesRow.id).where(SeriesRow.series_uid.in_(told)),
        source.where(DerivedRow.series_uid == uid),
        source.where(DerivedRow.study_uid == uid),
        of_made.where(DerivedInstanceRow.sop_instance_uid == uid),
        of_made.where(DerivedInstanceRow.source_sop_instance_uid == uid),
    )
    series_rows = connection.execute(rows.whole(SeriesRow).where(of_uid).order_by(SeriesRow.id)).all()
    series_ids = [row.id for row in series_rows]
    jobs = connection.execute(
        rows.whole(JobRow).where(JobRow.series_id.in_(series_ids)).order_by(JobRow.id)
    ).all()
    derived = read_derived(connection, DerivedRow.job_id.in_([j.id for j in jobs]))
    deliveries = connection.execute(
        rows.whole(DeliveryRow)
        .where(
            or_(DeliveryRow.derived_id.in_([d.id for d in derived]), DeliveryRow.series_id.in_(series_ids))
        )
        .order_by(DeliveryRow.id)
    )
    which = rows.INSTANCE_WITH_KEY.where(InstanceRow.series_id.in_(series_ids)).order_by(InstanceRow.id)
    for related in told | {row.series_uid for row in series_rows}:  # an instance's story includes its series'
        records.update({r.id: r for r in _records(connection, related)})
    return Story(
        uid=uid,
        records=tuple(records[i] for i in sorted(records)),
        series=tuple(rows.series(row) for row in series_rows),
        decisions={row.id: rows.decision(row.decision) for row in series_rows if row.decision is not None},
        instances=tuple(rows.instance(row) for row in connection.execute(which)),
        jobs=tuple(rows.job(row) for row in jobs),
        derived=tuple(derived),
        deliveries=tuple(rows.delivery(row) for row in deliveries),
    )
