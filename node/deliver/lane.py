"""One destination's deliveries, one after the other, oldest first, in a thread of its own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from node.deliver.breaker import Breaker, Circuit
from node.deliver.destination import Destination
from node.deliver.kinds import UnknownDestination, destination, settings_of
from node.deliver.parcel import Parcel
from node.deliver.recorder import Recorder
from node.deliver.verdict import Attempt, Health, Next, Patience, Tries, Verdict, judge, statuses
from node.errors import AssociationRejected, DeliveryError, NodeError, StoreError
from node.failpoints import failpoint
from node.log import get_logger
from node.model import Delivery, DerivedSeries, Outcome
from node.store import Store

log = get_logger()

ALARMS: tuple[tuple[float, Any], ...] = ((60.0, "warning"), (3600.0, "error"), (86400.0, "critical"))
"""A destination that is down for this many seconds becomes an operator's event of this level."""

_DOUBTS = 2
"""So many deliveries in a row that were cut off without progress mean the destination, not an instance."""

_TROUBLE_S = 1.0
_LONGEST_PAUSE_S = 43200.0
"""Whatever is configured: the store takes what waits a day and more for the doing of a wrong clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The two clocks: wall time for what is written down, monotonic time for how long something took."""

    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    monotonic: Callable[[], float] = time.monotonic


@dataclass(slots=True, kw_only=True)
class _Known:
    """What a lane knows of one endpoint."""

    breaker: Breaker
    alarms: int = 0
    rejected: bool = False
    doubts: set[int] = field(default_factory=set)

    def reopens(self, clock: Clock) -> datetime:
        """The breaker's time on the wall clock, by which what waits is claimed. Asked anew each time: that
        clock may have been set since."""
        left_s = max(0.0, self.breaker.retry_at - clock.monotonic())
        return clock.now() + timedelta(seconds=left_s)


class Lane:
    """Deliver to one destination.

    Parameters
    ----------
    name
        The destination's name in config.yaml.
    owner
        Whom leases are taken for.
    calling_ae
        Our AE title where a destination names none.
    stop
        Set when the process is to end; what is being sent ends after its current instance.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        owner: str,
        calling_ae: str,
        stop: threading.Event,
        lease_s: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self._store = store
        self._owner = owner
        self._calling_ae = calling_ae
        self._stop = stop
        self._lease_s = lease_s
        self._clock = clock or Clock()
        self._known: dict[str, _Known] = {}
        self._tries: dict[tuple[int, datetime], Tries] = {}
        self._wake = threading.Event()
        self.current: Delivery | None = None
        self.thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def put_back(self) -> None:
        """Give back what is being sent, whatever it is waiting for: for a process that ends now."""
        delivery = self.current
        if delivery is not None:
            self._store.deliveries.release(delivery.id, self._owner, delivery.attempt, self._clock.now())
            log.info("delivery.put_back", delivery=delivery.id, destination=self.name)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            try:
                while not self._stop.is_set() and self.step():
                    pass
            except StoreError as error:
                log.error("delivery.store_failed", destination=self.name, why=error.message)
                self._stop.wait(_TROUBLE_S)
            except Exception as error:  # the boundary of this thread: a defect of ours must not end the lane
                log.error("delivery.broke", destination=self.name, why=repr(type(error)), exc_info=True)
                self._stop.wait(_TROUBLE_S)

    def step(self) -> bool:
        """Claim and try one delivery; False if none is due."""
        store, clock = self._store, self._clock
        delivery = store.deliveries.claim(self._owner, self._lease_s, clock.now(), destination=self.name)
        if delivery is None:
            return False
        failpoint("deliver.claimed")
        try:
            settings = settings_of(delivery.settings)
            where = destination(settings, self._calling_ae)
        except UnknownDestination as error:
            store.deliveries.fail(delivery.id, self._owner, delivery.attempt, error.message, at=clock.now())
            log.error("delivery.failed", delivery=delivery.id, destination=self.name, why=error.message)
            return True
        retry = settings.retry
        patience = Patience(
            for_s=retry.for_, first_s=retry.first, at_most_s=min(retry.at_most, _LONGEST_PAUSE_S)
        )
        known = self._known.get(where.endpoint)
        if known is None:
            breaker = Breaker(first_s=patience.first_s, at_most_s=patience.at_most_s)
            known = self._known[where.endpoint] = _Known(breaker=breaker)
        if known.breaker.circuit(clock.monotonic()) is Circuit.OPEN:
            # Not a try: it waits with the others until the breaker lets one through.
            store.deliveries.release(delivery.id, self._owner, delivery.attempt, known.reopens(clock))
            return True
        self.current = delivery
        try:
            self._try(delivery, where, known, patience)
        finally:
            self.current = None
        return True

    def _try(self, delivery: Delivery, where: Destination, known: _Known, patience: Patience) -> None:
        derived = self._store.deliveries.derived(delivery.derived_id)
        if derived is None:
            why = "the derived series of this delivery is no longer on record"
            self._store.deliveries.fail(delivery.id, self._owner, delivery.attempt, why, self._clock.now())
            log.error("delivery.failed", delivery=delivery.id, destination=self.name, why=why)
            return
        outcomes = self._store.deliveries.outcomes(delivery.id)
        started = self._clock.monotonic()
        before = sum(o.done for o in outcomes.values())
        reported: set[str] = set()
        error: NodeError | None = None
        recorder = Recorder(self._store, delivery, self._owner, lease_s=self._lease_s, now=self._clock.now)

        def on_outcome(outcome: Outcome) -> None:
            failpoint("deliver.answered")
            outcomes[outcome.sop_instance_uid] = outcome
            reported.add(outcome.sop_instance_uid)
            recorder.add(outcome)

        def enough() -> bool:
            return self._stop.is_set() or recorder.lost.is_set()

        done = frozenset(uid for uid, o in outcomes.items() if o.done)
        with recorder:
            try:
                where.send(
                    parcels(self._store, derived, outcomes), on_outcome=on_outcome, done=done, stop=enough
                )
            except NodeError as failed:
                error = failed
            except Exception as failed:  # one series' trouble is not the next one's
                log.error("delivery.broke", delivery=delivery.id, why=type(failed).__name__, exc_info=True)
                error = DeliveryError(f"internal error ({type(failed).__name__})")
        key = (delivery.id, delivery.created_at)
        tries = self._tries.pop(key, Tries())
        if recorder.lost.is_set():  # taken over, or cancelled by a person: not ours to judge
            log.warning("delivery.lost", delivery=delivery.id, destination=self.name)
            return
        attempt = Attempt(
            n_instances=len(derived.instances),
            known=outcomes,
            reported=len(reported),
            newly_done=sum(o.done for o in outcomes.values()) - before,
            error=error,
            stopped=self._stop.is_set(),
        )
        age_s = (self._clock.now() - delivery.created_at).total_seconds()
        verdict = judge(attempt, tries, patience, age_s=age_s, chance=random.random())
        if verdict.next in (Next.RETRY, Next.RELEASE):
            self._tries[key] = verdict.tries
        self._heed(verdict.health, where.endpoint, known, delivery, error)
        self._write(delivery, where, known, verdict, attempt, self._clock.monotonic() - started)

    def _write(
        self,
        delivery: Delivery,
        where: Destination,
        known: _Known,
        verdict: Verdict,
        attempt: Attempt,
        took_s: float,
    ) -> None:
        store, it, now = self._store.deliveries, delivery, self._clock.now()
        told = {"endpoint": where.endpoint, "seconds": round(took_s, 3), "instances": attempt.n_instances}
        about = {"delivery": it.id, "derived": it.derived_id, "destination": self.name}
        if verdict.next is Next.SENT:
            warned = [o for o in attempt.known.values() if o.status >= 0xB000]
            failpoint("deliver.all_answered")
            store.finish(it.id, self._owner, it.attempt, now, told)
            failpoint("deliver.finished")
            log.info("delivery.sent", **about, instances=told["instances"], seconds=told["seconds"])
            if warned:
                log.warning("delivery.stored_with_warnings", **about, statuses=statuses(warned))
        elif verdict.next is Next.RELEASE:
            store.release(it.id, self._owner, it.attempt, now)
        elif verdict.next is Next.FAILED:
            text = f"{verdict.failure}. `luminode deliveries retry {it.id}` goes on with what is missing."
            store.fail(it.id, self._owner, it.attempt, text, now, told)
            log.error("delivery.failed", **about, why=verdict.failure)
        else:
            not_before = now + timedelta(seconds=verdict.pause_s)
            if known.breaker.failures:
                reopens = known.reopens(self._clock)
                not_before = reopens if verdict.health is Health.DOWN else max(not_before, reopens)
            store.retry_later(it.id, self._owner, it.attempt, not_before, verdict.failure)
            log.warning(
                "delivery.delayed", **about, attempt=it.attempt, why=verdict.failure,
                pause_s=round((not_before - now).total_seconds(), 1),
            )  # fmt: skip

    def _heed(
        self, health: Health, endpoint: str, known: _Known, delivery: Delivery, error: NodeError | None
    ) -> None:
        """Draw the conclusions about the destination from one try, and raise the alarm when it is time."""
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
        waited = (self._clock.now() - delivery.created_at).total_seconds()
        down_for, because = max(known.breaker.down_for(now), waited), error.message if error else ""
        if isinstance(error, AssociationRejected) and not error.retryable and not known.rejected:
            known.rejected = True
            self._event("error", "destination.rejects", endpoint, because=because, hint=error.hint)
        while known.alarms < len(ALARMS) and down_for >= ALARMS[known.alarms][0]:
            level = ALARMS[known.alarms][1]
            known.alarms += 1
            self._event(level, "destination.down", endpoint, for_s=round(down_for), because=because)

    def _event(self, level: Any, name: str, endpoint: str, **body: Any) -> None:
        told = {"destination": self.name, "endpoint": endpoint, **body}
        self._store.events.add(level, name, told, self._clock.now())
        getattr(log, level)(name, **told)


def parcels(store: Store, derived: DerivedSeries, known: dict[str, Outcome]) -> list[Parcel]:
    """A derived series' instances, those first that gave no trouble yet.

    An instance on which the destination broke off would otherwise be the first of every try, and the rest
    would never be reached.
    """
    order = sorted(derived.instances, key=lambda i: _trouble(known.get(i.sop_instance_uid)))
    return [
        Parcel(
            sop_class_uid=i.sop_class_uid,
            sop_instance_uid=i.sop_instance_uid,
            transfer_syntax_uid=i.transfer_syntax_uid,
            path=store.spool.path(i.path),
            offset=i.offset,
            size=i.size,
            sha256=i.sha256,
            series_uid=derived.series_uid,
        )
        for i in order
    ]


def _trouble(outcome: Outcome | None) -> int:
    if outcome is None or outcome.done:
        return 0
    return 1 if outcome.retryable else 2
