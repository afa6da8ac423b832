"""Elements -> bytes of a data set, in every uncompressed encoding (PS3.5 section 7 and Annex A).

Sequences and items get explicit lengths, values of odd length the padding of their VR, groups no lengths.
The same elements always give the same bytes.
"""

from __future__ import annotations

import struct
import zlib

from node.dicom.elements import (
    ITEM,
    LONG_VRS,
    SEQUENCE_END,
    TEXT_VRS,
    UNDEFINED,
    WORD,
    Buffer,
    Element,
    Elements,
    Fragments,
)
from node.dicom.parse import DEFLATED_LE, EXPLICIT_BE, IMPLICIT_LE, swapped
from node.errors import DeriveError

_SHORT = struct.Struct("<HH2sH").pack, struct.Struct(">HH2sH").pack
_LONG = struct.Struct("<HH2sHI").pack, struct.Struct(">HH2sHI").pack
_PLAIN = struct.Struct("<HHI").pack, struct.Struct(">HHI").pack


def encode(elements: Elements, transfer_syntax_uid: str) -> bytes:
    """The bytes of a data set.

    Parameters
    ----------
    elements
        In any order; written in order of tags.
    transfer_syntax_uid
        Encapsulated syntaxes are written in explicit little endian (PS3.5 A.4).

    Raises
    ------
    DeriveError
        If a value is longer than its length field can say.
    """
    parts: list[Buffer] = []
    chunks(
        elements,
        parts,
        explicit=transfer_syntax_uid != IMPLICIT_LE,
        little=transfer_syntax_uid != EXPLICIT_BE,
    )
    whole = b"".join(parts)
    if transfer_syntax_uid == DEFLATED_LE:
        machine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        whole = machine.compress(whole) + machine.flush()
        # An odd stream gets one NUL at its end (PS3.5 A.5).
        whole += b"\x00" * (len(whole) & 1)
    return whole


def chunks(elements: Elements, out: list[Buffer], *, explicit: bool = True, little: bool = True) -> int:
    """Append the encoded elements to ``out`` piece by piece and return the number of bytes."""
    size = 0
    for tag in sorted(elements):
        element = elements[tag]
        value = element.value
        if little and explicit and type(value) is bytes and not len(value) & 1 and len(value) <= 0xFFFE:
            # What nearly every element is, without the way round.
            head = header(tag, element.vr, len(value))
            out += (head, value)
            size += len(head) + len(value)
        else:
            size += _element(element, out, explicit, little)
    return size


def header(tag: int, vr: str, length: int, *, explicit: bool = True, little: bool = True) -> bytes:
    """Tag, VR and length of an element.

    Raises
    ------
    DeriveError
        If the length does not fit.
    """
    if length > UNDEFINED:
        raise DeriveError(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) is longer than 4 GiB")
    group, number = tag >> 16, tag & 0xFFFF
    if not explicit:
        return _PLAIN[not little](group, number, length)
    if vr in LONG_VRS:
        return _LONG[not little](group, number, vr.encode(), 0, length)
    if length > 0xFFFE:
        # A value too long for its VR's 16-bit length goes as UN (PS3.5 6.2.2, note 5).
        return _LONG[not little](group, number, b"UN", 0, length)
    return _SHORT[not little](group, number, vr.encode(), length)


def _element(element: Element, out: list[Buffer], explicit: bool, little: bool) -> int:
    value = element.value
    if isinstance(value, Fragments):
        return _fragments(element.tag, value, out, explicit, little)
    at = len(out)
    out.append(b"")
    if isinstance(value, tuple):
        size = 0
        for item in value:
            mark = len(out)
            out.append(b"")
            length = chunks(item, out, explicit=explicit, little=little)
            out[mark] = _PLAIN[not little](ITEM >> 16, ITEM & 0xFFFF, length)
            size += 8 + length
    else:
        if not little and element.vr in WORD:
            value = swapped(value, WORD[element.vr])
        out.append(value)
        size = len(value)
        if size & 1:
            out.append(b" " if element.vr in TEXT_VRS else b"\x00")
            size += 1
    out[at] = header(element.tag, element.vr, size, explicit=explicit, little=little)
    return len(out[at]) + size


def _fragments(tag: int, value: Fragments, out: list[Buffer], explicit: bool, little: bool) -> int:
    at = len(out)
    out.append(header(tag, "OB", UNDEFINED, explicit=explicit, little=little))
    for part in value.parts:
        odd = len(part) & 1
        out.append(_PLAIN[not little](ITEM >> 16, ITEM & 0xFFFF, len(part) + odd))
        out.append(part)
        if odd:
            out.append(b"\x00")
    out.append(_PLAIN[not little](SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0))
    return sum(len(part) for part in out[at:])
