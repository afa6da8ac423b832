"""What all synthetic MR truths share: random fields in millimetres, coils, point spread, scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter1d

from engines.base import Floats

MATRICES = (192, 224, 256, 288, 320, 384)


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """A noise-free stack.

    Attributes
    ----------
    values
        float32 (z, y, x), air 0, the 99th percentile of positive voxels 1.
    spacing_mm
        Between slice centres, rows and columns.
    contrast
        What it looks like, for records.
    """

    values: Floats
    spacing_mm: tuple[float, float, float]
    contrast: str


def textures(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], rng: np.random.Generator, n: int
) -> Floats:
    """Return ``n`` random fields (n, z, y, x), mean 0 and standard deviation 1, of fine to coarse grain.

    Each is white noise with a spectrum of its own: a Gaussian, a ring, or a power law. Neighbour slices are
    as alike as the grain is coarse against the slice spacing.
    """
    dz, dy, dx = spacing_mm
    f = np.hypot(fft.fftfreq(shape[1], dy)[:, None], fft.rfftfreq(shape[2], dx)[None, :]).astype(np.float32)
    out = np.empty((n, *shape), dtype=np.float32)
    lengths = np.exp(np.linspace(np.log(1.2 * max(dy, dx)), np.log(14.0), n) + rng.normal(0, 0.25, n))
    for field, length in zip(out, lengths, strict=True):
        kind = int(rng.integers(3))
        if kind == 0:
            spectrum = np.exp(-((f * length * 1.5) ** 2))
        elif kind == 1:
            spectrum = np.exp(-(((f * 3 * length - 1) / 0.6) ** 2))
        else:
            spectrum = (f + 0.1 / length) ** np.float32(-rng.uniform(0.8, 1.8)) * np.exp(-((f * length) ** 2))
            spectrum[0, 0] = 0
        white = rng.standard_normal(shape, dtype=np.float32)
        coloured = fft.irfft2(fft.rfft2(white) * spectrum, s=shape[1:])
        apart = np.arange(shape[0], dtype=np.float32) * dz
        alike = np.exp(-np.square((apart[:, None] - apart[None, :]) / (2 * length)))
        values, vectors = np.linalg.eigh(alike)
        root = ((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T).astype(np.float32)
        mixed = np.tensordot(root, coloured, axes=1)
        field[:] = mixed / max(float(mixed.std()), 1e-9)
    return out


def shading(shape: tuple[int, int, int], rng: np.random.Generator, depth: float) -> Floats:
    """Return a coil's shading (1, y, x): a product of slow curves, around 1, about +-``depth``."""
    lines = []
    for n in shape[1:]:
        t = np.linspace(-1, 1, n, dtype=np.float32)
        a, b, c = rng.uniform(-1, 1, 3)
        lines.append(
            1 + np.float32(depth / 2) * (a * t + b * (1.5 * t * t - 0.5) + c * np.sin(2 * np.pi * t) / 2)
        )
    return np.asarray(np.maximum(lines[0][None, :, None] * lines[1][None, None, :], 0.05), dtype=np.float32)


def scaled(values: Floats) -> Floats:
    """Return the values at or above 0, with the 99th percentile of the positive ones at 1."""
    values = np.maximum(values, 0)
    positive = values[values > 0]
    if positive.size == 0:
        return np.asarray(values, dtype=np.float32)
    high = float(np.partition(positive, int(0.99 * (positive.size - 1)))[int(0.99 * (positive.size - 1))])
    return np.asarray(values / high, dtype=np.float32)


def finished(values: Floats, rng: np.random.Generator) -> Floats:
    """Return a stack as a scanner would show it without noise: shaded, blurred in the slice, gamma, scaled."""
    if rng.random() < 0.75:
        values = values * shading((1, *values.shape[1:]), rng, float(rng.uniform(0.05, 0.6)))
    blur = float(rng.uniform(0.3, 0.55))
    stretch = float(rng.uniform(0.8, 1.25))
    for axis, sigma in ((1, blur * stretch), (2, blur / stretch)):
        values = gaussian_filter1d(values, sigma, axis=axis, truncate=3.0)
    values = scaled(values)
    if rng.random() < 0.5:
        values = scaled(values ** np.float32(rng.uniform(0.75, 1.3)))
    return values
