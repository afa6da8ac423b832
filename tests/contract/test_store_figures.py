"""What there is, counted on both databases: every instance and every record once, whoever looks and however often."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from node.model import JobState
from node.store import Store
from node.store.figures import FigureStore, Place, Settled
from tests.storing import NOW, after, closed_series, decision, delivered, new_job, outbox, queued, received

START = Settled(series=0)
FIRST = Place(id=0, hash="")


def test_nothing_is_counted_as_nothing(store: Store) -> None:
    figures = FigureStore(store.database)
    found = figures.look(START, NOW)
    assert (found.instances, found.n_bytes, found.settled) == (0, 0, START)
    assert found.series == {"OPEN": 0, "CLOSED": 0}
    assert (dict(found.jobs), dict(found.deliveries), found.oldest_job) == ({}, {}, None)
    assert figures.history(FIRST, 10) == ((), FIRST)
    assert figures.kept_bytes() == 0


def test_instances_are_counted_once_while_series_settle(store: Store) -> None:
    figures = FigureStore(store.database)
    store.reception.record([received(store, k, series=1) for k in range(1, 4)])  # stays open
    closed_series(store, n=5, series=2)
    sizes = {}
    for at in (NOW, after(3600)):
        found = figures.look(START, at)
        assert found.instances == 8
        assert found.settled.series == 0, "the first series is open: what comes after it waits as well"
        sizes[at] = found.n_bytes
    assert len(set(sizes.values())) == 1
    assert sizes[NOW] == figures.kept_bytes() > 0
    store.series.close(1, "quiet", NOW, count=3)
    assert figures.look(START, after(10)).settled.series == 0, "a transaction may be on its way yet"
    settled = figures.look(START, after(3600)).settled
    assert (settled.series, settled.instances, settled.n_bytes) == (2, 8, sizes[NOW])
    store.reception.record([received(store, k, series=3, at=after(3601)) for k in range(1, 3)])
    again = figures.look(settled, after(3602))
    assert (again.instances, again.settled) == (10, settled)


def test_what_waits_is_told_by_name_and_state_and_age(store: Store) -> None:
    figures = FigureStore(store.database)
    outbox(store, series=1, destinations=("pacs", "archive"))
    queued(store, series=2)
    delivery = store.deliveries.claim("d", 30, NOW)
    assert delivery is not None
    store.deliveries.fail(delivery.id, "d", 1, "refused", NOW)
    found = figures.look(START, NOW)
    assert found.jobs == {("ct-nlm", "QUEUED"): 1}
    assert found.oldest_job is not None
    told = {key: (one.n, one.oldest is not None) for key, one in found.deliveries.items()}
    assert told == {("pacs", False, "FAILED"): (1, False), ("archive", False, "PENDING"): (1, True)}


def test_history_is_read_in_pieces_and_each_record_once(store: Store) -> None:
    figures = FigureStore(store.database)
    outbox(store)
    delivery = store.deliveries.claim("d", 30, NOW)
    assert delivery is not None
    store.deliveries.finish(
        delivery.id, "d", 1, NOW + timedelta(seconds=7), outcomes=delivered(store, delivery, "d")
    )
    series = closed_series(store, series=9)
    store.series.route(series, decision("pacs"), [new_job("other")], "c" * 64, NOW)
    job = store.jobs.claim("w", 30, NOW)
    assert job is not None
    store.jobs.fail(job.id, "w", 1, "it cannot be", JobState.HELD, NOW)

    place, kinds, seen = FIRST, [], []
    while True:
        found, place = figures.history(place, 2)
        if not found:
            break
        kinds += [one.kind for one in found]
        seen += found
    assert kinds == ["series.routed", "series.derived", "series.delivered", "series.routed", "job.held"]
    assert [one.id for one in seen] == [1, 2, 3, 4, 5]
    times = seen[2].times
    assert times is not None
    assert (times.last_received, times.sending) == (NOW, NOW)
    assert times.closed is not None
    assert times.job_started is not None
    assert times.job_finished is not None
    assert seen[4].engine == "ct-nlm"
    assert all(one.times is None for one in seen if one.kind != "series.delivered")
    assert place == figures.begin()[1]


def test_a_place_of_another_database_leads_to_the_end(store: Store) -> None:
    figures = FigureStore(store.database)
    outbox(store)
    end = figures.begin()[1]
    assert end.id == 2
    assert figures.history(replace(end, hash="0" * 64), 10) == ((), end)
    assert figures.history(Place(id=77, hash=end.hash), 10) == ((), end)
