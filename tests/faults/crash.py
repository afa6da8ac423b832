"""The crash-point driver of R1: roles of a node killed at the n-th call of a kind, or at a named place.

A *ward* is a node's folder: configuration, database, spool. Roles live in it (tests/faults/nursery.py) and are killed
at crash points, one life after another, while three scanners send their series to whichever receiver is alive. At the
end all roles live unharmed until nothing is left to do, and what the PACS holds is compared with what the scanners
were told. Crashes pile up: what one life left behind is what the next one finds.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pydicom

from node.app.supervise import ROLES
from node.model import DeliveryState, JobState, SeriesState
from node.store import Store
from tests.faults.nursery import Child, Nursery, ended
from tests.faults.scanners import Log, Scanner, at_work, encoded
from tests.peers import StoreScp, free_port, listens, wait_until
from tests.senders import part10_data_set

CALLS = {
    "openat": "openat",
    "write": "write",
    "writev": "writev",
    "pwrite64": "pwrite64",
    "fsync": "fsync",
    "fdatasync": "fdatasync",
    "rename": "rename,renameat,renameat2",
    "link": "link,linkat",
    "unlink": "unlink,unlinkat",
    "sendto": "sendto,sendmsg",
}
"""Name of a kind of crash point -> the system calls that strace counts for it, per thread."""

REACH: dict[str, dict[str, int]] = {
    "receive": {
        "openat": 90, "write": 20, "writev": 20, "pwrite64": 90, "fsync": 30, "fdatasync": 36, "link": 20,
        "unlink": 60, "sendto": 21, "landing.made": 8, "landing.settled": 8,
        "receive.written": 20, "receive.bytes_durable": 20, "receive.named": 20,
        "receive.names_durable": 20, "receive.recorded": 20, "receive.before_answer": 20,
        "receive.answered": 20, "store.before_commit": 20, "store.committed": 20,
    },
    "gather": {
        "openat": 100, "pwrite64": 80, "fsync": 4, "fdatasync": 14, "rename": 1, "unlink": 1, "sendto": 3,
        "gather.indexed": 2, "gather.closed": 3, "gather.routed": 3, "store.before_commit": 10,
        "store.committed": 10,
    },
    "enhance": {
        "openat": 80, "write": 60, "pwrite64": 80, "fsync": 9, "fdatasync": 20, "rename": 20, "unlink": 3,
        "enhance.claimed": 3, "enhance.derived": 40, "enhance.names_durable": 3, "enhance.finished": 3,
        "store.before_commit": 6, "store.committed": 6,
    },
    "deliver": {
        "openat": 40, "pwrite64": 50, "fsync": 2, "fdatasync": 8, "sendto": 110, "deliver.claimed": 3,
        "deliver.answered": 50, "deliver.all_answered": 3, "deliver.finished": 3, "store.before_commit": 8,
        "store.committed": 8,
    },
}  # fmt: skip
"""Role -> where it can be killed, and the largest n that three series of 20 slices come to: calls of one thread
(counted with strace), passings of a named place (node/failpoints.py) by the process."""

CONFIG = """\
node: {{listen: "127.0.0.1:{port}", accept_from: any}}
store: {{spool: {folder}/spool, database: "sqlite:///{folder}/luminode.db", refuse_below: 50MB}}
series: {{quiet_after: 300ms, settle: 50ms}}
engines: {{ct: {{engine: identity}}}}
destinations:
  pacs:
    kind: dimse
    ae_title: STORESCP
    address: "127.0.0.1:{pacs}"
    retry: {{first: 100ms, at_most: 1s}}
    forward_originals: {forward}
rules: [{{name: ct, when: any, enhance: ct, send_to: [pacs]}}]
log: {{format: json, level: warning}}
"""

READY_S = 10.0
"""A node that starts again must listen within this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a role is killed: at the ``n``-th passing of a failpoint or of a kind of system call."""

    role: str
    where: str
    n: int
    together: bool = False
    """Whether all other roles live beside it and die with it."""

    def __str__(self) -> str:
        return f"{self.role}:{self.where}:{self.n}{'+all' if self.together else ''}"


def every_point(role: str) -> list[Point]:
    """All crash points of a role: every n from 1 on, of every call and every named place."""
    reach = REACH[role].items()
    return [Point(role=role, where=where, n=n) for where, most in reach for n in range(1, most + 1)]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a run of wards came to."""

    killed: dict[str, int] = field(default_factory=dict)
    not_reached: int = 0
    acknowledged: int = 0
    originals: int = 0
    series: int = 0
    lost: int = 0
    extra: int = 0
    rows_without_file: int = 0
    slowest_ready_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def n_killed(self) -> int:
        return sum(self.killed.values())


class Ward:
    """A node's folder with its scanners."""

    def __init__(
        self,
        folder: Path,
        template: Path | None,
        pacs: StoreScp | None,
        nursery: Nursery,
        tally: Tally,
        log: Log,
        *,
        forward: bool = False,
    ) -> None:
        if template is not None:
            folder.mkdir()
            shutil.copy(template, folder / "luminode.db")
        self.folder, self.nursery, self.tally, self.pacs, self.log = folder, nursery, tally, pacs, log
        self.forward = forward
        self.port = free_port()
        text = CONFIG.format(
            port=self.port,
            folder=folder,
            pacs=pacs.port if pacs else free_port(),
            forward=str(forward).lower(),
        )
        (folder / "config.yaml").write_text(text)
        self.scanners = [Scanner(log, f"CT{n}") for n in range(1, 4)]
        self.store = Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool")
        self.first = log._next
        self.lives: list[str] = []

    # lives ------------------------------------------------------------------------------------------
    def crash(self, point: Point) -> bool:
        """Let a role live until it is killed at ``point``; False if it ran out of work before."""
        with self._armed(point) as victim:
            others = [self.nursery.bear(r, self.folder) for r in ROLES if point.together and r != point.role]
            try:
                reached = self._live(victim, together=point.together)
            finally:
                for child in others:
                    child.kill()
        by_itself = ended(self.folder, victim.pid)
        assert not by_itself.exists(), f"{point}: ended by itself; see {self.folder}/node.log"
        self.lives.append(f"{point}{'' if reached else ' (not reached)'}")
        if reached:
            self.tally.killed[point.role] = self.tally.killed.get(point.role, 0) + 1
        else:
            self.tally.not_reached += 1
        return reached

    @contextmanager
    def _armed(self, point: Point) -> Iterator[Child]:
        calls = CALLS.get(point.where)
        if calls is None:
            child = self.nursery.bear(point.role, self.folder, failpoints=f"{point.where}=kill:{point.n}")
            tracer = None
        else:
            child = self.nursery.bear(point.role, self.folder, waits=True)
            tracer = subprocess.Popen(
                ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", "signal=none",
                 "-e", f"inject={calls}:signal=SIGKILL:when={point.n}", "-p", str(child.pid)],
                stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            wait_until(child.traced, 20, "the tracer is attached", every_s=0.002)
            child.send(signal.SIGUSR1)
        try:
            yield child
        finally:
            child.kill()
            if tracer is not None:
                tracer.wait(20)

    def _live(self, victim: Child, *, together: bool) -> bool:
        stop = threading.Event()
        threads: list[threading.Thread] = []
        until = time.monotonic() + 60
        try:
            if together or victim.role == "receive":
                while not listens(self.port):
                    if victim.dead(0.005):
                        return True
                    assert time.monotonic() < until, "it does not get ready"
                threads = at_work(self.scanners, self.port, stop, n_new=1)
            while not victim.dead(0.02):
                idle = all(map(self._idle, ROLES)) if together else self._idle(victim.role)
                if idle and not any(t.is_alive() for t in threads):
                    return victim.dead(0.1)
                assert time.monotonic() < until, "it neither dies nor ends"
            return True
        finally:
            stop.set()
            for thread in threads:
                thread.join(40)

    def _idle(self, role: str) -> bool:
        """Whether a role has nothing left to do."""
        if role == "receive":  # it has as long as its scanners have
            return True
        series = self.store.series.counts()
        if role == "gather":
            return not series.get(SeriesState.OPEN) and not series.get(SeriesState.CLOSED)
        if role == "enhance":
            jobs = self.store.jobs.counts()
            return not jobs.get(JobState.QUEUED) and not jobs.get(JobState.RUNNING)
        waiting = (DeliveryState.PENDING, DeliveryState.SENDING)
        return not any(n for (_, state), n in self.store.deliveries.counts().items() if state in waiting)

    def feed(self, role: str) -> None:
        """Let those before a role do their work unharmed, so that it has some."""
        if role != "receive":
            self.finish_scans()
        for before in {"enhance": ("gather",), "deliver": ("gather", "enhance")}.get(role, ()):
            child = self.nursery.bear(before, self.folder)
            try:
                wait_until(partial(self._idle, before), 90, f"{before} is done", every_s=0.02)
            finally:
                child.kill()

    def finish_scans(self) -> None:
        """An unharmed receiver, until what the scanners have begun is acknowledged."""
        if all(s.done for s in self.scanners):
            return
        child = self.nursery.bear("receive", self.folder)
        try:
            self._ready()
            stop = threading.Event()
            for _ in range(20):
                for thread in at_work(self.scanners, self.port, stop, n_new=0):
                    thread.join(60)
                if all(s.done for s in self.scanners):
                    return
            raise AssertionError(f"scanners are not done: {self.log.refused}")
        finally:
            child.kill()

    def _ready(self) -> None:
        began = time.monotonic()
        wait_until(lambda: listens(self.port), 30, "the receiver listens", every_s=0.005)
        self.tally.slowest_ready_s = max(self.tally.slowest_ready_s, time.monotonic() - began)

    # the end ----------------------------------------------------------------------------------------
    def drain(self) -> None:
        """All roles unharmed until all is delivered; then SIGTERM, and the comparison."""
        self.finish_scans()
        children = [self.nursery.bear(role, self.folder) for role in ROLES]
        try:
            self._ready()
            wait_until(
                lambda: all(map(self._idle, ("gather", "enhance", "deliver"))),
                90,
                "all is delivered",
                every_s=0.05,
            )
            for child in children:
                child.send(signal.SIGTERM)
            slow = [c.role for c in children if not c.dead(20)]
            if slow:
                self._fault(f"did not end on SIGTERM: {slow}")
        finally:
            for child in children:
                child.kill()
        self._compare()
        self.store.close()

    def _compare(self) -> None:
        tally, store = self.tally, self.store
        numbers = range(self.first, self.log._next)
        mine = {u for u in self.log.acknowledged if _number(u) in numbers}
        sources, originals = self._at_the_pacs()
        n_derived: dict[str, int] = {}
        for source in sources.values():
            n_derived[source] = n_derived.get(source, 0) + 1
        lost = mine - n_derived.keys()
        extra = [u for u, source in sources.items() if source not in mine or n_derived[source] > 1]
        found = store.reconcile.fsck(verify=True)
        states = {
            "series": {s for s in store.series.counts() if s not in (SeriesState.ROUTED,)},
            "jobs": {s for s in store.jobs.counts() if s is not JobState.DONE},
            "deliveries": {s for (_, s) in store.deliveries.counts() if s is not DeliveryState.SENT},
        }
        tally.acknowledged += len(mine)
        tally.series += len(numbers)
        tally.lost += len(lost)
        tally.extra += len(extra)
        tally.rows_without_file += len(found.missing)
        if lost or extra:
            self._fault(f"lost {sorted(lost)[:5]}, extra {sorted(extra)[:5]}")
        if originals != (mine if self.forward else set()):
            tally.lost += len(mine - originals) if self.forward else 0
            tally.extra += len(originals - mine) if self.forward else len(originals)
            self._fault(f"originals are not what was acknowledged: {sorted(originals ^ mine)[:5]}")
        tally.originals += len(originals)
        if not found.ok:
            self._fault(str(found))
        if any(states.values()):
            self._fault(f"not at their end: {states}")
        if not store.provenance.verify().ok:
            self._fault("the chain of provenance is broken")

    def _at_the_pacs(self) -> tuple[dict[str, str], set[str]]:
        """Derived SOP Instance UID -> the source it was made from, and the originals that are as they were sent."""
        made, originals = {}, set()
        assert self.pacs is not None
        tags = ["SOPInstanceUID", "SourceImageSequence"]
        for path in self.pacs.folder.iterdir():
            ds = pydicom.dcmread(path, specific_tags=tags, stop_before_pixels=True)
            uid = str(ds.SOPInstanceUID)
            if "SourceImageSequence" in ds:
                (source,) = ds.SourceImageSequence
                made[uid] = str(source.ReferencedSOPInstanceUID)
            elif part10_data_set(path)[3] == self._sent(uid):
                originals.add(uid)
            else:
                self._fault(f"an original has changed: {uid}")
            path.unlink()
        return made, originals

    def _sent(self, uid: str) -> bytes:
        return encoded(_number(uid), int(uid.rpartition(".")[2]) - 1, n=self.scanners[0].n_slices)

    def _fault(self, what: str) -> None:
        told = f"{self.folder.name}: {what}; lives: {', '.join(self.lives)}"
        self.tally.faults.append(told)
        with (self.folder / "faults").open("a", encoding="utf-8") as file:  # the folder stays
            file.write(told + "\n")


def _number(uid: str) -> int:
    return int(uid.split(".")[-2]) - 100_000


def run(
    folder: Path,
    template: Path,
    points: Sequence[Sequence[Point]],
    *,
    enough: int = 0,
    tell: Callable[[Tally], None] = lambda _tally: None,
) -> Tally:
    """A ward for each sequence of points, until ``enough`` kills (all of them if 0); kept only if it has a fault.

    ``tell`` is called after each: a run of an hour should not leave nothing if it is cut short.
    """
    tally, log = Tally(), Log()
    pacs = StoreScp(folder / "pacs", "+xa")
    try:
        with Nursery() as nursery:
            for number, lives in enumerate(points):
                ward = Ward(
                    folder / f"ward{number}", template, pacs, nursery, tally, log, forward=number % 2 == 1
                )
                n_faults = len(tally.faults)
                idle: set[str] = set()
                fed = {"receive"}
                for point in lives:
                    if enough and tally.n_killed >= enough:
                        break
                    if point.role in idle and not point.together:
                        continue
                    if not point.together and point.role not in fed:
                        ward.feed(point.role)
                        fed.add(point.role)
                    if not ward.crash(point) and point.role != "receive":
                        idle.add(point.role)  # what it had to do is done
                ward.drain()
                if len(tally.faults) == n_faults:
                    shutil.rmtree(ward.folder)
                tell(tally)
                if enough and tally.n_killed >= enough:
                    break
    finally:
        pacs.stop()
    return tally
