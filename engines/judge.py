"""The last look at what an engine returned, whatever engine and runtime it is: nothing implausible leaves (R44).

The front door guards every slice while it is made. This looks at a finished slab from the outside, with nothing but
what went in and what came out, because a result may also be spoiled on its way: a batch whose slices were exchanged,
a buffer that was never written, a device that answers zeros. It changes nothing; a sound result passes, bit for bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines import guards, noise
from engines.base import Card, Floats, Mask, Survey, Volume
from engines.errors import OutputImplausible

SAMPLES = 1 << 15
"""Pixels of a slice that are compared with other slices."""
LEAST = 1 << 10
"""With fewer the noise of one slice is not told from that of another."""

BETTER, BY = 1.1, 0.02
"""A residual is another slice's if it fits that one so many times better than its own, and by so much. What engines
take from a slice fits its neighbours 0.9 times as well at the most (phantoms and patients, all shipped engines)."""


def judge(
    given: Volume,
    result: Volume,
    survey: Survey,
    *,
    card: Card,
    strength: float,
    first: int,
    keep: slice,
    n_skipped: int,
) -> None:
    """Refuse a slab that no sound engine returns.

    Parameters
    ----------
    given
        The slab as the engine was given it, neighbours included.
    result
        What came back for ``given[keep]``.
    survey
        Of the whole stack; ``first`` is the index in it of the slab's slice 0.
    n_skipped
        How many slices the engine says it left as they were.

    Raises
    ------
    OutputImplausible
    """
    factor = card.scale
    before, valid = given.values[keep], given.valid[keep]
    n, rows, columns = before.shape
    after = result.values
    if after.shape != (n, factor * rows, factor * columns):
        raise OutputImplausible("the engine returned another shape than it was asked for")
    if after.dtype != np.float32:
        raise OutputImplausible("the engine returned another kind of numbers than it was asked for")
    for i in range(n):
        if guards.all_finite(after[i]):
            continue
        inside = valid[i] if factor == 1 else np.repeat(np.repeat(valid[i], factor, 0), factor, 1)
        if not np.isfinite(after[i][inside]).all():
            raise OutputImplausible("the engine returned values that are not numbers")
    if card.family == "identity" or strength == 0:
        return
    sampled = after[:, ::factor, ::factor]
    sigmas = noise.steady(survey.sigma)[first : first + given.shape[0]]
    scale = noise.scale(survey, given.unit)
    same = np.array([_same(a, b) for a, b in zip(sampled, before, strict=True)])
    if factor == 1:
        if int(same.sum()) > n_skipped:
            raise OutputImplausible("slices came back as they were, and the engine does not say why")
        for k in np.flatnonzero(~same):
            _bounded(before[k], after[k], valid[k], float(sigmas[keep][k]), scale, card, strength)
        _own(given, sampled, sigmas, np.flatnonzero(~same), keep)
        return
    most = strength * card.bound * scale
    for a, b, v in zip(sampled, before, valid, strict=True):
        moved = float(np.abs(a - b)[v].max(initial=0.0))
        if moved > most * (1 + 1e-4) + float(np.abs(b[v]).max(initial=0.0)) * 2.0**-20:
            raise OutputImplausible(f"a voxel moved by {moved:g}, more than this engine may")


def _same(a: Floats, b: Floats) -> bool:
    """Whether two slices hold the same; what is not alike is mostly seen in a few rows."""
    return all(
        np.array_equal(a[rows], b[rows], equal_nan=True) for rows in (slice(None, None, 64), slice(None))
    )


def _bounded(
    before: Floats, after: Floats, valid: Mask, sigma: float, scale: float, card: Card, strength: float
) -> None:
    """Bound, mean and padding once more; and a slice of one value is none."""
    if not np.isfinite(sigma):
        raise OutputImplausible("a slice was changed whose noise could not be measured")
    largest = guards.limit(sigma, sigmas=card.bound_sigmas, cap=card.bound * scale)
    guards.check(before, after, valid, largest=largest, strength=strength, unit=card.unit, scale=scale)
    if _flat(after, valid) and not _flat(before, valid):
        raise OutputImplausible("the engine returned one value for a whole slice")


def _flat(values: Floats, valid: Mask) -> bool:
    few = values[::16, ::16][valid[::16, ::16]]
    if few.size and not (few == few[0]).all():
        return False
    seen = values[valid]
    return bool(seen.size) and bool((seen == seen[0]).all())


def _own(given: Volume, after: Floats, sigmas: Floats, changed: npt.NDArray[np.intp], keep: slice) -> None:
    """What was taken from a slice must fit that slice better than any other of the slab.

    Noise is independent from slice to slice, so what an engine takes for noise agrees with the fine texture of its
    own slice (first differences along the rows, edges clipped at four times their noise) and not with another's.
    Slices that are the same fit equally well.
    """
    start, n_given = range(given.shape[0])[keep].start, given.shape[0]
    step = max(1, given.shape[1] * given.shape[2] // SAMPLES)
    n_sampled = -(-given.shape[1] // step) * (given.shape[2] - 1)
    if n_given < 2 or not changed.size or n_sampled < LEAST:
        return
    t, r = (np.empty((n, n_sampled), np.float32) for n in (n_given, changed.size))
    for texture, values, valid, sigma in zip(t, given.values, given.valid, sigmas, strict=True):
        top = np.float32(4 * np.sqrt(2) * sigma) if np.isfinite(sigma) else np.float32(0)
        _texture(values[::step], valid[::step], texture)
        np.clip(texture, -top, top, out=texture)
    for taken, i in zip(r, changed, strict=True):
        where = start + int(i)
        _texture(given.values[where, ::step] - after[i, ::step], given.valid[where, ::step], taken)
    power = _products(r, t)  # residual of slice i with the texture of slice j
    size = np.sqrt(_squares(r)[:, None] * _squares(t)[None, :])
    fit = np.divide(power, size, out=np.zeros_like(power), where=size > 0)
    for row, i in enumerate(changed):
        own = start + int(i)
        better = (fit[row] > BETTER * max(fit[row, own], 0.0) + BY) & (power[row] > BETTER * power[row, own])
        if better.any():
            raise OutputImplausible(
                "what the engine took from a slice is the noise of another one: slices were exchanged"
            )


_PART = 512
"""So short a product is one of a single thread, whatever BLAS there is: threads of its own would wait for more work
on the processors that the network needs, and take as much as a third of its time."""


def _products(r: Floats, t: Floats) -> npt.NDArray[np.float64]:
    """What each line of ``r`` has in common with each of ``t``: sums of products."""
    n = r.shape[1] - r.shape[1] % _PART
    a, b = (v[:, :n].reshape(len(v), -1, _PART).transpose(1, 0, 2) for v in (r, t))
    found = np.matmul(a, b.transpose(0, 2, 1)).sum(axis=0, dtype=np.float64)
    found += r[:, n:].astype(np.float64) @ t[:, n:].astype(np.float64).T
    return np.asarray(found)


def _squares(lines: Floats) -> npt.NDArray[np.float64]:
    return np.array([np.square(line).sum() for line in lines], np.float64)


def _texture(rows: Floats, valid: Mask, out: Floats) -> None:
    """First differences along rows, one after the other in ``out``; 0 beside what is not valid."""
    difference = out.reshape(rows.shape[0], rows.shape[1] - 1)
    with np.errstate(invalid="ignore"):
        np.subtract(rows[:, 1:], rows[:, :-1], out=difference)
    if not valid.all():
        difference[~(valid[:, 1:] & valid[:, :-1])] = 0
