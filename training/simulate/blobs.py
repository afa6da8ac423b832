"""Small lesions put into patches: what a denoiser that minimises an error would rather not know.

A network that is shown few small lesions learns that a small dark spot is noise. So patches get some, with contrasts
around that of their noise, and errors at them count more than elsewhere (training/data/patches.py): both raise the
odds at which the network believes in a lesion. What that costs in noise reduction is little, and false lesions are
counted in the report.
"""

from __future__ import annotations

import numpy as np

from training.simulate.shapes import Floats, share

RADIUS = (0.9, 8.0)
"""In pixels."""

CONTRAST = (0.5, 6.0)
"""In units of the noise."""


def draw(
    rng: np.random.Generator, shape: tuple[int, int, int], unit: float, step: float
) -> tuple[Floats, Floats]:
    """Lesions of a patch of three slices.

    Parameters
    ----------
    shape
        (z, y, x).
    unit
        The noise: contrasts are multiples of it.
    step
        Distance of slices in pixels.

    Returns
    -------
    tuple
        What to add to the truth (z, y, x), and how much of a lesion there is in each pixel of the middle slice (y, x).
    """
    n, rows, columns = shape
    added, seen = np.zeros(shape, np.float32), np.zeros((rows, columns), np.float32)
    for _ in range(int(rng.integers(2, 9))):
        r = float(np.exp(rng.uniform(*np.log(RADIUS))))
        flat = float(rng.uniform(0.5, 1.0))
        height = float(np.exp(rng.uniform(*np.log(CONTRAST))) * unit * rng.choice([-1, 1]))
        cy, cx, cz = rng.uniform(0, rows), rng.uniform(0, columns), rng.normal(0, 0.4) * r
        reach = int(np.ceil(r)) + 3
        ys = slice(max(0, int(cy) - reach), min(rows, int(cy) + reach + 1))
        xs = slice(max(0, int(cx) - reach), min(columns, int(cx) + reach + 1))
        y = np.arange(ys.start, ys.stop)[:, None] - cy
        x = np.arange(xs.start, xs.stop)[None, :] - cx
        angle, soft = rng.uniform(0, np.pi), float(rng.uniform(0.25, 0.7))
        u, v = x * np.cos(angle) + y * np.sin(angle), (y * np.cos(angle) - x * np.sin(angle)) / flat
        for k in range(n):
            z = (k - n // 2) * step - cz
            there = share(np.sqrt(u * u + v * v + z * z) - r, soft)
            added[k, ys, xs] += height * there
            if k == n // 2:
                seen[ys, xs] = np.maximum(seen[ys, xs], there)
    return added, seen
