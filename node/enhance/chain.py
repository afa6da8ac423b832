"""The pure chain: stored pixels of a series in, stored pixels of the derived series out.

``luminode serve`` and ``luminode enhance`` run this same code, so a problem seen in the one is reproduced with
the other. Memory is bounded by slabs: decoded pixels lie in a scratch file and come back slab by slab, first
to be surveyed, then to be enhanced with their neighbours.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.base import Engine, Enhancement, Params, Survey, Volume, join
from node.dicom.pixels import PixelFormat, decode, pixel_format, to_stored, to_values
from node.dicom.source import Source
from node.dicom.stacks import Stack
from node.errors import SeriesError
from node.model import InstanceHeader

Stored: TypeAlias = npt.NDArray[np.integer[Any]]
Emit: TypeAlias = Callable[["Item", Source, Stored, "Ran"], None]
Tell: TypeAlias = Callable[[str, float], None]

SLAB = 16
_DECODE_AT_ONCE = 16
_BEHIND = 8
"""Instances that may wait to be derived while the engine goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One source instance. ``sha256`` is of the data set at ``offset``; empty where none was recorded."""

    path: Path
    offset: int
    sha256: str
    header: InstanceHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """Which runtime and device made the pixels."""

    runtime: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the engine did to the series as a whole.

    ``figures`` are in the engine's unit: noise before and after, mean and largest change. ``seconds`` are by
    step: decode, survey, enhance, derive (which overlaps enhance). ``n_skipped`` of ``n_slices`` were passed
    through unchanged, for the reasons in ``notes``.
    """

    figures: Mapping[str, float]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    n_slices: int
    n_skipped: int
    runtime: str
    device: str


def run(
    items: Sequence[Item],
    stacks: Sequence[Stack],
    engine: Engine,
    params: Params,
    *,
    scratch: Path,
    emit: Emit,
    wanted: Set[str] | None = None,
    tell: Tell = lambda _step, _share: None,
    slab: int = SLAB,
) -> Report:
    """Enhance a series.

    Parameters
    ----------
    items
        Source instances; every frame of every stack belongs to one of them.
    stacks
        Of ``node.dicom.stacks.stacks``: what may be neighbours.
    engine, params
        What to do.
    scratch
        A folder of this call's own.
    emit
        Called once per wanted instance, from one other thread, with its new stored pixels
        (frames, rows, columns).
    wanted
        SOP Instance UIDs to emit; None means all. The others still serve as neighbours.
    tell
        Called with (step, share done) after every slab; may raise to stop.
    slab
        Slices worked on at once.

    Raises
    ------
    SeriesError
        Pixels cannot be decoded, or the spooled bytes are not those that were received.
    engines.errors.EngineError
        See there.
    """
    clock = _Clock()
    with _Scratch(scratch) as kept:
        for i, item in enumerate(items):
            with clock.step("decode"):
                kept.take(item)
            tell("decode", (i + 1) / len(items))
        n_total = sum(len(s.frames) for s in stacks)
        surveys = _survey(stacks, engine, kept, slab, clock, tell, n_total)
        tally = _Tally()
        with _Emitter(emit, kept, clock) as emitter:
            emitter.expect(items, stacks, wanted)
            done = 0
            for stack, survey in zip(stacks, surveys, strict=True):
                for first, last in _slabs(len(stack.frames), slab):
                    if emitter.wants(stack, first, last):
                        with clock.step("enhance"):
                            result = _enhance(stack, first, last, engine, params, survey, kept)
                        tally.add(result, last - first)
                        ran = Ran(runtime=result.runtime, device=result.device)
                        emitter.done(stack, first, last, ran)
                    done += last - first
                    tell("enhance", done / n_total)
    return tally.report(clock.seconds)


def _survey(
    stacks: Sequence[Stack],
    engine: Engine,
    kept: _Scratch,
    slab: int,
    clock: _Clock,
    tell: Tell,
    n_total: int,
) -> list[Survey]:
    surveys, done = [], 0
    for stack in stacks:
        parts = []
        for first, last in _slabs(len(stack.frames), slab):
            with clock.step("survey"):
                parts.append(engine.survey(kept.volume(stack, first, last)))
            done += last - first
            tell("survey", done / n_total)
        surveys.append(join(parts))
    return surveys


def _enhance(
    stack: Stack,
    first: int,
    last: int,
    engine: Engine,
    params: Params,
    survey: Survey,
    kept: _Scratch,
) -> Enhancement:
    k = engine.card.neighbours
    low, high = max(0, first - k), min(len(stack.frames), last + k)
    volume = kept.volume(stack, low, high)
    result = engine.enhance(volume, params, survey, first=low, keep=slice(first - low, last - low))
    kept.put(stack, first, result.volume)
    return result


def _slabs(n: int, slab: int) -> Iterator[tuple[int, int]]:
    for first in range(0, n, slab):
        yield first, min(first + slab, n)


@dataclass(slots=True)
class _Place:
    """Where an instance lies in the scratch files, and how it is stored."""

    item: Item
    fmt: PixelFormat
    at: int
    remaining: int = 0

    @property
    def frame_bytes(self) -> int:
        return self.fmt.rows * self.fmt.columns * self.fmt.dtype.itemsize


class _Scratch:
    """Decoded pixels before and after, in two files with the same layout."""

    def __init__(self, folder: Path) -> None:
        self._before_path, self._after_path = folder / "before.raw", folder / "after.raw"
        self._end = 0
        self.places: dict[str, _Place] = {}

    def __enter__(self) -> _Scratch:
        self._before: BinaryIO = self._before_path.open("w+b")
        self._after: BinaryIO = self._after_path.open("w+b")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._before.close()
        self._after.close()
        self._before_path.unlink(missing_ok=True)
        self._after_path.unlink(missing_ok=True)

    def take(self, item: Item) -> None:
        """Verify, decode and put away one instance."""
        if item.sha256:
            with item.path.open("rb") as file:
                file.seek(item.offset)
                if hashlib.file_digest(file, "sha256").hexdigest() != item.sha256:
                    raise SeriesError(
                        "the bytes in the spool are not those that were received",
                        hint="the disk is failing: `luminode spool fsck` names the files; send the series again",
                    )
        source = Source.open(item.path)
        fmt = pixel_format(source)
        self._before.seek(self._end)
        for first in range(0, fmt.n_frames, _DECODE_AT_ONCE):
            frames = range(first, min(first + _DECODE_AT_ONCE, fmt.n_frames))
            self._before.write(decode(source, frames).data)
        place = _Place(item=item, fmt=fmt, at=self._end)
        self.places[item.header.sop_instance_uid] = place
        self._end += place.frame_bytes * fmt.n_frames

    def volume(self, stack: Stack, first: int, last: int) -> Volume:
        """Slices [first, last) of a stack, as an engine wants them."""
        refs = stack.frames[first:last]
        places = [self.places[r.sop_instance_uid] for r in refs]
        units = {p.fmt.unit for p in places}
        shapes = {(p.fmt.rows, p.fmt.columns) for p in places}
        if len(units) != 1 or len(shapes) != 1:
            raise SeriesError("slices of one stack differ in matrix or unit")
        shape = (len(refs), *shapes.pop())
        values, valid = np.empty(shape, np.float32), np.empty(shape, np.bool_)
        step = np.empty(len(refs), np.float32)
        for i, (ref, place) in enumerate(zip(refs, places, strict=True)):
            stored = self._read(self._before, place, ref.frame_number - 1)
            v = to_values(stored, place.fmt, first=ref.frame_number - 1)
            values[i], valid[i], step[i] = v.values[0], v.valid[0], v.step[0]
        return Volume(
            values=values,
            spacing_mm=stack.spacing_mm,
            unit=units.pop(),
            valid=valid,
            contiguous=np.asarray(stack.contiguous[first:last], np.bool_),
            step=step,
        )

    def put(self, stack: Stack, first: int, result: Volume) -> None:
        """Encode enhanced slices as their source was and put them away."""
        for i in range(result.values.shape[0]):
            ref = stack.frames[first + i]
            place, frame = self.places[ref.sop_instance_uid], ref.frame_number - 1
            stored = self._read(self._before, place, frame)
            valid = to_values(stored, place.fmt, first=frame).valid
            out = to_stored(result.values[i : i + 1], stored, valid, place.fmt, first=frame)
            self._after.seek(place.at + frame * place.frame_bytes)
            self._after.write(np.ascontiguousarray(out).data)

    def result(self, place: _Place) -> Stored:
        self._after.flush()
        size = place.fmt.n_frames * place.fmt.rows * place.fmt.columns
        with self._after_path.open("rb") as file:  # its own position: the engine's thread writes on
            file.seek(place.at)
            data = np.fromfile(file, place.fmt.dtype, size)
        return data.reshape(place.fmt.shape)

    def _read(self, file: BinaryIO, place: _Place, frame: int) -> Stored:
        file.seek(place.at + frame * place.frame_bytes)
        data = np.frombuffer(file.read(place.frame_bytes), place.fmt.dtype)
        return data.reshape(1, place.fmt.rows, place.fmt.columns)


class _Emitter:
    """Derives instances in one other thread as soon as all of their frames are there."""

    def __init__(self, emit: Emit, kept: _Scratch, clock: _Clock) -> None:
        self._emit, self._kept, self._clock = emit, kept, clock
        self._pool = ThreadPoolExecutor(1, "derive")
        self._behind: list[Future[None]] = []
        self._wanted: dict[str, _Place] = {}

    def __enter__(self) -> _Emitter:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        try:
            if kind is None:
                self._catch_up(0)
                left = [p for p in self._wanted.values() if p.remaining > 0]
                if left:
                    raise SeriesError(f"{len(left)} instances have frames that belong to no stack")
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def expect(self, items: Sequence[Item], stacks: Sequence[Stack], wanted: Set[str] | None) -> None:
        for item in items:
            uid = item.header.sop_instance_uid
            if wanted is None or uid in wanted:
                place = self._kept.places[uid]
                place.remaining = place.fmt.n_frames
                self._wanted[uid] = place
        named = {r.sop_instance_uid for s in stacks for r in s.frames}
        if not set(self._wanted) <= named:
            raise SeriesError("an instance belongs to no stack")

    def wants(self, stack: Stack, first: int, last: int) -> bool:
        return any(r.sop_instance_uid in self._wanted for r in stack.frames[first:last])

    def done(self, stack: Stack, first: int, last: int, ran: Ran) -> None:
        for ref in stack.frames[first:last]:
            place = self._wanted.get(ref.sop_instance_uid)
            if place is None:
                continue
            place.remaining -= 1
            if place.remaining == 0:
                self._catch_up(_BEHIND)
                stored = self._kept.result(place)
                self._behind.append(self._pool.submit(self._one, place, stored, ran))

    def _one(self, place: _Place, stored: Stored, ran: Ran) -> None:
        with self._clock.step("derive"):
            self._emit(place.item, Source.open(place.item.path), stored, ran)

    def _catch_up(self, at_most: int) -> None:
        while len(self._behind) > at_most:
            self._behind.pop(0).result()


@dataclass(slots=True)
class _Clock:
    """Seconds by step. Each step is only ever timed by one thread."""

    seconds: dict[str, float] = field(default_factory=dict)

    def step(self, name: str) -> _Step:
        return _Step(self.seconds, name)


class _Step:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_exc: object) -> None:
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.monotonic() - self._started


_LARGEST = frozenset({"largest_change"})
_SUMS = frozenset({"skipped"})


class _Tally:
    """Figures of slabs put together: means weighted by slices, extremes and sums as such."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, int] = {}
        self._notes: dict[str, None] = {}
        self._n = 0
        self._runtime = self._device = ""

    def add(self, e: Enhancement, n: int) -> None:
        self._n += n
        self._runtime, self._device = e.runtime, e.device
        self._notes.update(dict.fromkeys(e.notes))
        for name, value in e.figures.items():
            if not np.isfinite(value):
                continue
            if name in _LARGEST:
                self._sums[name] = max(self._sums.get(name, 0.0), value)
                self._weights[name] = 1
            elif name in _SUMS:
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._weights[name] = 1
            else:
                self._sums[name] = self._sums.get(name, 0.0) + value * n
                self._weights[name] = self._weights.get(name, 0) + n

    def report(self, seconds: Mapping[str, float]) -> Report:
        figures = {k: v / self._weights[k] for k, v in self._sums.items()}
        return Report(
            figures=figures,
            notes=tuple(self._notes),
            seconds=dict(seconds),
            n_slices=self._n,
            n_skipped=int(figures.get("skipped", 0.0)),
            runtime=self._runtime,
            device=self._device,
        )
