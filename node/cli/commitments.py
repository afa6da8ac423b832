"""Verbs on requests for storage commitment: what scanners asked for, and what they were told."""

from __future__ import annotations

import typer

from node.cli.common import ConfigOption, JsonOption, ago, opened, out, print_json, print_table, visible
from node.cli.records import IdArgument, LimitOption, StateOption, states_of
from node.errors import StoreError
from node.model import Commitment, CommitmentState

REASONS = {
    0x0110: "not safe, or its bytes are not what was received",
    0x0112: "not here",
    0x0119: "here as another SOP class",
}
"""Failure Reasons (PS3.3 C.14.1.1) as this node uses them."""


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    commitments = typer.Typer(
        help="Requests for storage commitment: may a scanner delete what it sent?", no_args_is_help=True
    )
    commitments.command("list")(commitments_list)
    commitments.command("show")(commitments_show)
    app.add_typer(commitments, name="commitments")


def commitments_list(
    config: ConfigOption = None, state: StateOption = None, limit: LimitOption = 50, json: JsonOption = False
) -> None:
    """The newest requests, with what became of them."""
    with opened(config) as store:
        found = store.commitments.list(states_of(state, CommitmentState), limit=limit)
    if json:
        print_json(found)
        return
    print_table(
        ["id", "state", "from", "instances", "failed", "asked", "told", "why not"],
        [
            [
                one.id, one.state, one.calling_ae, len(one.references), _failed(one), ago(one.asked_at),
                ago(one.told_at), one.failure,
            ]
            for one in found
        ],
        empty="no scanner has asked for storage commitment yet",
    )  # fmt: skip


def commitments_show(number: IdArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """One request, with every instance that is not committed, and why."""
    with opened(config) as store:
        one = store.commitments.get(number)
    if one is None:
        raise StoreError(
            f"there is no commitment {number}", hint="`luminode commitments list` shows those there are"
        )
    if json:
        print_json(one)
        return
    where = one.report_to["address"] if one.report_to is not None else None
    facts = (
        ("transaction UID", one.transaction_uid),
        ("from", f"{one.calling_ae} at {one.address} to {one.called_ae}"),
        ("state", one.state),
        ("promise", one.promise),
        ("instances", f"{len(one.references)}, not committed: {_failed(one) or 'not known yet'}"),
        ("asked", ago(one.asked_at)),
        ("looked at", ago(one.ready_at)),
        ("told", ago(one.told_at) or (f"not yet: {one.failure}" if one.failure else "not yet")),
        ("listens at", f"{where['host']}:{where['port']}" if where else "an association of its own making"),
    )
    for name, value in facts:
        out.print(f"{name:<16} {visible(str(value))}", highlight=False)
    if one.failed:
        out.print()
        print_table(
            ["SOP instance UID", "reason", "meaning"],
            [[uid, f"{reason:04X}H", REASONS.get(reason, "")] for uid, reason in one.failed.items()],
            empty="",
        )


def _failed(one: Commitment) -> str:
    """How many are not committed, once that is known."""
    return "" if one.state is CommitmentState.ASKED else str(len(one.failed))
