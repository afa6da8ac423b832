"""One stored instance, opened for copying: its elements as bytes, with a few values read where needed.

``Source`` is what pixels.py decodes and derive.py copies. Reading a value never changes what is copied, and
no message holds one.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, TypeAlias

from node.dicom.elements import LONG_VRS, PIXEL_DATA, SHORT_VRS, Element, Elements, tag_of
from node.dicom.parse import EXPLICIT_LE, MalformedError, items_in, parse
from node.errors import SeriesError

SourceLike: TypeAlias = "Source | Path | bytes"

_MAP_ABOVE: Final = 32 << 20

CT: Final = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT: Final = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CT: Final = "1.2.840.10008.5.1.4.1.1.2.2"
MR: Final = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR: Final = "1.2.840.10008.5.1.4.1.1.4.1"
LEGACY_MR: Final = "1.2.840.10008.5.1.4.1.1.4.4"

CLASSIC: Final = frozenset({CT, MR})
MULTI_FRAME: Final = frozenset({ENHANCED_CT, LEGACY_CT, ENHANCED_MR, LEGACY_MR})
CT_CLASSES: Final = frozenset({CT, ENHANCED_CT, LEGACY_CT})

HOUNSFIELD_TYPES: Final = frozenset({"", "HU", "US", "HOUNSFIELD", "HOUNSFIELD UNITS"})
"""Values of Rescale Type, in capitals, of a CT in Hounsfield units (PS3.3 C.11.1.1.2).

US is what writers put that know of no other (GDCM, ITK). Not HU_MOD: a material was taken out of those values.
"""


@dataclass(frozen=True)
class Source:
    """A received instance.

    ``elements`` is the whole data set; large values are views into the file, which stays mapped as long as
    the Source lives. ``meta_uids`` are the class and instance that the file meta information names, used
    only where the data set leaves its own empty.
    """

    elements: Elements
    transfer_syntax_uid: str
    meta_uids: tuple[str, str] = ("", "")

    @classmethod
    def open(cls, source: SourceLike) -> Source:
        """Open a Part 10 file, or the bytes of one (PS3.10 7.1).

        Raises
        ------
        SeriesError
            If it is no DICOM file, names no transfer syntax or cannot be parsed.
        OSError
            If it cannot be read.
        """
        if isinstance(source, Source):
            return source
        data: bytes | memoryview
        if isinstance(source, bytes):
            data = source
        else:
            with source.open("rb") as file:
                file.seek(0, 2)
                if file.tell() > _MAP_ABOVE:
                    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                else:
                    file.seek(0)
                    data = file.read()
        meta, offset = file_meta(data)
        syntax = text_of(meta.get(_SYNTAX))
        uids = (text_of(meta.get(_MEDIA_CLASS)), text_of(meta.get(_MEDIA_INSTANCE)))
        return cls(parse(memoryview(data)[offset:], syntax), syntax, uids)

    @classmethod
    def of(cls, data: bytes | memoryview, transfer_syntax_uid: str) -> Source:
        """Open the bytes of a data set without file meta information."""
        return cls(parse(data, transfer_syntax_uid), transfer_syntax_uid)

    def text(self, keyword: str) -> str:
        """A single-valued ASCII text, without padding; empty where absent."""
        return text_of(self.elements.get(tag_of(keyword)))

    def uid(self, keyword: str) -> str:
        """A UID, byte-exact but for padding.

        Raises
        ------
        SeriesError
            If it is absent or has characters that no UID has.
        """
        uid = self.text(keyword)
        if not uid and keyword in _META:
            uid = self.meta_uids[_META[keyword]]
        if not uid or len(uid) > 64 or not set(uid) <= _UID_CHARACTERS:
            raise SeriesError(f"{keyword} is absent or no UID")
        return uid

    def integer(self, keyword: str, default: int | None = None) -> int:
        """A US, SS, UL, SL or IS value.

        Raises
        ------
        SeriesError
            If it is no number, or absent while there is no default.
        """
        element = self.elements.get(tag_of(keyword))
        value = integer_of(element)
        if value is None:
            if default is not None and (element is None or not element.raw.strip(b" \x00")):
                return default
            raise SeriesError(f"{keyword} is absent or no integer")
        return value

    @cached_property
    def sop_class_uid(self) -> str:
        return self.uid("SOPClassUID")

    @property
    def is_multi_frame(self) -> bool:
        """Whether geometry and rescale live in functional groups (PS3.3 C.7.6.16)."""
        return self.sop_class_uid in MULTI_FRAME

    @property
    def pixel_data(self) -> Element | None:
        return self.elements.get(PIXEL_DATA)


_META: Final = {"SOPClassUID": 0, "SOPInstanceUID": 1}
_MEDIA_CLASS, _MEDIA_INSTANCE, _SYNTAX = 0x00020002, 0x00020003, 0x00020010
_UID_CHARACTERS: Final = frozenset("0123456789.")
_SHARED_GROUPS: Final = tag_of("SharedFunctionalGroupsSequence")
_FRAME_GROUPS: Final = tag_of("PerFrameFunctionalGroupsSequence")
_INTEGERS: Final = {"US": (2, False), "SS": (2, True), "UL": (4, False), "SL": (4, True)}


def items_of(element: Element | None) -> tuple[Elements, ...]:
    """The items of a sequence, also of one that a system without a dictionary left as UN (PS3.5 6.2.2)."""
    if element is None:
        return ()
    if element.vr == "UN" and isinstance(element.value, bytes | memoryview):
        return items_in(element.value) or ()
    return element.items


def functional_groups(elements: Elements) -> tuple[Elements, tuple[Elements, ...]]:
    """Shared functional groups and those of each frame; empty where there are none (PS3.3 C.7.6.16)."""
    shared, frames = items_of(elements.get(_SHARED_GROUPS)), items_of(elements.get(_FRAME_GROUPS))
    return shared[0] if shared else {}, frames


def text_of(element: Element | None) -> str:
    """First value as text, without padding; bytes that are not ASCII stay as Latin-1 characters."""
    if element is None:
        return ""
    return element.raw.split(b"\\", 1)[0].strip(b" \x00").decode("latin-1")


def integer_of(element: Element | None) -> int | None:
    """First value as an integer, whatever of US, SS, UL, SL, IS or UN it came as; None if it is none.

    ``1.0`` is one: systems write so what they keep as a decimal number.
    """
    if element is None:
        return None
    raw = element.raw
    width, signed = _INTEGERS.get(element.vr, (0, False))
    if width == 0 and element.vr == "UN" and len(raw) == 2:
        width = 2
    if width:
        return int.from_bytes(raw[:width], "little", signed=signed) if len(raw) >= width else None
    told = raw.split(b"\\", 1)[0].strip(b" \x00")
    head, _, tail = told.partition(b".")
    try:
        return int(head) if not tail.strip(b"0") else None
    except ValueError:
        return None


def number_of(element: Element | None) -> float | None:
    """First value as a finite number, DS or IS or UN holding such text; None if absent or empty.

    Raises
    ------
    SeriesError
        If there is something, and it is no finite number.
    """
    told = text_of(element)
    if not told:
        return None
    try:
        value = float(told)
    except ValueError:
        value = math.nan
    # float() takes more than DS allows: underscores, "nan", "infinity" (PS3.5 6.2)
    if not math.isfinite(value) or not set(told) <= _DECIMAL:
        assert element is not None
        raise SeriesError(f"element ({element.tag >> 16:04X},{element.tag & 0xFFFF:04X}) is no number")
    return value


_DECIMAL: Final = frozenset("0123456789+-.eE ")
_VRS: Final = {vr.encode(): vr for vr in SHORT_VRS | LONG_VRS}


def file_meta(data: bytes | memoryview) -> tuple[Elements, int]:
    """File meta elements of a Part 10 file and the offset of its data set (PS3.10 7.1).

    Raises
    ------
    SeriesError
        If it is no Part 10 file or names no transfer syntax.
    """
    if bytes(data[128:132]) != b"DICM":
        raise MalformedError("not a DICOM file: the prefix DICM is missing")
    meta: Elements = {}
    at = 132
    # Always explicit little endian. Its end is where group 2 ends: the group length is often wrong.
    while data[at : at + 2] == b"\x02\x00":
        number, vr = int.from_bytes(data[at + 2 : at + 4], "little"), _VRS.get(bytes(data[at + 4 : at + 6]))
        start = at + 12 if vr in LONG_VRS else at + 8
        length = int.from_bytes(data[start - 4 if vr in LONG_VRS else start - 2 : start], "little")
        stop = start + length
        if stop > len(data):
            raise MalformedError("the file meta information is cut short")
        if vr is None or vr == "SQ":
            meta |= parse(bytes(data[at:stop]), EXPLICIT_LE)
        else:
            tag = 0x00020000 | number
            meta[tag] = Element(tag, vr, bytes(data[start:stop]))
        at = stop
    if not text_of(meta.get(_SYNTAX)):
        raise MalformedError("the file meta information names no transfer syntax")
    return meta, at
