"""The worker: a spawned child that owns the engines and works off jobs, one at a time.

It claims a job by lease, beats while it works, and ends itself after any failure that it cannot explain, so
that the next job meets a fresh process. Failures that it can explain are sorted by what should be done.
"""

from __future__ import annotations

import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event as ProcessEvent
from pathlib import Path
from typing import Any

import engines.errors as ee
from node.enhance.guardian import ATTEMPT, JOB, PROGRESS
from node.enhance.work import Stopped, Workshop, do
from node.errors import DeriveError, EnhanceError, SeriesError, StoreError
from node.log import configure, get_logger
from node.model import Job, JobState
from node.process import die_with_parent
from node.store import Store
from node.store.owners import certainly_dead, me

log = get_logger()

LEASE_S = 30.0
_BEAT_S = 2.0
_TRIES = 5
"""Attempts at a job whose failure may pass by itself, before it is held for a person."""


def worker_main(
    shared: Any, stop: ProcessEvent, database: str, spool: str, level: str, fmt: str, threads: int
) -> None:
    """Entry of the spawned child: work until ``stop`` is set."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    configure(level, fmt=fmt)
    store = Store.open(database, Path(spool), create=False)
    workshop = Workshop(store=store, threads=threads)
    owner = me("enhance")
    log.info("worker.started", engines=len(workshop.catalog.names()))
    ticker = store.changes.ticker()
    try:
        while not stop.is_set():
            job = _claim(store, owner)
            if job is None:
                ticker.wait(0.5)
                continue
            if not _one(store, workshop, job, owner, shared, stop):
                return
    finally:
        store.close()


def take_back(store: Store, now: datetime) -> int:
    """Re-queue jobs whose owner on this host no longer lives. Returns how many."""
    n = 0
    for job in store.jobs.list(states=[JobState.RUNNING]):
        if job.lease is None or not certainly_dead(job.lease.owner):
            continue
        state = JobState.HELD if job.attempt >= _TRIES else JobState.QUEUED
        store.jobs.fail(
            job.id, job.lease.owner, job.attempt, state=state, failure="its process died", at=now, not_before=now
        )
        n += 1
    return n


def _claim(store: Store, owner: str) -> Job | None:
    try:
        return store.jobs.claim(owner, LEASE_S, datetime.now(UTC))
    except StoreError as e:
        log.warning("job.claim_failed", because=type(e).__name__)
        return None


def _one(
    store: Store, workshop: Workshop, job: Job, owner: str, shared: Any, stop: ProcessEvent
) -> bool:
    """Work off one job. Returns False if this process should not be trusted with another."""
    shared[ATTEMPT] = job.attempt
    shared[PROGRESS] = time.monotonic()
    shared[JOB] = job.id
    lost = threading.Event()
    done = threading.Event()
    progress: dict[str, float] = {}

    def tell(step: str, share: float) -> None:
        progress[step] = round(share, 3)
        shared[PROGRESS] = time.monotonic()
        if stop.is_set() or lost.is_set():
            raise Stopped

    beat = threading.Thread(
        target=_beat, args=(store, job, owner, progress, done, lost), name="heartbeat", daemon=True
    )
    beat.start()
    try:
        do(workshop, job, owner, tell)
    except Stopped:
        if not lost.is_set():
            store.jobs.release(job.id, owner, job.attempt, at=datetime.now(UTC))
        log.info("job.returned", job=job.id, lost=lost.is_set())
        return True
    except Exception as e:
        return _sort(store, job, owner, e)
    finally:
        done.set()
        beat.join()
        shared[JOB] = 0
    return True


def _beat(
    store: Store,
    job: Job,
    owner: str,
    progress: dict[str, float],
    done: threading.Event,
    lost: threading.Event,
) -> None:
    while not done.wait(_BEAT_S):
        until = datetime.now(UTC) + timedelta(seconds=LEASE_S)
        try:
            if not store.jobs.heartbeat(job.id, owner, job.attempt, until, dict(progress)):
                lost.set()
                return
        except StoreError:
            continue  # the lease outlives a short absence of the database


_RETRY: tuple[type[Exception], ...] = (ee.RuntimeUnavailable, ee.OutOfMemory, StoreError, OSError)
_PERMANENT: tuple[type[Exception], ...] = (
    SeriesError, DeriveError, ee.VolumeUnsuitable, ee.OutputImplausible, ee.CardInvalid, ee.WeightsMismatch,
)  # fmt: skip


def _sort(store: Store, job: Job, owner: str, e: Exception) -> bool:
    """Decide what a failure means. Returns True if this process is still to be trusted."""
    told = f"{type(e).__name__}: {_text(e)}"
    now = datetime.now(UTC)
    if isinstance(e, _PERMANENT) or (isinstance(e, EnhanceError) and not e.retryable):
        state, wait, trusted = JobState.HELD, 0.0, True
    elif isinstance(e, _RETRY):
        state = JobState.QUEUED if job.attempt < _TRIES else JobState.HELD
        wait, trusted = min(5.0 * 2**job.attempt, 300.0), not isinstance(e, ee.OutOfMemory)
    else:
        state = JobState.QUEUED if job.attempt < 2 else JobState.HELD
        wait, trusted = 1.0, False
    log.error("job.failed", job=job.id, series=job.series_id, state=str(state), because=type(e).__name__)
    try:
        store.jobs.fail(
            job.id, owner, job.attempt, state=state, failure=told, at=now,
            not_before=now + timedelta(seconds=wait),
        )  # fmt: skip
    except StoreError:
        log.error("job.failure_unrecorded", job=job.id)  # the lease runs out and the job comes back
    return trusted


def _text(e: Exception) -> str:
    """What may be told of an exception: our own texts hold no patient data, others' may."""
    if isinstance(e, (ee.EngineError, SeriesError, DeriveError, EnhanceError, StoreError)):
        return (f"{e} ({e.hint})" if e.hint else str(e))[:500]
    if isinstance(e, OSError):
        return e.strerror or ""
    last = e.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}" if last else "unknown"
    return f"unexpected, at {where}"
