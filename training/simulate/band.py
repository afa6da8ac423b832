"""Change of matrix by k-space alone: crop, zero-fill, and the part of an image that was acquired.

All functions work on real images, slice by slice and axis by axis, with the scanner's convention that
sample ``i`` of a coarse image lies on sample ``factor * i`` of the fine one. The border is periodic, as
k-space is. Sizes are those of the coarse image times ``factor``; odd coarse sizes are as good as even ones.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from scipy import fft
from scipy.signal.windows import tukey

from engines.base import Floats
from training.errors import DataError

Window: TypeAlias = Literal["none", "hann", "tukey"]

AXES = (1, 2)
_TAPER: dict[Window, float] = {"none": 0.0, "tukey": 0.5, "hann": 1.0}


def taper(window: Window) -> float:
    """Return the share of half an axis of k-space that ``window`` rolls off: 0 for none, 1 for Hann."""
    return _TAPER[window]


def centred(n: int, share: float) -> Floats:
    """Return a Tukey window of ``n`` samples of k-space in order -n/2 .. , with its 1 at frequency 0."""
    half = tukey(n + 2, share)[1:-1] if n % 2 else tukey(n + 1, share)[:-1]
    return np.asarray(half, dtype=np.float32)


def _checked(values: Floats) -> Floats:
    if values.ndim != 3:
        raise DataError(f"a stack has 3 axes (z, y, x), not {values.ndim}")
    return np.asarray(values, dtype=np.float32)


def low_resolution(hr: Floats, factor: int = 2, window: Window = "none") -> Floats:
    """Return what a scanner shows that acquires only the centre of k-space, on the coarse grid.

    Parameters
    ----------
    hr
        (z, y, x), any unit.
    factor
        How many times fewer samples per axis of the slice.
    window
        Roll-off of the acquired part; not applied at frequency 0, so means are kept.

    Returns
    -------
    (z, y / factor, x / factor)

    Raises
    ------
    DataError
        When y or x is not a multiple of ``factor``.
    """
    out = _checked(hr)
    for axis in AXES:
        n = out.shape[axis]
        if n % factor:
            raise DataError(
                f"{n} samples cannot be made {factor} times fewer",
                hint="crop the image to a multiple of the factor",
            )
        m = n // factor
        spectrum = np.moveaxis(fft.rfft(out, axis=axis), axis, -1)[..., : m // 2 + 1]
        weights = np.full(m // 2 + 1, 1 / factor, dtype=np.float32)
        if window != "none":
            weights *= centred(m, taper(window))[m // 2 :: -1][: m // 2 + 1]
        if m % 2 == 0 and factor > 1:
            # The two frequencies +-m/2 of the fine grid are one on the coarse grid: their sum.
            weights[-1] *= 2
        out = np.moveaxis(fft.irfft(spectrum * weights, n=m, axis=-1), -1, axis)
    return np.ascontiguousarray(out, dtype=np.float32)


def zero_filled(lr: Floats, factor: int = 2) -> Floats:
    """Return the sinc interpolation of ``lr`` (z, y, x) on (z, factor y, factor x).

    Sample ``[:, factor * i, factor * j]`` of the answer is sample ``[:, i, j]`` of ``lr``.
    """
    out = _checked(lr)
    for axis in AXES:
        n = out.shape[axis]
        spectrum = fft.rfft(out, axis=axis) * np.float32(factor)
        if n % 2 == 0 and factor > 1:
            # Half to each of the frequencies +-n/2, so that the answer is real and meets the samples.
            last = [slice(None)] * 3
            last[axis] = slice(n // 2, None)
            spectrum[tuple(last)] *= 0.5
        out = fft.irfft(spectrum, n=factor * n, axis=axis)
    return np.ascontiguousarray(out, dtype=np.float32)


def crisp(values: Floats, blur: float) -> Floats:
    """Undo a Gaussian blur of ``blur`` pixels, or sharpen by as much: gain exp(2 (pi f blur)^2) along both axes."""
    out = _checked(values)
    for axis in AXES:
        n = out.shape[axis]
        gain = np.exp(2 * np.square(np.pi * np.fft.rfftfreq(n) * blur)).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = gain.size
        out = fft.irfft(fft.rfft(out, axis=axis) * gain.reshape(shape), n=n, axis=axis)
    return np.ascontiguousarray(out, dtype=np.float32)


def acquired_part(values: Floats, factor: int = 2) -> Floats:
    """Return K r: the part of a fine image (z, y, x) that lies in the acquired band of k-space.

    A projection: ``K K r = K r``, and ``low_resolution(r - K r)`` is zero, so that a change ``r - K r``
    leaves every acquired frequency as it was. The frequencies on the rim of the band belong to it.
    """
    out = _checked(values)
    for axis in AXES:
        n = out.shape[axis]
        spectrum = fft.rfft(out, axis=axis)
        rest = [slice(None)] * 3
        rest[axis] = slice(int(n / factor) // 2 + 1, None)
        spectrum[tuple(rest)] = 0
        out = fft.irfft(spectrum, n=n, axis=axis)
    return np.ascontiguousarray(out, dtype=np.float32)
