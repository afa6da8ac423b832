"""The worker's engines: what does not serve is on record, plans are built meanwhile, a short GPU is done without.

Plans are real, built by TensorRT for RTX in a process of their own, for a GPU that only a driver's answer makes up.
Where a network has to run "on a GPU", it is the engine's own through ONNX Runtime, under another name.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.tag import Tag

import node.housekeep
from engines.base import Floats
from engines.catalog import Catalog
from engines.errors import DeviceLost, GpuUnusable, OutOfMemory, PlanMismatch, RuntimeUnavailable
from engines.ladder import REFERENCE, RUNGS, OnGpu, Place, Rung, Wanted
from engines.runtime import profile as profiles
from engines.runtime.gpu import Gpu
from engines.runtime.pipeline import Pipeline
from engines.runtime.plans import Plans
from engines.runtime.tensorrt import TensorrtNetwork
from node.cli.story import told as story_of
from node.config.schema import Config
from node.dicom.words import words
from node.enhance import building
from node.enhance.work import do, named
from node.enhance.workshop import Workshop
from node.housekeep import Housekeeper
from node.model import JobState
from node.store import Store
from tests import kernels_cpp
from tests.device_onnx import NAME, OnnxContext, OnnxProgram, StandIn
from tests.dicom_samples import how
from tests.enhancing import NOW, queue, receive, series

ENGINE = "ct-cnn"
CARD = Catalog.default().card(ENGINE)
GPU = Gpu(name="GeForce of this test", compute_capability="86", driver="999.1")


@dataclass
class Notes:
    """What the workshop told, in order."""

    told: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    alarms: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def note(self, level: str, event: str, body: Mapping[str, Any]) -> None:
        self.told.append((level, event, dict(body)))

    def alarm(self, event: str, body: Mapping[str, Any]) -> None:
        self.alarms.append((event, dict(body)))

    def names(self) -> list[str]:
        return [event for _, event, _ in self.told]


def workshop(store: Store, notes: Notes, folder: Path, rungs: Mapping[str, Rung] | None = None) -> Workshop:
    catalog = Catalog.default(place=Place(plans=folder / "plans"))
    if rungs is not None:
        catalog._rungs = rungs
    return Workshop(store=store, threads=1, catalog=catalog, alarm=notes.alarm, note=notes.note)


class OnTheSide:
    """A network that says that it runs on a GPU, and does what it is told beside."""

    def __init__(self, wanted: Wanted, deed: Callable[[int], float]) -> None:
        made = RUNGS[REFERENCE](wanted)
        assert not isinstance(made, OnGpu)
        self._inner, self._deed = made, deed
        self.calls = 0

    name, device = "tensorrt_rtx", GPU.name

    def run(self, x: Floats, c: Floats) -> Floats:
        self.calls += 1
        r = self._inner.run(x, c)
        checks = np.indices(r.shape[-2:]).sum(axis=0) % 2 * 2 - 1  # no mean that a guard takes out
        return r + np.float32(self._deed(self.calls)) * checks.astype(np.float32)


def beside(deed: Callable[[int], float] = lambda _: 0.0, **more: Callable[[], None]) -> Mapping[str, Rung]:
    return {
        "tensorrt_rtx": lambda wanted: OnGpu(network=OnTheSide(wanted, deed), **more),
        REFERENCE: RUNGS[REFERENCE],
    }


def refusing(error: Callable[[], Exception]) -> Mapping[str, Rung]:
    def rung(_: Wanted) -> Any:
        raise error()

    return {"tensorrt_rtx": rung, REFERENCE: RUNGS[REFERENCE]}


def done(
    store: Store, shop: Workshop, number: int = 1, given: list[Any] | None = None
) -> tuple[Any, dict[str, Any], Any]:
    """Do one job: it, the body of its record, and the first derived data set."""
    given = given or series("CT", 4, number=number)
    (job_id,) = queue(store, receive(store, given, f"a{number}"), CARD)
    job = store.jobs.claim("w", 600.0, store.jobs.get(job_id).created_at)  # type: ignore[union-attr]
    assert job is not None
    do(shop, job, "w", lambda _step, _share: None)
    derived = store.deliveries.derived_of_job(job_id)
    assert derived is not None
    story = store.provenance.story(derived.series_uid)
    (body,) = [r.body for r in story.records if r.kind == "series.derived"]
    after = store.jobs.get(job_id)
    assert after is not None
    assert (after.state, after.attempt) == (JobState.DONE, 1)
    return story, dict(body), pydicom.dcmread(store.spool.path(derived.instances[0].path))


# refusals -----------------------------------------------------------------------------------------
def test_a_site_without_a_gpu_hears_nothing_of_it(sqlite_store: Store, tmp_path: Path) -> None:
    notes = Notes()
    rungs = refusing(lambda: RuntimeUnavailable("there is no GPU here, or no driver"))
    _, body, _ = done(sqlite_store, workshop(sqlite_store, notes, tmp_path, rungs))
    assert (notes.told, notes.alarms) == ([], [])
    assert (body["runtime"], body["device"], body["refused"]) == ("onnx", "cpu", [])


def test_a_gpu_without_memory_is_on_record_once_and_in_the_story(sqlite_store: Store, tmp_path: Path) -> None:
    notes = Notes()
    rungs = refusing(lambda: OutOfMemory("the GPU has no memory left", hint="end what else uses it"))
    shop = workshop(sqlite_store, notes, tmp_path, rungs)
    shop.proven(ENGINE, "auto")
    story, body, _ = done(sqlite_store, shop)
    assert notes.told == [
        (
            "warning",
            "engine.runtime_refused",
            {
                "engine": ENGINE, "runtime": "tensorrt_rtx", "kind": "memory",
                "because": "the GPU has no memory left", "hint": "end what else uses it",
            },
        )
    ]  # fmt: skip
    assert body["refused"] == [
        {"runtime": "tensorrt_rtx", "kind": "memory", "because": "the GPU has no memory left"}
    ]
    assert "not tensorrt_rtx: the GPU has no memory left" in story_of(story)


def test_who_answers_the_canary_wrongly_is_in_the_provenance(sqlite_store: Store, tmp_path: Path) -> None:
    notes, closed = Notes(), []
    rungs = beside(lambda _: 0.05, close=lambda: closed.append(True))  # of c: some HU
    _, body, _ = done(sqlite_store, workshop(sqlite_store, notes, tmp_path, rungs))
    assert [event for event, _ in notes.alarms] == ["engine.runtime_refused"]
    assert body["runtime"] == "onnx"
    (refused,) = body["refused"]
    assert (refused["runtime"], refused["kind"]) == ("tensorrt_rtx", "canary")
    assert "answers a question of known answer wrongly" in refused["because"]
    assert closed == [True]


# what ran ---------------------------------------------------------------------------------------------
@pytest.mark.tensorrt
def test_derived_objects_name_tensorrt_with_its_version_and_the_gpu(
    sqlite_store: Store, tmp_path: Path
) -> None:
    libs = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    _, body, ds = done(sqlite_store, workshop(sqlite_store, Notes(), tmp_path, beside()))
    told = f"tensorrt_rtx {libs.__version__}"
    assert (body["runtime"], body["device"]) == ("tensorrt_rtx", GPU.name)
    assert body["versions"]["tensorrt-rtx-cu13-libs"] == libs.__version__
    assert f"{told} on {GPU.name}." in ds.DerivationDescription
    assert told in ds.SoftwareVersions
    # Where the scanner stays the equipment (`equipment: retain`) the same is said of the contributing one.
    contribution = words(how(runtime=told, device=GPU.name, equipment="retain"), UTC).contribution
    assert told in contribution[Tag("SoftwareVersions")].raw.decode().split("\\")
    assert (named("onnx"), named("numpy")) == ("onnx", "numpy")


def test_the_daily_report_counts_what_ran_where(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, rungs in ((1, beside()), (2, beside()), (3, refusing(lambda: RuntimeUnavailable("gone")))):
        done(sqlite_store, workshop(sqlite_store, Notes(), tmp_path, rungs), number)
    keeper = Housekeeper(sqlite_store, Config, owner="node")

    def reported() -> Any:
        keeper.report()
        return sqlite_store.events.list(name="report.daily")[0].body["derived_on"]

    monkeypatch.setattr(node.housekeep, "_now", lambda: NOW + timedelta(hours=1))
    assert reported() == {"onnx": 1, "tensorrt_rtx": 2}
    monkeypatch.setattr(node.housekeep, "_now", lambda: NOW + timedelta(days=400))
    assert reported() == {}


# memory that runs out ------------------------------------------------------------------------------
def test_a_gpu_too_small_for_a_job_is_done_without_in_the_same_attempt(
    sqlite_store: Store, tmp_path: Path
) -> None:
    notes, closed = Notes(), []

    def short(call: int) -> float:
        if call > 4:  # the canary is asked twice; then in the midst of the job
            raise OutOfMemory("the GPU has no memory for one slice", hint="allow more of it")
        return 0.0

    shop = workshop(sqlite_store, notes, tmp_path, beside(short, close=lambda: closed.append(True)))
    assert shop.proven(ENGINE, "auto").device == GPU.name
    _, body, ds = done(sqlite_store, shop)
    assert (body["runtime"], body["device"], body["attempt"]) == ("onnx", "cpu", 1)
    assert body["refused"] == [
        {"runtime": "tensorrt_rtx", "kind": "memory", "because": "the GPU has no memory for one slice"}
    ]
    assert notes.names() == ["engine.runtime_refused"]
    assert closed == [True]
    assert "onnx on cpu" in ds.DerivationDescription
    # From now on that GPU is not asked any more, and that was told once.
    done(sqlite_store, shop, 2)
    assert notes.names() == ["engine.runtime_refused"]
    assert not list((sqlite_store.spool.root / "scratch").iterdir())


def test_a_gpu_that_refuses_in_the_midst_of_a_job_is_done_without_in_the_same_attempt(
    sqlite_store: Store, tmp_path: Path
) -> None:
    """A size that its plan is not made for, a context that it does not make: nothing that trying again would mend."""
    notes, closed = Notes(), []

    def refuse(call: int) -> float:
        if call > 4:
            raise RuntimeUnavailable("TensorRT makes no execution context")
        return 0.0

    shop = workshop(sqlite_store, notes, tmp_path, beside(refuse, close=lambda: closed.append(True)))
    _, body, _ = done(sqlite_store, shop)
    assert (body["runtime"], body["attempt"], closed) == ("onnx", 1, [True])
    assert [(r["runtime"], r["kind"]) for r in body["refused"]] == [("tensorrt_rtx", "gpu")]
    assert notes.names() == ["engine.runtime_refused"]


def test_a_gpu_that_is_there_and_cannot_be_used_is_on_record(sqlite_store: Store, tmp_path: Path) -> None:
    notes = Notes()
    rungs = refusing(lambda: GpuUnusable("NVRTC is not installed", hint="pip install nvidia-cuda-nvrtc"))
    _, body, _ = done(sqlite_store, workshop(sqlite_store, notes, tmp_path, rungs))
    assert body["runtime"] == "onnx"
    assert [(r["runtime"], r["kind"]) for r in body["refused"]] == [("tensorrt_rtx", "gpu")]
    assert notes.told[0][0] == "warning"
    assert notes.told[0][2]["hint"] == "pip install nvidia-cuda-nvrtc"


class Counted(OnnxProgram):
    """The network of the stand-in; it keeps how many slices each context was opened for."""

    def __init__(self, device: StandIn, network: Callable[[Floats, Floats], Floats]) -> None:
        super().__init__(device, network)
        self.sizes: list[int] = []

    def open(self, n_slices: int, rows: int, columns: int, stream: int) -> OnnxContext:
        self.sizes.append(n_slices)
        return super().open(n_slices, rows, columns, stream)


@pytest.mark.skipif(kernels_cpp.COMPILER is None, reason=kernels_cpp.NO_COMPILER)
def test_smaller_groups_come_before_the_next_runtime_and_the_gpu_is_given_back(
    sqlite_store: Store, tmp_path: Path
) -> None:
    """The whole way down on the stand-in for a GPU: 4 slices, 1 slice, everything given back, the CPU."""
    device, made = StandIn(), list[Counted]()

    def rung(wanted: Wanted) -> OnGpu:
        inner = RUNGS[REFERENCE](wanted)
        assert not isinstance(inner, OnGpu)
        program, profile = Counted(device, inner.run), profiles.of(wanted.card)
        made.append(program)
        pipeline = Pipeline(device, program, profile, clock=device.clock, sleep=device.sleep)
        network = TensorrtNetwork(pipeline, device, program, profile, name="tensorrt_rtx")
        return OnGpu(network=network, close=network.close)

    notes = Notes()
    shop = workshop(sqlite_store, notes, tmp_path, {"tensorrt_rtx": rung, REFERENCE: RUNGS[REFERENCE]})
    assert shop.proven(ENGINE, "auto").device == NAME
    (program,) = made
    _, body, _ = done(sqlite_store, shop)
    assert (body["runtime"], body["device"], body["refused"]) == ("tensorrt_rtx", NAME, [])
    assert not device.empty
    done(sqlite_store, shop, 2, series("CT", 9, size=96, number=2))
    assert program.sizes[-2:] == [8, 1]
    # Half of what such a job takes: smaller groups, and the GPU goes on.
    program.sizes.clear()
    device.total = device.peak // 2
    _, body, _ = done(sqlite_store, shop, 3, series("CT", 9, size=104, number=3))
    assert (body["runtime"], body["refused"]) == ("tensorrt_rtx", [])
    assert program.sizes
    assert set(program.sizes) <= {4, 1}
    assert not device.empty
    # Next to nothing: not one slice. In the same attempt the next runtime serves, and the GPU has everything back.
    device.total = 1 << 16
    looked = device.trace.count("allocate")
    _, body, _ = done(sqlite_store, shop, 4, series("CT", 9, size=96, number=4))
    assert (body["runtime"], body["device"], body["attempt"]) == ("onnx", "cpu", 1)
    assert [(r["runtime"], r["kind"]) for r in body["refused"]] == [("tensorrt_rtx", "memory")]
    assert device.trace.count("allocate") - looked >= 3, "8, 4 and 1 were tried"
    assert device.empty, device.held
    assert program.open_contexts == 0
    assert device.trace[-2:] == ["close program", "close"]
    assert notes.names() == ["engine.runtime_refused"]
    # And it is let alone from then on.
    calls = device.calls
    done(sqlite_store, shop, 5)
    assert device.calls == calls
    assert made == [program]


def test_whoever_insists_on_a_runtime_is_not_given_another(sqlite_store: Store, tmp_path: Path) -> None:
    shop = workshop(sqlite_store, Notes(), tmp_path, beside())
    shop.proven(ENGINE, "tensorrt_rtx")
    assert not shop.step_down(ENGINE, "tensorrt_rtx", OutOfMemory("no memory"))
    shop.proven(ENGINE, "onnx")
    assert not shop.step_down(ENGINE, "onnx", OutOfMemory("no memory"))
    assert not shop.step_down("ct-gan", "auto", OutOfMemory("no memory"))


# compiled kernels -------------------------------------------------------------------------------------
def test_kernels_are_kept_after_the_canary_and_after_the_first_job(
    sqlite_store: Store, tmp_path: Path
) -> None:
    kept: list[float] = []
    shop = workshop(sqlite_store, Notes(), tmp_path, beside(keep=lambda: kept.append(time.monotonic())))
    shop.proven(ENGINE, "auto")
    assert len(kept) == 1
    done(sqlite_store, shop)
    done(sqlite_store, shop, 2)
    assert len(kept) == 2


@pytest.mark.parametrize("error", [PlanMismatch("not ours"), RuntimeUnavailable("full"), RuntimeError("?")])
def test_kernels_that_cannot_be_kept_stop_nobody(
    sqlite_store: Store, tmp_path: Path, error: Exception
) -> None:
    def refuse() -> None:
        raise error

    notes = Notes()
    _, body, _ = done(sqlite_store, workshop(sqlite_store, notes, tmp_path, beside(keep=refuse)))
    assert body["runtime"] == "tensorrt_rtx"
    assert not notes.alarms


def test_a_device_that_is_lost_while_kernels_are_kept_is_lost(sqlite_store: Store, tmp_path: Path) -> None:
    def lose() -> None:
        raise DeviceLost("gone")

    with pytest.raises(DeviceLost):
        workshop(sqlite_store, Notes(), tmp_path, beside(keep=lose)).proven(ENGINE, "auto")


# plans -------------------------------------------------------------------------------------------------
@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver says that there is a GPU; no call reaches one."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    monkeypatch.setattr("engines.runtime.gpu.local", lambda: (GPU,))


def waited(shop: Workshop, notes: Notes, names: set[str], within_s: float = 150.0) -> None:
    deadline = time.monotonic() + within_s
    while not names & set(notes.names()):
        assert time.monotonic() < deadline, notes.told
        shop.look()  # waits a little by itself while a build goes on


@pytest.mark.tensorrt
def test_a_missing_plan_is_built_once_while_the_cpu_serves_and_taken_up_by_the_next_job(
    shown: None, sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    shop = workshop(sqlite_store, notes, tmp_path)
    loads: list[str] = []
    load = shop.catalog.load

    def loading(name: str, *args: Any, **more: Any) -> Any:
        loads.append(name)
        return load(name, *args, **more)

    monkeypatch.setattr(shop.catalog, "load", loading)
    _, body, _ = done(sqlite_store, shop)
    assert body["runtime"] == "onnx"
    (refused,) = body["refused"]
    assert (refused["runtime"], refused["kind"]) == ("tensorrt_rtx", "plan")
    assert notes.names() == ["engine.runtime_refused", "plans.building"]
    waited(shop, notes, {"plans.built", "plans.not_built"})
    assert notes.told[-1][:2] == ("info", "plans.built")
    assert notes.told[-1][2] | {"seconds": 0} == {
        "engine": ENGINE, "runtime": "tensorrt_rtx", "plans": 2, "seconds": 0,
    }  # fmt: skip
    folder = tmp_path / "plans"
    assert len([k for k in Plans(folder).list() if k.kind == "plan"]) == 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    # The next job loads the engine anew. Here the way ends at the driver, which is not there: no plan is missing,
    # and that is told as what it is.
    before = len(loads)
    _, body, _ = done(sqlite_store, shop, 2)
    assert loads[before:] == [ENGINE]
    assert [(r["runtime"], r["kind"]) for r in body["refused"]] == [("tensorrt_rtx", "gpu")]
    done(sqlite_store, shop, 3)
    assert len(loads) == before + 1
    assert notes.names() == [
        "engine.runtime_refused",
        "plans.building",
        "plans.built",
        "engine.runtime_refused",
    ]


@pytest.mark.tensorrt
def test_a_build_that_fails_is_told_with_its_words_and_not_tried_again(
    shown: None, sqlite_store: Store, tmp_path: Path
) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans").chmod(0o777)  # plans are code, and anybody may write here
    notes = Notes()
    shop = workshop(sqlite_store, notes, tmp_path)
    shop.proven(ENGINE, "auto")
    waited(shop, notes, {"plans.built", "plans.not_built"})
    wrong = [body for _, event, body in notes.told if event == "plans.not_built"]
    assert wrong
    assert all(b["because"] and b["runtime"] == "tensorrt_rtx" for b in wrong)
    assert {level for level, event, _ in notes.told if event == "plans.not_built"} == {"error"}
    n = len(notes.told)
    shop._building.want(ENGINE, "tensorrt_rtx")  # type: ignore[union-attr]
    _, body, _ = done(sqlite_store, shop)
    assert (body["runtime"], len(notes.told)) == ("onnx", n)


@pytest.mark.tensorrt
def test_who_insists_on_a_runtime_without_a_plan_waits_for_it(
    shown: None, sqlite_store: Store, tmp_path: Path
) -> None:
    notes = Notes()
    shop = workshop(sqlite_store, notes, tmp_path)
    with pytest.raises(PlanMismatch):
        shop.proven(ENGINE, "tensorrt_rtx")
    assert notes.names() == ["engine.runtime_refused", "plans.building"]
    shop.stop()
    shop.look()
    assert notes.names() == ["engine.runtime_refused", "plans.building"]


def test_one_build_at_a_time_and_the_next_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self, names: list[str], **asked: Any) -> None:
            begun.append((names[0], asked["flavour"]))
            self.over = False

        def outcomes(self) -> tuple[()] | None:
            if not self.over:
                return None
            raise RuntimeUnavailable("building plans ended with status -9", hint="see the log")

        def stop(self) -> None:
            self.over = True

    begun: list[tuple[str, str]] = []
    monkeypatch.setattr("engines.rebuild.rebuild", Slow)
    notes = Notes()
    one = building.Building(Place(plans=tmp_path), notes.note)
    for name in ("ct-cnn", "mr-cnn", "ct-cnn"):
        one.want(name, "tensorrt")
    assert begun == [("ct-cnn", "tensorrt")]
    assert one.done() == []
    assert one._now is not None
    one._now[1].over = True
    assert one.done() == []
    assert begun == [("ct-cnn", "tensorrt"), ("mr-cnn", "tensorrt")]
    assert notes.names() == ["plans.building", "plans.not_built", "plans.building"]
    assert "status -9" in notes.told[1][2]["because"]
    one.stop()
    assert one.done() == []
