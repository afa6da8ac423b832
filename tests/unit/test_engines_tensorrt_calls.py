"""Every call of TensorRT that the node makes fails once, in each way that its bindings have.

TensorRT itself does not run without a GPU. What stands for it is scripted and says so: its words, enumerations and
version are those of the real bindings, its contexts run the network of a shipped engine through ONNX Runtime on the
stand-in for a GPU (tests/device_onnx.py), and one of its calls is told to fail.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.base import Floats
from engines.catalog import Catalog
from engines.errors import DeviceLost, EngineError, PlanMismatch, RuntimeUnavailable
from engines.runtime import flavour, tensorrt
from engines.runtime.flavour import Words
from engines.runtime.network import Answer
from engines.runtime.pipeline import Pipeline
from engines.runtime.profile import Profile, Range
from engines.runtime.tensorrt import CHANNELS, TensorrtNetwork, TensorrtProgram
from node.enhance.failures import lost
from tests import kernels_cpp
from tests.device_onnx import OnnxContext, OnnxProgram, StandIn
from tests.libcuda_run import PADDED, slab

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(kernels_cpp.COMPILER is None, reason=kernels_cpp.NO_COMPILER),
    pytest.mark.skipif("tensorrt_rtx" not in flavour.installed(), reason="TensorRT for RTX is not installed"),
]

PROFILE = Profile(
    ranges=(Range(least=(1, 8, 8), best=(1, 8, 8), most=(2, 128, 128)),), buckets=(1, 2), alignment=8
)
SLABS = (slab(5), slab(2, region=False))

MEMORY = "Error Code 1: Cuda Runtime (out of memory)"
LOST = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
STRANGE = "an error that nobody has seen"


class Library:
    """A scripted TensorRT: what is not a class of it is the real bindings'.

    Parameters
    ----------
    fail_at, raises, said
        Which of its calls fails, from 1: by an exception, or by what it returns, with these words in the log.
    """

    def __init__(
        self,
        device: StandIn,
        network: Callable[[Floats, Floats], Floats],
        *,
        capturable: bool = True,
        fail_at: int = 0,
        raises: bool = False,
        said: str = STRANGE,
    ) -> None:
        self.real = flavour.bindings("tensorrt_rtx")
        self.words = Words()
        self.device, self.program = device, OnnxProgram(device, network)
        self.capturable = capturable
        self.fail_at, self.raises, self.said = fail_at, raises, said
        self.calls: list[str] = []
        self.strategies: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def fails(self, name: str) -> bool:
        """Whether this call is the one; what its caller returns then is its way to say no."""
        self.calls.append(name)
        if len(self.calls) != self.fail_at:
            return False
        if self.raises:
            raise RuntimeError(self.said)
        self.words.add(self.said)
        return True

    def Runtime(self, _logger: object) -> Runtime:
        self.fails("Runtime")
        return Runtime(self)


class Runtime:
    engine_host_code_allowed = True

    def __init__(self, library: Library) -> None:
        self._library = library

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        assert not self.engine_host_code_allowed
        return None if self._library.fails("deserialize_cuda_engine") else Engine(self._library)


class Engine:
    num_io_tensors = 3
    num_optimization_profiles = 1

    def __init__(self, library: Library) -> None:
        self._library = library

    def get_tensor_name(self, i: int) -> str:
        return "?" if self._library.fails("get_tensor_name") else ("x", "c", "r")[i]

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = self._library.real.DataType
        return kinds.HALF if self._library.fails("get_tensor_dtype") else kinds.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return () if self._library.fails("engine.get_tensor_shape") else (-1, CHANNELS[name], -1, -1)

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._library.real.TensorIOMode
        wrong = self._library.fails("get_tensor_mode")
        return modes.NONE if wrong else modes.OUTPUT if name == "r" else modes.INPUT

    def create_runtime_config(self) -> RuntimeConfig:
        self._library.fails("create_runtime_config")
        return RuntimeConfig(self._library)

    def create_execution_context(self, how: Any) -> Context | None:
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy == self._library.real.ExecutionContextAllocationStrategy.USER_MANAGED
        if isinstance(how, RuntimeConfig):
            self._library.strategies.append(how.cuda_graph_strategy)
        return None if self._library.fails("create_execution_context") else Context(self._library)


class RuntimeConfig:
    strategy: Any = None
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self, library: Library) -> None:
        self._library = library

    def create_runtime_cache(self) -> RuntimeCache:
        self._library.fails("create_runtime_cache")
        return RuntimeCache(self._library)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._library.fails("set_execution_context_allocation_strategy")
        self.strategy = strategy

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        return not self._library.fails("set_runtime_cache")


class RuntimeCache:
    def __init__(self, library: Library) -> None:
        self._library = library

    def deserialize(self, content: bytes) -> bool:
        assert self._library.device.entered
        return not self._library.fails("deserialize")

    def serialize(self) -> bytes | None:
        assert self._library.device.entered
        return None if self._library.fails("serialize") else b"compiled"


class Context:
    def __init__(self, library: Library) -> None:
        self._library = library
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, int] = {}
        self._runs: OnnxContext | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if self._library.fails("set_optimization_profile_async"):
            return False
        # Work on the stream, that somebody has to wait for before the stream goes.
        self._library.device.enqueue("profile", stream, lambda: None, [], [])
        return index == 0

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if self._library.fails("set_input_shape"):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n, _, rows, columns = self._shapes["x"]
        return () if self._library.fails("context.get_tensor_shape") else (n, 1, rows, columns)

    def is_stream_capturable(self, stream: int) -> bool:
        return not self._library.fails("is_stream_capturable") and self._library.capturable

    def update_device_memory_size_for_shapes(self) -> int:
        if self._library.fails("update_device_memory_size_for_shapes"):
            return 0
        n, _, rows, columns = self._shapes["x"]
        self._runs = OnnxContext(self._library.program, n, rows, columns)
        return self._runs.scratch

    def set_tensor_address(self, name: str, place: int) -> bool:
        if self._library.fails("set_tensor_address"):
            return False
        self._places[name] = place
        return True

    def set_device_memory(self, place: int, size: int) -> None:
        self._library.fails("set_device_memory")
        assert self._runs is not None
        assert size == self._runs.scratch
        self._runs.bind(x=self._places["x"], c=self._places["c"], r=self._places["r"], scratch=place)

    def execute_async_v3(self, stream: int) -> bool:
        if self._library.fails("execute_async_v3"):
            return False
        assert self._runs is not None
        self._runs.enqueue(stream)
        return True


def network() -> Callable[[Floats, Floats], Floats]:
    """A shipped engine's, through ONNX Runtime."""
    core = Catalog.default().load("ct-cnn", threads=1, avoid=Catalog.accelerated()).core
    run: Callable[[Floats, Floats], Floats] = core._network.run  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def on_the_cpu() -> Callable[[Floats, Floats], Floats]:
    return network()


def attempt(
    library: Library, name: str, patch: pytest.MonkeyPatch
) -> tuple[list[Answer], EngineError | None]:
    """Load, two slabs, tensors of the caller, what was compiled, the end."""
    patch.setattr(tensorrt, "bindings", lambda _name: library)
    patch.setattr(tensorrt, "logger", lambda _name: (object(), library.words))
    device, answers = library.device, list[Answer]()
    device.enter()  # as CudaDevice.open does
    try:
        program = TensorrtProgram(name, b"a plan", PROFILE, 1, b"kernels of before")
    except EngineError as e:
        return answers, e
    pipeline = Pipeline(device, program, PROFILE, patience_s=0.05, clock=device.clock, sleep=device.sleep)
    network, error = TensorrtNetwork(pipeline, device, program, PROFILE, name=name), None
    try:
        for one in SLABS:
            for answer in network._pipeline.slab(one, *PADDED):
                answers += [answer]
        x, c = np.ones((3, 3, 8, 8), np.float32), np.ones((3, 1, 8, 8), np.float32)
        assert network.run(x, c).shape == (3, 1, 8, 8)
        device.entered = False  # another engine may have been closed on this thread meanwhile
        network.kernels()
    except EngineError as e:
        error = e
    except RuntimeError:
        # What cannot be kept costs time: whoever keeps it expects this (node/enhance/workshop.py).
        assert library.calls[-1] == "serialize"
    if not isinstance(error, DeviceLost):
        device.check()
        network.close()
        assert device.empty, device.held
        assert "close" in device.trace
    calls = device.calls
    assert network.kernels() is None
    assert device.calls == calls, "a device that is lost or given back is asked nothing"
    return answers, error


VARIANTS = (("tensorrt", True), ("tensorrt_rtx", True), ("tensorrt_rtx", False))


def right(answers: Sequence[Answer], wanted: Sequence[Answer]) -> bool:
    return all(
        a.values.tobytes() == b.values.tobytes() and (a.finite, a.worst) == (b.finite, b.worst)
        for a, b in zip(answers, wanted, strict=False)
    )


@pytest.mark.parametrize(("name", "capturable"), VARIANTS)
def test_the_scripted_library_is_asked_for_what_the_page_says(
    name: str, capturable: bool, on_the_cpu: Callable[..., Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = StandIn()
    library = Library(device, on_the_cpu, capturable=capturable)
    answers, error = attempt(library, name, monkeypatch)
    assert error is None
    assert len(answers) == sum(len(s.items) for s in SLABS)
    assert all(a.finite and np.abs(a.values).max() > 0 for a in answers)
    replayed = "replay" in device.trace
    assert replayed == capturable
    strategies = library.real.CudaGraphStrategy
    wanted = {strategies.DISABLED} if capturable else {strategies.DISABLED, strategies.WHOLE_GRAPH_CAPTURE}
    assert set(library.strategies) == (wanted if name == "tensorrt_rtx" else set())
    assert ("serialize" in library.calls) == (name == "tensorrt_rtx")
    # One context for each number of slices, and no more than one network at work in all.
    assert library.calls.count("execute_async_v3") >= 4


@pytest.mark.parametrize("raises", [False, True], ids=["refuses", "raises"])
@pytest.mark.parametrize("said", [STRANGE, MEMORY, LOST], ids=["strange", "memory", "lost"])
@pytest.mark.parametrize(("name", "capturable"), VARIANTS)
def test_whatever_call_of_tensorrt_fails_is_told_as_what_it_is(
    name: str,
    capturable: bool,
    said: str,
    raises: bool,
    on_the_cpu: Callable[..., Floats],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tried(fail_at: int) -> tuple[list[Answer], EngineError | None, Library]:
        library = Library(
            StandIn(), on_the_cpu, capturable=capturable, fail_at=fail_at, raises=raises, said=said
        )
        return *attempt(library, name, monkeypatch), library

    wanted, error, sound = tried(0)
    assert error is None
    kinds: Counter[str] = Counter()
    for n, call in enumerate(sound.calls, 1):
        answers, error, library = tried(n)
        assert library.calls[:n] == sound.calls[:n]
        assert right(answers, wanted), call
        if error is None:
            assert len(answers) == len(wanted), call
        kinds[f"{call} {type(error).__name__}"] += 1
        if raises and said == LOST and call not in ("deserialize", "serialize"):
            # The one thing that must never be taken for a plain refusal.
            assert isinstance(error, DeviceLost), (call, error)
    told = {k.split()[1] for k in kinds}
    assert told <= {
        "NoneType", "RuntimeUnavailable", "PlanMismatch", "OutOfMemory", "OutputImplausible", "DeviceLost",
    }, kinds  # fmt: skip
    if raises and said == STRANGE:
        assert kinds["deserialize_cuda_engine RuntimeUnavailable"] == 1, kinds
        assert kinds["update_device_memory_size_for_shapes RuntimeUnavailable"] > 0, kinds
    if said == MEMORY:
        assert kinds["deserialize_cuda_engine OutOfMemory"] == 1, kinds
        # Of two slices there are smaller groups, of one there are none.
        assert kinds["execute_async_v3 NoneType"] > 0, kinds
    if said == STRANGE:
        assert kinds["execute_async_v3 DeviceLost"] > 0, kinds


OLD = (
    "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (In ScopedCudaStream at /_src/cudaResources.cpp:25 "
    "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version))"
)
"""The very words of TensorRT for RTX 1.7.1 over a driver that is older than its CUDA."""


def test_a_driver_that_is_too_old_is_no_fault_of_the_plan(
    on_the_cpu: Callable[..., Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building it again would change nothing."""
    sound = Library(StandIn(), on_the_cpu)
    attempt(sound, "tensorrt_rtx", monkeypatch)
    at = sound.calls.index("deserialize_cuda_engine") + 1
    _, error = attempt(Library(StandIn(), on_the_cpu, fail_at=at, said=OLD), "tensorrt_rtx", monkeypatch)
    assert isinstance(error, RuntimeUnavailable)
    assert not isinstance(error, PlanMismatch)
    wanted = "CUDA driver version is insufficient for CUDA runtime version (CUDA 35)"
    assert error.message == f"tensorrt_rtx cannot use the GPU: {wanted}"
    assert "newer" in error.hint
    assert not lost(error), "nor is the device lost"
    # What it says of a plan that is not its own is a fault of the plan still.
    _, error = attempt(Library(StandIn(), on_the_cpu, fail_at=at), "tensorrt_rtx", monkeypatch)
    assert isinstance(error, PlanMismatch)


def test_every_call_in_the_source_is_one_of_the_script(
    on_the_cpu: Callable[..., Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: set[str] = set()
    for name, capturable in VARIANTS:
        library = Library(StandIn(), on_the_cpu, capturable=capturable)
        attempt(library, name, monkeypatch)
        made |= {call.rpartition(".")[2] for call in library.calls}
    theirs = ("runtime", "engine", "context", "config", "_context", "_cache", "trt")
    named = {
        node.func.attr
        for node in ast.walk(ast.parse(Path(tensorrt.__file__).read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and _last(node.func.value) in theirs
    }
    named -= {name for name in dir(TensorrtProgram) if name.startswith("_")}
    assert named == made
    assert len(made) >= 20


def _last(node: ast.expr) -> str:
    """The last name of what a method is called on: ``engine`` of ``self.engine.create_runtime_config()``."""
    if isinstance(node, ast.Call):
        node = node.func
        return "config" if isinstance(node, ast.Attribute) and node.attr == "create_runtime_config" else ""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
