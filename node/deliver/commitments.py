"""Storage commitment: look at what a scanner asked for, and tell it, however long it does not listen (PS3.4 J).

An instance is committed only where all of this holds: it is on record, of the class that was named, with no other bytes
under its UID; it goes, or went, where the configuration's promise says; and its bytes in the spool, read there and
then, have the digest that they came with. Looks have a thread of their own, and so has each peer that is being told: a
scanner that is switched off, or slow, holds up neither a look nor another scanner.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from node.config.schema import DimseDestination
from node.deliver.backoff import ceiling_s, full_jitter_s
from node.deliver.dimse import FALLBACKS, peer_of
from node.deliver.sender import associate
from node.dicom.commitment import PUSH_INSTANCE, PUSH_MODEL, Reason, report
from node.dicom.status import describe
from node.errors import ContextNotAccepted, NodeError, StoreError
from node.failpoints import failpoint
from node.log import get_logger
from node.model import Commitment, CommitmentState
from node.store import Store, owners

log = get_logger()

LEASE_S: Final = 120.0
_LOOK_S: Final = 0.5
_WAIT_S: Final = (2.0, 60.0)
"""Between two looks at what is on its way to PACS: a tenth of the time that it has taken, within these."""

_BEAT_S: Final = 20.0
_FIRST_S: Final = 2.0
_AT_MOST_S: Final = 900.0
_PATIENCE_S: Final = 15.0
"""For each step of telling: whoever is there answers in a moment, and others wait for their results."""

_PEERS: Final = 16
"""So many are told at once: each is a thread, for a moment mostly."""

_TIDY_S: Final = 60.0
_KEPT: Final = timedelta(days=90)
"""How long a request that is done with stays on record."""


class Commitments:
    """The threads. What they know is in the database; killed at any moment, they begin again there.

    Parameters
    ----------
    clock
        Gives the time of day, timezone-aware UTC.
    """

    def __init__(self, store: Store, clock: Callable[[], datetime] | None = None) -> None:
        self._store = store
        self._owner = owners.me("commit")
        self._now = clock or (lambda: datetime.now(UTC))
        self._stop = threading.Event()
        self._telling: dict[str, threading.Thread] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(each,), name=name, daemon=True)
            for name, each in (("commitment-look", self.look), ("commitment-tell", self.hand_out))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, within_s: float) -> None:
        """End; what is under way is given up after ``within_s`` seconds, and done again by the next process."""
        self._stop.set()
        until = time.monotonic() + within_s
        for thread in (*self._threads, *self._telling.values()):
            if thread.is_alive():
                thread.join(max(until - time.monotonic(), 0.0))

    def _run(self, step: Callable[[], bool]) -> None:
        tidy_at = 0.0
        while not self._stop.is_set():
            try:
                if step == self.look and time.monotonic() >= tidy_at:
                    tidy_at = time.monotonic() + _TIDY_S
                    self.tidy()
                busy = step()
            except StoreError as error:
                log.error("commitment.store_failed", why=error.message)
                busy = False
            except Exception as error:
                log.error("commitment.failed", error=type(error).__name__)
                busy = False
            if not busy:
                self._stop.wait(_LOOK_S)

    def tidy(self) -> None:
        """Take back what dead processes held, give up on who never listened, forget what is long done."""
        commitments, now = self._store.commitments, self._now()
        commitments.release_dead()
        for one in commitments.give_up(now):
            body = {"transaction": one.transaction_uid, "calling_ae": one.calling_ae, "why": one.failure}
            log.error("commitment.given_up", **body, hint="the scanner may ask again; see its `report_to`")
            self._store.events.add("error", "commitment.given_up", body, now)
        commitments.forget(now - _KEPT)

    # looking --------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Look at one request; False if none is due."""
        commitments = self._store.commitments
        one = commitments.claim(CommitmentState.ASKED, self._owner, LEASE_S, self._now())
        if one is None:
            return False
        failed = self.judge(one)
        if failed is None:
            so_far = (self._now() - one.asked_at).total_seconds()
            pause = min(max(so_far / 10, _WAIT_S[0]), _WAIT_S[1])
            commitments.later(one, self._owner, self._now() + timedelta(seconds=pause), tried=False)
        elif commitments.ready(one.id, self._owner, failed, self._now()):
            told = {"transaction": one.transaction_uid, "calling_ae": one.calling_ae}
            (log.warning if failed else log.info)(
                "commitment.ready", **told, instances=len(one.references), failed=len(failed)
            )
            if failed:
                body = {**told, "instances": len(one.references), "failed": len(failed)}
                self._store.events.add("warning", "commitment.refused", body, self._now())
        return True

    def judge(self, one: Commitment) -> Mapping[str, int] | None:
        """Failure Reasons by SOP Instance UID; None while some instance is still on its way to a destination."""
        held = self._store.commitments.held((uid for _, uid in one.references), one.promise)
        if self._now() < one.answer_by and any(each.way == "waits" for each in held.values()):
            return None
        failed: dict[str, int] = {}
        beat_at = time.monotonic() + _BEAT_S
        for sop_class, uid in one.references:
            if time.monotonic() >= beat_at:  # thousands of files take their time
                beat_at = time.monotonic() + _BEAT_S
                until = self._now() + timedelta(seconds=LEASE_S)
                self._store.commitments.extend(one.id, self._owner, until)
            found = held.get(uid)
            if found is None:
                failed[uid] = Reason.NO_SUCH_INSTANCE
            elif found.sop_class_uid != sop_class:
                failed[uid] = Reason.CLASS_CONFLICT
            elif found.way != "safe":
                failed[uid] = Reason.PROCESSING_FAILURE
            elif not self._store.spool.verify(found.path, found.offset, found.sha256):
                failed[uid] = Reason.PROCESSING_FAILURE
                log.error("spool.rotten", path=found.path, hint="run `luminode spool fsck --verify`")
            if self._stop.is_set():
                return None
        return failed

    # telling --------------------------------------------------------------------------------------

    def tell(self) -> bool:
        """Tell one result to a requester that listens somewhere; False if none is due."""
        one = self._store.commitments.claim(CommitmentState.READY, self._owner, LEASE_S, self._now())
        if one is not None:
            self._tell(one)
        return one is not None

    def hand_out(self) -> bool:
        """Have a result that is due told by a thread of its own, one for each requester; False if none is."""
        self._telling = {title: each for title, each in self._telling.items() if each.is_alive()}
        if len(self._telling) >= _PEERS:
            return False
        one = self._store.commitments.claim(
            CommitmentState.READY, self._owner, LEASE_S, self._now(), but=tuple(self._telling)
        )
        if one is None:
            return False
        name = f"commitment-tell-{one.id}"
        teller = threading.Thread(target=self._tell_safely, args=(one,), name=name, daemon=True)
        try:
            teller.start()
        except RuntimeError:  # no more threads
            self._tell_safely(one)
        else:
            self._telling[one.calling_ae] = teller
        return True

    def _tell_safely(self, one: Commitment) -> None:
        """The boundary of a teller's thread: what went wrong is told again when its lease has run out."""
        try:
            self._tell(one)
        except StoreError as error:
            log.error("commitment.store_failed", why=error.message)
        except Exception as error:
            log.error("commitment.failed", error=type(error).__name__)

    def _tell(self, one: Commitment) -> None:
        commitments = self._store.commitments
        failpoint("deliver.before_commitment_told")
        try:
            told = send(one, is_old=lambda: commitments.again(one, self._owner, self._now()))
        except StoreError:
            raise
        except NodeError as error:
            failures = one.attempt + 1
            pause = full_jitter_s(failures, first_s=_FIRST_S, at_most_s=_AT_MOST_S, chance=random.random())
            pause = max(pause, ceiling_s(failures, first_s=_FIRST_S, at_most_s=_AT_MOST_S) / 4)
            until = self._now() + timedelta(seconds=pause)
            commitments.later(one, self._owner, until, error.message, tried=True)
            if failures == 1:
                log.warning(
                    "commitment.not_told", transaction=one.transaction_uid, calling_ae=one.calling_ae,
                    why=error.message, hint=error.hint or "it is tried again; see `report_to` of this peer",
                )  # fmt: skip
            return
        if not told:
            log.info("commitment.looked_at_again", transaction=one.transaction_uid, calling_ae=one.calling_ae)
            return
        commitments.told(one.id, self._owner, self._now())
        log.info(
            "commitment.told", transaction=one.transaction_uid, calling_ae=one.calling_ae,
            instances=len(one.references), failed=len(one.failed),
        )  # fmt: skip


def send(one: Commitment, *, is_old: Callable[[], bool]) -> bool:
    """Tell a result by N-EVENT-REPORT on an association of ours, as the provider of the service.

    Parameters
    ----------
    is_old
        Asked once the requester is there; if so nothing is told, and False is returned.

    Raises
    ------
    DeliveryError
        The requester does not know it now; it may be told again, which does no harm.
    """
    settings = DimseDestination.model_validate(one.report_to)
    settings = settings.model_copy(update={"timeout": min(settings.timeout, _PATIENCE_S)})
    peer = replace(peer_of(settings, one.called_ae), as_provider=(PUSH_MODEL,))
    sender = associate(peer, [(PUSH_MODEL, syntax) for syntax in FALLBACKS])
    try:
        syntax = next((s for s in FALLBACKS if (PUSH_MODEL, s) in sender.accepted), None)
        if syntax is None:
            raise ContextNotAccepted(
                "it does not take results of storage commitment there",
                hint="it must accept the Storage Commitment Push Model with the node as its SCP",
            )
        if is_old():
            return False
        event, data = report(one.transaction_uid, one.references, one.failed, syntax)
        answer = sender.report(sender.accepted[PUSH_MODEL, syntax], PUSH_MODEL, PUSH_INSTANCE, event, data)
    finally:
        sender.release()
    if answer.status:
        raise ContextNotAccepted(f"it answered the result with {describe(answer.status)}")
    return True
