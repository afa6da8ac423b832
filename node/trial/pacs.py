"""A small PACS to deliver to: for the demo, and for admins who want to try a rule without touching the real
one. Verification, Storage, and Query/Retrieve by FIND, MOVE and GET. It is no archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from node.deliver.dimse import FALLBACKS, NoContext, contexts_for, prepare
from node.deliver.parcel import Parcel
from node.deliver.sender import MOST_CONTEXTS, Context, Peer, Sender, associate
from node.dicom.ours import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dicom.part10 import file_meta
from node.dicom.scan import Ids, scan_uids
from node.dicom.status import Status
from node.dicom.transcode import transcode
from node.errors import DeliveryError, HeaderFault, NodeError
from node.log import get_logger
from node.receive.contexts import transfer_syntaxes
from node.trial.shelf import LEVELS, UNIQUE, Held, Shelf, answer

log = get_logger()

_FIND = (PatientRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelFind)
_MOVE = (PatientRootQueryRetrieveInformationModelMove, StudyRootQueryRetrieveInformationModelMove)
_GET = (PatientRootQueryRetrieveInformationModelGet, StudyRootQueryRetrieveInformationModelGet)
_STUDY_ROOT = frozenset(str(models[1]) for models in (_FIND, _MOVE, _GET))

_BACKLOG = 256
_PENDING, _CANCELLED, _UNABLE = 0xFF00, 0xFE00, 0xC000
_MISMATCH = 0xA900  # the identifier does not match the SOP class (PS3.4 C.4.1.1.4)


class Pacs:
    """A PACS that keeps what it is given in a folder.

    Parameters
    ----------
    folder
        Where instances are kept, one Part 10 file each; read anew at every start.
    ae_title
        Associations that call another AE title are rejected.
    host, port
        Where to listen; port 0 takes a free one, see :attr:`port`.
    move_to
        AE title -> ``"host:port"``: where C-MOVE may send to.
    on_stored
        Called with the SOP Instance UID of each new instance, from the thread of its association.
    """

    def __init__(
        self,
        folder: Path,
        ae_title: str = "PACS",
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        move_to: Mapping[str, str] | None = None,
        on_stored: Callable[[str], None] | None = None,
    ) -> None:
        self.shelf = Shelf(folder)
        self.ae_title = ae_title
        self.host = host
        self.port = port
        self._move_to = dict(move_to or {})
        self._on_stored = on_stored
        self._server: Any = None
        self._contexts: dict[str, PresentationContext] = {}

    def start(self) -> None:
        """Read the folder and listen.

        Raises
        ------
        OSError
            If the port is taken or the folder cannot be read.
        """
        _config.LOG_HANDLER_LEVEL = "none"  # its handlers tell what is in the data
        n = self.shelf.fill()
        ae = _MovingAE(ae_title=self.ae_title)
        ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.require_called_aet = True
        ae.maximum_associations = 100
        ae.maximum_pdu_size = 131072
        ae.network_timeout = 120
        self._contexts = _supported()
        ae.supported_contexts = [self._contexts[str(Verification)]]
        handlers = [
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_C_MOVE, self._on_move),
            (evt.EVT_C_GET, self._on_get),
        ]
        self._server = ae.start_server((self.host, self.port), block=False, evt_handlers=handlers)
        self._server.socket.listen(_BACKLOG)  # pynetdicom's five lose connections of a burst
        self.port = int(self._server.socket.getsockname()[1])
        log.info("pacs.started", ae_title=self.ae_title, port=self.port, instances=n)

    def stop(self) -> None:
        """Stop listening and abort what is under way; harmless when called twice."""
        if self._server is not None:
            server, self._server = self._server, None
            server.ae.shutdown()
            log.info("pacs.stopped", port=self.port)

    def __enter__(self) -> Pacs:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def uids(self) -> list[str]:
        """SOP Instance UIDs of what it holds, sorted."""
        return sorted(held.uid("IMAGE") for held in self.shelf.all())

    def series(self) -> dict[str, list[str]]:
        """Series Instance UID -> sorted SOP Instance UIDs."""
        found: dict[str, list[str]] = {}
        for held in self.shelf.all():
            found.setdefault(held.uid("SERIES"), []).append(held.uid("IMAGE"))
        return {uid: sorted(instances) for uid, instances in sorted(found.items())}

    def path(self, sop_instance_uid: str) -> Path | None:
        """The file of an instance, None if it is not there."""
        held = self.shelf.get(sop_instance_uid)
        return held.parcel.path if held is not None else None

    # what pynetdicom calls ------------------------------------------------------------------------

    def _on_requested(self, event: evt.Event) -> None:
        """Offer what this peer proposed: pynetdicom copies whatever is offered, 50 ms for all classes."""
        proposed = event.assoc.requestor.primitive.presentation_context_definition_list
        wanted = dict.fromkeys(str(context.abstract_syntax) for context in proposed)
        event.assoc.acceptor.supported_contexts = [self._contexts[w] for w in wanted if w in self._contexts]

    def _on_store(self, event: evt.Event) -> int:
        request, syntax = event.request, str(event.context.transfer_syntax)
        data = request.DataSet.getvalue()
        try:
            ids = scan_uids(data, syntax, final=True)
            assert isinstance(ids, Ids)
            sop_class = str(request.AffectedSOPClassUID)
            if ids.sop_instance_uid != str(request.AffectedSOPInstanceUID):
                return int(Status.DATA_SET_MISMATCH)
            part10 = file_meta(sop_class, ids.sop_instance_uid, syntax) + data
            is_new = self.shelf.put(part10, ids.sop_instance_uid, ids.series_uid)
        except HeaderFault as fault:
            return fault.status
        except OSError as error:
            log.error("pacs.store_failed", why=error.strerror)
            return int(Status.OUT_OF_RESOURCES)
        if is_new and self._on_stored is not None:
            self._on_stored(ids.sop_instance_uid)
        return int(Status.SUCCESS)

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        level = self._level(event, query)
        if level is None:
            yield _MISMATCH, None
            return
        for held, members in self.shelf.find(level, query):
            if event.is_cancelled:
                yield _CANCELLED, None
                return
            yield _PENDING, answer(self.shelf, level, query, held, members, self.ae_title)

    def _on_move(self, event: evt.Event) -> Iterator[Any]:
        where = self._move_to.get(str(event.move_destination).strip(), "")
        host, _, port = where.rpartition(":")
        chosen = self._chosen(event)
        if not host or chosen is None:
            yield None, None
            return
        parcels = {held.uid("IMAGE"): held.parcel for held in chosen}
        yield host.strip("[]"), int(port), {"parcels": parcels}
        yield len(chosen)
        for held in chosen:
            if event.is_cancelled:
                yield _CANCELLED, None
                return
            yield _PENDING, _named(held)

    def _on_get(self, event: evt.Event) -> Iterator[Any]:
        chosen = self._chosen(event)
        if chosen is None:
            yield 0
            return
        yield len(chosen)
        accepted = {
            (str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in event.assoc.accepted_contexts
        }
        for held in chosen:
            if event.is_cancelled:
                yield _CANCELLED, None
                return
            yield _PENDING, _loaded(held, accepted)

    def _level(self, event: evt.Event, query: Dataset) -> str | None:
        level = str(query.get("QueryRetrieveLevel", "") or "").strip()
        if level == "PATIENT" and str(event.context.abstract_syntax) in _STUDY_ROOT:
            return None
        return level if level in LEVELS else None

    def _chosen(self, event: evt.Event) -> list[Held] | None:
        """What a MOVE or GET names, by the unique keys of its level and of those above; None if nothing."""
        query = event.identifier
        level = self._level(event, query)
        if level is None or not str(query.get(UNIQUE[level], "") or ""):
            return None
        keys = Dataset()
        for one in LEVELS:
            if UNIQUE[one] in query:
                keys[UNIQUE[one]] = query[UNIQUE[one]]
            if one == level:
                break
        return [held for _, members in self.shelf.find(level, keys) for held in members]


def _supported() -> dict[str, PresentationContext]:
    """Every abstract syntax that the PACS serves -> its presentation context, in either role for storage."""
    every = list(transfer_syntaxes())
    found: dict[str, PresentationContext] = {}
    for context in AllStoragePresentationContexts:
        mine = build_context(context.abstract_syntax, every)
        mine.scu_role = mine.scp_role = True  # C-GET: the one who asks is the one who stores
        found[str(context.abstract_syntax)] = mine
    for service in (Verification, *_FIND, *_MOVE, *_GET):
        found[str(service)] = build_context(service, list(FALLBACKS))
    return found


def _named(held: Held) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = held.parcel.sop_class_uid
    ds.SOPInstanceUID = held.parcel.sop_instance_uid
    return ds


def _loaded(held: Held, accepted: set[Context]) -> Dataset:
    """An instance to be sent by C-GET, in a syntax that the peer accepted if that can be."""
    parcel = held.parcel
    sop_class = parcel.sop_class_uid
    if (sop_class, parcel.transfer_syntax_uid) not in accepted:
        for syntax in FALLBACKS:
            if (sop_class, syntax) in accepted:
                try:
                    data = transcode(parcel.path, parcel.offset, parcel.transfer_syntax_uid, syntax)
                except NodeError:
                    continue
                ds = read_dataset(BytesIO(data), UID(syntax).is_implicit_VR, True)
                ds.file_meta = FileMetaDataset()
                ds.file_meta.TransferSyntaxUID = UID(syntax)
                ds.set_original_encoding(UID(syntax).is_implicit_VR, True)
                return ds
    return dcmread(parcel.path)


class _Mover:
    """What pynetdicom's C-MOVE takes for an association: our sender, so that bytes go out as they are kept,
    and no response is lost between two threads."""

    def __init__(self, sender: Sender | None, parcels: Mapping[str, Parcel]) -> None:
        self._sender = sender
        self._parcels = parcels
        self.dul = self

    @property
    def is_established(self) -> bool:
        return self._sender is not None

    @property
    def socket(self) -> _Mover:
        return self

    def close(self) -> None:
        """Nothing is open when association was refused."""

    def release(self) -> None:
        if self._sender is not None:
            self._sender.release()

    def send_c_store(self, dataset: Dataset, msg_id: int, originator_aet: str, originator_id: int) -> Dataset:
        """Send one instance; the status is absent if there was no answer, as pynetdicom's would be."""
        assert self._sender is not None
        parcel = self._parcels[str(dataset.SOPInstanceUID)]
        status = Dataset()
        try:
            ready = prepare(parcel, self._sender.accepted)
        except NoContext:
            status.Status = int(Status.SOP_CLASS_NOT_SUPPORTED)
            return status
        try:
            response = self._sender.store(
                ready.context_id, parcel.sop_class_uid, parcel.sop_instance_uid, ready.body,
                (originator_aet, originator_id),
            )  # fmt: skip
            status.Status = response.status
        except DeliveryError as error:
            log.warning("pacs.move_broke_off", why=error.message)
        finally:
            ready.close()
        return status


class _MovingAE(AE):  # type: ignore[misc]  # pynetdicom is untyped to us
    """An AE whose outgoing associations, which only C-MOVE asks for, are our own."""

    def associate(self, addr: str, port: int, *, ae_title: str, parcels: Mapping[str, Parcel]) -> _Mover:
        contexts: Sequence[Context] = [c for one in contexts_for(parcels.values()).values() for c in one]
        peer = Peer(host=addr, port=port, called_ae=ae_title, calling_ae=str(self.ae_title))
        try:
            sender = associate(peer, contexts[:MOST_CONTEXTS])
        except DeliveryError as error:
            log.warning("pacs.move_failed", why=error.message)
            return _Mover(None, parcels)
        if not sender.accepted:
            sender.abort()
            return _Mover(None, parcels)
        return _Mover(sender, parcels)
