"""R1, R11, R16: several receivers on one port keep what one keeps, and its limits, and one may die or go."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.hostile import BUSY_S, LONGEST_S, good
from tests.faults.ledger import record
from tests.faults.scale import FULL, count
from tests.faults.several import STARTED_S, Several
from tests.peers import wait_until
from tests.receiving import at_once
from tests.senders import CT, EXPLICIT, VERIFICATION, Peer, associate_rq, data_set, message, sha256, store_rq

LIMITS = {
    "max_associations": 9,
    "max_associations_per_address": 4,
    "accept_from": [{"ae_title": "CT1"}, {"ae_title": "FEW", "max_associations": 2}],
}
MOST_CONNECTIONS = 2 * 9 + 64

BUSY = b"\0\2\3\2"
SIZE = 60_000

OPEN = "select 1 from association where ended_at is null"
MISCOUNTED = "select 1 from series where count != (select count(*) from instance where series_id = series.id)"


def asked(node: Several, source: str, title: str = "CT1") -> tuple[Peer, bool]:
    """A peer that asked for an association, and whether it has one; if not, it was told that we are busy."""
    peer = node.peer(source=source)
    kind, body = peer.ask(associate_rq([(1, CT, [EXPLICIT]), (3, VERIFICATION, [EXPLICIT])], calling=title))
    assert kind == 2 or (kind, body) == (3, BUSY)
    return peer, kind == 2


def fill(node: Several, stack: contextlib.ExitStack, wanted: dict[tuple[str, str], int]) -> list[Peer]:
    """Those that got an association, where each (address, title) asks for more than twice as many, all at once."""
    got: list[Peer] = []
    asks = [who for who, n in wanted.items() for _ in range(2 * n + 2)]

    def ask(number: int) -> None:
        peer, accepted = asked(node, *asks[number])
        if accepted:
            got.append(stack.enter_context(peer))
        else:
            peer.close()

    at_once(ask, len(asks), LONGEST_S)
    return got


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    """Two receivers for all tests here: their start takes longest."""
    with Several(tmp_path_factory.mktemp("several"), 2, node=LIMITS) as node:
        yield node


@pytest.fixture
def node(started: Several) -> Iterator[Several]:
    """Both of them accept, and nobody is connected."""
    if started.process.poll() is not None:
        started.start()
    wait_until(started.complete, STARTED_S, "all receivers accept")
    yield started
    if started.process.poll() is None:
        started.quiet()


def test_limits_hold_for_all_of_them_together(node: Several, tmp_path: Path) -> None:
    """R16: by address, by AE title and in all; those of a receiver that was killed are free again."""
    limits(node, count(1, 30))
    if FULL:
        with Several(tmp_path, 3, node=LIMITS) as three:
            limits(three, 30)


def limits(node: Several, rounds: int) -> None:
    over, shares = 0, []
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            few = fill(node, stack, {("127.0.0.4", "FEW"): 2})
            one = fill(node, stack, {("127.0.0.5", "CT1"): 4})
            rest = fill(node, stack, {(f"127.0.0.{6 + k}", "CT1"): 2 for k in range(3)})
            over += [len(few), len(one), len(rest)] != [2, 4, 3]
            holders = [node.holder(peer.sock.getsockname()) for peer in (*few, *one, *rest)]
            n_held = [holders.count(1 + k) for k in range(node.n)]
            shares.append(max(n_held) - min(n_held))
            dies = 1 + number % node.n
            victim = psutil.Process(node.pids()[dies])
            victim.kill()
            victim.wait(20)
            again = fill(node, stack, {(f"127.0.1.{1 + k}", "CT1"): 3 for k in range(4)})
            over += len(again) != n_held[dies - 1]
        wait_until(node.complete, STARTED_S, "the dead one is there again")
        node.quiet()
    record(
        "R16",
        load=f"{node.n} receivers on one port: by AE title, by address and in all, twice as many asked at once; one "
        "killed (SIGKILL), and asked again",
        count=rounds,
        result=f"{over} times not to the association; at most {max(shares)} more at one receiver than at another",
        ok=not over,
    )
    assert not over


def test_an_idle_flood_stops_nobody(node: Several) -> None:
    """R16: connections that are no associations make room, whichever receiver has them and whichever is asked."""
    n = count(6, 100)
    with contextlib.ExitStack() as stack:
        for k in range(MOST_CONNECTIONS + 20):
            sock = socket.create_connection(
                ("127.0.0.1", node.port), source_address=(f"127.0.3.{1 + k % 8}", 0)
            )
            stack.callback(sock.close)
        wait_until(lambda: sum(node.held().values()) >= MOST_CONNECTIONS - 2, 20.0, "they are accepted")
        held = node.held()
        slowest = max(good(node, f"1.2.7.{k}") for k in range(n))
        most = sum(node.held().values())
    record(
        "R16",
        load=f"2 receivers on one port, idle connections from 8 addresses, {sorted(held.values())} of them held; a "
        "scanner from another address",
        count=n,
        result=f"0 rejected, accepted after {slowest:.2f} s at most",
        ok=slowest <= 1,
    )
    assert most <= MOST_CONNECTIONS + 4
    assert min(held.values()) > 0
    assert slowest <= BUSY_S
    assert len([uid for uid in node.stored() if uid.startswith("1.2.7.")]) == n


def stopped(pid: int) -> bool:
    """Whether all threads of a process are stopped."""
    told = (
        path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")
    )
    return all(state == "T" for state in told)


@pytest.mark.parametrize("which", [1, 2])
def test_one_that_hangs_keeps_nobody_waiting(node: Several, which: int) -> None:
    """R16: connections wait in one queue, and whoever is alive takes the next."""
    n = count(5, 100)
    hangs = node.pids()[which]
    # Whoever is stopped inside a transaction keeps SQLite locked, as no crash does: nobody is to be in one.
    wait_until(lambda: not node.rows(OPEN), 20.0, "the ends of the associations before are recorded")
    time.sleep(0.3)
    os.kill(hangs, signal.SIGSTOP)
    try:
        # A thread that was at work on another core may take the next connection before it stops.
        wait_until(lambda: stopped(hangs), 20.0, "every thread of it has stopped")
        slowest = max(good(node, f"1.2.10.{which}{k}") for k in range(n))
    finally:
        os.kill(hangs, signal.SIGCONT)
    record(
        "R16",
        load="one of 2 receivers on one port stopped (SIGSTOP), scanners that come one after another",
        count=n,
        result=f"all served by the other, accepted after {slowest:.2f} s at most",
        ok=slowest <= 1,
    )
    assert slowest <= BUSY_S


class Scanners:
    """Four that send until they are told to stop, and come again when their association breaks."""

    def __init__(self, node: Several) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.sent: dict[str, str] = {}
        self.told: list[str] = []
        self.refused: list[str] = []
        self.n_broken = 0
        self._threads = [threading.Thread(target=self._live, args=(number,)) for number in range(4)]

    def __enter__(self) -> Scanners:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LONGEST_S)
            assert not thread.is_alive()

    def more(self, n: int) -> None:
        """Wait until so many more are acknowledged."""
        ready = len(self.told) + n
        wait_until(lambda: len(self.told) >= ready, 90.0, f"{n} more are acknowledged")

    def _live(self, number: int) -> None:
        numbers = itertools.count()
        while not self._stop.is_set():
            try:
                with self._node.peer(source=f"127.0.2.{number + 1}") as peer:
                    peer.associate(CT, calling="CT1")
                    while not self._stop.is_set():
                        self._store(peer, number, next(numbers))
                    assert peer.release() == 6
            except (OSError, AssertionError):
                with self._lock:
                    self.n_broken += 1
                time.sleep(0.05)

    def _store(self, peer: Peer, series: int, number: int) -> None:
        """Not sent again where no answer comes: it may be there then, or not."""
        uid = f"1.2.9{series}.{number}"
        data = data_set(uid, series=f"1.2.9{series}", pixels=os.urandom(SIZE))
        with self._lock:
            self.sent[uid] = sha256(data)
        status = peer.store(uid, data).status
        with self._lock:
            (self.refused if status else self.told).append(uid)


def test_a_receiver_that_is_killed_takes_nothing_along(node: Several) -> None:
    """R1: whatever was acknowledged stays, nothing else comes; the others serve on, and it is started again.

    At last all are killed: the port is closed as long as nobody is there, and opens again by itself.
    """
    kills = count(1, 60)
    waits = []
    with Scanners(node) as scanners:
        told = scanners.told
        for number in range(kills):
            wait_until(node.complete, STARTED_S, "both are there")
            scanners.more(30)
            pids = node.pids()
            os.kill(pids[1 + number % 2], signal.SIGKILL)
            began = time.monotonic()
            scanners.more(10)
            waits.append(time.monotonic() - began)
            assert node.pids()[2 - number % 2] == pids[2 - number % 2]
        for pid in node.pids().values():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: refuses(node.port), 20.0, "the port is closed", every_s=0.01)
        wait_until(node.complete, STARTED_S, "both are there again")
        scanners.more(10)
    node.quiet()
    wait_until(lambda: not node.tmp(), 10.0, "all names are settled")
    wait_until(lambda: not node.rows(OPEN), 20.0, "every association has an end")
    stored = {uid: digest for uid, digest in node.stored().items() if uid.startswith("1.2.9")}
    lost = [uid for uid in told if stored.get(uid) != scanners.sent[uid]]
    extra = [uid for uid in stored if stored[uid] != scanners.sent.get(uid)]
    doubles = len(node.rows("select 1 from instance")) - len(node.stored())
    record(
        "R1",
        load="SIGKILL of one of 2 receivers on one port, at last of both, 4 scanners under way",
        count=kills + 1,
        result=f"{len(lost)} of {len(told)} lost, {len(extra) + doubles} extra; the other had acknowledged 10 more "
        f"after {max(waits):.2f} s; {scanners.n_broken} associations broke, {len(scanners.refused)} refused",
        ok=not lost and not extra and not doubles and not scanners.refused,
        lost=len(lost),
        extra=len(extra) + doubles,
    )
    assert not lost
    assert not extra
    assert not doubles
    assert not scanners.refused
    assert scanners.n_broken > 0
    assert "landing.left" not in node.log()
    assert not node.rows(MISCOUNTED)


def test_the_same_instance_at_two_receivers(node: Several) -> None:
    """R1: one row, whoever is first; the other is answered as one that comes again is."""
    n = count(15, 500)
    told: list[list[int]] = []
    with node.peer(timeout=60.0) as one, node.peer(timeout=60.0) as other:
        for peer in (one, other):
            peer.associate(CT)
        assert {node.holder(peer.sock.getsockname()) for peer in (one, other)} == {1, 2}
        for k in range(n):
            for kind, second in ((5, b"\0"), (6, b"\1")):
                uid = f"1.2.{kind}.{k}"
                one.send(message(1, store_rq(uid), data_set(uid, pixels=bytes(3000))))
                other.send(message(1, store_rq(uid), data_set(uid, pixels=second * 3000)))
                told.append(sorted((one.answer().status, other.answer().status)))
        assert (one.release(), other.release()) == (6, 6)
    known = "sop_instance_uid like '1.2.5.%' or sop_instance_uid like '1.2.6.%'"
    uids = node.rows(f"select sop_instance_uid from instance where current and ({known})")
    aside = node.rows(f"select 1 from conflict where {known}")
    n_second = sum(told[k] == [0, 0] for k in range(0, 2 * n, 2)) + sum(
        told[k] == [0, 0xA900] for k in range(1, 2 * n, 2)
    )
    record(
        "R1",
        load="the same SOP Instance UID at two receivers at the same moment, with the same bytes and with others",
        count=2 * n,
        result=f"{len(uids)} rows for {2 * n} UIDs, {len(aside)} kept aside, {n_second} of the second answered as "
        "what comes again: 0000H, or A900H where it differs",
        ok=len(uids) == 2 * n == len(set(uids)) and len(aside) == n and n_second == 2 * n,
        extra=len(uids) - len(set(uids)),
    )
    assert len(uids) == len(set(uids)) == 2 * n
    assert len(aside) == n
    assert n_second == 2 * n
    assert node.stored()


def test_a_new_configuration_and_the_end_reach_all_of_them(node: Several) -> None:
    """R11, R49: SIGHUP and SIGTERM of the supervisor; what is under way is finished, and nobody comes in after."""
    before = node.config.read_text()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(node.peer(source=f"127.0.0.{20 + k}")) for k in range(4)]
        for peer in peers:
            peer.associate(CT)
        assert sorted(node.held().values()) == [2, 2]
        node.config.write_text(before.replace('"FEW"', '"NEW"'))
        os.kill(node.process.pid, signal.SIGHUP)
        wait_until(lambda: all(rejects(node) for _ in range(6)), 20.0, "none of them knows the old title")
        whole = [
            message(1, store_rq(f"1.2.8.{k}"), data_set(f"1.2.8.{k}", pixels=bytes(50_000))) for k in range(4)
        ]
        for peer, one in zip(peers, whole, strict=True):
            peer.send(one[:-20_000])
        time.sleep(0.3)
        node.process.terminate()
        wait_until(lambda: refuses(node.port), 10.0, "nobody comes in")
        for peer, one in zip(peers, whole, strict=True):
            peer.send(one[-20_000:])
        statuses = [peer.answer().status for peer in peers]
        assert node.process.wait(20) == 0
    node.config.write_text(before)
    n_stored = len([uid for uid in node.stored() if uid.startswith("1.2.8.")])
    record(
        "R11",
        load="SIGTERM of a supervisor with 2 receivers, a C-STORE under way on each of 4 associations",
        count=4,
        result=f"{statuses.count(0)} finished and answered, {n_stored} stored, exit status 0",
        ok=statuses == [0] * 4 and n_stored == 4,
        lost=4 - n_stored,
    )
    assert statuses == [0] * 4
    assert n_stored == 4
    assert not node.rows(OPEN)


def test_a_supervisor_that_is_killed_leaves_nobody_waiting(node: Several) -> None:
    """R1: what is under way is finished while newcomers are refused, not kept at a door that nobody opens."""
    receivers = [psutil.Process(pid) for pid in node.pids().values()]
    whole = message(1, store_rq("1.2.8.9"), data_set("1.2.8.9", pixels=bytes(50_000)))
    with node.peer() as peer:
        peer.associate(CT)
        peer.send(whole[:-20_000])
        time.sleep(0.3)
        node.process.kill()
        node.process.wait(20)
        wait_until(lambda: refuses(node.port), 8.0, "nobody comes in")
        peer.send(whole[-20_000:])
        assert peer.answer().status == 0
    psutil.wait_procs(receivers, 30)
    assert "1.2.8.9" in node.stored()


def rejects(node: Several) -> bool:
    """Whether a newcomer is told that its AE title is not known."""
    with node.peer() as peer:
        return peer.ask(associate_rq([(1, CT, [EXPLICIT])], calling="FEW")) == (3, b"\0\1\1\3")


def refuses(port: int) -> bool:
    """Whether nobody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return True
    return False
