"""Robustness helpers on functions whose answer is known; generalisation on gains that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from engines.base import Params, Volume
from engines.catalog import Catalog
from training.errors import DataError
from training.evaluate import generalisation, robustness, stress

SPACING = (1.0, 1.0, 1.0)


@pytest.fixture
def image() -> np.ndarray:
    return (40 + 20 * np.random.default_rng(1).standard_normal((2, 64, 64))).astype(np.float32)


def test_region_means_are_found_wherever_they_moved(image):
    after = image.copy()
    after[1, 10:42, 20:52] += 0.8
    found = robustness.region_changes(image, after, SPACING)
    assert np.abs(found).max() == pytest.approx(0.8, abs=1e-4)
    assert np.unravel_index(np.abs(found).argmax(), found.shape) == (1, 10, 20)
    mask = np.zeros(image.shape, bool)
    assert np.abs(robustness.region_changes(image, after, SPACING, mask)).max() == 0


def test_the_gain_of_linear_functions_is_their_largest_eigenvalue(image):
    weights = np.linspace(0.2, 1.7, 64)[None, None, :]
    found = robustness.local_gain(lambda v: v * weights, image, size=1.0, steps=60)
    assert found.last == pytest.approx(1.7, rel=0.02)
    smooth = robustness.local_gain(
        lambda v: ndimage.gaussian_filter(v, (0, 2, 2), mode="wrap"), image, size=1.0
    )
    assert smooth.largest <= 1.001
    nothing = robustness.local_gain(np.zeros_like, image, size=1.0)
    assert (nothing.largest, nothing.last) == (0, 0)


def test_gain_within_a_mask_sees_the_mask_alone(image):
    weights = np.ones(image.shape)
    weights[:, :, 32:] = 3.0
    mask = np.zeros(image.shape, bool)
    mask[:, :, :32] = True
    assert robustness.local_gain(lambda v: v * weights, image, size=1.0, mask=mask).largest == pytest.approx(
        1.0, abs=1e-4
    )


def test_idempotence_of_a_projection_and_of_a_filter(image):
    clip = robustness.idempotence(lambda v: np.clip(v, 30, 50), image)
    assert clip.ratio == 0
    assert clip.first.largest == pytest.approx(max(30 - image.min(), image.max() - 50), rel=1e-5)
    halving = robustness.idempotence(lambda v: 0.5 * v, image)
    assert halving.ratio == pytest.approx(0.5, rel=1e-5)
    assert np.isnan(robustness.idempotence(lambda v: v, image).ratio)


def test_symmetric_filters_commute_with_all_turns_and_lopsided_ones_do_not(image):
    fair = robustness.metamorphic(lambda v: ndimage.gaussian_filter(v, (0, 1, 1)), image, margin=5)
    assert set(fair) == {"flip y", "flip x", "rotate 90", "shift y", "shift x"}
    assert max(c.largest for c in fair.values()) < 1e-4
    lopsided = robustness.metamorphic(lambda v: 0.5 * (v + np.roll(v, 1, -1)), image)
    assert lopsided["flip x"].rms > 5
    assert lopsided["flip y"].largest == 0
    assert lopsided["shift x"].largest < 1e-4
    ramp = np.linspace(0, 2, 64)
    assert robustness.metamorphic(lambda v: v * ramp, image)["shift x"].rms > 1
    wide = image[:, :, :48]
    assert robustness.metamorphic(lambda v: v * 2, wide)["rotate 90"].largest == 0
    with pytest.raises(DataError, match="too small"):
        robustness.metamorphic(lambda v: v, image, margin=30)


def test_an_engine_that_changes_the_shape_is_refused(image):
    with pytest.raises(DataError, match="made"):
        robustness.idempotence(lambda v: v[:, 1:], image)


def test_gain_maps_are_in_db():
    cells = {("25 %", "sharp"): 20.0, ("10 %", "soft"): 10.0}
    found = robustness.gain_map(cells, {("25 %", "sharp"): 10.0, ("10 %", "soft"): 10.0})
    assert found[("25 %", "sharp")] == pytest.approx(6.0206, abs=1e-3)
    assert found[("10 %", "soft")] == 0
    with pytest.raises(DataError):
        robustness.gain_map(cells, {})


def patients(values: list[float]) -> dict[str, float]:
    return {f"p{i}": v for i, v in enumerate(values)}


def test_generalisation_is_the_ratio_of_mean_gains():
    with_ = patients([4.0, 5.0, 6.0, 5.0])
    without = patients([2.0, 2.5, 3.0, 2.5])
    found = generalisation.generalisation("cnn", "sharp kernel", without, with_)
    assert found.score is not None
    assert found.score.mean == pytest.approx(0.5)
    # The same patients stand above and below, so a constant ratio has no spread.
    assert (found.score.low, found.score.high) == pytest.approx((0.5, 0.5))
    assert found.name == "G"
    harmful = generalisation.generalisation("gan", "head", patients([-1.0, -2.0, 1.0, -1.0]), with_)
    assert harmful.score is not None
    assert harmful.score.mean < 0
    assert harmful.harm_rate == 0.75
    assert generalisation.worst([found, harmful]) is harmful


def test_a_tiny_or_uncertain_denominator_is_refused():
    tiny = generalisation.generalisation("cnn", "d", patients([0.3, 0.3]), patients([0.2, 0.3]))
    assert tiny.score is None
    assert "0.25 dB" in tiny.refused
    uncertain = generalisation.generalisation(
        "cnn", "d", patients([1.0, 1.0, 1.0]), patients([6.0, -3.0, -0.5])
    )
    assert uncertain.score is None
    assert "told from 0" in uncertain.refused
    with pytest.raises(DataError, match="no domain"):
        generalisation.worst([tiny, uncertain])
    with pytest.raises(DataError, match="same patients"):
        generalisation.generalisation("cnn", "d", patients([1.0]), {"other": 1.0})


def test_the_cheap_variant_is_relative_to_a_classical_filter_and_says_so():
    found = generalisation.relative(
        "cnn", "d", patients([3.0, 3.0, 3.0]), patients([2.0, 2.0, 2.0]), seen_ratio=2.0
    )
    assert found.score is not None
    assert found.score.mean == pytest.approx(0.75)
    assert found.name == "G'"
    refused = generalisation.relative("cnn", "d", patients([3.0]), patients([0.1]), seen_ratio=2.0)
    assert "classical filter" in refused.refused
    assert generalisation.gains({"a": 30.0}, {"a": 33.0}) == {"a": 3.0}


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_engines_are_safe_on_what_they_were_not_made_for(modality):
    made = getattr(stress, modality)(shape=(2, 96, 96))
    again = getattr(stress, modality)(shape=(2, 96, 96))
    engine = Catalog.default().load(f"{modality}-nlm", threads=1)
    for name, values in made.items():
        np.testing.assert_array_equal(values, again[name])
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        found = engine.enhance(
            Volume(
                values=values,
                spacing_mm=(1.0, 0.7, 0.7),
                unit="HU" if modality == "ct" else "arbitrary",
                valid=np.ones(values.shape, bool),
                contiguous=np.ones(2, bool),
                step=np.ones(2, np.float32),
            ),
            Params(strength=0.6),
        )
        after = found.volume.values
        assert np.isfinite(after).all(), name
        assert after.std() <= values.std() * 1.01, name
        if name in ("zero", "constant"):
            np.testing.assert_array_equal(after, values)


def test_stress_inputs_are_what_their_names_say():
    made = stress.ct(shape=(2, 128, 128), sigma=20.0)
    assert made["metal"].max() == 3071
    assert made["loud"][0, 50:78, 50:78].std() > 3 * made["water"][0, 50:78, 50:78].std()
    assert made["smooth"][0, 50:78, 50:78].std() < 0.5 * made["water"][0, 50:78, 50:78].std()
    assert made["bolus"].max() > 380
    background = stress.mr(shape=(2, 128, 128), sigma=0.05, scale=800)["background"]
    # Rayleigh: the mean is sigma sqrt(pi / 2).
    assert background.mean() == pytest.approx(40 * np.sqrt(np.pi / 2), rel=0.02)
