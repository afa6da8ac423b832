"""Group commit and the receiver on both databases: grouped, in order, nobody told before it is durable."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from node.errors import StoreError
from node.model import Association, AssociationEnd, Instance
from node.receive.commit import Arrived, GroupCommit
from node.store import Store
from node.store.spool import Spool, SpoolWriter
from tests.receiving import at_once, house, utc
from tests.senders import CT, EXPLICIT, data_set, sha256


def association(number: int) -> Association:
    return Association(
        id=f"{number:032x}", calling_ae="CT1", called_ae="NODE", address="127.0.0.1", opened_at=utc()
    )


def arrived(store: Store, uid: str, by: Association, content: bytes = b"data") -> Arrived:
    writer = store.spool.create()
    writer.write(content)
    return Arrived(
        writer=writer, sop_class_uid=CT, sop_instance_uid=uid, study_uid="1.2", series_uid="1.3",
        transfer_syntax_uid=EXPLICIT, association=by, offset=0, sha256=sha256(content), received_at=utc(),
    )  # fmt: skip


def commit_of(store: Store) -> GroupCommit:
    return GroupCommit(store.reception, store.spool, receiver="here", duplicates=lambda: "keep_first")


def test_what_waits_is_recorded_together_and_after_its_association(store: Store) -> None:
    commit = commit_of(store)
    batches: list[int] = []
    record, held, entered = store.reception.record, threading.Event(), threading.Event()

    def slow(batch: Sequence[Instance], **more: Any) -> Any:
        known = {a.id for s in store.series.list() for a in store.series.associations(s.id)}
        assert known <= {f"{n:032x}" for n in range(12)}
        batches.append(len(batch))
        entered.set()
        assert held.wait(20)
        return record(batch, **more)

    store.reception.record = slow  # type: ignore[method-assign]
    results: dict[int, str] = {}

    def one(number: int) -> None:
        by = association(number)
        commit.opened(by)
        ready = arrived(store, f"1.2.3.{number}", by)
        if number:
            entered.wait(20)
        results[number] = commit.instance(ready).kind
        commit.ended(by.id, AssociationEnd.RELEASED, utc())

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    assert entered.wait(20)
    while len(commit._waiting) < 11:
        threading.Event().wait(0.01)
    held.set()
    for thread in threads:
        thread.join(30)
    assert batches == [1, 11]
    assert results == dict.fromkeys(range(12), "new")
    commit.flush()
    (series,) = store.series.list()
    carried = store.series.carried(series.id)
    assert [(c.n_new, c.association and c.association.end) for c in carried] == [
        (1, AssociationEnd.RELEASED)
    ] * 12
    assert store.series.open_associations("CT1") == []


def test_a_failed_transaction_fails_all_that_waited_and_only_those(store: Store) -> None:
    commit = commit_of(store)
    by = association(1)
    commit.opened(by)
    record, broken = store.reception.record, threading.Event()
    broken.set()

    def sometimes(batch: Sequence[Instance], **more: Any) -> Any:
        if broken.is_set():
            raise OSError("connection lost: DOE^JANE")
        return record(batch, **more)

    store.reception.record = sometimes  # type: ignore[method-assign]
    told: list[str] = []

    def one(number: int) -> None:
        with pytest.raises(StoreError) as raised:
            commit.instance(arrived(store, f"1.2.3.{number}", by))
        told.append(str(raised.value))

    at_once(one, 6)
    assert len(told) == 6
    assert not any("DOE" in text for text in told)
    broken.clear()
    assert commit.instance(arrived(store, "1.2.3.1", by)).kind == "new"
    assert commit.instance(arrived(store, "1.2.3.1", by)).kind == "same"
    assert commit.instance(arrived(store, "1.2.3.1", by, b"other")).kind == "conflict_kept_first"


def test_notes_are_written_without_instances_too_and_outlive_a_database_that_is_away(store: Store) -> None:
    commit = commit_of(store)
    note, away = store.reception.note_associations, threading.Event()
    away.set()

    def sometimes(*args: Any, **more: Any) -> None:
        if away.is_set():
            raise StoreError("away")
        note(*args, **more)

    record = store.reception.record

    def sometimes_too(*args: Any, **more: Any) -> Any:
        if away.is_set():
            raise StoreError("away")
        return record(*args, **more)

    store.reception.note_associations = sometimes  # type: ignore[method-assign]
    store.reception.record = sometimes_too  # type: ignore[method-assign]
    by = association(7)
    commit.opened(by)
    with pytest.raises(StoreError):
        commit.flush()
    with pytest.raises(StoreError):
        commit.instance(arrived(store, "1.2.3.1", by))
    assert store.series.list() == []
    away.clear()
    commit.start()
    assert commit.instance(arrived(store, "1.2.3.1", by)).kind == "new"
    commit.ended(by.id, AssociationEnd.ABORTED, utc())
    commit.stop()
    (series,) = store.series.list()
    assert [a.end for a in store.series.associations(series.id)] == [AssociationEnd.ABORTED]


def test_a_receiver_stores_on_either_database(store: Store) -> None:
    sets = {f"1.2.{n}.{k}": data_set(f"1.2.{n}.{k}", series=f"1.2.{n}") for n in range(4) for k in range(5)}
    with house(store) as door:

        def sender(number: int) -> None:
            with door.peer() as peer:
                peer.associate(CT, calling=f"CT{number}")
                for k in range(5):
                    uid = f"1.2.{number}.{k}"
                    assert peer.store(uid, sets[uid]).status == 0
                assert peer.release() == 6

        at_once(sender, 4)
        assert door.stored() == {uid: sha256(data) for uid, data in sets.items()}
        assert door.ends(4) == ["RELEASED"] * 4


def test_notes_wait_for_an_instance_to_ride_with_and_each_has_its_own_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One association an instance: openings and endings cost no transactions of their own."""
    monkeypatch.setattr("node.receive.commit._NOTE_S", 3600.0)
    commit, alone = commit_of(store), []
    note = store.reception.note_associations

    def counted(*args: Any, **more: Any) -> None:
        alone.append(args)
        note(*args, **more)

    store.reception.note_associations = counted  # type: ignore[method-assign]
    commit.start()
    noted = []
    for number in range(5):
        by = association(number)
        commit.opened(by)
        noted.append(commit._since)
        commit.instance(arrived(store, f"1.2.3.{number}", by))
        commit.ended(by.id, AssociationEnd.RELEASED, utc())
        assert commit._due_in() > 3000
    assert noted == sorted(set(noted))
    assert alone == []
    commit.stop()
    assert len(alone) == 1
    (series,) = store.series.list()
    assert [a.end for a in store.series.associations(series.id)] == [AssociationEnd.RELEASED] * 5


# --- one that finds nobody there ------------------------------------------------------------------------


def test_a_lone_instance_is_synced_named_and_recorded_in_that_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, by, steps = commit_of(store), association(1), list[str]()
    ready = arrived(store, "1.2.3.1", by)

    def noted(of: Any, name: str) -> None:
        real = getattr(of, name)

        def call(*args: Any, **more: Any) -> Any:
            steps.append(name)
            return real(*args, **more)

        monkeypatch.setattr(of, name, call)

    for of, name in ((SpoolWriter, "sync"), (SpoolWriter, "publish"), (Spool, "sync_dirs")):
        noted(of, name)
    commit.opened(by)
    assert commit.instance(ready).kind == "new"
    assert steps == ["sync", "publish", "sync_dirs"]
    (series,) = store.series.list()
    (held,) = store.series.instances(series.id)
    assert held == ready.instance
    assert store.spool.verify(held.path, 0, held.sha256)
    assert commit.instance(arrived(store, "1.2.3.1", by)).kind == "same"


@pytest.mark.parametrize("step", ["sync", "publish", "sync_dirs"])
def test_what_fails_before_the_commit_records_nothing_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    commit, by = commit_of(store), association(1)
    commit.opened(by)

    def refuse(*_args: object) -> None:
        raise KeyError("a defect") if step == "sync" else StoreError("the disk refuses")

    ready = arrived(store, "1.2.3.1", by)
    with monkeypatch.context() as patch:
        of: type = Spool if step == "sync_dirs" else SpoolWriter
        patch.setattr(of, step, refuse)
        with pytest.raises(KeyError if step == "sync" else StoreError):
            commit.instance(ready)
    assert store.series.list() == []
    assert list((store.spool.root / "tmp").iterdir()) == []
    assert commit.instance(arrived(store, "1.2.3.1", by)).kind == "new"


def test_a_database_that_is_away_leaves_no_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, by = commit_of(store), association(1)

    def away(*_args: object, **_more: object) -> None:
        raise StoreError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(store.reception, "record", away)
        with pytest.raises(StoreError, match="away"):
            commit.instance(arrived(store, "1.2.3.1", by))
    assert list((store.spool.root / "tmp").iterdir()) == []
    assert list(store.spool.walk()) == []


def test_a_transaction_that_runs_again_names_its_file_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, by = commit_of(store), association(1)
    record = store.reception.record

    def twice(batch: Sequence[Instance], *, before_commit: Any = None, **more: Any) -> Any:
        def both() -> None:
            before_commit()
            before_commit()

        return record(batch, before_commit=both, **more)

    monkeypatch.setattr(store.reception, "record", twice)
    assert commit.instance(arrived(store, "1.2.3.1", by)).kind == "new"
    assert sum(1 for _ in store.spool.walk()) == 1


def test_large_ones_and_those_that_met_others_sync_before_they_queue(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits in the database for the disk to take a whole cine loop."""
    commit, by = commit_of(store), association(1)
    inside: list[bool] = []
    sync = SpoolWriter.sync

    def noted(writer: SpoolWriter) -> None:
        inside.append(commit._writing._is_owned())  # type: ignore[attr-defined]
        sync(writer)

    monkeypatch.setattr(SpoolWriter, "sync", noted)
    commit.instance(arrived(store, "1.2.3.1", by))
    with monkeypatch.context() as patch:
        patch.setattr("node.receive.commit._SHORT", 3)
        commit.instance(arrived(store, "1.2.3.2", by))
    commit._met_at = time.monotonic()
    commit.instance(arrived(store, "1.2.3.3", by))
    assert inside == [True, False, False]


def test_on_a_slow_disk_nobody_syncs_inside_a_transaction(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite has no queue of writers: a lock that is held while the disk works leaves the others no moment."""
    commit, by = commit_of(store), association(1)
    inside: list[bool] = []
    sync, slow = SpoolWriter.sync, [True]

    def noted(writer: SpoolWriter) -> None:
        inside.append(commit._writing._is_owned())  # type: ignore[attr-defined]
        if slow[0]:
            time.sleep(0.02)
        sync(writer)

    monkeypatch.setattr(SpoolWriter, "sync", noted)
    for number in range(5):
        commit.instance(arrived(store, f"1.2.3.{number}", by))
    assert inside == [True, False, False, False, False]
    slow[0], commit._sync_s = False, 0.0051
    for number in range(5, 15):
        commit.instance(arrived(store, f"1.2.3.{number}", by))
        commit._sync_s = min(commit._sync_s, 0.0051)  # what this machine's disk takes is not the matter
    assert inside[-1], "it is fast again"


def test_others_write_beside_a_scanner_and_a_slow_disk(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, by, stop = commit_of(sqlite_store), association(1), threading.Event()
    sync = SpoolWriter.sync

    def slow(writer: SpoolWriter) -> None:
        time.sleep(0.03)
        sync(writer)

    def scanner() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            commit.instance(arrived(sqlite_store, f"1.2.3.{number}", by))

    monkeypatch.setattr(SpoolWriter, "sync", slow)
    thread = threading.Thread(target=scanner)
    thread.start()
    waits = []
    try:
        for _ in range(20):
            began = time.monotonic()
            sqlite_store.turns.take("health", "here", utc(), every_s=0.0)
            waits.append(time.monotonic() - began)
            time.sleep(0.02)
    finally:
        stop.set()
        thread.join(20)
    assert max(waits) < 15.0  # who is starved waits for the whole of SQLite's busy time-out, 30 s
