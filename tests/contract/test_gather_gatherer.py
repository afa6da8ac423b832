"""The gatherer on both databases: what was received is read, judged, routed and queued, once."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from node.app.engines import cards
from node.config.load import LoadedConfig, parse
from node.dicom.stacks import regular
from node.errors import StoreError
from node.gather.gatherer import Gatherer, InForce
from node.model import Action, Association, AssociationEnd, Instance, InstanceHeader, JobState, SeriesState
from node.store import Store
from tests.phantoms import small_ct
from tests.storing import delivered, made

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)

CONFIG = """\
node: {accept_from: [CT1]}
store: {spool: var/spool}
series: {quiet_after: 30s, give_up_after: 1h, settle: 1s}
engines: {ct: {engine: ct-nlm, strength: 0.4}}
destinations:
  pacs: {kind: folder, path: out}
  other: {kind: folder, path: out2, equipment: retain}
rules:
  - {name: chest, when: {Modality: CT, BodyPartExamined: CHEST}, enhance: ct, send_to: [pacs, other]}
  - {name: the rest, when: any, ignore: true}
"""


@pytest.fixture
def loaded() -> LoadedConfig:
    return parse(CONFIG)


@pytest.fixture
def gatherer(store: Store, loaded: LoadedConfig) -> Gatherer:
    return Gatherer(store, lambda: InForce(config=loaded.config, digest=loaded.digest), cards())


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def receive(store: Store, datasets: Sequence[Dataset], association: str, *, begin_s: float = 0) -> None:
    """What the receiver leaves behind: files in the spool, rows in the database."""
    store.reception.open_association(
        Association(
            id=association, calling_ae="CT1", called_ae="LUMINODE", address="10.0.0.1", opened_at=at(begin_s)
        )
    )
    batch = []
    for n, ds in enumerate(datasets):
        data = BytesIO()
        ds.save_as(data, enforce_file_format=True)
        raw = data.getvalue()
        offset = 144 + int.from_bytes(raw[140:144], "little")
        digest = hashlib.sha256(raw[offset:]).hexdigest()
        with store.spool.create() as writer:
            writer.write(raw)
            writer.sync()
            path = writer.publish(ds.SeriesInstanceUID, ds.SOPInstanceUID, digest)
        batch.append(
            Instance(
                sop_class_uid=ds.SOPClassUID, sop_instance_uid=ds.SOPInstanceUID, study_uid=ds.StudyInstanceUID,
                series_uid=ds.SeriesInstanceUID, transfer_syntax_uid=ds.file_meta.TransferSyntaxUID,
                calling_ae="CT1", called_ae="LUMINODE", association=association, path=path, size=len(raw),
                offset=offset, sha256=digest, received_at=at(begin_s + n / 20),
            )
        )  # fmt: skip
    store.reception.record(batch)


def end(store: Store, association: str, how: AssociationEnd, seconds: float) -> None:
    store.reception.end_association(association, how, at(seconds))


def rounds(gatherer: Gatherer, seconds: float) -> None:
    for _ in range(5):
        gatherer.step(at(seconds))


def test_a_released_series_is_closed_routed_and_queued_once(
    store: Store, gatherer: Gatherer, loaded: LoadedConfig
) -> None:
    slices = small_ct(seed=2, n_slices=8)
    random.Random(1).shuffle(slices)
    receive(store, slices, "a")
    rounds(gatherer, 1)
    (series,) = store.series.list()
    assert series.state is SeriesState.OPEN
    end(store, "a", AssociationEnd.RELEASED, 2)
    rounds(gatherer, 4)
    (series,) = store.series.list()
    assert (series.state, series.closed_because) == (SeriesState.ROUTED, "release")
    assert series.config_digest == loaded.digest
    assert series.header is not None
    assert series.header.shape[0] == 8
    decision = store.series.decision(series.id)
    assert decision is not None
    assert decision.action is Action.ENHANCE
    assert {v.keyword for v in decision.verdicts} == {"Modality", "BodyPartExamined"}
    jobs = store.jobs.list()
    # One job for each equipment policy: one UID never stands for two different objects.
    assert sorted(j.destinations for j in jobs) == [("other",), ("pacs",)]
    assert len({j.params["key"] for j in jobs}) == 2
    assert {j.params["strength"] for j in jobs} == {0.4}
    rounds(gatherer, 5000)
    assert len(store.jobs.list()) == 2


def test_an_aborted_association_waits_for_the_quiet_time(store: Store, gatherer: Gatherer) -> None:
    receive(store, small_ct(seed=2, n_slices=8), "a")
    end(store, "a", AssociationEnd.ABORTED, 1)
    rounds(gatherer, 25)
    assert store.series.list()[0].state is SeriesState.OPEN
    rounds(gatherer, 56)
    assert store.series.list()[0].closed_because == "quiet"


def test_a_series_that_cannot_be_judged_holds_up_no_other(
    store: Store, gatherer: Gatherer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(headers: Sequence[InstanceHeader]) -> tuple[bool, str]:
        if len(headers) == 5:
            raise IndexError("tuple index out of range")
        return regular(headers)

    monkeypatch.setattr("node.gather.gatherer.regular", broken)
    receive(store, small_ct(seed=3, n_slices=5), "b")
    receive(store, small_ct(seed=2, n_slices=8), "a")
    end(store, "a", AssociationEnd.RELEASED, 2)
    end(store, "b", AssociationEnd.RELEASED, 2)
    rounds(gatherer, 4)
    rounds(gatherer, 60)
    told = {s.count: (s.state, s.closed_because) for s in store.series.list()}
    assert told == {8: (SeriesState.ROUTED, "release"), 5: (SeriesState.ROUTED, "quiet")}


def test_late_slices_make_a_job_for_themselves(store: Store, gatherer: Gatherer) -> None:
    slices = small_ct(seed=2, n_slices=12)
    receive(store, slices[:8], "a")
    end(store, "a", AssociationEnd.RELEASED, 1)
    rounds(gatherer, 4)
    receive(store, slices[8:], "b", begin_s=600)
    end(store, "b", AssociationEnd.RELEASED, 601)
    rounds(gatherer, 604)
    second = store.series.list()[0]
    assert (second.generation, second.state) == (2, SeriesState.ROUTED)
    jobs = store.jobs.list([JobState.QUEUED])
    assert sorted(j.only_after_generation for j in jobs) == [0, 0, 1, 1]
    assert len({j.params["key"] for j in jobs}) == 2  # the same two derived series


def test_after_a_restart_it_goes_on_where_it_was(
    open_store: Callable[[], Store], loaded: LoadedConfig
) -> None:
    def gather(store: Store) -> Gatherer:
        return Gatherer(store, lambda: InForce(config=loaded.config, digest=loaded.digest), cards())

    first = open_store()
    slices = small_ct(seed=2, n_slices=8)
    receive(first, slices[:5], "a")
    rounds(gather(first), 0.5)
    second = open_store()
    second.reception.lose_open_associations(at(20))
    receive(second, slices[5:], "b", begin_s=21)
    end(second, "b", AssociationEnd.RELEASED, 22)
    again = gather(second)
    rounds(again, 25)
    assert second.series.list()[0].state is SeriesState.OPEN  # its first association was lost
    rounds(again, 56)
    (series,) = second.series.list()
    assert (series.count, series.closed_because) == (8, "quiet")
    assert len(second.jobs.list()) == 2


def test_trouble_that_passes_makes_no_instance_unreadable(
    store: Store, gatherer: Gatherer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import node.gather.gatherer as module

    receive(store, small_ct(seed=2, n_slices=8), "a")
    end(store, "a", AssociationEnd.RELEASED, 1)
    real, refused = module.read_header, iter(range(3))

    def out_of_files(path: Path) -> Any:
        if next(refused, None) is not None:
            raise StoreError("a spooled file cannot be read: Too many open files")
        return real(path)

    monkeypatch.setattr(module, "read_header", out_of_files)
    rounds(gatherer, 4)
    (series,) = store.series.list()
    assert (series.state, series.closed_because) == (SeriesState.ROUTED, "release")
    assert store.series.unreadable(series.id) == 0


def test_a_defect_with_one_series_does_not_keep_the_others_waiting(
    store: Store, gatherer: Gatherer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import node.gather.gatherer as module

    one, other = small_ct(seed=2, n_slices=8), small_ct(seed=3, n_slices=8)
    receive(store, [*one, *other], "a")
    end(store, "a", AssociationEnd.RELEASED, 1)
    real = module.plan

    def defective(series: Any, *rest: Any, **named: Any) -> Any:
        if series.key.series_uid == one[0].SeriesInstanceUID:
            raise ZeroDivisionError
        return real(series, *rest, **named)

    monkeypatch.setattr(module, "plan", defective)
    rounds(gatherer, 4)
    found = {s.key.series_uid: s for s in store.series.list()}
    assert found[other[0].SeriesInstanceUID].state is SeriesState.ROUTED
    rejected = found[one[0].SeriesInstanceUID]
    assert rejected.state is SeriesState.REJECTED
    decision = store.series.decision(rejected.id)
    assert decision is not None
    assert "ZeroDivisionError" in decision.reason


def test_what_no_rule_wants_is_ignored_and_what_must_not_be_is_rejected(
    store: Store, gatherer: Gatherer
) -> None:
    knees, scout = small_ct(seed=2, n_slices=8), small_ct(seed=3, n_slices=8)
    for ds in knees:
        ds.BodyPartExamined = "KNEE"
    for ds in scout:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    receive(store, [*knees, *scout], "a")
    end(store, "a", AssociationEnd.RELEASED, 1)
    rounds(gatherer, 4)
    found = {s.key.series_uid: s for s in store.series.list()}
    assert found[knees[0].SeriesInstanceUID].state is SeriesState.IGNORED
    rejected = found[scout[0].SeriesInstanceUID]
    assert rejected.state is SeriesState.REJECTED
    decision = store.series.decision(rejected.id)
    assert decision is not None
    assert "localizer" in decision.reason.lower()
    assert not store.jobs.list()


def test_a_series_with_an_unreadable_instance_is_refused_and_says_so(
    store: Store, gatherer: Gatherer
) -> None:
    slices = small_ct(seed=2, n_slices=8)
    receive(store, slices, "a")
    (spoilt, *_) = store.series.instances(store.series.list()[0].id)
    path: Path = store.spool.path(spoilt.path)
    path.write_bytes(path.read_bytes()[: spoilt.offset + 40])
    end(store, "a", AssociationEnd.RELEASED, 1)
    rounds(gatherer, 2)
    rounds(gatherer, 60)
    (series,) = store.series.list()
    assert series.state is SeriesState.REJECTED
    assert store.series.unreadable(series.id) == 1
    assert store.events.list(name="instance.unreadable")
    decision = store.series.decision(series.id)
    assert decision is not None
    assert decision.reason == "1 of 8 instances: The header cannot be read."
    assert not store.jobs.list()
    (closed,) = store.events.list(name="series.closed", series_id=series.id)
    assert closed.body["because"] == "quiet"
    assert closed.body["detail"]


def test_a_rule_sees_all_who_sent_a_series(store: Store, gatherer: Gatherer) -> None:
    slices = small_ct(seed=2, n_slices=8)
    for name, calling in (("a", "CT1"), ("b", "PACS")):
        store.reception.open_association(
            Association(
                id=name, calling_ae=calling, called_ae="LUMINODE", address="10.0.0.1", opened_at=at(0)
            )
        )
    receive(store, slices[:4], "a")
    receive(store, slices[4:], "b", begin_s=1)
    end(store, "a", AssociationEnd.RELEASED, 1)
    rounds(gatherer, 5)
    assert store.series.list()[0].state is SeriesState.OPEN, "the other sender is still at it"
    end(store, "b", AssociationEnd.RELEASED, 6)
    rounds(gatherer, 9)
    (series,) = store.series.list()
    assert (series.count, series.closed_because) == (8, "release")
    assert store.series.senders(series.id) == [("CT1", "LUMINODE"), ("PACS", "LUMINODE")]


def test_an_open_association_that_brings_another_series_keeps_the_first_one_open(
    store: Store, gatherer: Gatherer
) -> None:
    one, other = small_ct(seed=2, n_slices=8), small_ct(seed=3, n_slices=8)
    receive(store, one[:5], "a")
    rounds(gatherer, 1)
    receive(store, other, "a", begin_s=28)  # interleaved: the sender is still at work
    rounds(gatherer, 30)
    rounds(gatherer, 40)
    assert {s.state for s in store.series.list()} == {SeriesState.OPEN}
    rounds(gatherer, 60)  # it fell silent: 30 s after the last of anything
    assert {s.closed_because for s in store.series.list()} == {"quiet"}


def test_work_may_begin_on_what_the_rules_would_enhance(
    store: Store, gatherer: Gatherer, loaded: LoadedConfig
) -> None:
    """An outlook from the fourth slice on, with what the job will ask; gone when the series is routed."""
    slices = small_ct(seed=2, n_slices=9)
    receive(store, slices[:3], "a")
    rounds(gatherer, 1)
    assert store.outlooks.list() == []
    receive(store, slices[3:], "a")
    rounds(gatherer, 2)
    (series,) = store.series.list()
    (outlook,) = store.outlooks.list()
    assert (outlook.series_id, outlook.engine, outlook.whole) == (series.id, "ct-nlm", 0)
    end(store, "a", AssociationEnd.RELEASED, 2)
    rounds(gatherer, 2.5)
    assert store.outlooks.list()[0].whole == 9, "it settles"
    rounds(gatherer, 9)
    assert store.outlooks.list() == []
    job = store.jobs.list()[0]
    assert {k: v for k, v in job.params.items() if k not in ("utc_offset_minutes", "output", "key")} == {
        k: v for k, v in outlook.params.items() if k not in ("utc_offset_minutes", "output", "key")
    }


@pytest.mark.parametrize("because", ["the rules ignore it", "it may not begin early"])
def test_there_is_no_outlook_where(store: Store, because: str) -> None:
    text = CONFIG if because.startswith("the rules") else CONFIG.replace("settle: 1s", "begin_early: false")
    loaded = parse(text)
    gatherer = Gatherer(store, lambda: InForce(config=loaded.config, digest=loaded.digest), cards())
    slices = small_ct(seed=2, n_slices=6)
    if because.startswith("the rules"):
        for ds in slices:
            ds.BodyPartExamined = "FOOT"
    receive(store, slices, "a")
    rounds(gatherer, 1)
    assert len(store.series.list()) == 1
    assert store.outlooks.list() == []


def test_an_outlook_follows_the_configuration(store: Store) -> None:
    now = [parse(CONFIG)]
    gatherer = Gatherer(store, lambda: InForce(config=now[0].config, digest=now[0].digest), cards())
    receive(store, small_ct(seed=2, n_slices=6), "a")
    rounds(gatherer, 1)
    assert store.outlooks.list()[0].params["strength"] == 0.4
    now[0] = parse(CONFIG.replace("0.4", "0.9"))
    rounds(gatherer, 2)
    assert store.outlooks.list()[0].params["strength"] == 0.9
    now[0] = parse(CONFIG.replace("CHEST", "FOOT"))
    rounds(gatherer, 3)
    assert store.outlooks.list() == []


@pytest.mark.parametrize("gone", [False, True])
def test_what_comes_again_after_retention_becomes_no_part_of_what_was_sent(
    store: Store, gatherer: Gatherer, gone: bool
) -> None:
    """Of the derived series nothing is left here: the same UIDs would get pixels that were made of fewer slices."""
    slices = small_ct(seed=2, n_slices=8)
    receive(store, slices, "a")
    end(store, "a", AssociationEnd.RELEASED, 2)
    rounds(gatherer, 4)
    while (job := store.jobs.claim("w", 60, at(5))) is not None:
        store.jobs.finish(job.id, "w", job.attempt, made(store, job), {}, at(6))
    while (delivery := store.deliveries.claim("d", 60, at(7))) is not None:
        outcomes = delivered(store, delivery, "d")
        store.deliveries.finish(delivery.id, "d", delivery.attempt, at(8), {}, outcomes=outcomes)
    purged = store.retention.purge(received_before=at(900), derived_before=at(900 if gone else 0), at=at(900))
    assert (purged.n_series, purged.n_derived) == (1, 2 if gone else 0)
    receive(store, slices[2:6], "b", begin_s=1000)
    end(store, "b", AssociationEnd.RELEASED, 1002)
    rounds(gatherer, 1060)
    again = [job for job in store.jobs.list() if job.state is JobState.QUEUED]
    assert [job.revision for job in again] == [2 if gone else 1] * 2
