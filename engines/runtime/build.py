"""From a typed ONNX file to a TensorRT plan.

The network is strongly typed: which value is float16 and which float32 says the file, and TensorRT may not
choose. TensorRT for RTX needs no GPU for this, TensorRT times its kernels on the one that is there.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.errors import OutOfMemory, RuntimeUnavailable
from engines.runtime.flavour import (
    Flavour,
    bindings,
    check_capability,
    flavour,
    logger,
    plain,
    strongly_typed,
)
from engines.runtime.onnxfile import inspect
from engines.runtime.profile import Profile

CHANNELS = {"x": 3, "c": 1}
"""Of the inputs of every network of ours (engines/runtime/network.py)."""

MOST_WORDS = 3

Progress = Callable[[str, float], None]
"""What TensorRT is doing, and how much of it is done (0 to 1); called from threads of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A serialised plan; ``timing_cache`` is for the next build of this flavour on this GPU."""

    plan: bytes
    timing_cache: bytes | None
    seconds: float


def build(
    onnx: bytes,
    name: str,
    profile: Profile,
    *,
    targets: Sequence[str] | None = None,
    device: int | None = None,
    timing_cache: bytes | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build a plan.

    Parameters
    ----------
    onnx
        The file's bytes, verified by whoever read them.
    name
        Flavour.
    targets
        Compute capabilities such as ``("86", "120")``; None for a GPU of this process.
    device
        Its ordinal; None for the one that is current.
    timing_cache
        Of an earlier build.

    Raises
    ------
    CardInvalid
        The file is no network that this node runs.
    RuntimeUnavailable
        There is no such flavour, it does not know a target, or it cannot build this network: its own words
        are in the message.
    OutOfMemory
        The GPU's memory does not do.
    """
    inspect(onnx)
    row, module = flavour(name), bindings(name)
    if targets is not None:
        if not row.ahead_of_time:
            raise RuntimeUnavailable(
                f"{row.title} builds only for the GPU that is there",
                hint="run this on the machine with the GPU",
            )
        if not targets:
            raise RuntimeUnavailable("no compute capability to build for", hint="such as 86,89")
        for one in targets:
            check_capability(name, one)
    elif device is not None:
        _use(device)
    heard, words = logger(name)
    words.take()
    began = time.monotonic()
    try:
        builder = module.Builder(heard)
        network = builder.create_network(strongly_typed(module))
        _parse(module, row, network, heard, onnx)
        config = _config(module, row, builder, profile, targets)
        monitor = None if progress is None else _monitor(module, progress)
        if monitor is not None:
            config.progress_monitor = monitor
        timings = _timings(config, timing_cache) if row.timing_cache else None
        plan = builder.build_serialized_network(network, config)
    except (RuntimeUnavailable, OutOfMemory):
        raise
    except Exception as e:  # The bindings turn what C++ throws into whatever fits.
        raise _failed(row, [plain(str(e)), *words.take()]) from e
    if plan is None:
        raise _failed(row, words.take())
    return Built(
        plan=bytes(plan),
        timing_cache=None if timings is None else bytes(timings.serialize()),
        seconds=time.monotonic() - began,
    )


_NO_DRIVER = (35, 100)
"""cudaErrorInsufficientDriver, which it also says where there is none, and cudaErrorNoDevice."""


def _use(device: int) -> None:
    """Make a GPU the current one of this thread: TensorRT builds for that one."""
    try:
        cudart = importlib.import_module("cuda.bindings.runtime")
        failed = int(cudart.cudaSetDevice(device)[0])
    except (ImportError, RuntimeError, OSError):
        failed = _NO_DRIVER[0]
    if failed in _NO_DRIVER:
        raise RuntimeUnavailable("there is no GPU here, or no driver", hint="see nvidia-smi; the CPU serves")
    if failed:
        raise RuntimeUnavailable(f"GPU {device} cannot be used: CUDA error {failed}", hint="see nvidia-smi")


def _parse(module: Any, row: Flavour, network: Any, heard: Any, onnx: bytes) -> None:
    parser = module.OnnxParser(network, heard)
    if not parser.parse(onnx):
        faults = [parser.get_error(i) for i in range(min(parser.num_errors, MOST_WORDS))]
        raise RuntimeUnavailable(
            f"{row.title} does not read this network: {'; '.join(map(_words, faults)) or 'no reason given'}",
            hint="the CPU serves; the network needs other operators to be compiled",
        )
    inputs = {network.get_input(i).name for i in range(network.num_inputs)}
    if inputs != set(CHANNELS):
        raise RuntimeUnavailable(f"the network's inputs are {', '.join(sorted(inputs))}, not x and c")


def _words(fault: Any) -> str:
    where = f"{fault.node_operator()} {fault.node_name()}".strip()
    why = f"{fault.desc()} ({str(fault.code()).rpartition('.')[2]})"
    return plain(f"{where}: {why}" if where else why)


def _config(module: Any, row: Flavour, builder: Any, profile: Profile, targets: Sequence[str] | None) -> Any:
    config = builder.create_builder_config()
    for flag in row.flags_on:
        config.set_flag(getattr(module.BuilderFlag, flag))
    for flag in row.flags_off:
        config.clear_flag(getattr(module.BuilderFlag, flag))
    _previews(module, row, config)
    if row.workspace:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, row.workspace)
    for one in profile.ranges:
        made = builder.create_optimization_profile()
        for name, channels in CHANNELS.items():
            made.set_shape(name, *((n, channels, h, w) for n, h, w in (one.least, one.best, one.most)))
        if config.add_optimization_profile(made) < 0:
            raise RuntimeUnavailable(f"{row.title} does not take the sizes {one.least} to {one.most}")
    if targets is not None:
        config.num_compute_capabilities = len(targets)
        for i, capability in enumerate(targets):
            if not config.set_compute_capability(getattr(module.ComputeCapability, f"SM{capability}"), i):
                raise RuntimeUnavailable(f"{row.title} does not take the target {capability}")
    return config


def _previews(module: Any, row: Flavour, config: Any) -> None:
    for name in row.previews:
        feature = getattr(module.PreviewFeature, name, None)
        if feature is not None:
            config.set_preview_feature(feature, True)


def _timings(config: Any, kept: bytes | None) -> Any:
    """The timing cache of a build: the kept one, or an empty one where TensorRT does not take that."""
    for content in (kept, b""):
        if content is None:
            continue
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
            return timings
    return None


def _monitor(module: Any, progress: Progress) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = max(1, num_steps)
            progress(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, min(1.0, (step + 1) / self._steps.get(phase_name, 1)))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)
            progress(phase_name, 1.0)

    return Monitor()


_NO_MEMORY = ("out of memory", "outofmemory", "cuda error 2", "insufficient memory")


def _failed(row: Flavour, words: Sequence[str]) -> RuntimeUnavailable | OutOfMemory:
    told = "; ".join(words[:MOST_WORDS]) or "it gives no reason"
    if any(w in told.lower() for w in _NO_MEMORY):
        return OutOfMemory(f"{row.title}: no memory to build: {told}", hint="free the GPU, or fewer buckets")
    return RuntimeUnavailable(f"{row.title} cannot build this network: {told}", hint="the CPU serves")
