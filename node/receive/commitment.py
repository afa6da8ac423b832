"""Storage commitment at the door (PS3.4 J): a request is written down and answered; the result comes later.

Who listens somewhere is told there, by the deliverer. A peer of which no address is known is told on an association
that it has open: the one that it asked on, while it waits there, or the next one that it opens for the purpose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from node.dicom.commitment import (
    LARGEST_REQUEST,
    PUSH_INSTANCE,
    PUSH_MODEL,
    REQUEST,
    ActionStatus,
    read_report,
    read_request,
    report,
)
from node.errors import ReceiveError, StoreError
from node.failpoints import failpoint
from node.log import get_logger
from node.model import Association, Commitment, CommitmentState
from node.receive.commands import Command, answer, as_pdus, event_report
from node.receive.house import House
from node.receive.terms import Terms, pinned, report_to
from node.store import owners

log = get_logger()

LEASE_S: Final = 300.0
"""Longer than an association may be silent."""

_LOOK_S: Final = 0.4
"""How often a silent association looks for a result."""

_AGAIN_S: Final = 30.0
"""After a peer did not take a result on an association of its own."""


class Request:
    """An N-ACTION-RQ whose data set is coming; no more of it is kept than a request may have.

    Attributes
    ----------
    size
        Bytes that came.
    """

    __slots__ = ("_data", "command", "size", "syntax")

    def __init__(self, command: Command, syntax: str) -> None:
        self.command = command
        self.syntax = syntax
        self.size = 0
        self._data = bytearray()

    def take(self, pieces: Sequence[memoryview]) -> None:
        """The next bytes of the data set."""
        self.size += sum(map(len, pieces))
        if self.size <= LARGEST_REQUEST:
            for piece in pieces:
                self._data += piece

    def data(self) -> bytes:
        """The whole data set.

        Raises
        ------
        ReceiveError
            There is none, or it is too long.
        """
        if not self.command.has_data or not self.size:
            raise ReceiveError(ActionStatus.INVALID_ARGUMENT, "Action Information is missing")
        if self.size > LARGEST_REQUEST:
            raise ReceiveError(ActionStatus.RESOURCE_LIMITATION, "the request is longer than this node takes")
        return bytes(self._data)


class Desk:
    """Storage commitment on one association.

    Parameters
    ----------
    house
        What all associations share.
    association
        The one that it is on.
    context_id, syntax
        The presentation context of the service, for results, and its transfer syntax.
    largest_pdu
        The peer's Maximum Length, 0 if it has none.
    send
        Sends PDUs to the peer; raises OSError.
    """

    def __init__(
        self,
        house: House,
        association: Association,
        *,
        context_id: int,
        syntax: str,
        largest_pdu: int,
        send: Callable[[bytes], None],
    ) -> None:
        self._house = house
        self._association = association
        self._context_id, self._syntax = context_id, syntax
        self._largest_pdu = largest_pdu
        self._send = send
        self._owner = f"{owners.me('receive')}/{association.id}"[:128]
        self._message = 0
        self._telling: Commitment | None = None
        # Not at once: some requestors (pynetdicom) abort when a message comes together with the acceptance.
        self._look_at = time.monotonic() + _LOOK_S

    def answer(self, context_id: int, request: Request, *, authorized: bool) -> None:
        """Write a request down, and only then say that it was taken."""
        command, comment = request.command, ""
        try:
            self._take(request, authorized=authorized)
            status = 0
        except ReceiveError as refused:
            status, comment = refused.status, refused.message
        except StoreError as error:
            log.error("commitment.unrecorded", assoc=self._association.id, error=str(error))
            status, comment = ActionStatus.RESOURCE_LIMITATION, "storage failed, try again later"
        except Exception as error:
            log.error("commitment.failed", assoc=self._association.id, error=type(error).__name__)
            status, comment = ActionStatus.PROCESSING_FAILURE, "processing failure"
        if status:
            log.warning(
                "commitment.refused", assoc=self._association.id, status=f"{status:04X}H", because=comment
            )
        failpoint("receive.before_action_answer")
        self._send(as_pdus(context_id, answer(command, status, comment), self._largest_pdu))
        failpoint("receive.action_answered")

    def _take(self, request: Request, *, authorized: bool) -> None:
        terms, command, association = self._house.terms, request.command, self._association
        _refuse_command(command, terms, authorized=authorized)
        asked = read_request(request.data(), request.syntax)
        now, settings = self._house.clock(), terms.node.commitment
        assert terms.promise is not None
        there = report_to(
            terms,
            calling_ae=association.calling_ae,
            called_ae=association.called_ae,
            address=association.address,
        )
        taken = self._house.commitments.ask(
            asked.transaction_uid,
            asked.references,
            calling_ae=association.calling_ae,
            called_ae=association.called_ae,
            address=association.address,
            promise=terms.promise,
            report_to=there,
            at=now,
            answer_by=now + timedelta(seconds=settings.answer_within),
            give_up_at=now + timedelta(seconds=settings.tell_for),
        )
        if not taken:
            raise ReceiveError(
                ActionStatus.DUPLICATE_TRANSACTION, "Transaction UID is in use for another request"
            )
        log.info(
            "commitment.asked",
            assoc=association.id,
            transaction=asked.transaction_uid,
            instances=len(asked.references),
            tells=there["address"]["host"] if there is not None else "on its association",
        )

    def hear(self, context_id: int, request: Request) -> None:
        """A destination tells what it commits to: it is on record before it is answered.

        Who tells is not asked: only the one that was asked knows the Transaction UID.
        """
        command, comment = request.command, ""
        try:
            told = read_report(request.data(), request.syntax)
            what = self._house.pledges.result(told, self._house.clock())
            status = 0
            if what == "unknown":
                status, comment = ActionStatus.INVALID_ARGUMENT, "Transaction UID is not known here"
            log.info(
                "pledge.heard",
                assoc=self._association.id,
                transaction=told.transaction_uid,
                failed=len(told.failed),
                outcome=what,
            )
        except ReceiveError as refused:
            status, comment = refused.status, refused.message
        except StoreError as error:
            log.error("pledge.store_failed", assoc=self._association.id, why=str(error))
            status, comment = ActionStatus.RESOURCE_LIMITATION, "storage failed, try again later"
        except Exception as error:
            log.error("pledge.failed", assoc=self._association.id, error=type(error).__name__)
            status, comment = ActionStatus.PROCESSING_FAILURE, "processing failure"
        failpoint("receive.before_report_answer")
        self._send(as_pdus(context_id, answer(command, status, comment), self._largest_pdu))

    def look(self) -> None:
        """The peer is silent: tell it a result that is there, if nobody else is to. Raises OSError."""
        now = time.monotonic()
        if self._telling is not None or now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        commitments, at = self._house.commitments, self._house.clock()
        title, address = self._association.calling_ae, self._association.address
        # A title alone is no evidence of who is there: unless it is pinned, the result is for who asked from here.
        known = pinned(self._house.terms.node, title, address)
        try:
            one = commitments.claim(
                CommitmentState.READY,
                self._owner,
                LEASE_S,
                at,
                calling_ae=title,
                address=None if known else address,
            )
            if one is None or commitments.again(one, self._owner, at):
                return
        except StoreError as error:
            log.error("commitment.unread", assoc=self._association.id, error=str(error))
            return
        self._telling = one
        self._message = self._message % 65535 + 1
        event, data = report(one.transaction_uid, one.references, one.failed, self._syntax)
        command = event_report(self._message, PUSH_MODEL, PUSH_INSTANCE, event)
        self._send(
            as_pdus(self._context_id, command, self._largest_pdu)
            + as_pdus(self._context_id, data, self._largest_pdu, is_command=False)
        )

    def answered(self, command: Command) -> bool:
        """A response: whether it was to what was told here."""
        one = self._telling
        if one is None or command.answers != self._message:
            return False
        if command.status == 0:
            self._telling = None
            self._note(lambda: self._house.commitments.told(one.id, self._owner, self._house.clock()))
            log.info(
                "commitment.told",
                assoc=self._association.id,
                transaction=one.transaction_uid,
                failed=len(one.failed),
            )
        else:
            self.leave(f"the peer answered {max(command.status, 0):04X}H")
        return True

    def leave(self, because: str = "the peer left before it answered") -> None:
        """What was not answered is told another time."""
        one, self._telling = self._telling, None
        if one is not None:
            until = self._house.clock() + timedelta(seconds=_AGAIN_S)
            self._note(lambda: self._house.commitments.later(one, self._owner, until, because, tried=True))

    def _note(self, write: Callable[[], object]) -> None:
        try:
            write()
        except StoreError as error:  # its lease ends by itself, and it is told once more
            log.error("commitment.unrecorded", assoc=self._association.id, error=str(error))


def _refuse_command(command: Command, terms: Terms, *, authorized: bool) -> None:
    if not authorized or terms.promise is None:
        raise ReceiveError(ActionStatus.NOT_AUTHORIZED, "storage commitment is not offered to this peer")
    if command.sop_class_uid != PUSH_MODEL:
        raise ReceiveError(ActionStatus.NO_SUCH_CLASS, "SOP class is not that of the presentation context")
    if command.sop_instance_uid != PUSH_INSTANCE:
        raise ReceiveError(ActionStatus.NO_SUCH_INSTANCE, "there is one instance, the well-known one")
    if command.action != REQUEST:
        raise ReceiveError(ActionStatus.NO_SUCH_ACTION, "there is one action, Request Storage Commitment")
