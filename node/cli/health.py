"""The verb that tells whether the node works: health."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from node.app.health import Part, health
from node.cli.common import ConfigOption, JsonOption, config_file, out, print_json, visible
from node.config.load import load, read_text
from node.config.schema import StoreSettings
from node.config.tree import read_tree
from node.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("health")(health_)


def health_(
    config: ConfigOption = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Only what a start of the node may heal: processes, loops, the worker."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Does the node that runs here work? Exit status 1 if anything of it does not."""
    found = [part for part in health(_spool(config_file(config))) if part.vital or not live]
    if json:
        print_json(
            {
                "ok": all(p.ok for p in found),
                "parts": [{"role": p.role, "part": p.name, "ok": p.ok, "told": p.told} for p in found],
            }
        )
    else:
        for part in found:
            out.print(_line(part), highlight=False)
    if not all(part.ok for part in found):
        raise typer.Exit(1)


def _line(part: Part) -> str:
    mark = "[green]ok[/green]  " if part.ok else "[red]FAIL[/red]"
    return f"{mark} {part.role:<9} {visible(part.name):<24} {visible(part.told)}".rstrip()


def _spool(path: Path) -> Path:
    """Where the spool is, even if config.yaml is bad at the moment: the node runs on with the last good one."""
    try:
        return Path(load(path, os.environ, files=False).config.store.spool)
    except ConfigError:
        default = StoreSettings().spool
        try:
            root, _ = read_tree(read_text(path), str(path), os.environ)
        except ConfigError:
            return Path(default)
        store = root.get("store") if root is not None and root.kind == "mapping" else None
        spool = store.get("spool") if store is not None and store.kind == "mapping" else None
        return Path(str(spool.value) if spool is not None and spool.value else default)
