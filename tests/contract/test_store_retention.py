"""Retention: what is done and old goes, what is not done never does (R58), whatever crashes when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import event, select

from node.errors import StoreError, TransitionRefused
from node.model import Action, Association, AssociationEnd, Decision, DeliveryState, JobState, SeriesState
from node.store import Purged, Store
from node.store.tables import AssociationRow
from tests.storing import (
    NOW,
    after,
    associated,
    closed_series,
    decision,
    delivered,
    new_job,
    outbox,
    queued,
    received,
)

LATER = NOW + timedelta(days=40)


def purge(store: Store, before: datetime = LATER) -> Purged:
    return store.retention.purge(received_before=before, derived_before=before, at=LATER)


def files(store: Store) -> set[str]:
    return {f.path for f in store.spool.walk()}


def sent(store: Store, *, series: int = 1, destinations: tuple[str, ...] = ("pacs",)) -> int:
    derived_id = outbox(store, series=series, destinations=destinations)
    for _ in destinations:
        delivery = store.deliveries.claim("d", 30, NOW)
        assert delivery is not None
        store.deliveries.finish(
            delivery.id, "d", delivery.attempt, NOW, outcomes=delivered(store, delivery, "d")
        )
    return derived_id


def test_what_is_done_and_old_goes_with_its_files(store: Store) -> None:
    associated(store)
    store.reception.end_association("a1", AssociationEnd.RELEASED, NOW)
    derived_id = sent(store)
    assert purge(store, NOW - timedelta(days=1)) == Purged()
    found = store.retention.purgeable(received_before=LATER, derived_before=LATER)
    assert (found.series, found.derived) == ((1,), (derived_id,))
    assert found.n_bytes > 0
    done = purge(store)
    assert (done.n_series, done.n_derived, done.n_files) == (1, 1, 6)
    assert files(store) == set()
    assert store.series.instances(1) == []
    assert store.series.associations(1) == []
    assert store.series.open_associations("CT1") == []
    assert purge(store) == Purged()
    assert store.reconcile.fsck().ok


def test_the_story_outlives_the_bytes(store: Store) -> None:
    sent(store)
    purge(store)
    for uid in ("1.2.3.1.2", "2.25.1.2"):
        story = store.provenance.story(uid)
        kinds = [r.kind for r in story.records]
        assert kinds[:3] == ["series.routed", "series.derived", "series.delivered"], uid
        digests = {row[2]: row[3] for row in story.records[1].body["instances"]}
        assert len(digests["1.2.3.1.2"]) == 64
    assert "series.purged" in [r.kind for r in store.provenance.records("1.2.3.1")]
    assert "derived.purged" in [r.kind for r in store.provenance.records("2.25.1")]
    assert store.provenance.verify().ok
    assert len(store.series.list()) == len(store.jobs.list()) == len(store.deliveries.list()) == 1


def test_received_and_derived_are_kept_for_times_of_their_own(store: Store) -> None:
    sent(store)
    done = store.retention.purge(received_before=LATER, derived_before=NOW, at=LATER)
    assert (done.n_series, done.n_derived) == (1, 0)
    assert {p.partition("/")[0] for p in files(store)} == {"derived"}
    done = store.retention.purge(received_before=NOW, derived_before=LATER, at=LATER)
    assert (done.n_series, done.n_derived) == (0, 1)


def _held(store: Store) -> None:
    queued(store)
    job = store.jobs.claim("w", 30, NOW)
    assert job is not None
    store.jobs.fail(job.id, "w", 1, "noise", JobState.HELD, NOW)


def _failed_delivery(store: Store) -> None:
    outbox(store, destinations=("a", "b"))
    for _ in range(2):
        delivery = store.deliveries.claim("d", 30, NOW)
        assert delivery is not None
        if delivery.destination == "a":
            store.deliveries.finish(delivery.id, "d", 1, NOW, outcomes=delivered(store, delivery, "d"))
        else:
            store.deliveries.fail(delivery.id, "d", 1, "refused", NOW)


def _running(store: Store) -> None:
    queued(store)
    assert store.jobs.claim("w", 30, NOW) is not None


def _sending(store: Store) -> None:
    outbox(store)
    assert store.deliveries.claim("d", 30, NOW) is not None


def _late(store: Store) -> None:
    sent(store)
    store.reception.record([received(store, 9, at=NOW)])


def _retried(store: Store) -> None:
    sent(store)
    store.jobs.retry(1, NOW)


def _sent_anew(store: Store) -> None:
    sent(store)
    store.deliveries.retry(1, NOW)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda s: s.reception.record([received(s, 1)]),
        closed_series,
        queued,
        _running,
        _held,
        outbox,
        _sending,
        _failed_delivery,
        _late,
        _retried,
        _sent_anew,
    ],
    ids=[
        "open",
        "closed",
        "queued",
        "running",
        "held",
        "pending",
        "sending",
        "failed",
        "late",
        "retried",
        "anew",
    ],
)
def test_what_is_not_done_is_never_removed(store: Store, prepare: Callable[[Store], object]) -> None:
    """R58: however old it is, and with retention 0."""
    prepare(store)
    before = {p for p in files(store) if not p.startswith("derived/")}
    derived = files(store) - before
    done = purge(store, NOW + timedelta(days=4000))
    assert done.n_series == 0
    assert files(store) >= before
    if store.deliveries.list([DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.FAILED]):
        assert files(store) >= derived


def test_what_becomes_undone_in_the_last_moment_stays(store: Store) -> None:
    sent(store)
    engine = store.database.engine
    done: list[int] = []

    def meanwhile(_c: object, _cur: object, statement: str, *_: object) -> None:
        if "purged_at=" in statement and statement.startswith("UPDATE series") and not done:
            done.append(1)  # what the list said is looked at again by this very UPDATE

    event.listen(engine, "before_cursor_execute", meanwhile)
    found = store.retention.purgeable(received_before=LATER, derived_before=LATER)
    assert found.series == (1,)
    store.jobs.retry(1, NOW)
    assert not store.retention._purge_series(1, LATER, LATER)
    assert not store.retention._purge_derived(1, LATER, LATER)
    assert done
    assert len(store.series.instances(1)) == 3


def test_what_a_person_gave_up_or_the_rules_ignored_goes(store: Store) -> None:
    job_id = queued(store, series=1)
    store.jobs.cancel(job_id, NOW)
    ignored = closed_series(store, series=2)
    told = Decision(rule="rest", action=decision().action.IGNORE, reason="rule says ignore")
    store.series.route(ignored, told, [], "c", NOW)
    assert purge(store).n_series == 2


def test_purged_work_cannot_be_retried(store: Store) -> None:
    sent(store)
    purge(store)
    with pytest.raises(TransitionRefused) as raised:
        store.jobs.retry(1, LATER)
    assert "again" in raised.value.hint
    with pytest.raises(TransitionRefused):
        store.series.reopen_for_routing(1, LATER)


def test_a_series_sent_again_after_its_retention_is_new_work(store: Store) -> None:
    sent(store)
    purge(store)
    told = store.reception.record([received(store, n) for n in (1, 2, 3)])
    assert [t.kind for t in told] == ["new"] * 3
    assert [s.generation for s in store.series.find("1.2.3.1")] == [1, 2]
    assert len(store.series.instances(told[0].series_id, all_generations=True)) == 3


def test_conflicts_go_with_their_series(store: Store) -> None:
    series_id = closed_series(store)
    store.reception.record([received(store, 1, data=b"other")])
    store.series.route(series_id, decision(), [], "c", NOW)
    assert purge(store).n_files == 4
    assert files(store) == set()


def test_superseded_bytes_stay_as_long_as_the_series_needs_them(store: Store) -> None:
    series_id = closed_series(store)
    store.reception.record([received(store, 1, data=b"other")], duplicates="replace")
    store.series.route(series_id, decision("pacs"), [new_job()], "c", NOW)
    assert purge(store).n_series == 0
    assert len(files(store)) == 4


# crashes between the two steps ----------------------------------------------------------------------


class _Crash(Exception):
    pass


def test_a_crash_before_the_files_went_leaves_trash_and_no_orphans(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(store)

    def crash() -> Purged:
        raise _Crash

    with monkeypatch.context() as patch, pytest.raises(_Crash):
        patch.setattr(store.retention, "empty_trash", crash)
        purge(store)
    assert len(files(store)) == 6
    assert store.reconcile.fsck().ok, "trash is known: it is not adopted as newly received"
    assert store.retention.empty_trash().n_files == 6
    assert store.retention.empty_trash() == Purged()


def test_a_crash_while_files_went_is_finished_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sent(store)
    real, left = store.spool.remove, [3]

    def remove(path: str) -> None:
        if not left[0]:
            raise _Crash
        left[0] -= 1
        real(path)

    with monkeypatch.context() as patch, pytest.raises(_Crash):
        patch.setattr(store.spool, "remove", remove)
        purge(store)
    assert len(files(store)) == 3
    assert store.retention.empty_trash().n_files == 3
    assert files(store) == set()


def test_a_file_received_again_is_taken_out_of_the_trash(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(store)
    with monkeypatch.context() as patch:
        patch.setattr(store.retention, "empty_trash", lambda: Purged())
        purge(store)
    one = received(store, 1)
    (told,) = store.reception.record([one])
    assert told.kind == "new"
    store.retention.empty_trash()
    assert files(store) == {one.path}
    assert store.reconcile.fsck().ok


def test_a_file_removed_between_publishing_and_recording_is_not_acknowledged(store: Store) -> None:
    sent(store)
    one = received(store, 1)  # published over the old file; now retention is faster than the commit
    purge(store)
    with pytest.raises(StoreError):
        store.reception.record([one])
    assert [t.kind for t in store.reception.record([received(store, 1)])] == ["new"]


def test_receiving_and_removing_at_once_never_leave_a_row_without_its_file(
    store: Store, open_store: Callable[[], Store]
) -> None:
    """The same series again and again, while retention removes it as fast as it can."""
    other = open_store()
    stop = threading.Event()
    ignored = replace(decision(), action=Action.IGNORE, destinations=(), engine="")

    def remove() -> None:
        while not stop.is_set():
            other.retention.purge(received_before=LATER, derived_before=LATER, at=LATER)

    remover = threading.Thread(target=remove)
    remover.start()
    n_acknowledged = 0
    try:
        for turn in range(1000):  # on a busy machine retention is faster most of the time
            if turn >= 25 and n_acknowledged > 3:
                break
            batch = [received(store, n) for n in (1, 2, 3)]
            try:
                told = store.reception.record(batch)
            except StoreError:  # removed between name and row: the sender is told so and sends again
                continue
            if {t.kind for t in told} != {"new"}:
                continue  # of the series before, which is done and may go at any moment
            n_acknowledged += 1
            assert all(store.spool.exists(one.path) for one in batch)
            assert store.series.close(told[0].series_id, "quiet", NOW)
            assert store.series.instances(told[0].series_id) == batch
            store.series.route(told[0].series_id, ignored, [], "c", NOW)
    finally:
        stop.set()
        remover.join()
    assert n_acknowledged > 3
    found = store.reconcile.fsck(verify=True)
    assert (found.missing, found.corrupt) == ((), ())
    purge(store)
    assert store.series.counts().keys() == {SeriesState.IGNORED}


def test_associations_that_carried_nothing_go_when_they_are_old(store: Store) -> None:
    """More than one transaction removes; what is open, young or carried something that is here stays."""
    echoes = [
        Association(
            id=f"e{n}", calling_ae="CT1", called_ae="LUMINODE", address="10.0.0.1",
            opened_at=NOW, ended_at=after(n), end=AssociationEnd.RELEASED,
        )
        for n in range(1, 1203)
    ]  # fmt: skip
    store.reception.note_associations(echoes)
    associated(store, "open")
    associated(store, "carried")
    store.reception.record([received(store, 1, association="carried")])
    store.reception.end_association("carried", AssociationEnd.RELEASED, NOW)
    purge(store, before=after(1201))
    with store.database.read() as connection:
        left = set(connection.execute(select(AssociationRow.id)).scalars())
    assert left == {"e1201", "e1202", "open", "carried"}


def test_only_a_limited_number_goes_at_once(store: Store) -> None:
    for series in (1, 2, 3):
        sent(store, series=series)
    done = store.retention.purge(received_before=LATER, derived_before=LATER, at=LATER, limit=2)
    assert (done.n_series, done.n_derived) == (2, 2)
    assert purge(store).n_series == 1
    assert [s.state.value for s in store.series.list()] == ["ROUTED"] * 3


def test_after_is_not_before(store: Store) -> None:
    sent(store)
    assert purge(store, after(0)).n_series == 0
    assert purge(store, after(0.001)).n_series == 1
