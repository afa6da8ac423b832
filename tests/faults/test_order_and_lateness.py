"""R8 and R9: the order of arrival changes nothing, and what comes late is never dropped nor silently mixed."""

from __future__ import annotations

import math
import random
import shutil
from itertools import count as numbers
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.enhance.workshop import Workshop
from node.model import JobState
from tests.faults.ledger import record
from tests.faults.scale import SEED, count
from tests.faults.scanners import encoded, slice_uid
from tests.faults.shop import Shop, fresh

pytestmark = pytest.mark.timeout(600)

N_SERIES, N = 3, 6


@pytest.fixture(scope="module")
def bench(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(sqlite_template, tmp_path_factory.mktemp("order"))


class Bench:
    """Makes stores, and keeps one warm workshop for all of them."""

    def __init__(self, template: Path, folder: Path) -> None:
        self.template, self.folder = template, folder
        self.workshop: Workshop | None = None
        self.number = numbers()

    def shop(self, **how: str) -> Shop:
        store = fresh(self.template, self.folder / str(next(self.number)))
        shop = Shop(store, workshop=self.workshop, **how)
        self.workshop = shop.workshop
        return shop

    def done(self, shop: Shop) -> None:
        shop.store.close()
        shutil.rmtree(shop.store.spool.root.parent)


# --- R8 ---------------------------------------------------------------------------------------------------

Arrivals = list[tuple[int, int]]
"""Slices (series, k) in the order of their arrival."""


def derived_pixels(bench: Bench, order: Arrivals, lanes: list[int]) -> dict[str, tuple[str, str]]:
    """What is derived from slices that arrive in this order over these associations."""
    shop = bench.shop()
    try:
        for lane in sorted(set(lanes)):
            shop.open(f"a{lane}")
        for (number, k), lane in zip(order, lanes, strict=True):
            shop.arrive(encoded(number, k, n=N), f"a{lane}")
            shop.after(0.05)
        shop.gather(1)
        for lane in sorted(set(lanes)):
            shop.end(f"a{lane}")
        shop.after(40)
        shop.gather()
        assert shop.work() == N_SERIES
        return {source: made for one in shop.derived() for source, made in shop.pixels(one).items()}
    finally:
        bench.done(shop)


def test_the_order_of_arrival_changes_nothing(bench: Bench) -> None:
    n = count(10, 200)
    ordered = [(s, k) for s in range(N_SERIES) for k in range(N)]
    told = derived_pixels(bench, ordered, [0] * len(ordered))
    assert len(told) == N_SERIES * N
    wrong: list[str] = []
    tried = numbers()

    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.permutations(ordered), st.lists(st.integers(0, 3), min_size=len(ordered), max_size=len(ordered))
    )
    def arrives(order: Arrivals, lanes: list[int]) -> None:
        next(tried)
        if derived_pixels(bench, order, lanes) != told:
            wrong.append(f"{order} over {lanes}")

    arrives()
    n_tried = next(tried)
    record(
        "R8",
        load=f"{N_SERIES} series of {N} slices interleaved in any order over 1 to 4 associations (hypothesis); an "
        "engine that looks at neighbours",
        count=n_tried,
        result=f"{n_tried - len(wrong)} of {n_tried}: derived UIDs and pixels equal",
        ok=not wrong,
    )
    assert wrong == []
    assert n_tried >= n


# --- R9 ---------------------------------------------------------------------------------------------------

MOMENTS = ("before", "during", "after")


class Late:
    """A series of which some slices come late."""

    def __init__(self, shop: Shop, chance: random.Random, moment: str) -> None:
        self.shop, self.moment = shop, moment
        self.late_s = math.exp(chance.uniform(0, math.log(86400)))
        self.n_late = chance.randint(1, 3)
        ks = list(range(N))
        chance.shuffle(ks)
        self.late, self.early = ks[: self.n_late], ks[self.n_late :]
        self.came = False

    def send(self, ks: list[int], association: str) -> None:
        self.shop.open(association)
        for k in ks:
            self.shop.arrive(encoded(0, k, n=N), association)
            self.shop.after(0.05)
        self.shop.end(association)

    def come(self, *_told: object) -> None:
        if not self.came:
            self.came = True
            self.send(self.late, "late")

    def run(self) -> None:
        shop = self.shop
        self.send(self.early, "early")
        shop.after(40)
        shop.gather()
        if self.moment == "before":
            shop.after(self.late_s)
            self.come()
        shop.work(self.come if self.moment == "during" else lambda *_: None)
        if self.moment == "after":
            shop.after(self.late_s)
            self.come()
        shop.after(40)
        shop.gather()
        shop.work()

    def wrong(self, before: dict[str, tuple[str, str]] | None, late: str) -> str:
        """What is not as it should be; empty if all is."""
        made = self.shop.derived()
        pixels = [self.shop.pixels(one) for one in made]
        everything = {slice_uid(0, k) for k in range(N)}
        first = {slice_uid(0, k) for k in self.early}
        if not all(j.state is JobState.DONE for j in self.shop.store.jobs.list(limit=100)):
            return "a job is not done"
        if late == "append":
            if len({one.series_uid for one in made}) != 1 or sum(map(len, pixels)) != N:
                return f"{[len(p) for p in pixels]} derived instances of {len(made)} parts"
            if pixels[0].keys() != first or set().union(*pixels) != everything:
                return "an instance is in the wrong part, or in none"
        else:
            if [p.keys() for p in pixels] != [first, everything]:
                return f"{[len(p) for p in pixels]} derived instances of {len(made)} revisions"
            if made[0].series_uid == made[1].series_uid:
                return "the revision has the UID of what was sent before"
            if {u for u, _ in pixels[0].values()} & {u for u, _ in pixels[1].values()}:
                return "the revision shares instances with what was sent before"
        if before is not None and pixels[0] != before:
            return "what was made before has changed"
        if not self.shop.store.events.list(name="series.late"):
            return "nobody was told"
        return ""


def test_what_comes_late_is_never_dropped_nor_silently_mixed(bench: Bench) -> None:
    n, chance, wrong = count(12, 60), random.Random(SEED), []
    for number in range(n):
        late, moment = ("append", "revise")[number % 2], MOMENTS[number // 2 % 3]
        shop = bench.shop(late=late)
        one = Late(shop, chance, moment)
        one.run()
        if told := one.wrong(None, late):
            wrong.append(f"{late}, {moment}, {one.n_late} late by {one.late_s:.0f} s: {told}")
        bench.done(shop)
    record(
        "R9",
        load=f"1 to 3 of {N} slices late by 1 s to 24 h (clock of the test), before, during and after the engine ran; "
        "late: append and late: revise in turn",
        count=n,
        result=f"{n - len(wrong)} of {n}: complete, what was made before untouched, an event",
        ok=not wrong,
    )
    assert wrong == []
