"""What the engine did to a series as a whole, put together from what it did to slices."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engines.base import SliceFigures
from node.enhance.scratch import Stored
from node.errors import SeriesError


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A finished slice as its source is stored (1, rows, columns), what became of it, and on what.

    ``same``: every stored value is that of the source.
    """

    stored: Stored
    figures: SliceFigures
    same: bool
    runtime: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the engine did to the series as a whole.

    ``figures`` are in the engine's unit: noise before and after, mean and largest change; one that could not
    be measured is left out. ``seconds`` are by step: decode, survey and enhance as the thread of the job did them
    or waited for them, no second in two of them; derive, which another thread does meanwhile, overlaps these.
    ``n_skipped`` of ``n_slices`` were passed through unchanged, for the reasons in ``notes``; ``n_same`` are stored as
    their sources are, those included; ``n_before`` were made while the series still came.
    """

    figures: Mapping[str, float]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    n_slices: int
    n_skipped: int
    runtime: str
    device: str
    n_same: int = 0
    n_before: int = 0

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


class Tally:
    """What became of the slices of a series, whenever and in whatever parts they were made."""

    def __init__(self) -> None:
        self._slices: list[SliceFigures] = []
        self._notes: dict[str, None] = {}
        self._n_same = 0
        self._runtime = self._device = ""
        self.n_before = 0

    def add(self, made: Made) -> None:
        """Count in a slice."""
        self._slices.append(made.figures)
        self._n_same += made.same
        self._runtime, self._device = made.runtime, made.device

    def note(self, remarks: Sequence[str]) -> None:
        """Keep what is to be told of a stack."""
        self._notes.update(dict.fromkeys(remarks))

    def report(self, seconds: Mapping[str, float], *, scale: int = 1) -> Report:
        """Put it together.

        Parameters
        ----------
        seconds
            By step.
        scale
            Of the engine.
        """
        from engines.front import figures, reasons  # numerical libraries are loaded when an engine is

        told = figures(self._slices)
        n_skipped = int(told.pop("skipped"))
        notes = [*reasons(self._slices, scale), *self._notes]
        if n_skipped:
            notes.insert(0, f"{n_skipped} of {len(self._slices)} slices were passed through unchanged")
        return Report(
            figures={name: value for name, value in told.items() if math.isfinite(value)},
            notes=tuple(notes),
            seconds=dict(seconds),
            n_slices=len(self._slices),
            n_skipped=n_skipped,
            n_same=self._n_same,
            n_before=self.n_before,
            runtime=self._runtime,
            device=self._device,
        )


@dataclass(slots=True)
class Clock:
    """Seconds by step. Each step is only ever timed by one thread."""

    seconds: dict[str, float] = field(default_factory=dict)

    def step(self, name: str, *, without: str = "") -> Step:
        """Time a step, less what the same thread times of the step ``without`` inside of it."""
        return Step(self.seconds, name, without)


class Step:
    """Adds the time spent inside of it."""

    def __init__(self, seconds: dict[str, float], name: str, without: str) -> None:
        self._seconds, self._name, self._without = seconds, name, without

    def __enter__(self) -> None:
        self._started = self._now()

    def __exit__(self, *_exc: object) -> None:
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + self._now() - self._started

    def _now(self) -> float:
        return time.monotonic() - self._seconds.get(self._without, 0.0)
