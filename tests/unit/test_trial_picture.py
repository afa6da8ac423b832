"""The picture of before, after and difference."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from scipy import ndimage

from node.trial.picture import picture
from tests.phantoms import small_ct, small_mr, write_series


def smoothed(ds: Dataset) -> Dataset:
    out = copy.deepcopy(ds)
    kind = "<i2" if ds.PixelRepresentation else "<u2"
    a = np.frombuffer(ds.PixelData, kind).reshape(ds.Rows, ds.Columns)
    b = np.rint(ndimage.gaussian_filter(a.astype(np.float32), 0.7))
    out.PixelData = np.where(a == -2000, a, np.maximum(b, 0)).astype(kind).tobytes()
    out.SeriesDescription = ds.SeriesDescription + " [LUM test]"
    return out


def drawn(ds: Dataset, folder: Path, **options: object) -> np.ndarray:
    before, after = write_series([ds, smoothed(ds)], folder)
    path = picture(before, after, folder / "new" / "picture.png", **options)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_chest_has_two_rows_of_three_panels(tmp_path: Path) -> None:
    sheet = drawn(small_ct(1, 2, 128)[1], tmp_path)
    assert sheet.shape[1] > 1500
    assert sheet.shape[0] > 2 * 300
    panels = [sheet[84 : 84 + 300, x : x + 540].astype(int) for x in (30, 584, 1138)]
    assert np.abs(panels[0] - panels[1]).mean() > 1  # after is not before
    chroma = [np.ptp(p, axis=2).mean() for p in panels]
    assert chroma[2] > 4 * max(chroma[0], chroma[1])  # only the difference is in colour


@pytest.mark.parametrize("sequence", ["T1", "T2"])
def test_a_brain_has_one_row(sequence: str, tmp_path: Path) -> None:
    sheet = drawn(small_mr(1, 3, 128, sequence=sequence)[1], tmp_path)
    assert 500 < sheet.shape[0] < 1000


def test_the_patient_leaves_no_trace(tmp_path: Path) -> None:
    one = small_mr(1, 2, 128)[1]
    other = copy.deepcopy(one)
    other.PatientName, other.PatientID, other.AccessionNumber = "Somebody^Else", "42", "A42"
    other.PatientBirthDate, other.InstitutionName, other.StudyDescription = "19500101", "There", "That"
    assert (drawn(one, tmp_path / "a") == drawn(other, tmp_path / "b")).all()


def test_the_same_picture_twice_is_black_in_the_difference(tmp_path: Path) -> None:
    one = small_ct(1, 2, 128)[1]
    before, after = write_series([one, one], tmp_path)
    with Image.open(picture(before, after, tmp_path / "p.png")) as image:
        sheet = np.asarray(image.convert("RGB"))
    assert sheet[88:380, 1138 : 1138 + 540].max(axis=2).mean() < 10  # the frames of the detail alone


def test_different_sizes_are_refused(tmp_path: Path) -> None:
    before, after = write_series([small_mr(1, 2, 64)[0], small_mr(1, 2, 96)[0]], tmp_path)
    with pytest.raises(ValueError, match="different size"):
        picture(before, after, tmp_path / "p.png")
