"""A whole node as a child process, as an admin would run it, for the pipeline tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from node.store import Store
from tests.peers import free_port, listens, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]

CONFIG = """\
node:
  ae_title: LUMINODE
  listen: 127.0.0.1:{port}
  accept_from: any
store:
  spool: {folder}/spool
  database: {database}
  refuse_below: 100MB
series: {{quiet_after: {quiet_after}, give_up_after: 1h, settle: 300ms, late: {late}, begin_early: {begin_early}}}
engines:
  ct: {{engine: {ct_engine}, strength: 0.6}}
  mr: {{engine: {mr_engine}, strength: 0.6}}
destinations:
  pacs:
    kind: dimse
    ae_title: {pacs_ae}
    address: "127.0.0.1:{pacs_port}"
    retry: {{for: 3d, first: 500ms, at_most: 2s}}
rules:
  - {{name: ct, when: {{Modality: CT}}, enhance: ct, send_to: [pacs]}}
  - {{name: mr, when: {{Modality: MR}}, enhance: mr, send_to: [pacs]}}
  - {{name: the rest, when: any, ignore: true}}
"""


@dataclass
class Node:
    """A running ``luminode serve`` on a folder of its own."""

    folder: Path
    config: Path
    port: int
    database: str
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(default_factory=Path)
    first_on_path: Path | None = None

    def start(self) -> None:
        self.log = self.folder / "node.log"
        path = [str(p) for p in (self.first_on_path, REPOSITORY) if p is not None]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node", "serve", "--config", str(self.config)],
                stdout=out, stderr=out, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.wait_for_port()

    def wait_for_port(self, within_s: float = 120) -> None:
        def listening() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            return listens(self.port)

        wait_until(listening, within_s, "the node listens", every_s=0.1)

    def tree(self) -> list[psutil.Process]:
        assert self.process is not None
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def kill_tree(self) -> None:
        """kill -9 of every process at once: stopped first, so that none sees another die."""
        victims = self.tree()
        for p in victims:
            _send(p, signal.SIGSTOP)
        for p in victims:
            _send(p, signal.SIGKILL)
        psutil.wait_procs(victims, timeout=10)
        assert self.process is not None
        self.process.wait(10)
        self.process = None

    def stop(self) -> int:
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill_tree()
            raise

    def resident_mb(self) -> float:
        return sum(_rss(p) for p in self.tree()) / 1e6

    @contextmanager
    def store(self) -> Iterator[Store]:
        store = Store.open(self.database, self.folder / "spool", create=False)
        try:
            yield store
        finally:
            store.close()


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def make_node(
    folder: Path,
    *,
    pacs_ae: str,
    pacs_port: int,
    database: str = "",
    quiet_after: str = "2s",
    late: str = "append",
    ct_engine: str = "ct-wavelet",
    mr_engine: str = "mr-wavelet",
    begin_early: str = "true",
) -> Node:
    port = free_port()
    url = database or f"sqlite:///{folder}/luminode.db"
    config = folder / "config.yaml"
    config.write_text(
        CONFIG.format(
            port=port, folder=folder, database=url, pacs_ae=pacs_ae, pacs_port=pacs_port,
            quiet_after=quiet_after, late=late, ct_engine=ct_engine, mr_engine=mr_engine,
            begin_early=begin_early,
        )
    )  # fmt: skip
    return Node(folder=folder, config=config, port=port, database=url)
