"""The front door that all engines share: prepare + run + guard + restore.

An engine proper is a :class:`Core`: it looks at one slice (and its true neighbours) and returns what it
believes to be noise, or with ``card.scale`` 2 the detail that the doubled slice lacks. Everything that makes
this safe is here, in restore.py or in guards.py, outside of the core.

Slices are finished beside each other, each by one thread from core to check: while one is guarded another is
in the network. Each depends on its own task alone, so threads change no bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from engines import guards, noise
from engines.base import (
    NEIGHBOUR_MM,
    Card,
    Enhancement,
    Floats,
    Mask,
    Params,
    SliceFigures,
    Survey,
    Unit,
    Volume,
    join,
)
from engines.errors import VolumeUnsuitable
from engines.ladder import Refusal
from engines.restore import Outcome, Residual, Slice, plain, restored
from engines.sinc import repeated
from engines.turns import Turns

T = TypeVar("T")
R = TypeVar("R")


NOTHING = "nothing was reconstructed in them"
LITTLE = "hardly anything was reconstructed in them"
BACKGROUND = "they show nothing but background"
FEWEST = noise.BLOCK**2
"""Of fewer valid voxels nobody can tell the noise, and their mean is all that they have."""

LOOKS = 8
"""Of so many slices the noise of one is measured again afterwards: the figures are for people."""


def looks(at: int, of: int) -> bool:
    """Whether the noise that is left is measured in slice ``at`` of a stack: in one of eight, not at its ends."""
    return at % LOOKS == min(LOOKS, of) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One slice as a core sees it.

    Attributes
    ----------
    values
        float32 (y, x), padding replaced.
    below, above
        The true neighbours, or None at gaps, ends and where slices lie far apart.
    sigma
        Noise, steadied over z, in the volume's unit.
    scale
        Of the series (1 for HU).
    step
        Width of one stored unit.
    spacing_mm
        (z, y, x), 0 where unknown.
    """

    values: Floats
    below: Floats | None
    above: Floats | None
    valid: Mask
    sigma: float
    scale: float
    unit: Unit
    step: float
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Core(Protocol):
    """What tells engines apart."""

    @property
    def runtime(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def calls(self) -> int:
        """How many slices it may be given at once, from as many threads."""
        ...

    def residual(self, task: Task, *, tile: int) -> Floats:
        """The noise of a slice, float32 (y, x), or its detail (2 y, 2 x); ``tile`` 0 means in one piece."""
        ...


@runtime_checkable
class SlabCore(Core, Protocol):
    """A core that is given all slices of a slab at once: its device is faster than threads can ask."""

    def residuals(self, tasks: Sequence[Task]) -> Iterator[Residual]:
        """The residuals of slices of one series, in order; consumed by one thread."""
        ...


class Enhancer:
    """A card and a core behind the guards: meets :class:`engines.base.Engine`."""

    def __init__(
        self,
        card: Card,
        core: Core,
        threads: int = 1,
        *,
        refusals: tuple[Refusal, ...] = (),
        keep: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._card = card
        self.refusals = refusals
        """Why faster runtimes than the one at work do not serve."""
        self.keep, self.close = keep, close
        """See :class:`engines.ladder.OnGpu`."""
        self._core = core
        self._threads = threads
        self._turn = Turns(max(1, core.calls))
        self._n_hands = n_hands = max(1, threads // 2)
        self._hands = Turns(n_hands)
        # Of all calls: where a slab ends, threads go on with the next one. Those that wait for the core or for a hand
        # are beyond the number that is at work.
        self._pool = ThreadPoolExecutor(max(1, threads) + n_hands, thread_name_prefix="engine")

    @property
    def card(self) -> Card:
        return self._card

    @property
    def core(self) -> Core:
        """What is behind the guards: for measurements of it alone."""
        return self._core

    @property
    def threads(self) -> int:
        """How many it may use."""
        return self._threads

    @property
    def lanes(self) -> int:
        """How many slabs it may be given at once, each by a thread of its own, so that none of its threads waits for
        the end of a slab; an accelerator takes one after another."""
        return 2 if self._threads > 1 and self._core.device == "cpu" else 1

    @property
    def hands(self) -> AbstractContextManager[object]:
        """What whoever works on arrays holds meanwhile, in many short calls of numpy: two threads that do so at once
        hand the interpreter's lock to and fro, and are slower than one."""
        return self._hands

    def survey(self, volume: Volume) -> Survey:
        """Measure noise, scale and frequency of every slice; each slice by itself."""
        self._admit(volume)
        return self._measured(volume)

    def _measured(self, volume: Volume) -> Survey:
        parts = [_part(volume, range(i, i + 1)) for i in range(volume.shape[0])]
        if self._n_hands > 1 or self._core.device != "cpu":
            return join(self._in_threads(noise.survey, parts))  # its calls are long: threads share them
        found = []
        for part in parts:  # where there is one hand, the other threads are the network's
            with self._hands:
                found.append(noise.survey(part))
        return join(found)

    def _in_threads(self, function: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
        """Map over tasks; each result depends on its task alone, so threads change no bit."""
        if self._threads <= 1 or len(tasks) <= 1:
            return [function(task) for task in tasks]
        begun = [self._pool.submit(function, task) for task in tasks]
        try:
            return [each.result() for each in begun]
        finally:
            for each in begun:
                each.cancel()
            wait(begun)

    def enhance(
        self,
        volume: Volume,
        params: Params,
        survey: Survey | None = None,
        *,
        first: int = 0,
        keep: slice | None = None,
    ) -> Enhancement:
        """Enhance a slab; see :class:`engines.base.Engine`.

        ``params.options`` may hold ``tile``: the core then works on tiles of so many pixels, with the same
        result in less memory.

        Raises
        ------
        VolumeUnsuitable
            Wrong unit, shape or numbers, or a strength outside of [0, 1].
        OutputImplausible
            A guard broke.
        """
        began = time.perf_counter()
        self._admit(volume)
        tile = self._asked(params)
        kept = range(volume.shape[0])[keep if keep is not None else slice(None)]
        found = survey if survey is not None else self._measured(volume)
        if first < 0 or first + volume.shape[0] > len(found):
            raise VolumeUnsuitable("the survey does not cover this slab")
        out = _Result(volume, kept, self._card.scale)
        if params.strength == 0:
            filled = _Filled(volume)
            for i in kept:
                out.take(i, plain(volume.values[i], filled[i], volume.valid[i], self._card.scale))
            return self._done(out.volume, params, [SliceFigures()] * len(kept), (), began)
        steadied, scale = numbers(found, volume.unit)
        sigmas = steadied[first : first + volume.shape[0]]
        blank = self._blank(volume, found, first)
        barred = {i: blank.get(i) or guards.gate(float(sigmas[i]), self._card, scale) for i in kept}
        looked = frozenset(i for i in kept if looks(first + i, len(found)))
        outcomes = self._outcomes(volume, out, barred, blank, sigmas, scale, params.strength, tile, looked)
        for i, outcome in outcomes.items():
            out.take(i, outcome.values)
        slices = [_told(outcomes[i], found, first + i) for i in kept]
        return self._done(
            out.volume, params, slices, remarks(found, volume.spacing_mm, volume.unit, slices), began
        )

    def _blank(self, volume: Volume, found: Survey, first: int) -> dict[int, str]:
        """Slices that show nothing, and why: they are left as they were, and are nobody's neighbours."""
        blank = {}
        for i, valid in enumerate(volume.valid):
            n = int(np.count_nonzero(valid))
            if n == 0:
                blank[i] = NOTHING
            elif self._card.family == "identity":
                continue
            elif n < FEWEST:
                blank[i] = LITTLE
            elif noise.bare(found, volume.unit, first + i):
                blank[i] = BACKGROUND
        return blank

    def _outcomes(
        self,
        volume: Volume,
        out: _Result,
        reasons: Mapping[int, str],
        blank: Collection[int],
        sigmas: Floats,
        scale: float,
        strength: float,
        tile: int,
        looked: frozenset[int],
    ) -> dict[int, Outcome]:
        """What becomes of each slice, by index; those with a reason are left as they were, and no other is made with
        those in ``blank``."""
        filled = _Filled(volume)
        chosen = [i for i, reason in reasons.items() if not reason]
        slices = {
            i: Slice(
                values=volume.values[i],
                filled=filled[i],
                valid=volume.valid[i],
                sigma=float(sigmas[i]),
                scale=scale,
                unit=volume.unit,
                step=float(volume.step[i]),
                spacing_mm=volume.spacing_mm,
            )
            for i in reasons
        }
        tasks = {i: self._task(volume, filled, i, slices[i], blank) for i in chosen}

        def finished(i: int, residual: Residual) -> Outcome:
            with self._hands:
                return restored(
                    residual.values, slices[i], self._card, strength, looked=i in looked,
                    worst=residual.worst, into=out.places[i],
                )  # fmt: skip

        def one(i: int) -> Outcome:
            given = slices[i]
            if i not in tasks:
                values = plain(given.values, given.filled, given.valid, self._card.scale)
                return Outcome(values=values, reason=reasons[i])
            with self._turn:
                residual = self._core.residual(tasks[i], tile=tile)
            return finished(i, Residual(values=residual))

        indices = list(reasons)
        if isinstance(self._core, SlabCore) and tasks and tile == 0:
            return self._beside(self._core, indices, tasks, one, finished)
        return dict(zip(indices, self._in_threads(one, indices), strict=True))

    def _beside(
        self,
        core: SlabCore,
        indices: Sequence[int],
        tasks: Mapping[int, Task],
        untouched: Callable[[int], Outcome],
        finished: Callable[[int, Residual], Outcome],
    ) -> dict[int, Outcome]:
        """All slices through the core in one go; each is finished by a thread while the core goes on."""
        with ThreadPoolExecutor(max_workers=max(1, self._threads), thread_name_prefix="engine") as pool:
            made = {i: pool.submit(untouched, i) for i in indices if i not in tasks}
            with self._turn:
                for i, residual in zip(tasks, core.residuals(list(tasks.values())), strict=True):
                    made[i] = pool.submit(finished, i, residual)
            return {i: made[i].result() for i in indices}

    def _done(
        self,
        out: Volume,
        params: Params,
        slices: Sequence[SliceFigures],
        notes: tuple[str, ...],
        began: float,
    ) -> Enhancement:
        return Enhancement(
            volume=out,
            card=self._card,
            params=params,
            runtime=self._core.runtime,
            device=self._core.device,
            seconds=time.perf_counter() - began,
            figures=figures(slices),
            notes=(*reasons(slices, self._card.scale), *notes),
            slices=tuple(slices),
        )

    def _admit(self, volume: Volume) -> None:
        """Refuse what this engine cannot take."""
        if self._card.family != "identity" and volume.unit != self._card.unit:
            raise VolumeUnsuitable(
                f"{self._card.name} works in {self._card.unit}, the volume is in {volume.unit}",
                hint="route CT series to CT engines and MR series to MR engines",
            )
        if volume.values.ndim != 3 or volume.values.dtype != np.float32 or 0 in volume.values.shape:
            raise VolumeUnsuitable("values must be float32 (z, y, x) with at least one voxel")
        n = volume.shape[0]
        if volume.valid.shape != volume.shape or volume.contiguous.shape != (n,) or volume.step.shape != (n,):
            raise VolumeUnsuitable("valid, contiguous and step do not fit the values")
        if volume.valid.dtype != np.bool_ or volume.contiguous.dtype != np.bool_:
            raise VolumeUnsuitable("valid and contiguous must be bool")  # ~ of a byte is another mask
        if not guards.all_finite(volume.values) and not np.isfinite(volume.values[volume.valid]).all():
            raise VolumeUnsuitable("the volume holds values that are not numbers")

    def _asked(self, params: Params) -> int:
        """Check the parameters; return the tile size."""
        if not 0.0 <= params.strength <= 1.0:
            raise VolumeUnsuitable(f"strength is {params.strength:g}, not within 0 and 1")
        tile = params.options.get("tile", 0)
        if not isinstance(tile, int) or isinstance(tile, bool) or tile < 0:
            raise VolumeUnsuitable("option tile is not a number of pixels")
        return tile

    def _task(self, volume: Volume, filled: _Filled, i: int, one: Slice, blank: Collection[int]) -> Task:
        below, above = beside(self._card, volume.spacing_mm, volume.contiguous, i)
        return Task(
            values=one.filled,
            below=filled[i - 1] if below and i - 1 not in blank else None,
            above=filled[i + 1] if above and i + 1 not in blank else None,
            valid=one.valid,
            sigma=one.sigma,
            scale=one.scale,
            unit=one.unit,
            step=one.step,
            spacing_mm=one.spacing_mm,
        )


class _Filled:
    """Slices with their padding replaced, each made once."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._made: dict[int, Floats] = {}

    def __getitem__(self, i: int) -> Floats:
        if i not in self._made:
            volume = self._volume
            self._made[i] = guards.fill(volume.values[i], volume.valid[i], volume.unit)
        return self._made[i]


def _part(volume: Volume, kept: range) -> Volume:
    if len(kept) == 0 or kept.step != 1:
        raise VolumeUnsuitable("keep must name consecutive slices, at least one")
    where = slice(kept.start, kept.stop)
    return replace(
        volume,
        values=volume.values[where],
        valid=volume.valid[where],
        contiguous=volume.contiguous[where],
        step=volume.step[where],
    )


class _Result:
    """The kept slices as they come back, of the same matrix or of twice its rows and columns."""

    def __init__(self, volume: Volume, kept: range, factor: int) -> None:
        part = _part(volume, kept)
        z, y, x = part.shape
        dz, dy, dx = volume.spacing_mm
        self.volume = replace(
            part,
            values=np.empty((z, factor * y, factor * x), np.float32),
            spacing_mm=(dz, dy / factor, dx / factor),
            valid=part.valid if factor == 1 else repeated(part.valid),
        )
        self.places: dict[int, Floats] = dict(zip(kept, self.volume.values, strict=True))

    def take(self, i: int, values: Floats) -> None:
        if values is not self.places[i]:  # most were made there
            self.places[i][:] = values


def beside(
    card: Card, spacing_mm: tuple[float, float, float], contiguous: Sequence[bool] | Mask, i: int
) -> tuple[bool, bool]:
    """Whether slice ``i`` is seen with the slice below, and with the slice above."""
    near = card.neighbours > 0 and 0 < spacing_mm[0] <= NEIGHBOUR_MM
    return (
        near and i > 0 and bool(contiguous[i - 1]),
        near and i + 1 < len(contiguous) and bool(contiguous[i]),
    )


def numbers(found: Survey, unit: Unit) -> tuple[Floats, float]:
    """What a slice's result depends on beside the slices themselves: the noise of each, float32 (z,), steadied over
    z, and the scale of the series; of the survey of a whole stack."""
    return noise.steady(found.sigma), noise.scale(found, unit)


def remarks(
    found: Survey, spacing_mm: tuple[float, float, float], unit: Unit, slices: Sequence[SliceFigures]
) -> tuple[str, ...]:
    """What is to be told of a stack as a whole, if some slice of it was changed."""
    changed = not all(each.reason for each in slices)
    if changed and noise.smoothed_already(found, spacing_mm[1] if unit == "HU" else 0.0):
        return ("the noise is coarser than a kernel leaves it: already smoothed, or interpolated",)
    return ()


def reasons(slices: Sequence[SliceFigures], scale: int) -> list[str]:
    """Why slices were left as they were, each reason once; ``scale`` is that of the engine."""
    left = "slices left as they were" if scale == 1 else "slices interpolated without detail"
    return [f"{left}: {reason}" for reason in dict.fromkeys(s.reason for s in slices) if reason]


def figures(slices: Sequence[SliceFigures]) -> dict[str, float]:
    """The figures of :class:`engines.base.Enhancement`, of its slices."""
    changed = [each for each in slices if not each.reason]
    errors = [each.error for each in slices if each.error is not None]
    told = {
        "skipped": float(len(slices) - len(changed)),
        "largest_change": max((each.largest for each in changed), default=0.0),
        "mean_change": sum(each.mean for each in changed) / len(changed) if changed else 0.0,
    }
    for name in ("noise_before", "noise_after", "cfr"):
        seen = [v for v in (getattr(each, name) for each in changed) if np.isfinite(v)]
        told[name] = float(np.mean(seen)) if seen else float("nan")
    return told | ({"reconstruction_error": max(errors)} if errors else {})


def _told(outcome: Outcome, found: Survey, at: int) -> SliceFigures:
    """The figures of a slice; ``at`` is its index in the survey, which tells of its noise before."""
    now, was = outcome.texture, float(found.sigma[at])
    measured: dict[str, float] = {}
    if now is not None and np.isfinite(now.sigma) and np.isfinite(was):
        cfr = now.frequency / float(found.frequency[at])
        measured = {"noise_before": was, "noise_after": now.sigma, "cfr": cfr}
    return SliceFigures(
        reason=outcome.reason, largest=outcome.largest, mean=outcome.mean, error=outcome.error, **measured
    )
