"""The worker: a spawned child that owns the engines and works off jobs, one at a time.

It claims a job by lease, beats while it works, and ends itself after any failure that it cannot explain, so
that the next job meets a fresh process. Failures that it can explain are sorted by what should be done.

An error of the accelerator ends the process at the first one: its context may answer every later call with the same
error, or wrongly. No engine serves before it has answered a question of known answer (engines/canary.py).
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from engines.catalog import Catalog
from engines.errors import OutOfMemory
from engines.ladder import Place
from node.enhance import signs
from node.enhance.ahead import Ahead
from node.enhance.failures import TRIES, judge, lost, text
from node.enhance.guardian import (
    ACCELERATED,
    ATTEMPT,
    CPU,
    DEVICE,
    DEVICE_LOST,
    JOB,
    LOST,
    NOW,
    PROGRESS,
    SERIES,
    STEP,
    STOP,
    by_reference,
    tries,
)
from node.enhance.memory import bound
from node.enhance.pace import Pace
from node.enhance.work import Stopped, do
from node.enhance.workshop import Proven, Workshop
from node.errors import StoreError, TransitionRefused
from node.failpoints import failpoint
from node.log import configure, get_logger
from node.model import Job, JobState
from node.process import die_with_parent, show_gpu
from node.store import Store
from node.store.events import Level
from node.store.owners import certainly_dead, me

log = get_logger()

LEASE_S = 30.0
_BEAT_S = 2.0
_LOAD_STEP_S = 30.0
"""What loading an engine counts as a step, for the guardian's patience: reading a plan from a cold disk is slow."""
_DATABASE_STEP_S = 12.0
"""What asking the database counts as: one statement may take a minute (node/store/db.py) and is no hang."""
_POLITE = 5
"""Added to the niceness of this process: where processors are few, a scanner that sends is answered first."""
_FIRST_TO_GO = 500
"""Added to the badness by which Linux picks whom to kill when memory runs out: this one, not the receiver."""


def worker_main(
    shared: Any,
    database: str,
    spool: str,
    level: str,
    fmt: str,
    threads: int,
    warm: Sequence[tuple[str, str]] = (),
    memory: int = 0,
    place: Place | None = None,
    shown: str | None = None,
    keep_free: int = 0,
    *,
    without_gpu: bool = False,
) -> None:
    """Entry of the spawned child: work until ``shared[STOP]`` is set.

    Parameters
    ----------
    warm
        (engine, runtime) pairs to load before the first job asks for them.
    memory
        Bytes that this process may take; 0 means a share of what there is.
    place
        Where engines run.
    shown
        The GPU that this process may see; see :func:`node.process.show_gpu`.
    keep_free
        Bytes of the spool's disk that work ahead of jobs leaves to the receiver.
    without_gpu
        Do without runtimes that need it.
    """

    def ask(_number: int, _frame: object) -> None:
        shared[STOP] = NOW

    show_gpu(shown)
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ask)
    faulthandler.enable()  # a crash in native code tells where: files and lines, no values
    with contextlib.suppress(OSError):
        os.nice(_POLITE)
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO))
    configure(level, fmt=fmt, waits=False)
    try:
        bound(memory)
        with Store.open(database, Path(spool), create=False) as store:
            workshop = _workshop(store, threads, place or Place(), without_gpu or shown == "")
            try:
                if _warm_up(workshop, warm, shared):
                    _work(store, workshop, shared, keep_free)
            finally:
                workshop.stop()
    except BaseException as e:
        log.critical("worker.broke", because=type(e).__name__, told=text(e))
        sys.exit(1)
    if shared[DEVICE] == LOST:
        atexit._run_exitfuncs()  # last lines of the log; destructors of a broken context may never return
        os._exit(DEVICE_LOST)


def _workshop(store: Store, threads: int, place: Place, without_gpu: bool) -> Workshop:
    def note(level: Level, event: str, body: Mapping[str, Any]) -> None:
        told = {"info": log.info, "warning": log.warning}.get(level, log.error)
        told(event, **body)
        try:
            store.events.add(level, event, body, datetime.now(UTC))
        except StoreError as e:
            log.error("event.not_recorded", event_name=event, because=type(e).__name__)

    def alarm(event: str, body: Mapping[str, Any]) -> None:
        note("critical", event, body)

    catalog = Catalog.default(place=place)
    workshop = Workshop(store=store, threads=threads, catalog=catalog, alarm=alarm, note=note)
    if without_gpu:
        workshop.avoid = workshop.catalog.accelerated()
    for folder, fault in workshop.catalog.faults().items():
        alarm("engine.refused", {"engine": folder, "because": f"{type(fault).__name__}: {fault.message}"})
    return workshop


def _warm_up(workshop: Workshop, warm: Sequence[tuple[str, str]], shared: Any) -> bool:
    """Load engines. Returns False if the device is lost: this process must not go on."""
    shared[STEP] = _LOAD_STEP_S
    shared[DEVICE] = _loads_on(workshop)
    for name, runtime in warm:
        shared[PROGRESS] = time.monotonic()
        try:
            workshop.proven(name, runtime)
        except Exception as e:
            if lost(e):
                log.error("device.lost", engine=name, because=type(e).__name__, told=text(e))
                shared[DEVICE] = LOST
                return False
            # Its jobs will be held with the same words; the other engines serve.
            workshop.alarm("engine.refused", {"engine": name, "because": f"{type(e).__name__}: {text(e)}"})
    shared[STEP], shared[DEVICE] = _DATABASE_STEP_S, CPU
    return True


def _loads_on(workshop: Workshop) -> float:
    """What a crash while an engine is loaded is to be laid to: a GPU that is there and may be used."""
    return ACCELERATED if not workshop.avoid and signs.DRIVER.exists() else CPU


def _work(store: Store, workshop: Workshop, shared: Any, keep_free: int = 0) -> None:
    owner = me("enhance")
    log.info("worker.started", engines=len(workshop.catalog.names()))
    ticker = store.changes.ticker()
    ahead = Ahead(workshop, owner, keep_free=keep_free)
    away = False
    try:
        while not shared[STOP]:
            shared[PROGRESS] = time.monotonic()
            job = None
            try:
                job = store.jobs.claim(owner, LEASE_S, datetime.now(UTC))
                away = False
            except StoreError as e:
                if not away:
                    log.error("job.claim_failed", because=type(e).__name__, told=e.message)
                away = True
            if job is not None:
                failpoint("enhance.claimed")
                if not work_off(store, workshop, job, owner, shared, ahead):
                    return
                with contextlib.suppress(StoreError):
                    ahead.settle()
                continue
            workshop.look()
            more, trusted = (False, True) if away else _work_ahead(workshop, ahead, shared)
            if not trusted:
                return
            if not more:
                ticker.wait(0.5)
    finally:
        ahead.close()
        ticker.close()


def _work_ahead(workshop: Workshop, ahead: Ahead, shared: Any) -> tuple[bool, bool]:
    """Do a little for a series that is still coming. Returns whether there is more to do now, and whether this
    process is still to be trusted."""

    try:
        return ahead.step(_Signs(workshop, shared)), True
    except StoreError:
        return False, True  # the next claim tells
    except OutOfMemory:
        return False, True  # its job steps down to what has more
    except BaseException as e:  # as with a job, which will tell what it is
        if lost(e):
            log.error("device.lost", because=type(e).__name__, told=text(e))
            shared[DEVICE] = LOST
            return False, False
        return False, judge(e, 1, TRIES).trusted
    finally:
        shared[STEP] = _DATABASE_STEP_S
        if shared[DEVICE] != LOST:
            shared[DEVICE], shared[SERIES] = CPU, 0


class _Signs:
    """What work ahead of jobs tells the guardian: :class:`node.enhance.ahead.Signs`."""

    def __init__(self, workshop: Workshop, shared: Any) -> None:
        self._workshop, self._shared = workshop, shared

    def looks(self, series_id: int) -> None:
        self._shared[SERIES] = series_id
        self._tell(CPU, _DATABASE_STEP_S)

    def loads(self) -> None:
        self._tell(_loads_on(self._workshop), _LOAD_STEP_S)

    def works(self, proven: Proven, n_pixels: int) -> None:
        self._tell(CPU if proven.device == "cpu" else ACCELERATED, proven.pace.expected_s(n_pixels))

    def _tell(self, device: float, step_s: float) -> None:
        self._shared[DEVICE], self._shared[STEP] = device, step_s
        self._shared[PROGRESS] = time.monotonic()


def take_back(store: Store, now: datetime) -> int:
    """Re-queue jobs whose owner on this host no longer lives. Returns how many."""
    n = 0
    for job in store.jobs.list(states=[JobState.RUNNING]):
        if job.lease is None or not certainly_dead(job.lease.owner):
            continue
        state = JobState.HELD if job.attempt >= TRIES else JobState.QUEUED
        store.jobs.fail(job.id, job.lease.owner, job.attempt, "its process died", state, now, not_before=now)
        n += 1
    return n


def work_off(
    store: Store, workshop: Workshop, job: Job, owner: str, shared: Any, ahead: Ahead | None = None
) -> bool:
    """Do one job, whatever comes of it. Returns False if this process should not be trusted with another.

    Parameters
    ----------
    job
        Claimed for ``owner``.
    shared
        The slots of ``node.enhance.guardian``.
    ahead
        What was done before the series was complete.
    """
    shared[ATTEMPT], shared[SERIES], shared[STEP] = job.attempt, job.series_id, _LOAD_STEP_S
    shared[DEVICE] = CPU if by_reference(job) else _loads_on(workshop)
    shared[PROGRESS] = time.monotonic()
    shared[JOB] = job.id
    taken = threading.Event()
    done = threading.Event()
    progress: dict[str, float] = {}

    pace: Pace | None = None
    most = (0, 0)

    def expect(proven: Proven, n_pixels: int, n_bytes: int) -> None:
        nonlocal pace, most
        pace, most = proven.pace, (n_pixels, n_bytes)
        shared[DEVICE] = CPU if proven.device == "cpu" else ACCELERATED
        shared[STEP] = pace.expected_s(*most)

    def tell(step: str, share: float) -> None:
        progress[step] = round(share, 3)
        if pace is not None:
            shared[STEP] = pace.expected_s(*most)
            if step == "record" or (step == "enhance" and share >= 1):
                shared[STEP] = max(shared[STEP], _DATABASE_STEP_S)
        shared[PROGRESS] = time.monotonic()
        if shared[STOP] == NOW or taken.is_set():
            raise Stopped

    beat = threading.Thread(
        target=_beat, args=(store, job, owner, progress, done, taken), name="heartbeat", daemon=True
    )
    beat.start()
    try:
        do(workshop, job, owner, tell, reference=by_reference(job), expect=expect, ahead=ahead)
    except (Stopped, TransitionRefused):
        _give_back(store, job, owner)
        return True
    except BaseException as e:  # engines are others' code: one may even raise SystemExit
        device = LOST if lost(e) else shared[DEVICE]
        trusted = _sort(store, job, owner, e, device)
        if device == LOST:
            shared[DEVICE] = LOST
        return trusted
    finally:
        done.set()
        beat.join()
        shared[JOB], shared[STEP] = 0, _DATABASE_STEP_S
        if shared[DEVICE] != LOST:
            shared[DEVICE] = CPU
    return True


def _give_back(store: Store, job: Job, owner: str) -> None:
    """Put a job down that was stopped; one that is somebody else's by now stays theirs."""
    try:
        ours = store.jobs.release(job.id, owner, job.attempt, at=datetime.now(UTC))
    except StoreError as e:
        log.warning("job.not_returned", job=job.id, because=type(e).__name__)  # its lease runs out
    else:
        log.info("job.returned" if ours else "job.lost", job=job.id, series=job.series_id)


def _beat(
    store: Store,
    job: Job,
    owner: str,
    progress: dict[str, float],
    done: threading.Event,
    taken: threading.Event,
) -> None:
    told = False
    while not done.wait(_BEAT_S):
        until = datetime.now(UTC) + timedelta(seconds=LEASE_S)
        try:
            if not store.jobs.heartbeat(job.id, owner, job.attempt, until, dict(progress)):
                taken.set()
                return
            told = False
        except Exception as e:  # the lease outlives a short absence of the database
            if not told:
                log.warning("job.beat_failed", job=job.id, because=type(e).__name__, told=text(e))
            told = True


def _sort(store: Store, job: Job, owner: str, e: BaseException, device: float) -> bool:
    """Record a failure by what it means. Returns True if this process is still to be trusted."""
    verdict = judge(e, job.attempt, tries(job, accelerated=device != CPU))
    told, now = f"{type(e).__name__}: {text(e)}", datetime.now(UTC)
    state = JobState.HELD if verdict.held else JobState.QUEUED
    log.error(
        "job.failed", job=job.id, series=job.series_id, attempt=job.attempt, state=str(state), because=told
    )
    again = now + timedelta(seconds=verdict.wait_s)
    try:
        store.jobs.fail(job.id, owner, job.attempt, told, state, now, not_before=again)
    except StoreError:
        log.error("job.failure_unrecorded", job=job.id)  # the lease runs out and the job comes back
    return verdict.trusted
