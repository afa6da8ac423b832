"""Twice the matrix from the same k-space: what super-resolution stands on, and what it may not touch.

:func:`doubled` is zero filling: every second sample is a sample of the slice, bit for bit, and those between
are what the acquired frequencies say. :func:`complement` takes the acquired frequencies out of a detail, so
that adding it changes none of them. Both work on whole slices: a transform of a tile is another transform.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import fft

from engines.base import Floats

BEYOND = 32
"""Samples, at least, between the last of a line and the first of its next period: mirrored at either end
and blended, so that no jump rings into the image from its border."""

K = TypeVar("K", bound=np.generic)


def repeated(values: npt.NDArray[K]) -> npt.NDArray[K]:
    """Every pixel four times: (y, x) -> (2 y, 2 x); for masks and padding, which nothing is between."""
    return np.repeat(np.repeat(values, 2, axis=-2), 2, axis=-1)


def doubled(values: Floats) -> Floats:
    """Interpolate a slice by zero filling its k-space.

    Parameters
    ----------
    values
        float32 (y, x), finite.

    Returns
    -------
    ndarray
        float32 (2 y, 2 x): sample [2 i, 2 j] has the bits of [i, j], the others lie half a pixel on.
    """
    n_rows, n_columns = values.shape
    out = np.empty((2 * n_rows, 2 * n_columns), np.float32)
    wide = np.empty((n_rows, 2 * n_columns))
    wide[:, ::2] = values
    wide[:, 1::2] = _between(wide[:, ::2].T).T
    out[::2] = wide
    out[1::2] = _between(wide)
    return out


def _between(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Samples half a step on along axis 0: a turn of phase in k-space (shift theorem)."""
    n = values.shape[0]
    length = int(fft.next_fast_len(n + BEYOND, real=True))
    more = length - n
    k = np.arange(more)
    weight = 0.5 - 0.5 * np.cos(np.pi * (k + 0.5) / more)
    after, before = values[_mirrored(n + k, n)], values[_mirrored(k - more, n)]
    period = np.concatenate([values, after + weight[:, None] * (before - after)])
    spectrum = fft.rfft(period, axis=0)
    # At the Nyquist frequency a half step is a quarter turn, whose real part is nothing: irfft drops it.
    spectrum *= np.exp(1j * np.pi * np.arange(spectrum.shape[0]) / length)[:, None]
    return np.asarray(fft.irfft(spectrum, n=length, axis=0)[:n])


def _mirrored(index: npt.NDArray[np.intp], n: int) -> npt.NDArray[Any]:
    """Where an index outside of 0..n-1 falls after reflection at the outer edges of the first and last."""
    folded = index % (2 * n)
    return np.where(folded < n, folded, 2 * n - 1 - folded)


def complement(detail: Floats) -> Floats:
    """Return r - K r: a detail of a doubled slice without the frequencies that its slice holds.

    Parameters
    ----------
    detail
        float32 (2 y, 2 x).
    """
    n_rows, n_columns = detail.shape
    spectrum = fft.rfft2(detail)
    rows, columns = n_rows // 4, n_columns // 4 + 1
    spectrum[: rows + 1, :columns] = 0
    spectrum[n_rows - rows :, :columns] = 0
    return np.asarray(fft.irfft2(spectrum, s=detail.shape), np.float32)
