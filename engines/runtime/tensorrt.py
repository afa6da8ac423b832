"""TensorRT and TensorRT for RTX on a GPU: a verified plan, run by engines/runtime/pipeline.py.

A plan is code. What is deserialised here are bytes that engines/runtime/plans.py has vouched for, and host code
in them is not allowed.

There is one execution context per number of slices, because a captured graph is bound to the state of its context;
all of them work in one scratch memory that the pipeline owns (USER_MANAGED), so that what they use is bounded by the
sizes that are run and not by the largest of the profile.

TensorRT for RTX compiles kernels as it meets shapes. Here it does so before the first run (EAGER): with LAZY
another kernel would take over in the middle of a series, and with it other roundings. Where it cannot be captured
from outside, it captures itself (WHOLE_GRAPH_CAPTURE); never both.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from engines.base import Floats
from engines.errors import (
    DeviceLost,
    EngineError,
    OutOfMemory,
    OutputImplausible,
    PlanMismatch,
    RuntimeUnavailable,
)
from engines.runtime.cuda import CudaDevice
from engines.runtime.device import CaptureFailed, Device, Program
from engines.runtime.flavour import Words, bindings, logger, plain
from engines.runtime.network import Answer, Slab
from engines.runtime.pipeline import PATIENCE, Pipeline
from engines.runtime.plans import BUILD
from engines.runtime.profile import Profile

CHANNELS = {"x": 3, "c": 1, "r": 1}

_NO_MEMORY = ("out of memory", "outofmemory", "cudaerrormemoryallocation", "memory allocation")

_CUDA = re.compile(r"cudaError ?(\d+): ([^()]*)")
"""What TensorRT hands on of CUDA, among names of its own source files: number and words of a cudaError_t."""

_TOO_OLD = "35"
"""cudaErrorInsufficientDriver."""

_LOST = (
    "illegal memory access", "illegal instruction", "misaligned address", "unspecified launch failure", "uncorrectable",
    "device-side assert", "hardware stack error", "launch timed out", "context is destroyed", "unknown error",
)  # fmt: skip
"""Words of CUDA (cudaGetErrorString) after which every later call of the process fails too."""


def _short(words: Words) -> tuple[str, bool]:
    """What TensorRT complained of, and whether it was of memory.

    Raises
    ------
    DeviceLost
        It was of the device, whatever it was doing.
    """
    told = words.take()
    cuda = _CUDA.search("; ".join(told))
    text = f"{cuda[2].strip()} (CUDA {cuda[1]})" if cuda else "; ".join(told[-2:])
    if any(one in line.lower() for line in told for one in _LOST):
        raise DeviceLost(f"TensorRT failed: {text}", hint="look for Xid messages in the kernel log")
    return text, any(one in line.lower() for line in told for one in _NO_MEMORY)


def _hint(text: str) -> str:
    """What to do where TensorRT refuses."""
    if f"(CUDA {_TOO_OLD})" in text:
        return "the driver is older than this TensorRT: a newer one (docs/operations/gpu.md)"
    return "look at nvidia-smi; python -m engines verify"


@contextlib.contextmanager
def _theirs(words: Words, what: str) -> Iterator[None]:
    """Whatever the bindings raise becomes an error of ours: they turn what C++ throws into anything.

    Raises
    ------
    RuntimeUnavailable, OutOfMemory, DeviceLost
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as e:
        words.add(plain(str(e)) or type(e).__name__)
        text, memory = _short(words)
        kind: type[EngineError] = OutOfMemory if memory else RuntimeUnavailable
        raise kind(f"TensorRT {what}: {text}", hint=_hint(text)) from e


class TensorrtContext:
    """Meets :class:`engines.runtime.device.Bound`."""

    def __init__(
        self, context: Any, words: Words, scratch: int, capturable: bool, instead_of: Any = None
    ) -> None:
        self._context = context
        # What was set on a context may still be on its way: it is destroyed when the stream is known to be done.
        self._instead_of = instead_of
        self._words = words
        self._scratch = scratch
        self._capturable = capturable

    @property
    def scratch(self) -> int:
        return self._scratch

    @property
    def capturable(self) -> bool:
        return self._capturable

    def bind(self, *, x: int, c: int, r: int, scratch: int) -> None:
        """Set the addresses of its tensors and of the memory that it works in."""
        context = self._context
        with _theirs(self._words, "takes no address"):
            for name, place in (("x", x), ("c", c), ("r", r)):
                if not context.set_tensor_address(name, place):
                    raise RuntimeUnavailable(
                        f"TensorRT takes no address for {name}: {_short(self._words)[0]}"
                    )
            context.set_device_memory(scratch, self._scratch)

    def enqueue(self, stream: int, *, captured: bool = False) -> None:
        """Run; see :class:`engines.runtime.device.Bound`."""
        try:
            done = self._context.execute_async_v3(stream)
        except Exception as e:  # The bindings turn what C++ throws into anything.
            done = False
            self._words.add(plain(str(e)) or type(e).__name__)
        if done:
            return
        text, memory = _short(self._words)
        if memory:
            raise OutOfMemory(f"TensorRT has no memory: {text}")
        if captured:
            raise CaptureFailed(text)
        raise DeviceLost(f"TensorRT failed: {text}", hint="look for Xid messages in the kernel log")

    def close(self) -> None:
        """Forget the context: the bindings destroy it with its last reference."""
        self._context = self._instead_of = None


class TensorrtProgram:
    """A plan on the current device: meets :class:`engines.runtime.device.Program`.

    Parameters
    ----------
    name
        Flavour.
    kernels
        What :meth:`kernels` returned before, of the same plan, GPU and driver; TensorRT for RTX only.

    Raises
    ------
    PlanMismatch
        The plan cannot be deserialised here, or its tensors are not those of our contract.
    RuntimeUnavailable
    """

    def __init__(
        self, name: str, plan: bytes, profile: Profile, factor: int, kernels: bytes | None = None
    ) -> None:
        trt = bindings(name)
        told, words = logger(name)
        self._trt, self._words, self._profile, self._factor = trt, words, profile, factor
        words.take()
        with _theirs(words, "does not start"):
            self._runtime = runtime = trt.Runtime(told)
            runtime.engine_host_code_allowed = False
        with _theirs(words, "does not take the plan"):
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            text, memory = _short(words)
            if memory:
                raise OutOfMemory(f"no memory for a plan: {text}")
            if "(CUDA " in text:
                # Another plan would fare no better.
                raise RuntimeUnavailable(f"{name} cannot use the GPU: {text}", hint=_hint(text))
            raise PlanMismatch(f"{name} does not take the plan: {text}", hint=BUILD)
        self._engine = engine
        self._cache: Any = None
        self._rtx = name == "tensorrt_rtx"
        with _theirs(words, "does not take the plan"):
            self._contract()
            if self._rtx:
                self._cache = engine.create_runtime_config().create_runtime_cache()
        if self._rtx and kernels:
            # What it does not take it compiles again: that costs time, nothing else.
            with contextlib.suppress(RuntimeError, TypeError, ValueError):
                self._cache.deserialize(kernels)

    @property
    def factor(self) -> int:
        return self._factor

    def _contract(self) -> None:
        trt, engine = self._trt, self._engine
        seen = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        fits = seen == set(CHANNELS) and all(
            engine.get_tensor_dtype(name) == trt.DataType.FLOAT
            and len(engine.get_tensor_shape(name)) == 4
            and engine.get_tensor_shape(name)[1] in (n, -1)
            and (engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT) == (name == "r")
            for name, n in CHANNELS.items()
        )
        if not fits or engine.num_optimization_profiles != len(self._profile.ranges):
            raise PlanMismatch("the plan's tensors or sizes are not those of the network", hint=BUILD)

    def open(self, n_slices: int, rows: int, columns: int, stream: int) -> TensorrtContext:
        """An execution context for one shape."""
        index = self._profile.number(n_slices, rows, columns)
        if index is None:
            raise RuntimeUnavailable(f"the plan holds no {n_slices} slices of {rows} x {columns}")
        size = (n_slices, rows, columns)
        with _theirs(self._words, f"takes no {n_slices} slices of {rows} x {columns}"):
            context = self._context(stream, index, size, graphs=False)
            if not self._rtx or context.is_stream_capturable(stream):
                return self._made(context, capturable=True)
            return self._made(
                self._context(stream, index, size, graphs=True), capturable=False, instead_of=context
            )

    def _context(self, stream: int, index: int, size: tuple[int, int, int], *, graphs: bool) -> Any:
        trt, engine = self._trt, self._engine
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._words.take()
        if self._rtx:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            kinds = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
            strategies = trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED
            config.set_runtime_cache(self._cache)
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(managed)
        if context is None:
            self._refuse("makes no execution context")
        n_slices, rows, columns = size
        fits = context.set_optimization_profile_async(index, stream) and all(
            context.set_input_shape(name, (n_slices, CHANNELS[name], rows, columns)) for name in ("x", "c")
        )
        if not fits:
            self._refuse(f"takes no {n_slices} slices of {rows} x {columns}")
        wanted = (n_slices, 1, self._factor * rows, self._factor * columns)
        if tuple(context.get_tensor_shape("r")) != wanted:
            raise OutputImplausible("the network returned another shape than the card promises")
        return context

    def _refuse(self, what: str) -> None:
        text, memory = _short(self._words)
        if memory:
            raise OutOfMemory(f"TensorRT {what}: {text}")
        raise RuntimeUnavailable(f"TensorRT {what}: {text}", hint=_hint(text))

    def _made(self, context: Any, *, capturable: bool, instead_of: Any = None) -> TensorrtContext:
        scratch = int(context.update_device_memory_size_for_shapes())
        if scratch == 0 and (text := _short(self._words)[0]):
            raise RuntimeUnavailable(f"TensorRT does not tell what memory it needs: {text}")
        return TensorrtContext(context, self._words, scratch, capturable, instead_of)

    def kernels(self) -> bytes | None:
        """What it compiled so far, to be kept for the next start (``Plans.cache("kernels", ...)``)."""
        if self._cache is None:
            return None
        made = self._cache.serialize()
        return None if made is None else bytes(made)

    def close(self) -> None:
        """Forget the engine; no context of it may be left."""
        self._cache = self._engine = self._runtime = None


class TensorrtNetwork:
    """Meets :class:`engines.runtime.network.SlabNetwork`, through whatever device it is given."""

    def __init__(
        self, pipeline: Pipeline, device: Device, program: Program, profile: Profile, *, name: str
    ) -> None:
        self._pipeline, self._device, self._program = pipeline, device, program
        self._profile = profile
        self._name = name

    @classmethod
    def load(
        cls,
        plan: bytes,
        *,
        name: str,
        profile: Profile,
        factor: int = 1,
        which: int | str = 0,
        kernels: bytes | None = None,
        most_bytes: int = 0,
        patience_s: float = PATIENCE,
    ) -> TensorrtNetwork:
        """Load a verified plan.

        Parameters
        ----------
        plan
            From :meth:`engines.runtime.plans.Plans.load`.
        name
            Flavour; the runtime's name too.
        factor
            The card's ``scale``.
        which
            The GPU, by ordinal among those shown to this process, or by UUID.
        kernels
            From :meth:`kernels` of an earlier start.
        most_bytes
            Of GPU memory, besides the weights; 0 means most of what is free.

        Raises
        ------
        RuntimeUnavailable, PlanMismatch, OutOfMemory
            Nothing of the GPU is held then; the next runtime may take over.
        DeviceLost
        """
        bindings(name)  # Whether it is there, before anything is taken from the GPU.
        device = CudaDevice.open(which)
        program: TensorrtProgram | None = None
        try:
            program = TensorrtProgram(name, plan, profile, factor, kernels)
            pipeline = Pipeline(device, program, profile, most_bytes=most_bytes, patience_s=patience_s)
        except DeviceLost:
            raise
        except BaseException:
            if program is not None:
                program.close()
            device.close()
            raise
        return cls(pipeline, device, program, profile, name=name)

    @property
    def name(self) -> str:
        return self._name

    @property
    def device(self) -> str:
        return self._device.name

    @property
    def largest(self) -> int:
        return min(min(r.most[1:]) for r in self._profile.ranges)

    @property
    def _least(self) -> int:
        return max(max(r.least[1:]) for r in self._profile.ranges)

    def _padded(self, n: int) -> int:
        return max(n + -n % self._profile.alignment, self._least)

    def run(self, x: Floats, c: Floats) -> Floats:
        """Run the network; slices smaller than the plan holds are mirrored up, as any are to the alignment."""
        rows, columns = x.shape[-2:]
        more = ((0, 0), (0, 0), (0, self._padded(rows) - rows), (0, self._padded(columns) - columns))
        if more[2][1] or more[3][1]:
            x, c = np.pad(x, more, mode="symmetric"), np.pad(c, more, mode="symmetric")
        r = self._pipeline.run(np.ascontiguousarray(x), np.ascontiguousarray(c))
        factor = self._program.factor
        return r[:, :, : factor * rows, : factor * columns]

    def slab(self, slab: Slab) -> Iterator[Answer]:
        """Run many slices; see the protocol."""
        rows, columns = slab.slices[0].shape
        yield from self._pipeline.slab(slab, self._padded(rows), self._padded(columns))

    def kernels(self) -> bytes | None:
        """What TensorRT for RTX compiled so far, to be kept."""
        # It is told with what it was compiled for, which is asked of the calling thread's context.
        if not isinstance(self._program, TensorrtProgram) or not self._pipeline.enter():
            return None
        return self._program.kernels()

    def close(self) -> None:
        """Give the GPU back. After DeviceLost nothing is touched: the process must end."""
        if not self._pipeline.close():
            return
        try:
            self._program.close()
            self._device.close()
        except OutOfMemory as e:
            raise DeviceLost("the GPU does not take back what it gave") from e
