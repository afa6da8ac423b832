"""MR noise and matrices: means and variances against closed forms, colours against k-space, exact bands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ive

from training.errors import DataError
from training.simulate.band import acquired_part, low_resolution, zero_filled
from training.simulate.kspace import Acquisition, acquire, draw, mean_magnitude


def flat(level: float, shape: tuple[int, int, int] = (3, 128, 128)) -> np.ndarray:
    return np.full(shape, level, dtype=np.float32)


def ramp() -> np.ndarray:
    """SNR 0 to 30 at sigma 0.03, periodic and smooth along x."""
    x = np.arange(192)
    line = 0.45 * (1 - np.cos(2 * np.pi * x / 192))
    return np.broadcast_to(line, (2, 192, 192)).astype(np.float32)


HOW = {
    "plain": Acquisition(sigma=0.03),
    "zero-filled": Acquisition(sigma=0.03, zero_fill=(1.7, 1.3)),
    "partial": Acquisition(sigma=0.03, zero_fill=(1.2, 1.0), partial_fourier=0.65, phase=2.0),
    "elliptical": Acquisition(sigma=0.03, elliptical=True, window="hann"),
    "coils": Acquisition(sigma=0.03, n_coils=3, window="tukey"),
    "parallel": Acquisition(sigma=0.03, g_strength=1.0, zero_fill=(1.5, 1.5)),
    "3-D": Acquisition(sigma=0.03, z_zero_fill=1.5),
    "masked": Acquisition(sigma=0.03, masked_background=True),
}


def rice(snr: np.ndarray) -> np.ndarray:
    """Rician mean at sigma 1 through scaled Bessel functions, a second closed form."""
    x = snr**2 / 4
    return np.asarray(np.sqrt(np.pi / 2) * ((1 + 2 * x) * ive(0, x) + 2 * x * ive(1, x)))


def test_rician_mean_is_the_bessel_form() -> None:
    snr = np.linspace(0, 60, 4001, dtype=np.float32)
    assert np.abs(mean_magnitude(snr, 1.0) - rice(snr)).max() < 0.001


@pytest.mark.parametrize("n_coils", [1, 2, 4, 8])
def test_mean_magnitude_by_monte_carlo(n_coils: int) -> None:
    rng = np.random.default_rng(5)
    for snr in (0.0, 0.7, 2.0, 6.0, 30.0):
        noise = rng.standard_normal((2 * n_coils, 200_000))
        noise[0] += snr
        found = np.sqrt(np.square(noise).sum(axis=0))
        wanted = float(mean_magnitude(np.full(1, snr, dtype=np.float32), 1.0, n_coils)[0])
        assert abs(found.mean() - wanted) < 0.01


@pytest.mark.parametrize("level", [0.0, 0.05, 0.1, 1.0])
def test_magnitude_variance_is_rician(level: float) -> None:
    noisy, _ = acquire(flat(level, (8, 128, 128)), Acquisition(sigma=0.05), np.random.default_rng(1))
    snr = np.float64(level / 0.05)
    variance = 2 + snr**2 - rice(snr) ** 2
    assert noisy.var() / 0.05**2 == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("how", [h for h in HOW.values() if h.n_coils == 1], ids=lambda h: str(h)[12:60])
def test_sigma_is_calibrated(how: Acquisition) -> None:
    noisy, expected = acquire(flat(1.0, (8, 160, 120)), how, np.random.default_rng(2))
    assert float(np.sqrt(np.mean(np.square(noisy - expected)))) == pytest.approx(how.sigma, rel=0.03)


def test_sigma_is_a_fraction_of_the_scale() -> None:
    noisy, expected = acquire(flat(900.0), HOW["plain"], np.random.default_rng(2), scale=1000.0)
    assert float((noisy - expected).std()) == pytest.approx(30.0, rel=0.03)


@pytest.mark.parametrize("name", HOW)
def test_the_residual_has_no_mean_at_any_snr(name: str) -> None:
    rng = np.random.default_rng(3)
    residual = np.zeros((192, 192))
    times = 40
    for _ in range(times):
        noisy, expected = acquire(ramp(), HOW[name], rng)
        residual += (noisy - expected).mean(axis=0)
    columns = (residual / times).mean(axis=0).reshape(24, 8).mean(axis=1)
    assert np.abs(columns).max() < 0.05 * HOW[name].sigma


def test_expected_lies_above_the_truth_where_the_signal_is_low() -> None:
    _, expected = acquire(flat(0.0), HOW["plain"], np.random.default_rng(0))
    assert float(expected.mean()) == pytest.approx(0.03 * np.sqrt(np.pi / 2), rel=1e-3)


def test_zero_filled_noise_ends_where_k_space_ends() -> None:
    how = Acquisition(sigma=0.02, zero_fill=(2.0, 1.6))
    noisy, expected = acquire(flat(1.0, (8, 128, 128)), how, np.random.default_rng(4))
    power = np.square(np.abs(np.fft.fft2(noisy - expected))).mean(axis=0)
    ky, kx = np.abs(np.fft.fftfreq(128, 1 / 128)), np.abs(np.fft.fftfreq(128, 1 / 128))
    inside = (ky[:, None] < 32) & (kx[None, :] < 40)
    outside = (ky[:, None] > 33) | (kx[None, :] > 41)
    assert power[outside].mean() < 0.01 * power[inside].mean()
    near, far = inside & (np.hypot(ky[:, None], kx) < 15), inside & (np.hypot(ky[:, None], kx) > 30)
    assert power[far].mean() == pytest.approx(power[near].mean(), rel=0.1)


def test_slices_are_independent_unless_the_acquisition_is_3d() -> None:
    for z_zero_fill, wanted in ((1.0, 0.0), (1.5, float(np.sinc(1 / 1.5)))):
        how = Acquisition(sigma=0.02, z_zero_fill=z_zero_fill)
        noisy, expected = acquire(flat(1.0), how, np.random.default_rng(6))
        a, b = (noisy - expected)[:2]
        assert float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) == pytest.approx(wanted, abs=0.03)


def test_masked_air_is_zero_and_tissue_is_not() -> None:
    truth = flat(0.0)
    truth[:, 40:90, 40:90] = 1.0
    noisy, expected = acquire(truth, replace(HOW["masked"], sigma=0.02), np.random.default_rng(0))
    assert not noisy[:, :30].any()
    assert not expected[:, :30].any()
    assert noisy[:, 42:88, 42:88].min() > 0.5


def test_apodisation_and_zero_filling_blur_the_truth_and_keep_its_mean() -> None:
    truth = flat(0.0)
    truth[:, 64, 64] = 100.0
    quiet = Acquisition(sigma=1e-6, zero_fill=(1.5, 1.5), window="hann")
    _, expected = acquire(truth, quiet, np.random.default_rng(0))
    assert expected[0, 64, 64] < 30
    assert float(expected.mean()) == pytest.approx(float(truth.mean()), rel=0.15)
    assert float(np.abs(expected[0] - expected[2]).max()) < 1e-4


def test_same_seed_same_image() -> None:
    for how in HOW.values():
        first = acquire(ramp(), how, np.random.default_rng(9))
        again = acquire(ramp(), how, np.random.default_rng(9))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert all(a.dtype == np.float32 for a in first)
    assert draw(np.random.default_rng(9)) == draw(np.random.default_rng(9))


def test_draws_cover_what_clinics_do() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw(rng) for _ in range(400)]
    assert min(a.sigma for a in drawn) < 0.006
    assert max(a.sigma for a in drawn) > 0.13
    assert 0.2 < np.mean([a.zero_fill == (1.0, 1.0) for a in drawn]) < 0.6
    assert {a.window for a in drawn} == {"none", "tukey", "hann"}
    assert max(a.n_coils for a in drawn) > 1


@pytest.mark.parametrize(
    "wrong",
    [{"sigma": -0.1}, {"sigma": 0.1, "zero_fill": (0.5, 1.0)}, {"sigma": 0.1, "partial_fourier": 0.2}],
)
def test_impossible_acquisitions_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match="must lie between"):
        Acquisition(**wrong)  # type: ignore[arg-type]


def test_a_single_slice_is_no_stack() -> None:
    with pytest.raises(DataError, match="3 axes"):
        acquire(np.zeros((8, 8), dtype=np.float32), HOW["plain"], np.random.default_rng(0))
    with pytest.raises(DataError, match="3 axes"):
        zero_filled(np.zeros((8, 8), dtype=np.float32))


SIZES = [(2, 64, 64), (2, 39, 52), (1, 33, 77), (3, 128, 96)]
"""Coarse sizes: even, odd, not square."""


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [2, 3])
def test_zero_filling_meets_every_sample(size: tuple[int, int, int], factor: int) -> None:
    lr = random(size)
    hr = zero_filled(lr, factor)
    assert hr.shape == (size[0], factor * size[1], factor * size[2])
    assert np.abs(hr[:, ::factor, ::factor] - lr).max() < 1e-5
    assert np.abs(low_resolution(hr, factor) - lr).max() < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_low_resolution_is_the_centre_of_k_space(size: tuple[int, int, int]) -> None:
    hr = random((size[0], 2 * size[1], 2 * size[2]))
    wanted = np.fft.fftshift(np.fft.fft2(hr), axes=(1, 2))
    found = np.fft.fftshift(np.fft.fft2(low_resolution(hr)), axes=(1, 2)) * 4
    cy, cx, h, w = size[1] // 2, size[2] // 2, (size[1] - 1) // 2, (size[2] - 1) // 2
    a = found[:, cy - h : cy + h + 1, cx - w : cx + w + 1]
    b = wanted[:, size[1] - h : size[1] + h + 1, size[2] - w : size[2] + w + 1]
    assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("size", SIZES)
def test_what_is_added_outside_the_band_changes_no_acquired_frequency(size: tuple[int, int, int]) -> None:
    lr, r = random(size), random((size[0], 2 * size[1], 2 * size[2]), seed=1)
    new = r - acquired_part(r)
    assert np.abs(acquired_part(new)).max() < 1e-5
    assert float(new.std()) > 0.5
    assert np.abs(low_resolution(zero_filled(lr) + new) - lr).max() < 1e-5
    kept = acquired_part(r)
    assert np.abs(acquired_part(kept) - kept).max() < 1e-5


def test_odd_fine_images_have_an_acquired_part_too() -> None:
    r = random((1, 75, 101))
    spectrum = np.abs(np.fft.fft2(r - acquired_part(r)))
    ky, kx = np.abs(np.fft.fftfreq(75, 1 / 75)), np.abs(np.fft.fftfreq(101, 1 / 101))
    band = (ky[:, None] <= 37.5 / 2) & (kx[None, :] <= 50.5 / 2)
    assert spectrum[0][band].max() < 1e-5 * spectrum.max()


@pytest.mark.parametrize("window", ["none", "tukey", "hann"])
def test_windows_keep_the_mean_and_lower_the_rim(window: str) -> None:
    hr = random((1, 96, 64)) + 5
    lr = low_resolution(hr, window=window)  # type: ignore[arg-type]
    assert float(lr.mean()) == pytest.approx(float(hr.mean()), rel=1e-5)
    rim = np.abs(np.fft.fft(lr, axis=1))[:, 23]
    plain = np.abs(np.fft.fft(low_resolution(hr), axis=1))[:, 23]
    assert (rim.mean() < 0.1 * plain.mean()) == (window != "none")


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="fewer"):
        low_resolution(random((1, 63, 64)))
