"""The chain: appended in one order, never changed unnoticed, told as a story."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta, timezone

import pytest
from sqlalchemy import text

from node.errors import StoreError
from node.model import Action, DeliveryState
from node.store import Store
from node.store.provenance import GENESIS, canonical, link
from tests.storing import NOW, after, closed_series, decision, delivered, outbox, received


def tamper(store: Store, *statements: str) -> None:
    """What somebody with the database's password would do: go around the triggers."""
    with store.database.write() as connection:
        if store.database.kind == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            for (name,) in connection.execute(
                text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            ).all():
                connection.execute(text(f"DROP TRIGGER {name}"))
            connection.execute(text("PRAGMA defer_foreign_keys=ON"))
        for statement in statements:
            connection.execute(text(statement))


def fill(store: Store, n: int = 5) -> None:
    for k in range(n):
        store.provenance.append("test.done", [f"1.2.{k}"], {"k": k, "x": 0.1}, after(k))


def test_links_are_hashed_over_exactly_what_they_say(store: Store) -> None:
    fill(store, 2)
    first, second = store.provenance.get(1), store.provenance.get(2)
    assert first is not None
    assert second is not None
    assert (first.previous, second.previous) == (GENESIS, first.hash)
    document = canonical(second.kind, second.subjects, second.body, second.at)
    assert (
        second.hash
        == hashlib.sha256(first.hash.encode() + document).hexdigest()
        == link(first.hash, document)
    )
    assert json.loads(document) == {
        "at": "2026-03-29T01:30:01.000000+00:00",
        "body": {"k": 1, "x": 0.1},
        "kind": "test.done",
        "subjects": ["1.2.1"],
    }
    assert store.provenance.get(3) is None


def test_times_are_utc_whatever_zone_they_came_in(store: Store) -> None:
    local = NOW.astimezone(timezone(timedelta(hours=-5)))
    store.provenance.append("test.done", ["1.2"], {}, local)
    (record,) = store.provenance.records("1.2")
    assert record.at == NOW
    assert record.at.utcoffset() == timedelta(0)
    assert store.provenance.verify().ok
    with pytest.raises(TypeError, match="naive"):
        store.events.add("info", "test.done", {}, NOW.replace(tzinfo=None))


def test_numbers_and_texts_survive_to_the_letter(store: Store) -> None:
    body = {
        "big": 1e22,
        "small": 1e-7,
        "int": 2**60,
        "text": "ümlaut \0 \ud800 '\"",
        "list": [1.0, 1, None, True],
    }
    store.provenance.append("test.done", ["1.2"], body, NOW)
    (record,) = store.provenance.records("1.2")
    assert record.body == body
    assert [type(v) for v in record.body["list"]] == [float, int, type(None), bool]
    assert store.provenance.verify().ok


def test_what_is_no_number_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.provenance.append("test.done", ["1.2"], {"x": float("nan")}, NOW)
    assert store.provenance.verify().checked == 0


def test_a_whole_chain_verifies(store: Store) -> None:
    assert store.provenance.verify().ok
    fill(store)
    report = store.provenance.verify()
    assert (report.ok, report.checked, report.first_bad) == (True, 5, None)


@pytest.mark.parametrize(
    ("statements", "first_bad", "fault"),
    [
        (["UPDATE provenance SET kind = 'test.undone' WHERE id = 3"], 3, "columns"),
        (["UPDATE provenance SET at = '2020-01-01 00:00:00+00' WHERE id = 2"], 2, "columns"),
        (["UPDATE provenance SET document = (SELECT document FROM provenance WHERE id = 1) WHERE id = 4"], 4,
         "hash"),
        (["UPDATE provenance SET document = 'xx' WHERE id = 4"], 4, "read"),
        (["UPDATE provenance SET hash = previous WHERE id = 5"], 5, "hash"),
        (["DELETE FROM provenance_subject WHERE provenance_id = 3", "DELETE FROM provenance WHERE id = 3"], 3,
         "missing"),
        (["DELETE FROM provenance_subject WHERE provenance_id = 5", "DELETE FROM provenance WHERE id = 5"], 5,
         "end"),
        (["DELETE FROM provenance_subject", "DELETE FROM provenance"], 1, "end"),
        (["DELETE FROM provenance_chain"], None, "head"),
    ],
)  # fmt: skip
def test_whatever_was_edited_or_deleted_is_found(
    store: Store, statements: list[str], first_bad: int | None, fault: str
) -> None:
    fill(store)
    if store.database.kind == "sqlite":
        statements = [s.replace("+00'", ".000000'") for s in statements]
    tamper(store, *statements)
    report = store.provenance.verify()
    assert not report.ok
    assert report.first_bad == first_bad
    assert fault in report.fault


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE provenance SET kind = 'x' WHERE id = 2",
        "DELETE FROM provenance WHERE id = 2",
        "DELETE FROM provenance_subject",
        "UPDATE provenance_subject SET key = 1",
        "DELETE FROM provenance_chain",
    ],
)
def test_the_database_itself_refuses_changes(store: Store, statement: str) -> None:
    fill(store)
    with pytest.raises(StoreError, match="append-only"), store.database.write() as connection:
        connection.execute(text(statement))
    assert store.provenance.verify().ok


@pytest.mark.postgres
def test_postgresql_refuses_to_truncate(store: Store) -> None:
    if store.database.kind != "postgresql":
        pytest.skip("SQLite has no TRUNCATE")
    fill(store)
    with pytest.raises(StoreError, match="append-only"), store.database.write() as connection:
        connection.execute(text("TRUNCATE provenance CASCADE"))


def test_many_append_at_once_to_one_chain(store: Store, open_store: Callable[[], Store]) -> None:
    other = open_store()

    def append(k: int) -> int:
        one = store if k % 2 else other
        return one.provenance.append("test.done", [f"1.2.{k}"], {"k": k}, NOW)

    def verify(_: int) -> bool:
        return store.provenance.verify().ok

    with ThreadPoolExecutor(8) as pool:
        checks = [pool.submit(verify, k) for k in range(4)]
        ids = list(pool.map(append, range(60)))
        assert all(c.result() for c in checks), "a chain that grows is whole at any moment"
    assert sorted(ids) == list(range(1, 61))
    assert store.provenance.verify().checked == 60


def test_the_story_is_the_same_from_whatever_end_it_is_asked(store: Store) -> None:
    derived_id = outbox(store, destinations=("pacs",))
    outbox(store, series=2)
    delivery = store.deliveries.claim("d", 30, NOW)
    assert delivery is not None
    store.deliveries.finish(delivery.id, "d", 1, after(9), outcomes=delivered(store, delivery, "d"))
    derived = store.deliveries.derived(derived_id)
    assert derived is not None
    one = derived.instances[1]
    for uid in (one.source_sop_instance_uid, one.sop_instance_uid, derived.series_uid, "1.2.3.1"):
        story = store.provenance.story(uid)
        assert [r.kind for r in story.records] == ["series.routed", "series.derived", "series.delivered"], uid
        assert [s.id for s in story.series] == [1]
        assert story.decisions[1].action is Action.ENHANCE
        assert len(story.instances) == 3
        assert [j.id for j in story.jobs] == [1]
        assert story.derived == (derived,)
        assert [d.state for d in story.deliveries] == [DeliveryState.SENT]
    study = store.provenance.story("1.2.3")
    assert len(study.series) == 2
    nothing = store.provenance.story("9.9.9")
    assert (nothing.records, nothing.series, nothing.instances, nothing.jobs) == ((), (), (), ())


def test_a_series_that_is_not_enhanced_has_its_reason_on_record(store: Store) -> None:
    series_id = closed_series(store)
    told = replace(decision(), action=Action.REJECT, reason="localizer", engine="", destinations=())
    store.series.route(series_id, told, [], "c" * 64, NOW)
    (record,) = store.provenance.story("1.2.3.1").records
    assert record.body["decision"]["reason"] == "localizer"
    assert record.body["decision"]["verdicts"] == [["chest", "Modality", "CT", "CT", True]]
    assert record.body["closed_because"] == "count"


def test_what_was_only_received_has_a_story_too(store: Store) -> None:
    one = received(store, 1)
    store.reception.record([one])
    story = store.provenance.story(one.sop_instance_uid)
    assert story.instances == (one,)
    assert story.records == ()
