"""The database away, locked, full or killed: refused in bounded time, nothing acknowledged is lost (R50)."""

from __future__ import annotations

import ctypes
import multiprocessing
import random
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from node.errors import OutOfSpace, StoreError
from node.model import Instance
from node.store import Spool, Store
from node.store.db import Database
from node.store.migrate import upgrade
from tests.postgres import Server, told
from tests.storing import NOW, received


@pytest.fixture
def server(postgres_binaries: Path) -> Iterator[Server]:
    one = Server(postgres_binaries)
    try:
        one.start()
        yield one
    finally:
        one.remove()


def persist(store: Store, batch: list[Instance], within_s: float = 30) -> None:
    """What a scanner does that is answered A700H: the same again, until it is taken."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            store.reception.record(batch)
            return
        except StoreError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@pytest.mark.postgres
def test_postgresql_killed_under_load_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    seed = 20260329
    chance = random.Random(seed)
    store = Store.open(told(server.url), tmp_path / "spool")
    acknowledged: list[Instance] = []
    stop = threading.Event()

    def receive(lane: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            one = received(store, n, series=lane)
            persist(store, [one])
            acknowledged.append(one)

    lanes = [threading.Thread(target=receive, args=(lane,)) for lane in range(3)]
    ticker = store.changes.ticker()
    for lane in lanes:
        lane.start()
    try:
        for _ in range(3):
            time.sleep(chance.uniform(0.1, 0.5))
            server.kill()
            with pytest.raises(StoreError):
                store.series.open_series()
            server.start()
            before = len(acknowledged)
            deadline = time.monotonic() + 10
            while len(acknowledged) <= before:
                assert time.monotonic() < deadline, "it did not find the database again"
                time.sleep(0.01)
            ticker.wait(0.1)
            assert ticker.wait(5), "whoever waits is woken again"
    finally:
        stop.set()
        for lane in lanes:
            lane.join()
    held = [i for s in store.series.list() for i in store.series.instances(s.id)]
    assert {i.sop_instance_uid for i in held} == {i.sop_instance_uid for i in acknowledged}, f"seed {seed}"
    assert len(held) == len({i.sop_instance_uid for i in held})
    assert sum(s.count for s in store.series.list()) == len(held)
    ticker.close()
    store.close()


@pytest.mark.postgres
def test_terminated_and_read_only_sessions_are_errors_and_heal(server: Server, tmp_path: Path) -> None:
    store = Store.open(told(server.url), tmp_path / "spool")
    admin = create_engine(server.url, isolation_level="AUTOCOMMIT")

    def say(statement: str) -> None:
        with admin.connect() as connection:
            connection.execute(text(statement))

    ones = [received(store, n) for n in range(12)]
    for one in ones[:10]:
        say(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = 'postgres' AND pid <> pg_backend_pid()"
        )
        persist(store, [one])
    say("ALTER DATABASE postgres SET default_transaction_read_only = on")
    store.database.engine.dispose()
    with pytest.raises(StoreError, match="read-only") as raised:
        store.reception.record(ones[10:])
    assert raised.value.retryable
    say("ALTER DATABASE postgres RESET default_transaction_read_only")
    store.database.engine.dispose()
    persist(store, ones[10:])
    assert store.series.instances(1) == ones
    admin.dispose()
    store.close()


@pytest.mark.postgres
def test_a_server_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://luminode:hunter2@/x?host={tmp_path}"
    with pytest.raises(StoreError) as raised:
        Store.open(url, tmp_path / "spool")
    assert raised.value.retryable
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


@pytest.fixture
def impatient(sqlite_url: str, tmp_path: Path) -> Iterator[Store]:
    """A store that waits 0.2 s for a lock, not 30."""
    database = Database(sqlite_url, busy_timeout_s=0.2)
    upgrade(database)
    yield Store(database, Spool(tmp_path / "spool"))
    database.close()


def test_a_foreign_writer_that_holds_the_lock_is_waited_for_and_then_refused(
    impatient: Store, tmp_path: Path
) -> None:
    one = received(impatient, 1)
    with closing(sqlite3.connect(tmp_path / "luminode.db", isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(StoreError, match="locked") as raised:
            impatient.reception.record([one])
        assert time.monotonic() - began >= 0.2
        assert raised.value.retryable
        assert impatient.series.list() == [], "readers are not held up"
        threading.Timer(0.05, foreign.interrupt).cancel()
        foreign.execute("ROLLBACK")
    assert [t.kind for t in impatient.reception.record([one])] == ["new"]


def test_a_full_database_is_out_of_space_and_heals(impatient: Store) -> None:
    with impatient.database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    ones = [received(impatient, n) for n in range(200)]
    with pytest.raises(OutOfSpace):
        impatient.reception.record(ones)
    assert impatient.series.list() == []
    impatient.database.engine.dispose()  # the limit was that connection's
    assert len(impatient.reception.record(ones)) == 200


def test_no_value_of_a_row_reaches_the_text_of_an_error(store: Store) -> None:
    canary = "DOE^JANE^CANARY"
    one = received(store, 1)
    attempts: list[Callable[[], object]] = [
        lambda: store.reception.record([replace(one, calling_ae=canary * 9)]),
        lambda: store.reception.record([replace(one, calling_ae=canary + "\0")]),
        lambda: store.provenance.append(canary * 9, [canary], {"name": canary}, NOW),
        lambda: store.configs.applied(canary * 9, canary, canary, NOW),
    ]
    texts = []
    for attempt in attempts:
        try:
            attempt()
        except StoreError as error:
            texts.append("".join(traceback.format_exception(error)))
    assert len(texts) == (4 if store.database.kind == "postgresql" else 0)
    assert "CANARY" not in "".join(texts)


def _receive_until_killed(url: str, spool: str, lane: int, told: Any) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    store = Store.open(url, spool)
    n = 0
    while True:
        batch = [received(store, n + k, series=lane) for k in range(3)]
        store.reception.record(batch)
        told.send([i.sop_instance_uid for i in batch])
        n += 3


def test_a_receiver_killed_at_any_moment_loses_nothing_acknowledged(store: Store, database_url: str) -> None:
    """R1 in small: what was told is recorded and whole; what was not told is adopted or gone."""
    seed = 7
    chance = random.Random(seed)
    spawn = multiprocessing.get_context("spawn")
    acknowledged: set[str] = set()
    for round_ in range(2):
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(
            target=_receive_until_killed, args=(database_url, str(store.spool.root), round_, theirs)
        )
        process.start()
        theirs.close()
        acknowledged |= set(ours.recv())
        time.sleep(chance.uniform(0.05, 0.3))
        process.kill()
        process.join()
        while True:
            try:
                acknowledged |= set(ours.recv())
            except EOFError:
                break
    held = [i for s in store.series.list() for i in store.series.instances(s.id)]
    assert acknowledged <= {i.sop_instance_uid for i in held}, f"seed {seed}"
    assert all(store.spool.verify(i.path, i.offset, i.sha256) for i in held)
    assert store.reconcile.fsck(verify=True).missing == ()
    assert sum(s.count for s in store.series.list()) == len(held)
