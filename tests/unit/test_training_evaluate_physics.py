"""Noise spectra, transfer functions and inserts against analytic truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from training.errors import DataError
from training.evaluate import physics, resolution
from training.evaluate.physics import Insert

CUTOFF = 0.2


def coloured(seed: int, shape: tuple[int, int, int], cutoff: float = CUTOFF) -> np.ndarray:
    """Noise whose NPS is f exp(-(f / cutoff)^2), unit variance."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(shape[1])[:, None], np.fft.fftfreq(shape[2])[None, :])
    gain = np.sqrt(f) * np.exp(-0.5 * (f / cutoff) ** 2)
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * gain).real
    return noise / np.sqrt((gain**2).mean())


def everywhere(volume: np.ndarray) -> np.ndarray:
    return np.ones(volume.shape, bool)


def test_white_noise_has_a_flat_spectrum_whose_integral_is_the_variance():
    noise = 12 * np.random.default_rng(1).standard_normal((4, 256, 256))
    found = physics.noise_power(physics.uniform_rois(noise, everywhere(noise), size=64), 0.7)
    assert found.sigma == pytest.approx(12, rel=0.01)
    np.testing.assert_allclose(found.radial[3:], 144 * 0.7**2, rtol=0.1)
    assert found.frequency[-1] == pytest.approx(0.5 / 0.7, rel=0.02)


def test_mean_and_peak_frequency_of_a_known_spectrum():
    noise = 20 * coloured(2, (6, 256, 256))
    spacing = 0.8
    found = physics.noise_power(physics.uniform_rois(noise, everywhere(noise), size=96), spacing)
    f = np.linspace(0, 0.5, 5001)
    nps = f * np.exp(-((f / CUTOFF) ** 2))
    assert found.mean_frequency == pytest.approx((f * nps).sum() / nps.sum() / spacing, rel=0.03)
    # In the plane each ring weighs by its circumference: f more.
    assert found.plane_frequency == pytest.approx((f * f * nps).sum() / (f * nps).sum() / spacing, rel=0.03)
    assert found.peak_frequency == pytest.approx(CUTOFF / np.sqrt(2) / spacing, rel=0.08)
    assert found.sigma == pytest.approx(20, rel=0.03)


def test_a_slope_is_no_noise():
    y, x = np.mgrid[:64, :64]
    plain = np.broadcast_to(3.0 * y - 0.1 * x + 0.02 * x * y + 0.05 * y * y, (20, 64, 64))
    assert np.abs(physics.detrended(plain)).max() < 1e-9
    noise = np.random.default_rng(3).standard_normal((20, 64, 64))
    with_slope, without = (physics.noise_power(v, 1.0) for v in (plain + noise, noise))
    np.testing.assert_allclose(with_slope.radial, without.radial, rtol=1e-6)


def test_repeats_show_the_noise_under_the_anatomy():
    y, x = np.mgrid[:256, :256]
    anatomy = 300 * np.sin(x / 5) * np.sin(y / 6)
    a, b = (anatomy + 10 * coloured(s, (3, 256, 256)) for s in (4, 5))
    found = physics.noise_power_of_repeats(a, b, everywhere(a), 1.0)
    alone = physics.noise_power(physics.uniform_rois(10 * coloured(4, (3, 256, 256)), everywhere(a)), 1.0)
    assert found.sigma == pytest.approx(10, rel=0.02)
    assert found.mean_frequency == pytest.approx(alone.mean_frequency, rel=0.02)


def test_texture_tells_scaling_from_smoothing():
    noise = coloured(6, (3, 256, 256))
    before, halved, smoothed = (
        physics.noise_power(physics.uniform_rois(v, everywhere(v)), 1.0)
        for v in (noise, 0.5 * noise, ndimage.gaussian_filter(noise, (0, 1.5, 1.5)))
    )
    kept = physics.texture(before, halved)
    assert (kept.nmr, kept.cfr, kept.plane_cfr, kept.peak_ratio) == pytest.approx((0.5, 1.0, 1.0, 1.0))
    assert physics.texture(before, smoothed).cfr < 0.8


def test_too_few_regions_are_refused():
    small = np.zeros((1, 64, 64))
    with pytest.raises(DataError, match="only 1 regions"):
        physics.uniform_rois(small, everywhere(small), size=64)
    with pytest.raises(DataError, match="no noise"):
        physics.noise_power(np.zeros((20, 64, 64)), 1.0)


def disc(sigma: float, insert: Insert, size: int = 96, fine: int = 9) -> np.ndarray:
    """A disc, blurred by a Gaussian of ``sigma`` pixels on a fine grid, sampled at pixel centres."""
    n = size * fine
    at = (np.arange(n) - (fine - 1) / 2) / fine
    hit = np.hypot(at[:, None] - insert.centre[0], at[None, :] - insert.centre[1]) <= insert.radius
    blurred = ndimage.gaussian_filter(hit.astype(float), sigma * fine, truncate=6)
    return insert.value * blurred[fine // 2 :: fine, fine // 2 :: fine]


@pytest.mark.parametrize("sigma", [0.8, 1.2, 1.8])
def test_the_transfer_function_of_a_gaussian(sigma):
    insert = Insert(name="acrylic", centre=(47.3, 48.6), radius=24.0, value=120.0)
    spacing = 0.6
    found = resolution.transfer(disc(sigma, insert), insert, spacing)
    expected = np.sqrt(np.log(2) / 2) / (np.pi * sigma) / spacing
    assert found.f50 == pytest.approx(expected, rel=0.02)
    if np.sqrt(np.log(10) / 2) / (np.pi * sigma) < 0.5:
        assert found.f10 == pytest.approx(np.sqrt(np.log(10) / 2) / (np.pi * sigma) / spacing, rel=0.03)
    assert found.contrast == pytest.approx(120, rel=0.01)
    assert found.ttf[0] == pytest.approx(1)


def test_slices_average_so_that_noise_does_not_move_f50():
    insert = Insert(name="poly", centre=(48.0, 48.0), radius=24.0, value=-100.0)
    noisy = disc(1.2, insert) + 10 * coloured(7, (40, 96, 96))
    clean = resolution.transfer(disc(1.2, insert), insert, 1.0)
    found = resolution.transfer(noisy, insert, 1.0)
    assert found.f50 == pytest.approx(clean.f50, rel=0.05)
    assert found.cnr == pytest.approx(100 / 10 * np.sqrt(40), rel=0.1)


def test_the_image_without_the_insert_takes_the_noise_away():
    insert = Insert(name="low", centre=(48.0, 48.0), radius=24.0, value=10.0)
    noise = 10 * coloured(8, (2, 96, 96))
    clean = resolution.transfer(disc(1.2, insert), insert, 1.0)
    blind = resolution.transfer(disc(1.2, insert) + noise, insert, 1.0)
    assert blind.cnr < 3
    with_plain = resolution.transfer(disc(1.2, insert) + noise, insert, 1.0, plain=noise)
    assert with_plain.f50 == pytest.approx(clean.f50, rel=1e-6)


def test_blur_lowers_f50_and_the_centre_is_found():
    insert = Insert(name="bone", centre=(47.3, 48.6), radius=20.0, value=900.0)
    sharp = disc(1.0, insert)
    blurred = ndimage.gaussian_filter(sharp, 1.0)
    a, b = (resolution.transfer(v, insert, 1.0).f50 for v in (sharp, blurred))
    assert b / a == pytest.approx(1 / np.sqrt(2), rel=0.03)
    off = Insert(name="bone", centre=(48.0, 48.0), radius=20.0, value=900.0)
    assert resolution.refined_centre(sharp, off) == pytest.approx(insert.centre, abs=0.03)


def test_an_insert_without_edge_has_no_transfer_function():
    with pytest.raises(DataError, match="no edge"):
        resolution.transfer(
            np.zeros((64, 64)), Insert(name="water", centre=(32, 32), radius=16, value=0), 1.0
        )
    assert np.isnan(resolution.first_below(np.arange(3.0), np.ones(3), 0.5))


def test_bias_linearity_and_cnr_of_inserts():
    rng = np.random.default_rng(9)
    y, x = np.mgrid[:128, :128]
    inserts = [
        Insert(name=n, centre=(32 + 64 * (i // 2), 32 + 64 * (i % 2)), radius=12, value=v)
        for i, (n, v) in enumerate({"air": -1000.0, "poly": -100.0, "acrylic": 120.0, "bone": 900.0}.items())
    ]
    truth = np.zeros((20, 128, 128))
    for i in inserts:
        truth[:, np.hypot(y - i.centre[0], x - i.centre[1]) <= i.radius] = i.value
    noisy = truth + 8 * rng.standard_normal(truth.shape)
    after = 0.99 * noisy + 2
    found = physics.insert_bias(noisy, after, inserts)
    assert found["bone"] == pytest.approx(2 - 9, abs=0.01)
    fit = physics.linearity([i.value for i in inserts], [physics.insert_mean(after, i) for i in inserts])
    assert fit.slope == pytest.approx(0.99, abs=1e-3)
    assert fit.intercept == pytest.approx(2, abs=0.3)
    assert fit.r_squared > 0.9999
    assert fit.largest == pytest.approx(12, abs=0.3)
    assert physics.cnr(noisy, inserts[2]) == pytest.approx(120 / 8, rel=0.03)
    with pytest.raises(DataError):
        physics.linearity([0, 0, 0], [1, 2, 3])


def test_snr_of_two_magnitude_images():
    rng = np.random.default_rng(10)
    a, b = (
        np.hypot(1491 + 6.9 * rng.standard_normal((128, 128)), 6.9 * rng.standard_normal((128, 128)))
        for _ in "ab"
    )
    assert physics.snr_of_repeats(a, b, everywhere(a)) == pytest.approx(1491 / 6.9, rel=0.02)
    with pytest.raises(DataError, match="no repeats"):
        physics.snr_of_repeats(a, a, everywhere(a))
