"""The command line: verbs parse, call and print. The one room that prints."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from engines.errors import EngineError
from node import __version__
from node.cli import admin, backup, commitments, gpu, health, records, server, tools
from node.cli.common import tell_error
from node.errors import READ_ONLY_HINT, ConfigError, NodeError
from node.log import configure
from node.store.migrate import HEAD

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
gpu.register(app)
records.register(app)
commitments.register(app)
admin.register(app)
health.register(app)
backup.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"luminode {__version__}, database schema {HEAD}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Tell which version this is.")
    ] = False,
) -> None:
    """What may stand before a verb."""


EX_CONFIG = ConfigError.exit_status
EX_FAILED = 1


def run() -> None:
    """Run a verb; typed errors become one clear text on standard error and an exit status."""
    configure("warning")  # verbs that run something say what they do at a level of their own
    try:
        # A verb's `typer.Exit` comes back as its status.
        status = app(standalone_mode=False, prog_name="luminode")
        sys.stdout.flush()
    except ConfigError as e:
        for fault in e.faults:
            tell_error(str(fault))
        sys.exit(EX_CONFIG)
    except (NodeError, EngineError) as e:
        tell_error(e.message, e.hint)
        sys.exit(EX_FAILED)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as e:
        where = f": {e.filename}" if isinstance(e.filename, str) else ""
        hint = READ_ONLY_HINT if e.errno == errno.EROFS else "check path, owner, permissions and free space"
        tell_error(f"{e.strerror or type(e).__name__}{where}", hint)
        sys.exit(EX_FAILED)
    except Exception as e:
        # typer vendors click: its usage errors know how to show themselves.
        show = getattr(e, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(e, "exit_code", 2))
    sys.exit(status if isinstance(status, int) else 0)
