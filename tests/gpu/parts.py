"""The parts of the measurement, each run in a process of its own: an error of the device costs one part.

Every part returns plain lists and numbers. On the CPU (``dry``) the same code runs through ONNX Runtime, on small
slices: that shows that it runs, and measures nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from engines import bench, canary
from engines import compile as compiling
from engines.base import Params, Volume
from engines.catalog import Catalog, processors
from engines.errors import DeviceLost, EngineError, RuntimeUnavailable
from engines.front import Enhancer
from engines.ladder import ACCELERATED, RUNGS, OnGpu, Place, Wanted
from engines.learned import core_of
from engines.runtime import flavour, gpu
from engines.runtime import profile as profiles
from engines.runtime.plans import Plans

BATCHES = (1, 4, 8, 16)
SIZES = ("s", "m", "l")

COSTS: Mapping[str, tuple[float, float]] = {"s": (9.1, 68.0), "m": (16.0, 90.0), "l": (121.0, 305.0)}
"""PU-S, M, L on 512 x 512 (models.md 2.1): GFLOP, and MB of fp16 moved if every convolution reads and writes once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is measured, and on what.

    Attributes
    ----------
    dry
        On the CPU, small: to see that it runs.
    flops, bytes_s
        Of the card, dense fp16 and memory, for the roofline; 0 to measure them.
    """

    plans: Path
    engines: tuple[str, ...]
    repeat: int
    dry: bool = False
    flops: float = 0.0
    bytes_s: float = 0.0

    def catalog(self) -> Catalog:
        return Catalog.default(place=Place(plans=self.plans))

    def side(self, modality: str) -> int:
        return 64 if self.dry else bench.SIDE[modality]

    def batches(self) -> tuple[int, ...]:
        return BATCHES[:2] if self.dry else BATCHES

    def runtimes(self) -> list[tuple[str, str]]:
        """Runtimes to look at, each with the precision of its plan; empty where it needs none."""
        if self.dry:
            return [("onnx", "")]
        here = gpu.local()[0]
        found: list[tuple[str, str]] = []
        for name in flavour.installed():
            try:
                flavour.check_gpu(name, here)
            except RuntimeUnavailable:
                continue
            found += [(name, precision) for precision in compiling.PRECISIONS]
        return [*found, ("onnx_cuda", "")]


class Loaded:
    """An engine on one runtime and, where that takes plans, on the plan of one precision."""

    def __init__(
        self, asked: Asked, engine: str, runtime: str, precision: str, *, most_bytes: int = 0
    ) -> None:
        catalog = asked.catalog()
        card, models = catalog.card(engine), dict(catalog.models(engine))
        if precision == "fp32":
            models.pop("fp16", None)  # the ladder takes fp16 where there is one
        elif precision:
            _there(asked, engine, runtime, precision)
        place = Place(plans=asked.plans, most_bytes=most_bytes)
        made = RUNGS[runtime](Wanted(card=card, models=models, threads=processors(), place=place))
        held = made if isinstance(made, OnGpu) else OnGpu(network=made)
        self.network, self.close = held.network, held.close
        self.engine = Enhancer(card, core_of(card, held.network), processors())


def _there(asked: Asked, engine: str, runtime: str, precision: str) -> None:
    """Refuse where there is no plan of this precision: the ladder would take another."""
    models = asked.catalog().models(engine)
    if precision not in models:
        raise RuntimeUnavailable(f"{engine} has no {precision} file")
    kept, digest = Plans(asked.plans), profiles.of(asked.catalog().card(engine)).digest()
    key = kept.find(models[precision][1], runtime, flavour.version(runtime), gpu.local()[0], digest)
    now = kept.state(key)
    if now.state != "ready":
        raise RuntimeUnavailable(now.words)


def seconds(work: Callable[[], object], repeat: int) -> float:
    """The median of so many runs, after two that warm up."""
    spent = []
    for _ in range(repeat + 2):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return float(median(spent[2:]))


_lost: list[str] = []
"""Why this process must not ask its GPU again."""


def tell(function: Callable[[], dict[str, Any]], **about: Any) -> dict[str, Any]:
    """What a measurement found, or its words where it was refused; after a lost device only that it was lost."""
    if _lost:
        return {**about, "refused": f"not asked: {_lost[0]}"}
    try:
        return {**about, **function()}
    except DeviceLost as e:
        _lost.append(e.message)
        return {**about, "refused": f"DeviceLost: {e.message}"}
    except EngineError as e:
        return {**about, "refused": f"{type(e).__name__}: {e.message}"}


# the parts ----------------------------------------------------------------------------------------
def tried(asked: Asked, name: str) -> list[dict[str, Any]]:
    """Whether a flavour of TensorRT runs here, whatever our table says of the GPU: by trying it."""
    from engines.runtime.build import build
    from engines.runtime.onnx import read_verified
    from engines.runtime.tensorrt import TensorrtNetwork

    row, here = flavour.flavour(name), gpu.local()
    known = True
    try:
        number = flavour.version(name)
    except RuntimeUnavailable as e:
        return [
            {"flavour": row.title, "version": "", "known": False, "runs": False, "words": [e.message, e.hint]}
        ]
    try:
        for one in here[:1]:
            flavour.check_gpu(name, one)
    except RuntimeUnavailable:
        known = False
    engine = asked.engines[0]
    card, (path, sha256) = asked.catalog().card(engine), asked.catalog().models(engine)["fp32"]
    made, onnx = profiles.of(card), read_verified(path, sha256)
    words, runs = [], False
    # What is built for the GPU that is there; where that is refused, what was built for another of its kind.
    for targets in (None, ("80",))[: 1 + row.ahead_of_time]:
        what = "for the GPU that is here" if targets is None else "for compute capability 8.0"
        try:
            plan = build(onnx, name, made, targets=targets, device=None if targets else 0).plan
            network = TensorrtNetwork.load(plan, name=name, profile=made, factor=card.scale)
            x = np.zeros((1, 3, 64, 64), np.float32)
            runs = bool(np.isfinite(network.run(x, x[:, :1])).all())
            network.close()
        except EngineError as e:
            words.append(f"{what}: {type(e).__name__}: {e.message}")
            continue
        words.append(f"{what}: {'runs' if runs else 'answers what is no number'}")
        break
    return [{"flavour": row.title, "version": number, "known": known, "runs": runs, "words": words}]


def plans(asked: Asked) -> list[dict[str, Any]]:
    """Build every plan of every engine: seconds and bytes."""
    if asked.dry:
        return []
    catalog = asked.catalog()
    jobs = compiling.jobs(catalog, asked.engines, gpus=gpu.local()[:1])
    return [asdict(compiling.make(job, Plans(asked.plans))) for job in jobs]


def parity(asked: Asked) -> list[dict[str, Any]]:
    """Largest and RMS difference from ONNX Runtime in fp32 on the CPU, in HU or of the scale, against the bounds."""
    told = []
    for name in asked.engines:
        reference = asked.catalog().load(name, avoid=ACCELERATED)
        card = reference.card
        given = bench.stack(card.modalities[0], asked.side(card.modalities[0]))
        expected = reference.enhance(given, Params(strength=1.0)).volume.values.astype(np.float64)
        scale = 1.0 if card.unit == "HU" else float(np.percentile(given.values, 99))
        for runtime, precision in asked.runtimes():

            def compared(
                runtime: str = runtime,
                precision: str = precision,
                name: str = name,
                given: Volume = given,
                expected: Any = expected,
                scale: float = scale,
                unit: Any = card.unit,
            ) -> dict[str, Any]:
                one = Loaded(asked, name, runtime, precision)
                try:
                    got = [one.engine.enhance(given, Params(strength=1.0)).volume.values for _ in range(2)]
                finally:
                    one.close()
                apart = (got[0] - expected) / scale
                largest, rms = float(np.abs(apart).max()), float(np.sqrt(np.mean(apart * apart)))
                return {
                    "unit": unit, "largest": largest, "rms": rms, "repeats": bool(np.array_equal(*got)),
                    "ok": largest <= canary.MOST[unit] and rms <= canary.RMS[unit],
                }  # fmt: skip

            told.append(tell(compared, engine=name, runtime=runtime, precision=precision))
    return told


def speed(asked: Asked) -> list[dict[str, Any]]:
    """Milliseconds a slice of the full path (survey, upload, network, guards, download, checks), by slices a slab."""
    told = []
    for name in asked.engines:
        modality = asked.catalog().card(name).modalities[0]
        side = asked.side(modality)
        for runtime, precision in asked.runtimes():

            def timed(runtime: str = runtime, precision: str = precision, name: str = name) -> dict[str, Any]:
                one = Loaded(asked, name, runtime, precision)
                try:
                    return _timed(asked, one)
                finally:
                    one.close()

            told.append(tell(timed, engine=name, runtime=runtime, precision=precision, side=side))
    return told


def _timed(asked: Asked, one: Loaded) -> dict[str, Any]:
    modality = one.engine.card.modalities[0]
    side, full = asked.side(modality), Params(strength=1.0)
    whole, core = {}, {}
    for n in asked.batches():
        given = bench.stack(modality, side, n)
        work = partial(one.engine.enhance, given, full)
        whole[str(n)] = 1000 * seconds(work, asked.repeat) / n
        core[str(n)] = 1000 * _network(one, n, side, asked.repeat) / n
    return {"whole_ms": whole, "network_ms": core}


def _network(one: Loaded, n: int, side: int, repeat: int) -> float:
    """Seconds of the network alone: on the device, without copies; under ONNX Runtime as it is called."""
    from engines.runtime.tensorrt import TensorrtNetwork
    from tests.gpu.kernels import network_alone

    network = one.network
    if isinstance(network, TensorrtNetwork):
        return network_alone(network._device, network._program, n, side, repeat)
    x = np.zeros((n, 3, side, side), np.float32)
    return seconds(partial(network.run, x, x[:, :1]), repeat)


def kernels(asked: Asked) -> list[dict[str, Any]]:
    """Milliseconds a slice of our kernels alone, and of everything but the network. Dry: on the stand-in."""
    from tests.gpu.kernels import rows

    name = next((n for n in asked.engines if asked.catalog().card(n).modalities[0] == "CT"), "ct-cnn")
    card, side = asked.catalog().card(name), asked.side("CT")
    if asked.dry:
        from tests import kernels_cpp
        from tests.device_onnx import StandIn

        return rows(StandIn, card, side, asked.batches(), 1) if kernels_cpp.COMPILER else []
    from engines.runtime.cuda import CudaDevice

    return rows(lambda: CudaDevice.open(0), card, side, asked.batches(), asked.repeat)


def memory(asked: Asked) -> list[dict[str, Any]]:
    """What an engine takes of the GPU's memory beside its weights, under a bound."""
    if asked.dry:
        return []
    import importlib

    driver = importlib.import_module("cuda.bindings.driver")
    told = []
    for runtime, precision in asked.runtimes():
        if runtime == "onnx_cuda":
            continue
        for bound in (256 << 20, 1 << 30):

            def taken(
                runtime: str = runtime, precision: str = precision, bound: int = bound
            ) -> dict[str, Any]:
                one = Loaded(asked, asked.engines[0], runtime, precision, most_bytes=bound)
                try:
                    before = int(driver.cuMemGetInfo()[1])
                    modality = one.engine.card.modalities[0]
                    one.engine.enhance(bench.stack(modality, asked.side(modality), 16), Params(strength=1.0))
                    used = before - int(driver.cuMemGetInfo()[1])
                finally:
                    one.close()
                # The driver gives memory in blocks of 2 MiB, and each of some twenty buffers may waste one.
                return {"used": used, "ok": used <= bound + (64 << 20)}

            told.append(
                tell(taken, engine=asked.engines[0], runtime=runtime, precision=precision, bound=bound)
            )
    return told


def torch(asked: Asked) -> list[dict[str, Any]]:
    """The networks alone under torch and CUDA graphs, fp16, channels last, against the roofline."""
    import torch as t

    from training.networks.pu import PU

    if not asked.dry and not t.cuda.is_available():
        return [{"refused": "this torch has no CUDA: pip install torch for the driver's CUDA"}]
    told: list[dict[str, Any]] = []
    side = asked.side("CT")
    if not asked.dry:
        asked, ceiling = _ceiling(t, asked)
        told.append(ceiling)
    on, kind = ("cpu", t.float32) if asked.dry else ("cuda", t.float16)
    for size in SIZES[:1] if asked.dry else SIZES:
        network = PU(size).to(on, kind, memory_format=t.channels_last).eval()
        for n in asked.batches():
            x = t.randn(n, 3, side, side, device=on, dtype=kind).to(memory_format=t.channels_last)
            c = t.full((n, 1, side, side), 0.15, device=on, dtype=kind)
            with t.inference_mode():
                spent = (
                    _eager(network, x, c, asked.repeat)
                    if asked.dry
                    else _graph(t, network, x, c, asked.repeat)
                )
            told.append({"size": size, "batch": n, "ms": 1000 * spent / n, "roofline_ms": _roof(asked, size)})
    return told


def _eager(network: Any, x: Any, c: Any, repeat: int) -> float:
    return seconds(lambda: network(x, c), repeat)


def _graph(t: Any, network: Any, x: Any, c: Any, repeat: int) -> float:
    """Seconds of a replay, by events on the stream."""
    t.backends.cudnn.benchmark = True
    side = t.cuda.Stream()
    side.wait_stream(t.cuda.current_stream())
    with t.cuda.stream(side):
        for _ in range(3):
            network(x, c)
    t.cuda.current_stream().wait_stream(side)
    graph = t.cuda.CUDAGraph()
    with t.cuda.graph(graph):
        network(x, c)
    begin, end = (t.cuda.Event(enable_timing=True) for _ in range(2))
    spent = []
    for _ in range(repeat + 5):
        begin.record()
        for _ in range(10):
            graph.replay()
        end.record()
        end.synchronize()
        spent.append(begin.elapsed_time(end) / 10 / 1000)
    return float(median(spent[5:]))


def _ceiling(t: Any, asked: Asked) -> tuple[Asked, dict[str, Any]]:
    """The card's ceilings: as told, else as measured here by a product of matrices and a copy, both in fp16."""
    flops, bytes_s = asked.flops, asked.bytes_s
    if not flops:
        n = 8192
        a, b = (t.randn(n, n, device="cuda", dtype=t.float16) for _ in range(2))
        flops = 2.0 * n**3 / _spent(t, lambda: a @ b, asked.repeat)
    if not bytes_s:
        source = t.zeros(1 << 29, device="cuda", dtype=t.float16)
        target = t.empty_like(source)
        bytes_s = 2.0 * source.numel() * 2 / _spent(t, lambda: target.copy_(source), asked.repeat)
    told = {"tflops": flops / 1e12, "gbs": bytes_s / 1e9, "told": bool(asked.flops and asked.bytes_s)}
    return replace(asked, flops=flops, bytes_s=bytes_s), told


def _spent(t: Any, work: Callable[[], object], repeat: int) -> float:
    """Seconds of one piece of work on the GPU, by events: the best of some runs, for it is a ceiling."""
    begin, end = (t.cuda.Event(enable_timing=True) for _ in range(2))
    spent = []
    for _ in range(repeat + 5):
        begin.record()
        work()
        end.record()
        end.synchronize()
        spent.append(begin.elapsed_time(end) / 1000)
    return float(min(spent[5:]))


def _roof(asked: Asked, size: str) -> float | None:
    """Milliseconds a slice that no card of these numbers goes below, 512 x 512."""
    if asked.dry or not (asked.flops and asked.bytes_s):
        return None
    gflop, mb = COSTS[size]
    return 1000 * max(gflop * 1e9 / asked.flops, mb * 1e6 / asked.bytes_s)


PARTS: Mapping[str, Callable[[Asked], Sequence[dict[str, Any]]]] = {
    "tensorrt": partial(tried, name="tensorrt"),
    "tensorrt_rtx": partial(tried, name="tensorrt_rtx"),
    "plans": plans,
    "parity": parity,
    "speed": speed,
    "kernels": kernels,
    "memory": memory,
    "torch": torch,
}

EACH = frozenset({"parity", "speed"})
"""Parts that run in a process of its own for each engine: a device that one loses is another's no more."""
