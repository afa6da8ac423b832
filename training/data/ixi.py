"""IXI as brain-development.org distributes it: a tar for each contrast, one NIfTI file for each subject.

The tars are read in place, nothing is extracted. About 600 healthy volunteers at three sites: Guy's (Philips
1.5 T), HH (Hammersmith, Philips 3 T), IOP (Institute of Psychiatry, GE 1.5 T). Licence CC BY-SA 3.0.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from training.data import nifti
from training.data.dicom import files_below
from training.data.ixi_table import Person, read_table
from training.data.records import Found, LeftOut, Scan, folder_of, patient_key, relative, scan_key, some
from training.errors import DataError

LICENCE: Final = "CC BY-SA 3.0 (IXI data set, brain-development.org)"
CONTRASTS: Final = ("T1", "T2", "PD", "MRA")
SITES: Final = {
    "Guys": ("Philips", "1.5 T"),
    "HH": ("Philips", "3 T"),
    "IOP": ("GE", "1.5 T"),
}
"""Site -> maker, field."""
AGES: Final = ((35.0, "below 35"), (50.0, "35 to 49"), (65.0, "50 to 64"))
NAME: Final = re.compile(r"IXI(\d+)-([A-Za-z]+)-(\d+)-([A-Z0-9]+)(?:-\d+)?\.nii(?:\.gz)?")
PACKED_HEAD: Final = 4096
"""Bytes of a packed file that surely hold its header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the bytes of an image lie: a whole file, or a stretch of a tar."""

    path: Path = field(repr=False)
    offset: int
    size: int

    def read(self, most: int | None = None) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            raw = stream.read(self.size if most is None else min(most, self.size))
        if most is None and len(raw) < self.size:
            raise OSError("the tar is cut short")
        return raw


def age_band(age: float | None) -> str:
    """``below 35``, ``35 to 49``, ``50 to 64``, ``65 and above``; ``unknown`` without an age."""
    if age is None:
        return "unknown"
    return next((name for limit, name in AGES if age < limit), "65 and above")


def load(root: Path, *, table: Path | None = None, contrasts: Collection[str] = CONTRASTS) -> Found:
    """Find the scans of IXI below ``root``, in tars, as files, or both.

    Parameters
    ----------
    table
        ``IXI.xls``, or the same as CSV. None: the one below ``root`` if there is one; without any, ages are
        unknown.
    contrasts
        Which to take, of :data:`CONTRASTS`.

    Returns
    -------
    Found
        MR scans with domains site, contrast, vendor, field, age, sex, plane. A subject in both a tar and a
        folder is taken once. Diffusion (DTI) is left out.

    Raises
    ------
    DataError
        No folder, an unknown contrast, a table that cannot be read, or no scan.
    """
    folder_of(root)
    strange = set(contrasts) - set(CONTRASTS)
    if strange:
        raise DataError(
            f"no contrast {', '.join(sorted(strange))} in IXI", hint=f"one of {', '.join(CONTRASTS)}"
        )
    people = read_table(table or _table_below(root))
    left_out: list[LeftOut] = []
    scans: dict[str, Scan] = {}
    for name, where, place in _images(root, left_out):
        match = NAME.fullmatch(name)
        reason = "not named as IXI names its images"
        if match:
            reason = _unwanted(match, contrasts) or (
                "a second copy of an image" if _stem(name) in scans else ""
            )
        if match and not reason:
            try:
                scans[_stem(name)] = _scan(match, where, place, people)
            except DataError as error:
                reason = error.message.removeprefix(f"{where}: ")
        if reason:
            left_out.append(LeftOut(what=where, reason=reason))
    found = Found(scans=tuple(scans[name] for name in sorted(scans)), left_out=tuple(left_out))
    return some(found, "IXI image")


def _stem(name: str) -> str:
    return name.removesuffix(".gz")


def _table_below(root: Path) -> Path | None:
    tables = [p for p in files_below(root) if p.name.lower() in ("ixi.xls", "ixi.csv")]
    return tables[0] if tables else None


def _images(root: Path, left_out: list[LeftOut]) -> Iterator[tuple[str, str, _Place]]:
    """(name, where it lies for messages, place) of every NIfTI file, loose files before those in tars."""
    paths = list(files_below(root))
    for path in paths:
        if path.name.lower().endswith(nifti.ENDINGS):
            yield path.name, relative(path, root), _Place(path=path, offset=0, size=path.stat().st_size)
    for path in paths:
        if path.suffix.lower() != ".tar":
            continue
        tar = relative(path, root)
        try:
            with tarfile.open(path, mode="r:") as members:
                for member in members:
                    if member.isreg() and member.name.lower().endswith(nifti.ENDINGS):
                        place = _Place(path=path, offset=member.offset_data, size=member.size)
                        yield Path(member.name).name, f"{tar}:{member.name}", place
        except (tarfile.TarError, OSError, EOFError) as error:
            left_out.append(
                LeftOut(what=tar, reason=f"the tar is damaged or cut short ({type(error).__name__})")
            )


def _unwanted(match: re.Match[str], contrasts: Collection[str]) -> str:
    _, site, _, contrast = match.groups()
    if contrast == "DTI":
        return "diffusion"
    if contrast not in contrasts:
        return "a contrast that is not wanted"
    return "" if site in SITES else "a site that IXI does not have"


def _scan(match: re.Match[str], where: str, place: _Place, people: Callable[[int], Person]) -> Scan:
    number, site, _, contrast = match.groups()
    lie = nifti.geometry(_head(place, where), where)
    person = people(int(number))
    vendor, tesla = SITES[site]
    return Scan(
        patient=patient_key(f"IXI{int(number):03d}"),
        key=scan_key("IXI", _stem(match.group(0))),
        modality="MR",
        unit="arbitrary",
        domains={
            "site": site,
            "contrast": contrast,
            "vendor": vendor,
            "field": tesla,
            "age": age_band(person.age),
            "sex": person.sex,
            "plane": lie.plane,
        },
        shape=lie.shape,
        spacing_mm=lie.spacing_mm,
        runs=((0, lie.shape[0]),),
        licence=LICENCE,
        source=nifti.NiftiSource(read=partial(_Place.read, place), name=where, unit="arbitrary"),
        notes=person.notes,
    )


def _head(place: _Place, where: str) -> bytes:
    """The header's bytes, of which only so much is unpacked."""
    try:
        raw = place.read(PACKED_HEAD)
        if raw[:2] == b"\x1f\x8b":
            raw = zlib.decompressobj(wbits=31).decompress(raw, nifti.HEADER_BYTES)
    except (OSError, zlib.error) as error:
        raise DataError(f"{where}: damaged ({type(error).__name__})", hint="download it again") from None
    return raw[: nifti.HEADER_BYTES]
