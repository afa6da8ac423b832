"""From the marks of single readers to findings: where in the volume, how large, what most of them say.

Marks of different readers are one nodule when their centroids are near: pairs are joined by growing distance,
never two marks of one reader. Three readers make a consensus; of their ratings the median counts (calcification,
which has no order, goes by majority). What one or two readers marked is kept, without labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt
from skimage.draw import polygon2mask

from engines.base import Mask
from training.data.dicom import Stack
from training.data.headers import axes
from training.data.lidc_xml import CONTOUR_POINTS, Mark, Roi
from training.data.records import Finding, Run

CONSENSUS: Final = 3
NEAR_MM: Final = 4.0
"""Centroids nearer than this, or than the larger radius, belong to one nodule."""
NOT_CALCIFIED: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A mark in voxels: its outlines by slice index, its box, its centroid and its size."""

    mark: Mark
    outlines: tuple[tuple[int, Roi], ...]
    centre: tuple[float, float, float]
    box: tuple[Run, Run, Run]
    diameter_mm: float


class Positions:
    """Which slice of a stack a reader's outline lies in: by SOP Instance UID, else by position.

    A slice that is missing, or left out as a second one at its position, is found by position or not at all.
    """

    def __init__(self, stack: Stack) -> None:
        self._by_uid = {s.sop_instance_uid: i for i, s in enumerate(stack.slices)}
        self._z = np.array([s.position for s in stack.slices])
        again = {s.sop_instance_uid: s.position for s in stack.left_out}
        self._again = {uid: int(np.argmin(np.abs(self._z - z))) for uid, z in again.items()}
        self._near = max(0.25 * stack.usual_gap, 0.05)
        # ImagePositionPatient z of an axial slice; the normal of some points down
        self._sign = float(np.sign(axes(stack.header)[2][2]) or 1.0)

    def find(self, roi: Roi) -> int | None:
        """Return the index of the slice, or None."""
        for known in (self._by_uid, self._again):
            if roi.sop_instance_uid in known:
                return known[roi.sop_instance_uid]
        if not np.isfinite(roi.z_mm):
            return None
        distances = np.abs(self._z - self._sign * roi.z_mm)
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] <= self._near else None


def mask_of(outlines: Sequence[tuple[int, Roi]], box: tuple[Run, Run, Run]) -> Mask:
    """Fill a reader's outlines inside ``box``, bool (z, y, x): what is strictly inside, without the holes.

    LIDC outlines run through the first pixels outside of the nodule, so the outline itself is no part of it;
    holes (``inclusion`` false) are taken out with theirs.
    """
    (z0, z1), (y0, y1), (x0, x1) = box
    mask = np.zeros((z1 - z0, y1 - y0, x1 - x0), bool)
    for wanted in (True, False):
        for index, roi in outlines:
            if roi.inclusion is not wanted or not z0 <= index < z1 or len(roi.points) < CONTOUR_POINTS:
                continue
            corners = np.array([(y - y0, x - x0) for x, y in roi.points])
            filled = polygon2mask(mask.shape[1:], corners)  # type: ignore[no-untyped-call]
            on = np.round(corners).astype(int)
            inside = ((on >= 0) & (on < mask.shape[1:])).all(axis=1)
            edge = np.zeros(mask.shape[1:], bool)
            edge[on[inside, 0], on[inside, 1]] = True
            if wanted:
                mask[index - z0] |= filled & ~edge
            else:
                mask[index - z0] &= ~(filled | edge)
    return mask


def place(
    mark: Mark, positions: Positions, shape: tuple[int, int, int], voxel_mm: Sequence[float]
) -> Placed | None:
    """Find a mark's place; None where none of its slices is there or all of it lies outside of the matrix."""
    outlines = []
    for roi in mark.rois:
        index = positions.find(roi)
        if index is not None and roi.points:
            outlines.append((index, roi))
    drawn = [(i, x, y) for i, roi in outlines if roi.inclusion for x, y in roi.points]
    drawn = [(i, x, y) for i, x, y in drawn if 0 <= x < shape[2] and 0 <= y < shape[1]]
    if not drawn:
        return None
    z, x, y = np.array(drawn).T
    box = (
        (int(z.min()), int(z.max()) + 1),
        (int(y.min()), int(y.max()) + 1),
        (int(x.min()), int(x.max()) + 1),
    )
    mask = mask_of(outlines, box)
    if mask.any():
        centre = tuple(float(c.mean()) + lo for c, (lo, _) in zip(np.nonzero(mask), box, strict=True))
        diameter = float((6 / np.pi * mask.sum() * np.prod(voxel_mm)) ** (1 / 3))
    else:
        centre, diameter = (float(z.mean()), float(y.mean()), float(x.mean())), 0.0
    return Placed(
        mark=mark,
        outlines=tuple(outlines),
        centre=(centre[0], centre[1], centre[2]),
        box=box,
        diameter_mm=diameter,
    )


def cluster(placed: Sequence[Placed], voxel_mm: Sequence[float]) -> list[list[Placed]]:
    """Join marks of different readers, nearest first; the order of ``placed`` does not matter."""
    ordered = sorted(placed, key=lambda p: (p.centre, p.mark.reader))
    centres = np.array([p.centre for p in ordered]).reshape(-1, 3) * np.array(voxel_mm)
    distances: npt.NDArray[np.float64] = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    home = list(range(len(ordered)))
    readers = [{p.mark.reader} for p in ordered]
    pairs = sorted((distances[i, j], i, j) for i in range(len(ordered)) for j in range(i))
    for distance, i, j in pairs:
        near = max(NEAR_MM, ordered[i].diameter_mm / 2, ordered[j].diameter_mm / 2)
        a, b = home[i], home[j]
        if a != b and distance <= near and not readers[a] & readers[b]:
            readers[a] |= readers[b]
            home = [a if h == b else h for h in home]
    return [[p for p, h in zip(ordered, home, strict=True) if h == one] for one in sorted(set(home))]


def labels(members: Sequence[Placed]) -> dict[str, str]:
    """Return the domains of one nodule; empty where fewer than :data:`CONSENSUS` readers rated it."""
    rated = [p.mark.ratings for p in members]

    def middle(name: str) -> float | None:
        told = [r[name] for r in rated if name in r]
        return median(told) if len(told) >= CONSENSUS else None

    found: dict[str, str] = {}
    texture, spiculation, malignancy = middle("texture"), middle("spiculation"), middle("malignancy")
    if texture is not None:
        found["texture"] = "ground-glass" if texture <= 2 else "solid" if texture >= 4 else "part-solid"
    if spiculation is not None:
        found["spiculated"] = "yes" if spiculation >= 4 else "no"
    calcified = [r["calcification"] < NOT_CALCIFIED for r in rated if "calcification" in r]
    if len(calcified) >= CONSENSUS:
        found["calcified"] = "yes" if 2 * sum(calcified) > len(calcified) else "no"
    if malignancy is not None:
        found["malignancy"] = "low" if malignancy <= 2 else "high" if malignancy >= 4 else "undecided"
    return found


def findings(marks: Sequence[Mark], stack: Stack) -> tuple[tuple[Finding, ...], int]:
    """Return the findings of a stack, largest first, and how many marks lie in no slice of it."""
    shape = (len(stack.slices), int(stack.header.Rows), int(stack.header.Columns))
    voxel_mm = (stack.usual_gap, *stack.pixel_spacing)
    positions = Positions(stack)
    placed = [place(mark, positions, shape, voxel_mm) for mark in marks]
    found = []
    for kind in ("nodule", "small nodule", "non-nodule"):
        of_kind = [p for p in placed if p is not None and p.mark.kind == kind]
        found += [_finding(kind, members) for members in cluster(of_kind, voxel_mm)]
    found.sort(key=lambda f: (-f.diameter_mm, f.kind, f.centre))
    return tuple(found), sum(p is None for p in placed)


def _finding(kind: str, members: Sequence[Placed]) -> Finding:
    centre = np.mean([p.centre for p in members], axis=0)
    boxes = np.array([p.box for p in members])
    low, high = boxes[:, :, 0].min(axis=0), boxes[:, :, 1].max(axis=0)
    told: Mapping[str, str] = labels(members) if kind == "nodule" else {}
    return Finding(
        kind=kind,
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        box=(
            (int(low[0]), int(high[0])),
            (int(low[1]), int(high[1])),
            (int(low[2]), int(high[2])),
        ),
        diameter_mm=float(median(p.diameter_mm for p in members)),
        n_readers=len(members),
        labels=told,
    )


def around(
    finding: Finding, scan_shape: tuple[int, int, int], spacing_mm: Sequence[float], margin_mm: float = 5.0
) -> tuple[Run, Run, Run]:
    """Return the box of a finding with a margin on all sides, inside of the volume: where a lesion is judged."""
    grown = []
    for (low, high), n, step in zip(finding.box, scan_shape, spacing_mm, strict=True):
        more = int(np.ceil(margin_mm / step)) if step > 0 else 0
        grown.append((max(low - more, 0), min(high + more, n)))
    return grown[0], grown[1], grown[2]
