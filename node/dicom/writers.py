"""One function for each attribute that policy.py says is written: task -> element, or None for no element."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from node.dicom import resample
from node.dicom.derivation import Derivation
from node.dicom.elements import Element, Elements, sequence, tag_of, text
from node.dicom.frames import frame_groups, image_type, shared_groups
from node.dicom.ours import CODE_SCHEME
from node.dicom.policy import EQUIPMENT, SITE
from node.dicom.references import (
    Reference,
    referenced_series,
    source_image_evidence,
    source_image_item,
)
from node.dicom.source import CT, Source, functional_groups, integer_of, items_of, text_of
from node.dicom.text import appended
from node.dicom.uids import derived_uid, device_uid, series_number
from node.dicom.words import ACQUISITION, PROCESSING, Words

_CODE_VALUE, _DESIGNATOR = 0x00080100, 0x00080102
_PURPOSE = tag_of("PurposeOfReferenceCodeSequence")


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that a writer may look at: one source instance and how it is derived.

    ``elements`` is what of the source is copied (:func:`node.dicom.policy.kept`); ``matrix`` are rows and
    columns of the derived image.
    """

    source: Source
    elements: Elements
    how: Derivation
    n_frames: int
    matrix: tuple[int, int]
    words: Words
    charsets: tuple[str, ...]
    reference: Reference
    neighbours: tuple[Reference, ...]
    order: int

    def element(self, keyword: str) -> Element | None:
        return self.elements.get(tag_of(keyword))

    def raw(self, keyword: str) -> bytes:
        element = self.element(keyword)
        return element.raw if element is not None else b""

    def items(self, keyword: str) -> tuple[Elements, ...]:
        return items_of(self.element(keyword))

    @property
    def multi_frame(self) -> bool:
        return self.source.is_multi_frame

    @property
    def by_frame(self) -> bool:
        """Whether frames say what was done to them. Multi-frame objects stripped of their groups exist."""
        return self.multi_frame and any(functional_groups(self.elements))

    @property
    def created(self) -> datetime:
        """One millisecond per instance apart: Content Time keeps the order of the source's."""
        return self.words.when + timedelta(milliseconds=self.order)


def number_of_series(task: Task) -> int:
    """Series Number of the derived series."""
    number = integer_of(task.element("SeriesNumber"))
    how = task.how
    return series_number(number, task.reference.series_uid, how.series_number_offset, how.revision)


def description_of_series(task: Task) -> bytes:
    """Series Description of the derived series (LO: 64 characters), in the source's character set."""
    return appended(task.raw("SeriesDescription"), task.words.suffix, task.charsets, 64)


def _image_type(task: Task) -> Element:
    value2 = "PRIMARY" if task.multi_frame else task.how.value2
    missing = b"AXIAL" if task.source.sop_class_uid == CT else b"OTHER"
    told = image_type(
        task.raw("ImageType"), value2, missing, scale=task.how.scale, multi_frame=task.multi_frame
    )
    return Element(tag_of("ImageType"), "CS", told)


def _instance_number(task: Task) -> Element:
    return task.element("InstanceNumber") or text("InstanceNumber", "IS", "")


def _comments(task: Task) -> Element | None:
    if task.multi_frame or not task.words.comment:
        return task.element("ImageComments")
    raw = task.raw("ImageComments")
    separator = "; " if raw.strip(b" \x00") else ""
    value = appended(raw, separator + task.words.comment, task.charsets, 10240)
    return Element(tag_of("ImageComments"), "LT", value)


def _derivation_description(task: Task) -> Element | None:
    if task.by_frame:
        return task.element("DerivationDescription")
    raw = task.raw("DerivationDescription")
    separator = "; " if raw.strip(b" \x00") else ""
    value = appended(raw, separator + task.words.derivation, task.charsets, 1024)
    return Element(tag_of("DerivationDescription"), "ST", value)


def _derivation_codes(task: Task) -> Element | None:
    if task.by_frame:
        return task.element("DerivationCodeSequence")
    return sequence("DerivationCodeSequence", [*task.items("DerivationCodeSequence"), *task.words.codes])


def _source_images(task: Task) -> Element | None:
    if task.by_frame:
        return task.element("SourceImageSequence")
    same_place = task.how.scale == 1
    ours = [source_image_item(r, same_place=same_place) for r in (task.reference, *task.neighbours)]
    return sequence("SourceImageSequence", [*ours, *task.items("SourceImageSequence")])


def _evidence(task: Task) -> Element | None:
    if not task.by_frame:
        return task.element("SourceImageEvidenceSequence")
    return source_image_evidence(task.element("SourceImageEvidenceSequence"), [task.reference])


def _referenced_series(task: Task) -> Element | None:
    old = task.element("ReferencedSeriesSequence")
    if old is None:
        return None
    here = [r for r in (task.reference, *task.neighbours) if r.study_uid == task.reference.study_uid]
    return referenced_series(old, here)


def _shared(task: Task) -> Element | None:
    if not task.by_frame:
        return task.element("SharedFunctionalGroupsSequence")
    shared, _ = functional_groups(task.elements)
    return sequence("SharedFunctionalGroupsSequence", [shared_groups(shared, task.how.scale)])


def _per_frame(task: Task) -> Element | None:
    if not task.by_frame:
        return task.element("PerFrameFunctionalGroupsSequence")
    shared, frames = functional_groups(task.elements)
    groups = frame_groups(
        shared,
        frames,
        task.n_frames,
        reference=task.reference,
        description=text("DerivationDescription", "ST", task.words.derivation[:1024]),
        codes=sequence("DerivationCodeSequence", task.words.codes),
        scale=task.how.scale,
    )
    return sequence("PerFrameFunctionalGroupsSequence", groups)


def _qualification(task: Task) -> Element | None:
    if task.multi_frame and task.how.research_mark:
        return text("ContentQualification", "CS", "RESEARCH")
    return task.element("ContentQualification")


def _contributing(task: Task) -> Element:
    """Source's items, then the machine that is not in General Equipment: the scanner, or we (C.12.1.1.5)."""
    had = task.items("ContributingEquipmentSequence")
    if task.how.equipment == "retain":
        return sequence("ContributingEquipmentSequence", [*had, task.words.contribution])
    acquired = any(
        text_of(purpose.get(_CODE_VALUE)) == "109101"
        for item in had
        if (purposes := item.get(_PURPOSE)) is not None
        for purpose in purposes.items
    )
    # A source that names another machine as its scanner was itself made by a post-processor.
    parts = {_PURPOSE: sequence(_PURPOSE, [PROCESSING if acquired else ACQUISITION])}
    for keyword in (*EQUIPMENT, *SITE):
        element = task.element(keyword)
        if element is not None and (element.items or element.raw.strip(b" \x00")):
            parts[element.tag] = Element(element.tag, _VRS.get(keyword, element.vr), element.value)
    if tag_of("Manufacturer") not in parts:  # type 1 in an item of this sequence
        parts[tag_of("Manufacturer")] = text("Manufacturer", "LO", "Unknown")
    return sequence("ContributingEquipmentSequence", [*had, parts])


_VRS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"), "LO"
    ),
    **dict.fromkeys(("InstitutionName", "InstitutionalDepartmentName", "GantryID"), "LO"),
    "InstitutionAddress": "ST",
    "StationName": "SH",
    "DeviceUID": "UI",
    "SpatialResolution": "DS",
}
"""Some sources have UN here; what moves gets the VR that it should have had (PS3.6)."""


def equipment(task: Task) -> dict[int, Element | None]:
    """General Equipment: ours, or the source's as it is; None where an attribute is not to be there."""
    if task.how.equipment == "retain":
        return {}
    ours = {element.tag: element for element in task.words.equipment}
    return {tag_of(keyword): ours.get(tag_of(keyword)) for keyword in EQUIPMENT}


def resampled(task: Task) -> dict[int, Element | None]:
    """What an image of another matrix than its source's says besides; None where something has to go."""
    return {} if task.how.scale == 1 else resample.matrix(task.elements, *task.matrix)


def _schemes(task: Task) -> Element:
    had = task.items("CodingSchemeIdentificationSequence")
    if any(text_of(item.get(_DESIGNATOR)) == CODE_SCHEME for item in had):
        return sequence("CodingSchemeIdentificationSequence", had)
    return sequence("CodingSchemeIdentificationSequence", [*had, task.words.scheme])


def _concatenation(task: Task) -> Element | None:
    """Parts of a concatenation become parts of one derived concatenation (C.7.6.16.2.2.4)."""
    uid = task.source.text("ConcatenationUID")
    if not uid:
        return None
    made = derived_uid("concatenation", task.how.derivation_key, uid, str(task.how.revision))
    return text("ConcatenationUID", "UI", made)


def _concatenation_source(task: Task) -> Element | None:
    uid = task.source.text("SOPInstanceUIDOfConcatenationSource")
    if not uid:
        return None
    return text("SOPInstanceUIDOfConcatenationSource", "UI", task.how.instance_uid(uid))


Writer: TypeAlias = Callable[[Task], Element | None]

WRITERS: Final[Mapping[str, Writer]] = {
    "SOPInstanceUID": lambda t: text(
        "SOPInstanceUID", "UI", t.how.instance_uid(t.reference.sop_instance_uid)
    ),
    "SeriesInstanceUID": lambda t: text("SeriesInstanceUID", "UI", t.how.series_uid),
    "SeriesNumber": lambda t: text("SeriesNumber", "IS", str(number_of_series(t))),
    "SeriesDescription": lambda t: Element(tag_of("SeriesDescription"), "LO", description_of_series(t)),
    "ImageType": _image_type,
    "InstanceCreationDate": lambda t: text("InstanceCreationDate", "DA", t.words.when.strftime("%Y%m%d")),
    "InstanceCreationTime": lambda t: text("InstanceCreationTime", "TM", t.words.when.strftime("%H%M%S.%f")),
    "InstanceCreatorUID": lambda t: text("InstanceCreatorUID", "UI", device_uid(t.how.product_version)),
    "ContentDate": lambda t: text("ContentDate", "DA", t.created.strftime("%Y%m%d")),
    "ContentTime": lambda t: text("ContentTime", "TM", t.created.strftime("%H%M%S.%f")),
    "InstanceNumber": _instance_number,
    "ImageComments": _comments,
    "DerivationDescription": _derivation_description,
    "DerivationCodeSequence": _derivation_codes,
    "SourceImageSequence": _source_images,
    "SourceImageEvidenceSequence": _evidence,
    "SharedFunctionalGroupsSequence": _shared,
    "PerFrameFunctionalGroupsSequence": _per_frame,
    "ContentQualification": _qualification,
    "ReferencedSeriesSequence": _referenced_series,
    "ContributingEquipmentSequence": _contributing,
    "CodingSchemeIdentificationSequence": _schemes,
    "ConcatenationUID": _concatenation,
    "SOPInstanceUIDOfConcatenationSource": _concatenation_source,
}
"""Keyword -> writer; with Pixel Data, which derive.py writes, exactly the WRITE rows of policy.TABLE."""
