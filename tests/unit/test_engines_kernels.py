"""The kernels around the network say what engines/guards.py and engines/learned.py say."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import guards
from engines.base import Floats, Mask
from engines.errors import RuntimeUnavailable
from engines.runtime import cuda, kernels
from engines.runtime.device import Argument, address, number
from tests import kernels_cpp

compiled = pytest.mark.skipif(kernels_cpp.COMPILER is None, reason=kernels_cpp.NO_COMPILER)


def at(array: npt.NDArray[np.generic]) -> Argument:
    assert array.flags.c_contiguous
    return address(array.ctypes.data)


def grid(rows: int, columns: int, n: int) -> tuple[int, int, int]:
    return -(-columns // kernels.BLOCK[0]), -(-rows // kernels.BLOCK[1]), n


def launch(
    name: str, size: tuple[int, int, int], *arguments: Argument | int | npt.NDArray[np.generic]
) -> None:
    given = [
        number(a) if isinstance(a, int) else at(a) if isinstance(a, np.ndarray) else a for a in arguments
    ]
    kernels_cpp.launch(name, size, kernels.BLOCK, given)


def a_mask(rng: np.random.Generator, rows: int, columns: int, kind: str) -> Mask | None:
    y, x = np.ogrid[:rows, :columns]
    if kind == "circle":
        return np.asarray(np.hypot(y - rows / 2, x - columns / 2) < 0.45 * max(rows, columns))
    if kind == "holes":
        return np.asarray(rng.random((rows, columns)) < 0.7)
    if kind == "none":
        return np.zeros((rows, columns), np.bool_)
    return None


def guarded(
    residual: Floats,
    valid: Mask | None,
    largest: float,
    radius: int,
    side: tuple[int, int],
    tolerance: float,
    pad: int = 0,
) -> tuple[Floats, bool, list[float]]:
    """One residual (in units of 0.01) through the guards, as the pipeline launches them."""
    rows, columns = residual.shape
    r = np.full((1, rows + pad, columns + pad), 7e9, np.float32)
    r[0, :rows, :columns] = residual / np.float32(100)
    items = np.zeros(1, kernels.ITEM)
    items["mask"], items["largest"], items["unit_r"] = -1 if valid is None else 0, largest, 100
    items["tolerance"] = tolerance
    masks = np.ones((1, rows, columns), np.bool_) if valid is None else valid[None].copy()
    said = np.zeros(1, kernels.SAID)
    out, total, count, excess = (np.full((1, rows, columns), np.nan, np.float32) for _ in range(4))
    everything, strips = grid(rows, columns, 1), grid(-(-rows // kernels.STRIP), columns, 1)
    size = (rows, columns)
    launch("first", everything, r, items, masks, said, out, *size, rows + pad, columns + pad, 1)
    if radius:
        launch("sums", strips, out, items, masks, total, count, said, *size, radius, radius, 0)
        launch("lock", everything, out, items, masks, total, count, *size, radius)
    sy, sx = min(side[0], rows), min(side[1], columns)
    for i in range(kernels.SETTLING + 1):
        launch("sums", strips, out, items, masks, total, count, said, *size, 0, sy - 1, i)
        launch("regions", everything, total, count, items, said, excess, *size, sy, sx, i)
        if i < kernels.SETTLING:
            launch("spread", everything, excess, items, said, total, count, *size, sy, sx, i)
            launch("settle", everything, out, items, masks, total, count, said, *size, sx, i)
    return out[0], bool(said[0]["broken"]), [float(w) for w in said[0]["worst"]]


def as_guards_say(
    residual: Floats, valid: Mask | None, largest: float, radius: int, side: tuple[int, int], tolerance: float
) -> tuple[Floats, float, bool]:
    """What guards.py makes of it, the largest mean of a region before it is settled, and whether a decision was
    so close that another order of addition may take it otherwise."""
    mask = np.ones(residual.shape, np.bool_) if valid is None else valid
    rows, columns = residual.shape
    most = np.float32(largest)
    residual = residual / np.float32(100) * np.float32(100)
    safe = guards.lock_mean(guards.keep_invalid(guards.bound(residual, most), mask), mask, radius)
    safe = guards.keep_invalid(guards.bound(safe, most), mask)
    means: list[float] = []
    inside = (min(side[0], rows), min(side[1], columns))
    found = guards.Regions.means

    def watched(regions: guards.Regions, r: Floats) -> Floats:
        made = found(regions, r)
        means.append(float(np.abs(made).max()))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards.Regions, "means", watched)
        patch.setattr(guards, "weaken_regions", lambda r, v, s, t: r)
        settled = guards.hold_regions(safe, mask, inside, tolerance, most)
    return settled, means[0], any(abs(m - tolerance) < 1e-3 for m in means)


@compiled
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    kind=st.sampled_from(["all", "circle", "holes", "none"]),
    radius=st.integers(0, 40),
    side=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    tolerance=st.sampled_from([0.3, 1.0, 4.0, 1e9]),
    pad=st.integers(0, 9),
)
def test_the_guards_on_the_device_are_the_guards(
    seed: int,
    rows: int,
    columns: int,
    kind: str,
    radius: int,
    side: tuple[int, int],
    tolerance: float,
    pad: int,
) -> None:
    rng = np.random.default_rng(seed)
    residual = rng.normal(2, 30, (rows, columns)).astype(np.float32)
    valid = a_mask(rng, rows, columns, kind)
    seen, broken, worst = guarded(residual, valid, 60.0, radius, side, tolerance, pad)
    wanted, mean, close = as_guards_say(residual, valid, 60.0, radius, side, tolerance)
    assert not broken
    assert np.abs(seen).max() <= 60.0
    if valid is not None:
        assert not seen[~valid].any()
    assert worst[0] == pytest.approx(mean, abs=1e-4)
    if not close:
        assert np.abs(seen - wanted).max() < 1e-3


@compiled
@pytest.mark.parametrize("kind", ["all", "circle"])
@pytest.mark.parametrize("rough", [False, True])
def test_a_slice_of_usual_size(kind: str, rough: bool) -> None:
    rng = np.random.default_rng(1)
    residual = rng.normal(0, 25, (512, 512)).astype(np.float32)
    if rough:  # A line of another mean, that the lock does not take out.
        residual[100:104] += 40
    valid = a_mask(rng, 512, 512, kind)
    seen, _, worst = guarded(residual, valid, 100.0, 16, (45, 45), 0.98)
    wanted, mean, close = as_guards_say(residual, valid, 100.0, 16, (45, 45), 0.98)
    assert not close
    assert np.abs(seen - wanted).max() < 1e-3
    assert worst[0] == pytest.approx(mean, abs=1e-4)
    assert np.abs(wanted).max() > 50
    assert (worst[1] > 0) == (mean > 0.98)


@compiled
def test_what_is_settled_is_left_alone() -> None:
    residual = np.random.default_rng(2).normal(0, 1, (64, 64)).astype(np.float32)
    _, _, worst = guarded(residual, None, 100.0, 4, (16, 16), 5.0)
    assert 0 < worst[0] < 5.0
    assert not any(worst[1:])
    _, _, worst = guarded(residual + np.float32(3), None, 100.0, 0, (16, 16), 1.0)
    assert worst[0] > 1.0
    assert worst[1] < worst[0]


@compiled
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_told(value: float) -> None:
    residual = np.ones((20, 33), np.float32)
    residual[19, 32] = value
    assert guarded(residual, None, 5.0, 3, (8, 8), 1.0)[1]
    # Beyond the rim the network may say what it likes.
    assert not guarded(np.ones((20, 33), np.float32), None, 5.0, 3, (8, 8), 1.0, pad=4)[1]


@compiled
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    more=st.tuples(st.integers(0, 70), st.integers(0, 70)),
)
def test_gathering_is_what_the_front_door_does(
    seed: int, rows: int, columns: int, more: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    slices = rng.normal(0, 500, (5, rows, columns)).astype(np.float32)
    items = np.zeros(2, kernels.ITEM)
    items["below"], items["self"], items["above"] = [4, 2], [0, 2], [1, 3]
    items["c"], items["unit_x"] = [0.25, 0.5], [np.float32(1 / 1000), np.float32(1 / 3)]
    padded = (rows + more[0], columns + more[1])
    x, c = np.full((2, 3, *padded), np.nan, np.float32), np.full((2, 1, *padded), np.nan, np.float32)
    said = np.ones(2, kernels.SAID)
    launch("gather", grid(*padded, 2), slices, items, said, x, c, rows, columns, *padded)
    stacks = [slices[[4, 0, 1]] * np.float32(1 / 1000), slices[[2, 2, 3]] * np.float32(1 / 3)]
    wanted = [np.pad(s, ((0, 0), (0, more[0]), (0, more[1])), mode="symmetric") for s in stacks]
    assert x.tobytes() == np.stack(wanted).tobytes()
    assert (c[0] == 0.25).all()
    assert (c[1] == 0.5).all()
    assert not said["broken"].any()
    assert not said["worst"].any()


def test_the_structures_are_laid_out_alike() -> None:
    for name, kind in (("Item", kernels.ITEM), ("Said", kernels.SAID)):
        found = re.search(rf"struct {name} {{(.*?)}};", kernels.SOURCE)
        assert found is not None
        told: list[tuple[object, ...]] = []
        for part in filter(None, map(str.strip, found[1].split(";"))):
            word, fields = part.split(" ", 1)
            for field in map(str.strip, fields.split(",")):
                bare, _, many = field.rstrip("]").partition("[")
                of = {"int": np.int32, "float": np.float32}[word]
                told.append((bare, of, (int(many),)) if many else (bare, of))
        assert np.dtype(told) == kind
    assert kernels.SETTLING == guards.SETTLING
    assert f"#define SETTLING {kernels.SETTLING}\n" in kernels.SOURCE
    assert f"#define STRIP {kernels.STRIP}\n" in kernels.SOURCE
    assert set(re.findall(r"__global__ void (\w+)\(", kernels.SOURCE)) == set(kernels.NAMES)


@pytest.mark.tensorrt
@pytest.mark.parametrize("capability", ["75", "80", "86", "89", "90", "100", "120"])
def test_nvrtc_compiles_for_every_generation_without_a_gpu(capability: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-python is not installed")
    try:
        made = cuda.compiled(capability)
    except RuntimeUnavailable as e:
        if "not installed" not in e.message:
            raise
        pytest.skip(f"{e.message}: {e.hint}")
    assert made[:4] == b"\x7fELF"
    for name in kernels.NAMES:
        assert name.encode() in made


@pytest.mark.tensorrt
def test_a_capability_that_nvrtc_does_not_know_is_refused() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-python is not installed")
    with pytest.raises(RuntimeUnavailable, match=r"35|not installed"):
        cuda.compiled("35")
