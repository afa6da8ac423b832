"""What a GPU is to the pipeline: memory, streams, events, copies, kernels, graphs, and one compiled network.

This is the seam where a device is put in: engines/runtime/cuda.py and engines/runtime/tensorrt.py are the real
ones. Nothing here waits: whoever asks :meth:`Device.done` decides how long.

Addresses, streams, events and graphs are numbers that mean something to the device that gave them, and to no
other. What is enqueued on one stream runs in order; between streams only events order anything.

Errors, of every call::

    OutOfMemory     no memory for this; what there was before is as it was
    CaptureFailed   a capture came to nothing; plain launches still work
    DeviceLost      everything else: the device is in an unknown state, and not one more call may reach it
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int32, c_uint64
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

Argument: TypeAlias = c_uint64 | c_int32
"""Of a kernel: an address or a number. Real numbers lie in the items, so that a graph fits every series."""

Extent: TypeAlias = tuple[int, int, int]
"""Of a grid or a block, along x, y, z."""


class CaptureFailed(Exception):
    """Launches could not be captured in a graph. Never leaves the pipeline: it launches them one by one then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a device: free for anyone, and all of them."""

    free: int
    total: int


class Pinned(Protocol):
    """Host memory that the device copies from and to by itself."""

    @property
    def size(self) -> int: ...

    def write(self, at: int, values: npt.NDArray[Any]) -> None:
        """Put the bytes of an array (C order) at byte ``at``."""
        ...

    def read(self, at: int, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """Take an array from byte ``at``: a copy, so that the memory may be used again."""
        ...


class Device(Protocol):
    """One GPU, or one MIG slice of one, as one process uses it; calls come from one thread at a time."""

    @property
    def name(self) -> str: ...

    def enter(self) -> None:
        """Make the device that of the calling thread; first of all calls of a thread."""
        ...

    def memory(self) -> Memory: ...

    def allocate(self, n_bytes: int) -> int: ...

    def release(self, address: int) -> None: ...

    def pin(self, n_bytes: int) -> Pinned: ...

    def unpin(self, pinned: Pinned) -> None: ...

    def stream(self) -> int: ...

    def drop_stream(self, stream: int) -> None: ...

    def event(self) -> int: ...

    def drop_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None:
        """The event happens when all that is enqueued on the stream so far is done."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """What is enqueued on the stream from now on starts after the event as last recorded."""
        ...

    def done(self, event: int) -> bool:
        """Whether the event, as last recorded, has happened."""
        ...

    def upload(self, address: int, pinned: Pinned, at: int, n_bytes: int, stream: int) -> None: ...

    def download(self, pinned: Pinned, at: int, address: int, n_bytes: int, stream: int) -> None: ...

    def launch(
        self, kernel: str, grid: Extent, block: Extent, arguments: Sequence[Argument], stream: int
    ) -> None:
        """Run a kernel of engines/runtime/kernels.py."""
        ...

    def begin_capture(self, stream: int) -> None: ...

    def end_capture(self, stream: int) -> int:
        """What was enqueued since, as a graph. Raises CaptureFailed; the capture is over in any case."""
        ...

    def replay(self, graph: int, stream: int) -> None: ...

    def drop_graph(self, graph: int) -> None: ...

    def close(self) -> None: ...


class Bound(Protocol):
    """A network for one shape of input. Its addresses are set once, before it is enqueued."""

    @property
    def scratch(self) -> int:
        """Bytes of memory that it works in."""
        ...

    @property
    def capturable(self) -> bool:
        """Whether it may be captured in a graph, once it has been enqueued and has run."""
        ...

    def bind(self, *, x: int, c: int, r: int, scratch: int) -> None: ...

    def enqueue(self, stream: int, *, captured: bool = False) -> None:
        """Run it. While a capture is on, a refusal is CaptureFailed."""
        ...

    def close(self) -> None: ...


class Program(Protocol):
    """A compiled network on a device."""

    @property
    def factor(self) -> int:
        """Pixels along an axis that come out for one that goes in: 1 or 2."""
        ...

    def open(self, n_slices: int, rows: int, columns: int, stream: int) -> Bound:
        """The network for inputs x [n, 3, rows, columns] and c [n, 1, rows, columns]."""
        ...

    def close(self) -> None: ...


def address(value: int) -> c_uint64:
    """An address as a kernel's argument."""
    return c_uint64(value)


def number(value: int) -> c_int32:
    """A whole number as a kernel's argument."""
    return c_int32(value)
