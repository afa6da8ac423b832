"""Messages that a peer sends on an association of ours: answers, and reports of events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from node.deliver import pdu
from node.deliver.wire import Wire
from node.dicom.commitment import LARGEST_REQUEST
from node.errors import PeerUnreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message: its command set, as bytes and by number in group 0000H, and its data set."""

    context_id: int
    command: bytes
    elements: Mapping[int, bytes]
    data: bytes


def read_message(wire: Wire, deadline: float) -> Message | None:
    """The next message, with its data set; None if the peer asks to release the association instead.

    Raises
    ------
    PeerUnreachable
        If none comes in time, or what comes cannot be read.
    """
    command, data = bytearray(), bytearray()
    elements: dict[int, bytes] | None = None
    while True:
        kind, body = wire.receive_pdu(deadline)
        if kind == pdu.RELEASE_RQ:
            return None
        if kind != pdu.P_DATA:
            told = aborted(body) if kind == pdu.ABORT else "the peer sent a PDU that is no message"
            raise PeerUnreachable(told)
        with readable():
            for piece in pdu.fragments(body):
                if piece.is_command is (elements is not None):
                    raise pdu.ProtocolFault("command set and data set out of order")
                (command if piece.is_command else data).extend(piece.data)
                if len(command) > pdu.LARGEST_COMMAND or len(data) > LARGEST_REQUEST:
                    raise pdu.ProtocolFault("a message is of ordinary size")
                if not piece.is_last:
                    continue
                if piece.is_command:
                    elements = pdu.elements(bytes(command))
                if not piece.is_command or not pdu.has_data(elements or {}):
                    return Message(
                        context_id=piece.context_id,
                        command=bytes(command),
                        elements=elements or {},
                        data=bytes(data),
                    )


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Whatever is wrong with what the peer sent ends the association."""
    try:
        yield
    except pdu.ProtocolFault as fault:
        raise PeerUnreachable(f"the peer's answer cannot be read: {fault}") from None


def aborted(body: bytes) -> str:
    """Who aborted, in words, from an A-ABORT without its header."""
    who = "the peer" if len(body) < 4 or body[2] == 0 else "the peer's protocol machine"
    reason = f", reason {body[3]}" if len(body) >= 4 and body[2] != 0 else ""
    return f"{who} aborted the association{reason}"
