"""Noise as scanners make it: correlated quantum noise for CT, Rician noise for MR (models.md 4.1, 4.2)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import fft

from node.trial.shapes import Field

MU_WATER = 0.0192
"""Linear attenuation of water at about 70 keV, per mm."""


class QuantumNoise:
    """Noise of a filtered back-projection, coloured and directed by what the rays had to pass.

    The plane of spatial frequencies is cut into sectors. Noise in one sector comes from the projections at
    one angle; its strength at a point is that of the ray through that point at that angle, so that long
    paths (side to side through the shoulders and the spine) give stronger noise, elongated along the path:
    streaks. Within each sector the power goes as f exp(-(f / fc)^2), ramp times kernel.

    Parameters
    ----------
    size
        Pixels a side.
    pixel
        In mm.
    cut
        ``fc`` in cycles per pixel.
    sectors
        Number of angles.
    """

    def __init__(self, size: int, pixel: float, cut: float = 0.2, sectors: int = 6) -> None:
        self.size, self.pixel, self.sectors = size, pixel, sectors
        fy = fft.fftfreq(size).astype(np.float32)[:, None]
        fx = fft.rfftfreq(size).astype(np.float32)[None, :]
        f = np.hypot(fx, fy)
        root = np.sqrt(f * np.exp(-((f / cut) ** 2)))
        angle = np.mod(np.arctan2(fy, fx), np.pi)
        self._bands: list[Field] = []
        for k in range(sectors):
            # Overlapping raised cosines, which add to one: equal rays give back the spectrum itself.
            away = np.abs(np.mod(angle - k * np.pi / sectors + np.pi / 2, np.pi) - np.pi / 2)
            weight = np.cos(np.clip(away * sectors / np.pi, 0, 1) * np.pi / 2) ** 2
            self._bands.append((root * weight).astype(np.float32))
        power = float((root.astype(np.float64) ** 2 * _multiplicity(size)).sum()) / size**2
        self._scale = 1 / math.sqrt(power)
        # Where on the detector each pixel falls, per angle, in units of a coarse bin.
        self._coarse = max(1, size // 128)
        m = size // self._coarse
        line = (np.arange(m) - (m - 1) / 2) * pixel * self._coarse
        cx, cy = np.meshgrid(line, line)
        fine = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * pixel
        self._bins = int(1.5 * m)
        bin_mm = pixel * self._coarse
        self._project, self._back = [], []
        for k in range(sectors):
            t = k * np.pi / sectors  # direction of the detector; the rays run across it
            c, s = np.cos(t), np.sin(t)
            self._project.append(
                np.floor((cx * c + cy * s) / bin_mm + self._bins / 2).astype(np.intp).ravel()
            )
            at = (fine[None, :] * c + fine[:, None] * s) / bin_mm * 8 + self._bins * 4
            self._back.append(np.rint(at).astype(np.int32))
        self._fine = np.arange(self._bins * 8) / 8 - 0.5  # in units of bins, whose centres are at halves

    def strength(self, hu: Field) -> list[npt.NDArray[np.float32]]:
        """Per sector, the noise of the rays over the fine detector, 1 for rays through air."""
        q = self._coarse
        m = self.size // q
        mu = np.maximum(hu[: m * q, : m * q].reshape(m, q, m, q).mean(axis=(1, 3)) + 1000, 0) * (
            MU_WATER / 1000
        )
        profiles = []
        for where in self._project:
            path = np.bincount(where, weights=mu.ravel(), minlength=self._bins)[: self._bins] * (
                self.pixel * q
            )
            path = np.convolve(path, (0.25, 0.5, 0.25), mode="same")
            # A bow-tie filter gives the edge less to begin with, which softens the fall.
            noise = np.exp(np.clip(path, 0, 7.5) / 2 * 0.86)
            profiles.append(np.interp(self._fine, np.arange(self._bins), noise).astype(np.float32))
        return profiles

    def sample(self, white: Field, profiles: list[npt.NDArray[np.float32]]) -> Field:
        """Coloured noise from white noise of unit variance; unit variance where all rays went through air."""
        spectrum = fft.rfft2(white)
        out = np.zeros_like(white)
        for band, at, profile in zip(self._bands, self._back, profiles, strict=True):
            part = fft.irfft2(spectrum * band, s=white.shape).astype(np.float32)
            out += part * profile[at]
        out *= self._scale
        return out


def _multiplicity(size: int) -> npt.NDArray[np.float64]:
    """How often each column of a half spectrum counts in the whole one."""
    m = np.full(size // 2 + 1, 2.0)
    m[0] = 1.0
    if size % 2 == 0:
        m[-1] = 1.0
    return m[None, :]


def rician(
    rng: np.random.Generator,
    image: Field,
    phase: Field,
    sigma: float,
    acquired: tuple[float, float],
    partial: float = 1.0,
) -> Field:
    """Magnitude of a noisy acquisition whose k-space was filled up with zeros.

    Parameters
    ----------
    image
        Noise-free magnitude (y, x).
    phase
        Its phase in radians.
    sigma
        Standard deviation of the noise in each of the real and imaginary parts of the final image.
    acquired
        Share of k-space lines acquired along (y, x); the rest is zero, so noise is correlated.
    partial
        Partial Fourier: share of the acquired lines along y that were really measured, 0.5 to 1.
    """
    n, m = image.shape
    k = fft.fftshift(fft.fft2(image * np.exp(1j * phase)))
    ky = np.abs(np.arange(n) - n // 2)[:, None] / (n / 2)
    kx = np.abs(np.arange(m) - m // 2)[None, :] / (m / 2)
    # Scanners soften the corner of the window a little; a hard edge rings more than what one sees.
    mask = _roll_off(ky / acquired[0]) * _roll_off(kx / acquired[1])
    if partial < 1:
        first = n // 2 - (partial - 0.5) * acquired[0] * n
        mask = mask * np.clip((np.arange(n)[:, None] - first) / 4 + 0.5, 0, 1)
    measured = mask > 0
    noise = rng.standard_normal((n, m)) + 1j * rng.standard_normal((n, m))
    level = sigma * np.sqrt(n * m) / np.sqrt(float((mask**2).mean()))
    k = k * mask + np.where(measured, noise * mask, 0) * level
    out: Field = np.abs(fft.ifft2(fft.ifftshift(k))).astype(np.float32)
    return out


def _roll_off(u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 inside, a cosine edge over the last tenth, 0 outside."""
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * np.clip((u - 0.88) / 0.12, 0, 1)))
