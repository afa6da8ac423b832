"""Senders of real life: the same study from two of them at once, a scanner that breaks off, whole nodes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from node.trial.phantoms import write_series
from tests.peers import OrthancPeer, wait_until
from tests.phantoms import small_ct
from tests.pipeline.conftest import MakeNode
from tests.pipeline.harness import REPOSITORY
from tests.pipeline.test_main_job import scanner, settled

pytestmark = pytest.mark.peer

N = 12


def test_a_series_from_two_senders_is_one_series(
    nodes: MakeNode, orthanc: OrthancPeer, tmp_path: Path
) -> None:
    """A scanner sends here while PACS routes the same study here: each brings what the other did not."""
    node = nodes(quiet_after="30s")
    files = write_series(small_ct(seed=21, n_slices=N, size=192, noise_hu=15.0), tmp_path / "ct")
    # neither part is regular by itself, so that neither can be taken for all of it
    halves = {"CT1": [*files[::2], files[1]], "PACS": [*files[1::2], files[0]]}
    sending = [
        threading.Thread(target=scanner, args=(node, part), kwargs={"calling_ae": calling})
        for calling, part in halves.items()
    ]
    for each in sending:
        each.start()
    for each in sending:
        each.join(30)
    wait_until(lambda: settled(node, 1), 60, "one series, closed without the quiet time, one job")
    with node.store() as store:
        (series,) = store.series.list()
        assert (series.count, series.closed_because) == (N, "release")
        assert {calling for calling, _ in store.series.senders(series.id)} == set(halves)
    ((_, uids),) = orthanc.series().items()
    assert len(uids) == N

    # three slices prove nothing; whoever asks is told what the series waits for
    few = write_series(small_ct(seed=22, n_slices=N, size=192, noise_hu=15.0)[:3], tmp_path / "few")
    scanner(node, few)

    def shown() -> str:
        asked = [sys.executable, "-m", "node", "series", "show", "2", "--config", str(node.config)]
        return subprocess.run(
            asked, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
        ).stdout

    wait_until(lambda: "waits for" in shown(), 20, "the series is on record")
    (line,) = [each for each in shown().splitlines() if each.startswith("waits for")]
    assert "geometry: " in line
    assert "if nothing more comes" in line
