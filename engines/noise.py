"""How much noise a slice holds, and how coarse its grain is.

The estimate is a *minimum statistic of block spectra*: a slice is cut into overlapping blocks of 12 x 12
pixels, each block is taken apart by the cosine transform, and for each band of spatial frequency the low
quantile over the blocks is read, corrected to the mean that noise alone would have there. Blocks that hold
structure lie above the quantile, band by band, so a few flat places (in any band, not the same ones) are
enough; adding the bands up gives the variance of *correlated* noise, which no high-pass estimate can
(a Laplacian sees 1/20 of the noise of a soft CT kernel). It reads one slice and nothing else, so it does
not depend on how a stack is cut into slabs, and its matrix products are too small for BLAS to share them
among threads, so it does not depend on threads.

CT noise has little energy at low frequencies (the ramp), and CT has flat tissue: the bands are used as
they are. MR noise is white up to where k-space ends, and brains have few flat places: there the low bands,
where structure sits, are not believed above the plateau of the higher ones.

Law (tests/unit/test_engines_noise.py): within 25 % of the truth for white and correlated noise, kernels
from very soft to very sharp, zero-filled and masked MR, over all phantoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import dct
from scipy.special import gammaincinv

from engines.base import Floats, Mask, Survey, Unit, Volume
from engines.box import weights_of

BLOCK = 12
QUANTILE = 0.05
FEWEST_BLOCKS = 12
TISSUE_HU = (-300.0, 400.0)
FEWEST_TISSUE_BLOCKS = 60
SIGNAL = 0.15
"""MR blocks count as signal when their mean is above this share of the high intensity: at the lowest
noise that matters the background, which is Rayleigh there and often masked or scaled, stays out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Noise of one slice.

    Attributes
    ----------
    sigma
        Standard deviation in the slice's unit; NaN where there is nothing to measure.
    frequency
        Mean spatial frequency of the noise, in cycles per pixel: white noise has 0.38, a sharp CT kernel
        0.3, a soft one 0.16. Blocks of 12 pixels cannot tell frequencies below 0.13 apart; noise that
        was smoothed before lies there. NaN as ``sigma``.
    spectrum
        Variance density at :func:`band_frequencies`: its mean over the plane of frequencies is the
        variance. Empty as ``sigma`` is NaN.
    n_blocks
        How many blocks were looked at.
    """

    sigma: float
    frequency: float
    spectrum: tuple[float, ...]
    n_blocks: int


NOTHING = Noise(sigma=float("nan"), frequency=float("nan"), spectrum=(), n_blocks=0)


@dataclass(frozen=True, slots=True)
class _Band:
    members: npt.NDArray[np.intp]
    n_all: int
    frequency: float
    correction: float


@cache
def _bands() -> tuple[_Band, ...]:
    """Rings of cosine coefficients, two coefficients wide; the mean and the two slopes are left out."""
    u = np.arange(BLOCK)
    radius = np.hypot(u[:, None], u[None, :])
    slopes = u[:, None] + u[None, :] < 3
    bands = []
    for ring in range(1, int(radius.max()) // 2 + 1):
        within = np.floor(radius / 2).astype(int) == ring
        members = within & ~slopes
        degrees = int(members.sum())
        bands.append(
            _Band(
                np.flatnonzero(members.ravel()),
                int(within.sum()),
                float(radius[members].mean()) / (2 * BLOCK),
                float(gammaincinv(degrees / 2, QUANTILE) / (degrees / 2)),
            )
        )
    return tuple(bands)


def band_frequencies() -> tuple[float, ...]:
    """Mean frequencies of the bands of :attr:`Noise.spectrum`, in cycles per pixel."""
    return tuple(b.frequency for b in _bands())


def _quantile(values: npt.NDArray[np.floating], q: float) -> float:
    """The order statistic at ``q``, without interpolation: exact under a change of scale."""
    rank = int(q * (values.size - 1))
    return float(np.partition(values, rank)[rank])


def high(values: Floats, valid: Mask) -> float:
    """Return the 99th percentile of the valid voxels above zero (of all valid ones if there is none)."""
    return _high(values.ravel() if valid.all() else values[valid])


def _high(seen: Floats) -> float:
    if not seen.size:
        return float("nan")
    n = int(np.count_nonzero(seen > 0)) or seen.size
    rank = seen.size - n + int(0.99 * (n - 1))
    return float(np.partition(seen, rank)[rank])


@cache
def _cosines() -> npt.NDArray[np.float32]:
    """The cosine transform of ``BLOCK`` samples (type 2, orthonormal), as a matrix."""
    return np.asarray(dct(np.eye(BLOCK), type=2, norm="ortho", axis=0)).astype(np.float32)


@cache
def _rings() -> npt.NDArray[np.float32]:
    """(bands, coefficients): takes the mean over each band."""
    rings = np.zeros((len(_bands()), BLOCK**2), np.float32)
    for ring, band in zip(rings, _bands(), strict=True):
        ring[band.members] = 1 / len(band.members)
    return rings


class _Cells:
    """A slice cut into cells of ``stride`` x ``stride`` pixels, (pixel, cell): of BLOCK / stride cells in a row, and as
    many rows of them, is made a block. Pixels beyond the last block are left out.

    What is done to every cell is done to long rows, and pixels of blocks that overlap are moved once.
    """

    def __init__(self, values: npt.NDArray[Any], stride: int) -> None:
        self._across = BLOCK // stride
        rows, columns = ((n - BLOCK) // stride + self._across for n in values.shape)
        cut = values[: rows * stride, : columns * stride].reshape(rows, stride, columns, stride)
        self.pixels = cut.transpose(1, 3, 0, 2).reshape(stride, stride, -1)
        self._grid = rows, columns

    def over_blocks(self, cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum over the cells of each block, of one figure per cell."""
        rows, columns = (n - self._across + 1 for n in self._grid)
        grid = cells.reshape(self._grid)
        total = np.zeros((rows, columns), cells.dtype)
        for y in range(self._across):
            for x in range(self._across):
                total += grid[y : y + rows, x : x + columns]
        return total.ravel()

    def first(self, blocks: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """The first cells of blocks."""
        per_row = self._grid[1] - self._across + 1
        return np.asarray(blocks // per_row * self._grid[1] + blocks % per_row)

    def gather(self, first: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """(y, x, block) of the blocks that begin with these cells."""
        stride = len(self.pixels)
        out = np.empty((self._across, stride, self._across, stride, len(first)), self.pixels.dtype)
        for y in range(self._across):
            for x in range(self._across):
                out[y, :, x] = self.pixels.take(first + (y * self._grid[1] + x), axis=2)
        return out.reshape(BLOCK, BLOCK, -1)


def _counts(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """How many pixels of each cell are True; no byte is too small for those of a block."""
    counts: npt.NDArray[np.uint8] = cells.view(np.uint8).sum(axis=(0, 1), dtype=np.uint8)
    return counts


def _admitted(
    cells: _Cells,
    whole: npt.NDArray[np.bool_] | None,
    extremes: tuple[float, float],
    unit: Unit,
    top: float,
) -> npt.NDArray[np.bool_]:
    """Which blocks may speak: wholly valid, not clipped or masked, tissue (CT) or signal (MR)."""
    (lowest, highest), pixels = extremes, cells.pixels
    stuck = (pixels <= lowest) | (pixels >= highest)
    fit = cells.over_blocks(_counts(stuck)) < 0.02 * BLOCK**2
    if whole is not None:
        fit &= whole
    mean = cells.over_blocks(pixels.sum(axis=(0, 1))) / np.float32(BLOCK**2)
    if unit == "arbitrary":
        return np.asarray(fit & (mean > SIGNAL * top))
    tissue = fit & (mean > TISSUE_HU[0]) & (mean < TISSUE_HU[1])
    return np.asarray(tissue if int(tissue.sum()) >= FEWEST_TISSUE_BLOCKS else fit)


_PRODUCT = 192
"""Blocks in a product of matrices: so small a one is that of a single thread, whatever BLAS there is."""
_AT_ONCE = 8 * _PRODUCT
"""Blocks taken apart at once: few and long calls of numpy, which threads may do beside each other."""


def _levels(cells: _Cells, fit: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Mean power of each band in each block, (bands, blocks)."""
    first = cells.first(np.flatnonzero(fit))
    cosines, rings = _cosines(), _rings()
    out = []
    for at in range(0, len(first), _AT_ONCE):
        given = first[at : at + _AT_ONCE]
        filled = np.resize(given, -(-len(given) // _PRODUCT) * _PRODUCT)  # what is too much is cut off again
        along = np.matmul(cosines, cells.gather(filled))
        spectra = np.matmul(cosines, along.transpose(1, 0, 2))
        np.square(spectra, out=spectra)
        parts = spectra.reshape(BLOCK**2, -1, _PRODUCT).transpose(1, 0, 2)
        out.append(np.matmul(rings, parts).transpose(1, 0, 2).reshape(len(rings), -1)[:, : len(given)])
    return np.concatenate(out, axis=1)


def _plateau(level: npt.NDArray[np.float64], frequency: npt.NDArray[np.float64], rounding: float) -> float:
    """Variance density at which an MR spectrum is flattest above 0.15 cycles per pixel.

    Structure falls steeply with frequency, white noise does not: where the fall (on log-log axes) is least
    steep, noise dominates. The mean over bands is weighted by flatness, so that two equally flat bands do
    not make the answer jump from slice to slice. Bands that hold little more than rounding are beyond the
    end of k-space.
    """
    weight, total = 0.0, 0.0
    for i in range(len(level) - 1):
        if frequency[i] < 0.15 or level[i] <= 10 * rounding or level[i + 1] <= 0:
            continue
        fall = float(np.log(level[i] / level[i + 1]) / np.log(frequency[i + 1] / frequency[i]))
        w = float(np.exp(-abs(fall)))
        weight += w
        total += w * float(np.log(level[i]))
    return float(np.exp(total / weight)) if weight else rounding


def estimate(
    values: Floats,
    valid: Mask,
    *,
    unit: Unit,
    step: float = 1.0,
    top: float | None = None,
    seen: Floats | None = None,
) -> Noise:
    """Measure the noise of one slice.

    Parameters
    ----------
    values
        float32 (y, x), HU or arbitrary units.
    valid
        bool (y, x); blocks that touch False are not looked at.
    step
        Width of one stored unit: what lies below rounding is not called signal.
    top
        :func:`high` of the slice, where it is known already.
    seen
        The valid values, where they were taken out already.

    Returns
    -------
    Noise
        ``sigma`` NaN where fewer than 12 blocks may speak.
    """
    if min(values.shape) < BLOCK or not valid.any():
        return NOTHING
    stride = BLOCK // 2 if min(values.shape) >= 128 else BLOCK // 4
    cells, weights = _Cells(values, stride), weights_of(valid)
    every, whole = weights.whole, None
    if not every:
        whole = weights.once(
            ("blocks", stride), lambda: cells.over_blocks(_counts(~_Cells(valid, stride).pixels)) == 0
        )
    if seen is None:
        seen = values if every else values[valid]
    if unit == "arbitrary" and top is None:
        top = high(values, valid)
    fit = _admitted(cells, whole, (float(seen.min()), float(seen.max())), unit, top or 0.0)
    n_blocks = int(fit.sum())
    if n_blocks < FEWEST_BLOCKS:
        return NOTHING
    bands, levels = _bands(), _levels(cells, fit)
    level = np.array([_quantile(v, QUANTILE) / b.correction for v, b in zip(levels, bands, strict=True)])
    frequency = np.array([b.frequency for b in bands])
    share = np.array([b.n_all for b in bands]) / BLOCK**2
    rounding = step * step / 12
    if unit == "arbitrary":
        level = np.minimum(level, _plateau(level, frequency, rounding))
    power = level * share
    power[0] += level[0] * (3 / BLOCK**2) * (1.0 if unit == "arbitrary" else 0.8)
    total = float(power.sum())
    if not total > 0:
        return NOTHING
    return Noise(
        sigma=float(np.sqrt(total)),
        frequency=float((power * frequency).sum() / total),
        spectrum=tuple(float(v) for v in level),
        n_blocks=n_blocks,
    )


def survey(volume: Volume) -> Survey:
    """Measure every slice of a slab, each by itself (so any cut into slabs gives the same figures)."""
    tops, found = [], []
    for values, valid, step in zip(volume.values, volume.valid, volume.step, strict=True):
        seen = values.ravel() if valid.all() else values[valid]
        tops.append(_high(seen))
        found.append(estimate(values, valid, unit=volume.unit, step=float(step), top=tops[-1], seen=seen))
    return Survey(
        sigma=np.array([n.sigma for n in found], np.float32),
        high=np.array(tops, np.float32),
        share=np.array([np.count_nonzero(v) / v.size for v in volume.valid], np.float32),
        frequency=np.array([n.frequency for n in found], np.float32),
    )


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


QUIETER = 2.0
"""Over the corpus and the phantoms neighbours have 1.5 times the noise of a slice at the most."""


def steady(sigma: Floats, radius: int = 2) -> Floats:
    """Median of the noise over neighbouring slices (``radius`` at either side), of those that have one.

    Tube current and anatomy change slowly along z; one slice that fools the estimate (a resolution insert,
    the skull base) must not be treated unlike its neighbours. What fools it makes it too high: a slice that is quieter
    than half of what its neighbours have (a dark one, a mended one) is treated by no more than twice its own noise.
    """
    around = np.full(len(sigma) + 2 * radius, np.nan, np.float32)
    around[radius : radius + len(sigma)] = np.where(np.isfinite(sigma), sigma, np.float32(np.nan))
    seen = np.sort(
        np.lib.stride_tricks.sliding_window_view(around, 2 * radius + 1), axis=1
    )  # unknown ones last
    n = np.maximum(np.isfinite(seen).sum(axis=1), 1)
    each = np.arange(len(sigma))
    middle: Floats = (seen[each, (n - 1) // 2] + seen[each, n // 2]) / np.float32(2)
    return np.where(np.isfinite(sigma), np.minimum(middle, np.float32(QUIETER) * sigma), middle)


BARE = {"HU": -300.0, "arbitrary": 0.1}
"""A slice whose high intensity is below this, in HU or as a fraction of the series scale, shows air or the noise of a
receiver and nothing else."""


def bare(found: Survey, unit: Unit, at: int) -> bool:
    """Whether a slice of a stack shows nothing but background: as the last ones beyond a head do.

    There is nothing to measure noise in, or another noise than in the body (MR: of other coils and filters), so what
    an engine takes for noise there is not.
    """
    return bool(found.high[at] < BARE[unit] * scale(found, unit))


def scale(found: Survey, unit: Unit) -> float:
    """Return the series scale that MR figures are fractions of: the median of the slices' high intensity.

    One affine scale for the whole stack, never per slice: f(k x) = k f(x). For HU it is 1.
    """
    return 1.0 if unit == "HU" else _median(found.high)


SMOOTH = 0.14
"""Mean noise frequency (cycles per pixel) below which noise is coarser than any kernel's."""


SMOOTH_MM = 0.25
"""The same in cycles per millimetre, for CT: the softest kernels in use have 0.25 to 0.38, whatever the field
of view. A small field (0.25 mm pixels) has coarse grain in pixels and was smoothed by nobody."""


def smoothed_already(found: Survey, pixel_mm: float = 0.0) -> bool:
    """Tell whether the grain is coarser than a reconstruction kernel makes it.

    That is what strong iterative or learned reconstruction leaves, or interpolation by more than two. It is
    a remark for people: what a vendor's network has denoised is told by the headers, and grain that a
    mild one leaves (hybrid iterative reconstruction at its middle levels) is that of a kernel.

    Parameters
    ----------
    found
        Of the whole stack.
    pixel_mm
        Pixel spacing, for CT; 0 where a kernel has no scale in millimetres (MR). With pixels below 0.5 mm
        nothing is ever called smooth: blocks of 12 pixels cannot tell so low a frequency there.
    """
    frequency = _median(found.frequency)
    coarse = bool(np.isfinite(frequency) and frequency < SMOOTH)
    return coarse and (pixel_mm <= 0 or frequency / pixel_mm < SMOOTH_MM)
