"""What the verbs share: where the configuration is, how the store is opened, how things are printed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from node.app.engines import offered
from node.config.load import LoadedConfig, load
from node.config.schema import StoreSettings
from node.errors import ConfigError, ConfigFault
from node.store import Store
from node.store.place import require_owner, sqlite_file

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

_wide = Console(soft_wrap=True, width=10_000)
"""For tables: a row is one line, for grep and awk, and so that a UID can be copied whole."""

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="config.yaml; otherwise $LUMINODE_CONFIG, then ./config.yaml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def config_file(given: Path | None) -> Path:
    """The configuration to use.

    Raises
    ------
    ConfigError
        No file is where it should be.
    """
    path = given or Path(os.environ.get("LUMINODE_CONFIG", "config.yaml"))
    if not path.is_file():
        raise ConfigError(
            (
                ConfigFault(
                    file=str(path), line=0, column=0, path="", message="there is no such file",
                    hint="name one with --config, set LUMINODE_CONFIG, or run where config.yaml is",
                ),
            )
        )  # fmt: skip
    return path.resolve()


def loaded(given: Path | None) -> LoadedConfig:
    """Load and validate the configuration."""
    return load(config_file(given), os.environ, catalogue=offered())


def as_owner(settings: StoreSettings) -> None:
    """Refuse to go on as root where the node is another user's.

    Raises
    ------
    StoreError
    """
    require_owner(*(p for p in (Path(settings.spool), sqlite_file(settings.database)) if p is not None))


@contextmanager
def opened(given: Path | None, *, create: bool = False) -> Iterator[Store]:
    """The store that the configuration names, which is there: nothing is made in its place but with ``create``."""
    settings = loaded(given).config.store
    as_owner(settings)
    store = Store.open(settings.database, Path(settings.spool), create=create)
    try:
        yield store
    finally:
        store.close()


def plain(value: Any) -> Any:
    """A JSON-able form of our dataclasses."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    return value


def print_json(value: Any) -> None:
    """JSON to standard output, without colour or wrapping; in ASCII, so that nothing upsets a terminal."""
    typer.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """A table for people; ``empty`` is said where there are no rows."""
    if not rows:
        out.print(empty, highlight=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for c in columns:
        table.add_column(c, overflow="fold")
    for row in rows:
        table.add_row(*[visible(str(cell)) for cell in row])
    _wide.print(table)


def tell_error(message: str, hint: str = "") -> None:
    """An error on standard error, and below it what to do about it."""
    err.print(f"[red]error[/red] {visible(message)}", highlight=False)
    if hint:
        err.print(f"      {visible(hint)}", highlight=False)


def visible(text: str) -> str:
    """Text from the network made harmless on a terminal: no control characters, no markup."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "?" for c in text))


def ago(at: datetime | None) -> str:
    """A time as people read it in a list."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else ""
