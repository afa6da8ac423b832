"""The deliverer: two lanes for each destination, one of them for originals, so that one's trouble is not another's.

It holds no state that matters: what waits, what is done and what is leased is in the database. Killed at any
moment, it starts again with what was not recorded as done, and sending an instance twice does no harm.
"""

from __future__ import annotations

import threading
import time

from node.deliver.commitments import Commitments
from node.deliver.health import Clock, Watchers
from node.deliver.lane import Lane
from node.deliver.pledges import Pledges
from node.errors import StoreError
from node.log import get_logger
from node.model import DeliveryState
from node.store import Store, owners

log = get_logger()

LEASE_S = 60.0
_LOOK_S = 0.25
_PAUSE_S = 0.03
_ORPHANS_S = 10.0


class Deliverer:
    """Deliver derived series, and originals, to their destinations.

    Parameters
    ----------
    calling_ae
        Our AE title (``node.ae_title``) for destinations that do not name another.
    owner
        Whom leases are taken for; this process, unless a test says otherwise.
    lease_s
        How long a delivery stays claimed after the last sign of life, in seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        calling_ae: str,
        owner: str = "",
        lease_s: float = LEASE_S,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._calling_ae = calling_ae
        self._owner = owner or owners.me("deliver")
        self._lease_s = lease_s
        self._clock = clock or Clock()
        self._stop = threading.Event()
        self._lanes: dict[tuple[str, bool], Lane] = {}
        self._watchers: dict[str, Watchers] = {}

    def run(self, stop: threading.Event, *, drain_s: float = 10.0) -> None:
        """Deliver until ``stop`` is set; then end what is under way within ``drain_s`` seconds."""
        ticker = self._store.changes.ticker()
        look_for_orphans = 0.0
        commitments = Commitments(self._store)
        commitments.start()
        pledges = Pledges(self._store, calling_ae=self._calling_ae, clock=self._clock.now)
        pledges.start()
        try:
            while not stop.is_set():
                if time.monotonic() >= look_for_orphans:
                    look_for_orphans = time.monotonic() + _ORPHANS_S
                    self._adopt_orphans()
                self._wake_lanes()
                stop.wait(_PAUSE_S)  # a receiver at work commits all the time
                ticker.wait(_LOOK_S)
        finally:
            ticker.close()
            pledges.end()
            self.drain(drain_s)
            commitments.stop(2.0)
            pledges.stop(2.0)

    def drain(self, within_s: float) -> None:
        """Stop claiming; let each lane end its current instance, and put back what does not end in time."""
        self._stop.set()
        deadline = time.monotonic() + within_s
        for lane in self._lanes.values():
            lane.wake()
        for lane in self._lanes.values():
            lane.thread.join(max(0.0, deadline - time.monotonic()))
        for lane in self._lanes.values():
            if lane.thread.is_alive():
                try:
                    lane.put_back()
                except StoreError as error:  # its lease ends by itself
                    log.warning("delivery.not_put_back", destination=lane.name, why=error.message)

    def _wake_lanes(self) -> None:
        try:
            queues = self._store.deliveries.due_queues(self._clock.now())
        except StoreError as error:
            log.error("delivery.store_failed", why=error.message)
            self._stop.wait(1.0)
            return
        for queue in queues:
            lane = self._lanes.get(queue)
            if lane is None:
                name, originals = queue
                watchers = self._watchers.setdefault(name, Watchers(self._store, name, self._clock))
                lane = self._lanes[queue] = Lane(
                    self._store, name, owner=self._owner, calling_ae=self._calling_ae, stop=self._stop,
                    lease_s=self._lease_s, clock=self._clock, originals=originals, watchers=watchers,
                )  # fmt: skip
                lane.start()
            lane.wake()

    def _adopt_orphans(self) -> None:
        """Take back at once what a process of this host held that no longer runs."""
        try:
            for delivery in self._store.deliveries.list([DeliveryState.SENDING], limit=1000):
                lease = delivery.lease
                if lease is not None and owners.certainly_dead(lease.owner):
                    now = self._clock.now()
                    if self._store.deliveries.release(delivery.id, lease.owner, delivery.attempt, now):
                        log.info("delivery.taken_back", delivery=delivery.id, owner=lease.owner)
        except StoreError as error:
            log.error("delivery.store_failed", why=error.message)
