"""The guardian of the worker: starts it, watches that it gets on, starts it again when it does not.

The worker is a spawned child (never forked: accelerator libraries do not survive a fork) that owns the
engine. Whatever it does to itself costs one attempt at one series: a crash or a hang ends the child, the
guardian puts the job back, and a job that brought down two fresh workers is HELD for a person while the rest
goes on.

The two share nothing but a few numbers without a lock: a lock would stay locked when its holder is killed.

With a :class:`~node.enhance.health.Health` the guardian also judges the GPU: what failed on it, and what its driver
says. While it is unfit workers are started without it, and now and then a process of its own tries it.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.context import SpawnProcess
from typing import Protocol

from node.enhance.health import Health
from node.enhance.signs import Watch
from node.errors import StoreError
from node.log import get_logger
from node.model import Job, JobState

log = get_logger()

JOB, ATTEMPT, PROGRESS, STOP, STEP, DEVICE, SERIES, SIZE = range(8)
"""Slots of the shared array: job id (0: idle), its attempt, monotonic time of the last sign of life, whether to end
(:data:`NOW`, :data:`IDLE`), how long a step of this engine takes in seconds (the median; 0: not known), what it runs on
(:data:`CPU`, :data:`ACCELERATED`, :data:`LOST`), and the series of the job."""

NOW, IDLE = 1.0, 2.0
"""In STOP: put down the job and end; end once there is no job at hand."""

CPU, ACCELERATED, LOST = 0.0, 1.0, 2.0
"""In DEVICE. LOST: this process met an error of the device and must not use it again."""

DEVICE_LOST = 86
"""Exit status of a worker that met an error of its device."""

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

    Without a sign of life for the longer of ``stalled_s`` and ``steps`` times what a step of this engine takes,
    and at most ``stalled_most_s``, a worker hangs: at a job, or itself. Until its first sign it has ``start_s``.
    ``respawn_s`` passes before a dead worker is replaced, doubling up to ``respawn_most_s`` until one has lived for
    ``steady_s``. ``drain_s`` is what a worker has to put down its job at the end, ``check_s`` what it may take to
    prove a GPU, ``killed_s`` what the kernel may take to end a killed process.
    """

    stalled_s: float = 60.0
    stalled_most_s: float = 1800.0
    steps: float = 10.0
    start_s: float = 180.0
    check_s: float = 180.0
    killed_s: float = 10.0
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
    health
        Of the GPU. With it the target is also given ``without_gpu=True`` or ``False``.
    check
        Module-level function that a child runs to prove the GPU: ``check(*check_arguments)``, which ends with
        status 0 if it is proven.
    watch
        Reads the driver's signs; None where there is nothing to read.
    """

    def __init__(
        self,
        target: Callable[..., None],
        arguments: tuple[object, ...],
        jobs: Jobs,
        *,
        patience: Patience | None = None,
        name: str = "worker",
        health: Health | None = None,
        check: Callable[..., None] | None = None,
        check_arguments: tuple[object, ...] = (),
        watch: Watch | None = None,
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._target = target
        self._arguments = arguments
        self._jobs = jobs
        self._patience = patience or Patience()
        self._name = name
        self._shared = self._context.RawArray("d", SIZE)
        self._process: SpawnProcess | None = None
        self._health = health
        self._watch = watch
        self._check = check
        self._check_arguments = check_arguments
        self._checking: SpawnProcess | None = None
        self._check_until = 0.0
        self._without_gpu = False
        self._undead: list[SpawnProcess] = []
        self._wait_s = self._patience.respawn_s
        self._started_at = self._start_at = self._asked_at = 0.0
        self.restarts = 0

    def run(self, stop: threading.Event) -> None:
        """Guard until ``stop`` is set, then let the worker put down its job and end."""
        guard((self,), stop)

    def look(self) -> None:
        """One look at the worker: start, replace or kill it as needed."""
        now = time.monotonic()
        process = self._process
        if process is None:
            if now >= self._start_at:
                self._start()
        elif process.exitcode is not None:
            status = process.exitcode
            how = "an error of its device" if status == DEVICE_LOST else f"worker ended with status {status}"
            self._bury(how, wanted=status == 0)
        elif now - self._shared[PROGRESS] > self.allowed_s:
            for_s = round(now - self._shared[PROGRESS])
            log.error("worker.stalled", job=int(self._shared[JOB]) or None, for_s=for_s)
            allowed_s = self.allowed_s
            self._kill(process)
            self._bury(f"no progress for {allowed_s:.0f} s")
        if self._health is not None:
            self._look_at_gpu(self._health, now)

    @property
    def allowed_s(self) -> float:
        """How long the worker may be without a sign of life, now."""
        p, step = self._patience, float(self._shared[STEP])
        if self._shared[PROGRESS] == self._started_at:
            return max(p.start_s, p.stalled_s)
        return min(max(p.stalled_s, p.steps * step), max(p.stalled_most_s, p.stalled_s))

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def quiet_s(self) -> float:
        """Seconds since the worker's last sign of life; a worker with nothing to do gives one every 0.5 s."""
        return time.monotonic() - float(self._shared[PROGRESS])

    @property
    def job(self) -> int:
        """Id of the job at hand, 0 for none."""
        return int(self._shared[JOB])

    @property
    def series(self) -> int:
        """Series of the job at hand, or that is worked on ahead of its job; 0 for none."""
        return int(self._shared[SERIES])

    @property
    def wait_s(self) -> float:
        """How long the next dead worker would wait for its successor."""
        return self._wait_s

    def _start(self) -> None:
        for slot in (JOB, ATTEMPT, STOP, STEP, DEVICE, SERIES):
            self._shared[slot] = 0.0
        self._shared[PROGRESS] = self._started_at = time.monotonic()
        more: dict[str, object] = {}
        if self._health is not None:
            self._without_gpu = more["without_gpu"] = self._health.unfit
        self._process = self._context.Process(
            target=self._target,
            args=(self._shared, *self._arguments),
            kwargs=more,
            name=self._name,
            daemon=True,
        )
        self._process.start()

    def _bury(self, how: str, *, wanted: bool = False) -> None:
        job_id, device = int(self._shared[JOB]), self._shared[DEVICE]
        now = time.monotonic()
        if wanted or now - self._started_at >= self._patience.steady_s:
            self._wait_s = self._patience.respawn_s
        if wanted:
            log.info("worker.replaced")
        else:
            log.error("worker.died", how=how, job=job_id or None, again_in_s=self._wait_s)
        assert self._process is not None
        if self._process.exitcode is not None:
            self._process.close()
        self._process = None
        self.restarts += 1
        self._start_at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, self._patience.respawn_most_s)
        if self._health is not None and (device == LOST or (device == ACCELERATED and not wanted)):
            self._health.failed(int(self._shared[SERIES]), how)
        if job_id:
            put_back(self._jobs, job_id, int(self._shared[ATTEMPT]), how, accelerated=device != CPU)

    def _kill(self, process: SpawnProcess) -> None:
        """Kill a child. One that waits inside of a driver does not end: it is left to the kernel, and told."""
        process.kill()
        process.join(self._patience.killed_s)
        if process.exitcode is None:
            self._undead.append(process)
            log.critical("worker.cannot_be_killed", pid=process.pid, hint="its host has to be started again")
            if self._health is not None:
                self._health.condemn("a process that used it cannot be killed")

    def _look_at_gpu(self, health: Health, now: float) -> None:
        """Take in the driver's signs, replace a worker that has the wrong idea, and try an unfit GPU."""
        health.tell()
        for sign in self._watch.signs() if self._watch is not None else ():
            health.condemn(sign)
        if self._process is not None and health.unfit != self._without_gpu and not self._shared[STOP]:
            # A job on a GPU that is not to be trusted is put down; one on the CPU is finished first.
            self._shared[STOP] = NOW if health.unfit else IDLE
        if self._checking is not None:
            self._look_at_check(health, self._checking, now)
        elif self._check is not None and health.check_due():
            self._checking = self._context.Process(
                target=self._check, args=self._check_arguments, name="gpu-check", daemon=True
            )
            self._checking.start()
            self._check_until = now + self._patience.check_s

    def _look_at_check(self, health: Health, check: SpawnProcess, now: float) -> None:
        if check.exitcode is None:
            if now < self._check_until:
                return
            self._kill(check)
        log.info("gpu.checked", passed=check.exitcode == 0)
        if check.exitcode == 0:
            health.proven()
        if check.exitcode is not None:
            check.close()
        self._checking = None

    def ask(self) -> None:
        """Tell the worker to put down its job and end."""
        self._shared[STOP] = NOW
        self._asked_at = time.monotonic()

    def end(self) -> None:
        """Wait until the worker, who was asked, has ended; kill it where it does not."""
        if self._checking is not None:
            self._kill(self._checking)
        if self._process is None:
            return
        self._process.join(max(0.0, self._asked_at + self._patience.drain_s - time.monotonic()))
        if self._process.exitcode is None:
            self._kill(self._process)
        if self._shared[JOB]:
            put_back(self._jobs, int(self._shared[JOB]), int(self._shared[ATTEMPT]), "")


def guard(guardians: Sequence[Guardian], stop: threading.Event) -> None:
    """Guard several workers, each on a GPU of its own, until ``stop`` is set; they put down their jobs together."""
    while not stop.is_set():
        for one in guardians:
            one.look()
        stop.wait(0.1)
    for one in guardians:
        one.ask()
    for one in guardians:
        one.end()


def put_back(jobs: Jobs, job_id: int, attempt: int, how: str, *, accelerated: bool = False) -> None:
    """Return the job of a dead worker to the queue, or hold it once it has cost as many fresh workers as it may.

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
        elif attempt < tries(job, accelerated=accelerated):
            jobs.fail(job_id, owner, attempt, how, JobState.QUEUED, now, not_before=now)
        elif jobs.fail(job_id, owner, attempt, how, JobState.HELD, now):
            log.error("job.held", job=job_id, series=job.series_id, because=how, attempts=attempt)
    except StoreError as e:
        log.error("job.not_put_back", job=job_id, because=type(e).__name__)


def tries(job: Job, *, accelerated: bool) -> int:
    """How many attempts a job has that ends its workers: two, and where it ran on an accelerator and may do without
    (``runtime: auto``) a third, on the reference runtime (:func:`by_reference`)."""
    return _FRESH_WORKERS + int(accelerated and may_fall_back(job))


def by_reference(job: Job) -> bool:
    """Whether this attempt is to be made without the accelerator: two have failed, of which it may be the cause."""
    return job.attempt > _FRESH_WORKERS and may_fall_back(job)


def may_fall_back(job: Job) -> bool:
    """Whether the rule leaves the runtime to the node."""
    return str(job.params.get("runtime", "auto")) == "auto"
