"""Requests for storage commitment as the store keeps them, on both databases: one worker each, no write too late."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from node.dicom.commitment import Told
from node.model import Commitment, CommitmentState, Outcome, Promise
from node.store import Store, owners
from tests.storing import CT, NOW, after, indexed, received

ASKED, READY, TOLD = CommitmentState.ASKED, CommitmentState.READY, CommitmentState.TOLD
THERE: dict[str, Any] = {"address": {"host": "h", "port": 1}}


def ask(store: Store, number: int = 1, uids: tuple[str, ...] = ("1.2.3",), **more: Any) -> bool:
    told: dict[str, Any] = {
        "calling_ae": "CT1", "called_ae": "LUMINODE", "address": "10.1.2.3", "promise": "held",
        "report_to": THERE, "at": NOW, "answer_by": after(60), "give_up_at": after(600), **more,
    }  # fmt: skip
    return store.commitments.ask(f"1.2.9.{number}", [(CT, uid) for uid in uids], **told)


def claimed(store: Store, state: CommitmentState, owner: str = "a", at: float = 0, **more: Any) -> Commitment:
    one = store.commitments.claim(state, owner, 60, after(at), **more)
    assert one is not None
    return one


def test_a_request_goes_from_asked_to_told(store: Store) -> None:
    assert ask(store, uids=("1.2.3", "1.2.4"))
    one = claimed(store, ASKED)
    assert one.references == ((CT, "1.2.3"), (CT, "1.2.4"))
    assert store.commitments.claim(ASKED, "b", 60, after(30)) is None
    assert store.commitments.ready(one.id, "a", {"1.2.4": 0x112}, after(1))
    assert not store.commitments.ready(one.id, "a", {}, after(1))
    again = claimed(store, READY, at=2)
    assert (again.failed, again.report_to) == ({"1.2.4": 0x112}, THERE)
    assert store.commitments.told(again.id, "a", after(3))
    assert [(c.state, c.told_at) for c in store.commitments.list()] == [(TOLD, after(3))]
    assert store.commitments.get(one.id) == store.commitments.list([TOLD])[0]
    assert store.commitments.list([ASKED, READY]) == []


def test_who_lost_the_lease_writes_nothing(store: Store) -> None:
    ask(store)
    one = claimed(store, ASKED, "a")
    assert claimed(store, ASKED, "b", at=61).id == one.id
    assert not store.commitments.extend(one.id, "a", after(200))
    assert not store.commitments.ready(one.id, "a", {}, after(62))
    assert store.commitments.extend(one.id, "b", after(200))
    assert store.commitments.claim(ASKED, "c", 60, after(150)) is None
    assert store.commitments.ready(one.id, "b", {}, after(151))


def test_what_a_dead_process_held_is_free_at_once(store: Store) -> None:
    ask(store)
    parts = owners.me("commit").split("/")
    dead = "/".join([parts[0], "elseboot", *parts[2:]])
    claimed(store, ASKED, dead)
    assert store.commitments.release_dead() == 1
    claimed(store, ASKED, owners.me("commit"))
    assert store.commitments.release_dead() == 0


def test_the_same_again_is_one_request_and_another_is_refused(store: Store) -> None:
    assert ask(store, uids=("1.2.3", "1.2.4"))
    assert ask(store, uids=("1.2.4", "1.2.3"))
    assert not ask(store, uids=("1.2.3",))
    assert not ask(store, uids=("1.2.3", "1.2.4"), calling_ae="CT2")
    one = claimed(store, ASKED)
    store.commitments.ready(one.id, "a", {"1.2.3": 0x110}, NOW)
    later = claimed(store, READY)
    store.commitments.later(later, "a", after(500), "away", tried=True)
    assert store.commitments.claim(READY, "a", 60, after(5)) is None
    assert ask(store, uids=("1.2.3", "1.2.4"), at=after(5))  # it is told at once, and the result is kept
    again = claimed(store, READY, at=5)
    assert (again.failed, again.attempt) == ({"1.2.3": 0x110}, 0)
    store.commitments.told(again.id, "a", after(6))
    assert ask(store, uids=("1.2.3", "1.2.4"), at=after(7))  # after that it is looked at anew
    assert claimed(store, ASKED, at=7).failed == {}
    assert len(store.commitments.list()) == 1


def test_a_result_that_got_old_is_looked_at_anew(store: Store) -> None:
    ask(store)
    store.commitments.ready(claimed(store, ASKED).id, "a", {"1.2.3": 0x110}, NOW)
    one = claimed(store, READY)
    assert not store.commitments.again(one, "a", after(600))
    assert not store.commitments.again(one, "a", after(-5))  # by the clock of another host
    assert store.commitments.again(one, "b", after(601))  # not its own: nothing is told, nothing is written
    assert store.commitments.list()[0].state is READY
    assert store.commitments.again(one, "a", after(601))
    assert claimed(store, ASKED, at=601).failed == {}


def test_who_has_no_address_is_told_by_title(store: Store) -> None:
    ask(store, report_to=None)
    one = claimed(store, ASKED)
    store.commitments.ready(one.id, "a", {}, NOW)
    assert store.commitments.claim(READY, "a", 60, NOW) is None
    assert store.commitments.claim(READY, "a", 60, NOW, calling_ae="CT2") is None
    assert claimed(store, READY, calling_ae="CT1").id == one.id


def test_a_title_is_told_where_it_asked_unless_it_may_be_anywhere(store: Store) -> None:
    ask(store, report_to=None)
    one = claimed(store, ASKED)
    store.commitments.ready(one.id, "a", {}, NOW)
    assert store.commitments.claim(READY, "b", 60, NOW, calling_ae="CT1", address="10.1.2.4") is None
    told = claimed(store, READY, "b", calling_ae="CT1", address="10.1.2.3")
    assert told.id == one.id
    assert store.commitments.later(told, "b", NOW, tried=False)
    assert claimed(store, READY, "b", calling_ae="CT1").id == one.id


def test_requests_of_those_that_are_being_told_are_left_alone(store: Store) -> None:
    for number, title in enumerate(("CT1", "CT1", "CT2"), 1):
        ask(store, number, calling_ae=title)
        store.commitments.ready(claimed(store, ASKED).id, "a", {}, NOW)
    assert claimed(store, READY).calling_ae == "CT1"
    assert claimed(store, READY, but=("CT1",)).calling_ae == "CT2"
    assert store.commitments.claim(READY, "a", 60, NOW, but=("CT1",)) is None
    assert claimed(store, READY).calling_ae == "CT1"


def test_what_waits_for_one_scanner_is_put_off_together_and_given_up_alone(store: Store) -> None:
    for number in (1, 2):
        ask(store, number, give_up_at=after(100 * number))
        store.commitments.ready(claimed(store, ASKED).id, "a", {}, NOW)
    ask(store, 3, calling_ae="CT2")
    store.commitments.ready(claimed(store, ASKED).id, "a", {}, NOW)
    first = claimed(store, READY)
    store.commitments.later(first, "a", after(50), "away", tried=True)
    assert claimed(store, READY, at=1).calling_ae == "CT2"
    assert store.commitments.claim(READY, "a", 60, after(2)) is None
    (given,) = store.commitments.give_up(after(120))
    assert (given.transaction_uid, given.state, given.failure) == (
        "1.2.9.1",
        CommitmentState.GIVEN_UP,
        "away",
    )
    assert store.commitments.forget(NOW + timedelta(days=1)) == 1
    assert len(store.commitments.list()) == 2


def test_a_clock_that_was_ahead_holds_up_nothing_for_long(store: Store) -> None:
    ask(store, at=after(86400))
    assert claimed(store, ASKED).transaction_uid == "1.2.9.1"


def test_each_instance_is_delivered_for_itself(store: Store) -> None:
    """What a PACS holds that says 0111H nobody knows; a folder says so of the same bytes."""
    for kind, n_safe in (("dimse", 2), ("folder", 3)):
        series = n_safe
        sent = [received(store, n, series=series) for n in range(1, 5)]
        store.reception.record(sent, forward={kind: {"kind": kind}})
        uids = [one.sop_instance_uid for one in sent]
        delivery = store.deliveries.claim("d", 60, after(10), destination=kind, originals=True)
        assert delivery is not None
        statuses = (0, 0xB000, 0x0111)
        outcomes = [
            Outcome(sop_instance_uid=uid, status=status, done=True, retryable=False)
            for uid, status in zip(uids, statuses, strict=False)
        ]
        assert store.deliveries.record_outcomes(delivery.id, "d", delivery.attempt, outcomes)
        held = store.commitments.held(uids, "delivered")
        assert [held[uid].way for uid in uids] == ["safe"] * n_safe + ["waits"] * (4 - n_safe)


def test_how_safe_an_instance_is(store: Store) -> None:
    forward = {"p1": {"kind": "dimse", "ae_title": "P1"}, "p2": {"kind": "dimse", "ae_title": "P2"}}
    alone = received(store, 1, series=2)
    both = received(store, 1)
    store.reception.record([both], forward=forward)
    store.reception.record([alone])
    uids = (both.sop_instance_uid, alone.sop_instance_uid)

    def ways(promise: Promise) -> list[str]:
        held = store.commitments.held(uids, promise)
        return [held[uid].way for uid in uids]

    assert ways("kept") == ["safe", "safe"]
    assert ways("held") == ["safe", "unsafe"]
    assert ways("delivered") == ["waits", "unsafe"]
    assert store.commitments.held(["1.2.3.4.5"], "kept") == {}
    one, other = (d.id for d in store.deliveries.list())
    store.deliveries.cancel(one, after(1))
    assert ways("held") == ["safe", "unsafe"]
    store.deliveries.cancel(other, after(1))
    assert ways("held") == ["unsafe", "unsafe"]
    clash = received(store, 1, data=b"other bytes" * 20)
    store.reception.record([clash])
    assert ways("kept") == ["unsafe", "safe"]


def test_what_every_destination_had_before_is_held_nowhere(store: Store) -> None:
    """0111H ends a delivery, and retention then removes the file; which bytes are at PACS nobody knows."""
    one, sides = received(store, 1), {name: {"kind": "dimse", "ae_title": name} for name in ("P1", "P2")}
    store.reception.record([one], forward=sides)
    uid = one.sop_instance_uid
    for name, way in (("P1", "safe"), ("P2", "unsafe")):
        delivery = store.deliveries.claim("d", 60, after(10), destination=name, originals=True)
        assert delivery is not None
        there = Outcome(sop_instance_uid=uid, status=0x0111, done=True, retryable=False)
        assert store.deliveries.record_outcomes(delivery.id, "d", delivery.attempt, [there])
        assert store.commitments.held([uid], "held")[uid].way == way
    assert store.commitments.held([uid], "kept")[uid].way == "safe"


def test_where_a_destination_commits_itself_its_answer_to_a_c_store_is_not_enough(store: Store) -> None:
    forward = {"pacs": {"kind": "dimse", "ae_title": "P", "commit": True, "commit_within": 1000.0}}
    store.reception.record([received(store, 1)], forward=forward)
    uid = "1.2.3.1.1"

    def way() -> str:
        return store.commitments.held([uid], "delivered")[uid].way

    indexed(store)
    assert store.series.close(store.series.list()[0].id, "count", NOW, count=1)
    delivery = store.deliveries.claim("d", 60, after(10), originals=True)
    assert delivery is not None
    done = Outcome(sop_instance_uid=uid, status=0, done=True, retryable=False)
    assert store.deliveries.record_outcomes(delivery.id, "d", delivery.attempt, [done])
    assert way() == "waits"
    assert store.deliveries.settle(delivery.id, "d", delivery.attempt, after(11)) == "sent"
    assert way() == "waits"
    asking = store.pledges.claim("pacs", "2.25.1", "p", 60, after(20))
    assert asking is not None
    told = Told(transaction_uid="2.25.1", committed=frozenset({uid}), failed={})
    assert store.pledges.result(told, after(21)) == "committed"
    assert way() == "safe"
