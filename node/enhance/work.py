"""One job from claim to outbox: sources from the spool, derived instances into it, one transaction at the end."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engines.base import Card, Engine, Params
from engines.catalog import Catalog
from node import __version__
from node.dicom.derivation import Derivation
from node.dicom.derive import derive
from node.dicom.modality import split
from node.dicom.part10 import write_part10
from node.dicom.references import Reference
from node.dicom.source import Source
from node.dicom.stacks import Stack, stacks
from node.enhance.chain import Item, Ran, Report, Stored, run
from node.errors import SeriesError
from node.log import get_logger
from node.model import DerivedInstance, Instance, InstanceHeader, Job, Series
from node.store import Store
from node.store.jobs import NewDerived

log = get_logger()

_LIBRARIES = ("numpy", "scipy", "scikit-image", "PyWavelets", "onnxruntime", "pydicom", "pynetdicom")


class Stopped(Exception):  # noqa: N818 - not an error: the node stops, or the job is somebody else's
    """Raised by ``tell`` to put a job down."""


@dataclass(slots=True, kw_only=True)
class Workshop:
    """What a worker keeps between jobs: the store, the catalogue, and engines that stay warm."""

    store: Store
    threads: int = 0
    catalog: Catalog = field(default_factory=Catalog.default)
    _engines: dict[tuple[str, str], Engine] = field(default_factory=dict)

    def engine(self, name: str, runtime: str) -> Engine:
        """An engine by catalogue name, loaded once."""
        key = (name, runtime)
        if key not in self._engines:
            self._engines[key] = self.catalog.load(name, runtime=runtime, threads=self.threads)
        return self._engines[key]


def do(workshop: Workshop, job: Job, owner: str, tell: Callable[[str, float], None]) -> None:
    """Do a job and record it.

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
    """
    store = workshop.store
    started = time.monotonic()
    series = store.series.get(job.series_id)
    if series is None:
        raise SeriesError("the series of this job is no longer on record")
    engine = workshop.engine(job.engine, str(job.params.get("runtime", "auto")))
    _same_engine(engine.card, job.params["card"])
    sources = _sources(store, series)
    told = split([h for _, h in sources], allow_vendor_denoised=bool(job.params["enhance_vendor_denoised"]))
    eligible = {h.sop_instance_uid for h in told.eligible}
    items = [_item(store, i, h) for i, h in sources if h.sop_instance_uid in eligible]
    how = _Derivations(job, engine.card)
    wanted = eligible - _made_by_others(store, how.series_uid, job.id)
    if not wanted:
        _nothing(store, job, owner, series, how)
        return
    found = stacks([i.header for i in items])
    params = Params(strength=float(job.params["strength"]), options=dict(job.params.get("options", {})))
    bench = _Bench(store, how, items, found, engine.card.neighbours)
    try:
        with store.spool.scratch(f"job-{job.id}") as scratch:
            report = run(
                items, found, engine, params, scratch=scratch.folder, emit=bench.emit, wanted=wanted, tell=tell
            )
        _plausible(report)
        store.spool.sync_dirs([d.path for d in bench.made])
        body = _body(job, engine.card, report, told.left_out, time.monotonic() - started, len(items))
        store.jobs.finish(job.id, owner, job.attempt, bench.derived(series), body, datetime.now(UTC))
    except BaseException:
        bench.clear()
        raise
    log.info(
        "job.done", job=job.id, series=series.id, engine=job.engine, instances=len(bench.made),
        seconds=round(time.monotonic() - started, 2), runtime=report.runtime,
    )  # fmt: skip


def _sources(store: Store, series: Series) -> list[tuple[Instance, InstanceHeader]]:
    """Instances of the series that can be read, with their headers: of all generations up to this one."""
    if series.generation > 1:
        instances = store.series.instances(series.id, up_to_generation=series.generation)
    else:
        instances = store.series.instances(series.id)
    headers = {
        h.sop_instance_uid: h
        for h in store.series.headers(series.id, all_generations=series.generation > 1)
    }
    return [(i, headers[i.sop_instance_uid]) for i in instances if i.sop_instance_uid in headers]


def _item(store: Store, instance: Instance, header: InstanceHeader) -> Item:
    return Item(
        path=store.spool.path(instance.path), offset=instance.offset, sha256=instance.sha256, header=header
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


def _plausible(report: Report) -> None:
    if report.n_slices and report.n_skipped >= report.n_slices:
        raise SeriesError("every slice was passed through unchanged: " + "; ".join(report.notes)[:300])


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
            when=job.created_at,
            product_version=__version__,
            serial=str(job.params["serial"]),
            engine=card.name,
            engine_title=card.title or card.name,
            engine_version=card.version,
            family=card.family,
            weights_sha256=card.weights_sha256,
            strength=float(job.params["strength"]),
            runtime=ran.runtime,
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

    def __init__(
        self,
        store: Store,
        how: _Derivations,
        items: Sequence[Item],
        found: Sequence[Stack],
        neighbours: int,
    ) -> None:
        self._store, self._how = store, how
        self._order = content_order([i.header for i in items])
        self._neighbours = neighbours_of(found, {i.header.sop_instance_uid: i.header for i in items}, neighbours)
        self._derivation: Derivation | None = None
        self._lock = threading.Lock()
        self.made: list[DerivedInstance] = []
        self._number, self._description = 0, ""

    def emit(self, item: Item, source: Source, stored: Stored, ran: Ran) -> None:
        if self._derivation is None:
            self._derivation = self._how.of(ran)
        uid = item.header.sop_instance_uid
        derived = derive(
            source, stored, self._derivation, order=self._order[uid], neighbours=self._neighbours.get(uid, ())
        )
        with self._store.spool.create() as writer:
            written = write_part10(derived, writer)
            writer.sync()
            path = writer.publish(derived.series_uid, derived.sop_instance_uid, written.sha256, "derived")
        with self._lock:
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
        order = self._order
        return NewDerived(
            study_uid=series.key.study_uid,
            series_uid=self._how.series_uid,
            number=self._number,
            description=self._description,
            instances=sorted(self.made, key=lambda d: order[d.source_sop_instance_uid]),
        )

    def clear(self) -> None:
        """Remove what was written but never recorded; a file that another attempt recorded stays."""
        for one in self.made:
            if not self._store.reception.known_path(one.path):
                self._store.spool.remove(one.path)


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
        uids = [r.sop_instance_uid for r in stack.frames]
        for i, uid in enumerate(uids):
            seen = told.setdefault(uid, {})
            for j in range(max(0, i - reach), min(len(uids), i + reach + 1)):
                joined = all(stack.contiguous[k] for k in range(min(i, j), max(i, j)))
                if uids[j] != uid and joined:
                    seen[uids[j]] = None
    return {
        uid: tuple(
            Reference(
                headers[n].sop_class_uid, n, headers[n].series_uid, headers[n].study_uid
            )
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
    card: Card,
    report: Report,
    excluded: Mapping[str, str],
    seconds: float,
    n_items: int,
) -> dict[str, Any]:
    told = asdict(card)
    return {
        "engine": {k: told[k] for k in ("name", "version", "family", "weights_sha256", "intended_use", "trained_on")},
        "strength": job.params["strength"],
        "options": dict(job.params.get("options", {})),
        "output": dict(job.params["output"]),
        "rule": job.rule,
        "attempt": job.attempt,
        "runtime": report.runtime,
        "device": report.device,
        "figures": {k: round(v, 6) for k, v in report.figures.items()},
        "notes": list(report.notes),
        "excluded": dict(excluded),
        "slices": report.n_slices,
        "skipped": report.n_skipped,
        "sources": n_items,
        "seconds": {**{k: round(v, 4) for k, v in report.seconds.items()}, "total": round(seconds, 4)},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The software that took part, by name."""
    told = {"luminode": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            told[name] = version(name)
        except PackageNotFoundError:
            continue
    return told
