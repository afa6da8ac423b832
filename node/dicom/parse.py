"""Bytes of a data set -> elements, in every uncompressed encoding, with bounds on everything.

Every length is checked against the enclosing one before it is believed, depth and numbers are limited, and
nothing is decoded: a hostile data set costs a typed error. Rules: PS3.5 section 7 and Annex A.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from node.dicom.elements import (
    ITEM,
    ITEM_END,
    LONG_VRS,
    PIXEL_DATA,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
    WORD,
    Buffer,
    Element,
    Elements,
    Fragments,
    private_vr,
    standard_vr,
)
from node.errors import SeriesError

MAX_DEPTH: Final = 64
MAX_ELEMENTS: Final = 3_000_000
"""Enhanced multi-frame objects of a few thousand frames hold several hundred thousand elements."""
MAX_INFLATED: Final = 2 << 30
_COPY_BELOW: Final = 1 << 16

IMPLICIT_LE: Final = "1.2.840.10008.1.2"
EXPLICIT_LE: Final = "1.2.840.10008.1.2.1"
DEFLATED_LE: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE: Final = "1.2.840.10008.1.2.2"

_NAMES: Final = {vr.encode(): vr for vr in SHORT_VRS | LONG_VRS}
_PIXEL_REPRESENTATION: Final = 0x00280103
PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})
"""Float, Double Float and integer Pixel Data (PS3.3 C.7.6.3, C.7.6.24)."""


class MalformedError(SeriesError):
    """The bytes are no data set in the encoding that they claim."""


class BoundsError(MalformedError):
    """More, or more deeply nested, than the caller is ready to read (R20)."""


@dataclass(slots=True)
class _Parser:
    data: bytes | memoryview
    explicit: bool
    little: bool
    left: int = MAX_ELEMENTS
    signed: bool = False
    items_left: int = MAX_ELEMENTS
    header_only: bool = False
    """The top level ends in front of the pixel data."""

    def dataset(self, at: int, end: int, depth: int, *, open_ended: bool) -> tuple[Elements, int]:
        """Elements from ``at`` to ``end``, or to the item delimiter of an item of undefined length."""
        if depth > MAX_DEPTH:
            raise BoundsError(f"sequences are nested deeper than {MAX_DEPTH}")
        out: Elements = {}
        order = "<" if self.little else ">"
        tag_at = struct.Struct(order + "HH").unpack_from
        header_at = struct.Struct(order + "HH2sH").unpack_from
        long_at = struct.Struct(order + "I").unpack_from
        data, explicit = self.data, self.explicit
        while at < end:
            if at + 8 > end:
                if depth == 0 and not any(bytes(data[at:end])):
                    return out, end  # files padded with NULs at their end
                raise MalformedError("the data set ends inside the header of an element")
            if explicit:
                group, number, name, length = header_at(data, at)
            else:
                (group, number), (length,), name = tag_at(data, at), long_at(data, at + 4), b""
            tag = group << 16 | number
            if group == 0x7FE0 and self.header_only and depth == 0 and tag in PIXEL_TAGS:
                return out, at
            self.left -= 1
            if self.left < 0:
                raise BoundsError("there are more elements than any header needs")
            if group == 0xFFFE:
                if tag == ITEM_END and open_ended:
                    return out, at + 8
                raise MalformedError(f"unexpected delimiter ({group:04X},{number:04X})")
            at += 8
            if not explicit:
                vr = self._implied(tag, out)
            elif (known := _NAMES.get(name)) is not None:
                vr = known
                if vr in LONG_VRS:
                    if at + 4 > end:
                        raise MalformedError("the data set ends inside the header of an element")
                    (length,) = long_at(data, at)
                    at += 4
            else:
                vr, length, at = self._odd(tag, name, at, end, out)
            element, at = self._element(tag, vr, length, at, end, depth)
            if tag == _PIXEL_REPRESENTATION:
                self.signed = element.raw[:1] == b"\x01"
            out[tag] = element
        if open_ended:
            raise MalformedError("an item of undefined length is not delimited")
        return out, at

    def _implied(self, tag: int, siblings: Elements) -> str:
        if tag >> 16 & 1 and tag & 0xFFFF > 0x00FF:
            creator = siblings.get(tag & 0xFFFF0000 | (tag & 0xFFFF) >> 8)
            if creator is None or not creator.raw:
                return "UN"
            return private_vr(tag, creator.raw.decode("latin-1").rstrip(" \x00"))
        return standard_vr(tag)

    def _odd(self, tag: int, name: bytes, at: int, end: int, siblings: Elements) -> tuple[str, int, int]:
        """An explicit element whose VR is none: implicit inside explicit, or a VR of the future.

        Scanners write blanks, NULs or ``OX`` there. Letters are a VR that we do not know, which has the
        long form if newer than 2014 (PS3.5 7.1.2), the short form otherwise: only one of the two usually
        fits. The value is kept byte for byte and called UN, as PS3.5 6.2.2 asks.
        """
        order = "little" if self.little else "big"
        vr = self._implied(tag, siblings)
        data = self.data
        if name.isalpha() and name.isupper():
            short = int.from_bytes(data[at - 2 : at], order)  # type: ignore[arg-type]
            if short == 0 and at + 4 <= end:
                length = int.from_bytes(data[at : at + 4], order)  # type: ignore[arg-type]
                if length <= end - at - 4:
                    return ("UN" if vr == "SQ" else vr), length, at + 4
            return ("UN" if vr == "SQ" else vr), short, at
        length = int.from_bytes(data[at - 4 : at], order)  # type: ignore[arg-type]
        return vr, length, at

    def _element(self, tag: int, vr: str, length: int, at: int, end: int, depth: int) -> tuple[Element, int]:
        if length == UNDEFINED:
            if vr in ("OB", "OW") or tag == PIXEL_DATA:
                parts, at = self._fragments(at, end)
                return Element(tag, "OB", parts), at
            # A UN of undefined length is a sequence in implicit little endian (PS3.5 6.2.2 note).
            inner = self if vr == "SQ" else replace(self, explicit=False, little=True)
            items, at = inner._items(at, end, depth, open_ended=True)
            self.left, self.items_left = inner.left, inner.items_left
            return Element(tag, "SQ", items), at
        if length > end - at:
            raise MalformedError(
                f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) is longer than what encloses it"
            )
        stop = at + length
        if vr == "SQ":
            try:
                items, _ = self._items(at, stop, depth, open_ended=False)
                return Element(tag, "SQ", items), stop
            except BoundsError:
                raise
            except MalformedError:
                # In implicit encoding a private SQ is what a dictionary of other people's elements says.
                if self.explicit or not tag >> 16 & 1:
                    raise
                vr = "UN"
        elif not self.explicit and tag >> 16 & 1 and length % WORD.get(vr, 1):
            vr = "UN"  # for the same reason
        if vr == "US/SS":
            vr = "SS" if self.signed else "US"
        value: Buffer
        if length <= _COPY_BELOW:
            value = bytes(self.data[at:stop])
        else:
            value = memoryview(self.data)[at:stop]
        if not self.little and vr in WORD:
            value = swapped(value, WORD[vr])
        return Element(tag, vr, value), stop

    def _items(self, at: int, end: int, depth: int, *, open_ended: bool) -> tuple[tuple[Elements, ...], int]:
        items: list[Elements] = []
        header_at = struct.Struct("<HHI" if self.little else ">HHI").unpack_from
        while at < end or open_ended:
            if at + 8 > end:
                raise MalformedError("a sequence is cut short")
            group, number, length = header_at(self.data, at)
            tag = group << 16 | number
            at += 8
            self.items_left -= 1
            if self.items_left < 0:
                raise BoundsError("there are more items than any header needs")
            if tag == SEQUENCE_END:
                return tuple(items), at if open_ended else end
            if tag != ITEM:
                raise MalformedError("a sequence holds something that is not an item")
            undefined = length == UNDEFINED
            if not undefined and length > end - at:
                raise MalformedError("an item is longer than its sequence")
            stop = end if undefined else at + length
            signed = self.signed
            item, at = self.dataset(at, stop, depth + 1, open_ended=undefined)
            self.signed = signed
            items.append(item)
        return tuple(items), at

    def _fragments(self, at: int, end: int) -> tuple[Fragments, int]:
        parts: list[Buffer] = []
        header_at = struct.Struct("<HHI" if self.little else ">HHI").unpack_from
        while True:
            if at + 8 > end:
                raise MalformedError("encapsulated pixel data is cut short")
            group, number, length = header_at(self.data, at)
            at += 8
            tag = group << 16 | number
            if tag == SEQUENCE_END:
                return Fragments(tuple(parts)), at
            if tag != ITEM or length > end - at:
                raise MalformedError("encapsulated pixel data is cut short")
            parts.append(memoryview(self.data)[at : at + length])
            at += length


def swapped(value: Buffer, width: int) -> bytes:
    """The value with the bytes of every word of ``width`` bytes reversed; an incomplete last word stays."""
    whole = len(value) // width * width
    words = np.frombuffer(value, dtype=f"u{width}", count=whole // width)
    return words.byteswap().tobytes() + bytes(value[whole:])


def parse(data: bytes | memoryview, transfer_syntax_uid: str) -> Elements:
    """Elements of an encoded data set.

    Parameters
    ----------
    data
        The data set as stored, without file meta information.
    transfer_syntax_uid
        Its encoding; all that PS3.5 Annex A does not name are explicit little endian (A.4).

    Returns
    -------
    Elements
        All values in little endian. Small values are copied, larger ones are views into ``data``. Where a
        tag comes twice the last one counts, as with pydicom.

    Raises
    ------
    SeriesError
        If the bytes are no data set, are cut short, or exceed the bounds on depth and number.
    """
    if transfer_syntax_uid == DEFLATED_LE:
        data = inflate(data)
    # Senders exist that negotiate implicit and send explicit: a first element of the length that two VR
    # letters make is none. The reverse is met element by element, see _odd.
    explicit = transfer_syntax_uid != IMPLICIT_LE or bytes(data[4:6]) in _NAMES
    parser = _Parser(data, explicit=explicit, little=transfer_syntax_uid != EXPLICIT_BE)
    elements, _ = parser.dataset(0, len(data), 0, open_ended=False)
    return elements


def parse_header(
    data: bytes | memoryview, transfer_syntax_uid: str, *, elements: int = 200_000, items: int = 50_000
) -> tuple[Elements, int]:
    """Elements in front of the pixel data, with bounds on their number.

    Parameters
    ----------
    data
        The beginning of a data set, inflated if it is stored deflated.
    transfer_syntax_uid
        Its encoding.
    elements, items
        How many of them there may be, sequences included.

    Returns
    -------
    tuple[Elements, int]
        What :func:`parse` gives, and where the pixel data element begins, which is ``len(data)`` if ``data``
        ends before there is one.

    Raises
    ------
    BoundsError
        If there are more elements or items, or sequences are nested deeper than 64.
    SeriesError
        If the bytes are no data set or end inside an element.
    """
    explicit, little = transfer_syntax_uid != IMPLICIT_LE, transfer_syntax_uid != EXPLICIT_BE
    parser = _Parser(data, explicit, little, left=elements, items_left=items, header_only=True)
    return parser.dataset(0, len(data), 0, open_ended=False)


def items_in(value: Buffer, *, explicit: bool = False) -> tuple[Elements, ...] | None:
    """The items that the value of a UN element holds, None if it holds none.

    Elements that some system on the way did not know arrive as UN with a sequence inside, in implicit
    little endian (PS3.5 6.2.2) or, against the rule, in explicit.
    """
    if len(value) < 8 or bytes(value[:4]) != b"\xfe\xff\x00\xe0":
        return None
    parser = _Parser(value, explicit=explicit, little=True)
    try:
        items, _ = parser._items(0, len(value), 0, open_ended=False)
    except SeriesError:
        return None if explicit else items_in(value, explicit=True)
    return items


def inflate(data: bytes | memoryview, limit: int = MAX_INFLATED) -> bytes:
    """Inflate a deflated data set (PS3.5 A.5, RFC 1951) of at most ``limit`` bytes.

    What inflates a hundredfold is no picture but a bomb (R19), unless it is small anyway.

    Raises
    ------
    SeriesError
        If it is damaged or larger.
    """
    limit = min(limit, max(1 << 20, 100 * len(data)))
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = machine.decompress(data, limit)
    except zlib.error:
        raise MalformedError("the deflated data set is damaged") from None
    if machine.unconsumed_tail and len(out) >= limit:
        raise MalformedError(f"the deflated data set is larger than {limit} bytes")
    if not machine.eof:
        raise MalformedError("the deflated data set is cut short")
    return out
