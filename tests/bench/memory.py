"""What long series cost: memory of every process of the node, and time for each slice."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from node.model import DeliveryState, JobState
from node.store import Store
from tests.bench.door import Result, Told, folder_for
from tests.bench.site import Site, remove, series, site
from tests.pipeline.harness import Node

LENGTHS = (50, 200, 500, 1000, 2000)
EVERY_S = 0.2


def memory(lengths: Sequence[int], size: int, engine: str, where: Path | None, tell: Told) -> Result:
    """Series of growing length, as fast as they can be sent, one after another to the same node."""
    runs = []
    with folder_for(where) as folder, site(folder / "site", engine) as at:
        for n in lengths:
            files = series(folder / f"in{n}", n, size, n)
            runs.append({"n": n, **_one(at, files)})
            remove(files)
            tell(
                f"{n} slices: {runs[-1]['seconds']:.1f} s, peak {runs[-1]['peak']['all'][0] / 1e6:.0f} MB RSS"
            )
    return {"size": size, "engine": engine, "runs": runs, "fit": fit([(r["n"], r["seconds"]) for r in runs])}


def fit(points: Sequence[tuple[int, float]]) -> dict[str, float]:
    """The straight line through (slices, seconds) by least squares, and how far the points lie from it."""
    n, seconds = (np.array(values, float) for values in zip(*points, strict=True))
    slope, start = np.polyfit(n, seconds, 1)
    off = seconds - (start + slope * n)
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    worst = int(np.argmax(np.abs(off)))
    return {
        "slope": float(slope), "start": float(start), "r2": 1 - float((off**2).sum()) / spread if spread else 1.0,
        "worst_s": float(off[worst]), "worst_n": float(n[worst]),
    }  # fmt: skip


def _one(at: Site, files: list[Path]) -> Result:
    sampler = Sampler(at.node)
    done = threading.Event()
    watching = threading.Thread(target=_watch, args=(at.store, sampler, done), daemon=True)
    sampler.start()
    watching.start()
    try:
        answered = at.send(files)
        at.delivered()
    finally:
        done.set()
        watching.join()
        sampler.stop()
    written = at.clear()
    if len(written) != len(files):
        raise RuntimeError(f"{len(written)} of {len(files)} derived instances")
    peaks: dict[str, Sequence[float]] = {}
    for phase in sampler.peak.values():
        for role, told in phase.items():
            peaks[role] = [max(a, b) for a, b in zip(peaks.get(role, (0, 0, 0)), told, strict=True)]
    return {
        "receive": answered[-1] - answered[0], "seconds": max(written) - answered[-1], "peak": peaks,
        "phases": {phase: list(roles["all"]) for phase, roles in sampler.peak.items()},
    }  # fmt: skip


def _watch(store: Store, sampler: Sampler, done: threading.Event) -> None:
    """Tell the sampler what the node is at, by its records."""
    before = len(store.jobs.list())
    while not done.wait(EVERY_S):
        jobs = store.jobs.list()
        if len(jobs) == before:
            sampler.phase = "receive"
        elif any(job.state is not JobState.DONE for job in jobs):
            sampler.phase = "enhance"
        elif any(d.state is not DeliveryState.SENT for d in store.deliveries.list()):
            sampler.phase = "deliver"


def role_of(process: psutil.Process) -> str:
    """Which part of the node a process is, by its command line."""
    told = " ".join(process.cmdline())
    for role in ("receive", "gather", "deliver"):
        if f"node.app {role}" in told:
            return role
    if "node.app enhance" in told:
        return "guardian"
    if "resource_tracker" in told:
        return "tracker"
    return "worker" if "spawn_main" in told else "supervisor"


class Sampler(threading.Thread):
    """Samples the node's memory until it is stopped; ``peak[phase][role]`` is (RSS, PSS, USS) in bytes.

    RSS is what a process has resident, shared libraries counted in each of them; PSS the same, shared pages divided
    among those who share them; USS what would be free if it ended.
    """

    def __init__(self, node: Node, every_s: float = EVERY_S) -> None:
        super().__init__(name="sampler", daemon=True)
        self._node, self._every_s = node, every_s
        self._done = threading.Event()
        self.phase = "receive"
        self.peak: dict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)

    def run(self) -> None:
        self._look()
        while not self._done.wait(self._every_s):
            self._look()

    def stop(self) -> None:
        self._done.set()
        self.join()

    def _look(self) -> None:
        phase = self.phase
        roles: dict[str, tuple[float, ...]] = defaultdict(lambda: (0.0, 0.0, 0.0))
        for process in self._node.tree():
            try:
                told, role = process.memory_full_info(), role_of(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            now = (float(told.rss), float(told.pss), float(told.uss))
            for name in (role, "all"):
                roles[name] = tuple(a + b for a, b in zip(roles[name], now, strict=True))
        for name, now in roles.items():
            before = self.peak[phase].get(name, (0.0, 0.0, 0.0))
            self.peak[phase][name] = tuple(max(a, b) for a, b in zip(before, now, strict=True))
