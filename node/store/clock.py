"""Steps of the wall clock, noticed by the monotonic one (R53).

What is written down is wall time in UTC; how long something took or may still take is monotonic time. The two meet
in the database: a lease that another process took, a pause that outlives a restart. There a step of the clock
would make a live lease look as if it had run out. So after a step nobody takes over a lease until every holder
has had the time to write a new one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

STEP_S: Final = 5.0
"""What is less is not a step: NTP slews, and hosts differ."""

SETTLES_S: Final = 90.0
"""After a step, holders of leases beat by the new clock within this time: three times their longest pause."""

_AT_ONCE_S: Final = 0.05


class Watch:
    """Compares the two clocks. Thread-safe.

    Parameters
    ----------
    wall, steady
        Seconds since the epoch, and monotonic seconds.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._offset, _ = self._both()
        self._unsettled_until = 0.0
        self._steps: list[tuple[float, float]] = []

    def look(self) -> float:
        """Seconds by which the wall clock was stepped since the last look, 0.0 if it was not."""
        with self._lock:
            offset, now = self._both()
            step, self._offset = offset - self._offset, offset
            if abs(step) < STEP_S:
                return 0.0
            self._unsettled_until = now + SETTLES_S
            self._steps.append((now + offset, step))
            return step

    @property
    def settled(self) -> bool:
        """Whether leases may be judged by the wall clock."""
        self.look()
        return self._steady() >= self._unsettled_until

    def age_s(self, since: datetime, now: datetime) -> float:
        """Seconds from ``since`` to ``now``, both of the wall clock, without the steps that it took between.

        A step that this process did not live to see is not taken out.
        """
        self.look()
        at, end, passed = since.timestamp(), now.timestamp(), 0.0
        for after, step in reversed(self._steps):
            if after - 1.0 <= at <= end + 1.0:
                break  # written since this step
            passed += end - after
            end = after - step
        return max(passed + end - at, 0.0)

    def _both(self) -> tuple[float, float]:
        while True:
            before = self._steady()
            wall = self._wall()
            now = self._steady()
            if now - before < _AT_ONCE_S:  # else this process was put aside between the two
                return wall - now, now


WATCH: Final = Watch()
"""Of this process."""
