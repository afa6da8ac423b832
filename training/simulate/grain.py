"""Correlated CT noise in the image domain: fast enough to be drawn anew for every patch.

The amplitude spectrum is that of a filtered back projection, f^p exp(-(f/fc)^2 / 2) with p about one half (the
ramp's share, halved because power is its square), bent along a direction as it is near the long axis of a body,
and its strength varies over the slice. Inserting such noise agrees with insertion into projections (Divel and
Pelc, IEEE TMI 39(6), 2020). White noise is no CT noise and is never drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft2, rfft2

from training.simulate.shapes import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Grain:
    """How noise looks.

    Attributes
    ----------
    cutoff
        fc in cycles per pixel: 0.12 is a very soft kernel, 0.45 a very sharp one.
    power
        p: 0.5 is filtered back projection, less is what iterative reconstruction leaves.
    bend, direction
        How much stronger frequencies along a direction (radians) are.
    linked
        Correlation of neighbouring slices, 0 to 1 (overlapping slices).
    tilt
        Logarithm of the strength across the patch: (y, x, yx, y^2, x^2).
    """

    cutoff: float
    power: float = 0.5
    bend: float = 0.0
    direction: float = 0.0
    linked: float = 0.0
    tilt: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)


def draw(rng: np.random.Generator) -> Grain:
    """Draw a kernel, wider than scanners have them."""
    return Grain(
        cutoff=float(np.exp(rng.uniform(np.log(0.11), np.log(0.5)))),
        power=float(rng.choice([0.5, 0.5, rng.uniform(0.2, 0.7)])),
        bend=float(rng.choice([0.0, rng.uniform(0, 0.7)])),
        direction=float(rng.uniform(0, np.pi)),
        linked=float(rng.choice([0.0, 0.0, rng.uniform(0, 0.85)])),
        tilt=tuple(float(v) for v in rng.normal(0, (0.18, 0.18, 0.1, 0.12, 0.12))),
    )


def spectrum(grain: Grain, shape: tuple[int, int]) -> Floats:
    """Amplitude over the half plane of :func:`numpy.fft.rfft2`; (rows, columns // 2 + 1)."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    f = np.hypot(fy, fx)
    made = np.power(np.maximum(f, 1e-9), grain.power) * np.exp(-0.5 * (f / grain.cutoff) ** 2)
    made[0, 0] = 0.0
    if grain.bend:
        angle = np.arctan2(fy, fx)
        made = made * (1 + grain.bend * np.cos(2 * (angle - grain.direction)))
    return np.asarray(made, np.float32)


def noise(grain: Grain, shape: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """Noise (z, y, x) whose standard deviation is 1 in the mean."""
    n, rows, columns = shape
    white = rng.standard_normal((n, rows, columns), np.float32)
    if grain.linked and n > 1:
        keep = np.float32(np.sqrt(1 - grain.linked**2))
        for z in range(1, n):
            white[z] = np.float32(grain.linked) * white[z - 1] + keep * white[z]
    amplitude = spectrum(grain, (rows, columns))
    made = irfft2(rfft2(white) * amplitude, s=(rows, columns))
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None, :]
    a, b, c, d, e = grain.tilt
    strength = np.exp(a * y + b * x + c * y * x + d * (y * y - 1 / 3) + e * (x * x - 1 / 3))
    made = made * strength
    return np.asarray(made / np.sqrt(np.square(made).mean()), np.float32)
