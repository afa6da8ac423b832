"""What pynetdicom's parts lack in a process that runs for months."""

from __future__ import annotations

import time
from typing import Any

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


def loosen(association: Any) -> None:
    """Undo the circles between an ended association and its parts, so that it is freed at once.

    Each of them knows the association and is known by it. The garbage collector would find them, some
    thousands of associations later, while everybody waits.
    """
    association.__dict__.pop("abort", None)
    wrapped = association.dul.socket
    for part in (association.acse, association.dimse, association.dul, wrapped):
        if part is not None:
            part._assoc = None
    for user in (association.requestor, association.acceptor):
        user.assoc = None
    association.dul.state_machine.dul = None
    association.dul._target = None
