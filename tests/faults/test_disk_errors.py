"""R3: a write, sync, rename or commit that failed is never answered 0000H, and never tried again on the same file."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from node.store import Store
from tests.faults.crash import CALLS, Tally, Ward
from tests.faults.ledger import record
from tests.faults.nursery import Child, Nursery
from tests.faults.scale import SEED, count
from tests.faults.scanners import Log, encoded, slice_uid
from tests.faults.tracing import needs_tracing
from tests.peers import listens, wait_until
from tests.senders import CT, Peer

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

N = 32
MOST = 30
"""Largest n; a thread stores more instances than this."""
OUT_OF_RESOURCES = 0xA700
FAILING = ("openat", "write", "writev", "pwrite64", "fdatasync", "fsync", "rename", "link")
ERRORS = ("EIO", "ENOSPC", "EDQUOT")


@dataclass(slots=True)
class Found:
    """What became of the cases."""

    cases: int = 0
    felt: int = 0
    refused: int = 0
    aborted: int = 0
    faults: list[str] = field(default_factory=list)


@contextmanager
def failing(child: Child, call: str, error: str, n: int, log: Path) -> Iterator[None]:
    """Let the ``n``-th call of a kind fail in every thread of a running receiver."""
    calls = CALLS[call]
    traced = f"{calls},write,writev,fdatasync,fsync"
    tracer = subprocess.Popen(
        ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", "signal=none", "-e", f"trace={traced}",
         "-e", f"inject={calls}:error={error}:when={n}", "-p", str(child.pid)],
        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(child.traced, 20, "the tracer is attached", every_s=0.002)
        yield
    finally:
        tracer.terminate()  # lets the traced go
        tracer.wait(20)


def send(port: int, number: int) -> tuple[dict[str, int], bool]:
    """A series over one association; the statuses, and whether it was cut off."""
    statuses: dict[str, int] = {}
    with Peer(port, timeout=60) as peer:
        try:
            peer.associate(CT)
            for k in range(N):
                uid = slice_uid(number, k)
                statuses[uid] = peer.store(uid, encoded(number, k, n=N), number=k + 1).status
        except (OSError, AssertionError):
            return statuses, True
    return statuses, False


def tried_again(log: Path) -> list[str]:
    """Temporary files on which something was written or synced after a call on them had failed."""
    failed: set[str] = set()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        path = re.search(r"\w+\(\d+<([^>]*/spool/(?:tmp|landing)/[^>]*)>", line)
        if path and path[1] in failed:
            found.append(line)
        elif path and "(INJECTED)" in line:
            failed.add(path[1])
    return found


def unheard(log: Path) -> list[str]:
    """Calls on the way of an instance through the spool that were made to fail.

    What fails to whoever makes names ahead fails to nobody's instance; it never writes any bytes.
    """
    lines = log.read_text(errors="replace").splitlines()
    receiving = {line.split()[0] for line in lines if " writev(" in line}
    return [
        line
        for line in lines
        if "(INJECTED)" in line
        and line.split()[0] in receiving
        and re.search(r"/spool/(tmp/|landing/|[0-9a-f]{2}[>\"/])", line)
    ]


def cases() -> list[tuple[str, str, int]]:
    """(call, error, n): all of them, or some by chance."""
    every = list(itertools.product(FAILING, ERRORS, range(1, MOST + 1)))
    if (n := count(28, len(every))) < len(every):
        chance = random.Random(SEED)
        each = n // len(FAILING)
        some = [chance.sample([c for c in every if c[0] == call], each) for call in FAILING]
        every = [case for part in some for case in part]
    return every


def test_whatever_the_disk_refuses_nobody_is_told_that_it_is_stored(
    sqlite_template: Path, tmp_path: Path
) -> None:
    needs_tracing()
    found, log = Found(), Log()
    with Nursery() as nursery:
        ward = Ward(tmp_path / "ward", sqlite_template, None, nursery, Tally(), log)
        child = nursery.bear("receive", ward.folder)
        try:
            wait_until(lambda: listens(ward.port), 60, "the receiver listens")
            for number, (call, error, n) in enumerate(cases()):
                trace = tmp_path / "trace"
                with failing(child, call, error, n, trace):
                    statuses, aborted = send(ward.port, number)
                if child.dead():
                    found.faults.append(f"{call} {error} {n}: the receiver died")
                    child = nursery.bear("receive", ward.folder)
                    wait_until(lambda: listens(ward.port), 60, "the receiver listens again")
                judge(ward.store, f"{call} {error} {n}", number, statuses, aborted, trace, found)
        finally:
            child.kill()
        ward.store.close()
    record(
        "R3",
        load=f"{', '.join(ERRORS)} at the n-th {', '.join(FAILING)} of every thread, n to {MOST}, by strace; an "
        f"association of {N} instances each time",
        count=found.cases,
        result=f"0000H for nothing that failed; {found.refused} answered A700H, {found.aborted} aborted, "
        f"{found.cases - found.felt} not felt; the next instance stored; no file written or synced after it failed",
        ok=not found.faults,
    )
    assert found.faults == []
    assert found.felt > found.cases // 2


def judge(
    store: Store, case: str, number: int, statuses: dict[str, int], aborted: bool, trace: Path, found: Found
) -> None:
    """Compare what was told with what is held."""
    held = {
        i.sop_instance_uid: i
        for s in store.series.find(slice_uid(number, 0).rpartition(".")[0])
        for i in store.series.instances(s.id, all_generations=False)
    }
    refused = {u for u, status in statuses.items() if status}
    false = [
        u for u, status in statuses.items()
        if status == 0 and not (u in held and store.spool.verify(held[u].path, held[u].offset, held[u].sha256))
    ]  # fmt: skip
    found.cases += 1
    found.felt += bool(refused or aborted)
    found.refused += len(refused)
    found.aborted += aborted
    if false:
        found.faults.append(f"{case}: told that they are stored: {false}")
    if strange := {f"{s:04X}" for s in statuses.values()} - {"0000", f"{OUT_OF_RESOURCES:04X}"}:
        found.faults.append(f"{case}: answered {strange}")
    if not aborted and all(statuses[u] for u in list(statuses)[-2:]):
        found.faults.append(f"{case}: the last instances of the association were still refused")
    if not (refused or aborted) and (passed := unheard(trace)):
        found.faults.append(f"{case}: failed, and nobody was told: {passed[:2]}")
    if again := tried_again(trace):
        found.faults.append(f"{case}: tried again: {again[:2]}")
