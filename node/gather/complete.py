"""When is a series complete? A ladder of evidence; the reason is always recorded.

DICOM has no signal for it (PS3.4 leaves it to MPPS, which few scanners send to a node like this), so evidence
is weighed, strongest first:

1. ``count``: as many instances are there as the headers promise (Images in Acquisition, temporal positions,
   concatenation totals).
2. ``release``: every association that carried the series was released normally, no other association of
   that sender may still bring slices, and the geometry is regular and without gaps.
3. ``quiet``: nothing arrived for ``series.quiet_after``.
4. ``give_up``: ``series.give_up_after`` since the first instance, whatever is still dripping in.

An aborted or lost association is never a release: the sender did not say that it was done. Nor is one in which
an instance was refused: the sender has it still.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from node.dicom.headers import promise
from node.model import Association, AssociationEnd, InstanceHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """An association that carried instances of the series, and how many of them."""

    association: Association
    n_instances: int
    last_received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """All that the ladder looks at.

    ``headers`` are of every generation of the series; ``n_unread`` counts instances whose header has not
    been read yet. ``others_open`` are open associations of the same sender that did not carry this series
    but may still do so (they carry the same study, or have brought nothing yet). ``awake_since`` is when this
    node began to look: while it was down no sender could show a sign of life, so silence counts from there.
    """

    opened_at: datetime
    last_received_at: datetime
    headers: Sequence[InstanceHeader]
    n_unread: int
    carried: Sequence[Carried]
    others_open: Sequence[Association] = ()
    awake_since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The rungs as configured under ``series:``; seconds."""

    quiet_after_s: float = 30.0
    give_up_after_s: float = 3600.0
    settle_s: float = 1.0
    on_count: bool = True
    on_release: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """``close`` now because of ``because``, or look again at ``at`` unless something changes before.

    ``settling``: nothing is missing by the evidence of released associations, and their ``settle`` is waited for.
    """

    close: bool
    because: str
    detail: str
    at: datetime | None = None
    settling: bool = False


Regular = Callable[[Sequence[InstanceHeader]], tuple[bool, str]]


def judge(view: SeriesView, now: datetime, ladder: Ladder, regular: Regular) -> Judgement:
    """Climb the ladder for one open series.

    Parameters
    ----------
    view
        The series as the store knows it.
    now
        The time, timezone-aware.
    ladder
        Which rungs are on, and their times.
    regular
        ``node.dicom.stacks.regular``: is the geometry proof that nothing is missing, and why.
    """
    give_up_at = view.opened_at + timedelta(seconds=ladder.give_up_after_s)
    if view.awake_since is not None:
        give_up_at = max(give_up_at, view.awake_since + timedelta(seconds=ladder.quiet_after_s))
    if now >= give_up_at:
        waited = f"open for {ladder.give_up_after_s:.0f} s, and something still came now and then"
        return Judgement(close=True, because="give_up", detail=waited)
    quiet_at = _last_sign(view, now) + timedelta(seconds=ladder.quiet_after_s)
    if view.n_unread:
        return Judgement(close=False, because="", detail=f"{view.n_unread} headers unread", at=None)
    promised, why = promise(view.headers)
    if ladder.on_count and promised and len(view.headers) == promised:
        return Judgement(close=True, because="count", detail=f"{promised} promised by {why}")
    waiting = "quiet time"
    release_at: datetime | None = None
    if ladder.on_release:
        missing = _why_not_released(view, promised, regular)
        if not missing:
            ended = max(c.association.ended_at or view.last_received_at for c in view.carried)
            release_at = ended + timedelta(seconds=ladder.settle_s)
            if now >= release_at:
                detail = f"{len(view.carried)} associations released; {regular(view.headers)[1]}"
                return Judgement(close=True, because="release", detail=detail)
        else:
            waiting = missing
    if now >= quiet_at:
        return Judgement(close=True, because="quiet", detail=waiting)
    at = min(t for t in (quiet_at, give_up_at, release_at) if t is not None)
    return Judgement(close=False, because="", detail=waiting, at=at, settling=release_at is not None)


_AHEAD = timedelta(seconds=60)
"""A sign further in the future was given before the clock was put back: it tells nothing of silence (R53)."""


def _last_sign(view: SeriesView, now: datetime) -> datetime:
    """The last moment at which the sender showed that it was still at work on this series.

    An association that interleaves several series keeps all of them awake while it is open.
    """
    signs = [view.last_received_at, *([view.awake_since] if view.awake_since is not None else [])]
    signs += [c.last_received_at for c in view.carried if c.association.end is AssociationEnd.OPEN]
    return max((s for s in signs if s <= now + _AHEAD), default=view.opened_at)


def _why_not_released(view: SeriesView, promised: int, regular: Regular) -> str:
    """Why the release rung does not hold, or an empty string where it does."""
    if not view.carried:
        return "no association on record"
    ends = {c.association.end for c in view.carried}
    if AssociationEnd.OPEN in ends:
        return "an association that carried it is open"
    if ends & {AssociationEnd.ABORTED, AssociationEnd.LOST}:
        return "an association that carried it was aborted or lost"
    if AssociationEnd.INCOMPLETE in ends:
        return "instances were refused in an association that carried it"
    if view.others_open:
        return "another association of this sender is open"
    if promised > len(view.headers):
        return f"{len(view.headers)} of {promised} promised instances"
    single_multiframe = len(view.headers) == 1 and view.headers[0].n_frames > 1
    if all(c.n_instances == 1 for c in view.carried) and not single_multiframe:
        return "the sender opens an association for each instance"
    held, why = regular(view.headers)
    return "" if held else f"geometry: {why}"
