"""The conventions against scikit-image, closed forms and statistics that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import signal
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from training.errors import DataError
from training.evaluate import averaging, cards, conventions, metrics


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:128, :144]
    reference = 0.5 + 0.3 * np.sin(x / 9) * np.cos(y / 7)
    return reference, reference + 0.05 * rng.standard_normal(reference.shape)


def test_psnr_is_that_of_scikit_image(pair):
    a, b = pair
    assert metrics.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-9)
    assert metrics.psnr(a, b, data_range=400) == pytest.approx(
        peak_signal_noise_ratio(a, b, data_range=400), abs=1e-9
    )


def test_ssim_is_that_of_scikit_image(pair):
    a, b = pair
    mean, whole = structural_similarity(
        a,
        b,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert metrics.ssim(a, b) == pytest.approx(mean, abs=1e-6)
    np.testing.assert_allclose(metrics.ssim_map(a, b), whole, atol=1e-6)


def test_ssim_in_a_mask_is_the_mean_of_the_map_there(pair):
    a, b = pair
    mask = np.zeros(a.shape, bool)
    mask[40:60, 30:90] = True
    assert metrics.ssim(a, b, mask=mask) == pytest.approx(metrics.ssim_map(a, b)[mask].mean(), abs=1e-12)
    rim = np.zeros(a.shape, bool)
    rim[:3] = True
    with pytest.raises(DataError):
        metrics.ssim(a, b, mask=rim)


def test_psnr_minus_snr_depends_on_the_reference_alone(pair):
    a, b = pair
    mask = a > 0.4
    constant = metrics.psnr_minus_snr(a, mask=mask)
    for out in (b, a + 0.1, 0.9 * a):
        assert metrics.psnr(a, out, mask=mask) - metrics.snr(a, out, mask) == pytest.approx(
            constant, abs=1e-9
        )


def test_same_images_have_no_finite_psnr_and_cannot_be_averaged(pair):
    a, _ = pair
    assert metrics.psnr(a, a) == float("inf")
    assert metrics.ssim(a, a) == pytest.approx(1.0)
    with pytest.raises(DataError, match="not finite"):
        averaging.per_patient([30.0, float("inf")], ["a", "a"])


def test_the_noise_of_a_reference_is_taken_out_of_the_error():
    rng = np.random.default_rng(3)
    truth = np.zeros((300, 300))
    noisy_reference = truth + 12 * rng.standard_normal(truth.shape)
    output = truth + 5 * rng.standard_normal(truth.shape)
    measured = metrics.rmse(noisy_reference, output)
    assert metrics.corrected_rmse(measured, 12.0) == pytest.approx(5.0, rel=0.03)
    assert np.isnan(metrics.corrected_rmse(10.0, 12.0))


def _vif_by_convolution(a: np.ndarray, b: np.ndarray) -> float:
    """The published algorithm, written with plain 2-D convolutions."""
    top = bottom = 0.0
    a, b = 255 * a, 255 * b
    for scale in range(1, 5):
        n = 2 ** (4 - scale + 1) + 1
        u = np.arange(n) - n // 2
        window = np.exp(-(u[:, None] ** 2 + u[None, :] ** 2) / (2 * (n / 5) ** 2))
        window /= window.sum()

        def mean(v: np.ndarray, w: np.ndarray = window) -> np.ndarray:
            return signal.convolve2d(v, w, mode="valid")

        if scale > 1:
            a, b = mean(a)[::2, ::2], mean(b)[::2, ::2]
        ma, mb = mean(a), mean(b)
        va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
        g = vab / (va + 1e-10)
        rest = vb - g * vab
        rest[g < 0] = vb[g < 0]
        g[g < 0] = 0
        top += np.log10(1 + g**2 * va / (rest + 2)).sum()
        bottom += np.log10(1 + va / 2).sum()
    return top / bottom


def test_vif_is_the_published_algorithm(pair):
    a, b = pair
    assert metrics.vif(a, b) == pytest.approx(_vif_by_convolution(a, b), abs=1e-6)
    assert metrics.vif(a, a) == pytest.approx(1.0, abs=1e-9)
    assert metrics.vif(a, 1.3 * a) > 1.0 > metrics.vif(a, 0.7 * a)
    with pytest.raises(DataError, match="flat"):
        metrics.vif(np.zeros((128, 128)), b[:, :128])


def test_gmsd_tells_blur_and_is_zero_for_the_same(pair):
    a, b = pair
    assert metrics.gmsd(a, a) == 0
    assert metrics.gmsd(a, a + 0.2) == pytest.approx(0, abs=1e-12)
    assert metrics.gmsd(a, b) > metrics.gmsd(a, a + 0.3 * (b - a)) > 0
    # One straight step: its gradient is known in closed form, 3 Prewitt rows / 3 = the step, on two columns.
    step = np.where(np.arange(64) < 32, 0.2, 0.6)[None, :].repeat(64, 0)
    m, n = 0.4 * 255, 0.2 * 255
    low = (2 * m * n + 170) / (m * m + n * n + 170)
    similarity = np.ones((32, 32))
    similarity[:, 15:17] = low
    assert metrics.gmsd(step, 0.3 + (step - 0.2) / 2) == pytest.approx(similarity.std(), rel=1e-6)


def test_windows_say_what_is_black_and_white():
    assert (conventions.SOFT.low, conventions.SOFT.high) == (-150, 250)
    assert conventions.FULL.width == 4095
    np.testing.assert_allclose(conventions.SOFT.apply(np.array([-1000.0, 50.0, 900.0])), [0, 0.5, 1])
    window = conventions.volume_window(np.array([[[0.0, 200.0]]]))
    np.testing.assert_allclose(window.apply(np.array([-20.0, 300.0])), [-0.1, 1.5])
    with pytest.raises(DataError):
        conventions.volume_window(np.zeros((1, 4, 4)))


def test_the_body_holds_lungs_and_no_table():
    y, x = np.mgrid[:160, :160]
    one = np.where(np.hypot((y - 70) / 50, (x - 80) / 65) < 1, 40.0, -1000.0)
    one[np.hypot(y - 70, x - 60) < 18] = -850
    one[140:146, 20:140] = 100
    one[10, 10] = 500
    mask = conventions.body_mask(np.stack([one, one]))
    assert mask[0, 70, 60]
    assert not mask[:, 135:].any()
    assert not mask[0, 10, 10]
    assert mask[0].sum() == pytest.approx(np.pi * 50 * 65, rel=0.02)
    assert not conventions.body_mask(np.full((2, 32, 32), -1000.0)).any()


def test_the_head_of_mr_is_told_from_rayleigh_noise():
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:128, :128]
    head = np.hypot(y - 64, x - 64) < 40
    noisy = np.hypot(
        600 * head + 20 * rng.standard_normal((3, 128, 128)), 20 * rng.standard_normal((3, 128, 128))
    )
    mask = conventions.foreground_mask(noisy)
    assert (mask != head).mean() < 0.005
    assert not conventions.foreground_mask(np.ones((2, 32, 32))).any()


def test_a_holder_that_touches_the_head_elsewhere_is_left_out():
    y, x = np.mgrid[:128, :128]
    head = np.where(np.hypot(y - 60, x - 64) < 40, 40.0, -1000.0)
    held = head.copy()
    held[108:114, 50:80] = 0
    touching = held.copy()
    touching[95:110, 60:70] = 0
    mask = conventions.body_mask(np.stack([held, touching]))
    assert not mask[0, 106:].any()
    assert mask[0, 60, 64]


def test_a_head_of_mr_holds_brain_skull_and_bright_scalp():
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:160, :160]
    r = np.hypot(y - 80, x - 80)
    signal = 300.0 * (r < 48) + 30 * ((r >= 48) & (r < 56)) + 1000 * ((r >= 56) & (r < 64))
    noisy = np.hypot(
        signal + 15 * rng.standard_normal((2, 160, 160)), 15 * rng.standard_normal((2, 160, 160))
    )
    assert (conventions.foreground_mask(noisy) != (r < 64)).mean() < 0.01


def test_what_is_written_is_rounded_half_to_even_and_clipped():
    written = conventions.as_written(np.array([0.5, 1.5, -2.4, 5000.0]), limits=(-1024, 3071))
    np.testing.assert_array_equal(written, [0, 2, -2, 3071])
    np.testing.assert_allclose(conventions.as_written(np.array([10.3]), slope=2.0, intercept=-1.0), [11.0])


def test_measure_gives_each_slice_its_own_figures_and_leaves_rims_out():
    rng = np.random.default_rng(6)
    truth = np.full((3, 64, 64), 50.0)
    output = truth + np.array([0, 10, 20])[:, None, None] * rng.standard_normal(truth.shape)
    mask = np.ones(truth.shape, bool)
    mask[0] = False
    found = metrics.measure(truth, output, window=conventions.SOFT, mask=mask, texture=False)
    assert [f.index for f in found] == [1, 2]
    assert found[0].rmse == pytest.approx(10, rel=0.05)
    assert found[0].psnr_db == pytest.approx(20 * np.log10(400 / found[0].rmse_window), abs=1e-9)
    assert found[0].psnr_db - found[0].snr_db == pytest.approx(found[0].psnr_minus_snr_db)
    assert found[0].psnr_minus_snr_db == pytest.approx(20 * np.log10(2))
    assert np.isnan(found[0].vif)


def test_a_patient_counts_once_however_many_slices():
    means = averaging.per_patient([1.0, 2.0, 3.0, 10.0], ["a", "a", "a", "b"])
    assert means == {"a": 2.0, "b": 10.0}
    assert averaging.estimate(means).mean == 6.0
    with pytest.raises(DataError):
        averaging.per_patient([1.0], ["a", "b"])
    with pytest.raises(DataError):
        averaging.estimate([])


def test_the_interval_is_seeded_and_as_wide_as_theory_says():
    values = np.random.default_rng(8).normal(5, 2, 100)
    found = averaging.estimate(values)
    assert found == averaging.estimate(values)
    half = 1.96 * values.std() / 10
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert found.low < values.mean() < found.high
    lone = averaging.estimate([3.0])
    assert (lone.low, lone.mean, lone.high, lone.n) == (3.0, 3.0, 3.0, 1)


def test_the_paired_test_is_wilcoxons():
    names = [f"p{i}" for i in range(8)]
    first = dict.fromkeys(names, 30.0)
    second = {n: 30.0 + 0.1 * (i + 1) for i, n in enumerate(names)}
    found = averaging.paired(first, second)
    # All eight ranks positive: the two-sided exact p value is 2 / 2^8.
    assert found.p_value == pytest.approx(2 / 256)
    assert found.difference.mean == pytest.approx(0.45)
    assert averaging.paired(first, first).p_value == 1.0
    tied = averaging.paired(first, dict.fromkeys(names, 31.0))
    assert 0 < tied.p_value < 0.05
    with pytest.raises(DataError):
        averaging.paired(first, {"other": 1.0})


def test_harm_is_the_share_of_cases_that_got_worse():
    assert averaging.harm_rate([10, 10, 10, 10], [9, 10, 11, 5]) == 0.25
    assert averaging.harm_rate([10, 10], [10.05, 10.2], tolerance=0.01) == 0.5


def test_a_card_says_everything_on_one_line():
    card = conventions.MetricCard(
        figure="PSNR dB",
        domain="CT chest",
        window=conventions.SOFT.name,
        data_range=400,
        mask="body",
        reference="truth",
        n_patients=5,
        n_slices=50,
        estimate=averaging.Estimate(mean=38.123, low=37.5, high=38.9, n=5),
    )
    line = card.line()
    assert "\n" not in line
    for part in (
        "PSNR dB 38.12 [37.5, 38.9]",
        "W400",
        "body",
        "5 patients, 50 slices",
        "2-D",
        "stored integers",
    ):
        assert part in line
    one = replace(card, n_patients=1, estimate=averaging.estimate([38.1])).line()
    assert "no interval" in one
    assert "[" not in one, "an interval of no width would look as if all were known"


def measured(seed: int, sigma: float) -> dict[str, tuple[metrics.SliceFigures, ...]]:
    found = {}
    for patient in range(6):
        rng = np.random.default_rng([seed, patient])
        truth = np.full((2 + patient % 2, 64, 64), 50.0 + 10 * patient)
        output = truth + sigma * rng.standard_normal(truth.shape)
        found[f"p{patient}"] = metrics.measure(
            truth, output, window=conventions.SOFT, mask=np.ones(truth.shape, bool)
        )
    return found


def test_cards_gains_and_harm_from_slices():
    before, after = measured(1, 20.0), measured(2, 10.0)
    made = cards.card(after, "psnr_db", domain="flat", window=conventions.SOFT, mask="all", reference="truth")
    assert (made.n_patients, made.n_slices) == (6, 15)
    assert made.estimate.mean == pytest.approx(20 * np.log10(400 / 10), abs=0.1)
    better = cards.gain(before, after, "psnr_db")
    assert better.difference.mean == pytest.approx(20 * np.log10(2), abs=0.15)
    assert better.p_value == pytest.approx(2 / 64)
    assert cards.harmed(before, after) == 0
    assert cards.harmed(after, before) == 1
    # Another method on the same references: the same constant, whatever it does.
    assert cards.constant(before) == cards.constant(after)
    with pytest.raises(DataError, match="no slice"):
        cards.card({"p0": ()}, "ssim", domain="d", window=conventions.SOFT, mask="all", reference="truth")
