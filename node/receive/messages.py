"""The DIMSE messages of one association: C-STORE to the spool, C-ECHO answered, requests for storage commitment
written down, everything else refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from node.dicom.commitment import LARGEST_REQUEST
from node.dicom.status import Status
from node.errors import StoreError
from node.failpoints import failpoint
from node.log import get_logger
from node.model import Association
from node.receive.commands import C_ECHO_RQ, N_ACTION_RQ, N_EVENT_REPORT_RQ, Command, answer, as_pdus
from node.receive.commitment import Desk, Request
from node.receive.contexts import COMMITMENT, VERIFICATION
from node.receive.counts import REFUSED
from node.receive.house import House
from node.receive.intake import CONFLICT, DRAIN, Intake, Refusal, as_refusal, refuse_command
from node.receive.terms import Terms

log = get_logger()

_MOST_OWED: Final = 1000
"""Of these so many are remembered: one is enough to know that the peer was not done."""


@dataclass(slots=True)
class _Drain:
    """A message whose data set is thrown away; then it is answered, or not if there is no ``refused``."""

    command: Command
    refused: Refusal | None
    size: int = 0


_Message: TypeAlias = Intake | Request | _Drain


class TooMuch(Exception):
    """The peer sends without end: the association is to be aborted."""


class Messages:
    """Takes the messages that the wire finds.

    Parameters
    ----------
    house
        What all associations share.
    association
        The one whose messages these are.
    syntaxes
        Presentation context -> (abstract syntax, transfer syntax), of the accepted ones.
    largest_pdu
        The peer's Maximum Length, 0 if it has none.
    send
        Sends PDUs to the peer; raises OSError.

    Attributes
    ----------
    owed
        Instances that were refused and not taken since: the peer has more than we hold.
    only_asks
        Whether nothing can be stored here, by what was agreed to: no series is to wait for this association.
    """

    def __init__(
        self,
        house: House,
        association: Association,
        syntaxes: Mapping[int, tuple[str, str]],
        *,
        largest_pdu: int,
        send: Callable[[bytes], None],
    ) -> None:
        self._house = house
        self._association = association
        self._syntaxes = syntaxes
        self._largest_pdu = largest_pdu
        self._send = send
        self._open: dict[int, _Message] = {}
        self._asked: Terms | None = None
        self._may = False
        self._desk = next(
            (
                Desk(house, association, context_id=at, syntax=told[1], largest_pdu=largest_pdu, send=send)
                for at, told in syntaxes.items()
                if told[0] == COMMITMENT
            ),
            None,
        )
        self.only_asks = {abstract for abstract, _ in syntaxes.values()} <= {COMMITMENT, VERIFICATION}
        self.owed: set[str] = set()
        self.n_stored = self.n_refused = self.n_bytes = 0

    def command(self, context_id: int, command: Command) -> None:
        """A command set is complete."""
        abstract_syntax, transfer_syntax = self._syntaxes[context_id]
        if command.field == C_ECHO_RQ and abstract_syntax == VERIFICATION and not command.has_data:
            self._send(as_pdus(context_id, answer(command, Status.SUCCESS), self._largest_pdu))
            return
        message = self._message(command, abstract_syntax, transfer_syntax)
        if command.has_data:
            self._open[context_id] = message
        else:
            self._complete(context_id, message)

    def _message(self, command: Command, abstract_syntax: str, transfer_syntax: str) -> _Message:
        house = self._house
        terms = house.terms
        if command.is_store:
            try:
                wrong = refuse_command(
                    command,
                    abstract_syntax=abstract_syntax,
                    is_storage=abstract_syntax not in (VERIFICATION, COMMITMENT),
                    authorized=self._authorized(terms),
                    free=house.spool.free_bytes(),
                    refuse_below=terms.refuse_below,
                )
            except Exception as error:
                wrong = as_refusal(error)
            if wrong is not None:
                return _Drain(command, wrong)
            return Intake(house.spool, command, transfer_syntax, self._association, terms)
        if command.field in (N_ACTION_RQ, N_EVENT_REPORT_RQ) and abstract_syntax == COMMITMENT:
            return Request(command, transfer_syntax)
        if not command.is_request:  # C-CANCEL of nothing, or a response
            if self._desk is not None:
                self._desk.answered(command)
            return _Drain(command, None)
        return _Drain(command, Refusal(Status.UNRECOGNIZED_OPERATION, "operation is not supported"))

    def _authorized(self, terms: Terms) -> bool:
        """Whether the peer may still store: asked again only when the terms have changed."""
        if terms is not self._asked:
            self._asked = terms
            self._may = terms.node.peer(self._association.calling_ae, self._association.address)
        return self._may

    def data(self, context_id: int, pieces: Sequence[memoryview]) -> None:
        """Pieces of a data set. Raises TooMuch."""
        message = self._open[context_id]
        if type(message) is Intake:
            message.take(pieces)
            if message.refused is not None and message.hopeless:
                raise TooMuch
            return
        if type(message) is Request:
            message.take(pieces)
            if message.size > DRAIN * LARGEST_REQUEST:
                raise TooMuch
            return
        message.size += sum(map(len, pieces))
        if message.size > DRAIN * self._house.terms.max_instance:
            raise TooMuch

    def data_end(self, context_id: int) -> None:
        """A data set is complete."""
        self._complete(context_id, self._open.pop(context_id))

    def discard(self) -> bool:
        """The association ends: remove what is incomplete; True if there was anything."""
        was_open = bool(self._open)
        for message in self._open.values():
            if isinstance(message, Intake):
                message.discard()
        self._open.clear()
        if self._desk is not None:
            self._desk.leave()
        return was_open

    def idle(self) -> None:
        """The peer is silent between two messages: it may be told something. Raises OSError."""
        if self._desk is not None and not self._open:
            self._desk.look()

    def _complete(self, context_id: int, message: _Message) -> None:
        if isinstance(message, Intake):
            self._answer(context_id, message.command, self._store(message))
        elif isinstance(message, Request):
            if self._desk is not None and message.command.field == N_EVENT_REPORT_RQ:
                self._desk.hear(context_id, message)
            elif self._desk is not None:
                self._desk.answer(context_id, message, authorized=self._authorized(self._house.terms))
        elif message.refused is not None:
            self._answer(context_id, message.command, message.refused)

    def _store(self, intake: Intake) -> Refusal | None:
        """Make the instance durable: what is wrong with it, or None if it may be answered 0000H."""
        house = self._house
        try:
            recorded = house.commit.instance(intake.finish(house.clock()))
        except Refusal as wrong:
            return wrong
        except StoreError as error:
            log.error("instance.unrecorded", assoc=self._association.id, error=str(error))
            return as_refusal(error)
        except Exception as error:
            log.error("instance.failed", assoc=self._association.id, error=type(error).__name__)
            return as_refusal(error)
        self.n_bytes += intake.size
        return Refusal(*CONFLICT) if recorded.kind == "conflict_kept_first" else None

    def _answer(self, context_id: int, command: Command, wrong: Refusal | None) -> None:
        if wrong is None:
            self.n_stored += 1
            self.owed.discard(command.sop_instance_uid)
            response = answer(command, Status.SUCCESS)
        else:
            self.n_refused += 1
            if command.is_store:
                self._house.alarm.counts.add(REFUSED, f"{wrong.status:04X}")
            if len(self.owed) < _MOST_OWED:
                self.owed.add(command.sop_instance_uid)
            log.warning(
                "instance.refused",
                assoc=self._association.id,
                status=f"{wrong.status:04X}H",
                because=wrong.message,
            )
            response = answer(command, wrong.status, wrong.message)
        failpoint("receive.before_answer")
        self._send(as_pdus(context_id, response, self._largest_pdu))
        failpoint("receive.answered")
