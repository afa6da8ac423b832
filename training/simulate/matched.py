"""From the noise that was measured in a series to the filter that makes more of the same grain.

Filtered back projection of white noise with the gain G on the ramp has the power spectrum ``f G(f)^2``
(S. Riederer, N. Pelc, D. Chesler, Phys Med Biol 23 (1978) 446). What is known of a series is its spectrum in a few
bands of the block cosine transform (:mod:`engines.noise`), which leak into each other. So the spectrum is sought
whose bands, leaks included, are those measured: a smooth curve times a smooth correction.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from engines.noise import BLOCK, band_frequencies
from training.errors import DataError

Doubles = npt.NDArray[np.float64]

HIGHEST = 0.72
N_GRID = 96
N_ROUNDS = 6
LARGEST_CORRECTION = 6.0


@cache
def _leakage() -> tuple[Doubles, Doubles]:
    """Radii of a grid of spatial frequencies (n,), and what a unit of power at each adds to the bands (bands, n)."""
    frequency = (np.arange(N_GRID) + 0.5) / (2 * N_GRID)
    x, k = np.arange(BLOCK), np.arange(BLOCK)[:, None]
    basis = np.cos(np.pi * (2 * x + 1) * k / (2 * BLOCK)) * np.sqrt(np.where(k == 0, 1, 2) / BLOCK)
    power = np.abs(basis @ np.exp(-2j * np.pi * np.outer(x, frequency))) ** 2 / N_GRID
    radius = np.hypot(*np.meshgrid(np.arange(BLOCK), np.arange(BLOCK)))
    slopes = np.add.outer(np.arange(BLOCK), np.arange(BLOCK)) < 3
    rows = []
    for ring in range(1, len(band_frequencies()) + 1):
        members = np.argwhere((np.floor(radius / 2).astype(int) == ring) & ~slopes)
        rows.append(np.mean([np.outer(power[u], power[v]) for u, v in members], axis=0).ravel())
    return np.hypot(*np.meshgrid(frequency, frequency)).ravel(), np.array(rows)


def bands_of(spectrum: Doubles, frequency: Doubles) -> Doubles:
    """Return the band levels that :func:`engines.noise.estimate` has, on average, for noise of this spectrum.

    Parameters
    ----------
    spectrum, frequency
        Power at cycles per pixel, (n,) each; linear between, constant beyond.

    Returns
    -------
    numpy.ndarray
        (bands,); white noise of variance 1 has 1 everywhere.
    """
    radius, leakage = _leakage()
    return np.asarray(leakage @ np.interp(radius, frequency, spectrum))


def matched_gain(levels: Doubles) -> tuple[tuple[float, float], ...]:
    """Gain on the ramp whose noise has these band levels, up to a factor.

    Parameters
    ----------
    levels
        :attr:`engines.noise.Noise.spectrum` of the series (or a mean of several).

    Returns
    -------
    tuple
        Pairs (cycles per pixel, gain), for :attr:`training.simulate.dose.Kernel.table`; the largest gain is 1.

    Raises
    ------
    DataError
        If a level is not above zero.
    """
    bands = np.array(band_frequencies())
    wanted = np.asarray(levels, np.float64)
    if wanted.shape != bands.shape or not (wanted > 0).all():
        raise DataError("the noise spectrum of the series could not be measured", hint="give a kernel")
    frequency = np.linspace(0.0, HIGHEST, 73)

    def misfit(predicted: Doubles) -> Doubles:
        ratio = np.log(wanted / predicted)
        return np.asarray(ratio - ratio[:3].mean())

    cutoffs = np.geomspace(0.06, 1.5, 60)
    shapes = [frequency * np.exp(-((frequency / c) ** 2)) for c in cutoffs]
    strength = np.sqrt(wanted / wanted.max())
    start = min(shapes, key=lambda s: float((strength * misfit(bands_of(s, frequency)) ** 2).sum()))
    correction = np.zeros_like(bands)
    bound = np.log(LARGEST_CORRECTION)
    for _ in range(N_ROUNDS):
        spectrum = start * np.exp(np.interp(frequency, bands, correction))
        correction = np.clip(correction + 0.7 * misfit(bands_of(spectrum, frequency)), -bound, bound)
    spectrum = start * np.exp(np.interp(frequency, bands, correction))
    gain = np.sqrt(spectrum[1:] / frequency[1:])
    gain = np.concatenate((gain[:1], gain)) / gain.max()
    return tuple(zip(frequency.tolist(), gain.tolist(), strict=True))
