"""What a peer sends, as a stream of bytes in, a list of happenings out. No socket, no clock, no file.

PS3.8 9.3 frames everything in PDUs of six bytes of header and a body. The body of a P-DATA-TF is a row of
PDVs: length (4), presentation context (1), message control header (1), then a piece of a command set or of
a data set. Pieces of data sets are handed on as views of the caller's buffer, as they come, whatever their
size: nothing here grows with the size of a PDU, a PDV or a data set. Only command sets and the few other
PDUs are gathered, and both are capped before they are.

Messages on different contexts may be interleaved; within one context a command set comes first, then, if it
says so, one data set (PS3.7 6.3.2, PS3.8 E.2).
"""

from __future__ import annotations

import struct
from collections.abc import Container
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from node.receive.commands import LARGEST_COMMAND_SET, Command, CommandSetError, parse

ASSOCIATE_RQ, P_DATA, RELEASE_RQ, ABORT = 0x01, 0x04, 0x05, 0x07

LARGEST_REQUEST: Final = 1024 * 1024
"""Bytes of an A-ASSOCIATE-RQ at most: 128 contexts with 40 transfer syntaxes each are a quarter of this."""

SLACK: Final = 1024
"""A P-DATA-TF may be this much longer than we asked for: some count the PDV's header, some do not."""

_LARGEST_CONTROL: Final = 64
"""Release and abort have four bytes after the header."""

_MOST_MESSAGES: Final = 16
"""Messages open at once, on as many contexts; asynchronous operations are not negotiated."""

_PDU = struct.Struct(">BxL")
_PDV = struct.Struct(">LBB")
_PDU_PDV = struct.Struct(">BxLLBB")


class Reason(IntEnum):
    """Reasons of a provider's A-ABORT (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class Data(NamedTuple):
    """Pieces of a context's data set, one behind the other; views that the next ``feed`` overwrites."""

    context_id: int
    pieces: list[memoryview]


class DataEnd(NamedTuple):
    """The data set of a context is complete."""

    context_id: int


class CommandSet(NamedTuple):
    """A complete command set."""

    context_id: int
    command: Command


class Pdu(NamedTuple):
    """A complete PDU that is not P-DATA-TF, with its header."""

    kind: int
    raw: bytes


class Fault(NamedTuple):
    """The peer broke the protocol; nothing that follows can be understood."""

    reason: Reason
    because: str


Happening: TypeAlias = Data | DataEnd | CommandSet | Pdu | Fault


class _BrokenError(Exception):
    def __init__(self, reason: Reason, because: str) -> None:
        super().__init__(because)
        self.fault = Fault(reason, because)


class Wire:
    """One peer's byte stream.

    Parameters
    ----------
    largest_pdu
        Maximum Length that we announced, in bytes.

    Attributes
    ----------
    pdus
        PDUs that have ended so far.
    partial
        True while a PDU has begun and not ended.
    """

    __slots__ = (
        "_commands", "_contexts", "_control", "_expected", "_head", "_kind", "_largest", "_last",
        "_pdu_left", "_pdv_context", "_pdv_left", "_pdv_open", "broken", "pdus",
    )  # fmt: skip

    def __init__(self, largest_pdu: int) -> None:
        self._largest = largest_pdu + SLACK
        self._contexts: Container[int] | None = None
        self._head = bytearray()  # of a PDU or PDV header that is cut by the end of a buffer
        self._kind = 0  # type of the PDU that we are in, 0 between PDUs
        self._pdu_left = 0
        self._pdv_open = False
        self._pdv_left = 0
        self._pdv_context = 0
        self._last = 0  # message control header of the PDV that we are in
        self._control = bytearray()
        self._commands: dict[int, bytearray] = {}
        self._expected: set[int] = set()  # contexts whose command set announced a data set
        self.pdus = 0
        self.broken = False

    @property
    def partial(self) -> bool:
        return self._kind != 0 or bool(self._head)

    @property
    def in_message(self) -> bool:
        """True while a command set or a data set is incomplete."""
        return bool(self._commands or self._expected)

    def establish(self, contexts: Container[int]) -> None:
        """The association is accepted, with these presentation contexts: P-DATA may come from now on."""
        self._contexts = contexts

    def feed(self, view: memoryview) -> list[Happening]:
        """Take what arrived.

        Parameters
        ----------
        view
            The bytes, as they came from the socket. Views of them are in the result.

        Returns
        -------
        list
            What happened, in order. A :class:`Fault` is the last entry ever.
        """
        out: list[Happening] = []
        if self.broken:
            return out
        try:
            self._walk(view, out)
        except _BrokenError as stop:
            self.broken = True
            out.append(stop.fault)
        return out

    def _walk(self, view: memoryview, out: list[Happening]) -> None:
        at, end = 0, len(view)
        while at < end:
            if self._pdv_open:
                take = min(self._pdv_left, end - at)
                self._piece(view[at : at + take], out)
                at += take
            elif not self._kind and not self._head and end - at >= 12:
                at = self._usual(view, at, out) or self._header(view, at, out)
            elif self._kind and self._kind != P_DATA:
                take = min(self._pdu_left, end - at)
                self._control += view[at : at + take]
                self._pdu_left -= take
                at += take
                if not self._pdu_left:
                    self._end_control(out)
            else:
                at = self._header(view, at, out)

    def _usual(self, view: memoryview, at: int, out: list[Happening]) -> int:
        """The case that makes up nearly all traffic: PDUs of one PDV of a data set that is under way.

        Returns where to go on, or 0 if this is another case, of which nothing has been taken then.
        """
        expected, largest, end = self._expected, self._largest, len(view)
        began, pieces_of = at, -1
        pieces: list[memoryview] = []
        while end - at >= 12:
            kind, length, pdv, context_id, control = _PDU_PDV.unpack_from(view, at)
            if kind != P_DATA or pdv + 4 != length or length > largest or pdv <= 2 or control & 1:
                break
            if context_id not in expected:
                break
            until: int = at + 10 + pdv
            if control & 2 or until > end:  # the last of its data set, or the rest is still to come
                self._kind, self._pdu_left = kind, 0
                self._pdv_open, self._pdv_left = True, pdv - 2
                self._pdv_context, self._last = context_id, control
                self._piece(view[at + 12 : until], out)
                return until if until < end else end
            if context_id != pieces_of:
                pieces, pieces_of = self._pieces(context_id, out), context_id
            pieces.append(view[at + 12 : until])
            self.pdus += 1
            at = until
        return at if at > began else 0

    @staticmethod
    def _pieces(context_id: int, out: list[Happening]) -> list[memoryview]:
        """Where the next piece of a context's data set goes."""
        latest = out[-1] if out else None
        if type(latest) is not Data or latest.context_id != context_id:
            latest = Data(context_id, [])
            out.append(latest)
        return latest.pieces

    def _header(self, view: memoryview, at: int, out: list[Happening]) -> int:
        """Six bytes of header, of a PDU or of a PDV; mostly whole and in one buffer. Where to go on."""
        if not self._head and len(view) - at >= 6:
            header: memoryview | bytearray = view[at : at + 6]
            at += 6
        else:
            take = min(6 - len(self._head), len(view) - at)
            self._head += view[at : at + take]
            at += take
            if len(self._head) < 6:
                return at
            header, self._head = self._head, bytearray()
        if self._kind:
            self._begin_pdv(header, out)
        else:
            self._begin_pdu(header)
        return at

    def _begin_pdu(self, header: memoryview | bytearray) -> None:
        kind, length = _PDU.unpack(header)
        if not 0x01 <= kind <= 0x07:
            raise _BrokenError(Reason.UNRECOGNIZED_PDU, "unrecognized PDU")
        if self._contexts is None:
            if kind not in (ASSOCIATE_RQ, ABORT):
                raise _BrokenError(Reason.UNEXPECTED_PDU, "PDU before an association request")
            cap = LARGEST_REQUEST if kind == ASSOCIATE_RQ else _LARGEST_CONTROL
        elif kind == P_DATA:
            cap = self._largest
            if length < 6:
                raise _BrokenError(Reason.INVALID_PARAMETER, "P-DATA-TF without a PDV")
        elif kind in (RELEASE_RQ, ABORT):
            cap = _LARGEST_CONTROL
        else:
            raise _BrokenError(Reason.UNEXPECTED_PDU, "unexpected PDU in an association")
        if length > cap:
            raise _BrokenError(Reason.INVALID_PARAMETER, "PDU too long")
        if kind != P_DATA:
            if length < 4:
                raise _BrokenError(Reason.INVALID_PARAMETER, "PDU too short")
            self._control = bytearray(header)
        self._kind, self._pdu_left = kind, length

    def _end_control(self, out: list[Happening]) -> None:
        out.append(Pdu(self._kind, bytes(self._control)))
        self._control = bytearray()
        self._kind = 0
        self.pdus += 1

    def _begin_pdv(self, header: memoryview | bytearray, out: list[Happening]) -> None:
        length, context_id, control = _PDV.unpack(header)
        if length < 2 or length + 4 > self._pdu_left:
            raise _BrokenError(Reason.INVALID_PARAMETER, "PDV does not fit its PDU")
        if self._contexts is None or context_id not in self._contexts:
            raise _BrokenError(
                Reason.INVALID_PARAMETER, "PDV on a presentation context that was not accepted"
            )
        if control & 1:
            if context_id in self._expected:
                raise _BrokenError(Reason.UNEXPECTED_PARAMETER, "command set where a data set should go on")
            if context_id not in self._commands:
                if len(self._commands) + len(self._expected) >= _MOST_MESSAGES:
                    raise _BrokenError(Reason.UNEXPECTED_PARAMETER, "too many messages at once")
                self._commands[context_id] = bytearray()
            if len(self._commands[context_id]) + length > LARGEST_COMMAND_SET:
                raise _BrokenError(Reason.INVALID_PARAMETER, "command set too long")
        elif context_id not in self._expected:
            raise _BrokenError(Reason.UNEXPECTED_PARAMETER, "data set without a command set")
        self._pdu_left -= length + 4
        self._pdv_open, self._pdv_left = True, length - 2
        self._pdv_context, self._last = context_id, control
        if length == 2:
            self._piece(memoryview(b""), out)

    def _piece(self, piece: memoryview, out: list[Happening]) -> None:
        context_id = self._pdv_context
        self._pdv_left -= len(piece)
        if self._last & 1:
            self._commands[context_id] += piece
        elif piece:
            self._pieces(context_id, out).append(piece)
        if self._pdv_left:
            return
        self._pdv_open = False
        if not self._pdu_left:
            self._kind = 0
            self.pdus += 1
        elif self._pdu_left < 6:
            raise _BrokenError(Reason.INVALID_PARAMETER, "bytes after the last PDV")
        if not self._last & 2:
            return
        if self._last & 1:
            self._end_command(context_id, out)
        else:
            self._expected.discard(context_id)
            out.append(DataEnd(context_id))

    def _end_command(self, context_id: int, out: list[Happening]) -> None:
        try:
            command = parse(bytes(self._commands.pop(context_id)))
        except CommandSetError as fault:
            raise _BrokenError(Reason.INVALID_PARAMETER, f"command set: {fault}") from None
        if command.has_data:
            self._expected.add(context_id)
        out.append(CommandSet(context_id, command))
