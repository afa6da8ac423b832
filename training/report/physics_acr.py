"""Detail of real phantoms: what engines leave of the ACR phantom's resolution insert and low-contrast discs.

Where the two inserts lie is found by their shape; the discs are what a matched filter finds in the input. So both are
questions about loss, and about what appears from nothing. Source: ACR, Large and Medium Phantom Test Guidance (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from engines import noise as estimates
from engines.base import Floats, Params, Volume
from training.data import dicom
from training.evaluate.conventions import Mask
from training.evaluate.lesions import blob_filter
from training.report.physics_bench import Subject, table

Doubles = npt.NDArray[np.float64]

N_SLICES = 11
"""Of an ACR series: the first holds the resolution insert, the last four the discs."""
DISC_RADII_MM = (1.0, 2.0, 3.3)
SEEN = 5.0
"""A disc counts as visible when the matched filter's response is so many times that to the slice's noise."""
GONE = 0.5
"""A disc that keeps less of its contrast is lost."""
DISC_INSERT_MM2 = (3500.0, 7000.0)
BLOCK_MM = (20.0, 80.0)
"""Least height and width of the block of holes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """One ACR series through one engine.

    Attributes
    ----------
    detail
        How much of the holes is left: slope of the output's band-pass on the input's in the block of holes.
    discs, lost, appeared
        Discs that a matched filter sees in the last four slices of the input; those of them that keep less than half of
        their contrast; and what it sees in the output alone, by the same ruler.
    contrast
        Pooled contrast of the discs, after over before.
    skipped
        Slices left as they were.
    """

    engine: str
    series: str
    strength: float
    detail: float
    discs: int
    lost: int
    appeared: int
    contrast: float
    skipped: int


def series(corpus: Path) -> list[tuple[str, Volume]]:
    """Find ACR series by their shape: MR, 11 slices 10 mm apart."""
    found = []
    for stack in dicom.index(corpus).stacks:
        if stack.modality != "MR" or len(stack.slices) != N_SLICES or abs(stack.usual_gap - 10) > 0.5:
            continue
        scan = dicom.scan_of(stack, licence="unknown")
        name = f"{stack.header.get('Manufacturer', '')} TE {stack.header.get('EchoTime', '')} ms"
        found.append((name, scan.load()))
    return found


def measured(subject: Subject, name: str, given: Volume) -> list[Detail]:
    """Measure one series at default strength and at 1.0."""
    out = subject.engine.enhance(given, Params(strength=subject.strength))
    made = out.volume.values
    full = given.values + (made - given.values) / np.float32(subject.strength)
    sigmas = estimates.steady(subject.engine.survey(given).sigma)
    return [
        _detail(subject, name, strength, given, after, sigmas, int(out.figures["skipped"]))
        for strength, after in ((subject.strength, made), (1.0, full))
    ]


def _band(image: Floats, pixel_mm: float) -> Doubles:
    """What is between half a millimetre and two millimetres wide."""
    fine = ndimage.gaussian_filter(np.asarray(image, np.float64), 0.2 / pixel_mm)
    return np.asarray(fine - ndimage.gaussian_filter(np.asarray(image, np.float64), 1.2 / pixel_mm))


def _bright(image: Floats) -> Mask:
    level = float(np.median(image[image > 0.3 * float(image.max())]))
    return np.asarray(image > 0.6 * level)


def holes(image: Floats, pixel_mm: float) -> tuple[slice, slice] | None:
    """Find the holes of the resolution insert: the right three quarters of a dark block in the bright phantom."""
    labels, n = ndimage.label(~_bright(image))
    if n == 0:
        return None
    for rows, columns in ndimage.find_objects(labels):
        height, width = ((s.stop - s.start) * pixel_mm for s in (rows, columns))
        if BLOCK_MM[0] <= height <= 3 * BLOCK_MM[0] and BLOCK_MM[1] <= width <= 2 * BLOCK_MM[1]:
            rim = max(1, round(3 / pixel_mm))
            left = columns.start + round(0.25 * (columns.stop - columns.start))
            return slice(rows.start + rim, rows.stop - rim), slice(left, columns.stop - rim)
    return None


def disc_insert(image: Floats, pixel_mm: float) -> Mask | None:
    """Find the insert with the discs: a bright disc of its own within a dark ring."""
    labels, n = ndimage.label(_bright(image))
    sizes = np.bincount(labels.ravel())[1:] * pixel_mm**2 if n else np.zeros(0)
    fitting = np.flatnonzero((sizes >= DISC_INSERT_MM2[0]) & (sizes <= DISC_INSERT_MM2[1]))
    if fitting.size == 0:
        return None
    inside = ndimage.binary_fill_holes(labels == int(fitting[0]) + 1)
    return np.asarray(ndimage.binary_erosion(inside, iterations=max(1, round(3 / pixel_mm))))


def _responses(image: Floats, inside: Mask, pixel_mm: float, sigma: float) -> Doubles:
    """Largest response over disc sizes, in units of that to the noise; the insert goes on beyond its rim."""
    values = np.where(inside, np.asarray(image, np.float64), 0.0)
    width = 5.0 / pixel_mm
    share = ndimage.gaussian_filter(inside.astype(np.float64), width)
    flat = np.divide(
        ndimage.gaussian_filter(values, width), share, out=np.zeros_like(values), where=share > 1e-6
    )
    level = np.where(inside, values - flat, 0.0)
    out = []
    for radius in DISC_RADII_MM:
        kernel = blob_filter(radius / pixel_mm)
        out.append(ndimage.convolve(level, kernel) / (sigma * float(np.sqrt((kernel**2).sum()))))
    return np.asarray(np.max(out, axis=0))


def _peaks(response: Doubles, inside: Mask, pixel_mm: float) -> Mask:
    top = response == ndimage.maximum_filter(response, 2 * round(2.5 / pixel_mm) + 1)
    return np.asarray(top & inside & (response > SEEN))


def _detail(
    subject: Subject,
    name: str,
    strength: float,
    given: Volume,
    after: Floats,
    sigmas: Floats,
    skipped: int,
) -> Detail:
    pixel = given.spacing_mm[1]
    n = given.shape[0]
    # From foot to head or from head to foot: holes are in one end, discs in the other.
    order = range(n) if holes(given.values[0], pixel) is not None else range(n - 1, -1, -1)
    block = holes(given.values[order[0]], pixel)
    slope = float("nan")
    if block is not None:
        was, now = (_band(v[order[0]], pixel)[block] for v in (given.values, after))
        slope = float((was * now).sum() / (was * was).sum())
    counts, pairs = np.zeros(3, int), []
    for z in order[-4:]:
        inside = disc_insert(given.values[z], pixel)
        if inside is None:
            continue
        before, later = (_responses(v[z], inside, pixel, float(sigmas[z])) for v in (given.values, after))
        seen, then = (_peaks(r, inside, pixel) for r in (before, later))
        near = ndimage.binary_dilation(seen, iterations=round(2.5 / pixel))
        counts += (int(seen.sum()), int((later[seen] < GONE * before[seen]).sum()), int((then & ~near).sum()))
        pairs += list(zip(before[seen], later[seen], strict=True))
    kept = np.asarray(pairs, np.float64).reshape(-1, 2)
    power = float((kept[:, 0] ** 2).sum())
    return Detail(
        engine=subject.name,
        series=name,
        strength=strength,
        detail=slope,
        discs=int(counts[0]),
        lost=int(counts[1]),
        appeared=int(counts[2]),
        contrast=float((kept[:, 0] * kept[:, 1]).sum() / power) if power > 0 else float("nan"),
        skipped=skipped,
    )


def text(found: Sequence[Detail]) -> str:
    """Write them."""
    rows = [
        (d.engine, d.series, d.strength, d.detail, d.discs, d.lost, d.appeared, d.contrast, d.skipped)
        for d in found
    ]
    head = ("engine", "series", "strength", "detail of the holes left", "discs before", "lost", "appeared")
    return table((*head, "contrast left", "slices left alone"), rows)
