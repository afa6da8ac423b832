"""From what a core says of a slice to the slice that comes back: guard, blend, check. One slice at a time.

What depends on other slices (noise steadied over z, the scale of the series) comes in as numbers, so slices
may be finished in any order and beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines import guards, noise
from engines.base import Card, Floats, Mask, Unit
from engines.box import box_mean
from engines.sinc import doubled, repeated

TOO_LOW = 1.25
"""The noise as measured may be this much too low (law of engines/noise.py)."""

BODY = {"HU": -950.0, "arbitrary": 0.1}
"""Above this, in HU or as a fraction of the series scale, lies what a decoder has to draw."""

STRANGE = "unlike anything this engine has seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What is known of one slice: its stored values (padding included), what is valid of them, its noise.

    ``filled`` are the values with padding replaced; ``scale`` is that of the series (1 for HU).
    """

    values: Floats
    filled: Floats
    valid: Mask
    sigma: float
    scale: float
    unit: Unit
    step: float
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished slice and its figures, in the unit of the volume.

    ``reason`` says why it was left as it was, or "". ``texture`` is the noise that is left, None where it was not
    looked at.
    """

    values: Floats
    reason: str = ""
    largest: float = 0.0
    mean: float = 0.0
    texture: noise.Noise | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """What a core said of a slice, float32.

    Attributes
    ----------
    worst
        None: it is as the core said it. Else it went through :func:`engines.guards.guarded` elsewhere, up to
        the last round of :func:`engines.guards.hold_regions`, and this is the largest mean of a region since.
    """

    values: Floats
    worst: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What :func:`engines.guards.guarded` is given for a slice of the matrix that came in."""

    largest: np.float32
    radius: int
    side: tuple[int, int]
    tolerance: float


def limits(
    card: Card, *, sigma: float, scale: float, unit: Unit, spacing_mm: tuple[float, float, float]
) -> Limits:
    """The bounds of a slice's residual (``card.scale`` 1), in the unit of the volume and in pixels."""
    return Limits(
        largest=guards.limit(sigma, sigmas=card.bound_sigmas, cap=card.bound * scale),
        radius=int(card.parameters.get("lock", 32)),
        side=guards.region_side(spacing_mm),
        tolerance=0.98 * guards.LARGEST_MEAN_CHANGE[unit] * scale,
    )


def plain(values: Floats, filled: Floats, valid: Mask, factor: int) -> Floats:
    """The slice to which nothing was done: itself, or interpolated, its padding repeated."""
    if factor == 1:
        return values
    wide = doubled(filled)
    if not valid.all():
        np.copyto(wide, repeated(values), where=~repeated(valid))
    return wide


def reconstruction_error(residual: Floats, one: Slice) -> float:
    """What a decoder cannot draw of a slice beyond its noise: sqrt(max(0, rms(r)^2 - (1.25 sigma)^2)).

    The residual of an autoencoder is the slice less what the decoder made of it: noise, and whatever is
    unlike the slices that it learned. The mean is over the body (CT: above -950 HU; MR: above a tenth of
    the series scale), so that the air around a small patient dilutes nothing. The noise is taken out at the
    most that its estimate may be wrong by, so that noise alone is never strange.

    Returns
    -------
    float
        HU, or a fraction of the series scale; 0 where there is no body.
    """
    body = one.valid & (one.filled > BODY[one.unit] * one.scale)
    seen = residual[body].astype(np.float64)
    if seen.size == 0:
        return 0.0
    excess = float((seen * seen).mean()) - (TOO_LOW * one.sigma) ** 2
    return float(np.sqrt(max(0.0, excess))) / one.scale


TRUST_RADIUS = 4
"""Of the windows in which an autoencoder's residual is compared with noise: 9 x 9 pixels, as in its training."""


def trusted(residual: Floats, sigma: float, trust: float) -> Floats:
    """Weaken an autoencoder's residual where it is stronger than noise: there is structure in it.

    A decoder cannot draw everything, and what it cannot draw is no noise. The residual is believed where its power
    over a small window is at most ``trust`` times that of the noise, and multiplied by trust sigma^2 / power where
    it is more (training/networks/dae.py trains with the same rule).
    """
    power = box_mean(residual * residual, TRUST_RADIUS, np.ones(residual.shape, np.bool_))
    most = np.float32(trust * sigma * sigma)
    return residual * np.divide(most, power, out=np.ones_like(power), where=power > most)


def restored(
    residual: Floats,
    one: Slice,
    card: Card,
    strength: float,
    *,
    looked: bool,
    worst: float | None = None,
    into: Floats | None = None,
) -> Outcome:
    """Finish a slice.

    Parameters
    ----------
    residual
        float32, what the core returned: noise (y, x), or with ``card.scale`` 2 detail (2 y, 2 x).
    worst
        Of a residual that was guarded elsewhere, see :class:`Residual`; never of an autoencoder's, nor with
        ``card.scale`` 2. Whatever it says, :func:`engines.guards.check` looks at the result.
    looked
        Whether the noise is to be measured afterwards.
    into
        Where a slice that is changed is laid down, (y, x) or (2 y, 2 x); None: in an array of its own.

    Raises
    ------
    engines.errors.OutputImplausible
        A guard broke.
    """
    factor, valid = card.scale, one.valid
    before = plain(one.values, one.filled, valid, factor)
    error = None
    if card.family == "autoencoder":
        guards.finite(residual)
        error = reconstruction_error(residual, one)
        limit = card.parameters.get("ood_limit")
        if limit is not None and error > float(limit):
            return Outcome(values=before, reason=STRANGE, error=error)
        if "trust" in card.parameters:
            residual = trusted(residual, one.sigma, float(card.parameters["trust"]))
    bounds = limits(card, sigma=one.sigma, scale=one.scale, unit=one.unit, spacing_mm=one.spacing_mm)
    largest = bounds.largest
    if worst is not None:
        safe = guards.weaken_regions(residual, valid, bounds.side, bounds.tolerance, worst)
    elif factor == 1:
        safe = guards.guarded(
            residual,
            valid,
            largest=largest,
            radius=bounds.radius,
            side=bounds.side,
            tolerance=bounds.tolerance,
        )
    else:
        valid = repeated(valid)
        largest = np.float32(card.bound * one.scale)
        detail = guards.guarded_detail(
            residual,
            valid,
            largest=largest,
            radius=factor * bounds.radius,
            side=(factor * bounds.side[0], factor * bounds.side[1]),
            tolerance=bounds.tolerance,
        )
        safe = np.negative(detail)
    after = guards.blend(before, safe, strength, into)
    change = guards.check(
        before, after, valid, largest=largest, strength=strength, unit=one.unit, scale=one.scale
    )
    texture = None
    if looked:
        # Of a doubled slice the samples where the stored ones lie: between them noise is no plateau.
        now = np.ascontiguousarray(after[::factor, ::factor])
        texture = noise.estimate(now, one.valid, unit=one.unit, step=one.step)
    return Outcome(values=after, largest=change[0], mean=change[1], texture=texture, error=error)
