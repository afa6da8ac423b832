"""Engines beside ONNX Runtime alone: the front door, and the worker's whole way from file to stored pixels."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.base import Card, Floats, Params
from engines.bench import timed
from engines.catalog import Catalog, processors
from engines.front import Enhancer
from engines.learned import Learned
from engines.runtime.network import Network
from node.dicom.read import read_header
from node.dicom.stacks import Stack, stacks
from node.enhance.chain import Item, run
from node.trial.phantoms import brain_mr, write_series
from tests.bench.door import Result, Told, folder_for
from tests.bench.site import series

NAMES = ("ct-cnn", "mr-cnn")


class _Watched:
    """A network; keeps what it is given while ``keeps``."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.name, self.device = network.name, network.device
        self.keeps = False
        self.given: list[tuple[Floats, Floats]] = []

    def run(self, x: Floats, c: Floats) -> Floats:
        if self.keeps:
            self.given.append((x.copy(), c.copy()))
        return self._network.run(x, c)


def engine(rounds: int, n: int, where: Path | None, tell: Told, *, side: int = 0) -> Result:
    """Both figures of each engine. ``n`` slices; ``side`` 0 means the typical matrix."""
    found: Result = {}
    for name in NAMES:
        told = [timed(Catalog.default(), name, repeat=3, side=side, runtime="onnx") for _ in range(rounds)]
        found[name] = {
            "modality": told[0].modality, "rows": told[0].rows, "threads": told[0].threads,
            "core_ms": [each.core_ms for each in told], "whole_ms": [each.whole_ms for each in told],
        }  # fmt: skip
        with folder_for(where) as folder:
            found[name].update(_way(name, folder, n, side or told[0].rows, rounds))
        tell(
            f"engine {name}: core {told[-1].core_ms:.1f} ms, whole {told[-1].whole_ms:.1f} ms a slice; worker "
            + " ".join(f"{rate:.1f}" for rate in found[name]["worker"])
            + " slices/s, ONNX Runtime alone "
            + " ".join(f"{rate:.1f}" for rate in found[name]["alone"])
        )
    return found


def _way(name: str, folder: Path, n: int, side: int, rounds: int) -> Result:
    """Slices a second of the worker's way, and of ONNX Runtime alone on the tensors that it was given on that way."""
    loaded = Catalog.default().load(name, "onnx")
    try:
        card, core = loaded.card, loaded.core
        assert isinstance(core, Learned)
        watched = _Watched(core._network)
        whole = Enhancer(card, Learned(card, watched, core.calls), processors())
        items, found = _series(card, folder, n, side)
        (folder / "scratch").mkdir()
        watched.keeps = True
        _worker(whole, items, found, folder)
        watched.keeps = False
        worker, alone = [], []
        for _ in range(rounds):
            worker.append(n / _worker(whole, items, found, folder))
            alone.append(len(watched.given) / _alone(watched, core.calls))
    finally:
        loaded.close()
    return {"n": n, "n_given": len(watched.given), "calls": core.calls, "worker": worker, "alone": alone}


def _series(card: Card, folder: Path, n: int, side: int) -> tuple[list[Item], Sequence[Stack]]:
    if card.modalities[0] == "CT":
        paths = series(folder / "in", n, side, 6)
    else:
        paths = write_series(brain_mr(seed=6, n_slices=n, size=side), folder / "in")
    headers = [read_header(path) for path in paths]
    items = [
        Item(
            sop_instance_uid=h.sop_instance_uid,
            path=path,
            offset=0,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path, h in zip(paths, headers, strict=True)
    ]
    return items, stacks(headers)


def _worker(whole: Enhancer, items: Sequence[Item], found: Sequence[Stack], folder: Path) -> float:
    began = time.perf_counter()
    params = Params(strength=whole.card.default_strength)
    run(items, found, whole, params, scratch=folder / "scratch", emit=lambda *_: None)
    return time.perf_counter() - began


def _alone(watched: _Watched, calls: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(calls) as pool:
        for _ in pool.map(lambda given: watched.run(*given), watched.given):
            pass
    return time.perf_counter() - began
