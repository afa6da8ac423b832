"""The front door: what it refuses, what it leaves alone, what it tells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.base import Engine, Params, Volume
from engines.catalog import Catalog
from engines.errors import VolumeUnsuitable
from tests import laws

FULL = Params(strength=1.0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Catalog.default().load("ct-tv", threads=1)


@pytest.fixture
def volume() -> Volume:
    return laws.stack("CT", (3, 64, 60))


def unfit(volume: Volume) -> dict[str, Volume]:
    broken = volume.values.copy()
    broken[1, 30, 30] = np.nan
    return {
        "numbers": replace(volume, values=broken),
        "float32": replace(volume, values=volume.values.astype(np.float64)),
        "voxel": replace(volume, values=volume.values[:, :0], valid=volume.valid[:, :0]),
        "do not fit": replace(volume, contiguous=volume.contiguous[:2]),
        "works in HU": replace(volume, unit="arbitrary"),
    }


@pytest.mark.parametrize("word", ["numbers", "float32", "voxel", "do not fit", "works in HU"])
def test_unfit_volumes_are_refused(engine: Engine, volume: Volume, word: str) -> None:
    with pytest.raises(VolumeUnsuitable, match=word):
        engine.enhance(unfit(volume)[word], FULL)
    with pytest.raises(VolumeUnsuitable, match=word):
        engine.survey(unfit(volume)[word])


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan")])
def test_strength_lies_between_zero_and_one(engine: Engine, volume: Volume, strength: float) -> None:
    with pytest.raises(VolumeUnsuitable, match="strength"):
        engine.enhance(volume, Params(strength=strength))


@pytest.mark.parametrize("tile", [-1, "64", True, 3.0])
def test_tile_is_a_number_of_pixels(engine: Engine, volume: Volume, tile: object) -> None:
    with pytest.raises(VolumeUnsuitable, match="tile"):
        engine.enhance(volume, Params(strength=1.0, options={"tile": tile}))


def test_a_survey_too_short_is_refused(engine: Engine, volume: Volume) -> None:
    survey = engine.survey(laws.cut(volume, 0, 2))
    with pytest.raises(VolumeUnsuitable, match="survey"):
        engine.enhance(volume, FULL, survey)
    with pytest.raises(VolumeUnsuitable, match="survey"):
        engine.enhance(volume, FULL, engine.survey(volume), first=1)


@pytest.mark.parametrize("keep", [slice(3, 3), slice(0, 3, 2)])
def test_keep_names_consecutive_slices(engine: Engine, volume: Volume, keep: slice) -> None:
    with pytest.raises(VolumeUnsuitable, match="keep"):
        engine.enhance(volume, FULL, keep=keep)


def test_what_holds_nothing_comes_back_as_it_was(engine: Engine, volume: Volume) -> None:
    empty = replace(volume, valid=np.zeros_like(volume.valid))
    zero = replace(volume, values=np.zeros_like(volume.values))
    for given in (empty, zero):
        out = engine.enhance(given, FULL)
        assert laws.same(out.volume.values, given.values)
        assert out.figures["skipped"] == 3
        assert out.notes


def test_an_empty_slice_among_others_is_left_alone(engine: Engine, volume: Volume) -> None:
    valid = volume.valid.copy()
    valid[1] = False
    out = engine.enhance(replace(volume, valid=valid), FULL)
    assert out.figures["skipped"] == 1
    assert laws.same(out.volume.values[1], volume.values[1])
    assert not laws.same(out.volume.values[0], volume.values[0])
    assert out.notes == ("slices left as they were: nothing was reconstructed in them",)


def test_figures_are_numbers_with_signs_that_make_sense(engine: Engine) -> None:
    figures = engine.enhance(laws.stack("CT", (1, 113, 97)), Params(strength=0.5)).figures
    assert figures["noise_after"] < figures["noise_before"]
    assert figures["largest_change"] > 0
    assert abs(figures["mean_change"]) < 0.5
    assert 0.5 < figures["cfr"] < 1.3


def test_smooth_input_is_told(engine: Engine) -> None:
    volume = laws.stack("CT", (2, 160, 160), padded=False, kind="water", sigma=40.0)
    y, x = np.fft.fftfreq(160)[:, None], np.fft.rfftfreq(160)[None, :]
    low = np.exp(-((np.hypot(y, x) / 0.05) ** 2))
    smooth = np.fft.irfft2(np.fft.rfft2(volume.values - 40) * low, s=(160, 160)) * 3 + 40
    out = engine.enhance(replace(volume, values=smooth.astype(np.float32)), FULL)
    assert any("coarser" in note for note in out.notes)


def test_seconds_runtime_and_device_are_told(engine: Engine, volume: Volume) -> None:
    out = engine.enhance(volume, FULL)
    assert out.seconds > 0
    assert (out.runtime, out.device) == ("scikit-image", "cpu")
    assert out.params is FULL
