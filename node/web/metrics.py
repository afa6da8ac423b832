"""/metrics: what is known, as families of the Prometheus library. Pure: a view goes in.

No patient data and no UID is in any of them, and no label is a word that a peer said.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from node import __version__
from node.config.schema import Config
from node.store.figures import UNFINISHED, UNPLEDGED, UNSENT, Figures
from node.web import parts as health
from node.web.lookout import Look
from node.web.parts import DESTINATION, Part
from node.web.totals import DELIVERIES, FAMILIES, JOBS_ENDED, Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """What a receiver tells of itself: associations that are open, and what it has counted since it started."""

    name: str
    associations: int
    counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Of the spool, in bytes: free, size, and the free bytes under which instances and associations are refused."""

    free: int
    size: int
    refuse_below: int
    reject_below: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that /metrics tells. ``disk`` is None where it does not answer; ``unfit`` are hosts' and GPUs' names."""

    config: Config
    parts: Sequence[Part]
    receivers: Sequence[Receiver]
    disk: Disk | None
    unfit: Sequence[str]
    look: Look
    now: datetime


class Once:
    """Families, as the library's encoders want them."""

    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        view = self._view
        yield from _node(view)
        yield from _receivers(view.receivers)
        if view.disk is not None:
            yield from _disk(view.disk)
        yield _gauge("luminode_database_up", "Whether the database answered.", float(not view.look.told))
        if view.look.figures is not None:
            yield from _figures(view, view.look.figures)
        if view.look.totals is not None:
            yield from _totals(view.config, view.look.totals)
        if view.look.kept_bytes is not None:
            yield _gauge(
                "luminode_spool_received_bytes", "Received instances in the spool.", view.look.kept_bytes
            )


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(name, says, value=value)


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    says: str,
    labels: Sequence[str],
    values: Mapping[Any, float],
) -> Metric:
    family = kind(name, says, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _node(view: View) -> Iterator[Metric]:
    yield _labelled(
        GaugeMetricFamily, "luminode_build_info", "What runs here.", ("version", "python"),
        {(__version__, platform.python_version()): 1.0},
    )  # fmt: skip
    for name, says, ok in (
        ("luminode_alive", "Whether no process or loop of the node hangs, as /healthz tells.", health.alive),
        ("luminode_ready", "Whether every part works, as /readyz tells.", health.ready),
        (
            "luminode_takes_instances",
            "Whether what receiving needs works, as /readyz/receive tells.",
            health.takes,
        ),
    ):
        yield _gauge(name, says, float(ok(view.parts)))
    works = {(p.role, p.name): float(not p.told) for p in view.parts if not p.name.startswith(DESTINATION)}
    yield _labelled(GaugeMetricFamily, "luminode_part_up", "Parts, by process.", ("role", "part"), works)
    there = {
        (p.name.removeprefix(DESTINATION),): float(not p.told)
        for p in view.parts
        if p.name.startswith(DESTINATION)
    }
    yield _labelled(
        GaugeMetricFamily,
        "luminode_destination_up",
        "Whether it answered when last asked.",
        ("destination",),
        there,
    )
    yield _labelled(
        GaugeMetricFamily, "luminode_gpu_unfit", "GPUs that failed and are not used.", ("gpu",),
        {(name,): 1.0 for name in view.unfit},
    )  # fmt: skip
    yield _gauge("luminode_gpus_unfit", "How many of these there are.", len(view.unfit))


_COUNTED: Final = (
    ("accepted", "luminode_associations_accepted", "Associations accepted.", ""),
    ("rejected", "luminode_associations_rejected", "Associations rejected.", "reason"),
    ("refused", "luminode_instances_refused", "Instances refused, by the status of their answer.", "status"),
    ("door", "luminode_door_events", "What was told of peers, as named in the log.", "event"),
)


def _receivers(receivers: Sequence[Receiver]) -> Iterator[Metric]:
    """Each counts since it started: their counters are kept apart, for one of them may start again."""
    yield _labelled(
        GaugeMetricFamily, "luminode_associations_open", "Associations established now.", ("receiver",),
        {(one.name,): one.associations for one in receivers},
    )  # fmt: skip
    for kind, name, says, label in _COUNTED:
        values: dict[tuple[str, ...], float] = {}
        for one in receivers:
            counts = one.counts.get(kind, {})
            if label:
                values |= {(one.name, reason): n for reason, n in counts.items()}
            else:
                values[one.name,] = sum(counts.values())
        labels = ("receiver", label) if label else ("receiver",)
        yield _labelled(CounterMetricFamily, name, says, labels, values)


def _disk(disk: Disk) -> Iterator[Metric]:
    for name, says, value in (
        ("luminode_disk_free_bytes", "Free on the disk of the spool.", disk.free),
        ("luminode_disk_size_bytes", "Size of the disk of the spool.", disk.size),
        (
            "luminode_disk_refuse_below_bytes",
            "Free bytes under which instances are refused.",
            disk.refuse_below,
        ),
        (
            "luminode_disk_reject_below_bytes",
            "Free bytes under which associations are rejected.",
            disk.reject_below,
        ),
    ):
        yield _gauge(name, says, value)


def _figures(view: View, figures: Figures) -> Iterator[Metric]:
    yield CounterMetricFamily("luminode_instances_received", "Instances stored.", value=figures.instances)
    yield CounterMetricFamily("luminode_received_bytes", "Bytes of these.", value=figures.n_bytes)
    yield _labelled(
        GaugeMetricFamily, "luminode_series", "Series that are not decided yet.", ("state",),
        {(state,): n for state, n in figures.series.items()},
    )  # fmt: skip
    jobs = {(name, state): 0 for name in _engines(view.config) for state in UNFINISHED}
    yield _labelled(
        GaugeMetricFamily, "luminode_jobs", "Jobs that are not done.", ("engine", "state"),
        jobs | dict(figures.jobs),
    )  # fmt: skip
    yield _gauge(
        "luminode_job_oldest_waiting_seconds", "Since it was queued.", _age(view, figures.oldest_job)
    )
    queues = _queues(view.config)
    deliveries = {(*queue, state): 0 for queue in queues for state in UNSENT}
    for (name, originals, state), one in figures.deliveries.items():
        deliveries[name, _what(originals), state] = one.n
    yield _labelled(
        GaugeMetricFamily, "luminode_deliveries", "Deliveries that are not sent.", ("destination", "what", "state"),
        deliveries,
    )  # fmt: skip
    waiting = dict.fromkeys(queues, 0.0)
    for (name, originals, _), one in figures.deliveries.items():
        key = name, _what(originals)
        waiting[key] = max(waiting.get(key, 0.0), _age(view, one.oldest))
    yield _labelled(
        GaugeMetricFamily, "luminode_delivery_oldest_waiting_seconds", "Since it was queued; 0 if none waits.",
        ("destination", "what"), waiting,
    )  # fmt: skip
    if view.config.node.commitment.promise != "off":
        yield _labelled(
            GaugeMetricFamily, "luminode_commitments", "Requests for storage commitment on record.", ("state",),
            {(state,): n for state, n in figures.commitments.items()},
        )  # fmt: skip

    asked = [n for n, each in view.config.destinations.items() if each.kind == "dimse" and each.commit]
    if asked or figures.pledges:
        none = {(name, state): 0 for name in asked for state in (*UNPLEDGED, "GIVEN_UP")}
        yield _labelled(
            GaugeMetricFamily, "luminode_pledges", "Deliveries that a destination is asked to commit to.",
            ("destination", "state"), none | dict(figures.pledges),
        )  # fmt: skip


def _engines(config: Config) -> list[str]:
    return sorted({each.engine for each in config.engines.values()})


def _queues(config: Config) -> list[tuple[str, str]]:
    derived = [(name, "derived") for name in config.destinations]
    return [
        *derived,
        *((name, "originals") for name, each in config.destinations.items() if each.forward_originals),
    ]


def _what(originals: bool) -> str:
    return "originals" if originals else "derived"


def _age(view: View, since: datetime | None) -> float:
    return max(0.0, (view.now - since).total_seconds()) if since is not None else 0.0


def _totals(config: Config, totals: Totals) -> Iterator[Metric]:
    zeros: Mapping[str, Mapping[Any, float]] = {
        JOBS_ENDED: {(name, outcome): 0.0 for name in _engines(config) for outcome in ("failed", "held")},
        DELIVERIES: {(*queue, outcome): 0.0 for queue in _queues(config) for outcome in ("sent", "failed")},
    }
    for name, family in FAMILIES.items():
        if family.bounds:
            yield _histogram(name, totals)
        else:
            values = {**zeros.get(name, {}), **totals.counters.get(name, {})}
            yield _labelled(CounterMetricFamily, name, family.help, family.labels, values)


def _histogram(name: str, totals: Totals) -> Metric:
    family = FAMILIES[name]
    told = HistogramMetricFamily(name, family.help, labels=family.labels)
    edges = [*(f"{bound:g}" for bound in family.bounds), "+Inf"]
    for key, spread in sorted(totals.spreads.get(name, {}).items()):
        n, buckets = 0, []
        for edge, count in zip(edges, spread.counts, strict=True):
            n += count
            buckets.append((edge, n))
        told.add_metric(key, buckets, sum_value=spread.total)
    return told
