"""What was done since monitoring began, counted from the provenance, and kept over restarts.

Each record of the provenance is counted once: what was counted, and up to which record, is one file in the spool.
Labels are names of the configuration, of engines and of this program's own words, and there is an end to how many.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from node.log import get_logger
from node.store.figures import Happening, Place, Settled

log = get_logger()

Labels: TypeAlias = tuple[str, ...]

MOST: Final = 200
"""Sets of labels of one metric; whatever comes beyond is counted as ``other``."""

LONGEST: Final = 64
_FORMAT: Final = 1
_NAME: Final = "figures.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A metric: what it says, and the names of its labels. ``bounds`` are those of a histogram, in seconds."""

    help: str
    labels: Labels
    bounds: tuple[float, ...] = ()


_WAIT = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 86400.0)
_ENGINE = ("engine", "version", "runtime", "device")
SERIES: Final = "luminode_series_decided"
ENHANCED: Final = "luminode_enhanced_series"
SLICES: Final = "luminode_enhanced_slices"
UNCHANGED: Final = "luminode_unchanged_slices"
FALLBACKS: Final = "luminode_fallbacks"
JOB_SECONDS: Final = "luminode_job_seconds"
JOB_STEPS: Final = "luminode_job_step_seconds"
JOBS_ENDED: Final = "luminode_jobs_failed"
DELIVERIES: Final = "luminode_deliveries_finished"
DELIVERED: Final = "luminode_delivered_instances"
LAST_SLICE: Final = "luminode_last_slice_to_delivered_seconds"
STEPS: Final = "luminode_last_slice_step_seconds"

FAMILIES: Final[Mapping[str, Family]] = {
    SERIES: Family(help="Series that the rules decided about.", labels=("rule", "action")),
    ENHANCED: Family(help="Derived series, by what made them.", labels=_ENGINE),
    SLICES: Family(help="Slices of derived series, by what made them.", labels=_ENGINE),
    UNCHANGED: Family(help="Slices passed through as they were, of those.", labels=("engine",)),
    FALLBACKS: Family(
        help="Derived series for which a better runtime was there and did not serve: which, and why.",
        labels=("engine", "runtime", "reason"),
    ),
    JOB_SECONDS: Family(
        help="From the start of a job to its derived series.", labels=("engine", "runtime"), bounds=_WAIT
    ),
    JOB_STEPS: Family(help="Seconds that jobs spent on each of their steps.", labels=("engine", "step")),
    JOBS_ENDED: Family(help="Jobs that ended without a derived series.", labels=("engine", "outcome")),
    DELIVERIES: Family(
        help="Deliveries that ended: sent, or failed for a person to look at.",
        labels=("destination", "what", "outcome"),
    ),
    DELIVERED: Family(
        help="Instances of deliveries that were sent, by the status of their answer.",
        labels=("destination", "what", "status"),
    ),
    LAST_SLICE: Family(
        help="From the last slice received to the derived series at its destination.",
        labels=("destination",),
        bounds=_WAIT,
    ),
    STEPS: Family(
        help="The same by step: close (until the series counts as complete), queue, enhance, wait (for the "
        "destination), send.",
        labels=("step",),
        bounds=_WAIT,
    ),
}


@dataclass(slots=True, kw_only=True)
class Spread:
    """A histogram: how many values were at most each bound, or beyond all, and their sum."""

    counts: list[int]
    total: float = 0.0


@dataclass(slots=True, kw_only=True)
class Totals:
    """``place`` and ``settled`` tell up to where was counted."""

    place: Place
    settled: Settled
    counters: dict[str, dict[Labels, float]] = field(default_factory=dict)
    spreads: dict[str, dict[Labels, Spread]] = field(default_factory=dict)

    def count(self, happenings: Sequence[Happening], place: Place) -> None:
        """Take in what was recorded up to a place."""
        for one in happenings:
            tell = _TELLS.get(one.kind)
            if tell is not None:
                tell(self, one)
        self.place = place

    def add(self, name: str, labels: Labels, value: float = 1.0) -> None:
        """Raise a counter."""
        counts = self.counters.setdefault(name, {})
        key = _bounded(counts, labels)
        counts[key] = counts.get(key, 0.0) + value

    def observe(self, name: str, labels: Labels, seconds: float) -> None:
        """Take a value into a histogram."""
        bounds = FAMILIES[name].bounds
        spreads = self.spreads.setdefault(name, {})
        one = spreads.setdefault(_bounded(spreads, labels), Spread(counts=[0] * (len(bounds) + 1)))
        one.counts[bisect.bisect_left(bounds, seconds)] += 1
        one.total += seconds


def _bounded(known: Mapping[Labels, Any], labels: Labels) -> Labels:
    key = tuple(_label(each) for each in labels)
    return key if key in known or len(known) < MOST else ("other",) * len(key)


def _label(value: str) -> str:
    return value.encode("utf-8", "replace").decode()[:LONGEST]


def _decided(totals: Totals, one: Happening) -> None:
    decision = one.body.get("decision", {})
    totals.add(SERIES, (str(decision.get("rule", "")), str(decision.get("action", ""))))


def _derived(totals: Totals, one: Happening) -> None:
    body = one.body
    card = body.get("engine")
    if not isinstance(card, Mapping):  # every instance had been derived by another job
        return
    engine, runtime = str(card.get("name", "")), str(body.get("runtime", ""))
    made = (engine, str(card.get("version", "")), runtime, str(body.get("device", "")))
    totals.add(ENHANCED, made)
    totals.add(SLICES, made, float(body.get("slices", 0)))
    totals.add(UNCHANGED, (engine,), float(body.get("skipped", 0)))
    for refused in {(str(r.get("runtime", "")), str(r.get("kind", ""))) for r in body.get("refused", ())}:
        totals.add(FALLBACKS, (engine, *refused))
    for step, seconds in body.get("seconds", {}).items():
        if step == "total":
            totals.observe(JOB_SECONDS, (engine, runtime), float(seconds))
        else:
            totals.add(JOB_STEPS, (engine, str(step)), float(seconds))


def _job_ended(totals: Totals, one: Happening) -> None:
    totals.add(JOBS_ENDED, (one.engine, one.kind.partition(".")[2]))


def _delivered(totals: Totals, one: Happening) -> None:
    destination = str(one.body.get("destination", ""))
    what = "originals" if "originals_of" in one.body else "derived"
    failed = one.kind == "delivery.failed"
    totals.add(DELIVERIES, (destination, what, "failed" if failed else "sent"))
    if failed:
        return  # a person may try again what is left of it
    for status, n in one.body.get("statuses", {}).items():
        totals.add(DELIVERED, (destination, what, str(status)), float(n))
    times = one.times
    if times is None:
        return
    totals.observe(LAST_SLICE, (destination,), _seconds(times.last_received, one.at))
    edges = (
        ("close", times.last_received, times.closed),
        ("queue", times.closed, times.job_started),
        ("enhance", times.job_started, times.job_finished),
        ("wait", times.job_finished, times.sending),
        ("send", times.sending, one.at),
    )
    for step, start, end in edges:
        if start is not None and end is not None:
            totals.observe(STEPS, (step,), _seconds(start, end))


def _seconds(start: datetime, end: datetime) -> float:
    """Between two times of day, which somebody may have set back."""
    return max(0.0, (end - start).total_seconds())


_TELLS: Final = {
    "series.routed": _decided,
    "series.derived": _derived,
    "job.failed": _job_ended,
    "job.held": _job_ended,
    "series.delivered": _delivered,
    "originals.delivered": _delivered,
    "delivery.failed": _delivered,
}


# the file -----------------------------------------------------------------------------------------
def read(spool: Path) -> Totals | None:
    """What was kept; None if there is nothing, or nothing that can be read."""
    try:
        told = json.loads((spool / _NAME).read_text(encoding="utf-8"))
        if told["format"] != _FORMAT:
            return None
        return Totals(
            place=Place(**told["place"]),
            settled=Settled(**told["settled"]),
            counters={
                name: {tuple(labels): float(value) for labels, value in kept}
                for name, kept in told["counters"].items()
                if name in FAMILIES
            },
            spreads={
                name: {tuple(labels): Spread(**one) for labels, one in kept}
                for name, kept in told["spreads"].items()
                if name in FAMILIES
            },
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("figures.unreadable", error=type(error).__name__, hint="counters begin at 0 again")
        return None


def write(spool: Path, totals: Totals) -> None:
    """Keep them, whole or as they were before. A disk that refuses is no reason to stop."""
    told = {
        "format": _FORMAT,
        "place": asdict(totals.place),
        "settled": asdict(totals.settled),
        "counters": {name: [[list(k), v] for k, v in kept.items()] for name, kept in totals.counters.items()},
        "spreads": {
            name: [[list(k), asdict(v)] for k, v in kept.items()] for name, kept in totals.spreads.items()
        },
    }
    new = spool / f".{_NAME}.{os.getpid()}"
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(told, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(spool / _NAME)
    except OSError as error:
        log.warning("figures.not_kept", because=error.strerror)
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
