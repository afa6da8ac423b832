"""From the last slice of a scanner to the last derived instance in the PACS: by this node in three ways, and by
Orthanc with a plugin."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from tests.bench import orthanc_plugin
from tests.bench.door import Result, Told, folder_for
from tests.bench.site import Site, remove, series, site

PACE = 20.0
WAYS = {
    "early": "as shipped",
    "identity": "`identity`: an engine that changes nothing",
    "late": "`begin_early: false`: nothing is done before the series is complete",
}
FEWER = 3
"""Rounds, at most, of what is no part of a bar."""


def turnaround(
    n: int,
    size: int,
    engine: str,
    rounds: int,
    where: Path | None,
    tell: Told,
    *,
    ages: tuple[int, ...] = (1, 60),
) -> Result:
    """A CT series at the pace of a scanner.

    Parameters
    ----------
    ages
        StableAge of Orthanc, in seconds; those over ten are measured once.
    """
    found: Result = {name: [] for name in WAYS}
    absent = orthanc_plugin.missing()
    beside: Result = {str(age): [] for age in ages}
    with folder_for(where) as folder, ExitStack() as stack:
        sites = {
            name: stack.enter_context(
                site(folder / name, "identity" if name == "identity" else engine, begin_early=name != "late")
            )
            for name in WAYS
        }
        for at in range(rounds):
            for i, name in enumerate(sites):
                if name == "late" and at >= FEWER:
                    continue
                files = series(folder / f"{name}{at}", n, size, 100 * (at + 1) + i)
                found[name].append(_turn(sites[name], files))
                remove(files)
                steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in found[name][-1].items())
                tell(f"turnaround {name}: {steps}")
            for i, age in enumerate(ages):
                if absent or at >= (1 if age > 10 else FEWER):
                    continue
                files = series(folder / f"orthanc{age}-{at}", n, size, 100 * (at + 1) + 50 + i)
                took = orthanc_plugin.turn(folder / f"peer{age}-{at}", files, age, PACE)
                beside[str(age)].append(took)
                remove(files)
                tell(f"turnaround of Orthanc, StableAge {age}: {took:.2f}")
    told = {"runs": found, "orthanc": beside, "absent": absent}
    return {"n": n, "size": size, "engine": engine, "pace": PACE, **told}


def _turn(at: Site, files: list[Path]) -> dict[str, float]:
    """Seconds, counted from the last C-STORE response, and of each step."""
    answered = at.send(files, pace=PACE)
    at.delivered()
    written = at.clear()
    if len(written) != len(files):
        raise RuntimeError(f"{len(written)} of {len(files)} derived instances")
    store = at.store
    (job, *_) = store.jobs.list()
    detail, one = store.jobs.detail(job.id), store.series.get(job.series_id)
    delivery = store.deliveries.detail(store.deliveries.list()[0].id)
    derived = store.deliveries.derived_of_job(job.id)
    if detail is None or one is None or delivery is None or derived is None:
        raise RuntimeError("the job is not on record")
    body = next(r.body for r in store.provenance.records(derived.series_uid) if r.kind == "series.derived")
    last, clock = answered[-1], body["seconds"]
    closed, queued, claimed, done, sending = map(
        _epoch, (one.closed_at, job.created_at, detail.started_at, detail.finished_at, delivery.started_at)
    )
    made = sum(clock.get(step, 0.0) for step in ("decode", "survey", "enhance"))
    return {
        "total": max(written) - last,
        "first": min(written) - last,
        "close": closed - last,
        "route": queued - closed,
        "claim": claimed - queued,
        "make": made,
        "derive": done - claimed - made,
        "deliver": max(written) - done,
        "wait_to_deliver": sending - done,
        "made_before": float(body["made_before"]),
    }


def _epoch(at: datetime | None) -> float:
    if at is None:
        raise RuntimeError("a time is not on record")
    return at.timestamp()
