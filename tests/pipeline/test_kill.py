"""kill -9 of the whole process tree at the worst moments: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from node.deliver.files import FileOutcome, send_files
from node.model import JobState
from node.trial.phantoms import write_series
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


def everything_once(node: Node, orthanc: OrthancPeer) -> None:
    wait_until(lambda: settled(node, None) and len(orthanc.uids()) >= N, 120, "the series is delivered")
    with node.store() as store:
        assert store.series.counts()
        assert sum(s.count for s in store.series.list()) == N
        found = store.reconcile.fsck(verify=True)
        assert found.ok, found
        assert store.provenance.verify().ok
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
    everything_once(node, orthanc)


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
    everything_once(node, orthanc)


def test_in_the_middle_of_delivering(nodes: MakeNode, orthanc: OrthancPeer, files: list[Path]) -> None:
    node = nodes()
    scanner(node, files)
    with node.store() as store:
        wait_until(lambda: bool(store.deliveries.list()), 40, "there is something to deliver", every_s=0.005)
    wait_until(lambda: len(orthanc.uids()) >= 3, 20, "Orthanc has some", every_s=0.002)
    node.kill_tree()
    n = len(orthanc.uids())
    node.start()
    everything_once(node, orthanc)
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
    everything_once(node, orthanc)
