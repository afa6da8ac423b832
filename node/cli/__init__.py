"""The command line: verbs parse, call and print. The one room that prints."""

from __future__ import annotations

import sys

import typer

from node.cli import admin, records, server, tools
from node.cli.common import err
from node.errors import ConfigError, NodeError

app = typer.Typer(
    name="luminode",
    help="A DICOM node that enhances CT and MR series on their way from the scanner to PACS.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
server.register(app)
tools.register(app)
records.register(app)
admin.register(app)

EX_CONFIG = ConfigError.exit_status
EX_FAILED = 1


def run() -> None:
    """Run a verb; typed errors become one clear text on standard error and an exit status."""
    try:
        app(standalone_mode=False)
    except ConfigError as e:
        for fault in e.faults:
            err.print(f"[red]error[/red] {_safe(str(fault))}", highlight=False, soft_wrap=True)
        sys.exit(EX_CONFIG)
    except NodeError as e:
        err.print(f"[red]error[/red] {_safe(e.message)}", highlight=False, soft_wrap=True)
        if e.hint:
            err.print(f"      {_safe(e.hint)}", highlight=False, soft_wrap=True)
        sys.exit(EX_FAILED)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as e:
        # typer vendors click: its usage errors know how to show themselves.
        show = getattr(e, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(e, "exit_code", 2))


def _safe(text: str) -> str:
    from rich.markup import escape

    return escape(text)
