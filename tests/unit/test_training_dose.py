"""CT noise made in projections: its size, its grain, where it lies; lower doses of series with known noise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engines.noise import BLOCK, band_frequencies, estimate  # noqa: E402
from training.errors import DataError  # noqa: E402
from training.simulate.dose import (  # noqa: E402
    Kernel,
    Tube,
    default_geometry,
    insert,
    measured_kernel,
    noise_stack,
    robust_sigma,
)
from training.simulate.matched import bands_of, matched_gain  # noqa: E402
from training.simulate.photons import MU_WATER, correlated, paths, starved_dp  # noqa: E402
from training.simulate.projector import Geometry  # noqa: E402

SIZE, PIXEL = 256, 1.4


def body(size: int = SIZE, pixel: float = PIXEL) -> np.ndarray:
    """A chest: water, two lungs, a spine; HU."""
    c = (np.arange(size) - (size - 1) / 2) * pixel
    x, y = c[None], c[:, None]
    hu = np.full((size, size), -1000.0, np.float32)
    hu[(x / 160) ** 2 + (y / 115) ** 2 < 1] = 40
    for side in (-75, 75):
        hu[((x - side) / 45) ** 2 + (y / 65) ** 2 < 1] = -850
    hu[(x / 18) ** 2 + ((y - 75) / 15) ** 2 < 1] = 500
    return hu


def water(radius_mm: float = 110.0) -> np.ndarray:
    c = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL
    return np.where(np.hypot(c[None], c[:, None]) < radius_mm, 0, -1000).astype(np.float32)


def stack(hu: np.ndarray, n: int = 3) -> np.ndarray:
    return np.stack([hu] * n)


def spectrum(noise: np.ndarray, n_rings: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Ring means of the power spectrum of the middle 96 x 96 pixels, at cycles per pixel."""
    lo = (noise.shape[-1] - 96) // 2
    power = np.abs(np.fft.fft2(noise[:, lo : lo + 96, lo : lo + 96])) ** 2 / 96**2
    f = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96)[None])
    edges = np.linspace(0.02, 0.5, n_rings + 1)
    ring = [(f >= a) & (f < b) for a, b in pairwise(edges)]
    return np.array([f[r].mean() for r in ring]), np.array([power.mean(0)[r].mean() for r in ring])


def test_a_stack_has_the_asked_noise_and_no_mean():
    truth = stack(body())
    noise = noise_stack(truth, PIXEL, np.random.default_rng(1), kernel=Kernel(), target_sigma_hu=20)
    assert noise.shape == truth.shape
    assert noise.dtype == np.float32
    inside = truth > -500
    assert robust_sigma(noise, inside) == pytest.approx(20, rel=1e-3)
    assert abs(float(noise[inside].mean())) < 0.3
    slices = noise[:, inside[0]]
    assert abs(np.corrcoef(slices)[~np.eye(3, dtype=bool)]).max() < 0.05


def test_noise_repeats_with_the_seed_and_only_then():
    def make(seed: int) -> np.ndarray:
        return noise_stack(
            stack(body(96, 4), 2), 4.0, np.random.default_rng(seed), kernel=Kernel(), target_sigma_hu=9
        )

    np.testing.assert_array_equal(make(5), make(5))
    assert np.abs(make(5) - make(6)).max() > 1


@pytest.mark.parametrize("fc", [0.12, 0.22, 0.35])
def test_grain_is_that_of_the_kernel(fc):
    noise = noise_stack(
        stack(water(), 4), PIXEL, np.random.default_rng(2), kernel=Kernel(fc=fc), target_sigma_hu=20
    )
    f, found = spectrum(noise)
    wanted = f * np.exp(-((f / fc) ** 2))
    # Above 0.4 the corners of the sampled slice fold back, as in a scanner with pixels too large for its kernel.
    there = (wanted > 0.05 * wanted.max()) & (f < 0.4)
    ratio = found[there] / wanted[there]
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.2
    assert np.abs(ratio / ratio.mean() - 1).mean() < 0.07


def test_size_is_that_of_the_photons():
    """In the middle of water: var = (pi / views)^2 sum of var(p) times the sum of the squared filter (Kak, ch. 5)."""
    tube, kernel = Tube(i0=1e5, modulation=0), Kernel(fc=0.2)
    noise = noise_stack(stack(water()), PIXEL, np.random.default_rng(3), kernel=kernel, tube=tube)
    geometry = default_geometry((SIZE, SIZE), PIXEL)
    f = np.linspace(0, 0.5 / geometry.detector_mm, 4001)
    gain = f * np.exp(-0.5 * (f * PIXEL / 0.2) ** 2)
    filtered = 2 * geometry.detector_mm * np.mean(gain**2) * f[-1]
    wanted = np.sqrt(np.pi**2 / geometry.n_views * filtered * np.exp(220 * MU_WATER) / 1e5) * 1000 / MU_WATER
    middle = noise[:, 108:148, 108:148]
    assert float(middle.std()) == pytest.approx(float(wanted), rel=0.05)


def test_halved_dose_and_what_is_added_to_get_there():
    truth = stack(body())

    def sigma(**options: object) -> float:
        noise = noise_stack(truth, PIXEL, np.random.default_rng(4), kernel=Kernel(), **options)  # type: ignore[arg-type]
        return robust_sigma(noise, truth > -500)

    full = sigma(tube=Tube(i0=2e5))
    assert sigma(tube=Tube(i0=1e5)) == pytest.approx(full * np.sqrt(2), rel=1e-3)
    assert sigma(tube=Tube(i0=2e5), fraction=0.25) == pytest.approx(full * np.sqrt(3), rel=1e-3)
    assert sigma(tube=Tube(i0=2e5, electronic=30)) > 1.02 * full


def test_noise_lies_where_photons_are_few():
    """Long paths: more noise in the middle than at the skin, and along the long axis; a bowtie evens it out."""
    truth = stack(water(140.0))
    c = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL
    r = np.hypot(c[None], c[:, None])

    def middle_to_rim(tube: Tube) -> float:
        noise = noise_stack(truth, PIXEL, np.random.default_rng(5), kernel=Kernel(), tube=tube)
        return float(noise[:, r < 40].std() / noise[:, (r > 110) & (r < 130)].std())

    plain = middle_to_rim(Tube())
    assert plain > 1.4
    assert middle_to_rim(Tube(bowtie_mm=150)) < 0.75 * plain

    oval = np.where(np.hypot(c[None] / 160, c[:, None] / 100) < 1, 0, -1000).astype(np.float32)
    noise = noise_stack(
        stack(oval), PIXEL, np.random.default_rng(6), kernel=Kernel(), tube=Tube(modulation=0)
    )
    power = np.abs(np.fft.fft2(noise[:, 98:158, 98:158])) ** 2
    # Streaks along x vary along y.
    assert power[:, 3:15, 0:3].sum() > 1.5 * power[:, 0:3, 3:15].sum()


def test_coarse_paths_are_as_good_as_fine_ones():
    """The variance follows e^p: rms below 3 %, mean below 0.2 %, and the noise is the same within 1 %."""
    geometry = default_geometry((SIZE, SIZE), PIXEL)
    hu = torch.from_numpy(body())[None]
    fine, few = (paths(hu, geometry, PIXEL, coarse=k) for k in (1, 2))
    ratio = torch.exp(few - fine)
    assert float((ratio - 1).pow(2).mean().sqrt()) < 0.03
    assert float(ratio.mean()) == pytest.approx(1, abs=0.002)
    assert float(fine.max()) > 4


def test_fan_beams_make_noise_too():
    fan = Geometry(
        kind="equiangular",
        n_views=360,
        n_detectors=401,
        detector_mm=2.0,
        source_to_isocentre_mm=570,
        source_to_detector_mm=1040,
    )
    truth = stack(water())
    noise = noise_stack(
        truth, PIXEL, np.random.default_rng(7), kernel=Kernel(fc=0.18), geometry=fan, target_sigma_hu=15
    )
    assert robust_sigma(noise, truth > -500) == pytest.approx(15, rel=1e-3)
    f, found = spectrum(noise, 12)
    wanted = f * np.exp(-((f / 0.18) ** 2))
    there = wanted > 0.1 * wanted.max()
    assert np.abs(found[there] / wanted[there] / (found[there] / wanted[there]).mean() - 1).max() < 0.2


def test_slices_that_overlap_correlate():
    rows = torch.stack(list(correlated(np.random.default_rng(8), 6, (100, 200), 0.6))).reshape(6, -1).numpy()
    found = np.corrcoef(rows)
    assert rows.std(axis=1) == pytest.approx(np.ones(6), abs=0.02)
    assert np.diag(found, 1) == pytest.approx(np.full(5, 0.6), abs=0.03)
    assert np.diag(found, 2) == pytest.approx(np.full(4, 0.2), abs=0.03)
    assert np.diag(found, 3) == pytest.approx(np.zeros(3), abs=0.03)


def test_each_slice_may_have_its_own_paths():
    truth = np.stack([water(60.0), water(110.0), water(150.0)])
    noise = noise_stack(truth, PIXEL, np.random.default_rng(9), kernel=Kernel(), each=True)
    sigma = noise[:, 118:138, 118:138].std(axis=(1, 2))
    assert sigma[0] < 0.7 * sigma[1] < 0.7 * sigma[2]


def test_starved_rays_give_bias_and_more_noise():
    truth = stack(water(140.0), 2)
    middle = np.s_[:, 100:156, 100:156]

    def make(i0: float, starved: bool) -> np.ndarray:
        tube = Tube(i0=i0, modulation=0)
        return noise_stack(
            truth, PIXEL, np.random.default_rng(10), kernel=Kernel(), tube=tube, starved=starved
        )[middle]

    rich = make(1e6, True)
    assert float(rich.std()) == pytest.approx(float(make(1e6, False).std()), rel=0.05)
    assert abs(float(rich.mean())) < 1
    # A few photons are left behind 28 cm of water: the mean of -log of few photons is too high.
    assert float(make(1500, True).mean()) > 20
    assert abs(float(make(1500, False).mean())) < 5


def test_the_low_dose_is_drawn_from_the_photons_of_the_full_dose():
    photons = torch.full((200, 300), 4e4)
    dp = starved_dp(photons, np.random.default_rng(11), 0.0, 0.25).numpy()
    assert float(dp.std()) == pytest.approx(np.sqrt(3 / 4e4), rel=0.03)
    noisy = starved_dp(photons, np.random.default_rng(11), 100.0, 0.25).numpy()
    assert float(noisy.std()) == pytest.approx(np.sqrt(3 / 4e4 + 15 * (100 / 4e4) ** 2), rel=0.03)


def test_band_levels_are_those_of_the_estimate():
    """Theory of the leaks against measured spectra of white and of ramp-like noise."""
    f = np.linspace(0, 0.72, 73)
    np.testing.assert_allclose(bands_of(np.ones_like(f), f), 1, rtol=1e-6)
    assert len(bands_of(f, f)) == len(band_frequencies())
    rng = np.random.default_rng(12)
    radius = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None])
    density = radius * np.exp(-((radius / 0.2) ** 2))
    noise = (
        np.fft.ifft2(np.sqrt(density) * np.fft.fft2(rng.standard_normal((512, 512)))).real.astype(np.float32)
        * 100
    )
    found = np.array(estimate(noise, np.ones_like(noise, bool), unit="HU", step=0.0).spectrum)
    ratio = found / bands_of(f * np.exp(-((f / 0.2) ** 2)), f)
    assert np.abs(ratio[:5] / ratio[:5].mean() - 1).max() < 0.12


@pytest.mark.parametrize("fc", [0.12, 0.2, 0.35])
def test_the_matched_gain_is_found_again_from_exact_bands(fc):
    f = np.linspace(0, 0.72, 73)
    table = np.array(matched_gain(bands_of(f * np.exp(-((f / fc) ** 2)), f)))
    np.testing.assert_allclose(table[:, 1], np.exp(-0.5 * (table[:, 0] / fc) ** 2), atol=0.05)


@pytest.mark.parametrize("fc", [0.13, 0.22, 0.33])
def test_a_quarter_of_the_dose_has_twice_the_noise_of_the_same_grain(fc):
    truth = stack(body(), 4)
    inside = truth > -500
    rng = np.random.default_rng(13)
    noise = noise_stack(truth, PIXEL, rng, kernel=Kernel(fc=fc), target_sigma_hu=15)
    low = insert(truth + noise, (3.0, PIXEL, PIXEL), 0.25, rng)
    assert robust_sigma(low - truth, inside) == pytest.approx(30, rel=0.06)
    added = low - truth - noise
    assert robust_sigma(added, inside) == pytest.approx(15 * np.sqrt(3), rel=0.08)
    assert abs(np.corrcoef(added[inside], noise[inside])[0, 1]) < 0.03
    f, mine = spectrum(added, 10)
    own = spectrum(noise, 10)[1]
    there = own > 0.1 * own.max()
    ratio = mine[there] / own[there] / 3
    assert np.abs(np.log(ratio)).max() < 0.4
    centre = (f[there] * mine[there]).sum() / mine[there].sum()
    assert centre == pytest.approx((f[there] * own[there]).sum() / own[there].sum(), rel=0.08)


def test_a_lower_dose_leaves_padding_and_the_mean_alone():
    truth = stack(body(), 2)
    truth[:, :20] = -2000
    rng = np.random.default_rng(14)
    full = np.where(
        truth > -1500, truth + noise_stack(truth, PIXEL, rng, kernel=Kernel(), target_sigma_hu=12), truth
    )
    low = insert(full, (3.0, PIXEL, PIXEL), 0.5, rng, kernel=Kernel(), sigma_hu=12.0)
    np.testing.assert_array_equal(low[:, :20], full[:, :20])
    inside = truth > -500
    assert abs(float((low - full)[inside].mean())) < 0.3
    assert robust_sigma(low - full, inside) == pytest.approx(12, rel=0.15)


def test_a_lower_dose_may_be_starved():
    truth = stack(water(140.0), 2)
    rng = np.random.default_rng(15)
    full = truth + noise_stack(truth, PIXEL, rng, kernel=Kernel(), target_sigma_hu=60)
    common = {"kernel": Kernel(), "sigma_hu": 60.0, "tube": Tube(electronic=2.0)}
    low = insert(full, (3.0, PIXEL, PIXEL), 0.05, rng, starved=True, **common)
    plain = insert(full, (3.0, PIXEL, PIXEL), 0.05, rng, **common)
    middle = np.s_[:, 100:156, 100:156]
    assert float((low - full)[middle].mean()) > 5 + abs(float((plain - full)[middle].mean()))


def test_what_cannot_be_is_refused():
    rng, truth = np.random.default_rng(16), stack(water(), 2)
    with pytest.raises(DataError, match="stack"):
        noise_stack(truth[0], PIXEL, rng, kernel=Kernel())
    with pytest.raises(DataError, match="fraction"):
        insert(truth, (1.0, 1.0, 1.0), 1.5, rng)
    with pytest.raises(DataError, match="square"):
        insert(truth, (1.0, 1.0, 2.0), 0.5, rng)
    with pytest.raises(DataError, match="z_correlation"):
        noise_stack(truth, PIXEL, rng, kernel=Kernel(), z_correlation=1.0)
    with pytest.raises(DataError, match="correlate"):
        noise_stack(truth, PIXEL, rng, kernel=Kernel(), z_correlation=0.5, starved=True)
    tiny = np.zeros((2, BLOCK - 1, BLOCK - 1), np.float32)
    with pytest.raises(DataError, match="measured"):
        insert(tiny, (1.0, 1.0, 1.0), 0.5, rng)
    with pytest.raises(DataError, match="measured"):
        measured_kernel(tiny)
    with pytest.raises(DataError, match="spectrum"):
        matched_gain(np.zeros(len(band_frequencies())))
