"""Storage commitment as its user (PS3.4 J): ask destinations to commit to what was delivered, hear what they say.

A destination may answer on the association that asks, or call the node days later: then it is heard at the door
(node/receive/commitment.py). Each destination has a thread of its own while there is something to ask, so that one
that hangs holds up nobody else.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from pydicom.uid import generate_uid

from node.deliver.backoff import ceiling_s, full_jitter_s
from node.deliver.dimse import FALLBACKS, peer_of
from node.deliver.kinds import settings_of
from node.deliver.sender import associate
from node.dicom.commitment import PUSH_INSTANCE, PUSH_MODEL, REQUEST, ActionStatus, read_report, request
from node.dicom.status import describe
from node.errors import ContextNotAccepted, DeliveryError, HeaderFault, NodeError, PeerUnreachable, StoreError
from node.failpoints import failpoint
from node.log import get_logger
from node.store import Store, owners
from node.store.pledges import Asking

log = get_logger()

LEASE_S: Final = 180.0
LISTEN_S: Final = 3.0
"""How long the association that asked stays, for destinations that answer on it."""

_LOOK_S: Final = 1.0
_TIDY_S: Final = 60.0
_FIRST_S: Final = 5.0
_AT_MOST_S: Final = 3600.0
_TIMES: Final = 4
"""So often it is asked within ``commit_within`` if it takes the request and never answers."""


class _NotTaken(DeliveryError):
    """The destination is there, and did not take this one request: others may fare better."""


class Pledges:
    """Asks destinations. What it knows is in the database; killed at any moment, it begins again there.

    Parameters
    ----------
    calling_ae
        Our AE title where a destination names none.
    clock
        Gives the time of day, timezone-aware UTC.
    """

    def __init__(self, store: Store, *, calling_ae: str, clock: Callable[[], datetime] | None = None) -> None:
        self._store = store
        self._calling_ae = calling_ae
        self._owner = owners.me("pledge")
        self._now = clock or (lambda: datetime.now(UTC))
        self._stop = threading.Event()
        self._busy: dict[str, threading.Thread] = {}
        self._thread = threading.Thread(target=self._run, name="pledges", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Ask for nothing more."""
        self._stop.set()

    def stop(self, within_s: float) -> None:
        """End; what is under way is given up after ``within_s`` seconds, and asked again by the next process."""
        self._stop.set()
        for thread in (self._thread, *self._busy.values()):
            if thread.is_alive():
                thread.join(within_s / (1 + len(self._busy)))

    def _run(self) -> None:
        tidy_in, begun = 0.0, False
        while not self._stop.is_set():
            try:
                if not begun:
                    self._begin()
                    begun = True
                tidy_in -= _LOOK_S
                if tidy_in <= 0:
                    tidy_in = _TIDY_S
                    self.tidy()
                for name in self._store.pledges.due(self._now()):
                    self._ask_apart(name)
            except StoreError as error:
                log.error("pledge.store_failed", why=error.message)
            except Exception as error:
                log.error("pledge.failed", error=type(error).__name__)
            self._stop.wait(_LOOK_S)

    def _ask_apart(self, name: str) -> None:
        at_it = self._busy.get(name)
        if at_it is None or not at_it.is_alive():
            self._busy[name] = threading.Thread(
                target=self._ask_all, args=(name,), name=f"pledge-{name}", daemon=True
            )
            self._busy[name].start()

    def _ask_all(self, name: str) -> None:
        try:
            while not self._stop.is_set() and self.ask(name):
                pass
        except StoreError as error:
            log.error("pledge.store_failed", destination=name, why=error.message)
        except Exception as error:
            log.error("pledge.failed", destination=name, error=type(error).__name__)

    def _begin(self) -> None:
        self._store.pledges.release_dead()
        n = self._store.pledges.resume(self._now())
        if n:
            log.warning("pledge.once_more", deliveries=n, hint="their time ran out while the node was away")

    def tidy(self) -> None:
        """Take back what dead processes held, give up on destinations that never answered."""
        self._store.pledges.release_dead()
        for one in self._store.pledges.give_up(self._now()):
            log.error(
                "delivery.uncommitted", delivery=one.delivery_id, destination=one.destination, why=one.failure,
                hint="ask the PACS administrator; `luminode deliveries retry` sends it and asks again",
            )  # fmt: skip

    def ask(self, name: str) -> bool:
        """Ask one destination for one delivery; False if none is due there."""
        store = self._store.pledges
        one = store.claim(name, str(generate_uid(prefix=None)), self._owner, LEASE_S, self._now())
        if one is None:
            return False
        failpoint("deliver.before_pledge_asked")
        try:
            if not one.references:
                raise _NotTaken("what was delivered is no longer on record")
            again_s = self._request(one)
        except StoreError:
            raise
        except NodeError as error:
            failures = one.attempt + 1
            most = ceiling_s(failures, first_s=_FIRST_S, at_most_s=_AT_MOST_S)
            pause = full_jitter_s(failures, first_s=_FIRST_S, at_most_s=_AT_MOST_S, chance=random.random())
            until = self._now() + timedelta(seconds=max(pause, most / 4))
            store.later(one, self._owner, until, error.message, alone=isinstance(error, _NotTaken))
            if failures == 1 or error.message != one.failure:
                log.warning(
                    "pledge.not_asked", delivery=one.delivery_id, destination=name, why=error.message,
                    hint=error.hint or "it is tried again",
                )  # fmt: skip
            if isinstance(error, _NotTaken):  # it may be busy: what else there is comes one after the other
                self._stop.wait(_LOOK_S)
            return True
        failpoint("deliver.pledge_asked")
        now = self._now()
        if store.asked(one, self._owner, now, now + timedelta(seconds=again_s)):
            log.info(
                "pledge.asked", delivery=one.delivery_id, destination=name, instances=len(one.references)
            )
        return True

    def _request(self, one: Asking) -> float:
        """Ask, and listen for a moment; seconds after which to ask again if nobody has answered."""
        settings = settings_of(one.settings)
        sender = associate(
            peer_of(settings, self._calling_ae), [(PUSH_MODEL, syntax) for syntax in FALLBACKS]
        )
        try:
            syntax = next((s for s in FALLBACKS if (PUSH_MODEL, s) in sender.accepted), None)
            if syntax is None:
                raise ContextNotAccepted(
                    "the destination does not offer storage commitment",
                    hint="take `commit` out of this destination, or have its administrator turn the service on for "
                    "this node's AE title",
                )

            def on_event(data: bytes) -> int:
                return self.hear(data, syntax)

            data = request(one.transaction_uid, one.references, syntax)
            context = sender.accepted[PUSH_MODEL, syntax]
            try:
                answer = sender.action(context, PUSH_MODEL, PUSH_INSTANCE, REQUEST, data, on_event)
            except PeerUnreachable as error:
                raise _NotTaken(error.message, hint=error.hint) from None
            if answer.status:
                raise _NotTaken(f"it answered the request with {describe(answer.status)}")
            if sender.is_open:
                with contextlib.suppress(PeerUnreachable):  # it has taken the request, however it leaves
                    sender.listen(LISTEN_S, on_event, self._stop.is_set)
        finally:
            sender.release()
        return float(settings.commit_within) / _TIMES

    def hear(self, data: bytes, syntax: str) -> int:
        """Take a result; the status to answer it with."""
        try:
            told = read_report(data, syntax)
            what = self._store.pledges.result(told, self._now())
        except HeaderFault as fault:
            log.warning("pledge.unreadable", because=fault.message)
            return fault.status
        except StoreError as error:
            log.error("pledge.store_failed", why=error.message)
            return ActionStatus.RESOURCE_LIMITATION
        log.info("pledge.heard", transaction=told.transaction_uid, failed=len(told.failed), outcome=what)
        return ActionStatus.INVALID_ARGUMENT if what == "unknown" else 0
