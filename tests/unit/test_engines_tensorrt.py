"""TensorRT and CUDA behind the seam: names that exist, errors that are told apart, and on a GPU the whole path.

Nothing here stands for TensorRT or CUDA where their own modules can be asked. Where an object of theirs is
needed that only a GPU gives (a context, a driver with devices), a few lines say what it answers.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.base import Params
from engines.catalog import ZOO, Catalog
from engines.errors import DeviceLost, OutOfMemory, PlanMismatch, RuntimeUnavailable
from engines.front import Enhancer
from engines.learned import core_of
from engines.runtime import build, cuda, gpu, profile, tensorrt
from engines.runtime.device import CaptureFailed
from engines.runtime.flavour import Words, check_gpu, installed
from engines.runtime.onnx import OnnxNetwork
from node.enhance import signs
from tests import laws, onnx_samples

pytestmark = pytest.mark.tensorrt

SHIPPED = Catalog.default()
LEARNED = [n for n in SHIPPED.names() if SHIPPED.card(n).family in ("cnn", "gan", "autoencoder")]


def used(source: str, roots: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Dotted names in a source that start at one of ``roots``: all of them, and those that do not exist."""
    seen, missing = set(), set()
    for node in ast.walk(ast.parse(source)):
        parts: list[str] = []
        at: ast.AST = node
        while isinstance(at, ast.Attribute):
            parts.insert(0, at.attr)
            at = at.value
        if not parts or not isinstance(at, ast.Name):
            continue
        base = at.id
        if base == "self" and len(parts) > 1:
            base, parts = f"self.{parts[0]}", parts[1:]
        if base not in roots:
            continue
        thing = roots[base]
        seen.add(f"{base}.{'.'.join(parts)}")
        for part in parts:
            if not hasattr(thing, part):
                missing.add(f"{base}.{'.'.join(parts)}")
                break
            thing = getattr(thing, part)
    return seen, missing


def source_of(module: Any) -> str:
    return Path(module.__file__).read_text()


def cuda_names() -> dict[str, Any]:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    return {
        "driver": driver,
        "self._driver": driver,
        "result": driver.CUresult,
        "kind": driver.CUdevice_attribute,
        "nvrtc": importlib.import_module("cuda.bindings.nvrtc"),
    }


def trt_names() -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX is not installed")
    trt = importlib.import_module("tensorrt_rtx_bindings")
    context = trt.IExecutionContext
    return {
        "trt": trt,
        "self._trt": trt,
        "runtime": trt.Runtime,
        "self._runtime": trt.Runtime,
        "engine": trt.ICudaEngine,
        "self._engine": trt.ICudaEngine,
        "config": trt.IRuntimeConfig,
        "self._cache": trt.IRuntimeCache,
        "context": context,
        "self._context": context,
        "kinds": trt.DynamicShapesKernelSpecializationStrategy,
        "strategies": trt.CudaGraphStrategy,
    }


def test_every_name_of_cuda_exists_in_cuda_python() -> None:
    seen, missing = used(source_of(cuda), cuda_names())
    assert not missing
    assert len(seen) > 40
    assert "self._driver.cuGraphLaunch" in seen


def test_every_name_of_tensorrt_exists_in_its_bindings() -> None:
    seen, missing = used(source_of(tensorrt), trt_names())
    assert not missing
    assert len(seen) > 25
    assert {"self._context.execute_async_v3", "config.cuda_graph_strategy", "strategies.DISABLED"} <= seen


def test_every_name_of_nvml_exists_in_its_bindings() -> None:
    nvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    seen, missing = set(), set()
    for module in (signs, gpu):
        names = used(source_of(module), {"nvml": nvml})
        seen |= names[0]
        missing |= names[1]
    assert missing == {"nvml.of"}, "but for the address that ours keeps, under a name that is the same"
    assert len(seen) > 15
    assert {"nvml.nvmlEventSetWait_v2", "nvml.NVML_ERROR_GPU_IS_LOST"} <= seen


def test_a_name_that_does_not_exist_is_found() -> None:
    seen, missing = used("driver.cuNoSuchThing(1)\nself._driver.CUresult.CUDA_NONE\nother.x", cuda_names())
    assert missing == {"driver.cuNoSuchThing", "self._driver.CUresult.CUDA_NONE"}
    assert seen == missing | {"self._driver.CUresult"}


# cuda ---------------------------------------------------------------------------------------------
def a_device() -> tuple[cuda.CudaDevice, Any]:
    driver = cuda_names()["driver"]
    return cuda.CudaDevice(driver, 0, 0, "a GPU", "86"), driver


@pytest.mark.parametrize("capturing", [False, True])
def test_every_code_of_cuda_has_one_meaning(capturing: bool) -> None:
    device, driver = a_device()
    fine = driver.CUresult.CUDA_SUCCESS
    device._driver = SimpleNamespace(
        cuStreamBeginCapture=lambda stream, mode: (fine,), CUstreamCaptureMode=driver.CUstreamCaptureMode
    )
    if capturing:
        device.begin_capture(1)
    meanings: dict[type, set[str]] = {}
    for code in driver.CUresult:
        try:
            assert device._ask((code, 7)) == 7
            kind: type = int
        except (OutOfMemory, DeviceLost, CaptureFailed) as e:
            kind = type(e)
        meanings.setdefault(kind, set()).add(code.name)
    assert meanings[int] == {"CUDA_SUCCESS"}
    assert meanings[OutOfMemory] == {"CUDA_ERROR_OUT_OF_MEMORY"}
    # Only a capture can fail as one: elsewhere the same code says that the device cannot be trusted.
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in meanings[CaptureFailed if capturing else DeviceLost]
    assert (CaptureFailed in meanings) == capturing
    for name in ("ILLEGAL_ADDRESS", "LAUNCH_FAILED", "ECC_UNCORRECTABLE", "LAUNCH_TIMEOUT", "NOT_READY"):
        assert f"CUDA_ERROR_{name}" in meanings[DeviceLost]
    assert len(meanings[DeviceLost]) > 60


def test_an_event_has_happened_or_not_yet_or_the_device_is_lost() -> None:
    device, driver = a_device()
    code = driver.CUresult
    for answer, wanted in ((code.CUDA_SUCCESS, True), (code.CUDA_ERROR_NOT_READY, False)):
        device._driver = SimpleNamespace(cuEventQuery=lambda event, a=answer: (a,))
        assert device.done(1) is wanted
    device._driver = SimpleNamespace(cuEventQuery=lambda event: (code.CUDA_ERROR_ILLEGAL_ADDRESS,))
    with pytest.raises(DeviceLost, match="ILLEGAL_ADDRESS"):
        device.done(1)


def shown(*uuids: str) -> Any:
    """A driver that shows some devices."""
    driver = cuda_names()["driver"]
    fine = driver.CUresult.CUDA_SUCCESS
    return SimpleNamespace(
        CUresult=driver.CUresult,
        cuDeviceGetCount=lambda: (fine, len(uuids)),
        cuDeviceGet=lambda i: (fine, i),
        cuDeviceGetUuid=lambda i: (fine, SimpleNamespace(bytes=bytes.fromhex(uuids[i].replace("-", "")))),
    )


def test_a_device_is_found_by_ordinal_or_uuid() -> None:
    one, two = "0f6b5a3e-1111-2222-3333-444455556666", "9D2B5A3E-1111-2222-3333-444455557777"
    driver = shown(one, two)
    assert cuda.find(driver, 1) == 1
    for which in (f"GPU-{one}", one, f"MIG-{one}", f"GPU-{one.upper()}"):
        assert cuda.find(driver, which) == 0
    assert cuda.find(driver, f"MIG-{two}") == 1
    for wrong in (2, -1, "GPU-0", "", "GPU-" + one[:-1]):
        with pytest.raises(RuntimeUnavailable, match="there is no GPU"):
            cuda.find(driver, wrong)


def test_pinned_memory_keeps_bytes() -> None:
    place = np.zeros(4096, np.uint8)
    memory = cuda.PinnedMemory(int(place.ctypes.data), place.size)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    memory.write(16, values)
    memory.write(1000, values.T)
    memory.write(333, np.array([[True, False], [True, True]]))
    assert memory.size == 4096
    assert memory.read(16, (3, 4), np.float32).tobytes() == values.tobytes()
    assert memory.read(1000, (4, 3), np.float32).tobytes() == np.ascontiguousarray(values.T).tobytes()
    assert memory.read(333, (4,), np.uint8).tolist() == [1, 0, 1, 1]
    taken = memory.read(16, (3, 4), np.float32)
    memory.write(16, np.zeros((3, 4), np.float32))
    assert taken.any()


# tensorrt -----------------------------------------------------------------------------------------
def refusing(words: Words, said: str) -> Any:
    """A context that refuses, with words in the log."""

    def execute(stream: int) -> bool:
        words.add(said)
        return False

    return SimpleNamespace(execute_async_v3=execute)


@pytest.mark.parametrize(
    ("said", "captured", "error"),
    [
        ("Error Code 1: Cuda Runtime (out of memory)", False, OutOfMemory),
        ("Error Code 2: OutOfMemory (Requested size was 5 bytes.)", True, OutOfMemory),
        ("operation not permitted when stream is capturing", True, CaptureFailed),
        ("an illegal memory access was encountered", False, DeviceLost),
        ("an error that nobody has seen", False, DeviceLost),
    ],
)
def test_what_tensorrt_refuses_is_told_apart(said: str, captured: bool, error: type[Exception]) -> None:
    words = Words()
    context = tensorrt.TensorrtContext(refusing(words, said), words, 0, True)
    with pytest.raises(error, match=said[:10]):
        context.enqueue(1, captured=captured)
    assert words.take() == ()


def without_gpu() -> None:
    if gpu.local():
        pytest.skip("there is a GPU here")


def a_plan(name: str, targets: list[str]) -> bytes:
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX is not installed")
    made = profile.of(SHIPPED.card(name))
    return build.build(
        (ZOO / name / "model.fp32.onnx").read_bytes(), "tensorrt_rtx", made, targets=targets
    ).plan


def test_without_a_gpu_a_plan_is_refused_and_the_next_runtime_may_take_over() -> None:
    without_gpu()
    plan, made = a_plan("ct-cnn", ["86"]), profile.of(SHIPPED.card("ct-cnn"))
    with pytest.raises(RuntimeUnavailable) as caught:
        tensorrt.TensorrtNetwork.load(plan, name="tensorrt_rtx", profile=made)
    assert caught.value.hint
    with pytest.raises(RuntimeUnavailable):
        tensorrt.TensorrtProgram("tensorrt_rtx", plan, made, 1)
    # Without a driver it says the same of what is no plan: nothing is known of the plan then.
    for content in (plan, b"no plan at all"):
        with pytest.raises(RuntimeUnavailable, match="insufficient") as caught:
            tensorrt.TensorrtProgram("tensorrt_rtx", content, made, 1)
        assert not isinstance(caught.value, PlanMismatch)


def test_onnx_runtime_without_cuda_says_so_and_never_takes_the_cpu_instead(tmp_path: Path) -> None:
    without_gpu()
    folder = onnx_samples.folder(tmp_path, onnx_samples.blur_network())
    path = folder / "model.fp32.onnx"
    card = Catalog.default([tmp_path]).card("ct-sample")
    with pytest.raises(RuntimeUnavailable, match=r"CUDA|GPU"):
        OnnxNetwork.load(path, card.weights_sha256, provider="cuda")
    assert OnnxNetwork.load(path, card.weights_sha256).device == "cpu"


# on a GPU -----------------------------------------------------------------------------------------
def local(name: str) -> gpu.Gpu:
    """The GPU of this machine, if a flavour runs there."""
    found = gpu.local()
    if not found:
        pytest.skip("there is no GPU here")
    if name not in installed():
        pytest.skip(f"{name} is not installed here")
    try:
        check_gpu(name, found[0])
    except RuntimeUnavailable as e:
        pytest.skip(e.message)
    return found[0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx"])
def test_on_a_gpu_every_engine_says_what_it_says_on_the_cpu(runtime: str, name: str, precision: str) -> None:
    local(runtime)
    card, path = SHIPPED.card(name), ZOO / name / f"model.{precision}.onnx"
    if not path.exists():
        pytest.skip(f"{name} has no {precision}")
    made = profile.of(card)
    plan = build.build(path.read_bytes(), runtime, made, device=0).plan
    network = tensorrt.TensorrtNetwork.load(plan, name=runtime, profile=made, factor=card.scale)
    try:
        engine = Enhancer(card, core_of(card, network), 2)
        wanted = SHIPPED.load(name)
        full = Params(strength=1.0)
        for shape in ((23, 128, 136), (3, 113, 97), (1, 40, 50)):
            volume = laws.stack(card.modalities[0], shape)
            survey = wanted.survey(volume)
            scale = 1.0 if volume.unit == "HU" else float(np.median(survey.high)) / 1000
            one, other = (e.enhance(volume, full, survey) for e in (engine, wanted))
            apart = (one.volume.values - other.volume.values).astype(np.float64) / scale
            assert np.abs(apart).max() <= 0.5
            assert np.sqrt((apart**2).mean()) <= 0.1
            assert laws.same(engine.enhance(volume, full, survey).volume.values, one.volume.values)
    finally:
        network.close()
