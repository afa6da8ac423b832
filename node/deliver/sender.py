"""One association as the requestor: pynetdicom's PDUs negotiate it, our own bytes use it.

Why not pynetdicom's association itself: measured against DCMTK's storescp it sends at a fifth of storescu's
rate (objects, queues and 1 ms polling for each PDU), it waits for ever for a PACS that stops reading, and now
and then its reactor takes the response that ``send_c_store`` waits for. Here one thread owns the socket from
the first byte to the last: it writes a request, it reads the answer, every wait has an end, and once an
answer did not come the association is dropped and never used again.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import build_context
from pynetdicom.transport import AddressInformation

from node.deliver import pdu
from node.deliver.incoming import Message, aborted, read_message, readable
from node.deliver.parcel import Body, MemoryBody
from node.deliver.wire import Wire, connect
from node.dicom.ours import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.errors import AssociationRejected, PeerUnreachable

Context = tuple[str, str]
"""An abstract syntax (SOP class) and the one transfer syntax proposed for it."""

MOST_CONTEXTS = 128
"""Presentation context ids are the odd numbers of one byte (PS3.8 9.3.2.2)."""

SLOWEST_RATE = 32 * 1024
"""Bytes a second under which a peer is given up: an object's deadline is the time-out plus size / this."""

_WINDOW = 256 * 1024
_GATHERED = 4096
"""Smaller fragments are copied together: there would be more pieces than is worth while."""
_APPLICATION_CONTEXT = UID("1.2.840.10008.3.1.1.1")
_BUFFERED = 2 << 20
_RELEASE_S = 10.0
_SAID_S = 0.5

_REJECTED: Mapping[tuple[int, int], str] = {
    (1, 1): "no reason given",
    (1, 2): "it does not support the DICOM application context",
    (1, 3): "it does not know our AE title",
    (1, 7): "it has another AE title than the one we called",
    (2, 1): "no reason given by its protocol machine",
    (2, 2): "it does not support our protocol version",
    (3, 1): "it is congested",
    (3, 2): "it has reached its limit of associations",
}
"""(source, reason) of an A-ASSOCIATE-RJ (PS3.8 9.3.4)."""


OnEvent = Callable[[bytes], int]
"""Takes the data set of an N-EVENT-REPORT, gives the status to answer it with."""

_LOOK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Whom to call and how: AE titles, address, what we take at most in one PDU, patience in seconds.

    ``as_provider``: SOP classes for which we propose to be the SCP, though we call (PS3.7 D.3.3.4).
    """

    host: str
    port: int
    called_ae: str
    calling_ae: str
    max_pdu: int = 131072
    timeout_s: float = 30.0
    tls: ssl.SSLContext | None = None
    as_provider: tuple[str, ...] = ()


class Sender:
    """An established association. One thread, one request at a time (asynchronous operations are 1, 1).

    Use :func:`associate` to make one. ``accepted`` maps (SOP class, transfer syntax) to its context id.
    """

    def __init__(self, wire: Wire, peer: Peer, accepted: Mapping[Context, int], peer_maximum: int) -> None:
        self._wire = wire
        self._peer = peer
        self.accepted = accepted
        self.peer_maximum = peer_maximum
        self._fragment = pdu.fragment_size(peer_maximum)
        self._gathers = wire.gathers and self._fragment >= _GATHERED
        self._message_id = 0
        self._is_open = True
        step = self._fragment + pdu.HEADER
        self._n_slots = max(1, _WINDOW // step)
        self._buffer = memoryview(bytearray(self._n_slots * step))
        self._context_in_buffer = -1

    @property
    def is_open(self) -> bool:
        """False after release, abort, or any answer that did not come."""
        return self._is_open

    @property
    def is_idle(self) -> bool:
        """Whether it is open and the peer has said nothing since its last answer, such as that it goes."""
        return self._is_open and self._wire.is_quiet()

    def echo(self) -> int:
        """C-ECHO. Returns the status.

        Raises
        ------
        PeerUnreachable
            If no answer comes in time; the association is gone then.
        """
        context = next(i for (c, _), i in self.accepted.items() if c == pdu.VERIFICATION)
        message = self._next_message()
        deadline = time.monotonic() + self._peer.timeout_s
        with self._dropped_on_trouble():
            self._wire.send(pdu.command_pdus(context, pdu.echo_request(message), self._fragment), deadline)
            return self._answer(message, pdu.C_ECHO_RSP, deadline).status

    def store(
        self,
        context_id: int,
        sop_class_uid: str,
        sop_instance_uid: str,
        body: Body,
        originator: tuple[str, int] | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> pdu.Response:
        """C-STORE one encoded data set, whose transfer syntax is that of the context.

        Parameters
        ----------
        context_id
            One of ``accepted``'s values.
        body
            The data set without preamble and file meta information.
        originator
            AE title and message id of the C-MOVE that asked for this, if one did.
        meanwhile
            Called once all is written, while the peer is at work on it. The peer's time does not run meanwhile.

        Raises
        ------
        PeerUnreachable
            If the peer stops taking data, or no answer comes within the time-out plus the time that the
            object takes at :data:`SLOWEST_RATE`. What became of the object is then unknown, and the
            association is gone.
        """
        message = self._next_message()
        start = time.monotonic()
        deadline = start + self._peer.timeout_s + body.size / SLOWEST_RATE
        command = pdu.store_request(message, sop_class_uid, sop_instance_uid, originator)
        with self._dropped_on_trouble():
            opening = pdu.command_pdus(context_id, command, self._fragment)
            if isinstance(body, MemoryBody) and body.at_once and self._gathers:
                self._wire.gather([opening, *pdu.data_pdus(context_id, body.view, self._fragment)], deadline)
            else:
                self._wire.send(opening, deadline)
                self._send_body(context_id, body, deadline)
            # The last megabytes may still lie in buffers on the way when the last write returns.
            patience = self._peer.timeout_s + min(body.size, _BUFFERED) / SLOWEST_RATE
            patience = min(patience, deadline - time.monotonic())
            meanwhile()
            return self._answer(message, pdu.C_STORE_RSP, time.monotonic() + patience)

    def report(
        self, context_id: int, sop_class_uid: str, sop_instance_uid: str, event: int, data: bytes
    ) -> pdu.Response:
        """N-EVENT-REPORT with encoded Event Information. Raises PeerUnreachable as :meth:`store`."""
        message = self._next_message()
        deadline = time.monotonic() + self._peer.timeout_s + len(data) / SLOWEST_RATE
        command = pdu.event_report_request(message, sop_class_uid, sop_instance_uid, event)
        with self._dropped_on_trouble():
            self._wire.send(pdu.command_pdus(context_id, command, self._fragment), deadline)
            self._send_body(context_id, MemoryBody(data), deadline)
            return self._answer(message, pdu.N_EVENT_REPORT_RSP, deadline)

    def action(
        self,
        context_id: int,
        sop_class_uid: str,
        sop_instance_uid: str,
        action: int,
        data: bytes,
        on_event: OnEvent,
    ) -> pdu.Response:
        """N-ACTION with encoded Action Information. Raises PeerUnreachable as :meth:`store`.

        Parameters
        ----------
        on_event
            Given the data set of an N-EVENT-REPORT that comes before the answer; says with which status to answer it.
        """
        message = self._next_message()
        deadline = time.monotonic() + self._peer.timeout_s + len(data) / SLOWEST_RATE
        command = pdu.action_request(message, sop_class_uid, sop_instance_uid, action)
        with self._dropped_on_trouble():
            self._wire.send(pdu.command_pdus(context_id, command, self._fragment), deadline)
            self._send_body(context_id, MemoryBody(data), deadline)
            while True:
                got = self._message(deadline)
                if got is None:
                    raise PeerUnreachable("the peer released the association instead of answering")
                if pdu.field(got.elements) == pdu.N_EVENT_REPORT_RQ:
                    self._heard(got, on_event, deadline)
                    continue
                with readable():
                    answer = pdu.response(got.command)
                    if (answer.command, answer.responds_to) != (pdu.N_ACTION_RSP, message):
                        raise pdu.ProtocolFault("this answers another request")
                return answer

    def listen(self, for_s: float, on_event: OnEvent, stop: Callable[[], bool]) -> bool:
        """Wait for one N-EVENT-REPORT and answer it; False if none came in that many seconds.

        Raises
        ------
        PeerUnreachable
            If what comes cannot be read, or the association is lost.
        """
        until = time.monotonic() + for_s
        while self._wire.is_quiet():
            if time.monotonic() >= until or stop():
                return False
            time.sleep(_LOOK_S)
        with self._dropped_on_trouble():
            deadline = time.monotonic() + self._peer.timeout_s
            got = self._message(deadline)
            if got is None or pdu.field(got.elements) != pdu.N_EVENT_REPORT_RQ:
                return False
            self._heard(got, on_event, deadline)
        return True

    def _heard(self, got: Message, on_event: OnEvent, deadline: float) -> None:
        answer = pdu.event_report_response(got.elements, on_event(got.data))
        self._wire.send(pdu.command_pdus(got.context_id, answer, self._fragment), deadline)

    def _message(self, deadline: float) -> Message | None:
        """The next message of the peer; None if it releases the association instead."""
        got = read_message(self._wire, deadline)
        if got is None:
            self._is_open = False
            self._wire.send(pdu.RELEASE_RESPONSE, deadline)
            self._wire.close()
        return got

    def release(self) -> None:
        """End the association in order (PS3.8 9.3.6); a peer that does not answer is left."""
        if not self._is_open:
            return
        self._is_open = False
        deadline = time.monotonic() + min(self._peer.timeout_s, _RELEASE_S)
        with contextlib.suppress(PeerUnreachable):
            if self._wire.is_quiet() or not self._peer_ended_it():
                self._wire.send(pdu.RELEASE_REQUEST, deadline)
                while True:
                    kind, _ = self._wire.receive_pdu(deadline)
                    if kind == pdu.RELEASE_RQ:  # both asked at once (PS3.8 7.2.2.7)
                        self._wire.send(pdu.RELEASE_RESPONSE, deadline)
                    elif kind in (pdu.RELEASE_RP, pdu.ABORT):
                        break
        self._wire.close()

    def _peer_ended_it(self) -> bool:
        """Whether what the peer has said since its last answer is that it ends the association; agreed to then."""
        soon = time.monotonic() + _SAID_S
        try:
            kind, _ = self._wire.receive_pdu(soon)
        except PeerUnreachable:  # it said nothing to us, or it is gone
            return False
        if kind == pdu.RELEASE_RQ:
            self._wire.send(pdu.RELEASE_RESPONSE, soon)
        return kind in (pdu.RELEASE_RQ, pdu.ABORT)

    def abort(self) -> None:
        """Abort the association and close it."""
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(PeerUnreachable):
                self._wire.send(pdu.abort(), time.monotonic() + 1.0)
            self._wire.close()

    def _next_message(self) -> int:
        if not self._is_open:
            raise PeerUnreachable("this association has ended")
        self._message_id = self._message_id % 65535 + 1
        return self._message_id

    @contextlib.contextmanager
    def _dropped_on_trouble(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # In the middle of a PDU an A-ABORT would be taken for data: reset instead.
            self._is_open = False
            self._wire.close(drop=True)
            raise

    def _send_body(self, context_id: int, body: Body, deadline: float) -> None:
        fragment, step, size = self._fragment, self._fragment + pdu.HEADER, body.size
        buffer = self._buffer
        if context_id != self._context_in_buffer:
            header = pdu.fragment_header(context_id, fragment, is_command=False, is_last=False)
            for slot in range(self._n_slots):
                buffer[slot * step : slot * step + pdu.HEADER] = header
            self._context_in_buffer = context_id
        at = 0
        while at < size:
            piece = min(size - at, self._n_slots * fragment)
            n_slots = -(-piece // fragment)
            last = piece - (n_slots - 1) * fragment
            starts = [slot * step + pdu.HEADER for slot in range(n_slots)]
            slots = [buffer[s : s + fragment] for s in starts[:-1]] + [buffer[starts[-1] : starts[-1] + last]]
            body.fill(slots, at)
            at += piece
            if at == size:
                header = pdu.fragment_header(context_id, last, is_command=False, is_last=True)
                buffer[starts[-1] - pdu.HEADER : starts[-1]] = header
                self._context_in_buffer = -1
            self._wire.send(buffer[: starts[-1] + last], deadline)

    def _answer(self, message: int, command: int, deadline: float) -> pdu.Response:
        got = bytearray()
        while True:
            kind, body = self._wire.receive_pdu(deadline)
            if kind == pdu.ABORT:
                raise PeerUnreachable(aborted(body))
            if kind == pdu.RELEASE_RQ:
                raise PeerUnreachable("the peer released the association instead of answering")
            if kind != pdu.P_DATA:
                raise PeerUnreachable("the peer answered with another PDU than an answer")
            try:
                for piece in pdu.fragments(body):
                    if not piece.is_command or len(got) > pdu.LARGEST_COMMAND:
                        raise pdu.ProtocolFault("a response is a command set of ordinary size")
                    got += piece.data
                    if piece.is_last:
                        answer = pdu.response(bytes(got))
                        if (answer.command, answer.responds_to) != (command, message):
                            raise pdu.ProtocolFault("this answers another request")
                        return answer
            except pdu.ProtocolFault as fault:
                raise PeerUnreachable(f"the peer's answer cannot be read: {fault}") from None


def associate(peer: Peer, contexts: Iterable[Context]) -> Sender:
    """Connect and negotiate.

    Parameters
    ----------
    contexts
        At most :data:`MOST_CONTEXTS`, each with one transfer syntax: a peer that is given several picks
        one by its own taste, and what it would have taken besides is never learned.

    Returns
    -------
    Sender
        Its ``accepted`` may be empty: the peer was there and wants none of it.

    Raises
    ------
    PeerUnreachable
        If there is no connection or no readable answer within the time-out.
    AssociationRejected
        If the peer answers A-ASSOCIATE-RJ; ``retryable`` is whether it called that transient.
    """
    proposed = list(contexts)[:MOST_CONTEXTS]
    wire = connect(peer.host, peer.port, peer.timeout_s, peer.tls)
    try:
        return _negotiate(wire, peer, proposed)
    except BaseException:
        wire.close()
        raise


def _negotiate(wire: Wire, peer: Peer, proposed: list[Context]) -> Sender:
    requested = []
    for number, (abstract, transfer) in enumerate(proposed):
        context = build_context(abstract, transfer)
        context.context_id = 2 * number + 1
        requested.append(context)
    deadline = time.monotonic() + peer.timeout_s
    wire.send(_request(peer, requested), deadline)
    kind, body = wire.receive_pdu(deadline)
    if kind == pdu.ABORT:
        raise PeerUnreachable(aborted(body))
    if kind not in (pdu.ASSOCIATE_AC, pdu.ASSOCIATE_RJ):
        raise PeerUnreachable("the peer answered a request for an association with another PDU")
    if kind == pdu.ASSOCIATE_RJ:
        raise _rejected(bytes((kind, 0)) + len(body).to_bytes(4, "big") + body)
    try:
        answer = pdu.acceptance(body)
    except pdu.ProtocolFault as fault:
        with contextlib.suppress(PeerUnreachable):
            wire.send(pdu.abort(2, 6), deadline)
        raise PeerUnreachable(f"the peer's acceptance of an association cannot be read: {fault}") from None
    accepted = {
        context: 2 * number + 1
        for number, context in enumerate(proposed)
        if answer.contexts.get(2 * number + 1) == context[1]
    }
    return Sender(wire, peer, accepted, answer.maximum)


def _request(peer: Peer, requested: list[object]) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = _APPLICATION_CONTEXT
    primitive.calling_ae_title = peer.calling_ae
    primitive.called_ae_title = peer.called_ae
    nowhere = AddressInformation("127.0.0.1", 0)  # wanted by the primitive, not part of the PDU
    primitive.calling_presentation_address = primitive.called_presentation_address = nowhere
    primitive.presentation_context_definition_list = requested
    length = MaximumLengthNotification()
    length.maximum_length_received = peer.max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    primitive.user_information = [length, implementation, version, *map(_provider, peer.as_provider)]
    request = A_ASSOCIATE_RQ()
    request.from_primitive(primitive)
    return bytes(request.encode())


def _provider(sop_class_uid: str) -> SCP_SCU_RoleSelectionNegotiation:
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid = UID(sop_class_uid)
    role.scu_role, role.scp_role = False, True
    return role


def _rejected(raw: bytes) -> AssociationRejected:
    if len(raw) != 10:
        raise PeerUnreachable("the peer's rejection cannot be read")
    answer = A_ASSOCIATE_RJ()
    answer.decode(raw)
    result, source, reason = answer.result, answer.source, answer.reason_diagnostic
    words = _REJECTED.get((source, reason), "for a reason that the standard does not know")
    transient = result == 2
    return AssociationRejected(
        f"association rejected ({result}/{source}/{reason}): {words}",
        retryable=transient,
        hint="" if transient else "Ask the PACS administrator to admit this node's AE title and address.",
    )
