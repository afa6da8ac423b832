"""The laws that hold for every engine, applied outside of it: whatever a filter or network says.

An engine gives a residual, its estimate of the noise. What is subtracted from the image has passed here:

=====  =================================================================================================
G1     strength 0 gives the image back: :func:`blend`
G2     no voxel moves by more than strength * min(k sigma, cap): :func:`bound`
G3     the mean of every neighbourhood is kept: :func:`lock_mean`
G4     voxels that are not valid are never looked at and never changed: :func:`fill`, :func:`keep_invalid`
G8     not-a-number and infinity stop the series: :func:`finite`
G9     the change is linear in the strength: :func:`blend`
G10    noise outside of what the engine was made for leaves a slice as it was: :func:`gate`
=====  =================================================================================================

G5 (tiles), G6 (same bytes) and G7 (scale of a series) are properties of the engines, tested in
tests/laws.py. :func:`check` looks at the result once more, from the outside.
"""

from __future__ import annotations

import numpy as np

from engines.base import Card, Floats, Mask, Unit
from engines.box import box_mean
from engines.errors import OutputImplausible

FILL = {"HU": -1000.0, "arbitrary": 0.0}
"""What stands where nothing was reconstructed, while an engine looks: air, or no signal."""

LARGEST_MEAN_CHANGE = {"HU": 1.0, "arbitrary": 0.002}
"""Mean over a slice, at full strength: HU, or a fraction of the series scale."""


def fill(values: Floats, valid: Mask, unit: Unit) -> Floats:
    """Replace what is not valid, so that the padding value cannot matter (G4)."""
    if valid.all():
        return values
    return np.where(valid, values, np.float32(FILL[unit]))


def finite(residual: Floats) -> Floats:
    """Refuse residuals that hold NaN or infinity (G8).

    Raises
    ------
    OutputImplausible
    """
    if not np.isfinite(residual).all():
        raise OutputImplausible(
            "the engine returned values that are not numbers",
            hint="the weights or the runtime are broken; run `python -m engines verify`",
        )
    return residual


def limit(sigma: float, *, sigmas: float, cap: float) -> np.float32:
    """Return the largest change of a voxel at full strength (G2)."""
    return np.float32(min(sigmas * sigma, cap))


def bound(residual: Floats, largest: np.float32) -> Floats:
    """Clip the residual (G2)."""
    return np.clip(residual, -largest, largest)


def lock_mean(residual: Floats, valid: Mask, radius: int) -> Floats:
    """Take the local mean out of the residual, so that the image keeps its own (G3).

    Noise has next to no energy at low frequencies (CT: the ramp filter; MR: the area of the disc), but a
    mean is what is measured in a region of interest, and low-contrast lesions live there.

    Parameters
    ----------
    radius
        The window is (2 radius + 1)^2 pixels; 0 leaves the residual as it is.
    """
    if radius == 0:
        return residual
    return residual - box_mean(residual, radius, valid)


def keep_invalid(residual: Floats, valid: Mask) -> Floats:
    """No residual where nothing was reconstructed (G4)."""
    if valid.all():
        return residual
    return np.where(valid, residual, np.float32(0))


def guarded(residual: Floats, valid: Mask, *, largest: np.float32, radius: int) -> Floats:
    """Apply G8, G2, G3, G4 in this order; G2 once more, because the lock may push past the bound."""
    safe = lock_mean(keep_invalid(bound(finite(residual), largest), valid), valid, radius)
    return keep_invalid(bound(safe, largest), valid)


def blend(values: Floats, residual: Floats, strength: float) -> Floats:
    """Return values - strength * residual (G1, G9); what does not change keeps its bits."""
    return values - np.float32(strength) * residual


def gate(sigma: float, card: Card, scale: float) -> str:
    """Say why a slice is left as it was, or "" (G10).

    Parameters
    ----------
    sigma
        Noise in the slice's unit.
    scale
        Of the series, see :func:`engines.noise.scale`; 1 for HU.
    """
    if not np.isfinite(sigma) or not np.isfinite(scale) or scale <= 0:
        return "its noise could not be measured"
    lowest, highest = card.sigma_range
    seen = sigma / scale
    if seen < lowest:
        return f"its noise is lower than this engine is made for ({lowest:g}{_of(card.unit)})"
    if seen > highest:
        return f"its noise is higher than this engine is made for ({highest:g}{_of(card.unit)})"
    return ""


def _of(unit: Unit) -> str:
    return " HU" if unit == "HU" else " of the series scale"


def check(
    before: Floats,
    after: Floats,
    valid: Mask,
    *,
    largest: np.float32,
    strength: float,
    unit: Unit,
    scale: float,
) -> None:
    """Look at a finished slice from the outside, as a defence against our own defects.

    Raises
    ------
    OutputImplausible
        A law is broken: shape, kind, numbers, bound, mean or padding.
    """
    if after.shape != before.shape or after.dtype != np.float32:
        raise OutputImplausible("the result has another shape or kind than the image")
    change = after - before
    if not np.isfinite(change[valid]).all():
        raise OutputImplausible("the result holds values that are not numbers")
    if not np.array_equal(after[~valid], before[~valid], equal_nan=True):
        raise OutputImplausible("the result differs where nothing was reconstructed")
    if not valid.any():
        return
    # The subtraction rounds in float32: half a unit in the last place of the largest value.
    slack = float(np.abs(before[valid]).max()) * 2.0**-22
    moved = float(np.abs(change[valid]).max())
    if moved > strength * float(largest) * (1 + 1e-5) + slack:
        raise OutputImplausible(f"a voxel moved by {moved:g}, more than this engine may")
    mean = float(change[valid].mean(dtype=np.float64))
    if abs(mean) > LARGEST_MEAN_CHANGE[unit] * scale:
        raise OutputImplausible(f"the mean of a slice moved by {mean:g}")
