"""Working ahead: what was done while a series came changes no bit of it, and whatever fails costs nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from engines.base import Engine, Survey
from engines.catalog import Catalog
from engines.errors import DeviceLost, OutOfMemory, OutputImplausible
from node.dicom.stacks import stacks
from node.enhance.ahead import MOST_SERIES, TRIES, Ahead
from node.enhance.chain import STEADY
from node.enhance.guardian import DEVICE, LOST, SERIES, SIZE
from node.enhance.memo import keys
from node.enhance.pace import Pace
from node.enhance.work import do
from node.enhance.worker import _work_ahead, work_off
from node.enhance.workshop import Proven, Workshop
from node.errors import SeriesError, StoreError
from node.model import Job, JobState
from node.store import Store
from tests.enhancing import (
    NOW,
    Watched,
    asked,
    expect,
    files,
    flip,
    headers_of,
    queue,
    receive,
    series,
    take_in,
)

CATALOG = Catalog.default()
OWNER = "host/boot/1/1/w"


Fresh = Callable[[], Store]


class Shop(Workshop):
    """A workshop with one engine, proven once."""

    def __init__(self, store: Store, engine: Engine) -> None:
        super().__init__(store=store, threads=1, catalog=CATALOG)
        self.one = Proven(engine=engine, device="cpu", pace=Pace(0.01))

    def proven(self, name: str, runtime: str, *, reference: bool = False) -> Proven:
        return self.one

    def holds(self, proven: Proven, name: str, runtime: str) -> bool:
        return proven is self.one


@pytest.fixture(scope="module")
def tv() -> Engine:
    return CATALOG.load("ct-tv", threads=1)


@pytest.fixture(scope="module")
def cnn() -> Engine:
    return CATALOG.load("ct-cnn", threads=1)


class Silent:
    """Gives no sign of life."""

    def looks(self, series_id: int) -> None: ...

    def loads(self) -> None: ...

    def works(self, proven: Proven, n_pixels: int) -> None: ...


SILENT = Silent()


def all_of_it(ahead: Ahead) -> None:
    while ahead.step(SILENT):
        pass


def looked(ahead: Ahead) -> None:
    """Do all there is to do, whenever it was last looked."""
    for session in ahead._sessions.values():
        session.look_took = 0.0
    all_of_it(ahead)


def derived(store: Store, shop: Shop, series_id: int, ahead: Ahead | None) -> dict[str, bytes]:
    """Close, route and do a series: the derived file of each source."""
    (job_id,) = queue(store, series_id, shop.one.engine.card)
    job = store.jobs.claim(OWNER, 30, datetime.now(UTC))
    assert job is not None
    do(shop, job, OWNER, lambda _step, _share: None, ahead=ahead)
    made = store.deliveries.derived_of_job(job_id)
    assert made is not None
    return {one.source_sop_instance_uid: store.spool.path(one.path).read_bytes() for one in made.instances}


def closed(store: Store, series_id: int) -> int:
    assert store.series.close(series_id, "count", NOW)
    return series_id


def streamed(
    store: Store, shop: Shop, parts: Sequence[Sequence[Dataset]], *, whole: bool = False
) -> tuple[dict[str, bytes], int]:
    """Take a series in part by part, working ahead in between; the derived files, and how many were made before.

    ``whole``: it looks complete after each part.
    """
    ahead = Ahead(shop, OWNER)
    try:
        series_id = 0
        for n, part in enumerate(parts):
            series_id = take_in(store, part, f"a{n}")
            expect(store, series_id, shop.one.engine.card)
            if whole:
                other = store.series.get(series_id)
                assert other is not None
                store.outlooks.whole(series_id, other.count)
            looked(ahead)
        n_before = sum(len(s.memo) for s in ahead._sessions.values())
        return derived(store, shop, closed(store, series_id), ahead), n_before
    finally:
        ahead.close()


@pytest.fixture
def fresh(sqlite_template: Path) -> Iterator[Fresh]:
    """Makes empty stores."""
    opened: list[Store] = []
    folders: list[str] = []

    def make() -> Store:
        folder = Path(tempfile.mkdtemp())
        folders.append(str(folder))
        shutil.copy(sqlite_template, folder / "luminode.db")
        opened.append(Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool"))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
    for name in folders:
        shutil.rmtree(name)


def cut(slices: Sequence[Dataset], at: Sequence[int]) -> list[Sequence[Dataset]]:
    ends = sorted({min(a, len(slices)) for a in at} | {len(slices)})
    return [slices[a:b] for a, b in zip([0, *ends], ends, strict=False) if b > a]


# the law ------------------------------------------------------------------------------------------


def thick(modality: str, n: int, thickness: str) -> list[Dataset]:
    """Slices 1 mm apart whose thickness explains larger gaps as well: every second one looks like a series."""
    slices = series(modality, n)
    for ds in slices:
        ds.SliceThickness = thickness
    return slices


ENGINES = {name: CATALOG.load(name, threads=1) for name in ("ct-tv", "ct-cnn", "mr-cnn")}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(ENGINES)),
    thickness=st.sampled_from(["1", "2.5", "3.5"]),
    order=st.permutations(range(10)) | st.sampled_from([[*range(0, 10, 2), *range(1, 10, 2)]]),
    at=st.lists(st.integers(1, 10), max_size=4),
    whole=st.booleans(),
)
def test_whatever_the_order_of_arrival_the_bytes_are_those_of_the_whole(
    fresh: Fresh, name: str, thickness: str, order: list[int], at: list[int], whole: bool
) -> None:
    engine = ENGINES[name]
    slices = thick(name[:2].upper(), 10, thickness)
    one, other = fresh(), fresh()
    wanted = derived(one, Shop(one, engine), receive(one, slices), None)
    got, _ = streamed(other, Shop(other, engine), cut([slices[i] for i in order], at), whole=whole)
    assert got == wanted


@pytest.mark.parametrize("name", sorted(ENGINES))
@pytest.mark.parametrize("every", [2, 3])
def test_what_was_made_of_other_neighbours_is_made_again(fresh: Fresh, name: str, every: int) -> None:
    """Every second or third slice first, thick enough to look like a series of its own, complete each time."""
    slices = thick(name[:2].upper(), 16, "3.5")
    order = [i for first in range(every) for i in range(first, 16, every)]
    one, other = fresh(), fresh()
    wanted = derived(one, Shop(one, ENGINES[name]), receive(one, slices), None)
    watched = Watched(ENGINES[name])
    parts = cut([slices[i] for i in order], [4, 8, 12])
    got, _ = streamed(other, Shop(other, watched), parts, whole=True)
    assert got == wanted
    assert watched.n("enhance") > 16, "some were made too early"
    assert watched.n("survey") == 16


def test_each_input_alone_changes_the_key(tmp_path: Path) -> None:
    stack = stacks(headers_of(files(tmp_path / "in", series("CT", 6))))[0]
    n = len(stack)
    told = {"sigma": 10.0, "high": 300.0, "share": 1.0, "frequency": 0.3}
    found = Survey(**{key: np.full(n, value, np.float32) for key, value in told.items()})
    card = CATALOG.card("ct-cnn")
    base = keys(card, stack, found, "HU")
    assert len(set(base)) == n
    gap = replace(stack, contiguous=tuple(i != 1 for i in range(n)))
    spaced = replace(stack, spacing_mm=(1.0, 0.5, 0.9))
    louder = replace(found, sigma=found.sigma + np.float32(1e-5))
    assert keys(card, gap, found, "HU")[1] != base[1]
    assert keys(card, gap, found, "HU")[2] != base[2]
    assert keys(card, gap, found, "HU")[4:] == base[4:]
    assert not set(keys(card, spaced, found, "HU")) & set(base)
    assert not set(keys(card, stack, louder, "HU")) & set(base)
    brighter = replace(found, high=found.high * np.float32(1.001))
    mr = CATALOG.card("mr-cnn")
    assert not set(keys(mr, stack, found, "arbitrary")) & set(keys(mr, stack, brighter, "arbitrary"))


@pytest.mark.parametrize("down", [False, True], ids=["ascending", "descending"])
def test_of_a_series_in_order_the_job_makes_the_ends_alone(fresh: Fresh, tv: Engine, down: bool) -> None:
    slices = series("CT", 12)[:: -1 if down else 1]
    one, other = fresh(), fresh()
    whole = derived(one, Shop(one, tv), receive(one, slices), None)
    watched = Watched(tv)
    shop = Shop(other, watched)
    ahead = Ahead(shop, OWNER)
    for n, part in enumerate(cut(slices, [5, 8])):
        series_id = take_in(other, part, f"a{n}")
        expect(other, series_id, tv.card)
        looked(ahead)
    assert watched.n("enhance") == watched.n("survey") - 2 * STEADY == 12 - 2 * STEADY
    watched.seen.clear()
    assert derived(other, shop, closed(other, series_id), ahead) == whole
    assert (watched.n("enhance"), watched.n("survey")) == (2 * STEADY, 0)
    record, plain = (
        next(r for r in store.provenance.records(slices[0].SeriesInstanceUID) if r.kind == "series.derived")
        for store in (other, one)
    )
    assert record.body["notes"] == plain.body["notes"]
    assert record.body["slices"] == plain.body["slices"] == 12
    for name in ("largest_change", "mean_change"):
        assert record.body["figures"][name] == pytest.approx(plain.body["figures"][name], abs=1e-6)
    ahead.close()
    assert not list((other.spool.root / "scratch").iterdir())


def test_mr_is_measured_ahead_and_made_when_its_scale_is_known(fresh: Fresh) -> None:
    engine = CATALOG.load("mr-cnn", threads=1)
    slices = series("MR", 8)
    one, other = fresh(), fresh()
    whole = derived(one, Shop(one, engine), receive(one, slices), None)
    watched = Watched(engine)
    got, n_before = streamed(other, Shop(other, watched), cut(slices, [3, 6]))
    assert (n_before, watched.n("survey"), watched.n("enhance")) == (0, 8, 8)
    assert got == whole


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_series_that_looks_complete_is_finished_while_it_settles(fresh: Fresh, modality: str) -> None:
    engine = CATALOG.load(f"{modality.lower()}-tv", threads=1)
    slices = series(modality, 9)
    one, other = fresh(), fresh()
    whole = derived(one, Shop(one, engine), receive(one, slices), None)
    watched = Watched(engine)
    shop = Shop(other, watched)
    ahead = Ahead(shop, OWNER)
    series_id = take_in(other, slices[:7])
    expect(other, series_id, engine.card)
    other.outlooks.whole(series_id, 7)
    looked(ahead)
    assert watched.n("enhance") == 7
    take_in(other, slices[7:], "b")  # it was not complete
    looked(ahead)
    other.outlooks.whole(series_id, 9)
    looked(ahead)
    watched.seen.clear()
    assert derived(other, shop, closed(other, series_id), ahead) == whole
    assert not watched.seen
    ahead.close()


# what it does not do ------------------------------------------------------------------------------


def test_what_the_job_does_not_ask_for_is_not_used(fresh: Fresh, tv: Engine) -> None:
    one, other = fresh(), fresh()
    slices = series("CT", 10)
    whole = derived(one, Shop(one, tv), receive(one, slices), None)
    watched = Watched(tv)
    shop = Shop(other, watched)
    ahead = Ahead(shop, OWNER)
    series_id = take_in(other, slices)
    expect(other, series_id, tv.card, strength=0.3)
    all_of_it(ahead)
    assert watched.n("enhance") == 6
    watched.seen.clear()
    assert derived(other, shop, closed(other, series_id), ahead) == whole
    assert watched.n("enhance") == 10
    ahead.close()


def test_an_outlook_that_changes_begins_anew(fresh: Fresh, tv: Engine) -> None:
    store = fresh()
    watched = Watched(tv)
    ahead = Ahead(Shop(store, watched), OWNER)
    series_id = take_in(store, series("CT", 8))
    expect(store, series_id, tv.card, strength=0.3)
    all_of_it(ahead)
    expect(store, series_id, tv.card, strength=0.3)
    assert store.outlooks.list()[0].tries == 1, "the same is no change"
    expect(store, series_id, tv.card, strength=0.9)
    watched.seen.clear()
    all_of_it(ahead)
    assert watched.n("enhance") == 4
    store.outlooks.forget(series_id)
    assert not ahead.step(SILENT)
    ahead.close()


def worked_ahead(fresh: Fresh, tv: Engine) -> tuple[Store, Shop, Ahead, int]:
    """A series that was worked on ahead as far as that goes, and its id."""
    store = fresh()
    shop = Shop(store, tv)
    ahead = Ahead(shop, OWNER)
    series_id = take_in(store, series("CT", 8))
    expect(store, series_id, tv.card)
    all_of_it(ahead)
    return store, shop, ahead, series_id


@pytest.fixture
def job_after(fresh: Fresh, tv: Engine) -> Iterator[tuple[Store, Shop, Ahead, Job]]:
    """A series that was worked on ahead, and its job, claimed."""
    store, shop, ahead, series_id = worked_ahead(fresh, tv)
    queue(store, closed(store, series_id), tv.card)
    job = store.jobs.claim(OWNER, 30, datetime.now(UTC))
    assert job is not None
    yield store, shop, ahead, job
    ahead.close()


def test_a_second_attempt_begins_from_nothing(job_after: tuple[Store, Shop, Ahead, Job]) -> None:
    store, shop, ahead, job = job_after
    assert ahead.take(job, shop.one) is not None
    assert store.jobs.fail(job.id, OWNER, 1, "for the test", JobState.QUEUED, NOW, not_before=NOW)
    again = store.jobs.claim(OWNER, 30, datetime.now(UTC))
    assert again is not None
    assert ahead.take(again, shop.one) is None


def test_a_worker_on_another_engine_than_the_job_is_not_believed(
    job_after: tuple[Store, Shop, Ahead, Job],
) -> None:
    """A plan was built, a runtime stepped down from: the same name, other bits."""
    _, _, ahead, job = job_after
    other = Proven(engine=CATALOG.load("ct-tv", threads=1), device="cpu", pace=Pace(0.01))
    assert ahead.take(job, other) is None


# what goes wrong ----------------------------------------------------------------------------------


def test_rotten_bytes_are_left_to_the_job_which_tells(fresh: Fresh, tv: Engine) -> None:
    store = fresh()
    shop = Shop(store, tv)
    ahead = Ahead(shop, OWNER)
    series_id = take_in(store, series("CT", 8))
    (path, offset), *_ = [(i.path, i.offset) for i in store.series.instances(series_id)]
    flip(store.spool.path(path), offset + 4000)
    expect(store, series_id, tv.card)
    all_of_it(ahead)
    assert not ahead.series
    assert not list((store.spool.root / "scratch").iterdir())
    with pytest.raises(SeriesError, match="not those that were received"):
        derived(store, shop, closed(store, series_id), ahead)


def test_an_engine_that_fails_ahead_is_left_alone_after_two_workers(fresh: Fresh, tv: Engine) -> None:
    store = fresh()

    def refuse(step: str, _n: int) -> None:
        if step == "enhance":
            raise OutputImplausible("for the test")

    series_id = take_in(store, series("CT", 8))
    expect(store, series_id, tv.card)
    shop = Shop(store, Watched(tv, refuse))
    for n in range(1, TRIES + 2):  # each in a fresh worker, as after a crash
        shared = [0.0] * SIZE
        ahead = Ahead(shop, OWNER)
        while (step := _work_ahead(shop, ahead, shared)) == (True, True):
            pass
        assert step == (False, True)
        assert shared[DEVICE] != LOST
        assert store.outlooks.list()[0].tries == min(n, TRIES)
        assert not ahead.series
    assert derived(store, Shop(store, tv), closed(store, series_id), ahead)


def test_a_lost_device_ends_the_worker(fresh: Fresh, tv: Engine) -> None:
    store = fresh()

    def break_(_step: str, _n: int) -> None:
        raise DeviceLost("for the test")

    series_id = take_in(store, series("CT", 8))
    expect(store, series_id, tv.card)
    shop, shared = Shop(store, Watched(tv, break_)), [0.0] * SIZE
    ahead = Ahead(shop, OWNER)
    while (step := _work_ahead(shop, ahead, shared)) == (True, True):
        pass
    assert step == (False, False)
    assert shared[DEVICE] == LOST
    assert shared[SERIES] == series_id, "whose it was, for the judgement of the device"


def test_running_out_of_device_memory_ahead_costs_no_worker(fresh: Fresh, tv: Engine) -> None:
    store = fresh()

    def full(step: str, _n: int) -> None:
        if step == "enhance":
            raise OutOfMemory("for the test")

    expect(store, take_in(store, series("CT", 8)), tv.card)
    shop, shared = Shop(store, Watched(tv, full)), [0.0] * SIZE
    ahead = Ahead(shop, OWNER)
    while (step := _work_ahead(shop, ahead, shared)) == (True, True):
        pass
    assert step == (False, True)
    assert shared[SERIES] == 0


def test_a_database_that_is_away_for_a_moment_bars_nothing(
    fresh: Fresh, tv: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fresh()
    expect(store, take_in(store, series("CT", 8)), tv.card)
    ahead = Ahead(Shop(store, tv), OWNER)

    def away(*_: object) -> None:
        raise StoreError("for the test", retryable=True)

    with monkeypatch.context() as patch:
        patch.setattr(store.series, "get", away)
        with pytest.raises(StoreError):
            ahead.step(SILENT)
    all_of_it(ahead)
    assert sum(len(s.memo) for s in ahead._sessions.values()) == 4
    ahead.close()


def test_what_is_the_receivers_is_left_to_it(
    fresh: Fresh, tv: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the reserve nothing is begun, what was done is let go, and the series counts as never begun."""
    store = fresh()
    series_id = take_in(store, series("CT", 8))
    expect(store, series_id, tv.card)
    ahead = Ahead(Shop(store, tv), OWNER, keep_free=10 << 30)
    free = [11 << 30]
    monkeypatch.setattr(type(store.spool), "free_bytes", lambda _spool: free[0])
    all_of_it(ahead)
    assert ahead.series == {series_id}
    free[0] = 9 << 30
    assert not ahead.step(SILENT)
    assert not ahead.series
    assert store.outlooks.list()[0].tries == 0
    all_of_it(ahead)
    assert not any(s.kept.n_bytes for s in ahead._sessions.values())
    free[0] = 11 << 30
    all_of_it(ahead)
    assert sum(len(s.memo) for s in ahead._sessions.values()) == 4
    ahead.close()


def test_a_job_that_needs_room_gets_what_was_done_ahead_of_others(fresh: Fresh, tv: Engine) -> None:
    store = fresh()
    ahead = Ahead(Shop(store, tv), OWNER)
    ids = [take_in(store, series("CT", 5, number=n), f"a{n}") for n in (1, 2, 3)]
    for each in ids:
        expect(store, each, tv.card)
    all_of_it(ahead)
    assert ahead.series == set(ids)
    ahead.make_room(ids[1])
    assert ahead.series == {ids[1]}
    ahead.close()


def test_work_on_an_engine_that_was_replaced_is_begun_anew(fresh: Fresh, tv: Engine) -> None:
    store, shop, ahead, _ = worked_ahead(fresh, tv)
    watched = Watched(tv)
    shop.one = Proven(engine=watched, device="cpu", pace=Pace(0.01))
    assert not ahead.step(SILENT), "let go first"
    all_of_it(ahead)
    assert watched.n("enhance") == 4
    assert store.outlooks.list()[0].tries == 1
    ahead.close()


def test_a_series_that_was_closed_meanwhile_is_not_expected(store: Store, tv: Engine) -> None:
    """On both databases: the row would stay for ever."""
    series_id = take_in(store, series("CT", 4))
    _, jobs, _ = asked(store, series_id, tv.card)
    assert store.series.close(series_id, "count", NOW)
    store.outlooks.expect(series_id, jobs[0].engine, jobs[0].params)
    assert store.outlooks.list() == []


def test_without_room_to_spare_nothing_is_begun(
    fresh: Fresh, tv: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fresh()
    watched = Watched(tv)
    ahead = Ahead(Shop(store, watched), OWNER)
    series_id = take_in(store, series("CT", 8))
    expect(store, series_id, tv.card)
    with monkeypatch.context() as patch:
        patch.setattr(type(store.spool), "free_bytes", lambda _spool: 100 << 20)
        all_of_it(ahead)
        assert not watched.seen
    all_of_it(ahead)
    assert watched.n("enhance") == 4
    ahead.close()


# who does it --------------------------------------------------------------------------------------


def test_one_worker_at_a_time(store: Store, tv: Engine) -> None:
    """On both databases: exactly one begins; one that died is followed by another, twice in all."""
    series_id = take_in(store, series("CT", 4))
    expect(store, series_id, tv.card)
    (outlook,) = store.outlooks.list()
    assert (outlook.series_id, outlook.engine, outlook.owner, outlook.tries) == (series_id, "ct-tv", "", 0)
    assert [store.outlooks.begin(outlook, who) for who in ("a", "b")] == [True, False]
    (outlook,) = store.outlooks.list()
    assert (outlook.owner, outlook.tries) == ("a", 1)
    assert store.series.close(series_id, "count", NOW)
    decision, jobs, digest = asked(store, series_id, tv.card)
    store.series.route(series_id, decision, jobs, digest, NOW)
    assert store.outlooks.list() == []
    store.outlooks.forget(series_id)


def test_many_series_at_once_are_bounded_and_routed_ones_make_room(fresh: Fresh, tv: Engine) -> None:
    store = fresh()
    shop = Shop(store, tv)
    ahead = Ahead(shop, OWNER)
    ids = []
    for n in range(MOST_SERIES + 1):
        ids.append(take_in(store, series("CT", 5, number=n + 1), f"a{n}"))
        expect(store, ids[-1], tv.card)
    all_of_it(ahead)
    assert ahead.series == set(ids[:-1])
    queue(store, closed(store, ids[0]), tv.card)
    all_of_it(ahead)
    assert ahead.series == set(ids[1:])
    job = store.jobs.claim(OWNER, 30, datetime.now(UTC))
    assert job is not None
    assert work_off(store, shop, job, OWNER, [0.0] * SIZE, ahead)
    after = store.jobs.get(job.id)
    assert after is not None
    assert after.state is JobState.DONE
    ahead.close()
