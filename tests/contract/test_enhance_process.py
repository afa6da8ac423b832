"""The worker as the process that it is, under its guardian, on a real store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from engines.catalog import Catalog
from node.app import spawned
from node.enhance.guardian import Guardian, Patience
from node.enhance.worker import take_back
from node.model import JobState
from node.store import Store
from tests.enhancing import NOW, queue, receive, series
from tests.pipeline.harness import REPOSITORY

CARD = Catalog.default().card("ct-tv")


def guard_until(guardian: Guardian, what: Callable[[], object], within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        guardian.look()
        time.sleep(0.01)


def test_it_works_is_killed_works_again_and_ends_when_told(sqlite_store: Store) -> None:
    store = sqlite_store
    guardian = Guardian(
        spawned.worker,
        (str(store.database.url), str(store.spool.root), "warning", "json", 1),
        store.jobs,
        patience=Patience(respawn_s=0.01),
    )

    def done(job_id: int) -> bool:
        job = store.jobs.get(job_id)
        assert job is not None
        assert job.state in (JobState.QUEUED, JobState.RUNNING, JobState.DONE), job.failure
        return job.state is JobState.DONE

    (first,) = queue(store, receive(store, series("CT", 4)), CARD)
    guard_until(guardian, lambda: done(first))
    assert guardian.pid is not None
    assert int(Path(f"/proc/{guardian.pid}/oom_score_adj").read_text()) > 0

    (second,) = queue(store, receive(store, series("CT", 60, number=2), "b"), CARD)
    running = [JobState.RUNNING]
    guard_until(guardian, lambda: store.jobs.list(running))
    os.kill(guardian.pid, signal.SIGKILL)
    guard_until(guardian, lambda: done(second))
    assert guardian.restarts == 1
    job = store.jobs.get(second)
    assert job is not None
    assert job.attempt == 2

    os.kill(guardian.pid, signal.SIGTERM)  # as systemd does to all at once: it ends by itself, and well
    guard_until(guardian, lambda: guardian.restarts == 2)
    assert guardian.wait_s == 0.02
    guard_until(guardian, lambda: guardian.pid)
    process = psutil.Process(guardian.pid)
    stop = threading.Event()
    stop.set()
    guardian.run(stop)
    assert not process.is_running()
    assert take_back(store, NOW) == 0


def test_one_that_cannot_start_says_so_in_one_line(tmp_path: Path) -> None:
    """No traceback: the text of somebody else's exception may hold anything."""
    told = (
        "from node.enhance.worker import worker_main\n"
        f"worker_main([0.0] * 4, 'sqlite:///{tmp_path}/none/luminode.db', '{tmp_path}/spool', 'info', 'json', 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", told],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert "worker.broke" in line
    assert "StoreError" in line
