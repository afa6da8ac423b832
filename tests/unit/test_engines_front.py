"""The front door: what it refuses, what it leaves alone, what it tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.base import Engine, Floats, Params, Survey, Volume
from engines.catalog import Catalog
from engines.errors import OutputImplausible, VolumeUnsuitable
from engines.front import looks
from engines.restore import Slice, reconstruction_error, trusted
from engines.sinc import complement
from tests import laws, onnx_samples

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
        "be bool": replace(volume, valid=volume.valid.astype(np.uint8)),
    }


@pytest.mark.parametrize("word", ["numbers", "float32", "voxel", "do not fit", "works in HU", "be bool"])
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


# autoencoders -------------------------------------------------------------------------------------
def coder(zoo: Path, limit: float | None = None) -> Engine:
    """What it draws is the mean of 27 neighbours: structure finer than that is strange to it."""
    parameters = "{lock: 16}" if limit is None else f"{{lock: 16, ood_limit: {limit}}}"
    onnx_samples.folder(zoo, onnx_samples.blur_network(), family="autoencoder", parameters=parameters)
    return Catalog([zoo]).load("ct-sample", threads=2)


def one_of(residual: Floats, sigma: float, level: float = 40.0) -> Slice:
    values = np.full(residual.shape, level, np.float32)
    return Slice(
        values=values, filled=values, valid=np.ones(values.shape, np.bool_), sigma=sigma, scale=1.0,
        unit="HU", step=1.0, spacing_mm=(1.0, 0.8, 0.8),
    )  # fmt: skip


def test_reconstruction_error_is_what_noise_does_not_explain() -> None:
    rng = np.random.default_rng(1)
    grain = (20 * rng.standard_normal((128, 128))).astype(np.float32)
    structure = np.where(np.arange(128) % 8 < 4, 50, -50).astype(np.float32)
    assert reconstruction_error(grain, one_of(grain, 20.0)) == 0.0
    assert reconstruction_error(grain, one_of(grain, 16.5)) < 5
    found = reconstruction_error(grain + structure, one_of(grain, 20.0))
    assert found == pytest.approx(np.sqrt(20**2 + 50**2 - 25**2), rel=0.03)
    assert reconstruction_error(grain + structure, one_of(grain, 20.0, level=-1000.0)) == 0.0


def test_slices_unlike_any_are_left_as_they_were(tmp_path: Path, volume: Volume) -> None:
    """One slice holds a grid that the decoder cannot draw; the others are enhanced as ever."""
    volume = laws.stack("CT", (3, 96, 96), padded=False, kind="abdomen")
    values = volume.values.copy()
    values[1, 20:76, 20:76] += np.where(np.indices((56, 56)).sum(0) % 2, 300, -300).astype(np.float32)
    strange = replace(volume, values=values)
    plain = coder(tmp_path / "a").enhance(volume, FULL)
    usual = plain.figures["reconstruction_error"]
    assert plain.figures["skipped"] == 0
    out = coder(tmp_path / "b", limit=usual + 30).enhance(strange, FULL, plain_survey(volume, tmp_path))
    assert out.figures["reconstruction_error"] > usual + 60
    assert out.figures["skipped"] == 1
    assert out.notes[0] == "slices left as they were: unlike anything this engine has seen"
    assert laws.same(out.volume.values[1], strange.values[1])
    assert not laws.same(out.volume.values[0], strange.values[0])


def plain_survey(volume: Volume, tmp_path: Path) -> Survey:
    return coder(tmp_path / "survey").survey(volume)


def test_only_autoencoders_tell_an_error(engine: Engine, volume: Volume) -> None:
    assert "reconstruction_error" not in engine.enhance(volume, FULL).figures


@pytest.mark.parametrize(
    ("family", "scale", "parameters", "word"),
    [
        ("cnn", 1, "{ood_limit: 3.0}", "ood_limit"),
        ("autoencoder", 1, "{ood_limit: 0}", "ood_limit"),
        ("autoencoder", 1, "{ood_limit: much}", "ood_limit"),
        ("autoencoder", 2, "{lock: 4}", "scale 2"),
        ("cnn", 3, "{lock: 4}", "scale"),
    ],
)
def test_cards_that_promise_what_is_not(
    tmp_path: Path, family: str, scale: int, parameters: str, word: str
) -> None:
    onnx_samples.folder(
        tmp_path, onnx_samples.blur_network(), family=family, scale=scale, parameters=parameters
    )
    assert word in Catalog([tmp_path]).faults()["ct-sample"].message


# twice the matrix ---------------------------------------------------------------------------------
def test_a_network_of_another_scale_than_its_card_is_implausible(tmp_path: Path, volume: Volume) -> None:
    onnx_samples.folder(tmp_path, onnx_samples.detail_network(), name="ct-one", scale=1)
    onnx_samples.folder(tmp_path, onnx_samples.blur_network(), name="ct-two", scale=2)
    for name in ("ct-one", "ct-two"):
        with pytest.raises(OutputImplausible, match="shape"):
            Catalog([tmp_path]).load(name).enhance(volume, FULL)


def test_detail_is_that_of_the_network_in_units_of_x(tmp_path: Path) -> None:
    """The Laplacian of the network, times 1000, less acquired frequencies; what the guards leave alone."""
    onnx_samples.folder(
        tmp_path, onnx_samples.detail_network(gain=0.5, most=50.0), scale=2, receptive_field=8,
        parameters="{lock: 0}",
    )  # fmt: skip
    engine = Catalog([tmp_path]).load("ct-sample")
    volume = laws.uniform("CT", 40.0, 20.0, (1, 96, 96))
    values = volume.values[0].astype(np.float64)
    around = np.pad(values, 1)
    laplacian = values - (around[2:, 1:-1] + around[:-2, 1:-1] + around[1:-1, 2:] + around[1:-1, :-2]) / 4
    wanted = np.zeros((192, 192))
    for phase, weight in enumerate((0.2, -1.0, 0.7, 0.4)):
        wanted[phase // 2 :: 2, phase % 2 :: 2] = 0.5 * weight * 1.2 * laplacian
    change = laws.run(engine, volume) - laws.ground(engine, volume)
    inner = (slice(60, 130), slice(60, 130))
    error = change[0][inner] - complement(wanted.astype(np.float32))[inner]
    assert np.abs(change[0][inner]).max() > 2
    assert np.abs(error).max() < 0.3


def test_slices_without_detail_are_interpolated_and_counted(tmp_path: Path) -> None:
    onnx_samples.folder(tmp_path, onnx_samples.detail_network(), scale=2, receptive_field=8)
    engine = Catalog([tmp_path]).load("ct-sample")
    out = engine.enhance(laws.uniform("CT", 40.0, 400.0), FULL)
    assert out.figures["skipped"] == 2
    assert out.notes[0].startswith("slices interpolated without detail: its noise is higher")
    assert out.volume.spacing_mm == (1.0, 0.4, 0.4)


def test_an_autoencoder_takes_no_structure_for_noise() -> None:
    """As weak as noise: believed to the bit. Stronger: weakened to what noise could be, and only there."""
    rng = np.random.default_rng(0)
    residual = rng.normal(0, 10, (64, 96)).astype(np.float32)
    assert np.array_equal(trusted(residual, 20.0, 1.7), residual)
    residual[:, 60:] += 300
    held = trusted(residual, 10.0, 1.7)
    assert np.abs(held[:, 66:]).max() < 1.0
    assert np.array_equal(held[:, :40], trusted(residual[:, :50].copy(), 10.0, 1.7)[:, :40])
    assert held[:, :50].std() > 9


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 40])
def test_what_is_left_is_measured_in_slices_that_depend_on_nothing_but_the_stack(n: int) -> None:
    looked = [i for i in range(n) if looks(i, n)]
    assert looked
    assert looked[0] == min(8, n) // 2, "an end of a stack is least like the rest"
    assert len(looked) <= n // 8 + 1
