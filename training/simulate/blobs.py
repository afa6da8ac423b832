"""Small lesions put into patches: what a denoiser that minimises an error would rather not know.

A network that is shown few small lesions learns that a small dark spot is noise. So patches get some, with contrasts
around that of their noise, and errors at them count more than elsewhere (training/data/patches.py): both raise the
odds at which the network believes in a lesion. A ruler tells how much of them a change takes away: with it the
network can be asked for the same residual with and without them. What that costs in noise reduction is little, and
false lesions are counted in the report.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.simulate.shapes import Floats, share

RADIUS = (0.9, 8.0)
"""In pixels."""

LARGE = (8.0, 32.0)
"""Of the discs that lie under them where they are asked for, as an insert or an organ does: for edges."""

CONTRAST = (0.5, 6.0)
"""In units of the noise."""

TELLING = (1.5, 0.8)
"""Radius and contrast from which the ruler measures: what is smaller or weaker nobody can tell from noise."""

NEAR = 3.0
"""Pixels around a lesion in which the ruler measures."""

RIM = 6.0
"""Pixels within the edge of a large one in which it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blobs:
    """Lesions of a patch.

    Attributes
    ----------
    added
        What to add to the truth, float32 (z, y, x).
    seen
        How much of a lesion there is in each pixel of the middle slice, (y, x), 0 to 1.
    ruler
        Weights of the square of a change of the middle slice, (y, x): their sum with it is how much of the lesions it
        takes away, as a share of their contrast, squared; the mean over the lesions that tell. All 0 without any.
    """

    added: Floats
    seen: Floats
    ruler: Floats


def draw(
    rng: np.random.Generator, shape: tuple[int, int, int], unit: float, step: float, *, large: float = 0.0
) -> Blobs:
    """Draw the lesions of a patch of three slices.

    Parameters
    ----------
    shape
        (z, y, x).
    unit
        The noise: contrasts are multiples of it.
    step
        Distance of slices in pixels.
    large
        Share of patches with a large disc under the lesions.
    """
    n, rows, columns = shape
    added, seen = np.zeros(shape, np.float32), np.zeros((rows, columns), np.float32)
    ruler, n_telling = np.zeros((rows, columns), np.float32), 0
    n_large = int(large > 0 and rng.random() < large)
    for k in range(n_large + int(rng.integers(2, 9))):
        r = float(np.exp(rng.uniform(*np.log(LARGE if k < n_large else RADIUS))))
        flat = float(rng.uniform(0.5, 1.0))
        contrast = float(np.exp(rng.uniform(*np.log(CONTRAST))))
        height = contrast * unit * float(rng.choice([-1, 1]))
        cy, cx, cz = rng.uniform(0, rows), rng.uniform(0, columns), rng.normal(0, 0.4) * r
        reach = int(np.ceil(r)) + 3
        ys = slice(max(0, int(cy) - reach), min(rows, int(cy) + reach + 1))
        xs = slice(max(0, int(cx) - reach), min(columns, int(cx) + reach + 1))
        y = np.arange(ys.start, ys.stop)[:, None] - cy
        x = np.arange(xs.start, xs.stop)[None, :] - cx
        angle, soft = rng.uniform(0, np.pi), float(rng.uniform(0.25, 0.7))
        u, v = x * np.cos(angle) + y * np.sin(angle), (y * np.cos(angle) - x * np.sin(angle)) / flat
        for j in range(n):
            z = (j - n // 2) * step - cz
            distance = np.sqrt(u * u + v * v + z * z) - r
            there = share(distance, soft)
            added[j, ys, xs] += height * there
            if j != n // 2:
                continue
            if k >= n_large:
                seen[ys, xs] = np.maximum(seen[ys, xs], there)
            area = float(np.square(there).sum())
            if contrast < TELLING[1] or r * np.sqrt(flat) < TELLING[0] or area < 4 or there.max() < 0.7:
                continue
            near = (distance < NEAR) & (distance > -RIM)
            rim = float(np.square(there[near]).sum()) if near.any() else 0.0
            if rim >= 4:
                ruler[ys, xs] += near / np.float32(rim * height * height)
                n_telling += 1
    return Blobs(added=added, seen=seen, ruler=ruler / np.float32(max(1, n_telling)))
