"""R43, R46: a GPU that is not to be trusted is not used, the fallback is proven, and only proof brings it back.

The accelerator is the device of devices.py, on the CPU. What needs a GPU itself is named in mutations/engines.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engines.errors as ee
from engines import canary, catalog
from engines.base import Params, Volume
from engines.catalog import Catalog
from engines.classical import phantoms
from node.enhance import signs
from node.enhance.health import Health, Limits, mark_path, read_mark
from node.enhance.signs import KernelLog, Watch
from node.enhance.workshop import Workshop
from node.model import JobState
from node.store import Store
from tests.faults import devices
from tests.faults.engines import ENGINE, Bench
from tests.faults.ledger import record
from tests.faults.scale import SEED, count

DONE, QUEUED = JobState.DONE, JobState.QUEUED
LIMITS = Limits(check_every_s=3.0, check_first_s=0.0)

MakeBench = Callable[..., Bench]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def make(sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def bench(**more: Any) -> Bench:
        folder = tmp_path / f"device{len(made)}"
        folder.mkdir()
        monkeypatch.setenv(devices.FOLDER, str(folder))
        store = sqlite_store
        health = Health(mark_path(store.spool.root), store.events.tell, limits=LIMITS)
        made.append(Bench(store=store, folder=folder, health=health, **more))
        made[-1].script(gpu=True)
        return made[-1]

    yield bench
    for one in made:
        one.stop()


def test_failures_on_different_series_open_the_breaker_and_proof_closes_it(make: MakeBench) -> None:
    """R43. Three series meet an error of the device: the rest is done by the fallback, and nobody lifts a hand."""
    bench = make()
    good = bench.series(1)
    bench.until(bench.ended(good))
    assert bench.runtimes(good) == {"tensorrt"}
    bench.script(gpu=True, only_gpu=True, canary="lost", runs={"*": {"*": "lost"}})
    jobs = bench.series(count(4, 30))
    took = bench.until(bench.ended(jobs))
    states = bench.states(jobs)
    alarms = bench.events("gpu.unfit")
    mark = read_mark(mark_path(bench.store.spool.root))
    on = bench.runtimes([j for j in jobs if states[j][0] is DONE])
    ok = (
        all(s is DONE for s, _ in states.values())
        and on == {"onnx"}
        and len(alarms) == 1
        and mark is not None
    )
    ok = ok and not bench.violations(jobs)
    record(
        "R43", load=f"{len(jobs)} series of which every one meets an error of the device", count=len(jobs), ok=ok,
        result=f"unfit after 3 different series, all done by the fallback within {took:.0f} s, 1 alarm",
        lost=sum(s is not DONE for s, _ in states.values()),
    )  # fmt: skip
    assert ok, (states, on, alarms, mark)
    assert "3 different series" in alarms[0]["why"]

    # A restart forgets nothing, and a check that fails changes nothing.
    bench.stop()
    bench.health = Health(mark_path(bench.store.spool.root), bench.store.events.tell, limits=LIMITS)
    assert bench.health.unfit
    more = bench.series(1)
    bench.until(bench.ended(more))
    bench.until(lambda: any(_checks(bench)))
    assert bench.runtimes(more) == {"onnx"}
    assert bench.health.unfit

    # Mended: a check proves it, the next worker has it again.
    bench.script(gpu=True)
    healed = bench.until(lambda: bench.health is not None and not bench.health.unfit)
    bench.until(lambda: _has_gpu(bench))  # the worker that was there may finish a series on the CPU
    late = bench.series(1)
    bench.until(bench.ended(late))
    fit = bench.events("gpu.fit")
    ok = (
        bench.runtimes(late) == {"tensorrt"}
        and len(fit) == 1
        and not mark_path(bench.store.spool.root).exists()
    )
    record("R43", load="the device is mended after a restart of the node", count=1, ok=ok,
           result=f"proven by a check, in use again {healed:.0f} s later")  # fmt: skip
    assert ok
    assert len(bench.events("gpu.unfit")) == 1


def _checks(bench: Bench) -> list[dict[str, Any]]:
    """Failed questions of processes that never had a job: health checks."""
    lines = devices.journal(bench.folder)
    workers = {line["pid"] for line in lines if line["job"] is not None}
    return [line for line in lines if line["pid"] not in workers and line["what"] == "lost"]


def _has_gpu(bench: Bench) -> bool:
    guardian = bench.guardian
    assert guardian is not None
    return not guardian._without_gpu and guardian.pid is not None


def test_one_series_that_breaks_it_again_and_again_does_not_condemn_it(make: MakeBench) -> None:
    """R43: two tries on the accelerator, one by the fallback; the GPU stays in use for the others."""
    bench = make()
    bench.script(gpu=True, only_gpu=True, runs={"1": {"*": "lost"}})
    jobs = bench.series(3)
    bench.until(bench.ended(jobs))
    assert bench.states(jobs) == {jobs[0]: (DONE, 3), jobs[1]: (DONE, 1), jobs[2]: (DONE, 1)}
    assert bench.runtimes(jobs[:1]) == {"onnx"}
    assert bench.runtimes(jobs[1:]) == {"tensorrt"}
    assert not bench.events("gpu.unfit")
    record("R43", load="1 series that meets a device error every time, 2 beside it", count=3,
           result="done by the fallback at its third try; the device stays in use for the others")  # fmt: skip


def test_a_line_of_the_kernel_puts_the_job_down_and_the_gpu_away(make: MakeBench, tmp_path: Path) -> None:
    """R43: Xid 79 while a series is at work; an Xid that is a program's own fault changes nothing."""
    kernel = tmp_path / "kmsg"
    kernel.write_text(
        "6,1,2,-;NVRM: Xid (PCI:0000:65:00): 79, pid=1, GPU has fallen off the bus. (before our time)\n"
    )
    bench = make(watch=Watch(lambda: [KernelLog(kernel)], every_s=0.05))
    (job,) = bench.series(1, slices=40)
    bench.script(gpu=True, only_gpu=True, runs={str(job): {"1": "sleep"}})

    def say(text: str) -> None:
        with kernel.open("a") as file:
            file.write(f"6,1,2,-;NVRM: {text}\n")

    bench.until(lambda: any(line["what"] == "sleep" for line in devices.journal(bench.folder)))
    say("Xid (PCI:0000:65:00): 31, pid=7, name=python, MMU Fault: ENGINE GRAPHICS")
    time.sleep(0.3)
    bench.until(lambda: True)
    assert not bench.events("gpu.unfit")
    bench.script(gpu=True, only_gpu=True, canary="lost")
    say("Xid (PCI:0000:65:00): 79, pid=7, GPU has fallen off the bus.")
    bench.until(lambda: bench.events("gpu.unfit"))
    assert bench.guardian is not None
    bench.guardian._patience = bench.patience = type(bench.patience)(stalled_s=2.0, respawn_s=0.01)
    bench.until(bench.ended([job]))
    (alarm,) = bench.events("gpu.unfit")
    ok = bench.runtimes([job]) == {"onnx"} and "Xid 79" in alarm["why"]
    record("R43", load="Xid 31, then Xid 79 in the kernel's log (a file) while a series hangs in the device", count=2,
           result="31 ignored, 79: unfit at once, the series done by the fallback", ok=ok)  # fmt: skip
    assert ok, alarm


def test_a_job_that_insists_on_the_gpu_is_held_while_it_is_unfit(sqlite_store: Store) -> None:
    """R43: no fallback is declared, so none is taken."""
    shop = Workshop(store=sqlite_store, threads=1, avoid=Catalog.accelerated())
    assert shop.proven(ENGINE, "auto").device == "cpu"
    for runtime in sorted(Catalog.accelerated()):
        with pytest.raises(ee.RuntimeUnavailable):
            shop.proven(ENGINE, runtime)


class Clock:
    """Time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_breaker_counts_different_series_within_ten_minutes(tmp_path: Path) -> None:
    clock, told = Clock(), []

    def tell(*one: Any) -> bool:
        told.append(one)
        return True

    def failures(*seen: tuple[int, float]) -> Health:
        health = Health(tmp_path / f"mark{len(told)}{clock.now}", tell, clock=clock)
        for one, after in seen:
            clock.now += after
            health.failed(one, "it broke")
        return health

    assert not failures((1, 0), (1, 1), (1, 1), (1, 1)).unfit
    assert not failures((1, 0), (2, 1), (1, 1), (2, 1)).unfit
    assert not failures((1, 0), (2, 301), (3, 300)).unfit
    assert failures((1, 0), (2, 290), (3, 300)).unfit
    assert failures((0, 0), (0, 1), (0, 1)).unfit, "loading fails for no series: each counts"
    assert len(told) == 2


def test_the_mark_and_its_alarm_survive_a_disk_and_a_database_that_are_away(tmp_path: Path) -> None:
    clock, told, away = Clock(), [], [True]

    def tell(level: str, event: str, body: Any) -> bool:
        if not away[0]:
            told.append(event)
        return not away[0]

    path = tmp_path / "gone" / "mark"
    health = Health(path, tell, clock=clock)
    health.condemn("Xid 79")
    assert health.unfit, "a disk that is away changes nothing for this process"
    assert not told
    path.parent.mkdir()
    path.write_text("no JSON")
    assert Health(path, tell, clock=clock).unfit
    away[0] = False
    clock.now += 10
    health.tell()
    health.tell()
    assert told == ["gpu.unfit"]
    assert not health.check_due()
    clock.now += 300
    assert health.check_due()
    assert not health.check_due(), "once in five minutes"
    health.proven()
    assert (told, path.exists(), health.unfit) == (["gpu.unfit", "gpu.fit"], False, False)


@pytest.mark.parametrize(
    ("line", "fatal"),
    [
        ("3,4,5,-;NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", True),
        ("NVRM: Xid (PCI:0000:01:00): 48, pid=100, An uncorrectable double bit error (DBE) has been detected", True),
        ("NVRM: Xid (PCI:0000:01:00): 119, pid=3, Timeout waiting for RPC from GSP!", True),
        ("NVRM: GPU 0000:01:00.0: GPU is lost.", True),
        ("NVRM: Xid (PCI:0000:01:00): 13, pid=9, Graphics SM Warp Exception", False),
        ("NVRM: Xid (PCI:0000:01:00): 43, pid=9, Ch 00000010", False),
        ("NVRM: loading NVIDIA UNIX x86_64 Kernel Module", False),
        ("usb 1-1: new device, Xid (PCI:0000:01:00): 79", False),
    ],
)  # fmt: skip
def test_what_the_kernel_says(line: str, fatal: bool) -> None:
    assert bool(signs.told(line)) == fatal


def test_a_driver_that_does_not_answer_is_a_sign() -> None:
    clock = Clock()

    class Silent:
        def read(self) -> list[str]:
            time.sleep(1e6)
            return []

    watch = Watch(lambda: [Silent()], every_s=0.0, answer_s=100, clock=clock)
    while watch._asked_at is None:
        time.sleep(0.001)
    assert watch.signs() == []
    clock.now += 101
    assert watch.signs() == ["the driver did not answer for 100 s"]
    assert watch.signs() == []


# the canary and the fallback ----------------------------------------------------------------------


@pytest.fixture
def injected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The device in this process; call it with a script."""
    monkeypatch.setenv(devices.FOLDER, str(tmp_path))
    devices.write_script(tmp_path, gpu=True)
    there = {
        "tensorrt": lambda wanted: devices.Breaking(devices.reference(wanted), gpu=True),
        "onnx": lambda wanted: devices.Breaking(devices.reference(wanted), gpu=False),
    }
    monkeypatch.setattr(catalog, "RUNGS", there)
    return lambda **told: devices.write_script(tmp_path, gpu=True, **told)


@pytest.mark.parametrize(
    ("told", "taken"),
    [
        ({"offset_hu": 0.0}, "tensorrt"),
        ({"offset_hu": 0.05}, "tensorrt"),
        ({"offset_hu": 0.3}, "onnx"),
        ({"offset_hu": 8.0}, "onnx"),
        ({"canary": "nan"}, "onnx"),
        ({"canary": "inf"}, "onnx"),
        ({"canary": "zeros"}, "onnx"),
        ({"canary": "wrong"}, "onnx"),
    ],
    ids=str,
)
def test_a_runtime_that_answers_wrongly_is_refused_at_load(
    sqlite_store: Store, injected: Callable[..., None], told: dict[str, Any], taken: str
) -> None:
    """R46: max 0.5 HU and rms 0.1 HU; beyond, the next runtime serves, and it is on record."""
    injected(**told)
    alarms: list[tuple[str, Any]] = []
    shop = Workshop(store=sqlite_store, threads=1, alarm=lambda *a: alarms.append(a))
    proven = shop.proven(ENGINE, "auto")
    ran = "tensorrt" if proven.device == devices.DEVICE else "onnx"
    ok = ran == taken and [a for a, _ in alarms] == (
        [] if taken == "tensorrt" else ["engine.runtime_refused"]
    )
    record(
        "R46",
        load=f"the canary on a device that answers with {told}",
        count=1,
        ok=ok,
        result=f"served by {ran}",
    )
    assert ok, (ran, alarms)
    if alarms:
        assert alarms[0][1]["runtime"] == "tensorrt"
        with pytest.raises(ee.CanaryRefused):
            shop.proven(ENGINE, "tensorrt")


def test_what_passes_the_canary_agrees_on_phantoms(injected: Callable[..., None]) -> None:
    """R46: the largest error that the canary lets pass is as small on other images."""
    injected(offset_hu=0.05)
    fast = Catalog.default().load(ENGINE, threads=1)
    slow = Catalog.default().load(ENGINE, threads=1, avoid=Catalog.accelerated())
    assert canary.prove(fast).runtime == "tensorrt"
    rng = np.random.default_rng(SEED)
    n, worst = count(4, 20), 0.0
    for _ in range(n):
        kind = ("abdomen", "chest", "head", "water")[int(rng.integers(4))]
        made = phantoms.ct(
            int(rng.integers(1 << 30)), shape=(3, 128, 128), kind=kind, sigma=float(rng.uniform(8, 40))
        )
        given = Volume(
            values=made.noisy, spacing_mm=(1.0, 0.8, 0.8), unit="HU", valid=np.ones(made.noisy.shape, np.bool_),
            contiguous=np.ones(3, np.bool_), step=np.ones(3, np.float32),
        )  # fmt: skip
        a, b = (e.enhance(given, Params(strength=1.0)).volume.values for e in (fast, slow))
        worst = max(worst, float(np.abs(a - b).max()))
    ok = worst <= canary.MOST["HU"]
    record("R46", load=f"{n} phantoms on a device that is 0.05 HU off", count=n, ok=ok,
           result=f"largest difference {worst:.3f} HU, {canary.MOST['HU']:g} is allowed")  # fmt: skip
    assert ok


def test_every_shipped_engine_has_an_answer_and_gives_it() -> None:
    """After an engine was changed: ``python -m engines.canary``."""
    shipped = Catalog.default()
    missing = [name for name in shipped.names() if canary.kept(shipped.card(name)) is None]
    assert missing == [], "run `python -m engines.canary`"
    for name in shipped.names():
        answer = canary.prove(shipped.load(name, threads=1))
        assert answer.against == "kept"


def test_an_engine_without_a_kept_answer_is_compared_with_its_reference(
    injected: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A site's own engine."""
    slow = Catalog.default().load(ENGINE, threads=1, avoid=Catalog.accelerated())
    monkeypatch.setattr(canary, "kept", lambda _card: None)
    fast = Catalog.default().load(ENGINE, threads=1)
    assert canary.prove(fast, lambda: slow).against == "reference"
    assert canary.prove(slow).against == "itself"
    injected(offset_hu=8.0)
    with pytest.raises(ee.CanaryRefused, match="wrongly"):
        canary.prove(fast, lambda: slow)


def test_a_worker_that_cannot_load_the_device_does_not_go_on_for_ever(make: MakeBench) -> None:
    """R41, R43: the canary itself meets the error; after three such starts the fallback serves."""
    bench = make(warm=((ENGINE, "auto"),))
    jobs = bench.series(1)
    bench.script(gpu=True, canary="cuda")
    bench.until(bench.ended(jobs))
    starts = [line["pid"] for line in devices.journal(bench.folder) if line["what"] == "cuda"]
    assert bench.runtimes(jobs) == {"onnx"}
    assert bench.states(jobs) == {jobs[0]: (DONE, 1)}
    ok = len(set(starts)) >= 3 and len(bench.events("gpu.unfit")) == 1
    record("R43", load="the device breaks whenever an engine is loaded", count=1, ok=ok,
           result="unfit after 3 starts; the series waited and was done by the fallback at its first try")  # fmt: skip
    assert ok
