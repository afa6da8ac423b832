"""Data elements as bytes: what a data set is made of, with no value ever decoded.

pydicom turns values into Python objects and back, which is right for reading and wrong for copying: names
in code extensions, odd VRs, decimal strings and UN elements come out changed. What has to reach PACS
byte-identical (patient, geometry, character sets) therefore goes through here, see parse.py and encode.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from pydicom.datadict import dictionary_VR, private_dictionary_VR, repeater_has_tag, tag_for_keyword

Buffer: TypeAlias = bytes | memoryview
Elements: TypeAlias = dict[int, "Element"]
"""A data set or an item: tag (group << 16 | element) -> element."""

LONG_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
"""VRs whose explicit form has a 32-bit length (PS3.5 7.1.2)."""

SHORT_VRS: Final = frozenset(
    {
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL"),
        *("SS", "ST", "TM", "UI", "UL", "US"),
    }
)

WORD: Final[Mapping[str, int]] = {
    **dict.fromkeys(("US", "SS", "OW", "AT"), 2),
    **dict.fromkeys(("UL", "SL", "FL", "OF", "OL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}
"""Bytes of one word of a VR that changes with the byte order (PS3.5 7.3)."""

TEXT_VRS: Final = frozenset(
    {
        *("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"),
    }
)
"""VRs padded with a space; all others are padded with NUL (PS3.5 6.2)."""

ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_DATA: Final = 0x7FE00010
UNDEFINED: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Fragments:
    """An encapsulated value: the fragments in order, the offset table (often empty) first (PS3.5 A.4)."""

    parts: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Element:
    """One data element, little endian.

    ``value`` is the raw value (without what little endian or an explicit length would add), the items of a
    sequence, or fragments. ``vr`` is one of the known VRs.
    """

    tag: int
    vr: str
    value: Buffer | tuple[Elements, ...] | Fragments

    @property
    def raw(self) -> bytes:
        """The value's bytes; empty for sequences and fragments."""
        return bytes(self.value) if isinstance(self.value, bytes | memoryview) else b""

    @property
    def items(self) -> tuple[Elements, ...]:
        """The items; empty for everything but sequences."""
        return self.value if isinstance(self.value, tuple) else ()


@lru_cache(maxsize=1024)
def tag_of(keyword: str) -> int:
    """Tag of a keyword of the data dictionary; KeyError if there is none."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return int(tag)


@lru_cache(maxsize=8192)
def standard_vr(tag: int) -> str:
    """VR that the data dictionary (PS3.6) gives to a tag, ``UN`` where there is none.

    Ambiguous ones come as the wider choice that loses nothing: ``OB or OW`` and ``US or OW`` as OW,
    ``US or SS`` as ``US/SS`` for the caller to settle by Pixel Representation (PS3.5 Annex A.1).
    """
    if tag & 0xFFFF == 0:
        return "UL"
    if tag >> 16 & 1:
        return "LO" if 0x0010 <= tag & 0xFFFF <= 0x00FF else "UN"
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UN"
    if repeater_has_tag(tag) and vr == "OB or OW":
        return "OW"
    if vr.startswith("US or SS"):
        return "US/SS"
    return vr if len(vr) == 2 else "OW"


@lru_cache(maxsize=8192)
def private_vr(tag: int, creator: str) -> str:
    """VR of a private element in the dictionary of known creators, ``UN`` where it is unknown."""
    try:
        vr = private_dictionary_VR(tag, creator)
    except KeyError:
        return "UN"
    return vr if vr in SHORT_VRS or vr in LONG_VRS else "UN"


def text(tag: int | str, vr: str, value: str) -> Element:
    """An element of ASCII text.

    Raises
    ------
    ValueError
        If the text is not ASCII: our own words fit every character set (PS3.5 6.1.2.1).
    """
    return Element(_tag(tag), vr, value.encode("ascii"))


def ushort(tag: int | str, value: int) -> Element:
    """An unsigned short (US)."""
    return Element(_tag(tag), "US", value.to_bytes(2, "little"))


def sequence(tag: int | str, items: Iterable[Iterable[Element] | Elements]) -> Element:
    """A sequence of items, each given as its elements in any order."""
    made = tuple(item if isinstance(item, dict) else {e.tag: e for e in item} for item in items)
    return Element(_tag(tag), "SQ", made)


def code(value: str, scheme: str, meaning: str) -> Elements:
    """An item of the Code Sequence Macro (PS3.3 Table 8.8-1), with a Code Value of at most 16 characters."""
    if len(value) > 16 or len(meaning) > 64:
        raise ValueError("Code Value is at most 16 characters long, Code Meaning 64")
    parts = (
        text(0x00080100, "SH", value),
        text(0x00080102, "SH", scheme),
        text(0x00080104, "LO", meaning),
    )
    return {e.tag: e for e in parts}


def _tag(tag: int | str) -> int:
    return tag if isinstance(tag, int) else tag_of(tag)
