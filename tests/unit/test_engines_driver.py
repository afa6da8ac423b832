"""engines/runtime/cuda.py through cuda-python's real bindings, into a libcuda that is none (tests/libcuda.py).

What a device does late or out of order is shown in test_engines_pipeline.py. Here every argument goes the whole way to
the driver's entry points, and every call of the driver fails once, in each way that it can.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engines.errors import DeviceLost, EngineError, RuntimeUnavailable
from engines.runtime import cuda, flavour, gpu
from engines.runtime.gpu import LOST
from node.enhance.failures import lost
from tests import kernels_cpp, libcuda

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(kernels_cpp.COMPILER is None, reason=kernels_cpp.NO_COMPILER),
]

ILLEGAL_ADDRESS, OUT_OF_MEMORY, INVALIDATED, NOT_PERMITTED, NOT_READY = 700, 2, 901, 800, 600

PREPARING = {
    "cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain", "cuModuleLoadData", "cuModuleGetFunction",
}  # fmt: skip
"""Calls of which only opening a device makes any."""
GIVING_BACK = {
    "cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphExecDestroy", "cuGraphDestroy",
    "cuModuleUnload", "cuDevicePrimaryCtxRelease",
}  # fmt: skip
CAPTURING = {"cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    try:
        cuda.compiled("86")
    except RuntimeUnavailable as e:
        if "not installed" not in e.message:
            raise
        pytest.skip(f"{e.message}: {e.hint}")
    made = tmp_path_factory.mktemp("libcuda")
    libcuda.build(made)
    return made


def asked(folder: Path, what: object) -> Any:
    """What a process over the library says."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.libcuda_run", str(what)],
        cwd=ROOT, env=libcuda.environment(folder), capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def calls(source: str) -> set[str]:
    """The entry points of the driver that a source names."""
    return {
        n.attr
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Attribute) and n.attr.startswith("cu") and n.attr[2:3].isupper()
    }


def test_the_whole_path_through_the_real_bindings(folder: Path) -> None:
    told = asked(folder, "sound")
    graphs, plain = told["runs"]
    for run in (graphs, plain):
        # Bit for bit what the stand-in makes of it, and everything given back.
        assert (run["same"], run["held"], run["current"]) == (True, 0, 0)
        assert run["changed"] > 1
    assert graphs["trace"].count("cuGraphLaunch") >= 3
    assert "cuGraphLaunch" not in plain["trace"]
    assert (told["gpus"], told["uuid"]) == ([[libcuda.NAME, "86"]], "7")
    # The library looks at what NVRTC made: machine code for another GPU is none for this one.
    assert told["codes"] == {"86": 0, "90": 209, "75": 209}


def test_every_call_of_the_driver_in_the_source_is_made_here(folder: Path) -> None:
    named = calls(Path(cuda.__file__).read_text()) | calls(Path(gpu.__file__).read_text())
    made = set(asked(folder, "sound")["runs"][0]["trace"])
    # Those two the test above asks for, outside of the run that is traced.
    assert named - made == {"cuDeviceGetUuid", "cuDriverGetVersion"}
    assert made <= named
    assert len(made) >= 30


def test_each_thread_makes_the_context_its_own(folder: Path) -> None:
    assert asked(folder, "threads") == {"same": True, "held": 0}


def test_less_memory_means_smaller_groups_and_everything_given_back(folder: Path) -> None:
    told = asked(folder, "memory")
    assert [t["total"] for t in told if not t["right"] or t["held"]] == []
    whole = [t for t in told if not t["error"]]
    assert len({t["groups"] for t in whole}) >= 2
    assert [t["groups"] for t in whole] == sorted(t["groups"] for t in whole)
    assert len({t["answers"] for t in whole}) == 1
    assert {t["error"] for t in told if t not in whole} == {"OutOfMemory"}


def test_the_real_tensorrt_on_a_driver_that_it_cannot_use_gives_the_gpu_back(folder: Path) -> None:
    """All is there but a driver of its time: the CPU serves, the GPU is free, and the plan is not blamed."""
    if "tensorrt_rtx" not in flavour.installed():
        pytest.skip("TensorRT for RTX is not installed")
    told = asked(folder, "ladder")
    assert (told["built"], told["serves"], told["held"], told["opened"]) == ("built", "onnx", 0, True)
    refused = told["refused"]["tensorrt_rtx"]
    assert refused["kind"] == "gpu"
    assert "insufficient" in refused["message"]
    assert "newer" in refused["hint"]


@pytest.mark.parametrize("code", [ILLEGAL_ADDRESS, OUT_OF_MEMORY, INVALIDATED, NOT_PERMITTED, NOT_READY])
def test_every_call_of_the_driver_fails_once(folder: Path, code: int) -> None:
    told = asked(folder, code)
    assert {t["call"] for t in told} >= PREPARING | GIVING_BACK | CAPTURING
    assert len(told) > 300
    assert [t for t in told if not t["right"]] == [], "an answer that was given is wrong"
    assert {t["error"] for t in told} <= {"", "RuntimeUnavailable", "OutOfMemory", "DeviceLost"}
    # After the device is lost not one more call reaches it, not even to give something back.
    assert [t for t in told if t["after"]] == []
    for t in told:
        if not t["error"]:
            assert (t["whole"], t["held"]) == (True, 0), t
        if not t["opened"] and t["error"] != "DeviceLost":
            assert t["held"] == 0, t
        if t["call"] in GIVING_BACK and t["opened"]:
            assert t["error"] == "DeviceLost", t
    of = Counter((t["opened"], t["error"]) for t in told)
    if code == ILLEGAL_ADDRESS:
        # Whoever tells of it: the process must end. Only cuInit comes before anything can be broken.
        assert of == {(False, "RuntimeUnavailable"): 1, (False, "DeviceLost"): of[False, "DeviceLost"],
                      (True, "DeviceLost"): of[True, "DeviceLost"]}  # fmt: skip
    elif code == OUT_OF_MEMORY:
        assert of[True, ""] > 0.6 * len(told), "smaller groups mend nearly all"
        assert of[False, "OutOfMemory"] >= 10
    elif code == INVALIDATED:
        assert {t["error"] for t in told if t["call"] in CAPTURING} == {""}, "launched one by one instead"
    if code in (INVALIDATED, NOT_PERMITTED):
        assert {e for opened, e in of if not opened} == {"RuntimeUnavailable"}


def test_the_codes_after_which_nothing_works_are_codes() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    codes = driver.CUresult.__members__
    assert set(codes) >= LOST
    assert not LOST & {
        "CUDA_SUCCESS",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUDA_ERROR_NOT_READY",
        "CUDA_ERROR_NO_DEVICE",
    }


def test_only_what_is_lost_ends_the_process() -> None:
    """The worker reads in words that are not ours, too, whether a device is lost; a refusal is to be none of those."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    seen = Counter[str]()
    for code in driver.CUresult:
        if int(code) == 0:
            continue
        with pytest.raises(EngineError) as refused:
            gpu.opened(driver, (code,))
        seen[type(refused.value).__name__] += 1
        assert lost(refused.value) == (code.name in LOST) == isinstance(refused.value, DeviceLost)
    assert (seen["OutOfMemory"], seen["DeviceLost"]) == (1, len(LOST))
    assert seen["RuntimeUnavailable"] > 50
