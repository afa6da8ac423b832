"""Values out of elements, for looking only: what cannot be read is not there, and nothing ever raises.

A header comes from anywhere and holds anything. Whoever needs a value to be right says so where it needs
it (read.py notes faults, pixels.py refuses); here a broken decimal string is a text, a cut-off number
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

from pydicom.datadict import tag_for_keyword

from node.dicom.elements import Element, Elements, standard_vr
from node.dicom.parse import items_in
from node.dicom.text import charsets_of, decoded
from node.model import Scalar, Values

_CHARACTER_SET: Final = 0x00080005
_WORDS: Final = {
    "US": Struct("<H"),
    "US/SS": Struct("<H"),
    "SS": Struct("<h"),
    "UL": Struct("<L"),
    "SL": Struct("<l"),
    "UV": Struct("<Q"),
    "SV": Struct("<q"),
    "FL": Struct("<f"),
    "FD": Struct("<d"),
}
_ASCII: Final = frozenset({"AE", "AS", "CS", "DA", "DT", "TM", "UI", "IS", "DS"})
_WORDED: Final = frozenset({"LO", "SH", "UC"})
_WHOLE: Final = frozenset({"ST", "LT", "UT", "UR"})
_DECIMAL: Final = frozenset("0123456789+-.eE")

MOST_BYTES: Final = 1024
"""Longest value that is decoded at all; a longer one is no short attribute and no geometry."""


class View:
    """One level of a data set: its top, or an item.

    Parameters
    ----------
    elements
        As :func:`node.dicom.parse.parse_header` gives them.
    charsets
        Values of Specific Character Set in force around it; an item's own replace them.
    """

    __slots__ = ("_blocks", "charsets", "elements")

    def __init__(self, elements: Elements, charsets: tuple[str, ...] = ("",)) -> None:
        self.elements = elements
        own = elements.get(_CHARACTER_SET)
        self.charsets = charsets_of(own.raw) if own is not None and own.raw else charsets
        self._blocks: dict[tuple[int, str], int] | None = None

    def values(self, tag: int) -> Values:
        """All values of an element; empty if it is absent, empty, too long or unreadable."""
        element = self.elements.get(tag)
        return () if element is None else decode(element, self.charsets)

    def text(self, tag: int) -> str:
        """The first value as text, empty if there is none."""
        values = self.values(tag)
        return str(values[0]) if values else ""

    def numbers(self, tag: int, count: int | None = None) -> tuple[float, ...]:
        """All values as finite numbers; empty if one is none, or if there are not ``count`` of them."""
        values = self.values(tag)
        if any(isinstance(v, str) for v in values) or (count is not None and len(values) != count):
            return ()
        numbers = tuple(float(v) for v in values)
        return numbers if all(map(math.isfinite, numbers)) else ()

    def number(self, tag: int) -> float | None:
        """The first value as a finite number."""
        numbers = self.numbers(tag)
        return numbers[0] if numbers else None

    def integer(self, tag: int) -> int | None:
        """The first value if it is a whole number."""
        number = self.number(tag)
        return int(number) if number is not None and _whole(number) else None

    def items(self, tag: int) -> list[View]:
        """The items of a sequence, also of one that came as UN."""
        element = self.elements.get(tag)
        if element is None:
            return []
        items: Sequence[Elements] = element.items
        if not items and element.vr == "UN" and len(element.raw) >= 8:
            items = items_in(element.raw) or ()
        return [View(item, self.charsets) for item in items]

    def item(self, tag: int) -> View:
        """The first item of a sequence; an empty level if there is none."""
        items = self.items(tag)
        return items[0] if items else View({})

    def private(self, creator: str, tag: int, *, unowned: bool = False) -> Element | None:
        """A private element, whatever block its creator was given (PS3.5 7.8.1).

        Parameters
        ----------
        tag
            Written with block 00: ``0x0043_0039`` for (0043,xx39).
        unowned
            Take block 10 where nobody owns it: some de-identifiers drop the creators and keep the rest.
        """
        if self._blocks is None:
            self._blocks = {
                (found & 0xFFFF0000, e.raw.strip(b" \0").decode("latin-1").upper()): found & 0xFF
                for found, e in self.elements.items()
                if found & 0x10000 and 0x10 <= found & 0xFFFF <= 0xFF
            }
        group = tag & 0xFFFF0000
        block = self._blocks.get((group, creator.upper()))
        if block is None:
            if not unowned or group | 0x10 in self.elements:
                return None
            block = 0x10
        return self.elements.get(group | block << 8 | tag & 0xFF)

    def get(self, keyword: str, default: Any = None) -> Any:
        """As ``pydicom.Dataset.get``: the text of a value, or the items of a sequence."""
        tag = tag_for_keyword(keyword)
        if tag is None or tag not in self.elements:
            return default
        return self.items(tag) or self.text(tag)


def decode(element: Element, charsets: tuple[str, ...] = ("",), vr: str = "") -> Values:
    """The values of an element, empty where there is nothing readable.

    Parameters
    ----------
    vr
        Replaces a VR of UN; without it the data dictionary does.
    """
    vr = element.vr if element.vr != "UN" else vr or standard_vr(element.tag)
    if not isinstance(element.value, bytes) or not element.value or len(element.value) > MOST_BYTES:
        return ()
    raw = element.value
    word = _WORDS.get(vr)
    if word is not None:
        whole = len(raw) // word.size * word.size
        return tuple(v for (v,) in word.iter_unpack(raw[:whole]) if math.isfinite(v))
    if vr in _ASCII:
        texts = [t.strip(" \0") for t in raw.decode("latin-1").split("\\")]
        if not any(texts):
            return ()
        if vr == "DS":
            return tuple(map(_decimal, texts))
        if vr == "IS":
            return tuple(map(_integer, texts))
        return tuple(texts)
    if vr in _WORDED:
        texts = [t.strip(" \0") for t in decoded(raw, charsets).split("\\")]
        return tuple(texts) if any(texts) else ()
    if vr in _WHOLE:
        told = decoded(raw, charsets).strip(" \0")
        return (told,) if told else ()
    return ()


def _decimal(text: str) -> Scalar:
    if not text or not _DECIMAL.issuperset(text):
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _integer(text: str) -> Scalar:
    number = _decimal(text)
    return int(number) if isinstance(number, float) and _whole(number) else number


def _whole(number: float) -> bool:
    return abs(number) < 2**53 and number == int(number)
