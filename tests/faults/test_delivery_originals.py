"""R48, and R1 for originals: a whole node that is the only way, its engines hung, its database slow, and killed."""

from __future__ import annotations

import signal
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from node.model import DeliveryState
from tests.faults.ledger import record
from tests.faults.scale import count
from tests.forwarding import encoded
from tests.peers import wait_until
from tests.pipeline.harness import Node, make_node
from tests.scripted import ScriptedScp
from tests.senders import CT, Peer

SLACK_S = 0.5
"""For a machine at work: a delivery that is gated waits for ever, or for the end of the series."""


@pytest.fixture
def arrivals() -> dict[str, float]:
    """SOP Instance UID -> when it first came to the PACS, on the monotonic clock."""
    return {}


@pytest.fixture
def pacs(scripted: Callable[..., ScriptedScp], arrivals: dict[str, float]) -> ScriptedScp:
    def answer(_n: int, uid: str) -> int:
        arrivals.setdefault(uid, time.monotonic())
        return 0

    return scripted(store=answer)


@pytest.fixture
def node(tmp_path: Path, pacs: ScriptedScp) -> Iterator[Node]:
    """A node that forwards originals and enhances them; a series that is quiet for long enough closes."""
    made = make_node(tmp_path, pacs_ae="SCRIPTED", pacs_port=pacs.port, quiet_after="1s")
    text = made.config.read_text().replace(
        "    kind: dimse\n", "    kind: dimse\n    forward_originals: true\n"
    )
    assert "forward_originals" in text
    made.config.write_text(text)
    made.start()
    yield made
    if made.process is not None:
        made.kill_tree()


def delays(node: Node, arrivals: dict[str, float], series: int, n: int) -> list[float]:
    """Send a series slice by slice; seconds from 0000H to the PACS, for each."""
    found = []
    with Peer(node.port, timeout=120.0) as peer:
        peer.associate(CT)
        for k in range(1, n + 1):
            uid, data = encoded(k, series)
            assert peer.store(uid, data, number=k).status == 0
            acknowledged = time.monotonic()
            wait_until(lambda uid=uid: uid in arrivals, 120, "it is forwarded", every_s=0.002)  # type: ignore[misc]
            found.append(max(0.0, arrivals[uid] - acknowledged))
            time.sleep(0.02)
        peer.release()
    return found


def _nobody_writes(path: Path) -> bool:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=1)) as raw:
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        raw.execute("ROLLBACK")
        return True


@contextmanager
def stopped(node: Node, *roles: str) -> Iterator[int]:
    """Roles of the node and all their children are frozen, as when an engine, or its GPU, hangs."""
    victims = [
        p
        for role in node.tree()[0].children()
        if any(name in role.cmdline() for name in roles)
        for p in (role, *role.children(recursive=True))
    ]
    # Who is frozen inside a transaction on SQLite shuts everybody out: another fault than an engine that hangs.
    for _ in range(100):
        for p in victims:
            p.send_signal(signal.SIGSTOP)
        if _nobody_writes(node.folder / "luminode.db"):
            break
        for p in victims:
            p.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    yield len(victims)
    for p in victims:
        try:
            p.send_signal(signal.SIGCONT)
        except psutil.NoSuchProcess:  # its guardian has given it up
            continue


@contextmanager
def slow_database(path: Path) -> Iterator[None]:
    """Somebody else writes: a third of the time nobody can."""
    over = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as raw:
            while not over.wait(0.06):
                raw.execute("BEGIN IMMEDIATE")
                over.wait(0.03)
                raw.execute("ROLLBACK")

    thread = threading.Thread(target=hold)
    thread.start()
    yield
    over.set()
    thread.join(60)


def test_originals_are_never_gated(node: Node, arrivals: dict[str, float]) -> None:
    """R48: by engines that hang, by gather that hangs, by a database that is slow."""
    n = count(12, 100)
    delays(node, arrivals, 1, 3)  # every process has seen the way once
    base = delays(node, arrivals, 2, n)
    with stopped(node, "enhance", "gather") as n_frozen:
        assert n_frozen >= 3, "the guardian, its worker, gather"
        hung = delays(node, arrivals, 3, n)
    with slow_database(node.folder / "luminode.db"):
        slow = delays(node, arrivals, 4, n)
    medians = [statistics.median(each) for each in (base, hung, slow)]
    ok = all(m <= 2 * medians[0] + SLACK_S for m in medians[1:])
    record(
        "R48",
        load=f"{n} slices each: all well; engine, its guardian and gather frozen; a foreign writer holds the"
        " database a third of the time",
        count=3 * n,
        result="median from 0000H to the PACS: {:.3f} s, {:.3f} s, {:.3f} s".format(*medians)
        + f"; at most {max(base):.2f}, {max(hung):.2f}, {max(slow):.2f} s",
        ok=ok,
    )
    assert ok, medians


def test_kill_9_of_the_whole_node_loses_no_original(
    node: Node, pacs: ScriptedScp, arrivals: dict[str, float]
) -> None:
    """R1, for originals: what was answered 0000H comes to the PACS, byte by byte, whenever all processes die."""
    kills, n = count(1, 10), 40
    acknowledged: dict[str, bytes] = {}
    sent: set[str] = set()
    for kill in range(kills):
        over = threading.Event()

        def scan(kill: int = kill, over: threading.Event = over) -> None:
            try:
                with Peer(node.port) as peer:
                    peer.associate(CT)
                    for k in range(1, n + 1):
                        if over.is_set():
                            return
                        uid, data = encoded(k, 100 + kill)
                        sent.add(uid)
                        if peer.store(uid, data, number=k).status == 0:
                            acknowledged[uid] = data
            except (OSError, AssertionError, EOFError):  # it died under us
                return

        thread = threading.Thread(target=scan)
        thread.start()
        enough = len(acknowledged) + 10 + 3 * kill
        wait_until(lambda enough=enough: len(acknowledged) >= enough, 60)  # type: ignore[misc]
        node.kill_tree()
        over.set()
        thread.join(60)
        node.start()
    wait_until(lambda: set(acknowledged) <= set(arrivals), 120, "all that was acknowledged is forwarded")
    with node.store() as store:

        def done() -> bool:
            found = [d for d in store.deliveries.list(limit=1000) if d.series_id is not None]
            return bool(found) and all(d.state is DeliveryState.SENT for d in found)

        wait_until(done, 120, "the deliveries of originals end", every_s=0.2)
    there = {s.sop_instance_uid: s.data for s in pacs.stored}
    lost = [uid for uid, data in acknowledged.items() if there.get(uid) != data]
    ours = [s.sop_instance_uid for s in pacs.stored if s.sop_instance_uid in sent]
    known = {uid for uid in there if uid.startswith("2.25.")} | sent  # derived, or begun by the scanner
    extra = set(there) - known
    record(
        "R1",
        load=f"forward_originals: kill -9 of all processes of a node {kills} times while slices come in",
        count=kills,
        lost=len(lost),
        extra=len(extra),
        result=f"{len(acknowledged)} acknowledged, {len(acknowledged) - len(lost)} at the PACS byte by byte; "
        f"{len(ours) - len(set(ours))} sent twice",
        ok=not lost and not extra,
    )
    assert lost == []
    assert extra == set()
