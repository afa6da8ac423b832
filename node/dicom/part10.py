"""Derived instances -> Part 10 files, piece by piece (PS3.10 section 7)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

import numpy as np

from node.dicom.derive import Derived
from node.dicom.elements import Buffer, Element, Elements, text
from node.dicom.encode import chunks
from node.dicom.ours import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

PIECE: Final = 1 << 20


class Writer(Protocol):
    """Takes bytes; a spool writer, a file opened for writing, a digest wrapped in one."""

    def write(self, data: Buffer, /) -> object: ...


class Written(NamedTuple):
    """``offset`` of the data set in the file, ``size`` of the file in bytes, ``sha256`` (hexadecimal) of the
    data set alone."""

    offset: int
    size: int
    sha256: str


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble, prefix and file meta information."""
    meta: list[Element] = [
        Element(0x00020001, "OB", b"\x00\x01"),
        text(0x00020002, "UI", sop_class_uid),
        text(0x00020003, "UI", sop_instance_uid),
        text(0x00020010, "UI", transfer_syntax_uid),
        text(0x00020012, "UI", IMPLEMENTATION_CLASS_UID),
        text(0x00020013, "SH", IMPLEMENTATION_VERSION_NAME),
    ]
    elements: Elements = {e.tag: e for e in meta}
    parts: list[Buffer] = []
    size = chunks(elements, parts)
    length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, size)
    return b"\x00" * 128 + b"DICM" + length + b"".join(parts)


def pieces(derived: Derived) -> Iterator[Buffer]:
    """The encoded data set in pieces of at most :data:`PIECE` bytes of pixels; nothing is copied."""
    yield derived.head
    pixels = derived.pixels.reshape(-1).view(np.uint8).data
    for at in range(0, len(pixels), PIECE):
        yield pixels[at : at + PIECE]
    if derived.tail:
        yield derived.tail


def write_part10(derived: Derived, out: Writer) -> Written:
    """Write a derived instance as a Part 10 file.

    Parameters
    ----------
    derived
        From :func:`node.dicom.derive.derive`.
    out
        Positioned at its beginning; neither flushed nor closed.

    Returns
    -------
    Written
        Where the data set begins, the size of the file, the digest of the data set's bytes.
    """
    meta = file_meta(derived.sop_class_uid, derived.sop_instance_uid, derived.transfer_syntax_uid)
    out.write(meta)
    size = len(meta)
    digest = hashlib.sha256()
    for piece in pieces(derived):
        out.write(piece)
        digest.update(piece)
        size += len(piece)
    return Written(len(meta), size, digest.hexdigest())
