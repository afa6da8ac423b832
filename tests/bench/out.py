"""Beyond the door: what leaves the node, the way from the last slice to the PACS, and the engine alone."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from pydicom.uid import UID

from engines.bench import timed
from engines.catalog import Catalog
from node.deliver.files import send_files
from node.model import DeliveryState, JobState
from node.store import Store
from node.trial.phantoms import chest_ct
from tests.bench import receivers, traffic
from tests.bench.door import Result, Told, folder_for
from tests.bench.receivers import Receiver
from tests.peers import StoreScp, wait_until
from tests.pipeline.harness import make_node

PACE = 20.0


def sender(n: int, rounds: int, seed: int, where: Path | None, tell: Told) -> Result:
    """``n`` CT slices from files to storescp and to Orthanc: by this node's sender, and by DCMTK's storescu."""
    found: Result = {"n": n, "to": {}}
    for name in ("storescp", "orthanc"):
        if not receivers.is_there(name):
            continue
        rates: dict[str, list[float]] = {"luminode": [], "storescu": []}
        with folder_for(where) as folder, ExitStack() as stack:
            (folder / "in").mkdir()
            receiver = receivers.MAKERS[name](folder / "in")
            stack.callback(receiver.stop)
            for at in range(rounds + 1):
                for who in rates:
                    number = seed * 1000 + 2 * at + (who == "luminode")
                    files = traffic.write_files(folder / f"{who}{at}", traffic.CT512, n, number)
                    rate = n / (_ours(receiver, files) if who == "luminode" else _storescu(receiver, files))
                    if at:
                        rates[who].append(rate)
                    for path in files:
                        path.unlink()
                    receiver.clean()
        found["to"][name] = rates
        for who, told in rates.items():
            tell(f"to {name} {who}: " + " ".join(f"{rate:.0f}" for rate in told))
    return found


def _ours(receiver: Receiver, files: list[Path]) -> float:
    settings = {"kind": "dimse", "ae_title": receiver.ae_title, "address": f"127.0.0.1:{receiver.port}"}
    began = time.perf_counter()
    sent = send_files(files, settings, calling_ae="BENCH")
    took = time.perf_counter() - began
    if not sent.ok:
        raise RuntimeError("not everything was sent")
    return took


def _storescu(receiver: Receiver, files: list[Path]) -> float:
    """With TCP_NODELAY; without its start, which one file shows."""

    def send(paths: list[Path]) -> float:
        began = time.perf_counter()
        command = ["storescu", "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port), *map(str, paths)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TCP_NODELAY": "1"})
        return time.perf_counter() - began

    whole, one = send(files), send(files[:1])
    return max(whole - one, whole / len(files)) * len(files) / (len(files) - 1)


def turnaround(
    n: int, size: int, engine: str, rounds: int, where: Path | None, tell: Told, *, pace: float = PACE
) -> Result:
    """A CT series at the pace of a scanner: seconds from its last C-STORE response to the last derived
    instance in a DCMTK storescp, and what the node was at meanwhile."""
    runs = []
    for at in range(rounds):
        with folder_for(where) as folder:
            runs.append(_turn(folder, n, size, engine, pace, at + 1))
        steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in runs[-1].items())
        tell(f"turnaround: {steps}")
    return {"n": n, "size": size, "engine": engine, "pace": pace, "runs": runs}


def _turn(folder: Path, n: int, size: int, engine: str, pace: float, seed: int) -> dict[str, float]:
    files = _series(folder / "source", n, size, seed)
    pacs = StoreScp(folder / "pacs", ae_title="PACS")
    (folder / "node").mkdir()
    node = make_node(
        folder / "node", pacs_ae="PACS", pacs_port=pacs.port, quiet_after="30s", ct_engine=engine
    )
    with ExitStack() as stack:
        stack.callback(pacs.stop)
        node.start()
        stack.callback(node.stop)
        store = stack.enter_context(node.store())
        peer = {"kind": "dimse", "ae_title": "LUMINODE", "address": f"127.0.0.1:{node.port}"}
        answered: list[float] = []
        send_files(files, peer, lambda _: answered.append(time.time()), calling_ae="CT1", pace=pace)
        wait_until(lambda: _all_sent(store), 1800.0, "the derived series was sent", every_s=0.05)
        arrived = [each.stat().st_mtime for each in pacs.folder.iterdir()]
        if len(arrived) != n:
            raise RuntimeError(f"{len(arrived)} of {n} derived instances")
        job = store.jobs.list()[0]
        last = answered[-1]
        return {
            "total": max(arrived) - last,
            "routed": _since(job.created_at, last),
            "first_derived": min(arrived) - last,
        }


def _since(at: datetime, last: float) -> float:
    return (at - datetime.fromtimestamp(last, UTC)).total_seconds()


def _all_sent(store: Store) -> bool:
    jobs = store.jobs.list()
    stuck = [job for job in jobs if job.state in (JobState.HELD, JobState.FAILED)]
    if stuck:
        raise RuntimeError(f"the job is {stuck[0].state}: {stuck[0]}")
    told = store.deliveries.list()
    return bool(told) and all(each.state is DeliveryState.SENT for each in told)


def _series(folder: Path, n: int, size: int, seed: int) -> list[Path]:
    """Copies of one phantom slice, each in its place."""
    folder.mkdir(parents=True)
    one = chest_ct(seed=seed, n_slices=3, size=size)[1]
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


def engine(names: tuple[str, ...], rounds: int, tell: Told, *, side: int = 0) -> Result:
    """The engine's front door (survey, core, guards, checks) beside its core, ONNX Runtime, on the same tensors."""
    found: Result = {}
    for name in names:
        told = [timed(Catalog.default(), name, repeat=3, side=side) for _ in range(rounds)]
        found[name] = {
            "modality": told[0].modality, "rows": told[0].rows, "threads": told[0].threads,
            "core_ms": [each.core_ms for each in told], "whole_ms": [each.whole_ms for each in told],
        }  # fmt: skip
        tell(f"engine {name}: core {told[-1].core_ms:.1f} ms, whole {told[-1].whole_ms:.1f} ms a slice")
    return found
