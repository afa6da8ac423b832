"""Any tree of DICOM files: found by what is in the files, never by their names or places.

Index by Series Instance UID; order along the slice normal from Image Position and Image Orientation (Patient)
(PS3.3 C.7.6.2.1.1); one stack per contrast, echo, b-value, kernel, thickness and matrix, since one series may
hold several. A slice at a position that is already there is left out; a missing slice ends a run of neighbours.
Multi-frame objects are left out: export them as single frames first.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from engines.base import Floats, Mask, Modality, Unit, Volume
from training.data import headers
from training.data.records import LeftOut, Run, Scan, numbered, patient_key, relative, scan_key
from training.errors import DataError

AIR_HU = -1000.0
OUTSIDE_HU = -1500.0
"""Nothing that a scanner measures is thinner than air: values below are paddings (-2000, -3024 ...)."""
SAME_MM = 0.01
GAP_SHARE = 0.1
"""A distance between slices is the usual one within this share of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One image: where it lies, and what is needed to read and to order it.

    ``position`` is along the normal of the slices, ``corner`` is where the first voxel lies in the plane of the
    slice, both in mm.
    """

    path: Path = field(repr=False)
    name: str = field(repr=False)
    sop_instance_uid: str = field(repr=False)
    position: float
    corner: tuple[float, float]
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Slices of one series that belong together, in order, with the header of the first.

    ``left_out`` are the slices at positions that were already there.
    """

    series_instance_uid: str = field(repr=False)
    index: int
    header: Dataset = field(repr=False)
    slices: tuple[Slice, ...]
    left_out: tuple[Slice, ...]
    modality: Modality

    @property
    def pixel_spacing(self) -> tuple[float, float]:
        """(y, x) in mm."""
        return headers.spacing(self.header)

    @property
    def gaps(self) -> npt.NDArray[np.float64]:
        """Distances between neighbours, in mm."""
        return np.diff([s.position for s in self.slices])

    @property
    def usual_gap(self) -> float:
        """The median distance, in mm; 0 for a single slice."""
        return float(np.median(self.gaps)) if len(self.slices) > 1 else 0.0

    def contiguous(self) -> Mask:
        """Whether slice i+1 is a true neighbour of slice i: usual distance, and not sheared by gantry tilt."""
        usual = self.usual_gap
        there = np.zeros(len(self.slices), bool)
        if usual > 0:
            corners = np.array([s.corner for s in self.slices])
            shift = np.abs(np.diff(corners, axis=0)).max(axis=1)
            even = np.abs(self.gaps - usual) <= max(GAP_SHARE * usual, 2 * SAME_MM)
            there[:-1] = even & (shift <= 0.5 * min(self.pixel_spacing))
        return there


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All stacks below a folder, in a fixed order, and what was left out."""

    root: Path = field(repr=False)
    stacks: tuple[Stack, ...]
    left_out: tuple[LeftOut, ...]


def files_below(root: Path) -> Iterator[Path]:
    """Yield every file below ``root``, sorted, hidden ones and links to folders not followed.

    Pipes and devices are no files: to open one may take for ever.
    """
    for folder, below, names in os.walk(root):
        below[:] = sorted(d for d in below if not d.startswith("."))
        found = (Path(folder) / name for name in sorted(names) if not name.startswith("."))
        yield from (path for path in found if path.is_file())


def is_dicom(path: Path) -> bool:
    """Whether a file has the prefix of PS3.10 7.1."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def index(root: Path, *, wanted: Callable[[Dataset], str] | None = None) -> Index:
    """Read the header of every DICOM file below ``root``.

    Parameters
    ----------
    wanted
        Says why an image is not wanted, or an empty string; after the checks of ``headers.objection``.

    Raises
    ------
    DataError
        No folder there.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root.name!r}", hint="give the folder that holds the DICOM files")
    groups: dict[tuple[object, ...], list[tuple[Slice, Dataset]]] = {}
    left_out: list[LeftOut] = []
    seen: set[str] = set()
    for path in files_below(root):
        name = relative(path, root)
        if not is_dicom(path):
            continue
        try:
            header = headers.read(path)
            with headers.quietly():
                reason = headers.objection(header) or (wanted(header) if wanted else "")
            if not reason and header.SOPInstanceUID in seen:
                reason = "a second copy of an image"
            if not reason:
                seen.add(str(header.SOPInstanceUID))
                groups.setdefault(headers.group(header), []).append((_slice(path, name, header), header))
        except (InvalidDicomError, OSError, EOFError):
            reason = "cannot be read as DICOM"
        except (AttributeError, TypeError, ValueError, KeyError, IndexError, OverflowError):
            reason = "its header makes no sense"
        if reason:
            left_out.append(LeftOut(what=name, reason=reason))
    return Index(root=root, stacks=_stacks(groups, left_out), left_out=tuple(left_out))


def _slice(path: Path, name: str, header: Dataset) -> Slice:
    row, column, normal = headers.axes(header)
    origin = np.array([float(v) for v in header.ImagePositionPatient])
    return Slice(
        path=path,
        name=name,
        sop_instance_uid=str(header.SOPInstanceUID),
        position=float(origin @ normal),
        corner=(float(origin @ column), float(origin @ row)),
        number=int(header.get("InstanceNumber") or 0),
    )


def _stacks(
    groups: dict[tuple[object, ...], list[tuple[Slice, Dataset]]], left_out: list[LeftOut]
) -> tuple[Stack, ...]:
    stacks: list[Stack] = []
    n_before: Counter[str] = Counter()
    for key in sorted(groups, key=str):
        members = sorted(
            groups[key], key=lambda m: (round(m[0].position, 3), m[0].number, m[0].sop_instance_uid)
        )
        kept: list[tuple[Slice, Dataset]] = []
        again: list[Slice] = []
        for one, header in members:
            if kept and abs(one.position - kept[-1][0].position) < SAME_MM:
                again.append(one)
                left_out.append(LeftOut(what=one.name, reason="a second image at the same position"))
            else:
                kept.append((one, header))
        series = str(key[0])
        if 2 * len(again) > len(kept):
            reason = "several images at each position, and nothing in their headers tells them apart"
            left_out.extend(LeftOut(what=one.name, reason=reason) for one, _ in kept)
            continue
        stacks.append(
            Stack(
                series_instance_uid=series,
                index=n_before[series],
                header=kept[0][1],
                slices=tuple(s for s, _ in kept),
                left_out=tuple(again),
                modality=headers.modality(kept[0][1]),
            )
        )
        n_before[series] += 1
    return tuple(stacks)


def runs_of(contiguous: Mask) -> tuple[Run, ...]:
    """Half-open ranges of neighbours."""
    ends = [i + 1 for i, there in enumerate(contiguous) if not there]
    if not ends or ends[-1] != len(contiguous):
        ends.append(len(contiguous))
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomSource:
    """Reads the slices of a stack."""

    paths: tuple[Path, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    spacing_mm: tuple[float, float, float]
    contiguous: tuple[bool, ...]
    unit: Unit

    def load(self) -> Volume:
        """Rescale (PS3.3 C.11.1.1.2), mark the padding, and stack.

        Raises
        ------
        DataError
            A file is gone, cannot be decoded, or has another matrix than the others.
        """
        read = [_read(path, name, self.unit) for path, name in zip(self.paths, self.names, strict=True)]
        usual = Counter(values.shape for values, _, _ in read).most_common(1)[0][0]
        for name, (values, _, _) in zip(self.names, read, strict=True):
            if values.shape != usual:
                raise DataError(f"{name}: another matrix than its neighbours", hint="index the folder again")
        return Volume(
            values=np.stack([values for values, _, _ in read]),
            valid=np.stack([valid for _, valid, _ in read]),
            step=np.array([step for _, _, step in read], np.float32),
            spacing_mm=self.spacing_mm,
            unit=self.unit,
            contiguous=np.array(self.contiguous, bool),
        )


def _read(path: Path, name: str, unit: Unit) -> tuple[Floats, Mask, float]:
    try:
        with headers.quietly():
            ds = pydicom.dcmread(path)
            stored = ds.pixel_array
            slope, intercept = headers.rescale(ds)
    except FileNotFoundError:
        raise DataError(f"{name}: the file is gone", hint="index the folder again") from None
    except Exception as error:  # decoders raise what they like; none of it may stop a person without a word
        raise DataError(
            f"{name}: its pixels cannot be decoded ({type(error).__name__})",
            hint="take the file out of the folder",
        ) from error
    if stored.ndim != 2:
        raise DataError(f"{name}: {stored.ndim} dimensions, not 2", hint="export single frames")
    values = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    outside = headers.padding(ds, stored) | ~np.isfinite(values)
    if unit == "HU":
        outside |= values <= OUTSIDE_HU
    values[outside] = AIR_HU if unit == "HU" else 0.0
    return values, ~outside, abs(slope)


def scan_of(
    stack: Stack,
    *,
    licence: str,
    secret: str = "",
    domains: dict[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Scan:
    """Make a scan of a stack.

    Parameters
    ----------
    secret
        For :func:`training.data.records.patient_key`.
    domains
        In addition to those of the header; they win.
    """
    said = list(notes)
    identifier, said_of_patient = headers.patient(stack.header)
    if said_of_patient:
        said.append(said_of_patient)
    contiguous = stack.contiguous()
    runs = runs_of(contiguous)
    if stack.left_out:
        said.append(f"{len(stack.left_out)} slices at positions that were already there are left out")
    if len(runs) > 1:
        said.append(numbered(runs) if len(runs) <= 8 else f"{len(runs)} contiguous runs, gaps or gantry tilt")
    unit: Unit = "HU" if stack.modality == "CT" else "arbitrary"
    spacing = (stack.usual_gap, *stack.pixel_spacing)
    first = stack.header
    return Scan(
        patient=patient_key(identifier, secret=secret),
        key=scan_key(stack.series_instance_uid, str(stack.index)),
        modality=stack.modality,
        unit=unit,
        domains={**headers.domains(first, stack.modality), **(domains or {})},
        shape=(len(stack.slices), int(first.Rows), int(first.Columns)),
        spacing_mm=spacing,
        runs=runs,
        licence=licence,
        source=DicomSource(
            paths=tuple(s.path for s in stack.slices),
            names=tuple(s.name for s in stack.slices),
            spacing_mm=spacing,
            contiguous=tuple(map(bool, contiguous)),
            unit=unit,
        ),
        notes=tuple(said),
        study=scan_key("study", told) if (told := "".join(headers.values(first, "StudyInstanceUID"))) else "",
    )
