"""The worker: a spawned child that owns the engines and works off jobs, one at a time.

It claims a job by lease, beats while it works, and ends itself after any failure that it cannot explain, so
that the next job meets a fresh process. Failures that it can explain are sorted by what should be done.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import engines.errors as ee
from node.enhance.guardian import ATTEMPT, JOB, PROGRESS, STOP
from node.enhance.work import Stopped, Workshop, do
from node.errors import (
    DeriveError,
    EnhanceError,
    NodeError,
    OutOfSpace,
    SeriesError,
    StoreError,
    TransitionRefused,
)
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
) -> None:
    """Entry of the spawned child: work until ``shared[STOP]`` is set.

    ``warm`` are (engine, runtime) pairs to load before the first job asks for them.
    """

    def ask(_number: int, _frame: object) -> None:
        shared[STOP] = 1.0

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ask)
    faulthandler.enable()  # a crash in native code tells where: files and lines, no values
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO))
    configure(level, fmt=fmt, waits=False)
    try:
        with Store.open(database, Path(spool), create=False) as store:
            workshop = Workshop(store=store, threads=threads)
            _warm_up(workshop, warm)
            _work(store, workshop, shared)
    except BaseException as e:
        log.critical("worker.broke", because=type(e).__name__, told=_text(e))
        sys.exit(1)


def _warm_up(workshop: Workshop, warm: Sequence[tuple[str, str]]) -> None:
    for name, runtime in warm:
        try:
            workshop.engine(name, runtime)
        except ee.EngineError as e:  # its jobs will be held with the same words
            log.error("engine.unavailable", engine=name, because=type(e).__name__, told=e.message)


def _work(store: Store, workshop: Workshop, shared: Any) -> None:
    owner = me("enhance")
    log.info("worker.started", engines=len(workshop.catalog.names()))
    ticker = store.changes.ticker()
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
            if job is None:
                ticker.wait(0.5)
            elif not work_off(store, workshop, job, owner, shared):
                return
    finally:
        ticker.close()


def take_back(store: Store, now: datetime) -> int:
    """Re-queue jobs whose owner on this host no longer lives. Returns how many."""
    n = 0
    for job in store.jobs.list(states=[JobState.RUNNING]):
        if job.lease is None or not certainly_dead(job.lease.owner):
            continue
        state = JobState.HELD if job.attempt >= _TRIES else JobState.QUEUED
        store.jobs.fail(job.id, job.lease.owner, job.attempt, "its process died", state, now, not_before=now)
        n += 1
    return n


def work_off(store: Store, workshop: Workshop, job: Job, owner: str, shared: Any) -> bool:
    """Do one job, whatever comes of it. Returns False if this process should not be trusted with another.

    Parameters
    ----------
    job
        Claimed for ``owner``.
    shared
        The slots of ``node.enhance.guardian``.
    """
    shared[ATTEMPT] = job.attempt
    shared[PROGRESS] = time.monotonic()
    shared[JOB] = job.id
    lost = threading.Event()
    done = threading.Event()
    progress: dict[str, float] = {}

    def tell(step: str, share: float) -> None:
        progress[step] = round(share, 3)
        shared[PROGRESS] = time.monotonic()
        if shared[STOP] or lost.is_set():
            raise Stopped

    beat = threading.Thread(
        target=_beat, args=(store, job, owner, progress, done, lost), name="heartbeat", daemon=True
    )
    beat.start()
    try:
        do(workshop, job, owner, tell)
    except (Stopped, TransitionRefused):
        _give_back(store, job, owner)
        return True
    except BaseException as e:  # engines are others' code: one may even raise SystemExit
        return _sort(store, job, owner, e)
    finally:
        done.set()
        beat.join()
        shared[JOB] = 0
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
    lost: threading.Event,
) -> None:
    told = False
    while not done.wait(_BEAT_S):
        until = datetime.now(UTC) + timedelta(seconds=LEASE_S)
        try:
            if not store.jobs.heartbeat(job.id, owner, job.attempt, until, dict(progress)):
                lost.set()
                return
            told = False
        except Exception as e:  # the lease outlives a short absence of the database
            if not told:
                log.warning("job.beat_failed", job=job.id, because=type(e).__name__, told=_text(e))
            told = True


class _Verdict(NamedTuple):
    """What a failure means: whether it is a person's, how long to wait, whether this process is to go on."""

    held: bool
    wait_s: float
    trusted: bool


_PERMANENT: tuple[type[BaseException], ...] = (
    SeriesError, DeriveError, ee.VolumeUnsuitable, ee.OutputImplausible, ee.CardInvalid, ee.WeightsMismatch,
)  # fmt: skip


def _judge(e: BaseException, attempt: int) -> _Verdict:
    wait_s = min(5.0 * 2 ** min(attempt, 10), 300.0)
    worn_out = attempt >= _TRIES
    if isinstance(e, OutOfSpace):
        return _Verdict(held=False, wait_s=wait_s, trusted=True)  # as long as it takes somebody to make room
    if isinstance(e, _PERMANENT) or (isinstance(e, EnhanceError | StoreError) and not e.retryable):
        return _Verdict(held=True, wait_s=0.0, trusted=True)
    if isinstance(e, ee.OutOfMemory | MemoryError):
        return _Verdict(held=worn_out, wait_s=wait_s, trusted=False)
    if isinstance(e, ee.RuntimeUnavailable | EnhanceError | StoreError | OSError):
        return _Verdict(held=worn_out, wait_s=wait_s, trusted=True)
    return _Verdict(held=attempt >= 2, wait_s=1.0, trusted=False)


def _sort(store: Store, job: Job, owner: str, e: BaseException) -> bool:
    """Record a failure by what it means. Returns True if this process is still to be trusted."""
    verdict = _judge(e, job.attempt)
    told, now = f"{type(e).__name__}: {_text(e)}", datetime.now(UTC)
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


def _text(e: BaseException) -> str:
    """What may be told of an exception: our own texts hold no values of data sets, others' may."""
    if isinstance(e, ee.EngineError | NodeError):
        return (f"{e.message} ({e.hint})" if e.hint else e.message)[:500]
    if isinstance(e, OSError):
        return f"{e.strerror or 'the system refused'}, at {_where(e.__traceback__)}"
    return f"unexpected, at {_where(e.__traceback__)}"


def _where(traceback: TracebackType | None) -> str:
    """File and line where an exception was raised, behind the last place of ours that it came through."""
    ours = inner = ""
    while traceback is not None:
        path = Path(traceback.tb_frame.f_code.co_filename)
        inner = f"{path.name}:{traceback.tb_lineno}"
        if any(path.is_relative_to(room) for room in _OURS):
            ours = inner
        traceback = traceback.tb_next
    return inner if ours in ("", inner) else f"{ours} > {inner}"


_ROOT = Path(__file__).resolve().parents[2]
_OURS = (_ROOT / "node", _ROOT / "engines")
