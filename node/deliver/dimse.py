"""A PACS that takes C-STORE: one association for a derived series, one that is kept for originals, and one
outcome for each instance.

Each SOP class is proposed once for each transfer syntax that we could send it in: as stored, Explicit VR
Little Endian, and Implicit VR Little Endian, which every DICOM peer must take (PS3.5 10.1). What a peer
accepts is thus known before anything is sent, and an instance whose stored syntax it refuses is re-encoded
without loss, never sent as another SOP class.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node.config.network import TLS_SUITES
from node.config.schema import ClientTLS, DimseDestination
from node.deliver.destination import DAMAGED, Echo, OnOutcome, Stop, no_answer, refused
from node.deliver.parcel import Ahead, Body, MemoryBody, Parcel, ParcelDamaged, open_parcel
from node.deliver.pdu import VERIFICATION
from node.deliver.sender import MOST_CONTEXTS, Context, Peer, Sender, associate
from node.dicom.commitment import PUSH_MODEL
from node.dicom.status import Status, describe, storage_outcome
from node.dicom.transcode import J2K_LOSSLESS, transcode
from node.errors import AssociationRejected, DeliveryError, InstanceRefused, NodeError, PeerUnreachable
from node.model import Outcome

FALLBACKS = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
"""What every peer should take (PS3.5 10.1), in order of preference."""
_OFFERED = (*FALLBACKS, J2K_LOSSLESS)
"""What an instance is re-encoded to when its own syntax is refused, in order of preference; the last is for
archives that take compressed images only."""

_QUICK = 2 << 20
"""Bytes of a data set that are read, and not hashed, in next to no time."""

_IN_A_ROW = 3
"""So many transient refusals (A7xx) on end mean that the peer is full, not that an instance is odd."""


class NoContext(DeliveryError):
    """The peer took no presentation context in which this instance could be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """An instance read, checked and encoded for the context it goes out on."""

    context_id: int
    body: Body

    def close(self) -> None:
        self.body.close()


def peer_of(settings: DimseDestination, calling_ae: str) -> Peer:
    """Whom to call, from a destination's settings; ``calling_ae`` is ours where they name none.

    Raises
    ------
    PeerUnreachable
        If its TLS files cannot be read.
    """
    return Peer(
        host=settings.host,
        port=settings.port,
        called_ae=settings.ae_title,
        calling_ae=settings.calling_ae or calling_ae,
        max_pdu=settings.max_pdu,
        timeout_s=settings.timeout,
        tls=_tls(settings.tls) if settings.tls is not None else None,
    )


def _tls(settings: ClientTLS) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_SUITES)
    try:
        context.load_verify_locations(cafile=settings.authorities)
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.key, password="")
    except (OSError, ssl.SSLError) as error:
        raise PeerUnreachable(
            f"this destination's TLS files cannot be read ({type(error).__name__})",
            hint="Check `tls` of this destination: PEM files that the node may read, key without passphrase.",
        ) from None
    return context


def contexts_for(parcels: Iterable[Parcel]) -> dict[str, list[Context]]:
    """The presentation contexts to propose for each SOP class, fallbacks last."""
    wanted: dict[str, list[Context]] = {}
    for parcel in parcels:
        of_class = wanted.setdefault(parcel.sop_class_uid, [])
        context = (parcel.sop_class_uid, parcel.transfer_syntax_uid)
        if context not in of_class:
            of_class.append(context)
    for sop_class, of_class in wanted.items():
        of_class.extend((sop_class, syntax) for syntax in _OFFERED if (sop_class, syntax) not in of_class)
    return wanted


def associations(parcels: Sequence[Parcel]) -> Iterator[tuple[list[Context], list[Parcel]]]:
    """Split parcels into as few associations as their presentation contexts need.

    A derived series needs one. Order is kept within an association; a SOP class is never split.
    """
    wanted = contexts_for(parcels)
    groups: list[tuple[list[Context], set[str]]] = []
    for sop_class, contexts in wanted.items():
        contexts = contexts[:MOST_CONTEXTS]
        if not groups or len(groups[-1][0]) + len(contexts) > MOST_CONTEXTS:
            groups.append(([], set()))
        groups[-1][0].extend(contexts)
        groups[-1][1].add(sop_class)
    for contexts, classes in groups:
        yield contexts, [p for p in parcels if p.sop_class_uid in classes]


class Dimse:
    """Destination of kind ``dimse``.

    Parameters
    ----------
    settings
        As in config.yaml.
    calling_ae
        Our AE title where the settings name none.
    """

    def __init__(self, settings: DimseDestination, calling_ae: str) -> None:
        self._settings = settings
        self._calling_ae = calling_ae

    @property
    def endpoint(self) -> str:
        return f"{self._settings.ae_title}@{self._settings.address}"

    def send(
        self,
        parcels: Sequence[Parcel],
        *,
        on_outcome: OnOutcome,
        done: Set[str] = frozenset(),
        stop: Stop = lambda: False,
    ) -> None:
        """See :meth:`node.deliver.destination.Destination.send`.

        Raises
        ------
        PeerUnreachable, AssociationRejected
            As :func:`node.deliver.sender.associate`; PeerUnreachable also when the association was lost on
            the way. The instance under way then has the outcome "no answer".
        InstanceRefused
            If the peer said several times on end that it is out of resources.
        """
        line = self.line()
        line.send(parcels, on_outcome=on_outcome, done=done, stop=stop)
        line.close()

    def line(self) -> DimseLine:
        """The same over an association that stays open between sends."""
        return DimseLine(self._settings, self._calling_ae)

    def echo(self) -> Echo:
        """Ask by C-ECHO (PS3.7 9.1.5) whether it is there; never raises a DeliveryError."""
        start = time.monotonic()
        parts: list[tuple[str, float]] = []
        hint = doubt = ""
        classes = (VERIFICATION, PUSH_MODEL) if self._settings.commit else (VERIFICATION,)
        try:
            peer = peer_of(self._settings, self._calling_ae)
            sender = associate(peer, [(c, s) for c in classes for s in FALLBACKS])
            parts.append(("associate", time.monotonic() - start))
            offered = {accepted for accepted, _ in sender.accepted}
            if PUSH_MODEL in classes and PUSH_MODEL not in offered:
                doubt = (
                    "does not offer storage commitment, though `commit` is set: nothing there gets COMMITTED"
                )
            if VERIFICATION in offered:
                asked = time.monotonic()
                status = sender.echo()
                parts.append(("echo", time.monotonic() - asked))
                ok, text = status == 0, f"answers C-ECHO with {describe(status)}"
            else:
                # It is there and knows us, which is what was asked.
                ok, text = True, "accepts associations, though not Verification"
            sender.release()
        except AssociationRejected as error:
            # What it calls transient says that it is there, and busy: with a delivery of ours, it may be.
            ok, text, hint = error.retryable, error.message, error.hint
            text = f"is there, and takes no further association now: {text}" if ok else text
        except NodeError as error:
            ok, text, hint = False, error.message, error.hint
        seconds = time.monotonic() - start
        return Echo(ok=ok, seconds=seconds, text=text, hint=hint, doubt=doubt, parts=tuple(parts))


class DimseLine:
    """An association that is used again as long as it offers what is needed, and nothing went wrong on it.

    Parameters
    ----------
    settings, calling_ae
        As for :class:`Dimse`.
    """

    def __init__(self, settings: DimseDestination, calling_ae: str) -> None:
        self._settings = settings
        self._calling_ae = calling_ae
        self._sender: Sender | None = None
        self._offered: frozenset[Context] = frozenset()

    def send(
        self,
        parcels: Sequence[Parcel],
        *,
        on_outcome: OnOutcome,
        done: Set[str] = frozenset(),
        stop: Stop = lambda: False,
    ) -> None:
        """As :meth:`Dimse.send`. After trouble nothing of the association is used again (R30)."""
        missing = [p for p in parcels if p.sop_instance_uid not in done]
        for contexts, group in associations(missing):
            while group and not stop():
                sender = self._associated(contexts)
                try:
                    n_told = send_over(sender, group, on_outcome, stop)
                except BaseException:
                    self._sender = None
                    sender.abort()
                    raise
                group = group[n_told:]

    def close(self) -> None:
        """Release the association, if there is one."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.release()

    def _associated(self, contexts: Sequence[Context]) -> Sender:
        if self._sender is not None:
            if self._sender.is_idle and self._offered.issuperset(contexts):
                return self._sender
            self.close()
        sender = associate(peer_of(self._settings, self._calling_ae), contexts)
        self._sender, self._offered = sender, frozenset(contexts)
        return sender


def send_over(
    sender: Sender,
    parcels: Iterable[Parcel],
    on_outcome: OnOutcome,
    stop: Stop = lambda: False,
) -> int:
    """Send parcels over an association, in order; returns of how many of them something is known now.

    That is not all of them where ``stop`` says so, or where the peer ends the association between two of them: some
    take so many instances over one, and no more.
    """
    accepted = sender.accepted

    def is_quick(parcel: Parcel) -> bool:
        small = parcel.size - parcel.offset <= _QUICK and not parcel.sha256
        return small and (parcel.sop_class_uid, parcel.transfer_syntax_uid) in accepted

    with Ahead(parcels, lambda parcel: prepare(parcel, accepted), is_quick) as coming:
        return _send_each(sender, coming, on_outcome, stop)


def _send_each(sender: Sender, coming: Ahead[Parcel, Ready], on_outcome: OnOutcome, stop: Stop) -> int:
    in_a_row = n_answered = n_told = 0
    for parcel, ready in coming:
        uid = parcel.sop_instance_uid
        n_told += 1
        try:
            prepared = ready()
        except ParcelDamaged as error:
            on_outcome(refused(uid, DAMAGED, f"not sent: {error.message}"))
            continue
        except NoContext as error:
            on_outcome(refused(uid, Status.SOP_CLASS_NOT_SUPPORTED, error.message))
            continue
        if stop() or (n_answered and not sender.is_idle):
            prepared.close()
            return n_told - 1
        try:
            answer = sender.store(
                prepared.context_id, parcel.sop_class_uid, uid, prepared.body, meanwhile=coming.look
            )
        except PeerUnreachable as error:
            on_outcome(no_answer(uid, error.message))
            raise
        finally:
            prepared.close()
        n_answered += 1
        is_done, retryable = storage_outcome(answer.status)
        on_outcome(
            Outcome(
                sop_instance_uid=uid,
                status=answer.status,
                done=is_done,
                retryable=retryable,
                comment=answer.comment,
            )
        )
        in_a_row = in_a_row + 1 if retryable else 0
        if in_a_row == _IN_A_ROW:
            raise InstanceRefused(
                answer.status,
                f"the destination refuses one instance after the other ({describe(answer.status)})",
                retryable=True,
                hint="It may be out of space.",
            )
    return n_told


def prepare(parcel: Parcel, accepted: Mapping[Context, int]) -> Ready:
    """Read, check and if need be re-encode a parcel for one of the accepted contexts.

    Raises
    ------
    ParcelDamaged
        If the spooled bytes are not those that were stored.
    NoContext
        If no context takes it, or it cannot be re-encoded for one that does.
    """
    sop_class, stored = parcel.sop_class_uid, parcel.transfer_syntax_uid
    exact = accepted.get((sop_class, stored))
    if exact is not None:
        return Ready(context_id=exact, body=open_parcel(parcel))
    others = [(s, accepted[sop_class, s]) for s in _OFFERED if (sop_class, s) in accepted]
    if not others:
        raise NoContext(
            "the destination does not take this SOP class, in no transfer syntax that was offered"
        )
    open_parcel(parcel).close()  # its digest is of the bytes as stored: check those
    why = ""
    for syntax, context_id in others:
        try:
            data = transcode(parcel.path, parcel.offset, stored, syntax)
        except Exception as error:  # whatever a decoder throws concerns this instance alone
            why = type(error).__name__
            continue
        return Ready(context_id=context_id, body=MemoryBody(data))
    raise NoContext(f"it cannot be re-encoded without loss for this destination ({why})")
