"""The laws that hold for every engine, applied outside of it: whatever a filter or network says.

An engine gives a residual, its estimate of the noise. What is subtracted from the image has passed here:

=====  =================================================================================================
G1     strength 0 gives the image back: :func:`blend`
G2     no voxel moves by more than strength * min(k sigma, cap): :func:`bound`
G3     means are kept, near and over every region of 32 mm: :func:`lock_mean`, :func:`hold_regions`
G4     voxels that are not valid are never looked at and never changed: :func:`fill`, :func:`keep_invalid`
G8     not-a-number and infinity stop the series: :func:`finite`
G9     the change is linear in the strength: :func:`blend`
G10    noise outside of what the engine was made for leaves a slice as it was: :func:`gate`
=====  =================================================================================================

The detail of an engine that doubles the matrix passes :func:`guarded_detail` instead. There G2 is the cap
alone, and G3 is kept twice: by the lock, and because acquired frequencies are taken out of the detail.

G5 (tiles), G6 (same bytes) and G7 (scale of a series) are properties of the engines, tested in
tests/laws.py. :func:`check` looks at the result once more, from the outside.
"""

from __future__ import annotations

import numpy as np

from engines.base import Card, Floats, Mask, Unit
from engines.box import Pool, Weights, box_mean, weights_of, window_least, window_means, window_sums
from engines.errors import OutputImplausible
from engines.sinc import complement

FILL = {"HU": -1000.0, "arbitrary": 0.0}
"""What stands where nothing was reconstructed, while an engine looks: air, or no signal."""

REGION_MM = 32.0
REGION_PIXELS = 45
"""Side of a region where the spacing is not known."""

LARGEST_MEAN_CHANGE = {"HU": 1.0, "arbitrary": 0.002}
"""Of any region, at full strength: HU, or a fraction of the series scale."""


def fill(values: Floats, valid: Mask, unit: Unit) -> Floats:
    """Replace what is not valid, so that the padding value cannot matter (G4)."""
    if valid.all():
        return values
    filled = values.copy()
    np.copyto(filled, np.float32(FILL[unit]), where=~valid)
    return filled


def finite(residual: Floats) -> Floats:
    """Refuse residuals that hold NaN or infinity (G8).

    Raises
    ------
    OutputImplausible
    """
    if not all_finite(residual):
        raise not_finite()
    return residual


def all_finite(values: Floats) -> bool:
    """Whether there is neither NaN nor infinity among values, at least one."""
    return bool(np.isfinite(values.min()) and np.isfinite(values.max()))  # NaN is the least and the largest


def not_finite() -> OutputImplausible:
    """What is said of a residual that holds NaN or infinity."""
    return OutputImplausible(
        "the engine returned values that are not numbers",
        hint="the weights or the runtime are broken; run `python -m engines verify`",
    )


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
    mean = box_mean(residual, radius, valid)
    return np.subtract(residual, mean, out=mean)


def keep_invalid(residual: Floats, valid: Mask) -> Floats:
    """No residual where nothing was reconstructed (G4)."""
    weights = weights_of(valid)
    if weights.whole:
        return residual
    kept: Floats = residual * weights.ones
    if not all_finite(kept):
        kept = np.where(valid, residual, np.float32(0))
    return kept


def region_side(spacing_mm: tuple[float, float, float]) -> tuple[int, int]:
    """Rows and columns of a region of 32 mm."""
    rows, columns = (round(REGION_MM / s) if s > 0 else REGION_PIXELS for s in spacing_mm[1:])
    return max(1, rows), max(1, columns)


def region_means(residual: Floats, valid: Mask, side: tuple[int, int]) -> Floats:
    """Mean of the residual over the valid voxels of every region inside the slice, by its first corner.

    Regions of which less than half is valid count as 0: nobody measures there.
    """
    return Regions(valid, side).means(residual)


class Regions:
    """All regions of one size inside a slice, by their first corners.

    Parameters
    ----------
    valid
        bool (y, x).
    side
        Rows and columns of a region; one that is larger than the slice is the slice.
    """

    def __init__(self, valid: Mask, side: tuple[int, int]) -> None:
        rows, columns = self._shape = valid.shape
        self._side = min(side[0], rows), min(side[1], columns)
        self._pool = Pool(rows * columns)
        weights = weights_of(valid)
        self._shares: Floats | None = None
        if not weights.whole:
            self._shares = weights.once(self._side, lambda: _shares(weights, self._side))

    def means(self, residual: Floats) -> Floats:
        """See :func:`region_means`."""
        rows, columns = self._side
        by = self._shares if self._shares is not None else np.float32(1 / (rows * columns))
        return window_means(residual, self._side, by, self._pool)

    def over(self, values: Floats, above: np.float32) -> Floats | None:
        """For every pixel by how much ``above`` is less than the largest value of the regions that hold it, or 0.

        None where no value is larger.
        """
        hit = np.flatnonzero((values > above).any(axis=1))
        if not hit.size:
            return None
        # Few regions are in excess, in few rows: those alone are widened to the right, then down.
        (rows, columns), (high, wide) = self._shape, self._side
        padded = np.zeros((hit.size, columns + wide - 1), np.float32)
        own = padded[:, wide - 1 : wide - 1 + values.shape[1]]
        np.minimum(np.subtract(above, values[hit], out=own), np.float32(0), out=own)
        tall = np.zeros((rows + high - 1, columns), np.float32)
        tall[hit + high - 1] = window_least(padded, (1, wide))
        return window_least(tall, (high, 1))

    def least(self, values: Floats, else_: float) -> Floats:
        """For every pixel the least of the values of the regions that hold it, or ``else_`` if that is less."""
        rows, columns = self._side
        padded = np.full([n + s - 1 for n, s in zip(self._shape, self._side, strict=True)], else_, np.float32)
        padded[rows - 1 : rows - 1 + values.shape[0], columns - 1 : columns - 1 + values.shape[1]] = values
        return window_least(padded, self._side)


def _shares(weights: Weights, side: tuple[int, int]) -> Floats:
    """One over the valid voxels of each region; 0 where less than half is valid."""
    counts = window_sums(weights.ones, side)
    enough = counts >= 0.5 * side[0] * side[1]
    return np.divide(np.float32(1), counts, out=np.zeros_like(counts), where=enough)


SETTLING = 8
"""How often the excess of region means is taken out, at most, before what is left of it weakens the residual."""


def hold_regions(
    residual: Floats,
    valid: Mask,
    side: tuple[int, int],
    tolerance: float,
    largest: np.float32 | float = np.inf,
) -> Floats:
    """Let no mean of a region move by more than ``tolerance`` (G3).

    First the excess itself is taken out of the whole region that has it: noise at the lowest frequencies moves means
    by chance, and the rest of the residual is none the worse for it. What is left after a few rounds (a filter
    that blurs an edge adds a line along it that no local mean can take out) weakens the residual there, and only
    there.

    Parameters
    ----------
    largest
        Bound of the residual (G2), kept in every round.
    """
    regions, kept = Regions(valid, side), np.float32(0.9 * tolerance)
    most = np.float32(largest)
    for _ in range(SETTLING):
        means = regions.means(residual)
        high, low = float(means.max()), float(means.min())
        if max(high, -low) <= tolerance:
            return residual
        over = regions.over(means, kept) if high > kept else None
        under = regions.over(np.negative(means, out=means), kept) if -low > kept else None
        moved = residual if over is None else np.add(residual, over, out=over)
        if under is not None:
            moved = np.subtract(moved, under, out=under)
        residual = keep_invalid(np.clip(moved, -most, most, out=moved), valid)
    return weaken_regions(residual, valid, side, tolerance)


def _worst(means: Floats) -> float:
    return max(float(means.max()), -float(means.min()))


def weaken_regions(
    residual: Floats, valid: Mask, side: tuple[int, int], tolerance: float, worst: float | None = None
) -> Floats:
    """The end of :func:`hold_regions`: what the rounds did not settle is made weaker, where it is too much.

    Parameters
    ----------
    worst
        The largest mean of a region, where it is known already.
    """
    if worst is not None and worst <= 1.15 * tolerance:
        return residual if worst <= tolerance else residual * np.float32(tolerance / worst)
    regions = Regions(valid, side)
    means = regions.means(residual)
    for _ in range(3):
        worst = _worst(means)
        if worst <= 1.15 * tolerance:
            break  # a little less everywhere costs less than weights that vary: they make means of noise
        means = np.abs(means, out=means)
        weak = np.divide(np.float32(tolerance), np.maximum(means, np.float32(tolerance)), dtype=np.float32)
        residual = residual * regions.least(weak, 1.0)
        means = regions.means(residual)
    worst = _worst(means)
    return residual if worst <= tolerance else residual * np.float32(tolerance / worst)


def guarded(
    residual: Floats,
    valid: Mask,
    *,
    largest: np.float32,
    radius: int,
    side: tuple[int, int],
    tolerance: float,
) -> Floats:
    """Apply G8, G2, G3, G4 in this order; G2 once more, because the lock may push past the bound."""
    weights = weights_of(valid)
    safe = lock_mean(_kept(bound(finite(residual), largest), weights), valid, radius)
    np.clip(safe, -largest, largest, out=safe)
    return hold_regions(_kept(safe, weights), valid, side, tolerance, largest)


def _kept(numbers: Floats, weights: Weights) -> Floats:
    """:func:`keep_invalid` of what holds neither NaN nor infinity, in place."""
    return numbers if weights.whole else np.multiply(numbers, weights.ones, out=numbers)


def guarded_detail(
    detail: Floats,
    valid: Mask,
    *,
    largest: np.float32,
    radius: int,
    side: tuple[int, int],
    tolerance: float,
) -> Floats:
    """Make a detail safe: G8, G2, G3 and G4, and no acquired frequency changed.

    The lock comes before the projection, so that no mean rings from the rim of what is valid. What clipping
    and the lock left at acquired frequencies is then taken out. Where the result breaks a bound, the whole
    slice's detail is weakened: less of it in one place would be another spectrum.

    Parameters
    ----------
    detail, valid
        Of the doubled slice; ``radius`` and ``side`` in its pixels too.
    """
    safe = keep_invalid(bound(finite(detail), largest), valid)
    safe = keep_invalid(complement(lock_mean(safe, valid, radius)), valid)
    most = float(np.abs(safe).max())
    mean = _worst(region_means(safe, valid, side))
    weakest = min(
        float(largest) / most if most > float(largest) else 1.0, tolerance / mean if mean > tolerance else 1.0
    )
    return safe if weakest == 1.0 else safe * np.float32(weakest)


def blend(values: Floats, residual: Floats, strength: float, into: Floats | None = None) -> Floats:
    """Return values - strength * residual (G1, G9), in ``into`` if it is there; what does not change keeps its bits."""
    taken = np.multiply(residual, np.float32(strength), out=into)
    blended: Floats = np.subtract(values, taken, out=taken)
    return blended


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
) -> tuple[float, float]:
    """Look at a finished slice from the outside, as a defence against our own defects.

    Returns
    -------
    tuple
        The largest change of a voxel, and the mean change.

    Raises
    ------
    OutputImplausible
        A law is broken: shape, kind, numbers, bound, mean or padding.
    """
    if after.shape != before.shape or after.dtype != np.float32:
        raise OutputImplausible("the result has another shape or kind than the image")
    n, change, (least, most) = _changed(before, after, valid)
    if n == 0:
        return 0.0, 0.0
    moved, allowed = max(most, -least), strength * float(largest) * (1 + 1e-5)
    if moved > allowed:
        # The subtraction rounds in float32: half a unit in the last place of the largest value.
        low, high = _ends(before if n == before.size else before[valid])
        if moved > allowed + max(high, -low) * 2.0**-22:
            raise OutputImplausible(f"a voxel moved by {moved:g}, more than this engine may")
    mean = float(change.sum()) / n
    # Regions at the rim overlap less than those within: their bound is not quite that of the whole.
    if abs(mean) > 1.5 * LARGEST_MEAN_CHANGE[unit] * scale:
        raise OutputImplausible(f"the mean of a slice moved by {mean:g}")
    return moved, mean


_Ends = tuple[float, float]


def _ends(values: Floats) -> _Ends:
    """The least and the largest value; both NaN if one is NaN."""
    return float(values.min()), float(values.max())


def _changed(before: Floats, after: Floats, valid: Mask) -> tuple[int, Floats, _Ends]:
    """How many voxels are valid, the change of these, and its ends; the change of others, if there, is 0."""
    weights = weights_of(valid)
    with np.errstate(invalid="ignore", over="ignore"):
        change = after - before
        moved = _ends(change)
    if weights.whole:
        if not np.isfinite(moved).all():
            raise _no_numbers()
        return change.size, change, moved
    n = int(np.count_nonzero(valid))
    if not np.isfinite(moved).all():  # what is not valid may be anything
        change = change[valid]
        if not np.isfinite(change).all():
            raise _no_numbers()
        if not np.array_equal(after[~valid], before[~valid], equal_nan=True):
            raise _padding()
        if n:
            moved = _ends(change)
    elif ((change != 0) & ~valid).any():
        raise _padding()
    return n, change, moved


def _no_numbers() -> OutputImplausible:
    return OutputImplausible("the result holds values that are not numbers")


def _padding() -> OutputImplausible:
    return OutputImplausible("the result differs where nothing was reconstructed")
