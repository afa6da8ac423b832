"""What the trial PACS holds: files in a folder, and an index of them in memory, rebuilt at start."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from node.deliver.files import read_parcel
from node.deliver.folder import safe_name
from node.deliver.parcel import Parcel
from node.errors import NodeError
from node.log import get_logger
from node.trial.matching import matches

log = get_logger()

PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID")
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "StudyDescription",
    "ReferringPhysicianName", "PatientAge", "PatientSize", "PatientWeight",
)  # fmt: skip
SERIES = (
    "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime",
    "BodyPartExamined", "ProtocolName", "Laterality", "FrameOfReferenceUID", "Manufacturer",
    "ManufacturerModelName", "StationName", "InstitutionName", "PatientPosition", "SoftwareVersions",
)  # fmt: skip
IMAGE = (
    "SOPInstanceUID", "SOPClassUID", "InstanceNumber", "ImageType", "Rows", "Columns", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime", "ContentDate",
    "ContentTime", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SliceLocation", "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope", "EchoTime",
    "DerivationDescription", "InstanceCreationDate", "InstanceCreationTime", "SpecificCharacterSet",
)  # fmt: skip

LEVELS: Mapping[str, tuple[str, ...]] = {"PATIENT": PATIENT, "STUDY": STUDY, "SERIES": SERIES, "IMAGE": IMAGE}
UNIQUE: Mapping[str, str] = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
"""Levels of the information model from the top and the unique key of each (PS3.4 C.6.1.1, C.6.2.1)."""

_INCOMING = ".incoming-"
_ALL = [*PATIENT, *STUDY, *SERIES, *IMAGE]


@dataclass(frozen=True, slots=True)
class Held:
    """One instance on the shelf: how to send it, and the attributes that a query may ask for."""

    parcel: Parcel
    attributes: Dataset

    def uid(self, level: str) -> str:
        """The value of a level's unique key."""
        return str(self.attributes.get(UNIQUE[level], "") or "")


class Shelf:
    """Instances by SOP Instance UID. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}

    def fill(self) -> int:
        """Read the folder anew; returns how many instances it holds. Leftovers of a crash are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Held] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.name.startswith(_INCOMING):
                path.unlink(missing_ok=True)
            elif path.is_file():
                held = _read(path)
                if held is not None:
                    found.setdefault(held.uid("IMAGE"), held)
        with self._lock:
            self._held = found
        return len(found)

    def put(self, data: bytes, sop_instance_uid: str, series_uid: str) -> bool:
        """Keep a Part 10 file, durably; False if an instance of this UID is there already (it stays).

        Raises
        ------
        OSError
            If it cannot be written.
        """
        with self._lock:
            if sop_instance_uid in self._held:
                return False
        folder = self.folder / safe_name(series_uid)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{_INCOMING}{secrets.token_hex(8)}"
        final = folder / f"{safe_name(sop_instance_uid)}.dcm"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(final)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync(folder)
        _sync(self.folder)
        held = _read(final)
        if held is None:
            raise InvalidDicomError("an instance that was just stored cannot be read")
        with self._lock:
            self._held[sop_instance_uid] = held
        return True

    def all(self) -> list[Held]:
        """Everything, in the order of arrival."""
        with self._lock:
            return list(self._held.values())

    def get(self, sop_instance_uid: str) -> Held | None:
        with self._lock:
            return self._held.get(sop_instance_uid)

    def find(self, level: str, query: Dataset) -> Iterator[tuple[Held, list[Held]]]:
        """What a query at ``level`` matches: one instance to stand for each entity, and all of the entity's.

        Keys of ``level`` and of the levels above it count; keys of levels below are not matched on
        (PS3.4 C.4.1.2.2, hierarchical search).
        """
        names = list(LEVELS)
        above = names[: names.index(level) + 1]
        keys = [
            (keyword, query[keyword].VR, texts(query, keyword))
            for one in above
            for keyword in LEVELS[one]
            if keyword in query and keyword != "SpecificCharacterSet"
        ]
        modalities = texts(query, "ModalitiesInStudy") if level in ("STUDY", "SERIES", "IMAGE") else []
        entities: dict[str, list[Held]] = {}
        for held in self.all():
            if all(matches(vr, wanted, texts(held.attributes, keyword)) for keyword, vr, wanted in keys):
                entities.setdefault(held.uid(level), []).append(held)
        for members in entities.values():
            if modalities:
                study = self.of("STUDY", members[0].uid("STUDY"))
                present = sorted({str(h.attributes.get("Modality", "")) for h in study})
                if not matches("CS", modalities, present):
                    continue
            yield members[0], members

    def of(self, level: str, uid: str) -> list[Held]:
        """All instances of one entity."""
        return [held for held in self.all() if held.uid(level) == uid]


def answer(
    shelf: Shelf, level: str, query: Dataset, held: Held, members: list[Held], ae_title: str
) -> Dataset:
    """One answer of a FIND: every key that was asked for, empty where it is not known (PS3.4 C.4.1.1.3.2)."""
    ds = Dataset()
    known = held.attributes
    computed = _computed(shelf, level, held, members)
    for element in query:
        keyword = element.keyword
        if keyword in computed:
            setattr(ds, keyword, computed[keyword])
        elif keyword in known and keyword in _up_to(level):
            ds[keyword] = known[keyword]
        elif keyword and element.VR != "SQ":
            setattr(ds, keyword, None)
    ds[UNIQUE[level]] = known[UNIQUE[level]]
    ds.QueryRetrieveLevel = level
    ds.RetrieveAETitle = ae_title
    if not all(str(e.value).isascii() for e in ds):
        ds.SpecificCharacterSet = "ISO_IR 192"
    elif "SpecificCharacterSet" in ds:
        del ds.SpecificCharacterSet
    return ds


def _up_to(level: str) -> set[str]:
    names = list(LEVELS)
    return {keyword for one in names[: names.index(level) + 1] for keyword in LEVELS[one]}


def _computed(shelf: Shelf, level: str, held: Held, members: list[Held]) -> dict[str, str | int | list[str]]:
    found: dict[str, str | int | list[str]] = {"InstanceAvailability": "ONLINE"}
    if level == "PATIENT":
        found["NumberOfPatientRelatedStudies"] = len({m.uid("STUDY") for m in members})
        found["NumberOfPatientRelatedSeries"] = len({m.uid("SERIES") for m in members})
        found["NumberOfPatientRelatedInstances"] = len(members)
        return found
    study = members if level == "STUDY" else shelf.of("STUDY", held.uid("STUDY"))
    found["ModalitiesInStudy"] = sorted({str(m.attributes.get("Modality", "")) for m in study} - {""})
    found["SOPClassesInStudy"] = sorted({m.parcel.sop_class_uid for m in study})
    found["NumberOfStudyRelatedSeries"] = len({m.uid("SERIES") for m in study})
    found["NumberOfStudyRelatedInstances"] = len(study)
    if level != "STUDY":
        series = members if level == "SERIES" else shelf.of("SERIES", held.uid("SERIES"))
        found["NumberOfSeriesRelatedInstances"] = len(series)
    return found


def texts(ds: Dataset, keyword: str) -> list[str]:
    """The values of an element as text; empty where absent."""
    value = ds.get(keyword)
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [str(v) for v in value]
    return [str(value)]


def _read(path: Path) -> Held | None:
    try:
        parcel = read_parcel(path)
        ds = dcmread(path, stop_before_pixels=True, specific_tags=_ALL)
        attributes = Dataset()
        for keyword in _ALL:
            if keyword in ds:
                attributes[keyword] = ds[keyword]  # decoded here, while its file's character set is at hand
        return Held(parcel, attributes)
    except (NodeError, InvalidDicomError, OSError) as error:
        log.warning("pacs.file_skipped", why=type(error).__name__)
    except Exception as error:  # whatever pydicom throws at a file that somebody put there
        log.warning("pacs.file_skipped", why=type(error).__name__)
    return None


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
