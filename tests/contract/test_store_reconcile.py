"""Spool against database: orphans are adopted, lost files are told, nothing is improvised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from node.model import Instance
from node.store import Store
from node.store.reconcile import Reader
from tests.storing import NOW, made, outbox, queued, received, spool_bytes


def soon() -> datetime:
    """Later than any file of the test, by the wall clock that files go by."""
    return datetime.now(UTC) + timedelta(minutes=1)


def reader(*known: Instance) -> Reader:
    """Reads the files that these instances were written as."""
    by_path = {one.path: one for one in known}

    def read(path: Path, relative: str) -> Instance | None:
        assert path.is_file()
        return by_path.get(relative)

    return read


def test_a_file_without_a_row_is_adopted(store: Store) -> None:
    here, orphan = received(store, 1), received(store, 2)
    store.reception.record([here])
    assert store.reconcile.fsck().unknown == (orphan.path,)
    found = store.reconcile.scan(reader(here, orphan), soon(), grace_s=0)
    assert (found.adopted, found.missing, found.n_files) == ((orphan.path,), (), 2)
    assert found.ok
    assert store.series.instances(1) == [here, orphan]
    assert [e.name for e in store.events.list()] == ["spool.file_adopted"]
    again = store.reconcile.scan(reader(), soon(), grace_s=0)
    assert (again.adopted, again.n_rows) == ((), 2)
    assert store.reconcile.fsck(verify=True).ok


def test_a_lost_database_is_rebuilt_from_the_spool(store: Store) -> None:
    """R51, R52: whatever the database forgot is adopted."""
    ones = [received(store, n, series=s) for s in (1, 2) for n in range(5)]
    found = store.reconcile.scan(reader(*ones), soon(), grace_s=0)
    assert set(found.adopted) == {one.path for one in ones}
    assert [s.count for s in store.series.open_series()] == [5, 5]


def test_a_file_on_its_way_to_its_row_is_left_alone(store: Store) -> None:
    one = received(store, 1)
    found = store.reconcile.scan(reader(one), datetime.now(UTC))
    assert found.adopted == ()
    assert [t.kind for t in store.reception.record([one])] == ["new"]


def test_what_cannot_be_read_stays_and_is_told(store: Store) -> None:
    one = received(store, 1)
    found = store.reconcile.scan(reader(), soon(), grace_s=0)
    assert found.unreadable == (one.path,)
    assert not found.ok
    assert store.spool.exists(one.path)
    assert [e.level for e in store.events.list()] == ["error"]


def test_bytes_that_are_not_what_their_name_says_are_not_adopted(store: Store) -> None:
    one = received(store, 1)
    rotten = replace(one, sha256="0" * 64)
    found = store.reconcile.scan(reader(rotten), soon(), grace_s=0)
    assert (found.adopted, found.unreadable) == ((), (one.path,))
    assert store.series.list() == []


def test_a_row_without_its_file_is_critical(store: Store) -> None:
    outbox(store)
    derived = store.deliveries.derived(1)
    assert derived is not None
    lost = {store.series.instances(1)[1].path, derived.instances[2].path}
    for path in lost:
        store.spool.remove(path)
    found = store.reconcile.scan(reader(), soon())
    assert set(found.missing) == lost
    assert not found.ok
    (event,) = store.events.list(level="critical")
    assert (event.name, event.body["n"]) == ("spool.file_missing", 2)
    assert set(store.reconcile.fsck().missing) == lost


def test_derived_files_without_a_row_can_be_made_again_and_go(store: Store) -> None:
    queued(store)
    job = store.jobs.claim("w", 30, NOW)
    assert job is not None
    derived = made(store, job)
    assert store.reconcile.scan(reader(), soon()).removed == (), "its job may still run"
    tomorrow = soon() + timedelta(days=1)
    found = store.reconcile.scan(reader(), tomorrow)
    assert set(found.removed) == {i.path for i in derived.instances}
    assert found.adopted == ()
    store.jobs.finish(job.id, "w", 1, made(store, job), {}, NOW)
    assert store.reconcile.scan(reader(), tomorrow).removed == ()


def test_kept_aside_and_superseded_bytes_are_no_orphans(store: Store) -> None:
    store.reception.record([received(store, 1), received(store, 2)])
    store.reception.record([received(store, 1, data=b"x")], duplicates="keep_first")
    store.reception.record([received(store, 2, data=b"y")], duplicates="replace")
    found = store.reconcile.scan(reader(), soon(), grace_s=0)
    assert (found.n_files, found.adopted, found.unreadable, found.missing) == (4, (), (), ())


def test_bit_rot_is_found_where_it_is_asked_for(store: Store) -> None:
    one, other = received(store, 1), received(store, 2)
    store.reception.record([one, other])
    path = store.spool.path(one.path)
    path.write_bytes(b"X" + path.read_bytes()[1:])
    assert store.reconcile.fsck().ok
    assert store.reconcile.fsck(verify=True).corrupt == (one.path,)


def test_what_dead_writers_left_is_swept_and_strange_files_are_left(store: Store) -> None:
    (store.spool.root / "tmp" / "0123").write_bytes(b"half")
    path, _ = spool_bytes(store, "1.2", "1.3", b"x")
    strange = store.spool.path(path).with_name("notes.txt")
    strange.write_text("mine")
    store.spool.remove(path)
    found = store.reconcile.scan(reader(), soon(), grace_s=0)
    assert (found.swept, found.n_files) == (1, 0)
    assert strange.exists()


def test_many_files_are_compared_page_by_page(store: Store, open_store: Callable[[], Store]) -> None:
    ones = [received(store, n) for n in range(530)]
    store.reception.record(ones[5:])
    for one in ones[520:]:
        store.spool.remove(one.path)
    found = open_store().reconcile.scan(reader(*ones[:5]), soon(), grace_s=0)
    assert set(found.adopted) == {one.path for one in ones[:5]}
    assert set(found.missing) == {one.path for one in ones[520:]}
    assert (found.n_files, found.n_rows) == (520, 530)
