"""The outbox: oldest first, by destination, resumable, sent only when all is confirmed."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from node.errors import StoreError, TransitionRefused
from node.model import Delivery, DeliveryState, Outcome
from node.store import Store
from tests.storing import NOW, after, delivered, made, outbox, queued


def claimed(store: Store, owner: str = "d1", now: datetime = NOW, destination: str | None = None) -> Delivery:
    delivery = store.deliveries.claim(owner, 30, now, destination=destination)
    assert delivery is not None
    return delivery


def state(store: Store, delivery_id: int) -> DeliveryState:
    delivery = store.deliveries.get(delivery_id)
    assert delivery is not None
    return delivery.state


def test_a_delivery_is_sent_when_every_instance_is_done(store: Store) -> None:
    outbox(store)
    delivery = claimed(store)
    outcomes = delivered(store, delivery, "d1")
    assert store.deliveries.record_outcomes(delivery.id, "d1", 1, outcomes[:2])
    with pytest.raises(StoreError, match="2 of 3"):  # R36
        store.deliveries.finish(delivery.id, "d1", 1, NOW)
    assert state(store, delivery.id) is DeliveryState.SENDING
    detail = store.deliveries.detail(delivery.id)
    assert detail is not None
    assert (detail.n_done, detail.n_instances) == (2, 3)
    store.deliveries.finish(delivery.id, "d1", 1, after(3), {"seconds": 1.5}, outcomes=outcomes[2:])
    sent = store.deliveries.detail(delivery.id)
    assert sent is not None
    assert (sent.delivery.state, sent.n_done, sent.finished_at) == (DeliveryState.SENT, 3, after(3))
    assert store.deliveries.outcomes(delivery.id) == {o.sop_instance_uid: o for o in outcomes}


def test_the_record_of_a_delivery_is_small_and_complete(store: Store) -> None:
    outbox(store, n=40)
    delivery = claimed(store)
    outcomes = delivered(store, delivery, "d1")
    outcomes[3] = replace(outcomes[3], status=0x0111)
    outcomes[4] = replace(outcomes[4], status=0xB007)
    store.deliveries.finish(delivery.id, "d1", 1, NOW, outcomes=outcomes)
    record = store.provenance.story(outcomes[7].sop_instance_uid).records[-1]
    assert record.kind == "series.delivered"
    assert record.body["statuses"] == {"0000H": 38, "0111H": 1, "B007H": 1}
    assert record.body["exceptions"] == [
        [outcomes[3].sop_instance_uid, 0x0111],
        [outcomes[4].sop_instance_uid, 0xB007],
    ]
    assert len(str(record.body)) < 700


def test_finishing_again_after_a_commit_of_unknown_outcome_is_harmless(store: Store) -> None:
    outbox(store)
    delivery = claimed(store)
    outcomes = delivered(store, delivery, "d1")
    for _ in range(2):
        store.deliveries.finish(delivery.id, "d1", 1, NOW, outcomes=outcomes)
    assert [r.kind for r in store.provenance.records("1.2.3.1")].count("series.delivered") == 1


def test_what_is_done_stays_done_and_the_rest_goes_on(store: Store) -> None:
    """R34: a restart in mid-upload resumes."""
    outbox(store)
    first = claimed(store)
    outcomes = delivered(store, first, "d1")
    unknown = Outcome(sop_instance_uid=outcomes[1].sop_instance_uid, status=-1, done=False, retryable=True)
    assert store.deliveries.record_outcomes(first.id, "d1", 1, [outcomes[0], unknown])
    second = claimed(store, "d2", after(30))
    assert second.attempt == 2
    assert {u: o.done for u, o in store.deliveries.outcomes(first.id).items()} == {
        outcomes[0].sop_instance_uid: True,
        outcomes[1].sop_instance_uid: False,
    }
    assert not store.deliveries.record_outcomes(first.id, "d1", 1, [outcomes[2]]), "fenced"
    doubt = replace(unknown, sop_instance_uid=outcomes[0].sop_instance_uid)
    assert store.deliveries.record_outcomes(second.id, "d2", 2, [doubt, *outcomes[1:]])
    assert all(o.done for o in store.deliveries.outcomes(first.id).values())
    with pytest.raises(TransitionRefused):
        store.deliveries.finish(first.id, "d1", 1, after(31))
    store.deliveries.finish(second.id, "d2", 2, after(31))


def test_outcomes_of_strangers_are_ignored(store: Store) -> None:
    outbox(store)
    delivery = claimed(store)
    stranger = Outcome(sop_instance_uid="9.9", status=0, done=True, retryable=False)
    assert store.deliveries.record_outcomes(delivery.id, "d1", 1, [stranger])
    assert store.deliveries.outcomes(delivery.id) == {}


def test_comments_are_cleaned_and_short(store: Store) -> None:
    outbox(store)
    delivery = claimed(store)
    told = replace(delivered(store, delivery, "d1")[0], comment="no\0 space " + "x" * 500)
    assert store.deliveries.record_outcomes(delivery.id, "d1", 1, [told])
    (held,) = store.deliveries.outcomes(delivery.id).values()
    assert held.comment.startswith("no space x")
    assert len(held.comment) == 200


def test_the_oldest_goes_first_whatever_was_tried(store: Store) -> None:
    """R29: after an outage the order is that of making."""
    for series in (1, 2, 3):
        outbox(store, series=series, n=1)
    first = claimed(store)
    store.deliveries.retry_later(first.id, "d1", 1, after(60), "no answer")
    assert claimed(store, now=after(1)).id != first.id
    assert claimed(store, now=after(60)).id == first.id


def test_one_destination_is_not_held_up_by_another(store: Store) -> None:
    """R35."""
    outbox(store, destinations=("down", "up", "slow"))
    assert store.deliveries.due_destinations(NOW) == ["down", "slow", "up"]
    assert claimed(store, destination="up").destination == "up"
    assert store.deliveries.claim("d1", 30, NOW, destination="up") is None
    delivery = store.deliveries.claim("d1", 30, NOW, destinations_paused={"down"})
    assert delivery is not None
    assert delivery.destination == "slow"
    assert store.deliveries.claim("d1", 30, NOW, destinations_paused={"down"}) is None
    assert store.deliveries.due_destinations(NOW) == ["down"]
    assert store.deliveries.due_destinations(after(30)) == ["down", "slow", "up"], "leases ran out"


def test_a_week_of_outage_loses_nothing(store: Store) -> None:
    """R29 with a fake clock: every try fails for seven days, with restarts between."""
    ids = [outbox(store, series=s, n=1) for s in (1, 2)]
    at, tries = NOW, 0
    while at < NOW + timedelta(days=7):
        while (delivery := store.deliveries.claim(f"d{tries}", 30, at)) is not None:
            tries += 1
            if tries % 5:
                again = at + timedelta(hours=6)
                assert store.deliveries.retry_later(
                    delivery.id, f"d{tries - 1}", delivery.attempt, again, "down"
                )
        at += timedelta(hours=3)
    for derived_id in ids:
        delivery = store.deliveries.claim("up", 30, at)
        assert delivery is not None
        assert delivery.derived_id == derived_id
        assert delivery.created_at == NOW
        store.deliveries.finish(
            delivery.id, "up", delivery.attempt, at, outcomes=delivered(store, delivery, "up")
        )


def test_a_failed_delivery_waits_for_a_person_and_goes_on_with_what_is_missing(store: Store) -> None:
    outbox(store)
    delivery = claimed(store)
    outcomes = delivered(store, delivery, "d1")
    assert store.deliveries.record_outcomes(delivery.id, "d1", 1, outcomes[:1])
    assert store.deliveries.fail(delivery.id, "d1", 1, "SOP class not accepted", after(1), {"status": 0x0122})
    assert store.deliveries.claim("d1", 30, after(9999)) is None
    failed = store.deliveries.get(delivery.id)
    assert failed is not None
    assert (failed.state, failed.failure) == (DeliveryState.FAILED, "SOP class not accepted")
    assert [e.name for e in store.events.list(level="error")] == ["delivery.failed"]
    record = store.provenance.records("1.2.3.1")[-1]
    assert (record.kind, record.body["failure"]) == ("delivery.failed", "SOP class not accepted")
    store.deliveries.retry(delivery.id, after(2))
    again = claimed(store, now=after(2))
    assert (again.attempt, again.failure, again.created_at) == (1, "", after(2))
    assert sum(o.done for o in store.deliveries.outcomes(delivery.id).values()) == 1


def test_what_was_sent_is_sent_anew_whole_when_a_person_says_so(store: Store) -> None:
    outbox(store)
    delivery = claimed(store)
    store.deliveries.finish(delivery.id, "d1", 1, NOW, outcomes=delivered(store, delivery, "d1"))
    store.deliveries.retry(delivery.id, after(1))
    assert not any(o.done for o in store.deliveries.outcomes(delivery.id).values())
    again = claimed(store, now=after(1))
    store.deliveries.finish(again.id, "d1", 1, after(2), outcomes=delivered(store, again, "d1"))
    assert state(store, again.id) is DeliveryState.SENT


def test_cancelling_ends_it_and_fences_the_sender(store: Store) -> None:
    outbox(store)
    delivery = claimed(store)
    store.deliveries.cancel(delivery.id, after(1))
    assert not store.deliveries.heartbeat(delivery.id, "d1", 1, after(60))
    assert not store.deliveries.retry_later(delivery.id, "d1", 1, after(60), "x")
    with pytest.raises(TransitionRefused):
        store.deliveries.cancel(delivery.id, after(1))
    store.deliveries.retry(delivery.id, after(2))
    assert claimed(store, now=after(2)).attempt == 1


def test_what_is_being_sent_cannot_be_retried(store: Store) -> None:
    outbox(store)
    delivery = claimed(store)
    with pytest.raises(TransitionRefused):
        store.deliveries.retry(delivery.id, NOW)


def test_released_and_expired_deliveries_come_back(store: Store) -> None:
    outbox(store)
    delivery = claimed(store)
    assert store.deliveries.heartbeat(delivery.id, "d1", 1, after(60))
    assert store.deliveries.requeue_expired(after(59)) == []
    assert store.deliveries.requeue_expired(after(60)) == [delivery.id]
    again = claimed(store, now=after(60))
    assert again.attempt == 2
    assert store.deliveries.release(again.id, "d1", 2, after(61))
    assert claimed(store, "d2", after(61)).attempt == 2


def test_deliveries_are_found_by_what_is_asked(store: Store) -> None:
    derived = [outbox(store, series=s, n=1, destinations=("a", "b")) for s in (1, 2)]
    first = claimed(store)
    assert [d.id for d in store.deliveries.list()] == [4, 3, 2, 1]
    assert [d.id for d in store.deliveries.list(limit=1, before_id=3)] == [2]
    assert [d.id for d in store.deliveries.list([DeliveryState.SENDING])] == [first.id]
    assert {d.derived_id for d in store.deliveries.list(destination="b")} == set(derived)
    assert {d.destination for d in store.deliveries.list(derived_id=derived[1])} == {"a", "b"}
    assert store.deliveries.counts() == {
        ("a", DeliveryState.SENDING): 1,
        ("a", DeliveryState.PENDING): 1,
        ("b", DeliveryState.PENDING): 2,
    }
    assert store.deliveries.get(99) is None
    assert store.deliveries.detail(99) is None
    assert store.deliveries.derived(99) is None
    assert store.deliveries.outcomes(99) == {}


def test_what_waits_for_one_place_is_put_off_together(store: Store) -> None:
    """R29: neither what goes elsewhere, nor what is under way, nor what waits for longer."""
    for series in (1, 2, 3, 4):
        outbox(store, series=series, n=1, destinations=("pacs", "other"))
    first = claimed(store, destination="pacs")
    assert store.deliveries.retry_later(first.id, "d1", 1, after(900), "nobody there")
    second = claimed(store, destination="pacs")
    assert store.deliveries.postpone("pacs", second.settings, after(20)) == 2
    assert store.deliveries.due_destinations(after(1)) == ["other"]
    assert claimed(store, now=after(20), destination="pacs").id not in (first.id, second.id)
    assert state(store, second.id) is DeliveryState.SENDING
    assert store.deliveries.postpone("pacs", {"kind": "folder", "path": "out/pac"}, after(60)) == 0


def test_what_was_given_another_address_meanwhile_is_not_put_off_with_the_old_one(store: Store) -> None:
    for series in (1, 2):
        outbox(store, series=series, n=1)
    first = claimed(store)
    moved = {"kind": "folder", "path": "elsewhere"}
    assert store.deliveries.readdress("pacs", moved, after(1)).deliveries == 2
    assert not store.deliveries.retry_later(first.id, "d1", 1, after(900), "nobody there")
    assert store.deliveries.postpone("pacs", first.settings, after(900)) == 0
    assert store.deliveries.due_destinations(after(1)) == ["pacs"]
    assert store.deliveries.postpone("pacs", moved, after(900)) == 2


def test_what_waits_goes_where_a_person_says_and_what_was_sent_stays(store: Store) -> None:
    """A PACS has moved: what the old address confirmed of a series says nothing of the new one."""
    new = {"kind": "dimse", "ae_title": "PACS", "address": {"host": "new", "port": 105}}
    waiting, failed, sending, sent = (outbox(store, n=2, series=n) for n in (1, 2, 3, 4))
    queued(store, series=5)
    for number, what in ((waiting, "wait"), (failed, "fail"), (sending, "hold"), (sent, "sent")):
        one = store.deliveries.claim("a", 60, after(number))
        assert one is not None
        assert one.id == number
        outcomes = delivered(store, one, "a")
        if what in ("wait", "fail"):
            assert store.deliveries.record_outcomes(one.id, "a", one.attempt, outcomes[:1])
        if what == "wait":
            assert store.deliveries.retry_later(one.id, "a", one.attempt, after(900), "it is away")
        elif what == "fail":
            assert store.deliveries.fail(one.id, "a", one.attempt, "given up", after(9))
        elif what == "sent":
            store.deliveries.finish(one.id, "a", one.attempt, after(9), {}, outcomes=outcomes)
        else:
            held = one, outcomes
    moved = store.deliveries.readdress("pacs", new, after(10))
    assert (moved.deliveries, moved.jobs) == (3, 1)
    assert not store.deliveries.record_outcomes(held[0].id, "a", held[0].attempt, held[1])
    moved_at = {d.id: d.created_at for d in store.deliveries.list()}
    assert moved_at[waiting] == moved_at[sending] == after(10)  # the new address has all of `retry.for`
    told = {d.id: (str(d.state), d.settings == new) for d in store.deliveries.list()}
    assert told == {
        waiting: ("PENDING", True), failed: ("FAILED", True), sending: ("PENDING", True), sent: ("SENT", False)
    }  # fmt: skip
    detail = store.deliveries.detail(waiting)
    assert detail is not None
    assert (detail.n_done, detail.n_instances) == (0, 2)
    again = store.deliveries.claim("b", 60, after(11))
    assert again is not None
    assert (again.id, again.settings) == (waiting, new)
    job = store.jobs.claim("w", 30, NOW)
    assert job is not None
    store.jobs.finish(job.id, "w", job.attempt, made(store, job), {}, NOW)
    assert next(d.settings for d in store.deliveries.list()) == new
    assert store.deliveries.readdress("pacs", new, after(12)).deliveries == 0
    assert store.deliveries.readdress("elsewhere", new, after(12)).jobs == 0
