"""Full-reference metrics of 2-D images that a window has mapped to 0..1 (so the data range is 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from training.errors import DataError
from training.evaluate.conventions import Mask, Values, Window

Doubles = npt.NDArray[np.float64]

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
FEWEST_PIXELS = 256
"""A slice with fewer pixels in the mask has no figure: it is the rim of the volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceFigures:
    """Figures of one slice.

    Attributes
    ----------
    index
        Of the slice in its volume.
    psnr_db, snr_db, ssim, vif, gmsd
        Of the windowed images. ``vif`` and ``gmsd`` are NaN where they were not asked for.
    psnr_minus_snr_db
        The constant of the reference, see :func:`psnr_minus_snr`.
    rmse_window
        RMSE of the windowed images times the window's width, in the image's unit.
    rmse, bias
        RMSE and mean of output minus reference without a window, in the image's unit.
    """

    index: int
    psnr_db: float
    snr_db: float
    psnr_minus_snr_db: float
    ssim: float
    rmse_window: float
    rmse: float
    bias: float
    vif: float
    gmsd: float


def _difference(reference: Values, output: Values, mask: Mask | None) -> Doubles:
    a, b = np.asarray(reference, np.float64), np.asarray(output, np.float64)
    if a.shape != b.shape:
        raise DataError(f"shapes differ: {a.shape} and {b.shape}")
    difference = b - a
    chosen = difference.ravel() if mask is None else difference[mask]
    if chosen.size == 0:
        raise DataError("the mask is empty")
    return np.asarray(chosen)


def mse(reference: Values, output: Values, mask: Mask | None = None) -> float:
    """Return mean((out - ref)^2) over the mask."""
    return float(np.mean(_difference(reference, output, mask) ** 2))


def rmse(reference: Values, output: Values, mask: Mask | None = None) -> float:
    """Return sqrt(mean((out - ref)^2)) over the mask, in the unit of the images."""
    return float(np.sqrt(mse(reference, output, mask)))


def bias(reference: Values, output: Values, mask: Mask | None = None) -> float:
    """Return mean(out - ref) over the mask, in the unit of the images."""
    return float(np.mean(_difference(reference, output, mask)))


def corrected_rmse(measured: float, sigma_reference: float) -> float:
    """Return sqrt(RMSE^2 - sigma_ref^2): the error to the truth behind a noisy reference.

    Holds where the reference's noise is independent of the output. Where the measured error is smaller than
    the reference's noise it is NaN: then it is *not* independent (same acquisition), or sigma is wrong.
    """
    rest = measured**2 - sigma_reference**2
    return float(np.sqrt(rest)) if rest >= 0 else float("nan")


def psnr(reference: Values, output: Values, *, data_range: float = 1.0, mask: Mask | None = None) -> float:
    """Return 10 log10(R^2 / MSE) in dB; infinite where the images are the same."""
    error = mse(reference, output, mask)
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def snr(reference: Values, output: Values, mask: Mask | None = None) -> float:
    """Return 10 log10(sum ref^2 / sum (ref - out)^2) in dB, of windowed (0..1) images."""
    error = mse(reference, output, mask)
    return float("inf") if error == 0 else float(10 * np.log10(_power(reference, mask) / error))


def _power(reference: Values, mask: Mask | None) -> float:
    chosen = np.asarray(reference, np.float64)
    power = float(np.mean((chosen if mask is None else chosen[mask]) ** 2))
    if power <= 0:
        raise DataError("the reference is zero all over the mask: it has no SNR")
    return power


def psnr_minus_snr(reference: Values, *, data_range: float = 1.0, mask: Mask | None = None) -> float:
    """Return 10 log10(R^2 / mean ref^2) in dB.

    It depends on the reference alone: PSNR - SNR is the same for every method on the same images. Published
    with each table as a check of itself.
    """
    return float(10 * np.log10(data_range**2 / _power(reference, mask)))


def ssim_map(reference: Values, output: Values, *, data_range: float = 1.0) -> Doubles:
    """Return the local SSIM (y, x): Gaussian window of 11 x 11, sigma 1.5, no sample covariance.

    ((2 ma mb + C1) (2 sab + C2)) / ((ma^2 + mb^2 + C1) (sa^2 + sb^2 + C2)), C = (0.01 R)^2, (0.03 R)^2.
    Source: Wang et al., IEEE TIP 13(4), 2004. At the rim (5 pixels) it looks at mirrored pixels.
    """
    a, b = np.asarray(reference, np.float64), np.asarray(output, np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise DataError(f"SSIM needs two images of one shape, not {a.shape} and {b.shape}")

    def smooth(v: Doubles) -> Doubles:
        return np.asarray(ndimage.gaussian_filter(v, SSIM_SIGMA, radius=SSIM_RADIUS))

    ma, mb = smooth(a), smooth(b)
    saa, sbb, sab = smooth(a * a) - ma * ma, smooth(b * b) - mb * mb, smooth(a * b) - ma * mb
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * ma * mb + c1) * (2 * sab + c2)
    return np.asarray(top / ((ma * ma + mb * mb + c1) * (saa + sbb + c2)))


def ssim(reference: Values, output: Values, *, data_range: float = 1.0, mask: Mask | None = None) -> float:
    """Return the mean of :func:`ssim_map` over the mask, without a rim of 5 pixels.

    Raises
    ------
    DataError
        No pixel of the mask lies within.
    """
    local = ssim_map(reference, output, data_range=data_range)
    inner = np.zeros(local.shape, np.bool_)
    inner[SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS] = True
    if mask is not None:
        inner &= mask
    if not inner.any():
        raise DataError("the mask holds no pixel that SSIM can judge")
    return float(local[inner].mean())


def vif(reference: Values, output: Values, *, data_range: float = 1.0) -> float:
    """Return the visual information fidelity in the pixel domain; 1 is perfect, above 1 is contrast added.

    Over four scales: sum log10(1 + g^2 sr^2 / (sv^2 + sn^2)) / sum log10(1 + sr^2 / sn^2), with
    sn^2 = 2 for images of range 255. Source: Sheikh and Bovik, IEEE TIP 15(2), 2006 (``vifp_mscale``).
    The images' range is mapped to 255, so it does not depend on the unit; others leave HU as they are,
    which is another number.
    """
    a = np.asarray(reference, np.float64) * (255.0 / data_range)
    b = np.asarray(output, np.float64) * (255.0 / data_range)
    noise, tiny = 2.0, 1e-10
    top = bottom = 0.0
    for scale in range(1, 5):
        side = 2 ** (5 - scale) + 1
        if scale > 1:
            a, b = _valid(a, side)[::2, ::2], _valid(b, side)[::2, ::2]
        if min(a.shape) < side:
            raise DataError("the image is too small for VIF", hint="at least 96 x 96 pixels")
        ma, mb = _valid(a, side), _valid(b, side)
        saa = np.maximum(_valid(a * a, side) - ma * ma, 0)
        sbb = np.maximum(_valid(b * b, side) - mb * mb, 0)
        sab = _valid(a * b, side) - ma * mb
        g = sab / (saa + tiny)
        rest = sbb - g * sab
        flat, gone = saa < tiny, sbb < tiny
        g[flat], rest[flat], saa[flat] = 0, sbb[flat], 0
        g[gone], rest[gone] = 0, 0
        rest = np.where(g < 0, sbb, rest)
        g = np.maximum(g, 0)
        top += float(np.log10(1 + g * g * saa / (np.maximum(rest, tiny) + noise)).sum())
        bottom += float(np.log10(1 + saa / noise).sum())
    if bottom == 0:
        raise DataError("the reference is flat: it has no information to keep")
    return top / bottom


def _valid(values: Doubles, side: int) -> Doubles:
    """Gaussian mean over side x side pixels, sigma side / 5, where the window lies within."""
    r = side // 2
    smooth = ndimage.gaussian_filter(values, side / 5, radius=r)
    return np.asarray(smooth[r : smooth.shape[0] - r, r : smooth.shape[1] - r])


def gmsd(reference: Values, output: Values, *, data_range: float = 1.0, mask: Mask | None = None) -> float:
    """Return the gradient magnitude similarity deviation; 0 is perfect.

    Images of range 255 are averaged over 2 x 2 and halved; m is the Prewitt gradient / 3;
    GMS = (2 ma mb + 170) / (ma^2 + mb^2 + 170); the figure is the standard deviation of GMS over the mask.
    Source: Xue et al., IEEE TIP 23(2), 2014.
    """
    gradients = []
    for image in (reference, output):
        v = np.asarray(image, np.float64) * (255.0 / data_range)
        half = ndimage.uniform_filter(v, 2, mode="nearest")[1::2, 1::2]
        gradients.append(np.hypot(ndimage.prewitt(half, 0) / 3, ndimage.prewitt(half, 1) / 3))
    ma, mb = gradients
    similarity = (2 * ma * mb + 170.0) / (ma * ma + mb * mb + 170.0)
    if mask is None:
        return float(similarity.std())
    chosen = similarity[np.asarray(mask)[1::2, 1::2]]
    if chosen.size == 0:
        raise DataError("the mask is empty")
    return float(chosen.std())


def measure(
    reference: Values,
    output: Values,
    *,
    window: Window,
    mask: Mask,
    texture: bool = False,
    slices: Sequence[int] | None = None,
) -> tuple[SliceFigures, ...]:
    """Measure a volume, slice by slice.

    Parameters
    ----------
    reference, output
        (z, y, x) in the image's unit; give what :func:`~training.evaluate.conventions.as_written` returns.
    window, mask
        See conventions; slices with fewer than 256 pixels in the mask are left out.
    texture
        Whether VIF and GMSD are measured too (they take most of the time).
    slices
        Indices to look at; None means all.

    Raises
    ------
    DataError
        Shapes differ.
    """
    if not reference.shape == output.shape == mask.shape or reference.ndim != 3:
        raise DataError("reference, output and mask must have one shape (z, y, x)")
    return tuple(
        _one(z, reference[z], output[z], window, mask[z], texture)
        for z in (range(reference.shape[0]) if slices is None else slices)
        if int(mask[z].sum()) >= FEWEST_PIXELS
    )


def _one(
    z: int,
    reference: npt.NDArray[np.floating[Any]],
    output: npt.NDArray[np.floating[Any]],
    window: Window,
    mask: Mask,
    texture: bool,
) -> SliceFigures:
    a, b = window.apply(reference), window.apply(output)
    nothing = float("nan")
    return SliceFigures(
        index=z,
        psnr_db=psnr(a, b, mask=mask),
        snr_db=snr(a, b, mask),
        psnr_minus_snr_db=psnr_minus_snr(a, mask=mask),
        ssim=ssim(a, b, mask=mask),
        rmse_window=rmse(a, b, mask) * window.width,
        rmse=rmse(reference, output, mask),
        bias=bias(reference, output, mask),
        vif=vif(a, b) if texture else nothing,
        gmsd=gmsd(a, b, mask=mask) if texture else nothing,
    )
