"""Opening a store: schema, migrations, refusals (R52, R56), backup (R57)."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, inspect, text

from node.errors import SchemaTooNew, SchemaTooOld, StoreError
from node.store import Store
from node.store.db import Database
from node.store.disk import filesystem_type, refuse_network_filesystem
from node.store.migrate import HEAD, KNOWN, current, upgrade
from node.store.tables import Base
from tests.storing import NOW, received


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without any table."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_empty"))
    return f"sqlite:///{tmp_path}/empty.db"


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    database = Database(empty_url)
    yield database
    database.close()


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert store.series.open_series() == []
    assert store.jobs.list() == []
    assert store.provenance.verify().ok


def test_the_migrations_make_exactly_the_tables(store: Store) -> None:
    with store.database.read() as connection:
        found = compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata
        )
    assert found == []


def test_the_head_is_the_newest_migration() -> None:
    versions = Path(Store.__module__.replace(".", "/")).parent / "migrations" / "versions"
    names = sorted(p.name for p in versions.glob("[0-9]*.py"))
    assert {n.partition("_")[0] for n in names} == KNOWN
    assert names[-1].startswith(HEAD)


def test_opening_again_changes_nothing(empty_url: str, tmp_path: Path) -> None:
    for _ in range(2):
        with Store.open(empty_url, tmp_path / "spool") as store:
            assert store.provenance.append("test.opened", ["1.2"], {}, NOW)
    with Store.open(empty_url, tmp_path / "spool", create=False) as store:
        assert store.provenance.verify().checked == 2


def test_a_newer_schema_is_refused_and_left_alone(empty: Database, empty_url: str, tmp_path: Path) -> None:
    upgrade(empty)
    with empty.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for create in (True, False):
        with pytest.raises(SchemaTooNew, match="9999") as raised:
            Store.open(empty_url, tmp_path / "spool", create=create)
        assert raised.value.hint
    with empty.read() as connection:
        assert current(connection) == "9999"


def test_without_create_an_older_schema_is_refused(empty: Database, empty_url: str, tmp_path: Path) -> None:
    with empty.read() as connection:
        assert current(connection) == ""
    with pytest.raises(SchemaTooOld, match="older") as raised:
        Store.open(empty_url, tmp_path / "spool", create=False)
    assert "db upgrade" in raised.value.hint


def test_without_create_nothing_is_made_where_no_database_is(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database at") as raised:
        Store.open(f"sqlite:///{tmp_path}/var/luminode.db", tmp_path / "var" / "spool", create=False)
    assert "where the node runs" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_is_not_mounted_is_refused_until_somebody_says_that_it_is_lost(
    empty_url: str, tmp_path: Path
) -> None:
    """A volume that comes later would hide whatever was received into the folder below it."""
    spool = tmp_path / "spool"
    with Store.open(empty_url, spool) as store:
        store.reception.record([received(store, 1)])
    spool.rename(tmp_path / "the volume")
    for create in (True, False):
        with pytest.raises(StoreError, match="knows of files in the spool") as raised:
            Store.open(empty_url, spool, create=create)
        assert "mounted" in raised.value.hint
        assert not spool.exists()
    (spool / "tmp").mkdir(parents=True)
    with Store.open(empty_url, spool) as store:
        assert len(store.reconcile.fsck().missing) == 1


class _Cut(Exception):
    """Stands for the process's end at one statement."""


def test_an_upgrade_cut_at_any_statement_has_not_happened(empty: Database) -> None:
    """R56: every tenth statement here; what is there afterwards is nothing, and then all."""
    left = 0

    def cut(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise _Cut

    event.listen(empty.engine, "before_cursor_execute", cut)
    n_cuts = 0
    for at in range(3, 400, 10):
        left = at
        try:
            upgrade(empty)
        except _Cut:
            n_cuts += 1
            left = 0
            with empty.read() as connection:
                assert inspect(connection).get_table_names() == []
        else:
            break
    event.remove(empty.engine, "before_cursor_execute", cut)
    assert n_cuts >= 4
    with empty.read() as connection:
        assert set(Base.metadata.tables) < set(inspect(connection).get_table_names())


def _open_and_write(url: str, spool: str, barrier: Any) -> None:
    barrier.wait(30)
    with Store.open(url, spool) as store:
        store.provenance.append("test.opened", ["1.2"], {}, NOW)


def test_processes_that_start_together_migrate_once(empty_url: str, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    processes = [
        spawn.Process(target=_open_and_write, args=(empty_url, str(tmp_path / "spool"), barrier))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0, 0]
    with Store.open(empty_url, tmp_path / "spool") as store:
        assert store.provenance.verify().checked == 2


def test_a_new_database_that_somebody_else_has_just_made_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE theirs (a)")
        other.execute("BEGIN IMMEDIATE")  # SQLite makes no log beside a writer, and does not wait for it
        timer = threading.Timer(0.3, other.execute, ["ROLLBACK"])
        timer.start()
        with Store.open(f"sqlite:///{path}", tmp_path / "spool") as store:
            assert store.provenance.verify().checked == 0
        timer.join()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nonsense", "sqlite:/"])
def test_addresses_that_cannot_hold_a_node_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as raised:
        Store.open(url, tmp_path / "spool")
    assert not raised.value.retryable
    assert "postgresql" in raised.value.hint


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = (
        f"/dev/vda / ext4 rw 0 0\nfiler:/x {tmp_path} nfs4 rw 0 0\n/dev/sdb {tmp_path}/local xfs rw 0 0\n"
    )
    assert filesystem_type(tmp_path / "deep" / "er", mounts) == "nfs4"
    assert filesystem_type(tmp_path / "local" / "x", mounts) == "xfs"
    with pytest.raises(StoreError, match="nfs4"):
        refuse_network_filesystem(tmp_path / "db", mounts)
    refuse_network_filesystem(tmp_path / "local", mounts)


def test_mount_points_with_spaces_are_understood() -> None:
    assert filesystem_type(Path("/mnt/my disk/db"), "x /mnt/my\\040disk cifs rw 0 0\n") == "cifs"


@pytest.mark.parametrize("damage", [b"\0" * 100, b"not a database at all" * 50])
def test_a_damaged_database_is_refused_with_advice(sqlite_url: str, tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "luminode.db"
    path.write_bytes(damage + path.read_bytes()[len(damage) :])
    with pytest.raises(StoreError) as raised:
        Store.open(sqlite_url, tmp_path / "spool")
    assert not raised.value.retryable
    assert "restore a backup" in raised.value.hint


def test_sqlite_is_durable_and_strict(sqlite_store: Store) -> None:
    with sqlite_store.database.read() as connection:
        told = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert told == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


@pytest.mark.postgres
def test_postgresql_is_durable_and_bounded(postgres_url: str) -> None:
    database = Database(postgres_url)
    with database.read() as connection:
        told = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("synchronous_commit", "lock_timeout", "TimeZone", "transaction_isolation")
        }
    database.close()
    assert told == {
        "synchronous_commit": "on",
        "lock_timeout": "30s",
        "TimeZone": "UTC",
        "transaction_isolation": "repeatable read",
    }


def test_a_backup_under_load_has_all_that_was_acknowledged_before(
    sqlite_store: Store, tmp_path: Path
) -> None:
    """R57."""
    stop = threading.Event()
    acknowledged: list[str] = []

    def load() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            one = received(sqlite_store, n)
            sqlite_store.reception.record([one])
            acknowledged.append(one.sop_instance_uid)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for again in range(5):
            while len(acknowledged) < 10 * (again + 1):
                stop.wait(0.001)
            before = list(acknowledged)
            copy = tmp_path / "backup.db"
            sqlite_store.backup(copy)
            with Store.open(f"sqlite:///{copy}", tmp_path / "spool") as restored:
                held = {i.sop_instance_uid for i in restored.series.instances(1)}
                assert set(before) <= held
                assert restored.provenance.verify().ok
            with closing(sqlite3.connect(copy)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        stop.set()
        thread.join()


def test_a_backup_that_cannot_be_written_leaves_nothing(sqlite_store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        sqlite_store.backup(tmp_path / "nowhere" / "backup.db")
    assert not list(tmp_path.glob("*.partial"))
