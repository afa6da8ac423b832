"""A whole node before a DCMTK storescp, CT series to send to it, and when everything has arrived."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from node.deliver.files import send_files
from node.model import DeliveryState, JobState
from node.store import Store
from node.trial.phantoms import chest_ct
from tests.peers import StoreScp, wait_until
from tests.pipeline.harness import Node, make_node

WITHIN_S = 1800.0


@dataclass(slots=True)
class Site:
    """A running node, its records and its PACS."""

    node: Node
    store: Store
    pacs: StoreScp
    n_jobs: int = 0

    def send(self, files: Sequence[Path], *, pace: float = 0.0) -> list[float]:
        """Send a series over one association; when each answer came (seconds since the epoch)."""
        return send(self.node.port, "LUMINODE", files, pace=pace)

    def delivered(self, n_jobs: int = 1) -> None:
        """Wait until as many series more than before were enhanced and sent."""
        wait_until(lambda: self._sent() >= self.n_jobs + n_jobs, WITHIN_S, "it was delivered", every_s=0.05)
        self.n_jobs += n_jobs

    def clear(self) -> list[float]:
        """Empty the PACS; when each of its files was written."""
        return clear(self.pacs)

    def _sent(self) -> int:
        stuck = self.store.jobs.list([JobState.HELD, JobState.FAILED])
        if stuck:
            raise RuntimeError(f"the job is {stuck[0].state}: {stuck[0].failure}")
        return sum(each.state is DeliveryState.SENT for each in self.store.deliveries.list())


@contextmanager
def site(folder: Path, engine: str, *, begin_early: bool = True) -> Iterator[Site]:
    """Start a node with an engine for CT, and its PACS."""
    folder.mkdir(parents=True)
    pacs = StoreScp(folder / "pacs", "+xa", ae_title="PACS")
    try:
        (folder / "node").mkdir()
        node = make_node(
            folder / "node", pacs_ae="PACS", pacs_port=pacs.port, quiet_after="30s", ct_engine=engine,
            begin_early="true" if begin_early else "false",
        )  # fmt: skip
        node.start()
        try:
            wait_until(lambda: "worker.started" in node.log.read_text(), 120.0, "the engine is loaded")
            with node.store() as store:
                yield Site(node, store, pacs)
        finally:
            node.stop()
    finally:
        pacs.stop()


def send(port: int, ae_title: str, files: Sequence[Path], *, pace: float = 0.0) -> list[float]:
    """Send files over one association, as a scanner does; when each answer came (seconds since the epoch)."""
    answered: list[float] = []
    peer = {"kind": "dimse", "ae_title": ae_title, "address": f"127.0.0.1:{port}"}
    sent = send_files(files, peer, lambda _: answered.append(time.time()), calling_ae="CT1", pace=pace)
    if not sent.ok:
        raise RuntimeError(f"not everything was sent: {sent.errors}")
    return answered


def clear(pacs: StoreScp) -> list[float]:
    """Empty a PACS; when each of its files was written (seconds since the epoch)."""
    written = []
    for path in list(pacs.folder.iterdir()):
        written.append(path.stat().st_mtime)
        path.unlink()
    return written


def series(folder: Path, n: int, size: int, seed: int) -> list[Path]:
    """A CT series as files: copies of one phantom slice, each in its place, 1 mm apart."""
    folder.mkdir(parents=True)
    one = chest_ct(seed=seed, n_slices=3, size=size, noise_hu=15.0)[1]
    uid, (x, y, z) = one.SOPInstanceUID, (float(v) for v in one.ImagePositionPatient)
    paths = []
    for i in range(n):
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = UID(f"{uid}.{i + 1}")
        one.InstanceNumber = i + 1
        one.ImagePositionPatient = [x, y, round(z - i, 4)]
        if "SliceLocation" in one:
            one.SliceLocation = one.ImagePositionPatient[2]
        one.SliceThickness = "1"
        paths.append(folder / f"IM{i + 1:05d}.dcm")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths


def remove(files: Sequence[Path]) -> None:
    """Give the disk back."""
    for path in files:
        path.unlink()
