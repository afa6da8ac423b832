"""Scanners that ask for storage commitment: by pynetdicom, waiting on their association or listening elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from tests.peers import free_port, wait_until
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
