"""The few PDUs and messages that a storage SCU writes itself: pure functions of bytes.

pynetdicom negotiates (A-ASSOCIATE); from then on C-STORE is two small command sets and a stream of fragments,
and they are encoded here once, so that a data set goes from the spool to the socket without passing through
objects, queues or a second thread. Sources: PS3.7 9.3.1 (C-STORE), 9.3.5 (C-ECHO), E.1 (command elements);
PS3.8 9.3.5 (P-DATA-TF), 9.3.6-8 (release, abort), Annex E (fragments).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 0x04, 0x05, 0x06, 0x07
ASSOCIATE_AC, ASSOCIATE_RJ = 0x02, 0x03

RELEASE_REQUEST = b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"
RELEASE_RESPONSE = b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"

C_STORE_RQ, C_STORE_RSP, C_ECHO_RQ, C_ECHO_RSP = 0x0001, 0x8001, 0x0030, 0x8030
N_EVENT_REPORT_RQ, N_EVENT_REPORT_RSP = 0x0100, 0x8100
N_ACTION_RQ, N_ACTION_RSP = 0x0130, 0x8130
VERIFICATION = "1.2.840.10008.1.1"

HEADER = 12
"""Bytes before each fragment: PDU header (6), PDV length (4), context id, message control header."""

LARGEST_FRAGMENT = 128 * 1024
"""What we send at most in one PDU, whatever the peer allows (0 = unlimited): larger gains nothing."""

LARGEST_COMMAND = 16 * 1024
"""A response's command set is some hundred bytes; whoever sends more is not answering us."""

_AC_FIXED = 68
"""Bytes of an A-ASSOCIATE-AC before its first item; all but the version are reserved (PS3.8 Table 9-17)."""

_RESULT, _TRANSFER_SYNTAX, _USER_INFORMATION, _MAXIMUM_LENGTH = 0x21, 0x40, 0x50, 0x51

_NO_DATA_SET = 0x0101
_DATA_SET = 0x0001


class ProtocolFault(ValueError):
    """The peer sent something that is not an answer. Says where, never what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A DIMSE response: its command field, the message it answers, status and Error Comment."""

    command: int
    responds_to: int
    status: int
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """What an A-ASSOCIATE-AC says that matters to a sender.

    ``contexts`` maps the ids of accepted presentation contexts to their transfer syntaxes; ``maximum`` is the peer's
    Maximum Length Received in bytes, 0 if it has none.
    """

    contexts: Mapping[int, str]
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """One presentation data value: a piece of a command set or of a data set."""

    context_id: int
    is_command: bool
    is_last: bool
    data: bytes


def abort(source: int = 0, reason: int = 0) -> bytes:
    """An A-ABORT PDU (PS3.8 9.3.8); source 0 is the service user, 2 the provider with a reason."""
    return struct.pack(">BBLBBBB", ABORT, 0, 4, 0, 0, source, reason)


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _uid(value: str) -> bytes:
    raw = value.encode("ascii")
    return raw + b"\0" if len(raw) % 2 else raw


def _command(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return _element(0x0000, struct.pack("<L", len(body))) + body


def store_request(
    message_id: int, sop_class_uid: str, sop_instance_uid: str, originator: tuple[str, int] | None = None
) -> bytes:
    """The command set of a C-STORE-RQ, medium priority (PS3.7 9.3.1.1).

    Parameters
    ----------
    originator
        AE title and message id of the C-MOVE that asked for this, if one did.
    """
    moved: tuple[bytes, ...] = ()
    if originator is not None:
        title = originator[0].encode("ascii")
        moved = (
            _element(0x1030, title + b" " * (len(title) % 2)),
            _element(0x1031, struct.pack("<H", originator[1])),
        )
    return _command(
        _element(0x0002, _uid(sop_class_uid)),
        _element(0x0100, struct.pack("<H", C_STORE_RQ)),
        _element(0x0110, struct.pack("<H", message_id)),
        _element(0x0700, struct.pack("<H", 0)),
        _element(0x0800, struct.pack("<H", _DATA_SET)),
        _element(0x1000, _uid(sop_instance_uid)),
        *moved,
    )


def echo_request(message_id: int) -> bytes:
    """The command set of a C-ECHO-RQ (PS3.7 9.3.5.1)."""
    return _command(
        _element(0x0002, _uid(VERIFICATION)),
        _element(0x0100, struct.pack("<H", C_ECHO_RQ)),
        _element(0x0110, struct.pack("<H", message_id)),
        _element(0x0800, struct.pack("<H", _NO_DATA_SET)),
    )


def event_report_request(message_id: int, sop_class_uid: str, sop_instance_uid: str, event: int) -> bytes:
    """The command set of an N-EVENT-REPORT-RQ with Event Information (PS3.7 10.3.1.1)."""
    return _command(
        _element(0x0002, _uid(sop_class_uid)),
        _element(0x0100, struct.pack("<H", N_EVENT_REPORT_RQ)),
        _element(0x0110, struct.pack("<H", message_id)),
        _element(0x0800, struct.pack("<H", _DATA_SET)),
        _element(0x1000, _uid(sop_instance_uid)),
        _element(0x1002, struct.pack("<H", event)),
    )


def action_request(message_id: int, sop_class_uid: str, sop_instance_uid: str, action: int) -> bytes:
    """The command set of an N-ACTION-RQ with Action Information (PS3.7 10.3.4.1)."""
    return _command(
        _element(0x0003, _uid(sop_class_uid)),
        _element(0x0100, struct.pack("<H", N_ACTION_RQ)),
        _element(0x0110, struct.pack("<H", message_id)),
        _element(0x0800, struct.pack("<H", _DATA_SET)),
        _element(0x1001, _uid(sop_instance_uid)),
        _element(0x1008, struct.pack("<H", action)),
    )


def event_report_response(request: Mapping[int, bytes], status: int) -> bytes:
    """The command set of an N-EVENT-REPORT-RSP without Event Reply (PS3.7 10.3.1.2); ``request`` as of `elements`."""
    said_back = ((0x0002, 0x0002), (0x0110, 0x0120), (0x1000, 0x1000), (0x1002, 0x1002))
    values = {answered: request[asked] for asked, answered in said_back if asked in request}
    values |= {
        0x0100: struct.pack("<H", N_EVENT_REPORT_RSP),
        0x0800: struct.pack("<H", _NO_DATA_SET),
        0x0900: struct.pack("<H", status),
    }
    return _command(*(_element(number, values[number]) for number in sorted(values)))


def fragment_size(peer_maximum: int) -> int:
    """The largest data fragment that a peer takes, in bytes, always even (PS3.8 Annex E, D.1).

    Parameters
    ----------
    peer_maximum
        Maximum Length Received of the peer in bytes; 0 means no limit.
    """
    limit = LARGEST_FRAGMENT if peer_maximum <= 0 else min(peer_maximum, LARGEST_FRAGMENT)
    return max(2, (limit - 6) & ~1)


def fragment_header(context_id: int, size: int, *, is_command: bool, is_last: bool) -> bytes:
    """The twelve bytes before a fragment of ``size`` bytes: one PDU with one PDV."""
    control = (1 if is_command else 0) | (2 if is_last else 0)
    return struct.pack(">BBLLBB", P_DATA, 0, size + 6, size + 2, context_id, control)


def command_pdus(context_id: int, command: bytes, fragment: int) -> bytes:
    """A whole command set as P-DATA-TF PDUs."""
    out = bytearray()
    for at in range(0, len(command), fragment):
        piece = command[at : at + fragment]
        last = at + fragment >= len(command)
        out += fragment_header(context_id, len(piece), is_command=True, is_last=last) + piece
    return bytes(out)


def data_pdus(context_id: int, data: memoryview, fragment: int) -> list[bytes | memoryview]:
    """A whole data set as P-DATA-TF PDUs: headers, and views of ``data`` between them; none if it is empty."""
    header = fragment_header(context_id, fragment, is_command=False, is_last=False)
    out: list[bytes | memoryview] = []
    last = (len(data) - 1) // fragment * fragment
    for at in range(0, last, fragment):
        out += (header, data[at : at + fragment])
    if data:
        out += (
            fragment_header(context_id, len(data) - last, is_command=False, is_last=True),
            data[last:],
        )
    return out


def acceptance(body: bytes) -> Acceptance:
    """Read an A-ASSOCIATE-AC without its six-byte header (PS3.8 9.3.3).

    Only what a sender needs is looked at: items that are not recognized are ignored (PS3.8 9.3.1), and so are the
    names by which a peer calls its implementation, which decide nothing and are often not as they should be.

    Raises
    ------
    ProtocolFault
        If its items do not fit into each other.
    """
    if len(body) < _AC_FIXED:
        raise ProtocolFault("an acceptance is shorter than its fixed part")
    contexts: dict[int, str] = {}
    maximum = 0
    for kind, value in _items(body, _AC_FIXED):
        if kind == _RESULT and len(value) >= 4:
            if value[2] == 0:  # else the transfer syntax is not significant (PS3.8 9.3.3.2)
                syntaxes = [v for k, v in _items(value, 4) if k == _TRANSFER_SYNTAX]
                if syntaxes:
                    contexts[value[0]] = syntaxes[0].rstrip(b"\0 ").decode("ascii", "replace")
        elif kind == _USER_INFORMATION:
            for sub, told in _items(value, 0):
                if sub == _MAXIMUM_LENGTH and len(told) == 4:
                    maximum = int.from_bytes(told, "big")
    return Acceptance(contexts=contexts, maximum=maximum)


def _items(raw: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at < len(raw):
        if at + 4 > len(raw):
            raise ProtocolFault("an item is cut short")
        kind, length = struct.unpack_from(">BxH", raw, at)
        at += 4
        if at + length > len(raw):
            raise ProtocolFault("an item is longer than what holds it")
        yield kind, raw[at : at + length]
        at += length


def fragments(body: bytes) -> list[Fragment]:
    """The presentation data values of a P-DATA-TF, without its six-byte header.

    Raises
    ------
    ProtocolFault
        If the lengths do not add up.
    """
    found: list[Fragment] = []
    at = 0
    while at < len(body):
        if at + 6 > len(body):
            raise ProtocolFault("a presentation data value is cut short")
        length, context_id, control = struct.unpack_from(">LBB", body, at)
        end = at + 4 + length
        if length < 2 or end > len(body):
            raise ProtocolFault("a presentation data value has an impossible length")
        found.append(
            Fragment(
                context_id=context_id,
                is_command=bool(control & 1),
                is_last=bool(control & 2),
                data=body[at + 6 : end],
            )
        )
        at = end
    return found


def elements(command: bytes) -> dict[int, bytes]:
    """The elements of a command set (implicit VR little endian, PS3.7 6.3.1) by their number in group 0000H.

    Raises
    ------
    ProtocolFault
        If it is cut short.
    """
    values: dict[int, bytes] = {}
    at = 0
    while at < len(command):
        if at + 8 > len(command):
            raise ProtocolFault("a command element is cut short")
        group, number, length = struct.unpack_from("<HHL", command, at)
        at += 8
        if group != 0 or length > len(command) - at:
            raise ProtocolFault("a command set holds what is no command element")
        values[number] = command[at : at + length]
        at += length
    return values


def has_data(command: Mapping[int, bytes]) -> bool:
    """Whether a data set follows a command set; ``command`` as of `elements`."""
    return int.from_bytes(command.get(0x0800, b"\1\1")[:2], "little") != _NO_DATA_SET


def field(command: Mapping[int, bytes]) -> int:
    """Command Field (0000,0100), 0 if there is none; ``command`` as of `elements`."""
    return int.from_bytes(command.get(0x0100, b"")[:2], "little")


def response(command: bytes) -> Response:
    """Read the command set of a response.

    Raises
    ------
    ProtocolFault
        If it is cut short, or lacks its command field, the message it answers or its status.
    """
    values = elements(command)
    try:
        kind, responds_to, status = (_short(values[n]) for n in (0x0100, 0x0120, 0x0900))
    except KeyError:
        raise ProtocolFault("a response without command field, message id or status") from None
    comment = values.get(0x0902, b"").decode("ascii", "replace").strip(" \0")[:64]
    return Response(
        command=kind,
        responds_to=responds_to,
        status=status,
        comment="".join(c if c.isprintable() else "?" for c in comment),
    )


def _short(value: bytes) -> int:
    if len(value) < 2:
        raise ProtocolFault("a command element is too short")
    return int.from_bytes(value[:2], "little")
