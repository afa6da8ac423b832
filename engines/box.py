"""Sums over square windows, the same bits wherever the array is cut.

A running sum or an integral image is faster to write, but its rounding depends on where the array began:
a tile would not give the bits of the whole. Here every output is the same tree of additions of its own
window (windows of 2^k elements by doubling, then the binary digits of the width), at log2(width) passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from engines.base import Floats, Mask

Flat = npt.NDArray[np.float32]


Span = Callable[[Flat, int, int, int, "Pool"], tuple[Flat, int]]


class Pool:
    """Buffers of one length that a chain of passes borrows and gives back."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._free: list[Flat] = []

    def take(self) -> Flat:
        return self._free.pop() if self._free else np.empty(self._length, np.float32)

    def give(self, buffer: Flat) -> None:
        self._free.append(buffer)


def span_sum(values: Flat, n: int, count: int, stride: int, pool: Pool) -> tuple[Flat, int]:
    """Sum ``count`` elements ``stride`` apart: out[i] = sum of values[i + j * stride] for j < count.

    Parameters
    ----------
    values
        A buffer of ``pool``, of which the first ``n`` elements count; it goes back to the pool.

    Returns
    -------
    tuple
        A buffer of the pool and how many of its elements count: n - (count - 1) * stride.
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
                start = width * stride
                np.add(total[:n_total], power[start : start + n_total], out=joined[:n_total])
                pool.give(total)
                total, width = joined, width + size
        if 2 * size > count:
            break
        n_next = n_power - size * stride
        doubled = pool.take()
        np.add(power[:n_next], power[size * stride : size * stride + n_next], out=doubled[:n_next])
        if power is not total:
            pool.give(power)
        power, size, n_power = doubled, 2 * size, n_next
    if power is not total:
        pool.give(power)
    assert total is not None
    return total, n_total


def span_least(values: Flat, n: int, count: int, stride: int, pool: Pool) -> tuple[Flat, int]:
    """The least of ``count`` elements ``stride`` apart, as :func:`span_sum`: windows may overlap here."""
    size = 1
    while size < count:
        shift = min(size, count - size) * stride
        n -= shift
        least = pool.take()
        np.minimum(values[:n], values[shift : shift + n], out=least[:n])
        pool.give(values)
        values, size = least, size + shift // stride
    return values, n


def box_sum(values: Floats, radius: int) -> Floats:
    """Sum over windows of (2 radius + 1)^2 pixels around each pixel; nothing lies beyond the border.

    Parameters
    ----------
    values
        float32 (y, x).
    """
    if radius == 0:
        return values.copy()
    n_rows, n_columns = values.shape
    padded = np.pad(values, radius)
    wide = n_columns + 2 * radius
    pool = Pool(padded.size)
    count = 2 * radius + 1
    sums, n = span_sum(padded.ravel(), padded.size, count, 1, pool)
    sums, n = span_sum(sums, n, count, wide, pool)
    # The last rows end short of a full line: the flat result is laid back into rows.
    out = np.zeros(n_rows * wide, np.float32)
    out[:n] = sums[:n]
    return np.ascontiguousarray(out.reshape(n_rows, wide)[:, :n_columns])


def window_sums(values: Floats, side: tuple[int, int], pool: Pool | None = None) -> Floats:
    """Sum over every window of ``side`` (rows, columns) pixels inside the array, by its first corner.

    Parameters
    ----------
    values
        float32 (y, x), at least as large as a window.
    pool
        Of buffers that hold as many pixels; without it these are made anew.
    """
    return _windows(values, side, span_sum, pool)


def window_least(values: Floats, side: tuple[int, int], pool: Pool | None = None) -> Floats:
    """The least value of every window, as :func:`window_sums`."""
    return _windows(values, side, span_least, pool)


def _windows(values: Floats, side: tuple[int, int], over: Span, pool: Pool | None) -> Floats:
    """Rows and columns laid in one line: windows that go over the end of a row are made and cut off."""
    n_rows, n_columns = values.shape
    pool = Pool(values.size) if pool is None else pool
    flat = pool.take()
    flat[: values.size].reshape(values.shape)[:] = values
    flat, n = over(flat, values.size, side[1], 1, pool)
    flat, n = over(flat, n, side[0], n_columns, pool)
    lines = n_rows - side[0] + 1
    out = flat[: lines * n_columns].reshape(lines, n_columns)[:, : n_columns - side[1] + 1].copy()
    pool.give(flat)
    return out


@lru_cache(maxsize=4)
def _all_weights(shape: tuple[int, ...], radius: int) -> Floats:
    """How many pixels each window holds where all count; not to be written to."""
    rows, columns = (
        np.minimum(np.arange(n), radius) + np.minimum(np.arange(n)[::-1], radius) + 1 for n in shape
    )
    weights = np.outer(rows, columns).astype(np.float32)
    weights.setflags(write=False)
    return weights


def box_mean(values: Floats, radius: int, mask: Mask) -> Floats:
    """Mean over the masked pixels of each window; 0 where a window holds none."""
    if mask.all():
        sums = box_sum(values, radius)
        sums /= _all_weights(values.shape, radius)
        return sums
    weight = mask.astype(np.float32)
    weights = box_sum(weight, radius)
    sums = box_sum(values * weight, radius)
    return np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)
