"""Verbs for the admin: config, db, spool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from node.app.alone import alone
from node.cli.backup import db_rebuild
from node.cli.common import ConfigOption, JsonOption, as_owner, loaded, opened, out, print_json, visible
from node.config.explain import explain, json_schema, markdown
from node.config.snapshot import forwarding
from node.config.values import Refused
from node.errors import SchemaTooNew, StoreError
from node.housekeep import read_orphan

_FINDINGS: Mapping[str, str] = {
    "adopted": "recorded that had no record",
    "removed": "derived without a record, removed: they are made again",
    "unknown": "without a record",
    "missing": "on record whose file is missing",
    "corrupt": "that are not what was received",
}


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    config = typer.Typer(help="The configuration.", no_args_is_help=True)
    config.command("show")(config_show)
    config.command("explain")(config_explain)
    config.command("schema")(config_schema)
    config.command("history")(config_history)
    app.add_typer(config, name="config")
    db = typer.Typer(help="The database.", no_args_is_help=True)
    db.command("upgrade")(db_upgrade)
    db.command("rebuild")(db_rebuild)
    app.add_typer(db, name="db")
    spool = typer.Typer(help="The spool.", no_args_is_help=True)
    spool.command("fsck")(spool_fsck)
    app.add_typer(spool, name="spool")


def config_show(config: ConfigOption = None) -> None:
    """The configuration with its defaults filled in, secrets masked."""
    print_json(loaded(config).shown)


def config_explain(
    key: Annotated[str, typer.Argument(help="For example rules.when; without one, all keys.")] = "",
) -> None:
    """What a key of config.yaml means."""
    if not key:
        typer.echo(markdown())
        return
    try:
        told = explain(key)
    except Refused as e:
        raise typer.BadParameter(f"{e}. {e.hint}" if e.hint else str(e)) from None
    out.print("\n".join(visible(line) for line in told.splitlines()), highlight=False)


def config_schema() -> None:
    """The JSON schema of config.yaml, for editors."""
    print_json(json_schema())


def config_history(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Every version of config.yaml that was in force, with its difference to the one before."""
    with opened(config) as store:
        found = store.configs.history()
    if json:
        print_json(found)
        return
    for one in found:
        out.print(f"{one.at.isoformat(timespec='seconds')}  {one.digest}", highlight=False)
        if one.diff:
            out.print("\n".join(visible(line) for line in one.diff.splitlines()), highlight=False)


def db_upgrade(config: ConfigOption = None) -> None:
    """Bring the database's schema up to date. `serve` does it by itself. The node must not run."""
    settings = loaded(config).config.store
    as_owner(settings)
    try:
        with opened(config):
            pass
    except StoreError as error:
        if error.retryable or isinstance(error, SchemaTooNew):
            raise
        with alone(settings), opened(config, create=True):
            pass
    out.print("the schema is up to date")


def spool_fsck(
    config: ConfigOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its digest.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Record files that have no record.")] = False,
    json: JsonOption = False,
) -> None:
    """Compare the spool with the database; changes nothing without --adopt, but for names that a power cut took."""
    with opened(config) as store:
        store.spool.sweep_tmp(datetime.now(UTC))
        forward = forwarding(loaded(config).config) if adopt else {}
        done = store.reconcile.scan(read_orphan, datetime.now(UTC), forward=forward) if adopt else None
        found = store.reconcile.fsck(verify=verify)
    if done is not None:
        found = replace(found, adopted=done.adopted, removed=done.removed, swept=done.swept)
    if json:
        print_json(found)
    else:
        out.print(f"{found.n_files} files, {found.n_rows} records", highlight=False)
        for what, words in _FINDINGS.items():
            paths = getattr(found, what)
            if paths:
                out.print(f"{len(paths)} {words}:", highlight=False)
                for path in paths[:50]:
                    out.print(f"  {path}", highlight=False)
    if not found.ok:
        raise typer.Exit(1)
