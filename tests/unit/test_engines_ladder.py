"""The ladder of runtimes: what refuses says why, what serves is the next, and what is broken stays broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from engines import ladder
from engines.base import Params
from engines.catalog import KNOWN_RUNTIMES, Catalog
from engines.errors import (
    DeviceLost,
    EngineError,
    GpuUnusable,
    OutOfMemory,
    PlanMismatch,
    RuntimeUnavailable,
    WeightsMismatch,
)
from engines.ladder import ACCELERATED, REFERENCE, RUNGS, Place, Rung, Wanted, climb
from engines.runtime.gpu import Gpu


def refusing(error: Callable[[], EngineError]) -> Rung:
    def rung(_: Wanted) -> None:
        raise error()

    return rung


def rungs(**told: EngineError) -> Mapping[str, Rung]:
    """The real ladder with rungs that refuse as told."""
    return RUNGS | {name: refusing(lambda e=e: e) for name, e in told.items()}


ABSENT = RuntimeUnavailable("not installed", hint="install it")


def test_the_order_is_that_of_the_operations_page() -> None:
    assert tuple(RUNGS) == ("tensorrt", "tensorrt_rtx", "onnx_cuda", "onnx")
    assert ("auto", *RUNGS) == KNOWN_RUNTIMES
    assert frozenset(RUNGS) - {REFERENCE} == ACCELERATED == Catalog.accelerated()


def test_the_cpu_serves_where_nothing_else_does_and_says_why() -> None:
    engine = Catalog.default().load("ct-cnn")
    if engine.core.runtime != "onnx":
        pytest.skip("there is a GPU here")
    assert [r.runtime for r in engine.refusals] == ["tensorrt", "tensorrt_rtx", "onnx_cuda"]
    assert all(r.kind == "absent" and r.message and r.hint for r in engine.refusals)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ABSENT, "absent"),
        (PlanMismatch("no plan for this GPU", hint="python -m engines build"), "plan"),
        (GpuUnusable("NVRTC is not installed", hint="pip install nvidia-cuda-nvrtc"), "gpu"),
        (OutOfMemory("no memory for one slice", hint="free the GPU"), "memory"),
    ],
)
def test_the_next_rung_takes_over_from_each_refusal(error: EngineError, kind: str) -> None:
    catalog = Catalog.default()
    catalog._rungs = rungs(tensorrt=error, tensorrt_rtx=ABSENT, onnx_cuda=ABSENT)
    engine = catalog.load("ct-cnn")
    assert engine.core.runtime == "onnx"
    first = engine.refusals[0]
    assert (first.runtime, first.kind, first.message, first.hint) == (
        "tensorrt",
        kind,
        error.message,
        error.hint,
    )


@pytest.mark.parametrize("error", [DeviceLost("gone"), WeightsMismatch("altered")])
def test_what_no_other_runtime_would_mend_is_not_climbed_over(error: EngineError) -> None:
    catalog = Catalog.default()
    catalog._rungs = rungs(tensorrt=error)
    with pytest.raises(type(error)):
        catalog.load("ct-cnn")


def test_a_rung_that_is_avoided_is_not_even_asked() -> None:
    asked: list[str] = []

    def spy(name: str, rung: Rung) -> Rung:
        def asking(wanted: Wanted):
            asked.append(name)
            return rung(wanted)

        return asking

    catalog = Catalog.default()
    catalog._rungs = {name: spy(name, rung) for name, rung in RUNGS.items()}
    engine = catalog.load("ct-cnn", avoid=ACCELERATED)
    assert asked == ["onnx"]
    assert {r.kind for r in engine.refusals} == {"avoided"}
    with pytest.raises(RuntimeUnavailable, match="not to be used now"):
        catalog.load("ct-cnn", "tensorrt", avoid={"tensorrt"})


def test_whoever_insists_gets_that_runtime_or_its_own_words() -> None:
    catalog = Catalog.default()
    catalog._rungs = rungs(tensorrt=PlanMismatch("no plan", hint="build it"), onnx=ABSENT)
    with pytest.raises(PlanMismatch, match="no plan") as told:
        catalog.load("ct-cnn", "tensorrt")
    assert told.value.hint == "build it"
    with pytest.raises(RuntimeUnavailable, match="not installed"):
        catalog.load("ct-cnn", "onnx")


def test_where_nothing_holds_the_hint_is_what_a_person_can_mend() -> None:
    every = rungs(
        tensorrt=ABSENT,
        tensorrt_rtx=PlanMismatch("no plan", hint="python -m engines build"),
        onnx_cuda=ABSENT,
        onnx=RuntimeUnavailable("ONNX Runtime is not installed", hint="pip install onnxruntime"),
    )
    catalog = Catalog.default()
    catalog._rungs = every
    with pytest.raises(RuntimeUnavailable, match="ONNX Runtime is not installed") as told:
        catalog.load("ct-cnn")
    assert told.value.hint == "python -m engines build"


# with a GPU that only the driver's answers are made up for ------------------------------------------
GPU = Gpu(name="GeForce of this test", compute_capability="86", driver="999.1")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver says that there is a GPU; no call reaches one."""
    monkeypatch.setattr("engines.runtime.gpu.local", lambda: (GPU,))


def wanted(folder: Path, name: str = "ct-cnn") -> Wanted:
    catalog = Catalog.default()
    return Wanted(card=catalog.card(name), models=catalog.models(name), threads=1, place=Place(plans=folder))


@pytest.mark.tensorrt
def test_a_gpu_without_a_plan_says_to_build_one(shown: None, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    stood = climb(wanted(tmp_path / "plans"))
    assert stood.network.name == "onnx"
    told = {r.runtime: r for r in stood.refusals}
    assert told["tensorrt_rtx"].kind == "plan"
    assert told["tensorrt_rtx"].hint == f"python -m engines build --plans {tmp_path / 'plans'}"


@pytest.mark.tensorrt
def test_a_plan_that_fits_is_taken_as_far_as_the_driver(shown: None, tmp_path: Path) -> None:
    """Without a driver the last step refuses: the way to it, from the card to a verified plan, is real."""
    pytest.importorskip("tensorrt_rtx_bindings")
    from engines import compile as compiling
    from engines.runtime.gpu import local
    from engines.runtime.plans import Plans

    assert local() == (GPU,)
    plans = Plans(tmp_path / "plans")
    (job,) = compiling.jobs(
        Catalog.default(), ["ct-cnn"], flavour="tensorrt_rtx", capabilities=["86"], precisions=["fp16"]
    )
    assert compiling.make(job, plans).state == "built"
    told = {r.runtime: r for r in climb(wanted(tmp_path / "plans")).refusals}
    # A GPU, its TensorRT and a plan are there, and yet it does not serve: nothing that a node keeps to itself.
    assert told["tensorrt_rtx"].kind == "gpu"
    assert "plan" not in told["tensorrt_rtx"].message
    assert "nvidia-smi" in told["tensorrt_rtx"].hint


@pytest.mark.tensorrt
def test_an_altered_file_is_refused_though_its_plan_would_serve(shown: None, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    one = wanted(tmp_path / "plans")
    path, _ = one.reference
    altered = tmp_path / path.name
    altered.write_bytes(path.read_bytes()[:-1] + b"\0")
    broken = dataclasses.replace(one, models=one.models | {"fp32": (altered, one.reference[1])})
    with pytest.raises(WeightsMismatch):
        climb(broken)


def test_the_reference_is_what_it_was() -> None:
    """The ladder changes no bit of what the CPU makes."""
    from engines.__main__ import sample
    from engines.front import Enhancer
    from engines.learned import Learned
    from engines.runtime.onnx import OnnxNetwork

    catalog = Catalog.default()
    card = catalog.card("ct-cnn")
    path, sha256 = catalog.models("ct-cnn")["fp32"]
    plain = Enhancer(card, Learned(card, OnnxNetwork.load(path, sha256, threads=1)), 1)
    climbed = catalog.load("ct-cnn", avoid=ladder.ACCELERATED, threads=1)
    given, params = sample("CT"), Params(strength=0.6)
    a, b = (e.enhance(given, params).volume.values for e in (plain, climbed))
    assert np.array_equal(a, b)
