"""The guardian: a dead or stalled worker is replaced, its job goes back, a poison pill is held."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node.enhance.guardian import ATTEMPT, JOB, PROGRESS, STOP, Guardian, Patience, guard
from node.errors import StoreError
from node.model import Job, JobState, Lease

NOW = datetime.now(UTC)


def job(attempt: int = 1) -> Job:
    return Job(
        id=7, series_id=1, rule="r", engine="e", params={}, destinations=(), derivation_key="k",
        state=JobState.RUNNING, attempt=attempt, not_before=NOW, created_at=NOW,
        lease=Lease(owner="w", until=NOW),
    )  # fmt: skip


class Jobs:
    """The queue as the guardian sees it: one job, and what was said about it."""

    def __init__(self, one: Job, *, away: bool = False) -> None:
        self.job = one
        self.away = away
        self.asked = 0
        self.failed: list[tuple[JobState, str]] = []
        self.released = 0

    def get(self, job_id: int) -> Job | None:
        self.asked += 1
        if self.away:
            raise StoreError("the database is away")
        return self.job if job_id == self.job.id else None

    def release(self, job_id: int, owner: str, attempt: int, at: datetime) -> bool:
        assert (job_id, owner, attempt) == (7, "w", self.job.attempt)
        self.released += 1
        self.job = replace(self.job, state=JobState.QUEUED)
        return True

    def fail(
        self,
        job_id: int,
        owner: str,
        attempt: int,
        failure: str,
        state: JobState,
        at: datetime,
        *,
        not_before: datetime | None = None,
    ) -> bool:
        assert (job_id, owner, attempt) == (7, "w", self.job.attempt)
        self.failed.append((state, failure))
        self.job = replace(self.job, state=state)
        return True


def at_work(shared: Any, attempt: float) -> None:
    shared[ATTEMPT], shared[PROGRESS], shared[JOB] = attempt, time.monotonic(), 7


def crashes(shared: Any, attempt: float) -> None:
    at_work(shared, attempt)
    os._exit(11)


def dies_idle(shared: Any) -> None:
    os._exit(11)


def wants_a_successor(shared: Any) -> None:
    pass


def hangs(shared: Any, attempt: float = 0) -> None:
    """Its last sign of life was long ago."""
    if attempt:
        at_work(shared, attempt)
    shared[PROGRESS] -= 100
    while True:
        time.sleep(0.01)


def idles(shared: Any) -> None:
    while not shared[STOP]:
        shared[PROGRESS] = time.monotonic()
        time.sleep(0.005)


def guard_until(guardian: Guardian, what: Callable[[], object], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        guardian.look()
        time.sleep(0.002)


@pytest.mark.parametrize(("attempt", "state"), [(1, JobState.QUEUED), (2, JobState.HELD)])
def test_a_crash_costs_an_attempt_and_two_make_a_poison_pill(attempt: int, state: JobState) -> None:
    jobs = Jobs(job(attempt))
    guardian = Guardian(crashes, (float(attempt),), jobs, patience=Patience(respawn_s=0.01))
    guard_until(guardian, lambda: jobs.failed)
    assert jobs.failed == [(state, "worker ended with status 11")]
    guard_until(guardian, lambda: guardian.restarts >= 2)
    assert len(jobs.failed) == 1


@pytest.mark.parametrize("arguments", [(1.0,), ()], ids=["at a job", "idle"])
def test_a_hang_is_killed_and_the_job_goes_back(arguments: tuple[float, ...]) -> None:
    jobs = Jobs(job())
    guardian = Guardian(hangs, arguments, jobs, patience=Patience(stalled_s=90, respawn_s=30))
    guard_until(guardian, lambda: guardian.restarts)
    assert [state for state, _ in jobs.failed] == ([JobState.QUEUED] if arguments else [])
    assert all("no progress" in how for _, how in jobs.failed)


def test_an_idle_worker_is_left_alone_and_ends_when_told() -> None:
    jobs = Jobs(job())
    guardian = Guardian(idles, (), jobs, patience=Patience(stalled_s=60))
    guard_until(guardian, lambda: guardian.pid)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    guardian.run(stop)
    assert guardian.restarts == 0
    assert not jobs.failed
    assert jobs.asked == 0


def waits_for_the_other(shared: Any, own: str, other: str) -> None:
    """Ends once both have been asked to: one that is asked after the other has ended would wait for ever."""
    while not shared[STOP]:
        shared[PROGRESS] = time.monotonic()
        time.sleep(0.005)
    Path(own).touch()
    while not Path(other).exists():
        time.sleep(0.005)


def test_workers_on_several_gpus_are_asked_together_to_end(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("one", "two")]
    guardians = [
        Guardian(waits_for_the_other, tuple(f), Jobs(job()), patience=Patience(drain_s=60))
        for f in (files, files[::-1])
    ]
    for one in guardians:
        guard_until(one, lambda one=one: one._process is not None and one._shared[PROGRESS] > one._started_at)
    children = [one._process for one in guardians]
    stop = threading.Event()
    stop.set()
    guard(guardians, stop)
    assert [child.exitcode for child in children] == [0, 0]  # type: ignore[union-attr]


def test_a_worker_that_does_not_end_is_killed_and_its_attempt_does_not_count() -> None:
    jobs = Jobs(job(attempt=2))
    guardian = Guardian(hangs, (2.0,), jobs, patience=Patience(drain_s=0.1))
    guard_until(guardian, lambda: guardian._shared[JOB])
    stop = threading.Event()
    stop.set()
    guardian.run(stop)
    assert (jobs.released, jobs.failed) == (1, [])


def test_the_next_worker_waits_longer_after_each_that_dies_young() -> None:
    guardian = Guardian(dies_idle, (), Jobs(job()), patience=Patience(respawn_s=0.01, respawn_most_s=0.05))
    waits = [guardian.wait_s]
    for n in range(1, 5):
        guard_until(guardian, lambda n=n: guardian.restarts == n)
        waits.append(guardian.wait_s)
    assert waits == [0.01, 0.02, 0.04, 0.05, 0.05]


@pytest.mark.parametrize(
    ("target", "patience"),
    [(dies_idle, Patience(respawn_s=0.01, steady_s=0.0)), (wants_a_successor, Patience(respawn_s=0.01))],
    ids=["lived long", "wanted it"],
)
def test_a_worker_that_lived_long_or_asked_for_it_has_a_successor_at_once(
    target: Callable[..., None], patience: Patience
) -> None:
    guardian = Guardian(target, (), Jobs(job()), patience=patience)
    guard_until(guardian, lambda: guardian.restarts == 3)
    assert guardian.wait_s == 0.02


def test_the_guardian_survives_a_database_that_is_away() -> None:
    jobs = Jobs(job(), away=True)
    guardian = Guardian(crashes, (1.0,), jobs, patience=Patience(respawn_s=0.01))
    guard_until(guardian, lambda: guardian.restarts == 2)
    assert jobs.asked == 2
