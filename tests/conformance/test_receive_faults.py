"""Nothing acknowledged is lost: cut connections, failing disks, a database away, kill -9, a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from node.errors import StoreError
from node.receive import Receiver
from node.store import Store
from tests.peers import free_port, listens, wait_until
from tests.receiving import House, config, house, utc
from tests.senders import ABORT, CT, RELEASE, Peer, data_set, message, sha256, store_rq


@pytest.fixture(scope="module")
def shared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("faults")
    shutil.copy(sqlite_template, folder / "luminode.db")
    with Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool") as store, house(store) as one:
        yield one


@pytest.fixture
def door(shared: House) -> Iterator[House]:
    yield shared
    shared.forget()


# --- R5: cut at any byte --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "abort"])
def test_what_was_answered_stays_and_nothing_of_the_rest_wherever_the_stream_is_cut(
    door: House, how: str
) -> None:
    choice = random.Random(f"{how} 5")
    sets = {f"1.2.3.{n}": data_set(f"1.2.3.{n}", pixels=bytes([n]) * 3000) for n in range(1, 6)}
    stream = b"".join(
        message(1, store_rq(uid, CT, n), data, 700) for n, (uid, data) in enumerate(sets.items(), 1)
    )
    for number in range(30):
        cut, at = choice.randrange(1, len(stream)), 0
        acknowledged: set[str] = set()
        with door.peer() as peer:
            peer.associate(CT)
            while at < cut:
                step = choice.choice([100, 1000, 5000])
                peer.send(stream[at : min(at + step, cut)])
                at += step
                while select.select([peer.sock], [], [], choice.choice([0, 0.002]))[0]:
                    answer = peer.answer()
                    assert answer.status == 0
                    acknowledged.add(f"1.2.3.{answer.message}")
            if how == "abort":
                peer.send(ABORT)
            if how == "reset":
                peer.reset()
        door.quiet()
        stored = door.stored()
        assert acknowledged <= set(stored), (number, cut)
        assert all(sha256(sets[uid]) == digest for uid, digest in stored.items())
        assert door.tmp() == []
    assert "RELEASED" not in door.ends(30)


# --- R3: whatever the disk refuses, nobody is told that it is stored --------------------------------------


class Failing:
    """Makes the n-th call of a function of ``os`` fail, as a full or broken disk does."""

    def __init__(self, real: Callable[..., Any], n: int, error: int, only: Callable[..., bool]) -> None:
        self.real, self.left, self.error, self.only = real, n, error, only
        self.failed = 0

    def __call__(self, *args: Any, **more: Any) -> Any:
        if self.only(*args):
            self.left -= 1
            if self.left == 0:
                self.failed += 1
                raise OSError(self.error, os.strerror(self.error))
        return self.real(*args, **more)


def by_door(*_args: object) -> bool:
    return threading.current_thread().name.startswith("door:")


CALLS = {
    "ahead": {"write": 2, "writev": 2, "pwrite": 2, "fdatasync": 2, "link": 2},
    "none ahead": {"open": 3, "write": 2, "writev": 2, "fdatasync": 2, "rename": 2, "fsync": 2},
}
"""How many calls of a kind are tried, with names that were made ahead, and where there are none."""


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("names", "call"), [(names, call) for names, calls in CALLS.items() for call in calls]
)
def test_a_failing_disk_is_answered_a700_and_the_next_instance_is_stored(
    door: House, monkeypatch: pytest.MonkeyPatch, names: str, call: str, code: int
) -> None:
    with nothing_ahead(door) if names == "none ahead" else nullcontext():
        _refuses(door, monkeypatch, call, CALLS[names][call], code)


@contextmanager
def nothing_ahead(door: House) -> Iterator[None]:
    """As where there are no hard links."""
    door.store.spool.landed()
    try:
        yield
    finally:
        door.store.spool.land()


def _refuses(door: House, monkeypatch: pytest.MonkeyPatch, call: str, most: int, code: int) -> None:
    for nth in range(1, most + 1):
        uid = f"1.2.{nth}"
        data = data_set(uid, pixels=bytes(2000))
        with door.peer() as peer, monkeypatch.context() as patch:
            peer.associate(CT)
            failing = Failing(getattr(os, call), nth, code, by_door)
            patch.setattr(os, call, failing)
            statuses = [peer.store(f"{uid}.{k}", data_set(f"{uid}.{k}")).status for k in range(4)]
            assert failing.failed == 1
            assert peer.store(uid, data).status == 0
        assert sorted(set(statuses)) == [0, 0xA700], (nth, statuses)
        assert statuses.count(0xA700) == 1
        stored = door.stored()
        assert {f"{uid}.{k}" in stored for k in range(4) if statuses[k] == 0} == {True}
        assert f"{uid}.{statuses.index(0xA700)}" not in stored
        assert door.tmp() == []


def test_a_database_that_is_away_is_answered_a700_until_it_is_back(
    door: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_args: object, **_more: object) -> None:
        raise StoreError("the database is away")

    with door.peer() as peer:
        with monkeypatch.context() as patch:
            patch.setattr(door.store.reception, "note_associations", away)
            patch.setattr(door.store.reception, "record", away)
            peer.associate(CT)
            answer = peer.store("1.2.3.1", data_set("1.2.3.1"))
            assert answer.status == 0xA700
        assert peer.store("1.2.3.1", data_set("1.2.3.1")).status == 0
        assert peer.release() == 6
    assert list(door.stored()) == ["1.2.3.1"]
    assert door.ends(1) == ["RELEASED"]


def test_a_release_after_a_refusal_is_no_proof_that_all_is_here(
    door: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a series closes on it without its last slice, and nobody sees the hole."""

    def away(*_args: object, **_more: object) -> None:
        raise StoreError("the database is away")

    with door.peer() as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", data_set("1.2.3.1")).status == 0
        with monkeypatch.context() as patch:
            patch.setattr(door.store.reception, "record", away)
            assert peer.store("1.2.3.2", data_set("1.2.3.2")).status == 0xA700
        assert peer.release() == 6
    assert door.ends(1) == ["INCOMPLETE"]


def test_an_instance_that_the_database_does_not_take_costs_the_others_nothing(
    door: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several wait for one transaction; one row is refused: the others are stored all the same."""
    record = door.store.reception.record

    def picky(batch: Any, **more: Any) -> Any:
        if any(one.sop_instance_uid == "1.2.3.5" for one in batch):
            raise ValueError("no such row: DOE^JANE")
        time.sleep(0.02)
        return record(batch, **more)

    monkeypatch.setattr(door.store.reception, "record", picky)
    statuses: dict[str, int] = {}
    start = threading.Barrier(10)

    def send(number: int) -> None:
        uid = f"1.2.3.{number}"
        with door.peer() as peer:
            peer.associate(CT)
            start.wait(20)
            answer = peer.store(uid, data_set(uid))
            statuses[uid] = answer.status
            assert "DOE" not in answer.comment

    threads = [threading.Thread(target=send, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert statuses == {f"1.2.3.{n}": 0xA700 if n == 5 else 0 for n in range(10)}


# --- a process that dies, or has no room ------------------------------------------------------------------

SERVER = """
import resource, signal, sys, threading
from datetime import UTC, datetime
from pathlib import Path
import node.log
from node.config.network import HostPort
from node.config.schema import Config, NodeSettings, StoreSettings
from node.receive import Receiver
from node.store import Store

folder, port, refuse_below, largest = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if largest:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
node.log.configure("error")
config = Config(
    node=NodeSettings(accept_from="any", listen=HostPort(host="127.0.0.1", port=port)),
    store=StoreSettings(refuse_below=refuse_below),
)
store = Store.open("sqlite:///" + sys.argv[5], folder)
receiver = Receiver(config, store, lambda: datetime.now(UTC))
receiver.start()
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
done.wait()
receiver.stop(2.0)
store.close()
"""


class Process:
    """A receiver in a process of its own."""

    def __init__(
        self, spool: Path, database: Path, *, refuse_below: int = 0, largest: int = 0, wrap: str = ""
    ) -> None:
        self.port = free_port()
        command = [sys.executable, "-c", SERVER, str(spool), str(self.port), str(refuse_below), str(largest)]
        command.append(str(database))
        if wrap:
            command = ["unshare", "-rm", "sh", "-c", f'{wrap} && exec "$@"', "sh", *command]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)
        wait_until(self._ready, 60.0, "the receiver listens")

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read().decode()[-2000:])
        return listens(self.port)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


def test_kill_9_while_receiving_loses_nothing_acknowledged(sqlite_template: Path, tmp_path: Path) -> None:
    database, spool = tmp_path / "luminode.db", tmp_path / "spool"
    shutil.copy(sqlite_template, database)
    choice = random.Random(11)
    acknowledged: dict[str, str] = {}
    for life in range(2):
        with Process(spool, database) as process:
            dead = threading.Event()

            def send(
                number: int, port: int = process.port, life: int = life, dead: threading.Event = dead
            ) -> None:
                with contextlib.suppress(AssertionError, OSError), Peer(port) as peer:
                    peer.associate(CT, calling=f"CT{number}")
                    for k in range(10_000):
                        if dead.is_set():
                            return
                        uid = f"1.2.{life}.{number}.{k}"
                        data = data_set(uid, series=f"1.2.{life}.{number}", pixels=os.urandom(20_000))
                        if peer.store(uid, data).status == 0:
                            acknowledged[uid] = sha256(data)

            senders = [threading.Thread(target=send, args=(n,)) for n in range(3)]
            for sender in senders:
                sender.start()
            time.sleep(0.3 + choice.random() * 0.3)
            os.kill(process.process.pid, signal.SIGKILL)
            dead.set()
            for sender in senders:
                sender.join(30)
    assert len(acknowledged) > 10
    with Store.open(f"sqlite:///{database}", spool) as store:
        later = utc() + timedelta(minutes=5)
        receiver = Receiver(config(), store, lambda: later)
        receiver.name = receiver.name.rsplit(":", 1)[0]
        told = House(receiver, store, config())
        stored = told.stored()
        assert {uid: stored.get(uid) for uid in acknowledged} == acknowledged
        assert {str(a.end) for a in told.associations()} == {"OPEN"}
        store.spool.sweep_tmp(later)
        assert told.tmp() == []


def test_a_restart_marks_what_was_open_as_lost(sqlite_store: Store) -> None:
    settings = config()
    first = Receiver(settings, sqlite_store, utc)
    first.start()
    with Peer(first.port) as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", data_set("1.2.3.1")).status == 0
        (writer := sqlite_store.spool.create()).write(b"left behind")
        os.close(writer._fd)  # as if its process had died
        wait_until(lambda: len(House(first, sqlite_store, settings).associations()) == 1)
        later = utc() + timedelta(minutes=1)
        second = Receiver(settings, sqlite_store, lambda: later)
        second.start()
        try:
            assert [str(a.end) for a in House(second, sqlite_store, settings).associations()] == ["LOST"]
            assert House(second, sqlite_store, settings).tmp() == []
        finally:
            second.stop(0.1)
            first.stop(0.1)


def test_a_file_that_may_not_grow_is_a700_and_smaller_ones_are_stored(
    sqlite_template: Path, tmp_path: Path
) -> None:
    """EFBIG from a resource limit, in a process of its own."""
    database = tmp_path / "luminode.db"
    shutil.copy(sqlite_template, database)
    with Process(tmp_path / "spool", database, largest=8_000_000) as process, Peer(process.port) as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", data_set("1.2.3.1", pixels=bytes(9_000_000))).status == 0xA700
        assert peer.store("1.2.3.2", data_set("1.2.3.2", pixels=bytes(7_000_000))).status == 0
        assert list((tmp_path / "spool" / "tmp").iterdir()) == []


def small_disk_possible() -> bool:
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True).returncode == 0


def settled(landing: Path) -> bool:
    """Whether no instance has a second name any more, which would keep its bytes when the first is removed."""
    try:
        return not any(one.stat().st_size for one in landing.iterdir())
    except FileNotFoundError:
        return False


def test_a_full_disk_is_refused_early_and_heals(sqlite_template: Path, tmp_path: Path) -> None:
    """R27 on a real file system of 24 MB that somebody else fills."""
    if not small_disk_possible():
        pytest.skip("mounting a tmpfs in a user namespace is not possible here")
    spool, database = tmp_path / "spool", tmp_path / "luminode.db"
    spool.mkdir()
    shutil.copy(sqlite_template, database)
    mount = f"mount -t tmpfs -o size=24m none {spool}"
    with Process(spool, database, refuse_below=4_000_000, wrap=mount) as process, Peer(process.port) as peer:
        peer.associate(CT)
        inside = Path(f"/proc/{process.process.pid}/root{spool}")
        statuses: list[int] = []
        for number in range(16):
            uid = f"1.2.3.{number}"
            statuses.append(peer.store(uid, data_set(uid, pixels=bytes(2_000_000))).status)
        assert statuses[0] == 0
        assert set(statuses) == {0, 0xA700}
        assert statuses == sorted(statuses)
        wait_until(lambda: settled(inside / "landing"), 20.0, "names are settled")
        for stored in list(inside.glob("[0-9a-f][0-9a-f]/*.dcm"))[:6]:
            stored.unlink()  # an admin, or retention, made room
        assert peer.store("1.2.3.99", data_set("1.2.3.99", pixels=bytes(2_000_000))).status == 0
        assert list((inside / "tmp").iterdir()) == []
        (inside / "foreign").write_bytes(bytes(9_000_000))  # to zero in one go, over our reserve
        with contextlib.suppress(OSError), (inside / "foreign").open("ab") as foreign:
            while True:
                foreign.write(bytes(1_000_000))
                foreign.flush()
        assert peer.store("1.2.3.98", data_set("1.2.3.98", pixels=bytes(2_000_000))).status == 0xA700
        (inside / "foreign").unlink()
        assert peer.store("1.2.3.98", data_set("1.2.3.98", pixels=bytes(2_000_000))).status == 0
        peer.send(RELEASE)
        assert peer.read()[0] == 6


def test_sigterm_ends_a_process_in_time_under_load(sqlite_template: Path, tmp_path: Path) -> None:
    """R11: whatever was acknowledged is there, and the process is gone soon."""
    database, spool = tmp_path / "luminode.db", tmp_path / "spool"
    shutil.copy(sqlite_template, database)
    acknowledged: set[str] = set()
    with Process(spool, database) as process:

        def send(number: int) -> None:
            with contextlib.suppress(AssertionError, OSError), Peer(process.port) as peer:
                peer.associate(CT)
                for k in range(10_000):
                    uid = f"1.2.{number}.{k}"
                    if peer.store(uid, data_set(uid, series=f"1.2.{number}")).status == 0:
                        acknowledged.add(uid)

        senders = [threading.Thread(target=send, args=(n,)) for n in range(3)]
        for sender in senders:
            sender.start()
        time.sleep(0.5)
        process.process.send_signal(signal.SIGTERM)
        assert (
            process.process.wait(60) == 0
        )  # within 15 s on a machine of its own: tests/faults/test_restarts.py
        for sender in senders:
            sender.join(10)
    with Store.open(f"sqlite:///{database}", spool) as store:
        told = House(Receiver(config(), store, utc), store, config())
        assert acknowledged
        assert acknowledged <= set(told.stored())
        assert {str(a.end) for a in told.associations()} == {"ABORTED"}
        assert told.tmp() == []
