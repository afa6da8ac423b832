"""How long the steps of an engine take here: what tells a slow engine from one that hangs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

from engines.canary import SHAPE

KEPT = 64
ENOUGH = 3
"""Steps until the median of them is believed; before, the canary tells."""

SLOWEST_DISK = 20e6
"""Bytes a second at which an instance is written at the least; it is no step of its own."""


class Pace:
    """Of one engine on one runtime.

    Parameters
    ----------
    canary_s
        What one slice of the canary took.
    """

    def __init__(self, canary_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._pixel_s = canary_s / (SHAPE[1] * SHAPE[2])
        self._clock = clock
        self._steps: deque[float] = deque(maxlen=KEPT)
        self._last: float | None = None

    def begin(self) -> None:
        """A series begins."""
        self._last = self._clock()

    def told(self, step: str) -> None:
        """A step has ended; those in which the engine works are counted."""
        now = self._clock()
        if step == "enhance" and self._last is not None:
            self._steps.append(now - self._last)
        self._last = now

    def expected_s(self, n_pixels: int, n_bytes: int = 0) -> float:
        """Seconds that a step takes here: the median, or a guess until there are enough of them.

        Parameters
        ----------
        n_pixels
            Of the largest slab.
        n_bytes
            Of the largest instance that is written between two steps.
        """
        step = median(self._steps) if len(self._steps) >= ENOUGH else self._pixel_s * n_pixels
        return step + n_bytes / SLOWEST_DISK
