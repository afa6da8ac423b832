"""Verbs for the day after: backup, restore, db rebuild."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from node.app.alone import alone
from node.app.health import health
from node.app.rebuild import rebuild
from node.cli.common import (
    ConfigOption,
    JsonOption,
    as_owner,
    config_file,
    loaded,
    opened,
    out,
    print_json,
    tell_error,
)
from node.config.snapshot import forwarding
from node.errors import StoreError
from node.store.archive import restore, save

FolderArgument = Annotated[Path, typer.Argument(help="Folder of the backup.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("backup")(backup)
    app.command("restore")(restore_)


def backup(
    folder: FolderArgument,
    whole: Annotated[bool, typer.Option("--whole", help="Also the files of what is done.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Save database, configuration and unfinished files to a new folder while the node runs."""
    text = config_file(config).read_text(encoding="utf-8")
    with opened(config) as store:
        saved = save(store, folder.absolute(), text, datetime.now(UTC), whole=whole)
    if json:
        print_json(saved)
    else:
        out.print(
            f"{saved.folder}: the database and {saved.n_files} files, {saved.n_bytes / 1e6:.1f} MB",
            highlight=False,
        )
    if saved.missing:
        hint = "the backup is good but for them; `luminode spool fsck` names them. Is the spool's volume mounted?"
        tell_error(
            f"{saved.missing} files that are on record are not in the spool, and so in no backup", hint
        )


def restore_(
    folder: FolderArgument,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Put a backup in place of nothing, and verify it; never overwrites. The node must not run."""
    settings = loaded(config).config.store
    as_owner(settings)
    done = restore(folder.absolute(), settings.database, Path(settings.spool), datetime.now(UTC))
    if json:
        print_json(done)
    else:
        out.print(f"{done.n_files} files and the database are back", highlight=False)
        out.print(
            f"{done.forgotten} series were done when it was made; their records have no files",
            highlight=False,
        )
        if not done.ok:
            out.print("not all is well: `luminode spool fsck --verify`, `luminode provenance --verify`")
    if not done.ok:
        raise typer.Exit(1)


def db_rebuild(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Set a damaged SQLite database aside and make a new one from the spool. The node must not run."""
    whole = loaded(config).config
    settings, spool = whole.store, Path(whole.store.spool)
    as_owner(settings)
    if not spool.is_dir():
        hint = "run this where the node runs"
        raise StoreError(f"there is no spool at {spool.absolute()}", hint=hint, retryable=False)
    if any(part.ok and part.name == "process" for part in health(spool)):
        raise StoreError("the node runs", hint="stop it first", retryable=False)
    with alone(settings):
        done = rebuild(settings.database, spool, datetime.now(UTC), forward=forwarding(whole))
    if json:
        print_json(done)
        return
    out.print(f"the old database is kept as {done.aside.name}", highlight=False)
    out.print(f"{len(done.findings.adopted)} instances were found in the spool and recorded", highlight=False)
    if done.findings.unreadable:
        out.print(
            f"{len(done.findings.unreadable)} files cannot be read and stay where they are", highlight=False
        )
