"""The noise estimate: within 25 % of the truth on known, correlated noise; blind to what is not noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from engines import known, noise
from engines.base import Floats, Survey
from engines.classical import phantoms
from tests import laws
from tests.phantoms import ct_phantom, mr_phantom


def measured(values: Floats, unit: str = "HU", step: float = 1.0) -> noise.Noise:
    return noise.estimate(values, np.ones(values.shape, np.bool_), unit=unit, step=step)


def truth(made: phantoms.Phantom, above: float) -> float:
    return float(np.median(made.sigma[0][made.truth[0] > above]))


# The chest of 256 pixels has no flat place that a scanner's pixels would show; it is tested at 512.
CT = [
    (kind, size, cutoff, sigma)
    for (kind, size), cutoff, sigma in itertools.product(
        (("water", 256), ("abdomen", 256), ("head", 256)), (0.0, 0.12, 0.2, 0.35), (5.0, 30.0)
    )
] + [("chest", 512, 0.12, 5.0), ("chest", 512, 0.2, 30.0), ("chest", 512, 0.35, 5.0)]


@pytest.mark.parametrize(("kind", "size", "cutoff", "sigma"), CT)
def test_ct_within_a_quarter_over_kernels_and_phantoms(
    kind: str, size: int, cutoff: float, sigma: float
) -> None:
    made = phantoms.ct(3, kind=kind, shape=(1, size, size), sigma=sigma, cutoff=cutoff)
    found = measured(made.noisy[0])
    assert found.sigma == pytest.approx(truth(made, -200.0), rel=0.25)


@pytest.mark.parametrize("seed", [3, 17])
@pytest.mark.parametrize("anatomy", known.ANATOMY, ids=lambda a: a[0])
def test_ct_law_over_kernels_doses_and_anatomies(seed: int, anatomy: tuple[str, int]) -> None:
    """The table that ``python -m engines noise`` prints, every cell of it, and with another seed."""
    rows = list(known.ct(seed, [anatomy]))
    assert len(rows) == len(known.CUTOFFS) * len(known.DOSES_HU)
    assert {f"{r.kernel} {r.dose}": r.ratio for r in rows if abs(r.ratio - 1) > known.WITHIN} == {}


@pytest.mark.parametrize("seed", [3, 17])
def test_mr_law_over_fillings_doses_and_masks(seed: int) -> None:
    rows = list(known.mr(seed))
    assert len(rows) == 2 * len(known.FILLINGS) * len(known.DOSES_MR)
    assert {f"{r.kernel} {r.dose}": r.ratio for r in rows if abs(r.ratio - 1) > known.WITHIN} == {}


@pytest.mark.parametrize(("noise_hu", "seed"), [(10.0, 2), (20.0, 2), (45.0, 5)])
def test_ct_law_on_the_chest_of_the_demo(noise_hu: float, seed: int) -> None:
    """Another generator of anatomy, and noise that grows with the paths of the rays: that of the middle."""
    made = ct_phantom(seed, 2, 512, noise_hu=noise_hu)
    assert measured(np.rint(made.noisy[0]).astype(np.float32)).sigma == pytest.approx(noise_hu, rel=0.25)


@pytest.mark.parametrize(
    ("sequence", "level", "most"),
    [("T1", 0.11, 1.25), ("T1", 0.06, 1.65), ("T2", 0.11, 1.65), ("T2", 0.06, 1.65)],
)
def test_brains_without_a_flat_place_may_be_overrated_but_never_underrated(
    sequence: str, level: float, most: float
) -> None:
    """Texture as fine as noise is told as noise: engines are tuned with that in mind (engines/tune.py)."""
    made = mr_phantom(4, 2, 256, sequence=sequence, noise=level)
    signal = made.truth[0] > 0.5 * float(np.quantile(made.truth[0], 0.99))
    true = float((made.noisy[0] - made.truth[0])[signal].std())
    assert 0.9 < measured(made.noisy[0].astype(np.float32), "arbitrary").sigma / true < most


@pytest.mark.parametrize(
    ("sigma", "zero_fill", "masked"),
    [
        (0.02, 1.0, False),
        (0.02, 1.5, True),
        (0.02, 2.0, False),
        (0.04, 2.0, True),
        (0.08, 1.0, True),
        (0.08, 1.5, False),
        (0.08, 2.0, True),
    ],
)
def test_mr_within_a_quarter_zero_filled_masked_rician(sigma: float, zero_fill: float, masked: bool) -> None:
    made = phantoms.mr(3, shape=(1, 384, 384), sigma=sigma, zero_fill=zero_fill, masked=masked)
    found = measured(made.noisy[0], "arbitrary")
    assert found.sigma == pytest.approx(truth(made, 200.0), rel=0.25)


def test_frequency_tells_kernels_apart_and_what_is_smoothed() -> None:
    def at(cutoff: float) -> float:
        made = phantoms.ct(4, kind="water", shape=(1, 256, 256), sigma=20.0, cutoff=cutoff)
        return measured(made.noisy[0]).frequency

    softest, soft, sharp, white = at(0.12), at(0.2), at(0.35), at(0.0)
    assert softest < soft < sharp < white
    assert soft == pytest.approx(0.21, abs=0.03)
    assert white == pytest.approx(0.38, abs=0.03)


def survey_of(frequency: float) -> Survey:
    one = np.ones(3, np.float32)
    return Survey(sigma=one, high=one, share=one, frequency=one * np.float32(frequency))


def test_smoothed_already() -> None:
    blurred = phantoms.ct(4, kind="abdomen", shape=(3, 256, 256), sigma=30.0, cutoff=0.07)
    given_ = laws.stack("CT", (3, 256, 256), padded=False)
    found = noise.survey(laws.replace(given_, values=blurred.noisy))
    assert noise.smoothed_already(found)
    assert not noise.smoothed_already(noise.survey(given_))
    assert not noise.smoothed_already(survey_of(float("nan")))


def test_a_small_field_of_view_is_not_smoothed() -> None:
    """Grain that is coarse in pixels because the pixels are small: a kernel has its scale in millimetres."""
    coarse = survey_of(0.132)
    assert noise.smoothed_already(coarse)
    assert noise.smoothed_already(coarse, 0.8)
    assert not noise.smoothed_already(coarse, 0.254)
    assert not noise.smoothed_already(survey_of(0.2), 0.98)


def test_structure_is_not_noise() -> None:
    """Trabecular bone, vessels and edges added to the same noise move the estimate by less than 30 %."""
    rng = np.random.default_rng(1)
    grain = (15.0 * phantoms.coloured(rng, (1, 256, 256), 0.22)).astype(np.float32)
    plain = measured(grain[0] + 40).sigma
    made = phantoms.ct(9, kind="abdomen", shape=(1, 256, 256), sigma=0.0)
    assert measured(made.truth[0] + grain[0]).sigma == pytest.approx(plain, rel=0.3)


def test_padding_and_clipped_air_are_not_looked_at() -> None:
    made = phantoms.ct(5, kind="abdomen", shape=(1, 256, 256))
    values = made.noisy[0]
    y, x = np.ogrid[:256, :256]
    valid = np.hypot(y - 128, x - 128) < 124
    outside = np.where(valid, values, np.float32(-2000))
    wild = np.where(valid, values, np.random.default_rng(2).normal(0, 500, values.shape).astype(np.float32))
    one, other = (noise.estimate(v, valid, unit="HU") for v in (outside, wild))
    assert one == other
    assert one.sigma == pytest.approx(truth(made, -200.0), rel=0.25)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.zeros((64, 64), np.float32), "one value"),
        (np.zeros((8, 200), np.float32), "too small"),
        (np.full((64, 64), -1024, np.float32), "clipped air"),
    ],
)
def test_nothing_to_measure(values: Floats, why: str) -> None:
    found = measured(values)
    assert np.isnan(found.sigma), why
    assert np.isnan(found.frequency)
    assert found.spectrum == ()


def test_nothing_valid() -> None:
    found = noise.estimate(np.ones((64, 64), np.float32), np.zeros((64, 64), np.bool_), unit="HU")
    assert np.isnan(found.sigma)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_same_bytes_and_exact_under_powers_of_two(seed: int, factor: float) -> None:
    grain = np.random.default_rng(seed).normal(900, 30, (72, 60)).astype(np.float32)
    one = measured(grain, "arbitrary", 1.0)
    assert one == measured(grain.copy(), "arbitrary", 1.0)
    scaled = measured(grain * np.float32(factor), "arbitrary", factor)
    assert scaled.sigma == pytest.approx(one.sigma * factor, rel=1e-12)


def test_steady_takes_the_median_over_neighbours_and_fills_holes() -> None:
    sigma = np.array([10, 11, np.nan, 90, 12, 11], np.float32)
    assert noise.steady(sigma).tolist() == [10.5, 11.0, 11.5, 11.5, 12.0, 12.0]
    assert np.isnan(noise.steady(np.full(3, np.nan, np.float32))).all()


def test_scale_is_one_for_the_whole_stack() -> None:
    volume = laws.stack("MR")
    found = noise.survey(volume)
    assert noise.scale(found, "HU") == 1.0
    assert noise.scale(found, "arbitrary") == pytest.approx(float(np.median(found.high)))


def test_spectrum_adds_up_to_the_variance() -> None:
    grain = np.random.default_rng(6).normal(0, 10, (256, 256)).astype(np.float32)
    found = measured(grain)
    assert np.mean(found.spectrum) == pytest.approx(100, rel=0.1)
    assert len(found.spectrum) == len(noise.band_frequencies())


@pytest.mark.parametrize("side", [61, 100, 130, 257])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_are_cut_and_taken_apart_as_they_are_told_to(side: int, masked: bool) -> None:
    """The spectrum, block by block, by the cosine transform of another library."""
    rng = np.random.default_rng(side)
    values = rng.normal(40, 9, (side, side + 5)).astype(np.float32)
    valid = np.ones(values.shape, np.bool_)
    if masked:
        valid[: side // 3, : side // 3] = False
    stride = noise.BLOCK // 2 if side >= 128 else noise.BLOCK // 4
    corners = [
        (y, x)
        for y in range(0, values.shape[0] - noise.BLOCK + 1, stride)
        for x in range(0, values.shape[1] - noise.BLOCK + 1, stride)
        if valid[y : y + noise.BLOCK, x : x + noise.BLOCK].all()
    ]
    power = np.stack(
        [
            dctn(values[y : y + noise.BLOCK, x : x + noise.BLOCK], norm="ortho").ravel() ** 2
            for y, x in corners
        ]
    )
    rank = int(noise.QUANTILE * (len(corners) - 1))
    found = noise.estimate(values, valid, unit="HU")
    assert found.n_blocks == len(corners)
    for band, level in zip(noise._bands(), found.spectrum, strict=True):
        wanted = np.sort(power[:, band.members].mean(axis=1))[rank] / band.correction
        assert level == pytest.approx(wanted, rel=1e-4)


@given(st.lists(st.floats(1, 50, width=32) | st.just(float("nan")), min_size=1, max_size=12))
def test_steady_is_the_median_of_those_that_are_known_and_at_most_twice_the_slices_own(
    sigma: list[float],
) -> None:
    given_ = np.array(sigma, np.float32)
    for i, told in enumerate(noise.steady(given_)):
        near = given_[max(0, i - 2) : i + 3]
        known = near[np.isfinite(near)]
        middle = np.median(known) if known.size else np.float32(np.nan)
        assert np.array_equal(told, np.fmin(middle, 2 * given_[i]), equal_nan=True)


def test_a_quiet_slice_among_loud_ones_is_not_treated_as_they_are() -> None:
    assert noise.steady(np.array([20, 20, 1, 20, 20], np.float32)).tolist() == [20, 20, 2, 20, 20]
