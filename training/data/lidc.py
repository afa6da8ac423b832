"""LIDC-IDRI as TCIA distributes it, in either layout: CT series, and what four readers marked in them.

Images are found by Series Instance UID, readings by the UID they name or by the slices they mark, wherever the
files lie. Source: Armato et al., Med Phys 38 (2011) 915; licence CC BY 3.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydicom.dataset import Dataset

from training.data import dicom, headers, lidc_xml
from training.data.lidc_xml import Reading
from training.data.nodules import CONSENSUS, findings
from training.data.records import Finding, Found, LeftOut, Scan, folder_of, relative, some
from training.errors import DataError

LICENCE: Final = "CC BY 3.0 (LIDC-IDRI, The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2015.LO9QL9SX)"
PATIENTS: Final = "LIDC-IDRI-"
NODULE_DOMAINS: Final = ("texture", "spiculated", "calcified", "malignancy")


@dataclass(frozen=True, slots=True)
class _Readings:
    by_series: Mapping[str, Reading]
    by_slice: Mapping[str, Reading]
    disagreeing: frozenset[str]
    left_out: tuple[LeftOut, ...]


def load(root: Path, *, annotations: Path | None = None) -> Found:
    """Find the CT scans of LIDC-IDRI below ``root``, with their nodules.

    Parameters
    ----------
    annotations
        Where the XML files lie, if not below ``root`` (``LIDC-XML-only``).

    Returns
    -------
    Found
        Scans with domains vendor, thickness, kernel, dose, ``nodule`` (``none`` where no reader marked one of
        3 mm and more, ``some`` with consensus, ``undecided`` without, ``unread`` where no reading was found) and
        those of :data:`NODULE_DOMAINS`, of the largest nodule with consensus. Every finding has its own labels.

    Raises
    ------
    DataError
        No folder, or no CT series in it.
    """
    folder_of(root)
    places = (root,) if annotations is None else (root, folder_of(annotations))
    readings = _readings(places)
    found = dicom.index(root, wanted=_of_lidc)
    scans = [_scan(stack, readings) for stack in found.stacks]
    linked = {stack.series_instance_uid for stack in found.stacks}
    slices = {s.sop_instance_uid for stack in found.stacks for s in (*stack.slices, *stack.left_out)}
    unlinked = tuple(
        LeftOut(what="reading", reason="a reading of a series that is not here")
        for uid, reading in readings.by_series.items()
        if uid not in linked and not reading.sop_instance_uids() & slices
    )
    left_out = (*found.left_out, *readings.left_out, *unlinked)
    return some(Found(scans=tuple(scans), left_out=left_out), "CT series of LIDC-IDRI")


def _of_lidc(header: Dataset) -> str:
    if headers.modality(header) != "CT":
        return "not CT"
    # Anyone else's images would come out under this set's licence, their patients' numbers hashed without a secret.
    if not "".join(headers.values(header, "PatientID")).upper().startswith(PATIENTS):
        return f"not of LIDC-IDRI: its Patient ID does not begin with {PATIENTS}"
    return ""


def _readings(places: Sequence[Path]) -> _Readings:
    by_series: dict[str, Reading] = {}
    by_slice: dict[str, Reading] = {}
    disagreeing: set[str] = set()
    left_out: list[LeftOut] = []
    paths = {path: relative(path, place) for place in places for path in dicom.files_below(place)}
    for path, name in paths.items():
        if path.suffix.lower() != ".xml":
            continue
        try:
            reading = lidc_xml.read(path, name)
        except DataError as error:
            left_out.append(LeftOut(what=name, reason=error.message.removeprefix(f"{name}: ")))
            continue
        if reading is None:
            left_out.append(LeftOut(what=name, reason="XML, but no reading of a CT"))
            continue
        uid = reading.series_instance_uid or name
        known = by_series.setdefault(uid, reading)
        if known is not reading:
            if known != reading:
                disagreeing.add(uid)
            left_out.append(LeftOut(what=name, reason="a second reading of the same series"))
            continue
        for sop in reading.sop_instance_uids():
            by_slice.setdefault(sop, reading)
    return _Readings(by_series, by_slice, frozenset(disagreeing), tuple(left_out))


def _scan(stack: dicom.Stack, readings: _Readings) -> Scan:
    scan = dicom.scan_of(stack, licence=LICENCE)
    notes = list(scan.notes)
    reading = readings.by_series.get(stack.series_instance_uid)
    if reading is None:
        reading = next(
            (
                readings.by_slice[s.sop_instance_uid]
                for s in stack.slices
                if s.sop_instance_uid in readings.by_slice
            ),
            None,
        )
    if reading is None:
        return replace(scan, domains={**scan.domains, **_domains(None)})
    if stack.series_instance_uid in readings.disagreeing:
        notes.append("two readings of this series disagree: the first is used")
    if reading.n_readers < CONSENSUS:
        notes.append(f"read by {reading.n_readers} only: no consensus")
    seen, n_lost = findings(reading.marks, stack)
    if n_lost:
        notes.append(f"{n_lost} marks lie in no slice of the scan")
    return replace(scan, findings=seen, domains={**scan.domains, **_domains(seen)}, notes=tuple(notes))


def _domains(seen: Sequence[Finding] | None) -> dict[str, str]:
    """Domains of a whole scan; the findings of its largest nodule with consensus."""
    if seen is None:
        return {"nodule": "unread", **dict.fromkeys(NODULE_DOMAINS, "unknown")}
    nodules = [f for f in seen if f.kind == "nodule"]
    if not nodules:
        return {"nodule": "none", **dict.fromkeys(NODULE_DOMAINS, "none")}
    agreed = [f for f in nodules if f.n_readers >= CONSENSUS]
    told: Mapping[str, str] = agreed[0].labels if agreed else {}
    return {
        "nodule": "some" if agreed else "undecided",
        **{name: told.get(name, "unknown") for name in NODULE_DOMAINS},
    }
