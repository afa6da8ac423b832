"""Small lesions: put in, looked for, and looked for where there is none.

A denoiser can take a lesion away with the noise, or make one out of noise. Both are measured on a known truth:
lesions are put into it *before* the noise, so nothing of the method's own statistics leaks into the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.special import erf

from training.errors import DataError
from training.evaluate.conventions import Mask, Values

Doubles = npt.NDArray[np.float64]

RADII_MM = (1.0, 1.5, 2.5, 3.5, 5.0)
CONTRASTS_HU = (-100.0, -50.0, -20.0, -10.0, -5.0, 5.0, 10.0, 20.0, 50.0, 100.0)
LEAST_RETENTION = 0.9
"""The bar, for CNR >= 1 in the input and a diameter of 3 mm or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """A sphere with a soft edge.

    Attributes
    ----------
    centre
        (z, y, x) in voxels.
    radius_mm
        1 to 5 mm.
    contrast
        Added in the middle, in the image's unit.
    edge_mm
        Standard deviation of the blur of the edge.
    """

    centre: tuple[float, float, float]
    radius_mm: float
    contrast: float
    edge_mm: float = 0.5


def profile(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], lesion: Lesion) -> Doubles:
    """Return the lesion's shape (z, y, x), 1 in the middle: (1 - erf((r - R) / (sqrt 2 edge))) / 2."""
    axes = [((np.arange(n) - c) * s) ** 2 for n, c, s in zip(shape, lesion.centre, spacing_mm, strict=True)]
    r = np.sqrt(axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :])
    edge = max(lesion.edge_mm, 1e-3)
    return np.asarray(0.5 * (1 - erf((r - lesion.radius_mm) / (np.sqrt(2) * edge))))


def insert(
    truth: Values, lesions: Sequence[Lesion], spacing_mm: tuple[float, float, float]
) -> npt.NDArray[np.float32]:
    """Return the truth with lesions added; noise is simulated afterwards, by the caller."""
    z, y, x = truth.shape
    out = np.asarray(truth, np.float64).copy()
    for lesion in lesions:
        out += lesion.contrast * profile((z, y, x), spacing_mm, lesion)
    return out.astype(np.float32)


def places(
    mask: Mask, spacing_mm: tuple[float, float, float], *, clear_mm: float, n: int, seed: int
) -> list[tuple[int, int, int]]:
    """Choose up to ``n`` voxels of the mask, ``clear_mm`` from its rim within the slice and from each other.

    Seeded: the same mask and seed give the same places. Fewer come back where there is no more room.
    """
    away = np.stack([ndimage.distance_transform_edt(np.pad(m, 1), spacing_mm[1:])[1:-1, 1:-1] for m in mask])
    free = np.argwhere(away >= clear_mm)
    np.random.default_rng(seed).shuffle(free)
    steps = np.array(spacing_mm)
    chosen: list[tuple[int, int, int]] = []
    for place in free:
        if len(chosen) == n:
            break
        if all(float(np.linalg.norm((place - np.array(c)) * steps)) >= 2 * clear_mm for c in chosen):
            chosen.append((int(place[0]), int(place[1]), int(place[2])))
    return chosen


def contrast(image: Values, shape: Doubles, plain: Values | None = None) -> float:
    """Return how much of a lesion's shape is in an image, by least squares.

    c = sum((I - I0) (t - mean t)) / sum((t - mean t)^2) over the box in which the shape is more than 0.001,
    widened by its own size; the local mean of the image does not matter. Units of the image.

    Parameters
    ----------
    image
        (z, y, x).
    shape
        From :func:`profile`.
    plain
        I0: what the same method made of the same noise without the lesion. With it the noise cancels, and
        weak lesions can be measured too; without it the anatomy around must be flat.
    """
    box = _around(shape)
    t = shape[box] - shape[box].mean()
    v = np.asarray(image, np.float64)[box]
    if plain is not None:
        v = v - np.asarray(plain, np.float64)[box]
    return float((v * t).sum() / (t * t).sum())


def _around(shape: Doubles) -> tuple[slice, ...]:
    held = np.argwhere(shape > 1e-3)
    if held.size == 0:
        raise DataError("the lesion holds no voxel of this volume")
    low, high = held.min(axis=0), held.max(axis=0) + 1
    grow = np.maximum((high - low) // 2, 2)
    return tuple(
        slice(max(0, int(a - g)), min(n, int(b + g)))
        for a, b, g, n in zip(low, high, grow, shape.shape, strict=True)
    )


def retention(
    before: Values,
    after: Values,
    shape: Doubles,
    *,
    plain_before: Values | None = None,
    plain_after: Values | None = None,
) -> float:
    """Return the lesion's contrast after over its contrast before: 1 keeps it, 0 takes it away.

    Parameters
    ----------
    before, after
        Input and output with the lesion.
    plain_before, plain_after
        Input and output with the same noise without it; give both, or neither.

    Raises
    ------
    DataError
        Only one of them was given, or there is no lesion before.
    """
    if (plain_before is None) != (plain_after is None):
        raise DataError("give both images without the lesion, or neither")
    was = contrast(before, shape, plain_before)
    if was == 0:
        raise DataError("there is no lesion before")
    return contrast(after, shape, plain_after) / was


def retention_over(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the pooled retention of (contrast before, contrast after): sum(b a) / sum(b^2).

    The mean of ratios explodes where one lesion happens to vanish in the noise; this does not.
    """
    array = np.asarray(pairs, np.float64).reshape(-1, 2)
    power = float((array[:, 0] ** 2).sum())
    if power == 0:
        raise DataError("there is no lesion before")
    return float((array[:, 0] * array[:, 1]).sum() / power)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blobs:
    """False lesions found in a lesion-free image before and after, at one threshold; ``sigma`` is that of the
    matched filter's response to the input's noise, in the image's unit."""

    before: int
    after: int
    threshold: float
    sigma: float


def blob_filter(radius: float) -> Doubles:
    """Return a matched filter: a disc of this radius (pixels) minus its surroundings up to twice the radius.

    Its sum is 0: a level, or something twice as large, is no blob. Its response to a disc of this radius is about
    the disc's contrast (0.9 of it at 4 pixels, where the rim is a good part of a disc).
    """
    half = int(np.ceil(2 * radius)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    r = np.hypot(y, x)
    inner = np.clip(radius + 0.5 - r, 0, 1)
    outer = np.clip(2 * radius + 0.5 - r, 0, 1) - inner
    return np.asarray(inner / inner.sum() - outer / outer.sum())


def false_blobs(
    error_before: Values, error_after: Values, mask: Mask, *, radius: float, threshold: float = 4.0
) -> Blobs:
    """Count blobs of a lesion-free image that a matched filter takes for lesions.

    A blob is a local extremum of |response| above ``threshold`` times the standard deviation of the response
    to the *input's* noise: the same ruler for both. An honest denoiser has no more after than before.

    Parameters
    ----------
    error_before, error_after
        (z, y, x): input minus truth, and output minus truth.
    mask
        Where to look; the filter must fit (its rim is left out).
    radius
        Of the blobs, in pixels.
    """
    kernel = blob_filter(radius)
    reach = kernel.shape[0] // 2
    inner = np.stack([ndimage.binary_erosion(np.pad(m, 1), iterations=reach)[1:-1, 1:-1] for m in mask])
    if not inner.any():
        raise DataError("the mask is too small for this radius")
    responses = [
        np.stack([ndimage.convolve(np.asarray(s, np.float64), kernel, mode="reflect") for s in error])
        for error in (error_before, error_after)
    ]
    sigma = float(responses[0][inner].std())
    if sigma == 0:
        raise DataError("the input holds no noise: there is no ruler")
    counts = []
    for response in responses:
        size = np.abs(response)
        side = 2 * int(np.ceil(radius)) + 1
        peak = size == ndimage.maximum_filter(size, (1, side, side))
        counts.append(int((peak & inner & (size > threshold * sigma)).sum()))
    return Blobs(before=counts[0], after=counts[1], threshold=threshold, sigma=sigma)
