"""A-ASSOCIATE-RQ made fit for pynetdicom: pure functions of bytes.

PS3.8 9.3.2 wants items that are not recognized to be ignored; pynetdicom aborts on them, as it does on UIDs
with padding and on sub-items that are not quite in order. What this node does not negotiate is therefore
left out before pynetdicom reads the request: by the standard, what is not answered is not agreed to. A presentation
context that makes no sense is made one that nobody supports: it is refused, and the others are not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from node.dicom.commitment import PUSH_MODEL

_FIXED: Final = 74
"""Bytes before the first item: PDU header, protocol version, the two AE titles, reserved (Table 9-11)."""

_TITLES: Final = {"called": slice(10, 26), "calling": slice(26, 42)}
"""AE titles: no control characters nor backslashes (PS3.5 6.2, VR AE), padded with spaces."""

_NOBODYS: Final = b"0"
"""A syntax that nobody supports."""

_APPLICATION_CONTEXT, _PRESENTATION_CONTEXT, _USER_INFORMATION = 0x10, 0x20, 0x50
_ABSTRACT_SYNTAX, _TRANSFER_SYNTAX = 0x30, 0x40
_MAXIMUM_LENGTH, _IMPLEMENTATION_UID = 0x51, 0x52
_ROLE_SELECTION: Final = 0x54
# Left out on purpose: 55H implementation version name (decides nothing, and is often odd), 53H asynchronous
# operations (one at a time is the default), 56H and 57H extended negotiation, 58H user identity (accepted, and secrets
# are not even read). Role selection (54H) is for results of storage commitment; all else has its default roles.

_ITEM = struct.Struct(">BxH")


class RequestError(ValueError):
    """The request cannot be read. Says where, never what."""


def tidy(raw: bytes) -> bytes:
    """An A-ASSOCIATE-RQ PDU with what pynetdicom needs and nothing else.

    Parameters
    ----------
    raw
        The PDU as received, header included.

    Raises
    ------
    RequestError
        Items do not fit into each other, or the numbers of presentation contexts are wrong.
    """
    if len(raw) < _FIXED:
        raise RequestError("shorter than its fixed part")
    items = bytearray()
    contexts: set[int] = set()
    for kind, value in _items(raw[_FIXED:]):
        if kind == _APPLICATION_CONTEXT:
            items += _item(kind, _bare(value))
        elif kind == _PRESENTATION_CONTEXT:
            if len(value) < 4 or value[0] % 2 == 0 or value[0] in contexts:
                raise RequestError("presentation context identifiers")
            contexts.add(value[0])
            items += _item(kind, value[:1] + b"\0\0\0" + _syntaxes(value[4:]))
        elif kind == _USER_INFORMATION:
            items += _item(kind, _user_information(value))
    titles = b"".join(_title(raw[where]) for where in _TITLES.values())
    body = raw[6:10] + titles + raw[42:_FIXED] + bytes(items)
    return struct.pack(">BBL", 0x01, 0, len(body)) + body


def untitled(raw: bytes) -> str:
    """Which AE title of an A-ASSOCIATE-RQ is none, ``"called"`` or ``"calling"``; "" if both are titles."""
    return next((name for name, where in _TITLES.items() if not _is_title(_unpadded(raw[where]))), "")


def _title(raw: bytes) -> bytes:
    """An AE title as pynetdicom takes it, and people can read it."""
    bare = _unpadded(raw)
    if not _is_title(bare):
        bare = bytes(byte if _is_letter(byte) else 0x3F for byte in bare).strip(b" ") or b"?"
    return bare.ljust(16)


def _unpadded(raw: bytes) -> bytes:
    """NULs behind a title are taken for padding, as most receivers do: some systems have no other."""
    return raw.rstrip(b"\0 ")


def _is_title(bare: bytes) -> bool:
    return bool(bare.strip(b" ")) and all(map(_is_letter, bare))


def _is_letter(byte: int) -> bool:
    return 0x20 <= byte < 0x7F and byte != 0x5C


def _items(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(raw):
        if len(raw) - at < 4:
            raise RequestError("an item is cut short")
        kind, length = _ITEM.unpack_from(raw, at)
        at += 4
        if length > len(raw) - at:
            raise RequestError("an item is longer than what holds it")
        yield kind, raw[at : at + length]
        at += length


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _bare(value: bytes) -> bytes:
    return value.rstrip(b"\0 ")


def _syntaxes(raw: bytes) -> bytes:
    abstract: list[bytes] = []
    transfer: list[bytes] = []
    for kind, value in _items(raw):
        if kind == _ABSTRACT_SYNTAX:
            abstract.append(_bare(value))
        elif kind == _TRANSFER_SYNTAX:
            transfer.append(_bare(value))
    abstract = abstract if len(abstract) == 1 and _is_syntax(abstract[0]) else [_NOBODYS]
    transfer = [each for each in transfer if _is_syntax(each)] or [_NOBODYS]
    return _item(_ABSTRACT_SYNTAX, abstract[0]) + b"".join(_item(_TRANSFER_SYNTAX, each) for each in transfer)


def _is_syntax(value: bytes) -> bool:
    return 0 < len(value) <= 64 and value.isascii()


def _user_information(raw: bytes) -> bytes:
    out = bytearray()
    for kind, value in _items(raw):
        if kind == _MAXIMUM_LENGTH and len(value) == 4:
            out += _item(kind, value)
        elif kind == _IMPLEMENTATION_UID and 0 < len(_bare(value)) <= 64 and value.isascii():
            out += _item(kind, _bare(value))
        elif kind == _ROLE_SELECTION:
            out += _role(value)
    return bytes(out)


def _role(value: bytes) -> bytes:
    """A role selection sub-item (PS3.7 D.3.3.4) if it is one of storage commitment, else nothing."""
    if len(value) < 4:
        return b""
    (length,) = struct.unpack_from(">H", value)
    uid, roles = _bare(value[2 : 2 + length]), value[2 + length : 4 + length]
    if uid != PUSH_MODEL.encode() or len(roles) != 2 or not set(roles) <= {0, 1}:
        return b""
    return _item(_ROLE_SELECTION, struct.pack(">H", len(uid)) + uid + roles)
