"""The observer against closed forms: a known signal in noise of known covariance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from training.errors import DataError
from training.evaluate import observer

SIZE = 48


def realisations(seed: int, n: int, sigma: float, signal: np.ndarray | float = 0.0) -> np.ndarray:
    return sigma * np.random.default_rng(seed).standard_normal((n, SIZE, SIZE)) + signal


@pytest.mark.parametrize(("contrast", "diameter"), observer.DISKS)
def test_d_prime_of_a_known_signal_in_white_noise(contrast, diameter):
    signal = observer.disk(SIZE, contrast, diameter, 0.7)
    channels = observer.laguerre_gauss(SIZE, diameter / 0.7, 6)
    # d'^2 = s' U (U'U)^-1 U' s / sigma^2: the part of the signal that the channels see.
    seen = channels @ np.linalg.lstsq(channels, signal.ravel(), rcond=None)[0]
    sigma = float(np.linalg.norm(seen)) / 1.8
    found = observer.detect(
        realisations(1, 1000, sigma, signal), realisations(2, 1000, sigma), channels, n_bootstrap=50
    )
    assert found.d_prime.mean == pytest.approx(1.8, rel=0.06)
    assert found.auc.mean == pytest.approx(norm.cdf(1.8 / np.sqrt(2)), abs=0.012)
    assert found.auc.low < found.auc.mean < found.auc.high
    # Six channels see nearly the whole disc.
    assert np.linalg.norm(seen) > 0.96 * np.linalg.norm(signal)


def test_dog_channels_agree_with_their_closed_form():
    signal = observer.disk(SIZE, 7, 5, 0.7)
    channels = observer.difference_of_gaussians(SIZE)
    seen = channels @ np.linalg.lstsq(channels, signal.ravel(), rcond=None)[0]
    sigma = float(np.linalg.norm(seen)) / 1.5
    found = observer.detect(
        realisations(3, 1500, sigma, signal), realisations(4, 1500, sigma), channels, n_bootstrap=20
    )
    assert found.d_prime.mean == pytest.approx(1.5, rel=0.08)
    middle = channels.reshape(SIZE, SIZE, -1)
    np.testing.assert_allclose(middle, middle[::-1, ::-1], atol=1e-9)


def test_laguerre_gauss_channels_are_orthonormal():
    channels = observer.laguerre_gauss(96, 20, 6)
    np.testing.assert_allclose(channels.T @ channels, np.eye(6), atol=2e-3)


def test_no_signal_is_guessing_and_the_observer_does_not_flatter_itself():
    channels = observer.laguerre_gauss(SIZE, 10, 6)
    found = observer.detect(realisations(5, 100, 10), realisations(6, 200, 10), channels, n_bootstrap=200)
    assert found.auc.low < 0.5 < found.auc.high
    assert found == observer.detect(
        realisations(5, 100, 10), realisations(6, 200, 10), channels, n_bootstrap=200
    )


def test_hotelling_uses_the_covariance_of_coloured_noise():
    rng = np.random.default_rng(7)
    mixing = rng.standard_normal((4, 4)) + 2 * np.eye(4)
    signal = np.array([0.5, -0.3, 0.8, 0.1])
    absent = rng.standard_normal((40000, 4)) @ mixing.T
    present = rng.standard_normal((40000, 4)) @ mixing.T + signal
    w = observer.template(present, absent)
    expected = np.sqrt(signal @ np.linalg.solve(mixing @ mixing.T, signal))
    assert observer.separation(present @ w, absent @ w) == pytest.approx(expected, rel=0.02)


def test_an_invertible_filter_changes_nothing_and_a_lossy_one_loses():
    signal = observer.disk(SIZE, 14, 3, 0.7)
    channels = observer.laguerre_gauss(SIZE, 7, 6)
    before = (realisations(8, 150, 25, signal), realisations(9, 150, 25))
    halved = (0.5 * before[0] + 3, 0.5 * before[1] + 3)
    same = observer.auc_change(before, halved, channels, n_bootstrap=50)
    assert same.mean == pytest.approx(0, abs=1e-12)
    # A filter that takes the middle away (and leaves the noise around) takes the signal away.
    blind = tuple(v - np.exp(-0.5 * (np.hypot(*np.mgrid[-23.5:24, -23.5:24]) / 4) ** 2) * v for v in before)
    blind = tuple(b + realisations(10 + i, 150, 25) for i, b in enumerate(blind))
    lost = observer.auc_change(before, blind, channels, n_bootstrap=100)
    assert lost.high < -observer.LARGEST_AUC_LOSS


def test_auc_is_mann_whitney():
    assert observer.auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert observer.auc(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.5
    assert observer.auc(np.array([1.0, 4.0]), np.array([2.0, 3.0])) == 0.5


def test_a_disk_has_the_area_and_contrast_that_it_says():
    found = observer.disk(64, 5, 7, 0.5)
    assert found.sum() * 0.25 == pytest.approx(5 * np.pi * 3.5**2, rel=0.01)
    assert found.max() == pytest.approx(5)
    assert gaussian_filter(found, 2).max() < 5


def test_too_few_or_unlike_realisations_are_refused():
    channels = observer.laguerre_gauss(SIZE, 10, 4)
    with pytest.raises(DataError, match="too few"):
        observer.detect(realisations(1, 10, 1), realisations(2, 100, 1), channels)
    with pytest.raises(DataError, match="one size"):
        observer.through(np.zeros((20, 32, 32)), channels)
    with pytest.raises(DataError, match="not the same"):
        observer.auc_change(
            (realisations(1, 30, 1), realisations(2, 30, 1)),
            (realisations(1, 40, 1), realisations(2, 30, 1)),
            channels,
        )


def test_regions_are_pasted_and_cut_at_the_same_places():
    places = observer.corners((2, 100, 70), 30, gap=5)
    assert places[:3] == ((0, 0, 0), (0, 0, 35), (0, 35, 0))
    assert len(places) == 2 * 3 * 2
    signal = observer.disk(30, 5, 7, 0.7)
    volume = observer.paste(np.full((2, 100, 70), 40.0), places, signal)
    found = observer.cut(volume, places, 30)
    np.testing.assert_allclose(found, np.broadcast_to(40 + signal, found.shape), rtol=1e-6)
    assert volume.sum() == pytest.approx(40 * volume.size + len(places) * signal.sum(), rel=1e-5)
