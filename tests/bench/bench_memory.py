"""What a long series costs in memory: ``python tests/bench/bench_memory.py``. Not part of the tests.

One slice of the chest phantom is copied under new UIDs and positions into a series of 2,000 slices of
512x512, sent to a real ``luminode serve`` and delivered to DCMTK's storescp. Meanwhile the memory of every
process of the node is sampled: RSS (what each has resident, shared libraries counted in each of them), PSS
(the same, shared pages divided among those who share them) and USS (what would be free if it ended).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
from pydicom.uid import UID

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node.deliver.files import send_files
from node.model import DeliveryState, JobState
from node.store import Store
from node.trial.phantoms import chest_ct
from tests.peers import StoreScp
from tests.pipeline.harness import Node, make_node

MB = 1e6
ROLES = ("supervisor", "receive", "gather", "guardian", "worker", "deliver", "tracker")
PHASES = ("idle", "receive", "gather", "enhance", "deliver")


def write_series(folder: Path, n_slices: int, size: int) -> list[Path]:
    """A series of ``n_slices`` that are copies of one slice, each in its place."""
    folder.mkdir(parents=True)
    one = chest_ct(seed=1, n_slices=3, size=size)[1]
    uid, (x, y, z) = one.SOPInstanceUID, (float(v) for v in one.ImagePositionPatient)
    paths = []
    for i in range(n_slices):
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = UID(f"{uid}.{i + 1}")
        one.InstanceNumber = i + 1
        one.ImagePositionPatient = [x, y, round(z - 0.625 * i, 4)]
        if "SliceLocation" in one:
            one.SliceLocation = one.ImagePositionPatient[2]
        one.SliceThickness = "0.625"
        paths.append(folder / f"IM{i + 1:05d}.dcm")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths


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
    """Samples the node's memory until it is stopped; ``peak[phase][role]`` is (RSS, PSS, USS) in bytes."""

    def __init__(self, node: Node, every_s: float) -> None:
        super().__init__(name="sampler", daemon=True)
        self._node, self._every_s = node, every_s
        self._done = threading.Event()
        self.phase = "idle"
        self.peak: dict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)

    def run(self) -> None:
        while not self._done.wait(self._every_s):
            self._look()

    def stop(self) -> None:
        self._done.set()
        self.join()

    def _look(self) -> None:
        phase = self.phase
        total: tuple[float, ...] = (0.0, 0.0, 0.0)
        for process in self._node.tree():
            try:
                told, role = process.memory_full_info(), role_of(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            now = (float(told.rss), float(told.pss), float(told.uss))
            total = tuple(a + b for a, b in zip(total, now, strict=True))
            self._note(phase, role, now)
        self._note(phase, "all", total)

    def _note(self, phase: str, role: str, now: tuple[float, ...]) -> None:
        before = self.peak[phase].get(role, (0.0, 0.0, 0.0))
        self.peak[phase][role] = tuple(max(a, b) for a, b in zip(before, now, strict=True))


def phase_of(store: Store, sending: threading.Thread) -> str:
    """What the node is at, told by its records."""
    jobs = store.jobs.list()
    if sending.is_alive():
        return "receive"
    if not jobs:
        return "gather"
    if any(j.state is not JobState.DONE for j in jobs):
        return "enhance"
    return "deliver" if any(d.state is not DeliveryState.SENT for d in store.deliveries.list()) else ""


@contextmanager
def running(folder: Path, engine: str, associations: int) -> Iterator[tuple[Node, StoreScp]]:
    pacs = StoreScp(folder / "pacs", "+xa", ae_title="PACS")
    try:
        (folder / "node").mkdir()
        node = make_node(
            folder / "node", pacs_ae="PACS", pacs_port=pacs.port, quiet_after="10s", ct_engine=engine
        )
        node.start()
        try:
            yield node, pacs
        finally:
            node.stop()
    finally:
        pacs.stop()


def measure(
    folder: Path, n_slices: int, size: int, engine: str, associations: int, within_s: float
) -> Sampler:
    files = write_series(folder / "source", n_slices, size)
    with running(folder, engine, associations) as (node, pacs), node.store() as store:
        sampler = Sampler(node, 0.25)
        sampler.start()
        time.sleep(2.0)
        peer = {"kind": "dimse", "ae_title": "LUMINODE", "address": f"127.0.0.1:{node.port}"}
        sending = threading.Thread(
            target=send_files, args=(files, peer), kwargs={"calling_ae": "CT1", "associations": associations}
        )
        started = {"receive": time.monotonic()}
        sampler.phase = "receive"
        sending.start()
        deadline = time.monotonic() + within_s
        while phase := phase_of(store, sending):
            started.setdefault(phase, time.monotonic())
            sampler.phase = phase
            assert time.monotonic() < deadline, f"still at {phase}: {node.log.read_text()[-2000:]}"
            assert not store.jobs.list([JobState.HELD, JobState.FAILED]), store.jobs.list()
            time.sleep(0.2)
        started["end"] = time.monotonic()
        sampler.stop()
        assert len(pacs.uids()) == n_slices
    print(", ".join(f"{a} {started[b] - started[a]:.0f} s" for a, b in pairwise(started)))
    return sampler


def told(sampler: Sampler) -> Iterator[str]:
    yield f"{'peak MB':<12}" + "".join(f"{p:>18}" for p in PHASES)
    yield f"{'':<12}" + "".join(f"{'RSS / PSS / USS':>18}" for _ in PHASES)
    for role in (*ROLES, "all"):
        cells = [sampler.peak.get(p, {}).get(role) for p in PHASES]
        yield f"{role:<12}" + "".join(
            f"{' / '.join(f'{v / MB:.0f}' for v in c):>18}" if c else f"{'-':>18}" for c in cells
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slices", type=int, default=2000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--engine", default="ct-wavelet")
    parser.add_argument("--associations", type=int, default=1)
    parser.add_argument("--within", type=float, default=3600.0, help="seconds")
    parser.add_argument("--folder", type=Path, help="where to work; 4 MB a slice are needed")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="luminode-memory-", dir=asked.folder))
    try:
        sampler = measure(folder, asked.slices, asked.size, asked.engine, asked.associations, asked.within)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{asked.slices} slices of {asked.size}x{asked.size}, {asked.engine}; {psutil.cpu_count()} cores")
    print("\n".join(told(sampler)))


if __name__ == "__main__":
    main()
