"""R52 a damaged database, R56 an upgrade that is killed, R57 backup and restore, R58 what retention may not touch."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from node.app.rebuild import rebuild
from node.errors import OutOfSpace, SchemaTooNew, StoreError
from node.housekeep import Housekeeper, read_orphan
from node.model import DeliveryState, JobState
from node.store import Store
from node.store.archive import restore, save
from node.store.db import Database
from node.store.migrate import HEAD, current, upgrade
from node.store.reserve import Reserve
from tests.contract.test_store_originals import old_of
from tests.faults import ledger
from tests.faults.scale import SEED, count
from tests.faults.site import Shift, balance, dimse, site, sources
from tests.peers import StoreScp, free_port, needs, wait_until
from tests.pipeline.harness import REPOSITORY, Node
from tests.postgres import told
from tests.receiving import config, house
from tests.senders import CT, EXPLICIT, associate_rq, data_set
from tests.storing import NOW, closed_series, made, outbox, queued, received

pytestmark = pytest.mark.timeout(600)


def utc() -> datetime:
    return datetime.now(UTC)


# R52 ----------------------------------------------------------------------------------------------


def _header_zeroed(database: Path) -> None:
    with database.open("r+b") as file:
        file.write(b"\0" * 100)


def _pages_torn(database: Path) -> None:
    with database.open("r+b") as file:
        for page in range(1, database.stat().st_size // 4096, 2):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


def _cut_short(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


def _emptied(database: Path) -> None:
    os.truncate(database, 0)
    for end in ("-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)


def _log_deleted(database: Path) -> None:
    """As by somebody who tidies up: what was committed since the last checkpoint is gone."""
    for end in ("-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)


DAMAGES: tuple[Callable[[Path], None], ...] = (
    _header_zeroed,
    _pages_torn,
    _cut_short,
    _emptied,
    _log_deleted,
)

IN_USE = (_emptied, _log_deleted)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__.strip("_"))
def test_a_damaged_database_is_refused_and_rebuilt(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """Every slice that a real receiver acknowledged comes back, read from the bytes it left in the spool."""
    n_series, n_slices = count(3, 50), 8
    url, spool, place = f"sqlite:///{tmp_path}/luminode.db", tmp_path / "spool", tmp_path / "luminode.db"
    acknowledged: set[str] = set()
    with Store.open(url, spool) as store, house(store, config()) as door, door.peer() as peer:
        peer.associate(CT)
        for s in range(n_series):
            for k in range(n_slices):
                uid = f"1.2.8.{s}.{k}"
                assert peer.store(uid, data_set(uid, series=f"1.2.8.{s}", study="1.2.8")).status == 0
                acknowledged.add(uid)
        peer.release()
        copies = [p for p in tmp_path.glob("luminode.db*") if p.suffix != ".reserve"]
        for path in copies:  # as it lies there when the power goes
            shutil.copy(path, tmp_path / f"left.{path.name}")
    if damage in IN_USE:  # else all is in the one file: the node had been stopped
        for path in copies:
            (tmp_path / f"left.{path.name}").replace(path)
    damage(place)
    how, refusal = "opened, what it forgot was adopted", None
    try:
        with Store.open(url, spool) as store:
            store.reconcile.scan(read_orphan, utc(), grace_s=0)
            store.series.list(limit=1000)
    except StoreError as error:
        refusal = error
    if refusal is not None:
        assert not refusal.retryable
        assert "luminode db rebuild" in refusal.hint
        how = "refused with advice, rebuilt from the spool"
        done = rebuild(url, spool, utc())
        assert done.aside.exists(), "whoever can save records from it finds it"
    with Store.open(url, spool) as store:
        held = [
            i.sop_instance_uid for s in store.series.list(limit=1000) for i in store.series.instances(s.id)
        ]
        found = store.reconcile.fsck(verify=True)
    lost = len(acknowledged - set(held))
    ok = not lost and len(held) == len(acknowledged) and found.ok and bool(refusal) == (damage not in IN_USE)
    ledger.record(
        "R52",
        load=f"the database after {damage.__name__.strip('_').replace('_', ' ')}, {n_series} series unsent",
        count=len(acknowledged),
        result=f"{how}: {len(set(held) & acknowledged)} of {len(acknowledged)} slices are back",
        ok=ok,
        lost=lost,
        extra=len(held) - len(set(held)),
    )
    assert ok, (lost, found)


def test_a_database_that_is_sound_is_not_rebuilt(sqlite_store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="sound"):
        rebuild(told(sqlite_store.database.url), tmp_path / "spool", utc())
    assert (tmp_path / "luminode.db").exists()


def test_a_full_disk_leaves_room_to_record_it(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    script = (
        f"mount -t tmpfs -o size=28m none {place} && exec {sys.executable} -m tests.faults.full_disk {place}"
    )
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if "unshare" in ran.stderr or "mount" in ran.stderr:
        pytest.skip(f"no file system of our own can be mounted here: {ran.stderr.strip()[:100]}")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    ok = (
        found["kept"]
        and "free space" in found["refused"]
        and not found["kept_after"]
        and found["event"] == ["disk.filled"]
        and found["lost"] == 0
        and found["again"] == 20
        and found["kept_again"]
    )
    ledger.record(
        "R52",
        load="a stranger fills a 28 MB tmpfs to the last byte while slices are recorded",
        count=1,
        result="refused as out of space; the reserve let the event of it be written; goes on when there is room",
        ok=ok,
        lost=found["lost"],
    )
    assert ok, found


def test_a_reserve_that_does_not_fit_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = Reserve(tmp_path / "x.reserve", size=1 << 20)
    monkeypatch.setattr("node.store.reserve.free_bytes", lambda _: 1 << 20)
    assert not reserve.keep()
    assert not reserve.release()


def test_out_of_space_lets_the_reserve_go(sqlite_store: Store) -> None:
    database = sqlite_store.database
    assert database.reserve is not None
    assert database.reserve.keep()
    with pytest.raises(OutOfSpace), database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        connection.exec_driver_sql("CREATE TABLE filler (x BLOB)")
        connection.exec_driver_sql("INSERT INTO filler VALUES (zeroblob(1000000))")
    assert not database.reserve.kept


# R56 ----------------------------------------------------------------------------------------------


def _dies_at(url: str, statement: int) -> bool:
    """Upgrade in a child that kills itself before the n-th statement; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        left = statement

        def strike(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            database = Database(url)
            event.listen(database.engine, "before_cursor_execute", strike)
            upgrade(database)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, "the upgrade failed by itself"
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_an_upgrade_killed_at_any_statement_starts_clean(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """From the schema of the release before, with a job that runs, one that waits and deliveries on their way."""
    url = str(request.getfixturevalue("sqlite_url" if kind == "sqlite" else "postgres_empty"))
    with Store.open(url, tmp_path / "spool") as store:
        outbox(store, n=3)
        queued(store, series=2)
        queued(store, series=3)
        assert store.jobs.claim("w", 30, NOW) is not None
        assert store.deliveries.claim("d", 30, NOW) is not None
    old = old_of(url, tmp_path)

    def work() -> tuple[Any, ...]:
        with Store.open(old, tmp_path / "spool") as store:
            return (
                store.series.list(),
                store.jobs.list(),
                store.deliveries.list(),
                store.provenance.verify().ok,
            )

    step = count(6, 1)
    n_kills = 0
    for at in range(2, 2000, step):
        if not _dies_at(old, at):
            break
        n_kills += 1
        database = Database(old)
        with database.read() as connection:
            assert current(connection) == "0001", f"killed before statement {at}"
        database.close()
    assert n_kills >= 2
    database = Database(old)
    with database.read() as connection:
        assert current(connection) == HEAD
    database.close()
    series, jobs, deliveries, chain = work()
    ok = (
        len(series) == 3
        and sorted(j.state for j in jobs) == [JobState.DONE, JobState.QUEUED, JobState.RUNNING]
        and [d.state for d in deliveries] == [DeliveryState.SENDING]
        and chain
    )
    ledger.record(
        "R56",
        load=f"{kind}: SIGKILL before statement 2, {2 + step}, ... of the upgrade 0001 -> {HEAD}, queued work in it",
        count=n_kills,
        result="each time as before, then whole: 3 series, 3 jobs, 1 delivery as they were",
        ok=ok,
    )
    assert ok, (series, jobs, deliveries, chain)


def test_an_older_release_refuses_what_a_newer_one_wrote(sqlite_store: Store, tmp_path: Path) -> None:
    with sqlite_store.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    node = site(tmp_path / "node", database=told(sqlite_store.database.url))
    ran = subprocess.run(
        [sys.executable, "-m", "node", "serve", "--config", str(node.config)],
        cwd=node.folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "9999" in ran.stderr
    assert "install the Luminode that wrote it" in ran.stderr
    with pytest.raises(SchemaTooNew):
        Store.open(told(sqlite_store.database.url), tmp_path / "spool")


# R57 ----------------------------------------------------------------------------------------------


def _moved(backup: Path, folder: Path, port: int) -> Node:
    """Another host: the backup's configuration as it is, and nothing else."""
    folder.mkdir()
    node = site(folder, destination=dimse(port))
    done = restore(backup, node.database, folder / "spool", utc())
    assert done.ok, done
    return node


@pytest.mark.peer
def test_backups_under_load_are_whole_and_are_drained_elsewhere(tmp_path: Path) -> None:
    needs("storescp")
    n = count(2, 20)
    chance = random.Random(SEED)
    port = free_port()  # of a PACS that is away until the restored node runs
    source = site(tmp_path / "source", destination=dimse(port))
    source.start()
    taken: list[tuple[Path, set[str]]] = []
    try:
        with Shift(source, per_s=20.0) as shift, source.store() as store:
            for k in range(n):
                time.sleep(chance.uniform(1.0, 2.5))
                before = set(shift.log.acknowledged)
                save(store, tmp_path / f"backup{k}", source.config.read_text(), utc())
                taken.append((tmp_path / f"backup{k}", before))
    finally:
        source.stop()
    missing = extra = 0
    drained = taken[-count(1, n) :]
    for backup, before in taken:
        node = _moved(backup, tmp_path / f"elsewhere-{backup.name}", port)
        with node.store() as store:
            held = {
                i.sop_instance_uid
                for s in store.series.list(limit=9999)
                for i in store.series.instances(s.id)
            }
        missing += len(before - held)
        if (backup, before) not in drained:
            continue
        pacs = StoreScp(tmp_path / f"pacs-{backup.name}", "+xa", port=port)
        try:
            node.start()
            with node.store() as store:

                def drains(store: Store = store, pacs: StoreScp = pacs, before: set[str] = before) -> bool:
                    known = sources(store)
                    return before <= {known.get(uid, "") for uid in pacs.uids()}

                wait_until(drains, 300, "the restored node delivers all of it", every_s=0.5)
                found = balance(sources(store), pacs.uids(), shift.log)
            extra += len(found.extra)
        finally:
            node.stop()
            pacs.stop()
    ok = not missing and not extra
    ledger.record(
        "R57",
        load=f"`luminode backup` at 20 slices/s from 3 scanners, restored elsewhere; {len(drained)} of them drained",
        count=n,
        result=f"{missing} missing of what was acknowledged before the backup began ({len(taken[-1][1])} in the last)",
        ok=ok,
        lost=missing,
        extra=extra,
    )
    assert ok, (missing, extra)


@pytest.mark.postgres
def test_postgresql_is_backed_up_and_restored_by_its_own_tools(
    postgres_url: str, postgres_empty: str, tmp_path: Path
) -> None:
    needs("pg_dump", "pg_restore")
    with Store.open(postgres_url, tmp_path / "spool") as store:
        outbox(store, n=3)
        queued(store, series=2)
        before = store.series.list(), store.jobs.list(), store.deliveries.list()
        save(store, tmp_path / "backup", "", utc())
    done = restore(tmp_path / "backup", postgres_empty, tmp_path / "other", utc())
    assert done.ok
    assert done.n_files == 9
    with Store.open(postgres_empty, tmp_path / "other") as store:
        assert (store.series.list(), store.jobs.list(), store.deliveries.list()) == before


def test_what_is_done_needs_no_files_in_a_backup(sqlite_store: Store, tmp_path: Path) -> None:
    outbox(sqlite_store, n=3)
    one = sqlite_store.deliveries.claim("d", 30, NOW)
    assert one is not None
    waiting = queued(sqlite_store, series=2, n=2)
    from tests.storing import delivered

    sqlite_store.deliveries.finish(one.id, "d", 1, NOW, outcomes=delivered(sqlite_store, one, "d"))
    saved = save(sqlite_store, tmp_path / "backup", "node: {}", utc())
    assert (saved.n_files, saved.gone) == (2, 0)
    whole = save(sqlite_store, tmp_path / "whole", "node: {}", utc(), whole=True)
    assert whole.n_files == 8
    done = restore(
        tmp_path / "backup", f"sqlite:///{tmp_path}/a/luminode.db", tmp_path / "a" / "spool", utc()
    )
    assert (done.ok, done.n_files, done.forgotten) == (True, 2, 2)
    with Store.open(f"sqlite:///{tmp_path}/a/luminode.db", tmp_path / "a" / "spool") as store:
        assert [j.id for j in store.jobs.list([JobState.QUEUED])] == [waiting]
    done = restore(tmp_path / "whole", f"sqlite:///{tmp_path}/b/luminode.db", tmp_path / "b" / "spool", utc())
    assert (done.ok, done.n_files, done.forgotten) == (True, 8, 0)


def test_a_restore_overwrites_nothing_and_believes_nothing(sqlite_store: Store, tmp_path: Path) -> None:
    queued(sqlite_store, n=2)
    save(sqlite_store, tmp_path / "backup", "", utc())
    with pytest.raises(StoreError, match="already"):
        save(sqlite_store, tmp_path / "backup", "", utc())
    here = told(sqlite_store.database.url)
    with pytest.raises(StoreError, match="database already"):
        restore(tmp_path / "backup", here, tmp_path / "new", utc())
    url = f"sqlite:///{tmp_path}/new.db"
    with Store.open(f"sqlite:///{tmp_path}/x.db", tmp_path / "used") as other:
        received(other, 1, series=9)
    with pytest.raises(StoreError, match="not empty"):
        restore(tmp_path / "backup", url, tmp_path / "used", utc())
    (one, *_) = (tmp_path / "backup" / "spool").rglob("*.dcm")
    one.write_bytes(one.read_bytes()[:-1] + b"!")
    with pytest.raises(StoreError, match="not what was saved"):
        restore(tmp_path / "backup", url, tmp_path / "new", utc())
    one.unlink()
    with pytest.raises(StoreError, match="not what was saved"):
        restore(tmp_path / "backup", url, tmp_path / "new", utc())
    (tmp_path / "backup" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="no whole backup"):
        restore(tmp_path / "backup", url, tmp_path / "new", utc())
    assert not (tmp_path / "new.db").exists()
    assert not list((tmp_path / "new").rglob("*.dcm"))


# R58 ----------------------------------------------------------------------------------------------


def test_nothing_unsent_is_removed_however_full_the_disk_is(store: Store) -> None:
    n = count(60, 500)
    states = 0
    for k in range(1, n + 1):
        match k % 6:
            case 0:
                received_one = [received(store, i, series=k) for i in (1, 2)]
                store.reception.record(received_one)
            case 1:
                closed_series(store, series=k, n=2)
            case 2:
                queued(store, series=k, n=2)
            case _:
                queued(store, series=k, n=2)
                job = store.jobs.claim("w", 30, NOW)
                assert job is not None
                states += 1
                if k % 6 == 3:
                    store.jobs.fail(job.id, "w", job.attempt, "it cannot", JobState.HELD, NOW)
                elif k % 6 == 4:
                    store.jobs.fail(job.id, "w", job.attempt, "it cannot", JobState.FAILED, NOW)
                else:
                    store.jobs.finish(job.id, "w", job.attempt, made(store, job), {}, NOW)
    before = {f.path for f in store.spool.walk()}
    settings = config(store={"keep": {"received": "0s", "derived": "0s"}, "refuse_below": 10**15})
    keeper = Housekeeper(store, lambda: settings)
    keeper.retention()
    store.retention.purge(
        received_before=utc() + timedelta(days=9), derived_before=utc() + timedelta(days=9), at=utc()
    )
    after = {f.path for f in store.spool.walk()}
    with house(store, settings) as door, door.peer() as peer:
        kind, body = peer.ask(associate_rq([(1, CT, [EXPLICIT])]))
    answered = (kind, *body[1:4])
    ok = after >= before and answered == (3, 2, 3, 2)
    ledger.record(
        "R58",
        load=f"{store.database.kind}, keep 0 s, refuse_below over what the disk has: {n} series open, closed, queued, "
        "held, failed or not delivered",
        count=n,
        result=f"{len(before - after)} of {len(before)} files removed; a new job is rejected: {answered[1:]}",
        ok=ok,
        lost=len(before - after),
    )
    assert ok
