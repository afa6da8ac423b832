"""pynetdicom's timer on a clock that nobody sets back (reliability.md R53)."""

from __future__ import annotations

import time

from pynetdicom.timer import Timer


class MonotonicTimer(Timer):  # type: ignore[misc]
    """Starts, stops and expires as pynetdicom's does, which counts by the time of day."""

    _start_time: float | None
    _end_time: float | None

    def start(self) -> None:
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return float(self.timeout)
        now = time.monotonic() if self._end_time is None else self._end_time
        return float(self.timeout - (now - self._start_time))

    @property
    def expired(self) -> bool:
        return self._start_time is not None and self._end_time is None and self.remaining < 0
