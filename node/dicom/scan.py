"""The four UIDs that reception needs, out of the first bytes of a data set.

This runs inside the C-STORE path for every instance: no pydicom, no copies, no descent into what has a
length. It looks at nothing behind Series Instance UID (0020,000E); everything else about an instance is
read later, from the spool (dicom/read.py).
"""

from __future__ import annotations

import errno
import os
import re
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from struct import Struct
from typing import Final, TypeAlias

from node.dicom.encoding import (
    DEFLATED_SYNTAXES,
    IMPLICIT,
    LIMITS,
    SHORT_VRS,
    UNDEFINED,
    Encoding,
    Limits,
    borrow,
    encoding_of,
    inflate,
    name,
)
from node.errors import HeaderFault, StoreError

Buffer: TypeAlias = bytes | bytearray | memoryview

MISMATCH: Final = 0xA900
INVALID_UID: Final = 0x0117

SOP_CLASS: Final = 0x00080016
SOP_INSTANCE: Final = 0x00080018
STUDY: Final = 0x0020000D
SERIES: Final = 0x0020000E
_WANTED: Final = {
    SOP_CLASS: "SOP Class UID",
    SOP_INSTANCE: "SOP Instance UID",
    STUDY: "Study Instance UID",
    SERIES: "Series Instance UID",
}

_UID: Final = re.compile(rb"[0-9.]{1,64}")
_LONGEST: Final = 128
"""Bytes of a UI value that are worth looking at: a UID and a generous padding."""
_FIRST_WINDOW: Final = 64 << 10
_LARGE_WINDOW: Final = threading.RLock()

_EXPLICIT_LE: Final = Struct("<HH2sH").unpack_from
_EXPLICIT_BE: Final = Struct(">HH2sH").unpack_from
_IMPLICIT_LE: Final = Struct("<HHL").unpack_from
_IMPLICIT_BE: Final = Struct(">HHL").unpack_from
_WORD_LE: Final = Struct("<H").unpack_from
_WORD_BE: Final = Struct(">H").unpack_from
_LONG_LE: Final = Struct("<L").unpack_from
_LONG_BE: Final = Struct(">L").unpack_from


@dataclass(frozen=True, slots=True)
class Ids:
    """The UIDs of one instance, byte-exact but for the padding.

    The SOP UIDs are empty where the data set has none: archives exist that leave them out, and the
    C-STORE command, or the file meta, names them anyway. Study and series are never empty.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str


@dataclass(frozen=True, slots=True)
class NeedMore:
    """The UIDs lie further back: scan again when at least ``size`` bytes of the data set are there."""

    size: int


class _Short(Exception):
    """No error: the bytes end before ``size``; ``found`` is set if they end between two elements."""

    def __init__(self, size: int, found: dict[int, bytes] | None = None) -> None:
        self.size = size
        self.found = found


def scan_uids(
    prefix: Buffer, transfer_syntax_uid: str, *, final: bool = False, limits: Limits = LIMITS
) -> Ids | NeedMore:
    """Find the UIDs in the beginning of an encoded data set.

    Parameters
    ----------
    prefix
        The first bytes of the data set, as many as have come.
    transfer_syntax_uid
        How they are written.
    final
        True if ``prefix`` is the whole data set: what is missing then is a fault.

    Returns
    -------
    Ids | NeedMore
        NeedMore never with ``final``.

    Raises
    ------
    HeaderFault
        With the status to answer: C000H if this is no data set, A900H if study or series is missing, 0117H
        if a UID has characters other than digits and dots or is longer than 64 (PS3.5 9.1). Nothing
        else escapes, whatever the bytes.
    """
    encoding = encoding_of(transfer_syntax_uid)
    try:
        if transfer_syntax_uid in DEFLATED_SYNTAXES:
            found = _scan_deflated(prefix, encoding, final, limits)
        else:
            found = _scan(prefix, encoding, limits)
    except _Short as short:
        if not final:
            return NeedMore(short.size)
        if short.found is None:
            raise HeaderFault("the data set ends in the middle of an element") from None
        found = short.found
    return _check(found)


def scan_file(
    path: Path, offset: int, transfer_syntax_uid: str, *, at_least: int = 0, limits: Limits = LIMITS
) -> Ids:
    """Find the UIDs of a data set that lies whole in a file.

    Parameters
    ----------
    path, offset
        The file, and where in it the data set begins.
    at_least
        What an earlier :func:`scan_uids` asked for, to read enough at once.

    Raises
    ------
    HeaderFault
        As :func:`scan_uids`; and if the UIDs are not within ``limits.header_bytes``.
    StoreError
        If the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = max(0, os.fstat(file.fileno()).st_size - offset)
            window = max(_FIRST_WINDOW, min(at_least, limits.header_bytes))
            while True:
                with _memory_for(window):
                    data = borrow(min(window, size))
                    _fill(data, file, offset)
                    found = scan_uids(data, transfer_syntax_uid, final=len(data) >= size, limits=limits)
                    del data
                if isinstance(found, Ids):
                    return found
                if found.size > size:
                    raise HeaderFault("an element claims more bytes than the data set has")
                if max(window, found.size) > limits.header_bytes or window >= limits.header_bytes:
                    raise HeaderFault(f"no Series Instance UID in the first {limits.header_bytes >> 20} MiB")
                window = min(max(window * 8, found.size), limits.header_bytes)
    except OSError as error:
        raise StoreError(f"a spooled file cannot be read: {error.strerror}") from None


def _fill(data: memoryview, file: FileIO, offset: int) -> None:
    file.seek(offset)
    at = 0
    while at < len(data):
        n = file.readinto(data[at:])
        if not n:
            raise OSError(errno.EIO, "the file is shorter than it was")
        at += n


def _memory_for(window: int) -> AbstractContextManager[object]:
    """Large windows one at a time, over all threads: what they cost is then no multiple of the peers."""
    return _LARGE_WINDOW if window > _FIRST_WINDOW else nullcontext()


def _scan(buffer: Buffer, encoding: Encoding, limits: Limits) -> dict[int, bytes]:
    if encoding.explicit:
        return _scan_explicit(buffer, encoding.little, limits)
    return _scan_implicit(buffer, limits)


def _scan_deflated(prefix: Buffer, encoding: Encoding, final: bool, limits: Limits) -> dict[int, bytes]:
    size = _FIRST_WINDOW
    while True:
        with _memory_for(size):
            data, complete = inflate(prefix, size, limits)
            try:
                return _scan(data, encoding, limits)
            except _Short as short:
                if complete:
                    raise _Short(len(prefix) + 1, short.found if final else None) from None
            del data
        if size >= limits.inflated_header_bytes:
            raise HeaderFault(f"no Series Instance UID in the first {size >> 20} MiB")
        size = min(size * 8, limits.inflated_header_bytes)


def _check(found: dict[int, bytes]) -> Ids:
    texts: list[str] = []
    for tag, title in _WANTED.items():
        value = found.get(tag, b"").rstrip(b"\0 ")
        if not value and tag in (STUDY, SERIES):
            raise HeaderFault(f"{title} is missing", status=MISMATCH)
        if value and _UID.fullmatch(value) is None:
            raise HeaderFault(f"{title} is no UID", status=INVALID_UID)
        texts.append(value.decode("ascii"))
    return Ids(*texts)


def _take(found: dict[int, bytes], tag: int, buffer: Buffer, start: int, end: int) -> None:
    if end > len(buffer):
        raise _Short(end)
    if end - start > _LONGEST:
        raise HeaderFault(f"{_WANTED[tag]} is no UID", status=INVALID_UID)
    value = bytes(buffer[start:end])
    if found.setdefault(tag, value) != value:
        raise HeaderFault(f"{_WANTED[tag]} is there twice, with different values")


def _scan_explicit(buffer: Buffer, little: bool, limits: Limits) -> dict[int, bytes]:
    unpack, unpack_long = (_EXPLICIT_LE, _LONG_LE) if little else (_EXPLICIT_BE, _LONG_BE)
    size = len(buffer)
    found: dict[int, bytes] = {}
    pos = 0
    for _ in range(limits.elements):
        if pos + 8 > size:
            raise _Short(pos + 8, found if pos == size else None)
        group, element, vr, length = unpack(buffer, pos)
        if group >= 0x0020 and (group > 0x0020 or element > 0x000E):
            return found
        start = pos + 8
        if vr not in SHORT_VRS:
            if not (vr.isalpha() and vr.isupper()):
                raise HeaderFault(f"no value representation at {name(group << 16 | element)}")
            if start + 4 > size:
                raise _Short(start + 4)
            (length,) = unpack_long(buffer, start)
            start += 4
            if length == UNDEFINED:
                pos = _skip(buffer, start, IMPLICIT if vr == b"UN" else Encoding(True, little), limits)
                continue
        pos = start + length
        if (group == 0x0020 and element >= 0x000D) or (
            group == 0x0008 and (element == 0x0018 or element == 0x0016)
        ):
            _take(found, group << 16 | element, buffer, start, pos)
            if element == 0x000E:
                return found
    raise HeaderFault("too many elements")


def _scan_implicit(buffer: Buffer, limits: Limits) -> dict[int, bytes]:
    size = len(buffer)
    found: dict[int, bytes] = {}
    pos = 0
    for _ in range(limits.elements):
        if pos + 8 > size:
            raise _Short(pos + 8, found if pos == size else None)
        group, element, length = _IMPLICIT_LE(buffer, pos)
        if group >= 0x0020 and (group > 0x0020 or element > 0x000E):
            return found
        start = pos + 8
        if length == UNDEFINED:
            pos = _skip(buffer, start, IMPLICIT, limits)
            continue
        pos = start + length
        if (group == 0x0020 and element >= 0x000D) or (
            group == 0x0008 and (element == 0x0018 or element == 0x0016)
        ):
            _take(found, group << 16 | element, buffer, start, pos)
            if element == 0x000E:
                return found
    raise HeaderFault("too many elements")


def _skip(buffer: Buffer, pos: int, encoding: Encoding, limits: Limits) -> int:
    """Where the element behind a sequence of undefined length begins (PS3.5 7.5).

    ``pos`` is that of its first item. What is in a UN of undefined length is always Implicit VR Little
    Endian (PS3.5 6.2.2). Sequences and items with a length are jumped over.
    """
    size = len(buffer)
    n_items = 0
    open_levels: list[tuple[bool, Encoding]] = [(False, encoding)]
    for _ in range(limits.elements + 2 * limits.items):
        if pos + 8 > size:
            raise _Short(pos + 8)
        in_item, encoding = open_levels[-1]
        group, element, length = (_IMPLICIT_LE if encoding.little else _IMPLICIT_BE)(buffer, pos)
        start = pos + 8
        if group == 0xFFFE:
            pos = start
            if element == (0xE00D if in_item else 0xE0DD):
                open_levels.pop()
                if not open_levels:
                    return pos
            elif in_item or element != 0xE000:
                raise HeaderFault("a delimiter is out of place")
            elif length == UNDEFINED:
                open_levels.append((True, encoding))
            else:
                pos += length
            n_items += 1
            if n_items > 2 * limits.items:
                raise HeaderFault("too many items")
            continue
        if not in_item:
            raise HeaderFault("a sequence holds something that is no item")
        if encoding.explicit:
            vr = bytes(buffer[pos + 4 : start - 2])
            if vr in SHORT_VRS:
                length = (_WORD_LE if encoding.little else _WORD_BE)(buffer, start - 2)[0]
            else:
                if not (vr.isalpha() and vr.isupper()):
                    raise HeaderFault(f"no value representation at {name(group << 16 | element)}")
                if start + 4 > size:
                    raise _Short(start + 4)
                length = (_LONG_LE if encoding.little else _LONG_BE)(buffer, start)[0]
                start += 4
                if vr == b"UN" and length == UNDEFINED:
                    encoding = IMPLICIT
        if length == UNDEFINED:
            open_levels.append((False, encoding))
            if len(open_levels) > 2 * limits.depth:
                raise HeaderFault("sequences are nested too deeply")
            pos = start
        else:
            pos = start + length
    raise HeaderFault("too many elements")
