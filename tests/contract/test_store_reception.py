"""Receiving: new, again, in conflict, late; concurrently; with the outcome of a commit unknown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from node.errors import StoreError
from node.model import AssociationEnd, Instance, SeriesState
from node.store import Recorded, Store
from tests.storing import NOW, after, associated, indexed, received

Sessions = Callable[[], Store]


def kinds(told: list[Recorded]) -> list[str]:
    return [t.kind for t in told]


def paths(instances: list[Instance]) -> set[str]:
    return {i.path for i in instances}


def test_a_new_series_opens_with_what_was_received(store: Store) -> None:
    batch = [received(store, n, at=after(n)) for n in range(1, 4)]
    told = store.reception.record(batch)
    assert kinds(told) == ["new"] * 3
    (series,) = store.series.open_series()
    assert (series.count, series.generation, series.state) == (3, 1, SeriesState.OPEN)
    assert (series.opened_at, series.last_received_at) == (after(1), after(3))
    assert store.series.instances(series.id) == batch
    assert all(store.reception.known_path(i.path) for i in batch)
    assert not store.reception.known_path("ab/" + "0" * 64 + ".dcm")


def test_an_empty_batch_is_nothing(store: Store) -> None:
    assert store.reception.record([]) == []


def test_a_series_is_one_whoever_sends_it(store: Store) -> None:
    """A scanner and a PACS that routes the same study here at the same time: no series is split in two."""
    one, other, third = received(store, 1), received(store, 2, calling_ae="PACS"), received(store, 3)
    told = store.reception.record([one, other])
    assert {t.series_id for t in told} == {1}
    assert store.reception.record([third])[0].series_id == 1
    (series,) = store.series.find(one.series_uid)
    assert (series.count, series.key.calling_ae) == (3, "CT1")
    store.series.close(1, "quiet", NOW)
    late = received(store, 4, calling_ae="WS9", at=after(9))
    store.reception.record([late])
    assert [(s.generation, s.key.calling_ae) for s in store.series.generations(1)] == [(1, "CT1"), (2, "WS9")]
    assert len(store.series.instances(2, up_to_generation=2)) == 4


def test_who_sent_a_series_is_known_association_by_association(store: Store) -> None:
    for name, calling in (("a1", "CT1"), ("b", "PACS")):
        associated(store, name, calling_ae=calling)
    one, other = received(store, 1), received(store, 2, calling_ae="PACS", association="b")
    store.reception.record([one, other])
    assert store.series.senders(1) == [("CT1", one.called_ae), ("PACS", one.called_ae)]
    assert store.series.instances(1) == [one, other]


def test_the_same_bytes_again_are_a_no_op(store: Store) -> None:
    """R7, in sequence: ten times each, in one batch and in several."""
    one = received(store, 1)
    assert kinds(store.reception.record([one] * 5)) == ["new"] + ["same"] * 4
    for n in range(5):
        assert kinds(store.reception.record([received(store, 1, at=after(n))])) == ["same"]
    (series,) = store.series.open_series()
    assert series.count == 1
    assert series.last_received_at == after(4), "who sends again is not quiet"
    assert store.events.list() == []


def test_the_same_bytes_to_a_closed_series_open_nothing(store: Store) -> None:
    store.reception.record([received(store, 1)])
    store.series.close(1, "quiet", NOW)
    assert kinds(store.reception.record([received(store, 1, at=after(9), association="b")])) == ["same"]
    (series,) = store.series.list()
    assert (series.state, series.last_received_at) == (SeriesState.CLOSED, NOW)
    assert {c.association_id: (c.n_new, c.n_seen) for c in store.series.carried(1)} == {
        "a1": (1, 1),
        "b": (0, 1),
    }


def test_identical_data_behind_another_file_meta_is_found_at_its_new_offset(store: Store) -> None:
    one = received(store, 1)
    store.reception.record([one])
    longer = replace(one, size=one.size + 20, offset=20)
    assert kinds(store.reception.record([longer])) == ["same"]
    (held,) = store.series.instances(1)
    assert (held.size, held.offset) == (one.size + 20, 20)


def test_a_conflict_keeps_the_first_in_force_and_the_other_aside(store: Store) -> None:
    first, other = received(store, 1), received(store, 1, data=b"other")
    store.reception.record([first])
    for _ in range(3):
        (told,) = store.reception.record([other], duplicates="keep_first")
        assert (told.kind, told.stale_path) == ("conflict_kept_first", other.path)
    assert store.series.instances(1) == [first]
    assert store.spool.exists(first.path)
    assert store.spool.exists(other.path)
    assert store.reception.known_path(other.path), "kept aside is not an orphan"
    (conflict,) = store.events.list(name="instance.conflict")
    assert conflict.body["sop_instance_uid"] == first.sop_instance_uid
    assert conflict.body["policy"] == "kept_first"


def test_a_replacement_in_an_open_series_takes_the_place(store: Store) -> None:
    first, other = received(store, 1), received(store, 1, data=b"other", at=after(5))
    store.reception.record([first, received(store, 2)])
    indexed(store)
    (told,) = store.reception.record([other], duplicates="replace")
    assert (told.kind, told.series_id, told.stale_path) == ("replaced", 1, first.path)
    (series,) = store.series.list()
    assert series.count == 2
    assert paths(store.series.instances(1)) == {other.path, received(store, 2).path}
    assert [i.path for _, i in store.series.unindexed()] == [other.path], "its header is to be read anew"
    assert store.reception.known_path(first.path)
    assert len(store.events.list(name="instance.conflict")) == 1


def test_a_header_read_of_replaced_bytes_is_not_taken_for_the_new(store: Store) -> None:
    from tests.storing import header

    store.reception.record([received(store, 1)])
    ((row_id, one),) = store.series.unindexed()
    store.reception.record([received(store, 1, data=b"other")], duplicates="replace")
    store.series.index([(row_id, header(one, 1))])
    assert store.series.pending(1) == 1
    assert store.series.headers(1) == []


def test_a_series_does_not_close_over_an_instance_replaced_unread(store: Store) -> None:
    store.reception.record([received(store, 1)])
    indexed(store)
    store.reception.record([received(store, 1, data=b"other")], duplicates="replace")
    assert not store.series.close(1, "count", NOW, count=1)
    indexed(store)
    assert store.series.close(1, "count", NOW, count=1)


def test_a_replacement_after_closing_belongs_to_the_next_generation(store: Store) -> None:
    first, second = received(store, 1), received(store, 2)
    store.reception.record([first, second])
    store.series.close(1, "count", NOW)
    other = received(store, 1, data=b"other", at=after(60))
    (told,) = store.reception.record([other], duplicates="replace")
    assert told.kind == "replaced"
    assert told.series_id != 1
    assert store.series.instances(1) == [first, second], "what was worked on stays what it was"
    assert store.series.instances(told.series_id) == [other]
    assert paths(store.series.instances(told.series_id, all_generations=True)) == {second.path, other.path}
    assert store.spool.exists(first.path)


def test_bytes_kept_aside_come_into_force_under_another_policy(store: Store) -> None:
    first, other = received(store, 1), received(store, 1, data=b"other")
    store.reception.record([first])
    store.reception.record([other], duplicates="keep_first")
    store.reception.record([other], duplicates="replace")
    assert store.series.instances(1) == [other]
    store.reception.record([first], duplicates="replace")
    assert store.series.instances(1) == [first]


def test_a_late_instance_opens_generation_n_plus_1(store: Store) -> None:
    """R9: nothing is dropped, what was closed is untouched."""
    batches = [[received(store, n) for n in range(g * 2, g * 2 + 2)] for g in range(3)]
    ids = []
    for batch in batches:
        (series_id,) = {t.series_id for t in store.reception.record(batch)}
        ids.append(series_id)
        store.series.close(series_id, "quiet", NOW)
    assert [s.generation for s in store.series.generations(ids[0])] == [1, 2, 3]
    for series_id, batch in zip(ids, batches, strict=True):
        assert store.series.instances(series_id) == batch
    assert store.series.instances(ids[2], all_generations=True) == list(chain(*batches))
    assert store.series.instances(ids[2], up_to_generation=2) == batches[0] + batches[1]


def test_a_file_that_vanished_is_not_acknowledged(store: Store) -> None:
    here, gone = received(store, 1), received(store, 2)
    store.spool.remove(gone.path)
    with pytest.raises(StoreError):
        store.reception.record([here, gone])
    assert store.series.list() == [], "all of a batch or nothing"
    assert kinds(store.reception.record([here])) == ["new"]


def test_one_uid_is_received_ten_times_at_once(store: Store, open_store: Sessions) -> None:
    """R7, concurrently: from ten threads, half of them another process's engine."""
    other = open_store()
    ones = [[received(store, n, association=f"a{k}") for n in range(1, 6)] for k in range(10)]
    start = threading.Barrier(10)

    def send(k: int) -> list[Recorded]:
        start.wait()
        batch = ones[k] if k % 3 else ones[k][::-1]
        return (store if k % 2 else other).reception.record(batch)

    with ThreadPoolExecutor(10) as pool:
        told = list(chain(*pool.map(send, range(10))))
    assert sorted(kinds(told)) == ["new"] * 5 + ["same"] * 45
    (series,) = store.series.list()
    assert series.count == 5
    assert len(store.series.instances(series.id)) == 5
    carried = store.series.carried(series.id)
    assert sum(c.n_new for c in carried) == 5
    assert [c.n_seen for c in carried] == [5] * 10


def test_conflicting_bytes_at_once_are_all_kept(store: Store) -> None:
    ones = [received(store, 1, data=f"bytes {k}".encode()) for k in range(10)]
    start = threading.Barrier(10)

    def send(one: Instance) -> list[Recorded]:
        start.wait()
        return store.reception.record([one])

    with ThreadPoolExecutor(10) as pool:
        told = list(chain(*pool.map(send, ones)))
    assert sorted(kinds(told)) == ["conflict_kept_first"] * 9 + ["new"]
    assert all(store.reception.known_path(one.path) for one in ones)
    assert len(store.events.list(name="instance.conflict")) == 9


def test_receivers_that_interleave_series_do_not_deadlock(store: Store, open_store: Sessions) -> None:
    stores = [store, open_store(), open_store()]
    start = threading.Barrier(6)

    def send(k: int) -> None:
        start.wait()
        for round_ in range(8):
            batch = [received(store, round_ * 10 + k, series=s) for s in range(1, 6)]
            stores[k % 3].reception.record(batch if k % 2 else batch[::-1])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(send, range(6)))
    assert [s.count for s in store.series.open_series()] == [48] * 5


def test_closing_and_receiving_at_once_lose_nothing(store: Store) -> None:
    """Every instance ends up in exactly one generation, and a count that was judged holds."""
    n = 60
    ones = [received(store, k) for k in range(n)]
    done = threading.Event()

    def receive() -> None:
        for one in ones:
            store.reception.record([one])
        done.set()

    def close() -> None:
        while not done.is_set():
            for series in store.series.open_series():
                indexed(store)
                if store.series.close(series.id, "count", NOW, count=series.count):
                    held = store.series.get(series.id)
                    assert held is not None
                    assert len(store.series.instances(series.id)) == held.count == series.count

    with ThreadPoolExecutor(2) as pool:
        for future in (pool.submit(receive), pool.submit(close)):
            future.result()
    generations = store.series.generations(1)
    assert [g.generation for g in generations] == list(range(1, len(generations) + 1))
    held = [i for g in generations for i in store.series.instances(g.id)]
    assert held == ones


def test_recording_again_after_a_commit_of_unknown_outcome_adds_nothing(store: Store) -> None:
    """R50: the commit happens, its answer is lost; then it does not happen at all."""
    batch = [received(store, n) for n in range(3)]
    engine = store.database.engine

    def lost(_: object) -> None:
        raise StoreError("the connection broke in COMMIT")

    event.listen(engine, "commit", lost)  # before the database hears of it
    with pytest.raises(StoreError):
        store.reception.record(batch)
    event.remove(engine, "commit", lost)
    assert store.series.list() == []
    assert kinds(store.reception.record(batch)) == ["new"] * 3
    assert kinds(store.reception.record(batch)) == ["same"] * 3, "as after a commit whose answer was lost"
    assert store.series.open_series()[0].count == 3


def test_an_adopted_instance_joins_its_series(store: Store) -> None:
    store.reception.record([received(store, 1)])
    orphan = received(store, 2, calling_ae="RECOVERED")
    told = store.reception.adopt(orphan)
    assert (told.kind, told.series_id) == ("new", 1)
    assert store.series.instances(1)[1].calling_ae == "CT1"


def test_an_adopted_instance_never_displaces_another(store: Store) -> None:
    first, orphan = received(store, 1), received(store, 1, data=b"older bytes")
    store.reception.record([first])
    assert store.reception.adopt(orphan).kind == "conflict_kept_first"
    assert store.series.instances(1) == [first]


# associations ---------------------------------------------------------------------------------------


def test_associations_are_told_with_how_they_ended(store: Store) -> None:
    one, other = associated(store, "a1"), associated(store, "a2")
    store.reception.record([received(store, 1), received(store, 2, association="a2")])
    store.reception.end_association("a1", AssociationEnd.RELEASED, after(1))
    store.reception.end_association("a1", AssociationEnd.ABORTED, after(2))
    assert store.series.associations(1) == [
        replace(one, end=AssociationEnd.RELEASED, ended_at=after(1)),
        other,
    ]
    assert store.series.open_associations("CT1") == [other]
    assert store.series.open_associations("CT1", "10.0.0.9") == []
    assert store.series.studies_of("a2") == {"1.2.3"}
    assert store.series.studies_of("a9") == frozenset()


def test_an_instance_may_come_before_its_association_is_noted(store: Store) -> None:
    store.reception.record([received(store, 1)])
    (carried,) = store.series.carried(1)
    assert carried.association is None
    assert store.series.associations(1) == []
    one = associated(store)
    assert store.series.associations(1) == [one]


def test_a_receiver_loses_only_its_own_associations(store: Store) -> None:
    associated(store, "a1")
    store.reception.note_associations([replace(associated(store, "a0"), id="a2")], receiver="r2")
    store.reception.end_association("a0", AssociationEnd.RELEASED, NOW)
    assert store.reception.lose_open_associations(after(1), receiver="r1") == 1
    assert [a.id for a in store.series.open_associations("CT1")] == ["a2"]
    store.reception.record([received(store, 1)])
    assert store.series.associations(1)[0].end is AssociationEnd.LOST


def test_noting_associations_twice_changes_nothing(store: Store) -> None:
    one = associated(store)
    told = [("a1", AssociationEnd.RELEASED, after(1))]
    for _ in range(2):
        store.reception.note_associations([one], told, receiver="r1")
    store.reception.record([received(store, 1)])
    assert store.series.associations(1) == [replace(one, end=AssociationEnd.RELEASED, ended_at=after(1))]


# against a model ------------------------------------------------------------------------------------

Step = tuple[str, int, int, str]
steps = st.lists(
    st.tuples(
        st.sampled_from(["receive", "receive", "receive", "close"]),
        st.integers(0, 3),  # which instance
        st.integers(0, 2),  # which bytes
        st.sampled_from(["keep_first", "replace"]),
    ),
    max_size=14,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(steps=steps, cuts=st.lists(st.integers(1, 3), max_size=8))
def test_any_history_is_what_a_dictionary_would_make_of_it(
    sqlite_store: Store, steps: list[Step], cuts: list[int]
) -> None:
    """In force is what the policy says; every byte that was acknowledged is still there and known."""
    store = sqlite_store
    test_any_history_is_what_a_dictionary_would_make_of_it.n = n = (  # type: ignore[attr-defined]
        getattr(test_any_history_is_what_a_dictionary_would_make_of_it, "n", 100) + 1
    )
    in_force: dict[str, str] = {}
    acknowledged: set[str] = set()
    for k, (what, which, data, policy) in enumerate(steps):
        if what == "close":
            for series in store.series.open_series():
                store.series.close(series.id, "quiet", NOW)
            continue
        one = received(
            store, which, series=n, data=f"{n} {which} {data}".encode(), at=NOW + timedelta(seconds=k)
        )
        batch = [one] * (cuts[k % len(cuts)] if cuts else 1)
        store.reception.record(batch, duplicates=policy)  # type: ignore[arg-type]
        acknowledged.add(one.path)
        if one.sop_instance_uid not in in_force or policy == "replace":
            in_force[one.sop_instance_uid] = one.path
    found = store.series.find(f"1.2.3.{n}")
    if found:
        held = store.series.instances(found[-1].id, all_generations=True)
        assert {i.sop_instance_uid: i.path for i in held} == in_force
        for series in found:
            told = store.series.get(series.id)
            assert told is not None
            assert told.count == len(store.series.instances(series.id))
        assert [s.generation for s in found] == list(range(1, len(found) + 1))
    assert all(store.reception.known_path(p) and store.spool.exists(p) for p in acknowledged)
