"""R53: the clock is set while the node works. R54: periodic tasks run once in their slot, however late."""

from __future__ import annotations

import ast
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import node.housekeep
from node.gather.complete import Ladder, SeriesView, judge
from node.housekeep import Every, Housekeeper
from node.model import JobState
from node.store import Store
from node.store import clock as clocks
from node.store.clock import SETTLES_S, Watch
from tests.faults import ledger
from tests.faults.scale import count
from tests.faults.scanners import Log, encoded, slice_uid
from tests.faults.site import Balance, balance, dimse, site, sources
from tests.peers import StoreScp, free_port, needs, wait_until
from tests.pipeline.harness import REPOSITORY, Node
from tests.receiving import config
from tests.senders import CT, Peer
from tests.storing import NOW, after, outbox, queued

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
JUMPS = {"+400 d": 400 * 86400, "-5 y": -5 * 365 * 86400, "+1 h": 3600, "-1 h": -3600}
QUIET_S = 6


# the node under a clock that is set ----------------------------------------------------------------


class Clock:
    """The wall clock of every process of a node; see clock/sitecustomize.py."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = file
        self.off_s = 0.0
        self.set(0.0)
        monkeypatch.setenv("LUMINODE_TEST_CLOCK", str(file))

    def set(self, off_s: float) -> None:
        self.off_s = off_s
        new = self._file.with_name("clock.new")
        new.write_text(f"{off_s:.0f}\n")
        new.replace(self._file)


class Series:
    """A series of ten slices that a scanner sends in parts."""

    def __init__(self, node: Node, log: Log) -> None:
        self.node, self.log, self.number = node, log, log.begin()
        self.peer = Peer(node.port, timeout=30.0)
        self.peer.associate(CT, calling="CT1")

    def send(self, *slices: int) -> None:
        for k in slices:
            uid = slice_uid(self.number, k)
            self.log.sent.add(uid)
            assert self.log.told(uid, self.peer.store(uid, encoded(self.number, k, n=10)).status)

    def end(self) -> None:
        self.peer.release()
        self.peer.close()


def _jump(
    node: Node, clock: Clock, pacs: Callable[[], StoreScp], by_s: float, log: Log, earlier: list[str]
) -> tuple[StoreScp, float]:
    """Set the clock while one series is half received, one is at rest, and one waits for a PACS that is away."""
    waiting = Series(node, log)
    waiting.send(*range(10))
    waiting.end()
    with node.store() as store:
        wait_until(
            lambda: any(d.attempt for d in store.deliveries.list()), 240, "a delivery was tried", every_s=0.1
        )
    half = Series(node, log)
    half.send(*range(5))
    clock.set(clock.off_s + by_s)
    time.sleep(
        2.0
    )  # silence that is not silence: less than the quiet time, more than any process needs to notice
    half.send(*range(5, 10))
    half.end()
    arrives = pacs()
    began = time.monotonic()
    with node.store() as store:
        wait_until(
            lambda: not balance(sources(store), earlier + arrives.uids(), log).lost,
            240,
            "all is delivered",
            every_s=0.3,
        )
    return arrives, time.monotonic() - began


@pytest.mark.peer
def test_a_clock_that_is_set_changes_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("storescp")
    jumps = list(JUMPS.items()) * count(1, 5)
    if count(0, 1) == 0:
        jumps = jumps[:2]
    port = free_port()
    clock = Clock(tmp_path / "clock", monkeypatch)
    node = site(
        tmp_path / "node",
        destination=dimse(port),
        quiet_after=f"{QUIET_S}s",
        keep="received: forever, derived: forever",  # what is done is old after a step of 400 days, and would go
    )
    log = Log()
    waits: list[float] = []
    arrived: list[str] = []
    early: list[int] = []
    node.first_on_path = Path(__file__).parent / "clock"
    node.start()
    try:
        for k, (_, by_s) in enumerate(jumps):
            pacs, waited = _jump(
                node, clock, lambda k=k: StoreScp(tmp_path / f"pacs{k}", "+xa", port=port), by_s, log, arrived
            )  # type: ignore[misc]
            waits.append(waited)
            time.sleep(1.0)
            arrived += pacs.uids()
            pacs.stop()
        with node.store() as store:
            early = [s.id for s in store.series.list(limit=1000) if s.generation > 1 or s.count != 10]
            twice = [j.id for j in store.jobs.list(limit=1000) if j.attempt != 1]
            found: Balance = balance(sources(store), arrived, log)
            told = store.events.list(name="clock.stepped", limit=1000)
    finally:
        stopped = node.stop()
    ok = found.even and not early and not twice and stopped == 0 and len(told) >= len(jumps)
    ledger.record(
        "R53",
        load=f"the clock set by {', '.join(name for name, _ in jumps[:4])} in mid-series, at rest, in backoff",
        count=len(jumps),
        result=f"{len(early)} series closed early, {len(twice)} jobs run twice, each step told; delivered "
        f"{max(waits):.1f} s after the PACS came back at most",
        ok=ok,
        lost=len(found.lost),
        extra=len(found.extra),
    )
    assert ok, (found, early, twice, stopped, told)


# its parts ------------------------------------------------------------------------------------------


class _Clocks:
    def __init__(self) -> None:
        self.wall, self.steady = 1e9, 50.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.mark.parametrize("by_s", JUMPS.values(), ids=JUMPS)
def test_no_lease_is_taken_over_right_after_a_step(
    store: Store, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    """Its holder lives, and beats by the new clock a moment later."""
    both = _Clocks()
    watch = Watch(lambda: both.wall, lambda: both.steady)
    monkeypatch.setattr("node.store.moves.WATCH", watch)
    outbox(store)
    queued(store, series=2)
    jobs, deliveries = store.jobs, store.deliveries
    job, delivery = jobs.claim("w", 30, NOW), deliveries.claim("d", 60, NOW)
    assert job is not None
    assert delivery is not None
    stepped = NOW + timedelta(seconds=by_s)
    both.wall += by_s
    assert jobs.claim("other", 30, stepped) is None
    assert deliveries.claim("other", 60, stepped) is None
    assert jobs.heartbeat(job.id, "w", 1, stepped + timedelta(seconds=30))
    both.pass_(SETTLES_S + 1)
    assert jobs.claim("other", 30, stepped + timedelta(seconds=29)) is None
    later = jobs.claim("other", 30, stepped + timedelta(seconds=31))
    assert later is not None, "who stopped beating is taken over, as ever"
    assert later.attempt == 2


def test_a_pause_does_not_grow_when_the_clock_is_put_back(store: Store) -> None:
    outbox(store)
    queued(store, series=2)
    job, delivery = store.jobs.claim("w", 30, NOW), store.deliveries.claim("d", 60, NOW)
    assert job is not None
    assert delivery is not None
    store.jobs.fail(job.id, "w", 1, "no room", JobState.QUEUED, NOW, not_before=after(20))
    store.deliveries.retry_later(delivery.id, "d", 1, after(20), "nobody listens there")
    for room in (store.jobs, store.deliveries):
        room.shorten_pauses(after(-3595), -3600.0)
        assert room.claim("x", 30, after(-3581)) is None, "the rest of the pause stays"
        assert room.claim("x", 30, after(-3579)) is not None


def test_ages_are_told_without_the_steps_between() -> None:
    both = _Clocks()
    watch = Watch(lambda: both.wall, lambda: both.steady)

    def now() -> datetime:
        return datetime.fromtimestamp(both.wall, UTC)

    made = now()
    both.pass_(10)
    both.wall += 400 * 86400
    both.pass_(5)
    assert watch.age_s(made, now()) == pytest.approx(15)
    made_after = now()
    both.pass_(7)
    assert watch.age_s(made_after, now()) == pytest.approx(7)
    both.wall -= 5 * 365 * 86400
    both.pass_(3)
    assert watch.age_s(made_after, now()) == pytest.approx(10)
    assert watch.age_s(now(), now() + timedelta(seconds=4)) == pytest.approx(4)
    assert watch.look() == 0.0
    both.wall += 2.0
    assert watch.look() == 0.0, "an hour of NTP's slewing is no step"


def test_a_process_that_was_put_aside_sees_no_step() -> None:
    """Stopped between its looks at the two clocks."""
    both = _Clocks()
    asked = 0

    def wall() -> float:
        nonlocal asked
        asked += 1
        if asked == 2:
            both.pass_(600)
        return both.wall

    watch = Watch(wall, lambda: both.steady)
    assert watch.look() == 0.0
    assert watch.settled


def test_a_sign_from_the_future_keeps_no_series_open() -> None:
    """Received before the clock was put back: silence counts from when that was noticed."""
    view = SeriesView(
        opened_at=NOW + timedelta(days=365), last_received_at=NOW + timedelta(days=365), headers=(), n_unread=0,
        carried=(), awake_since=NOW,
    )  # fmt: skip
    ladder = Ladder(quiet_after_s=30.0)

    def at(seconds: float) -> bool:
        return judge(view, after(seconds), ladder, lambda _: (False, "")).close

    assert [at(s) for s in (0, 29, 31)] == [False, False, True]


WALL = {"time.time", "datetime.now", "datetime.utcnow", "time.time_ns", "datetime.today"}
MAY_SUBTRACT = {
    "engines/runtime/vault.py": "the age of a file, whose time is the wall clock's",
    "node/deliver/folder.py": "the age of a file, whose time is the wall clock's",
    "node/housekeep.py": "how long this node has been up, against the times of files",
    "node/store/clock.py": "the one place that compares both clocks",
}


def wall_differences(path: Path) -> list[int]:
    """Lines where a difference is taken of a call to the wall clock."""
    return [
        found.lineno
        for found in ast.walk(ast.parse(path.read_text()))
        if isinstance(found, ast.BinOp)
        and isinstance(found.op, ast.Sub)
        and any(
            isinstance(side, ast.Call) and ast.unparse(side.func) in WALL
            for side in (found.left, found.right)
        )
    ]


def test_no_duration_is_measured_by_the_wall_clock() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): lines
        for room in ("node", "engines")
        for path in (ROOT / room).rglob("*.py")
        if (lines := wall_differences(path))
    }
    assert found.keys() <= MAY_SUBTRACT.keys(), found


def test_the_rule_finds_what_it_forbids(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("import time\na = time.time()\nprint(time.time() - a)\n")
    assert wall_differences(tmp_path / "x.py") == [3]


# R54 ----------------------------------------------------------------------------------------------


def test_two_nodes_run_a_task_once_in_its_slot(
    store: Store, open_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    n = count(20, 500)
    now = [NOW]
    monkeypatch.setattr(node.housekeep, "_now", lambda: now[0])
    keepers = [Housekeeper(s, config, owner=f"node{k}") for k, s in enumerate((store, open_store()))]
    tasks = [k._tasks["report"][0] for k in keepers]
    for slot in range(n):
        now[0] = NOW + timedelta(days=slot, seconds=slot % 40)  # schedulers are never on the second
        threads = [threading.Thread(target=task) for task in tasks for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    runs = len(store.events.list(name="report.daily", limit=10 * n))
    ledger.record(
        "R54",
        load=f"{store.database.kind}: two nodes on one database, each twice at once, {n} slots",
        count=n,
        result=f"{runs} runs in {n} slots",
        ok=runs == n,
        lost=max(0, n - runs),
        extra=max(0, runs - n),
    )
    assert runs == n


SLOW = """
import os, sys, time
from datetime import UTC, datetime
from pathlib import Path
from node.config.schema import Config
from node.housekeep import Housekeeper, _every
from node.store import Store

def tell(word):  # a line of its own, whatever another thread is writing
    os.write(1, f"\\n{word} {time.monotonic()}\\n".encode())

class Slow(Housekeeper):
    def report(self):
        tell("begin")
        time.sleep(1.2)
        tell("end")

with Store.open(sys.argv[1], Path(sys.argv[2])) as store:
    keeper = Slow(store, Config)
    task = keeper._once("report", keeper.report, 0.3)
    keeper._scheduler.reschedule_job("report", trigger=_every(float(sys.argv[3]))())
    keeper._scheduler.modify_job("report", func=task)
    keeper.start()
    sys.stdin.read()
    keeper.stop()
"""


def test_a_task_that_is_late_runs_and_never_overlaps_itself(sqlite_store: Store, tmp_path: Path) -> None:
    """Its process is stopped for longer than its period; it takes longer than its period, too."""
    away_s, period_s = count(5, 600), count(3, 300)
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    url = f"sqlite:///{tmp_path}/luminode.db"
    with (tmp_path / "out").open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, str(script), url, str(tmp_path / "spool"), str(period_s)],
            stdin=subprocess.PIPE, stdout=out, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip

    def said() -> list[tuple[str, float]]:
        whole = (tmp_path / "out").read_text().rpartition("\n")[0]  # the last line may be half written
        lines = (line.split() for line in whole.splitlines())
        return [(one[0], float(one[1])) for one in lines if one and one[0] in ("begin", "end")]

    try:
        wait_until(lambda: len(said()) >= 2, 60 + 2 * period_s, "it ran for the first time")
        time.sleep(0.7)  # its end is on record, too: else the late run would find it still running
        child.send_signal(signal.SIGSTOP)
        time.sleep(away_s)
        n_before = len(said())
        child.send_signal(signal.SIGCONT)
        woke = time.monotonic()
        wait_until(lambda: len(said()) > n_before, 30, "the late run happens")
        late_s = said()[n_before][1] - woke
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
    words = [word for word, _ in said()]
    overlap = sum(a == b for a, b in itertools.pairwise(words))
    # Skipped for lateness it would come only in its next slot: a period after the one that was missed.
    ok = not overlap and late_s < period_s
    ledger.record(
        "R54",
        load=f"SIGSTOP for {away_s} s of a scheduler whose task has a period of {period_s} s",
        count=1,
        result=f"the late run began {late_s:.1f} s after SIGCONT, {overlap} overlaps",
        ok=ok,
        extra=overlap,
    )
    assert ok, said()


def test_a_task_longer_than_its_period_waits_for_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [NOW]
    monkeypatch.setattr(node.housekeep, "_now", lambda: now[0])
    begun, go_on = threading.Event(), threading.Event()
    runs: list[Any] = []

    class Slow(Housekeeper):
        def report(self) -> None:
            runs.append(None)
            begun.set()
            go_on.wait(20)

    keepers = [Slow(store, config, owner=f"node{k}") for k in range(2)]
    first = threading.Thread(target=keepers[0]._tasks["report"][0])
    first.start()
    assert begun.wait(20)
    now[0] = NOW + timedelta(minutes=50)  # within the lease, and the period over by the other's clock
    monkeypatch.setattr(node.housekeep, "_now", lambda: now[0])
    keepers[1]._once("report", keepers[1].report, 60.0)()
    assert len(runs) == 1, "no overlap"
    go_on.set()
    first.join()
    now[0] = NOW + timedelta(days=1)
    keepers[1]._tasks["report"][0]()
    assert len(runs) == 2


def test_years_of_missed_runs_are_not_counted_one_by_one() -> None:
    trigger = Every(2.0)
    assert trigger.get_next_fire_time(None, NOW) == after(2)
    assert trigger.get_next_fire_time(NOW, after(0.5)) == after(2), "on time, it keeps its beat"
    assert trigger.get_next_fire_time(NOW, NOW + timedelta(days=400)) == NOW + timedelta(days=400, seconds=2)
    assert trigger.get_next_fire_time(NOW + timedelta(days=400), NOW) == after(2)


def test_what_is_told_of_a_step(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    both = _Clocks()
    monkeypatch.setattr(node.housekeep, "TICK_S", 0.01)
    keeper = Housekeeper(store, config)
    keeper._clock = Watch(lambda: both.wall, lambda: both.steady)
    keeper.start()
    try:
        far = datetime.now(UTC) + timedelta(days=900)
        keeper._scheduler.modify_job("leases", next_run_time=far)  # as a clock that is put back leaves it
        both.wall -= 900 * 86400
        wait_until(lambda: bool(store.events.list(name="clock.stepped")), 20, "the step is told")
        job = keeper._scheduler.get_job("leases")
        assert job.next_run_time < datetime.now(UTC) + timedelta(minutes=1)
    finally:
        keeper.stop()
    assert store.events.list(name="clock.stepped")[0].body == {"by_s": -900 * 86400}
    assert clocks.STEP_S == 5.0
