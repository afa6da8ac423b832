"""What must hold at the edges of the store: first folders, emptied disks, clocks that jump, purged work."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from node.errors import StoreError, TransitionRefused
from node.model import DeliveryState
from node.store import Spool, Store
from node.store.db import Database
from node.store.tables import TrashRow
from tests.storing import NOW, after, delivered, header, indexed, outbox, queued, received

LATER = NOW + timedelta(days=40)


@contextmanager
def synced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The folders and files that are fsynced meanwhile."""
    seen: list[Path] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        seen.append(Path(f"/proc/self/fd/{fd}").readlink())
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", spy)
        yield seen


def test_the_folder_of_a_new_database_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with synced(monkeypatch) as seen:
        Database(f"sqlite:///{tmp_path}/var/db/luminode.db").close()
    assert {tmp_path, tmp_path / "var"} <= set(seen)


def test_a_folder_that_is_made_again_is_made_durable_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")

    def put() -> str:
        with spool.create() as writer:
            writer.write(b"pixels")
            writer.sync()
            path = writer.publish("1.2.3", "1.2.3.4", "0" * 64)
        spool.sync_dirs([path])
        return path

    folder = (spool.root / put()).parent
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(StoreError):
        put()
    with synced(monkeypatch) as seen:
        put()
    assert set(seen) == {folder, spool.root}


def test_trash_in_a_folder_that_is_gone_holds_nothing_up(store: Store) -> None:
    """As after a restored database over a new disk."""
    outbox(store)
    delivery = store.deliveries.claim("d", 30, NOW)
    assert delivery is not None
    store.deliveries.finish(delivery.id, "d", delivery.attempt, NOW, outcomes=delivered(store, delivery, "d"))
    for file in list(store.spool.walk()):
        path = store.spool.path(file.path)
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    purged = store.retention.purge(received_before=LATER, derived_before=LATER, at=LATER)
    assert (purged.n_series, purged.n_derived) == (1, 1)
    assert store.retention.empty_trash().n_files == 0


def test_a_purged_delivery_is_not_sent_again_as_nothing(store: Store) -> None:
    outbox(store)
    delivery = store.deliveries.claim("d", 30, NOW)
    assert delivery is not None
    store.deliveries.finish(delivery.id, "d", delivery.attempt, NOW, outcomes=delivered(store, delivery, "d"))
    store.retention.purge(received_before=NOW, derived_before=LATER, at=LATER)
    with pytest.raises(TransitionRefused, match="retention"):
        store.deliveries.retry(delivery.id, LATER)
    left = store.deliveries.get(delivery.id)
    assert left is not None
    assert left.state is DeliveryState.SENT


def test_what_waits_for_a_time_that_a_clock_made_up_is_due(store: Store) -> None:
    """The clock was years ahead when a try failed, and was put right since (R53)."""
    outbox(store)
    ahead = NOW + timedelta(days=400)
    delivery = store.deliveries.claim("d", 30, ahead)
    assert delivery is not None
    store.deliveries.retry_later(delivery.id, "d", delivery.attempt, ahead + timedelta(minutes=15), "down")
    assert store.deliveries.due_destinations(after(60)) == ["pacs"]
    again = store.deliveries.claim("d", 30, after(60))
    assert again is not None
    queued(store, series=2)
    job = store.jobs.claim("w", 30, ahead)
    assert job is not None
    taken = store.jobs.claim("other", 30, after(60))
    assert taken is not None
    assert (taken.id, taken.attempt) == (job.id, 2)


def test_a_series_whose_instance_is_being_replaced_does_not_close_under_it(store: Store) -> None:
    """PostgreSQL: what `close` sees of the instances must be as new as what it sees of the series."""
    first = received(store, 1)
    (told,) = store.reception.record([first])
    indexed(store)
    other = received(store, 1, data=b"other pixels", at=after(1))
    inside, go_on = threading.Event(), threading.Event()
    closed: list[bool] = []

    def replace() -> None:
        with store.database.write() as connection:
            store.reception._record(connection, [other], "replace")
            inside.set()
            go_on.wait(10)

    def close() -> None:
        closed.append(store.series.close(told.series_id, "quiet", after(2), count=1))

    replacing, closing = threading.Thread(target=replace), threading.Thread(target=close)
    replacing.start()
    assert inside.wait(10)
    closing.start()
    closing.join(0.5)
    assert closing.is_alive()
    go_on.set()
    replacing.join()
    closing.join()
    assert closed == [False]
    assert store.series.pending(told.series_id) == 1
    row, one = store.series.unindexed()[0]
    store.series.index([(row, header(one, 1))])
    assert store.series.close(told.series_id, "quiet", after(3), count=1)


def test_retention_does_not_keep_a_receiver_waiting(store: Store) -> None:
    """SQLite has no queue of writers: a task that never pauses keeps the others out until it is done."""
    paths = [f"{n % 4:02x}/{n:064x}.dcm" for n in range(500)]
    for path in paths:
        file = store.spool.root / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"old")
    with store.database.write() as connection:
        connection.execute(insert(TrashRow), [{"path": p, "at": NOW} for p in paths])
    store.reception.record([received(store, 1)])
    left: list[int] = []
    purging = threading.Thread(target=store.retention.empty_trash)
    purging.start()
    while (store.spool.root / paths[0]).exists():
        pass
    store.reception.record([received(store, 2)])
    left.append(sum((store.spool.root / path).exists() for path in paths))
    purging.join()
    assert left[0] > 0
    assert not any((store.spool.root / path).exists() for path in paths)
