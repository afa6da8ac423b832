"""Sums over square windows, the same bits wherever the array is cut.

A running sum or an integral image is faster to write, but its rounding depends on where the array began:
a tile would not give the bits of the whole. Here every output is the same tree of additions of its own
window (windows of 2^k elements by doubling, then the binary digits of the width), at log2(width) passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from engines.base import Floats, Mask

Flat = npt.NDArray[np.float32]
K = TypeVar("K", bound=np.generic)


class Pool:
    """Buffers of one length that a chain of passes borrows and gives back."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._free: list[Flat] = []

    def take(self) -> Flat:
        return self._free.pop() if self._free else np.empty(self._length, np.float32)

    def give(self, buffer: Flat) -> None:
        self._free.append(buffer)


def span_sum(
    values: Flat, n: int, count: int, stride: int, pool: Pool, at: int = 0, *, lent: bool = False
) -> tuple[Flat, int]:
    """Sum ``count`` elements ``stride`` apart: out[i] = sum of values[i + j * stride] for j < count.

    Parameters
    ----------
    values
        A buffer of ``pool``, of which ``n`` elements from ``at`` on count; it goes back to the pool.
    at
        Where lines begin, this one and those of the pool.
    lent
        ``values`` are the caller's and stay as they are.

    Returns
    -------
    tuple
        A buffer of the pool (``values`` where ``count`` is 1) and how many of its elements count, from ``at`` on:
        n - (count - 1) * stride.
    """
    power, size, n_power = values, 1, n
    total: Flat | None = None
    width, n_total = 0, 0
    while True:
        if count & size:
            if total is None:
                total, width, n_total = power, size, n_power
            else:
                n_total = n - (width + size - 1) * stride
                joined = pool.take()
                start = at + width * stride
                np.add(
                    total[at : at + n_total], power[start : start + n_total], out=joined[at : at + n_total]
                )
                if not (lent and total is values):
                    pool.give(total)
                total, width = joined, width + size
        if 2 * size > count:
            break
        n_next = n_power - size * stride
        doubled = pool.take()
        start = at + size * stride
        np.add(power[at : at + n_next], power[start : start + n_next], out=doubled[at : at + n_next])
        if power is not total and not (lent and power is values):
            pool.give(power)
        power, size, n_power = doubled, 2 * size, n_next
    if power is not total:
        pool.give(power)
    assert total is not None
    return total, n_total


def span_least(values: Flat, n: int, count: int, stride: int, spare: Flat) -> tuple[Flat, Flat, int]:
    """The least of ``count`` elements ``stride`` apart, as :func:`span_sum`: windows may overlap here.

    Returns
    -------
    tuple
        ``values`` and ``spare``, the result first, and how many of its elements count.
    """
    size = 1
    while size < count:
        step = min(size, count - size)
        shift = step * stride
        n -= shift
        np.minimum(values[:n], values[shift : shift + n], out=spare[:n])
        values, spare, size = spare, values, size + step
    return values, spare, n


def box_sum(values: Floats, radius: int) -> Floats:
    """Sum over windows of (2 radius + 1)^2 pixels around each pixel; nothing lies beyond the border.

    Parameters
    ----------
    values
        float32 (y, x).
    """
    return values.copy() if radius == 0 else _box(values, radius).copy()


def _box(values: Floats, radius: int, ones: Floats | None = None) -> Floats:
    """See :func:`box_sum`, of ``values`` times ``ones``; a view of rows that lie apart."""
    n_rows, n_columns = values.shape
    wide, count = n_columns + 2 * radius, 2 * radius + 1
    above, n = radius * wide, n_rows * wide
    pool = Pool(n + 2 * above)
    line = pool.take()
    rows = line[above : above + n].reshape(n_rows, wide)
    rows[:, :radius] = rows[:, n_columns + radius :] = 0
    own = rows[:, radius : n_columns + radius]
    if ones is None:
        own[:] = values
    else:
        np.multiply(values, ones, out=own)
    sums, n_sums = span_sum(line, n, count, 1, pool, above)
    # The end of the last row stays behind: those windows go over the end of a row and are cut off.
    sums[:above] = sums[above + n_sums :] = 0
    sums, _ = span_sum(sums, n + 2 * above, count, wide, pool)
    return sums[:n].reshape(n_rows, wide)[:, :n_columns]


def window_sums(values: Floats, side: tuple[int, int], pool: Pool | None = None) -> Floats:
    """Sum over every window of ``side`` (rows, columns) pixels inside the array, by its first corner.

    Parameters
    ----------
    values
        float32 (y, x), at least as large as a window.
    pool
        Of buffers that hold as many pixels; without it these are made anew.
    """
    return window_means(values, side, np.float32(1), pool)


def window_means(
    values: Floats, side: tuple[int, int], by: Floats | np.float32, pool: Pool | None = None
) -> Floats:
    """As :func:`window_sums`, each sum times ``by``."""
    # Rows laid in one line: windows that go over the end of a row are made and cut off.
    n_rows, n_columns = values.shape
    pool = Pool(values.size) if pool is None else pool
    line = np.ascontiguousarray(values).reshape(-1)
    wide, n = span_sum(line, line.size, side[1], 1, pool, lent=True)
    sums, _ = span_sum(wide, n, side[0], n_columns, pool, lent=wide is line)
    lines = n_rows - side[0] + 1
    rows = sums[: lines * n_columns].reshape(lines, n_columns)
    found: Floats = rows[:, : n_columns - side[1] + 1] * by
    if sums is not line:
        pool.give(sums)
    return found


def window_least(values: Floats, side: tuple[int, int]) -> Floats:
    """The least value of every window, as :func:`window_sums`; ``values`` are not the same afterwards.

    Rows of what comes back may lie apart.
    """
    n_rows, n_columns = values.shape
    line = np.ascontiguousarray(values).reshape(-1)
    least, spare, n = span_least(line, line.size, side[1], 1, np.empty_like(line))
    least, _, _ = span_least(least, n, side[0], n_columns, spare)
    lines = n_rows - side[0] + 1
    return least[: lines * n_columns].reshape(lines, n_columns)[:, : n_columns - side[1] + 1]


@lru_cache(maxsize=4)
def _all_weights(shape: tuple[int, ...], radius: int) -> Floats:
    """How many pixels each window holds where all count; not to be written to."""
    rows, columns = (
        np.minimum(np.arange(n), radius) + np.minimum(np.arange(n)[::-1], radius) + 1 for n in shape
    )
    weights = np.outer(rows, columns).astype(np.float32)
    weights.setflags(write=False)
    return weights


class Weights:
    """What follows from which pixels of a slice count, made once: slices of one series mostly share it.

    Parameters
    ----------
    mask
        bool (y, x); a copy is kept.
    """

    def __init__(self, mask: Mask) -> None:
        self.mask = mask.copy()
        self.whole = bool(mask.all())
        self._kept: dict[object, npt.NDArray[Any]] = {}

    @property
    def ones(self) -> Floats:
        """1 where a pixel counts, else 0, float32; not to be written to."""
        return self.once("ones", lambda: self.mask.astype(np.float32))

    def shares(self, radius: int) -> Floats:
        """One over how many pixels of each window count, 0 where none does; not to be written to."""
        return self.once(radius, lambda: _inverse(_box(self.ones, radius)))

    def once(self, what: object, make: Callable[[], npt.NDArray[K]]) -> npt.NDArray[K]:
        """Something that follows from the mask alone, made when it is asked for first."""
        found = self._kept.get(what)
        if found is None:
            found = self._kept[what] = make()
            found.setflags(write=False)
        return found


_RECENT: Final = 2
_recent: tuple[Weights, ...] = ()
_recent_lock = Lock()


def weights_of(mask: Mask) -> Weights:
    """The weights of a mask: kept, for whichever thread asks, of the last masks there were."""
    global _recent
    for found in _recent:
        if found.mask.shape == mask.shape and np.array_equal(found.mask, mask):
            return found
    made = Weights(mask)
    with _recent_lock:
        _recent = (made, *_recent[: _RECENT - 1])
    return made


def _inverse(counts: Floats) -> Floats:
    return np.divide(np.float32(1), counts, out=np.zeros(counts.shape, np.float32), where=counts > 0)


def box_mean(values: Floats, radius: int, mask: Mask) -> Floats:
    """Mean over the masked pixels of each window; 0 where a window holds none."""
    weights = weights_of(mask)
    if weights.whole:
        return _box(values, radius) / _all_weights(values.shape, radius)
    return _box(values, radius, weights.ones) * weights.shares(radius)
