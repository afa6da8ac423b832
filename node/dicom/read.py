"""From a stored instance to what the node needs to know of it, without its pixels.

Only what lies in front of the pixel data is read, in growing windows, and parsed within the bounds of R19
and R20. pydicom is not involved: it inflates and recurses without bounds, and its messages hold values.

What is only *odd* never raises: it becomes a fault of the header, one sentence without patient data, for
which eligibility (modality.py) refuses the instance. What is no data set at all raises.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, cast

import pydicom
from pydicom.datadict import dictionary_VR, keyword_dict
from pydicom.dataset import FileDataset

from node.config.identifiers import LIFTED_SEQUENCES, may_be_seen
from node.dicom.elements import PIXEL_DATA, UNDEFINED, Element, Elements, Fragments, tag_of
from node.dicom.encoding import DEFLATED_SYNTAXES, IMPLICIT_LE, LIMITS, Limits, encoding_of, inflate
from node.dicom.ours import is_ours
from node.dicom.parse import EXPLICIT_LE, BoundsError, MalformedError, parse_header
from node.dicom.parse import inflate as unpack
from node.dicom.placement import FRAME_GROUPS, SHARED_GROUPS, frame_headers
from node.dicom.source import file_meta, integer_of, text_of
from node.dicom.view import MOST_BYTES, View, decode
from node.errors import HeaderFault, SeriesError, StoreError
from node.model import FrameHeader, InstanceHeader, Scalar, Values

_FIRST_WINDOW: Final = 128 << 10
_MOST_META: Final = 1 << 20
_DEFERRED: Final = 1 << 20
_MOST_FRAMES: Final = 100_000

_KEYWORDS: Final[Mapping[int, str]] = {
    tag: keyword
    for keyword, tag in keyword_dict.items()
    if tag >> 16 not in (0x0000, 0x0002, 0xFFFE) and may_be_seen(keyword)
}
"""Tag -> keyword of every standard attribute that a rule may see."""

_LIFTED: Final[Mapping[int, str]] = {
    tag_of(keyword): keyword
    for keyword in (
        *("FrameType", "PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique"),
        *("ComplexImageComponent", "AcquisitionContrast", "SliceThickness", "SpacingBetweenSlices"),
        *("PixelSpacing", "RescaleIntercept", "RescaleSlope", "RescaleType", "RepetitionTime", "FlipAngle"),
        *("EchoTrainLength", "EffectiveEchoTime", "DiffusionBValue", "KVP", "ConvolutionKernel"),
        *("ReconstructionAlgorithm", "GantryDetectorTilt"),
        *("DerivationCodeSequence", "MeasurementUnitsCodeSequence"),
    )
}
"""Attributes that rules know from single-frame objects, out of the functional groups of a multi-frame one."""

_CODE_VALUES: Final = (0x00080100, 0x00080119, 0x00080120)
_SIGNED: Final = 0x00280103
_MODALITY_LUT: Final = 0x00283000
_WORLD_VALUES: Final = 0x00409096
_UNITS: Final = 0x004008EA


def read_header(path: Path, *, limits: Limits = LIMITS) -> InstanceHeader:
    """Read the header of one stored instance.

    Parameters
    ----------
    path
        A DICOM file (PS3.10 7.1): preamble, file meta information, data set.

    Raises
    ------
    SeriesError
        If it is no DICOM file or its header cannot be parsed within ``limits``; the message holds no value.
    StoreError
        If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            meta, offset = _meta(file)
            syntax = text_of(meta.get(0x00020010))
            elements, at, data = _header(file, offset, size, syntax, limits)
    except OSError as error:
        raise StoreError(f"a spooled file cannot be read: {error.strerror}") from None
    return header_of(elements, syntax, meta=meta, pixels=_pixel_data(data, at, size - offset, syntax))


def read_instance(path: Path, *, limits: Limits = LIMITS) -> FileDataset:
    """Read one stored instance whole, as pydicom's data set; larger values are read when they are asked for.

    Luminode itself copies and decodes through :class:`node.dicom.source.Source`; this is for tools.

    Raises
    ------
    SeriesError
        As :func:`read_header`, which bounds what pydicom is given; or for whatever pydicom refuses.
    StoreError
        If the file cannot be read.
    """
    syntax = read_header(path, limits=limits).transfer_syntax_uid
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their texts hold values
            if syntax not in DEFLATED_SYNTAXES:
                return pydicom.dcmread(path, defer_size=_DEFERRED)
            data = path.read_bytes()
            _, offset = file_meta(data)
            plain = pydicom.filereader.read_dataset(BytesIO(unpack(data[offset:])), False, True)
            file_information = pydicom.filereader.read_file_meta_info(path)
            return FileDataset(path, plain, data[:128], file_information, False, True)
    except OSError as error:
        raise StoreError(f"a spooled file cannot be read: {error.strerror}") from None
    except SeriesError:
        raise
    except Exception as error:  # pydicom raises nearly everything; its texts hold values
        raise SeriesError(f"pydicom cannot read it ({type(error).__name__})") from None


def read_bytes(data: bytes, transfer_syntax_uid: str, *, limits: Limits = LIMITS) -> InstanceHeader:
    """As :func:`read_header`, for an encoded data set in memory."""
    window = data
    if transfer_syntax_uid in DEFLATED_SYNTAXES:
        window, _ = _inflated(data, limits.inflated_header_bytes, limits)
    elements, at = _parse(window, transfer_syntax_uid, limits)
    pixels = _pixel_data(window, at, len(data), transfer_syntax_uid)
    return header_of(elements, transfer_syntax_uid, pixels=pixels)


def _meta(file: BinaryIO) -> tuple[Elements, int]:
    head = file.read(4096)
    try:
        return file_meta(head)
    except MalformedError:
        if len(head) < 4096:
            raise
    return file_meta(head + file.read(_MOST_META))


def _inflated(data: bytes, at_most: int, limits: Limits) -> tuple[bytes, bool]:
    try:
        out, complete = inflate(data, at_most, limits)
    except HeaderFault as fault:
        raise MalformedError(fault.message) from None
    return bytes(out), complete


def _parse(data: bytes, syntax: str, limits: Limits) -> tuple[Elements, int]:
    encoding = encoding_of(syntax)
    name = syntax if not encoding.little else EXPLICIT_LE if encoding.explicit else IMPLICIT_LE
    return parse_header(data, name, elements=limits.elements, items=limits.items)


def _header(
    file: BinaryIO, offset: int, size: int, syntax: str, limits: Limits
) -> tuple[Elements, int, bytes]:
    """Elements in front of the pixel data, where that begins, and the window it was found in.

    A window that ends too soon looks like a data set that is cut short; only the last one is believed.
    """
    deflated = syntax in DEFLATED_SYNTAXES
    most = limits.inflated_header_bytes if deflated else limits.header_bytes
    window = _FIRST_WINDOW
    while True:
        file.seek(offset)
        if deflated:
            # Never reads more than it may inflate: a header is seldom compressed below its own size
            packed = file.read(min(size - offset, window))
            data, _ = _inflated(packed, window, limits)
            whole = len(packed) >= size - offset and len(data) < window
        else:
            data = file.read(min(size - offset, window))
            whole = len(data) >= size - offset
        last = whole or window >= most
        try:
            elements, at = _parse(data, syntax, limits)
            if at < len(data) or whole:
                return elements, at, data
        except BoundsError:
            raise
        except MalformedError:
            if last:
                raise
        if last:
            raise SeriesError(f"there is no pixel data in the first {most >> 20} MiB")
        window = min(window * 8, most)


class PixelData(NamedTuple):
    """What the first bytes of the pixel data element tell: that there are pixels, and what is wrong."""

    present: bool = False
    fault: str = ""


def _pixel_data(data: bytes, at: int, size: int, syntax: str) -> PixelData:
    """``at`` is where the element begins in ``data``; ``size`` that of the whole data set as stored."""
    explicit, little = encoding_of(syntax)
    head = data[at : at + 12]
    if len(head) < 12:
        return PixelData()
    order: Literal["little", "big"] = "little" if little else "big"
    tag = int.from_bytes(head[0:2], order) << 16 | int.from_bytes(head[2:4], order)
    if tag != PIXEL_DATA:
        floating = tag in (0x7FE00008, 0x7FE00009)
        return PixelData(fault="its pixels are floating point numbers" if floating else "")
    length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
    if syntax in DEFLATED_SYNTAXES or length == UNDEFINED:
        return PixelData(present=True)
    cut = at + (12 if explicit else 8) + length > size
    return PixelData(present=length > 0, fault="its pixel data is cut short" if cut else "")


def header_of(
    elements: Elements,
    transfer_syntax_uid: str,
    *,
    meta: Elements | None = None,
    pixels: PixelData = PixelData(),  # noqa: B008 -- immutable
) -> InstanceHeader:
    """The header of an instance out of its elements.

    Parameters
    ----------
    elements
        All in front of the pixel data.
    meta
        File meta information; names class and instance where the data set leaves its own empty.
    """
    root = View(elements)
    faults: list[str] = []
    present = pixels.present
    if pixels.fault:
        faults.append(pixels.fault)
    manufacturer = root.text(0x00080070).upper()
    rows, columns = integer_of(elements.get(0x00280010)) or 0, integer_of(elements.get(0x00280011)) or 0
    if present and (rows <= 0 or columns <= 0):
        faults.append("it does not say how many rows and columns it has")
    n_frames = root.integer(0x00280008)
    if n_frames is not None and n_frames < 1:
        faults.append("it claims to have no frames")
    n_frames = 1 if n_frames is None or n_frames < 1 else n_frames
    if root.items(_MODALITY_LUT):
        faults.append("it has a Modality LUT, a table instead of Rescale Slope and Intercept")
    frames: tuple[FrameHeader, ...] = ()
    if n_frames > _MOST_FRAMES:
        faults.append("it claims an absurd number of frames")
    elif present or n_frames == 1:
        frames, fault = frame_headers(root, n_frames, manufacturer)
        faults += [fault] if fault else []
    uids = [_uid(root, tag, meta or {}, fallback, title, faults) for tag, fallback, title in _UIDS]
    count, because = _promise(root)
    number = root.integer(0x00200013)
    return InstanceHeader(
        sop_class_uid=uids[0],
        sop_instance_uid=uids[1],
        study_uid=uids[2],
        series_uid=uids[3],
        transfer_syntax_uid=transfer_syntax_uid,
        modality=root.text(0x00080060).upper()[:16],
        rows=max(rows, 0),
        columns=max(columns, 0),
        n_frames=n_frames,
        instance_number=number if number is not None and abs(number) < 2**31 else None,
        expected_count=count,
        expected_because=because,
        attributes=_attributes(root),
        frames=frames,
        has_pixels=present,
        derived_by_us=is_ours(cast(Any, root)),
        faults=tuple(faults),
    )


_UIDS: Final = (
    (0x00080016, 0x00020002, "SOP Class UID"),
    (0x00080018, 0x00020003, "SOP Instance UID"),
    (0x0020000D, 0, "Study Instance UID"),
    (0x0020000E, 0, "Series Instance UID"),
)


def _uid(root: View, tag: int, meta: Elements, fallback: int, title: str, faults: list[str]) -> str:
    uid = root.text(tag) or text_of(meta.get(fallback))
    if not uid:
        faults.append(f"it has no {title}")
        return ""
    if len(uid) > 64 or not set(uid) <= set("0123456789."):
        faults.append(f"its {title} is no UID")
        return ""
    return uid


def _promise(root: View) -> tuple[int, str]:
    """How many instances the series should have, as far as this instance knows; 0 if it does not.

    Exact for a concatenation (C.7.6.16.2.2.4). Images in Acquisition (C.7.6.1) counts one temporal position
    on some scanners and all on others: the larger number is given, for too small a promise would close a
    series that is still arriving, too large a one only waits.
    """
    total = root.integer(0x00209163)
    if total is not None and 0 < total < 2**31:
        return total, "In-concatenation Total Number"
    images = root.integer(0x00201002)
    if images is None or not 0 < images < 2**31:
        return 0, ""
    positions = root.integer(0x00200105)
    if positions is not None and 1 < positions < 100_000:
        return images * positions, "Images in Acquisition x Number of Temporal Positions"
    return images, "Images in Acquisition"


def _attributes(root: View) -> dict[str, Values]:
    """Keyword -> values of every short standard attribute; see ``InstanceHeader.attributes``."""
    found: dict[str, Values] = {}
    for tag, element in root.elements.items():
        keyword = _KEYWORDS.get(tag)
        if keyword is None:
            continue
        values = _codes(root, tag) if keyword in LIFTED_SEQUENCES else _short(element, root)
        if values:
            found[keyword] = values
    for mapping in root.items(_WORLD_VALUES):
        units = _codes(mapping, _UNITS)
        if units:
            found["MeasurementUnitsCodeSequence"] = units
    if FRAME_GROUPS in root.elements or SHARED_GROUPS in root.elements:
        for keyword, values in _lifted(root).items():
            found.setdefault(keyword, values)
    return found


def _short(element: Element, root: View) -> Values:
    if isinstance(element.value, Fragments | tuple) or len(element.raw) > MOST_BYTES:
        return ()
    values = decode(element, root.charsets, "SS" if _is_signed(element, root) else "")
    return values if len(values) <= 64 else ()


def _is_signed(element: Element, root: View) -> bool:
    return element.vr == "UN" and root.integer(_SIGNED) == 1 and dictionary_VR(element.tag) == "US or SS"


def _codes(root: View, tag: int) -> Values:
    """Code Values, long or URN ones too, of a code sequence (PS3.3 8.8)."""
    codes: list[str] = []
    for item in root.items(tag):
        codes += [code for code_tag in _CODE_VALUES if (code := item.text(code_tag))]
    return tuple(codes)


def _lifted(root: View) -> dict[str, Values]:
    """What functional groups say of the attributes in ``_LIFTED``: distinct values in order."""
    found: dict[str, list[Scalar]] = {}
    seen: set[tuple[int, bytes]] = set()
    for group in (*root.items(SHARED_GROUPS)[:1], *root.items(FRAME_GROUPS)):
        for macro in group.elements.values():
            for item in macro.items[:1]:
                for tag, element in item.items():
                    keyword = _LIFTED.get(tag)
                    if keyword is None or (tag, element.raw) in seen:
                        continue
                    if element.items:
                        values = _codes(View(item, root.charsets), tag)
                    else:
                        seen.add((tag, element.raw))
                        values = decode(element, root.charsets)
                    known = found.setdefault(keyword, [])
                    known += [v for v in values if v not in known] if known else values
    return {keyword: tuple(values[:64]) for keyword, values in found.items() if values}
