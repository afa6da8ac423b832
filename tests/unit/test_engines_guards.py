"""The guards G1-G10, each by itself."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engines import guards
from engines.base import Card, Floats
from engines.box import box_sum, weights_of
from engines.errors import OutputImplausible

FINITE = st.floats(-3000, 3000, width=32)
RESIDUALS = arrays(np.float32, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=FINITE)


def card(unit: str = "HU", sigma_range: tuple[float, float] = (1.0, 100.0)) -> Card:
    return Card(
        name="x",
        version="1.0.0",
        family="classical",
        modalities=("CT",),
        unit=unit,
        sigma_range=sigma_range,
        receptive_field=1,
        alignment=1,
        neighbours=0,
        bound_sigmas=4.0,
        bound=200.0,
        weights_sha256="0" * 64,
    )


@settings(max_examples=60, deadline=None)
@given(values=RESIDUALS)
def test_strength_zero_and_no_residual_keep_every_bit(values: Floats) -> None:
    assert guards.blend(values, values, 0.0).tobytes() == (values - 0 * values).tobytes()
    kept = guards.blend(values, np.zeros_like(values), 0.7)
    assert np.array_equal(kept, values)


@settings(max_examples=60, deadline=None)
@given(residual=RESIDUALS, sigma=st.floats(0.1, 80), data=st.data())
def test_guarded_keeps_every_law_for_any_residual(
    residual: Floats, sigma: float, data: st.DataObject
) -> None:
    """Bound, regions, padding: whatever an engine returns."""
    valid = data.draw(arrays(np.bool_, residual.shape))
    largest = guards.limit(sigma, sigmas=4.0, cap=200.0)
    side = (6, 5)
    safe = guards.guarded(residual, valid, largest=largest, radius=3, side=side, tolerance=0.98)
    assert safe.dtype == np.float32
    assert np.abs(safe).max() <= largest
    assert not safe[~valid].any()
    means = guards.region_means(safe, valid, (min(6, safe.shape[0]), min(5, safe.shape[1])))
    assert np.abs(means).max() <= 0.981


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_stops_the_series(bad: float) -> None:
    residual = np.zeros((4, 4), np.float32)
    residual[1, 2] = bad
    with pytest.raises(OutputImplausible):
        guards.finite(residual)


def test_limit_is_the_smaller_of_both() -> None:
    assert guards.limit(10.0, sigmas=4.0, cap=200.0) == 40.0
    assert guards.limit(90.0, sigmas=4.0, cap=200.0) == 200.0


def test_lock_takes_local_means_out_and_leaves_grain() -> None:
    rng = np.random.default_rng(0)
    grain = rng.standard_normal((96, 96)).astype(np.float32)
    y, _ = np.mgrid[:96, :96]
    drift = (5 * np.sin(y / 40)).astype(np.float32)
    valid = np.ones(grain.shape, np.bool_)
    locked = guards.lock_mean(grain + drift, valid, 8)
    assert np.abs((locked - grain)[16:-16, 16:-16]).max() < 0.6
    assert locked.std() == pytest.approx(grain.std(), rel=0.02)


def test_lock_looks_at_valid_voxels_only() -> None:
    residual = np.ones((20, 20), np.float32)
    valid = np.zeros((20, 20), np.bool_)
    valid[:, :10] = True
    residual[~valid] = 1000
    assert not guards.lock_mean(residual, valid, 4)[valid].any()


def test_lock_of_radius_zero_does_nothing() -> None:
    residual = np.ones((3, 3), np.float32)
    assert guards.lock_mean(residual, np.ones((3, 3), np.bool_), 0) is residual


def test_regions_leave_a_good_residual_alone() -> None:
    residual = np.random.default_rng(0).standard_normal((80, 80)).astype(np.float32)
    valid = np.ones((80, 80), np.bool_)
    assert guards.hold_regions(residual, valid, (40, 40), 1.0) is residual


def test_regions_weaken_only_around_a_bad_place() -> None:
    residual = np.zeros((200, 200), np.float32)
    residual[20:40, 20:40] = 30.0
    residual[150, 150] = 7.0
    valid = np.ones(residual.shape, np.bool_)
    held = guards.hold_regions(residual, valid, (40, 40), 1.0)
    assert np.abs(guards.region_means(held, valid, (40, 40))).max() <= 1.0
    assert 0 < held[30, 30] < 30
    assert held[150, 150] == pytest.approx(7.0, rel=1e-3)


def test_regions_of_32_mm() -> None:
    assert guards.region_side((1.0, 0.8, 0.5)) == (40, 64)
    assert guards.region_side((0.0, 0.0, 0.0)) == (45, 45)


@pytest.mark.parametrize(("unit", "value"), [("HU", -1000.0), ("arbitrary", 0.0)])
def test_fill_replaces_padding_in_a_copy(unit: str, value: float) -> None:
    values = np.full((2, 2), 7, np.float32)
    valid = np.array([[True, False], [True, True]])
    filled = guards.fill(values, valid, unit)
    assert filled.tolist() == [[7, value], [7, 7]]
    assert values[0, 1] == 7
    assert guards.fill(values, np.ones((2, 2), np.bool_), unit) is values


@pytest.mark.parametrize(
    ("sigma", "scale", "word"),
    [
        (0.5, 1.0, "lower"),
        (101.0, 1.0, "higher"),
        (float("nan"), 1.0, "measured"),
        (5.0, float("nan"), "measured"),
        (5.0, 0.0, "measured"),
        (1.0, 1.0, ""),
        (100.0, 1.0, ""),
    ],
)
def test_gate(sigma: float, scale: float, word: str) -> None:
    reason = guards.gate(sigma, card(), scale)
    assert (word in reason) if word else not reason


def test_gate_of_arbitrary_units_is_a_share_of_the_scale() -> None:
    assert not guards.gate(40.0, card("arbitrary", (0.01, 0.1)), 1000.0)
    assert "series scale" in guards.gate(200.0, card("arbitrary", (0.01, 0.1)), 1000.0)


def checked(after: Floats, **changes: object) -> None:
    before = np.full((8, 8), 100, np.float32)
    valid = np.ones((8, 8), np.bool_)
    valid[0] = False
    arguments = {"largest": np.float32(10), "strength": 0.5, "unit": "HU", "scale": 1.0} | changes
    guards.check(before, after, valid, **arguments)  # type: ignore[arg-type]


def test_check_passes_what_keeps_the_laws() -> None:
    after = np.full((8, 8), 100, np.float32)
    after[3, 3], after[5, 5] = 104, 96
    checked(after)


@pytest.mark.parametrize(
    ("row", "column", "value", "word"),
    [
        (3, 3, 106.0, "moved by"),
        (3, 3, np.nan, "not numbers"),
        (0, 3, 101.0, "nothing was reconstructed"),
    ],
)
def test_check_catches_our_own_defects(row: int, column: int, value: float, word: str) -> None:
    after = np.full((8, 8), 100, np.float32)
    after[row, column] = value
    with pytest.raises(OutputImplausible, match=word):
        checked(after)


def test_check_catches_a_moved_mean_and_another_shape() -> None:
    after = np.full((8, 8), 103, np.float32)
    after[0] = 100
    with pytest.raises(OutputImplausible, match="mean"):
        checked(after)
    with pytest.raises(OutputImplausible, match="shape"):
        checked(np.zeros((4, 4), np.float32))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), side=st.tuples(st.integers(1, 9), st.integers(1, 9)), masked=st.booleans())
def test_regions_settle_as_they_are_told_to(seed: int, side: tuple[int, int], masked: bool) -> None:
    """One round, in plain words: each pixel gives the largest excess of the regions that hold it, of either sign."""
    rng = np.random.default_rng(seed)
    residual = rng.normal(0, 3, (int(rng.integers(9, 30)), int(rng.integers(9, 30)))).astype(np.float32)
    valid = rng.random(residual.shape) < (0.8 if masked else 2.0)
    residual[~valid] = 0
    regions, kept = guards.Regions(valid, side), np.float32(0.9)
    means = regions.means(residual)
    over, under = np.zeros_like(residual), np.zeros_like(residual)
    high, wide = side
    for y, x in np.ndindex(means.shape):
        part = np.s_[y : y + high, x : x + wide]
        n = int(valid[part].sum())
        mean = float(residual[part][valid[part]].sum()) / n if n and n >= high * wide / 2 else 0.0
        assert means[y, x] == pytest.approx(mean, abs=1e-5)
        over[part] = np.maximum(over[part], means[y, x] - kept)
        under[part] = np.maximum(under[part], -means[y, x] - kept)
    for told, wanted in ((regions.over(means, kept), over), (regions.over(-means, kept), under)):
        assert np.array_equal(-told if told is not None else np.zeros_like(wanted), wanted)


def test_what_follows_from_a_mask_is_that_masks() -> None:
    """Slices of a series mostly share a mask, and what follows from it is kept; another one is another."""
    rng = np.random.default_rng(0)
    residual = rng.normal(0, 3, (40, 40)).astype(np.float32)
    masks = [rng.random((40, 40)) < share for share in (0.5, 0.9, 0.5, 2.0)]
    how = {"largest": np.float32(9), "radius": 3, "side": (6, 5), "tolerance": 0.5}
    first = [guards.guarded(residual, m, **how) for m in masks]  # type: ignore[arg-type]
    again = [guards.guarded(residual, m, **how) for m in reversed(masks)]  # type: ignore[arg-type]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert not any(np.array_equal(a, b) for a, b in pairwise(first))


@settings(max_examples=60, deadline=None)
@given(residual=RESIDUALS, masked=st.booleans(), radius=st.integers(0, 4), seed=st.integers(0, 99))
def test_guarding_in_place_gives_the_bits_of_each_guard_after_the_other(
    residual: Floats, masked: bool, radius: int, seed: int
) -> None:
    valid = np.random.default_rng(seed).random(residual.shape) < (0.7 if masked else 2.0)
    given, largest = residual.copy(), np.float32(40)
    safe = guards.keep_invalid(guards.bound(guards.finite(residual), largest), valid)
    if radius:
        weights = weights_of(valid)
        counts = box_sum(weights.ones, radius)
        share = np.divide(np.float32(1), counts, out=np.zeros_like(counts), where=counts > 0)
        sums = box_sum(safe * weights.ones, radius)
        safe = safe - (sums / counts if weights.whole else sums * share)
    safe = guards.keep_invalid(guards.bound(safe, largest), valid)
    wanted = guards.hold_regions(safe, valid, (6, 5), 0.98, largest)
    found = guards.guarded(residual, valid, largest=largest, radius=radius, side=(6, 5), tolerance=0.98)
    assert found.tobytes() == wanted.tobytes()
    assert residual.tobytes() == given.tobytes()


@settings(max_examples=40, deadline=None)
@given(values=RESIDUALS, masked=st.booleans(), seed=st.integers(0, 99))
def test_a_check_tells_the_largest_and_the_mean_change_of_what_is_valid(
    values: Floats, masked: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    valid = rng.random(values.shape) < (0.7 if masked else 2.0)
    after = np.where(valid, values + rng.uniform(-1, 1, values.shape).astype(np.float32), values)
    how = {"largest": np.float32(2), "strength": 1.0, "unit": "arbitrary", "scale": 1e4}
    moved, mean = guards.check(values, after, valid, **how)  # type: ignore[arg-type]
    change = (after - values)[valid]
    assert moved == (float(np.abs(change).max()) if change.size else 0.0)
    assert mean == pytest.approx(float(change.mean()) if change.size else 0.0, abs=1e-5)


def test_infinity_in_padding_is_nobodys_business() -> None:
    valid = np.ones((20, 20), np.bool_)
    valid[:5] = False
    before = np.zeros((20, 20), np.float32)
    before[0, 0], before[1, 1] = np.nan, np.inf
    after = before.copy()
    after[valid] += 1
    how = {"largest": np.float32(2), "strength": 1.0, "unit": "arbitrary", "scale": 1e4}
    assert guards.check(before, after, valid, **how) == (1.0, 1.0)  # type: ignore[arg-type]
    for place, value in (((0, 0), 0.0), ((2, 2), 1.0)):
        spoiled = after.copy()
        spoiled[place] = value
        with pytest.raises(OutputImplausible, match="nothing was reconstructed"):
            guards.check(before, spoiled, valid, **how)  # type: ignore[arg-type]
    after[9, 9] = np.nan
    with pytest.raises(OutputImplausible, match="not numbers"):
        guards.check(before, after, valid, **how)  # type: ignore[arg-type]
