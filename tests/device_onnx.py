"""A stand-in for a GPU, for tests; it says so in its name. What it is instead:

- its memory is memory of this process, full of NaN until something is written;
- its streams are queues. Nothing on them runs before an event is asked for, and then only what that event needs:
  the laziest order that the rules of CUDA allow;
- its kernels are the real ones, compiled as C++ (tests/kernels_cpp.py), and the network is really run, by ONNX
  Runtime on the CPU;
- it keeps the clocks of its streams and of the host, so that two accesses to the same bytes of which neither is
  ordered before the other are a :class:`Hazard`, whether or not they did harm;
- it counts its calls, and any of them can be made to fail.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engines.base import Floats
from engines.errors import DeviceLost, OutOfMemory
from engines.runtime import kernels
from engines.runtime.device import Argument, CaptureFailed, Extent, Memory, Pinned
from tests import kernels_cpp

NAME = "a stand-in for a GPU, for tests"

Failure = Literal["memory", "error", "hang", "capture"]
Clock = dict[int, int]
Range = tuple[int, int]


class Hazard(AssertionError):
    """The order of work was not enforced by anything."""


@dataclass(slots=True)
class _Op:
    """Something enqueued: what it does, what it touches, and what must be done before it."""

    what: str
    stream: int
    number: int
    clock: Clock
    work: Callable[[], Any] | None = None
    after: list[_Op] = field(default_factory=list)
    done: bool = False


@dataclass(slots=True)
class _Access:
    start: int
    end: int
    writes: bool
    stream: int
    number: int
    what: str


@dataclass(slots=True)
class _Call:
    """What a graph replays."""

    what: str
    work: Callable[[], Any]
    reads: list[Range]
    writes: list[Range]


class HostMemory:
    """Pinned memory: every access of the host is looked at."""

    def __init__(self, device: StandIn, size: int) -> None:
        self._device = device
        self.bytes = np.full(size, 0xFF, np.uint8)
        self.address = int(self.bytes.ctypes.data)

    @property
    def size(self) -> int:
        return int(self.bytes.size)

    def write(self, at: int, values: npt.NDArray[Any]) -> None:
        flat = np.ascontiguousarray(values).view(np.uint8).ravel()
        assert 0 <= at <= at + flat.size <= self.size, "beyond the pinned memory"
        self._device.touched_by_host((self.address + at, self.address + at + flat.size), writes=True)
        self.bytes[at : at + flat.size] = flat

    def read(self, at: int, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
        dtype = np.dtype(kind)
        n = int(np.prod(shape)) * dtype.itemsize
        assert 0 <= at <= at + n <= self.size, "beyond the pinned memory"
        self._device.touched_by_host((self.address + at, self.address + at + n), writes=False)
        taken: npt.NDArray[Any] = self.bytes[at : at + n].copy().view(dtype).reshape(shape)
        return taken


class StandIn:
    """Meets :class:`engines.runtime.device.Device`.

    Parameters
    ----------
    total
        Bytes of its memory.
    fail_at, failure
        Which of its calls fails, from 1, and how: no memory, an error, never an answer again, or a capture that
        comes to nothing.
    hasty
        Copies to the device run as soon as nothing that they were told to wait for is left: the most that they
        can be early.
    """

    name = NAME

    def __init__(
        self, total: int = 1 << 30, *, fail_at: int = 0, failure: Failure = "error", hasty: bool = False
    ) -> None:
        self.total, self.used, self.peak = total, 0, 0
        self.hasty = hasty
        self.fail_at, self.failure = fail_at, failure
        self.calls = 0
        self.trace: list[str] = []
        self.now = 0.0
        self.held: dict[str, set[int]] = {k: set() for k in ("memory", "pinned", "stream", "event", "graph")}
        self.lost = self.hung = self.entered = False
        self._memory: dict[int, npt.NDArray[np.uint8]] = {}
        self._pinned: dict[int, HostMemory] = {}
        self._streams: dict[int, list[_Op]] = {}
        self._counts: dict[int, int] = {}
        self._events: dict[int, _Op | None] = {}
        self._asked: set[int] = set()
        self._graphs: dict[int, list[_Call]] = {}
        self._capture: tuple[int, list[_Call]] | None = None
        self._accesses: dict[tuple[int, int, int, bool], _Access] = {}
        self._waits: dict[int, list[_Op]] = {}
        self._seen: Clock = {}
        self._next = 1
        self._uploads: list[tuple[Range, _Op]] = []
        self._found: list[tuple[Range, _Op]] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def empty(self) -> bool:
        """Whether everything was given back."""
        return not any(self.held.values()) and self.used == 0

    def call(self, name: str) -> None:
        """Every call goes through here: it may be the one that fails."""
        assert not self.lost, f"{name}: a call after the device was lost"
        self.calls += 1
        self.trace.append(name)
        if self.calls != self.fail_at:
            return
        if self.failure == "memory":
            raise OutOfMemory("the stand-in was told to have no memory")
        if self.failure == "error":
            self.lost = True
            raise DeviceLost("the stand-in was told to fail")
        if self.failure == "hang":
            self.hung = True
        elif self._capture is not None or name == "begin_capture":
            raise CaptureFailed("the stand-in was told not to capture")

    def _number(self) -> int:
        self._next += 1
        return self._next

    def enter(self) -> None:
        self.call("enter")
        self.entered = True

    def memory(self) -> Memory:
        self.call("memory")
        return Memory(free=self.total - self.used, total=self.total)

    def allocate(self, n_bytes: int) -> int:
        self.call("allocate")
        assert self.entered
        if self.used + n_bytes > self.total:
            raise OutOfMemory("the stand-in's memory is full")
        self.used += n_bytes
        self.peak = max(self.peak, self.used)
        made = np.full(n_bytes + 256, 0xFF, np.uint8)
        address = -(-int(made.ctypes.data) // 256) * 256
        self._memory[address] = made
        self.held["memory"].add(address)
        return address

    def release(self, address: int) -> None:
        self.call("release")
        size = self._memory[address].size - 256
        self._idle((address, address + size), "memory is given back")
        self.used -= size
        del self._memory[address]
        self.held["memory"].remove(address)

    def pin(self, n_bytes: int) -> HostMemory:
        self.call("pin")
        made = HostMemory(self, n_bytes)
        self._pinned[made.address] = made
        self.held["pinned"].add(made.address)
        return made

    def unpin(self, pinned: Pinned) -> None:
        self.call("unpin")
        assert isinstance(pinned, HostMemory)
        self._idle((pinned.address, pinned.address + pinned.size), "pinned memory is given back")
        del self._pinned[pinned.address]
        self.held["pinned"].remove(pinned.address)

    def stream(self) -> int:
        self.call("stream")
        made = self._number()
        self._streams[made], self._counts[made], self._waits[made] = [], 0, []
        self.held["stream"].add(made)
        return made

    def drop_stream(self, stream: int) -> None:
        self.call("drop_stream")
        assert all(self._observed(op) for op in self._streams[stream]), "a stream is dropped at work"
        self.held["stream"].remove(stream)

    def event(self) -> int:
        self.call("event")
        made = self._number()
        self._events[made] = None
        self.held["event"].add(made)
        return made

    def drop_event(self, event: int) -> None:
        self.call("drop_event")
        del self._events[event]
        self.held["event"].remove(event)

    def record(self, event: int, stream: int) -> None:
        self.call("record")
        self._events[event] = self._enqueue("event", stream, None, [], [])
        self._asked.discard(event)

    def wait(self, stream: int, event: int) -> None:
        self.call("wait")
        op = self._events[event]
        if op is not None:
            self._waits[stream].append(op)

    def done(self, event: int) -> bool:
        self.call("done")
        if self.hung:
            return False
        op = self._events[event]
        if op is None:
            return True
        if event not in self._asked:  # Never at once: whoever does not wait is found out.
            self._asked.add(event)
            return False
        self._perform(op)
        _merge(self._seen, op.clock)
        self._accesses = {k: a for k, a in self._accesses.items() if self._seen.get(a.stream, 0) < a.number}
        return True

    def upload(self, address: int, pinned: Pinned, at: int, n_bytes: int, stream: int) -> None:
        self.call("upload")
        assert isinstance(pinned, HostMemory)
        assert 0 <= at <= at + n_bytes <= pinned.size
        source = pinned.address + at
        self._copy("upload", address, source, n_bytes, stream)

    def download(self, pinned: Pinned, at: int, address: int, n_bytes: int, stream: int) -> None:
        self.call("download")
        assert isinstance(pinned, HostMemory)
        assert 0 <= at <= at + n_bytes <= pinned.size
        self._copy("download", pinned.address + at, address, n_bytes, stream)

    def _copy(self, what: str, to: int, source: int, n: int, stream: int) -> None:
        self.enqueue(
            what, stream, lambda: ctypes.memmove(to, source, n), [(source, source + n)], [(to, to + n)]
        )

    def launch(
        self, kernel: str, grid: Extent, block: Extent, arguments: Sequence[Argument], stream: int
    ) -> None:
        self.call(f"launch {kernel}")
        kept = list(arguments)
        reads, writes = touched(kernel, [a.value for a in kept], grid)

        def work() -> list[Range]:
            kernels_cpp.launch(kernel, grid, block, kept)
            return chosen(kernel, [a.value for a in kept], grid)

        self.enqueue(kernel, stream, work, reads, writes)

    def begin_capture(self, stream: int) -> None:
        self.call("begin_capture")
        assert self._capture is None
        self._capture = (stream, [])

    def end_capture(self, stream: int) -> int:
        assert self._capture is not None
        assert self._capture[0] == stream
        try:
            self.call("end_capture")
        finally:
            captured, self._capture = self._capture[1], None
        made = self._number()
        self._graphs[made] = captured
        self.held["graph"].add(made)
        return made

    def replay(self, graph: int, stream: int) -> None:
        self.call("replay")
        for one in self._graphs[graph]:
            self._enqueue(one.what, stream, one.work, one.reads, one.writes)

    def drop_graph(self, graph: int) -> None:
        self.call("drop_graph")
        del self._graphs[graph]
        self.held["graph"].remove(graph)

    def close(self) -> None:
        try:
            self.call("close")
        except OutOfMemory as e:
            raise DeviceLost("the stand-in does not take back what it gave") from e

    def enqueue(
        self,
        what: str,
        stream: int,
        work: Callable[[], Any],
        reads: list[Range],
        writes: list[Range],
    ) -> None:
        """Put work on a stream, or into the capture that is on."""
        for start, end in reads + writes:
            assert self._owns(start, end), f"{what} touches what is nobody's"
        if self._capture is not None:
            assert self._capture[0] == stream, "a capture of one stream"
            self._capture[1].append(_Call(what, work, reads, writes))
            return
        self._enqueue(what, stream, work, reads, writes)

    def touched_by_host(self, where: Range, *, writes: bool) -> None:
        """The host reads or writes pinned memory, now."""
        for a in self._accesses.values():
            if _overlap(where, a) and (writes or a.writes) and self._seen.get(a.stream, 0) < a.number:
                raise Hazard(f"the host {'writes' if writes else 'reads'} what {a.what} may still use")

    def _enqueue(
        self,
        what: str,
        stream: int,
        work: Callable[[], Any] | None,
        reads: list[Range],
        writes: list[Range],
    ) -> _Op:
        queue = self._streams[stream]
        self._counts[stream] += 1
        op = _Op(what, stream, self._counts[stream], dict(self._seen), work)
        op.after = self._waits[stream] + queue[-1:]
        self._waits[stream] = []
        for earlier in op.after:
            _merge(op.clock, earlier.clock)
        op.clock[stream] = op.number
        for where, writing in [(r, False) for r in reads] + [(w, True) for w in writes]:
            for a in self._accesses.values():
                ordered = op.clock.get(a.stream, 0) >= a.number
                if _overlap(where, a) and (writing or a.writes) and not ordered:
                    raise Hazard(f"{what} and {a.what} touch the same memory, in no order")
        # What comes after the last of a stream's equal accesses comes after all of them.
        for writing, ranges in ((False, reads), (True, writes)):
            for start, end in ranges:
                made = _Access(start, end, writing, stream, op.number, what)
                self._accesses[stream, start, end, writing] = made
        queue.append(op)
        if what == "upload":
            self._uploads += [(w, op) for w in writes]
            if self.hasty and all(o.done for o in op.after):
                self._perform(op)
        return op

    def _perform(self, op: _Op) -> None:
        """Run what an event needs and nothing else."""
        waiting = [op]
        while waiting:
            top = waiting[-1]
            before = [o for o in top.after if not o.done]
            if before:
                waiting += before
                continue
            waiting.pop()
            if not top.done:
                found = top.work() if top.work is not None else None
                if isinstance(found, list):
                    self._found += [(where, top) for where in found]
                top.done, top.after, top.work = True, [], None

    def check(self) -> None:
        """Whether slots and masks, known only when they were read, were read in an order with their writing."""
        for where, reader in self._found:
            for there, upload in self._uploads:
                if not (where[0] < there[1] and there[0] < where[1]):
                    continue
                after = reader.clock.get(upload.stream, 0) >= upload.number
                before = upload.clock.get(reader.stream, 0) >= reader.number
                if not after and not before:
                    raise Hazard(f"{reader.what} reads a slot that an upload writes, in no order")

    def _observed(self, op: _Op) -> bool:
        return self._seen.get(op.stream, 0) >= op.number

    def _idle(self, where: Range, why: str) -> None:
        for a in self._accesses.values():
            if _overlap(where, a) and self._seen.get(a.stream, 0) < a.number:
                raise Hazard(f"{why} while {a.what} may still use it")

    def _owns(self, start: int, end: int) -> bool:
        sizes = [(a, a + m.size - 256) for a, m in self._memory.items()]
        sizes += [(a, a + p.size) for a, p in self._pinned.items()]
        return start == end or any(low <= start and end <= high for low, high in sizes)


def _merge(clock: Clock, other: Clock) -> None:
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)


def _overlap(where: Range, access: _Access) -> bool:
    return where[0] < access.end and access.start < where[1]


def touched(kernel: str, a: Sequence[Any], grid: Extent) -> tuple[list[Range], list[Range]]:
    """What a kernel reads and writes, from its arguments. Slots and masks are counted as far as they are read."""
    n = grid[2]
    item, said = n * kernels.ITEM.itemsize, n * kernels.SAID.itemsize

    def some(at: int, n_bytes: int) -> Range:
        return (int(at), int(at) + n_bytes)

    if kernel == "gather":
        plane = 4 * n * a[7] * a[8]
        return [some(a[1], item)], [some(a[2], said), some(a[3], 3 * plane), some(a[4], plane)]
    if kernel == "first":
        pixels = 4 * n * a[5] * a[6]
        return [some(a[0], 4 * n * a[7] * a[8]), some(a[1], item)], [some(a[3], said), some(a[4], pixels)]
    if kernel == "lock":
        pixels = 4 * n * a[5] * a[6]
        return [some(a[1], item), some(a[3], pixels), some(a[4], pixels)], [some(a[0], pixels)]
    if kernel == "regions":
        pixels = 4 * n * a[5] * a[6]
        reads = [some(a[0], pixels), some(a[1], pixels), some(a[2], item)]
        return reads, [some(a[3], said), some(a[4], pixels)]
    if kernel == "spread":
        pixels = 4 * n * a[5] * a[6]
        reads = [some(a[0], pixels), some(a[1], item), some(a[2], said)]
        return reads, [some(a[3], pixels), some(a[4], pixels)]
    pixels = 4 * n * a[6] * a[7]
    told = [some(a[1], item), some(a[5], said)]
    if kernel == "sums":
        return [some(a[0], pixels), *told], [some(a[3], pixels), some(a[4], pixels)]
    assert kernel == "settle"
    return [some(a[3], pixels), some(a[4], pixels), *told], [some(a[0], pixels)]


def chosen(kernel: str, a: Sequence[Any], grid: Extent) -> list[Range]:
    """What a kernel reads where its items say: slots of slices, masks. Known when it runs, not before."""
    if kernel in ("regions", "spread"):
        return []
    raw = ctypes.string_at(int(a[1]), grid[2] * kernels.ITEM.itemsize)
    items = np.frombuffer(raw, kernels.ITEM)
    at = 6 if kernel in ("sums", "settle") else 5
    pixels = int(a[at] * a[at + 1])
    if kernel == "gather":
        slots = {int(item[k]) for item in items for k in ("below", "self", "above")}
        return [(int(a[0]) + 4 * pixels * s, int(a[0]) + 4 * pixels * (s + 1)) for s in slots]
    masks = [int(m) for m in items["mask"] if m >= 0]
    return [(int(a[2]) + pixels * m, int(a[2]) + pixels * (m + 1)) for m in masks]


class OnnxContext:
    """A network for one shape: meets :class:`engines.runtime.device.Bound`."""

    def __init__(self, program: OnnxProgram, n: int, rows: int, columns: int) -> None:
        self._program, self._size = program, (n, rows, columns)
        self._places: dict[str, int] = {}
        self._used = False

    @property
    def scratch(self) -> int:
        n, rows, columns = self._size
        return self._program.scratch_per_pixel * n * rows * columns

    @property
    def capturable(self) -> bool:
        return self._program.capturable

    def bind(self, *, x: int, c: int, r: int, scratch: int) -> None:
        self._program.device.call("bind")
        self._places = {"x": x, "c": c, "r": r, "scratch": scratch}

    def enqueue(self, stream: int, *, captured: bool = False) -> None:
        device, program = self._program.device, self._program
        device.call("network")
        if captured:
            assert self._used, "captured before it was ever enqueued"
            if program.refuses_capture:
                raise CaptureFailed("the stand-in's network refuses")
        n, rows, columns = self._size
        plane, f = rows * columns, program.factor
        at, sizes = self._places, {"x": 3 * n * plane, "c": n * plane, "r": f * f * n * plane}
        ranges = {k: (at[k], at[k] + 4 * v) for k, v in sizes.items()}
        scratch = (at["scratch"], at["scratch"] + self.scratch)
        shapes = {"x": (n, 3, rows, columns), "c": (n, 1, rows, columns), "r": (n, 1, f * rows, f * columns)}

        def work() -> None:
            x, c, r = (_floats(at[k], shapes[k]) for k in ("x", "c", "r"))
            r[:] = program.network(x.copy(), c.copy())

        self._used = True
        device.enqueue("network", stream, work, [ranges["x"], ranges["c"]], [ranges["r"], scratch])

    def close(self) -> None:
        self._program.device.call("close context")
        self._program.open_contexts -= 1


class OnnxProgram:
    """Meets :class:`engines.runtime.device.Program`; ``network`` is run for it, on the CPU."""

    def __init__(
        self,
        device: StandIn,
        network: Callable[[Floats, Floats], Floats],
        factor: int = 1,
        *,
        capturable: bool = True,
        refuses_capture: bool = False,
        scratch_per_pixel: int = 8,
    ) -> None:
        self.device, self.network, self.factor = device, network, factor
        self.capturable, self.refuses_capture = capturable, refuses_capture
        self.scratch_per_pixel = scratch_per_pixel
        self.open_contexts = 0

    def open(self, n_slices: int, rows: int, columns: int, stream: int) -> OnnxContext:
        self.device.call("open context")
        self.open_contexts += 1
        return OnnxContext(self, n_slices, rows, columns)

    def close(self) -> None:
        self.device.call("close program")


def _floats(address: int, shape: tuple[int, ...]) -> Floats:
    n = int(np.prod(shape))
    flat = np.ctypeslib.as_array((ctypes.c_float * n).from_address(address))
    return flat.reshape(shape)
