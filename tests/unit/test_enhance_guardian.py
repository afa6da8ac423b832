"""The guardian: a dead or stalled worker is replaced, its job goes back, a poison pill is held."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from node.enhance.guardian import ATTEMPT, JOB, PROGRESS, Guardian, Patience
from node.model import Job, JobState, Lease

NOW = datetime.now(UTC)


def job(attempt: int = 1) -> Job:
    return Job(
        id=7, series_id=1, rule="r", engine="e", params={}, destinations=(), derivation_key="k",
        state=JobState.RUNNING, attempt=attempt, not_before=NOW, created_at=NOW, lease=Lease(owner="w", until=NOW),
    )  # fmt: skip


class Jobs:
    """The queue as the guardian sees it: one job, and what was said about it."""

    def __init__(self, one: Job) -> None:
        self.job = one
        self.failed: list[tuple[JobState, str]] = []

    def get(self, job_id: int) -> Job | None:
        return self.job if job_id == self.job.id else None

    def fail(
        self, job_id: int, owner: str, attempt: int, *, state: JobState, failure: str, at: datetime,
        not_before: datetime | None = None,
    ) -> bool:  # fmt: skip
        assert (job_id, owner, attempt) == (7, "w", self.job.attempt)
        self.failed.append((state, failure))
        self.job = replace(self.job, state=state)
        return True


def at_work(shared: Any, attempt: float) -> None:
    shared[ATTEMPT], shared[PROGRESS], shared[JOB] = attempt, time.monotonic(), 7


def crashes(shared: Any, stop: Any, attempt: float) -> None:
    at_work(shared, attempt)
    os._exit(11)


def hangs(shared: Any, stop: Any, attempt: float) -> None:
    at_work(shared, attempt)
    stop.wait()
    stop.clear()
    while True:
        pass


def idles(shared: Any, stop: Any) -> None:
    stop.wait()


def guard_until(guardian: Guardian, what: Callable[[], object], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        guardian.look()


@pytest.mark.parametrize(("attempt", "state"), [(1, JobState.QUEUED), (2, JobState.HELD)])
def test_a_crash_costs_an_attempt_and_two_make_a_poison_pill(attempt: int, state: JobState) -> None:
    jobs = Jobs(job(attempt))
    guardian = Guardian(crashes, (float(attempt),), jobs, patience=Patience(respawn_s=0.01))
    guard_until(guardian, lambda: jobs.failed)
    assert jobs.failed == [(state, "worker ended with status 11")]
    guard_until(guardian, lambda: guardian.restarts >= 2)
    assert len(jobs.failed) == 1
    guardian.look()


def test_a_hang_is_killed_and_the_job_goes_back() -> None:
    jobs = Jobs(job())
    guardian = Guardian(hangs, (1.0,), jobs, patience=Patience(stalled_s=0.3, respawn_s=30))
    guard_until(guardian, lambda: jobs.failed)
    assert jobs.failed[0][0] is JobState.QUEUED
    assert "no progress" in jobs.failed[0][1]


def test_an_idle_worker_is_left_alone_and_ends_when_told() -> None:
    import threading

    jobs = Jobs(job())
    guardian = Guardian(idles, (), jobs, patience=Patience(stalled_s=0.1))
    guard_until(guardian, lambda: guardian.pid)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    guardian.run(stop)
    assert guardian.restarts == 0
    assert not jobs.failed
