"""Overlapping tiles: the same bits as the whole, in bounded memory.

A function of an image whose output pixel depends on input no farther than ``halo`` pixels may be run on
windows: each window is its tile and a halo around it, cut off at the border of the image (so that the
function meets the true border there, and only there). What lies in the halo is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from engines.base import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Where a tile lies (``rows``, ``columns`` of the image), and what window it is computed from."""

    rows: slice
    columns: slice
    window_rows: slice
    window_columns: slice

    @property
    def inner(self) -> tuple[slice, slice]:
        """The tile within its window."""
        top, left = self.window_rows.start, self.window_columns.start
        return (
            slice(self.rows.start - top, self.rows.stop - top),
            slice(self.columns.start - left, self.columns.stop - left),
        )


def up(value: int, alignment: int) -> int:
    """Round up to a multiple of ``alignment``."""
    return -(-value // alignment) * alignment


def cover(n_rows: int, n_columns: int, *, size: int, halo: int, alignment: int = 1) -> Iterator[Tile]:
    """Cut an image into tiles of ``size`` pixels (rounded up to the alignment), row by row.

    Windows begin at multiples of ``alignment``, so that a network that halves its input sees the same
    grid as in the whole image.
    """
    if size < 1 or halo < 0 or alignment < 1:
        raise ValueError("a tile has at least one pixel, its halo at least none")
    side, around = up(size, alignment), up(halo, alignment)
    for top in range(0, n_rows, side):
        for left in range(0, n_columns, side):
            bottom, right = min(top + side, n_rows), min(left + side, n_columns)
            yield Tile(
                rows=slice(top, bottom),
                columns=slice(left, right),
                window_rows=slice(max(0, top - around), min(n_rows, bottom + around)),
                window_columns=slice(max(0, left - around), min(n_columns, right + around)),
            )


def tiled(
    function: Callable[..., Floats],
    *images: Floats,
    size: int,
    halo: int,
    alignment: int = 1,
    factor: int = 1,
) -> Floats:
    """Run ``function(*images)`` on tiles of the last two axes; ``size`` 0 runs it on the whole.

    Parameters
    ----------
    function
        Takes windows (..., y, x) of the images and returns float32 (..., factor y, factor x).
    factor
        How many pixels along an axis come out for one that goes in.

    Returns
    -------
    ndarray
        The bits of ``function(*images)``, if the function is as local as ``halo`` says.
    """
    n_rows, n_columns = images[0].shape[-2:]
    if size == 0 or (size >= n_rows and size >= n_columns):
        return function(*images)
    out: Floats | None = None
    for tile in cover(n_rows, n_columns, size=size, halo=halo, alignment=alignment):
        window = (..., tile.window_rows, tile.window_columns)
        part = function(*(np.ascontiguousarray(image[window]) for image in images))
        if out is None:
            out = np.empty((*part.shape[:-2], factor * n_rows, factor * n_columns), np.float32)
        rows, columns = (_times(w, factor) for w in (tile.rows, tile.columns))
        inner_rows, inner_columns = (_times(w, factor) for w in tile.inner)
        out[..., rows, columns] = part[..., inner_rows, inner_columns]
    assert out is not None
    return out


def _times(where: slice, factor: int) -> slice:
    return slice(factor * where.start, factor * where.stop)
