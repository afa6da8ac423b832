"""Working ahead: a worker without a job decodes, surveys and enhances series that are still coming.

What a series would be routed to is told by gather (`Store.outlooks`). Slices are taken up as they come, a few between
two looks for a job; once the series is complete its job finds the work done (node/enhance/memo.py) and only derives.
A slice is made when the slices that its noise is steadied over are there, with even gaps that its header explains.
Nothing of this is needed: whatever goes wrong here costs what was done ahead, and nothing else. The job does it all
again, and it is the job that tells what is wrong with a series.

Where the scale of the series is a figure of all of its slices (MR), they are decoded and surveyed, and enhanced once
the series looks complete and waits for nothing but its settling time; so are the ends of a stack.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engines.base import Params
from node.dicom.modality import split
from node.dicom.stacks import UNEVEN, Stack, stacks
from node.enhance.chain import SLAB, STEADY, Work, slices_at_once
from node.enhance.memo import Key, Memo, keys, name
from node.enhance.scratch import Item, Scratch
from node.enhance.workshop import Proven, Workshop
from node.errors import NodeError, OutOfSpace, SeriesError, StoreError
from node.log import get_logger
from node.model import Instance, InstanceHeader, Job
from node.store import Store
from node.store.outlooks import Outlook
from node.store.owners import certainly_dead
from node.store.spool import Scratch as Folder

log = get_logger()

AT_ONCE = 8
"""Slices decoded, surveyed or enhanced between two looks for a job, at most."""
TRIES = 2
"""A series that ended so many workers is left alone until it is complete."""
MOST_SERIES = 8
MOST_MADE = 2
"""How often a slice is made ahead at most: slices in no order change their neighbours again and again."""
_LOOKED_SHARE = 0.2
"""Of the time, at most, goes into finding out what there is to do."""
_SAME_S = 2.0
"""How often a series of which some instance has no header is looked at again, with nothing new."""
_STEP_S = 1.0
"""What is given to an engine at once takes no longer than this."""
_KEPT_S = 60.0
"""How long what was done is kept for jobs, after the series was routed."""
_ROOM = 4
"""Free space on the disk is left alone unless there is so many times what a series may take."""


class Signs(Protocol):
    """Signs of life, for whoever watches the worker and its device."""

    def looks(self, series_id: int) -> None:
        """It looks at a series, or reads of it; no engine is at work."""
        ...

    def loads(self) -> None:
        """It loads an engine."""
        ...

    def works(self, proven: Proven, n_pixels: int) -> None:
        """It gives so many pixels to an engine."""
        ...


_SAME = ("card", "runtime", "strength", "options", "enhance_vendor_denoised")
"""What two jobs have to ask alike so that the pixels are the same."""


@dataclass(slots=True, kw_only=True)
class Session:
    """One series, and what was done of it."""

    outlook: Outlook
    proven: Proven
    folder: Folder
    kept: Scratch
    memo: Memo
    work: Work
    n_seen: int = -1
    n_told: int = -1
    slice_s: float = 0.0
    looked_at: float = 0.0
    look_took: float = 0.0
    routed_at: float | None = None
    items: list[Item] = field(default_factory=list)
    stacks: Sequence[Stack] = ()
    ready: list[tuple[Stack, int, Key]] = field(default_factory=list)
    measured: bool = True
    whole: bool = False

    def fits(self, items: Sequence[Item]) -> bool:
        """Whether what was decoded are these instances, as far as it is there."""
        places = self.kept.places
        return all(places[i.sop_instance_uid].item == i for i in items if i.sop_instance_uid in places)

    def close(self) -> None:
        """Give the disk back."""
        self.memo.close()
        self.kept.__exit__()
        self.folder.close()


def ready_to_make(stack: Stack, known: Sequence[Key], memo: Memo, *, whole: bool = False) -> list[int]:
    """The slices of a growing stack whose neighbourhood is complete, and that were not made so.

    The ends are left: nobody knows whether they are the ends.

    Parameters
    ----------
    whole
        The series looks complete, so all are to be made.
    """
    if whole:
        return [i for i, key in enumerate(known) if key not in memo and memo.times[key.slice] <= MOST_MADE]
    usual = stack.spacing_mm[0]
    explained = stack.thickness_mm is not None and usual <= (1 + UNEVEN) * stack.thickness_mm
    if not explained:
        return []
    return [
        i
        for i in range(STEADY, len(stack) - STEADY)
        if all(stack.contiguous[i - STEADY : i + STEADY])
        and known[i] not in memo
        and memo.times[known[i].slice] < MOST_MADE
    ]


class Ahead:
    """What a worker does while it has no job.

    Parameters
    ----------
    workshop
        Its engines.
    owner
        Its name.
    keep_free
        Bytes of the disk that are the receiver's: nothing is begun with less, and what was done is let go.
    """

    def __init__(self, workshop: Workshop, owner: str, *, keep_free: int = 0) -> None:
        self._workshop, self._owner, self._keep_free = workshop, owner, keep_free
        self._sessions: dict[int, Session] = {}
        self._barred: set[int] = set()
        self.at_work = 0
        """Series at hand, 0 for none."""

    @property
    def series(self) -> frozenset[int]:
        """Series of which something was done."""
        return frozenset(self._sessions)

    def step(self, signs: Signs) -> bool:
        """Do a little. Returns whether there is more to do now.

        Raises
        ------
        Exception
            Of an engine or its device; the series is left alone from then on. The worker judges whether it goes on.
        """
        outlooks = self.settle()
        if self._sessions and self._workshop.store.spool.free_bytes() < self._keep_free:
            self.close()
            return False
        for series_id, outlook in outlooks.items():
            if series_id in self._barred:
                continue
            self.at_work = series_id
            signs.looks(series_id)
            try:
                if self._one(outlook, signs):
                    return True
            except NodeError as e:  # unreadable pixels, no room: the job will tell
                if isinstance(e, StoreError) and not isinstance(e, OutOfSpace) and e.retryable:
                    raise
                log.debug("ahead.left", series=series_id, because=type(e).__name__)
                self._leave(series_id)
            except BaseException as e:
                log.warning("ahead.failed", series=series_id, because=type(e).__name__)
                self._leave(series_id)
                raise
            finally:
                self.at_work = 0
        return False

    def take(self, job: Job, proven: Proven) -> Session | None:
        """What was done for a job, if it asks for the same. It stays for the series' other jobs."""
        found = self._sessions.get(job.series_id)
        if found is None or job.attempt > 1 or found.proven.engine is not proven.engine:
            return None
        return found if _alike(found.outlook, job.engine, job.params) else None

    def make_room(self, series_id: int) -> None:
        """Give the disk back but for this series: a job needs it."""
        for other in self.series - {series_id}:
            self._put_down(other)

    def close(self) -> None:
        """Give the disk back."""
        for series_id in self.series:
            self._put_down(series_id)

    def _put_down(self, series_id: int) -> None:
        """Let go of a series for no fault of its own: it may be begun again."""
        session = self._sessions[series_id]
        if session.routed_at is None:
            with contextlib.suppress(StoreError):
                self._workshop.store.outlooks.give_back(series_id, self._owner)
        self._drop(series_id)

    def _leave(self, series_id: int) -> None:
        self._barred.add(series_id)
        self._drop(series_id)

    def _drop(self, series_id: int) -> None:
        session = self._sessions.pop(series_id, None)
        if session is not None:
            session.close()

    def settle(self) -> dict[int, Outlook]:
        """Let go of series that were routed a while ago, or to something else; returns what is expected now.

        Raises
        ------
        StoreError
        """
        outlooks = {o.series_id: o for o in self._workshop.store.outlooks.list()}
        now = time.monotonic()
        self._barred &= outlooks.keys()
        for series_id, session in list(self._sessions.items()):
            outlook = outlooks.get(series_id)
            if outlook is None:
                session.routed_at = session.routed_at or now
                if now - session.routed_at > _KEPT_S:
                    self._drop(series_id)
            elif not _alike(session.outlook, outlook.engine, outlook.params):
                self._drop(series_id)
            elif not self._workshop.holds(session.proven, outlook.engine, runtime_of(outlook)):
                self._put_down(series_id)
        return outlooks

    def _one(self, outlook: Outlook, signs: Signs) -> bool:
        session = self._sessions.get(outlook.series_id)
        if session is None:
            session = self._begin(outlook, signs)
            if session is None:
                return False
        self._look(session)
        whole = outlook.whole == session.n_seen
        if whole != session.whole:
            session.whole, session.measured = whole, False
        return self._advance(session, signs)

    def _begin(self, outlook: Outlook, signs: Signs) -> Session | None:
        store, params = self._workshop.store, outlook.params
        taken = outlook.owner and outlook.owner != self._owner and not certainly_dead(outlook.owner)
        if taken or outlook.tries >= TRIES or not self._seat():
            return None
        if not store.outlooks.begin(outlook, self._owner):
            return None
        signs.loads()
        proven = self._workshop.proven(outlook.engine, runtime_of(outlook))
        signs.looks(outlook.series_id)
        card = proven.engine.card
        if params["card"] != {
            "name": card.name,
            "version": card.version,
            "weights_sha256": card.weights_sha256,
        }:
            self._barred.add(outlook.series_id)
            return None
        folder = store.spool.scratch(f"ahead-{outlook.series_id}")
        kept = Scratch(folder.folder, card.scale)
        try:
            kept.__enter__()
        except BaseException:
            folder.close()
            raise
        memo = Memo(folder.folder)
        asked = Params(strength=float(params["strength"]), options=dict(params.get("options", {})))
        session = Session(
            outlook=outlook, proven=proven, folder=folder, kept=kept, memo=memo,
            work=Work(engine=proven.engine, params=asked, kept=kept, memo=memo),
        )  # fmt: skip
        self._sessions[outlook.series_id] = session
        return session

    def _seat(self) -> bool:
        """Whether there may be one series more; those whose jobs have had their time make room."""
        routed = [(s.routed_at, n) for n, s in self._sessions.items() if s.routed_at is not None]
        if len(self._sessions) >= MOST_SERIES and routed:
            self._drop(min(routed)[1])
        return len(self._sessions) < MOST_SERIES

    def _look(self, session: Session) -> None:
        """See what has come, unless that was just done.

        Raises
        ------
        SeriesError
            Other bytes took the place of an instance that was decoded already.
        """
        now = time.monotonic()
        if now - session.looked_at < session.look_took / _LOOKED_SHARE:
            return
        store, series_id = self._workshop.store, session.outlook.series_id
        series = store.series.get(series_id)
        if series is None or series.count == session.n_told == session.n_seen:
            session.looked_at = now
            return
        if series.count == session.n_told and now - session.looked_at < _SAME_S:
            return  # some of it cannot be read, or is not read yet
        session.n_told = series.count
        found = store.series.headers(series_id)
        session.n_seen = len(found)
        headers = [h for h in found if h.n_frames <= 1 and h.has_pixels]
        vendor = bool(session.outlook.params["enhance_vendor_denoised"])
        told = split(headers, allow_vendor_denoised=vendor).eligible if headers else ()
        session.items = _items(store, store.series.instances(series_id), told)
        if not session.fits(session.items):
            raise SeriesError("other bytes took the place of an instance")
        known = {item.sop_instance_uid for item in session.items}
        session.stacks = stacks([h for h in told if h.sop_instance_uid in known]) if known else ()
        session.measured = False
        session.looked_at = time.monotonic()
        session.look_took = session.looked_at - now

    def _advance(self, session: Session, signs: Signs) -> bool:
        """Decode, survey or make a few slices; whether there may be more."""
        kept, work = session.kept, session.work
        new = [item for item in session.items if item.sop_instance_uid not in kept.places][:AT_ONCE]
        if new:
            if not self._room():
                return False
            for item in new:
                work.decode([item])
                signs.looks(session.outlook.series_id)
            return True
        for stack in session.stacks:
            missing = [i for i, ref in enumerate(stack.frames) if name(ref) not in session.memo.surveys][
                :AT_ONCE
            ]
            if missing:
                signs.works(session.proven, AT_ONCE * stack.rows * stack.columns)
                work.measure(stack, missing[0], missing[-1] + 1)
                return True
        if not session.measured:
            session.measured = True
            began = time.monotonic()
            session.ready = self._ready(session)
            session.look_took += time.monotonic() - began
        if not session.ready or not self._room():
            return False
        stack, first, _ = session.ready[0]
        most = min(AT_ONCE, slices_at_once(stack, session.proven.engine.card.scale, SLAB))
        if session.slice_s:  # a job that comes meanwhile waits for this
            most = max(1, min(most, int(_STEP_S / session.slice_s)))
        run = [at for at in session.ready[:most] if at[0] is stack]
        run = [at for n, at in enumerate(run) if at[1] == first + n]
        del session.ready[: len(run)]
        signs.works(session.proven, most * stack.rows * stack.columns)
        began = time.monotonic()
        made = work.make(stack, first, first + len(run), work.surveyed(stack))
        session.slice_s = (time.monotonic() - began) / len(run)
        for (_, _, key), one in zip(run, made, strict=True):
            session.memo.put(key, one)
        return True

    def _ready(self, session: Session) -> list[tuple[Stack, int, Key]]:
        card, found = session.proven.engine.card, []
        if card.unit != "HU" and not session.whole:
            return []
        for stack in session.stacks:
            unit = session.kept.unit(stack)
            known = keys(card, stack, session.work.surveyed(stack), unit)
            found += [
                (stack, i, known[i]) for i in ready_to_make(stack, known, session.memo, whole=session.whole)
            ]
        return found

    def _room(self) -> bool:
        """Whether the disk has room to spare: not that which is kept for receiving."""
        taken = sum(s.kept.n_bytes + s.memo.n_bytes for s in self._sessions.values())
        free = self._workshop.store.spool.free_bytes() - self._keep_free
        return free > _ROOM * (taken + (64 << 20))


def runtime_of(outlook: Outlook) -> str:
    """The runtime that a series' job will ask for."""
    return str(outlook.params.get("runtime", "auto"))


def _alike(outlook: Outlook, engine: str, params: Any) -> bool:
    return outlook.engine == engine and all(outlook.params.get(k) == params.get(k) for k in _SAME)


def _items(store: Store, instances: Sequence[Instance], told: Sequence[InstanceHeader]) -> list[Item]:
    eligible = {h.sop_instance_uid for h in told}
    return [
        Item(
            sop_instance_uid=i.sop_instance_uid,
            path=store.spool.path(i.path),
            offset=i.offset,
            sha256=i.sha256,
        )
        for i in instances
        if i.sop_instance_uid in eligible
    ]
