"""A whole node for the fault tests of operation, its scanners, and the one question: was anything lost or doubled?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy import select

from node.deliver.files import read_parcel
from node.store import Store
from node.store.tables import DerivedInstanceRow
from tests.faults.scanners import Log, Scanner, encoded, slice_uid
from tests.peers import free_port, wait_until
from tests.pipeline.harness import Node
from tests.senders import CT, Peer

CONFIG = """\
node: {{listen: "127.0.0.1:{port}", accept_from: {accept}}}
store: {{spool: spool, database: "{database}", refuse_below: {refuse_below}, keep: {{{keep}}}}}
series: {{quiet_after: {quiet_after}, settle: 300ms}}
engines: {{ct: {{engine: identity}}}}
destinations: {{pacs: {destination}}}
rules: [{{name: ct, when: {{Modality: CT}}, enhance: ct, send_to: [pacs]}}]
log: {{format: json}}
"""
FOLDER = "{kind: folder, path: outbox}"


def dimse(port: int, ae_title: str = "STORESCP") -> str:
    """A destination that is tried again every second or two."""
    return (
        f'{{kind: dimse, ae_title: {ae_title}, address: "127.0.0.1:{port}",'
        " retry: {for: 3d, first: 500ms, at_most: 2s}}"
    )


def site(
    folder: Path,
    *,
    destination: str = FOLDER,
    database: str = "",
    accept: str = "any",
    quiet_after: str = "3s",
    refuse_below: str = "100MB",
    port: int = 0,
    keep: str = "",
    web: int = 0,
) -> Node:
    """A node in a folder of its own, not started; ``web`` is the port of its pages, if it is to have any."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    config = folder / "config.yaml"
    url = database or "sqlite:///luminode.db"
    config.write_text(
        CONFIG.format(
            port=port, accept=accept, database=url, destination=destination, quiet_after=quiet_after,
            refuse_below=refuse_below, keep=keep,
        )
    )  # fmt: skip
    if web:
        config.write_text(config.read_text() + f'monitoring: {{listen: "127.0.0.1:{web}"}}\n')
    here = database or f"sqlite:///{folder}/luminode.db"
    return Node(folder=folder, config=config, port=port, database=here)


def child(node: Node, role: str) -> psutil.Process | None:
    """The process of a role."""
    for process in node.tree()[1:]:
        with suppress(psutil.Error):  # it died meanwhile
            if process.cmdline()[1:4] == ["-m", "node.app", role]:
                return process
    return None


def worker(node: Node) -> psutil.Process | None:
    """The engine's process."""
    one = child(node, "enhance")
    with suppress(psutil.Error):
        for process in one.children() if one is not None else ():
            if "spawn_main" in " ".join(process.cmdline()):
                return process
    return None


def outbox(node: Node) -> list[str]:
    """SOP Instance UIDs in the folder destination."""
    return [read_parcel(path).sop_instance_uid for path in (node.folder / "outbox").rglob("*.dcm")]


def sources(store: Store) -> dict[str, str]:
    """Derived SOP Instance UID -> that of its source."""
    row = DerivedInstanceRow
    with store.database.read() as connection:
        found = connection.execute(select(row.sop_instance_uid, row.source_sop_instance_uid)).all()
    return {one.sop_instance_uid: one.source_sop_instance_uid for one in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What was acknowledged against what arrived. ``lost`` has no derived instance at the destination; ``extra`` is
    there twice, or comes from what was never sent."""

    lost: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def even(self) -> bool:
        return not self.lost and not self.extra


def balance(known: dict[str, str], arrived: Collection[str], log: Log) -> Balance:
    """Compare; ``known`` as from :func:`sources`."""
    by_source: dict[str, list[str]] = {}
    for uid in arrived:
        by_source.setdefault(known.get(uid, f"unknown {uid}"), []).append(uid)
    lost = [uid for uid in log.acknowledged if uid not in by_source]
    extra = [uid for source, uids in by_source.items() for uid in uids[1:]]
    extra += [uid for source, uids in by_source.items() if source not in log.sent for uid in uids[:1]]
    return Balance(lost=tuple(sorted(lost)), extra=tuple(sorted(extra)))


def settle(
    node: Node, log: Log, arrived: Callable[[], Collection[str]] | None = None, within_s: float = 300
) -> Balance:
    """Wait until all that was acknowledged has arrived, then for whatever else comes; the balance."""
    seen = arrived or (lambda: outbox(node))
    with node.store() as store:

        def all_there() -> bool:
            return not balance(sources(store), seen(), log).lost

        with suppress(AssertionError):
            wait_until(all_there, within_s, "all is delivered", every_s=0.3)
        time.sleep(1.0)
        return balance(sources(store), seen(), log)


@dataclass
class Shift:
    """Scanners at work on a node until they are told to stop; then each finishes the series at hand.

    A slice that is not acknowledged is sent again, on a new association, as often as it takes. ``refusals`` counts
    answers other than 0000H, ``slowest_s`` is the longest that an acknowledged slice waited for its answer.
    """

    node: Node
    n: int = 3
    per_s: float = 5.0
    n_slices: int = 10
    log: Log = field(default_factory=Log)
    stop: threading.Event = field(default_factory=threading.Event)
    waits_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __enter__(self) -> Shift:
        self._threads = [threading.Thread(target=self._work, args=(k,), daemon=True) for k in range(self.n)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.finish()

    def finish(self, within_s: float = 240) -> None:
        """No new series; those at hand are sent to their end."""
        self.stop.set()
        for thread in self._threads:
            thread.join(within_s)
            assert not thread.is_alive(), "a scanner cannot finish its series"

    @property
    def n_acknowledged(self) -> int:
        return len(self.log.acknowledged)

    def _work(self, k: int) -> None:
        scanner = Scanner(self.log, f"CT{k + 1}", self.n_slices)
        while not self.stop.is_set() or scanner.left:
            if not scanner.left:
                scanner.begin()
            try:
                self._some(scanner, alone=scanner.number % 5 == 4)
            except (OSError, AssertionError, EOFError) as error:
                self.broken.append(f"{type(error).__name__}: {error}"[:200])
                time.sleep(0.3)

    def _some(self, scanner: Scanner, *, alone: bool) -> None:
        """An association: for the whole series, or for one slice of it, as some scanners do."""
        with Peer(self.node.port, timeout=120.0) as peer:
            peer.associate(CT, calling=scanner.title)
            for k in scanner.left[:1] if alone else list(scanner.left):
                uid = slice_uid(scanner.number, k)
                self.log.sent.add(uid)
                began = time.monotonic()
                answer = peer.store(uid, encoded(scanner.number, k, n=self.n_slices))
                if self.log.told(uid, answer.status):
                    self.waits_s.append(time.monotonic() - began)
                    scanner.left.remove(k)
                if not self.stop.is_set():
                    time.sleep(max(0.0, self.n / self.per_s - (time.monotonic() - began)))
            peer.release()


def open_files(process: psutil.Process) -> int:
    """How many file descriptors a process holds."""
    with suppress(OSError):
        return sum(1 for _ in Path(f"/proc/{process.pid}/fd").iterdir())
    return 0
