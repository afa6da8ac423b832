"""One job from claim to outbox: sources from the spool, derived instances into it, one transaction."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engines.base import NEIGHBOUR_MM, Card, Params
from engines.errors import OutOfMemory, RuntimeUnavailable
from engines.ladder import Refusal
from engines.runtime import flavour
from node import __version__
from node.dicom.derivation import Derivation
from node.dicom.derive import derive
from node.dicom.modality import split
from node.dicom.part10 import write_part10
from node.dicom.references import Reference
from node.dicom.source import Source
from node.dicom.stacks import Stack, stacks
from node.enhance.ahead import Ahead
from node.enhance.chain import SLAB, Item, Ran, Report, Stored, run, slab_pixels
from node.enhance.workshop import Proven, Workshop
from node.errors import OutOfSpace, SeriesError, StoreError
from node.failpoints import failpoint
from node.log import get_logger
from node.model import DerivedInstance, Instance, InstanceHeader, Job, JobState, Series
from node.store import Store
from node.store.jobs import NewDerived

log = get_logger()

_LIBRARIES = (
    "numpy", "scipy", "scikit-image", "PyWavelets", "onnxruntime", "pydicom", "pynetdicom", "tensorrt",
    "tensorrt-rtx-cu13-libs", "cuda-python",
)  # fmt: skip


_RECORD_WITHIN_S = 120.0
_RECORD_AGAIN_S = 1.0
_TOLD_OF_CARD = ("name", "version", "family", "scale", "weights_sha256", "intended_use", "trained_on")


class Stopped(Exception):
    """Raised by ``tell`` to put a job down."""


def do(
    workshop: Workshop,
    job: Job,
    owner: str,
    tell: Callable[[str, float], None],
    *,
    reference: bool = False,
    expect: Callable[[Proven, int, int], None] = lambda _engine, _n_pixels, _n_bytes: None,
    ahead: Ahead | None = None,
) -> None:
    """Do a job and record it.

    Parameters
    ----------
    tell
        Called with (step, share done); may raise :class:`Stopped`.
    reference
        Do without accelerators.
    expect
        Called before the engine is, with what is known of it, the pixels of the largest slab and the bytes of the
        largest derived instance.
    ahead
        What this worker did before the series was complete.

    Raises
    ------
    SeriesError, DeriveError
        The series cannot be enhanced as it is; a defect of ours.
    engines.errors.EngineError
        See there.
    Stopped
        ``tell`` said so.
    TransitionRefused
        The job became somebody else's.
    StoreError, OSError
        The database or the disk did not do what was asked.
    """
    runtime = str(job.params.get("runtime", "auto"))
    while True:
        try:
            _do(workshop, job, owner, tell, runtime, reference, expect, ahead)
        except (OutOfMemory, RuntimeUnavailable) as e:
            if reference or not workshop.step_down(job.engine, runtime, e):
                raise
        else:
            workshop.worked(job.engine, runtime, reference=reference)
            return


def _do(
    workshop: Workshop,
    job: Job,
    owner: str,
    tell: Callable[[str, float], None],
    runtime: str,
    reference: bool,
    expect: Callable[..., None],
    ahead: Ahead | None,
) -> None:
    store = workshop.store
    started = time.monotonic()
    series = store.series.get(job.series_id)
    if series is None:
        raise SeriesError("the series of this job is no longer on record")
    proven = workshop.proven(job.engine, runtime, reference=reference)
    engine = proven.engine
    _same_engine(engine.card, job.params["card"])
    how = _Derivations(job, engine.card)
    plan = _plan(store, job, series, how.series_uid, engine.card)
    if not plan.wanted:
        _nothing(store, job, owner, series, how)
        return
    if ahead is not None and store.spool.free_bytes() < plan.n_bytes:
        ahead.make_room(job.series_id)
    if store.spool.free_bytes() < plan.n_bytes:
        hint = "free space on the spool's file system"
        raise OutOfSpace("there is no room for what this job makes", hint=hint)
    expect(proven, max(slab_pixels(s, engine.card.scale) for s in plan.stacks), plan.largest)
    params = Params(strength=float(job.params["strength"]), options=dict(job.params.get("options", {})))
    bench = _Bench(store, how, plan)
    try:
        before = ahead.take(job, proven) if ahead is not None and not reference else None
        if before is not None and not before.fits(plan.items):
            before = None
        with store.spool.scratch(f"job-{job.id}") as scratch:
            report = run(
                plan.items, plan.stacks, engine, params,
                scratch=scratch.folder, emit=bench.emit, wanted=plan.wanted, tell=tell,
                worked=proven.pace.worked,
                # After running out of memory: the same in less.
                slab=SLAB if job.attempt == 1 else SLAB // 2, lanes=None if job.attempt == 1 else 1,
                ahead=before,
            )  # fmt: skip
        store.spool.sync_dirs([d.path for d in bench.made])
        failpoint("enhance.names_durable")
        body = _body(job, proven, report, plan, time.monotonic() - started)
        _record(store, job, owner, bench.derived(series), body, tell)
    except BaseException:
        bench.clear(job)
        raise
    log.info(
        "job.done", job=job.id, series=series.id, engine=job.engine, instances=len(bench.made),
        passed_through=report.n_skipped, seconds=round(time.monotonic() - started, 2), runtime=report.runtime,
        made_before=report.n_before,
    )  # fmt: skip


def _record(
    store: Store,
    job: Job,
    owner: str,
    derived: NewDerived,
    body: Mapping[str, Any],
    tell: Callable[[str, float], None],
) -> None:
    """Finish the job. A database that is away for a moment must not cost the work on a whole series."""
    patient_until = time.monotonic() + _RECORD_WITHIN_S
    while True:
        try:
            store.jobs.finish(job.id, owner, job.attempt, derived, body, datetime.now(UTC))
            failpoint("enhance.finished")
            return
        except StoreError as e:
            if not e.retryable or time.monotonic() > patient_until:
                raise
            log.warning("job.not_recorded_yet", job=job.id, because=type(e).__name__)
        tell("record", 0.0)
        time.sleep(_RECORD_AGAIN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a job reads and makes; all that is kept of the headers while it runs.

    ``order`` is the place of each source in the derived series, ``neighbours`` what else it is made from,
    ``wanted`` what no other job has derived, ``left_out`` what may not be enhanced, with the reasons.
    ``n_bytes`` is what scratch files and derived instances may need on the disk, ``largest`` the largest of these.
    """

    items: Sequence[Item]
    stacks: Sequence[Stack]
    order: Mapping[str, int]
    neighbours: Mapping[str, tuple[Reference, ...]]
    wanted: Set[str]
    left_out: Mapping[str, str]
    n_bytes: int
    largest: int


def _plan(store: Store, job: Job, series: Series, derived_series_uid: str, card: Card) -> _Plan:
    sources = _sources(store, series)
    told = split([h for _, h in sources], allow_vendor_denoised=bool(job.params["enhance_vendor_denoised"]))
    headers = {h.sop_instance_uid: h for h in told.eligible}
    if not headers:
        reasons = sorted(set(told.left_out.values())) or ["none of its instances is there any more"]
        raise SeriesError(f"nothing of this series may be enhanced: {reasons[0]}")
    wanted = headers.keys() - _made_by_others(store, derived_series_uid, job.id)
    found = stacks(told.eligible)
    pixels = {uid: 2 * h.rows * h.columns * max(1, h.n_frames) for uid, h in headers.items()}
    return _Plan(
        items=[_item(store, i) for i, h in sources if h.sop_instance_uid in headers],
        stacks=found,
        order=content_order(told.eligible),
        neighbours=neighbours_of(found, headers, card.neighbours),
        wanted=wanted,
        left_out=told.left_out,
        n_bytes=sum(pixels.values())
        + card.scale**2 * sum(pixels[uid] * (1 + (headers[uid].n_frames > 1)) for uid in wanted),
        largest=card.scale**2 * max(pixels.values()),
    )


def _sources(store: Store, series: Series) -> list[tuple[Instance, InstanceHeader]]:
    """Instances of the series with their headers: of all generations up to this one.

    Raises
    ------
    SeriesError
        One of them cannot be read: the derived series would have a hole that nobody sees.
    """
    if series.generation > 1:
        instances = store.series.instances(series.id, up_to_generation=series.generation)
    else:
        instances = store.series.instances(series.id)
    headers = {
        h.sop_instance_uid: h for h in store.series.headers(series.id, all_generations=series.generation > 1)
    }
    n_unread = sum(i.sop_instance_uid not in headers for i in instances)
    if n_unread:
        raise SeriesError(f"{n_unread} of {len(instances)} instances cannot be read")
    return [(i, headers[i.sop_instance_uid]) for i in instances]


def _item(store: Store, instance: Instance) -> Item:
    return Item(
        sop_instance_uid=instance.sop_instance_uid,
        path=store.spool.path(instance.path),
        offset=instance.offset,
        sha256=instance.sha256,
    )


def _same_engine(card: Card, queued: Mapping[str, Any]) -> None:
    have = (card.name, card.version, card.weights_sha256)
    if have != (queued["name"], queued["version"], queued["weights_sha256"]):
        raise SeriesError(
            "the engine changed since this series was routed",
            hint="`luminode series retry` routes it again, with the engine that is here now",
        )


def _made_by_others(store: Store, series_uid: str, job_id: int) -> set[str]:
    """Sources that another job derived into the same derived series: what was delivered stays as it is."""
    return {
        i.source_sop_instance_uid
        for d in store.deliveries.derived_by_series_uid(series_uid)
        if d.job_id != job_id
        for i in d.instances
    }


class _Derivations:
    """The Derivation of a job, once it is known what it runs on."""

    def __init__(self, job: Job, card: Card) -> None:
        self._job, self._card = job, card
        self.series_uid = self.of(Ran(runtime=card.runtime, device="")).series_uid

    def of(self, ran: Ran) -> Derivation:
        job, card, output = self._job, self._card, self._job.params["output"]
        return Derivation(
            derivation_key=job.params["key"],
            revision=job.revision,
            when=job.created_at.astimezone(
                timezone(timedelta(minutes=int(job.params.get("utc_offset_minutes", 0))))
            ),
            product_version=__version__,
            serial=str(job.params["serial"]),
            engine=card.name,
            engine_title=card.title or card.name,
            engine_version=card.version,
            family=card.family,
            weights_sha256=card.weights_sha256,
            strength=float(job.params["strength"]),
            scale=card.scale,
            runtime=named(ran.runtime),
            device=ran.device,
            description_suffix=output["description_suffix"],
            series_number_offset=output["series_number_offset"],
            equipment=output["equipment"],
            value2=output["value2"],
            research_mark=output["research_mark"],
            partial=False,
        )


class _Bench:
    """Derives instances into the spool, as the chain emits them."""

    def __init__(self, store: Store, how: _Derivations, plan: _Plan) -> None:
        self._store, self._how, self._plan = store, how, plan
        self._derivation: Derivation | None = None
        self.made: list[DerivedInstance] = []
        self._number, self._description = 0, ""

    def emit(self, item: Item, source: Source, stored: Stored, ran: Ran) -> None:
        if self._derivation is None:
            self._derivation = self._how.of(ran)
        uid, plan = item.sop_instance_uid, self._plan
        derived = derive(
            source, stored, self._derivation, order=plan.order[uid], neighbours=plan.neighbours.get(uid, ())
        )
        with self._store.spool.create() as writer:
            written = write_part10(derived, writer)
            writer.sync()
            path = writer.publish(derived.series_uid, derived.sop_instance_uid, written.sha256, "derived")
        failpoint("enhance.derived")
        self._number, self._description = derived.series_number, derived.series_description
        self.made.append(
            DerivedInstance(
                sop_class_uid=derived.sop_class_uid,
                sop_instance_uid=derived.sop_instance_uid,
                source_sop_instance_uid=uid,
                transfer_syntax_uid=derived.transfer_syntax_uid,
                path=path,
                size=written.size,
                offset=written.offset,
                sha256=written.sha256,
            )
        )

    def derived(self, series: Series) -> NewDerived:
        order = self._plan.order
        return NewDerived(
            study_uid=series.key.study_uid,
            series_uid=self._how.series_uid,
            number=self._number,
            description=self._description,
            instances=sorted(self.made, key=lambda d: order[d.source_sop_instance_uid]),
        )

    def clear(self, job: Job) -> None:
        """Remove what was written but never recorded.

        What another attempt is at work on has the same names, and stays; so does all while the database is
        away: reconciliation removes derived files that no row speaks of.
        """
        try:
            now = self._store.jobs.get(job.id)
            if now is not None and now.state is JobState.RUNNING and now.attempt != job.attempt:
                return
            for one in self.made:
                if not self._store.reception.known_path(one.path):
                    self._store.spool.remove(one.path)
        except StoreError as e:
            log.warning("job.files_left", job=job.id, n=len(self.made), because=type(e).__name__)


def content_order(headers: Sequence[InstanceHeader]) -> dict[str, int]:
    """SOP Instance UID -> index in the order of Instance Number (those without one last, by UID)."""
    ordered = sorted(
        headers,
        key=lambda h: (h.instance_number is None, h.instance_number or 0, h.sop_instance_uid),
    )
    return {h.sop_instance_uid: i for i, h in enumerate(ordered)}


def neighbours_of(
    found: Sequence[Stack], headers: Mapping[str, InstanceHeader], reach: int
) -> dict[str, tuple[Reference, ...]]:
    """SOP Instance UID -> the other instances that its derived instance was also made from."""
    told: dict[str, dict[str, None]] = {}
    if not reach:
        return {}
    for stack in found:
        if not 0 < stack.spacing_mm[0] <= NEIGHBOUR_MM:
            continue
        uids = [r.sop_instance_uid for r in stack.frames]
        for i, uid in enumerate(uids):
            seen = told.setdefault(uid, {})
            for j in range(max(0, i - reach), min(len(uids), i + reach + 1)):
                joined = all(stack.contiguous[k] for k in range(min(i, j), max(i, j)))
                if uids[j] != uid and joined:
                    seen[uids[j]] = None
    return {
        uid: tuple(
            Reference(headers[n].sop_class_uid, n, headers[n].series_uid, headers[n].study_uid)
            for n in others
        )
        for uid, others in told.items()
    }


def _nothing(store: Store, job: Job, owner: str, series: Series, how: _Derivations) -> None:
    """Everything was derived by other jobs already: done, with nothing to deliver."""
    derived = NewDerived(
        study_uid=series.key.study_uid, series_uid=how.series_uid, number=0, description="", instances=()
    )
    body = {"note": "every instance was derived by another job"}
    store.jobs.finish(job.id, owner, job.attempt, derived, body, datetime.now(UTC), deliveries=())
    log.info("job.done", job=job.id, series=series.id, engine=job.engine, instances=0)


def _body(
    job: Job,
    proven: Proven,
    report: Report,
    plan: _Plan,
    seconds: float,
) -> dict[str, Any]:
    told = asdict(proven.engine.card)
    return {
        "engine": {k: told[k] for k in _TOLD_OF_CARD},
        "strength": job.params["strength"],
        "options": dict(job.params.get("options", {})),
        "output": dict(job.params["output"]),
        "rule": job.rule,
        "attempt": job.attempt,
        "runtime": report.runtime,
        "device": report.device,
        "refused": [_refused(r) for r in proven.refused],
        "figures": {k: round(v, 6) for k, v in report.figures.items()},
        "notes": list(report.notes),
        "excluded": dict(plan.left_out),
        "slices": report.n_slices,
        "skipped": report.n_skipped,
        "made_before": report.n_before,
        "sources": len(plan.items),
        "seconds": {**{k: round(v, 4) for k, v in report.seconds.items()}, "total": round(seconds, 4)},
        "versions": versions(),
    }


def _refused(one: Refusal) -> dict[str, str]:
    """A faster runtime that was there and did not serve, as the provenance tells it."""
    return {"runtime": one.runtime, "kind": one.kind, "because": one.message}


def named(runtime: str) -> str:
    """A runtime as derived objects name it: a TensorRT with its version, of which its results depend."""
    try:
        return f"{runtime} {flavour.version(runtime)}" if runtime in flavour.FLAVOURS else runtime
    except RuntimeUnavailable:
        return runtime


def versions() -> dict[str, str]:
    """The software that took part, by name."""
    told = {"luminode": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            told[name] = version(name)
        except PackageNotFoundError:
            continue
    return told
