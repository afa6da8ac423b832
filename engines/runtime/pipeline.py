"""Slabs through a device: groups that fit its memory, in flight beside each other, answers in order.

The orchestration knows a device only by engines/runtime/device.py. What it promises:

- an answer that is given is whole: its copy has arrived, and all before it;
- too little memory means smaller groups, and for the smallest OutOfMemory, with everything given back;
- no wait is endless; after DeviceLost not one more call reaches the device, and every later one is refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from engines.base import Floats
from engines.errors import DeviceLost, OutOfMemory, OutputImplausible, RuntimeUnavailable
from engines.runtime.arena import Arena, Patience
from engines.runtime.device import Device, Program
from engines.runtime.network import Answer, Slab
from engines.runtime.profile import Profile
from engines.runtime.schedule import RING, Step, groups, room, steps
from engines.runtime.session import FLOAT, Session, Shape

SHARE = 0.8
"""Of the memory that is free at the start, what is used at most unless the caller says otherwise."""

PATIENCE = 60.0
"""Seconds: a group of 16 slices of 1024 x 1024 through the largest network takes a small GPU about one."""


class Pipeline:
    """A network on a device.

    Parameters
    ----------
    most_bytes
        Of the device's memory, besides the network's weights; 0 means :data:`SHARE` of what is free.
    patience_s
        How long the device may take for one group.
    clock, sleep
        Of the waiting.
    """

    def __init__(
        self,
        device: Device,
        program: Program,
        profile: Profile,
        *,
        most_bytes: int = 0,
        patience_s: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device, self._program, self._profile = device, program, profile
        self._patience = Patience(device, patience_s, clock=clock, sleep=sleep)
        self._lock = threading.Lock()
        self._lost = False
        self._closed = False
        self._session: Session | None = None
        self._limits: dict[Shape, int] = {}
        device.enter()
        self._most_bytes = most_bytes or int(SHARE * device.memory().free)

    def slab(self, slab: Slab, rows: int, columns: int) -> Iterator[Answer]:
        """Run the items of a slab in slices of ``rows`` x ``columns`` (as padded: at least theirs).

        One thread consumes the answers; others wait until it has, or has closed the iterator.

        Raises
        ------
        OutOfMemory
            Not even one slice fits.
        DeviceLost
            The process must end.
        RuntimeUnavailable
            The plan does not hold this size.
        OutputImplausible
            The network's output is of another size than the card says.
        """
        with self._lock:
            self._admit()
            n_rows, n_columns = slab.slices[0].shape
            shape = Shape(
                rows=n_rows,
                columns=n_columns,
                padded_rows=rows,
                padded_columns=columns,
                factor=slab.factor,
                guarded=slab.region is not None,
            )
            self._check(shape.factor, rows, columns)
            try:
                yield from self._answers(slab, shape)
            except DeviceLost:
                self._lost = True
                raise

    def run(self, x: Floats, c: Floats) -> Floats:
        """Run a network on tensors that the caller made; see :class:`engines.runtime.network.Network`."""
        with self._lock:
            self._admit()
            rows, columns = x.shape[-2:]
            self._check(self._program.factor, rows, columns)
            factor = self._program.factor
            out = np.empty((x.shape[0], 1, factor * rows, factor * columns), np.float32)
            try:
                self._drop()
                limit = self._profile.buckets[-1]
                done = 0
                while done < x.shape[0]:
                    count = groups(x.shape[0] - done, self._buckets(limit))[0]
                    part = slice(done, done + count)
                    try:
                        out[part] = self._direct(x[part], c[part])
                    except OutOfMemory as e:
                        limit = self._less(count, e)
                        continue
                    done += count
            except DeviceLost:
                self._lost = True
                raise
            return out

    def enter(self) -> bool:
        """Make the device that of the calling thread; False, and nothing is done, where it is lost or given back."""
        with self._lock:
            if self._closed or self._lost:
                return False
            self._admit()
            return True

    def close(self) -> bool:
        """Give everything back; False if there is nothing to give, or the device is lost."""
        with self._lock:
            if self._closed or self._lost:
                return False
            self._closed = True
            try:
                self._device.enter()
                self._drop()
            except DeviceLost:
                self._lost = True
                raise
            except OutOfMemory as e:
                self._lost = True
                raise DeviceLost("the GPU does not take back what it gave") from e
            return True

    def _admit(self) -> None:
        if self._lost:
            raise DeviceLost("the GPU was lost before", hint="this process must end")
        if self._closed:
            raise RuntimeUnavailable("the network is closed")
        try:
            self._device.enter()
        except DeviceLost:
            self._lost = True
            raise

    def _check(self, factor: int, rows: int, columns: int) -> None:
        if factor != self._program.factor:
            raise OutputImplausible("the network returned another shape than the card promises")
        if self._profile.number(1, rows, columns) is None:
            raise RuntimeUnavailable(
                f"this plan holds no slices of {rows} x {columns}",
                hint="what is larger than the plan is tiled, and what is smaller is padded, by the caller",
            )

    def _buckets(self, limit: int) -> Sequence[int]:
        return [b for b in self._profile.buckets if b <= limit]

    def _less(self, limit: int, why: OutOfMemory) -> int:
        """The next smaller bucket, at most half."""
        smaller = [b for b in self._profile.buckets if 2 * b <= limit]
        if not smaller:
            raise OutOfMemory(
                "the GPU has no memory for one slice",
                hint="end what else uses it, allow more of it, or set the option tile",
            ) from why
        return smaller[-1]

    def _answers(self, slab: Slab, shape: Shape) -> Iterator[Answer]:
        limit = self._limits.get(shape, self._profile.buckets[-1])
        done = 0
        while done < len(slab.items):
            session: Session | None = None
            try:
                planned = steps(slab.items[done:], self._buckets(limit))
                rest = Slab(
                    slices=slab.slices,
                    valid=slab.valid[done:],
                    items=slab.items[done:],
                    unit_x=slab.unit_x,
                    unit_r=slab.unit_r,
                    factor=slab.factor,
                    region=slab.region,
                )
                session = self._opened(shape, planned)
                for k, step in enumerate(planned):
                    if k >= RING:
                        for answer in session.collect(k - RING, planned[k - RING]):
                            done += 1
                            yield answer
                    session.submit(k, step, rest)
                    if k:
                        session.fetch(k - 1, planned[k - 1])
                session.fetch(len(planned) - 1, planned[-1])
                for k in range(max(0, len(planned) - RING), len(planned)):
                    for answer in session.collect(k, planned[k]):
                        done += 1
                        yield answer
            except OutOfMemory as e:
                self._settle()
                limit = self._limits[shape] = self._less(max(s.count for s in planned), e)
            except DeviceLost:
                raise
            except BaseException:
                # The caller stopped, or our own defect: what is on its way must not write into what is free.
                self._settle()
                raise

    def _opened(self, shape: Shape, planned: Sequence[Step]) -> Session:
        need = room(planned)
        if self._session is not None:
            if self._session.shape == shape and self._session.room.holds(need):
                return self._session
            self._drop()
        self._session = Session(
            self._device,
            self._program,
            shape,
            need,
            [s.count for s in planned],
            most_bytes=self._most_bytes,
            patience=self._patience,
        )
        return self._session

    def _settle(self) -> None:
        """After a failure: wait until nothing runs, and give everything back."""
        if self._session is None:
            return
        try:
            self._session.drain()
        except OutOfMemory as e:
            raise DeviceLost("the GPU cannot say whether it is done") from e
        self._drop()

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _direct(self, x: Floats, c: Floats) -> Floats:
        """One group, nothing beside it, everything given back."""
        device, arena = self._device, Arena(self._device)
        n, _, rows, columns = x.shape
        factor = self._program.factor
        shape = (n, 1, factor * rows, factor * columns)
        n_r = n * factor**2 * rows * columns * FLOAT
        started = False
        try:
            stream, event = arena.stream(), arena.event()
            started = True  # a context that is opened may set itself up on the stream
            bound = self._program.open(n, rows, columns, stream)
            arena.own(bound.close)
            if x.nbytes + c.nbytes + n_r + bound.scratch > self._most_bytes:
                raise OutOfMemory(f"more than {self._most_bytes >> 20} MiB of the GPU")
            at_x, at_c, at_r = (arena.allocate(n_bytes) for n_bytes in (x.nbytes, c.nbytes, n_r))
            bound.bind(x=at_x, c=at_c, r=at_r, scratch=arena.allocate(bound.scratch))
            up, down = arena.pin(x.nbytes + c.nbytes), arena.pin(n_r)
            up.write(0, x)
            up.write(x.nbytes, c)
            device.upload(at_x, up, 0, x.nbytes, stream)
            device.upload(at_c, up, x.nbytes, c.nbytes, stream)
            bound.enqueue(stream)
            device.download(down, 0, at_r, n_r, stream)
            device.record(event, stream)
            self._patience.until(event)
            r: Floats = down.read(0, shape, np.float32)
        except DeviceLost:
            raise
        except BaseException as e:
            if started:
                try:
                    device.record(event, stream)
                    self._patience.until(event)
                except OutOfMemory:
                    raise DeviceLost("the GPU cannot say whether it is done") from e
            arena.close()
            raise
        arena.close()
        return r
