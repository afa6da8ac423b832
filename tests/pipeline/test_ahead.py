"""A scanner at its own pace: what the worker did meanwhile is used, and no pixel tells of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from node.deliver.files import send_files
from node.trial.phantoms import write_series
from tests.peers import OrthancPeer, wait_until
from tests.phantoms import small_ct
from tests.pipeline.conftest import MakeNode
from tests.pipeline.harness import Node
from tests.pipeline.test_main_job import settled

pytestmark = pytest.mark.peer

N = 30
PACE = 8.0


def pixels(node: Node) -> tuple[dict[str, np.ndarray], int, int]:
    """The derived pixels by source, how many slices were made while the series came, and how many there are."""
    with node.store() as store:
        (job,) = store.jobs.list()
        derived = store.deliveries.derived_of_job(job.id)
        assert derived is not None
        made = {
            d.source_sop_instance_uid: pydicom.dcmread(store.spool.path(d.path)).pixel_array
            for d in derived.instances
        }
        (record,) = [r for r in store.provenance.records(derived.series_uid) if r.kind == "series.derived"]
        return made, int(record.body["made_before"]), int(record.body["slices"])


def scanned(node: Node, files: list[Path], *, pace: float, kill: bool) -> None:
    """Send at the pace of a scanner; with ``kill`` the worker dies after a quarter (kill -9), and the scanner makes
    a pause, its association open, until another has begun."""
    peer = {"kind": "dimse", "ae_title": "LUMINODE", "address": f"127.0.0.1:{node.port}"}
    n = 0

    def tries() -> int:
        with node.store() as store:
            return max((outlook.tries for outlook in store.outlooks.list()), default=0)

    def tell(_outcome: object) -> None:
        nonlocal n
        n += 1
        if n == N // 4 and kill:
            wait_until(lambda: tries() == 1, 120, "a worker has begun")
            workers = [p for p in node.tree() if "spawn_main" in " ".join(p.cmdline())]
            assert workers
            for each in workers:
                each.kill()
            wait_until(lambda: tries() == 2, 120, "another has begun")

    sent = send_files(files, peer, tell, calling_ae="CT1", pace=pace)
    assert sent.ok, (sent.errors, sent.not_done)
    wait_until(lambda: settled(node, 1), 120, "the series is delivered")


def test_a_series_is_done_while_it_comes_and_is_the_same(
    nodes: MakeNode, orthanc: OrthancPeer, tmp_path: Path
) -> None:
    files = write_series(small_ct(seed=11, n_slices=N, size=192, noise_hu=15.0), tmp_path / "ct")
    ahead = nodes(ct_engine="ct-tv", quiet_after="20s")
    scanned(ahead, files, pace=PACE, kill=True)
    made, n_before, n = pixels(ahead)
    assert (len(made), n) == (N, N)
    assert n_before, "a fresh worker began anew, and its work was used"
    ahead.stop()

    behind = nodes(ct_engine="ct-tv", quiet_after="20s", begin_early="false")
    scanned(behind, files, pace=0.0, kill=False)
    wanted, n_before, _ = pixels(behind)
    assert n_before == 0
    assert made.keys() == wanted.keys()
    assert all(np.array_equal(made[uid], wanted[uid]) for uid in made)
    assert len([uid for series in orthanc.series().values() for uid in series]) == N, "the same UIDs"
