"""Every table of the node, typed. One row class a table; nobody outside node/store sees them.

Statements are written against these classes but run on plain connections: rows are copied into the
frozen dataclasses of node/model.py at once (rows.py) and never live on as mapped objects.
Times are timezone-aware UTC at the edge and stored as UTC. Documents are JSON text that is kept to the
letter on both databases (PostgreSQL ``json``, not ``jsonb``, which rewrites numbers and refuses U+0000).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Big = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits on both: only INTEGER is an alias of the row id in SQLite."""

Document = JSON(none_as_null=True)


class Utc(TypeDecorator[datetime]):
    """An aware datetime, stored as UTC; a naive one is a defect of the caller and is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError("naive datetime: the store takes timezone-aware UTC only")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012
        datetime: Utc,
        str: Text(),
        dict[str, Any]: Document,
        list[Any]: Document,
    }


def _uid(**extra: Any) -> Any:
    return mapped_column(String(64), **extra)


class AssociationRow(Base):
    """One association, from acceptance to its end. ``receiver`` names the process that accepted it."""

    __tablename__ = "association"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    calling_ae: Mapped[str] = mapped_column(String(16))
    called_ae: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(64))
    receiver: Mapped[str] = mapped_column(String(128), server_default="")
    opened_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    ending: Mapped[str] = mapped_column(String(16))
    __table_args__ = (
        Index(
            "ix_association_open",
            "calling_ae",
            "address",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index(
            "ix_association_ended",
            "ended_at",
            sqlite_where=text("ended_at IS NOT NULL"),
            postgresql_where=text("ended_at IS NOT NULL"),
        ),
    )


class SeriesRow(Base):
    """One generation of one series; the AE titles are those of who opened it. ``base`` is what its
    instances' headers are told as differences from (codec.py)."""

    __tablename__ = "series"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    study_uid: Mapped[str] = _uid()
    series_uid: Mapped[str] = _uid()
    calling_ae: Mapped[str] = mapped_column(String(16))
    called_ae: Mapped[str] = mapped_column(String(16))
    generation: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    count: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)
    opened_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    closed_because: Mapped[str] = mapped_column(Text, server_default="")
    header: Mapped[dict[str, Any] | None]
    base: Mapped[dict[str, Any] | None]
    decided_at: Mapped[datetime | None]
    decision: Mapped[dict[str, Any] | None]
    config_digest: Mapped[str] = mapped_column(String(64), server_default="")
    purged_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("series_uid", "study_uid", "generation", name="uq_series_key"),
        Index("ix_series_state", "state", "id"),
        Index("ix_series_study", "study_uid"),
        Index(
            "ix_series_kept",
            "last_received_at",
            sqlite_where=text("purged_at IS NULL"),
            postgresql_where=text("purged_at IS NULL"),
        ),
        Index(
            "ix_series_purged",
            "purged_at",
            sqlite_where=text("purged_at IS NOT NULL"),
            postgresql_where=text("purged_at IS NOT NULL"),
        ),
    )


class InstanceRow(Base):
    """One received instance. ``current`` is false once other bytes of the same UID took its place after
    its series was closed. ``indexed``: 0 not yet, 1 yes, 2 unreadable."""

    __tablename__ = "instance"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    series_id: Mapped[int] = mapped_column(Big, ForeignKey("series.id"))
    sop_class_uid: Mapped[str] = _uid()
    sop_instance_uid: Mapped[str] = _uid()
    transfer_syntax_uid: Mapped[str] = _uid()
    association: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(96))
    size: Mapped[int] = mapped_column(BigInteger)
    offset: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    received_at: Mapped[datetime]
    current: Mapped[bool]
    indexed: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    header: Mapped[dict[str, Any] | None]
    __table_args__ = (
        Index(
            "uq_instance_current",
            "sop_instance_uid",
            unique=True,
            sqlite_where=text("current = 1"),  # to the letter what is asked, or it is not used
            postgresql_where=text("current"),
        ),
        Index(
            "ix_instance_unindexed",
            "id",
            sqlite_where=text("indexed = 0"),
            postgresql_where=text("indexed = 0"),
        ),
        Index("ix_instance_series", "series_id", "id"),
        Index("ix_instance_path", "path"),
    )


class ConflictRow(Base):
    """Bytes kept aside: another instance of the same SOP Instance UID is in force. ``kept`` tells which
    won: ``first`` (these came later) or ``replaced`` (these came earlier)."""

    __tablename__ = "conflict"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    series_id: Mapped[int] = mapped_column(Big, ForeignKey("series.id"))
    kept: Mapped[str] = mapped_column(String(16))
    sop_class_uid: Mapped[str] = _uid()
    sop_instance_uid: Mapped[str] = _uid()
    transfer_syntax_uid: Mapped[str] = _uid()
    association: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(96))
    size: Mapped[int] = mapped_column(BigInteger)
    offset: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    received_at: Mapped[datetime]
    __table_args__ = (
        UniqueConstraint("sop_instance_uid", "sha256", name="uq_conflict_bytes"),
        Index("ix_conflict_path", "path"),
        Index("ix_conflict_series", "series_id"),
    )


class CarriedRow(Base):
    """Which association carried how many instances of which series."""

    __tablename__ = "carried"
    series_id: Mapped[int] = mapped_column(Big, ForeignKey("series.id"), primary_key=True)
    association: Mapped[str] = mapped_column(String(64), primary_key=True)
    n_new: Mapped[int]
    n_seen: Mapped[int]
    __table_args__ = (Index("ix_carried_association", "association"), {"sqlite_with_rowid": False})


class JobRow(Base):
    """One enhancement. ``destinations`` maps each destination's name to its settings when routed."""

    __tablename__ = "job"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    series_id: Mapped[int] = mapped_column(Big, ForeignKey("series.id"))
    rule: Mapped[str]
    engine: Mapped[str]
    params: Mapped[dict[str, Any]]
    destinations: Mapped[dict[str, Any]]
    derivation_key: Mapped[str] = mapped_column(String(64))
    only_after_generation: Mapped[int] = mapped_column(server_default="0")
    revision: Mapped[int] = mapped_column(server_default="1")
    config_digest: Mapped[str] = mapped_column(String(64), server_default="")
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(server_default="0")
    not_before: Mapped[datetime]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    lease_owner: Mapped[str] = mapped_column(String(128), server_default="")
    lease_until: Mapped[datetime | None]
    failure: Mapped[str] = mapped_column(Text, server_default="")
    progress: Mapped[dict[str, Any] | None]
    __table_args__ = (
        UniqueConstraint("series_id", "derivation_key", name="uq_job_derivation"),
        Index("ix_job_due", "state", "not_before", "id"),
        Index("ix_job_state", "state", "id"),
        Index("ix_job_key", "derivation_key"),
    )


class OutlookRow(Base):
    """What an open series would be routed to now, for workers that have nothing else to do."""

    __tablename__ = "outlook"
    series_id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=False)
    engine: Mapped[str]
    params: Mapped[dict[str, Any]]
    owner: Mapped[str] = mapped_column(String(128), server_default="")
    whole: Mapped[int] = mapped_column(server_default="0")
    tries: Mapped[int] = mapped_column(server_default="0")


class DerivedRow(Base):
    __tablename__ = "derived"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    job_id: Mapped[int] = mapped_column(Big, ForeignKey("job.id"), unique=True)
    study_uid: Mapped[str] = _uid()
    series_uid: Mapped[str] = _uid()
    number: Mapped[int] = mapped_column(BigInteger)
    description: Mapped[str]
    created_at: Mapped[datetime]
    purged_at: Mapped[datetime | None]
    __table_args__ = (
        Index("ix_derived_series", "series_uid"),
        Index("ix_derived_study", "study_uid"),
        Index(
            "ix_derived_kept",
            "created_at",
            sqlite_where=text("purged_at IS NULL"),
            postgresql_where=text("purged_at IS NULL"),
        ),
    )


class DerivedInstanceRow(Base):
    __tablename__ = "derived_instance"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    derived_id: Mapped[int] = mapped_column(Big, ForeignKey("derived.id"))
    sop_class_uid: Mapped[str] = _uid()
    sop_instance_uid: Mapped[str] = _uid()
    source_sop_instance_uid: Mapped[str] = _uid()
    transfer_syntax_uid: Mapped[str] = _uid()
    path: Mapped[str] = mapped_column(String(96))
    size: Mapped[int] = mapped_column(BigInteger)
    offset: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    __table_args__ = (
        UniqueConstraint("derived_id", "sop_instance_uid", name="uq_derived_instance"),
        Index("ix_derived_instance_uid", "sop_instance_uid"),
        Index("ix_derived_instance_source", "source_sop_instance_uid"),
        Index("ix_derived_instance_path", "path"),
    )


class DeliveryRow(Base):
    """The outbox: written in the transaction that makes the derived series, or, for the originals of a
    received series (``series_id`` instead of ``derived_id``), in the one that records its first instance.
    ``wakes``: the next instance of that series makes it due at once."""

    __tablename__ = "delivery"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    derived_id: Mapped[int | None] = mapped_column(Big, ForeignKey("derived.id"))
    series_id: Mapped[int | None] = mapped_column(Big, ForeignKey("series.id"))
    destination: Mapped[str] = mapped_column(String(128))
    settings: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(server_default="0")
    not_before: Mapped[datetime]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    lease_owner: Mapped[str] = mapped_column(String(128), server_default="")
    lease_until: Mapped[datetime | None]
    failure: Mapped[str] = mapped_column(Text, server_default="")
    wakes: Mapped[bool] = mapped_column(server_default="0")
    __table_args__ = (
        UniqueConstraint("derived_id", "destination", name="uq_delivery_destination"),
        UniqueConstraint("series_id", "destination", name="uq_delivery_originals"),
        Index("ix_delivery_due", "state", "not_before", "id"),
        Index("ix_delivery_state", "state", "id"),
        Index("ix_delivery_destination", "destination", "state"),
    )


class OutcomeRow(Base):
    __tablename__ = "outcome"
    delivery_id: Mapped[int] = mapped_column(Big, ForeignKey("delivery.id"), primary_key=True)
    instance_id: Mapped[int] = mapped_column(Big, primary_key=True)  # of derived_instance, or of instance
    status: Mapped[int]
    done: Mapped[bool]
    retryable: Mapped[bool]
    comment: Mapped[str] = mapped_column(Text, server_default="")
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012


class PledgeRow(Base):
    """What a destination is asked to commit to: one row for each delivery that is to be committed."""

    __tablename__ = "pledge"
    delivery_id: Mapped[int] = mapped_column(
        Big, ForeignKey("delivery.id"), primary_key=True, autoincrement=False
    )
    destination: Mapped[str] = mapped_column(String(128))
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(server_default="0")
    rounds: Mapped[int] = mapped_column(server_default="0")
    opened_at: Mapped[datetime]
    not_before: Mapped[datetime]
    give_up_at: Mapped[datetime]
    asked_at: Mapped[datetime | None]
    lease_owner: Mapped[str] = mapped_column(String(128), server_default="")
    lease_until: Mapped[datetime | None]
    failure: Mapped[str] = mapped_column(Text, server_default="")
    __table_args__ = (Index("ix_pledge_due", "state", "not_before"),)


class AskedRow(Base):
    """Every Transaction UID that a destination was asked with: an answer may come days later."""

    __tablename__ = "asked"
    transaction_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    delivery_id: Mapped[int] = mapped_column(Big, ForeignKey("delivery.id"))
    at: Mapped[datetime]
    __table_args__ = (Index("ix_asked_delivery", "delivery_id"),)


class CommitmentRow(Base):
    """A request for storage commitment. ``digest`` tells the same request from another under one Transaction
    UID; ``tellable`` is whether there is an address to tell its result to."""

    __tablename__ = "commitment"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    transaction_uid: Mapped[str] = _uid(unique=True)
    calling_ae: Mapped[str] = mapped_column(String(16))
    called_ae: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    count: Mapped[int]
    n_failed: Mapped[int] = mapped_column(server_default="0")
    requested: Mapped[list[Any]]
    failed: Mapped[dict[str, Any]]
    promise: Mapped[str] = mapped_column(String(16))
    report_to: Mapped[dict[str, Any] | None]
    tellable: Mapped[bool]
    state: Mapped[str] = mapped_column(String(16))
    asked_at: Mapped[datetime]
    answer_by: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    told_at: Mapped[datetime | None]
    give_up_at: Mapped[datetime]
    attempt: Mapped[int] = mapped_column(server_default="0")
    not_before: Mapped[datetime]
    lease_owner: Mapped[str] = mapped_column(String(128), server_default="")
    lease_until: Mapped[datetime | None]
    failure: Mapped[str] = mapped_column(Text, server_default="")
    __table_args__ = (Index("ix_commitment_due", "state", "not_before", "id"),)


class ProvenanceRow(Base):
    """``document`` is the canonical JSON that ``hash`` covers, compressed; see provenance.py."""

    __tablename__ = "provenance"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    document: Mapped[bytes] = mapped_column(LargeBinary)
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class SubjectRow(Base):
    """Finds the records about a UID: ``key`` is the first 64 bits of its SHA-256, to be small."""

    __tablename__ = "provenance_subject"
    key: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    provenance_id: Mapped[int] = mapped_column(
        Big, ForeignKey("provenance.id"), primary_key=True, autoincrement=False
    )
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012


class ChainRow(Base):
    """One row: the head of the chain, and the lock that serialises those who append."""

    __tablename__ = "provenance_chain"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    head: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))


class ConfigRow(Base):
    __tablename__ = "config"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    digest: Mapped[str] = mapped_column(String(64))
    text: Mapped[str]
    diff: Mapped[str]
    __table_args__ = (Index("ix_config_digest", "digest"),)


class EventRow(Base):
    __tablename__ = "event"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    level: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(64))
    series_id: Mapped[int | None] = mapped_column(Big)
    body: Mapped[dict[str, Any]]
    __table_args__ = (
        Index("ix_event_at", "at"),
        Index("ix_event_name", "name", "id"),
        Index("ix_event_series", "series_id"),
    )


class TrashRow(Base):
    """A file that may go: no row needs it any more. Emptied by retention.py; a file that is received
    again leaves the trash in the transaction that records it."""

    __tablename__ = "trash"
    path: Mapped[str] = mapped_column(String(96), primary_key=True)
    at: Mapped[datetime]


class TurnRow(Base):
    """When a periodic task was last begun, by whom, and whether it still runs."""

    __tablename__ = "turn"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    started_at: Mapped[datetime]
    until: Mapped[datetime]
    finished_at: Mapped[datetime | None]
