"""Noticing commits; configurations, events, turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from node.store import Store
from tests.storing import NOW, after, received


def test_a_ticker_tells_of_commits_of_others_and_of_nothing_else(
    store: Store, open_store: Callable[[], Store]
) -> None:
    ticker = store.changes.ticker()
    assert ticker.wait(0), "the first look is always worth it"
    assert not ticker.wait(0.05)
    store.reception.record([received(store, 1)])
    assert ticker.wait(5)
    assert not ticker.wait(0.05)
    other = open_store()
    ticker.wait(0.05)
    other.reception.record([received(store, 2)])
    other.events.add("info", "test.done", {}, NOW)
    assert ticker.wait(5)
    while ticker.wait(0.05):  # two commits may be told one after the other
        pass
    ticker.close()
    ticker.close()


def test_a_ticker_wakes_soon(store: Store) -> None:
    ticker = store.changes.ticker()
    ticker.wait(0)
    woke: list[float] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        assert ticker.wait(20)
        woke.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    store.events.add("info", "test.done", {}, NOW)
    committed = time.monotonic()
    thread.join()
    ticker.close()
    assert woke[0] - committed < 2


def test_a_ticker_outlives_its_connection(store: Store) -> None:
    ticker = store.changes.ticker()
    ticker.wait(0)
    ticker._connection.close()
    assert ticker.wait(0), "something broke: look for work"
    assert ticker.wait(0), "opened anew: look once more"
    assert not ticker.wait(0.02)
    ticker.close()


def test_every_configuration_that_took_effect_is_kept(store: Store) -> None:
    assert store.configs.current() is None
    assert store.configs.applied("a" * 64, "one: 1", "", NOW)
    assert not store.configs.applied("a" * 64, "one: 1", "", after(1)), "a restart is no new version"
    assert store.configs.applied("b" * 64, "one: 2", "-1 +2", after(2))
    assert store.configs.applied("a" * 64, "one: 1", "-2 +1", after(3))
    assert [(c.digest[0], c.at) for c in store.configs.history()] == [
        ("a", after(3)),
        ("b", after(2)),
        ("a", NOW),
    ]
    current, other = store.configs.current(), store.configs.get("b" * 64)
    assert current is not None
    assert current.diff == "-2 +1"
    assert other is not None
    assert other.text == "one: 2"
    assert store.configs.get("c" * 64) is None


def test_events_are_found_by_what_is_asked(store: Store) -> None:
    store.events.add("info", "node.started", {"text": "x\0\ud800"}, NOW)
    store.events.add("error", "job.held", {"job": 1}, after(1), series_id=7)
    assert [e.name for e in store.events.list()] == ["job.held", "node.started"]
    assert [e.id for e in store.events.list(since=after(1))] == [2]
    assert [e.id for e in store.events.list(name="node.started")] == [1]
    assert [e.id for e in store.events.list(level="error")] == [2]
    assert [e.id for e in store.events.list(series_id=7)] == [2]
    assert [e.id for e in store.events.list(limit=1)] == [2]
    assert store.events.list()[1].body == {"text": "x\0\ud800"}


def test_a_periodic_task_runs_once_in_its_period(store: Store, open_store: Callable[[], Store]) -> None:
    """R54: two nodes, many threads, one database."""
    other = open_store()

    def ask(k: int) -> bool:
        return (store if k % 2 else other).turns.take("report", f"node-{k}", NOW, every_s=3600)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(16))) == 1


def test_turns_come_again_and_are_never_skipped_for_lateness(store: Store) -> None:
    take, done = store.turns.take, store.turns.done
    assert take("purge", "n1", NOW, every_s=60, lease_s=600)
    assert not take("purge", "n2", after(61), every_s=60), "it still runs: no overlap"
    done("purge", "n2", after(62))
    assert not take("purge", "n2", after(63), every_s=60), "only its owner ends it"
    done("purge", "n1", after(64))
    assert take("purge", "n2", after(65), every_s=60, lease_s=600)
    assert take("other", "n2", after(65), every_s=60)
    assert take("purge", "n1", after(9999), every_s=60), "its node died: the lease ran out"
    done("purge", "n1", after(9999))
    assert take("purge", "n1", after(50), every_s=60), "the clock was put back"
