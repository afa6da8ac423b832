"""What config.yaml may say: frozen models, one per section.

After parsing, durations are seconds (float), sizes bytes (int). Field descriptions are the documentation
of the keys: ``luminode config explain`` and docs/configuration.md are made from them. References between
sections (a rule's engine and destinations) and the order of the rules are checked by
:mod:`node.config.checks`, which :func:`node.config.load.parse` runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_serializer,
    model_validator,
)

from node.config.commitment import CommitmentSettings
from node.config.conditions import Condition
from node.config.grammar import WHEN_JSON, parse_when, write_when
from node.config.monitoring import MonitoringSettings
from node.config.network import (
    AcceptFrom,
    Address,
    ClientTLS,
    HostPort,
    Peer,
    Section,
    ServerTLS,
    TransferSyntaxes,
)
from node.config.values import (
    UID,
    AETitle,
    Database,
    Duration,
    Filled,
    GpuDevice,
    KeptFor,
    Name,
    Number,
    Options,
    Receivers,
    Refused,
    Size,
    Suffix,
    Truth,
    Whole,
    did_you_mean,
    quote,
)

__all__ = [
    "ClientTLS", "CloseOn", "CommitmentSettings", "Config", "Destination", "DimseDestination", "EngineSettings",
    "FolderDestination", "GpuSettings", "HostPort", "Keep", "LogSettings", "MonitoringSettings", "NodeSettings", "Peer",
    "Retry", "Rule", "Section", "SeriesSettings", "ServerTLS", "StoreSettings", "Timeouts",
]  # fmt: skip

RESTART: dict[str, Any] = {"restart": True}
"""Marks a key whose change takes effect only when the node starts again."""


Positive: TypeAlias = Annotated[Duration, Field(gt=0)]


class Timeouts(Section):
    """How long the receiver waits for a peer."""

    acse: Positive = Field(default=30.0, description="For an association to be asked for or released.")
    dimse: Positive = Field(default=60.0, description="Between two messages' parts inside one DIMSE message.")
    network: Positive = Field(default=120.0, description="For an idle association to say anything at all.")
    pdu: Positive = Field(
        default=20.0,
        description="For a PDU to arrive whole after its first byte. A peer that drips bytes is cut off.",
    )


class NodeSettings(Section):
    """The DICOM node that scanners send to."""

    ae_title: AETitle = Field(
        default="LUMINODE", description="What scanners call us: 1 to 16 characters (PS3.5 6.2, VR AE)."
    )
    listen: Address = Field(
        default=HostPort(host="0.0.0.0", port=11112),  # noqa: S104 - scanners are elsewhere
        description="Address and port to accept associations on. 0.0.0.0 is every interface, 127.0.0.1 "
        "this machine alone. Port 104, the well-known one, needs a privilege.",
        json_schema_extra=RESTART,
    )
    accept_from: AcceptFrom = Field(
        description="Calling AE titles that may send, as a list. An entry is an AE title, or "
        "{ae_title: CT1, addresses: [10.1.2.3, 10.1.3.0/24]} to pin it to addresses; with `report_to: host:port` "
        "where it listens for results of storage commitment. The word `any` lets everybody in: for a trial only.",
    )
    require_called_ae: Truth = Field(
        default=True, description="Turn away associations that call another AE title than `node.ae_title`."
    )
    max_associations: Annotated[Whole, Field(ge=1, le=4096)] = Field(
        default=128,
        description="Associations served at once; more are rejected as transient: peers retry.",
    )
    max_associations_per_address: Annotated[Whole, Field(ge=1, le=4096)] = Field(
        default=64,
        description="Of these, how many from one IP address. Connections that never become an association are "
        "not counted: they are cut off in time, and sooner where a newcomer needs the room.",
    )
    receivers: Receivers = Field(
        default=1,
        description="Processes that receive on the port: 1 to 16, or `auto`, which is one for every four cores, four "
        "at most. More than one helps where many associations send at once and cores are free. Limits hold for all "
        "of them together.",
        json_schema_extra=RESTART,
    )
    max_pdu: Annotated[Size, Field(ge=4096, le=4 * 1024 * 1024)] = Field(
        default=131072,
        description="Largest P-DATA PDU that we ask for, in bytes (PS3.8 D.1). 0, which means without limit, "
        "is refused: a peer could then make the node hold anything in memory.",
    )
    max_instance: Annotated[Size, Field(ge=1_000_000)] = Field(
        default=2_000_000_000, description="Largest data set taken in one C-STORE; a larger one is refused."
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="How long the receiver waits for a peer.")
    tls: ServerTLS | None = Field(
        default=None,
        description="Take TLS associations only, with these files. Left out: plain TCP.",
        json_schema_extra=RESTART,
    )
    commitment: CommitmentSettings = Field(
        default=CommitmentSettings(),
        description="Storage commitment: whether, and when, scanners are told that they may delete what they sent.",
    )
    private_classes: tuple[UID, ...] = Field(
        default=(), description="SOP class UIDs to store besides the standard ones, for vendors' own objects."
    )
    transfer_syntaxes: TransferSyntaxes = Field(
        default="any",
        description="Transfer syntaxes accepted for storage: `any` that is known, or a list of UIDs. Data is "
        "stored as it was received.",
    )

    def peer(self, calling_ae: str, address: str) -> bool:
        """True if this calling AE title may associate from this IP address."""
        if self.accept_from == "any":
            return True
        title = calling_ae.strip(" ")
        return any(each.ae_title == title and each.admits(address) for each in self.accept_from)


class Keep(Section):
    """How long finished data stays."""

    received: KeptFor = Field(
        default=7 * 86400.0, description="Received instances of a series that is finished, or `forever`."
    )
    derived: KeptFor = Field(
        default=30 * 86400.0, description="Derived instances that every destination holds, or `forever`."
    )
    provenance: Literal["forever"] = Field(
        default="forever", description="The provenance is append-only and hash-chained: only `forever`."
    )


class StoreSettings(Section):
    """Where received bytes, derived bytes and the records are kept."""

    spool: Filled = Field(
        default="var/spool",
        description="Folder for received and derived instances. One local filesystem: renames must be "
        "atomic. A relative path starts at the working directory.",
        json_schema_extra=RESTART,
    )
    database: Database = Field(
        default="sqlite:///var/luminode.db",
        repr=False,
        description="sqlite:///FILE (relative) or sqlite:////FILE (absolute) for one host, "
        "postgresql+psycopg://USER:PASSWORD@HOST/NAME for several. Give the password as ${DB_PASSWORD}.",
        json_schema_extra=RESTART,
    )
    keep: Keep = Field(default=Keep(), description="How long finished data stays. What is unfinished stays.")
    refuse_below: Size = Field(
        default=20_000_000_000,
        description="Free space under which C-STORE answers A700H (out of resources), ahead of a full disk.",
    )
    reject_below: Size | None = Field(
        default=None,
        description="Free space under which new associations for storage are rejected as transient (2/3/2), so that "
        "a scanner tries the whole job later; jobs under way go on down to `refuse_below`. Left out: a quarter above "
        "`refuse_below`.",
    )
    duplicates: Literal["keep_first", "replace"] = Field(
        default="keep_first",
        description="The same SOP instance UID again with other bytes: `keep_first` keeps what is there and "
        "sets the newcomer aside, `replace` takes the newcomer. Either is recorded; identical bytes are "
        "no event.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> StoreSettings:
        if self.reject_below is not None and self.reject_below < self.refuse_below:
            raise Refused("`reject_below` is less than `refuse_below`", "make `reject_below` the larger one")
        return self


class CloseOn(Section):
    """Which evidence, besides quiet time, says that a series is complete."""

    count: Truth = Field(
        default=True, description="The number of instances that the header promises has arrived."
    )
    release: Truth = Field(
        default=True,
        description="Every association that carried the series was released normally, and geometry is "
        "regular without gaps. An aborted association is never such evidence.",
    )


class SeriesSettings(Section):
    """When a series counts as complete, and what a late instance does."""

    quiet_after: Duration = Field(
        default=30.0, description="Without better evidence: no instance has come for this long."
    )
    give_up_after: Duration = Field(
        default=3600.0, description="Last resort: the series has been open for this long."
    )
    settle: Duration = Field(
        default=1.0,
        description="After the last association was released, how long to wait for another one to open.",
    )
    close_on: CloseOn = Field(default=CloseOn(), description="Stronger evidence; each may be turned off.")
    begin_early: Truth = Field(
        default=True,
        description="Decode and enhance slices while the rest of their series still comes. Nothing is derived or sent "
        "before the series is complete, and no bit of the result depends on it; `false` saves work on series that "
        "turn out not to be enhanced.",
    )
    late: Literal["append", "revise"] = Field(
        default="append",
        description="Instances that come after a series was enhanced: `append` computes only the new slices, "
        "into the same derived series; `revise` makes a complete new series, marked as a revision.",
    )


class EngineSettings(Section):
    """One way to enhance: an engine of the catalogue with its settings, under a name that rules use."""

    engine: Filled = Field(description="The engine's name in the catalogue, for example ct-cnn.")
    strength: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="0 gives the stored pixels back (interpolated, where the engine doubles the matrix), 1 is the "
        "most it does. Left out: the engine's own.",
    )
    runtime: Literal["auto", "tensorrt", "tensorrt_rtx", "onnx_cuda", "onnx"] = Field(
        default="auto",
        description="What runs a learned engine: `auto` is the first of tensorrt, tensorrt_rtx, onnx_cuda and onnx "
        "(CPU) that is there and answers rightly. Jobs of an engine that insists on one wait or are held without it.",
    )
    options: Options = Field(default={}, description="Further settings of this engine, see its card.")
    description_suffix: Annotated[Suffix, Field(max_length=32)] = Field(
        default=" [LUM]",
        description="Appended to Series Description, which is cut to fit 64 characters; this never is.",
    )
    series_number_offset: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(
        default=1000, description="Added to Series Number, so that the derived series follows its source."
    )
    research_mark: Truth = Field(
        default=True, description="Say in the derived objects that they are not for primary diagnosis alone."
    )
    value2: Literal["PRIMARY", "SECONDARY"] = Field(
        default="PRIMARY",
        description="Value 2 of Image Type in derived classic CT and MR. SECONDARY is legal, but many "
        "hanging protocols drop it. Enhanced objects always have PRIMARY (PS3.3 Table C.8-128).",
    )
    enhance_vendor_denoised: Truth = Field(
        default=False,
        description="Enhance series that the scanner's own deep learning has denoised already.",
    )


class GpuSettings(Section):
    """The GPUs that learned engines run on. A node without one needs nothing of this."""

    devices: tuple[GpuDevice, ...] | None = Field(
        default=None,
        description="GPUs to use: numbers or UUIDs as `nvidia-smi -L` shows them, of MIG slices too. Each gets a "
        "worker of its own, and its own mark if it turns out unfit. Left out: the first one that there is. An empty "
        "list: none, the CPU alone.",
        json_schema_extra=RESTART,
    )
    memory: Annotated[Size, Field(ge=100_000_000)] | None = Field(
        default=None,
        description="GPU memory that one engine may take at most, besides its weights. Left out: four fifths of what "
        "is free when it is loaded.",
        json_schema_extra=RESTART,
    )
    plans: Filled | None = Field(
        default=None,
        description="Folder of compiled plans; for the node's user alone, since a plan is code. Left out: `plans` "
        "beside `store.spool`.",
        json_schema_extra=RESTART,
    )

    @model_validator(mode="after")
    def _each_once(self) -> GpuSettings:
        devices = [d.casefold() for d in self.devices or ()]
        if len(set(devices)) < len(devices):
            raise Refused("`devices` names a GPU twice", "each GPU has one worker")
        return self


class Retry(Section):
    """How a delivery is tried again."""

    for_: KeptFor = Field(
        default=None,
        alias="for",
        description="Give up after this long, or `forever`: a PACS that is away is waited for, with alarms "
        "after a minute, an hour and a day.",
    )
    first: Annotated[Duration, Field(gt=0)] = Field(default=5.0, description="Pause after the first failure.")
    at_most: Annotated[Duration, Field(gt=0)] = Field(
        default=900.0, description="Longest pause; pauses double up to it, with full jitter."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Retry:
        if self.first > self.at_most:
            raise Refused("`first` is longer than `at_most`", "make `first` the shorter one")
        return self


FORWARD_ORIGINALS = (
    "`true` where this node is the only way from the scanner: everything received goes there as it came, at once and "
    "whatever the rules say. `false` where the scanner sends there itself."
)


class DimseDestination(Section):
    """A PACS that takes C-STORE."""

    kind: Literal["dimse"] = Field(default="dimse", description="`dimse`: C-STORE to a PACS.")
    ae_title: AETitle = Field(description="The destination's AE title.")
    address: Address = Field(description="The destination's host:port.")
    calling_ae: AETitle | None = Field(
        default=None, description="The AE title that we call with. Left out: `node.ae_title`."
    )
    max_pdu: Annotated[Size, Field(ge=4096, le=4 * 1024 * 1024)] = Field(
        default=131072, description="Largest PDU that we ask the destination to send, in bytes."
    )
    timeout: Annotated[Duration, Field(gt=0)] = Field(
        default=30.0, description="For connecting, and for the answer to each C-STORE."
    )
    retry: Retry = Field(default=Retry(), description="How long and how often a delivery is tried again.")
    equipment: Literal["standard", "retain"] = Field(
        default="standard",
        description="General Equipment of derived objects: `standard` names Luminode as the manufacturer and "
        "the scanner as contributing equipment; `retain` keeps the scanner's, for a PACS that sorts by it.",
    )
    tls: ClientTLS | None = Field(default=None, description="Use TLS with these files. Left out: plain TCP.")
    forward_originals: Truth = Field(default=False, description=FORWARD_ORIGINALS)
    commit: Truth = Field(
        default=False,
        description="Ask the destination for storage commitment of all that was sent there: it has to say that it "
        "holds each instance for good, and what it does not hold is sent again. It calls `node.listen` with the "
        "result, by its `ae_title`, or answers on the association that asks; files stay until it has.",
    )
    commit_within: Annotated[Duration, Field(gt=0)] = Field(
        default=2 * 86400.0,
        description="With `commit`: how long to wait for the destination's answer. After that the delivery counts as "
        "sent, and `delivery.uncommitted` tells a person.",
    )

    @property
    def host(self) -> str:
        return self.address.host

    @property
    def port(self) -> int:
        return self.address.port


class FolderDestination(Section):
    """A folder, written file by file, each complete or absent."""

    kind: Literal["folder"] = Field(default="folder", description="`folder`: files in a folder.")
    path: Filled = Field(description="The folder; made if absent.")
    retry: Retry = Field(default=Retry(), description="How long and how often a delivery is tried again.")
    equipment: Literal["standard", "retain"] = Field(
        default="standard", description="General Equipment of derived objects, as for `dimse`."
    )
    forward_originals: Truth = Field(default=False, description="As for `dimse`.")


KINDS = ("dimse", "folder")
LATER_KINDS = ("dicomweb", "stow")


def kind_of(value: object) -> object:
    """What a destination, as a mapping or a model, says of its kind; None if nothing."""
    return value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)


def _known_kind(value: object) -> object:
    kind = kind_of(value)
    if kind is None:
        raise Refused("the destination has no kind", f"add kind: {' or kind: '.join(KINDS)}")
    if kind in LATER_KINDS:
        raise Refused(
            f"destinations of the kind {kind} are not built yet",
            f"DICOMweb comes with a later release; use kind: {' or kind: '.join(KINDS)}",
        )
    if kind not in KINDS:
        raise Refused(
            f"there is no kind {quote(kind)}",
            did_you_mean(str(kind), KINDS, f"write kind: {' or kind: '.join(KINDS)}"),
            wanted=f"write kind: {' or kind: '.join(KINDS)}",
        )
    return value


Destination: TypeAlias = Annotated[
    Annotated[
        Annotated[DimseDestination, Tag("dimse")] | Annotated[FolderDestination, Tag("folder")],
        Discriminator(kind_of),
    ],
    BeforeValidator(_known_kind),
]


class Rule(Section):
    """Which series are enhanced, how, and where the result goes. Read downwards; the first match wins."""

    name: Annotated[Filled, Field(max_length=64)] = Field(
        description="What people call the rule; unique. At most 64 characters."
    )
    when: Annotated[Mapping[str, Condition], BeforeValidator(parse_when), WithJsonSchema(WHEN_JSON)] = Field(
        description="`any`, or DICOM keywords with a condition each, all of which must hold."
    )
    enhance: Name | None = Field(default=None, description="The entry of `engines:` to enhance with.")
    send_to: tuple[Name, ...] = Field(
        default=(), description="The entries of `destinations:` that get the derived series."
    )
    ignore: Truth = Field(default=False, description="`true`: do nothing with a series that matches.")
    strength: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        default=None, description="Strength for this rule, instead of the engine's."
    )

    @field_serializer("when")
    def _when(self, when: Mapping[str, Condition]) -> Any:
        return write_when(when)


class LogSettings(Section):
    """What the node writes to standard error. Patient data is never part of it."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="info: a line per change of state; warning: what a person may want to know.",
    )
    format: Literal["console", "json"] = Field(
        default="console", description="`console` for people, `json` for machines: one object a line."
    )


class Config(Section):
    """The whole of config.yaml."""

    node: NodeSettings = Field(description="The DICOM node that scanners send to.")
    store: StoreSettings = Field(default=StoreSettings(), description="Where bytes and records are kept.")
    series: SeriesSettings = Field(default=SeriesSettings(), description="When a series counts as complete.")
    engines: dict[Name, EngineSettings] = Field(
        default={}, description="Ways to enhance, each under a name that rules use."
    )
    destinations: dict[Name, Destination] = Field(
        default={},
        description="Where derived series go, each under a name that rules use; and originals, see "
        "`forward_originals`.",
    )
    rules: tuple[Rule, ...] = Field(
        default=(),
        description="Which series are enhanced. Read downwards, the first match wins; no match: ignored.",
    )
    gpu: GpuSettings = Field(default=GpuSettings(), description="The GPUs that learned engines run on.")
    monitoring: MonitoringSettings = Field(
        default=MonitoringSettings(),
        description="Pages for whoever watches the node: /healthz, /readyz and /metrics.",
    )
    log: LogSettings = Field(default=LogSettings(), description="What the node writes to standard error.")
