"""The soak (R60): scanners, probes and a nemesis for as long as one likes, and the figures that must not grow.

``python -m tests.faults.soak --seconds 3600`` runs it alone; tests/faults/test_operation_soak.py runs a short one in
``make test`` and an hour in ``make faults``. Three scanners send five slices a second, over associations of a series
or of a slice; a probe connects and leaves every second, and asks C-ECHO. Every so often the nemesis strikes: kill -9
of a role or of the whole node, SIGSTOP of a role, the PACS away, a good or a bad edit of config.yaml.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import psutil

from tests.faults import ledger
from tests.faults.scale import SEED
from tests.faults.site import Shift, child, dimse, open_files, settle, site
from tests.peers import StoreScp
from tests.pipeline.harness import Node
from tests.receiving import unnamed
from tests.senders import Peer, echo_rq, message

ROLES = ("receive", "gather", "enhance", "deliver")
_SAMPLE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The node at one moment, all its processes together."""

    at_s: float
    rss_mb: float
    fds: int
    threads: int
    tmp: int
    processes: int
    by_role: dict[str, float] = field(default_factory=dict)
    """Resident MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """What came of it. Slopes are per hour, over samples that lie more than 30 s after a stroke of the nemesis and
    after the first sixth; nan where there are too few."""

    seconds: float
    seed: int
    acknowledged: int
    lost: int
    extra: int
    refused: dict[str, int]
    broken_associations: int
    probes: int
    probes_failed: int
    strokes: dict[str, int]
    drained_s: float
    rss_mb_per_h: float
    fds_per_h: float
    threads_per_h: float
    tmp_at_end: int
    rss_mb: float
    rss_mb_most: float
    p99_s: float
    ok: bool


@dataclass
class Soak:
    """A soak in a folder of its own; :meth:`run` it once."""

    folder: Path
    seconds: float
    nemesis_s: float
    seed: int = SEED
    samples: list[Sample] = field(default_factory=list)
    strokes: list[tuple[float, str]] = field(default_factory=list)
    probes: int = 0
    probes_failed: int = 0

    def run(self) -> Soaked:
        self._chance = random.Random(self.seed)
        self._over = threading.Event()
        self._down = threading.Event()
        pacs_folder = self.folder / "pacs"
        self._pacs = StoreScp(pacs_folder, "+xa")
        port = self._pacs.port
        node = self._node = site(self.folder / "node", destination=dimse(port))
        node.start()
        self._began = time.monotonic()
        watchers = [threading.Thread(target=w, daemon=True) for w in (self._sample_on, self._probe_on)]
        try:
            for watcher in watchers:
                watcher.start()
            with Shift(node) as shift:
                self._strike_on(self._began + self.seconds, pacs_folder, port)
                shift.finish(300)
            ended = time.monotonic()
            found = settle(node, shift.log, self._pacs.uids, 300)
            drained = time.monotonic() - ended
            self._over.set()
            for watcher in watchers:
                watcher.join(30)
            tmp = len(unnamed(node.folder / "spool"))
            stopped = node.stop()
        finally:
            self._over.set()
            self._pacs.stop()
            node.stop()
        waits = sorted(shift.waits_s)
        calm = self._calm()
        return Soaked(
            seconds=round(ended - self._began),
            seed=self.seed,
            acknowledged=shift.n_acknowledged,
            lost=len(found.lost),
            extra=len(found.extra),
            refused={f"{status:04X}": n for status, n in shift.log.refused.items()},
            broken_associations=len(shift.broken),
            probes=self.probes,
            probes_failed=self.probes_failed,
            strokes={what: [w for _, w in self.strokes].count(what) for _, what in self.strokes},
            drained_s=round(drained, 1),
            rss_mb_per_h=_slope(calm, lambda s: s.rss_mb),
            fds_per_h=_slope(calm, lambda s: s.fds),
            threads_per_h=_slope(calm, lambda s: s.threads),
            tmp_at_end=tmp,
            rss_mb=round(calm[-1].rss_mb if calm else 0.0, 1),
            rss_mb_most=round(max(s.rss_mb for s in self.samples), 1),
            p99_s=round(waits[int(0.99 * (len(waits) - 1))], 3),
            ok=found.even and stopped == 0 and tmp == 0,
        )

    # the nemesis ------------------------------------------------------------------------------------

    def _strike_on(self, until: float, pacs_folder: Path, pacs_port: int) -> None:
        strokes: tuple[Callable[[], str], ...] = (
            self._kill_role, self._freeze_role, lambda: self._pacs_away(pacs_folder, pacs_port),
            self._bad_edit, self._good_edit, self._kill_all,
        )  # fmt: skip
        order = 0
        while True:
            left = until - time.monotonic()
            if left < self.nemesis_s:
                time.sleep(max(0.0, left))
                return
            time.sleep(self.nemesis_s)
            self._down.set()
            try:
                what = strokes[order % len(strokes)]()
            finally:
                self._down.clear()
            order += 1
            self.strokes.append((time.monotonic() - self._began, what))

    def _victim(self) -> psutil.Process | None:
        return child(self._node, self._chance.choice(ROLES))

    def _kill_role(self) -> str:
        victim = self._victim()
        if victim is not None:
            victim.send_signal(signal.SIGKILL)
        return "kill -9 of a role"

    def _freeze_role(self) -> str:
        victim = self._victim()
        if victim is not None:
            with suppress(psutil.NoSuchProcess):
                victim.suspend()
                time.sleep(min(15.0, self.nemesis_s / 2))
                victim.resume()
        return "SIGSTOP of a role"

    def _pacs_away(self, folder: Path, port: int) -> str:
        self._pacs.stop()
        time.sleep(min(20.0, self.nemesis_s / 2))
        self._pacs = StoreScp(folder, "+xa", port=port)
        return "PACS away"

    def _bad_edit(self) -> str:
        good = self._node.config.read_text()
        self._node.config.write_text(good.replace("settle:", "setle:"))
        time.sleep(3.0)
        self._node.config.write_text(good)
        return "bad edit"

    def _good_edit(self) -> str:
        text = self._node.config.read_text()
        quiet = "4s" if "quiet_after: 3s" in text else "3s"
        head, _, tail = text.partition("quiet_after: ")
        self._node.config.write_text(f"{head}quiet_after: {quiet}{tail[2:]}")
        return "good edit"

    def _kill_all(self) -> str:
        self._node.kill_tree()
        self._node.start()
        return "kill -9 of the node"

    # watching ---------------------------------------------------------------------------------------

    def _probe_on(self) -> None:
        """A load balancer's connection and a C-ECHO a second."""
        while not self._over.wait(1.0):
            down = self._down.is_set()
            try:
                with socket.create_connection(("127.0.0.1", self._node.port), timeout=5):
                    pass
                with Peer(self._node.port, timeout=10.0) as peer:
                    peer.associate(calling="PROBE")
                    peer.send(message(3, echo_rq(), None))
                    assert peer.answer().status == 0
                    peer.release()
                self.probes += 1
            except (OSError, AssertionError, EOFError):
                self.probes_failed += not (down or self._down.is_set() or self._struck_lately(20.0))

    def _struck_lately(self, within_s: float) -> bool:
        now = time.monotonic() - self._began
        return bool(self.strokes) and now - self.strokes[-1][0] < within_s

    def _sample_on(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            with suppress(psutil.Error, OSError, AssertionError):
                one = sample(self._node, time.monotonic() - self._began)
                self.samples.append(one)
                with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(one)) + "\n")

    def _calm(self) -> list[Sample]:
        strokes = [at for at, _ in self.strokes]
        whole = [s for s in self.samples if not any(0 <= s.at_s - at < 30 for at in strokes)]
        usual = max((s.processes for s in whole), default=0)
        return [s for s in whole if s.at_s > self.seconds / 6 and s.processes == usual]


def tell(found: Soaked) -> None:
    """Put a soak on record."""
    strokes = ", ".join(f"{n} x {what}" for what, n in found.strokes.items())
    ledger.record(
        "R60",
        load=f"{found.seconds:.0f} s, 3 scanners at 5 slices/s, a connection and a C-ECHO a second; {strokes}",
        count=found.acknowledged,
        result=f"slopes per hour: RSS {found.rss_mb_per_h} MB of {found.rss_mb}, fds {found.fds_per_h}, threads "
        f"{found.threads_per_h}; {found.tmp_at_end} files left in tmp, p99 of an answer {found.p99_s} s, "
        f"{found.probes_failed} of {found.probes} probes failed, drained in {found.drained_s} s",
        ok=found.ok,
        lost=found.lost,
        extra=found.extra,
    )


def sample(node: Node, at_s: float) -> Sample:
    """All processes of a node together."""
    rss = fds = threads = n = 0
    by_role: dict[str, float] = {}
    for process in node.tree():
        with suppress(psutil.Error):
            own, given = process.memory_info().rss, process.cmdline()
            role = given[3] if given[1:3] == ["-m", "node.app"] else given[-1].rpartition(" ")[2][:20]
            by_role[role] = round(own / 1e6, 2)
            rss += own
            threads += process.num_threads()
            fds += open_files(process)
            n += 1
    tmp = len(unnamed(node.folder / "spool"))
    return Sample(
        at_s=at_s, rss_mb=rss / 1e6, fds=fds, threads=threads, tmp=tmp, processes=n, by_role=by_role
    )


def _slope(samples: list[Sample], of: Callable[[Sample], float]) -> float:
    """Of a least-squares line, per hour."""
    if len(samples) < 10:
        return float("nan")
    n = len(samples)
    x, y = [s.at_s / 3600 for s in samples], [of(s) for s in samples]
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((a - mean_x) ** 2 for a in x)
    return round(sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--nemesis", type=float, default=300, help="seconds between two strokes")
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    folder = Path(mkdtemp(prefix="soak"))
    soak = Soak(folder=folder, seconds=given.seconds, nemesis_s=given.nemesis, seed=given.seed)
    told = soak.run()
    tell(told)
    print(json.dumps({**asdict(told), "folder": str(folder)}, indent=2))


if __name__ == "__main__":
    main()
