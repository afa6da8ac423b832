"""Shards and what is drawn from them: units, noise levels, neighbours, determinism."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.training_samples import shards as write_shards
from training.data import patches, shards
from training.data.patches import Draw
from training.errors import DataError
from training.simulate import abstract, anatomy, band, blobs, grain
from training.simulate.anatomy import KINDS

DRAW = Draw(size=64, sigma=(20.0, 20.0), told=0.0, alone=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def truth(root: Path) -> tuple[shards.Shard, ...]:
    return shards.read(root / "toy-truth")


@pytest.mark.parametrize("kind", KINDS)
def test_anatomy_is_finite_and_repeatable(kind: str) -> None:
    one, other = (anatomy.draw(np.random.default_rng(5), kind=kind, matrix=96) for _ in range(2))
    assert np.array_equal(one.values, other.values)
    assert one.values.shape == (3, 96, 96)
    assert one.values.min() >= -1024
    assert one.values.max() <= 3071
    assert one.values.std() > 2
    assert not np.array_equal(one.values, anatomy.draw(np.random.default_rng(6), kind=kind, matrix=96).values)


def test_neighbouring_slices_belong_together() -> None:
    made = anatomy.draw(np.random.default_rng(2), kind="abdomen", matrix=128).values
    body = made[1] > -900
    a, b = made[0][body], made[1][body]
    assert np.corrcoef(a, b)[0, 1] > 0.6


@pytest.mark.parametrize("cutoff", [0.12, 0.25, 0.45])
def test_grain_has_its_spectrum(cutoff: float) -> None:
    """Mean frequency of f exp(-(f/fc)^2) over the plane, within 4 %."""
    drawn = grain.Grain(cutoff=cutoff)
    made = grain.noise(drawn, (16, 128, 128), np.random.default_rng(0)).astype(np.float64)
    power = (np.abs(np.fft.fft2(made)) ** 2).mean(axis=0)
    f = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None, :])
    wanted = f * np.exp(-((f / cutoff) ** 2))
    assert (f * power).sum() / power.sum() == pytest.approx((f * wanted).sum() / wanted.sum(), rel=0.04)
    assert made.std() == pytest.approx(1, abs=1e-3)


def test_linked_slices_correlate() -> None:
    made = grain.noise(grain.Grain(cutoff=0.3, linked=0.7), (3, 128, 128), np.random.default_rng(1))
    assert np.corrcoef(made[0].ravel(), made[1].ravel())[0, 1] == pytest.approx(0.7, abs=0.05)


def test_shards_come_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-1000, 2000, (3, 20, 24)).astype(np.float32)
    writer = shards.Writer(tmp_path)
    writer.add("a", values, (2.0, 0.5, 0.5), span=(-1024.0, 3071.0), kind="x")
    (shard,) = shards.read(tmp_path)
    back = shard.crop(slice(None), slice(None), slice(None))
    assert np.abs(back - values).max() <= 4095 / 65535
    assert (shard.spacing_mm, shard.facts["kind"]) == ((2.0, 0.5, 0.5), "x")
    assert shards.Writer(tmp_path).names == {"a"}


@pytest.mark.parametrize("harm", ["no index", "no file", "empty", "float"])
def test_broken_shards_are_told(tmp_path: Path, harm: str) -> None:
    shards.Writer(tmp_path).add("a", np.zeros((3, 8, 8), np.float32), (1, 1, 1), span=(0, 1))
    if harm == "no index":
        (tmp_path / "index.json").unlink()
    elif harm == "no file":
        (tmp_path / "a.npy").unlink()
    elif harm == "empty":
        (tmp_path / "index.json").write_text(json.dumps([]))
    else:
        np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.float32))
    with pytest.raises(DataError):
        shards.read(tmp_path)


def test_ct_units(truth: tuple[shards.Shard, ...]) -> None:
    """x - target is the truth; sigma is told in 100 HU, and the noise has it."""
    rng = np.random.default_rng(3)
    drawn = [patches.ct(truth, DRAW)(rng) for _ in range(40)]
    spread = np.sqrt(np.mean([np.square(e.target).mean() for e in drawn]))
    assert spread == pytest.approx(0.2, rel=0.1)
    assert {round(e.c, 6) for e in drawn} == {0.2}
    assert drawn[0].x.shape == (3, 64, 64)
    assert drawn[0].x.dtype == np.float32
    clean = drawn[0].x[1] * 1000 - drawn[0].target[0] * 100
    assert clean.min() > -1090
    assert clean.max() < 3200


def test_no_neighbour_over_a_gap(truth: tuple[shards.Shard, ...]) -> None:
    rng = np.random.default_rng(4)
    far = [s for s in truth if s.spacing_mm[0] > patches.NEIGHBOUR_MM]
    near = [s for s in truth if s.spacing_mm[0] <= patches.NEIGHBOUR_MM]
    for some, alone in ((far, True), (near, False)):
        assert some
        example = patches.ct(some, DRAW)(rng)
        assert np.array_equal(example.x[0], example.x[1]) is alone
        assert np.array_equal(example.x[2], example.x[1]) is alone


def test_projected_noise_is_scaled(tmp_path: Path, truth: tuple[shards.Shard, ...]) -> None:
    made = 25 * np.random.default_rng(0).standard_normal((3, 128, 128)).astype(np.float32)
    shards.Writer(tmp_path).add("n", made, (1, 1, 1), span=(-200, 200), truth=truth[0].name, sigma=25.0)
    sample = patches.projected(truth, shards.read(tmp_path), DRAW)
    rng = np.random.default_rng(1)
    spread = np.mean([sample(rng).target.std() for _ in range(10)])
    assert spread == pytest.approx(0.2, rel=0.1)


def test_detail_is_what_zero_filling_lacks(truth: tuple[shards.Shard, ...]) -> None:
    draw = Draw(size=32, sigma=(0.01, 0.01), told=0.0, alone=0.0)
    example = patches.detail(truth, draw, unit="HU")(np.random.default_rng(2))
    assert example.x.shape == (3, 32, 32)
    assert example.target.shape == (1, 64, 64)
    spectrum = np.abs(np.fft.fft2(example.target[0] * np.hanning(64)[:, None] * np.hanning(64)[None, :]))
    f = np.abs(np.fft.fftfreq(64))
    low = np.maximum(f[:, None], f[None, :]) < 0.2
    assert spectrum[low].max() < 0.05 * spectrum.max()


def test_batches_depend_on_seed_and_number_alone(truth: tuple[shards.Shard, ...]) -> None:
    sample = patches.ct(truth, DRAW)
    first = patches.batches(sample, 2, seed=9)
    held = [next(first) for _ in range(3)]
    again = next(patches.batches(sample, 2, seed=9, first=2))
    assert np.array_equal(again.x, held[2].x)
    assert not np.array_equal(held[0].x, held[1].x)
    assert not np.array_equal(next(patches.batches(sample, 2, seed=10)).x, held[0].x)


def test_a_patch_larger_than_a_shard_is_told(truth: tuple[shards.Shard, ...]) -> None:
    with pytest.raises(DataError, match="smaller than a patch"):
        patches.ct(truth, Draw(size=256, sigma=(1, 2)))(np.random.default_rng(0))


def test_lesions_are_put_in_and_count_more(truth: tuple[shards.Shard, ...]) -> None:
    """Contrasts around the noise, in the neighbours too, and weights only where they are."""
    made = blobs.draw(np.random.default_rng(0), (3, 64, 64), 20.0, 1.0)
    added, seen = made.added, made.seen
    assert 5 < np.abs(added).max() <= 8 * 6 * 20
    assert np.abs(added[0]).max() > 0
    assert seen.min() >= 0
    assert 0.9 < seen.max() <= 1
    assert (np.abs(added[1]) > 1)[seen < 1e-3].mean() < 0.01
    with_some = Draw(size=64, sigma=(20.0, 20.0), told=0.0, alone=0.0, lesions=1.0)
    example = patches.ct(truth, with_some)(np.random.default_rng(1))
    assert example.weight is not None
    assert example.weight.shape == example.target.shape
    assert example.weight.min() == pytest.approx(1, abs=1e-3)
    assert 2 < example.weight.max() <= with_some.at_lesions
    plain = patches.ct(truth, DRAW)(np.random.default_rng(1))
    assert plain.weight is None
    assert np.array_equal(patches.batch([plain]).weight, np.ones((1, 1, 64, 64)))


def test_the_ruler_tells_what_share_of_the_lesions_goes() -> None:
    """A change of half of every lesion counts as a quarter; one elsewhere, or of what cannot be told, as nothing."""
    n_telling = 0
    for seed in range(12):
        made = blobs.draw(np.random.default_rng(seed), (3, 96, 96), 20.0, 1.0, large=0.5)
        if not made.ruler.any():
            continue
        n_telling += 1
        assert made.ruler.min() >= 0
        half = 0.5 * made.added[1]
        assert (half**2 * made.ruler).sum() == pytest.approx(0.25, rel=0.5), "neighbours overlap a little"
        far = np.abs(made.added[1]) < 1e-3
        assert (made.ruler[far] > 0).mean() < 0.6
    assert n_telling > 8


def test_twins_differ_in_lesions_alone(truth: tuple[shards.Shard, ...]) -> None:
    draw = Draw(size=64, sigma=(20.0, 20.0), told=0.0, alone=0.0, lesions=1.0, twins=1.0)
    example = patches.ct(truth, draw)(np.random.default_rng(3))
    assert example.twin is not None
    assert example.ruler is not None
    change = 1000 * (example.x - example.twin)[1]
    assert np.abs(change).max() > 10
    away = np.asarray(example.weight)[0] < 1.001
    assert np.median(np.abs(change[away])) <= 1, "what is left is rounding"
    both = patches.batch([example, patches.ct(truth, DRAW)(np.random.default_rng(1))])
    assert both.twin.shape == (1, 3, 64, 64)
    assert both.which.tolist() == [0]
    assert patches.batch([patches.ct(truth, DRAW)(np.random.default_rng(1))]).twin.shape == (0, 3, 64, 64)


def _mr_truth(root: Path, matrix: int) -> tuple[shards.Shard, ...]:
    writer = shards.Writer(root)
    for i, kind in enumerate(("leaves", "organs", "fibres")):
        made = abstract.phantom(np.random.default_rng(i), matrix=matrix, kind=kind)
        writer.add(f"mr-{i}", made.values, made.spacing_mm, span=(0.0, 4.0))
    return shards.read(root)


def test_twins_of_mr_have_the_same_noise(tmp_path: Path) -> None:
    truth = _mr_truth(tmp_path, 96)
    draw = Draw(size=32, sigma=(0.05, 0.05), told=0.0, alone=0.0, lesions=1.0, twins=1.0)
    example = patches.mr(truth, draw)(np.random.default_rng(3))
    assert example.twin is not None
    change = (example.x - example.twin)[1]
    assert np.median(np.abs(change)) < 0.3 * float(np.abs(example.target).std())


def test_a_sharp_truth_reaches_further_in_k_space(tmp_path: Path) -> None:
    """Power above two thirds of the Nyquist frequency: real MR holds four times as much of it as soft truths."""
    truth = _mr_truth(tmp_path, 160)
    window = np.outer(np.hanning(48), np.hanning(48))
    f = np.hypot(np.fft.fftfreq(48)[:, None], np.fft.fftfreq(48)[None, :])
    powers = []
    for sharp in (0.0, 1.0):
        draw = Draw(size=48, sigma=(1e-5, 1e-5), told=0.0, alone=1.0, sharp=sharp)
        sample = patches.mr(truth, draw)
        shown = [sample(np.random.default_rng(seed)).x[1] for seed in range(24)]
        powers.append(
            np.mean([(np.abs(np.fft.fft2((x - x.mean()) * window)) ** 2)[f > 1 / 3] for x in shown])
        )
    assert powers[1] > 1.5 * powers[0]


def test_crisp_undoes_a_blur() -> None:
    values = np.random.default_rng(0).standard_normal((2, 64, 48)).astype(np.float32)
    smooth = gaussian_filter(values, (0, 1.5, 1.5), mode="wrap", truncate=8)
    softer = gaussian_filter(smooth, (0, 0.8, 0.8), mode="wrap", truncate=8)
    assert np.abs(band.crisp(softer, 0.8) - smooth).max() < 0.02 * np.abs(smooth).max()
    assert np.abs(band.crisp(values, 0.0) - values).max() < 1e-5


def test_calm_anatomy_is_the_same_with_less_texture() -> None:
    full, none = (
        anatomy.draw(np.random.default_rng(4), kind="abdomen", matrix=128, texture=t).values
        for t in (1.0, 0.0)
    )
    assert np.abs(full - none).max() > 2
    assert np.corrcoef(full.ravel(), none.ravel())[0, 1] > 0.99
