"""The guardian of the worker: starts it, watches that it gets on, starts it again when it does not.

The worker is a spawned child (never forked: accelerator libraries do not survive a fork) that owns the engine.
Whatever it does to itself costs one attempt at one series: a crash or a hang ends the child, the guardian puts
the job back, and a job that brought down two fresh workers is HELD for a person while the rest goes on.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.context import SpawnProcess
from typing import Protocol

from node.log import get_logger
from node.model import Job, JobState

log = get_logger()

JOB, ATTEMPT, PROGRESS, SIZE = 0, 1, 2, 3
"""Slots of the shared array: job id (0: idle), its attempt, monotonic time of the last progress."""

_FRESH_WORKERS = 2


class Jobs(Protocol):
    """What the guardian needs of store.jobs."""

    def get(self, job_id: int) -> Job | None: ...

    def fail(
        self,
        job_id: int,
        owner: str,
        attempt: int,
        *,
        state: JobState,
        failure: str,
        at: datetime,
        not_before: datetime | None = None,
    ) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the guardian waits, in seconds: ``stalled_s`` without progress on a job is a hang;
    ``respawn_s`` passes before a dead worker is replaced, doubling up to ``respawn_most_s``."""

    stalled_s: float = 180.0
    respawn_s: float = 0.2
    respawn_most_s: float = 15.0
    drain_s: float = 12.0


class Guardian:
    """Keep one worker alive.

    Parameters
    ----------
    target
        Module-level function that the child runs: ``target(shared, stop, *arguments)``.
    arguments
        Picklable.
    jobs
        ``store.jobs``, to put back the job of a worker that died.
    """

    def __init__(
        self,
        target: Callable[..., None],
        arguments: tuple[object, ...],
        jobs: Jobs,
        *,
        patience: Patience | None = None,
        name: str = "worker",
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._target = target
        self._arguments = arguments
        self._jobs = jobs
        self._patience = patience or Patience()
        self._name = name
        self._shared = self._context.RawArray("d", SIZE)
        self._stop_child = self._context.Event()
        self._process: SpawnProcess | None = None
        self._wait_s = self._patience.respawn_s
        self._start_at = 0.0
        self.restarts = 0

    def run(self, stop: threading.Event) -> None:
        """Guard until ``stop`` is set, then let the worker put down its job and end."""
        while not stop.is_set():
            self.look()
            stop.wait(0.1)
        self._end()

    def look(self) -> None:
        """One look at the worker: start, replace or kill it as needed."""
        now = time.monotonic()
        process = self._process
        if process is None:
            if now >= self._start_at:
                self._start()
            return
        if process.exitcode is not None:
            self._bury(f"worker ended with status {process.exitcode}")
        elif self._shared[JOB] and now - self._shared[PROGRESS] > self._patience.stalled_s:
            log.error("worker.stalled", job=int(self._shared[JOB]), for_s=round(now - self._shared[PROGRESS]))
            process.kill()
            process.join()
            self._bury(f"no progress for {self._patience.stalled_s:.0f} s")
        elif not self._shared[JOB] and self._wait_s > self._patience.respawn_s:
            self._wait_s = self._patience.respawn_s

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def _start(self) -> None:
        self._shared[JOB] = self._shared[ATTEMPT] = 0.0
        self._shared[PROGRESS] = time.monotonic()
        self._process = self._context.Process(
            target=self._target,
            args=(self._shared, self._stop_child, *self._arguments),
            name=self._name,
            daemon=True,
        )
        self._process.start()

    def _bury(self, how: str) -> None:
        job_id, attempt = int(self._shared[JOB]), int(self._shared[ATTEMPT])
        log.error("worker.died", how=how, job=job_id or None, again_in_s=self._wait_s)
        self._process = None
        self.restarts += 1
        self._start_at = time.monotonic() + self._wait_s
        self._wait_s = min(self._wait_s * 2, self._patience.respawn_most_s)
        if job_id:
            put_back(self._jobs, job_id, attempt, how)

    def _end(self) -> None:
        self._stop_child.set()
        if self._process is None:
            return
        self._process.join(self._patience.drain_s)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            if self._shared[JOB]:
                put_back(self._jobs, int(self._shared[JOB]), int(self._shared[ATTEMPT]), "stopped")


def put_back(jobs: Jobs, job_id: int, attempt: int, how: str) -> None:
    """Return the job of a dead worker to the queue, or hold it once it has cost two fresh workers."""
    job = jobs.get(job_id)
    if job is None or job.state is not JobState.RUNNING or job.attempt != attempt or job.lease is None:
        return  # it was finished, or is somebody else's by now
    held = attempt >= _FRESH_WORKERS and how != "stopped"
    state = JobState.HELD if held else JobState.QUEUED
    now = datetime.now(UTC)
    jobs.fail(
        job_id, job.lease.owner, attempt, state=state, failure=how, at=now, not_before=None if held else now
    )
    if held:
        log.error("job.held", job=job_id, series=job.series_id, because=how, attempts=attempt)
