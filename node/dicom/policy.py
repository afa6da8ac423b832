"""What happens to every attribute of a source on its way into a derived object: a table.

Whatever is not named is copied, byte for byte. COPY rows are here because somebody will want to "fix" them;
each says why not. Where the matrix doubles, resample.py has a few more changes. Rows: PS3.3 section or the reason,
in the words of the project's DICOM notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from node.dicom.elements import Element, Elements, Fragments, tag_of
from node.dicom.parse import MAX_DEPTH, items_in


class Do(StrEnum):
    COPY = "copy"
    WRITE = "write"
    """derive.py writes it: new, appended to or recomputed."""
    DROP = "drop"


class Row(NamedTuple):
    keyword: str
    do: Do
    why: str


_STALE = "summarises or signs the pixels of another object"
_ARCHIVE = "belongs to the source's archive"

TABLE: Final[tuple[Row, ...]] = (
    # Who and where: never touched, or PACS files it as another patient or exam
    Row("SpecificCharacterSet", Do.COPY, "C.12.1.1.2: raw text stays in its own set"),
    Row("PatientName", Do.COPY, "C.7.1.1: PACS refuse a study whose patient differs"),
    Row("PatientID", Do.COPY, "C.7.1.1"),
    Row("IssuerOfPatientID", Do.COPY, "C.7.1.1"),
    Row("PatientIdentityRemoved", Do.COPY, "C.7.1.1"),
    Row("StudyInstanceUID", Do.COPY, "C.7.2.1"),
    Row("AccessionNumber", Do.COPY, "C.7.2.1"),
    Row("FrameOfReferenceUID", Do.COPY, "C.7.4.1: cross lines, linked scrolling, fusion"),
    Row("SOPClassUID", Do.COPY, "CT stays CT, MR stays MR: never Secondary Capture"),
    # Geometry and acquisition: the scan is the same
    Row("ImagePositionPatient", Do.COPY, "C.7.6.2: same strings, not re-formatted floats"),
    Row("ImageOrientationPatient", Do.COPY, "C.7.6.2"),
    Row("PixelSpacing", Do.COPY, "10.7.1.3; halved where the matrix doubles (resample.py)"),
    Row("SliceThickness", Do.COPY, "C.7.6.2"),
    Row("AcquisitionNumber", Do.COPY, "C.7.6.1: describes the acquisition"),
    Row("AcquisitionDate", Do.COPY, "C.7.6.1: tools drop series whose acquisition date differs"),
    Row("IrradiationEventUID", Do.COPY, "C.7.10.1: keeps dose from being counted twice"),
    Row("CTDIvol", Do.COPY, "C.8.2.1: the dose was what it was"),
    Row("ConvolutionKernel", Do.COPY, "C.8.2.1: the reconstruction is unchanged; tools key on it"),
    Row("SeriesDate", Do.COPY, "C.7.3.1: type 3, keeps the pair together in lists"),
    Row("ReferencedImageSequence", Do.COPY, "C.12.4: localizer links"),
    Row("RequestAttributesSequence", Do.COPY, "C.7.3.1: ties to the order"),
    Row("OriginalAttributesSequence", Do.COPY, "C.12.1.1.9: for corrected attributes, not for derivation"),
    # Pixels: same encoding, same window
    Row("RescaleSlope", Do.COPY, "C.11.1: stored-value readers"),
    Row("RescaleIntercept", Do.COPY, "C.11.1"),
    Row("BitsStored", Do.COPY, "C.8.2.1.1.5"),
    Row("PixelPaddingValue", Do.COPY, "C.7.5.1.1.2: padding keeps its value"),
    Row("PixelPaddingRangeLimit", Do.COPY, "C.7.5.1.1.2"),
    Row("WindowCenter", Do.COPY, "C.11.2: the pair opens at the same brightness"),
    Row("LossyImageCompression", Do.COPY, "C.7.6.1.1.5: once 01, never reset"),
    Row("RealWorldValueMappingSequence", Do.COPY, "C.7.6.16.2.11: stored values keep their meaning"),
    # Written anew
    Row("SOPInstanceUID", Do.WRITE, "C.7.6.1.1.2: other pixels, another instance"),
    Row("SeriesInstanceUID", Do.WRITE, "C.7.3.1"),
    Row("SeriesNumber", Do.WRITE, "C.7.3.1: behind its source, not its source's"),
    Row("SeriesDescription", Do.WRITE, "C.7.3.1: source's text and a constant suffix"),
    Row("ImageType", Do.WRITE, "C.7.6.1.1.2: DERIVED; the rest is kept"),
    Row("InstanceCreationDate", Do.WRITE, "C.12.1"),
    Row("InstanceCreationTime", Do.WRITE, "C.12.1"),
    Row("InstanceCreatorUID", Do.WRITE, "C.12.1"),
    Row("ContentDate", Do.WRITE, "C.7.6.1: pixel data creation"),
    Row("ContentTime", Do.WRITE, "C.7.6.1: in the order of the source's"),
    Row("InstanceNumber", Do.WRITE, "C.7.6.1: copied, or empty where absent (type 2)"),
    Row("ImageComments", Do.WRITE, "C.7.6.1: research mark appended, never lost"),
    Row("DerivationDescription", Do.WRITE, "C.7.6.1.1.3: appended"),
    Row("DerivationCodeSequence", Do.WRITE, "C.7.6.1.1.3: one item a step, source's first"),
    Row("SourceImageSequence", Do.WRITE, "C.12.4: the slice itself first"),
    Row("SourceImageEvidenceSequence", Do.WRITE, "Table 10.42-1: multi-frame only"),
    Row("SharedFunctionalGroupsSequence", Do.WRITE, "C.7.6.16: Frame Type, Derivation Image"),
    Row("PerFrameFunctionalGroupsSequence", Do.WRITE, "C.7.6.16: Frame Type, Derivation Image"),
    Row("ContentQualification", Do.WRITE, "C.8.13.2.1.1: RESEARCH by the research mark, multi-frame only"),
    Row("ReferencedSeriesSequence", Do.WRITE, "C.12.2: a copied list is stale without the source"),
    Row("ContributingEquipmentSequence", Do.WRITE, "C.12.1.1.5: source's items first"),
    Row("CodingSchemeIdentificationSequence", Do.WRITE, "C.12.1: names our coding scheme"),
    Row("ConcatenationUID", Do.WRITE, "C.7.6.16.2.2.4: parts of a derived concatenation"),
    Row("SOPInstanceUIDOfConcatenationSource", Do.WRITE, "C.7.6.16.2.2.4"),
    Row("PixelData", Do.WRITE, "native, little endian"),
    # Dropped
    Row("InstanceCoercionDateTime", Do.DROP, _ARCHIVE),
    Row("RetrieveAETitle", Do.DROP, _ARCHIVE),
    Row("StationAETitle", Do.DROP, _ARCHIVE),
    Row("InstanceAvailability", Do.DROP, _ARCHIVE),
    Row("RetrieveURL", Do.DROP, _ARCHIVE),
    Row("RetrieveURI", Do.DROP, _ARCHIVE),
    Row("RetrieveLocationUID", Do.DROP, _ARCHIVE),
    Row("StorageMediaFileSetID", Do.DROP, _ARCHIVE),
    Row("StorageMediaFileSetUID", Do.DROP, _ARCHIVE),
    Row("SOPInstanceStatus", Do.DROP, "C.12.1: state of the old instance"),
    Row("SOPAuthorizationDateTime", Do.DROP, "C.12.1: state of the old instance"),
    Row("SOPAuthorizationComment", Do.DROP, "C.12.1: state of the old instance"),
    Row("AuthorizationEquipmentCertificationNumber", Do.DROP, "C.12.1: state of the old instance"),
    Row("AlternateRepresentationSequence", Do.DROP, "C.7.6.1: shows the old pixels"),
    Row("ReferencedPerformedProcedureStepSequence", Do.DROP, "the modality's MPPS does not list this series"),
    Row("PerformedProcedureStepID", Do.DROP, "as the reference to the step"),
    Row("PerformedProcedureStepStartDate", Do.DROP, "as the reference to the step"),
    Row("PerformedProcedureStepStartTime", Do.DROP, "as the reference to the step"),
    Row("PerformedProcedureStepEndDate", Do.DROP, "as the reference to the step"),
    Row("PerformedProcedureStepEndTime", Do.DROP, "as the reference to the step"),
    Row("SmallestImagePixelValue", Do.DROP, _STALE),
    Row("LargestImagePixelValue", Do.DROP, _STALE),
    Row("SmallestValidPixelValue", Do.DROP, _STALE),
    Row("LargestValidPixelValue", Do.DROP, _STALE),
    Row("SmallestPixelValueInSeries", Do.DROP, _STALE),
    Row("LargestPixelValueInSeries", Do.DROP, _STALE),
    Row("SmallestImagePixelValueInPlane", Do.DROP, _STALE),
    Row("LargestImagePixelValueInPlane", Do.DROP, _STALE),
    Row("HistogramSequence", Do.DROP, _STALE),
    Row("IconImageSequence", Do.DROP, _STALE),
    Row("PixelDataProviderURL", Do.DROP, "C.7.6.3: names the old pixels"),
    Row("ExtendedOffsetTable", Do.DROP, "C.7.6.3: of the old encoding"),
    Row("ExtendedOffsetTableLengths", Do.DROP, "C.7.6.3: of the old encoding"),
    Row("EncapsulatedPixelDataValueTotalLength", Do.DROP, "C.7.6.3: of the old encoding"),
    Row("DataSetTrailingPadding", Do.DROP, "PS3.10 7.2"),
)

ANYWHERE: Final = frozenset(
    {
        *map(tag_of, ("MACParametersSequence", "DigitalSignaturesSequence", "DataSetTrailingPadding")),
        *map(tag_of, ("EncryptedAttributesSequence", "IconImageSequence")),
    }
)
"""Dropped at every depth: signatures of old bytes (C.12.1.1.3.1), what is encrypted with them, thumbnails."""

EQUIPMENT: Final = (
    *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "DeviceUID"),
    *("StationName", "GantryID", "UDISequence", "ManufacturerDeviceClassUID", "SpatialResolution"),
    *("DateOfManufacture", "DateOfInstallation", "DateOfLastCalibration", "TimeOfLastCalibration"),
)
"""General Equipment (C.7.5.1) but for the site: moves as a whole, never a mix of two machines."""

SITE: Final = ("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName")


class Private(NamedTuple):
    creator: str
    group: int
    element: int
    why: str


PRIVATE: Final[tuple[Private, ...]] = (
    Private("GEIIS", 0x0009, 0x10, "thumbnail"),
    Private("GEMS_IDEN_01", 0x0009, 0xE7, "checksum"),
    Private("GEMS_RELA_01", 0x0021, 0x07, "checksum"),
    Private("GEMS_RELA_01", 0x0021, 0x19, "checksum"),
    Private("GEMS_PARM_01", 0x0043, 0x29, "histogram"),
    Private("GEMS_SENO_02", 0x0045, 0x3F, "pixels"),
    Private("SCHICK TECHNOLOGIES - Image Security Creator ID", 0x0029, 0x01, "checksum"),
    Private("2.16.840.1.114059.1.1.6.1.50.1", 0x0029, 0x27, "checksum"),
    Private("SIEMENS MED NM", 0x7FE1, 0x10, "pixels"),
    Private("SIEMENS MED SMS USG S2000", 0x0019, 0x3C, "thumbnail"),
    Private("SPI-P Release 1", 0x7FE1, 0x10, "pixels"),
    Private("SPI-P Release 1;1", 0x0019, 0x06, "stale minimum"),
    Private("SPI-P Release 1;1", 0x0019, 0x07, "stale maximum"),
    Private("SPI-P Release 1;1", 0x0019, 0x16, "stale minimum"),
    Private("SPI-P Release 1;1", 0x0019, 0x17, "stale maximum"),
    Private("MAROTECH Inc.", 0x0037, 0x21, "thumbnail"),
    Private("MAROTECH Inc.", 0x0037, 0x22, "thumbnail"),
    Private("MAROTECH Inc.", 0x0037, 0x23, "thumbnail"),
    Private("VEPRO VIF 3.0 DATA", 0x0055, 0x30, "thumbnail"),
    Private("VEPRO VIF 3.0 DATA", 0x0055, 0x65, "checksum"),
    Private("VEPRO VIM 5.0 DATA", 0x0055, 0x30, "thumbnail"),
    Private("Voxar 2.16.124.113543.6003.1999.12.20.12.5.0", 0x1135, 0x02, "thumbnail"),
    Private("ELSCINT1", 0x07A1, 0x0A, "pixels"),
)
"""Private elements that hold pixels, thumbnails or checksums of the old image. All others are kept, with
their creators: they carry diffusion, phase and scale. :func:`keep_private` also looks at what they hold."""

LARGE_BUT_KEPT: Final = frozenset(
    {
        *("SIEMENS CSA HEADER", "SIEMENS CSA NON-IMAGE", "SIEMENS MEDCOM HEADER", "SIEMENS MR SDS 01"),
        *("GEMS_SERS_01", "GEMS_PARM_01", "Image Private Header"),
    }
)
"""Creators of large blocks of parameters, that a small image is not larger than."""

ROWS: Final[Mapping[int, Row]] = {tag_of(row.keyword): row for row in TABLE}
_DROPPED: Final = frozenset(tag for tag, row in ROWS.items() if row.do is Do.DROP) | ANYWHERE
_PRIVATE: Final = frozenset((p.creator, p.group, p.element) for p in PRIVATE)
_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010, *map(tag_of, ("IconImageSequence",))})
_PICTURES: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x89PNG", b"\x00\x00\x00\x0cjP  ")
_BINARY: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})


def kept(elements: Elements, frame_bytes: int) -> Elements:
    """What of a source's data set is copied: everything but DROP rows, stale private parts and curves.

    Parameters
    ----------
    elements
        Of the source; not changed.
    frame_bytes
        Size of one frame of the source's pixels: private blocks at least as large may hold pixels.
    """
    return {
        element.tag: element
        for element in _clean(elements, frame_bytes)
        if element.tag not in _DROPPED and not 0x5000 <= element.tag >> 16 <= 0x50FF and element.tag > 0x2FFFF
    }


def _clean(elements: Elements, frame_bytes: int) -> Iterable[Element]:
    for tag, element in elements.items():
        if tag & 0xFFFF == 0 or tag in ANYWHERE:
            continue
        if tag >> 16 & 1 and not keep_private(element, elements, frame_bytes):
            continue
        if element.items:
            inner = tuple({e.tag: e for e in _clean(item, frame_bytes)} for item in element.items)
            yield Element(tag, element.vr, inner)
        else:
            yield element


def keep_private(element: Element, siblings: Elements, frame_bytes: int) -> bool:
    """Whether a private element may go along.

    Dropped are those that :data:`PRIVATE` lists, sequences (also inside UN) that hold Pixel Data or an icon
    at any depth, blocks that are a compressed picture, and blocks as large as a frame of pixels unless they
    are known to be parameters. Creators stay: they harm nobody.
    """
    group, number = element.tag >> 16, element.tag & 0xFFFF
    if number <= 0x00FF:
        return True
    reserved = siblings.get(group << 16 | number >> 8)
    creator = reserved.raw.strip(b" \x00").decode("latin-1") if reserved is not None else ""
    if (creator, group, number & 0xFF) in _PRIVATE or isinstance(element.value, Fragments):
        return False
    if _holds_pixels(_within(element)):
        return False
    value = element.value
    if element.vr not in _BINARY or isinstance(value, tuple):
        return True
    if len(value) >= max(frame_bytes, 1024) and creator not in LARGE_BUT_KEPT:
        return False
    return not bytes(value[:12]).startswith(_PICTURES)


def _holds_pixels(items: Iterable[Elements], depth: int = 0) -> bool:
    """Whether there are pixels anywhere inside; nests too deep to look into count as if there were."""
    return any(
        tag in _PIXELS
        or (bool(inner := _within(e)) and (depth >= MAX_DEPTH or _holds_pixels(inner, depth + 1)))
        for item in items
        for tag, e in item.items()
    )


def _within(element: Element) -> tuple[Elements, ...]:
    """Items of a sequence, also of one that a system without a dictionary left as UN."""
    if element.vr == "UN" and not isinstance(element.value, tuple | Fragments):
        return items_in(element.value) or ()
    return element.items
