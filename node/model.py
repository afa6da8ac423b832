"""The types that flow through the node: frozen, slotted, keyword-only.

Words are those of PS3.3 and PS3.7; see docs/architecture.md for the glossary. UIDs are kept byte-exact
as received. Times are timezone-aware UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, TypeAlias

Scalar: TypeAlias = str | int | float
Values: TypeAlias = tuple[Scalar, ...]


class SeriesState(StrEnum):
    OPEN = "OPEN"
    CLOSED = "CLOSED"
    ROUTED = "ROUTED"
    IGNORED = "IGNORED"
    REJECTED = "REJECTED"


class JobState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    HELD = "HELD"
    CANCELLED = "CANCELLED"


class DeliveryState(StrEnum):
    PENDING = "PENDING"
    SENDING = "SENDING"
    SENT = "SENT"
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


SERIES_EDGES: Mapping[SeriesState, frozenset[SeriesState]] = {
    SeriesState.OPEN: frozenset({SeriesState.CLOSED}),
    SeriesState.CLOSED: frozenset({SeriesState.ROUTED, SeriesState.IGNORED, SeriesState.REJECTED}),
    SeriesState.ROUTED: frozenset({SeriesState.CLOSED}),
    SeriesState.IGNORED: frozenset({SeriesState.CLOSED}),
    SeriesState.REJECTED: frozenset({SeriesState.CLOSED}),
}
"""Series states; the edges back to CLOSED are a person's ``luminode series retry``."""

JOB_EDGES: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.HELD}),
    JobState.RUNNING: frozenset(
        {JobState.DONE, JobState.QUEUED, JobState.FAILED, JobState.HELD, JobState.CANCELLED}
    ),
    JobState.DONE: frozenset({JobState.QUEUED}),
    JobState.FAILED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.HELD: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}

DELIVERY_EDGES: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    DeliveryState.PENDING: frozenset({DeliveryState.SENDING, DeliveryState.CANCELLED}),
    DeliveryState.SENDING: frozenset(
        {DeliveryState.SENT, DeliveryState.PENDING, DeliveryState.FAILED, DeliveryState.CANCELLED}
    ),
    DeliveryState.SENT: frozenset({DeliveryState.COMMITTED, DeliveryState.PENDING}),
    DeliveryState.COMMITTED: frozenset({DeliveryState.PENDING}),
    DeliveryState.FAILED: frozenset({DeliveryState.PENDING, DeliveryState.CANCELLED}),
    DeliveryState.CANCELLED: frozenset({DeliveryState.PENDING}),
}


class AssociationEnd(StrEnum):
    """How an association ended. Only RELEASED is evidence that a sender had no more to send.

    INCOMPLETE was released as well, but an instance of it was refused: the sender has that one still, and
    many a sender goes no further after the first refusal.
    """

    OPEN = "OPEN"
    RELEASED = "RELEASED"
    INCOMPLETE = "INCOMPLETE"
    ABORTED = "ABORTED"
    LOST = "LOST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """One association of a peer with this node, from acceptance to its end.

    ``id`` is a random hexadecimal string made by the receiver; ``calling_ae`` and ``called_ae`` are
    without padding; ``address`` is the peer's IP address.
    """

    id: str
    calling_ae: str
    called_ae: str
    address: str
    opened_at: datetime
    ended_at: datetime | None = None
    end: AssociationEnd = AssociationEnd.OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One received SOP instance, durable in the spool.

    ``path`` is relative to the spool. ``size`` is that of the file in bytes; ``sha256`` (hex) is of the
    encoded data set as received, which begins at byte ``offset`` of the file.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    association: str
    path: str
    size: int
    offset: int
    sha256: str
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """What is needed to place one frame in space and among its siblings (PS3.3 C.7.6.2, C.7.6.16).

    ``position_mm`` is Image Position (Patient), ``orientation`` Image Orientation (Patient), both None
    where absent. ``volume_key`` keeps apart what must never be mixed in one stack: echo, b-value,
    diffusion direction, temporal position, acquisition, image type, kernel and the like.
    """

    number: int = 1
    position_mm: tuple[float, float, float] | None = None
    orientation: tuple[float, float, float, float, float, float] | None = None
    spacing_mm: tuple[float, float] | None = None
    thickness_mm: float | None = None
    volume_key: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHeader:
    """All that the node needs to know of one instance without touching its pixels.

    ``attributes`` maps a DICOM keyword to its values for the top level of the data set, short
    standard attributes only; direct identifiers of the patient are left out (dicom/read.py).
    ``expected_count`` is a promise found in the header of how many instances the series has, 0 if none.
    ``derived_by_us`` is set when the object came out of a Luminode.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    modality: str
    rows: int
    columns: int
    n_frames: int
    instance_number: int | None
    expected_count: int
    expected_because: str
    attributes: Mapping[str, Values]
    frames: tuple[FrameHeader, ...]
    has_pixels: bool
    derived_by_us: bool = False
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesHeader:
    """What a rule may see of a series: the union of its instances' attributes.

    ``shape`` is (instances, rows, columns) of the largest group; ``spacing_mm`` is (z, y, x), z being 0
    where unknown. ``attributes`` maps keyword -> distinct values in order of first sight.
    """

    modality: str
    sop_class_uid: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    count: int
    attributes: Mapping[str, Values]
    n_frames: int = 0
    derived_by_us: bool = False
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKey:
    study_uid: str
    series_uid: str
    calling_ae: str
    called_ae: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    id: int
    key: SeriesKey
    generation: int
    state: SeriesState
    header: SeriesHeader | None
    count: int
    opened_at: datetime
    last_received_at: datetime
    closed_at: datetime | None = None
    closed_because: str = ""
    config_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One condition of one rule against one series: what was wanted, what was found, whether it held."""

    rule: str
    keyword: str
    wanted: str
    found: str
    held: bool


class Action(StrEnum):
    ENHANCE = "enhance"
    IGNORE = "ignore"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the rules say about a series, with the reasons.

    ``action`` REJECT means that a rule wanted to enhance but the series must never be: ``reason`` says why.
    ``engine`` names an entry of ``engines:`` in config.yaml.
    """

    rule: str
    action: Action
    reason: str
    engine: str = ""
    destinations: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    owner: str
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One enhancement to be done.

    ``engine`` is the catalogue's name of the engine, ``params`` everything that shapes its result
    (JSON-able). ``derivation_key`` is the digest of (source series, engine, version, weights, params,
    rule): the same key always makes the same derived UIDs. ``only_after_generation`` is 0 for a whole
    series; for ``late: append`` it names the last generation whose derived instances already exist.
    """

    id: int
    series_id: int
    rule: str
    engine: str
    params: Mapping[str, Any]
    destinations: tuple[str, ...]
    derivation_key: str
    state: JobState
    attempt: int
    not_before: datetime
    created_at: datetime
    only_after_generation: int = 0
    revision: int = 1
    lease: Lease | None = None
    failure: str = ""
    config_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedInstance:
    """One derived SOP instance in the spool; ``path``, ``size``, ``offset`` and ``sha256`` as for Instance."""

    sop_class_uid: str
    sop_instance_uid: str
    source_sop_instance_uid: str
    transfer_syntax_uid: str
    path: str
    size: int
    offset: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedSeries:
    id: int
    job_id: int
    study_uid: str
    series_uid: str
    number: int
    description: str
    instances: tuple[DerivedInstance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a destination said of one instance.

    ``status`` is the DIMSE status (0 stored, 0111H there already); -1 means no answer, which is unknown,
    never failed. ``done`` is True when the instance is held by the destination.
    """

    sop_instance_uid: str
    status: int
    done: bool
    retryable: bool
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One derived series, or the originals of one received series, on its way to one destination.

    One of ``derived_id`` and ``series_id`` (of originals) is set. ``settings`` is the destination's configuration
    as it was when the series was routed, or its first instance received (its kind included): queued work
    keeps its destination whatever happens to config.yaml.
    """

    id: int
    derived_id: int | None
    series_id: int | None = None
    destination: str
    settings: Mapping[str, Any]
    state: DeliveryState
    attempt: int
    not_before: datetime
    created_at: datetime
    lease: Lease | None = None
    failure: str = ""


class PledgeState(StrEnum):
    """``DUE > ASKED > KEPT``; ``ASKED > RESENT > DUE`` where something is missing there; ``GIVEN_UP`` at any time.

    From each of them to RESENT where a person sends all of it again.
    """

    DUE = "DUE"
    ASKED = "ASKED"
    RESENT = "RESENT"
    KEPT = "KEPT"
    GIVEN_UP = "GIVEN_UP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pledge:
    """How far a destination has committed to what was delivered to it (PS3.4 J, as its user).

    ``attempt`` counts the requests since all was there, ``rounds`` how often something had to be sent again.
    """

    delivery_id: int
    destination: str
    state: PledgeState
    attempt: int
    rounds: int
    not_before: datetime
    give_up_at: datetime
    asked_at: datetime | None
    failure: str = ""


class CommitmentState(StrEnum):
    """``ASKED > READY > TOLD | GIVEN_UP``; the same request again leads back to ASKED."""

    ASKED = "ASKED"
    READY = "READY"
    TOLD = "TOLD"
    GIVEN_UP = "GIVEN_UP"


Promise: TypeAlias = Literal["kept", "held", "delivered"]
"""What a commitment means: the node keeps it for ever; holds it and is to pass it on; every destination has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """A request for storage commitment (PS3.4 J), from its N-ACTION to the answer by N-EVENT-REPORT.

    ``references`` are (SOP class, SOP instance); ``failed`` maps SOP Instance UIDs to Failure Reasons once it is
    READY. ``report_to`` is where a requester is told (as a ``dimse`` destination's settings, our own AE title in
    it); None: on an association of its own making. ``answer_by``: what is not safe by then is told as failed.
    """

    id: int
    transaction_uid: str
    calling_ae: str
    called_ae: str
    address: str
    references: tuple[tuple[str, str], ...]
    promise: Promise
    report_to: Mapping[str, Any] | None
    state: CommitmentState
    asked_at: datetime
    answer_by: datetime
    failed: Mapping[str, int]
    attempt: int
    not_before: datetime
    ready_at: datetime | None = None
    told_at: datetime | None = None
    give_up_at: datetime
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """One link of the append-only, hash-chained record.

    ``hash`` = SHA-256(previous hash + canonical JSON of at, kind, subjects and body). ``subjects`` are
    the UIDs (study, series, instance; source or derived) that the record is about.
    """

    id: int
    at: datetime
    kind: str
    subjects: tuple[str, ...]
    body: Mapping[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds spent on one series, step by step, on the monotonic clock of whoever did the step."""

    receive_s: float = 0.0
    wait_s: float = 0.0
    queue_s: float = 0.0
    enhance_s: float = 0.0
    derive_s: float = 0.0
    deliver_s: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
