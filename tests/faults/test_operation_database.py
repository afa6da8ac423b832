"""R50, R51: the database killed, restarted, read-only, locked or replaced by its standby, with scanners at the door.

A receiver as it is, raw sockets before it, and a server of our own behind it. While the database is away no slice is
answered 0000H; whatever was answered so is there afterwards, once.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL

from node.errors import StoreError
from node.store import Spool, Store
from node.store.db import Database
from node.store.migrate import upgrade
from tests.faults import ledger
from tests.faults.scale import SEED, count
from tests.postgres import Pair, Server, told
from tests.receiving import House, house
from tests.senders import CT, Peer, data_set

pytestmark = pytest.mark.timeout(600)

BACK_S = 10.0


@dataclass
class Load:
    """Senders that offer each slice until it is acknowledged, and what they were answered, when."""

    door: House
    n: int = 3
    sent: set[str] = field(default_factory=set)
    acknowledged: list[tuple[float, str]] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)
    refused_at: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    trouble: list[BaseException] = field(default_factory=list)
    given_up: bool = False

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._work, args=(k,), daemon=True) for k in range(self.n)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        self.given_up = kind is not None
        self.stop.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "a sender waits for an answer that does not come"
        if self.trouble and kind is None:
            raise self.trouble[0]

    def since(self, at: float) -> int:
        """How many were acknowledged after this time."""
        return sum(when > at for when, _ in self.acknowledged)

    def _work(self, lane: int) -> None:
        k = 0
        try:
            with Peer(self.door.port, timeout=90.0) as peer:
                peer.associate(CT, calling=f"CT{lane}")
                while not self.stop.is_set():
                    k += 1
                    uid = f"1.2.7.{lane}.{k // 20}.{k}"
                    data = data_set(uid, series=f"1.2.7.{lane}.{k // 20}", study="1.2.7")
                    self.sent.add(uid)
                    while self._offer(peer, uid, data) != 0 and not self.given_up:
                        time.sleep(0.05)
        except BaseException as error:
            self.trouble.append(error)

    def _offer(self, peer: Peer, uid: str, data: bytes) -> int:
        status = peer.store(uid, data).status
        self.answers[status] = self.answers.get(status, 0) + 1
        if status == 0:
            self.acknowledged.append((time.monotonic(), uid))
        else:
            self.refused_at.append(time.monotonic())
        return status


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    lost: int
    doubled: int
    strange: int


def counted(store: Store, load: Load) -> Counted:
    """What is on record against what was acknowledged; a slice whose commit was unknown is offered again, so that in
    the end all that was sent was acknowledged."""
    held = [
        i.sop_instance_uid for s in store.series.list(limit=100_000) for i in store.series.instances(s.id)
    ]
    acknowledged = [uid for _, uid in load.acknowledged]
    rows = sum(s.count for s in store.series.list(limit=100_000))
    return Counted(
        lost=len(set(acknowledged) - set(held)),
        doubled=len(held)
        - len(set(held))
        + abs(rows - len(held))
        + len(acknowledged)
        - len(set(acknowledged)),
        strange=len(set(held) - load.sent) + sum(status not in (0, 0xA700) for status in load.answers),
    )


def back(load: Load, at: float) -> float:
    """Wait until the door takes something again; how long after ``at`` (monotonic) that was, in seconds."""
    deadline = time.monotonic() + 30
    while not load.since(at):
        assert time.monotonic() < deadline, "the door did not find the database again"
        time.sleep(0.01)
    return min(when for when, _ in load.acknowledged if when > at) - at


def say(url: URL, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()


TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = 'luminode' AND pid <> pg_backend_pid()"
)
READ_ONLY = "ALTER DATABASE postgres SET default_transaction_read_only = "


@pytest.fixture
def server(postgres_binaries: Path) -> Iterator[Server]:
    one = Server(postgres_binaries)
    try:
        one.start()
        yield one
    finally:
        one.remove()


def _killed(server: Server, away_s: float) -> float:
    server.kill()
    time.sleep(away_s)
    server.start()
    return time.monotonic()


def _restarted(server: Server, away_s: float) -> float:
    server.stop()
    time.sleep(away_s)
    server.start()
    return time.monotonic()


def _read_only(server: Server, away_s: float) -> float:
    elsewhere = server.url.set(database="template1")  # where it can be taken back
    say(elsewhere, READ_ONLY + "on")
    say(elsewhere, TERMINATE)
    time.sleep(away_s)
    say(elsewhere, READ_ONLY + "off")
    say(elsewhere, TERMINATE)
    return time.monotonic()


def _terminated(server: Server, away_s: float) -> float:
    until = time.monotonic() + away_s
    while time.monotonic() < until:
        say(server.url, TERMINATE)
        time.sleep(0.05)
    return time.monotonic()


WAYS: tuple[Callable[[Server, float], float], ...] = (_killed, _read_only, _terminated, _restarted)
SURELY_AWAY = (_killed, _restarted, _read_only)


@pytest.mark.postgres
def test_postgresql_away_and_back(server: Server, tmp_path: Path) -> None:
    n = count(4, 100)
    chance = random.Random(SEED)
    store = Store.open(told(server.url), tmp_path / "spool")
    waits: list[float] = []
    silent: list[str] = []
    with house(store) as door, Load(door) as load:
        for k in range(n):
            way = WAYS[k % len(WAYS)]
            time.sleep(chance.uniform(0.05, 0.3))
            began = time.monotonic()
            ready = way(server, chance.uniform(0.2, 0.6))
            waits.append(back(load, ready))
            if way in SURELY_AWAY and not any(began < at for at in load.refused_at):
                silent.append(way.__name__)
    found = counted(store, load)
    store.close()
    ok = found == Counted(lost=0, doubled=0, strange=0) and not silent and max(waits) <= BACK_S
    ledger.record(
        "R50",
        load=f"PostgreSQL, kill -9 / read-only / pg_terminate_backend / restart in turn, {load.n} associations",
        count=n,
        result=f"{len(load.acknowledged)} acknowledged, {load.answers.get(0xA700, 0)} answered A700 and offered again; "
        f"taken again {max(waits):.1f} s after the server was ready at most",
        ok=ok,
        lost=found.lost,
        extra=found.doubled,
    )
    assert ok, (found, silent, waits, load.answers)


@contextmanager
def foreign_writer(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        yield
        foreign.execute("ROLLBACK")


def test_sqlite_locked_by_a_stranger(sqlite_url: str, tmp_path: Path) -> None:
    held_s, patience_s = count(4, 60), count(1, 30)
    database = Database(sqlite_url, busy_timeout_s=patience_s)
    upgrade(database)
    store = Store(database, Spool(tmp_path / "spool"))
    with house(store) as door, Load(door) as load:
        time.sleep(0.5)
        with foreign_writer(tmp_path / "luminode.db"):
            time.sleep(0.05)
            held_from = time.monotonic()
            time.sleep(held_s)
            held_to = time.monotonic()
        wait_s = back(load, held_to)
        during = [when for when, _ in load.acknowledged if held_from < when < held_to]
        refused = [at for at in load.refused_at if held_from < at]
    found = counted(store, load)
    store.close()
    ok = found == Counted(lost=0, doubled=0, strange=0) and not during and bool(refused) and wait_s <= BACK_S
    ledger.record(
        "R50",
        load=f"SQLite, a foreign writer holds the lock for {held_s} s; the door waits {patience_s} s for it",
        count=1,
        result=f"{len(during)} acknowledged meanwhile, {len(refused)} answered A700, taken again after {wait_s:.1f} s",
        ok=ok,
        lost=found.lost,
        extra=found.doubled,
    )
    assert ok, (found, during, refused, wait_s)


@pytest.mark.postgres
def test_failover_to_a_synchronous_standby(postgres_binaries: Path, tmp_path: Path) -> None:
    n = count(1, 10)
    pair = Pair(postgres_binaries)
    waits: list[float] = []
    chance = random.Random(SEED)
    try:
        pair.start()
        store = Store.open(told(pair.url), tmp_path / "spool")
        with house(store) as door, Load(door) as load:
            for _ in range(n):
                time.sleep(chance.uniform(0.3, 0.8))
                pair.fail_over()
                waits.append(back(load, time.monotonic()))
                pair.pair_again()
        found = counted(store, load)
        with suppress(StoreError):
            store.close()
    finally:
        pair.remove()
    ok = found == Counted(lost=0, doubled=0, strange=0) and max(waits) <= BACK_S
    ledger.record(
        "R51",
        load=f"PostgreSQL: kill -9 of the primary, its synchronous standby promoted, {load.n} associations",
        count=n,
        result=f"{len(load.acknowledged)} acknowledged; taken again {max(waits):.1f} s after the promotion at most",
        ok=ok,
        lost=found.lost,
        extra=found.doubled,
    )
    assert ok, (found, waits, load.answers)
