"""What a network and our kernels take: alone, as a graph is replayed, and with the copies and the host around them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from engines import bench
from engines.base import Card
from engines.runtime import profile as profiles
from engines.runtime.arena import Arena, Patience
from engines.runtime.device import Device, Program
from engines.runtime.network import Item, Region, Slab
from engines.runtime.pipeline import Pipeline
from engines.runtime.schedule import Room, steps
from engines.runtime.session import FLOAT, Session, Shape

LOOPS = 20
"""Replays in one measurement: what the host needs to begin and to notice the end is shared by so many."""

NEVER, AT_ONCE = 1e-9, 1e9
"""Tolerances of a region's mean: all rounds of settling are run, or the first look is the last."""

KINDS: tuple[tuple[str, Region | None, float], ...] = (
    ("bare", None, AT_ONCE),
    ("with guards, settled at once", Region(radius=8, side=(64, 64)), AT_ONCE),
    ("with guards, all eight rounds", Region(radius=8, side=(64, 64)), NEVER),
)


class Still:
    """A network that did its work before: its answer lies there. Meets ``Program`` and ``Bound``."""

    factor = 1
    scratch = 256
    capturable = True

    def __init__(self, device: Device) -> None:
        self._device = device
        self._size = (0, 0, 0)

    def open(self, n_slices: int, rows: int, columns: int, stream: int) -> Still:
        made = Still(self._device)
        made._size = (n_slices, rows, columns)
        return made

    def bind(self, *, x: int, c: int, r: int, scratch: int) -> None:
        """Put noise there, as a network finds it: 10 HU."""
        device = self._device
        noise = np.random.default_rng(0).normal(0, 0.1, self._size).astype(np.float32)
        pinned, stream, event = device.pin(noise.nbytes), device.stream(), device.event()
        pinned.write(0, noise)
        device.upload(r, pinned, 0, noise.nbytes, stream)
        device.record(event, stream)
        Patience(device, 60.0).until(event)
        device.drop_event(event)
        device.drop_stream(stream)
        device.unpin(pinned)

    def enqueue(self, stream: int, *, captured: bool = False) -> None:
        """Nothing to run."""

    def close(self) -> None:
        """Nothing to give back."""


def slab(side: int, n: int, region: Region | None, tolerance: float) -> Slab:
    """Slices of a CT phantom."""
    items = [
        Item(
            below=max(i - 1, 0), self=i, above=min(i + 1, n - 1), c=0.15, largest=60.0, tolerance=tolerance
        )
        for i in range(n)
    ]  # fmt: skip
    if region is not None:
        region = replace(region, side=(min(region.side[0], side), min(region.side[1], side)))
    return Slab(
        slices=list(bench.stack("CT", side, n).values), valid=[None] * n, items=items, unit_x=1e-3, unit_r=100.0,
        factor=1, region=region,
    )  # fmt: skip


def alone(device: Device, given: Slab, side: int, repeat: int, loops: int = LOOPS) -> float:
    """Seconds of the kernels of one group, the median of replays of their graph; no copy is in it."""
    n = len(given.items)
    shape = Shape(
        rows=side, columns=side, padded_rows=side, padded_columns=side, factor=1, guarded=given.region is not None
    )  # fmt: skip
    patience = Patience(device, 60.0)
    session = Session(
        device, Still(device), shape, Room(bucket=n, uploads=n, slots=n), [n], most_bytes=1 << 40, patience=patience
    )  # fmt: skip
    (step,) = steps(given.items, (n,))
    session.submit(0, step, given)
    session.fetch(0, step)
    session.collect(0, step)
    stream = session._work
    device.begin_capture(stream)
    session._launch(session._ready(n), n, 0, given.region, captured=True)
    graph, event, spent = device.end_capture(stream), device.event(), []
    for _ in range(repeat + 2):
        began = time.perf_counter()
        for _ in range(loops):
            device.replay(graph, stream)
        device.record(event, stream)
        patience.until(event)
        spent.append((time.perf_counter() - began) / loops)
    device.drop_event(event)
    device.drop_graph(graph)
    session.close()
    return float(median(spent[2:]))


def network_alone(
    device: Device, program: Program, n: int, side: int, repeat: int, loops: int = LOOPS
) -> float:
    """Seconds of a network on ``n`` slices that are on the device already: replays of its graph where it has one."""
    device.enter()
    arena, patience, plane = Arena(device), Patience(device, 60.0), n * side * side * FLOAT
    stream, event = arena.stream(), arena.event()
    bound = program.open(n, side, side, stream)
    arena.own(bound.close)
    x, c, r = (arena.allocate(planes * plane) for planes in (3, 1, program.factor**2))
    noise = arena.pin(3 * plane)
    noise.write(0, np.random.default_rng(0).normal(0, 0.1, (n, 3, side, side)).astype(np.float32))
    device.upload(x, noise, 0, 3 * plane, stream)
    device.upload(c, noise, 0, plane, stream)
    bound.bind(x=x, c=c, r=r, scratch=arena.allocate(bound.scratch))
    bound.enqueue(stream)
    device.record(event, stream)
    patience.until(event)
    work = partial(bound.enqueue, stream)
    if bound.capturable:
        device.begin_capture(stream)
        bound.enqueue(stream, captured=True)
        graph = device.end_capture(stream)
        arena.own(partial(device.drop_graph, graph))
        work = partial(device.replay, graph, stream)
    spent = []
    for _ in range(repeat + 2):
        began = time.perf_counter()
        for _ in range(loops):
            work()
        device.record(event, stream)
        patience.until(event)
        spent.append((time.perf_counter() - began) / loops)
    arena.close()
    return float(median(spent[2:]))


def with_copies(device: Device, card: Card, given: Slab, side: int, repeat: int) -> float:
    """Seconds of a slab through the whole pipeline but for the network: staging, copies, kernels, answers."""
    pipeline = Pipeline(device, Still(device), profiles.of(card))
    spent = []
    for _ in range(repeat + 2):
        began = time.perf_counter()
        for _ in pipeline.slab(given, side, side):
            pass
        spent.append(time.perf_counter() - began)
    pipeline.close()
    return float(median(spent[2:]))


def rows(
    opened: Callable[[], Device], card: Card, side: int, batches: tuple[int, ...], repeat: int
) -> list[dict[str, Any]]:
    """Milliseconds a slice, by what is done and slices a group."""
    told = []
    for what, region, tolerance in KINDS:
        device = opened()
        device.enter()
        ms: dict[str, float] = {}
        whole: dict[str, float] = {}
        for n in batches:
            given = slab(side, n, region, tolerance)
            ms[str(n)] = 1000 * alone(device, given, side, repeat) / n
            whole[str(n)] = 1000 * with_copies(device, card, given, side, repeat) / n
        device.close()
        told.append({"what": what, "side": side, "ms": ms, "with_copies_ms": whole})
    return told
