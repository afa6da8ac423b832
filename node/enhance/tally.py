"""What the engine did to a series as a whole, put together from what it did to slabs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from engines.base import Enhancement
from node.errors import SeriesError


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the engine did to the series as a whole.

    ``figures`` are in the engine's unit: noise before and after, mean and largest change; one that could not
    be measured is left out. ``seconds`` are by step: decode, survey, enhance, derive (which overlaps it).
    ``n_skipped`` of ``n_slices`` were passed through unchanged, for the reasons in ``notes``; ``n_same`` are stored as
    their sources are, those included.
    """

    figures: Mapping[str, float]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    n_slices: int
    n_skipped: int
    runtime: str
    device: str
    n_same: int = 0

    def must_have_changed(self, *, at_all: bool = True) -> None:
        """Refuse a series that the engine left as it was: its copy must not be taken for something better.

        Parameters
        ----------
        at_all
            Whether some stored value has to differ: not where the rule wants nothing to be changed.

        Raises
        ------
        SeriesError
        """
        if 0 < self.n_slices <= self.n_skipped:
            raise SeriesError("every slice was passed through unchanged: " + "; ".join(self.notes[1:]))
        if at_all and 0 < self.n_slices <= self.n_same:
            raise SeriesError(
                "no stored value of the series would change: all changes are smaller than its rounding",
                hint="a higher strength, or a rule that leaves such series alone",
            )


_LARGEST = frozenset({"largest_change", "reconstruction_error"})
_COUNTS = frozenset({"skipped", "enhanced"})


class Tally:
    """Figures of slabs put together: means weighted by the slices that were enhanced, extremes as such."""

    def __init__(self) -> None:
        self._largest: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._weights: dict[str, int] = {}
        self._notes: dict[str, None] = {}
        self._n = self._n_skipped = self._n_same = 0
        self._runtime = self._device = ""

    def add(self, e: Enhancement, n: int, n_same: int = 0) -> None:
        """Count in a slab of which ``n`` slices were kept, and ``n_same`` are stored as their sources are."""
        n_skipped = int(e.figures.get("skipped", 0.0))
        self._n += n
        self._n_skipped += n_skipped
        self._n_same += n_same
        self._runtime, self._device = e.runtime, e.device
        self._notes.update(dict.fromkeys(e.notes))
        for name, value in e.figures.items():
            if name in _COUNTS or not np.isfinite(value):
                continue
            if name in _LARGEST:
                self._largest[name] = max(self._largest.get(name, 0.0), value)
            elif n > n_skipped:
                self._sums[name] = self._sums.get(name, 0.0) + value * (n - n_skipped)
                self._weights[name] = self._weights.get(name, 0) + n - n_skipped

    def report(self, seconds: Mapping[str, float]) -> Report:
        notes = list(self._notes)
        if self._n_skipped:
            notes.insert(0, f"{self._n_skipped} of {self._n} slices were passed through unchanged")
        means = {name: total / self._weights[name] for name, total in self._sums.items()}
        return Report(
            figures=means | self._largest,
            notes=tuple(notes),
            seconds=dict(seconds),
            n_slices=self._n,
            n_skipped=self._n_skipped,
            n_same=self._n_same,
            runtime=self._runtime,
            device=self._device,
        )


@dataclass(slots=True)
class Clock:
    """Seconds by step. Each step is only ever timed by one thread."""

    seconds: dict[str, float] = field(default_factory=dict)

    def step(self, name: str) -> Step:
        return Step(self.seconds, name)


class Step:
    """Adds the time spent inside of it."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_exc: object) -> None:
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.monotonic() - self._started
