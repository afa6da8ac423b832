"""Resolution: the task transfer function from the circular edge of an insert.

Source: Richard et al., Med Phys 39(7), 2012; AAPM TG-233 (2019), section on TTF. A denoiser is not linear: its
resolution depends on contrast and noise, so it is measured per insert and per dose, never once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal.windows import tukey

from training.errors import DataError
from training.evaluate.conventions import Values
from training.evaluate.physics import Insert

Doubles = npt.NDArray[np.float64]

BIN = 0.1
"""Width of an ESF bin in pixels: ten samples a pixel."""

POINTS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A transfer function.

    Attributes
    ----------
    frequency
        In cycles per mm, from 0 to the Nyquist frequency of the pixels.
    ttf
        1 at frequency 0.
    f50, f10
        Where it first falls to 0.5 and 0.1, in cycles per mm; NaN where it does not.
    contrast
        Inside minus outside, in the image's unit.
    cnr
        |contrast| over the noise that averaging left around the insert; infinite without noise. f50 is good to
        5 % (one standard deviation) at 15, which TG-233 asks for, and to 2 % at 40.
    position, esf
        The edge: distance from the nominal edge in mm (inside is negative), and mean values.
    """

    frequency: Doubles
    ttf: Doubles
    f50: float
    f10: float
    contrast: float
    cnr: float
    position: Doubles
    esf: Doubles


def _flat(volume: Values) -> Doubles:
    image = np.asarray(volume, np.float64)
    return np.asarray(image.mean(axis=0) if image.ndim == 3 else image)


def _around(image: Doubles, insert: Insert) -> float:
    """Standard deviation in the ring from 1.3 to 1.9 radii."""
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    r = np.hypot(y - insert.centre[0], x - insert.centre[1])
    ring = image[(r > 1.3 * insert.radius) & (r < 1.9 * insert.radius)]
    return float(ring.std()) if ring.size > 1 else 0.0


def refined_centre(volume: Values, insert: Insert) -> tuple[float, float]:
    """Return the centroid of the insert above its surroundings, (y, x) in pixels.

    Half a pixel of error in the centre blurs the ESF; measured phantoms need this, simulated ones do not.
    """
    image = _flat(volume)
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    r = np.hypot(y - insert.centre[0], x - insert.centre[1])
    ring = (r > 1.5 * insert.radius) & (r < 1.9 * insert.radius)
    near = r <= 1.5 * insert.radius
    weight = np.where(near, image - np.median(image[ring]), 0.0)
    total = float(weight.sum())
    if total == 0:
        raise DataError(f"insert {insert.name}: it has no contrast to find its centre by")
    return float((weight * y).sum() / total), float((weight * x).sum() / total)


def edge_spread(volume: Values, insert: Insert, *, reach: float | None = None) -> tuple[Doubles, Doubles]:
    """Return the oversampled edge spread function: mean value by distance from the edge.

    Parameters
    ----------
    volume
        (z, y, x) or (y, x); slices (or repeats) are averaged, which is what makes low contrast measurable.
    reach
        How far to look at either side, in pixels; None means 0.8 of the radius, at most 8: more holds more noise.

    Returns
    -------
    tuple
        Distance in pixels (inside is negative), one bin of 0.1 pixel after the other, and mean values.
    """
    image = _flat(volume)
    far = min(0.8 * insert.radius, 8.0) if reach is None else reach
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    distance = np.hypot(y - insert.centre[0], x - insert.centre[1]) - insert.radius
    n = round(2 * far / BIN)
    index = np.floor((distance + far) / BIN).astype(int)
    chosen = (index >= 0) & (index < n)
    count = np.bincount(index[chosen], minlength=n)
    if (count > 0).mean() < 0.5:
        raise DataError(
            f"insert {insert.name}: too few pixels for its edge", hint="a radius of 8 pixels or more"
        )
    total = np.bincount(index[chosen], image[chosen], minlength=n)
    where = -far + BIN * (np.arange(n, dtype=np.float64) + 0.5)
    seen = count > 0
    return where, np.asarray(np.interp(where, where[seen], total[seen] / count[seen]), np.float64)


def transfer(
    volume: Values,
    insert: Insert,
    spacing_mm: float,
    *,
    reach: float | None = None,
    plain: Values | None = None,
) -> Transfer:
    """Measure the TTF of an insert: ESF -> LSF (difference) -> Tukey window -> |DFT|, 1 at frequency 0.

    The widths of a bin and of a difference (each multiplies by sinc(0.1 f)) are divided out.

    Parameters
    ----------
    volume
        (z, y, x) or (y, x).
    spacing_mm
        Pixel spacing.
    plain
        What the same method made of the same noise without the insert. It is subtracted, which takes most of
        the noise away: the way to measure inserts of 10 to 50 HU by simulation.

    Raises
    ------
    DataError
        Too few pixels, or no contrast.
    """
    image = _flat(volume) if plain is None else _flat(volume) - _flat(plain)
    where, esf = edge_spread(image, insert, reach=reach)
    lsf = np.diff(esf) * tukey(esf.size - 1, 0.5)
    total = float(lsf.sum())
    if total == 0:
        raise DataError(f"insert {insert.name}: it has no edge")
    f = np.asarray(np.fft.rfftfreq(POINTS, BIN), np.float64)
    ttf = np.abs(np.fft.rfft(lsf, POINTS)) / abs(total) / np.sinc(BIN * f) ** 2
    kept = f <= 0.5
    quarter = max(1, esf.size // 4)
    contrast = float(esf[:quarter].mean() - esf[-quarter:].mean())
    noise = _around(image, insert)
    return Transfer(
        frequency=f[kept] / spacing_mm,
        ttf=ttf[kept],
        f50=first_below(f[kept] / spacing_mm, ttf[kept], 0.5),
        f10=first_below(f[kept] / spacing_mm, ttf[kept], 0.1),
        contrast=contrast,
        cnr=abs(contrast) / noise if noise > 0 else float("inf"),
        position=where * spacing_mm,
        esf=esf,
    )


def first_below(frequency: npt.NDArray[np.floating[Any]], curve: Doubles, level: float) -> float:
    """Return where a curve first falls below a level, between samples by a straight line; NaN if never."""
    below = np.flatnonzero(curve < level)
    if below.size == 0:
        return float("nan")
    i = int(below[0])
    if i == 0:
        return float(frequency[0])
    share = (curve[i - 1] - level) / (curve[i - 1] - curve[i])
    return float(frequency[i - 1] + share * (frequency[i] - frequency[i - 1]))
