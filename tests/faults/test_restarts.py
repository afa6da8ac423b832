"""R10, R11 and the start of R1: restarts in mid-series, stops under load, and a start with much in the spool."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from node.app.supervise import ROLES
from node.model import SeriesState
from tests.faults.crash import READY_S, Tally, Ward
from tests.faults.ledger import record
from tests.faults.nursery import Child, Nursery
from tests.faults.scale import SEED, count
from tests.faults.scanners import Log, Scanner, at_work, series_uid
from tests.peers import StoreScp, listens, needs, wait_until
from tests.pipeline.harness import REPOSITORY, Node, make_node
from tests.storing import received

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]

N = 40
QUIET_S = 3.0
AWAY_EVERY = 5
"""Every so many times the node is away for longer than the silence that closes a series."""


def test_a_restart_in_mid_series_loses_neither_count_nor_timer(sqlite_template: Path, tmp_path: Path) -> None:
    needs("storescp")
    chance = random.Random(SEED)
    ks = sorted(chance.sample(range(1, N), count(5, N - 1)))
    tally, log = Tally(), Log()
    pacs = StoreScp(tmp_path / "pacs", "+xa")
    try:
        with Nursery() as nursery:
            ward = Ward(tmp_path / "ward", sqlite_template, pacs, nursery, tally, log)
            text = (ward.folder / "config.yaml").read_text()
            (ward.folder / "config.yaml").write_text(
                text.replace("quiet_after: 300ms", f"quiet_after: {QUIET_S:.0f}s")
            )
            scanner = Scanner(log, "CT1", n_slices=N)
            ward.scanners = [scanner]
            for number, k in enumerate(ks):
                _killed_after(ward, scanner, k, away_s=QUIET_S + 0.5 if number % AWAY_EVERY == 0 else 0.0)
            awake = time.time()
            gather = nursery.bear("gather", ward.folder)
            wait_until(lambda: not ward.store.series.open_series(), 60, "all series are closed")
            gather.kill()
            held = {s.key.series_uid: s for s in ward.store.series.list(limit=1000)}
            ward.drain()
    finally:
        pacs.stop()
    wrong = [
        f"killed after {k}: {one}" for number, k in enumerate(ks)
        if (one := held.get(series_uid(number))) is None or one.count != N or one.generation != 1
    ]  # fmt: skip
    late = [
        (s.closed_at - s.last_received_at).total_seconds() for s in held.values()
        if s.closed_at is not None and s.last_received_at.timestamp() > awake - QUIET_S
    ]  # fmt: skip
    record(
        "R10",
        load=f"receiver and gatherer killed (SIGKILL) between instances k and k + 1 of {N}, then started again "
        "(every fifth time after longer than quiet_after) and the rest sent over a new association",
        count=len(ks),
        result=f"{len(ks) - len(wrong)} of {len(ks)} series whole, in one generation, delivered once; the last closed "
        f"{max(late, default=0):.1f} s after its last instance, with quiet_after {QUIET_S:.0f} s",
        ok=not wrong and not tally.faults,
        lost=tally.lost,
        extra=tally.extra,
    )
    assert wrong == []
    assert tally.faults == []
    assert len(held) == len(ks)
    assert max(late, default=0) <= QUIET_S + 5


def _killed_after(ward: Ward, scanner: Scanner, k: int, *, away_s: float) -> None:
    """Send ``k`` slices of a new series, kill, and send the rest to the next life, which has a moment to itself."""
    scanner.begin()
    rest = scanner.left[k:]
    scanner.left = scanner.left[:k]
    for _ in range(2):
        children = [ward.nursery.bear(role, ward.folder) for role in ("receive", "gather")]
        try:
            wait_until(lambda: listens(ward.port), 60, "the receiver listens")
            if len(rest) < N - k:
                time.sleep(min(away_s, QUIET_S / 3))
            (thread,) = at_work([scanner], ward.port, threading.Event(), n_new=0)
            thread.join(60)
            assert scanner.done, scanner.told
        finally:
            for child in children:
                child.kill()
        if rest:
            time.sleep(away_s)
        scanner.left, rest = rest, []


def test_a_stop_under_load_drains(sqlite_template: Path, tmp_path: Path) -> None:
    needs("storescp")
    n, chance, tally, log = count(5, 50), random.Random(SEED), Tally(), Log()
    slowest, slow = 0.0, list[str]()
    pacs = StoreScp(tmp_path / "pacs", "+xa")
    try:
        with Nursery() as nursery:
            ward = Ward(tmp_path / "ward", sqlite_template, pacs, nursery, tally, log)
            for _ in range(n):
                children = [nursery.bear(role, ward.folder) for role in ROLES]
                wait_until(lambda: listens(ward.port), 60, "the receiver listens")
                stop = threading.Event()
                threads = at_work(ward.scanners, ward.port, stop, n_new=50)
                time.sleep(chance.uniform(0.2, 1.5))
                took = _stop(children)
                stop.set()
                for thread in threads:
                    thread.join(40)
                slowest = max(slowest, took)
                slow += [c.role for c in children if not c.dead()]
                for child in children:
                    child.kill()
                if slow:
                    break
            ward.drain()
    finally:
        pacs.stop()
    record(
        "R11",
        load="SIGTERM to all roles at once while 3 scanners send as fast as they are answered",
        count=n,
        result=f"gone after {slowest:.1f} s at most; {tally.lost} lost, {tally.extra} extra of "
        f"{tally.acknowledged:,} acknowledged",
        ok=not slow and not tally.faults and slowest <= 15,
        lost=tally.lost,
        extra=tally.extra,
    )
    assert slow == []
    assert tally.faults == []
    assert slowest <= 15


def _stop(children: list[Child]) -> float:
    """Ask all to end; how long the slowest took, in seconds."""
    began = time.monotonic()
    for child in children:
        child.send(signal.SIGTERM)
    for child in children:
        child.dead(max(0.0, 25 - (time.monotonic() - began)))
    return time.monotonic() - began


def test_a_node_with_much_in_its_spool_is_ready_soon(tmp_path: Path) -> None:
    """``luminode serve`` itself, killed and started again."""
    n = count(1000, 10_000)
    node = make_node(tmp_path, pacs_ae="NOBODY", pacs_port=1)
    empty = _start(node)  # makes the database, and warms what a start reads
    assert node.stop() == 0
    _fill(node, n)
    node.start()
    node.kill_tree()
    took = _start(node)
    with node.store() as store:
        missing = store.reconcile.fsck().missing
        held = sum(s.count for s in store.series.list(states=list(SeriesState), limit=10_000))
    assert node.stop() == 0
    bound = max(READY_S, 3 * empty)  # on a machine that has other things to do
    record(
        "R1",
        load="luminode serve killed with so many instances in the spool, and started again",
        count=n,
        result=f"listens after {took:.1f} s, with an empty spool after {empty:.1f} s; {len(missing)} rows without file",
        ok=took <= bound and not missing and held == n,
    )
    assert held == n
    assert missing == ()
    assert took <= bound


def _start(node: Node) -> float:
    """Start, and return after how many seconds it listened."""
    began = time.monotonic()
    node.start()
    return time.monotonic() - began


def _fill(node: Node, n: int) -> None:
    with node.store() as store:
        for first in range(0, n, 250):
            batch = [
                received(store, k, series=first // 250, data=b"x" * 300) for k in range(first, first + 250)
            ]
            store.reception.record(batch)
            assert len(batch) == 250
        for series in store.series.open_series():
            assert store.series.close(series.id, "count", series.last_received_at + timedelta(seconds=1))


WORST_MOMENT = """
import signal, sys, threading
from node.process import stop_on_signals

stop = threading.Event()
stop_on_signals(stop)
release = threading.Condition._release_save


def in_the_middle(condition):
    if condition is stop._cond:  # the main thread holds the lock that setting the event wants
        signal.raise_signal(signal.SIGTERM)
    return release(condition)


threading.Condition._release_save = in_the_middle
sys.exit(0 if stop.wait(20) else 1)
"""


def test_a_stop_that_comes_at_the_worst_moment_is_heard() -> None:
    """A handler runs in the middle of whatever the main thread does; one that takes a lock may wait for itself."""
    try:
        status = subprocess.run(
            [sys.executable, "-c", WORST_MOMENT], cwd=REPOSITORY, timeout=40, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        status = -1
    record(
        "R11",
        load="SIGTERM at the moment at which the main thread holds the lock of the event that it waits for",
        count=1,
        result="heard" if status == 0 else "the process waits for itself for ever",
        ok=status == 0,
    )
    assert status == 0
