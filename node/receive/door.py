"""One association, served by one thread: pynetdicom's state machine, our loop.

pynetdicom gives every association two threads that ask each other, and the socket, a thousand times a second
whether there is anything to do. Here its parts are kept (PDUs, the state machine of PS3.8 9.2, negotiation) and
its two loops are replaced by one that waits in the kernel. While the association is established, no byte of
P-DATA becomes an object of pynetdicom's: data sets go from the socket's buffer to the spool, and command sets are
read and answered here. What remains for it are requests, releases and aborts.

What pynetdicom leaves to the application is checked here: AE titles and addresses, that a context was
accepted, that command, context and data set speak of the same thing, lengths and times.
"""

from __future__ import annotations

import queue
import secrets
import socket
import time
from typing import Any, Final

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association as PynetdicomAssociation
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.pdu_primitives import A_ABORT, A_ASSOCIATE, A_P_ABORT, A_RELEASE

from node.log import get_logger
from node.model import Association, AssociationEnd
from node.receive import sockets, wire
from node.receive.associate import RequestError, tidy, untitled
from node.receive.counts import ACCEPTED, REJECTED
from node.receive.guard import plain
from node.receive.house import House
from node.receive.known import Accepted, Request
from node.receive.messages import Messages, TooMuch
from node.receive.pace import Pace
from node.receive.parts import Address, MonotonicTimer, lighten, loosen
from node.receive.terms import (
    BUSY,
    BUSY_ADDRESS,
    BUSY_TITLE,
    NO_SPACE,
    NO_TITLE,
    STOPPING,
    Rejection,
    Terms,
    admit,
    seats,
)

log = get_logger()

BUFFER: Final = 256 * 1024
FIRST_BUFFER: Final = 16 * 1024
"""Bytes read at once, for each association, and for each connection that is none yet."""

TICK_S: Final = 0.5
"""How often an association that waits looks whether the node is stopping."""

HANDSHAKE_S: Final = 9.0
"""How long a TLS handshake may take at most: whoever stalls in it is gone within ten seconds."""

LINGER_S: Final = 5.0
FAULT_LINGER_S: Final = 1.0
"""How long the peer may take to close after we released or rejected, and after we aborted: the ARTIM timer of
Sta13. Closing at once would make the kernel reset the connection under our last PDU."""

_ABORT: Final = b"\7\0\0\0\0\4\0\0\0\0"
"""A peer's A-ABORT as pynetdicom is given it: with a source that is none, its state machine would fail."""

_OPEN: Final = ("Sta2", "Sta6")
"""States in which what the peer sends is looked at: awaiting its request, and established (PS3.8 9.2)."""

_HANDLERS: Final = {event: (evt.get_default_handler(event), None) for event in evt._INTERVENTION_EVENTS}


class Door(PynetdicomAssociation):  # type: ignore[misc]
    """An association that a peer asks for. ``start()`` it, and it serves itself to its end.

    Parameters
    ----------
    ae
        pynetdicom's application entity.
    house
        What all associations share.
    sock, client, server
        The connected socket, and the address tuples of its two ends.
    """

    def __init__(
        self, ae: Any, house: House, sock: socket.socket, client: tuple[Any, ...], server: tuple[Any, ...]
    ) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        lighten(self)
        timeouts = house.terms.node.timeouts
        self.name = f"door:{client[0]}:{client[1]}"
        self.address: str = plain(client[0])
        self.identity: Association | None = None
        self._house = house
        self._sock = sock
        self.dul.artim_timer = MonotonicTimer(timeouts.acse)
        self.dul._idle_timer = MonotonicTimer(timeouts.network)
        self.requestor.address_info = Address(client)
        self.acceptor.address_info = Address(server)
        self._largest_pdu = house.terms.node.max_pdu
        self._wire = wire.Wire(self._largest_pdu)
        self._messages: Messages | None = None
        self._accepted: Accepted | None = None
        self._buffer = memoryview(b"")
        self._pace = Pace(
            pdu_s=timeouts.pdu, dimse_s=timeouts.dimse, network_s=timeouts.network, now=time.monotonic()
        )
        self._end: AssociationEnd | None = None
        self._because = ""
        self._untitled = ""
        self._began = time.monotonic()

    def _bind_defaults(self) -> None:
        """pynetdicom's default answers, and none of its handlers that write messages to the log."""
        self._handlers = dict(_HANDLERS)

    # the life of an association ---------------------------------------------------------------------

    def run_reactor(self) -> None:
        """The thread, from the TLS handshake to the end. The one boundary: nothing escapes it."""
        try:
            if self._secure():
                self._serve()
        except OSError as error:
            self._ended(AssociationEnd.LOST, f"the connection broke ({type(error).__name__})")
        except Exception as error:
            self._ended(AssociationEnd.ABORTED, f"a defect ({type(error).__name__})")
            log.error("assoc.failed", address=self.address, error=type(error).__name__)
        finally:
            self._leave()

    def _secure(self) -> bool:
        timeouts = self._house.terms.node.timeouts
        sockets.prepare(self._sock, timeouts.network)
        if self._house.tls is not None:
            try:
                self._sock = sockets.secured(self._sock, self._house.tls)
                sockets.handshake(self._sock, min(timeouts.acse, HANDSHAKE_S))
            except (OSError, ValueError) as error:
                self._house.alarm.tell(
                    "tls.refused", event=True, address=self.address, error=type(error).__name__
                )
                return False
        self.set_socket(sockets.DoorSocket(self, self._sock, send_s=timeouts.network))  # Evt5
        return True

    def _serve(self) -> None:
        self._pump()  # AE-5: ARTIM starts, Sta2
        self._buffer = memoryview(bytearray(FIRST_BUFFER))
        while self._state in _OPEN and not self._out_of_time():
            n_bytes = self.dul.socket.read(self._buffer)
            if n_bytes > 0:
                self._heard(self._buffer[:n_bytes])
            elif n_bytes == 0:
                self._ended(AssociationEnd.LOST, "the peer closed the connection")
                self._event("Evt17")  # AA-4, AA-5
            else:
                if self._messages is not None and not self._wire.in_message and not self._wire.partial:
                    self._messages.idle()
                self.dul.socket.wait(min(TICK_S, self._pace.wait_s(time.monotonic())))
        self._conclude()  # before the peer has closed, which may take it a while
        self._linger()

    def _heard(self, view: memoryview) -> None:
        for happening in self._wire.feed(view):
            self._happened(happening)
            if self._state not in _OPEN:
                return
        wire_ = self._wire
        self._pace.heard(
            time.monotonic(),
            len(view),
            pdus=wire_.pdus,
            partial=wire_.partial,
            in_message=wire_.in_message,
        )

    def _happened(self, happening: wire.Happening) -> None:
        messages = self._messages
        try:
            if type(happening) is wire.Data and messages is not None:
                messages.data(happening.context_id, happening.pieces)
            elif type(happening) is wire.DataEnd and messages is not None:
                messages.data_end(happening.context_id)
                self._pace.message_ended(time.monotonic())
            elif type(happening) is wire.CommandSet and messages is not None:
                messages.command(happening.context_id, happening.command)
            elif type(happening) is wire.Pdu:
                self._pdu(happening)
            elif type(happening) is wire.Fault:
                self._fault(happening)
        except TooMuch:
            self._give_up("a data set without end", AssociationEnd.ABORTED)

    def _out_of_time(self) -> bool:
        """End the association if the peer is too slow or the node is stopping."""
        now = time.monotonic()
        if self._state == "Sta2" and self.dul.artim_timer.expired:
            self._because = "no association request in time"
            self._event("Evt18")  # AA-2
            return True
        late = self._pace.late(now)
        if late:
            self._give_up(late, AssociationEnd.LOST)
            return True
        stop_at = self._house.stop_at
        idle = not self._wire.in_message and not self._wire.partial
        if stop_at is not None and (idle or now >= stop_at):
            self._give_up("the node is stopping", AssociationEnd.ABORTED)
            return True
        return False

    def _linger(self) -> None:
        """Sta13: read and forget until the peer closes, or it has had its time."""
        fault = self.is_aborted
        until = time.monotonic() + (FAULT_LINGER_S if fault else LINGER_S)
        while self._state == "Sta13":
            left = until - time.monotonic()
            if left <= 0 or self._house.stop_at is not None:
                self._event("Evt18")  # AA-2
            elif self.dul.socket.read(self._buffer) == 0:
                self._event("Evt17")  # AR-5
            else:
                self.dul.socket.wait(min(left, TICK_S))

    def _ended(self, end: AssociationEnd, because: str) -> None:
        """How the association ended; the first reason counts."""
        if self._end is None:
            self._end, self._because = end, because

    def _conclude(self) -> None:
        """The association is over: what it had begun is removed, and its end is on record."""
        messages, identity = self._messages, self.identity
        self._messages = None
        if messages is None:
            return
        self._house.gate.unseat(self)
        messages.discard()
        if identity is not None:
            end = self._end or AssociationEnd.LOST
            if not messages.only_asks:
                self._house.commit.ended(identity.id, end, self._house.clock())
            log.info(
                "assoc.ended",
                assoc=identity.id,
                calling_ae=identity.calling_ae,
                address=self.address,
                end=str(end),
                because=self._because,
                stored=messages.n_stored,
                refused=messages.n_refused,
                megabytes=round(messages.n_bytes / 1e6, 1),
                seconds=round(time.monotonic() - self._began, 2),
            )

    def _leave(self) -> None:
        """Whatever happened: no file, socket, count or buffer stays behind."""
        self._conclude()
        self._buffer = memoryview(b"")
        wrapped = self.dul.socket
        if wrapped is not None:
            wrapped._shutdown_socket()
        sockets.close(self._sock)
        self._house.gate.leave(self)
        loosen(self)

    def cut(self) -> None:
        """Break the connection from another thread: its own sees that it ended."""
        sockets.cut(self._sock)

    # pynetdicom's machinery -------------------------------------------------------------------------

    @property
    def _state(self) -> str:
        return str(self.dul.state_machine.current_state)

    def _event(self, event: str) -> None:
        self.dul.event_queue.put(event)
        self._pump()

    def _pump(self) -> None:
        """Let the state machine do what is queued: what happened first, then our own primitives."""
        dul = self.dul
        while not dul._kill_thread:
            try:
                event = dul.event_queue.get_nowait()
            except queue.Empty:
                if not dul._process_recv_primitive():
                    return
                continue
            dul.state_machine.do_action(event)

    def abort(self, block: bool = True) -> None:
        """What pynetdicom's services call when a message makes no sense to them."""
        self._give_up("a message was not understood", AssociationEnd.ABORTED)

    _abort_blocking = _abort_nonblocking = abort

    def _pdu(self, pdu: wire.Pdu) -> None:
        """A PDU that is not P-DATA-TF: decode it, and let the state machine act."""
        raw = pdu.raw
        decoded: Any
        try:
            if pdu.kind == wire.ASSOCIATE_RQ:
                decoded, event = self._request(raw), "Evt6"
            else:
                raw = _ABORT if pdu.kind == wire.ABORT else raw
                decoded, event = self.dul._decode_pdu(bytearray(raw))
        except Exception as error:
            told = str(error) if isinstance(error, RequestError) else type(error).__name__
            self._fault(wire.Fault(wire.Reason.INVALID_PARAMETER, f"PDU: {told}"))
            return
        self.dul._recv_pdu.put(decoded)
        self._event(event)
        indicated = self.dul.receive_pdu(wait=False)
        if isinstance(indicated, A_ASSOCIATE):
            self._requested(indicated, raw)
        elif isinstance(indicated, A_RELEASE):
            self._released()
        elif isinstance(indicated, A_ABORT | A_P_ABORT):
            self._ended(AssociationEnd.ABORTED, "the peer aborted")

    def _request(self, raw: bytes) -> Request:
        """An A-ASSOCIATE-RQ: what cannot be one has to fail here, not inside the state machine."""
        terms = self._house.terms
        self._accepted = self._house.known.get(raw, terms)
        if self._accepted is not None:
            return self._accepted.request
        decoded, _ = self.dul._decode_pdu(bytearray(tidy(raw)))
        self._untitled = untitled(raw)
        # A receiver of version 1 tests its bit alone (PS3.8 9.3.2); pynetdicom wants no other one to be set.
        return Request(decoded.to_primitive(), decoded.protocol_version & 1)

    def _fault(self, fault: wire.Fault) -> None:
        """The peer broke the protocol."""
        known = self.identity
        who = {"calling_ae": known.calling_ae} if known is not None else {}  # else it may be anybody
        self._house.alarm.tell(
            "assoc.fault", event=known is not None, address=self.address, **who, because=fault.because
        )
        self._give_up(fault.because, AssociationEnd.ABORTED, fault.reason)

    def _give_up(self, because: str, end: AssociationEnd, reason: int | None = None) -> None:
        """Abort: as the service's user, or as its provider with a reason (PS3.8 9.3.8)."""
        self._ended(end, because)
        self.is_aborted, self.is_established = True, False
        if self._state == "Sta2":
            self._event("Evt19" if reason is not None else "Evt18")  # AA-1 or AA-2
            return
        if self._state != "Sta6":
            return
        if reason is None:
            primitive: Any = A_ABORT()
            primitive.abort_source = 0
        else:
            primitive = A_P_ABORT()
            primitive.provider_reason = int(reason)
        self.dul.send_pdu(primitive)
        self._pump()  # AA-1

    # association control ----------------------------------------------------------------------------

    def _requested(self, request: Any, raw: bytes) -> None:
        """A-ASSOCIATE indication: reject, or negotiate and be ready."""
        house, terms = self._house, self._house.terms
        self.requestor.primitive = request
        calling, called = request.calling_ae_title.strip(" "), request.called_ae_title.strip(" ")
        rejection = self._admit(terms, calling, called, request)
        if rejection is not None:
            self.acse.send_reject(rejection.result, rejection.source, rejection.reason)
            self._pump()  # AE-8
            titles = {"calling_ae": calling, "called_ae": called}
            because = rejection.because
            house.alarm.counts.add(REJECTED, because)
            house.alarm.tell("assoc.rejected", event=True, address=self.address, **titles, because=because)
            return
        accepted = self._accept(request, terms, raw)
        if self._state != "Sta6":
            return
        self.identity = Association(
            id=secrets.token_hex(16),
            calling_ae=calling,
            called_ae=called,
            address=self.address,
            opened_at=house.clock(),
        )
        self._messages = Messages(
            house,
            self.identity,
            accepted.syntaxes,
            largest_pdu=self.requestor.maximum_length or 0,
            send=self.dul.socket.send_all,
        )
        self._wire.establish(frozenset(accepted.syntaxes))
        self._buffer = memoryview(bytearray(BUFFER))
        if not self._messages.only_asks:
            house.commit.opened(self.identity)
        house.alarm.counts.add(ACCEPTED)
        log.debug("assoc.accepted", assoc=self.identity.id, calling_ae=calling, address=self.address)

    def _accept(self, request: Any, terms: Terms, raw: bytes) -> Accepted:
        """Negotiate and send the A-ASSOCIATE-AC, or send again what was negotiated with the same request."""
        accepted = self._accepted
        same_pdus = self._largest_pdu == terms.node.max_pdu  # else the terms changed since the peer connected
        if accepted is not None and accepted.terms is terms and same_pdus:
            self.dul.socket.send(accepted.answer)
            self.dul.state_machine.transition("Sta6")  # AE-7
            self.is_established = True
            self._pump()
            return accepted
        self.acceptor.maximum_length = self._largest_pdu
        self.acceptor.ae_title = terms.node.ae_title
        self.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        self.acceptor.implementation_version_name = self.ae.implementation_version_name
        self.acceptor.supported_contexts = terms.contexts.supported(
            request.presentation_context_definition_list,
            tells=request.calling_ae_title.strip(" ") in terms.committers,
        )
        self.acse.negotiate_association()
        self._pump()  # AE-7
        accepted = Accepted(
            request=Request(request),
            terms=terms,
            answer=A_ASSOCIATE_AC(self.acceptor.primitive).encode(),
            syntaxes={
                cx.context_id: (str(cx.abstract_syntax), str(cx.transfer_syntax[0]))
                for cx in self.accepted_contexts
            },
        )
        if same_pdus:
            self._house.known.keep(raw, accepted)
        return accepted

    def _admit(self, terms: Terms, calling: str, called: str, request: Any) -> Rejection | None:
        if self._house.stop_at is not None:
            return STOPPING
        if self._untitled:
            return NO_TITLE[self._untitled]
        rejection = admit(
            terms.node,
            calling_ae=calling,
            called_ae=called,
            address=self.address,
            context=str(request.application_context_name or ""),
            tells=calling in terms.committers
            and terms.contexts.only_reports(request.presentation_context_definition_list),
        )
        if rejection is not None:
            return rejection
        if terms.contexts.for_storage(request.presentation_context_definition_list) and not self._has_room():
            return NO_SPACE
        full = self._house.gate.establish(
            self,
            calling,
            per_title=seats(terms.node, calling, self.address),
            per_address=terms.node.max_associations_per_address,
            in_all=terms.node.max_associations,
        )
        return {"address": BUSY_ADDRESS, "title": BUSY_TITLE, "all": BUSY}.get(full)

    def _has_room(self) -> bool:
        try:
            return self._house.spool.free_bytes() >= self._house.terms.reject_below
        except OSError:  # each C-STORE will be told what that means
            return True

    def _released(self) -> None:
        """A-RELEASE indication: agree. Evidence that the peer had no more, unless something was cut off."""
        self._house.gate.unseat(self)  # before it is told: it may come again at once
        cut_off = self._messages is not None and self._messages.discard()
        self.acse.send_release(is_response=True)
        self._pump()  # AR-4
        self.is_released, self.is_established = True, False
        if cut_off:
            self._ended(AssociationEnd.ABORTED, "released inside a message")
        elif self._messages is not None and self._messages.owed:
            self._ended(AssociationEnd.INCOMPLETE, "released, after a refusal")
        else:
            self._ended(AssociationEnd.RELEASED, "")
