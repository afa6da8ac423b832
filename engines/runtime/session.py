"""One shape of slices on a device: its memory, its order of work, its graphs.

Two streams, and of each of three turns (schedule.RING) its own buffers and events::

    copies   up(0)  up(1) | down(0)  up(2) | down(1)  up(3) | ...
    work           net(0) |         net(1) |         net(2) | ...

``net`` waits for the event that its slices are up, ``down`` for the event that the network is done; ``up`` of a
turn starts when the host has the results of the turn before it, three groups ago.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engines.errors import DeviceLost, OutOfMemory
from engines.runtime import kernels
from engines.runtime.arena import Arena, Patience
from engines.runtime.device import (
    Argument,
    Bound,
    CaptureFailed,
    Device,
    Extent,
    Pinned,
    Program,
    address,
    number,
)
from engines.runtime.network import Answer, Region, Slab
from engines.runtime.schedule import RING, Room, Step

FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of slices, of what the network gets, and of what comes out."""

    rows: int
    columns: int
    padded_rows: int
    padded_columns: int
    factor: int
    guarded: bool

    @property
    def pixels(self) -> int:
        return self.rows * self.columns

    @property
    def plane(self) -> int:
        """Pixels of a slice as the network gets it."""
        return self.padded_rows * self.padded_columns

    @property
    def out(self) -> tuple[int, int]:
        return self.factor * self.rows, self.factor * self.columns


def sizes(shape: Shape, room: Room) -> dict[str, int]:
    """Bytes of memory on the device, by what it is for; the network's own scratch comes on top."""
    n, area = room.bucket, shape.factor**2
    guard = 1 if shape.guarded else 0
    return {
        "slices": room.slots * shape.pixels * FLOAT,
        "masks": guard * RING * n * shape.pixels,
        "items": RING * n * kernels.ITEM.itemsize,
        "x": 3 * n * shape.plane * FLOAT,
        "c": n * shape.plane * FLOAT,
        "r": area * n * shape.plane * FLOAT,
        "total": guard * n * shape.pixels * FLOAT,
        "count": guard * n * shape.pixels * FLOAT,
        "excess": guard * n * shape.pixels * FLOAT,
        "out": RING * n * area * shape.pixels * FLOAT,
        "said": RING * n * kernels.SAID.itemsize,
    }


@dataclass(frozen=True, slots=True)
class _Turn:
    """Buffers on the host and events of one of the three turns."""

    up: Pinned
    down: Pinned
    sent: int
    computed: int
    fetched: int


class Session:
    """Memory for slabs of one shape, and the work on them.

    Raises
    ------
    OutOfMemory
        The device has not enough, or ``most_bytes`` is not; everything is given back.
    """

    def __init__(
        self,
        device: Device,
        program: Program,
        shape: Shape,
        room: Room,
        counts: Sequence[int],
        *,
        most_bytes: int,
        patience: Patience,
        graphs: bool = True,
    ) -> None:
        self.shape, self.room = shape, room
        self._device, self._program, self._patience = device, program, patience
        self._most_bytes, self._bytes = most_bytes, 0
        self._scratch = -1
        self._graphs_wanted = graphs
        self._graphs: dict[tuple[int, int], int] = {}
        self._region: Region | None = None
        self._bound: dict[int, Bound] = {}
        self._used: set[int] = set()
        self._arena = arena = Arena(device)
        self._turns: tuple[_Turn, ...] = ()
        try:
            self._copies, self._work = arena.stream(), arena.stream()
            self._at = {name: self._allocate(n) for name, n in sizes(shape, room).items()}
            self._down_said = room.bucket * shape.factor**2 * shape.pixels * FLOAT
            self._up_slices = room.bucket * kernels.ITEM.itemsize
            self._up_masks = self._up_slices + room.uploads * shape.pixels * FLOAT
            n_up = self._up_masks + (room.bucket * shape.pixels if shape.guarded else 0)
            n_down = self._down_said + room.bucket * kernels.SAID.itemsize
            self._turns = tuple(
                _Turn(arena.pin(n_up), arena.pin(n_down), arena.event(), arena.event(), arena.event())
                for _ in range(RING)
            )
            for count in sorted(set(counts), reverse=True):
                self._ready(count)
        except DeviceLost:
            raise
        except BaseException as e:
            if self._turns:
                # A context that was opened, or half of one, may have set itself up on the stream.
                try:
                    self.drain()
                except OutOfMemory:
                    raise DeviceLost("the GPU cannot say whether it is done") from e
            arena.close()
            raise

    def _allocate(self, n_bytes: int) -> int:
        self._bytes += n_bytes
        if self._bytes > self._most_bytes:
            raise OutOfMemory(f"{self._bytes >> 20} MiB of a GPU would be more than {self._most_bytes >> 20}")
        return self._arena.allocate(n_bytes)

    def _ready(self, count: int) -> Bound:
        """The network for so many slices; the first, the largest, makes the scratch of all."""
        if count in self._bound:
            return self._bound[count]
        shape = self.shape
        bound = self._bound[count] = self._program.open(
            count, shape.padded_rows, shape.padded_columns, self._work
        )
        self._arena.own(bound.close)
        if bound.scratch > self._scratch:
            self._scratch = bound.scratch
            self._at["scratch"] = self._allocate(bound.scratch)
        bound.bind(x=self._at["x"], c=self._at["c"], r=self._at["r"], scratch=self._at["scratch"])
        return bound

    def submit(self, k: int, step: Step, slab: Slab) -> None:
        """Enqueue the k-th group: its slices up, and all work on them."""
        device, shape, turn = self._device, self.shape, self._turns[k % RING]
        stage = (k % RING) * self.room.bucket
        items = np.zeros(step.count, kernels.ITEM)
        at = self._up_slices
        for i, slot in step.uploads:
            turn.up.write(at, slab.slices[i])
            device.upload(
                self._at["slices"] + slot * shape.pixels * FLOAT, turn.up, at, shape.pixels * FLOAT,
                self._copies,
            )  # fmt: skip
            at += shape.pixels * FLOAT
        at = self._up_masks
        for j in range(step.count):
            item, valid = slab.items[step.first + j], slab.valid[step.first + j]
            mask = -1
            if shape.guarded and valid is not None:
                mask = stage + j
                turn.up.write(at, valid)
                device.upload(
                    self._at["masks"] + mask * shape.pixels, turn.up, at, shape.pixels, self._copies
                )
                at += shape.pixels
            bounds = (item.largest, item.tolerance)
            items[j] = (*step.slots[j], mask, item.c, *bounds, slab.unit_x, slab.unit_r)
        turn.up.write(0, items)
        device.upload(
            self._at["items"] + stage * kernels.ITEM.itemsize, turn.up, 0, items.nbytes, self._copies
        )
        device.record(turn.sent, self._copies)
        device.wait(self._work, turn.sent)
        self._run(step.count, k % RING, slab.region)
        device.record(turn.computed, self._work)

    def fetch(self, k: int, step: Step) -> None:
        """Enqueue the way back of the k-th group."""
        device, turn, n = self._device, self._turns[k % RING], step.count
        pixels = self.shape.factor**2 * self.shape.pixels
        device.wait(self._copies, turn.computed)
        device.download(turn.down, 0, self._out(k % RING), n * pixels * FLOAT, self._copies)
        device.download(
            turn.down, self._down_said, self._said(k % RING), n * kernels.SAID.itemsize, self._copies
        )
        device.record(turn.fetched, self._copies)

    def collect(self, k: int, step: Step) -> list[Answer]:
        """Wait for the k-th group and take its answers."""
        turn = self._turns[k % RING]
        self._patience.until(turn.fetched)
        said = turn.down.read(self._down_said, (step.count,), kernels.SAID)
        size = self.shape.factor**2 * self.shape.pixels * FLOAT
        return [
            Answer(
                values=turn.down.read(j * size, self.shape.out, np.float32),
                finite=not int(said[j]["broken"]),
                # Of the last round that was needed.
                worst=float(next((w for w in said[j]["worst"][::-1] if w), 0.0)),
            )
            for j in range(step.count)
        ]

    def drain(self) -> None:
        """Wait until nothing runs; what was on its way is lost."""
        turn = self._turns[0]
        for event, stream in ((turn.computed, self._work), (turn.fetched, self._copies)):
            self._device.record(event, stream)
            self._patience.until(event)

    def close(self) -> None:
        """Give everything back; nothing may be running."""
        self._forget_graphs()
        self._arena.close()

    def _out(self, stage: int) -> int:
        return self._at["out"] + stage * self._down_said

    def _said(self, stage: int) -> int:
        return self._at["said"] + stage * self.room.bucket * kernels.SAID.itemsize

    def _run(self, count: int, stage: int, region: Region | None) -> None:
        """All work on a group, as a graph where that can be."""
        bound = self._ready(count)
        if region != self._region:
            # What a region is lies in the arguments of the launches that were captured.
            self._forget_graphs()
            self._region = region
        key = (count, stage)
        if key not in self._graphs and self._graphs_wanted and bound.capturable and count in self._used:
            self._capture(key, lambda: self._launch(bound, count, stage, region, captured=True))
        if key in self._graphs:
            self._device.replay(self._graphs[key], self._work)
            return
        self._launch(bound, count, stage, region, captured=False)
        self._used.add(count)

    def _capture(self, key: tuple[int, int], work: Callable[[], None]) -> None:
        try:
            self._device.begin_capture(self._work)
        except CaptureFailed:
            self._graphs_wanted = False
            return
        try:
            work()
        except (OutOfMemory, CaptureFailed) as e:
            with contextlib.suppress(CaptureFailed):
                self._device.drop_graph(self._device.end_capture(self._work))
            if isinstance(e, OutOfMemory):
                raise
            self._graphs_wanted = False
            return
        try:
            self._graphs[key] = self._device.end_capture(self._work)
        except CaptureFailed:
            self._graphs_wanted = False

    def _forget_graphs(self) -> None:
        while self._graphs:
            graph = self._graphs.popitem()[1]
            try:
                self._device.drop_graph(graph)
            except OutOfMemory as e:
                raise DeviceLost("the GPU does not take back what it gave") from e

    def _launch(self, bound: Bound, n: int, stage: int, region: Region | None, *, captured: bool) -> None:
        shape, at = self.shape, self._at
        rows, columns = number(shape.rows), number(shape.columns)
        padded = (number(shape.padded_rows), number(shape.padded_columns))
        items = address(at["items"] + stage * self.room.bucket * kernels.ITEM.itemsize)
        masks, said, out = address(at["masks"]), address(self._said(stage)), address(self._out(stage))
        total, count = address(at["total"]), address(at["count"])
        x, c, r = address(at["x"]), address(at["c"]), address(at["r"])
        wide = _grid(shape.padded_rows, shape.padded_columns, n)
        size = shape.out
        self._kernel("gather", wide, [address(at["slices"]), items, said, x, c, rows, columns, *padded])
        bound.enqueue(self._work, captured=captured)
        padded_out = tuple(number(shape.factor * p.value) for p in padded)
        self._kernel(
            "first",
            _grid(*size, n),
            [
                r,
                items,
                masks,
                said,
                out,
                number(size[0]),
                number(size[1]),
                *padded_out,
                number(shape.guarded),
            ],
        )
        if region is None:
            return
        pixelwise = _grid(shape.rows, shape.columns, n)
        strips = _grid(-(-shape.rows // kernels.STRIP), shape.columns, n)
        excess = address(at["excess"])
        size_in = [rows, columns]
        if region.radius:
            radius = number(region.radius)
            self._kernel(
                "sums", strips, [out, items, masks, total, count, said, *size_in, radius, radius, number(0)]
            )
            self._kernel("lock", pixelwise, [out, items, masks, total, count, *size_in, radius])
        side = (min(region.side[0], shape.rows), min(region.side[1], shape.columns))
        side_y, side_x, down = number(side[0]), number(side[1]), number(side[0] - 1)
        for i in range(kernels.SETTLING + 1):
            turn = number(i)
            self._kernel(
                "sums", strips, [out, items, masks, total, count, said, *size_in, number(0), down, turn]
            )
            self._kernel(
                "regions", pixelwise, [total, count, items, said, excess, *size_in, side_y, side_x, turn]
            )
            if i == kernels.SETTLING:
                break
            self._kernel(
                "spread", pixelwise, [excess, items, said, total, count, *size_in, side_y, side_x, turn]
            )
            self._kernel("settle", pixelwise, [out, items, masks, total, count, said, *size_in, side_x, turn])

    def _kernel(self, name: str, grid: Extent, arguments: Sequence[Argument]) -> None:
        self._device.launch(name, grid, kernels.BLOCK, arguments, self._work)


def _grid(rows: int, columns: int, n: int) -> Extent:
    return -(-columns // kernels.BLOCK[0]), -(-rows // kernels.BLOCK[1]), n
