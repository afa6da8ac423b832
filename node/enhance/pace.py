"""How long the steps of an engine take here: what tells a slow engine from one that hangs."""

from __future__ import annotations

from collections import deque
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

    def __init__(self, canary_s: float) -> None:
        self._pixel_s = canary_s / (SHAPE[1] * SHAPE[2])
        self._steps: deque[float] = deque(maxlen=KEPT)

    def worked(self, seconds: float, n_pixels: int) -> None:
        """Count a step in which the engine made so many pixels: of a slab, only what was not there before."""
        self._steps.append(seconds / n_pixels)

    def expected_s(self, n_pixels: int, n_bytes: int = 0) -> float:
        """Seconds that a step takes here: the median for so many pixels, or a guess until there are enough of them.

        Parameters
        ----------
        n_pixels
            Of the largest slab.
        n_bytes
            Of the largest instance that is written between two steps.
        """
        pixel_s = median(self._steps) if len(self._steps) >= ENOUGH else self._pixel_s
        return pixel_s * n_pixels + n_bytes / SLOWEST_DISK
