"""DIMSE command sets: parse those that arrive, write the answers. Pure functions of bytes.

A command set is Implicit VR Little Endian, group 0000H only (PS3.7 6.3.1, E.1). It is small; whatever is
not small is no command set. Values are kept as received, so that a response can say back the very UIDs.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

C_STORE_RQ: Final = 0x0001
C_CANCEL_RQ: Final = 0x0FFF
C_ECHO_RQ: Final = 0x0030
N_EVENT_REPORT_RQ: Final = 0x0100
N_ACTION_RQ: Final = 0x0130
_RESPONSE: Final = 0x8000

LARGEST_COMMAND_SET: Final = 16 * 1024
"""Bytes; a C-STORE-RQ has some 150, an N-GET-RQ with a long attribute list a few thousand."""

NO_DATA_SET: Final = 0x0101
"""Command Data Set Type (0000,0800) that says that no data set follows (PS3.7 E.1)."""

LONGEST_COMMENT: Final = 64
"""Error Comment (0000,0902) is LO: with a longer one, some peers drop the whole response."""

_ELEMENT = struct.Struct("<HHL")
_US = struct.Struct("<H")
_UID = re.compile(rb"[0-9.]{1,64}\Z")

_CLASS, _REQUESTED_CLASS, _FIELD, _MESSAGE, _ANSWERED, _DATA_TYPE = 0x02, 0x03, 0x100, 0x110, 0x120, 0x800
_STATUS, _COMMENT, _INSTANCE = 0x900, 0x902, 0x1000
_REQUESTED_INSTANCE, _EVENT, _ACTION = 0x1001, 0x1002, 0x1008


class CommandSetError(ValueError):
    """What came is no command set. Says where, never what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One DIMSE command set, as far as a receiver needs it.

    ``sop_class_uid`` and ``sop_instance_uid`` are the Affected or the Requested ones, padding removed, "" if absent or
    if they hold anything but digits and dots, or more than 64 of them. ``message_id``, ``action`` (Action Type ID) and,
    of responses, ``answers`` (the message) and ``status`` are -1 if absent. ``raw`` is the whole command set.
    """

    field: int
    message_id: int
    has_data: bool
    sop_class_uid: str
    sop_instance_uid: str
    raw: bytes
    action: int = -1
    answers: int = -1
    status: int = -1

    @property
    def is_store(self) -> bool:
        return self.field == C_STORE_RQ

    @property
    def is_request(self) -> bool:
        """True for what must be answered; a C-CANCEL-RQ is not (PS3.7 9.3.2.3)."""
        return not self.field & _RESPONSE and self.field != C_CANCEL_RQ


def uid_text(value: bytes) -> str:
    """A UID as text, byte-exact but for its padding; "" if it is no UID (PS3.5 9.1).

    Leading zeros of a component are let through: such UIDs are in the world, and have to be referred to as
    they are.
    """
    bare = value.rstrip(b"\0 ")
    return bare.decode("ascii") if _UID.match(bare) else ""


def parse(raw: bytes) -> Command:
    """Parse a command set.

    Parameters
    ----------
    raw
        All fragments of the command set, joined.

    Raises
    ------
    CommandSetError
        It cannot be parsed, or lacks the elements without which nothing can be done with it: Command Field
        and Command Data Set Type.
    """
    found: dict[int, bytes] = {}
    position, end = 0, len(raw)
    while position < end:
        if end - position < 8:
            raise CommandSetError("an element is cut short")
        group, element, length = _ELEMENT.unpack_from(raw, position)
        position += 8
        if group != 0:
            raise CommandSetError("an element outside group 0000H")
        if length > end - position:
            raise CommandSetError("an element is longer than the command set")
        if element in found:
            raise CommandSetError("an element comes twice")
        found[element] = raw[position : position + length]
        position += length
    field, data_type = _number(found, _FIELD), _number(found, _DATA_TYPE)
    if field is None or data_type is None:
        raise CommandSetError("no Command Field or no Command Data Set Type")
    message_id = _number(found, _MESSAGE)
    more: dict[str, int | None] = {}
    if field == N_ACTION_RQ:
        more = {"action": _number(found, _ACTION)}
    elif field & _RESPONSE:
        more = {"answers": _number(found, _ANSWERED), "status": _number(found, _STATUS)}
    return Command(
        field=field,
        message_id=-1 if message_id is None else message_id,
        has_data=data_type != NO_DATA_SET,
        sop_class_uid=uid_text(found.get(_CLASS, b"")) or uid_text(found.get(_REQUESTED_CLASS, b"")),
        sop_instance_uid=uid_text(found.get(_INSTANCE, b"")) or uid_text(found.get(_REQUESTED_INSTANCE, b"")),
        raw=raw,
        **{name: number for name, number in more.items() if number is not None},
    )


def _number(found: dict[int, bytes], element: int) -> int | None:
    value = found.get(element)
    if value is None:
        return None
    if len(value) != 2:
        raise CommandSetError("a number that is not two bytes long")
    number: int = _US.unpack(value)[0]
    return number


def answer(command: Command, status: int, comment: str = "") -> bytes:
    """The command set of the response to ``command`` (PS3.7 9.3.1.2 for C-STORE, C for the others).

    Parameters
    ----------
    command
        The request. Its UIDs are said back where they are UIDs.
    status
        DIMSE status.
    comment
        Error Comment; only its first 64 characters go out, those outside ASCII as question marks. Must not
        hold patient data.
    """
    elements = []
    if command.sop_class_uid:
        elements.append(_element(_CLASS, _padded(command.sop_class_uid, b"\0")))
    elements.append(_element(_FIELD, _US.pack((command.field | _RESPONSE) & 0xFFFF)))
    elements.append(_element(_ANSWERED, _US.pack(max(command.message_id, 0))))
    elements.append(_element(_DATA_TYPE, _US.pack(NO_DATA_SET)))
    elements.append(_element(_STATUS, _US.pack(status)))
    if comment:
        elements.append(_element(_COMMENT, _padded(comment[:LONGEST_COMMENT], b" ")))
    if command.sop_instance_uid:
        elements.append(_element(_INSTANCE, _padded(command.sop_instance_uid, b"\0")))
    body = b"".join(elements)
    return _element(0, struct.pack("<L", len(body))) + body


def event_report(message_id: int, sop_class_uid: str, sop_instance_uid: str, event: int) -> bytes:
    """The command set of an N-EVENT-REPORT-RQ with a data set (PS3.7 10.3.1.1)."""
    elements = (
        _element(_CLASS, _padded(sop_class_uid, b"\0")),
        _element(_FIELD, _US.pack(N_EVENT_REPORT_RQ)),
        _element(_MESSAGE, _US.pack(message_id)),
        _element(_DATA_TYPE, _US.pack(1)),
        _element(_INSTANCE, _padded(sop_instance_uid, b"\0")),
        _element(_EVENT, _US.pack(event)),
    )
    body = b"".join(elements)
    return _element(0, struct.pack("<L", len(body))) + body


def _element(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, element, len(value)) + value


def _padded(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding if len(value) % 2 else value


def as_pdus(context_id: int, command_set: bytes, largest_pdu: int, *, is_command: bool = True) -> bytes:
    """A command set, or a small data set, as P-DATA-TF PDUs (PS3.8 9.3.5, Annex E), none longer than the peer takes.

    Parameters
    ----------
    context_id
        Presentation context of the message.
    command_set
        Encoded command set, or data set.
    largest_pdu
        The peer's Maximum Length (bytes after the six of the PDU header); 0 is without limit.
    """
    room = max((largest_pdu - 6) & ~1, 2) if largest_pdu else len(command_set)
    kind = 1 if is_command else 0
    pieces = [command_set[at : at + room] for at in range(0, len(command_set), room)]
    out = bytearray()
    for number, piece in enumerate(pieces, 1):
        out += struct.pack(
            ">BBLLBB",
            4,
            0,
            len(piece) + 6,
            len(piece) + 2,
            context_id,
            kind | 2 if number == len(pieces) else kind,
        )
        out += piece
    return bytes(out)
