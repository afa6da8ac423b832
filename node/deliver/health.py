"""What the queues of one destination know of its endpoints: breakers, doubts, and the alarms they raise."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from node.deliver.breaker import Breaker, Circuit
from node.deliver.verdict import Health, Patience
from node.errors import AssociationRejected, NodeError
from node.log import get_logger
from node.model import Delivery
from node.store import Store
from node.store.clock import WATCH

log = get_logger()

ALARMS: tuple[tuple[float, Any], ...] = ((60.0, "warning"), (3600.0, "error"), (86400.0, "critical"))
"""A destination that is down for this many seconds becomes an operator's event of this level."""

_DOUBTS = 2
"""So many deliveries in a row that were cut off without progress mean the destination, not an instance."""

_PROBE_S = 1.0
"""How long a queue waits for another one that just tries the destination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The two clocks: wall time for what is written down, monotonic time for how long something took."""

    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    monotonic: Callable[[], float] = time.monotonic


@dataclass(slots=True, kw_only=True)
class Known:
    """What is known of one endpoint."""

    breaker: Breaker
    alarms: int = 0
    rejected: bool = False
    probing: bool = False
    doubts: set[int] = field(default_factory=set)

    def reopens(self, clock: Clock) -> datetime:
        """The breaker's time on the wall clock, by which what waits is claimed. Asked anew each time: that
        clock may have been set since."""
        left_s = max(0.0, self.breaker.retry_at - clock.monotonic())
        return clock.now() + timedelta(seconds=left_s)

    def looks_again(self, clock: Clock) -> datetime:
        """When a queue that was not admitted asks again."""
        later = _PROBE_S if self.probing else 0.0
        return max(self.reopens(clock), clock.now() + timedelta(seconds=later))


class Watchers:
    """What is known of one destination's endpoints, shared by its queues: one tries, all learn from it."""

    def __init__(self, store: Store, name: str, clock: Clock) -> None:
        self._store = store
        self._name = name
        self._clock = clock
        self._lock = threading.RLock()
        self._known: dict[str, Known] = {}

    def of(self, endpoint: str, patience: Patience) -> Known:
        """What is known of an endpoint; nothing yet of a new one."""
        with self._lock:
            if endpoint not in self._known:
                breaker = Breaker(first_s=patience.first_s, at_most_s=patience.at_most_s)
                self._known[endpoint] = Known(breaker=breaker)
            return self._known[endpoint]

    def admits(self, known: Known) -> bool:
        """Whether a try may be made now. Of a destination that was down one queue makes the first; it must
        come back by :meth:`tried`."""
        with self._lock:
            circuit = known.breaker.circuit(self._clock.monotonic())
            if circuit is Circuit.OPEN or (circuit is Circuit.HALF_OPEN and known.probing):
                return False
            known.probing = circuit is Circuit.HALF_OPEN
            return True

    def tried(self, known: Known) -> None:
        """A try has ended, whatever came of it."""
        with self._lock:
            known.probing = False

    def heed(
        self, health: Health, endpoint: str, known: Known, delivery: Delivery, error: NodeError | None
    ) -> None:
        """Draw the conclusions about the destination from one try, and raise the alarm when it is time."""
        with self._lock:
            self._heed(health, endpoint, known, delivery, error)

    def _heed(
        self, health: Health, endpoint: str, known: Known, delivery: Delivery, error: NodeError | None
    ) -> None:
        now = self._clock.monotonic()
        if health is Health.DOUBTFUL:
            known.doubts.add(delivery.id)
            if len(known.doubts) >= _DOUBTS:
                health = Health.DOWN
        if health is Health.UP:
            if known.alarms:
                self._event("info", "destination.up", endpoint, after_s=round(known.breaker.down_for(now)))
            known.breaker, known.alarms, known.rejected = known.breaker.succeeded(), 0, False
            known.doubts.clear()
        if health is not Health.DOWN:
            return
        known.breaker = known.breaker.failed(now)
        # What waits knows it over restarts, too: the oldest is tried first.
        waited = WATCH.age_s(delivery.created_at, self._clock.now())
        down_for, because = max(known.breaker.down_for(now), waited), error.message if error else ""
        if isinstance(error, AssociationRejected) and not error.retryable and not known.rejected:
            known.rejected = True
            self._event("error", "destination.rejects", endpoint, because=because, hint=error.hint)
        while known.alarms < len(ALARMS) and down_for >= ALARMS[known.alarms][0]:
            level = ALARMS[known.alarms][1]
            known.alarms += 1
            self._event(level, "destination.down", endpoint, for_s=round(down_for), because=because)

    def _event(self, level: Any, name: str, endpoint: str, **body: Any) -> None:
        told = {"destination": self._name, "endpoint": endpoint, **body}
        self._store.events.add(level, name, told, self._clock.now())
        getattr(log, level)(name, **told)
