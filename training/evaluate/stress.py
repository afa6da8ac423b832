"""Inputs that an engine was not made for: what comes out must be safe, or the input itself.

They are drawn, not physics: streaks and a bolus as an engine meets them, with correlated noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def _noise(rng: np.random.Generator, shape: tuple[int, int, int], cutoff: float) -> Doubles:
    """Unit variance; amplitude sqrt(f) exp(-(f / cutoff)^2 / 2), f in cycles per pixel; 0 is white."""
    white = rng.standard_normal(shape)
    if cutoff == 0:
        return np.asarray(white)
    f = np.hypot(np.fft.fftfreq(shape[1])[:, None], np.fft.rfftfreq(shape[2])[None, :])
    out = np.fft.irfft2(np.fft.rfft2(white) * np.sqrt(f) * np.exp(-0.5 * (f / cutoff) ** 2), s=shape[1:])
    return np.asarray(out / out.std())


def ct(
    *, shape: tuple[int, int, int] = (3, 256, 256), sigma: float = 20.0, cutoff: float = 0.22, seed: int = 0
) -> Mapping[str, Floats]:
    """Return CT inputs in HU by name, rounded and clipped to -1024..3071.

    ``air`` (noise on -1000 HU, cut off below as scanners do), ``water`` (a uniform disc), ``metal`` (two pins
    of 3071 HU and streaks between and around them), ``bolus`` (vessels of 400 HU), ``zero`` (all 0),
    ``constant`` (no noise), ``white`` (water with white noise, which no CT has), ``loud`` (five times the
    noise), ``smooth`` (water whose noise was smoothed before).
    """
    rng = np.random.default_rng([seed, 11])
    y, x = np.mgrid[: shape[1], : shape[2]]
    half = min(shape[1:]) / 2
    v, u = (y - shape[1] / 2) / half, (x - shape[2] / 2) / half
    water = np.where(np.hypot(v, u) < 0.85, 0.0, -1000.0)[None] * np.ones(shape)
    grain = sigma * _noise(rng, shape, cutoff)
    pins = [(0.1, -0.35), (-0.05, 0.35)]
    streaks = np.zeros_like(v)
    metal = np.zeros(v.shape, np.bool_)
    for pv, pu in pins:
        angle, r = np.arctan2(v - pv, u - pu), np.hypot(v - pv, u - pu)
        streaks += 250 * np.sin(23 * angle) * np.exp(-2.5 * r)
        metal |= r < 0.04
    along = np.abs((v - 0.1) - (-0.15 / 0.7) * (u + 0.35))
    streaks -= 350 * np.exp(-((along / 0.03) ** 2)) * (np.abs(u) < 0.35)
    bolus = np.maximum(np.hypot(v + 0.2, u) < 0.1, np.hypot(v - 0.3, u - 0.3) < 0.03)
    made = {
        "air": np.full(shape, -1000.0) + grain,
        "water": water + grain,
        "metal": np.where(metal, 3071.0, water + streaks + grain),
        "bolus": water + 400.0 * ndimage.gaussian_filter(bolus.astype(float), 1.0) + grain,
        "zero": np.zeros(shape),
        "constant": water,
        "white": water + sigma * _noise(rng, shape, 0.0),
        "loud": water + 5 * grain,
        "smooth": water + ndimage.gaussian_filter(grain, (0, 2.5, 2.5)),
    }
    return {n: np.clip(np.rint(values), -1024, 3071).astype(np.float32) for n, values in made.items()}


def mr(
    *, shape: tuple[int, int, int] = (3, 256, 256), sigma: float = 0.05, scale: float = 800.0, seed: int = 0
) -> Mapping[str, Floats]:
    """Return MR inputs in arbitrary units by name, rounded.

    ``background`` (Rayleigh noise alone), ``uniform`` (a phantom's disc with Rician noise), ``spike`` (a
    k-space spike: stripes all over), ``ghost`` (a copy, displaced by half the field of view), ``zero``,
    ``constant``, ``loud`` (five times the noise), ``shading`` (a coil's fall-off by ten).

    Parameters
    ----------
    sigma
        Noise of either channel as a fraction of ``scale``.
    """
    rng = np.random.default_rng([seed, 12])
    y, x = np.mgrid[: shape[1], : shape[2]]
    half = min(shape[1:]) / 2
    v, u = (y - shape[1] / 2) / half, (x - shape[2] / 2) / half
    disc = (np.hypot(v, u) < 0.7).astype(float)[None] * np.ones(shape)

    def rician(signal: Doubles, spread: float) -> Doubles:
        a, b = spread * rng.standard_normal((2, *shape))
        return np.asarray(np.hypot(signal + a, b))

    stripes = 0.15 * np.cos(2 * np.pi * (0.11 * x + 0.07 * y))
    made = {
        "background": rician(np.zeros(shape), sigma),
        "uniform": rician(disc, sigma),
        "spike": rician(disc + stripes, sigma),
        "ghost": rician(disc + 0.1 * np.roll(disc, shape[1] // 2, axis=1), sigma),
        "zero": np.zeros(shape),
        "constant": disc,
        "loud": rician(disc, 5 * sigma),
        "shading": rician(disc * 10.0 ** (-0.5 * (1 + u)), sigma),
    }
    return {n: np.rint(np.maximum(values * scale, 0)).astype(np.float32) for n, values in made.items()}
