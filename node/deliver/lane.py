"""One queue of one destination, one delivery after the other, oldest first, in a thread of its own.

Derived series and originals are queues of their own: neither waits behind the other. Originals go out as they come,
over an association that is kept for a moment; series that grow at the same time take turns.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from node.deliver.destination import Destination, Line, line_to
from node.deliver.health import Clock, Known, Watchers
from node.deliver.kinds import UnknownDestination, destination, settings_of
from node.deliver.parcel import Parcel
from node.deliver.recorder import Recorder
from node.deliver.verdict import Attempt, Health, Next, Patience, Tries, Verdict, judge, statuses
from node.errors import DeliveryError, NodeError, StoreError
from node.failpoints import failpoint
from node.log import get_logger
from node.model import Delivery, DerivedInstance, Instance, Outcome
from node.store import Store
from node.store.clock import WATCH
from node.store.originals import Cargo

__all__ = ["Clock", "Lane", "parcels"]

log = get_logger()

KEPT_S = 2.0
"""How long an association for originals stays open when nothing is to be sent: PACS count theirs, and many look at
what they got only when it ends."""

_TROUBLE_S = 1.0
_LONGEST_PAUSE_S = 43200.0
"""Whatever is configured: the store takes what waits a day and more for the doing of a wrong clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """Where a delivery goes: its destination, what is known of it, and how long it is tried."""

    where: Destination
    known: Known
    patience: Patience


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
    originals
        Whether this is the queue of the originals.
    watchers
        What is known of the destination, shared with its other queue.
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
        originals: bool = False,
        watchers: Watchers | None = None,
    ) -> None:
        self.name = name
        self._store = store
        self._owner = owner
        self._calling_ae = calling_ae
        self._stop = stop
        self._lease_s = lease_s
        self._clock = clock or Clock()
        self._originals = originals
        self._watchers = watchers or Watchers(store, name, self._clock)
        self._tries: dict[tuple[int, datetime], Tries] = {}
        self._wake = threading.Event()
        self._last = 0
        self._doubtful = False
        self._line: tuple[Any, Line] | None = None
        self.current: Delivery | None = None
        what = "originals" if originals else "lane"
        self.thread = threading.Thread(target=self._run, name=f"{what}-{name}", daemon=True)

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

    def close(self) -> None:
        """End an association that was kept."""
        if self._line is not None:
            _, line = self._line
            self._line = None
            line.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._wake.wait(KEPT_S if self._line is not None else None):
                self.close()
                continue
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
        self.close()

    def step(self) -> bool:
        """Claim and try one delivery; False if none is due."""
        store, clock = self._store, self._clock
        delivery = store.deliveries.claim(
            self._owner, self._lease_s, clock.now(), destination=self.name,
            originals=self._originals, after=self._last,
        )  # fmt: skip
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
            for_s=math.inf if retry.for_ is None else retry.for_,
            first_s=retry.first,
            at_most_s=min(retry.at_most, _LONGEST_PAUSE_S),
        )
        known = self._watchers.of(where.endpoint, patience)
        if not self._watchers.admits(known):
            # Not a try: it waits with the others until the breaker lets one through.
            again = known.looks_again(clock)
            store.deliveries.release(delivery.id, self._owner, delivery.attempt, again)
            store.deliveries.postpone(self.name, delivery.settings, again)
            return True
        self.current = delivery
        self._doubtful = False
        try:
            self._try(delivery, _Way(where=where, known=known, patience=patience))
        finally:
            self.current = None
            self._watchers.tried(known)
        # Those that grow at the same time take turns. Of a destination that is away the oldest is tried first; where it
        # was there and broke off, another: the oldest may hold the one instance that it always breaks off at.
        turns = self._originals and not known.breaker.failures
        self._last = delivery.id if turns or self._doubtful else 0
        return True

    def _try(self, delivery: Delivery, way: _Way) -> None:
        cargo = self._store.deliveries.cargo(delivery)
        if cargo is None:
            why = "the derived series of this delivery is no longer on record"
            self._store.deliveries.fail(delivery.id, self._owner, delivery.attempt, why, self._clock.now())
            log.error("delivery.failed", delivery=delivery.id, destination=self.name, why=why)
            return
        outcomes = dict(cargo.known)
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
                self._to(delivery, way.where).send(
                    parcels(self._store, cargo, outcomes), on_outcome=on_outcome, done=done, stop=enough
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
            n_instances=cargo.n_instances,
            known=outcomes,
            reported=len(reported),
            newly_done=sum(o.done for o in outcomes.values()) - before,
            done_before=cargo.n_done,
            error=error,
            stopped=self._stop.is_set(),
            settled=self._originals and error is None and _settled(cargo, outcomes),
        )
        age_s = WATCH.age_s(delivery.created_at, self._clock.now())
        verdict = judge(attempt, tries, way.patience, age_s=age_s, chance=random.random())
        if verdict.next in (Next.RETRY, Next.RELEASE):
            self._tries[key] = verdict.tries
        self._doubtful = verdict.health is Health.DOUBTFUL
        self._watchers.heed(verdict.health, way.where.endpoint, way.known, delivery, error)
        self._write(delivery, way, verdict, attempt, self._clock.monotonic() - started)

    def _to(self, delivery: Delivery, where: Destination) -> Destination | Line:
        """Originals come one by one: their association is kept. It is never shared by two settings."""
        if not self._originals:
            return where
        key = dict(delivery.settings)
        if self._line is None or self._line[0] != key:
            self.close()
            self._line = key, line_to(where)
        return self._line[1]

    def _write(
        self, delivery: Delivery, way: _Way, verdict: Verdict, attempt: Attempt, took_s: float
    ) -> None:
        store, it, now = self._store.deliveries, delivery, self._clock.now()
        told = {
            "endpoint": way.where.endpoint,
            "seconds": round(took_s, 3),
            "instances": attempt.n_instances,
        }
        what = {"derived": it.derived_id} if it.series_id is None else {"originals_of": it.series_id}
        about = {"delivery": it.id, **what, "destination": self.name}
        if verdict.next is Next.SENT:
            warned = [o for o in attempt.known.values() if o.done and o.status >= 0xB000]
            failpoint("deliver.all_answered")
            if self._originals:
                told.pop("seconds")  # of the last try alone
                now_it = store.settle(it.id, self._owner, it.attempt, now, told)
            else:
                now_it = "sent"
                store.finish(it.id, self._owner, it.attempt, now, told)
            failpoint("deliver.finished")
            if now_it == "sent":
                log.info("delivery.sent", **about, instances=attempt.n_instances, seconds=round(took_s, 3))
            if verdict.failure:
                log.warning("delivery.refused", **about, why=verdict.failure)
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
            if way.known.breaker.failures:
                reopens = way.known.reopens(self._clock)
                not_before = reopens if verdict.health is Health.DOWN else max(not_before, reopens)
            # Where the destination is well, what comes next does not wait for what gave trouble.
            wakes = self._originals and not way.known.breaker.failures
            store.retry_later(it.id, self._owner, it.attempt, not_before, verdict.failure, wakes=wakes)
            if way.known.breaker.failures:
                store.postpone(self.name, it.settings, way.known.reopens(self._clock))
            log.warning(
                "delivery.delayed", **about, attempt=it.attempt, why=verdict.failure,
                pause_s=round((not_before - now).total_seconds(), 1),
            )  # fmt: skip


def _settled(cargo: Cargo, outcomes: dict[str, Outcome]) -> bool:
    """Whether nothing of it is to be tried now: of a series that grows, what is refused waits for its end."""
    last = [outcomes.get(i.sop_instance_uid) for i in cargo.instances]
    return all(o is not None and (o.done or (cargo.growing and not o.retryable)) for o in last)


def parcels(store: Store, cargo: Cargo, known: dict[str, Outcome]) -> list[Parcel]:
    """A delivery's instances, those first that gave no trouble yet; of a series that grows those alone, as
    long as there are any.

    An instance on which the destination broke off would otherwise be the first of every try, and the rest
    would never be reached.
    """
    instances: Sequence[DerivedInstance | Instance] = cargo.instances
    if cargo.growing:
        instances = [i for i in instances if i.sop_instance_uid not in known] or instances
    order = sorted(instances, key=lambda i: _trouble(known.get(i.sop_instance_uid)))
    return [
        Parcel(
            sop_class_uid=i.sop_class_uid,
            sop_instance_uid=i.sop_instance_uid,
            transfer_syntax_uid=i.transfer_syntax_uid,
            path=store.spool.path(i.path),
            offset=i.offset,
            size=i.size,
            sha256=i.sha256,
            series_uid=cargo.series_uid,
        )
        for i in order
    ]


def _trouble(outcome: Outcome | None) -> int:
    if outcome is None or outcome.done:
        return 0
    return 1 if outcome.retryable else 2
