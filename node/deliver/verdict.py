"""What a try at a delivery means: sent, again later, or for a person. Pure.

Transient trouble (nobody there, turned away, out of resources, aborted, no answer) is tried again until the
destination's ``retry.for`` has passed. An instance that the destination refuses for good does not hold up the
others; when only such instances are left, they get :data:`REFUSALS` tries, for PACS have been wrong before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from node.deliver.backoff import full_jitter_s
from node.dicom.status import describe
from node.errors import InstanceRefused, NodeError
from node.model import Outcome

REFUSALS = 3
"""Tries of instances that are refused with a permanent status."""


class Next(StrEnum):
    """What becomes of a delivery after a try. Released: put back at once, its attempt does not count."""

    SENT = "sent"
    RELEASE = "release"
    RETRY = "retry"
    FAILED = "failed"


class Health(StrEnum):
    """What a try says about the destination, for its circuit breaker."""

    UP = "up"
    DOWN = "down"
    DOUBTFUL = "doubtful"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """Tries on end that brought nothing new: ``failures`` of any kind, ``refusals`` of refused instances."""

    failures: int = 0
    refusals: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long and how often: the fields of ``retry`` in config.yaml, in seconds."""

    for_s: float
    first_s: float
    at_most_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one try.

    ``known`` holds the last outcome of each instance, earlier tries included; ``reported`` the UIDs that
    got an outcome in this try, ``newly_done`` how many of these are done. ``done_before``: done, and not in ``known``.
    ``stopped``: ended by us. ``settled``: what is not done waits for the end of its series (originals).
    """

    n_instances: int
    known: Mapping[str, Outcome]
    reported: int
    newly_done: int
    done_before: int = 0
    error: NodeError | None = None
    stopped: bool = False
    settled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do next, in how many seconds, why, and what it says about the destination."""

    next: Next
    health: Health
    tries: Tries = Tries()
    pause_s: float = 0.0
    failure: str = ""


def judge(attempt: Attempt, tries: Tries, patience: Patience, *, age_s: float, chance: float) -> Verdict:
    """Judge one try.

    Parameters
    ----------
    tries
        Before this one.
    age_s
        Seconds since the delivery was made, or since a person last asked for it.
    chance
        A random number in [0, 1), for the jitter.
    """
    n_done = attempt.done_before + sum(o.done for o in attempt.known.values())
    health = _health(attempt)
    if n_done >= attempt.n_instances:
        # With nothing sent it is not known whether the destination is there.
        return Verdict(next=Next.SENT, health=Health.UP if attempt.reported else health)
    if attempt.stopped and attempt.error is None:
        return Verdict(next=Next.RELEASE, health=health, tries=tries)
    refused = [o for o in attempt.known.values() if not o.done and not o.retryable]
    if attempt.settled:
        waits = (
            f"{len(refused)} instances refused: {statuses(refused)}; tried again when the series has ended"
        )
        return Verdict(next=Next.SENT, health=health, failure=waits if refused else "")
    only_refused = n_done + len(refused) >= attempt.n_instances
    refusals = tries.refusals + 1 if only_refused and attempt.error is None else tries.refusals
    failures = 1 if attempt.newly_done else tries.failures + 1
    because = _because(attempt, refused, n_done)
    if refusals >= REFUSALS:
        return Verdict(next=Next.FAILED, health=health, failure=f"{because}; tried {refusals} times")
    if age_s > patience.for_s:
        return Verdict(
            next=Next.FAILED, health=health, failure=f"given up after {duration(patience.for_s)}: {because}"
        )
    return Verdict(
        next=Next.RETRY,
        health=health,
        tries=Tries(failures=failures, refusals=refusals),
        pause_s=full_jitter_s(
            failures, first_s=patience.first_s, at_most_s=patience.at_most_s, chance=chance
        ),
        failure=because,
    )


def _health(attempt: Attempt) -> Health:
    error = attempt.error
    if error is None:
        return Health.UP if attempt.reported else Health.UNKNOWN
    if not attempt.reported or isinstance(error, InstanceRefused):
        return Health.DOWN  # nobody there, turned away, or full
    # It was there and then was lost: this instance's doing, or the destination's?
    return Health.UP if attempt.newly_done else Health.DOUBTFUL


def _because(attempt: Attempt, refused: list[Outcome], n_done: int) -> str:
    told = [attempt.error.message] if attempt.error is not None else []
    if refused:
        told.append(f"{len(refused)} instances refused: {statuses(refused)}")
    waiting = [o for o in attempt.known.values() if not o.done and o.retryable]
    if waiting and attempt.error is None:
        told.append(f"{len(waiting)} instances not taken: {statuses(waiting)}")
    told.append(f"{n_done} of {attempt.n_instances} instances are there")
    return "; ".join(told)


def statuses(outcomes: Iterable[Outcome]) -> str:
    """Statuses with how often each came, for people: numbers and names, never a peer's own text."""
    counts = Counter(o.status for o in outcomes)
    return ", ".join(f"{describe(s)} ({n})" for s, n in sorted(counts.items()))


def duration(seconds: float) -> str:
    """A duration as config.yaml writes it."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"
