"""Wavelet shrinkage: spatially adaptive BayesShrink (Chang, Yu, Vetterli 2000) for correlated noise.

The transform is undecimated (no blocks, no dependence on where a tile begins). The noise of each subband
is not guessed from its coefficients, which hold structure, but computed from the measured spectrum of
the noise and the response of the filters. The threshold is sigma_noise^2 / sigma_signal with the signal's
spread measured in a small window around each coefficient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pywt

from engines import noise
from engines.base import Floats
from engines.box import box_sum
from engines.front import Task
from engines.tiles import tiled, up

GRID = 48
"""Points per axis at which spectra and responses are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveletShrinkage:
    """The core.

    Attributes
    ----------
    wavelet
        An orthogonal wavelet of PyWavelets.
    levels
        How many octaves are shrunk.
    window
        Radius of the window in which the signal's spread is measured.
    gain
        Factor on the noise's spread in every subband.
    """

    wavelet: str
    levels: int
    window: int
    gain: float
    threads: int = 1
    runtime: str = "PyWavelets"
    device: str = "cpu"

    @classmethod
    def of(cls, parameters: Mapping[str, Any], threads: int) -> WaveletShrinkage:
        """Build it from a card's parameters."""
        return cls(
            wavelet=str(parameters["wavelet"]),
            levels=int(parameters["levels"]),
            window=int(parameters["window"]),
            gain=float(parameters["gain"]),
            threads=threads,
        )

    @property
    def halo(self) -> int:
        # Synthesis mirrors analysis: together they reach (taps - 1) * (2^levels - 1) to either side.
        taps = int(pywt.Wavelet(self.wavelet).dec_len)
        return up((taps - 1) * (2**self.levels - 1) + self.window, 2**self.levels)

    @property
    def calls(self) -> int:
        return self.threads

    def residual(self, task: Task, *, tile: int) -> Floats:
        found = noise.estimate(task.values, task.valid, unit=task.unit, step=task.step)
        spectrum = np.array(found.spectrum or [1.0] * len(noise.band_frequencies()))
        variances = self.gain**2 * task.sigma**2 * _subbands(self.wavelet, self.levels, spectrum)
        function = partial(self.noise, variances=variances)
        return tiled(function, task.values, size=tile, halo=self.halo, alignment=2**self.levels)

    def noise(self, values: Floats, *, variances: npt.NDArray[np.float64]) -> Floats:
        """Return what is taken for noise.

        Parameters
        ----------
        variances
            (levels, 2) of the noise, from the finest level on: in mixed and in diagonal subbands.
        """
        n_rows, n_columns = values.shape
        side = 2**self.levels
        margin = self.halo
        below, right = up(n_rows, side) - n_rows + margin, up(n_columns, side) - n_columns + margin
        padded = np.pad(values, ((margin, below), (margin, right)), mode="symmetric")
        coefficients = pywt.swt2(padded, self.wavelet, self.levels, trim_approx=True, norm=True)
        removed: list[Any] = [np.zeros_like(coefficients[0])]
        for level, bands in zip(range(self.levels, 0, -1), coefficients[1:], strict=True):
            mixed, diagonal = (np.float32(v) for v in variances[level - 1])
            removed.append(
                tuple(self._taken(b, v) for b, v in zip(bands, (mixed, mixed, diagonal), strict=True))
            )
        rest = pywt.iswt2(removed, self.wavelet, norm=True)
        inner = rest[margin : margin + n_rows, margin : margin + n_columns]
        return np.ascontiguousarray(inner, dtype=np.float32)

    def _taken(self, band: Floats, variance: np.float32) -> Floats:
        """Return what soft thresholding takes away: clip(d, -t, t) with t = variance / signal's spread."""
        count = np.float32((2 * self.window + 1) ** 2)
        signal = np.sqrt(np.maximum(box_sum(band * band, self.window) / count - variance, np.float32(0)))
        threshold = np.divide(
            variance, signal, out=np.full_like(band, np.inf), where=signal > variance * np.float32(1e-6)
        )
        return np.clip(band, -threshold, threshold)


@cache
def _responses(wavelet: str, levels: int) -> npt.NDArray[np.float64]:
    """Squared gains (levels, 2, GRID, GRID) of mixed and diagonal subbands over the plane of frequencies."""
    bank = pywt.Wavelet(wavelet)
    f = (np.arange(GRID) + 0.5) / GRID - 0.5
    low = np.ones(GRID)
    out = np.empty((levels, 2, GRID, GRID))
    for level in range(levels):
        turn = np.exp(-2j * np.pi * np.outer(f * 2**level, np.arange(bank.dec_len)))
        a = np.abs(turn @ np.array(bank.dec_lo)) ** 2 / 2
        d = np.abs(turn @ np.array(bank.dec_hi)) ** 2 / 2
        out[level, 0] = np.outer(low * a, low * d)
        out[level, 1] = np.outer(low * d, low * d)
        low = low * a
    return out


def _subbands(wavelet: str, levels: int, spectrum: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Variances (levels, 2) of noise of unit variance with this spectrum, in every subband."""
    f = (np.arange(GRID) + 0.5) / GRID - 0.5
    density = np.interp(np.hypot(f[:, None], f[None, :]), noise.band_frequencies(), spectrum)
    density /= density.mean()
    return np.asarray((_responses(wavelet, levels) * density).mean(axis=(2, 3)))
