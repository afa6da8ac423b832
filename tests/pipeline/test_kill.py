"""kill -9 of the whole process tree at the worst moments: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from node.deliver.files import FileOutcome, send_files
from node.model import JobState
from node.trial.phantoms import write_series
from tests.faults.ledger import record
from tests.peers import OrthancPeer, wait_until
from tests.phantoms import small_ct
from tests.pipeline.conftest import MakeNode
from tests.pipeline.harness import Node
from tests.pipeline.test_main_job import scanner, settled

pytestmark = pytest.mark.peer

N = 40


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_series(small_ct(seed=11, n_slices=N, size=192, noise_hu=15.0), tmp_path / "ct")


def everything_once(node: Node, orthanc: OrthancPeer, when: str) -> None:
    wait_until(lambda: settled(node, None) and len(orthanc.uids()) >= N, 120, "the series is delivered")
    with node.store() as store:
        assert store.series.counts()
        n_held = sum(s.count for s in store.series.list())
        found = store.reconcile.fsck(verify=True)
        chain = store.provenance.verify()
    uids = [uid for series in orthanc.series().values() for uid in series]
    record(
        "R1",
        load=f"{when} of the whole process tree of luminode serve, started again; Orthanc",
        count=1,
        result=f"{n_held} of {N} held, {len(uids)} of {N} at the PACS in {len(orthanc.series())} series",
        ok=n_held == N == len(uids) and len(orthanc.series()) == 1 and found.ok and chain.ok,
        lost=max(0, N - len(uids)),
        extra=max(0, len(uids) - N),
    )
    assert n_held == N
    assert found.ok, found
    assert chain.ok
    ((_, uids),) = orthanc.series().items()
    assert len(uids) == N


def test_in_the_middle_of_receiving(nodes: MakeNode, orthanc: OrthancPeer, files: list[Path]) -> None:
    node = nodes(quiet_after="10s")
    acknowledged: set[str] = set()
    halfway = threading.Event()

    def tell(outcome: FileOutcome) -> None:
        if outcome.done:
            acknowledged.add(outcome.sop_instance_uid)
        if len(acknowledged) >= N // 2:
            halfway.set()

    peer = {"kind": "dimse", "ae_title": "LUMINODE", "address": f"127.0.0.1:{node.port}", "timeout": 5}
    sending = threading.Thread(
        target=send_files, args=(files, peer, tell), kwargs={"calling_ae": "CT1", "pace": 40}
    )
    sending.start()
    assert halfway.wait(30)
    node.kill_tree()
    sending.join(60)
    assert len(acknowledged) < N
    node.start()
    with node.store() as store:
        have = {i.sop_instance_uid for s in store.series.list() for i in store.series.instances(s.id)}
        assert acknowledged <= have
    scanner(node, files)  # the scanner sends the study again, as its user would
    everything_once(node, orthanc, "kill -9 while receiving")


def test_in_the_middle_of_enhancing(nodes: MakeNode, orthanc: OrthancPeer, files: list[Path]) -> None:
    node = nodes()
    scanner(node, files)

    with node.store() as store:
        wait_until(
            lambda: bool(store.jobs.list([JobState.RUNNING])), 40, "the engine is at work", every_s=0.005
        )
    node.kill_tree()
    with node.store() as store:
        assert store.jobs.list([JobState.RUNNING]), "killed too late to tell anything"
    node.start()
    everything_once(node, orthanc, "kill -9 while enhancing")


def test_in_the_middle_of_delivering(nodes: MakeNode, orthanc: OrthancPeer, files: list[Path]) -> None:
    node = nodes()
    scanner(node, files)
    with node.store() as store:
        wait_until(lambda: bool(store.deliveries.list()), 40, "there is something to deliver", every_s=0.005)
    wait_until(lambda: len(orthanc.uids()) >= 3, 20, "Orthanc has some", every_s=0.002)
    node.kill_tree()
    n = len(orthanc.uids())
    node.start()
    everything_once(node, orthanc, "kill -9 while delivering")
    assert n <= N


def test_sigterm_ends_cleanly_and_work_goes_on_afterwards(
    nodes: MakeNode, orthanc: OrthancPeer, files: list[Path]
) -> None:
    node = nodes()
    scanner(node, files)
    with node.store() as store:
        wait_until(
            lambda: bool(store.jobs.list([JobState.RUNNING])), 40, "the engine is at work", every_s=0.005
        )
    assert node.stop() == 0
    with node.store() as store:
        assert not store.jobs.list([JobState.RUNNING])
    node.start()
    everything_once(node, orthanc, "SIGTERM while enhancing")
