"""Any folder: DICOM and NIfTI at any depth, under any names.

DICOM files say who the patient is and what the values are. NIfTI files say neither: the modality must be told,
and the patient is read from the path where it follows a usual pattern (``sub-01``, ``patient03``, ``IXI002``).
Where it does not, a pattern must be given: a wrong guess would put one patient into train and test.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Final

from engines.base import Modality, Unit
from training.data import dicom, nifti
from training.data.records import Found, LeftOut, Run, Scan, folder_of, patient_key, relative, scan_key, some
from training.errors import DataError

USUAL_PATTERN: Final = r"(?i)(?<![a-z0-9])(sub-[a-z0-9]+|(?:subject|sub|patient|pat|case|ixi)[-_]?\d+)"


def scan_folder(
    root: Path,
    *,
    nifti_modality: Modality | None = None,
    patient_pattern: str = USUAL_PATTERN,
    secret: str = "",
    licence: str = "unknown",
) -> Found:
    """Find every CT and MR stack below ``root``.

    Parameters
    ----------
    nifti_modality
        What NIfTI files hold; needed if there are any.
    patient_pattern
        Regular expression; its first group (or all of it) in a NIfTI file's path relative to ``root`` is who
        the patient is.
    secret
        For :func:`training.data.records.patient_key`.
    licence
        Under which this data may be used; it goes into the card of what is trained on it.

    Raises
    ------
    DataError
        No folder, nothing to use in it, or NIfTI files whose modality or patient cannot be told.
    """
    folder_of(root)
    found = dicom.index(root)
    scans = [dicom.scan_of(stack, licence=licence, secret=secret) for stack in found.stacks]
    left_out = list(found.left_out)
    pattern = _compiled(patient_pattern)
    spelled: dict[str, str] = {}
    for path in dicom.files_below(root):
        name = relative(path, root)
        if path.name.lower().endswith(nifti.ENDINGS):
            who = _patient(name, pattern)
            if (
                patient_pattern == USUAL_PATTERN
            ):  # files come in order, so the same spelling is the first each time
                who = spelled.setdefault(_code(who), who)
            if nifti_modality is None:
                raise DataError(
                    f"{name}: a NIfTI file does not say whether it is CT or MR", hint="give nifti_modality"
                )
            who = patient_key(who, secret=secret)
            try:
                scans.append(nifti_scan(path, name, modality=nifti_modality, patient=who, licence=licence))
            except DataError as error:
                left_out.append(LeftOut(what=name, reason=error.message.removeprefix(f"{name}: ")))
        elif not dicom.is_dicom(path):
            left_out.append(LeftOut(what=name, reason="neither DICOM nor NIfTI"))
    return some(Found(scans=tuple(scans), left_out=tuple(left_out)), "CT or MR stack")


def nifti_scan(path: Path, name: str, *, modality: Modality, patient: str, licence: str) -> Scan:
    """Make a scan of a NIfTI file.

    Parameters
    ----------
    name
        The file's name relative to the root, for messages and for the scan's key.
    patient
        Its key.

    Raises
    ------
    DataError
        The file is no NIfTI, or not one volume.
    """
    lie = nifti.geometry(nifti.head(path), name)
    unit: Unit = "HU" if modality == "CT" else "arbitrary"
    runs: tuple[Run, ...] = ((0, lie.shape[0]),)
    return Scan(
        patient=patient,
        key=scan_key(patient, name),
        modality=modality,
        unit=unit,
        domains={"plane": lie.plane},
        shape=lie.shape,
        spacing_mm=lie.spacing_mm,
        runs=runs,
        licence=licence,
        source=nifti.NiftiSource(read=partial(Path.read_bytes, path), name=name, unit=unit),
        notes=()
        if lie.oriented
        else ("the header says nothing of the orientation: axes are taken as stored",),
    )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise DataError(f"patient pattern: {error}", hint="give a regular expression") from None


def _code(who: str) -> str:
    """What ``patient03``, ``Patient_3`` and ``patient-003`` have in common: they are taken for one person."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[-_]", "", who.casefold()))


def _patient(name: str, pattern: re.Pattern[str]) -> str:
    match = pattern.search(name)
    who = (match.group(1) if pattern.groups else match.group(0)) if match else None
    if not who:
        raise DataError(
            f"{name}: its path does not say which patient it is of",
            hint=r"give patient_pattern, for example r'([^/]+)/[^/]+$' where each patient has a folder",
        )
    return who
