"""The traditional rows: each removes noise, follows the noise's scale, and is tuned on what it is given."""

from __future__ import annotations

import numpy as np
import pytest

from engines.classical import phantoms
from training.errors import DataError
from training.evaluate import classical, conventions, metrics
from training.evaluate.classical import Case


def case(seed: int, unit: str = "HU", size: int = 96) -> Case:
    shape = (3, size, size)
    if unit == "HU":
        made = phantoms.ct(seed, shape=shape, sigma=25.0, kind="abdomen", variation=0.0)
        mask = made.truth > -500
        sigma = 25.0
    else:
        made = phantoms.mr(seed, shape=shape, sigma=0.05, variation=0.0)
        mask = made.truth > 0.15 * made.truth.max()
        sigma = 40.0
    return Case(
        patient=f"p{seed}",
        domain="phantom",
        noisy=made.noisy,
        reference=made.truth,
        sigma=np.full(3, sigma, np.float32),
        mask=mask,
        unit="HU" if unit == "HU" else "arbitrary",
    )


def minus_rmse(one: Case, out: np.ndarray) -> float:
    return -metrics.rmse(one.reference[1], out[1], one.mask[1])


@pytest.mark.parametrize("name", classical.rows("HU"))
def test_every_row_of_ct_beats_its_input_with_some_candidate(name):
    one = case(1)
    before = metrics.rmse(one.reference, one.noisy, one.mask)
    grid = classical.candidates(name)
    # The first, the middle and the last of the grid are enough to see that the row works.
    tried = [grid[0], grid[len(grid) // 2 - 3], grid[-4]]
    errors = [
        metrics.rmse(one.reference, classical.apply(name, p, classical.volume_of(one), one.sigma), one.mask)
        for p in tried
    ]
    # The phantom is small, so the body's edge against air is much of it: a Gaussian gains 5 % there.
    assert min(errors) < 0.97 * before


@pytest.mark.parametrize("name", ["nlm", "tv", "wavelet", "bilateral", "mr-nlm", "mr-tv", "mr-wavelet"])
def test_rows_follow_the_scale_of_mr(name):
    one = case(2, "MR", 64)
    parameters = {**classical.candidates(name)[1], "blend": 1.0}
    volume = classical.volume_of(one)
    plain = classical.apply(name, parameters, volume, one.sigma)
    four = classical.volume_of(
        Case(
            patient="p",
            domain="d",
            noisy=4 * one.noisy,
            reference=one.reference,
            sigma=one.sigma,
            mask=one.mask,
            unit="arbitrary",
        )
    )
    scaled = classical.apply(name, parameters, four, 4 * one.sigma)
    assert np.abs(scaled / 4 - plain).max() < 0.01 * 40
    assert metrics.rmse(one.reference, plain, one.mask) < metrics.rmse(one.reference, one.noisy, one.mask)


def test_blending_is_linear_and_none_is_the_input():
    one = case(3, size=64)
    volume = classical.volume_of(one)
    p = {"width": 1.0, "blend": 1.0}
    full = classical.apply("gaussian", p, volume, one.sigma)
    half = classical.apply("gaussian", {**p, "blend": 0.5}, volume, one.sigma)
    np.testing.assert_allclose(half, 0.5 * (full + one.noisy), atol=1e-3)
    np.testing.assert_array_equal(
        classical.apply("gaussian", {**p, "blend": 0.0}, volume, one.sigma), one.noisy
    )


def test_a_slice_of_unknown_noise_stays_as_it_was():
    one = case(4, size=64)
    sigma = np.array([25.0, np.nan, 25.0], np.float32)
    out = classical.apply("tv", {"weight": 1.0, "blend": 1.0}, classical.volume_of(one), sigma)
    np.testing.assert_array_equal(out[1], one.noisy[1])
    assert np.abs(out[0] - one.noisy[0]).max() > 5
    with pytest.raises(DataError, match="per slice"):
        classical.apply("tv", {"weight": 1.0, "blend": 1.0}, classical.volume_of(one), sigma[:2])


def test_tuning_takes_the_best_on_what_it_was_given():
    cases = [case(5, size=64), case(6, size=64)]
    found = classical.trials("gaussian", cases, minus_rmse)
    assert len(found) == len(classical.candidates("gaussian"))
    best = classical.tune("gaussian", cases, minus_rmse)
    # Recomputed without the shortcut over blends.
    scores = {
        str(p): np.mean(
            [minus_rmse(c, classical.apply("gaussian", p, classical.volume_of(c), c.sigma)) for c in cases]
        )
        for p in classical.candidates("gaussian")
    }
    assert str(best) == max(scores, key=lambda k: scores[k])
    # Another score, another choice: one that wants the smoothest.
    smoothest = classical.tune("gaussian", cases, lambda c, out: -float(np.abs(np.diff(out)).mean()))
    assert smoothest == {"width": 1.6, "blend": 1.0}


def test_a_patient_with_more_cases_has_no_more_say():
    one, other = case(7, size=64), case(8, size=64)
    alike = [t.score for t in classical.trials("median", [one, other], minus_rmse)]
    repeated = [t.score for t in classical.trials("median", [one, one, one, other], minus_rmse)]
    assert repeated == pytest.approx(alike)


def test_parameters_at_an_end_of_the_grid_are_told():
    assert classical.at_edge("tv", {"weight": 2.0, "blend": 1.0}) == ("weight",)
    assert classical.at_edge("tv", {"weight": 1.0, "blend": 1.0}) == ()
    assert classical.at_edge("gaussian", {"width": 0.5, "blend": 0.3}) == ("width", "blend")


def test_slices_outside_of_the_mask_are_not_filtered_while_tuning():
    one = case(12, size=64)
    middle = one.mask.copy()
    middle[[0, 2]] = False
    seen: list[np.ndarray] = []

    def look(c: Case, out: np.ndarray) -> float:
        seen.append(out)
        return minus_rmse(c, out)

    masked = Case(
        patient="p",
        domain="d",
        noisy=one.noisy,
        reference=one.reference,
        sigma=one.sigma,
        mask=middle,
    )
    found = classical.trials("gaussian", [masked], look)
    assert [t.score for t in found] == [t.score for t in classical.trials("gaussian", [one], minus_rmse)]
    np.testing.assert_array_equal(seen[0][0], one.noisy[0])
    assert (seen[0][1] != one.noisy[1]).any()


def test_unknown_rows_and_missing_cases_are_refused():
    with pytest.raises(DataError, match="no classical row"):
        classical.candidates("bm3d")
    with pytest.raises(DataError, match="no classical row"):
        classical.apply(
            "xx-nlm", {"blend": 1.0}, classical.volume_of(case(9, size=64)), np.ones(3, np.float32)
        )
    with pytest.raises(DataError, match="no validation cases"):
        classical.tune("gaussian", [], minus_rmse)


def test_a_tuned_filter_gains_in_the_soft_tissue_window():
    tuning, held_out = case(10), case(11)
    p = classical.tune("tv", [tuning], minus_rmse)
    out = conventions.as_written(classical.apply("tv", p, classical.volume_of(held_out), held_out.sigma))
    before, after = (
        metrics.measure(held_out.reference, v, window=conventions.SOFT, mask=held_out.mask)
        for v in (held_out.noisy, out)
    )
    assert all(b.psnr_db > a.psnr_db + 1 for a, b in zip(before, after, strict=True))
    assert all(b.ssim > a.ssim for a, b in zip(before, after, strict=True))
