"""The main job on embedded defaults, as a newcomer sees it: scanner, node, PACS, picture.

Nothing is faked: the node is ``luminode serve`` in a process of its own, the series go in by C-STORE, the derived
series come back by C-STORE, and the PACS is asked by C-FIND whether it holds every derived instance.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from node.deliver.files import echo, send_files
from node.enhance.offline import find
from node.errors import EngineUnavailable, NodeError
from node.log import configure
from node.model import Delivery, DeliveryState, DerivedSeries, Job, JobState, Series, SeriesState
from node.store import Store
from node.trial.pacs import Pacs
from node.trial.phantoms import brain_mr, chest_ct, write_series
from node.trial.picture import picture
from node.trial.query import held_instances

_CONFIG = """\
# Written by `luminode demo`: embedded defaults, for a trial on this machine.
node:
  ae_title: LUMINODE
  listen: 127.0.0.1:{port}
  accept_from: [CT1, MR1, DEMO]
store:
  spool: {folder}/spool
  database: sqlite:///{folder}/luminode.db
  refuse_below: 200MB
series: {{quiet_after: 10s, give_up_after: 1h}}
engines:
  ct: {{engine: {ct}}}
  mr: {{engine: {mr}}}
destinations:
  pacs: {{kind: dimse, ae_title: PACS, address: "127.0.0.1:{pacs_port}"}}
rules:
  - {{name: CT, when: {{Modality: CT}}, enhance: ct, send_to: [pacs]}}
  - {{name: MR, when: {{Modality: MR}}, enhance: mr, send_to: [pacs]}}
  - {{name: the rest, when: any, ignore: true}}
"""

_PATIENCE_S = 900.0


@dataclass(slots=True)
class _Progressing:
    """What is shown of one series while it goes through."""

    uid: str
    label: str
    n: int
    task: TaskID
    series: Series | None = None
    job: Job | None = None
    derived: DerivedSeries | None = None
    delivery: Delivery | None = None

    @property
    def ended(self) -> bool:
        if self.series is not None and self.series.state in (SeriesState.IGNORED, SeriesState.REJECTED):
            return True
        if self.job is not None and self.job.state in (JobState.FAILED, JobState.HELD, JobState.CANCELLED):
            return True
        return self.delivery is not None and self.delivery.state in (DeliveryState.SENT, DeliveryState.FAILED)


@dataclass(slots=True, kw_only=True)
class Demo:
    """One run of the demonstration.

    Attributes
    ----------
    folder
        Everything is kept in a new folder below it.
    series
        A folder of DICOM files to send instead of the phantoms.
    engines
        Catalogue names by modality.
    """

    folder: Path
    series: Path | None
    engines: Mapping[str, str]
    console: Console
    _started: float = field(default_factory=time.monotonic)

    def run(self, *, keep: bool = False) -> int:
        """Run it; returns 0 only if the PACS holds every derived instance that there should be."""
        configure("warning")
        run = self.folder / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        run.mkdir(parents=True)
        port = _free_port()
        with Pacs(run / "pacs", "PACS", "127.0.0.1", 0) as pacs:
            config = run / "config.yaml"
            config.write_text(
                _CONFIG.format(
                    port=port, folder=run, pacs_port=pacs.port, ct=self.engines["CT"], mr=self.engines["MR"]
                )
            )
            node = _start(config, run)
            try:
                with Progress(
                    TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"),
                    TimeElapsedColumn(), console=self.console,
                ) as progress:  # fmt: skip
                    files = self._files(run, progress)
                    self._await_node(node, port, run, progress)
                    store = Store.open(f"sqlite:///{run}/luminode.db", run / "spool", create=False)
                    going = self._send(files, port, store, progress)
                    self._follow(going, node, store, progress)
                with store:
                    ok = self._conclude(going, store, pacs, run, config)
                if keep:
                    self._keep(port, pacs, config)
            finally:
                _stop(node)
        return 0 if ok else 1

    # steps ----------------------------------------------------------------------------------------
    def _files(self, run: Path, progress: Progress) -> Sequence[Path]:
        if self.series is not None:
            return sorted(p for p in self.series.rglob("*") if p.is_file())
        task = progress.add_task("simulate a scanner's series", total=2, told="chest CT, brain MR")
        salt = run.name
        files: list[Path] = []
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            jobs = [
                pool.submit(_simulate, kind, salt, run / "scanner" / kind)
                for kind in ("chest-ct", "brain-mr")
            ]
            for job in jobs:
                files += job.result()
                progress.advance(task)
        return files

    def _await_node(self, node: subprocess.Popen[bytes], port: int, run: Path, progress: Progress) -> None:
        task = progress.add_task("start the node", total=None, told=f"port {port}")
        deadline = time.monotonic() + 180
        peer = {"kind": "dimse", "ae_title": "LUMINODE", "address": f"127.0.0.1:{port}"}
        while time.monotonic() < deadline:
            if node.poll() is not None:
                break
            if echo(peer, calling_ae="DEMO").ok:
                progress.update(task, total=1, completed=1)
                return
            time.sleep(0.2)
        raise EngineUnavailable("the node did not start", hint=f"see {run / 'node.log'}")

    def _send(self, files: Sequence[Path], port: int, store: Store, progress: Progress) -> list[_Progressing]:
        found = find(files)
        for path, reason in found.unreadable:
            progress.console.print(f"not sent: {escape(str(path))}: {escape(reason)}", highlight=False)
        going = []
        for uid, members in found.series.items():
            header = members[0][1]
            label = f"{header.modality} {_description(header.attributes)}".strip()
            task = progress.add_task(escape(label), total=100, told="waits for the scanner")
            one = _Progressing(uid=uid, label=label, n=len(members), task=task)
            going.append(one)
            paths = [p for p, _ in members]
            n_sent = 0

            def tell(_outcome: object, one: _Progressing = one) -> None:
                nonlocal n_sent
                n_sent += 1
                progress.update(one.task, completed=20 * n_sent / one.n, told=f"received {n_sent}/{one.n}")

            calling = {"CT": "CT1", "MR": "MR1"}.get(header.modality, "DEMO")
            peer = {"kind": "dimse", "ae_title": "LUMINODE", "address": f"127.0.0.1:{port}"}
            sent = send_files(paths, peer, tell, calling_ae=calling)
            for o in sent.not_done:
                progress.console.print(f"refused: {escape(str(o.path))}: {escape(o.text)}", highlight=False)
            self._refresh(going, store, progress)
        return going

    def _follow(
        self,
        going: Sequence[_Progressing],
        node: subprocess.Popen[bytes],
        store: Store,
        progress: Progress,
    ) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and node.poll() is None:
            self._refresh(going, store, progress)
            if all(g.ended for g in going):
                return
            time.sleep(0.15)

    def _refresh(self, going: Sequence[_Progressing], store: Store, progress: Progress) -> None:
        for g in going:
            found = store.series.find(g.uid)
            g.series = found[-1] if found else None
            if g.series is None:
                continue
            told, done = f"{g.series.count} received, waiting: is it complete?", 20.0
            jobs = store.jobs.list(series_id=g.series.id)
            g.job = jobs[0] if jobs else None
            if g.series.state in (SeriesState.IGNORED, SeriesState.REJECTED):
                decision = store.series.decision(g.series.id)
                told, done = f"not enhanced: {decision.reason if decision else ''}", 100.0
            elif g.job is not None:
                detail = store.jobs.detail(g.job.id)
                share = float(detail.progress.get("enhance", 0.0)) if detail else 0.0
                told, done = f"enhance {share:.0%} ({g.job.engine})", 20 + 60 * share
                if g.job.state in (JobState.HELD, JobState.FAILED):
                    told, done = f"{g.job.state}: {g.job.failure}", 100.0
                g.derived = store.deliveries.derived_of_job(g.job.id)
            if g.derived is not None:
                deliveries = store.deliveries.list(derived_id=g.derived.id)
                g.delivery = deliveries[0] if deliveries else None
            if g.delivery is not None:
                way = store.deliveries.detail(g.delivery.id)
                n_done, n = (way.n_done, way.n_instances) if way else (0, 0)
                told, done = f"delivered {n_done}/{n}", 80 + 20 * n_done / max(n, 1)
            progress.update(g.task, completed=done, told=escape(told))

    def _conclude(
        self, going: Sequence[_Progressing], store: Store, pacs: Pacs, run: Path, config: Path
    ) -> bool:
        ok = bool(going)
        for g in going:
            self.console.print()
            self.console.print(f"[bold]{escape(g.label)}[/bold]  {g.n} instances", highlight=False)
            if g.series is not None and g.series.state in (SeriesState.IGNORED, SeriesState.REJECTED):
                decision = store.series.decision(g.series.id)
                self.console.print(f"  not enhanced: {escape(decision.reason if decision else '')}")
                continue
            if g.derived is None or g.delivery is None or g.job is None or g.series is None:
                why = g.job.failure if g.job else "it did not get as far as a job"
                self.console.print(f"  [red]nothing was delivered[/red]: {escape(why)}")
                ok = False
                continue
            wanted = {i.sop_instance_uid for i in g.derived.instances}
            held = held_instances("127.0.0.1", pacs.port, "PACS", g.derived.study_uid, g.derived.series_uid)
            missing = wanted - held
            ok = ok and bool(wanted) and not missing
            self._tell(g, store, len(wanted), len(missing), config)
            image = self._picture(g, store, pacs, run)
            if image is not None:
                self.console.print(f"  picture      {image}", highlight=False)
        word = (
            "[green]The PACS holds every derived instance.[/green]"
            if ok
            else "[red]Not everything arrived.[/red]"
        )
        self.console.print(
            f"\n{word}  {time.monotonic() - self._started:.0f} s in all. Log: {run / 'node.log'}"
        )
        return ok

    def _tell(self, g: _Progressing, store: Store, n: int, n_missing: int, config: Path) -> None:
        assert g.derived is not None
        assert g.series is not None
        assert g.delivery is not None
        body = next(
            (r.body for r in store.provenance.records(g.derived.series_uid) if "figures" in r.body), {}
        )
        seconds, figures = body.get("seconds", {}), body.get("figures", {})
        table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        steps = _steps(g, store, seconds)
        for name in steps:
            table.add_column(name, justify="right")
        table.add_row(*[f"{s:.2f} s" for s in steps.values()])
        unit = " HU" if g.series.header is not None and g.series.header.modality == "CT" else ""
        self.console.print(f"  closed by    {g.series.closed_because}", highlight=False)
        self.console.print(table)
        if figures:
            before, after = figures.get("noise_before", 0.0), figures.get("noise_after", 0.0)
            change = f"{(after / before - 1) * 100:+.0f} %" if before else ""
            self.console.print(
                f"  noise        {before:.1f} -> {after:.1f}{unit} ({change}), mean change "
                f"{figures.get('mean_change', 0.0):+.2f}{unit}", highlight=False,
            )  # fmt: skip
        self.console.print(
            f"  derived      series {g.derived.number} {escape(repr(g.derived.description))}, "
            f"{n - n_missing} of {n} in the PACS", highlight=False,
        )  # fmt: skip
        self.console.print(f"  UID          {g.derived.series_uid}", highlight=False)
        where = os.path.relpath(config)
        self.console.print(
            f"  its story    {_command()} provenance {g.derived.series_uid} --config {where}", highlight=False
        )

    def _picture(self, g: _Progressing, store: Store, pacs: Pacs, run: Path) -> Path | None:
        assert g.derived is not None
        middle = g.derived.instances[len(g.derived.instances) // 2]
        after = pacs.path(middle.sop_instance_uid)
        sources = {i.sop_instance_uid: i for i in store.series.instances(g.series.id)} if g.series else {}
        source = sources.get(middle.source_sop_instance_uid)
        if after is None or source is None:
            return None
        target = run / f"{'ct' if g.label.startswith('CT') else 'mr'}-{g.derived.id}.png"
        try:
            picture(store.spool.path(source.path), after, target)
        except (NodeError, ValueError) as e:
            self.console.print(f"  no picture: {escape(str(e))}")
            return None
        return target

    def _keep(self, port: int, pacs: Pacs, config: Path) -> None:
        self.console.print(
            f"\nThe node LUMINODE listens on 127.0.0.1:{port}, the PACS on 127.0.0.1:{pacs.port}.\n"
            f"Try: {_command()} send LUMINODE@127.0.0.1:{port} FOLDER --from CT1\n"
            f"     {_command()} series list --config {config}\nCtrl-C ends both.", highlight=False,
        )  # fmt: skip
        try:
            signal.pause()
        except KeyboardInterrupt:
            self.console.print("stopping")


def _steps(g: _Progressing, store: Store, seconds: Mapping[str, float]) -> dict[str, float]:
    """Where the time of one series went, in seconds, from the records."""
    assert g.series is not None
    assert g.job is not None
    assert g.delivery is not None
    job, way = store.jobs.detail(g.job.id), store.deliveries.detail(g.delivery.id)
    steps = {"receive": (g.series.last_received_at - g.series.opened_at).total_seconds()}
    if g.series.closed_at is not None:
        steps["wait"] = (g.series.closed_at - g.series.last_received_at).total_seconds()
    if job is not None and job.started_at is not None:
        steps["queue"] = max(0.0, (job.started_at - g.job.created_at).total_seconds())
    steps["enhance"] = sum(seconds.get(k, 0.0) for k in ("decode", "survey", "enhance"))
    steps["derive"] = seconds.get("derive", 0.0)
    if way is not None and way.finished_at is not None:
        steps["deliver"] = (way.finished_at - g.delivery.created_at).total_seconds()
        steps["last slice to PACS"] = (way.finished_at - g.series.last_received_at).total_seconds()
    return steps


def _simulate(kind: str, salt: str, folder: Path) -> list[Path]:
    datasets = chest_ct(salt=salt) if kind == "chest-ct" else brain_mr(salt=salt)
    return write_series(datasets, folder)


def _description(attributes: Mapping[str, tuple[object, ...]]) -> str:
    value = attributes.get("SeriesDescription", ())
    return str(value[0]) if value else ""


def _start(config: Path, run: Path) -> subprocess.Popen[bytes]:
    with (run / "node.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "node", "serve", "--config", str(config)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def _stop(node: subprocess.Popen[bytes]) -> None:
    if node.poll() is None:
        node.terminate()
        try:
            node.wait(30)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()


def _command() -> str:
    """How a person here calls the command: as this process was called."""
    called = Path(sys.argv[0])
    return os.path.relpath(called) if called.name == "luminode" and called.exists() else "luminode"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
