"""The pure chain: stored pixels of a series in, stored pixels of the derived series out.

``luminode serve`` and ``luminode enhance`` run this same code, so a problem seen in the one is reproduced
with the other. Memory is bounded by slabs: decoded pixels lie in a scratch file and come back slab by slab,
first to be surveyed, then to be enhanced with their neighbours.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from engines.base import Engine, Params, SliceFigures, Survey, Unit, join
from node.dicom.source import Source
from node.dicom.stacks import Stack, StackFrame
from node.enhance.lanes import in_order
from node.enhance.memo import Key, Memo, Name, keys, name
from node.enhance.scratch import Item, Place, Scratch, Stored
from node.enhance.tally import Clock, Made, Report, Tally
from node.errors import SeriesError

__all__ = ["SLAB", "Before", "Emit", "Item", "Ran", "Report", "Stored", "Tell", "Work", "run"]

Emit: TypeAlias = Callable[[Item, Source, Stored, "Ran"], None]
Tell: TypeAlias = Callable[[str, float], None]
Worked: TypeAlias = Callable[[float, int], None]

SLAB = 16
_SLAB_PIXELS = 1 << 22
"""A slab of large matrices has fewer slices: what it takes, in memory and in time, is the same for all."""
STEADY = 2
"""Slices at either side that the noise of a slice is steadied over (engines/noise.py)."""
CLIPPED = "much of what was made of them lies outside of what their source can store"
_DECODERS = 4
"""Threads that decode, at most: each may hold a file and some frames of it."""
_BEHIND_BYTES = 8 << 20
"""Pixels that may wait to be derived while the engine goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """Which runtime and device made the pixels."""

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
    worked: Worked = lambda _seconds, _n_pixels: None,
    slab: int = SLAB,
    lanes: int | None = None,
    ahead: Before | None = None,
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
        A folder on a disk with room for the decoded pixels; nothing stays in it.
    emit
        Called once per wanted instance, from one other thread, with its new stored pixels
        (frames, rows, columns), ``engine.card.scale`` times those of the source. The Pixel Data of the source that
        it is given may be empty.
    wanted
        SOP Instance UIDs to emit; None means all. The others still serve as neighbours.
    tell
        Called with (step, share done) after every slab, and every few frames that were decoded; may raise to
        stop.
    worked
        Called with the seconds that the engine was at a slab and the pixels that it made, where it made any.
    slab
        Slices worked on at once, at most. No bit of the result depends on it.
    lanes
        Slabs worked on at once, at most; None: as many as the engine asks for. No bit depends on it either.
    ahead
        What was done before all of the series was there; no bit of the result depends on it either.

    Raises
    ------
    SeriesError
        Pixels cannot be decoded, the spooled bytes are not those that were received, or the engine left every
        slice of the whole series as it was.
    StoreError
        No room for the decoded pixels.
    engines.errors.EngineError
        See there.
    Exception
        Whatever ``emit`` or ``tell`` raise. Nothing is emitted any more once this function has ended.
    """
    with ExitStack() as stack:
        if ahead is None:
            kept = stack.enter_context(Scratch(scratch, engine.card.scale))
            memo = Memo(scratch)
            stack.callback(memo.close)
        else:
            kept, memo = ahead.kept, ahead.memo
        work = Work(
            engine=engine, params=params, kept=kept, memo=memo, slab=slab, tell=tell,
            worked=worked, most_lanes=lanes, n_frames=sum(map(len, stacks)),
        )  # fmt: skip
        work.decode(items)
        with _Emitter(emit, kept, work.clock) as emitter:
            emitter.expect(items, stacks, wanted)
            work.enhance(stacks, emitter)
    report = work.tally.report(work.clock.seconds, scale=engine.card.scale)
    if wanted is None or len(wanted) >= len(items):  # what is added to a series is not judged without it
        report.must_have_changed(at_all=params.strength > 0 and engine.card.family != "identity")
    return report


class Before(Protocol):
    """What was done of a series while it came, with the same engine and parameters: decoded pixels and results."""

    @property
    def kept(self) -> Scratch: ...

    @property
    def memo(self) -> Memo: ...


@runtime_checkable
class Threaded(Protocol):
    """An engine that tells of its threads; any other is given one slab after another."""

    @property
    def threads(self) -> int:
        """How many it may use; as many decode."""
        ...

    @property
    def lanes(self) -> int:
        """How many slabs it may be given at once, so that none of its threads waits for the end of a slab."""
        ...

    @property
    def hands(self) -> AbstractContextManager[object]:
        """What whoever works on arrays holds meanwhile."""
        ...


@dataclass(slots=True, eq=False)
class _Asked:
    """A stack that is to be enhanced: its survey, of which the first ``measured`` slices are known and the others are
    NaN, and what came of its slices so far."""

    stack: Stack
    unit: Unit
    survey: Survey
    measured: int = 0
    figures: list[SliceFigures] = field(default_factory=list)

    @classmethod
    def of(cls, stack: Stack, unit: Unit) -> _Asked:
        sigma, high, share, frequency = np.full((4, len(stack)), np.nan, np.float32)
        return cls(stack, unit, Survey(sigma=sigma, high=high, share=share, frequency=frequency))

    def fill(self, last: int, known: Mapping[Name, Survey]) -> None:
        """Take over what is known of slices up to ``last``."""
        mine = self.survey
        for i in range(self.measured, last):
            one = known[name(self.stack.frames[i])]
            mine.sigma[i], mine.high[i] = one.sigma[0], one.high[0]
            mine.share[i], mine.frequency[i] = one.share[0], one.frequency[0]
        self.measured = last


@dataclass(slots=True, kw_only=True)
class Work:
    """Work on one series and its three passes; what ``kept`` and ``memo`` hold already is not done again."""

    engine: Engine
    params: Params
    kept: Scratch
    memo: Memo
    slab: int = SLAB
    tell: Tell = lambda _step, _share: None
    worked: Worked = lambda _seconds, _n_pixels: None
    most_lanes: int | None = None
    n_frames: int = 0
    clock: Clock = field(default_factory=Clock)
    tally: Tally = field(default_factory=Tally)

    @property
    def threads(self) -> int:
        return self.engine.threads if isinstance(self.engine, Threaded) else 1

    @property
    def hands(self) -> AbstractContextManager[object]:
        return self.engine.hands if isinstance(self.engine, Threaded) else nullcontext()

    def decode(self, items: Sequence[Item]) -> None:
        """Verify and decode instances, in the order in which they are given."""
        known = set(self.kept.places)
        new = []
        for i, item in enumerate(items):
            if item.sop_instance_uid in known:
                known.remove(item.sop_instance_uid)
            else:
                new.append(i)
        threads = min(self.threads, _DECODERS)
        opened = in_order(
            lambda i: self.kept.read(items[i]), new, min(threads, len(new)), name="decode", more=1
        )  # fmt: skip
        with closing(opened):
            for i in new:
                with self.clock.step("decode"):
                    for share in self.kept.take(next(opened), threads):
                        self.tell("decode", (i + share) / len(items))

    def measure(self, stack: Stack, first: int, last: int) -> None:
        """Survey slices [first, last) of a stack, those that were not yet; each by itself."""
        self.memo.surveys.update(self.measured(stack, first, last))

    def measured(self, stack: Stack, first: int, last: int) -> dict[Name, Survey]:
        """Surveys of slices [first, last) of a stack that were not measured yet, each by itself."""
        names, new = [name(ref) for ref in stack.frames], {}
        for low, high in _runs([i for i in range(first, last) if names[i] not in self.memo.surveys]):
            with self.hands:
                given = self.kept.slab(stack, low, high)
            found = self.engine.survey(given.volume)
            for i in range(low, high):
                at = slice(i - low, i - low + 1)
                new[names[i]] = Survey(
                    sigma=found.sigma[at], high=found.high[at], share=found.share[at],
                    frequency=found.frequency[at],
                )  # fmt: skip
        return new

    def surveyed(self, stack: Stack) -> Survey:
        """The survey of a stack, all of which is measured."""
        return join([self.memo.surveys[name(ref)] for ref in stack.frames])

    def enhance(self, stacks: Sequence[Stack], emitter: _Emitter) -> None:
        """Measure every slice and make what the emitter expects, each slab when what it depends on is measured."""
        from engines.front import remarks  # numerical libraries are loaded when an engine is

        asked = [_Asked.of(stack, self.kept.unit(stack)) for stack in stacks]
        lanes = self._lanes(stacks)
        slabs = [(one, *part) for one in asked for part in self._slabs(one.stack, lanes)]
        surveying = _Surveying(self, slabs, lanes)
        parts = ((slab, emitter.part(slab[0].stack, *slab[1:])) for slab in surveying.ahead(slabs))
        making = in_order(
            lambda part: self._new(*part), ((s[0], *part) for s, part in parts if part), lanes, name="slab", more=1
        )  # fmt: skip
        done = 0
        with closing(surveying), closing(making):
            for one, first, last in slabs:
                part = emitter.part(one.stack, first, last)
                if part is not None:
                    with self.clock.step("enhance", without="survey"):  # slabs to come are surveyed in it
                        known, new, seconds = next(making)
                    if new:
                        self.worked(seconds, len(new) * one.stack.rows * one.stack.columns)
                    for i, made in self._made(part[0], known, new):
                        self.tally.add(made)
                        one.figures.append(made.figures)
                        emitter.finished(
                            one.stack.frames[i], made.stored, Ran(runtime=made.runtime, device=made.device)
                        )
                done += last - first
                if done == self.n_frames:
                    surveying.finish()
                self.tell("enhance", done / self.n_frames)
        for one in asked:
            if one.figures and self.params.strength > 0:
                self.tally.note(remarks(one.survey, one.stack.spacing_mm, one.unit, one.figures))

    def _new(self, one: _Asked, first: int, last: int) -> tuple[list[Key], dict[int, Made], float]:
        """Keys of slices [first, last) of a stack; those that are not remembered, made now; the seconds it took."""
        began = time.monotonic()
        known = keys(self.engine.card, one.stack, one.survey, one.unit, first, last)
        new: dict[int, Made] = {}
        for low, high in _runs([i for i in range(first, last) if known[i - first] not in self.memo]):
            new.update(zip(range(low, high), self.make(one.stack, low, high, one.survey), strict=True))
        return known, new, time.monotonic() - began

    def _made(self, first: int, known: Sequence[Key], new: dict[int, Made]) -> Iterator[tuple[int, Made]]:
        """Slices from ``first`` on, in order: new, or remembered."""
        for i, key in enumerate(known, first):
            made = new.pop(i, None)
            if made is None:
                made = self.memo.get(key)
                assert made is not None
                self.tally.n_before += 1
            yield i, made

    def make(self, stack: Stack, first: int, last: int, survey: Survey) -> list[Made]:
        """Enhance slices [first, last) of a stack, with their neighbours."""
        from engines.judge import judge  # numerical libraries are loaded when an engine is

        k = self.engine.card.neighbours
        low, high = max(0, first - k), min(len(stack), last + k)
        with self.hands:
            given = self.kept.slab(stack, low, high)
        keep = slice(first - low, last - low)
        result = self.engine.enhance(given.volume, self.params, survey, first=low, keep=keep)
        with self.hands:
            judge(
                given.volume, result.volume, survey, card=self.engine.card, strength=self.params.strength,
                first=low, keep=keep, n_skipped=int(result.figures.get("skipped", 0)),
            )  # fmt: skip
            out = self.kept.encoded(stack, first, given, first - low, result.volume)
            before = given.stored[keep] if self.engine.card.scale == 1 else [None] * len(out)
            return [
                Made(
                    stored=one.stored, figures=figures if one.kept else SliceFigures(reason=CLIPPED),
                    same=was is not None and np.array_equal(one.stored, was),
                    runtime=result.runtime, device=result.device,
                )
                for one, was, figures in zip(out, before, result.slices, strict=True)
            ]  # fmt: skip

    def _lanes(self, stacks: Sequence[Stack]) -> int:
        """Slabs in work at once: as many as the engine asks for, and no more than there may be slices."""
        asked = self.engine.lanes if isinstance(self.engine, Threaded) else 1
        at_once = [slices_at_once(stack, self.engine.card.scale, self.slab) for stack in stacks]
        return min([asked if self.most_lanes is None else min(asked, self.most_lanes), *at_once])

    def _slabs(self, stack: Stack, lanes: int) -> Iterator[tuple[int, int]]:
        # Slabs that are in work at once take together what one would take alone.
        step = slices_at_once(stack, self.engine.card.scale, self.slab) // lanes
        for first in range(0, len(stack), step):
            yield first, min(first + step, len(stack))


_Part: TypeAlias = tuple[_Asked, int, int]


class _Surveying:
    """The surveys of all slabs, in order, a few ahead of whoever needs them."""

    def __init__(self, work: Work, slabs: Sequence[_Part], lanes: int) -> None:
        self._work, self._slabs, self._done = work, iter(slabs), 0
        self._last = [slab[0] for slab in slabs[-1:]]
        self._found = in_order(
            lambda slab: work.measured(slab[0].stack, *slab[1:]), slabs, lanes, name="survey", more=1
        )  # fmt: skip

    def ahead(self, slabs: Sequence[_Part]) -> Iterator[_Part]:
        """Slabs, each when all is measured that its slices depend on: slices near by, or for the scale of its series
        every slice."""
        for one, first, last in slabs:
            far = last + STEADY + self._work.engine.card.neighbours
            self._until(one, len(one.stack) if one.unit != "HU" else min(len(one.stack), far))
            yield one, first, last

    def finish(self) -> None:
        """Measure what is left."""
        for one in self._last:
            self._until(one, len(one.stack))

    def close(self) -> None:
        self._found.close()

    def _until(self, one: _Asked, end: int) -> None:
        while one.measured < end:
            its, first, last = next(self._slabs)
            with self._work.clock.step("survey"):
                self._work.memo.surveys.update(next(self._found))
            its.fill(last, self._work.memo.surveys)
            self._done += last - first
            self._work.tell("survey", self._done / self._work.n_frames)


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending indices as ranges [first, last) without holes."""
    out: list[tuple[int, int]] = []
    for i in indices:
        if out and out[-1][1] == i:
            out[-1] = (out[-1][0], i + 1)
        else:
            out.append((i, i + 1))
    return out


def slices_at_once(stack: Stack, scale: int, slab: int = SLAB) -> int:
    """How many slices of a stack are worked on at once by an engine of this scale, at most."""
    n_pixels = stack.rows * stack.columns * scale**2
    return max(1, min(slab, _SLAB_PIXELS // max(1, n_pixels)))


def slab_pixels(stack: Stack, scale: int) -> int:
    """Pixels that go into an engine between two signs of life, at most."""
    return min(len(stack), slices_at_once(stack, scale)) * stack.rows * stack.columns


class _Emitter:
    """Derives instances in one other thread as soon as all of their frames are there."""

    def __init__(self, emit: Emit, kept: Scratch, clock: Clock) -> None:
        self._emit, self._kept, self._clock = emit, kept, clock
        self._pool = ThreadPoolExecutor(1, "derive")
        self._behind: list[Future[None]] = []
        self._left: dict[str, int] = {}

    def __enter__(self) -> _Emitter:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        try:
            if kind is None:
                self._catch_up(0)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def expect(self, items: Sequence[Item], stacks: Sequence[Stack], wanted: Set[str] | None) -> None:
        """Say which instances are to be emitted. Each of their frames is in one stack, once."""
        places = {i.sop_instance_uid: self._kept.places[i.sop_instance_uid] for i in items}
        self._left = {uid: p.fmt.n_frames for uid, p in places.items() if wanted is None or uid in wanted}
        frames = [(r.sop_instance_uid, r.frame_number) for s in stacks for r in s.frames]
        told = Counter(uid for uid, _ in set(frames))
        if len(set(frames)) < len(frames) or any(told[uid] != n for uid, n in self._left.items()):
            raise SeriesError("headers and pixels do not tell of the same frames")

    def part(self, stack: Stack, first: int, last: int) -> tuple[int, int] | None:
        """The shortest part of [first, last) that holds what is to be emitted; None if nothing is."""
        places = [i for i in range(first, last) if stack.frames[i].sop_instance_uid in self._left]
        return (places[0], places[-1] + 1) if places else None

    def finished(self, ref: StackFrame, stored: Stored, ran: Ran) -> None:
        """Take one finished frame (1, rows, columns)."""
        uid = ref.sop_instance_uid
        if uid not in self._left:
            return
        place = self._kept.places[uid]
        self._left[uid] -= 1
        if place.fmt.n_frames > 1:
            self._kept.put(place, ref.frame_number - 1, stored)
            if self._left[uid]:
                return
            stored = self._kept.whole(place)
        self._catch_up(_BEHIND_BYTES // stored.nbytes)
        self._behind.append(self._pool.submit(self._one, place, stored, ran))

    def _one(self, place: Place, stored: Stored, ran: Ran) -> None:
        with self._clock.step("derive"):
            self._emit(place.item, self._kept.source(place), stored, ran)

    def _catch_up(self, at_most: int) -> None:
        while len(self._behind) > at_most:
            self._behind.pop(0).result()
