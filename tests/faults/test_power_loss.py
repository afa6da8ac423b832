"""R2: what was acknowledged survives a power cut at any moment, on a disk that forgets what was not synced."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from node.store import Store
from tests.faults.crash import CONFIG, Tally, Ward
from tests.faults.ledger import record
from tests.faults.nursery import Child, Nursery
from tests.faults.powerloss import CannotMount, PowerlessDisk
from tests.faults.scale import SEED, count
from tests.faults.scanners import N_SLICES, Log, Scanner, at_work
from tests.faults.tracing import needs_tracing
from tests.peers import StoreScp, free_port, listens, needs, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

ROLES_TOGETHER = 5
"""Every so many cuts all roles are at work, and all of it is delivered afterwards."""


_BESIDE = "((names|folder|root) )*"
IN_ORDER = rf"((row|names|folder|root) )*bytes {_BESIDE}name {_BESIDE}row ((row|names|folder|root) )*"
"""What precedes an answer: the bytes of an instance whose first name was durable, its final name, the record.

What lies around it are openings of associations, names made ahead, and final names that are made durable later.
"""


@dataclass(slots=True)
class Found:
    """What the disks held after the cuts."""

    cuts: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Case:
    """One life on a disk, cut, and what is left of it."""

    def __init__(
        self, folder: Path, template: Path, pacs: StoreScp, nursery: Nursery, cut: tuple[str, int, str]
    ) -> None:
        folder.mkdir()
        self.folder, self.template, self.pacs, self.nursery, self.cut = folder, template, pacs, nursery, cut
        self.log = Log()
        self.scanners = [Scanner(self.log, f"CT{n}") for n in range(1, 4)]
        self.after = folder / "after"

    def live(self, *, together: bool) -> None:
        with PowerlessDisk(self.folder / "mount", self.after) as disk:
            ward = disk.mount / "ward"
            ward.mkdir()
            shutil.copyfile(self.template, ward / "luminode.db")
            port = free_port()
            (ward / "config.yaml").write_text(
                CONFIG.format(port=port, folder=ward, pacs=self.pacs.port, forward="false")
            )
            disk.sync()
            roles = ["receive", *(["gather", "enhance", "deliver"] if together else [])]
            children = [self.nursery.bear(role, ward) for role in roles]
            try:
                wait_until(lambda: listens(port), 60, "the receiver listens")
                disk.arm(*self.cut, [c.pid for c in children])
                self._scan(disk, port, children)
            finally:
                for child in children:
                    child.kill()

    def _scan(self, disk: PowerlessDisk, port: int, children: list[Child]) -> None:
        stop = threading.Event()
        threads = at_work(self.scanners, port, stop, n_new=2)
        try:
            for _ in range(600):
                if disk.is_cut(0.1):
                    return
                if not any(t.is_alive() for t in threads):
                    break
            disk.cut([c.pid for c in children])  # all is acknowledged, and the power goes now
        finally:
            stop.set()
            for thread in threads:
                thread.join(40)

    def look(self, found: Found) -> None:
        """Compare what was acknowledged with what is in the database and the spool, as every start finds it.

        Nothing is healed but the names of what landed (node/store/landing.py), which the sweep of the start gives back.
        """
        ward = self.after / "ward"
        acknowledged = set(self.log.acknowledged)
        found.cuts += 1
        found.acknowledged += len(acknowledged)
        with Store.open(f"sqlite:///{ward}/luminode.db", ward / "spool") as store:
            store.spool.sweep_tmp(datetime.now(UTC))
            held = {
                i.sop_instance_uid: i
                for s in store.series.list(limit=1000)
                for i in store.series.instances(s.id, all_generations=False)
            }
            whole = {u for u, i in held.items() if store.spool.verify(i.path, i.offset, i.sha256)}
            missing = store.reconcile.fsck().missing
        lost = sorted(acknowledged - whole)
        found.lost += lost
        if lost or missing:
            rows = len(acknowledged - held.keys())
            found.faults.append(
                f"{self.cut}: {len(lost)} lost ({rows} without a row), {len(missing)} rows without file"
            )

    def recover(self, found: Found) -> None:
        """All roles start on what is left; in the end the PACS holds what was acknowledged."""
        tally = Tally()
        ward = Ward(self.after / "ward", None, self.pacs, self.nursery, tally, self.log)
        ward.scanners, ward.first = self.scanners, 0
        ward.drain()
        found.faults += [f"{self.cut}: {fault}" for fault in tally.faults]


def test_what_was_acknowledged_survives_a_power_cut_at_any_moment(
    sqlite_template: Path, tmp_path: Path
) -> None:
    needs("storescp")
    try:
        with PowerlessDisk(tmp_path / "try", tmp_path / "tried"):
            pass
    except CannotMount as reason:
        pytest.skip(str(reason))
    n, chance, found = count(20, 240), random.Random(SEED), Found()
    pacs = StoreScp(tmp_path / "pacs", "+xa")
    try:
        with Nursery() as nursery:
            for number in range(n):
                together = number % ROLES_TOGETHER == ROLES_TOGETHER - 1
                what = chance.choice(("sync", "sync", "change"))
                most = (160 if what == "sync" else 600) * (2 if together else 1)
                cut = (what, chance.randint(1, most), chance.choice(("before", "after")))
                case = Case(tmp_path / f"case{number}", sqlite_template, pacs, nursery, cut)
                case.live(together=together)
                case.look(found)
                if together and not found.faults:
                    case.recover(found)
                for path in pacs.folder.iterdir():
                    path.unlink()
                shutil.rmtree(case.folder)
    finally:
        pacs.stop()
    record(
        "R2",
        load="power cut before or after the k-th sync or change, 3 scanners sending, on a disk that forgets what was "
        "not synced (FUSE); the receiver alone, every fifth time all roles, then started again and delivered",
        count=found.cuts,
        result=f"{len(found.lost)} lost of {found.acknowledged:,} acknowledged",
        ok=not found.faults,
        lost=len(found.lost),
    )
    assert found.faults == []
    assert found.acknowledged > 5 * n


def test_every_answer_comes_after_its_syncs_in_their_order(sqlite_template: Path, tmp_path: Path) -> None:
    """What the cuts rest on, seen from outside, where no file system can be mounted too."""
    needs_tracing()
    trace, log = tmp_path / "trace", Log()
    with Nursery() as nursery:
        ward = Ward(tmp_path / "ward", sqlite_template, None, nursery, Tally(), log)
        child = nursery.bear("receive", ward.folder)
        wait_until(lambda: listens(ward.port), 60, "the receiver listens")
        tracer = subprocess.Popen(
            ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", "signal=none",
             "-e", "trace=fdatasync,fsync,link,sendto", "-p", str(child.pid)],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(child.traced, 20, "the tracer is attached")
        (thread, *_) = at_work(ward.scanners[:1], ward.port, threading.Event(), n_new=1)
        thread.join(60)
        child.kill()
        tracer.wait(20)
        ward.store.close()
    assert len(log.acknowledged) == N_SLICES
    steps = [step for line in trace.read_text(errors="replace").splitlines() for step in _steps(line)]
    answers = [a for a in "".join(steps).split("answer ") if "name " in a]
    good = [a for a in answers if re.fullmatch(IN_ORDER, a)]
    record(
        "R2",
        load="order of system calls before each answer (strace): sync of the bytes, the final name, sync of the "
        "database's log, send",
        count=len(answers),
        result=f"{len(good)} of {len(answers)} in order",
        ok=len(good) == N_SLICES,
    )
    assert len(good) == len(answers) == N_SLICES, answers


def _steps(line: str) -> Iterator[str]:
    """What a line of the trace means on the way of an instance."""
    call = line.split(maxsplit=1)[1]
    if "resumed>" in call:
        return
    if call.startswith("sendto("):
        yield "answer "
    elif call.startswith("link("):
        yield "name "
    elif call.startswith(("fsync(", "fdatasync(")) and (path := re.search(r"<([^>]+)>", call)):
        end = path[1].rpartition("ward")[2]
        yield (
            "row "
            if end.startswith("/luminode.db")
            else "bytes "
            if "/landing/" in end
            else "names "
            if end.endswith("/landing")
            else "root "
            if end == "/spool"
            else "folder "
        )
