"""Pointers from a derived object to what it came from (PS3.3 C.12.4, C.12.2, Table 10-3, Table 10.42-1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from node.dicom.elements import Element, Elements, sequence, tag_of, text
from node.dicom.source import items_of
from node.dicom.words import SOURCE_IMAGE

_SERIES_UID, _STUDY_UID = tag_of("SeriesInstanceUID"), tag_of("StudyInstanceUID")
_REFERENCED_SERIES = tag_of("ReferencedSeriesSequence")
_REFERENCED_INSTANCES = tag_of("ReferencedInstanceSequence")
_REFERENCED_SOPS = tag_of("ReferencedSOPSequence")
_REFERENCED_INSTANCE = tag_of("ReferencedSOPInstanceUID")


class Reference(NamedTuple):
    """One instance and where it is filed; UIDs byte-exact."""

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str


def instance_item(reference: Reference) -> Elements:
    """SOP Instance Reference Macro (Table 10-11)."""
    parts = (
        text("ReferencedSOPClassUID", "UI", reference.sop_class_uid),
        text(_REFERENCED_INSTANCE, "UI", reference.sop_instance_uid),
    )
    return {e.tag: e for e in parts}


def source_image_item(reference: Reference, frame_number: int = 0, *, same_place: bool = True) -> Elements:
    """An item of Source Image Sequence, of one frame (from 1) where given: image processing.

    ``same_place`` is whether every pixel lies where one of the source's lies (Spatial Locations Preserved).
    """
    item = instance_item(reference)
    if frame_number:
        number = text("ReferencedFrameNumber", "IS", str(frame_number))
        item[number.tag] = number
    purpose = sequence("PurposeOfReferenceCodeSequence", [SOURCE_IMAGE])
    kept = text("SpatialLocationsPreserved", "CS", "YES" if same_place else "NO")
    return item | {purpose.tag: purpose, kept.tag: kept}


def referenced_series(old: Element | None, references: Sequence[Reference]) -> Element:
    """Referenced Series Sequence with these instances in it: every reference is listed (C.12.2)."""
    return sequence(
        _REFERENCED_SERIES,
        _merged(items_of(old), references, _REFERENCED_INSTANCES),
    )


def source_image_evidence(old: Element | None, references: Sequence[Reference]) -> Element:
    """Source Image Evidence Sequence with these instances in it: by study, by series."""
    items = [dict(item) for item in items_of(old)]
    for study in dict.fromkeys(r.study_uid for r in references):
        ours = [r for r in references if r.study_uid == study]
        at = _find(items, _STUDY_UID, study)
        if at is None:
            items.append({_STUDY_UID: text(_STUDY_UID, "UI", study)})
            at = len(items) - 1
        had = items[at].get(_REFERENCED_SERIES)
        series = _merged(items_of(had), ours, _REFERENCED_SOPS)
        items[at][_REFERENCED_SERIES] = sequence(_REFERENCED_SERIES, series)
    return sequence("SourceImageEvidenceSequence", items)


def _merged(old: Iterable[Elements], references: Sequence[Reference], inner: int) -> list[Elements]:
    items = [dict(item) for item in old]
    for reference in references:
        at = _find(items, _SERIES_UID, reference.series_uid)
        if at is None:
            items.append({_SERIES_UID: text(_SERIES_UID, "UI", reference.series_uid)})
            at = len(items) - 1
        had = items[at].get(inner)
        listed = list(items_of(had))
        if _find(listed, _REFERENCED_INSTANCE, reference.sop_instance_uid) is None:
            listed.append(instance_item(reference))
        items[at][inner] = sequence(inner, listed)
    return items


def _find(items: Sequence[Elements], tag: int, uid: str) -> int | None:
    for at, item in enumerate(items):
        element = item.get(tag)
        if element is not None and element.raw.rstrip(b" \x00") == uid.encode("ascii"):
            return at
    return None
