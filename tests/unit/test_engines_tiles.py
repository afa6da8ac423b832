"""Windows and tiles: the same bits wherever an array is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import Floats
from engines.box import box_mean, box_sum
from engines.tiles import cover, tiled, up

SIZES = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(
    rows=SIZES,
    columns=SIZES,
    size=st.integers(1, 40),
    halo=st.integers(0, 20),
    alignment=st.sampled_from([1, 8]),
)
def test_tiles_cover_once_and_windows_are_aligned(
    rows: int, columns: int, size: int, halo: int, alignment: int
) -> None:
    seen = np.zeros((rows, columns), int)
    for tile in cover(rows, columns, size=size, halo=halo, alignment=alignment):
        seen[tile.rows, tile.columns] += 1
        assert tile.window_rows.start % alignment == 0
        assert tile.window_columns.start % alignment == 0
        assert tile.window_rows.start <= max(0, tile.rows.start - halo)
        assert tile.window_rows.stop >= min(rows, tile.rows.stop + halo)
        window = np.zeros((rows, columns))[tile.window_rows, tile.window_columns]
        assert window[tile.inner].shape == seen[tile.rows, tile.columns].shape
    assert (seen == 1).all()


@settings(max_examples=40, deadline=None)
@given(rows=SIZES, columns=SIZES, radius=st.integers(0, 9), size=st.integers(1, 40), seed=st.integers(0, 999))
def test_tiled_box_sum_has_the_bits_of_the_whole(
    rows: int, columns: int, radius: int, size: int, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(0, 1000, (rows, columns)).astype(np.float32)

    def function(v: Floats) -> Floats:
        return box_sum(v, radius)

    assert tiled(function, values, size=size, halo=radius).tobytes() == function(values).tobytes()


def test_a_halo_too_small_shows() -> None:
    values = np.random.default_rng(0).normal(0, 1, (40, 40)).astype(np.float32)
    small = tiled(lambda v: box_sum(v, 3), values, size=16, halo=2)
    assert not np.array_equal(small, box_sum(values, 3))


@settings(max_examples=40, deadline=None)
@given(rows=SIZES, columns=SIZES, radius=st.integers(0, 35), seed=st.integers(0, 999))
def test_box_sum_is_the_sum_over_the_window(rows: int, columns: int, radius: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-50, 50, (rows, columns)).astype(np.float32)
    padded = (
        np.pad(values.astype(np.float64), ((radius + 1, radius), (radius + 1, radius))).cumsum(0).cumsum(1)
    )
    n = 2 * radius + 1
    expected = padded[n:, n:] - padded[:-n, n:] - padded[n:, :-n] + padded[:-n, :-n]
    assert np.array_equal(box_sum(values, radius), expected.astype(np.float32))


def test_box_mean_counts_masked_pixels_only() -> None:
    values = np.arange(25, dtype=np.float32).reshape(5, 5)
    mask = values < 10
    mean = box_mean(values, 1, mask)
    assert mean[0, 0] == 3.0
    assert mean[4, 4] == 0.0


def test_several_images_and_leading_axes() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(3, 50, 41)).astype(np.float32) for _ in "ab")

    def function(x: Floats, y: Floats) -> Floats:
        return (x - y).sum(axis=0, keepdims=True)

    assert np.array_equal(tiled(function, a, b, size=16, halo=0), function(a, b))


def test_size_zero_is_the_whole() -> None:
    calls = []
    tiled(lambda v: calls.append(v.shape) or v, np.zeros((9, 9), np.float32), size=0, halo=4)
    assert calls == [(9, 9)]


@pytest.mark.parametrize(("size", "halo", "alignment"), [(0, 1, 1), (4, -1, 1), (4, 1, 0)])
def test_nonsense_is_refused(size: int, halo: int, alignment: int) -> None:
    with pytest.raises(ValueError, match="tile"):
        list(cover(8, 8, size=size, halo=halo, alignment=alignment))


def test_up() -> None:
    assert [up(v, 8) for v in (0, 1, 8, 9)] == [0, 8, 8, 16]
