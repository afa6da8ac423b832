"""Two looks at structure: in what was taken away, and in what came out against a reference.

- *residual-structure index*: what a denoiser takes away should look like noise. Where it follows the edges of
  the image, structure was taken.
- *sFRC*: Fourier ring correlation in small patches (Kc, Zeng, Soni, Badano, FDA, arXiv 2603.04673; its code is
  DIDSR/sfrc): where output and reference stop agreeing at a low frequency, the output shows something else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from training.errors import DataError
from training.evaluate.conventions import Mask, Values

Doubles = npt.NDArray[np.float64]

STRUCTURE_SIGMA = 1.5
FRC_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualStructure:
    """Structure in the residual (input minus output) of one slice.

    Attributes
    ----------
    signed
        Correlation of the residual with the curvature (- Laplacian of Gaussian) of the structure, windows
        weighted by how much structure they hold. 0: noise. Towards 1: edges and small things were flattened.
        Below 0: they were sharpened.
    energy
        The same of |residual| with the gradient's magnitude: 0 where the denoiser does not care about edges,
        above 0 where it takes more at edges, below 0 where it spares them.
    map
        Local ``signed`` correlation (y, x), -1 to 1.
    """

    signed: float
    energy: float
    map: Doubles


def residual_structure(
    before: Values,
    after: Values,
    mask: Mask,
    *,
    structure: Values | None = None,
    strength: float = 1.0,
    window: int = 15,
) -> ResidualStructure:
    """Measure how much the residual of a slice follows its structure.

    rho = cov(r, s) / sqrt(var r var s) in windows; the index is the sum of cov over the sum of
    sqrt(var r var s), each window weighted by sqrt(var s), so flat places (where s is noise) hardly count.

    Parameters
    ----------
    before, after
        (y, x).
    mask
        Which pixels are averaged.
    structure
        Where edges are: the truth, if known. None takes the engine's own estimate at full strength,
        before - (before - after) / strength.
    strength
        That the engine ran at. It matters: the noise that a weak strength leaves in the output is like the
        residual, and would be taken for structure (an index of 0.1 to 0.35 at strength 0.6).
    window
        Side in pixels.

    Raises
    ------
    DataError
        Shapes differ, or the mask is empty.
    """
    if not before.shape == after.shape == mask.shape or before.ndim != 2 or not mask.any():
        raise DataError("before, after and a mask that is not empty must have one shape (y, x)")
    residual = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    if not 0 < strength <= 1:
        raise DataError(f"strength is {strength:g}, not within 0 and 1")
    estimate = np.asarray(before, np.float64) - residual / strength
    image = estimate if structure is None else np.asarray(structure, np.float64)
    curvature = -np.asarray(ndimage.gaussian_laplace(image, STRUCTURE_SIGMA))
    gradient = np.asarray(ndimage.gaussian_gradient_magnitude(image, STRUCTURE_SIGMA))
    signed, local = _correlation(residual, curvature, mask, window)
    energy, _ = _correlation(np.abs(residual), gradient, mask, window)
    return ResidualStructure(signed=signed, energy=energy, map=local)


def _correlation(r: Doubles, s: Doubles, mask: Mask, window: int) -> tuple[float, Doubles]:
    def mean(v: Doubles) -> Doubles:
        return np.asarray(ndimage.uniform_filter(v, window, mode="reflect"))

    mr, ms = mean(r), mean(s)
    cov = mean(r * s) - mr * ms
    vr, vs = np.maximum(mean(r * r) - mr * mr, 0), np.maximum(mean(s * s) - ms * ms, 0)
    both = np.sqrt(vr * vs)
    local = np.divide(cov, both, out=np.zeros_like(cov), where=both > 1e-12 * float(both.max(initial=1e-300)))
    weight = np.sqrt(vs[mask])
    total = float((weight * both[mask]).sum())
    return (float((weight * cov[mask]).sum() / total) if total > 0 else 0.0), np.clip(local, -1, 1)


def ring_correlation(first: Values, second: Values) -> tuple[Doubles, Doubles]:
    """Return the Fourier ring correlation of two square patches, after a Hann window.

    FRC(k) = |Re sum_ring A conj(B)| / sqrt(sum_ring |A|^2 sum_ring |B|^2); rings one bin wide up to the
    Nyquist frequency, a coefficient between two rings belongs to both by its nearness.

    Returns
    -------
    tuple
        Frequency in cycles per pixel, and FRC; ring 0 (the mean) is the first.
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[0] != first.shape[1]:
        raise DataError("ring correlation needs two square patches of one size")
    side = first.shape[0]
    hann = np.hanning(side)
    a, b = (np.fft.fft2(np.asarray(p, np.float64) * hann[:, None] * hann) for p in (first, second))
    f = np.fft.fftfreq(side) * side
    radius = np.hypot(f[:, None], f[None, :]).ravel()
    floor = np.floor(radius).astype(int)
    share = radius - floor

    def rings(values: Doubles) -> Doubles:
        flat, n = values.ravel(), side // 2
        below = np.bincount(floor, flat * (1 - share))[:n]
        return np.asarray(below + np.bincount(floor + 1, flat * share)[:n])

    cross = rings(np.real(a * np.conj(b)))
    power = np.sqrt(rings(np.abs(a) ** 2) * rings(np.abs(b) ** 2))
    found = np.divide(np.abs(cross), power, out=np.zeros_like(cross), where=power > 0)
    return np.arange(side // 2) / side, found


def agreement(first: Values, second: Values, *, threshold: float = FRC_THRESHOLD) -> float:
    """Return the frequency (cycles per pixel) at which the FRC first falls below the threshold.

    0.5 (Nyquist) where it never does.
    """
    frequency, found = ring_correlation(first, second)
    below = np.flatnonzero(found < threshold)
    if below.size == 0:
        return 0.5
    i = int(below[0])
    if i == 0:
        return 0.0
    share = (found[i - 1] - threshold) / (found[i - 1] - found[i])
    return float(frequency[i - 1] + share * (frequency[i] - frequency[i - 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Agreement of the patches of a slice.

    Attributes
    ----------
    corners
        (row, column) of the first pixel of each patch.
    crossings
        Where the FRC of each patch falls below the threshold, in cycles per mm.
    """

    corners: tuple[tuple[int, int], ...]
    crossings: Doubles

    def flagged(self, limit_per_mm: float) -> int:
        """Return how many patches stop agreeing below the limit."""
        return int((self.crossings < limit_per_mm).sum())


def scan(
    output: Values,
    reference: Values,
    spacing_mm: float,
    *,
    mask: Mask | None = None,
    size: int = 64,
    stride: int | None = None,
    threshold: float = FRC_THRESHOLD,
    least_structure: float = 0.0,
) -> Scan:
    """Compare output and reference patch by patch (sFRC).

    Parameters
    ----------
    output, reference
        (y, x), windowed or not: window both the same way.
    mask
        Patches with less than half of their pixels in it (air) are left out.
    size, stride
        Of patches, in pixels; None means half the size. FDA's example for CT: 64 pixels, threshold 0.5,
        limit 0.33 per mm at 0.7 mm, set with lesions that experts marked. Set the limit by what the *input*
        reaches: :func:`limit_from`.
    least_structure
        Patches of which the reference's standard deviation is below this are left out: in flat patches only
        noise can agree.

    Raises
    ------
    DataError
        Shapes differ or no patch is left.
    """
    if output.shape != reference.shape or output.ndim != 2:
        raise DataError("output and reference must have one shape (y, x)")
    step = size // 2 if stride is None else stride
    corners, crossings = [], []
    for y in range(0, output.shape[0] - size + 1, step):
        for x in range(0, output.shape[1] - size + 1, step):
            here = (slice(y, y + size), slice(x, x + size))
            if mask is not None and mask[here].mean() < 0.5:
                continue
            if float(np.std(reference[here])) < least_structure:
                continue
            corners.append((y, x))
            crossings.append(agreement(output[here], reference[here], threshold=threshold) / spacing_mm)
    if not corners:
        raise DataError("no patch can be compared", hint="smaller patches, or another mask")
    return Scan(corners=tuple(corners), crossings=np.asarray(crossings, np.float64))


def limit_from(before: Scan, *, share: float = 0.05) -> float:
    """Return the frequency below which at most ``share`` of the *input's* patches stop agreeing with the reference.

    By construction the input has no more flagged patches than that; an output that has more shows structure that
    the input did not have, or has lost some.
    """
    return float(np.quantile(before.crossings, share, method="lower"))
