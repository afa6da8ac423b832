"""Verbs that run something: serve, demo, pacs.

What a verb needs is imported when it runs: a quick verb does not wait for what another one needs.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from node.app.alone import alone
from node.app.doors import Doors, how_many
from node.app.supervise import ROLES, WEB, Supervisor
from node.cli.common import ConfigOption, as_owner, config_file, err, loaded, out
from node.log import configure
from node.process import stop_on_signals


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("serve")(serve)
    app.command("demo")(demo)
    app.command("pacs")(pacs)


def serve(
    config: ConfigOption = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help=f"Run one role alone in this process: {', '.join((*ROLES, WEB))}."),
    ] = None,
) -> None:
    """Run the node until SIGTERM; SIGHUP reads config.yaml again."""
    path = config_file(config)
    if role:
        if len(role) > 1 or role[0] not in (*ROLES, WEB):
            raise typer.BadParameter(f"one role of {', '.join((*ROLES, WEB))}, or none for all of them")
        from node.app.roles import run_role

        as_owner(loaded(config).config.store)
        raise typer.Exit(run_role(role[0], path))
    from node.app.settings import Settings

    settings = Settings(path, "supervisor")
    as_owner(settings.started.store)
    with alone(settings.started.store):
        with settings.open_store() as store:  # the schema is brought up to date once, before anybody works
            store.spool.sweep_tmp(datetime.now(UTC))  # so are names given back that a power cut took
        roles = ROLES if settings.started.monitoring.listen is None else (*ROLES, WEB)
        listen = settings.started.node.listen
        doors = Doors(listen.host, listen.port, how_many(settings.started))
        status = Supervisor(path, roles, last_good=settings.keep_last_good(), doors=doors).run()
    raise typer.Exit(status)


def demo(
    series: Annotated[
        Path | None, typer.Option("--series", help="Send this folder instead of the phantoms.", exists=True)
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where everything is kept.")] = Path("demo-out"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the node and the PACS running until Ctrl-C.")
    ] = False,
    engine_ct: Annotated[str, typer.Option("--ct", help="Engine for CT.")] = "ct-cnn",
    engine_mr: Annotated[str, typer.Option("--mr", help="Engine for MR.")] = "mr-cnn",
) -> None:
    """The main job on embedded defaults: scanner, node, PACS, picture."""
    from node.demo import Demo

    trial = Demo(
        folder=folder.resolve(), series=series, engines={"CT": engine_ct, "MR": engine_mr}, console=out
    )
    raise typer.Exit(trial.run(keep=keep))


def pacs(
    folder: Annotated[Path, typer.Option("--folder", help="Where instances are kept.")] = Path("var/pacs"),
    ae_title: Annotated[str, typer.Option("--ae-title", help="Our AE title.")] = "PACS",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on.")] = 11113,
    move_to: Annotated[
        list[str] | None,
        typer.Option("--move-to", help="AE=host:port that C-MOVE may send to; repeatable."),
    ] = None,
) -> None:
    """A small PACS to try rules against: Storage, FIND, MOVE, GET, Verification."""
    from node.trial.pacs import Pacs

    configure("info")
    stop = threading.Event()
    stop_on_signals(stop)
    server = Pacs(folder, ae_title, host, port, move_to=_peers(move_to or []))
    server.start()
    out.print(
        f"PACS {ae_title} listens on {host}:{server.port}, keeps instances in {folder}", highlight=False
    )
    if host not in ("127.0.0.1", "localhost", "::1"):
        err.print("anybody who can reach this address can read and write: for trials only", style="yellow")
    stop.wait()
    server.stop()


def _peers(given: list[str]) -> dict[str, str]:
    peers = {}
    for each in given:
        name, _, address = each.partition("=")
        host, _, port = address.rpartition(":")
        if not (name and host and port.isdigit()):
            raise typer.BadParameter("--move-to is AE=host:port")
        peers[name] = address
    return peers
