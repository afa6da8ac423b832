"""What stands before a data set in a file of the spool: preamble and file meta information (PS3.10 7.1)."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from node.dicom.ours import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

OFFSET: Final = 640
"""Where the data set begins, always: the same instance sent again, even under another transfer syntax, is
laid over its file without moving a byte under a reader's feet. Room for three UIDs of 64 characters."""

_ROOM: Final = OFFSET - 132 - 12


def head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble, prefix and file meta information, :data:`OFFSET` bytes in all.

    A function of its arguments alone: no AE titles and no times, they are in the database. The preamble is
    zero (it may not smuggle a program). Private Information (0002,0102) fills the room that is left.
    """
    before, after = _constant(sop_class_uid, transfer_syntax_uid)
    meta = before + _element(0x0003, b"UI", _uid(sop_instance_uid)) + after
    meta += _element(0x0102, b"OB", bytes(_ROOM - len(meta) - 12))
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta


@lru_cache(maxsize=256)
def _constant(sop_class_uid: str, transfer_syntax_uid: str) -> tuple[bytes, bytes]:
    """What stands before and after the SOP Instance UID: the same for every slice of a series."""
    before = _element(0x0001, b"OB", b"\0\1") + _element(0x0002, b"UI", _uid(sop_class_uid))
    after = (
        _element(0x0010, b"UI", _uid(transfer_syntax_uid))
        + _element(0x0012, b"UI", _uid(IMPLEMENTATION_CLASS_UID))
        + _element(0x0013, b"SH", _even(IMPLEMENTATION_VERSION_NAME.encode("ascii"), b" "))
        + _element(0x0100, b"UI", _uid(IMPLEMENTATION_CLASS_UID))
    )
    return before, after


def _uid(text: str) -> bytes:
    return _even(text.encode("ascii"), b"\0")


def _even(value: bytes, padding: bytes) -> bytes:
    return value + padding if len(value) % 2 else value


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if vr == b"OB":
        return struct.pack("<HH2sHL", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value
