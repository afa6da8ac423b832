"""What destinations commit to: asked once all is there, believed only when every instance is named, kept until then."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from node.dicom.commitment import Told
from node.model import Delivery, DeliveryState, PledgeState
from node.store import Store
from node.store.figures import FigureStore
from node.store.pledges import MOST_ROUNDS, Asking
from node.store.tables import DeliveryRow, PledgeRow
from tests.parcels import delivery
from tests.storing import NOW, after, delivered

PACS = {
    "pacs": {
        "kind": "dimse",
        "ae_title": "PACS",
        "address": "pacs:104",
        "commit": True,
        "commit_within": 1000,
    }
}


def sent(store: Store, at: datetime = NOW, settings: Mapping[str, Mapping[str, object]] = PACS) -> Delivery:
    """A derived series that its destination has answered for."""
    one = delivery(store, settings, n=3, at=at)[0]
    return resent(store, one, at)


def resent(store: Store, one: Delivery, at: datetime) -> Delivery:
    claimed = store.deliveries.claim("d1", 30, at)
    assert claimed is not None
    assert claimed.id == one.id
    store.deliveries.finish(one.id, "d1", claimed.attempt, at, outcomes=delivered(store, claimed, "d1"))
    return claimed


def ask(store: Store, transaction: str, at: datetime, again_s: float = 250) -> Asking:
    asking = store.pledges.claim("pacs", transaction, "p1", 60, at)
    assert asking is not None
    assert store.pledges.asked(asking, "p1", at, at + timedelta(seconds=again_s))
    return asking


def told(transaction: str, good: Collection[str], bad: Mapping[str, int] | None = None) -> Told:
    return Told(transaction_uid=transaction, committed=frozenset(good), failed=bad or {})


def state(store: Store, one: Delivery) -> tuple[DeliveryState, PledgeState]:
    now, pledge = store.deliveries.get(one.id), store.pledges.get(one.id)
    assert now is not None
    assert pledge is not None
    return now.state, pledge.state


def uids(asking: Asking) -> list[str]:
    return [uid for _, uid in asking.references]


def test_who_is_not_asked_owes_nothing(store: Store) -> None:
    settings = {"pacs": {**PACS["pacs"], "commit": False}}
    one = sent(store, settings=settings)
    assert store.pledges.get(one.id) is None
    assert store.pledges.due(after(1e6)) == []


def test_a_delivery_is_committed_when_every_instance_is_named(store: Store) -> None:
    one = sent(store)
    assert store.pledges.due(NOW) == []  # a moment after the last answer
    assert store.deliveries.waiting("pacs") == 1
    assert store.pledges.due(after(2)) == ["pacs"]
    asking = ask(store, "2.25.1", after(2))
    assert len(asking.references) == 3
    assert state(store, one) == (DeliveryState.SENT, PledgeState.ASKED)
    assert store.pledges.result(told("2.25.9", uids(asking)), after(3)) == "unknown"
    for _ in range(2):  # told twice, as after a lost answer
        assert store.pledges.result(told("2.25.1", uids(asking)), after(3)) == "committed"
    assert state(store, one) == (DeliveryState.COMMITTED, PledgeState.KEPT)
    kinds = [r.kind for r in store.provenance.story(uids(asking)[0]).records]
    assert kinds.count("series.committed") == 1
    assert store.deliveries.waiting("pacs") == 0
    assert store.pledges.due(after(1e6)) == []
    assert store.pledges.give_up(after(1e6)) == []


def test_an_answer_may_overtake_the_one_to_the_request(store: Store) -> None:
    one = sent(store)
    asking = store.pledges.claim("pacs", "2.25.1", "p1", 60, after(2))
    assert asking is not None
    assert store.pledges.result(told("2.25.1", uids(asking)), after(3)) == "committed"
    assert not store.pledges.asked(asking, "p1", after(3), after(9))
    assert state(store, one) == (DeliveryState.COMMITTED, PledgeState.KEPT)


@pytest.mark.parametrize("how", ["failed", "not mentioned", "both lists"])
def test_what_is_missing_there_is_sent_again_alone(store: Store, how: str) -> None:
    one = sent(store)
    asking = ask(store, "2.25.1", after(2))
    good, bad = uids(asking)[:2], uids(asking)[2]
    answer = {
        "failed": told("2.25.1", good, {bad: 0x0112}),
        "not mentioned": told("2.25.1", good),
        "both lists": told("2.25.1", [*good, bad], {bad: 0x0110}),
    }[how]
    assert store.pledges.result(answer, after(3)) == "resent"
    assert state(store, one) == (DeliveryState.PENDING, PledgeState.RESENT)
    assert {u for u, o in store.deliveries.outcomes(one.id).items() if not o.done} == {bad}
    assert store.pledges.result(answer, after(3)) == "stale"  # told twice
    assert store.pledges.due(after(900)) == []
    resent(store, one, after(4))
    assert store.pledges.result(answer, after(5)) == "stale"  # of a time before it was sent again
    second = ask(store, "2.25.2", after(6))
    assert store.pledges.result(told("2.25.2", uids(second)), after(7)) == "committed"


def test_a_destination_that_never_holds_it_is_for_a_person(store: Store) -> None:
    one = sent(store)
    for n in range(MOST_ROUNDS):
        asking = ask(store, f"2.25.{n}", after(10 * n + 5))
        assert store.pledges.result(told(f"2.25.{n}", uids(asking)[:2]), after(10 * n + 6)) == "resent"
        resent(store, one, after(10 * n + 7))
    asking = ask(store, "2.25.99", after(100))
    assert store.pledges.result(told("2.25.99", uids(asking)[:2]), after(101)) == "given_up"
    assert state(store, one) == (DeliveryState.SENT, PledgeState.GIVEN_UP)
    names = [event.name for event in store.events.list()]
    assert names.count("delivery.uncommitted") == 1
    assert names.count("delivery.not_committed") == MOST_ROUNDS
    store.deliveries.retry(one.id, after(200))  # a person has seen to it
    resent(store, one, after(201))
    asking = ask(store, "2.25.100", after(210))
    assert store.pledges.result(told("2.25.100", uids(asking)), after(211)) == "committed"
    store.deliveries.retry(one.id, after(300))  # the PACS lost it all the same
    assert state(store, one)[0] is DeliveryState.PENDING


def test_who_does_not_answer_is_asked_again_and_given_up_in_the_end(store: Store) -> None:
    one = sent(store)
    first = ask(store, "2.25.1", after(2))
    assert store.pledges.due(after(251)) == []
    second = ask(store, "2.25.2", after(252))
    assert second.attempt == 1
    assert store.pledges.give_up(after(999)) == []
    assert [each.delivery_id for each in store.pledges.give_up(after(1000))] == [one.id]
    assert store.pledges.give_up(after(1000)) == []
    assert store.pledges.due(after(2000)) == []
    # Days later it does answer, to the first request of all: that is as good.
    assert store.pledges.result(told("2.25.1", uids(first)), after(1e5)) == "committed"
    assert state(store, one) == (DeliveryState.COMMITTED, PledgeState.KEPT)


def test_a_destination_that_is_away_puts_off_all_that_waits_for_it(store: Store) -> None:
    sent(store)
    two = delivery(store, PACS, n=2, series=2, at=NOW)[0]
    resent(store, two, NOW)
    asking = store.pledges.claim("pacs", "2.25.1", "p1", 60, after(2))
    assert asking is not None
    assert store.pledges.later(asking, "p1", after(50), "connection refused")
    assert store.pledges.due(after(49)) == []
    assert store.pledges.due(after(50)) == ["pacs"]
    pledge = store.pledges.get(asking.delivery_id)
    assert pledge is not None
    assert (pledge.failure, pledge.attempt) == ("connection refused", 1)


def test_a_lease_that_ran_out_is_taken_over(store: Store) -> None:
    sent(store)
    lost = store.pledges.claim("pacs", "2.25.1", "p1", 60, after(2))
    assert lost is not None
    assert store.pledges.due(after(61)) == []
    again = store.pledges.claim("pacs", "2.25.2", "p2", 60, after(63))
    assert again is not None
    assert not store.pledges.asked(lost, "p1", after(64), after(99))
    assert store.pledges.asked(again, "p2", after(64), after(99))
    assert store.pledges.result(told("2.25.1", uids(lost)), after(70)) == "committed"


def test_nothing_is_removed_before_its_destination_has_answered(store: Store) -> None:
    one = sent(store)
    asking = ask(store, "2.25.1", after(2))
    assert one.derived_id is not None

    def removable() -> tuple[int, ...]:
        return store.retention.purgeable(received_before=after(1e6), derived_before=after(1e6)).derived

    assert removable() == ()
    assert store.pledges.result(told("2.25.1", uids(asking)[:1]), after(3)) == "resent"
    assert removable() == ()
    resent(store, one, after(4))
    assert removable() == ()
    again = ask(store, "2.25.2", after(7))
    assert store.pledges.result(told("2.25.2", uids(again)), after(8)) == "committed"
    assert removable() == (one.derived_id,)


def test_what_was_given_up_does_not_fill_the_disk_for_ever(store: Store) -> None:
    one = sent(store)
    ask(store, "2.25.1", after(2))
    assert store.pledges.give_up(after(1000))
    found = store.retention.purgeable(received_before=after(1e6), derived_before=after(1e6))
    assert found.derived == (one.derived_id,)
    store.retention.purge(received_before=after(1e6), derived_before=after(1e6), at=after(1e6))
    assert store.pledges.result(told("2.25.1", ["1.2.3"]), after(1e6)) == "stale"


def counts(store: Store) -> Mapping[tuple[str, str], int]:
    """As the metrics tell them."""
    figures = FigureStore(store.database)
    return figures.look(figures.begin()[0], NOW).pledges


def test_counts_are_by_destination(store: Store) -> None:
    sent(store)
    assert counts(store) == {("pacs", "DUE"): 1}
    assert replace(ask(store, "2.25.1", after(2)), references=()).destination == "pacs"
    assert counts(store) == {("pacs", "ASKED"): 1}


def test_a_pacs_that_moved_is_asked_where_it_is_now(store: Store) -> None:
    one = sent(store)
    ask(store, "2.25.1", after(2))
    moved = {**PACS["pacs"], "address": "elsewhere:104"}
    store.deliveries.readdress("pacs", moved, after(10))
    asking = ask(store, "2.25.2", after(11))
    assert asking.settings["address"] == "elsewhere:104"
    assert store.pledges.result(told("2.25.2", uids(asking)[:1]), after(12)) == "resent"
    found = store.deliveries.get(one.id)
    assert found is not None
    assert found.settings["address"] == "elsewhere:104"


def test_a_destination_that_is_asked_no_more_is_waited_for_no_more(store: Store) -> None:
    one = sent(store)
    asking = ask(store, "2.25.1", after(2))
    store.deliveries.readdress("pacs", {**PACS["pacs"], "commit": False}, after(10))
    assert store.pledges.get(one.id) is None
    assert store.pledges.due(after(1e5)) == []
    assert store.pledges.result(told("2.25.1", uids(asking)), after(11)) == "stale"
    assert [event.name for event in store.events.list()] == []


def removable(store: Store) -> tuple[int, ...]:
    return store.retention.purgeable(received_before=after(1e6), derived_before=after(1e6)).derived


def test_what_is_sent_again_and_then_asked_for_no_more_is_not_kept_for_ever(store: Store) -> None:
    one = sent(store)
    asking = ask(store, "2.25.1", after(2))
    assert store.pledges.result(told("2.25.1", uids(asking)[:1]), after(3)) == "resent"
    store.deliveries.readdress("pacs", {**PACS["pacs"], "commit": False}, after(4))
    resent(store, one, after(5))
    assert store.pledges.get(one.id) is None
    assert removable(store) == (one.derived_id,)


def test_what_is_cancelled_while_it_is_sent_again_is_waited_for_no_more(store: Store) -> None:
    one = sent(store)
    asking = ask(store, "2.25.1", after(2))
    assert store.pledges.result(told("2.25.1", uids(asking)[:1]), after(3)) == "resent"
    store.deliveries.cancel(one.id, after(4))
    assert counts(store) == {}


def test_the_old_address_commits_to_nothing_at_the_new_one(store: Store) -> None:
    one = sent(store)
    asking = ask(store, "2.25.1", after(2))
    store.deliveries.readdress("pacs", {**PACS["pacs"], "address": "elsewhere:104"}, after(990))
    assert store.pledges.result(told("2.25.1", uids(asking)), after(991)) == "stale"
    assert state(store, one) == (DeliveryState.SENT, PledgeState.DUE)
    assert store.pledges.give_up(after(1001)) == []  # it has all its time anew
    again = ask(store, "2.25.2", after(1002))
    assert store.pledges.result(told("2.25.2", uids(again)), after(1003)) == "committed"


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_is_asked_nor_given_up_while_a_person_has_it_sent_again(store: Store, asked: bool) -> None:
    one = sent(store)
    if asked:
        ask(store, "2.25.1", after(2))
    store.deliveries.retry(one.id, after(3))
    assert store.pledges.due(after(900)) == []
    assert store.pledges.give_up(after(1001)) == []
    resent(store, one, after(1002))
    assert state(store, one) == (DeliveryState.SENT, PledgeState.DUE)
    assert store.pledges.due(after(1004)) == ["pacs"]


def test_what_a_dead_process_of_another_host_held_is_given_up_as_well(store: Store) -> None:
    one = sent(store)
    assert store.pledges.claim("pacs", "2.25.1", "elsewhere/b/1/1/pledge", 60, after(990)) is not None
    assert store.pledges.give_up(after(1001)) == []
    assert [each.delivery_id for each in store.pledges.give_up(after(1051))] == [one.id]
    assert removable(store) == (one.derived_id,)


def test_one_request_that_is_refused_holds_up_no_other(store: Store) -> None:
    one, two = sent(store), delivery(store, PACS, n=2, series=2, at=NOW)[0]
    resent(store, two, NOW)
    refused = store.pledges.claim("pacs", "2.25.1", "p1", 60, after(2))
    assert refused is not None
    assert store.pledges.later(refused, "p1", after(50), "0213H", alone=True)
    other = store.pledges.claim("pacs", "2.25.2", "p1", 60, after(2))
    assert other is not None
    assert {refused.delivery_id, other.delivery_id} == {one.id, two.id}


def test_an_address_that_is_dead_holds_up_nothing_at_another(store: Store) -> None:
    sent(store)
    moved = {"pacs": {**PACS["pacs"], "address": "elsewhere:104"}}
    two = delivery(store, moved, n=2, series=2, at=NOW)[0]
    resent(store, two, NOW)
    dead = store.pledges.claim("pacs", "2.25.1", "p1", 60, after(2))
    assert dead is not None
    assert store.pledges.later(dead, "p1", after(50), "nobody listens there")
    assert store.pledges.due(after(2)) == ["pacs"]


def test_who_lost_its_lease_puts_off_nothing(store: Store) -> None:
    sent(store)
    two = delivery(store, PACS, n=2, series=2, at=NOW)[0]
    resent(store, two, NOW)
    slow = store.pledges.claim("pacs", "2.25.1", "p1", 60, after(2))
    assert slow is not None
    assert store.pledges.result(told("2.25.1", uids(slow)), after(3)) == "committed"
    assert not store.pledges.later(slow, "p1", after(500), "it broke off")
    assert store.pledges.due(after(3)) == ["pacs"]


def test_a_clock_that_is_behind_the_one_of_who_sent_makes_no_answer_stale(store: Store) -> None:
    """Two hosts on one database, or a clock that was put right by more than a month."""
    one = sent(store, after(40 * 86400))
    asking = ask(store, "2.25.1", NOW)
    assert store.pledges.result(told("2.25.1", uids(asking)), after(1)) == "committed"
    assert state(store, one) == (DeliveryState.COMMITTED, PledgeState.KEPT)


def test_what_is_told_twice_is_one_alarm(store: Store) -> None:
    one = sent(store)
    for n in range(MOST_ROUNDS):
        asking = ask(store, f"2.25.{n}", after(10 * n + 5))
        assert store.pledges.result(told(f"2.25.{n}", uids(asking)[:2]), after(10 * n + 6)) == "resent"
        resent(store, one, after(10 * n + 7))
    asking = ask(store, "2.25.99", after(100))
    for _ in range(2):
        assert store.pledges.result(told("2.25.99", uids(asking)[:2]), after(101)) == "given_up"
    assert [event.name for event in store.events.list()].count("delivery.uncommitted") == 1


def test_after_a_long_absence_a_destination_is_asked_once_more(store: Store) -> None:
    one = sent(store)
    ask(store, "2.25.1", after(2))
    assert store.pledges.resume(after(999)) == 0
    assert store.pledges.resume(after(1e5)) == 1
    assert store.pledges.give_up(after(1e5)) == []
    asking = ask(store, "2.25.2", after(1e5), again_s=1e5)
    assert store.pledges.give_up(after(1e5 + 3599)) == []
    assert store.pledges.result(told("2.25.2", uids(asking)), after(1e5 + 3600)) == "committed"
    assert state(store, one) == (DeliveryState.COMMITTED, PledgeState.KEPT)


def test_what_is_committed_while_a_person_readdresses_it_is_asked_for_no_more(store: Store) -> None:
    one = sent(store)
    ask(store, "2.25.1", after(2))
    moved = {**PACS["pacs"], "address": "elsewhere:104"}
    with ThreadPoolExecutor(1) as person:
        with store.database.write() as connection:
            of = DeliveryRow.id == one.id
            connection.execute(update(DeliveryRow).where(of).values(state=DeliveryState.COMMITTED.value))
            connection.execute(update(PledgeRow).values(state=PledgeState.KEPT.value))
            readdressed = person.submit(store.deliveries.readdress, "pacs", moved, after(5))
            time.sleep(0.2)  # it looks, and waits
        assert readdressed.result(60).deliveries == 0
    assert state(store, one) == (DeliveryState.COMMITTED, PledgeState.KEPT)
