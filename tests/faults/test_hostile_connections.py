"""R14, R15, R16: claimed lengths, dripping and idling. Whoever does it is cut off; a scanner beside it sees nothing."""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from tests.faults.hostile import BUSY_S, MB, REQUEST, SCANNER, Crowd, Echo, Node, good
from tests.faults.ledger import record
from tests.faults.scale import FULL, count, in_time
from tests.peers import wait_until
from tests.senders import CT, EXPLICIT, RELEASE, associate_rq, data_set, message, p_data, pdv, store_rq

MAX_PDU = 131072


def test_no_pdu_allocates_beyond_its_cap(tmp_path: Path) -> None:
    """R14: before and after negotiation; what claims too much is cut at once, though it sends nothing more."""
    early = [0, 1, MB + 1, 2**31, 2**32 - 1]
    late = [0, 1, 5, MAX_PDU + 1024 + 1, 2**31, 2**32 - 1]
    n = count(8, 20)  # of each length: 100 sockets and more
    with Node(tmp_path) as node:
        good(node, "1.2.9.0")
        before = node.forget_peak()
        with contextlib.ExitStack() as stack:
            claims = []
            for number, (kind, length) in enumerate([(1, e) for e in early] + [(4, e) for e in late]):
                for _ in range(n):
                    peer = stack.enter_context(node.peer(source=f"127.0.0.{10 + number}"))
                    if kind == 4:
                        peer.associate(CT)
                    claims.append((peer, bytes((kind, 0)) + length.to_bytes(4, "big")))
            began = time.monotonic()
            for peer, claim in claims:
                peer.send(claim)
            told = [peer.read()[0] for peer, _ in claims]
            worst = time.monotonic() - began
        node.quiet()
        with contextlib.ExitStack() as stack:  # the largest that are allowed, all at once, none ever ends
            peers = [stack.enter_context(node.peer(source=f"127.0.0.{10 + k % 8}")) for k in range(2 * n)]
            for peer in peers:
                peer.send(b"\1\0" + MB.to_bytes(4, "big") + bytes(300_000))
            grown = node.peak() - before
            took = good(node, "1.2.9.1")
        growth = node.peak() - before
        record(
            "R14",
            load=f"PDU lengths {early} before and {late} after negotiation, {n} sockets each; "
            f"{2 * n} requests of the largest size that never end",
            count=n * (len(early) + len(late)) + 2 * n,
            result=f"all aborted after {worst:.2f} s, +{growth / MB:.0f} MB, a scanner accepted in {took:.2f} s",
            ok=worst <= 5 and growth <= 64 * MB,
        )
        assert set(told) <= {0, 7}
        assert grown <= 64 * MB
        assert growth <= 64 * MB
        assert worst <= BUSY_S
        assert took <= BUSY_S


def test_pdus_at_the_cap_are_served(tmp_path: Path) -> None:
    """R14, the other side: what we said that we take, and the slack of those who count otherwise, is taken."""
    with Node(tmp_path) as node, node.peer() as peer:
        peer.associate(CT)
        statuses = []
        for number, length in enumerate((MAX_PDU - 1, MAX_PDU, MAX_PDU + 1024)):
            uid = f"1.2.3.{number}"
            data = data_set(uid, pixels=bytes(400_000))
            peer.send(message(1, store_rq(uid), data, length - 6))
            statuses.append(peer.answer().status)
        assert statuses == [0, 0, 0]
        assert peer.largest_pdu == MAX_PDU
        assert len(node.stored()) == 3


AGAIN_S = 0.4
"""After which a dripper that was cut off comes again."""


class Drippers:
    """Connections that give a byte of their request now and then, and come again when they are cut off."""

    def __init__(self, node: Node, n: int, every_s: float, *, again: bool) -> None:
        self._node, self._every_s, self._again = node, every_s, again
        self._stop = threading.Event()
        self._selector = selectors.DefaultSelector()
        self.cut = 0
        self.alive = 0
        self._waiting: deque[tuple[float, str]] = deque()
        for number in range(n):
            self._open(f"127.0.1.{1 + number % 16}")
        self._thread = threading.Thread(target=self._run)

    def _open(self, source: str) -> None:
        sock = socket.create_connection(
            ("127.0.0.1", self._node.port), timeout=20, source_address=(source, 0)
        )
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, [source, 0])
        self.alive += 1

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.1):
                sock, (source, _) = key.fileobj, key.data
                assert isinstance(sock, socket.socket)
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    if sock.recv(4096):
                        continue
                self._selector.unregister(sock)
                sock.close()
                self.cut += 1
                self.alive -= 1
                if self._again:
                    self._waiting.append((time.monotonic() + AGAIN_S, source))
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                self._open(self._waiting.popleft()[1])
            if time.monotonic() >= due:
                due += self._every_s
                for key in list(self._selector.get_map().values()):
                    key.data[1] += 1
                    with contextlib.suppress(OSError):
                        key.fileobj.send(REQUEST[key.data[1] - 1 : key.data[1]])  # type: ignore[union-attr]

    def __enter__(self) -> Drippers:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(30)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]


def test_slow_loris_occupies_nothing(tmp_path: Path) -> None:
    """R15: 200 drippers; the scanner beside them is accepted at once and stores all it has."""
    n = count(40, 100)
    quick = {} if FULL else {"timeouts": {"acse": "4s", "pdu": "3s"}}
    within_s = count(12, 45)
    with Node(tmp_path, node=quick) as node:
        began = time.monotonic()
        with Drippers(node, 200, count(1, 15), again=False) as crowd:
            with node.peer(source=SCANNER) as peer:
                asked = time.monotonic()
                peer.associate(CT)
                took = time.monotonic() - asked
                statuses = [peer.store(f"1.2.3.{k}", data_set(f"1.2.3.{k}")).status for k in range(n)]
                assert peer.release() == 6
            wait_until(lambda: crowd.alive == 0, within_s + 30, "the drippers are gone", every_s=0.1)
            gone = time.monotonic() - began
        node.quiet()
        record(
            "R15",
            load=f"200 peers that drip 1 byte per {count(1, 15)} s, 1 scanner x {n} instances",
            count=200,
            result=f"scanner accepted in {took:.2f} s, {statuses.count(0)}/{n} stored; drippers gone in {gone:.0f} s",
            ok=statuses == [0] * n and gone <= within_s and in_time(took, 1.0),
            lost=n - len(node.stored()),
        )
        assert took <= BUSY_S
        assert statuses == [0] * n
        assert len(node.stored()) == n
        assert gone <= within_s + BUSY_S


def test_drippers_that_come_again_from_everywhere_do_not_take_the_last_seat(tmp_path: Path) -> None:
    """R15: more of them than there are seats, from many addresses, for as long as it takes."""
    n = count(10, 40)
    with Node(tmp_path, node={"max_associations": 32, "max_associations_per_address": 16}) as node:
        waits: list[float] = []
        with Drippers(node, 250, 0.5, again=True) as crowd:
            time.sleep(2.0)
            for k in range(n):
                waits.append(good(node, f"1.2.3.{k}"))
                time.sleep(0.1)
            threads = node.threads()
        record(
            "R15",
            load=f"250 drippers from 16 addresses on 128 seats, each back as soon as it is cut ({crowd.cut} cuts); "
            f"1 scanner x {n} associations",
            count=250,
            result=f"{n}/{n} stored, accepted in {max(waits):.2f} s at most; {threads} threads",
            ok=max(waits) <= 5 and in_time(max(waits), 1.0),
            lost=n - len(node.stored()),
        )
        assert len(node.stored()) == n
        assert max(waits) <= BUSY_S
        assert threads <= 128 + 60


def test_bytes_that_drip_inside_an_association_end_it(tmp_path: Path) -> None:
    """R15: a whole PDU has its time, and a message of whole but tiny PDUs has its own."""
    with Node(tmp_path, node={"timeouts": {"pdu": "2s", "dimse": "4s"}}) as node:
        with node.peer() as dripping, node.peer() as tiny:
            dripping.associate(CT)
            tiny.associate(CT)
            data = data_set("1.2.3.1", pixels=bytes(4000))
            tiny.send(p_data(pdv(1, 3, store_rq("1.2.3.1"))))
            began = time.monotonic()
            ended: dict[str, tuple[int, float]] = {}
            for at in range(60):
                for name, peer, piece in (
                    ("a PDU byte by byte", dripping, RELEASE[at // 2 : at // 2 + 1] if at % 2 else b""),
                    ("whole PDUs of a byte each", tiny, p_data(pdv(1, 0, data[at : at + 1]))),
                ):
                    if name in ended:
                        continue
                    with contextlib.suppress(OSError):
                        peer.send(piece)
                    if select.select([peer.sock], [], [], 0)[0]:
                        ended[name] = (peer.read()[0], time.monotonic() - began)
                if len(ended) == 2:
                    break
                time.sleep(0.25)
        node.quiet()
        record(
            "R15",
            load="a peer that drips a PDU (2 s allowed), one that sends whole PDUs of 1 byte (4 s allowed)",
            count=2,
            result=", ".join(f"{name}: cut after {s:.1f} s" for name, (_, s) in ended.items()),
            ok=len(ended) == 2,
        )
        assert {name: kind for name, (kind, _) in ended.items()} == {
            "a PDU byte by byte": 7,
            "whole PDUs of a byte each": 7,
        }
        assert node.tmp() == []
        assert node.stored() == {}


@pytest.mark.parametrize("where", ["another address", "the same address"])
def test_an_idle_flood_stops_nobody(tmp_path: Path, where: str) -> None:
    """R16: 1,000 idle connections from one address; only what is established counts, and idle ones make room."""
    n = count(15, 100)
    source = SCANNER if where == "another address" else "127.0.0.1"
    with Node(tmp_path) as node, Crowd(node, ["127.0.0.1"] * 1000) as crowd:
        time.sleep(1.2)
        threads, alive = node.threads(), crowd.alive()
        used, began = node.cpu_s(), time.monotonic()
        time.sleep(count(1, 5))
        load = (node.cpu_s() - used) / (time.monotonic() - began)
        waits = [good(node, f"1.2.3.{k}", source=source) for k in range(n)]
        record(
            "R16",
            load=f"1,000 idle connections from one address, a scanner from {where} x {n} associations",
            count=1000,
            result=f"0 rejects, accepted in {max(waits):.2f} s at most; {alive} idle ones kept, {threads} threads, "
            f"{100 * load:.0f} % of a core",
            ok=load <= 0.5 and threads <= 110 and in_time(max(waits), 1.0),
            lost=n - len(node.stored()),
        )
        assert len(node.stored()) == n
        assert alive <= 64 + 16
        assert threads <= 110
        assert load <= 0.5
        assert max(waits) <= BUSY_S


def test_a_title_takes_no_more_than_its_seats(tmp_path: Path) -> None:
    """R16: quotas of AE titles. One that comes from everywhere leaves the others theirs, and keeps what it has."""
    n, seats = count(60, 400), 8
    peers = [{"ae_title": "MANY", "max_associations": seats}, "CT1"]
    with Node(tmp_path, node={"accept_from": peers, "max_associations": 32}) as node:
        with contextlib.ExitStack() as stack:
            told: list[tuple[int, ...]] = []
            holders = []
            for k in range(n):
                peer = stack.enter_context(node.peer(source=f"127.0.1.{1 + k % 16}"))
                kind, body = peer.ask(associate_rq([(1, CT, [EXPLICIT])], calling="MANY"))
                told.append((kind, *body[1:4]) if kind == 3 else (kind,))
                if kind == 2:
                    holders.append(peer)
                else:
                    peer.close()
            waits = []
            for k in range(20):
                began = time.monotonic()
                with node.peer(source=SCANNER) as scanner:
                    scanner.associate(CT, calling="CT1")
                    waits.append(time.monotonic() - began)
                    assert scanner.store(f"1.2.3.{k}", data_set(f"1.2.3.{k}")).status == 0
                    assert scanner.release() == 6
            kept = sum(
                peer.store(f"1.2.4.{k}", data_set(f"1.2.4.{k}")).status == 0 for k, peer in enumerate(holders)
            )
        node.quiet()
        with node.peer() as again:
            again.associate(CT, calling="MANY")
        rejected = told.count((3, 2, 3, 2))
        record(
            "R16",
            load=f"{n} associations by one AE title from 16 addresses, which has {seats} seats; another title x 20",
            count=n,
            result=f"{len(holders)} accepted, {rejected} rejected as transient; the other title 20/20 stored, accepted "
            f"in {max(waits):.2f} s at most; {kept} of {seats} stored by those that had a seat",
            ok=(len(holders), rejected, kept) == (seats, n - seats, seats) and in_time(max(waits), 1.0),
            lost=20 + seats - len(node.stored()),
        )
        assert (len(holders), rejected, kept) == (seats, n - seats, seats)
        assert len(node.stored()) == 20 + seats
        assert max(waits) <= BUSY_S


def test_monitors_that_only_knock_are_no_load(tmp_path: Path) -> None:
    """R16: a load balancer's probe opens and closes; pynetdicom leaked a thread for each."""
    n = count(300, 3000)
    with Node(tmp_path) as node:
        good(node, "1.2.3.0")
        before = (node.threads(), node.files())
        with Echo(node) as echo:
            for _ in range(n):
                socket.create_connection(("127.0.0.1", node.port), timeout=20).close()
        node.quiet()
        wait_until(lambda: node.threads() <= before[0] + 1, 20.0, "threads are gone")
        after = (node.threads(), node.files())
        record(
            "R16",
            load=f"{n} connections that close at once, an echo beside them",
            count=n,
            result=f"{before} threads and files before, {after} after; worst echo {echo.worst:.2f} s",
            ok=after[1] <= before[1] + 2 and in_time(echo.worst, 1.0),
        )
        assert echo.failed == []
        assert after[1] <= before[1] + 2


def test_the_largest_request_is_read(tmp_path: Path) -> None:
    """R14: a request just under the cap is a request."""
    padding = b"".join(b"\x7f\0\xff\xf0" + bytes(0xFFF0) for _ in range(15))
    with Node(tmp_path) as node, node.peer() as peer:
        assert peer.ask(associate_rq([(1, CT, [EXPLICIT])], extra=padding))[0] == 2
