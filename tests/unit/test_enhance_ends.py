"""Slices that show next to nothing, as at the ends of a scan: they spoil no series, and nothing is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset

from engines import noise
from engines.base import Engine, Params, Survey
from engines.catalog import Catalog
from node.enhance.chain import CLIPPED
from tests import laws
from tests.enhancing import chained, files, series

SIZE = 128
Pixels = npt.NDArray[np.uint16]


def engine(name: str) -> Engine:
    return Catalog.default().load(name, threads=1)


def pixels(ds: Dataset) -> Pixels:
    return np.frombuffer(ds.PixelData, np.uint16).reshape(ds.Rows, ds.Columns).copy()


def quiet(seed: int, sigma: float) -> Pixels:
    """Air that a scanner cut off at its lowest value: noise of which half is seen."""
    noisy = np.random.default_rng(seed).normal(0, sigma, (SIZE, SIZE))
    return np.clip(np.rint(noisy), 0, None).astype(np.uint16)


def disc(radius: int) -> npt.NDArray[np.bool_]:
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    return np.asarray(np.hypot(y, x) < radius)


@pytest.mark.parametrize(("name", "modality"), [("ct-cnn", "CT"), ("ct-tv", "CT"), ("mr-cnn", "MR")])
@pytest.mark.parametrize("sigma", [1.5, 4.0])
def test_slices_of_nothing_but_background_stay_and_the_series_is_enhanced(
    name: str, modality: str, sigma: float, tmp_path: Path
) -> None:
    slices = series(modality, 7, size=SIZE)
    for i in (0, 5, 6):
        slices[i].PixelData = quiet(i, sigma).tobytes()
    (tmp_path / "scratch").mkdir()
    made = chained(files(tmp_path / "in", slices), engine(name), tmp_path / "scratch")
    assert made.report.n_skipped == 3
    assert any("nothing but background" in note for note in made.report.notes)
    for i, ds in enumerate(slices):
        same = np.array_equal(made.stored[ds.SOPInstanceUID][0], pixels(ds))
        assert same == (i in (0, 5, 6))


def test_a_slice_of_which_little_can_be_stored_is_left_as_it_was(tmp_path: Path) -> None:
    """Air without noise around what little there is, between slices as usual: the network sees these through it."""
    slices = series("CT", 5, size=SIZE)
    odd = np.where(disc(24), pixels(slices[2]), quiet(1, 3.0))
    slices[2].PixelData = odd.tobytes()
    (tmp_path / "scratch").mkdir()
    made = chained(files(tmp_path / "in", slices), engine("ct-cnn"), tmp_path / "scratch", strength=1.0)
    assert (made.report.n_skipped, made.report.n_slices) == (1, 5)
    assert any(CLIPPED in note for note in made.report.notes)
    assert np.array_equal(made.stored[slices[2].SOPInstanceUID][0], odd)


@pytest.mark.parametrize("name", ["ct-cnn", "mr-nlm", "mr-sr2"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_few_voxels_in_an_empty_slice_refuse_no_series(name: str, size: int, tmp_path: Path) -> None:
    """The outermost slices of a head without its skull, and an empty slice with a spike."""
    slices = series("CT" if name == "ct-cnn" else "MR", 6, size=SIZE)
    for i in (0, 1, 4):
        few = np.zeros((SIZE, SIZE), np.uint16)
        few[60 : 60 + size, 70 : 70 + size] = pixels(slices[i])[60 : 60 + size, 70 : 70 + size] + 50
        slices[i].PixelData = few.tobytes()
    (tmp_path / "scratch").mkdir()
    made = chained(files(tmp_path / "in", slices), engine(name), tmp_path / "scratch")
    assert made.report.n_skipped == 3
    assert any("hardly anything" in note for note in made.report.notes)
    for i in (0, 1, 4):
        if name != "mr-sr2":
            assert np.array_equal(made.stored[slices[i].SOPInstanceUID][0], pixels(slices[i]))


@pytest.mark.parametrize("name", ["ct-tv", "mr-nlm"])
def test_the_little_that_there_is_of_a_slice_is_not_taken_for_that_of_another(
    name: str, tmp_path: Path
) -> None:
    """The tip of a head in three slices, alike and small, with nothing around it."""
    slices = series("CT" if name == "ct-tv" else "MR", 6, size=SIZE)
    for ds in slices[:3]:
        ds.PixelData = np.where(disc(7), pixels(ds), 0).astype(np.uint16).tobytes()
    (tmp_path / "scratch").mkdir()
    made = chained(files(tmp_path / "in", slices), engine(name), tmp_path / "scratch")
    assert len(made.stored) == 6


@pytest.mark.parametrize("how", ["void", "background"])
def test_a_slice_that_shows_nothing_is_nobodys_neighbour(how: str) -> None:
    volume, one = laws.stack("CT", (4, 96, 96)), engine("ct-cnn")
    values, valid = volume.values.copy(), volume.valid.copy()
    values[2] = -1000 + np.random.default_rng(4).normal(0, 3, values[2].shape)
    valid[2] = how == "background"
    blank = replace(volume, values=values, valid=valid)
    gap = replace(blank, contiguous=np.array([True, False, False, False]))
    found = one.survey(blank)
    assert noise.bare(found, "HU", 2) == (how == "background")
    a, b = (one.enhance(v, Params(strength=1.0), found) for v in (blank, gap))
    assert laws.same(a.volume.values, b.volume.values)
    assert laws.same(a.volume.values[2], values[2])
    assert not laws.same(a.volume.values[1], values[1])


@pytest.mark.parametrize(("unit", "high", "wanted"), [("HU", -301, True), ("HU", -299, False),
                                                      ("arbitrary", 99, True), ("arbitrary", 101, False)])  # fmt: skip
def test_what_background_is(unit: str, high: float, wanted: bool) -> None:
    numbers = np.array([1000, high, 1000], np.float32)
    found = Survey(sigma=numbers, high=numbers, share=numbers, frequency=numbers)
    assert noise.bare(found, unit, 1) is wanted  # type: ignore[arg-type]
    assert not noise.bare(found, unit, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "modality"), [("ct-cnn", "CT"), ("mr-cnn", "MR")])
def test_slabs_of_any_size_agree_on_what_shows_nothing(name: str, modality: str, tmp_path: Path) -> None:
    slices = series(modality, 7, size=SIZE)
    slices[0].PixelData = quiet(0, 3.0).tobytes()
    slices[3].PixelData = bytes(len(slices[3].PixelData))
    slices[5].PixelData = np.where(disc(20), pixels(slices[5]), 0).astype(np.uint16).tobytes()
    items, one = files(tmp_path / "in", slices), engine(name)
    (tmp_path / "scratch").mkdir()
    whole, *others = (chained(items, one, tmp_path / "scratch", slab=n) for n in (16, 1, 2, 3))
    assert whole.report.n_skipped == 2
    for other in others:
        assert other.report.notes == whole.report.notes
        assert all(np.array_equal(other.stored[uid], whole.stored[uid]) for uid in whole.stored)
