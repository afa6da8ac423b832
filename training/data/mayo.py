"""Mayo LDCT-and-Projection-data (TCIA): pairs of the same acquisition at full and at low dose.

Pairs are made by header, wherever the files lie: Series Description says the dose, the patient and the slice
positions say what belongs together. Only the Siemens exams have images at low dose. The split of ldct-benchmark
(its ``info.yml``: ``train_set``, ``val_set``, ``test_set``, each a list of ``id``, ``input``, ``target``,
``n_slices``) can be taken over. Source: Moen et al., Med Phys 48 (2021) 902.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydicom.dataset import Dataset
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from training.data import dicom, headers
from training.data.records import Found, LeftOut, Scan, folder_of, patient_key, some
from training.data.split import PARTS, Split, from_parts
from training.errors import DataError

LICENCE: Final = "TCIA LDCT-and-Projection-data, see its page for the terms (doi:10.7937/9npb-2637)"
ANATOMY: Final = {"C": "chest", "L": "abdomen", "N": "head"}
"""First letter of the patient's code -> what was scanned."""
SAME_PLACE_MM: Final = 0.1
_FULL: Final = re.compile(r"(full|routine|normal)[ _-]*dose", re.IGNORECASE)
_LOW: Final = re.compile(r"(low|quarter|reduced)[ _-]*dose", re.IGNORECASE)
_SETS: Final = dict(zip(PARTS, ("train_set", "val_set", "test_set"), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same slices at full dose (``target``) and at low dose (``input``), in the same order."""

    input: Scan
    target: Scan

    @property
    def patient(self) -> str:
        """The key of the patient."""
        return self.target.patient


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """All pairs, in a fixed order, and what was left out."""

    pairs: tuple[Pair, ...]
    left_out: tuple[LeftOut, ...]

    def scans(self) -> tuple[Scan, ...]:
        """Return all scans of the pairs, for the split."""
        return tuple(scan for pair in self.pairs for scan in (pair.input, pair.target))


def load(root: Path) -> Pairs:
    """Find the pairs of the data set below ``root``.

    Returns
    -------
    Pairs
        Scans have the domains of DICOM, ``anatomy`` (chest, abdomen, head) and ``level`` (full, low).

    Raises
    ------
    DataError
        No folder, or no pair.
    """
    folder_of(root)
    found = dicom.index(root, wanted=_image_of_a_known_dose)
    left_out = list(found.left_out)
    full: dict[str, list[tuple[dicom.Stack, Scan]]] = {}
    low: list[tuple[dicom.Stack, Scan]] = []
    for stack in found.stacks:
        level = _level(stack.header)
        added = {"level": level, "anatomy": _anatomy(stack.header)}
        scan = dicom.scan_of(stack, licence=LICENCE, domains=added)
        if level == "full":
            full.setdefault(scan.patient, []).append((stack, scan))
        else:
            low.append((stack, scan))
    pairs = []
    for stack, scan in low:
        partners = [f for f in full.get(scan.patient, []) if _same_slices(f[0], stack)]
        if len(partners) == 1:
            pairs.append(Pair(input=scan, target=partners[0][1]))
        else:
            reason = "no series at full dose has the same slices"
            if partners:
                reason = "several series at full dose have the same slices"
            left_out.append(LeftOut(what=scan.key, reason=reason))
    paired = {pair.target.key for pair in pairs}
    left_out += [
        LeftOut(what=scan.key, reason="no series at low dose (as of all GE exams)")
        for held in full.values()
        for _, scan in held
        if scan.key not in paired
    ]
    pairs.sort(key=lambda p: (p.patient, p.input.key))
    some(Found(scans=tuple(p.target for p in pairs), left_out=tuple(left_out)), "pair of full and low dose")
    return Pairs(pairs=tuple(pairs), left_out=tuple(left_out))


def _description(header: Dataset) -> str:
    return "".join(headers.values(header, "SeriesDescription"))


def _image_of_a_known_dose(header: Dataset) -> str:
    told = _description(header)
    if "projection" in told.lower():
        return "projections, not images"
    return "" if _FULL.search(told) or _LOW.search(told) else "its Series Description does not say the dose"


def _level(header: Dataset) -> str:
    return "full" if _FULL.search(_description(header)) else "low"


def _anatomy(header: Dataset) -> str:
    code = "".join(headers.values(header, "PatientID")).upper()
    return ANATOMY.get(code[:1], "unknown")


def _same_slices(one: dicom.Stack, other: dicom.Stack) -> bool:
    """Whether both have the same matrix, pixels and positions."""
    if len(one.slices) != len(other.slices) or one.pixel_spacing != other.pixel_spacing:
        return False
    if (one.header.Rows, one.header.Columns) != (other.header.Rows, other.header.Columns):
        return False
    places = [np.array([(s.position, *s.corner) for s in stack.slices]) for stack in (one, other)]
    return bool(np.abs(places[0] - places[1]).max() <= SAME_PLACE_MM)


def ldctbench_split(path: Path, scans: Iterable[Scan] = ()) -> Split:
    """Take over the split of ldct-benchmark; patients' codes are hashed, nothing else of the file is kept.

    Parameters
    ----------
    path
        ``info.yml``.
    scans
        If given, those that are to be used: patients in none of the three sets are refused.

    Raises
    ------
    DataError
        Not such a file.
    SplitError
        A patient in two sets, or a scan of a patient in none.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise DataError(
            f"{path.name}: {type(error).__name__}", hint="give info.yml of ldct-benchmark"
        ) from None
    try:
        parts = {
            part: [patient_key(str(entry["id"])) for entry in content[name]] for part, name in _SETS.items()
        }
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path.name}: no split of ldct-benchmark ({error})",
            hint="it has train_set, val_set and test_set, each a list of entries with an id",
        ) from None
    split = from_parts(parts)
    for scan in scans:
        split.part_of(scan.patient)
    return split
