"""Verbs on what the node has on record: series, jobs, deliveries, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer

from node.cli.again import cancel_all, ended, retry_held, tell_ended
from node.cli.common import (
    ConfigOption,
    JsonOption,
    ago,
    loaded,
    opened,
    out,
    print_json,
    print_table,
    visible,
)
from node.cli.story import pledge_in_words, told, waits_for
from node.config.snapshot import snapshot
from node.errors import StoreError, TransitionRefused
from node.model import Action, Decision, Delivery, DeliveryState, JobState, SeriesState
from node.store.deliveries import Deliveries
from node.store.jobs import Jobs
from node.store.outbox import place
from node.store.series import SeriesStore

S = TypeVar("S", bound=StrEnum)

IdArgument = Annotated[int, typer.Argument(help="The number in the first column of `list`.")]
StateOption = Annotated[list[str] | None, typer.Option("--state", "-s", help="Only this state; repeatable.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="The newest N.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    series = typer.Typer(help="Series received.", no_args_is_help=True)
    series.command("list")(series_list)
    series.command("show")(series_show)
    series.command("retry")(series_retry)
    series.command("cancel")(series_cancel)
    app.add_typer(series, name="series")
    jobs = typer.Typer(help="Enhancements queued, running and done.", no_args_is_help=True)
    jobs.command("list")(jobs_list)
    jobs.command("show")(jobs_show)
    jobs.command("retry")(jobs_retry)
    jobs.command("cancel")(jobs_cancel)
    app.add_typer(jobs, name="jobs")
    deliveries = typer.Typer(
        help="Derived series, and originals, on their way to destinations.", no_args_is_help=True
    )
    deliveries.command("list")(deliveries_list)
    deliveries.command("show")(deliveries_show)
    deliveries.command("retry")(deliveries_retry)
    deliveries.command("cancel")(deliveries_cancel)
    deliveries.command("readdress")(deliveries_readdress)
    app.add_typer(deliveries, name="deliveries")
    app.command("provenance")(provenance)


def states_of(given: Sequence[str] | None, kind: type[S]) -> list[S]:
    """States as an admin writes them."""
    try:
        return [kind(s.upper()) for s in given or ()]
    except ValueError:
        raise typer.BadParameter(f"a state is one of {', '.join(kind)}") from None


def _now() -> datetime:
    return datetime.now(UTC)


_ONE: Mapping[str, str] = {"series": "series", "jobs": "job", "deliveries": "delivery"}


def _missing(group: str, number: int) -> StoreError:
    hint = f"`luminode {group} list` shows those there are"
    return StoreError(f"there is no {_ONE[group]} {number}", hint=hint)


@contextmanager
def _state_told(room: SeriesStore | Jobs | Deliveries, number: int) -> Iterator[None]:
    """Where a move is refused, tell the state that does not allow it."""
    try:
        yield
    except TransitionRefused as e:
        now = room.get(number)
        raise TransitionRefused(f"{e.message} (it is {now.state if now else 'gone'})", hint=e.hint) from None


# series -------------------------------------------------------------------------------------------
def series_list(
    config: ConfigOption = None, state: StateOption = None, limit: LimitOption = 50, json: JsonOption = False
) -> None:
    """The newest series, with their state and why they were closed."""
    with opened(config) as store:
        found = store.series.list(states=states_of(state, SeriesState), limit=limit)
        decisions = {i: _short(d) for i, d in store.series.decisions([s.id for s in found]).items()}
    if json:
        print_json(found)
        return
    print_table(
        [
            "id", "state", "modality", "instances", "gen", "from", "last received", "closed", "decision",
            "series UID",
        ],
        [
            [
                s.id, s.state, s.header.modality if s.header else "", s.count, s.generation, s.key.calling_ae,
                ago(s.last_received_at), s.closed_because, decisions.get(s.id, ""), s.key.series_uid,
            ]
            for s in found
        ],
        empty="no series yet",
    )  # fmt: skip


def _short(decision: Decision) -> str:
    """A decision in a few words: by which rule, or else for what reason."""
    by_rule = decision.rule and decision.action is not Action.REJECT
    return f"{decision.action}: {decision.rule if by_rule else decision.reason}"


def series_show(number: IdArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """One series: what was decided and why, and what came of it."""
    with opened(config) as store:
        one = store.series.get(number)
        if one is None:
            raise _missing("series", number)
        decision = store.series.decision(number)
        jobs = store.jobs.list(series_id=number)
        forwarded = store.deliveries.list(series_id=number)
        events = store.events.list(series_id=number)
        waits = waits_for(store, one, config) if one.state is SeriesState.OPEN else ""
    if json:
        told_of = {"series": one, "decision": decision, "jobs": jobs, "originals": forwarded}
        print_json({**told_of, "events": events})
        return
    facts = [
        ("series UID", one.key.series_uid),
        ("study UID", one.key.study_uid),
        ("from", f"{one.key.calling_ae} to {one.key.called_ae}"),
        ("generation", one.generation),
        ("state", one.state),
        ("instances", one.count),
        ("received", f"{ago(one.opened_at)} to {ago(one.last_received_at)}"),
        ("closed", f"{ago(one.closed_at)} {one.closed_because}"),
        ("waits for", waits),
        ("config digest", one.config_digest),
    ]
    if one.header is not None:
        z, y, x = one.header.spacing_mm
        facts.insert(4, ("modality", one.header.modality))
        facts.append(("shape", " x ".join(map(str, one.header.shape))))
        facts.append(("spacing", f"{z:g} x {y:g} x {x:g} mm"))
    _facts(facts)
    if decision is not None:
        rule, reason = visible(decision.rule) or "-", visible(decision.reason)
        out.print(f"\ndecision: {decision.action} by rule {rule}  {reason}", highlight=False)
        print_table(
            ["rule", "keyword", "wanted", "found", "held"],
            [[v.rule, v.keyword, v.wanted, v.found, "yes" if v.held else "no"] for v in decision.verdicts],
            empty="no condition was looked at",
        )
    if jobs:
        out.print()
        print_table(
            ["job", "state", "engine", "attempt", "failure"],
            [[j.id, j.state, j.engine, j.attempt, j.failure] for j in jobs],
            empty="",
        )
    if forwarded:
        out.print()
        print_table(
            ["delivery", "state", "originals to", "attempt", "failure"],
            [[d.id, d.state, d.destination, d.attempt, d.failure] for d in forwarded],
            empty="",
        )
    for e in events:
        out.print(f"{ago(e.at)} {e.level} {e.name} {visible(str(dict(e.body)))}", highlight=False)


def series_retry(number: IdArgument, config: ConfigOption = None) -> None:
    """Have a series decided again by the rules now in force."""
    with opened(config) as store:
        if store.series.get(number) is None:
            raise _missing("series", number)
        with _state_told(store.series, number):
            store.series.reopen_for_routing(number, _now())
        stopped = ended(store, [job.id for job in store.jobs.list(series_id=number, limit=1000)])
    out.print(f"series {number} will be routed again")
    tell_ended(stopped)


def series_cancel(number: IdArgument, config: ConfigOption = None) -> None:
    """Cancel all jobs and deliveries of derived series that are not done; originals go on."""
    with opened(config) as store:
        if store.series.get(number) is None:
            raise _missing("series", number)
        n = cancel_all(store, number)
    out.print(f"series {number}: {n} cancelled")


# jobs ---------------------------------------------------------------------------------------------
def jobs_list(
    config: ConfigOption = None, state: StateOption = None, limit: LimitOption = 50, json: JsonOption = False
) -> None:
    """The newest jobs."""
    with opened(config) as store:
        found = store.jobs.list(states_of(state, JobState), limit=limit)
    if json:
        print_json(found)
        return
    print_table(
        ["id", "state", "series", "rule", "engine", "attempt", "queued", "failure"],
        [
            [j.id, j.state, j.series_id, j.rule, j.engine, j.attempt, ago(j.created_at), j.failure]
            for j in found
        ],
        empty="no jobs yet",
    )


def jobs_show(number: IdArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """One job, with its progress and what came of it."""
    with opened(config) as store:
        detail = store.jobs.detail(number)
        if detail is None:
            raise _missing("jobs", number)
        derived = store.deliveries.derived_of_job(number)
    if json:
        print_json({"job": detail, "derived": derived})
        return
    job = detail.job
    _facts(
        [
            ("series", job.series_id),
            ("rule", job.rule),
            ("engine", job.engine),
            ("strength", job.params.get("strength", "")),
            ("state", job.state),
            ("attempt", job.attempt),
            ("destinations", ", ".join(job.destinations)),
            ("queued", ago(job.created_at)),
            ("started", ago(detail.started_at)),
            ("finished", ago(detail.finished_at)),
            ("progress", _progress(detail.progress) if job.state is JobState.RUNNING else ""),
            ("failure", job.failure),
            ("derived series UID", derived.series_uid if derived else ""),
            ("derived instances", len(derived.instances) if derived else ""),
        ]
    )


def _progress(shares: Mapping[str, Any]) -> str:
    return ", ".join(f"{step} {share:.0%}" for step, share in shares.items())


def jobs_retry(
    number: Annotated[
        int | None, typer.Argument(help="The number in the first column of `list`.", show_default=False)
    ] = None,
    held: Annotated[bool, typer.Option("--held", help="Every job that is HELD.")] = False,
    config: ConfigOption = None,
) -> None:
    """Run a job again: the same objects, should it have made them before."""
    if held == (number is not None):
        raise typer.BadParameter("give a number, or --held")
    with opened(config) as store:
        if number is None:
            n, refused = retry_held(store)
            told = f"{n} jobs are queued"
            out.print(told + (f", {refused} cannot be: what they need was removed" if refused else ""))
            return
        if store.jobs.get(number) is None:
            raise _missing("jobs", number)
        with _state_told(store.jobs, number):
            store.jobs.retry(number, _now())
        stopped = ended(store, [number])
    out.print(f"job {number} is queued")
    tell_ended(stopped)


def jobs_cancel(number: IdArgument, config: ConfigOption = None) -> None:
    """Cancel a job; one that runs stops at its next slab."""
    with opened(config) as store:
        if store.jobs.get(number) is None:
            raise _missing("jobs", number)
        with _state_told(store.jobs, number):
            store.jobs.cancel(number, _now())
    out.print(f"job {number} is cancelled")


# deliveries ---------------------------------------------------------------------------------------
def deliveries_list(
    config: ConfigOption = None, state: StateOption = None, limit: LimitOption = 50, json: JsonOption = False
) -> None:
    """The newest deliveries."""
    with opened(config) as store:
        found = store.deliveries.list(states_of(state, DeliveryState), limit=limit)
        details = store.deliveries.details([f.id for f in found])
    if json:
        print_json(details)
        return
    print_table(
        ["id", "state", "destination", "what", "done", "attempt", "queued", "next try", "failure"],
        [
            [
                d.delivery.id, d.delivery.state, d.delivery.destination, _what(d.delivery),
                f"{d.n_done}/{d.n_instances}",
                d.delivery.attempt, ago(d.delivery.created_at),
                ago(d.delivery.not_before) if d.delivery.state is DeliveryState.PENDING else "",
                d.delivery.failure,
            ]
            for d in details
        ],
        empty="no deliveries yet",
    )  # fmt: skip


def _what(delivery: Delivery) -> str:
    """What a delivery carries, in a few words."""
    return "derived" if delivery.series_id is None else f"originals of series {delivery.series_id}"


def deliveries_show(number: IdArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """One delivery, with the outcome of every instance that was not taken."""
    with opened(config) as store:
        detail = store.deliveries.detail(number)
        if detail is None:
            raise _missing("deliveries", number)
        derived = store.deliveries.derived(detail.delivery.derived_id)
        outcomes = store.deliveries.outcomes(number)
        pledge = store.pledges.get(number)
    if json:
        print_json(
            {
                "delivery": detail,
                "derived": derived,
                "outcomes": list(outcomes.values()),
                "commitment": pledge,
            }
        )
        return
    d = detail.delivery
    _facts(
        [
            ("destination", d.destination),
            ("goes to", place(d.settings)),
            ("what", _what(d)),
            ("state", d.state),
            ("done", f"{detail.n_done} of {detail.n_instances}"),
            ("attempt", d.attempt),
            ("queued", ago(d.created_at)),
            ("finished", ago(detail.finished_at)),
            ("failure", d.failure),
            ("commitment", pledge_in_words(pledge) if pledge is not None else ""),
            ("derived series UID", derived.series_uid if derived else ""),
        ]
    )
    bad = [o for o in outcomes.values() if not o.done]
    if bad:
        print_table(
            ["SOP instance UID", "status", "comment"],
            [
                [o.sop_instance_uid, f"{o.status:04X}H" if o.status >= 0 else "no answer", o.comment]
                for o in bad
            ],
            empty="",
        )


def deliveries_retry(number: IdArgument, config: ConfigOption = None) -> None:
    """Send now what is missing; a delivery that was sent is sent again."""
    with opened(config) as store:
        if store.deliveries.get(number) is None:
            raise _missing("deliveries", number)
        with _state_told(store.deliveries, number):
            store.deliveries.retry(number, _now())
    out.print(f"delivery {number} is pending")


def deliveries_cancel(number: IdArgument, config: ConfigOption = None) -> None:
    """Cancel a delivery that is not done."""
    with opened(config) as store:
        if store.deliveries.get(number) is None:
            raise _missing("deliveries", number)
        with _state_told(store.deliveries, number):
            store.deliveries.cancel(number, _now())
    out.print(f"delivery {number} is cancelled")


def deliveries_readdress(
    destination: Annotated[str, typer.Argument(help="Its name in config.yaml.")], config: ConfigOption = None
) -> None:
    """Send what waits for a destination to where config.yaml has it now.

    What was queued keeps the address that was configured then, whatever is edited: when a PACS has moved, or its
    address was wrong, this moves what is not sent. It is sent anew, whole.
    """
    there = loaded(config).config
    if destination not in there.destinations:
        raise typer.BadParameter(f"config.yaml has no destination {visible(destination)}")
    with opened(config) as store:
        moved = store.deliveries.readdress(
            destination, snapshot(there.destinations[destination], there), _now()
        )
    out.print(f"{moved.deliveries} deliveries and {moved.jobs} jobs of {destination} have its address of now")


# provenance ---------------------------------------------------------------------------------------
def provenance(
    uid: Annotated[
        str | None, typer.Argument(help="Any study, series or SOP instance UID, source or derived.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the hash chain from its first link.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """The whole story of a UID, or the state of the chain."""
    if verify == (uid is not None):
        raise typer.BadParameter("give a UID, or --verify")
    with opened(config) as store:
        if uid is None:
            report = store.provenance.verify()
            if json:
                print_json(report)
            elif report.ok:
                out.print(f"the chain holds: {report.checked} records")
            else:
                out.print(f"record {report.first_bad} does not hold: {report.fault}", style="red")
            if not report.ok:
                raise typer.Exit(1)
            return
        story = store.provenance.story(uid)
    known = story.records or story.series or story.derived
    if json:
        print_json(story)
    else:
        out.print(told(story) if known else "nothing is known of that UID", highlight=False)
    if not known:
        raise typer.Exit(1)


def _facts(facts: Sequence[tuple[str, object]]) -> None:
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        if value != "":
            out.print(f"{name:<{width}}  {visible(str(value))}", highlight=False)
