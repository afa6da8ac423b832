"""A job from claim to outbox on real stores: done once, the same bytes whoever does it, and nothing left behind
by one that fails."""

from __future__ import annotations

import io
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import engines.errors as ee
from engines.base import Engine
from engines.catalog import Catalog
from node.enhance import work, worker
from node.enhance.guardian import JOB, SIZE, STOP
from node.enhance.pace import Pace
from node.enhance.work import do
from node.enhance.worker import work_off
from node.enhance.workshop import Proven, Workshop
from node.errors import DeriveError, EngineUnavailable, ImplausibleOutput, OutOfSpace, SeriesError, StoreError
from node.log import configure
from node.model import Job, JobState
from node.store import Spool, Store
from node.store.db import Database
from tests.enhancing import Watched, flip, queue, receive, series

CATALOG = Catalog.default()
OWNER = "w"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return CATALOG.load("ct-tv", threads=1)


class Shop(Workshop):
    """A workshop with one engine, whatever a job asks for."""

    def __init__(self, store: Store, engine: Engine) -> None:
        super().__init__(store=store, threads=1, catalog=CATALOG)
        self.one = engine

    def proven(self, name: str, runtime: str, *, reference: bool = False) -> Proven:
        return Proven(engine=self.one, device="cpu", pace=Pace(0.01))


def claimed(store: Store, at: datetime | None = None) -> Job:
    job = store.jobs.claim(OWNER, 30, at or datetime.now(UTC))
    assert job is not None
    return job


def quiet(_step: str, _share: float) -> None:
    pass


def worked(store: Store, engine: Engine, shared: list[float] | None = None) -> tuple[Job, bool]:
    """Claim a job and work it off as the worker does; the job afterwards, and whether the process is trusted."""
    job = claimed(store, datetime.now(UTC) + timedelta(hours=1))
    trusted = work_off(store, Shop(store, engine), job, OWNER, shared or [0.0] * SIZE)
    after = store.jobs.get(job.id)
    assert after is not None
    return after, trusted


def left_behind(store: Store) -> list[str]:
    """Files that only a job in progress may have."""
    root = store.spool.root
    return [
        str(p.relative_to(root))
        for area in ("tmp", "scratch", "derived")
        for p in (root / area).rglob("*")
        if p.is_file() and not store.reception.known_path(str(p.relative_to(root)))
    ] + [str(p) for p in (root / "scratch").iterdir()]


def test_a_job_is_done_once(store: Store, engine: Engine) -> None:
    """On both databases: derived, recorded, in the outbox; and nothing twice, however often it is asked for."""
    slices = series("CT", 6)
    (job_id,) = queue(store, receive(store, slices), engine.card)
    watched = Watched(engine)
    job, trusted = worked(store, watched)
    assert (job.id, job.state, trusted) == (job_id, JobState.DONE, True)
    assert not left_behind(store)
    derived = store.deliveries.derived_of_job(job_id)
    assert derived is not None
    assert [d.source_sop_instance_uid for d in derived.instances] == [ds.SOPInstanceUID for ds in slices]
    for one, source in zip(derived.instances, slices, strict=True):
        assert store.spool.verify(one.path, one.offset, one.sha256)
        told = pydicom.dcmread(store.spool.path(one.path))
        assert (told.SOPInstanceUID, told.SeriesInstanceUID) == (one.sop_instance_uid, derived.series_uid)
        assert told.StudyInstanceUID == source.StudyInstanceUID
        assert told.PixelData != source.PixelData
        assert told.ImageType[0] == "DERIVED"
    assert [d.destination for d in store.deliveries.list()] == ["pacs"]
    record = next(r for r in store.provenance.story(derived.series_uid).records if r.kind == "series.derived")
    assert record.body["engine"]["name"] == engine.card.name
    assert record.body["figures"]["noise_after"] < record.body["figures"]["noise_before"]
    assert (record.body["slices"], record.body["skipped"], record.body["sources"]) == (6, 0, 6)
    assert set(record.body["seconds"]) == {"decode", "survey", "enhance", "derive", "total"}
    n_records = len(store.provenance.story(derived.series_uid).records)

    store.jobs.retry(job_id, datetime.now(UTC))
    again, _ = worked(store, watched)
    assert again.state is JobState.DONE
    assert store.deliveries.derived_of_job(job_id) == derived, "a retried job writes the same bytes"
    assert len(store.deliveries.list()) == 1
    assert len(store.provenance.story(derived.series_uid).records) >= n_records
    assert not left_behind(store)
    assert store.provenance.verify().ok


def test_a_second_job_for_the_same_series_adds_nothing(store: Store, engine: Engine) -> None:
    """Two rounds of routing that made the same derivation, as after `series retry`."""
    series_id = receive(store, series("CT", 5))
    queue(store, series_id, engine.card)
    first, _ = worked(store, engine)
    store.series.reopen_for_routing(series_id, datetime.now(UTC))
    assert queue(store, series_id, engine.card) == [first.id], "it is the same job"
    again, _ = worked(store, engine)
    assert again.state is JobState.DONE
    assert len(store.deliveries.list()) == 1
    assert not left_behind(store)


def test_late_slices_are_computed_alone_and_like_the_whole(
    sqlite_store: Store, engine: Engine, tmp_path: Path
) -> None:
    store, slices = sqlite_store, series("CT", 12)
    queue(store, receive(store, slices[:8]), engine.card)
    first, _ = worked(store, engine)
    queue(store, receive(store, slices[8:], "b"), engine.card)
    watched = Watched(engine)
    second, _ = worked(store, watched)
    assert (first.state, second.state) == (JobState.DONE, JobState.DONE)
    assert watched.n("enhance") == 4
    assert watched.n("survey") == 12
    parts = [store.deliveries.derived_of_job(j.id) for j in (first, second)]
    assert parts[0] is not None
    assert parts[1] is not None
    assert parts[0].series_uid == parts[1].series_uid
    assert [len(p.instances) for p in parts if p] == [8, 4]

    with Store.open(f"sqlite:///{tmp_path}/whole.db", tmp_path / "whole") as other:
        queue(other, receive(other, slices), engine.card)
        worked(other, engine)
        (whole,) = other.deliveries.derived_by_series_uid(parts[0].series_uid)
        at_once = {d.sop_instance_uid: pixels(other, d.path) for d in whole.instances}
    late = {d.sop_instance_uid: pixels(store, d.path) for d in parts[1].instances}
    assert set(at_once) == {d.sop_instance_uid for p in parts if p for d in p.instances}
    assert all(np.array_equal(late[uid], at_once[uid]) for uid in late)

    # All was derived by now: the first job, done again, makes its own part again and no more.
    store.jobs.retry(first.id, datetime.now(UTC))
    watched.seen.clear()
    again, _ = worked(store, watched)
    assert again.state is JobState.DONE
    assert watched.n("enhance") == 8
    assert store.deliveries.derived_of_job(first.id) == parts[0]


def pixels(store: Store, path: str) -> np.ndarray[Any, Any]:
    return pydicom.dcmread(store.spool.path(path)).pixel_array


def test_a_job_whose_instances_others_derived_ends_with_nothing(sqlite_store: Store, engine: Engine) -> None:
    store = sqlite_store
    slices = series("CT", 6)
    queue(store, receive(store, slices[:4]), engine.card)
    queue(store, receive(store, slices[4:], "b"), engine.card)
    second = claimed(store)  # the older one is taken; the younger does all the work before it comes to it
    younger = claimed(store)
    do(Shop(store, engine), younger, OWNER, quiet)
    watched = Watched(engine)
    do(Shop(store, watched), second, OWNER, quiet)
    assert not watched.seen
    done = store.jobs.get(second.id)
    assert done is not None
    assert done.state is JobState.DONE
    derived = store.deliveries.derived_of_job(second.id)
    assert derived is not None
    assert derived.instances == ()
    assert len(store.deliveries.list()) == 1


# passed through -----------------------------------------------------------------------------------


def test_slices_that_were_passed_through_are_in_the_provenance(sqlite_store: Store, engine: Engine) -> None:
    store = sqlite_store
    queue(store, receive(store, series("CT", 14, loud=range(8, 14))), engine.card)
    job, _ = worked(store, engine)
    assert job.state is JobState.DONE
    derived = store.deliveries.derived_of_job(job.id)
    assert derived is not None
    record = next(r for r in store.provenance.story(derived.series_uid).records if r.kind == "series.derived")
    assert (record.body["slices"], record.body["skipped"]) == (14, 6)
    assert record.body["notes"][0] == "6 of 14 slices were passed through unchanged"
    assert any("its noise is higher" in note for note in record.body["notes"])


def test_a_series_that_was_passed_through_whole_is_held(sqlite_store: Store, engine: Engine) -> None:
    store = sqlite_store
    queue(store, receive(store, series("CT", 5, loud=range(5))), engine.card)
    job, trusted = worked(store, engine)
    assert (job.state, trusted) == (JobState.HELD, True)
    assert "every slice was passed through unchanged" in job.failure
    assert "noise is higher" in job.failure
    assert not store.deliveries.list()
    assert store.deliveries.derived_of_job(job.id) is None
    assert not left_behind(store)


# what is wrong with the series --------------------------------------------------------------------


def test_a_flipped_bit_in_the_spool_holds_the_job(sqlite_store: Store, engine: Engine) -> None:
    store = sqlite_store
    series_id = receive(store, series("CT", 4))
    queue(store, series_id, engine.card)
    flip(store.spool.path(store.series.instances(series_id)[2].path), -3)
    job, _ = worked(store, engine)
    assert job.state is JobState.HELD
    assert "not those that were received" in job.failure
    assert "spool fsck" in job.failure
    assert not left_behind(store)


def test_pixels_that_cannot_be_decoded_hold_the_job(sqlite_store: Store, engine: Engine) -> None:
    store, slices = sqlite_store, series("CT", 4)
    slices[1].PixelData = slices[1].PixelData[:-20]
    queue(store, receive(store, slices), engine.card)
    job, _ = worked(store, engine)
    assert (job.state, job.failure) == (JobState.HELD, "SeriesError: Pixel Data is cut short")
    assert not left_behind(store)


def test_an_instance_that_cannot_be_read_is_no_silent_hole(sqlite_store: Store, engine: Engine) -> None:
    store = sqlite_store
    series_id = receive(store, series("CT", 4))
    queue(store, series_id, engine.card)
    with closing(sqlite3.connect(str(store.database.url.database))) as raw, raw:
        raw.execute("UPDATE instance SET indexed = 2 WHERE id = 2")
    job, _ = worked(store, engine)
    assert (job.state, job.failure) == (JobState.HELD, "SeriesError: 1 of 4 instances cannot be read")


def test_another_engine_than_was_queued_holds_the_job(sqlite_store: Store, engine: Engine) -> None:
    queue(sqlite_store, receive(sqlite_store, series("CT", 4)), engine.card)
    job, _ = worked(sqlite_store, CATALOG.load("ct-wavelet", threads=1))
    assert job.state is JobState.HELD
    assert "the engine changed since this series was routed" in job.failure
    assert "series retry" in job.failure


# what goes wrong meanwhile ------------------------------------------------------------------------

SECRET = "Muster^Eva"


@pytest.mark.parametrize(
    ("error", "attempt", "state", "trusted"),
    [
        (SeriesError("s"), 1, JobState.HELD, True),
        (DeriveError("d"), 1, JobState.HELD, True),
        (ImplausibleOutput("i"), 1, JobState.HELD, True),
        (ee.VolumeUnsuitable("v"), 1, JobState.HELD, True),
        (ee.OutputImplausible("o"), 1, JobState.HELD, True),
        (ee.CardInvalid("c"), 1, JobState.HELD, True),
        (ee.WeightsMismatch("w"), 1, JobState.HELD, True),
        (StoreError("never", retryable=False), 1, JobState.HELD, True),
        (ee.RuntimeUnavailable("r"), 4, JobState.QUEUED, True),
        (ee.RuntimeUnavailable("r"), 5, JobState.HELD, True),
        (EngineUnavailable("e"), 1, JobState.QUEUED, True),
        (StoreError("away"), 1, JobState.QUEUED, True),
        (OSError(5, "Input/output error", SECRET), 1, JobState.QUEUED, True),
        (OutOfSpace("full"), 40, JobState.QUEUED, True),
        (ee.OutOfMemory("m"), 1, JobState.QUEUED, False),
        (MemoryError(SECRET), 1, JobState.QUEUED, False),
        (MemoryError(SECRET), 2, JobState.HELD, False),
        (ee.DeviceLost("gone"), 1, JobState.QUEUED, False),
        (ee.CanaryRefused("c"), 4, JobState.QUEUED, False),
        (ee.CanaryRefused("c"), 5, JobState.HELD, False),
        (ValueError(SECRET), 1, JobState.QUEUED, False),
        (ValueError(SECRET), 2, JobState.HELD, False),
        (KeyError(SECRET), 1, JobState.QUEUED, False),
        (SystemExit(SECRET), 1, JobState.QUEUED, False),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else str(v),
)
def test_failures_are_sorted_by_what_is_to_be_done(
    sqlite_store: Store,
    engine: Engine,
    error: BaseException,
    attempt: int,
    state: JobState,
    trusted: bool,
) -> None:
    """The engine raises in the middle; whatever it says, no value of a data set is told anywhere."""
    store = sqlite_store
    queue(store, receive(store, series("CT", 4)), engine.card)
    with closing(sqlite3.connect(str(store.database.url.database))) as raw, raw:
        raw.execute("UPDATE job SET attempt = ?", (attempt - 1,))

    def on(step: str, n: int) -> None:
        if step == "enhance":
            raise error

    told = io.StringIO()
    configure("debug", fmt="json", stream=told)
    try:
        job, seen = worked(store, Watched(engine, on))
    finally:
        configure("error")
    assert (job.state, seen) == (state, trusted)
    assert type(error).__name__ in job.failure
    assert SECRET not in job.failure + told.getvalue()
    assert told.getvalue().count("job.failed") == 1
    assert type(error).__name__ in told.getvalue()
    if not trusted and not isinstance(error, ee.EngineError):
        assert "test_enhance_work.py:" in told.getvalue()
    if state is JobState.QUEUED:
        assert timedelta(0) < job.not_before - datetime.now(UTC) <= timedelta(minutes=5)
    assert not left_behind(store)
    assert not store.deliveries.list()


def test_out_of_memory_is_tried_again_in_less(sqlite_store: Store, engine: Engine) -> None:
    store = sqlite_store
    queue(store, receive(store, series("CT", 18)), engine.card)

    def on(step: str, n: int) -> None:
        if step == "enhance" and watched.seen[-1][2] > 8:
            raise ee.OutOfMemory("too much at once")

    watched = Watched(engine, on)
    first, _ = worked(store, watched)
    second, _ = worked(store, watched)
    assert (first.state, second.state) == (JobState.QUEUED, JobState.DONE)
    assert [n for step, _, n in watched.seen if step == "enhance"] == [16, 8, 8, 2]


def test_out_of_memory_is_tried_again_by_one_thread(sqlite_store: Store, engine: Engine) -> None:
    """Two slabs at once take what one of twice as many slices takes."""
    store = sqlite_store
    queue(store, receive(store, series("CT", 18)), engine.card)
    where: set[str] = set()

    class Laned(Watched):
        threads, lanes, hands = 2, 2, nullcontext()

    def on(step: str, n: int) -> None:
        where.add(threading.current_thread().name.partition("_")[0])
        if step == "enhance" and not failed:
            failed.append(n)
            raise ee.OutOfMemory("too much at once")

    failed: list[int] = []
    first, _ = worked(store, Laned(engine, on))
    assert where == {"survey", "slab"}
    where.clear()
    second, _ = worked(store, Laned(engine, on))
    assert (first.state, second.state) == (JobState.QUEUED, JobState.DONE)
    assert where == {threading.current_thread().name}


def test_the_pace_learns_from_the_slabs_of_jobs(sqlite_store: Store, engine: Engine) -> None:
    store = sqlite_store
    queue(store, receive(store, series("CT", 40)), engine.card)
    pace = Pace(1000.0)

    class Paced(Shop):
        def proven(self, name: str, runtime: str, *, reference: bool = False) -> Proven:
            return Proven(engine=engine, device="cpu", pace=pace)

    guess = pace.expected_s(1 << 16)
    assert work_off(store, Paced(store, engine), claimed(store), OWNER, [0.0] * SIZE)
    assert 0 < pace.expected_s(1 << 16) < guess / 2


@pytest.mark.parametrize("step", ["decode", "survey", "enhance"])
def test_sigterm_puts_the_job_down_and_it_does_not_count(
    sqlite_store: Store, engine: Engine, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sqlite_store
    queue(store, receive(store, series("CT", 6)), engine.card)
    shared = [0.0] * SIZE

    def stop(*_: object) -> None:
        shared[STOP] = 1.0

    if step == "decode":
        take = work.Item.open
        monkeypatch.setattr(work.Item, "open", lambda self: (stop(), take(self))[1])
    job, trusted = worked(store, Watched(engine, lambda now, n: stop() if now == step else None), shared)
    assert (job.state, job.attempt, trusted, job.failure) == (JobState.QUEUED, 0, True, "")
    assert shared[JOB] == 0
    assert not left_behind(store)


@pytest.fixture
def fast_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_BEAT_S", 0.005)


@pytest.mark.usefixtures("fast_beat")
def test_a_job_that_is_cancelled_meanwhile_ends(sqlite_store: Store, engine: Engine) -> None:
    store = sqlite_store
    (job_id,) = queue(store, receive(store, series("CT", 40)), engine.card)
    watched = Watched(engine)

    def on(step: str, n: int) -> None:
        if step == "enhance" and n == 1:
            store.jobs.cancel(job_id, datetime.now(UTC))
            noticed.wait(10)

    watched.on = on
    noticed = beats_refused(store)
    job, trusted = worked(store, watched)
    assert (job.state, trusted) == (JobState.CANCELLED, True)
    assert watched.n("enhance") == 16
    assert not left_behind(store)
    assert not store.deliveries.list()


@pytest.mark.usefixtures("fast_beat")
def test_a_job_that_was_taken_over_is_left_to_the_other(sqlite_store: Store, engine: Engine) -> None:
    """The lease ran out, as when this process was stopped for a minute: the other's files are not touched."""
    store = sqlite_store
    (job_id,) = queue(store, receive(store, series("CT", 20)), engine.card)

    def on(step: str, n: int) -> None:
        if step == "enhance" and n == 2:
            other = store.jobs.claim("other", 30, datetime.now(UTC) + timedelta(hours=2))
            assert other is not None
            assert other.id == job_id
            do(Shop(store, engine), other, "other", quiet)

    job, trusted = worked(store, Watched(engine, on))
    assert (job.state, trusted) == (JobState.DONE, True)
    derived = store.deliveries.derived_of_job(job_id)
    assert derived is not None
    assert len(derived.instances) == 20
    assert all(store.spool.verify(d.path, d.offset, d.sha256) for d in derived.instances)
    assert not left_behind(store)


@pytest.mark.usefixtures("fast_beat")
def test_what_another_attempt_is_writing_stays(sqlite_store: Store, engine: Engine) -> None:
    store = sqlite_store
    (job_id,) = queue(store, receive(store, series("CT", 20)), engine.card)

    def on(step: str, n: int) -> None:
        if step == "enhance" and n == 2:
            assert store.jobs.claim("other", 30, datetime.now(UTC) + timedelta(hours=2)) is not None

    job, trusted = worked(store, Watched(engine, on))
    assert (job.state, job.attempt, trusted) == (JobState.RUNNING, 2, True)
    assert job.lease is not None
    assert job.lease.owner == "other"
    assert left_behind(store), "they have the names that the other attempt gives"
    do(Shop(store, engine), job, "other", quiet)
    assert not left_behind(store)
    assert store.jobs.get(job_id).state is JobState.DONE  # type: ignore[union-attr]


def beats_refused(store: Store) -> Any:
    """An event that is set once a heartbeat was refused: then the worker knows."""
    event = threading.Event()
    heartbeat = store.jobs.heartbeat

    def watched(*args: Any, **kwargs: Any) -> bool:
        ours = heartbeat(*args, **kwargs)
        if not ours:
            event.set()
        return ours

    store.jobs.heartbeat = watched  # type: ignore[method-assign]
    return event


def test_a_job_waits_for_room_on_the_disk(
    sqlite_store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sqlite_store
    queue(store, receive(store, series("CT", 6)), engine.card)
    watched = Watched(engine)
    with monkeypatch.context() as full:
        full.setattr(store.spool, "free_bytes", lambda: 6 * 64 * 64 * 4 - 1)
        job, trusted = worked(store, watched)
    assert (job.state, trusted) == (JobState.QUEUED, True)
    assert "there is no room" in job.failure
    assert not watched.seen
    job, _ = worked(store, watched)
    assert job.state is JobState.DONE


@pytest.fixture
def impatient(sqlite_url: str, tmp_path: Path) -> Any:
    """A store that waits for the database's lock for a moment only: one that is busy is one that is away."""
    database = Database(sqlite_url, busy_timeout_s=0.01)
    with Store(database, Spool(tmp_path / "spool")) as one:
        yield one


def foreign_writer(store: Store) -> sqlite3.Connection:
    raw = sqlite3.connect(str(store.database.url.database), isolation_level=None, check_same_thread=False)
    raw.execute("BEGIN IMMEDIATE")
    return raw


@pytest.mark.usefixtures("fast_beat")
def test_a_database_that_is_away_costs_no_work(
    impatient: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes in the middle and comes back while the job waits to be recorded: computed once, recorded once."""
    store = impatient
    queue(store, receive(store, series("CT", 6)), engine.card)
    monkeypatch.setattr(work, "_RECORD_AGAIN_S", 0.01)
    writers: list[sqlite3.Connection] = []
    job = claimed(store)
    refused: list[str] = []

    def tell(step: str, share: float) -> None:
        if step == "survey" and not writers:
            writers.append(foreign_writer(store))
        if step == "record":
            refused.append(step)
            if len(refused) == 3:
                writers[0].rollback()
                writers[0].close()

    watched = Watched(engine)
    do(Shop(store, watched), job, OWNER, tell)
    assert len(refused) == 3
    assert watched.n("enhance") == 6
    assert store.jobs.get(job.id).state is JobState.DONE  # type: ignore[union-attr]
    assert not left_behind(store)


def test_a_node_that_stops_while_the_database_is_away_loses_nothing(
    impatient: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can be told that the job was put down: its lease runs out, and it is done again."""
    store = impatient
    queue(store, receive(store, series("CT", 6)), engine.card)
    monkeypatch.setattr(work, "_RECORD_AGAIN_S", 0.01)
    shared = [0.0] * SIZE
    writers: list[sqlite3.Connection] = []
    n_made = []

    def on(step: str, n: int) -> None:
        if step == "enhance":
            writers.append(foreign_writer(store))

    class Slow(Shop):
        def proven(self, name: str, runtime: str, *, reference: bool = False) -> Proven:
            return Proven(engine=Watched(engine, on), device="cpu", pace=Pace(0.01))

    def sync_dirs(paths: list[str]) -> None:
        n_made.append(len(paths))
        shared[STOP] = 1.0  # between the last slice and the record

    job = claimed(store)
    with monkeypatch.context() as stopping:
        stopping.setattr(store.spool, "sync_dirs", sync_dirs)
        assert work_off(store, Slow(store, engine), job, OWNER, shared)
    assert n_made == [6]
    writers[0].close()
    after = store.jobs.get(job.id)
    assert after is not None
    assert after.state is JobState.RUNNING
    again, _ = worked(store, engine)
    assert again.state is JobState.DONE
    assert not left_behind(store)


@pytest.mark.parametrize("where", ["create", "sync", "publish"])
def test_a_disk_that_fails_while_deriving_leaves_nothing(
    sqlite_store: Store, engine: Engine, where: str
) -> None:
    """The other thread meets it; the job comes back."""
    store = sqlite_store
    queue(store, receive(store, series("CT", 6)), engine.card)
    job = claimed(store)
    calls: list[str] = []
    create = store.spool.create

    def third(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if name == where:
                calls.append(name)
                if len(calls) == 3:
                    raise StoreError("spool: the disk refused (EIO)")
            return call(*args, **kwargs)

        return run

    class Writer:
        """A spool writer whose disk fails."""

        def __init__(self) -> None:
            self.real = create()

        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *exc: object) -> None:
            self.real.__exit__(*exc)

        def __getattr__(self, name: str) -> Any:
            return third(getattr(self.real, name), name)

    store.spool.create = third(Writer, "create")  # type: ignore[method-assign]
    assert work_off(store, Shop(store, engine), job, OWNER, [0.0] * SIZE)
    after = store.jobs.get(job.id)
    assert after is not None
    assert (after.state, after.failure) == (JobState.QUEUED, "StoreError: spool: the disk refused (EIO)")
    assert not left_behind(store)
