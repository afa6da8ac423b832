"""What is known, as a text for people: the provenance of a UID, and what an open series waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node.cli.common import ago, loaded, visible
from node.gather.gatherer import Gatherer, InForce
from node.model import Job, Pledge, PledgeState, Series
from node.store import Store
from node.store.provenance import Story

_WIDTH = 14


def told(story: Story) -> str:
    """All that is known about ``story.uid``, oldest first."""
    return "\n".join(_lines(story))


def waits_for(store: Store, series: Series, config: Path | None) -> str:
    """Why an open series is not closed yet, and until when at the latest if nothing more comes."""
    mine = loaded(config)
    gatherer = Gatherer(store, lambda: InForce(config=mine.config, digest=mine.digest), {})
    found = gatherer.waits_for(series, datetime.now(UTC))
    if found is None or found.close:
        return "nothing: it closes any moment. If it stays so, is `luminode serve` running?"
    return f"{found.detail}; closes {ago(found.at)} if nothing more comes" if found.at else found.detail


def _lines(story: Story) -> Iterator[str]:
    yield f"what is known of {visible(story.uid)}"
    for one in story.instances:
        if one.sop_instance_uid == story.uid:
            yield ""
            yield "received instance"
            yield _fact("SOP class", one.sop_class_uid)
            yield _fact("syntax", one.transfer_syntax_uid)
            yield _fact("received", f"{ago(one.received_at)} from {one.calling_ae}")
            yield _fact("sha256", one.sha256)
    for series in story.series:
        yield from _series(series, story)
    yield from _own_derived(story)
    if story.records:
        yield ""
        yield "records of the chain"
        for r in story.records:
            yield f"  {r.id:>6}  {ago(r.at)}  {r.kind:<22} {r.hash[:16]}"


def _series(series: Series, story: Story) -> Iterator[str]:
    yield ""
    yield f"source series {visible(series.key.series_uid)}, generation {series.generation}"
    yield _fact(
        "received", f"{series.count} instances from {series.key.calling_ae}, {ago(series.last_received_at)}"
    )
    if series.closed_because:
        yield _fact("closed", f"{ago(series.closed_at)} by {series.closed_because}")
    decision = story.decisions.get(series.id)
    if decision is not None:
        yield _fact("decision", _joined(f"{decision.action} by rule {decision.rule or '-'}", decision.reason))
        for v in decision.verdicts:
            mark = "held" if v.held else "did not hold"
            yield _fact("", f"{v.rule}: {v.keyword} {v.wanted}: {mark} ({v.found})")
        yield _fact("config", series.config_digest)
    for d in story.deliveries:
        if d.series_id == series.id:
            yield _fact("originals", _joined(f"delivery {d.id} to {d.destination}: {d.state}", d.failure))
    for job in story.jobs:
        if job.series_id == series.id:
            yield from _job(job, story)


def _job(job: Job, story: Story) -> Iterator[str]:
    yield f"  job {job.id}"
    card = job.params.get("card", {})
    yield _fact(
        "engine",
        f"{card.get('name', job.engine)} {card.get('version', '')}, strength {job.params.get('strength')}",
    )
    yield _fact("weights", str(card.get("weights_sha256", "")))
    yield _fact("state", _joined(f"{job.state}, attempt {job.attempt}", job.failure))
    for derived in story.derived:
        if derived.job_id != job.id:
            continue
        yield _fact("derived", f"{len(derived.instances)} instances in series {derived.series_uid}")
        for r in story.records:
            if r.body.get("job") == job.id:
                yield from _body(r.body)
        for d in story.deliveries:
            if d.derived_id == derived.id:
                yield _fact("delivery", _joined(f"{d.id} to {d.destination}: {d.state}", d.failure))


def _body(body: Mapping[str, Any]) -> Iterator[str]:
    for name in ("runtime", "device", "figures", "seconds", "notes", "excluded"):
        value = body.get(name)
        if isinstance(value, Mapping):
            value = ", ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            )
        if value:
            yield _fact(name, str(value))
        if name == "device":
            for one in body.get("refused", ()):
                yield _fact("", f"not {one['runtime']}: {one['because']}")


def _own_derived(story: Story) -> Iterator[str]:
    for derived in story.derived:
        for one in derived.instances:
            if story.uid in (one.sop_instance_uid, one.source_sop_instance_uid):
                yield ""
                yield "derived instance"
                yield _fact("SOP instance", one.sop_instance_uid)
                yield _fact("made from", one.source_sop_instance_uid)
                yield _fact("sha256", one.sha256)


def _fact(name: str, value: str) -> str:
    return f"  {name:<{_WIDTH}} {visible(value)}"


def _joined(fact: str, because: str) -> str:
    return f"{fact}. {because}" if because else fact


_COMMITMENT: Mapping[PledgeState, str] = {
    PledgeState.DUE: "to be asked for",
    PledgeState.ASKED: "asked for, the destination has not answered yet",
    PledgeState.RESENT: "something is sent again",
    PledgeState.KEPT: "the destination has committed to all of it",
    PledgeState.GIVEN_UP: "given up",
}


def pledge_in_words(one: Pledge) -> str:
    """How far the destination has committed, and what was in the way."""
    said = _COMMITMENT[one.state]
    again = f", {one.rounds} times sent again" if one.rounds else ""
    return f"{said}{again}" + (f": {one.failure}" if one.failure else "")
