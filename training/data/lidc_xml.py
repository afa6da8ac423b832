"""The XML in which the LIDC-IDRI readers' marks are distributed (TCIA; namespace http://www.nih.gov).

``LidcReadMessage`` is a CT reading: four ``readingSession``, each with ``unblindedReadNodule`` (contours, and
for nodules of 3 mm and more nine ratings) and ``nonNodule`` (points). ``IdriReadMessage`` is a radiograph's.
Files come from outside, so they are bounded: size, depth, number of elements, and no DOCTYPE, hence no entities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from training.errors import DataError

MOST_BYTES: Final = 32 << 20
MOST_DEPTH: Final = 32
MOST_ELEMENTS: Final = 2_000_000
RATINGS: Final = {
    "subtlety": 5,
    "internalStructure": 4,
    "calcification": 6,
    "sphericity": 5,
    "margin": 5,
    "lobulation": 5,
    "spiculation": 5,
    "texture": 5,
    "malignancy": 5,
}
"""Name -> highest value; the lowest is 1. Malignancy is what a reader believed, not pathology."""
CONTOUR_POINTS: Final = 3
"""A mark with fewer points in every slice is a point, not an outline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roi:
    """What a reader drew in one slice.

    Attributes
    ----------
    z_mm
        ``imageZposition``; NaN where absent.
    sop_instance_uid
        Of the slice; may be empty.
    inclusion
        False for a hole in the nodule.
    points
        (x, y) in pixels, counted from 0; the outline lies just outside of the nodule.
    """

    z_mm: float
    sop_instance_uid: str
    inclusion: bool
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One mark of one reader; ``kind`` as in :class:`training.data.records.Finding`."""

    reader: int
    kind: str
    ratings: Mapping[str, int]
    rois: tuple[Roi, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All marks in one series."""

    series_instance_uid: str
    n_readers: int
    marks: tuple[Mark, ...]

    def sop_instance_uids(self) -> frozenset[str]:
        """UIDs of all slices that have a mark."""
        return frozenset(r.sop_instance_uid for m in self.marks for r in m.rois if r.sop_instance_uid)


class _TooMuch(Exception):
    pass


def parse(raw: bytes, name: str) -> Element:
    """Parse XML within bounds, namespaces removed.

    Raises
    ------
    DataError
        Not XML, too large or too deep, or with a DOCTYPE (from which entities would come).
    """
    if len(raw) > MOST_BYTES:
        raise DataError(f"{name}: larger than {MOST_BYTES >> 20} MiB", hint="take the file out of the folder")
    builder = TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    depth = n_elements = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, n_elements
        depth += 1
        n_elements += 1
        if depth > MOST_DEPTH or n_elements > MOST_ELEMENTS:
            raise _TooMuch("too deep or too many elements")
        builder.start(tag.rpartition("}")[2], attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag.rpartition("}")[2])

    def doctype(*_: object) -> None:
        raise _TooMuch("it has a DOCTYPE, which no reading has")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(raw, True)
        return builder.close()
    except (expat.ExpatError, _TooMuch, AssertionError, ValueError, LookupError) as error:
        raise DataError(f"{name}: not a reading ({error})", hint="take the file out of the folder") from None


def read(path: Path, name: str) -> Reading | None:
    """Read one file; None where it is XML of another kind, a radiograph's reading for one.

    Raises
    ------
    DataError
        See :func:`parse`; or a number in it is none.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{name}: {type(error).__name__}", hint="check the file's permissions") from None
    root = parse(raw, name)
    if root.tag != "LidcReadMessage":
        return None
    sessions = root.findall("readingSession")
    try:
        marks = [mark for number, session in enumerate(sessions) for mark in _marks(session, number)]
    except ValueError as error:
        raise DataError(f"{name}: {error}", hint="download the file again") from None
    header = root.find("ResponseHeader")
    uid = _text(header, "SeriesInstanceUid") if header is not None else ""
    return Reading(series_instance_uid=uid, n_readers=len(sessions), marks=tuple(marks))


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _marks(session: Element, reader: int) -> list[Mark]:
    marks = []
    for element in session.findall("unblindedReadNodule"):
        rois = tuple(_roi(roi) for roi in element.findall("roi"))
        ratings = _ratings(element.find("characteristics"))
        outlined = any(len(roi.points) >= CONTOUR_POINTS for roi in rois)
        kind = "nodule" if ratings or outlined else "small nodule"
        marks.append(Mark(reader=reader, kind=kind, ratings=ratings, rois=rois))
    marks += [
        Mark(reader=reader, kind="non-nodule", ratings={}, rois=(_point(element),))
        for element in session.findall("nonNodule")
    ]
    return [mark for mark in marks if any(roi.points for roi in mark.rois)]


def _ratings(element: Element | None) -> dict[str, int]:
    """Ratings inside their range; some files hold zeros or leave one out."""
    found: dict[str, int] = {}
    for name, highest in RATINGS.items():
        text = _text(element, name) if element is not None else ""
        if text.isascii() and text.isdigit() and 1 <= int(text) <= highest:
            found[name] = int(text)
    return found


def _roi(element: Element) -> Roi:
    return Roi(
        z_mm=float(_text(element, "imageZposition") or "nan"),
        sop_instance_uid=_text(element, "imageSOP_UID"),
        inclusion=_text(element, "inclusion").upper() != "FALSE",
        points=tuple(
            (float(_text(p, "xCoord")), float(_text(p, "yCoord"))) for p in element.findall("edgeMap")
        ),
    )


def _point(element: Element) -> Roi:
    """The locus of a non-nodule."""
    return Roi(
        z_mm=float(_text(element, "imageZposition") or "nan"),
        sop_instance_uid=_text(element, "imageSOP_UID"),
        inclusion=True,
        points=tuple(
            (float(_text(p, "xCoord")), float(_text(p, "yCoord"))) for p in element.findall("locus")
        ),
    )
