"""Lesions kept and invented, structure in residuals, ring correlation: with filters whose effect is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from training.errors import DataError
from training.evaluate import hallucination, lesions
from training.evaluate.lesions import Lesion

SPACING = (1.0, 0.7, 0.7)
SHAPE = (9, 64, 64)


@pytest.mark.parametrize("radius", [2.5, 5.0])
def test_a_lesion_has_the_volume_and_contrast_that_it_says(radius):
    # A blurred sphere holds a little more than a sharp one: V + 4 pi R edge^2.
    lesion = Lesion(centre=(8, 32, 32), radius_mm=radius, contrast=-20, edge_mm=0.5)
    added = lesions.insert(np.zeros((17, 64, 64)), [lesion], SPACING)
    expected = -20 * (4 / 3 * np.pi * radius**3 + 4 * np.pi * radius * 0.25)
    assert added.sum() * np.prod(SPACING) == pytest.approx(expected, rel=0.03)
    assert added.min() == pytest.approx(-20, rel=0.01)
    assert added.dtype == np.float32


def test_retention_of_linear_filters_is_known():
    rng = np.random.default_rng(1)
    lesion = Lesion(centre=(4, 32, 32), radius_mm=3.0, contrast=15)
    shape = lesions.profile(SHAPE, SPACING, lesion)
    plain = 40 + 10 * rng.standard_normal(SHAPE)
    noisy = plain + 15 * shape

    def halve(v: np.ndarray) -> np.ndarray:
        return 40 + 0.5 * (v - 40)

    assert lesions.contrast(noisy, shape, plain) == pytest.approx(15)
    assert lesions.retention(
        noisy, halve(noisy), shape, plain_before=plain, plain_after=halve(plain)
    ) == pytest.approx(0.5)
    blurred = [ndimage.gaussian_filter(v, (0, 2, 2)) for v in (noisy, plain)]
    kept = lesions.retention(noisy, blurred[0], shape, plain_before=plain, plain_after=blurred[1])
    assert 0.3 < kept < 0.9
    assert lesions.retention(noisy, plain, shape, plain_before=plain, plain_after=plain) == 0
    # Without the images without the lesion the noise stays in, but a level does not.
    assert lesions.contrast(noisy + 500, shape) == pytest.approx(lesions.contrast(noisy, shape))
    assert lesions.contrast(noisy, shape) == pytest.approx(15, abs=3)
    with pytest.raises(DataError, match="both"):
        lesions.retention(noisy, noisy, shape, plain_before=plain)


def test_retention_is_pooled_by_power():
    assert lesions.retention_over([(10, 9), (20, 18)]) == pytest.approx(0.9)
    assert lesions.retention_over([(0.001, 5), (20, 18)]) == pytest.approx(0.9, abs=0.001)
    with pytest.raises(DataError):
        lesions.retention_over([(0, 1)])


def test_places_are_seeded_inside_and_apart():
    mask = np.zeros(SHAPE, bool)
    mask[:, 8:56, 8:56] = True
    found = lesions.places(mask, SPACING, clear_mm=5, n=6, seed=3)
    assert found == lesions.places(mask, SPACING, clear_mm=5, n=6, seed=3)
    assert len(found) == 6
    for i, (z, y, x) in enumerate(found):
        assert min(y - 7, 56 - y, x - 7, 56 - x) * 0.7 >= 5 - 1e-9
        for other in found[:i]:
            assert np.linalg.norm((np.array((z, y, x)) - other) * SPACING) >= 10
    assert lesions.places(mask, SPACING, clear_mm=40, n=6, seed=3) == []


def test_the_blob_filter_is_matched():
    kernel = lesions.blob_filter(4.0)
    assert kernel.sum() == pytest.approx(0, abs=1e-12)
    y, x = np.mgrid[-9:10, -9:10]
    assert 0.85 < (kernel * (np.hypot(y, x) <= 4)).sum() <= 1
    assert (kernel * (np.hypot(y, x) <= 9)).sum() == pytest.approx(0, abs=0.01)


def test_an_invented_blob_is_counted_and_smoothing_invents_none():
    rng = np.random.default_rng(5)
    before = 10 * rng.standard_normal((3, 128, 128))
    mask = np.ones(before.shape, bool)
    smooth = ndimage.gaussian_filter(before, (0, 1, 1))
    honest = lesions.false_blobs(before, smooth, mask, radius=3)
    assert honest.after <= honest.before
    assert honest.before <= 12
    y, x = np.mgrid[:128, :128]
    invented = smooth.copy()
    for at in (30, 64, 98):
        invented[1] += 8 * honest.sigma * (np.hypot(y - at, x - at) <= 3)
    found = lesions.false_blobs(before, invented, mask, radius=3)
    assert found.after == honest.after + 3
    with pytest.raises(DataError, match="no ruler"):
        lesions.false_blobs(np.zeros_like(before), before, mask, radius=3)


def scene() -> np.ndarray:
    y, x = np.mgrid[:192, :192]
    v = 100.0 * (np.hypot(y - 96, x - 96) < 70) + 80.0 * (np.hypot(y - 70, x - 110) < 12)
    v += 60 * np.sin(x / 6) * (y > 130)
    return ndimage.gaussian_filter(v, 0.8)


def test_a_residual_of_noise_has_no_structure_and_a_blur_has():
    rng = np.random.default_rng(6)
    truth = scene()
    noisy = truth + 10 * rng.standard_normal(truth.shape)
    mask = np.ones(truth.shape, bool)
    perfect = hallucination.residual_structure(noisy, truth, mask)
    assert abs(perfect.signed) < 0.03
    assert abs(perfect.energy) < 0.03
    part = 0.4 * noisy + 0.6 * truth
    assert abs(hallucination.residual_structure(noisy, part, mask, strength=0.6).signed) < 0.03
    assert hallucination.residual_structure(noisy, part, mask).signed > 0.05
    blurred = hallucination.residual_structure(noisy, ndimage.gaussian_filter(noisy, 2), mask)
    assert blurred.signed > 0.4
    assert blurred.energy > 0.2
    known = hallucination.residual_structure(noisy, ndimage.gaussian_filter(noisy, 2), mask, structure=truth)
    assert known.signed > 0.4
    assert np.abs(blurred.map).max() <= 1
    same = hallucination.residual_structure(noisy, noisy, mask)
    assert (same.signed, same.energy) == (0, 0)


def test_ring_correlation_of_known_mixtures():
    rng = np.random.default_rng(7)
    found = []
    for _ in range(40):
        a, n = rng.standard_normal((2, 64, 64))
        found.append(hallucination.ring_correlation(a, a + n)[1])
    # Signal and noise of one power: FRC = sqrt(SNR / (1 + SNR)) = 1 / sqrt 2 at every frequency.
    np.testing.assert_allclose(np.mean(found, axis=0)[4:], 1 / np.sqrt(2), atol=0.05)
    frequency, same = hallucination.ring_correlation(a, a)
    np.testing.assert_allclose(same, 1)
    assert frequency[-1] == pytest.approx(0.5 - 1 / 64)
    assert hallucination.agreement(a, a) == 0.5


def test_patches_that_show_something_else_are_flagged():
    rng = np.random.default_rng(8)
    truth = 200 + 60 * ndimage.gaussian_filter(rng.standard_normal((256, 256)), 2.0) / 0.14
    noisy = truth + 20 * rng.standard_normal(truth.shape)
    honest = 0.5 * (truth + noisy)
    before = hallucination.scan(noisy, truth, 0.7)
    limit = hallucination.limit_from(before, share=0.05)
    assert before.flagged(limit) <= 0.05 * len(before.corners)
    assert hallucination.scan(honest, truth, 0.7).flagged(limit) == 0
    faked = honest.copy()
    other = 200 + 60 * ndimage.gaussian_filter(rng.standard_normal((64, 64)), 2.0, mode="wrap") / 0.14
    faked[64:128, 64:128] = other
    found = hallucination.scan(faked, truth, 0.7)
    assert (64, 64) in [c for c, v in zip(found.corners, found.crossings, strict=True) if v < limit]
    assert found.flagged(limit) < 0.3 * len(found.corners)


def test_air_and_flat_patches_are_left_out():
    truth = np.zeros((128, 128))
    truth[:, 64:] = np.random.default_rng(9).standard_normal((128, 64))
    mask = np.zeros(truth.shape, bool)
    mask[:, 64:] = True
    assert {c[1] for c in hallucination.scan(truth, truth, 1.0, mask=mask, stride=64).corners} == {64}
    assert {c[1] for c in hallucination.scan(truth, truth, 1.0, stride=64, least_structure=0.5).corners} == {
        64
    }
    with pytest.raises(DataError, match="no patch"):
        hallucination.scan(truth, truth, 1.0, mask=~(truth == truth))
