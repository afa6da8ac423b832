"""What changes in a derived object when its matrix is twice that of its source (engines of scale 2).

Engines of ``scale`` 2 fill k-space with zeros: sample [2i, 2j] of the derived image lies where [i, j] of its
source lies. So the *centre of the first pixel*, which is what Image Position (Patient) tells (PS3.3
C.7.6.2.1.1), stays where it was, and only the distance of pixel centres, Pixel Spacing (10.7.1.3), halves.
The corner of the image moves by a quarter of a source's pixel; an image whose corner stayed would have its
samples beside those of the source, and would have to be shifted. Reconstruction Diameter, Acquisition
Matrix and the field of view tell of the reconstruction, which is what it was.

What is counted in pixels of the source and is not the image itself does not go along: overlay planes, display
shutters, spacings at a detector.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Final

from pydicom.valuerep import format_number_as_ds

from node.dicom.elements import Element, Elements, sequence, tag_of, ushort
from node.errors import SeriesError

MOST: Final = 0xFFFF
"""Rows and Columns are US (C.7.6.3)."""

_SPACING: Final = tag_of("PixelSpacing")
_MEASURES: Final = tag_of("PixelMeasuresSequence")
_FRAME_SHUTTER: Final = tag_of("FrameDisplayShutterSequence")

IN_PIXELS: Final = frozenset(
    tag_of(keyword)
    for keyword in (
        *(
            "ShutterShape",
            "ShutterLeftVerticalEdge",
            "ShutterRightVerticalEdge",
            "ShutterUpperHorizontalEdge",
        ),
        *("ShutterLowerHorizontalEdge", "CenterOfCircularShutter", "RadiusOfCircularShutter"),
        *("VerticesOfThePolygonalShutter", "ShutterPresentationValue", "ShutterOverlayGroup"),
        *("ShutterPresentationColorCIELabValue", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    )
)
"""C.7.6.11, C.7.6.15, C.8.6.2.1.4, 10.7.1: told in pixels of the source, or of a plane that it is not in."""


def halved(spacing: Element) -> Element:
    """Pixel Spacing of twice the matrix, as short a decimal string as says it exactly.

    Raises
    ------
    SeriesError
        If a value is no positive number.
    """
    told = []
    for value in spacing.raw.split(b"\\"):
        try:
            half = Decimal(value.strip(b" \x00").decode("ascii")) / 2
        except (InvalidOperation, UnicodeDecodeError):
            raise SeriesError("the Pixel Spacing is no number") from None
        if not half.is_finite() or half <= 0:
            raise SeriesError("the Pixel Spacing is not above 0")
        exact = f"{half.normalize():f}"
        told.append(exact if len(exact) <= 16 else format_number_as_ds(float(half)))
    return Element(_SPACING, "DS", "\\".join(told).encode("ascii"))


def matrix(elements: Elements, rows: int, columns: int) -> dict[int, Element | None]:
    """The changes of a data set's top level: Rows, Columns, Pixel Spacing, and what goes (None).

    Parameters
    ----------
    elements
        What of the source is copied.
    rows, columns
        Of the derived image.
    """
    gone = [t for t in elements if t in IN_PIXELS or 0x6000 <= t >> 16 <= 0x60FF]
    changes: dict[int, Element | None] = dict.fromkeys(gone)
    for keyword, n in (("Rows", rows), ("Columns", columns)):
        changes[tag_of(keyword)] = ushort(keyword, n)
    if _SPACING in elements:
        changes[_SPACING] = halved(elements[_SPACING])
    return changes


def groups(had: Elements) -> Elements:
    """Functional groups of twice the matrix: Pixel Measures (C.7.6.16.2.1) halved in plane, no shutter."""
    out = {tag: element for tag, element in had.items() if tag != _FRAME_SHUTTER}
    if _MEASURES in out:
        out[_MEASURES] = sequence(
            _MEASURES,
            [
                item | {_SPACING: halved(item[_SPACING])} if _SPACING in item else item
                for item in out[_MEASURES].items
            ],
        )
    return out


def type_of(values: list[bytes], *, multi_frame: bool) -> list[bytes]:
    """Image or Frame Type values 3 and on, saying that the image was resampled.

    Enhanced and Legacy Converted objects have exactly four values, and value 4 is for it (C.8.16.1.4);
    classic ones keep theirs and get one more (C.7.6.1.1.2).
    """
    if multi_frame:
        return [(values or [b"VOLUME"])[0], b"RESAMPLED"]
    return values if b"RESAMPLED" in [v.strip() for v in values] else [*values, b"RESAMPLED"]
