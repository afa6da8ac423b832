"""What an engine does to means, to small changes, to its own output and to turned images.

All of it for a black box: an ``engine`` here is any function from an array (z, y, x) or (y, x) to one of the
same shape, in the image's unit. It must be the whole engine with its guards and its *fixed* noise level:
where the noise is measured anew, a change of the input changes the strength, which is another question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines import guards
from training.errors import DataError
from training.evaluate.conventions import Mask, Values

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Function = Callable[[Floats], npt.NDArray[np.floating[Any]]]

LARGEST_MEAN_CHANGE_HU = 1.0
LARGEST_GAIN = 2.0
SHIFT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Size of a difference, in the image's unit."""

    rms: float
    largest: float


def _change(difference: Values) -> Change:
    d = np.asarray(difference, np.float64)
    return Change(rms=float(np.sqrt(np.mean(d**2))), largest=float(np.abs(d).max()))


def _run(engine: Function, values: Values) -> Doubles:
    given = np.ascontiguousarray(values, np.float32)
    out = np.asarray(engine(given), np.float64)
    if out.shape != given.shape:
        raise DataError(f"the engine made {out.shape} of {given.shape}")
    return out


def region_changes(
    before: Values,
    after: Values,
    spacing_mm: tuple[float, float, float],
    mask: Mask | None = None,
) -> Doubles:
    """Return mean(after - before) of every 32 mm region, at every place (z, y, x of its first corner).

    Regions of which less than half is in the mask count as 0 (engines/guards.py: law G3). The figure to
    publish is the largest absolute value; the bar is 1 HU.

    Parameters
    ----------
    before, after, mask
        (z, y, x).
    """
    if before.shape != after.shape or before.ndim != 3:
        raise DataError("before and after must have one shape (z, y, x)")
    rows, columns = guards.region_side(spacing_mm)
    side = (min(rows, before.shape[1]), min(columns, before.shape[2]))
    change = (np.asarray(after, np.float64) - np.asarray(before, np.float64)).astype(np.float32)
    valid = np.ones(before.shape, np.bool_) if mask is None else mask
    means = [
        guards.region_means(np.where(v, c, np.float32(0)), v, side)
        for c, v in zip(change, valid, strict=True)
    ]
    return np.stack(means)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """How much the engine amplifies small changes, see :func:`local_gain`.

    Attributes
    ----------
    largest
        The largest amplification that was met: a lower bound of the norm of the Jacobian. The bar is 2.
    last
        The amplification of the last direction: the spectral radius, where the iteration has settled.
    """

    largest: float
    last: float


def local_gain(
    engine: Function, image: Values, *, size: float, steps: int = 10, seed: int = 0, mask: Mask | None = None
) -> Gain:
    """Amplify a small change again and again: power iteration on the Jacobian by finite differences.

    v <- J v / |J v|, J v ~ (f(x + h v) - f(x - h v)) / (2 h). It needs J alone, not its transpose, so it finds
    the spectral radius, which is the norm where J is symmetric (nearly so for denoisers).

    Parameters
    ----------
    engine
        See the module.
    image
        x, (z, y, x) or (y, x).
    size
        RMS of the change h v, in the image's unit: a tenth of the noise or so. Rounding in the engine must be
        well below it.
    steps
        How many; each costs two runs.
    mask
        Where changes are made and looked at; None means everywhere.
    """
    where = np.ones(image.shape, np.bool_) if mask is None else mask
    rng = np.random.default_rng(seed)
    x = np.asarray(image, np.float64)

    def scaled(v: Doubles) -> tuple[Doubles, float]:
        v = np.where(where, v, 0.0)
        rms = float(np.sqrt(np.mean(v[where] ** 2)))
        return (v / rms if rms > 0 else v), rms

    direction, _ = scaled(np.asarray(rng.standard_normal(x.shape)))
    gains = []
    for _ in range(steps):
        moved = _run(engine, x + size * direction) - _run(engine, x - size * direction)
        direction, gain = scaled(moved / (2 * size))
        gains.append(gain)
        if gain == 0:
            break
    return Gain(largest=max(gains), last=gains[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotence:
    """f(f(x)) against f(x): ``again`` is what the second pass changes, ``first`` what the first did;
    ``ratio`` is the RMS of again over that of first (0: a projection; 1: it never stops)."""

    first: Change
    again: Change
    ratio: float


def idempotence(engine: Function, image: Values) -> Idempotence:
    """Run an engine on its own output, as happens when a series comes twice."""
    once = _run(engine, image)
    twice = _run(engine, once)
    first, again = _change(once - image), _change(twice - once)
    return Idempotence(
        first=first, again=again, ratio=again.rms / first.rms if first.rms > 0 else float("nan")
    )


def metamorphic(
    engine: Function, image: Values, *, shift: int = SHIFT, margin: int = 0
) -> Mapping[str, Change]:
    """Return how far the engine is from doing the same to a turned image: T^-1 f(T x) - f(x), by name of T.

    ``flip y``, ``flip x``, ``rotate 90``, ``shift y``, ``shift x`` (of square or other images alike). A
    classical filter commutes with flips to rounding; a network learned to, more or less: the figures belong
    beside the noise. Shifts by the network's alignment (8 pixels) must agree to rounding away from the rim.

    Parameters
    ----------
    shift
        In pixels; the image is rolled, so a rim of ``shift + margin`` pixels is left out.
    margin
        Pixels at every side that are left out, the receptive field say.
    """
    if min(image.shape[-2:]) <= 2 * (shift + margin):
        raise DataError("the image is too small for this shift and margin")
    plain = _run(engine, image)
    turns: dict[str, tuple[Callable[[Values], Values], Callable[[Values], Values], int]] = {
        "flip y": (lambda v: v[..., ::-1, :], lambda v: v[..., ::-1, :], margin),
        "flip x": (lambda v: v[..., ::-1], lambda v: v[..., ::-1], margin),
        "rotate 90": (
            lambda v: np.rot90(v, 1, (-2, -1)),
            lambda v: np.rot90(v, -1, (-2, -1)),
            margin,
        ),
        "shift y": (
            lambda v: np.roll(v, shift, -2),
            lambda v: np.roll(v, -shift, -2),
            margin + shift,
        ),
        "shift x": (
            lambda v: np.roll(v, shift, -1),
            lambda v: np.roll(v, -shift, -1),
            margin + shift,
        ),
    }
    found = {}
    for name, (there, back, rim) in turns.items():
        difference = back(_run(engine, there(image))) - plain
        rows, columns = difference.shape[-2:]
        found[name] = _change(difference[..., rim : rows - rim, rim : columns - rim])
    return found


def gain_map(
    before: Mapping[tuple[str, ...], float], after: Mapping[tuple[str, ...], float]
) -> dict[tuple[str, ...], float]:
    """Return gain in dB of each cell of a matrix (dose, kernel, thickness, ...): 20 log10(before / after).

    Parameters
    ----------
    before, after
        Windowed RMSE by cell.
    """
    if set(before) != set(after):
        raise DataError("the cells before and after are not the same")
    if any(v <= 0 for v in (*before.values(), *after.values())):
        raise DataError("an error of 0 has no gain in dB")
    return {cell: float(20 * np.log10(before[cell] / after[cell])) for cell in before}
