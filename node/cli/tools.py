"""Verbs that try something out: check, route, enhance, send, echo."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engines.base import Params
from engines.catalog import Catalog
from engines.errors import EngineError
from engines.ladder import Place
from node.app.engines import cards, place, threads
from node.cli.common import (
    ConfigOption,
    JsonOption,
    as_owner,
    err,
    loaded,
    out,
    print_json,
    print_table,
    tell_error,
    visible,
)
from node.cli.gpu import Finding, check_runtimes
from node.config.schema import Config, DimseDestination, FolderDestination
from node.config.values import Refused, ae_title
from node.deliver.files import FileOutcome, echo, send_files
from node.enhance.health import marks
from node.enhance.offline import Found, Made, enhance_series, find
from node.errors import ConfigError, EnhanceError, NodeError, SchemaTooOld
from node.gather.decide import decide_series
from node.model import Decision
from node.store import Store
from node.store.disk import free_bytes, refuse_network_filesystem
from node.store.place import sqlite_file


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("check")(check)
    app.command("route")(route)
    app.command("enhance")(enhance)
    app.command("send")(send)
    app.command("echo")(echo_)


# check --------------------------------------------------------------------------------------------
def check(
    config: ConfigOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no destination.")] = False,
    json: JsonOption = False,
) -> None:
    """Is everything in order? Configuration, store, GPUs, engines, plans, destinations. Exit status 1 if not."""
    broken = _check_catalog()
    try:
        given = loaded(config)
    except ConfigError:
        for f in broken:  # an engine that the configuration names may be missing for this reason
            tell_error(f"{f.what}: {f.text}", f.hint)
        raise
    findings = [Finding(what="config.yaml", ok=True, text=f"valid, digest {given.digest[:12]}")]
    findings += [Finding(what="config.yaml", ok=True, note=True, text=str(w)) for w in given.warnings]
    findings += _check_store(given.config)
    findings += broken
    findings += check_runtimes(given.config)
    findings += _check_marks(given.config)
    if not offline:
        for name, settings in given.config.destinations.items():
            answer = echo(settings, calling_ae=given.config.node.ae_title)
            findings.append(
                Finding(what=f"destination {name}", ok=answer.ok, text=answer.text, hint=answer.hint)
            )
            if answer.doubt:
                doubt = Finding(what=f"destination {name}", ok=True, note=True, text=answer.doubt)
                findings.append(doubt)
    if json:
        print_json(findings)
    else:
        for f in findings:
            mark = (
                "[red]FAIL[/red]"
                if not f.ok
                else "[yellow]note[/yellow]"
                if f.note
                else "[green]ok[/green]  "
            )
            out.print(f"{mark} {visible(f.what):<24} {visible(f.text)}", highlight=False)
            if f.hint and (f.note or not f.ok):
                out.print(f"     {'':<24} {visible(f.hint)}", highlight=False)
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


def _check_store(config: Config) -> list[Finding]:
    """Looks, and makes nothing: neither a database nor a spool, nor a newer schema under a node that runs."""
    spool = Path(config.store.spool)
    try:
        as_owner(config.store)
        file = sqlite_file(config.store.database)
        if file is not None and not file.exists():
            findings = [_new("database", file)]
        else:
            findings = _check_database(config)
        findings.append(_new("spool", spool / "tmp") if not spool.exists() else _check_room(config))
    except (NodeError, OSError) as e:
        text = e.message if isinstance(e, NodeError) else f"{e.strerror}: {e.filename}"
        hint = getattr(e, "hint", "") or "check store.spool, store.database, and who owns them"
        return [Finding(what="store", ok=False, text=text, hint=hint)]
    return findings


def _check_database(config: Config) -> list[Finding]:
    try:
        with Store.open(config.store.database, Path(config.store.spool), create=False) as store:
            chain = store.provenance.verify()
    except SchemaTooOld as error:
        return [
            Finding(
                what="database",
                ok=True,
                note=True,
                text=error.message,
                hint="`luminode serve` brings it up to date at its start; only a backup from before leads back",
            )
        ]
    return [
        Finding(what="database", ok=True, text="opens, schema up to date"),
        Finding(
            what="provenance",
            ok=chain.ok,
            text=f"{chain.checked} records, chain {'holds' if chain.ok else 'broken'}",
            hint="`luminode provenance --verify` tells which record; compare with a backup",
        ),
    ]


def _check_room(config: Config) -> Finding:
    spool = Path(config.store.spool).absolute()
    if not spool.is_dir() or not os.access(spool, os.W_OK | os.X_OK):
        what = "cannot be written to" if spool.is_dir() else "is no folder"
        hint = "let the user that the node runs as write in it, or name another folder in store.spool"
        return Finding(what="spool", ok=False, text=f"{spool} {what}", hint=hint)
    free, least = free_bytes(config.store.spool), config.store.refuse_below
    return Finding(
        what="spool",
        ok=free >= least,
        text=f"{free / 1e9:.1f} GB free, C-STORE is refused below {least / 1e9:.1f} GB",
        hint="free space, or lower store.refuse_below",
    )


def _new(what: str, wanted: Path) -> Finding:
    """What `luminode serve` will make at its first start, if it may."""
    folder = next(p for p in wanted.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        hint = f"let the user that the node runs as write in {folder}, or name another place in config.yaml"
        return Finding(
            what=what, ok=False, text=f"there is none, and none can be made in {folder}", hint=hint
        )
    if what == "database":
        refuse_network_filesystem(folder)
    place = wanted if what == "database" else wanted.parent
    text = f"there is none at {place.absolute()} yet"
    hint = "the first `luminode serve` makes it; if the node ran before, this is the wrong folder"
    return Finding(what=what, ok=True, note=True, text=text, hint=hint)


def _check_catalog() -> list[Finding]:
    return [
        Finding(what=f"engine folder {folder}", ok=False, text=fault.message, hint=fault.hint)
        for folder, fault in Catalog.default().faults().items()
    ]


def _check_marks(config: Config) -> list[Finding]:
    """GPUs that the node does not use because they failed."""
    hint = "docs/operations/troubleshooting.md, A GPU is unfit; the node tries it every 5 minutes"
    return [
        Finding(what=f"GPU of {host}", ok=False, text=f"not used since {m.since}: {m.why}", hint=hint)
        for host, m in marks(Path(config.store.spool)).items()
    ]


# route --------------------------------------------------------------------------------------------
def route(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files or folders.", exists=True)],
    config: ConfigOption = None,
    calling_ae: Annotated[str, typer.Option("--from", help="As if this AE title had sent them.")] = "",
    json: JsonOption = False,
) -> None:
    """Which rule would take each series, and why."""
    settings = loaded(config).config
    found = find(paths)
    catalog = cards()
    told = []
    for uid, members in found.series.items():
        headers = [h for _, h in members]
        decision = decide_series(
            headers, settings, catalog, calling_ae=calling_ae, called_ae=settings.node.ae_title
        )
        told.append((uid, len(members), members[0][1].modality, decision))
    if json:
        print_json(
            {
                "series": [
                    {"series_uid": u, "instances": n, "modality": m, "decision": d} for u, n, m, d in told
                ],
                "unreadable": [{"path": p, "reason": r} for p, r in found.unreadable],
            }
        )
    else:
        _tell_routes(told, found)
    if not told:
        raise typer.Exit(1)


def _tell_routes(told: Sequence[tuple[str, int, str, Decision]], found: Found) -> None:
    for uid, n, modality, d in told:
        goes = f" to {', '.join(d.destinations)}" if d.destinations and d.action.value == "enhance" else ""
        color = {"enhance": "green", "reject": "yellow"}.get(d.action.value, "default")
        out.print(f"[bold]{visible(uid)}[/bold]  {visible(modality)}, {n} instances", highlight=False)
        rule, reason = visible(d.rule) or "-", visible(d.reason)
        out.print(f"  [{color}]{d.action.value}[/{color}]{goes} by rule {rule}: {reason}", highlight=False)
        for v in d.verdicts:
            mark = "[green]yes[/green]" if v.held else "[red]no[/red] "
            out.print(
                f"    {mark} {visible(v.rule)}: {v.keyword} {visible(v.wanted)}  (found {visible(v.found)})",
                highlight=False,
            )
    if not told:
        out.print("no DICOM series found")
    for path, reason in found.unreadable:
        out.print(f"unreadable {visible(str(path))}: {visible(reason)}", highlight=False)


# enhance ------------------------------------------------------------------------------------------
def enhance(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files or folders.", exists=True)],
    engine: Annotated[str, typer.Option("--engine", "-e", help="Name in the catalogue.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the derived series.")],
    strength: Annotated[
        float | None, typer.Option("--strength", "-s", min=0, max=1, help="Otherwise the engine's own.")
    ] = None,
    runtime: Annotated[
        str, typer.Option("--runtime", help="auto, tensorrt, tensorrt_rtx, onnx_cuda or onnx.")
    ] = "auto",
    json: JsonOption = False,
) -> None:
    """Enhance files without a server: the same chain as the node's, for trying and for finding bugs."""
    try:
        loaded_engine = Catalog.default(place=_place()).load(engine, runtime=runtime, threads=threads())
    except EngineError as e:
        raise EnhanceError(e.message, hint=e.hint) from None
    params = Params(strength=loaded_engine.card.default_strength if strength is None else strength)
    found = find(paths)
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    when = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now().astimezone()
    made, failed = [], 0
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=err, disable=json or not err.is_terminal,
    ) as progress:  # fmt: skip
        for number, (uid, members) in enumerate(found.series.items(), 1):
            task = progress.add_task(f"series {number}", total=100)
            target = output / f"series-{number:03d}"
            try:
                one = enhance_series(
                    members, loaded_engine, params, target, when=when,
                    tell=lambda step, share, t=task: progress.update(  # type: ignore[misc]
                        t, completed=100 * share, description=f"{step}"
                    ),
                )  # fmt: skip
            except (NodeError, EngineError) as e:
                failed += 1
                with suppress(OSError):  # made for this series, or somebody else's and then not empty
                    target.rmdir()
                tell_error(f"series {number}: {e.message}", e.hint)
                one = Made(series_uid=uid, n_sources=len(members), reason=e.message)
            progress.update(task, completed=100)
            made.append(one)
    if json:
        print_json(made)
    else:
        rows = []
        for m in made:
            figures = m.report.figures if m.report else {}
            noise = [_figure(figures, name) for name in ("noise_before", "noise_after", "mean_change")]
            rows.append([m.series_uid, m.n_sources, m.n_made, *noise, m.folder or "", m.reason])
        columns = ["series UID", "sources", "made", "noise before", "after", "change", "folder", "reason"]
        print_table(columns, rows, empty="no DICOM series found")
        for path, reason in found.unreadable:
            out.print(f"unreadable {visible(str(path))}: {visible(reason)}", highlight=False)
    if failed or not found.series:
        raise typer.Exit(1)


def _place() -> Place | None:
    """Where engines run: as config.yaml says, if there is one that is sound."""
    try:
        return place(loaded(None).config)
    except ConfigError:
        return None


def _figure(figures: Mapping[str, float], name: str) -> str:
    """A figure for people; empty where the engine changed nothing and measured nothing."""
    return f"{figures[name]:.3g}" if name in figures else ""


# send and echo ------------------------------------------------------------------------------------
def _peer(address: str) -> DimseDestination:
    """``AE@host:port`` -> settings of a destination."""
    ae_title, _, where = address.partition("@")
    try:
        return DimseDestination.model_validate({"kind": "dimse", "ae_title": ae_title, "address": where})
    except ValidationError as e:
        refused = e.errors()[0].get("ctx", {}).get("error", "")
        told = f"{refused}. A peer is AE@host:port, or a destination of config.yaml"
        raise typer.BadParameter(told) from None


def _where(peer: str, config: Path | None) -> tuple[DimseDestination | FolderDestination, str]:
    """Settings of a peer, and what we call ourselves there."""
    if "@" in peer:
        return _peer(peer), "LUMINODE"
    settings = loaded(config).config
    if peer not in settings.destinations:
        known = ", ".join(settings.destinations) or "none"
        raise typer.BadParameter(f"there is no destination {peer}; there are: {known}")
    return settings.destinations[peer], settings.node.ae_title


def _calling(
    settings: DimseDestination | FolderDestination, calling_ae: str
) -> DimseDestination | FolderDestination:
    """The settings with our AE title as the command line has it."""
    if not calling_ae or isinstance(settings, FolderDestination):
        return settings
    try:
        return settings.model_copy(update={"calling_ae": ae_title(calling_ae)})
    except Refused as e:
        raise typer.BadParameter(f"--from: {e}. {e.hint}") from None


def send(
    peer: Annotated[str, typer.Argument(help="AE@host:port, or a destination of config.yaml.")],
    paths: Annotated[list[Path], typer.Argument(help="DICOM files or folders.", exists=True)],
    calling_ae: Annotated[str, typer.Option("--from", help="Our AE title.")] = "",
    associations: Annotated[
        int, typer.Option("--associations", "-j", min=1, max=64, help="How many at once.")
    ] = 1,
    pace: Annotated[
        float, typer.Option("--pace", min=0, help="Instances a second; 0 is as fast as it goes.")
    ] = 0,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Send files to a peer, as a scanner would."""
    settings, own = _where(peer, config)
    settings = _calling(settings, calling_ae)
    files = [
        p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path]) if p.is_file()
    ]
    with Progress(
        TextColumn("send"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=err, disable=json or not err.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("send", total=len(files))

        def tell(_outcome: FileOutcome) -> None:
            progress.advance(task)

        sent = send_files(files, settings, tell, calling_ae=own, associations=associations, pace=pace)
    if json:
        print_json(sent)
    else:
        rate = sent.n_done / sent.seconds if sent.seconds else 0.0
        out.print(
            f"{sent.n_done} of {sent.n_files} sent in {sent.seconds:.2f} s ({rate:.0f}/s)", highlight=False
        )
        for o in sent.not_done[:50]:
            out.print(f"  {visible(str(o.path))}: {visible(o.text)}", highlight=False)
        for e in sent.errors:
            out.print(f"  {visible(e)}", highlight=False)
    if not sent.ok or not files:
        raise typer.Exit(1)


def echo_(
    peer: Annotated[str, typer.Argument(help="AE@host:port, or a destination of config.yaml.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Is a peer there?"""
    settings, own = _where(peer, config)
    answer = echo(settings, calling_ae=own)
    if json:
        print_json(answer)
    else:
        out.print(f"{'ok' if answer.ok else 'FAIL'}: {visible(answer.text)} ({answer.seconds * 1000:.0f} ms)")
        if answer.hint:
            out.print(visible(answer.hint), highlight=False)
    if not answer.ok:
        raise typer.Exit(1)
