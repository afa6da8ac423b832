"""The deliverer on a real store, with real peers: nothing early, nothing lost, nobody else's trouble."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from node.deliver.deliverer import Deliverer
from node.deliver.lane import Clock, Lane
from node.deliver.recorder import MOST_UNWRITTEN
from node.model import Delivery, DeliveryState
from node.store import Store
from tests.parcels import STUDY, delivery
from tests.peers import StoreScp, free_port, wait_until
from tests.scripted import ABORT, RESET, Reject, ScriptedScp, dimse_settings

Scripted = Callable[..., ScriptedScp]
FAST = {"first": 0.02, "at_most": 0.2, "for": 86400.0}


@contextmanager
def running(store: Store, *, drain_s: float = 5.0, **how: Any) -> Iterator[threading.Event]:
    stop = threading.Event()
    deliverer = Deliverer(store, calling_ae="LUMINODE", **how)
    thread = threading.Thread(target=deliverer.run, args=(stop,), kwargs={"drain_s": drain_s})
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def state(store: Store, one: Delivery) -> DeliveryState:
    found = store.deliveries.get(one.id)
    assert found is not None
    return found.state


def until_sent(store: Store, deliveries: list[Delivery], within_s: float = 20.0) -> None:
    wait_until(
        lambda: all(state(store, d) is DeliveryState.SENT for d in deliveries), within_s, "all is delivered"
    )


def delivery_uid(series: int, number: int) -> str:
    return f"{STUDY}.6.{series}.{number}"


def wanted(store: Store, deliveries: list[Delivery]) -> list[str]:
    found = set()
    for one in deliveries:
        derived = store.deliveries.derived(one.derived_id)
        assert derived is not None
        found |= {i.sop_instance_uid for i in derived.instances}
    return sorted(found)


def test_a_derived_series_goes_to_each_of_its_destinations(
    store: Store, storescp: StoreScp, tmp_path: Path
) -> None:
    out = {"kind": "folder", "path": str(tmp_path / "out")}
    made = delivery(store, {"pacs": storescp.settings(), "share": out}, 6)
    with running(store):
        until_sent(store, made)
    assert storescp.uids() == wanted(store, made)
    assert sorted(p.stem for p in (tmp_path / "out").rglob("*.dcm")) == wanted(store, made)
    for one in made:
        detail = store.deliveries.detail(one.id)
        assert detail is not None
        assert detail.n_done == detail.n_instances == 6
    story = [
        r for r in store.provenance.story(wanted(store, made)[0]).records if r.kind == "series.delivered"
    ]
    assert {r.body["destination"] for r in story} == {"pacs", "share"}
    assert all(r.body["statuses"] == {"0000H": 6} for r in story)
    assert store.provenance.verify().ok


def test_a_pacs_that_was_away_gets_all_of_it_oldest_first_and_needs_no_hand(
    sqlite_store: Store, scripted: Scripted
) -> None:
    store, up = sqlite_store, threading.Event()
    scp = scripted(associate=lambda _n: None if up.is_set() else Reject(2, 3, 1))
    made = [d for n in range(5) for d in delivery(store, {"pacs": scp.settings(retry=FAST)}, 2, series=n)]
    with running(store):
        wait_until(lambda: scp.n_associations > 4, told="it is tried again")
        assert all(o.state is not DeliveryState.SENT for o in store.deliveries.list())
        before = scp.n_associations
        up.set()
        until_sent(store, made)
    assert before < 40  # a breaker for all, not a try for each
    first = list(dict.fromkeys(s.sop_instance_uid.rpartition(".")[0] for s in scp.stored))
    assert [uid.rpartition(".")[2] for uid in first] == ["0", "1", "2", "3", "4"]
    assert scp.uids() == wanted(store, made)
    assert len(scp.stored) == 10


def test_one_destinations_trouble_is_not_anothers(
    sqlite_store: Store, storescps: Callable[..., StoreScp]
) -> None:
    store, up, frozen = sqlite_store, storescps("+xa"), storescps("+xa")
    frozen.freeze()
    settings = {
        "down": dimse_settings(free_port(), "DOWN", retry=FAST),
        "frozen": frozen.settings(timeout=40, retry=FAST),
        "up": up.settings(),
    }
    with running(store, drain_s=0.5):
        for n in range(4):
            made = delivery(store, settings, 3, series=n)
            started = time.monotonic()
            until_sent(store, [d for d in made if d.destination == "up"])
            assert time.monotonic() - started < 20  # far below the time-out of the frozen one
    others = [d for d in store.deliveries.list() if d.destination != "up"]
    assert len(others) == 8
    assert all(d.state is DeliveryState.PENDING for d in others)


def test_lost_answers_are_sent_again_never_skipped_never_failed(
    sqlite_store: Store, scripted: Scripted
) -> None:
    scp = scripted(store=lambda n, _uid: RESET if n % 7 == 3 else 0)
    made = [
        d for n in range(4) for d in delivery(sqlite_store, {"p": scp.settings(retry=FAST)}, 20, series=n)
    ]
    with running(sqlite_store):
        until_sent(sqlite_store, made)
    assert scp.uids() == wanted(sqlite_store, made)
    assert sqlite_store.deliveries.list([DeliveryState.FAILED]) == []


def test_two_poisoned_series_hold_up_no_third(sqlite_store: Store, scripted: Scripted) -> None:
    """Twice broken off looks like a destination that is away, and the oldest would be tried for ever."""
    store, poisons = sqlite_store, {delivery_uid(0, 1), delivery_uid(1, 1)}
    scp = scripted(store=lambda _n, uid: ABORT if uid in poisons else 0)
    made = [d for n in range(4) for d in delivery(store, {"pacs": scp.settings(retry=FAST)}, 1, series=n)]
    with running(store):
        until_sent(store, made[2:])
        assert {d.state for d in store.deliveries.list() if d.id in {m.id for m in made[:2]}} <= {
            DeliveryState.PENDING,
            DeliveryState.SENDING,
        }


def test_an_instance_at_which_a_pacs_always_breaks_off_holds_up_nothing_else(
    sqlite_store: Store, scripted: Scripted
) -> None:
    poison = delivery_uid(0, 2)
    scp = scripted(store=lambda _n, uid: ABORT if uid == poison else 0)
    settings = {"p": scp.settings(retry=FAST)}
    made = [d for n in range(3) for d in delivery(sqlite_store, settings, 5, series=n)]
    with running(sqlite_store):
        until_sent(sqlite_store, made[1:])
        wait_until(lambda: len(scp.uids()) == 15, told="the rest of the poisoned series is there too")
        wait_until(lambda: scp.n_stores > 18, told="the poison is tried again")
    assert state(sqlite_store, made[0]) is DeliveryState.PENDING
    detail = sqlite_store.deliveries.detail(made[0].id)
    assert detail is not None
    assert detail.n_done == 4
    assert "aborted" in detail.delivery.failure


def test_a_refused_instance_is_failed_after_three_tries_with_the_rest_delivered_and_a_hand_resumes(
    store: Store, scripted: Scripted
) -> None:
    poison, mended = delivery_uid(0, 3), threading.Event()
    asked: list[str] = []

    def answer(_n: int, uid: str) -> int:
        asked.append(uid)
        return 0xC000 if uid == poison and not mended.is_set() else 0xB007 if uid.endswith("5") else 0

    scp = scripted(store=answer)
    (one,) = delivery(store, {"pacs": scp.settings(retry=FAST)}, 6, series=0)
    with running(store):
        wait_until(lambda: state(store, one) is DeliveryState.FAILED, told="it is failed")
        assert asked.count(poison) == 3
        assert len(asked) == 8  # nothing that is done was sent twice
        failed = store.deliveries.get(one.id)
        assert failed is not None
        assert "C000H" in failed.failure
        assert "5 of 6 instances are there" in failed.failure
        assert f"deliveries retry {one.id}" in failed.failure
        assert store.deliveries.outcomes(one.id)[delivery_uid(0, 5)].status == 0xB007
        assert [e.level for e in store.events.list(name="delivery.failed")] == ["error"]
        mended.set()
        store.deliveries.retry(one.id, datetime.now(UTC))
        until_sent(store, [one])
    assert asked[8:] == [poison]


def test_nothing_is_done_before_all_is_done(sqlite_store: Store, scripted: Scripted) -> None:
    """R36: at the moment of SENT the PACS holds N of N, whatever it did before."""
    dice = random.Random(7)
    scp = scripted(store=lambda _n, _uid: dice.choice([0, 0, 0, 0xA700, RESET, 0x0111, ABORT]))
    made = [d for n in range(8) for d in delivery(sqlite_store, {"p": scp.settings(retry=FAST)}, 6, series=n)]
    early = []
    with running(sqlite_store):
        deadline = time.monotonic() + 30
        waiting = list(made)
        while waiting and time.monotonic() < deadline:
            for one in list(waiting):
                if state(sqlite_store, one) is DeliveryState.SENT:
                    waiting.remove(one)
                    early += [u for u in wanted(sqlite_store, [one]) if u not in scp.uids()]
            time.sleep(0.01)
    assert waiting == []
    assert early == []


def test_work_in_the_queue_keeps_its_destination(sqlite_store: Store, scripted: Scripted) -> None:
    """R37: two series for one name, routed before and after its address was changed."""
    old, new = scripted(), scripted()
    first = delivery(sqlite_store, {"pacs": old.settings()}, 2, series=1)
    second = delivery(sqlite_store, {"pacs": new.settings()}, 2, series=2)
    with running(sqlite_store):
        until_sent(sqlite_store, first + second)
    assert old.uids() == wanted(sqlite_store, first)
    assert new.uids() == wanted(sqlite_store, second)


def test_a_dead_address_of_a_name_does_not_hold_up_its_new_one(
    sqlite_store: Store, scripted: Scripted
) -> None:
    slow = {"first": 30.0, "at_most": 60.0, "for": 86400.0}
    dead = delivery(sqlite_store, {"pacs": dimse_settings(free_port(), "OLD", retry=slow)}, 2, series=1)
    new = scripted()
    alive = delivery(sqlite_store, {"pacs": new.settings()}, 2, series=2)
    with running(sqlite_store):
        until_sent(sqlite_store, alive)
    assert state(sqlite_store, dead[0]) is DeliveryState.PENDING


def test_a_pacs_that_has_moved_gets_all_that_waited_for_it_when_a_person_says_so(
    sqlite_store: Store, scripted: Scripted
) -> None:
    """The old address took two instances of the first series before it went for ever."""
    old, new = scripted(store=lambda n, _uid: 0 if n < 2 else "close"), scripted()
    slow = {"first": 600.0, "at_most": 900.0}
    before = [
        each
        for n in (1, 2, 3)
        for each in delivery(sqlite_store, {"pacs": old.settings(retry=slow)}, 4, series=n)
    ]
    with running(sqlite_store):
        wait_until(lambda: old.n_stores >= 3, told="it broke off")
        old.stop()
        moved = sqlite_store.deliveries.readdress("pacs", new.settings(retry=slow), datetime.now(UTC))
        assert moved.deliveries == 3
        until_sent(sqlite_store, before)
    assert new.uids() == wanted(sqlite_store, before)


def test_settings_that_no_release_understands_are_failed_with_a_reason(sqlite_store: Store) -> None:
    (one,) = delivery(sqlite_store, {"pacs": {"kind": "carrier pigeon"}}, 1)
    with running(sqlite_store):
        wait_until(lambda: state(sqlite_store, one) is DeliveryState.FAILED)
    found = sqlite_store.deliveries.get(one.id)
    assert found is not None
    assert "carrier pigeon" in found.failure


# stopping, dying, being overtaken -----------------------------------------------------------------


def test_a_stop_puts_the_rest_back_at_once_and_costs_no_try(sqlite_store: Store, scripted: Scripted) -> None:
    def slowly(_n: int, _uid: str) -> int:
        time.sleep(0.02)
        return 0

    scp = scripted(store=slowly)
    (one,) = delivery(sqlite_store, {"pacs": scp.settings()}, 40)
    with running(sqlite_store) as stop:
        wait_until(lambda: scp.n_stores > 5)
        stop.set()
    found = sqlite_store.deliveries.get(one.id)
    assert found is not None
    assert (found.state, found.attempt, found.lease) == (DeliveryState.PENDING, 0, None)
    recorded = sqlite_store.deliveries.outcomes(one.id)
    assert sorted(recorded) == scp.uids()  # what was sent before the stop is known, to the last one
    with running(sqlite_store):
        until_sent(sqlite_store, [one])
    assert len(scp.stored) == 40


def test_a_stop_does_not_wait_for_a_frozen_pacs(sqlite_store: Store, storescp: StoreScp) -> None:
    storescp.freeze()
    (one,) = delivery(sqlite_store, {"pacs": storescp.settings(timeout=40)}, 2)
    started = time.monotonic()
    with running(sqlite_store, drain_s=0.5) as stop:
        wait_until(lambda: state(sqlite_store, one) is DeliveryState.SENDING)
        stop.set()
    assert time.monotonic() - started < 25
    assert state(sqlite_store, one) is DeliveryState.PENDING
    storescp.thaw()
    with running(sqlite_store):
        until_sent(sqlite_store, [one])
    assert storescp.uids() == wanted(sqlite_store, [one])


def test_who_lost_the_lease_writes_nothing_more(sqlite_store: Store, scripted: Scripted) -> None:
    """R30, fencing: a second deliverer claims what the first one holds on to for too long."""
    release = threading.Event()

    def answer(n: int, _uid: str) -> int:
        if n == 2:
            release.wait(10)
        return 0

    scp = scripted(store=answer)
    long_ago = datetime.now(UTC) - timedelta(days=1)
    (one,) = delivery(sqlite_store, {"pacs": scp.settings()}, 6, at=long_ago)
    stop = threading.Event()
    late = Clock(now=lambda: datetime.now(UTC) - timedelta(seconds=3600))  # leases that are over when taken
    first = Lane(sqlite_store, "pacs", owner="first", calling_ae="A", stop=stop, lease_s=3599.0, clock=late)
    thread = threading.Thread(target=first.step)
    thread.start()
    wait_until(lambda: scp.n_stores == 3)
    second = Lane(sqlite_store, "pacs", owner="second", calling_ae="B", stop=stop)
    assert second.step()
    assert state(sqlite_store, one) is DeliveryState.SENT
    release.set()
    thread.join(10)
    found = sqlite_store.deliveries.get(one.id)
    assert found is not None
    assert (found.state, found.attempt) == (DeliveryState.SENT, 2)
    assert scp.calling == ["A", "B"]
    assert scp.uids() == wanted(sqlite_store, [one])


PROGRAM = """
import sys, threading
from node.store import Store
from node.deliver.deliverer import Deliverer
Deliverer(Store.open(sys.argv[1], sys.argv[2]), calling_ae="LUMINODE").run(threading.Event())
"""


def test_kill_9_again_and_again_loses_nothing_and_repeats_little(
    sqlite_store: Store, sqlite_url: str, scripted: Scripted
) -> None:
    """R34: the set at the PACS is the one expected; what is sent twice is what was in flight."""
    store = sqlite_store

    def answer(_n: int, _uid: str) -> int:
        time.sleep(0.01)
        return 0

    scp = scripted(store=answer)
    made = [d for n in range(3) for d in delivery(store, {"pacs": scp.settings(retry=FAST)}, 30, series=n)]
    kills = 2
    for kill in range(kills):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, sqlite_url, str(store.spool.root)])
        try:
            wait_until(lambda at=33 * (kill + 1): scp.n_stores >= at, 30, "some more is sent")  # type: ignore[misc]
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
    with running(store):
        until_sent(store, made)
    assert scp.uids() == wanted(store, made)
    assert len(scp.stored) - 90 <= (MOST_UNWRITTEN + 1) * kills  # on an idle machine: one or two a kill
    assert store.deliveries.list([DeliveryState.FAILED]) == []


# time ---------------------------------------------------------------------------------------------


class FakeTime:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.at = datetime(2026, 3, 29, tzinfo=UTC)
        self.clock = Clock(now=lambda: self.at, monotonic=lambda: self.at.timestamp())

    def pass_(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


def test_two_days_of_outage_cost_few_tries_and_raise_the_alarm(
    sqlite_store: Store, scripted: Scripted
) -> None:
    """R29, shortened: at most a try an hour, and each restart of the node costs one more."""
    store, fake, up = sqlite_store, FakeTime(), threading.Event()
    scp = scripted(associate=lambda _n: None if up.is_set() else Reject(1, 1, 7))
    settings = {"pacs": scp.settings(retry={"for": 10 * 86400.0, "first": 20.0, "at_most": 3600.0})}
    made = [d for n in range(3) for d in delivery(store, settings, 1, series=n, at=fake.at)]
    for restart in (1, 2):
        lane = Lane(store, "pacs", owner="me", calling_ae="A", stop=threading.Event(), clock=fake.clock)
        for _ in range(26 * 4):
            if store.deliveries.due_destinations(fake.at):
                while lane.step():
                    pass
            fake.pass_(900)
        assert scp.n_associations <= restart * (26 + 8)
    events = [(e.name, e.level) for e in reversed(store.events.list())]
    assert events.count(("destination.rejects", "error")) == 2
    alarms = [level for name, level in events if name == "destination.down"]
    assert alarms == ["warning", "error", "critical"] * 2
    up.set()
    fake.pass_(3600)
    while lane.step():
        pass
    assert all(state(store, d) is DeliveryState.SENT for d in made)
    assert [e.name for e in store.events.list(limit=1)] == ["destination.up"]


def test_what_nobody_took_is_given_up_after_its_time_and_a_hand_starts_it_anew(sqlite_store: Store) -> None:
    fake = FakeTime()
    settings = dimse_settings(free_port(), "GONE", retry={"for": 3600.0, "first": 60.0, "at_most": 900.0})
    (one,) = delivery(sqlite_store, {"pacs": settings}, 2, at=fake.at)
    lane = Lane(sqlite_store, "pacs", owner="me", calling_ae="A", stop=threading.Event(), clock=fake.clock)
    tried = 0
    while state(sqlite_store, one) is not DeliveryState.FAILED:
        tried += lane.step()
        fake.pass_(60)
        assert tried < 30
    found = sqlite_store.deliveries.get(one.id)
    assert found is not None
    assert "given up after 1h" in found.failure
    assert "nobody listens" in found.failure
    assert "0 of 2 instances are there" in found.failure
    sqlite_store.deliveries.retry(one.id, fake.at)
    fake.pass_(1000)
    assert lane.step()
    assert state(sqlite_store, one) is DeliveryState.PENDING
