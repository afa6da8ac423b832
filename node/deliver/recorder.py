"""Keeps a claimed delivery ours and its outcomes durable while it is being sent.

Outcomes are written as fast as the database takes them, each transaction with all that came meanwhile: the
sender does not wait for a commit, and what a killed process knew but had not written is an instance or two,
which are sent again and do no harm. With a database that stalls it is never more than :data:`MOST_UNWRITTEN`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from node.errors import StoreError
from node.log import get_logger
from node.model import Delivery, Outcome
from node.store import Store

log = get_logger()

MOST_UNWRITTEN = 20
_PAUSE_S = 0.02
_TROUBLE_S = 0.5


class Recorder:
    """Heartbeat and outcomes of one delivery, in a thread of its own; a context manager.

    ``lost`` is set once the delivery is no longer ours: somebody else claimed it, or it could not be
    prolonged before its lease ran out. Sending must stop then.

    Parameters
    ----------
    owner
        Who claimed ``delivery``.
    lease_s
        Length of a lease in seconds; it is prolonged when a third of it has passed.
    now
        The wall clock, in UTC.
    """

    def __init__(
        self, store: Store, delivery: Delivery, owner: str, *, lease_s: float, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._delivery = delivery
        self._owner = owner
        self._lease_s = lease_s
        self._now = now
        self._changed = threading.Condition()
        self._pending: list[Outcome] = []
        self._ended = False
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"recorder-{delivery.id}", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def add(self, outcome: Outcome) -> None:
        """Note an outcome; it is durable soon, and with the end of the delivery at the latest."""
        with self._changed:
            self._pending.append(outcome)
            self._changed.notify_all()
            while len(self._pending) >= MOST_UNWRITTEN and not self.lost.is_set():
                self._changed.wait(_TROUBLE_S)

    def _run(self) -> None:
        held_until = prolonged = time.monotonic()
        held_until += self._lease_s
        while not self.lost.is_set():
            with self._changed:
                if not self._pending and not self._ended:
                    self._changed.wait(max(0.0, prolonged + self._lease_s / 3 - time.monotonic()))
                batch, ended = tuple(self._pending), self._ended
            started = time.monotonic()
            beat = started - prolonged >= self._lease_s / 3
            try:
                ours = self._write(batch, beat=beat and not ended)
            except StoreError as error:
                if time.monotonic() >= held_until:
                    log.warning("delivery.unrecorded", delivery=self._delivery.id, why=type(error).__name__)
                    self.lost.set()
                    return
                time.sleep(_TROUBLE_S)
                continue
            if not ours:
                self.lost.set()
                return
            with self._changed:
                del self._pending[: len(batch)]
                self._changed.notify_all()
                if ended and not self._pending:
                    return
            if beat:
                prolonged = started
                held_until = started + self._lease_s
            # As long as it took: the receiver's commits want the database too.
            time.sleep(min(_PAUSE_S, time.monotonic() - started))

    def _write(self, batch: Sequence[Outcome], *, beat: bool) -> bool:
        deliveries, it = self._store.deliveries, self._delivery
        if beat:
            until = self._now() + timedelta(seconds=self._lease_s)
            if not deliveries.heartbeat(it.id, self._owner, it.attempt, until):
                return False
        return not batch or deliveries.record_outcomes(it.id, self._owner, it.attempt, batch)
