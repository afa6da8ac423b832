"""Scanners that ask for storage commitment, and PACS that are asked: by pynetdicom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    StorageCommitmentPushModel,
)

from node.config.schema import DimseDestination
from tests.peers import HOST, free_port, wait_until
from tests.scripted import dimse_settings
from tests.senders import CT

MODEL, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"


def request(transaction: str, uids: Sequence[str], sop_class: str = CT) -> Dataset:
    """Action Information of a request."""
    ds = Dataset()
    ds.TransactionUID = transaction
    ds.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        ds.ReferencedSOPSequence.append(item)
    return ds


@dataclass(frozen=True)
class Result:
    """What a scanner was told."""

    event: int
    transaction: str
    committed: frozenset[str]
    failed: Mapping[str, int]
    calling: str


@dataclass
class Scanner:
    """A requester. ``refuse``: so many results are answered with 0110H first."""

    ae_title: str = "CT1"
    refuse: int = 0
    results: list[Result] = field(default_factory=list)
    roles: list[tuple[Any, Any]] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    _server: Any = None

    def heard(self, event: Any) -> tuple[int, None]:
        """Handler of N-EVENT-REPORT."""
        if self.refuse:
            self.refuse -= 1
            return 0x0110, None
        ds = event.event_information
        failed = {i.ReferencedSOPInstanceUID: int(i.FailureReason) for i in ds.get("FailedSOPSequence", [])}
        good = frozenset(str(i.ReferencedSOPInstanceUID) for i in ds.get("ReferencedSOPSequence", []))
        calling = event.assoc.requestor.ae_title
        self.results.append(Result(int(event.event_type), str(ds.TransactionUID), good, failed, calling))
        context = event.assoc.accepted_contexts[0]
        self.roles.append((context.as_scu, context.as_scp))
        return 0, None

    def listen(self) -> None:
        """Listen for results, as the user of the service that is called."""
        ae = AE(ae_title=self.ae_title)
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        self._server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.heard)]
        )

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    @contextmanager
    def associated(self, port: int, called: str = "LUMINODE") -> Iterator[Any]:
        """An association for requests, on which results are heard too."""
        ae = AE(ae_title=self.ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        assoc = ae.associate(
            "127.0.0.1", port, ae_title=called, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.heard)]
        )
        try:
            yield assoc
        finally:
            if assoc.is_established:
                assoc.release()

    def ask(
        self, port: int, transaction: str, uids: Sequence[str], *, wait_s: float = 0.0, **more: Any
    ) -> int:
        """N-ACTION; the status. ``wait_s``: how long to wait on the association for a result."""
        with self.associated(port) as assoc:
            assert assoc.is_established
            status, _ = assoc.send_n_action(request(transaction, uids, **more), 1, MODEL, INSTANCE)
            if wait_s:
                n = len(self.results)
                wait_until(lambda: len(self.results) > n, wait_s, "a result on the association")
        return int(status.Status)

    def result(self, n: int = 1, within_s: float = 60.0) -> Result:
        """The ``n``-th result, waited for."""
        wait_until(lambda: len(self.results) >= n, within_s, f"{n} results")
        return self.results[n - 1]


@contextmanager
def listening(**more: Any) -> Iterator[Scanner]:
    """A scanner that listens for results inside the block."""
    one = Scanner(**more)
    one.listen()
    try:
        yield one
    finally:
        one.stop()


@dataclass
class Pacs:
    """A PACS by pynetdicom with storage commitment.

    ``answers``: on the association that asks, on one of its own, or not at all; ``aborts`` as soon as it has taken the
    request. ``lost``: instances of which it says that they are not there, until they come again.
    """

    answers: str
    calls: int = 0
    ae_title: str = "PACS"
    port: int = field(default_factory=free_port)
    stored: dict[str, int] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    roles: list[tuple[Any, Any]] = field(default_factory=list)
    status: int = 0

    def store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.stored[uid] = self.stored.get(uid, 0) + 1
        if self.stored[uid] > 1:
            self.lost.discard(uid)
        return 0

    def action(self, event: Any) -> tuple[int, None]:
        ds = event.action_information
        self.asked.append(str(ds.TransactionUID))
        return self.status, None

    def result(self, transaction: str, wanted: Mapping[str, str]) -> tuple[int, Dataset]:
        ds = Dataset()
        ds.TransactionUID = transaction
        good, bad = [], []
        for uid in wanted:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uid
            if uid in self.lost or uid not in self.stored:
                item.FailureReason = 0x0112
                bad.append(item)
            else:
                good.append(item)
        if good:
            ds.ReferencedSOPSequence = good
        if bad:
            ds.FailedSOPSequence = bad
        return (2 if bad else 1), ds

    def call(self, transaction: str, wanted: Mapping[str, str]) -> None:
        """Tell a result on an association of its own, in the role of the provider."""
        ae = AE(ae_title=self.ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        assoc = ae.associate(HOST, self.calls, ae_title="LUMINODE", ext_neg=[role])
        assert assoc.is_established
        self.roles += [(c.as_scu, c.as_scp) for c in assoc.accepted_contexts]
        event, ds = self.result(transaction, wanted)
        status, _ = assoc.send_n_event_report(ds, event, MODEL, INSTANCE)
        self.statuses.append(int(status.Status))
        assoc.release()

    @contextmanager
    def running(self) -> Iterator[Pacs]:
        wanted: dict[str, dict[str, str]] = {}

        def action(event: Any) -> tuple[int, None]:
            status, _ = self.action(event)
            ds = event.action_information
            named = {str(i.ReferencedSOPInstanceUID): CT for i in ds.ReferencedSOPSequence}
            wanted[str(ds.TransactionUID)] = named
            if self.answers == "early":
                told, result = self.result(str(ds.TransactionUID), named)
                event.assoc.send_n_event_report(result, told, MODEL, INSTANCE)
            return status, None

        def said(event: Any) -> None:
            if self.answers == "aborts" and self.asked and isinstance(event.pdu, P_DATA_TF):
                Thread(target=event.assoc.abort, daemon=True).start()

        def released(event: Any) -> None:
            if self.answers == "calls":
                for transaction in list(wanted):
                    self.call(transaction, wanted.pop(transaction))

        ae = AE(ae_title=self.ae_title)
        ae.add_supported_context(CTImageStorage)
        ae.add_supported_context(StorageCommitmentPushModel)
        handlers = [
            (evt.EVT_C_STORE, self.store), (evt.EVT_N_ACTION, action), (evt.EVT_RELEASED, released),
            (evt.EVT_PDU_SENT, said),
        ]  # fmt: skip
        server = ae.start_server((HOST, self.port), block=False, evt_handlers=handlers)
        try:
            yield self
        finally:
            server.shutdown()

    def settings(self, **more: Any) -> dict[str, Any]:
        whole = dimse_settings(self.port, self.ae_title, commit=True, commit_within=3600.0, **more)
        return DimseDestination.model_validate(whole).model_dump(mode="json", by_alias=True)
