"""Where nothing was reconstructed although no header says so.

Scanners, archives and de-identifiers leave Pixel Padding Value (PS3.3 C.7.5.1.1.2) out, and still fill what lies
outside of the reconstruction circle, around a masked head or in a whole empty slice with one value. Noise leaves no
square of one value: such a square at the dark end is nothing that was measured, and is treated as padding is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Integers: TypeAlias = npt.NDArray[np.integer[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]

SIDE: Final = 7
"""Pixels of a square: of one value, it is no noise, not even where a scanner cut it off at its lowest value."""
RIM: Final = 3
"""So far beyond its squares a void reaches, over pixels of the same value: its rim is a stair, and no square fits."""
DARK: Final = {"HU": -950.0, "arbitrary": 0.0}
"""What is lighter was measured: plateaus there are saturation, or the steps of a coarse rescale."""
_MOST_LEVELS: Final = 4


def voids(
    frame: Integers,
    slope: float,
    intercept: float,
    unit: Literal["HU", "arbitrary"],
    padding: tuple[int, int] | None = None,
) -> Mask | None:
    """Where a frame holds nothing, None if nowhere.

    Parameters
    ----------
    frame
        Stored values (rows, columns).
    slope, intercept, unit
        Of the frame.
    padding
        First and last stored value that are known to mean nothing: not looked for.

    Returns
    -------
    ndarray or None
        bool of the same shape: squares of ``SIDE`` pixels of one value not above ``DARK``, the border of the image
        counted as part of them, with their rims; or the whole frame, if it is of one value whatever that is.
    """
    first = frame[0, 0]
    if (frame[0] == first).all() and (frame == first).all():
        return np.ones(frame.shape, np.bool_)
    found: Mask | None = None
    for level in _levels(frame, slope, intercept, DARK[unit]):
        if padding is not None and padding[0] <= level <= padding[1]:
            continue
        part = _squares(frame == level)
        found = part if found is None else np.logical_or(found, part, out=found)
    return found if found is not None and found.any() else None


def _levels(frame: Integers, slope: float, intercept: float, dark: float) -> list[Any]:
    """Dark values that fill a run of pixels: of every square that lies inside, one such row is looked at."""
    rows = frame[SIDE // 2 :: SIDE]
    if rows.shape[1] < SIDE or not rows.size:
        return []
    limit = (dark - intercept) / slope
    low = rows <= limit if slope > 0 else rows >= limit
    run = _windows(low[:, 1:] & (rows[:, 1:] == rows[:, :-1]), SIDE - 1, 1, np.logical_and)
    if not run.any():
        return []
    values, counts = np.unique(rows[:, : run.shape[1]][run], return_counts=True)
    return list(values[np.argsort(-counts, kind="stable")[:_MOST_LEVELS]])


def _squares(same: Mask) -> Mask:
    """The squares that fit into a mask and its border, grown over the mask by their rims."""
    more = SIDE - 1
    whole = np.pad(same, more, constant_values=True)
    for axis in (0, 1):
        whole = _windows(whole, SIDE, axis, np.logical_and)
    grown = np.pad(whole, RIM, constant_values=False)
    for axis in (0, 1):
        grown = _windows(grown, SIDE + 2 * RIM, axis, np.logical_or)
    return np.logical_and(grown, same, out=grown)


def _windows(mask: Mask, n: int, axis: int, joined: Callable[[Mask, Mask], Mask]) -> Mask:
    """All, or any, of every ``n`` in a row, by doubling; shorter by n - 1."""
    have = 1
    while have < n:
        step = min(have, n - have)
        head = [slice(None), slice(None)]
        tail = [slice(None), slice(None)]
        head[axis], tail[axis] = slice(0, mask.shape[axis] - step), slice(step, None)
        mask = joined(mask[tuple(head)], mask[tuple(tail)])
        have += step
    return mask
