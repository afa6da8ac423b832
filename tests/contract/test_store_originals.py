"""Originals in the outbox: queued with the instance, never failed while they come in, never removed unsent."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import text

from node.errors import StoreError, TransitionRefused
from node.model import Action, Delivery, DeliveryState, Outcome
from node.store import Store
from node.store.db import Database
from node.store.migrate import FOLDER, KNOWN, current, upgrade
from tests.postgres import told
from tests.storing import NOW, STUDY, after, decision, outbox, received

FORWARD: Mapping[str, Mapping[str, Any]] = {"pacs": {"kind": "folder", "path": "out", "ae_title": "PACS"}}


def arrived(store: Store, n: int, *, at: float = 0, series: int = 1, **more: Any) -> int:
    """Instance ``n`` of a series is recorded and forwarded; returns the series' row."""
    one = received(store, n, series=series, at=after(at), **more)
    return store.reception.record([one], forward=FORWARD)[0].series_id


def only(store: Store) -> Delivery:
    (one,) = store.deliveries.list()
    return one


def claimed(store: Store, at: float = 0, owner: str = "d") -> Delivery:
    one = store.deliveries.claim(owner, 30, after(at), originals=True)
    assert one is not None
    return one


def answered(store: Store, delivery: Delivery, *, status: int = 0, retryable: bool = False) -> list[str]:
    """Everything that is to be sent of it gets this status; returns the UIDs."""
    cargo = store.deliveries.cargo(delivery)
    assert cargo is not None
    told = [
        Outcome(
            sop_instance_uid=i.sop_instance_uid,
            status=status,
            done=status == 0,
            retryable=retryable,
        )
        for i in cargo.instances
    ]
    assert delivery.lease is not None
    assert store.deliveries.record_outcomes(delivery.id, delivery.lease.owner, delivery.attempt, told)
    return [o.sop_instance_uid for o in told]


def settled(store: Store, delivery: Delivery, at: float = 0) -> str:
    assert delivery.lease is not None
    return store.deliveries.settle(delivery.id, delivery.lease.owner, delivery.attempt, after(at))


def test_one_delivery_a_series_and_destination_is_queued_with_the_first_instance(store: Store) -> None:
    series_id = arrived(store, 1)
    arrived(store, 2, at=1)
    one = only(store)
    assert (one.series_id, one.derived_id, one.destination) == (series_id, None, "pacs")
    assert one.settings == FORWARD["pacs"]
    assert store.deliveries.due_queues(after(1)) == [("pacs", True)]
    assert store.deliveries.claim("d", 30, after(1)) is None, "not among derived series"
    assert answered(store, claimed(store, 1)) == ["1.2.3.1.1", "1.2.3.1.2"]
    assert store.deliveries.list(series_id=series_id) == store.deliveries.list()


def test_a_batch_that_is_not_recorded_queues_nothing(store: Store) -> None:
    one = replace(received(store, 1), path="xx/gone.dcm")
    with pytest.raises(StoreError):
        store.reception.record([one], forward=FORWARD)
    assert store.deliveries.list() == []


def test_nobody_gets_what_he_sent(store: Store) -> None:
    arrived(store, 1, calling_ae="PACS")
    assert store.deliveries.list() == []
    arrived(store, 1, series=2)
    assert only(store).destination == "pacs"


def test_a_duplicate_is_not_sent_again_and_a_conflict_is_kept_aside(store: Store) -> None:
    arrived(store, 1)
    one = claimed(store)
    answered(store, one)
    assert settled(store, one) == "waits"
    arrived(store, 1, at=5)
    arrived(store, 1, at=6, data=b"other bytes")
    assert store.deliveries.due_queues(after(7)) == []


def test_what_sleeps_is_woken_by_the_next_instance_and_by_the_end_of_the_series(store: Store) -> None:
    series_id = arrived(store, 1)
    first = claimed(store)
    answered(store, first)
    assert settled(store, first) == "waits"
    assert store.deliveries.due_queues(after(3600)) == []
    arrived(store, 2, at=10)
    again = claimed(store, 10)
    assert (again.id, again.attempt) == (first.id, 1), "what went well is no failed try"
    assert answered(store, again) == ["1.2.3.1.2"]
    assert settled(store, again, 10) == "waits"
    assert store.series.close(series_id, "quiet", after(20))
    last = claimed(store, 20)
    cargo = store.deliveries.cargo(last)
    assert cargo is not None
    assert (cargo.instances, cargo.n_done, cargo.n_instances, cargo.growing) == ((), 2, 2, False)
    assert settled(store, last, 20) == "sent"
    detail = store.deliveries.detail(first.id)
    assert detail is not None
    assert (detail.delivery.state, detail.n_done, detail.finished_at) == (DeliveryState.SENT, 2, after(20))
    story = store.provenance.story("1.2.3.1.1")
    record = next(r for r in story.records if r.kind == "originals.delivered")
    assert record.body["statuses"] == {"0000H": 2}
    assert [d.id for d in story.deliveries] == [first.id]


def test_an_instance_that_comes_while_others_are_sent_is_not_forgotten(store: Store) -> None:
    arrived(store, 1)
    one = claimed(store)
    answered(store, one)
    arrived(store, 2, at=1)
    assert settled(store, one, 1) == "more"
    assert answered(store, claimed(store, 1)) == ["1.2.3.1.2"]


def test_settling_again_after_a_commit_of_unknown_outcome_is_harmless(store: Store) -> None:
    series_id = arrived(store, 1)
    store.series.close(series_id, "quiet", after(1))
    one = claimed(store, 1)
    answered(store, one)
    assert [settled(store, one, 1) for _ in range(2)] == ["sent", "sent"]
    assert [r.kind for r in store.provenance.records(f"{STUDY}.1")].count("originals.delivered") == 1


def test_sent_only_when_all_of_an_ended_series_is_done(store: Store) -> None:
    """R36, for originals."""
    series_id = arrived(store, 1)
    arrived(store, 2)
    store.series.close(series_id, "quiet", after(1))
    one = claimed(store, 1)
    cargo = store.deliveries.cargo(one)
    assert cargo is not None
    done = Outcome(sop_instance_uid=cargo.instances[0].sop_instance_uid, status=0, done=True, retryable=False)
    store.deliveries.record_outcomes(one.id, "d", one.attempt, [done])
    assert settled(store, one, 1) == "more"
    assert only(store).state is DeliveryState.PENDING


def test_what_is_refused_waits_for_the_end_of_its_series_and_holds_up_nothing(store: Store) -> None:
    series_id = arrived(store, 1)
    one = claimed(store)
    assert answered(store, one, status=0x0122) == ["1.2.3.1.1"]
    assert settled(store, one) == "waits"
    arrived(store, 2, at=1)
    two = claimed(store, 1)
    assert answered(store, two) == ["1.2.3.1.2"]
    assert settled(store, two, 1) == "waits"
    store.series.close(series_id, "quiet", after(2))
    assert answered(store, claimed(store, 2)) == ["1.2.3.1.1"], "and now it is tried again"


def test_a_pause_of_a_dead_destination_is_not_cut_short_by_what_comes(store: Store) -> None:
    arrived(store, 1)
    one = claimed(store)
    assert store.deliveries.retry_later(one.id, "d", one.attempt, after(900), "nobody there")
    arrived(store, 2, at=1)
    assert store.deliveries.due_queues(after(899)) == []
    two = claimed(store, 900)
    assert store.deliveries.retry_later(two.id, "d", two.attempt, after(1800), "no answer", wakes=True)
    arrived(store, 3, at=901)
    assert claimed(store, 901).id == one.id, "a pause for one instance is"


def test_a_failed_delivery_goes_on_with_the_next_instance_and_a_cancelled_one_does_not(store: Store) -> None:
    arrived(store, 1)
    one = claimed(store)
    assert store.deliveries.fail(one.id, "d", one.attempt, "given up", after(1))
    arrived(store, 2, at=100)
    found = only(store)
    assert (found.state, found.attempt, found.created_at) == (DeliveryState.PENDING, 0, after(100))
    store.deliveries.cancel(found.id, after(101))
    arrived(store, 3, at=102)
    assert only(store).state is DeliveryState.CANCELLED


def test_series_that_grow_at_the_same_time_take_turns(store: Store) -> None:
    for series in (1, 2, 3):
        arrived(store, 1, series=series)
    ids = sorted(d.id for d in store.deliveries.list())
    turns, last = [], 0
    for n in range(2, 6):
        one = store.deliveries.claim("d", 30, after(n), originals=True, after=last)
        assert one is not None
        arrived(store, n, at=n, series=1)  # the first has always something to send
        answered(store, one)
        store.deliveries.settle(one.id, "d", one.attempt, after(n))
        last = one.id
        turns.append(last)
    assert turns == [*ids, ids[0]]


def test_late_instances_are_a_delivery_of_their_own(store: Store) -> None:
    series_id = arrived(store, 1)
    store.series.close(series_id, "quiet", after(1))
    assert arrived(store, 2, at=60) != series_id
    assert len(store.deliveries.list()) == 2


def test_what_is_adopted_is_forwarded_too(store: Store) -> None:
    one = received(store, 1)
    store.reconcile.scan(
        lambda _path, _relative: one, datetime.now(UTC) + timedelta(seconds=1), grace_s=0, forward=FORWARD
    )
    assert answered(store, claimed(store, 1)) == [one.sop_instance_uid]


def test_a_replaced_instance_is_sent_as_it_is_now(store: Store) -> None:
    arrived(store, 1)
    one = claimed(store)
    answered(store, one)
    settled(store, one)
    again = received(store, 1, at=after(1), data=b"better")
    store.reception.record([again], duplicates="replace", forward=FORWARD)
    cargo = store.deliveries.cargo(claimed(store, 1))
    assert cargo is not None
    assert [i.sha256 for i in cargo.instances] == [again.sha256]


def test_nothing_is_removed_before_its_originals_are_sent(store: Store) -> None:
    """R58, for originals."""
    series_id = arrived(store, 1)
    store.series.close(series_id, "quiet", NOW)
    store.series.route(series_id, replace(decision(), action=Action.IGNORE), [], "c" * 64, NOW)
    later = after(10**6)

    def purged() -> int:
        return store.retention.purge(received_before=later, derived_before=later, at=later).n_series

    for state in ("waiting", "under way", "failed"):
        assert purged() == 0, state
        if state == "waiting":
            one = claimed(store)
        elif state == "under way":
            store.deliveries.fail(one.id, "d", one.attempt, "refused", NOW)
    store.deliveries.retry(one.id, NOW)
    two = claimed(store)
    answered(store, two)
    assert purged() == 0
    assert settled(store, two) == "sent"
    assert purged() == 1
    assert store.deliveries.outcomes(two.id) == {}
    with pytest.raises(TransitionRefused, match="removed by retention"):
        store.deliveries.retry(two.id, later)


def test_a_cancelled_delivery_of_originals_lets_its_series_go(store: Store) -> None:
    series_id = arrived(store, 1)
    store.series.close(series_id, "quiet", NOW)
    store.series.route(series_id, replace(decision(), action=Action.IGNORE), [], "c" * 64, NOW)
    store.deliveries.cancel(only(store).id, NOW)
    later = after(10**6)
    assert store.retention.purge(received_before=later, derived_before=later, at=later).n_series == 1


def test_both_queues_of_a_destination_are_due_and_neither_hides_the_other(store: Store) -> None:
    outbox(store, series=7)
    arrived(store, 1)
    assert sorted(store.deliveries.due_queues(NOW)) == [("pacs", False), ("pacs", True)]
    assert store.deliveries.due_destinations(NOW) == ["pacs"]
    derived = store.deliveries.claim("d", 30, NOW, destination="pacs")
    assert derived is not None
    assert derived.series_id is None
    assert claimed(store).series_id is not None
    with pytest.raises(StoreError, match="finished, not settled"):
        store.deliveries.settle(derived.id, "d", 1, NOW)


def test_instances_that_come_at_once_with_the_end_of_a_try_are_never_left_asleep(
    open_store: Callable[[], Store],
) -> None:
    """Whoever records an instance and whoever settles meet at the delivery's row: one of them sees the other."""
    store, other = open_store(), open_store()
    arrived(store, 1)
    for n in range(2, 22):
        one = claimed(store, n)
        answered(store, one)
        start = threading.Barrier(2)

        def arrive(n: int = n, start: threading.Barrier = start) -> None:
            fresh = received(other, n, at=after(n))
            start.wait()
            other.reception.record([fresh], forward=FORWARD)

        thread = threading.Thread(target=arrive)
        thread.start()
        start.wait()
        settled(store, one, n)
        thread.join()
        assert store.deliveries.due_queues(after(n + 1)) == [("pacs", True)], n
    if store.database.kind == "postgresql":
        with store.database.read() as connection:
            told = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            assert connection.execute(told).scalar_one() == 0


def test_a_database_with_work_in_it_is_upgraded(database_url: str, tmp_path: Path) -> None:
    """R56: from the first schema to the newest with deliveries and outcomes on their way."""
    with Store.open(database_url, tmp_path / "spool") as store:
        derived = outbox(store, n=3)
        one = store.deliveries.claim("d", 30, NOW)
        assert one is not None
        warned = Outcome(sop_instance_uid="2.25.1.1", status=0xB007, done=True, retryable=False)
        assert store.deliveries.record_outcomes(one.id, "d", 1, [warned])
        before = store.deliveries.list(), store.deliveries.outcomes(one.id)
    database = Database(old_of(database_url, tmp_path))
    with database.read() as connection:
        assert current(connection) == "0001"
    upgrade(database)
    database.close()
    with Store.open(told(database.url), tmp_path / "spool") as store:
        assert (store.deliveries.list(), store.deliveries.outcomes(one.id)) == before
        assert store.deliveries.derived(derived) is not None
        arrived(store, 1, series=9)
        assert answered(store, claimed(store)) == ["1.2.3.9.1"]
    assert {"0001", "0002", "0003", "0004", "0005", "0006"} == KNOWN


def old_of(url: str, folder: Path) -> str:
    """The same rows in the schema of the first release."""
    if url.startswith("postgresql"):
        database = Database(url)
        with database.write() as connection:
            connection.execute(text("ALTER TABLE delivery DROP COLUMN series_id, DROP COLUMN wakes"))
            connection.execute(text("ALTER TABLE delivery ALTER COLUMN derived_id SET NOT NULL"))
            connection.execute(text("DROP TABLE outlook"))
            for table in ("commitment", "pledge", "asked"):
                connection.execute(text(f"DROP TABLE {table}"))
            for name in ("job_state", "delivery_state", "association_ended", "series_purged"):
                connection.execute(text(f"DROP INDEX ix_{name}"))
            connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        database.close()
        return url
    old = f"sqlite:///{folder}/old.db"
    database = Database(old)
    with database.write() as connection:
        config = AlembicConfig()
        config.set_main_option("script_location", str(FOLDER))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    database.close()
    with closing(sqlite3.connect(folder / "old.db")) as raw:
        raw.execute("ATTACH ? AS new", (url.removeprefix("sqlite:///"),))
        tables = [r[0] for r in raw.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
        for table in sorted(set(tables) - {"alembic_version", "provenance_chain"}):
            columns = ", ".join(f'"{r[1]}"' for r in raw.execute(f"PRAGMA main.table_info({table})"))
            raw.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
        raw.execute(
            "UPDATE main.provenance_chain SET (head, hash) = (SELECT head, hash FROM new.provenance_chain)"
        )
        raw.commit()
    return old
