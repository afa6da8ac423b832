"""R1: whatever the crash point, what was answered 0000H comes out once, and nothing else does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.crash import READY_S, Point, Tally, every_point, run
from tests.faults.ledger import record
from tests.faults.scale import SEED, count
from tests.faults.tracing import needs_tracing
from tests.peers import needs

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]

SHARE = {"receive": count(24, 14), "gather": count(5, 4), "enhance": count(2, 3), "deliver": 4}
"""Lives of each role in one ward. A job that killed its worker too often would be held for a person. With the counts
of ``make test`` three wards do."""


def plan(n_wards: int) -> list[list[Point]]:
    """Crash points for so many wards: every role's, in an order of chance, with one death of all roles at once."""
    chance = random.Random(SEED)
    found = {role: every_point(role) for role in SHARE}
    for points in found.values():
        chance.shuffle(points)
    wards = []
    for number in range(n_wards):
        lives: list[Point] = []
        for role, share in SHARE.items():
            some = [found[role][(number * share + k) % len(found[role])] for k in range(share)]
            # An early death leaves work for the next life.
            lives += some if role == "receive" else sorted(some, key=lambda p: p.n)
        role = chance.choice(list(SHARE))
        at = Point(role=role, where="store.committed", n=chance.randint(2, 30), together=True)
        lives.insert(SHARE["receive"], at)
        wards.append(lives)
    return wards


LOAD = (
    "SIGKILL at the n-th openat, write, writev, pwrite64, fsync, fdatasync, link, rename, unlink or send of a "
    "thread, and at named places, n = 1..; 3 scanners x series of 20 slices, crash after crash; DCMTK PACS, "
    "which gets originals too in every second node"
)
EVERY = 250
"""Kills after which a long run is put on record as far as it has come."""


def put_on_record(tally: Tally) -> None:
    kills = ", ".join(f"{role} {k}" for role, k in sorted(tally.killed.items()))
    record(
        "R1",
        load=LOAD,
        count=tally.n_killed,
        result=f"{tally.lost} lost, {tally.extra} extra, {tally.rows_without_file} rows without file over "
        f"{tally.acknowledged:,} acknowledged instances of {tally.series} series, {tally.originals:,} of them "
        f"forwarded, as they were sent; ready after {tally.slowest_ready_s:.1f} s at most; killed: {kills}",
        ok=not tally.faults,
        lost=tally.lost,
        extra=tally.extra,
    )


def test_whatever_the_crash_point_all_that_was_acknowledged_comes_out_once(
    sqlite_template: Path, tmp_path: Path
) -> None:
    needs("storescp")
    needs_tracing()
    n, told = count(100, 2000), [EVERY]

    def tell(tally: Tally) -> None:
        if tally.n_killed >= told[0]:
            told[0] += EVERY
            put_on_record(tally)

    tally = run(tmp_path, sqlite_template, plan(n), enough=n, tell=tell)
    put_on_record(tally)
    assert tally.faults == []
    assert tally.n_killed >= n
    assert tally.slowest_ready_s <= READY_S
