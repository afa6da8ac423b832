"""The queue: claimed once, fenced by lease, finished once, moved along edges only."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.errors import StoreError, TransitionRefused
from node.model import JOB_EDGES, DeliveryState, Job, JobState, SeriesState
from node.store import NewDerived, Store
from tests.storing import NOW, after, closed_series, decision, made, new_job, queued, queued_many, received


def claimed(store: Store, owner: str = "w1", lease_s: float = 30, now: datetime = NOW) -> Job:
    job = store.jobs.claim(owner, lease_s, now)
    assert job is not None
    return job


def finish(
    store: Store, job: Job, owner: str = "w1", derived: NewDerived | None = None, at: datetime = NOW
) -> int:
    body = {"engine": "ct-nlm 1.0", "device": "cpu"}
    return store.jobs.finish(job.id, owner, job.attempt, derived or made(store, job), body, at)


def state(store: Store, job_id: int) -> JobState:
    job = store.jobs.get(job_id)
    assert job is not None
    return job.state


# routing --------------------------------------------------------------------------------------------


def test_routing_queues_jobs_with_everything_they_need(store: Store) -> None:
    series_id = closed_series(store)
    new = [new_job("a", destinations=("pacs", "archive"), only_after_generation=1, revision=2), new_job("b")]
    ids = store.series.route(series_id, decision("pacs", "archive"), new, "d" * 64, after(1))
    one, two = (store.jobs.get(i) for i in ids)
    assert one is not None
    assert two is not None
    assert one.destinations == ("pacs", "archive")
    assert (one.only_after_generation, one.revision, one.config_digest) == (1, 2, "d" * 64)
    assert (one.params, one.state, one.attempt, one.lease) == ({"strength": 0.5}, JobState.QUEUED, 0, None)
    detail = store.jobs.detail(one.id)
    assert detail is not None
    assert detail.settings["archive"] == {"kind": "folder", "path": "out/archive"}
    series = store.series.get(series_id)
    assert series is not None
    assert (series.state, series.config_digest) == (SeriesState.ROUTED, "d" * 64)
    assert store.series.decision(series_id) == decision("pacs", "archive")


def test_a_series_is_routed_once(store: Store) -> None:
    series_id = closed_series(store)
    store.series.route(series_id, decision("pacs"), [new_job()], "c", NOW)
    with pytest.raises(TransitionRefused):
        store.series.route(series_id, decision("pacs"), [new_job("other")], "c", NOW)
    assert len(store.jobs.list()) == 1


def test_an_open_series_is_not_routed(store: Store) -> None:
    store.reception.record([received(store, 1)])
    with pytest.raises(TransitionRefused):
        store.series.route(1, decision(), [new_job()], "c", NOW)
    assert store.jobs.list() == []
    with pytest.raises(TransitionRefused):
        store.series.reopen_for_routing(1, NOW)


def test_a_series_decided_again_queues_its_job_again_and_no_second(store: Store) -> None:
    series_id = closed_series(store)
    (job_id,) = store.series.route(series_id, decision("pacs"), [new_job()], "c", NOW)
    finish(store, claimed(store))
    store.series.reopen_for_routing(series_id, NOW)
    assert store.series.decision(series_id) is None
    again = replace(new_job(), params={"strength": 0.9}, destinations={"new": {"kind": "folder"}})
    assert store.series.route(series_id, decision("new"), [again], "e", after(1)) == [job_id]
    job = claimed(store, now=after(1))
    assert (job.params, job.destinations, job.attempt, job.config_digest) == (
        {"strength": 0.9},
        ("new",),
        1,
        "e",
    )


def test_a_new_decision_cancels_what_an_old_one_left_waiting(store: Store) -> None:
    series_id = closed_series(store)
    ids = store.series.route(series_id, decision("pacs"), [new_job(k) for k in "abc"], "c", NOW)
    running = claimed(store)
    assert running.id == ids[0]
    store.series.reopen_for_routing(series_id, NOW)
    assert store.series.route(series_id, decision("pacs"), [new_job("b")], "c", after(1)) == [ids[1]]
    assert [state(store, i) for i in ids] == [JobState.RUNNING, JobState.QUEUED, JobState.CANCELLED]
    finish(store, running)


def test_deciding_again_leaves_running_work_alone(store: Store) -> None:
    series_id = closed_series(store)
    store.series.route(series_id, decision("pacs"), [new_job()], "c", NOW)
    job = claimed(store)
    store.series.reopen_for_routing(series_id, NOW)
    store.series.route(series_id, decision("pacs"), [new_job()], "c", NOW)
    assert store.jobs.heartbeat(job.id, "w1", job.attempt, after(60))


# claiming -------------------------------------------------------------------------------------------


def test_the_oldest_that_is_due_is_claimed(store: Store) -> None:
    first, second = queued(store, series=1), queued(store, series=2)
    job = claimed(store)
    assert (job.id, job.state, job.attempt) == (first, JobState.RUNNING, 1)
    assert job.lease is not None
    assert (job.lease.owner, job.lease.until) == ("w1", after(30))
    assert claimed(store, "w2").id == second
    assert store.jobs.claim("w3", 30, NOW) is None


def test_what_is_not_due_waits(store: Store) -> None:
    queued(store)
    job = claimed(store)
    assert store.jobs.fail(job.id, "w1", 1, "away", JobState.QUEUED, NOW, not_before=after(60))
    assert store.jobs.claim("w1", 30, after(59)) is None
    assert claimed(store, now=after(60)).attempt == 2


def test_engines_can_be_left_out(store: Store) -> None:
    queued(store)
    assert store.jobs.claim("w1", 30, NOW, exclude_engines=["ct-nlm"]) is None
    assert store.jobs.claim("w1", 30, NOW, exclude_engines=["mr-nlm"]) is not None


def test_a_lease_that_ran_out_is_taken_over_and_fences_the_first(store: Store) -> None:
    queued(store)
    slow = claimed(store, "slow")
    derived = made(store, slow)
    assert store.jobs.claim("fast", 30, after(29)) is None
    fast = claimed(store, "fast", now=after(30))
    assert fast.attempt == 2
    assert not store.jobs.heartbeat(slow.id, "slow", 1, after(90))
    assert not store.jobs.fail(slow.id, "slow", 1, "late", JobState.HELD, after(31))
    assert not store.jobs.release(slow.id, "slow", 1, after(31))
    with pytest.raises(TransitionRefused):
        finish(store, slow, "slow", derived)
    assert store.deliveries.list() == []
    finish(store, fast, "fast", derived)
    assert state(store, slow.id) is JobState.DONE


def test_the_same_worker_is_fenced_from_its_own_earlier_attempt(store: Store) -> None:
    queued(store)
    first = claimed(store)
    second = claimed(store, now=after(30))
    assert not store.jobs.heartbeat(first.id, "w1", 1, after(90))
    assert store.jobs.heartbeat(second.id, "w1", 2, after(90))


def test_a_heartbeat_keeps_the_lease_and_tells_progress(store: Store) -> None:
    queued(store)
    job = claimed(store)
    assert store.jobs.heartbeat(job.id, "w1", 1, after(60), {"enhance": 0.5})
    assert store.jobs.claim("w2", 30, after(45)) is None
    assert store.jobs.heartbeat(job.id, "w1", 1, after(70))
    detail = store.jobs.detail(job.id)
    assert detail is not None
    assert detail.progress == {"enhance": 0.5}
    assert detail.started_at == NOW


def test_released_work_is_due_at_once_and_its_attempt_does_not_count(store: Store) -> None:
    queued(store)
    job = claimed(store)
    assert store.jobs.release(job.id, "w1", 1, after(1))
    assert claimed(store, "w2", now=after(1)).attempt == 1


def test_expired_leases_are_put_back_or_held_after_too_many(store: Store) -> None:
    job_id = queued(store)
    claimed(store)
    assert store.jobs.requeue_expired(after(29)) == []
    assert store.jobs.requeue_expired(after(30), max_attempts=2) == [job_id]
    assert state(store, job_id) is JobState.QUEUED
    assert claimed(store, now=after(31)).attempt == 2
    assert store.jobs.requeue_expired(after(90), max_attempts=2) == [job_id]
    assert state(store, job_id) is JobState.HELD
    assert [e.name for e in store.events.list()] == ["job.held"]


def test_failures_end_where_they_should(store: Store) -> None:
    job_id = queued(store)
    job = claimed(store)
    assert store.jobs.fail(
        job.id, "w1", 1, "noise out of range", JobState.HELD, after(1), body={"sigma": 99.0}
    )
    held = store.jobs.get(job_id)
    assert held is not None
    assert (held.state, held.failure, held.lease) == (JobState.HELD, "noise out of range", None)
    assert store.jobs.claim("w1", 30, after(9999)) is None
    (event,) = store.events.list(level="error")
    assert event.body["failure"] == "noise out of range"
    record = store.provenance.story("1.2.3.1").records[-1]
    assert (record.kind, record.body["sigma"]) == ("job.held", 99.0)
    store.jobs.retry(job_id, after(2))
    again = claimed(store, now=after(2))
    assert (again.attempt, again.failure) == (1, "")


def test_text_that_no_database_takes_is_cleaned(store: Store) -> None:
    queued(store)
    job = claimed(store)
    assert store.jobs.fail(job.id, "w1", 1, "bad\0 \ud800 text" + "x" * 9999, JobState.FAILED, NOW)
    failed = store.jobs.get(job.id)
    assert failed is not None
    assert failed.failure.startswith("bad ? text")
    assert len(failed.failure) == 2000


def test_a_cancelled_job_is_noticed_at_the_next_heartbeat(store: Store) -> None:
    queued(store)
    job = claimed(store)
    store.jobs.cancel(job.id, after(1))
    assert not store.jobs.heartbeat(job.id, "w1", 1, after(60))
    with pytest.raises(TransitionRefused):
        finish(store, job)
    with pytest.raises(TransitionRefused):
        store.jobs.cancel(job.id, after(1))
    store.jobs.retry(job.id, after(2))
    assert claimed(store, now=after(2)).attempt == 1


# finishing ------------------------------------------------------------------------------------------


def test_finishing_writes_everything_at_once(store: Store) -> None:
    queued(store, destinations=("pacs", "archive"))
    job = claimed(store)
    derived = made(store, job)
    derived_id = finish(store, job, derived=derived, at=after(7))
    assert state(store, job.id) is JobState.DONE
    told = store.deliveries.derived(derived_id)
    assert told is not None
    assert told.instances == tuple(derived.instances)
    assert (told.job_id, told.series_uid, told.number) == (job.id, derived.series_uid, 1001)
    assert store.deliveries.derived_of_job(job.id) == told
    assert store.deliveries.derived_by_series_uid(derived.series_uid) == [told]
    assert store.deliveries.derived_of_series("1.2.3.1") == [told]
    deliveries = store.deliveries.list()
    assert {(d.destination, d.state, d.not_before) for d in deliveries} == {
        ("pacs", DeliveryState.PENDING, after(7)),
        ("archive", DeliveryState.PENDING, after(7)),
    }
    assert deliveries[0].settings["kind"] == "folder"
    assert all(store.reception.known_path(i.path) for i in derived.instances)
    record = store.provenance.story(derived.series_uid).records[-1]
    assert record.kind == "series.derived"
    assert record.body["engine"] == "ct-nlm 1.0"
    sources = {i.sop_instance_uid: i.sha256 for i in store.series.instances(job.series_id)}
    assert record.body["instances"] == [
        [i.sop_instance_uid, i.sha256, i.source_sop_instance_uid, sources[i.source_sop_instance_uid]]
        for i in derived.instances
    ]


def test_finishing_again_after_a_commit_of_unknown_outcome_adds_nothing(store: Store) -> None:
    queued(store)
    job = claimed(store)
    derived = made(store, job)
    assert finish(store, job, derived=derived) == finish(store, job, derived=derived, at=after(5))
    assert len(store.deliveries.list()) == 1
    assert store.provenance.verify().checked == 2  # routed, derived


def test_running_a_job_again_replaces_nothing_that_was_sent(store: Store) -> None:
    queued(store)
    job = claimed(store)
    derived_id = finish(store, job)
    delivery = store.deliveries.claim("d", 30, NOW)
    assert delivery is not None
    store.jobs.retry(job.id, after(1))
    again = claimed(store, now=after(1))
    assert finish(store, again, derived=made(store, again, tag=" again")) == derived_id
    (only,) = store.deliveries.list()
    assert only.state is DeliveryState.SENDING
    derived = store.deliveries.derived(derived_id)
    assert derived is not None
    assert len(derived.instances) == 3


def test_where_it_goes_can_be_told_at_the_end(store: Store) -> None:
    queued(store)
    job = claimed(store)
    store.jobs.finish(job.id, "w1", 1, made(store, job), {}, NOW, deliveries=[("x", {"kind": "dimse"})])
    assert [(d.destination, d.settings) for d in store.deliveries.list()] == [("x", {"kind": "dimse"})]


def test_a_derived_file_that_vanished_stops_the_finish(store: Store) -> None:
    queued(store)
    job = claimed(store)
    derived = made(store, job)
    store.spool.remove(derived.instances[1].path)
    with pytest.raises(StoreError):
        finish(store, job, derived=derived)
    assert state(store, job.id) is JobState.RUNNING
    assert store.deliveries.list() == []


def test_many_instances_are_no_trouble(store: Store) -> None:
    queued(store, n=1)
    job = claimed(store)
    one = made(store, job)
    many = [replace(one.instances[0], sop_instance_uid=f"2.25.9.{n}") for n in range(1203)]
    derived_id = finish(store, job, derived=replace(one, instances=many))
    derived = store.deliveries.derived(derived_id)
    assert derived is not None
    assert list(derived.instances) == many


# edges ----------------------------------------------------------------------------------------------

_MOVES: dict[str, Callable[[Store, Job, datetime], Any]] = {
    "claim": lambda s, j, at: s.jobs.claim("w1", 30, at),
    "heartbeat": lambda s, j, at: s.jobs.heartbeat(j.id, "w1", j.attempt, at + timedelta(seconds=30)),
    "finish": lambda s, j, at: s.jobs.finish(j.id, "w1", j.attempt, made(s, j), {}, at),
    "fail": lambda s, j, at: s.jobs.fail(j.id, "w1", j.attempt, "x", JobState.FAILED, at),
    "hold": lambda s, j, at: s.jobs.fail(j.id, "w1", j.attempt, "x", JobState.HELD, at),
    "again": lambda s, j, at: s.jobs.fail(j.id, "w1", j.attempt, "x", JobState.QUEUED, at),
    "release": lambda s, j, at: s.jobs.release(j.id, "w1", j.attempt, at),
    "retry": lambda s, j, at: s.jobs.retry(j.id, at),
    "cancel": lambda s, j, at: s.jobs.cancel(j.id, at),
    "expire": lambda s, j, at: s.jobs.requeue_expired(at + timedelta(days=1)),
}


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.sampled_from(sorted(_MOVES)), max_size=12))
def test_any_history_follows_the_edges(sqlite_store: Store, history: list[str]) -> None:
    store = sqlite_store
    for left in store.jobs.list([JobState.QUEUED, JobState.RUNNING]):
        store.jobs.cancel(left.id, NOW)
    job_id = queued(store, series=len(store.series.list(limit=10_000)) + 1, n=1)
    for k, what in enumerate(history):
        before = store.jobs.get(job_id)
        assert before is not None
        refused = False
        try:
            refused = _MOVES[what](store, before, after(k)) in (False, None, []) and what not in (
                "retry",
                "cancel",
            )
        except TransitionRefused:
            refused = True
        now = store.jobs.get(job_id)
        assert now is not None
        if refused:
            assert now == before
        elif now.state is not before.state:
            assert now.state in JOB_EDGES[before.state]
        assert (now.lease is not None) == (now.state is JobState.RUNNING)
    assert store.provenance.verify().ok


# processes ------------------------------------------------------------------------------------------


def _claim_all(url: str, spool: str, owner: str, barrier: Any, told: Any) -> None:
    with Store.open(url, spool, create=False) as store:
        barrier.wait(60)
        while (job := store.jobs.claim(owner, 60, NOW)) is not None:
            told.put((job.id, job.attempt))
            assert store.jobs.fail(job.id, owner, job.attempt, "done", JobState.FAILED, NOW)


def test_processes_that_claim_together_get_each_job_once(store: Store, database_url: str) -> None:
    n = 40
    ids = queued_many(store, n)
    spawn = multiprocessing.get_context("spawn")
    barrier, told = spawn.Barrier(2), spawn.Queue()
    processes = [
        spawn.Process(target=_claim_all, args=(database_url, str(store.spool.root), f"w{k}", barrier, told))
        for k in range(2)
    ]
    for process in processes:
        process.start()
    found = [told.get(timeout=60) for _ in range(n)]
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0, 0]
    assert Counter(found) == Counter((i, 1) for i in ids)


def test_threads_that_claim_together_get_each_job_once(store: Store) -> None:
    ids = queued_many(store, 24)

    def work(owner: str) -> list[int]:
        mine = []
        while (job := store.jobs.claim(owner, 60, NOW)) is not None:
            mine.append(job.id)
        return mine

    with ThreadPoolExecutor(8) as pool:
        found = [i for mine in pool.map(work, [f"w{k}" for k in range(8)]) for i in mine]
    assert sorted(found) == sorted(ids)


def _claim_and_hang(url: str, spool: str, ready: Any) -> None:
    store = Store.open(url, spool, create=False)
    assert store.jobs.claim("victim", 2, datetime.now(UTC)) is not None
    with store.database.write() as connection:  # in the middle of a transaction, too
        connection.exec_driver_sql("UPDATE job SET failure = 'never committed'")
        ready.set()
        signal.pause()


def test_a_killed_worker_loses_its_lease_and_nothing_else(store: Store, database_url: str) -> None:
    job_id = queued(store)
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=_claim_and_hang, args=(database_url, str(store.spool.root), ready))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join()
    assert store.jobs.claim("w2", 30, datetime.now(UTC) - timedelta(hours=1)) is None, "its lease still runs"
    deadline = time.monotonic() + 20
    while (job := store.jobs.claim("w2", 30, datetime.now(UTC))) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (job.id, job.attempt, job.failure) == (job_id, 2, "")
    finish(store, job, "w2")


# reading --------------------------------------------------------------------------------------------


def test_jobs_are_found_by_what_is_asked(store: Store) -> None:
    ids = [queued(store, series=k, n=1) for k in range(1, 5)]
    job = claimed(store)
    assert [j.id for j in store.jobs.list()] == ids[::-1]
    assert [j.id for j in store.jobs.list(limit=2, before_id=ids[2])] == [ids[1], ids[0]]
    assert [j.id for j in store.jobs.list([JobState.RUNNING])] == [job.id]
    assert [j.id for j in store.jobs.list(series_id=job.series_id)] == [job.id]
    assert [j.id for j in store.jobs.by_key(job.derivation_key)] == [job.id]
    assert store.jobs.counts() == {JobState.RUNNING: 1, JobState.QUEUED: 3}
    assert store.jobs.oldest_due(NOW) == NOW
    assert store.jobs.oldest_due(after(-1)) is None
    assert store.jobs.get(999) is None
    assert store.jobs.detail(999) is None
