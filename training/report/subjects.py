"""Real series below a folder, whatever it is called and however it is laid out: found by headers and by content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import ndimage

from engines import noise
from engines.base import Floats, Unit, Volume
from training.data import dicom, nifti
from training.data.folder import USUAL_PATTERN, nifti_scan
from training.data.records import LeftOut, Scan, patient_key, relative
from training.errors import DataError
from training.evaluate.conventions import as_written, body_mask

LABELS = re.compile(r"(?i)label|seg|mask")
"""Names of NIfTI files that hold labels, not a picture."""
CONTRAST = re.compile(r"(?i)(?<![a-z])(FLAIR|T1|T2|PD)(?=w|_|\.|$)")
LUNG_MM = 7.0
"""Lung is lung-like over so much: edges of a body are not."""
CT_HU = -500.0
"""A NIfTI volume that goes below this holds Hounsfield units."""
PURE_NOISE = 0.6
"""Noise over standard deviation: a series above shows nothing (pixels that were replaced by noise)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The values that can be stored: value = slope * stored + intercept, stored within limits."""

    slope: float
    intercept: float
    limits: tuple[int, int]

    def written(self, values: Floats) -> Floats:
        """What a viewer will see of ``values``."""
        return as_written(values, slope=self.slope, intercept=self.intercept, limits=self.limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One real series.

    Attributes
    ----------
    name
        For tables: what it shows, maker, thickness, kernel or contrast, a number.
    kind
        CT: chest, abdomen or head by what is in it; MR: contrast.
    patient
        A hash: the unit of averages.
    series, study
        Hashes, "" where unknown; of the series, and of study and frame: what shares one may be one acquisition.
    thickness_mm
        Slice thickness, 0 where nothing says.
    positions
        Along the normal, mm; empty where unknown.
    """

    name: str
    kind: str
    patient: str
    scan: Scan = field(repr=False)
    volume: Volume = field(repr=False)
    series: str = ""
    study: str = ""
    thickness_mm: float = 0.0
    positions: tuple[float, ...] = ()

    @property
    def unit(self) -> Unit:
        return self.volume.unit

    @property
    def grid(self) -> Grid:
        """Of the stored values; nothing lower than the lowest of the series (or air) is stored."""
        return grid_of(self.volume)


def grid_of(volume: Volume) -> Grid:
    """The stored grid, from the values themselves: each lies on it."""
    slope = float(volume.step[0]) or 1.0
    seen = volume.values[volume.valid]
    intercept = float(seen[0])
    lowest = min(float(seen.min()), -1024.0 if volume.unit == "HU" else 0.0)
    bottom = int(np.ceil((lowest - intercept) / slope - 1e-6))
    return Grid(slope=slope, intercept=intercept, limits=(bottom, bottom + 65535))


def anatomy(volume: Volume) -> str:
    """Chest, abdomen or head, by how much lung and bone is seen and how wide the picture is."""
    step = max(1, volume.shape[0] // 8)
    values = volume.values[::step]
    body = body_mask(values)
    if not body.any():
        return "other"
    bone = float((values[body] > 500).mean())
    if bone > 0.05 and volume.spacing_mm[1] * volume.shape[1] <= 300:
        return "head"
    # Not the share inside of the body: cropped series have lungs that are open to the border.
    lung, side = 0, max(3, round(LUNG_MM / volume.spacing_mm[1]))
    for one in values:
        smooth = ndimage.median_filter(one, 5)
        lung += int(ndimage.binary_opening((smooth > -900) & (smooth < -750), np.ones((side, side))).sum())
    return "chest" if lung > 0.05 * int((values > -300).sum()) else "abdomen"


def thinned(volume: Volume, n_blocks: int, block: int) -> tuple[Volume, tuple[int, ...]]:
    """Keep blocks of neighbouring slices, evenly spread; between blocks there is a gap.

    Returns
    -------
    volume, measured
        The slices, and the indices of those to measure: inside of the blocks, so that they have both neighbours
        where the series has them.
    """
    n = volume.shape[0]
    if n <= n_blocks * block:
        inner = range(1, n - 1) if n > 2 else range(n)
        return volume, tuple(inner)
    first = np.linspace(0, n - block, n_blocks + 2).round().astype(int)[1:-1]
    chosen = sorted({int(i) for f in first for i in range(f, f + block)})
    follows = [b == a + 1 for a, b in pairwise(chosen)] + [False]
    ends = {i for i in range(len(chosen)) if not follows[i] or i == 0 or not follows[i - 1]}
    measured = tuple(i for i in range(len(chosen)) if i not in ends) or tuple(range(len(chosen)))
    return replace(
        volume,
        values=np.ascontiguousarray(volume.values[chosen]),
        valid=np.ascontiguousarray(volume.valid[chosen]),
        contiguous=np.asarray(volume.contiguous[chosen] & np.array(follows), np.bool_),
        step=volume.step[chosen],
    ), measured


@cache
def find(root: Path) -> tuple[tuple[Subject, ...], tuple[LeftOut, ...]]:
    """Every CT and MR series below ``root`` with a picture in it, and what was left out and why.

    Raises
    ------
    DataError
        No folder.
    """
    index = dicom.index(root)
    left_out = list(index.left_out)
    found: list[Subject] = []
    for stack in index.stacks:
        scan = dicom.scan_of(stack, licence="")
        shown = _shown(scan, stack.slices[0].name, left_out)
        if shown is None:
            continue
        study = str(stack.header.get("StudyInstanceUID", "")) + str(
            stack.header.get("FrameOfReferenceUID", "")
        )
        found.append(
            Subject(
                name="",
                kind=anatomy(shown) if shown.unit == "HU" else scan.domains["contrast"],
                patient=scan.patient,
                scan=scan,
                volume=shown,
                series=patient_key(stack.series_instance_uid, secret=""),
                study=patient_key(study, secret="") if study else "",
                thickness_mm=float(stack.header.get("SliceThickness", None) or 0.0),
                positions=tuple(s.position for s in stack.slices),
            )
        )
    found += _nifti(root, left_out)
    return _named(found), tuple(left_out)


def _nifti(root: Path, left_out: list[LeftOut]) -> list[Subject]:
    found = []
    for path in dicom.files_below(root):
        name = relative(path, root)
        if not name.lower().endswith(nifti.ENDINGS) or LABELS.search(name):
            continue
        match = re.search(USUAL_PATTERN, name)
        patient = patient_key(match.group(1) if match else path.name, secret="")
        scan = nifti_scan(path, name, modality="MR", patient=patient, licence="")
        volume = _shown(scan, name, left_out)
        if volume is None:
            continue
        hu = float(volume.values.min()) < CT_HU
        volume = replace(volume, unit="HU" if hu else "arbitrary")
        told = CONTRAST.search(path.name)
        kind = anatomy(volume) if hu else (told.group(1).upper() if told else "unknown")
        found.append(Subject(name="", kind=kind, patient=patient, scan=scan, volume=volume))
    return found


def _shown(scan: Scan, name: str, left_out: list[LeftOut]) -> Volume | None:
    """The voxels, or None where there is no picture in them."""
    try:
        volume = scan.load()
    except DataError as error:
        left_out.append(LeftOut(what=name, reason=error.message.split(": ")[-1]))
        return None
    middle = volume.values[volume.shape[0] // 2]
    valid = volume.valid[volume.shape[0] // 2]
    sigma = noise.estimate(middle, valid, unit=volume.unit).sigma
    if sigma > PURE_NOISE * float(middle[valid].std()):
        left_out.append(LeftOut(what=name, reason="its pixels are noise and nothing else"))
        return None
    return volume


def _named(found: Sequence[Subject]) -> tuple[Subject, ...]:
    """Give each a name of its own."""
    named: list[Subject] = []
    counts: dict[str, int] = {}
    for one in found:
        domains = one.scan.domains
        thick = one.thickness_mm or one.volume.spacing_mm[0]
        words = ["CT" if one.unit == "HU" else "MR", one.kind if one.kind != "unknown" else ""]
        words += [domains.get(k, "") for k in ("vendor", "kernel")]
        words += [f"{thick:.3g} mm" if thick > 0 else "one slice"]
        name = " ".join(w for w in words if w not in ("", "unknown", "other"))
        counts[name] = counts.get(name, 0) + 1
        named.append(replace(one, name=name if counts[name] == 1 else f"{name} #{counts[name]}"))
    return tuple(named)
