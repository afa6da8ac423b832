"""Detail of real phantoms: what engines leave of the ACR phantom's resolution insert and low-contrast discs.

Where things lie is not looked up in a drawing: the detail is what the input holds above its noise, and the discs are
what a matched filter finds in the input. So both are questions about loss, and about what appears from nothing.
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
from training.evaluate.conventions import foreground_mask
from training.evaluate.lesions import blob_filter
from training.report.physics_bench import Subject, table

N_SLICES = 11
"""Of an ACR series: the first holds the resolution insert, the last four the discs."""
DISC_RADII_MM = (1.5, 2.5, 3.5)
SEEN = 4.0
"""A disc counts as visible when the matched filter's response is so many times that to the slice's noise."""
RIM_MM = 22.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """One ACR series through one engine.

    Attributes
    ----------
    detail
        How much of the fine detail of the first slice is left: slope of the output's band-pass on the input's where
        the input's detail is strongest.
    discs_before, discs_after, discs_both
        Blobs of the last four slices that a matched filter sees before, after, and in both at one place.
    contrast
        Their contrast after over before.
    skipped
        Slices left as they were.
    """

    engine: str
    series: str
    strength: float
    detail: float
    discs_before: int
    discs_after: int
    discs_both: int
    contrast: float
    skipped: int


def series(corpus: Path) -> list[tuple[str, Volume]]:
    """Find ACR series by their shape: MR, 11 slices 10 mm apart."""
    found = []
    for stack in dicom.index(corpus).stacks:
        if stack.modality != "MR" or len(stack.slices) != N_SLICES or abs(stack.usual_gap - 10) > 0.5:
            continue
        scan = dicom.scan_of(stack, licence="unknown")
        name = f"{stack.header.get('Manufacturer', '')} {stack.header.get('EchoTime', '')} ms"
        found.append((name.title(), scan.load()))
    return found


def measured(subject: Subject, name: str, given: Volume) -> list[Detail]:
    """Measure one series at default strength and at 1.0."""
    out = subject.engine.enhance(given, Params(strength=subject.strength))
    made = out.volume.values
    full = given.values + (made - given.values) / np.float32(subject.strength)
    sigmas = estimates.steady(subject.engine.survey(given).sigma)
    body = foreground_mask(given.values)
    pixel = given.spacing_mm[1]
    # From foot to head or from head to foot: the insert is in the slice with more fine detail.
    ends = [_band(given.values[z], pixel)[body[z]].std() for z in (0, N_SLICES - 1)]
    order = list(range(N_SLICES)) if ends[0] >= ends[1] else list(range(N_SLICES))[::-1]
    return [
        _detail(subject, name, strength, given, after, order, sigmas, body, int(out.figures["skipped"]))
        for strength, after in ((subject.strength, made), (1.0, full))
    ]


def _band(image: Floats, pixel_mm: float) -> npt.NDArray[np.float64]:
    """What is between half a millimetre and two millimetres wide."""
    fine = ndimage.gaussian_filter(np.asarray(image, np.float64), 0.2 / pixel_mm)
    return np.asarray(fine - ndimage.gaussian_filter(np.asarray(image, np.float64), 1.2 / pixel_mm))


def _detail(
    subject: Subject,
    name: str,
    strength: float,
    given: Volume,
    after: Floats,
    order: Sequence[int],
    sigmas: Floats,
    body: npt.NDArray[np.bool_],
    skipped: int,
) -> Detail:
    pixel = given.spacing_mm[1]
    first = order[0]
    inner = ndimage.binary_erosion(body[first], iterations=max(1, round(RIM_MM / pixel)))
    was, now = (_band(v[first], pixel) for v in (given.values, after))
    strong = inner & (np.abs(was) > 5 * float(sigmas[first]))
    slope = (
        float((was[strong] * now[strong]).sum() / (was[strong] ** 2).sum()) if strong.any() else float("nan")
    )
    counts, pairs = np.zeros(3, int), []
    for z in order[-4:]:
        eroded = ndimage.binary_erosion(body[z], iterations=max(1, round(RIM_MM / pixel)))
        for radius in DISC_RADII_MM:
            kernel = blob_filter(radius / pixel)
            scale = float(sigmas[z]) * float(np.sqrt((kernel**2).sum()))
            before, later = (
                ndimage.convolve(np.asarray(v[z], np.float64), kernel) for v in (given.values, after)
            )
            a, b = (_peaks(r, eroded, SEEN * scale, round(2 * radius / pixel)) for r in (before, later))
            near = ndimage.binary_dilation(b, iterations=2)
            counts += (int(a.sum()), int(b.sum()), int((a & near).sum()))
            pairs += list(zip(before[a], later[a], strict=True))
    kept = np.asarray(pairs).reshape(-1, 2)
    power = float((kept[:, 0] ** 2).sum())
    return Detail(
        engine=subject.name,
        series=name,
        strength=strength,
        detail=slope,
        discs_before=int(counts[0]),
        discs_after=int(counts[1]),
        discs_both=int(counts[2]),
        contrast=float((kept[:, 0] * kept[:, 1]).sum() / power) if power > 0 else float("nan"),
        skipped=skipped,
    )


def _peaks(
    response: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_], threshold: float, size: int
) -> npt.NDArray[np.bool_]:
    top = response == ndimage.maximum_filter(response, 2 * (size // 2) + 1)
    return np.asarray(top & mask & (response > threshold))


def text(found: Sequence[Detail]) -> str:
    """Write them."""
    rows = [
        (
            d.engine,
            d.series,
            d.strength,
            d.detail,
            d.discs_before,
            d.discs_after,
            d.discs_both,
            d.contrast,
            d.skipped,
        )
        for d in found
    ]
    head = (
        "engine",
        "series",
        "strength",
        "fine detail left",
        "discs before",
        "after",
        "in both",
        "contrast left",
    )
    return table((*head, "slices left alone"), rows)
