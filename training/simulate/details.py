"""Small things that a denoiser must not lose: lesions and vessels, drawn into a painted stack."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from engines.base import Floats


def add_lesions(
    values: Floats,
    brain: Floats,
    field: Floats,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> Floats:
    """Return the stack (z, y, x) with 0 to 25 lesions of 1 to 10 mm, -50 to +50 % of the tissue under them.

    Parameters
    ----------
    brain
        (z, y, x) share of brain in each voxel; lesions lie in it and change nothing else.
    field
        (z, y, x) random field that makes their borders irregular.
    """
    inside = np.argwhere(brain[len(brain) // 2, ::4, ::4] > 0.9) * 4
    count = int(rng.integers(0, 26)) if rng.random() < 0.7 else 0
    out = values.copy()
    _, rows, columns = values.shape
    dz, dy, dx = spacing_mm
    for _ in range(count if len(inside) else 0):
        cy, cx = inside[rng.integers(len(inside))] + rng.uniform(-2, 2, 2)
        cz = rng.normal(0, 0.5) * dz + (values.shape[0] - 1) / 2 * dz
        radii = 0.5 * np.exp(rng.uniform(0, np.log(10))) * rng.uniform(0.7, 1.3, 3)
        reach = int(np.ceil(1.6 * radii.max() / min(dy, dx))) + 2
        y0, y1 = max(int(cy) - reach, 0), min(int(cy) + reach + 1, rows)
        x0, x1 = max(int(cx) - reach, 0), min(int(cx) + reach + 1, columns)
        if y0 >= y1 or x0 >= x1:
            continue
        angle = rng.uniform(0, np.pi)
        y = (np.arange(y0, y1) - cy)[:, None] * dy
        x = (np.arange(x0, x1) - cx)[None, :] * dx
        a, b = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
        z = (np.arange(values.shape[0]) * dz - cz)[:, None, None]
        # A thick slice sees a small lesion whenever it touches it.
        depth = np.maximum(np.abs(z) - 0.4 * dz, 0) / max(radii[0], 0.3)
        distance = np.sqrt((a / radii[1]) ** 2 + (b / radii[2]) ** 2 + depth**2)
        window = np.s_[:, y0:y1, x0:x1]
        edge = (distance - 1 - 0.12 * field[window]) * float(radii.mean()) / rng.uniform(0.15, 0.6)
        mask = brain[window] / (1 + np.exp(np.clip(edge, -30, 30)))
        out[window] *= 1 + np.float32(rng.uniform(-0.5, 0.5)) * mask.astype(np.float32)
    return out


def _walk(
    shape: tuple[int, int, int], rng: np.random.Generator, pixel_mm: float
) -> tuple[Floats, Floats, Floats]:
    """Row, column (pixels) and height (mm) along a smooth random curve, four points per pixel."""
    n = int(rng.uniform(10, 60) / pixel_mm * 4)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12 * np.sqrt(pixel_mm / 4), n))
    along_y, along_x = np.cumsum(np.sin(heading)) / 4, np.cumsum(np.cos(heading)) / 4
    rise = rng.normal(0, 0.3) * np.arange(n) / 4 * pixel_mm
    y = rng.uniform(0, shape[1]) + along_y
    x = rng.uniform(0, shape[2]) + along_x
    z = rng.uniform(-4, 4) + rise
    return np.asarray(y, np.float32), np.asarray(x, np.float32), np.asarray(z, np.float32)


def add_vessels(
    values: Floats,
    inside: Floats,
    spacing_mm: tuple[float, float, float],
    thickness_mm: float,
    rng: np.random.Generator,
) -> Floats:
    """Return the stack with thin curved vessels, all bright or all dark, that run through several slices.

    Parameters
    ----------
    inside
        (z, y, x) share of each voxel in which vessels may show.
    """
    if rng.random() < 0.25:
        return values
    n, rows, columns = values.shape
    dz, pixel = spacing_mm[0], spacing_mm[1]
    heights = (np.arange(n) - (n - 1) / 2) * dz
    strength = rng.uniform(-0.7, 1.2)
    drawn = np.zeros(values.shape, dtype=np.float32)
    for radius in (0.4, 0.7, 1.1):
        points = np.zeros((n, rows, columns), dtype=np.float32)
        for _ in range(int(rng.integers(2, 18 if radius < 1 else 6))):
            y, x, z = _walk(values.shape, rng, pixel)
            weight = rng.uniform(0.3, 1.0)
            row, column = np.round(y).astype(int), np.round(x).astype(int)
            ok = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            for k, height in enumerate(heights):
                seen = np.exp(-np.square((z - height) / (0.5 * thickness_mm + radius)))
                np.add.at(points[k], (row[ok], column[ok]), (weight * seen[ok]).astype(np.float32))
        sigma = max(radius / pixel, 0.6)
        # Four points a pixel on a line blur to a ridge of height 4 / (sqrt(2 pi) sigma).
        share = min(1.0, 2 * radius / thickness_mm)
        drawn = np.maximum(drawn, gaussian_filter(points, (0, sigma, sigma)) * (0.63 * sigma * share))
    return np.asarray(values * (1 + np.float32(strength) * np.minimum(drawn, 1) * inside), dtype=np.float32)
