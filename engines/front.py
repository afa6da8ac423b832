"""The front door that all engines share: prepare + run + guard + restore.

An engine proper is a :class:`Core`: it looks at one slice (and its true neighbours) and returns what it
believes to be noise. Everything that makes this safe is here or in guards.py, outside of the core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from engines import guards, noise
from engines.base import NEIGHBOUR_MM, Card, Enhancement, Floats, Mask, Params, Survey, Unit, Volume, join
from engines.errors import VolumeUnsuitable

T = TypeVar("T")
R = TypeVar("R")


NOTHING = "nothing was reconstructed in them"

LOOKS = 3
"""On how many slices of a slab the noise is measured again afterwards: the figures are for people."""


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
    """

    values: Floats
    below: Floats | None
    above: Floats | None
    valid: Mask
    sigma: float
    scale: float
    unit: Unit
    step: float


class Core(Protocol):
    """What tells engines apart."""

    @property
    def runtime(self) -> str: ...

    @property
    def device(self) -> str: ...

    def residuals(self, tasks: Sequence[Task], *, tile: int) -> Iterator[Floats]:
        """Yield the noise of each task, float32 (y, x), in order; ``tile`` 0 means whole slices."""
        ...


def in_threads(function: Callable[[T], R], tasks: Sequence[T], threads: int) -> Iterator[R]:
    """Map over tasks in order; each result depends on its task alone, so threads change no bit."""
    if threads <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    with ThreadPoolExecutor(max_workers=min(threads, len(tasks)), thread_name_prefix="engine") as pool:
        yield from pool.map(function, tasks)


class Enhancer:
    """A card and a core behind the guards: meets :class:`engines.base.Engine`."""

    def __init__(self, card: Card, core: Core, threads: int = 1) -> None:
        self._card = card
        self._core = core
        self._threads = threads
        self._lock = int(card.parameters.get("lock", 32))

    @property
    def card(self) -> Card:
        return self._card

    def survey(self, volume: Volume) -> Survey:
        """Measure noise, scale and frequency of every slice; each slice by itself."""
        self._admit(volume)
        return self._measured(volume)

    def _measured(self, volume: Volume) -> Survey:
        n = volume.shape[0]
        parts = [_part(volume, range(i, i + 1)) for i in range(n)]
        return join(list(in_threads(noise.survey, parts, self._threads)))

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
        if params.strength == 0:
            return self._done(volume, _part(volume, kept), params, {}, (), began)
        scale = noise.scale(found, volume.unit)
        sigmas = noise.steady(found.sigma)[first : first + volume.shape[0]]
        reasons = {
            i: guards.gate(float(sigmas[i]), self._card, scale) if volume.valid[i].any() else NOTHING
            for i in kept
        }
        filled = _Filled(volume)
        chosen = [i for i in kept if not reasons[i]]
        tasks = [self._task(volume, filled, i, float(sigmas[i]), scale) for i in chosen]
        part = _part(volume, kept)
        values = part.values.copy()
        side = guards.region_side(volume.spacing_mm)
        tolerance = 0.98 * guards.LARGEST_MEAN_CHANGE[volume.unit] * scale
        largest_change, sums = 0.0, 0.0
        for i, residual in zip(chosen, self._core.residuals(tasks, tile=tile), strict=True):
            before, valid = volume.values[i], volume.valid[i]
            largest = guards.limit(
                float(sigmas[i]), sigmas=self._card.bound_sigmas, cap=self._card.bound * scale
            )
            safe = guards.guarded(
                residual, valid, largest=largest, radius=self._lock, side=side, tolerance=tolerance
            )
            after = guards.blend(before, safe, params.strength)
            guards.check(
                before,
                after,
                valid,
                largest=largest,
                strength=params.strength,
                unit=volume.unit,
                scale=scale,
            )
            values[i - kept.start] = after
            change = after[valid] - before[valid]
            largest_change = max(largest_change, float(np.abs(change).max()))
            sums += float(change.mean(dtype=np.float64))
        out = replace(part, values=values)
        figures = {
            "skipped": float(len(kept) - len(chosen)),
            "largest_change": largest_change,
            "mean_change": sums / len(chosen) if chosen else 0.0,
            **_texture(volume, out, kept, chosen),
        }
        notes = [
            f"slices left as they were: {reason}" for reason in dict.fromkeys(reasons.values()) if reason
        ]
        if chosen and noise.smoothed_already(found):
            notes.append("the noise is coarser than a kernel leaves it: already smoothed, or interpolated")
        return self._done(volume, out, params, figures, tuple(notes), began)

    def _done(
        self,
        volume: Volume,
        out: Volume,
        params: Params,
        figures: Mapping[str, float],
        notes: tuple[str, ...],
        began: float,
    ) -> Enhancement:
        nothing = {"skipped": 0.0, "largest_change": 0.0, "mean_change": 0.0}
        return Enhancement(
            volume=out,
            card=self._card,
            params=params,
            runtime=self._core.runtime,
            device=self._core.device,
            seconds=time.perf_counter() - began,
            figures=figures or nothing,
            notes=notes,
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
        if not np.isfinite(volume.values[volume.valid]).all():
            raise VolumeUnsuitable("the volume holds values that are not numbers")

    def _asked(self, params: Params) -> int:
        """Check the parameters; return the tile size."""
        if not 0.0 <= params.strength <= 1.0:
            raise VolumeUnsuitable(f"strength is {params.strength:g}, not within 0 and 1")
        tile = params.options.get("tile", 0)
        if not isinstance(tile, int) or isinstance(tile, bool) or tile < 0:
            raise VolumeUnsuitable("option tile is not a number of pixels")
        return tile

    def _task(self, volume: Volume, filled: _Filled, i: int, sigma: float, scale: float) -> Task:
        near = self._card.neighbours > 0 and 0 < volume.spacing_mm[0] <= NEIGHBOUR_MM
        below = near and i > 0 and bool(volume.contiguous[i - 1])
        above = near and i + 1 < volume.shape[0] and bool(volume.contiguous[i])
        return Task(
            values=filled[i],
            below=filled[i - 1] if below else None,
            above=filled[i + 1] if above else None,
            valid=volume.valid[i],
            sigma=sigma,
            scale=scale,
            unit=volume.unit,
            step=float(volume.step[i]),
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


def _texture(before: Volume, after: Volume, kept: range, chosen: Iterable[int]) -> dict[str, float]:
    """Noise before and after and the ratio of their frequencies, on a few of the enhanced slices."""
    indices = list(chosen)
    looked = indices[:: max(1, len(indices) // LOOKS)][:LOOKS]
    pairs = []
    for i in looked:
        at = {"unit": before.unit, "step": float(before.step[i])}
        was = noise.estimate(before.values[i], before.valid[i], **at)  # type: ignore[arg-type]
        now = noise.estimate(after.values[i - kept.start], after.valid[i - kept.start], **at)  # type: ignore[arg-type]
        if np.isfinite(was.sigma) and np.isfinite(now.sigma):
            pairs.append((was, now))
    if not pairs:
        return {"noise_before": float("nan"), "noise_after": float("nan"), "cfr": float("nan")}
    return {
        "noise_before": float(np.mean([was.sigma for was, _ in pairs])),
        "noise_after": float(np.mean([now.sigma for _, now in pairs])),
        "cfr": float(np.mean([now.frequency / was.frequency for was, now in pairs])),
    }
