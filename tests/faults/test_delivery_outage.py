"""R29, R35, R37: a PACS that is away for a week, one that is in trouble beside others, settings that change."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from node.config.schema import DimseDestination
from node.config.snapshot import snapshot
from node.deliver.health import Clock, Watchers
from node.deliver.lane import Lane
from node.model import DeliveryState
from node.store import Store
from node.store.tables import DeliveryRow
from tests.faults.ledger import record
from tests.faults.scale import SEED, count, in_time
from tests.forwarding import Scanner, close_all, delivering, forwarding
from tests.parcels import delivery
from tests.peers import StoreScp, free_port, wait_until
from tests.receiving import house
from tests.scripted import Reject, ScriptedScp, dimse_settings

Scripted = Callable[..., ScriptedScp]


class FakeTime:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.at = datetime(2026, 3, 29, tzinfo=UTC)
        self.clock = Clock(now=lambda: self.at, monotonic=lambda: self.at.timestamp())


def next_due(store: Store, after: datetime) -> datetime | None:
    """When the next delivery becomes due."""
    waiting = DeliveryRow.state == DeliveryState.PENDING.value
    with store.database.read() as connection:
        found = connection.execute(
            select(func.min(DeliveryRow.not_before)).where(waiting)
        ).scalar_one_or_none()
    return max(found, after) if found is not None else None


def series_of(uid: str) -> int:
    return int(uid.split(".")[-2])


def test_a_week_without_a_pacs_loses_nothing_and_needs_no_hand(
    sqlite_store: Store, scripted: Scripted
) -> None:
    """R29, with the settings that are the default."""
    store, fake, dice = sqlite_store, FakeTime(), random.Random(SEED)
    days, n_series, restarts = count(1, 7), count(20, 500), count(3, 10)
    up, tries, most = threading.Event(), [], [0]

    def associate(_n: int) -> Reject | None:
        tries.append(fake.at)
        return None if up.is_set() else Reject(2, 3, 2)

    def answer(_n: int, _uid: str) -> int:
        most[0] = max(most[0], scp.n_associations - scp.n_released - before)
        return 0

    scp = scripted(associate=associate, store=answer)
    retry = DimseDestination.model_validate(dimse_settings(1, "X")).retry.model_dump(
        mode="json", by_alias=True
    )
    settings = {"pacs": scp.settings(retry=retry)}
    begin = fake.at
    away_s = days * 86400
    comes = sorted([0.0, *(dice.uniform(0, away_s) for _ in range(n_series - 1))])
    dies = sorted(dice.uniform(0, away_s) for _ in range(restarts))
    made, steps, before = 0, 0, 0
    lane: Lane | None = None
    while fake.at < begin + timedelta(seconds=away_s):
        if lane is None or (dies and fake.at >= begin + timedelta(seconds=dies[0])):
            if lane is not None:
                dies.pop(0)
            lane = Lane(store, "pacs", owner="me", calling_ae="A", stop=threading.Event(), clock=fake.clock)
        while made < n_series and fake.at >= begin + timedelta(seconds=comes[made]):
            delivery(store, settings, 1, series=made, at=fake.at, side=8)
            made += 1
        if store.deliveries.due_destinations(fake.at):
            while lane.step():
                steps += 1
        soon = [begin + timedelta(seconds=s) for s in (*comes[made : made + 1], *dies[:1], away_s)]
        due = next_due(store, fake.at + timedelta(seconds=1))
        fake.at = max(min(soon + ([due] if due else [])), fake.at + timedelta(seconds=1))
    before = len(tries)
    assert made == n_series
    assert scp.stored == []
    failed = store.deliveries.list([DeliveryState.FAILED])
    up.set()
    fake.at += timedelta(seconds=900)
    assert lane is not None
    while lane.step():
        pass
    order = list(dict.fromkeys(series_of(s.sop_instance_uid) for s in scp.stored))
    allowed = away_s / 900 + (restarts + 1) * 10
    lost = n_series - len(scp.uids())
    ok = not failed and not lost and before <= allowed and order == sorted(order) and most[0] <= 1
    record(
        "R29",
        load=f"PACS away for {days} d of a fake clock, {n_series} series queued meanwhile, {restarts} restarts,"
        " default settings",
        count=n_series,
        lost=lost,
        extra=len(scp.stored) - len(scp.uids()),
        result=f"{before} tries ({allowed:.0f} allowed: 1 in 15 min and 10 a restart), {steps} steps, "
        f"{most[0]} association at a time on return, oldest first: {order == sorted(order)}",
        ok=ok,
    )
    assert failed == []
    assert lost == 0
    assert before <= allowed
    assert steps <= 4 * (before + n_series), "those that wait are put off together, not one by one"
    assert order == sorted(order)
    assert most[0] <= 1
    alarms = {e.level for e in store.events.list(name="destination.down")}
    assert alarms == {"warning", "error", "critical"} if days > 1 else alarms >= {"warning", "error"}


@pytest.mark.peer
def test_one_destinations_trouble_is_not_anothers(
    sqlite_store: Store, storescps: Callable[..., StoreScp]
) -> None:
    """R35."""
    store, up, frozen, n = sqlite_store, storescps("+xa"), storescps("+xa"), count(4, 40)
    alone = {"up": up.settings()}
    fast = {"first": 0.1, "at_most": 0.5}
    beside = {
        "down": dimse_settings(free_port(), "DOWN", retry=fast),
        "frozen": frozen.settings(timeout=5, retry=fast),
        **alone,
    }
    with delivering(store):
        baseline = [_delay(store, alone, k) for k in range(n)]
        frozen.freeze()
        troubled = [_delay(store, beside, n + k) for k in range(n)]
    frozen.thaw()
    middle = sorted(baseline)[n // 2], sorted(troubled)[n // 2]
    ok = middle[1] <= 2 * middle[0] + 0.5
    record(
        "R35",
        load=f"3 PACS: up, down, frozen (SIGSTOP); {n} series of 5 slices to the one that is up, alone and beside",
        count=2 * n,
        result=f"median from queued to sent {middle[0]:.2f} s alone, {middle[1]:.2f} s beside the others",
        ok=ok and in_time(middle[1], 2 * middle[0]),
    )
    assert ok, "and half a second for a machine at work"


def _delay(store: Store, settings: dict[str, dict[str, object]], series: int) -> float:
    made = delivery(store, settings, 5, series=series)
    (one,) = [d.id for d in made if d.destination == "up"]
    started = time.monotonic()

    def sent() -> bool:
        found = store.deliveries.get(one)
        return found is not None and found.state is DeliveryState.SENT

    wait_until(sent, 60, "it is sent", every_s=0.005)
    return time.monotonic() - started


def test_work_in_the_queue_keeps_its_destination_whatever_becomes_of_the_configuration(
    sqlite_store: Store, scripted: Scripted
) -> None:
    """R37: derived series and originals wait while their destination is moved, renamed, removed."""
    store, n = sqlite_store, count(5, 34)
    up = threading.Event()
    held = lambda _n: None if up.is_set() else Reject(2, 3, 1)
    old, new, third = scripted(associate=held), scripted(associate=held), scripted(associate=held)
    fast = {"first": 0.05, "at_most": 0.2}
    edits = [
        forwarding({"pacs": old.settings(retry=fast)}),
        forwarding({"pacs": new.settings(retry=fast)}),  # the same name, another address
        forwarding({"archive": third.settings(retry=fast)}),  # the old one is gone
    ]
    expected: dict[int, list[str]] = {}
    with house(store, edits[0]) as node, delivering(store):
        for k, config in enumerate(edits):
            node.receiver.apply(config)
            scanner = Scanner(node.port, calling=f"CT{k}")
            told = {name: snapshot(d, config) for name, d in config.destinations.items()}
            wanted: list[str] = []
            for s in range(n):
                wanted += scanner.slices(1, 2, series=100 * k + s + 1)
                (one,) = delivery(store, told, 1, series=100 * k + s, side=8)
                derived = store.deliveries.derived(one.derived_id)
                assert derived is not None
                wanted += [i.sop_instance_uid for i in derived.instances]
            scanner.release()
            expected[k] = sorted(wanted)
        close_all(store)
        rows = store.deliveries.list(limit=10_000)
        assert len(rows) == 6 * n
        assert all(d.state is not DeliveryState.SENT for d in rows)
        up.set()
        wait_until(
            lambda: all(d.state is DeliveryState.SENT for d in store.deliveries.list(limit=10_000)),
            60, "all is sent",
        )  # fmt: skip
    got = [scp.uids() for scp in (old, new, third)]
    extra = sum(len(set(got[k]) - set(expected[k])) for k in range(3))
    lost = sum(len(set(expected[k]) - set(got[k])) for k in range(3))
    record(
        "R37",
        load=f"{6 * n} deliveries (derived series and originals) wait while their PACS is moved and removed",
        count=6 * n,
        lost=lost,
        extra=extra,
        result=f"each at the address it was queued for; {extra} elsewhere",
        ok=not lost and not extra,
    )
    assert got == [expected[k] for k in range(3)]


def test_a_queue_that_is_put_off_keeps_what_goes_to_another_address(
    sqlite_store: Store, scripted: Scripted
) -> None:
    """What waits for a dead address is put off together; what a newer configuration sends elsewhere is not."""
    store, fake, new = sqlite_store, FakeTime(), scripted()
    dead = {"pacs": dimse_settings(free_port(), "OLD")}
    made = [delivery(store, dead, 1, series=k, at=fake.at, side=8)[0] for k in range(6)]
    (alive,) = delivery(store, {"pacs": new.settings()}, 1, series=7, at=fake.at, side=8)
    watchers = Watchers(store, "pacs", fake.clock)
    lane = Lane(
        store, "pacs", owner="me", calling_ae="A", stop=threading.Event(), clock=fake.clock, watchers=watchers
    )
    steps = 0
    while lane.step():
        steps += 1
    assert steps == 2
    found = store.deliveries.get(alive.id)
    assert found is not None
    assert found.state is DeliveryState.SENT
    assert len({store.deliveries.get(d.id).not_before for d in made}) == 1  # type: ignore[union-attr]
