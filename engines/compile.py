"""The plans of a catalogue: what to build of which engine for which GPU, once, and kept.

An engine has up to two network files, fp32 and fp16 (engines/card.py). For a GPU that is there each installed
flavour of TensorRT that runs on it gets a plan of each; TensorRT for RTX builds for GPUs that are elsewhere, too.
Plans are kept in engines/runtime/plans.py; two processes never build the same one at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.catalog import Catalog
from engines.errors import EngineError, PlanMismatch, RuntimeUnavailable
from engines.runtime import flavour as flavours
from engines.runtime import profile as profiles
from engines.runtime.build import build
from engines.runtime.gpu import Gpu
from engines.runtime.onnx import read_verified
from engines.runtime.plans import Kept, PlanKey, Plans, Status, ahead_of_time, for_gpu
from engines.runtime.profile import Profile

Precision = Literal["fp16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One plan to have.

    Attributes
    ----------
    gpu
        The GPU that it is for; None if it is for capabilities, wherever they are.
    """

    engine: str
    precision: Precision
    path: Path
    sha256: str
    key: PlanKey
    profile: Profile
    gpu: Gpu | None

    @property
    def title(self) -> str:
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job: ``built``, ``kept`` from before, or ``failed`` and why."""

    engine: str
    precision: str
    flavour: str
    target: str
    state: Literal["built", "kept", "failed"]
    seconds: float = 0.0
    size: int = 0
    fault: str = ""
    hint: str = ""


def jobs(
    catalog: Catalog,
    names: Sequence[str],
    *,
    flavour: str = "",
    gpus: Sequence[Gpu] = (),
    capabilities: Sequence[str] = (),
    precisions: Sequence[Precision] = PRECISIONS,
) -> tuple[Job, ...]:
    """What there is to build.

    Parameters
    ----------
    names
        Engines; those without a network have nothing to build.
    flavour
        Empty for all that are installed and run there.
    gpus
        What to build for, if ``capabilities`` is empty.
    capabilities
        What to build for ahead of time, all in one plan.

    Raises
    ------
    CardInvalid
    RuntimeUnavailable
        No flavour is installed, or none of them, or not the named one, runs there.
    """
    if flavour:
        flavours.bindings(flavour)
    chosen = (flavour,) if flavour else flavours.installed()
    if not chosen:
        raise RuntimeUnavailable("no TensorRT is installed", hint=flavours.FLAVOURS["tensorrt_rtx"].install)
    keys = _ahead(chosen, capabilities) if capabilities else _here(chosen, gpus)
    found: dict[PlanKey, Job] = {}
    for name in names:
        files = catalog.models(name)
        profile = profiles.of(catalog.card(name)) if files else None
        for precision in precisions:
            if precision not in files or profile is None:
                continue
            path, sha256 = files[precision]
            for make, gpu in keys:
                key = make(sha256, profile.digest())
                job = Job(
                    engine=name,
                    precision=precision,
                    path=path,
                    sha256=sha256,
                    key=key,
                    profile=profile,
                    gpu=gpu,
                )
                found.setdefault(key, job)
    return tuple(found.values())


_Make = Callable[[str, str], PlanKey]


def _ahead(chosen: Sequence[str], capabilities: Sequence[str]) -> list[tuple[_Make, Gpu | None]]:
    """Keys of plans for capabilities, of the flavours that build ahead of time."""
    able = [n for n in chosen if flavours.flavour(n).ahead_of_time]
    if not able:
        raise RuntimeUnavailable(
            f"{flavours.flavour(chosen[0]).title} builds only for the GPU that is there",
            hint="leave out --for on the machine with the GPU, or use tensorrt_rtx",
        )
    for name in able:
        for one in capabilities:
            flavours.check_capability(name, one)

    def maker(name: str) -> _Make:
        version = flavours.version(name)
        return lambda sha256, profile: ahead_of_time(sha256, name, version, capabilities, profile)

    return [(maker(name), None) for name in able]


def _here(chosen: Sequence[str], gpus: Sequence[Gpu]) -> list[tuple[_Make, Gpu | None]]:
    """Keys of plans for GPUs, of the flavours that run on them."""

    def maker(name: str, gpu: Gpu) -> _Make:
        version = flavours.version(name)
        return lambda sha256, profile: for_gpu(sha256, name, version, gpu, profile)

    if not gpus:
        raise RuntimeUnavailable(
            "there is no GPU here, or no driver",
            hint="see nvidia-smi; TensorRT for RTX builds for other machines: --for 86,89,120",
        )
    found: list[tuple[_Make, Gpu | None]] = []
    refused: RuntimeUnavailable | None = None
    for gpu in gpus:
        for name in chosen:
            try:
                flavours.check_gpu(name, gpu)
            except RuntimeUnavailable as e:
                refused = e
                continue
            found.append((maker(name, gpu), gpu))
    if not found and refused is not None:
        raise refused
    return found


def make(job: Job, plans: Plans, *, progress: Callable[[str, float], None] | None = None) -> Outcome:
    """Have a plan: the one that is kept if it is sound, else a new one.

    Parameters
    ----------
    progress
        See :data:`engines.runtime.build.Progress`.

    Returns
    -------
    What became of it; no error of the engines leaves this function.
    """
    try:
        kept = _kept(job, plans)
        if kept is None:
            with plans.lock(job.key):
                kept = _kept(job, plans)
                if kept is None:
                    return _build(job, plans, progress)
    except EngineError as e:
        return _outcome(job, "failed", fault=e.message, hint=e.hint)
    return _outcome(job, "kept", size=kept)


def _kept(job: Job, plans: Plans) -> int | None:
    """The size of the plan that is there and sound; what is refused is built again."""
    try:
        return len(plans.load(job.key))
    except PlanMismatch:
        return None


def _build(job: Job, plans: Plans, progress: Callable[[str, float], None] | None) -> Outcome:
    row = flavours.flavour(job.key.flavour)
    bound = job.gpu if row.bound_to_gpu else None
    timings = plans.cached("timing", job.key, bound) if bound and row.timing_cache else None
    made = build(
        read_verified(job.path, job.sha256),
        row.name,
        job.profile,
        targets=None if bound else job.key.capabilities,
        device=bound.index if bound else None,
        timing_cache=timings,
        progress=progress,
    )
    plans.store(job.key, made.plan, title=job.title)
    if bound and made.timing_cache:
        plans.cache("timing", job.key, bound, made.timing_cache)
    return _outcome(job, "built", seconds=round(made.seconds, 3), size=len(made.plan))


def _outcome(
    job: Job,
    state: Literal["built", "kept", "failed"],
    *,
    seconds: float = 0.0,
    size: int = 0,
    fault: str = "",
    hint: str = "",
) -> Outcome:
    return Outcome(
        engine=job.engine,
        precision=job.precision,
        flavour=job.key.flavour,
        target=job.key.target,
        state=state,
        seconds=seconds,
        size=size,
        fault=fault,
        hint=hint,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanState:
    """How it stands with one plan of an engine."""

    precision: str
    flavour: str
    state: str
    words: str
    hint: str = ""


def states(catalog: Catalog, name: str, plans: Plans, gpus: Sequence[Gpu]) -> tuple[PlanState, ...]:
    """How it stands with the plans of an engine: for the GPUs that are here, or all there are if none is.

    Raises
    ------
    CardInvalid
    """
    files = catalog.models(name)
    if not files:
        return ()
    profile = profiles.of(catalog.card(name)).digest()
    told: list[PlanState] = []
    for kind in flavours.installed():
        version = flavours.version(kind)
        for precision in PRECISIONS:
            if precision not in files:
                continue
            sha256 = files[precision][1]
            seen: list[Status] = []
            try:
                seen += _elsewhere(plans, sha256, kind, version, profile) if not gpus else []
            except PlanMismatch as e:
                told.append(_told(precision, kind, "refused", e.message, e.hint))
            for gpu in gpus:
                try:
                    flavours.check_gpu(kind, gpu)
                    seen.append(plans.state(plans.find(sha256, kind, version, gpu, profile)))
                except PlanMismatch as e:
                    told.append(_told(precision, kind, "refused", e.message, e.hint))
                except RuntimeUnavailable:
                    continue
            told += [_told(precision, kind, s.state, s.words, s.hint) for s in seen]
    return tuple(dict.fromkeys(told))


def _elsewhere(plans: Plans, sha256: str, kind: str, version: str, profile: str) -> list[Status]:
    """The plans that were built ahead of time, as a GPU of their capabilities would find them.

    Raises
    ------
    PlanMismatch
        The folder is not to be trusted.
    """
    keys = [k.key for k in plans.list() if k.kind == "plan" and k.key is not None]
    mine = [k for k in keys if (k.onnx_sha256, k.flavour) == (sha256, kind)]
    return [plans.state(ahead_of_time(sha256, kind, version, k.capabilities, profile)) for k in mine]


def _told(precision: str, flavour: str, state: str, words: str, hint: str) -> PlanState:
    return PlanState(precision=precision, flavour=flavour, state=state, words=words, hint=hint)


def purge(catalog: Catalog, plans: Plans, gpus: Sequence[Gpu]) -> int:
    """Remove plans that nobody here will load again; returns how many files.

    They are of networks that the catalogue no longer has, of other versions of an installed TensorRT, of
    other sizes or options, of GPUs or drivers that are not here, or refused. What was built for
    capabilities, for a GPU that may be elsewhere, stays. Without a GPU nothing is taken for another's.

    Raises
    ------
    PlanMismatch
        The folder is not to be trusted.
    """
    wanted = {
        (sha256, profiles.of(catalog.card(name)).digest())
        for name in catalog.names()
        for _, sha256 in catalog.models(name).values()
    }
    versions = {n: flavours.version(n) for n in flavours.installed()}
    here = {(g.name, g.driver) for g in gpus}

    def keep(one: Kept) -> bool:
        key = one.key
        if key is None:
            return False
        return (
            (one.kind == "timing" or (key.onnx_sha256, key.profile) in wanted)
            and versions.get(key.flavour, key.version) == key.version
            and flavours.options(key.flavour) == key.options
            and (not key.gpu or not here or (key.gpu, key.driver) in here)
        )

    return plans.purge(keep)
