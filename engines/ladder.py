"""The runtimes of learned engines as a ladder: the fastest first, and below it what serves where that cannot.

::

    tensorrt      a plan of TensorRT for this GPU       (engines/runtime/tensorrt.py, plans by engines/compile.py)
    tensorrt_rtx  a plan of TensorRT for RTX            (the same)
    onnx_cuda     ONNX Runtime on the GPU, if installed (engines/runtime/onnx.py)
    onnx          ONNX Runtime on the CPU               the reference of them all

A rung that cannot serve says why, and the next is tried: nothing is silent. Whether the rung that stood answers
rightly is asked afterwards, by whoever loads the engine (engines/canary.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engines.base import Card
from engines.errors import (
    CardInvalid,
    EngineError,
    GpuUnusable,
    OutOfMemory,
    PlanMismatch,
    RuntimeUnavailable,
)

if TYPE_CHECKING:
    from engines.runtime.gpu import Gpu
    from engines.runtime.network import Network
    from engines.runtime.plans import PlanKey, Plans

Kind = Literal["absent", "gpu", "plan", "memory", "avoided", "canary"]

MOST_CALLS = 4
"""Slices in a network at once, on a CPU: one thread each is a tenth faster than many on one slice, but each
takes memory of its own. What is left of the threads works inside of the calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where engines run.

    Attributes
    ----------
    plans
        Folder of compiled plans; None for the user's cache.
    most_bytes
        Of GPU memory for one engine, besides its weights; 0 means most of what is free.
    gpu
        Ordinal among the GPUs that are shown to this process (CUDA_VISIBLE_DEVICES names them, MIG slices too).
    """

    plans: Path | None = None
    most_bytes: int = 0
    gpu: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a network is to be made of: the files of an engine by precision, each with its digest."""

    card: Card
    models: Mapping[str, tuple[Path, str]]
    threads: int
    place: Place

    @property
    def reference(self) -> tuple[Path, str]:
        """The fp32 file, whose digest is the card's.

        Raises
        ------
        CardInvalid
        """
        if "fp32" not in self.models:
            raise CardInvalid(f"{self.card.name} has no network file")
        return self.models["fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a runtime does not serve.

    Attributes
    ----------
    kind
        ``absent``: its library, driver or GPU is not there, which is no fault. ``gpu``: there is one that it runs on
        and that cannot be used. ``plan``: there is no plan that
        may be loaded; building one mends it. ``memory``: the GPU has too little. ``avoided``: it was not asked.
        ``canary``: it answered a question of known answer wrongly (told by whoever asks, not by the ladder).
    """

    runtime: str
    kind: Kind
    message: str
    hint: str = ""


def _nothing() -> None:
    """Where there is nothing to keep, or to give back that would not go by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """A network that holds a GPU's memory.

    Attributes
    ----------
    keep
        Keeps the kernels that it compiled so far for the next start. Raises PlanMismatch or RuntimeUnavailable where
        they cannot be kept: that costs time, no result.
    close
        Gives everything back.
    """

    network: Network
    keep: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Stood:
    """The network of the rung that holds, why those above it do not, and what :class:`OnGpu` tells of it."""

    network: Network
    refusals: tuple[Refusal, ...]
    keep: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing


Rung = Callable[[Wanted], "Network | OnGpu"]


def _plan(name: str, wanted: Wanted) -> OnGpu:
    """A network of a kept plan: fp16 if there is one, else fp32."""
    from engines.runtime import flavour, gpu, profile
    from engines.runtime.onnx import read_verified
    from engines.runtime.plans import Plans
    from engines.runtime.tensorrt import TensorrtNetwork

    flavour.bindings(name)
    shown = gpu.local()
    if wanted.place.gpu >= len(shown):
        raise RuntimeUnavailable("there is no GPU here, or no driver", hint="see nvidia-smi; the CPU serves")
    card, mine = shown[wanted.place.gpu], profile.of(wanted.card)
    flavour.check_gpu(name, card)
    # An altered file is refused even where a plan that was made of the true one would still serve.
    read_verified(*wanted.reference)
    plans = Plans(wanted.place.plans)
    key, plan = _kept(plans, wanted, name, flavour.version(name), card, mine.digest())
    row = flavour.flavour(name)
    before = plans.cached("kernels", key, card) if row.runtime_cache else None
    try:
        with plans.telling():
            network = TensorrtNetwork.load(
                plan,
                name=name,
                profile=mine,
                factor=wanted.card.scale,
                which=wanted.place.gpu,
                kernels=before,
                most_bytes=wanted.place.most_bytes,
            )
    except PlanMismatch:
        raise
    except RuntimeUnavailable as e:
        # All was there: a GPU, its TensorRT and a plan.
        raise GpuUnusable(e.message, hint=e.hint) from e

    def keep() -> None:
        made = network.kernels()
        if made and made != before:
            plans.cache("kernels", key, card, made)

    return OnGpu(network=network, keep=keep, close=network.close)


def _kept(
    plans: Plans, wanted: Wanted, name: str, version: str, card: Gpu, profile: str
) -> tuple[PlanKey, bytes]:
    refusal: PlanMismatch | None = None
    for precision in ("fp16", "fp32"):
        if precision not in wanted.models:
            continue
        key = plans.find(wanted.models[precision][1], name, version, card, profile)
        try:
            return key, plans.load(key)
        except PlanMismatch as e:
            refusal = refusal or e
    raise refusal or CardInvalid(f"{wanted.card.name} has no network file")


def _onnx_cuda(wanted: Wanted) -> Network:
    from engines.runtime.onnx import OnnxNetwork

    place = wanted.place
    return OnnxNetwork.load(
        *wanted.reference, threads=1, provider="cuda", which=place.gpu, most_bytes=place.most_bytes
    )


def _onnx(wanted: Wanted) -> Network:
    from engines.runtime.onnx import OnnxNetwork

    return OnnxNetwork.load(*wanted.reference, threads=max(1, wanted.threads // MOST_CALLS))


RUNGS: Mapping[str, Rung] = {
    "tensorrt": partial(_plan, "tensorrt"),
    "tensorrt_rtx": partial(_plan, "tensorrt_rtx"),
    "onnx_cuda": _onnx_cuda,
    "onnx": _onnx,
}
"""The fastest first."""

REFERENCE = "onnx"

ACCELERATED = frozenset(RUNGS) - {REFERENCE}
"""Runtimes that need a GPU."""


def climb(
    wanted: Wanted, runtime: str = "auto", avoid: Collection[str] = (), rungs: Mapping[str, Rung] = RUNGS
) -> Stood:
    """Take the first rung that holds, or the one that is insisted on.

    Raises
    ------
    RuntimeUnavailable
        None holds; the message is that of the lowest, the hint that of the highest which a person can mend.
    CardInvalid, WeightsMismatch
        The engine's files are wrong: no runtime would make them right.
    DeviceLost
        The GPU is in an unknown state: this process must end.
    """
    refusals: list[Refusal] = []
    for name in rungs if runtime == "auto" else (runtime,):
        if name in avoid:
            refusals.append(_avoided(name))
            continue
        try:
            made = rungs[name](wanted)
            held = made if isinstance(made, OnGpu) else OnGpu(network=made)
            return Stood(network=held.network, refusals=tuple(refusals), keep=held.keep, close=held.close)
        except (RuntimeUnavailable, OutOfMemory) as e:
            refusals.append(Refusal(runtime=name, kind=_kind(e), message=e.message, hint=e.hint))
    raise _none(refusals)


def _avoided(name: str) -> Refusal:
    return Refusal(
        runtime=name,
        kind="avoided",
        message=f"the runtime {name} is not to be used now",
        hint="say `runtime: auto`, or see to the GPU",
    )


def _kind(e: EngineError) -> Kind:
    kinds: Mapping[type[EngineError], Kind] = {
        OutOfMemory: "memory",
        PlanMismatch: "plan",
        GpuUnusable: "gpu",
    }
    return next((kind for of, kind in kinds.items() if isinstance(e, of)), "absent")


def _none(refusals: list[Refusal]) -> EngineError:
    if not refusals:
        return RuntimeUnavailable("no runtime is left that may be used now", hint="see to the GPU")
    last = refusals[-1]
    hints = [r.hint for r in refusals if r.hint and r.kind in ("gpu", "plan", "memory")]
    kinds: Mapping[Kind, type[EngineError]] = {
        "plan": PlanMismatch,
        "memory": OutOfMemory,
        "gpu": GpuUnusable,
    }
    return kinds.get(last.kind, RuntimeUnavailable)(last.message, hint=(hints or [last.hint])[0])
