"""A circuit breaker for one destination: pure, the clock is passed in.

A destination that cannot be reached costs one try now and then, not one for each series that waits::

    CLOSED ──failed──▶ OPEN ──its time comes──▶ HALF_OPEN ──succeeded──▶ CLOSED
                         ▲                          │
                         └──────────failed──────────┘

One prober stands behind a breaker, so there is no crowd to part: the pauses are not jittered, and in the long
run a dead destination is tried once in ``at_most_s``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from node.deliver.backoff import ceiling_s


class Circuit(StrEnum):
    """Open: nobody tries. Half open: one tries, and the others wait for what it finds."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """What is known of a destination's health. Times are seconds on one monotonic clock.

    ``failures`` in a row; ``since`` is the first of them; no try before ``retry_at``.
    """

    first_s: float
    at_most_s: float
    failures: int = 0
    since: float = 0.0
    retry_at: float = 0.0

    def circuit(self, now: float) -> Circuit:
        """CLOSED: go on. OPEN: no try yet. HALF_OPEN: one try, whose outcome decides."""
        if self.failures == 0:
            return Circuit.CLOSED
        return Circuit.HALF_OPEN if now >= self.retry_at else Circuit.OPEN

    def allows(self, now: float) -> bool:
        """Whether a try may be made."""
        return self.circuit(now) is not Circuit.OPEN

    def failed(self, now: float) -> Breaker:
        """After a try that found nobody, or was turned away."""
        failures = self.failures + 1
        pause = ceiling_s(failures, first_s=self.first_s, at_most_s=self.at_most_s)
        return Breaker(
            first_s=self.first_s,
            at_most_s=self.at_most_s,
            failures=failures,
            since=self.since if self.failures else now,
            retry_at=now + pause,
        )

    def succeeded(self) -> Breaker:
        """After a try that reached the destination."""
        return Breaker(first_s=self.first_s, at_most_s=self.at_most_s)

    def down_for(self, now: float) -> float:
        """Seconds since the first failure in a row; 0 if there is none."""
        return now - self.since if self.failures else 0.0
