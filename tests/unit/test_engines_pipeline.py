"""The pipeline over a stand-in for a GPU (tests/device_onnx.py): right answers, in order, whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import guards
from engines.base import Engine, Floats, Mask, Params, Volume
from engines.catalog import Catalog
from engines.errors import (
    DeviceLost,
    EngineError,
    OutOfMemory,
    OutputImplausible,
    RuntimeUnavailable,
)
from engines.front import Enhancer, Task
from engines.learned import LearnedSlabs, core_of
from engines.restore import Residual
from engines.runtime import pipeline as pipelines
from engines.runtime import profile as profiles
from engines.runtime.device import Device
from engines.runtime.kernels import NAMES
from engines.runtime.network import Answer, Item, Region, Slab
from engines.runtime.onnx import OnnxNetwork
from engines.runtime.pipeline import Pipeline
from engines.runtime.profile import Profile, Range
from engines.runtime.schedule import RING, groups, room, steps
from engines.runtime.tensorrt import TensorrtNetwork
from tests import kernels_cpp, laws, onnx_samples
from tests.device_onnx import NAME, Failure, Hazard, OnnxProgram, StandIn

pytestmark = pytest.mark.skipif(kernels_cpp.COMPILER is None, reason=kernels_cpp.NO_COMPILER)

SHIPPED = Catalog.default()
LEARNED = [n for n in SHIPPED.names() if SHIPPED.card(n).family in ("cnn", "gan", "autoencoder")]

SIDE = (13, 18)
TOLERANCE = 1.0


def a_profile(*buckets: int, least: int = 8) -> Profile:
    top = buckets[-1]
    one = Range(least=(1, least, least), best=(1, least, least), most=(top, 128, 128))
    return Profile(ranges=(one,), buckets=buckets, alignment=8)


def noise_of(x: Floats, c: Floats) -> Floats:
    """A network that looks at all it is given: the three slices, their neighbourhood, the noise."""
    with np.errstate(invalid="ignore"):
        around = x + np.roll(x, 1, axis=2) + np.roll(x, 1, axis=3)
        mean = around.mean(axis=1, keepdims=True) / np.float32(3)
        return np.asarray((x[:, 1:2] - mean) * np.float32(10) + c * np.float32(0.01), np.float32)


def a_slab(n: int, *, region: bool = True, seed: int = 0, gap: bool = True) -> Slab:
    rng = np.random.default_rng(seed)
    slices = [rng.normal(40, 30, SIDE).astype(np.float32) for _ in range(n)]
    valid: list[Mask | None] = [None if i % 3 else rng.random(SIDE) < 0.8 for i in range(n)]
    items = [
        Item(
            below=i if i == 0 or (gap and i == n // 2) else i - 1,
            self=i,
            above=i if i == n - 1 or (gap and i == n // 2 - 1) else i + 1,
            c=0.1 + 0.01 * i,
            largest=25.0 + i,
            tolerance=TOLERANCE,
        )
        for i in range(n)
    ]
    return Slab(
        slices=slices,
        valid=valid,
        items=items,
        unit_x=float(np.float32(1 / 1000)),
        unit_r=100.0,
        factor=1,
        region=Region(radius=3, side=(6, 7)) if region else None,
    )


def expected(slab: Slab) -> list[tuple[Floats, float]]:
    """The residuals and the largest means of regions, as learned.py and guards.py make them."""
    made = []
    for item, mask in zip(slab.items, slab.valid, strict=True):
        chosen = [slab.slices[i] for i in (item.below, item.self, item.above)]
        x = np.stack(chosen) * np.float32(slab.unit_x)
        more = [-n % 8 for n in SIDE]
        x = np.pad(x, ((0, 0), (0, more[0]), (0, more[1])), mode="symmetric")[None]
        c = np.full((1, 1, *x.shape[2:]), np.float32(item.c), np.float32)
        r = noise_of(x, c)[0, 0, : SIDE[0], : SIDE[1]] * np.float32(slab.unit_r)
        if slab.region is None:
            made.append((r, 0.0))
            continue
        valid = np.ones(SIDE, np.bool_) if mask is None else mask
        most = np.float32(item.largest)
        r = guards.lock_mean(guards.keep_invalid(guards.bound(r, most), valid), valid, slab.region.radius)
        r = guards.keep_invalid(guards.bound(r, most), valid)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guards, "weaken_regions", lambda r, v, s, t: r)
            r = guards.hold_regions(r, valid, slab.region.side, TOLERANCE, most)
        means = guards.region_means(r, valid, slab.region.side)
        made.append((r, float(np.abs(means).max())))
    return made


def right(answers: Sequence[Answer], wanted: Sequence[tuple[Floats, float]]) -> None:
    for answer, (values, worst) in zip(answers, wanted, strict=True):
        assert answer.finite
        assert np.abs(answer.values - values).max() < 1e-4
        assert answer.worst == pytest.approx(worst, abs=1e-4)


def opened(
    device: StandIn, *buckets: int, most_bytes: int = 0, patience_s: float = 0.05, **program: bool
) -> tuple[Pipeline, OnnxProgram]:
    made = OnnxProgram(device, noise_of, **program)
    pipeline = Pipeline(
        device,
        made,
        a_profile(*buckets),
        most_bytes=most_bytes,
        patience_s=patience_s,
        clock=device.clock,
        sleep=device.sleep,
    )
    return pipeline, made


def asked(pipeline: Pipeline, slab: Slab) -> Iterator[Answer]:
    rows, columns = (n + -n % 8 for n in slab.slices[0].shape)
    return pipeline.slab(slab, rows, columns)


def settled(pipeline: Pipeline, program: OnnxProgram, device: StandIn) -> None:
    device.check()
    TensorrtNetwork(pipeline, device, program, a_profile(1), name="tensorrt").close()
    assert device.empty, device.held
    assert program.open_contexts == 0


@given(st.integers(1, 300), st.sampled_from([(1,), (1, 4), (1, 4, 8, 16), (1, 2, 3)]))
def test_groups_are_the_largest_that_are_filled(n: int, buckets: tuple[int, ...]) -> None:
    sizes = groups(n, buckets)
    assert sum(sizes) == n
    assert list(sizes) == sorted(sizes, reverse=True)
    assert set(sizes) <= set(buckets)
    assert sum(1 for s in sizes if s != buckets[-1]) <= sum(b - 1 for b in buckets[1:])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    buckets=st.sampled_from([(1,), (1, 4), (1, 4, 8, 16)]),
    gaps=st.sets(st.integers(0, 59)),
)
def test_each_slice_goes_up_once_and_stays_while_it_is_needed(
    n: int, buckets: tuple[int, ...], gaps: set[int]
) -> None:
    items = [
        Item(
            below=i - 1 if i and i - 1 not in gaps else i,
            self=i,
            above=i + 1 if i + 1 < n and i not in gaps else i,
            c=0,
            largest=0,
            tolerance=0,
        )
        for i in range(n)
    ]
    planned = steps(items, buckets)
    sent = [i for step in planned for i, _ in step.uploads]
    assert sorted(sent) == list(range(n))
    inside: dict[int, int] = {}
    read: dict[int, int] = {}
    for k, step in enumerate(planned):
        for i, slot in step.uploads:
            assert read.get(slot, -RING) <= k - RING
            inside[slot] = i
        for item, slots in zip(items[step.first : step.first + step.count], step.slots, strict=True):
            assert [inside[s] for s in slots] == [item.below, item.self, item.above]
            read.update(dict.fromkeys(slots, k))
    # Three groups in flight, one coming in, and their neighbours.
    assert room(planned).slots <= min(n, (RING + 1) * buckets[-1] + 2)


@pytest.mark.parametrize("hasty", [False, True])
@pytest.mark.parametrize("region", [False, True])
def test_slabs_of_one_to_forty_slices(region: bool, hasty: bool) -> None:
    device = StandIn(hasty=hasty)
    pipeline, program = opened(device, 1, 4, 8, 16)
    for n in range(1, 41):
        slab = a_slab(n, region=region, seed=n)
        right(list(asked(pipeline, slab)), expected(slab))
    settled(pipeline, program, device)


def test_the_order_of_work_overlaps_and_graphs_are_replayed() -> None:
    device = StandIn()
    pipeline, program = opened(device, 1, 2)
    slab = a_slab(13)
    right(list(asked(pipeline, slab)), expected(slab))
    first = device.trace.index("download")
    # The second group is up and enqueued before the first one's results are sent for.
    assert device.trace[:first].count("network") == 2
    assert device.trace.count("network") == 5  # Plain once for either size, and captured once a turn.
    assert device.trace.count("begin_capture") == 3
    assert device.trace.count("replay") == 5
    launches = device.trace.count("launch gather")
    right(list(asked(pipeline, slab)), expected(slab))
    assert device.trace.count("replay") == 12
    assert device.trace.count("launch gather") == launches + 1
    assert "allocate" not in device.trace[-60:]
    settled(pipeline, program, device)


def test_regions_of_another_size_are_not_those_of_an_old_graph() -> None:
    device = StandIn()
    pipeline, program = opened(device, 1, 2)
    for side in ((6, 7), (3, 3), (40, 2)):
        slab = replace(a_slab(9), region=Region(radius=2, side=side))
        wide = replace(slab, region=Region(radius=2, side=(min(side[0], SIDE[0]), side[1])))
        right(list(asked(pipeline, slab)), expected(wide))
    settled(pipeline, program, device)


@pytest.mark.parametrize("program", [{"capturable": False}, {"refuses_capture": True}])
def test_without_graphs_the_same(program: dict[str, bool]) -> None:
    device = StandIn()
    pipeline, made = opened(device, 1, 4, **program)
    slab = a_slab(22)
    right(list(asked(pipeline, slab)), expected(slab))
    assert "replay" not in device.trace
    assert device.trace.count("begin_capture") == ("refuses_capture" in program)
    settled(pipeline, made, device)


def test_a_residual_that_is_no_number_is_told_of_its_slice_alone() -> None:
    device = StandIn()
    pipeline, program = opened(device, 1, 4)
    slab = a_slab(9, gap=False)
    slab.slices[4][2, 3] = np.inf
    answers = list(asked(pipeline, slab))
    assert [i for i, a in enumerate(answers) if not a.finite] == [3, 4, 5]
    settled(pipeline, program, device)


def test_memory_is_bounded_and_smaller_groups_do_the_same() -> None:
    slab = a_slab(21)
    wide = StandIn()
    pipeline, _ = opened(wide, 1, 4, 8, 16)
    right(list(asked(pipeline, slab)), expected(slab))
    for share in (0.8, 0.5, 0.3):
        device = StandIn()
        most = int(share * wide.peak)
        pipeline, program = opened(device, 1, 4, 8, 16, most_bytes=most)
        right(list(asked(pipeline, slab)), expected(slab))
        assert 0 < device.peak <= most + 16 * 256
        settled(pipeline, program, device)


def test_a_full_device_gives_smaller_groups_then_out_of_memory_and_everything_back() -> None:
    slab = a_slab(21)
    wide = StandIn()
    pipeline, _ = opened(wide, 1, 4, 8, 16)
    right(list(asked(pipeline, slab)), expected(slab))
    counts = []
    for share in (1.0, 0.6, 0.3, 0.12):
        device = StandIn(int(share * wide.peak))
        pipeline, program = opened(device, 1, 4, 8, 16, most_bytes=1 << 30)
        right(list(asked(pipeline, slab)), expected(slab))
        counts.append(device.trace.count("download") // 2)
        settled(pipeline, program, device)
    # Less memory, more groups.
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    device = StandIn(wide.peak // 50)
    pipeline, program = opened(device, 1, 4, 8, 16, most_bytes=1 << 30)
    with pytest.raises(OutOfMemory, match="one slice"):
        next(asked(pipeline, slab))
    assert device.empty
    settled(pipeline, program, device)


def test_tensors_of_the_caller() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (22, 3, 16, 24)).astype(np.float32)
    c = rng.normal(0, 1, (22, 1, 16, 24)).astype(np.float32)
    for most in (1 << 30, 60_000, 25_000):
        device = StandIn()
        pipeline, program = opened(device, 1, 4, 8, 16, most_bytes=most)
        assert pipeline.run(x, c).tobytes() == noise_of(x, c).tobytes()
        assert device.empty
        settled(pipeline, program, device)
    pipeline, _ = opened(StandIn(), 1, 4, most_bytes=1000)
    with pytest.raises(OutOfMemory):
        pipeline.run(x, c)


def test_a_consumer_that_stops_leaves_nothing_running() -> None:
    device = StandIn()
    pipeline, program = opened(device, 1, 2)
    slab = a_slab(13)
    for stop in (0, 1, 3, 8):
        answers = asked(pipeline, slab)
        for _ in range(stop):
            next(answers)
        answers.close()  # type: ignore[attr-defined]
        right(list(asked(pipeline, slab)), expected(slab))
    settled(pipeline, program, device)


def test_one_slab_at_a_time() -> None:
    device = StandIn()
    pipeline, program = opened(device, 1, 4)
    slab = a_slab(9)
    answers = asked(pipeline, slab)
    got = [next(answers)]
    others: list[list[Answer]] = []
    other = threading.Thread(target=lambda: others.append(list(asked(pipeline, slab))))
    other.start()
    other.join(0.05)
    assert not others
    got += answers
    other.join(30)
    for seen in (got, others[0]):
        right(seen, expected(slab))
    settled(pipeline, program, device)


@pytest.mark.parametrize("size", [(136, 16), (16, 136), (4, 16), (20, 16)])
def test_sizes_that_the_plan_does_not_hold_are_refused(size: tuple[int, int]) -> None:
    device = StandIn()
    pipeline, program = opened(device, 1, 4)
    with pytest.raises(RuntimeUnavailable, match="holds no slices"):
        next(pipeline.slab(a_slab(1), *size))
    with pytest.raises(RuntimeUnavailable, match="holds no slices"):
        pipeline.run(np.zeros((1, 3, *size), np.float32), np.zeros((1, 1, *size), np.float32))
    with pytest.raises(OutputImplausible):
        next(pipeline.slab(replace(a_slab(1), factor=2), 16, 24))
    settled(pipeline, program, device)
    with pytest.raises(RuntimeUnavailable, match="closed"):
        next(asked(pipeline, a_slab(1)))


class Unordered(StandIn):
    """A device on which nobody waits for events."""

    def wait(self, stream: int, event: int) -> None:
        self.call("wait")


def test_the_stand_in_finds_work_that_nothing_orders() -> None:
    pipeline, _ = opened(Unordered(), 1, 2)
    with pytest.raises(Hazard, match="in no order"):
        list(asked(pipeline, a_slab(9)))


def test_the_stand_in_finds_pinned_memory_that_is_used_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "RING", RING + 1)
    pipeline, _ = opened(StandIn(), 1, 2)
    with pytest.raises(Hazard, match="the host writes"):
        list(asked(pipeline, a_slab(13)))


def test_the_stand_in_finds_slots_that_are_taken_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.runtime.schedule.RING", 1)
    device = StandIn()
    pipeline, _ = opened(device, 1, 2)
    with pytest.raises(Hazard, match="slot"):
        list(asked(pipeline, a_slab(13)))
        device.check()


TWO_SLABS = (a_slab(7, seed=1), a_slab(5, seed=2, region=False))


def attempt(device: StandIn) -> tuple[list[Answer], EngineError | None]:
    """Two slabs of unlike kinds, tensors of the caller, and the end: what came of it, and the error if any."""
    got: list[Answer] = []
    try:
        pipeline, program = opened(device, 1, 2)
    except (OutOfMemory, DeviceLost) as e:
        return got, e
    error: EngineError | None = None
    try:
        for slab in TWO_SLABS:
            # Not extend: what was answered before a failure counts.
            for answer in asked(pipeline, slab):
                got += [answer]
        x, c = np.ones((3, 3, 8, 8), np.float32), np.ones((3, 1, 8, 8), np.float32)
        assert pipeline.run(x, c).tobytes() == noise_of(x, c).tobytes()
    except (OutOfMemory, DeviceLost) as e:
        error = e
    if isinstance(error, DeviceLost):
        calls = device.calls
        with pytest.raises(DeviceLost, match="before"):
            list(asked(pipeline, a_slab(1)))
        pipeline.close()
        assert device.calls == calls, "a call after the device was lost"
        return got, error
    try:
        settled(pipeline, program, device)
    except DeviceLost as e:
        error = e
    return got, error


def telling(trace: Sequence[str], failure: Failure) -> Iterator[int]:
    """Numbers of the calls to fail: all, but of the many alike launches of one group those in its middle."""
    launches, capturing = 0, False
    for n, name in enumerate(trace, 1):
        launches = launches + 1 if name.startswith("launch") else 0
        capturing = name == "begin_capture" or (capturing and name != "end_capture")
        if launches < 10 and (failure != "capture" or capturing or name == "end_capture"):
            yield n


@pytest.mark.parametrize("failure", ["memory", "error", "hang", "capture"])
def test_whatever_call_fails_the_outcome_is_told_and_no_answer_is_wrong(failure: Failure) -> None:
    wanted = [one for slab in TWO_SLABS for one in expected(slab)]
    sound = StandIn()
    assert attempt(sound)[1] is None
    # Nothing depends on chance: until its failure every run makes the calls of the sound one.
    assert "replay" in sound.trace
    outcomes: dict[str, int] = {}
    for n in telling(sound.trace, failure):
        device = StandIn(fail_at=n, failure=failure)
        got, error = attempt(device)
        assert device.trace[:n] == sound.trace[:n]
        right(got, wanted[: len(got)])
        if error is None:
            assert len(got) == len(wanted)
        kind = type(error).__name__
        outcomes[kind] = outcomes.get(kind, 0) + 1
        if failure == "error":
            assert kind == "DeviceLost", device.trace[-1]
        elif failure == "hang" and kind == "DeviceLost":
            assert error is not None
            assert "no answer" in error.message
            assert device.now < 1
        elif failure == "capture":
            assert error is None
    assert sum(outcomes.values()) > (30 if failure == "capture" else 120)
    if failure == "memory":
        # Nearly all of them are mended by smaller groups; what is left is told.
        assert outcomes["NoneType"] > 0.6 * sum(outcomes.values()), outcomes
    if failure == "hang":
        assert outcomes["DeviceLost"] > 0.8 * sum(outcomes.values()), outcomes


def test_every_call_of_the_seam_is_among_those_that_fail() -> None:
    device = StandIn()
    assert attempt(device)[1] is None
    made = {name.split()[0] for name in device.trace}
    seam = {name for name in vars(Device) if not name.startswith("_")} - {"name"}
    assert len(seam) == 21
    assert made >= seam
    assert set(device.trace) >= {"open context", "bind", "network", "close context", "close program"}
    assert {name.removeprefix("launch ") for name in device.trace if name.startswith("launch")} == set(NAMES)
    # Those that are left out of the runs below are launches in the middle of a group, of which others are in.
    left_out = set(device.trace) - {device.trace[n - 1] for n in telling(device.trace, "error")}
    assert left_out == set()


def behind(catalog: Catalog, name: str, device: StandIn, threads: int = 1) -> Enhancer:
    """A shipped engine whose network runs behind the stand-in."""
    card = catalog.card(name)
    reference = catalog.load(name, threads=1)
    assert isinstance(reference, Enhancer)
    network: OnnxNetwork = reference.core._network  # type: ignore[attr-defined]
    profile = profiles.of(card)
    program = OnnxProgram(device, network.run, card.scale)
    pipeline = Pipeline(device, program, profile, clock=device.clock, sleep=device.sleep)
    core = core_of(card, TensorrtNetwork(pipeline, device, program, profile, name="tensorrt"))
    assert isinstance(core, LearnedSlabs)
    return Enhancer(card, core, threads)


def a_stack(name: str, shape: tuple[int, int, int]) -> Volume:
    """With padding, a gap, and sizes that no alignment divides."""
    made = laws.stack(SHIPPED.card(name).modalities[0], shape)
    made.contiguous[2] = False
    return made


def nearly(one: Engine, other: Engine, volume: Volume, **options: int) -> None:
    survey = one.survey(volume)
    scale = 1.0 if volume.unit == "HU" else float(np.median(survey.high)) / 1000
    made, wanted = (e.enhance(volume, Params(strength=1.0, options=options), survey) for e in (one, other))
    assert np.abs(made.volume.values - wanted.volume.values).max() <= 1e-3 * scale
    assert made.notes == wanted.notes
    assert made.figures.keys() == wanted.figures.keys()
    for key, value in wanted.figures.items():
        assert made.figures[key] == pytest.approx(value, rel=1e-3, abs=1e-3 * scale, nan_ok=True), key


@pytest.mark.parametrize("name", LEARNED)
def test_every_learned_engine_says_what_it_says_on_the_cpu(name: str) -> None:
    device = StandIn()
    engine = behind(SHIPPED, name, device, threads=2)
    volume = a_stack(name, (6, 75, 101))
    nearly(engine, SHIPPED.load(name, threads=1), volume)
    out = engine.enhance(volume, Params(strength=0.5))
    assert (out.runtime, out.device) == ("tensorrt", NAME)
    assert out.figures["largest_change"] > 0
    device.check()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    zoo = tmp_path_factory.mktemp("zoo")
    onnx_samples.folder(zoo, onnx_samples.blur_network(), receptive_field=24)
    onnx_samples.folder(zoo, onnx_samples.broken_network(float("nan")), name="ct-broken")
    return Catalog.default([zoo])


def test_regions_that_move_too_far_are_held_by_the_host(samples: Catalog) -> None:
    device = StandIn()
    engine = behind(samples, "ct-sample", device, threads=2)
    card = replace(engine.card, parameters={"lock": 0})
    engine = Enhancer(card, LearnedSlabs(card, engine.core._slabs), 2)  # type: ignore[attr-defined]
    wanted = samples.load("ct-sample", threads=1)
    plain = Enhancer(card, core_of(card, wanted.core._network), 1)  # type: ignore[attr-defined]
    volume = laws.stack("CT", (5, 96, 110), sigma=60.0)
    seen: list[float] = []
    core = engine.core
    assert isinstance(core, LearnedSlabs)
    made = core.residuals

    def watched(tasks: Sequence[Task]) -> Iterator[Residual]:
        for residual in made(tasks):
            assert residual.worst is not None
            seen.append(residual.worst)
            yield residual

    core.residuals = watched  # type: ignore[method-assign]
    tolerance = 0.98 * guards.LARGEST_MEAN_CHANGE["HU"]
    nearly(engine, plain, volume)
    assert max(seen) > 1.15 * tolerance
    seen.clear()
    nearly(engine, plain, laws.uniform("CT", 40.0, 30.0, (9, 96, 96)))
    assert min(seen) < tolerance


def test_a_broken_network_is_refused(samples: Catalog) -> None:
    engine = behind(samples, "ct-broken", StandIn())
    with pytest.raises(OutputImplausible, match="not numbers"):
        engine.enhance(laws.stack("CT", (3, 70, 70)), Params(strength=1.0))


def test_slices_larger_than_the_plan_are_tiled_and_small_ones_are_whole(samples: Catalog) -> None:
    device = StandIn()
    engine = behind(samples, "ct-sample", device)
    wanted = samples.load("ct-sample", threads=1)
    nearly(engine, wanted, laws.stack("CT", (2, 70, 1100)))
    assert "launch gather" not in device.trace
    nearly(engine, wanted, laws.stack("CT", (2, 120, 130)), tile=48)
    assert "launch gather" not in device.trace
    for shape in ((3, 40, 50), (2, 47, 63), (1, 63, 50)):
        nearly(engine, wanted, laws.uniform("CT", 40.0, 20.0, shape))
    assert "launch gather" in device.trace


@pytest.mark.parametrize("law", ["leaves_padding", "crosses_no_gap", "is_repeatable", "keeps_means"])
def test_laws_hold_behind_the_stand_in(samples: Catalog, law: str) -> None:
    engine = behind(samples, "ct-sample", StandIn(), threads=2)
    volume = laws.stack("CT", (5, 96, 88))
    if law == "is_repeatable":
        laws.is_repeatable(engine, behind(samples, "ct-sample", StandIn(), threads=1), volume)
    else:
        getattr(laws, law)(engine, volume)


def test_slabs_equal_the_whole_behind_the_stand_in(samples: Catalog, tmp_path: Path) -> None:
    laws.slabs_equal_whole(behind(samples, "ct-sample", StandIn()), laws.stack("CT", (7, 70, 66)), 3)
