"""The guardian of the worker: starts it, watches that it gets on, starts it again when it does not.

The worker is a spawned child (never forked: accelerator libraries do not survive a fork) that owns the
engine. Whatever it does to itself costs one attempt at one series: a crash or a hang ends the child, the
guardian puts the job back, and a job that brought down two fresh workers is HELD for a person while the rest
goes on.

The two share nothing but a few numbers without a lock: a lock would stay locked when its holder is killed.
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

from node.errors import StoreError
from node.log import get_logger
from node.model import Job, JobState

log = get_logger()

JOB, ATTEMPT, PROGRESS, STOP, SIZE = 0, 1, 2, 3, 4
"""Slots of the shared array: job id (0: idle), its attempt, monotonic time of the last sign of life, and not
0 once the worker is to put down its job and end."""

_FRESH_WORKERS = 2


class Jobs(Protocol):
    """What the guardian needs of store.jobs."""

    def get(self, job_id: int) -> Job | None: ...

    def release(self, job_id: int, owner: str, attempt: int, at: datetime) -> bool: ...

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
    ) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the guardian waits, in seconds.

    ``stalled_s`` without a sign of life is a hang, of a job or of the worker itself. ``respawn_s`` passes
    before a dead worker is replaced, doubling up to ``respawn_most_s`` until one has lived for ``steady_s``.
    ``drain_s`` is what a worker has to put down its job at the end.
    """

    stalled_s: float = 180.0
    respawn_s: float = 0.2
    respawn_most_s: float = 15.0
    steady_s: float = 60.0
    drain_s: float = 12.0


class Guardian:
    """Keep one worker alive.

    Parameters
    ----------
    target
        Module-level function that the child runs: ``target(shared, *arguments)``. It keeps
        ``shared[PROGRESS]`` young, and ends with status 0 when ``shared[STOP]`` is set or it wants to be
        replaced.
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
        self._process: SpawnProcess | None = None
        self._wait_s = self._patience.respawn_s
        self._started_at = self._start_at = 0.0
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
        elif process.exitcode is not None:
            self._bury(f"worker ended with status {process.exitcode}", wanted=process.exitcode == 0)
        elif now - self._shared[PROGRESS] > self._patience.stalled_s:
            for_s = round(now - self._shared[PROGRESS])
            log.error("worker.stalled", job=int(self._shared[JOB]) or None, for_s=for_s)
            process.kill()
            process.join()
            self._bury(f"no progress for {self._patience.stalled_s:.0f} s")

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def quiet_s(self) -> float:
        """Seconds since the worker's last sign of life; a worker without a job gives one every 0.5 s."""
        return time.monotonic() - float(self._shared[PROGRESS])

    @property
    def job(self) -> int:
        """Id of the job at hand, 0 for none."""
        return int(self._shared[JOB])

    @property
    def wait_s(self) -> float:
        """How long the next dead worker would wait for its successor."""
        return self._wait_s

    def _start(self) -> None:
        self._shared[JOB] = self._shared[ATTEMPT] = self._shared[STOP] = 0.0
        self._shared[PROGRESS] = self._started_at = time.monotonic()
        self._process = self._context.Process(
            target=self._target, args=(self._shared, *self._arguments), name=self._name, daemon=True
        )
        self._process.start()

    def _bury(self, how: str, *, wanted: bool = False) -> None:
        job_id = int(self._shared[JOB])
        now = time.monotonic()
        if wanted or now - self._started_at >= self._patience.steady_s:
            self._wait_s = self._patience.respawn_s
        if wanted:
            log.info("worker.replaced")
        else:
            log.error("worker.died", how=how, job=job_id or None, again_in_s=self._wait_s)
        assert self._process is not None
        self._process.close()
        self._process = None
        self.restarts += 1
        self._start_at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, self._patience.respawn_most_s)
        if job_id:
            put_back(self._jobs, job_id, int(self._shared[ATTEMPT]), how)

    def _end(self) -> None:
        self._shared[STOP] = 1.0
        if self._process is None:
            return
        self._process.join(self._patience.drain_s)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        if self._shared[JOB]:
            put_back(self._jobs, int(self._shared[JOB]), int(self._shared[ATTEMPT]), "")


def put_back(jobs: Jobs, job_id: int, attempt: int, how: str) -> None:
    """Return the job of a dead worker to the queue, or hold it once it has cost two fresh workers.

    ``how`` it died is empty if it was told to end: that does not count as an attempt. If the database is
    away, the lease runs out and the job comes back by itself.
    """
    try:
        job = jobs.get(job_id)
        if job is None or job.state is not JobState.RUNNING or job.attempt != attempt or job.lease is None:
            return  # it was finished, or is somebody else's by now
        owner, now = job.lease.owner, datetime.now(UTC)
        if not how:
            jobs.release(job_id, owner, attempt, now)
        elif attempt < _FRESH_WORKERS:
            jobs.fail(job_id, owner, attempt, how, JobState.QUEUED, now, not_before=now)
        elif jobs.fail(job_id, owner, attempt, how, JobState.HELD, now):
            log.error("job.held", job=job_id, series=job.series_id, because=how, attempts=attempt)
    except StoreError as e:
        log.error("job.not_put_back", job=job_id, because=type(e).__name__)
