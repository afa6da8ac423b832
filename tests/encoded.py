"""Data sets made byte by byte, as hostile as need be, sharing no code with node.dicom."""

from __future__ import annotations

import struct
import zlib

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG = {"OB", "OW", "SQ", "UN", "UT", "UC", "UR", "OF", "OD", "OL", "OV", "SV", "UV"}

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.2"
SOP_INSTANCE = "1.2.3.4.5.6.7"
STUDY = "1.2.3.4"
SERIES = "1.2.3.4.5"


def head(tag: int, length: int, *, vr: str = "", little: bool = True) -> bytes:
    """Header of an element; implicit without ``vr``."""
    order = "<" if little else ">"
    where = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if not vr:
        return where + struct.pack(order + "L", length)
    if vr in LONG:
        return where + vr.encode() + b"\0\0" + struct.pack(order + "L", length)
    return where + vr.encode() + struct.pack(order + "H", length)


def element(tag: int, vr: str, value: bytes | str, *, explicit: bool = True, little: bool = True) -> bytes:
    raw = value.encode("latin-1") if isinstance(value, str) else value
    raw += (b"\0" if vr == "UI" else b" ") * (len(raw) % 2)
    return head(tag, len(raw), vr=vr if explicit else "", little=little) + raw


def sequence(tag: int, *items: bytes, explicit: bool = True, little: bool = True, vr: str = "SQ") -> bytes:
    """A sequence of undefined length of items of undefined length."""
    body = b"".join(
        head(ITEM, UNDEFINED, little=little) + item + head(ITEM_END, 0, little=little) for item in items
    )
    top = head(tag, UNDEFINED, vr=vr if explicit else "", little=little)
    return top + body + head(SEQUENCE_END, 0, little=little)


def dataset(
    *between: bytes,
    explicit: bool = True,
    little: bool = True,
    sop_class: bytes | str = SOP_CLASS,
    sop_instance: bytes | str = SOP_INSTANCE,
    study: bytes | str = STUDY,
    series: bytes | str = SERIES,
    after: bytes = b"",
) -> bytes:
    """A data set with the four UIDs, other elements between group 8 and 20, and others behind."""

    def uid(tag: int, value: bytes | str) -> bytes:
        return element(tag, "UI", value, explicit=explicit, little=little)

    return b"".join(
        [
            uid(0x00080016, sop_class),
            uid(0x00080018, sop_instance),
            *between,
            uid(0x0020000D, study),
            uid(0x0020000E, series),
            after,
        ]
    )


def deflated(data: bytes) -> bytes:
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return machine.compress(data) + machine.flush()


def part10(data: bytes, syntax: str) -> bytes:
    meta = element(0x00020010, "UI", syntax)
    return b"\0" * 128 + b"DICM" + element(0x00020000, "UL", struct.pack("<L", len(meta))) + meta + data
