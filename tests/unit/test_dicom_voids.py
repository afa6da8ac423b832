"""What was never reconstructed stays as it is, also where no header tells of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.catalog import Catalog
from node.dicom.voids import RIM, SIDE, voids
from tests.enhancing import chained, files, series

SIZE = 96


def circle(size: int = SIZE) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """What lies outside of a reconstruction circle."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.asarray(np.hypot(y, x) > size / 2)


def noisy(low: int = 900, size: int = SIZE, seed: int = 5) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.random.default_rng(seed).integers(low, low + 200, (size, size)).astype(np.uint16)


def found(
    frame: np.ndarray[Any, Any], slope: float = 1.0, intercept: float = -1024.0, unit: Any = "HU"
) -> Any:
    """The voids of a frame that has some."""
    told = voids(frame, slope, intercept, unit)
    assert told is not None
    return told


@pytest.mark.parametrize("value", [0, 24, 74])
def test_the_outside_of_a_circle_is_found_to_the_pixel(value: int) -> None:
    frame = noisy()
    frame[circle()] = value
    assert np.array_equal(found(frame), circle())
    assert voids(frame, 1.0, -1024.0, "HU", (value, value)) is None


def test_two_levels_are_two_voids() -> None:
    frame = noisy().astype(np.int16)
    frame[circle()] = -2000
    frame[40:52, 30:60] = 0
    assert np.array_equal(found(frame), circle() | (frame == 0))


def test_what_is_lighter_than_air_or_no_signal_was_measured() -> None:
    frame = noisy()
    frame[20:40, 20:40] = 3000
    assert voids(frame, 1.0, -1024.0, "HU") is None
    assert voids(frame, 1.0, 0.0, "arbitrary") is None
    frame[20:40, 20:40] = 0
    assert voids(frame, 1.0, 10.0, "arbitrary") is None
    for unit, slope, intercept in (("HU", 1.0, -1024.0), ("arbitrary", 2.5, 0.0), ("arbitrary", 1.0, -7.0)):
        assert found(frame, slope, intercept, unit).sum() == 400


def test_a_slope_below_zero_turns_dark_and_light() -> None:
    frame = noisy()
    frame[20:40, 20:40] = 3000
    assert found(frame, -1.0, 1900.0).sum() == 400


def test_a_frame_of_one_value_holds_nothing_whatever_the_value() -> None:
    for value in (0, 1000, 4095):
        frame = np.full((SIZE, SIZE), value, np.uint16)
        assert found(frame).all()
        frame[-1, -1] ^= 1
        assert (voids(frame, 1.0, -1024.0, "HU") is not None) == (value == 0)


def test_noise_that_was_cut_off_is_no_void() -> None:
    """A third of air lies at the lowest value: single pixels, and what noise leaves of them at a border."""
    rng = np.random.default_rng(1)
    frame = np.clip(rng.normal(10, 22, (256, 256)), 0, None).astype(np.uint16)
    told = voids(frame, 1.0, -1024.0, "HU")
    assert (frame == 0).mean() > 0.3
    assert told is None or told.mean() < 1e-3


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(2, 4))
def test_it_is_what_its_words_say(seed: int, rows: int, columns: int, grain: int) -> None:
    """Squares of one dark value, the border counted as part of them, and pixels of that value near by."""
    rng = np.random.default_rng(seed)
    small = rng.random((-(-rows // grain), -(-columns // grain))) < 0.6
    empty = np.kron(small, np.ones((grain, grain), np.bool_))[:rows, :columns]
    frame = np.where(empty, 0, 1000 + rng.integers(0, 99, (rows, columns))).astype(np.int16)
    told = voids(frame, 1.0, -1024.0, "HU")
    if (frame == frame[0, 0]).all():
        assert np.all(told)
        return
    padded = np.pad(empty, SIDE - 1, constant_values=True)
    near = np.zeros_like(empty)
    for y in range(rows + SIDE - 1):
        for x in range(columns + SIDE - 1):
            if padded[y : y + SIDE, x : x + SIDE].all():
                top, left = max(0, y - SIDE + 1 - RIM), max(0, x - SIDE + 1 - RIM)
                near[top : max(0, y + 1 + RIM), left : max(0, x + 1 + RIM)] = True
    near &= empty
    inside = any(
        empty[y, x : x + SIDE].all() for y in range(SIDE // 2, rows, SIDE) for x in range(columns - SIDE + 1)
    )
    assert (told is not None) == bool(inside and near.any())
    assert told is None or np.array_equal(told, near)


@pytest.mark.parametrize(("engine", "modality"), [("ct-cnn", "CT"), ("mr-cnn", "MR"), ("mr-nlm", "MR")])
def test_a_series_with_masked_and_empty_slices_is_enhanced_and_these_stay(
    engine: str, modality: str, tmp_path: Path
) -> None:
    """An empty slice, a half one, and a circle, as undeclared as a de-identifier leaves them."""
    slices = series(modality, 6, size=SIZE)
    empty = [circle() for _ in slices]
    empty[0][:] = True
    empty[3][:, : SIZE // 2] = True
    before = {}
    for ds, where in zip(slices, empty, strict=True):
        stored = np.frombuffer(ds.PixelData, np.uint16).reshape(SIZE, SIZE).copy()
        stored[where] = 0
        ds.PixelData = stored.tobytes()
        before[ds.SOPInstanceUID] = stored
    (tmp_path / "scratch").mkdir()
    made = chained(
        files(tmp_path / "in", slices), Catalog.default().load(engine, threads=1), tmp_path / "scratch"
    )
    assert made.report.n_skipped == 1
    assert any("nothing was reconstructed" in note for note in made.report.notes)
    for ds, where in zip(slices, empty, strict=True):
        after = made.stored[ds.SOPInstanceUID][0]
        assert np.array_equal(after[where], before[ds.SOPInstanceUID][where])
        assert where.all() or (after != before[ds.SOPInstanceUID]).mean() > 0.2
