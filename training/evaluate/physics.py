"""What a medical physicist measures of noise: spectrum and texture; and of inserts: bias, linearity, CNR.

Source: AAPM TG-233, Performance evaluation of computed tomography systems (report 233, 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.errors import DataError
from training.evaluate.conventions import Mask, Values

Doubles = npt.NDArray[np.float64]

FEWEST_ROIS = 20
"""TG-233 wants at least so many for a radial spectrum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisePower:
    """A noise power spectrum.

    Attributes
    ----------
    frequency
        Of the radial bins, in cycles per mm, up to the Nyquist frequency.
    radial
        NPS in unit^2 mm^2 at ``frequency``.
    sigma
        Standard deviation in the image's unit: the root of the integral of the 2-D NPS.
    mean_frequency
        sum(f NPS) / sum(NPS) over the radial bins, in cycles per mm (TG-233's f_av).
    plane_frequency
        The same over the whole plane of frequencies, in cycles per mm, as engines/noise.py has it: the mean of
        the noise's *power*. High frequencies, of which the plane has more, weigh more.
    peak_frequency
        Where the smoothed radial NPS is largest, in cycles per mm.
    n_rois
        How many regions.
    """

    frequency: Doubles
    radial: Doubles
    sigma: float
    mean_frequency: float
    plane_frequency: float
    peak_frequency: float
    n_rois: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Texture:
    """After over before.

    Attributes
    ----------
    nmr
        Noise magnitude ratio, sigma over sigma.
    cfr
        Centre frequency ratio, mean frequency over mean frequency: 1 keeps the texture, low is plastic.
    plane_cfr
        Ratio of the plane frequencies. The two are not the same figure (0.85 and 0.92, say): always say which.
    peak_ratio
        Peak frequency over peak frequency.
    """

    nmr: float
    cfr: float
    plane_cfr: float
    peak_ratio: float


def uniform_rois(
    volume: Values, mask: Mask, *, size: int = 64, stride: int | None = None, fewest: int = FEWEST_ROIS
) -> Doubles:
    """Cut square regions that lie wholly in the mask.

    Parameters
    ----------
    volume, mask
        (z, y, x): an image of something uniform, or an error to a known truth.
    size
        Side in pixels, 64 to 128 for NPS.
    stride
        Between regions; None means half the side.

    Returns
    -------
    Doubles
        (n, size, size).

    Raises
    ------
    DataError
        Fewer than ``fewest`` regions fit.
    """
    if volume.ndim != 3 or volume.shape != mask.shape:
        raise DataError("volume and mask must have one shape (z, y, x)")
    step = size // 2 if stride is None else stride
    found = [
        volume[z, y : y + size, x : x + size]
        for z in range(volume.shape[0])
        for y in range(0, volume.shape[1] - size + 1, step)
        for x in range(0, volume.shape[2] - size + 1, step)
        if mask[z, y : y + size, x : x + size].all()
    ]
    if len(found) < fewest:
        raise DataError(
            f"only {len(found)} regions of {size} pixels fit, {fewest} are needed",
            hint="smaller regions, a smaller stride, or more slices",
        )
    return np.asarray(found, np.float64)


def detrended(rois: Values) -> Doubles:
    """Subtract a second-order polynomial in x and y from each region (n, y, x)."""
    n, rows, columns = rois.shape
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    terms = np.stack([np.ones_like(y), y, x, y * y, y * x, x * x]).reshape(6, -1)
    basis, _ = np.linalg.qr(terms.T)
    flat = np.asarray(rois, np.float64).reshape(n, -1)
    return np.asarray(flat - (flat @ basis) @ basis.T).reshape(n, rows, columns)


def noise_power(rois: Values, spacing_mm: float) -> NoisePower:
    """Return the noise power spectrum of regions.

    NPS(u, v) = dx dy / (Nx Ny) * mean |DFT(region - fit)|^2, averaged over rings one bin wide.

    Parameters
    ----------
    rois
        (n, side, side) in the image's unit.
    spacing_mm
        Pixel spacing in the slice.

    Raises
    ------
    DataError
        Regions that are not square, or hold no noise at all.
    """
    if rois.ndim != 3 or rois.shape[1] != rois.shape[2]:
        raise DataError("regions must be (n, side, side)")
    n, side, _ = rois.shape
    power = (np.abs(np.fft.fft2(detrended(rois))) ** 2).mean(axis=0) * (spacing_mm / side) ** 2
    f = np.fft.fftfreq(side, spacing_mm)
    radius = np.hypot(f[:, None], f[None, :])
    width = 1.0 / (side * spacing_mm)
    ring = np.rint(radius / width).astype(int).ravel()
    count = np.bincount(ring)
    radial = (np.bincount(ring, power.ravel()) / count)[1 : side // 2 + 1]
    frequency = (np.bincount(ring, radius.ravel()) / count)[1 : side // 2 + 1]
    total = float(radial.sum())
    if total <= 0:
        raise DataError("the regions hold no noise")
    smooth = np.convolve(np.pad(radial, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
    return NoisePower(
        frequency=frequency,
        radial=radial,
        sigma=float(np.sqrt(power.sum() * width**2)),
        mean_frequency=float((radial * frequency).sum() / total),
        plane_frequency=float((power * radius).sum() / power.sum()),
        peak_frequency=float(_peak(frequency, smooth)),
        n_rois=n,
    )


def _peak(frequency: Doubles, radial: Doubles) -> float:
    """Vertex of the parabola through the largest bin and its neighbours."""
    i = int(np.argmax(radial))
    if i in (0, radial.size - 1):
        return float(frequency[i])
    a, b, c = radial[i - 1 : i + 2]
    bend = a - 2 * b + c
    shift = 0.5 * (a - c) / bend if bend < 0 else 0.0
    return float(frequency[i] + shift * (frequency[i + 1] - frequency[i - 1]) / 2)


def noise_power_of_repeats(
    first: Values,
    second: Values,
    mask: Mask,
    spacing_mm: float,
    *,
    size: int = 64,
    stride: int | None = None,
    fewest: int = FEWEST_ROIS,
) -> NoisePower:
    """Return the NPS in anatomy: of (first - second) / sqrt 2, two images that differ in noise only.

    What is the same in both (anatomy, and any bias) cancels; so a filter's noise is seen, not its blur.
    """
    difference = (np.asarray(first, np.float64) - np.asarray(second, np.float64)) / np.sqrt(2.0)
    return noise_power(uniform_rois(difference, mask, size=size, stride=stride, fewest=fewest), spacing_mm)


def snr_of_repeats(first: Values, second: Values, mask: Mask) -> float:
    """Return the SNR of MR by the difference method: mean over sigma, sigma = sd(first - second) / sqrt 2.

    Holds where the signal is well above the noise (mean / sigma > 5), where Rician noise is Gaussian.
    Source: NEMA MS 1 (2008), method 1.
    """
    a, b = np.asarray(first, np.float64)[mask], np.asarray(second, np.float64)[mask]
    if a.size < 2:
        raise DataError("the mask is empty")
    sigma = float(np.std(a - b, ddof=1)) / np.sqrt(2.0)
    if sigma == 0:
        raise DataError("the two images are the same: they are no repeats")
    return float(0.5 * (a.mean() + b.mean()) / sigma)


def texture(before: NoisePower, after: NoisePower) -> Texture:
    """Return noise magnitude ratio, centre frequency ratios and peak ratio."""
    return Texture(
        nmr=after.sigma / before.sigma,
        cfr=after.mean_frequency / before.mean_frequency,
        plane_cfr=after.plane_frequency / before.plane_frequency,
        peak_ratio=after.peak_frequency / before.peak_frequency,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """A cylinder along z in a phantom.

    Attributes
    ----------
    name
        Such as ``acrylic``.
    centre
        (y, x) in pixels; pixel centres are whole numbers.
    radius
        In pixels.
    value
        True value in the image's unit.
    """

    name: str
    centre: tuple[float, float]
    radius: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Linearity:
    """measured = slope * true + intercept, least squares; ``largest`` is the largest |measured - true|."""

    slope: float
    intercept: float
    r_squared: float
    largest: float


def _inside(shape: tuple[int, ...], centre: tuple[float, float], low: float, high: float) -> Mask:
    y, x = np.ogrid[: shape[-2], : shape[-1]]
    r = np.hypot(y - centre[0], x - centre[1])
    return np.asarray((r >= low) & (r <= high))


def insert_mean(volume: Values, insert: Insert, *, share: float = 0.7) -> float:
    """Return the mean over the inner ``share`` of the radius, over all slices of (z, y, x) or (y, x)."""
    inside = _inside(volume.shape, insert.centre, 0.0, share * insert.radius)
    if not inside.any():
        raise DataError(f"insert {insert.name}: no pixel lies inside")
    return float(np.mean(np.asarray(volume, np.float64)[..., inside]))


def insert_bias(before: Values, after: Values, inserts: Sequence[Insert]) -> dict[str, float]:
    """Return mean(after) - mean(before) in each insert, by name, in the image's unit."""
    return {i.name: insert_mean(after, i) - insert_mean(before, i) for i in inserts}


def linearity(true: Sequence[float], measured: Sequence[float]) -> Linearity:
    """Fit measured against true values of inserts (TG-233: CT number linearity; bar: slope 1 +- 0.002).

    Raises
    ------
    DataError
        Fewer than three inserts, or all of the same value.
    """
    t, m = np.asarray(true, np.float64), np.asarray(measured, np.float64)
    if t.size != m.size or t.size < 3 or np.ptp(t) == 0:
        raise DataError("linearity needs three inserts or more, of different values")
    slope, intercept = np.polyfit(t, m, 1)
    rest = float(((m - slope * t - intercept) ** 2).sum())
    spread = float(((m - m.mean()) ** 2).sum())
    return Linearity(
        slope=float(slope),
        intercept=float(intercept),
        r_squared=1 - rest / spread if spread > 0 else float("nan"),
        largest=float(np.abs(m - t).max()),
    )


def cnr(volume: Values, insert: Insert) -> float:
    """Return |mean(insert) - mean(ring)| / sd(ring), the ring from 1.3 to 2 radii.

    The standard deviation is that within slices, so a stack with a gradient along z is not noisier.
    """
    values = np.asarray(volume, np.float64)
    ring: npt.NDArray[np.floating[Any]] = values[
        ..., _inside(values.shape, insert.centre, 1.3 * insert.radius, 2.0 * insert.radius)
    ]
    spread = float(np.sqrt(np.mean(np.var(ring, axis=-1))))
    if spread == 0:
        raise DataError("there is no noise around the insert: it has no CNR")
    return abs(insert_mean(volume, insert) - float(ring.mean())) / spread
