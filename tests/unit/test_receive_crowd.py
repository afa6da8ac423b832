"""Receivers that count together: two of them in one process, each with a descriptor and locks of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from node.app.doors import Doors, how_many
from node.config.network import HostPort
from node.config.schema import Config, NodeSettings
from node.errors import ReceiveError
from node.receive import crowd
from node.receive.crowd import Crowd, Elsewhere, possible
from node.receive.guard import COURTESY, PATIENCE_S, Gate


@dataclass(eq=False)
class Visitor:
    address: str
    n_cut: int = 0

    def cut(self) -> None:
        self.n_cut += 1


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def table() -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    yield fd
    os.close(fd)


@dataclass
class Pair:
    crowds: list[Crowd]
    gates: list[Gate]
    clock: Clock

    def enter(self, at: int, address: str) -> Visitor:
        visitor = Visitor(address)
        self.gates[at].enter(visitor)
        self.clock.now += 0.01
        return visitor


@pytest.fixture
def pair(table: int) -> Iterator[Pair]:
    crowds = [Crowd(table, 1), Crowd(table, 2)]
    clock = Clock()
    yield Pair(crowds, [Gate(clock, each) for each in crowds], clock)
    for each in crowds:
        each.close()


def test_a_number_is_given_once(table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "_MOMENT_S", 0.05)
    one = Crowd(table, 3)
    with pytest.raises(ReceiveError, match="receiver 3 is there already"):
        Crowd(table, 3)
    one.close()
    Crowd(table, 3).close()
    assert possible()


def test_connections_count_wherever_they_are(pair: Pair) -> None:
    one, two = pair.gates
    most = COURTESY + 1
    visitors = [pair.enter(k % 2, "10.0.0.1") for k in range(most)]
    for gate in pair.gates:
        assert not gate.may_enter("10.0.0.1", per_address=1, in_all=100)
        assert gate.may_enter("10.0.0.2", per_address=1, in_all=most + 1)
        assert not gate.may_enter("10.0.0.2", per_address=1, in_all=most)
    assert (one.n_connections, one.n_elsewhere) == (two.n_elsewhere, two.n_connections) == (9, 8)
    one.leave(visitors[0])
    one.leave(visitors[0])
    assert two.may_enter("10.0.0.1", per_address=1, in_all=100)
    assert two.n_elsewhere == 8


def test_associations_count_wherever_they_are(pair: Pair) -> None:
    def establish(at: int, address: str, title: str) -> str:
        return pair.gates[at].establish(
            pair.enter(at, address), title, per_title=2, per_address=3, in_all=5
        )  # fmt: skip

    assert [establish(k % 2, f"10.0.0.{k}", "CT1") for k in range(3)] == ["", "", "title"]
    assert [establish(k % 2, "10.0.0.9", f"A{k}") for k in range(4)] == ["", "", "", "address"]
    assert [establish(k, "10.0.0.8", "") for k in range(2)] == ["all", "all"]
    assert [gate.n_established for gate in pair.gates] == [3, 2]


def test_whoever_idles_elsewhere_makes_room(pair: Pair) -> None:
    one, two = pair.gates
    first, second = pair.enter(0, "10.0.0.1"), pair.enter(1, "10.0.0.1")
    served = pair.enter(0, "10.0.0.1")
    assert one.establish(served, "CT1", per_title=None, per_address=9, in_all=9) == ""
    idler = two.idler("10.0.0.7", per_address=9)
    assert isinstance(idler, Elsewhere)
    assert idler.address == "10.0.0.1"
    assert not one.called_out()
    two.leave(idler)
    two.leave(idler)
    assert two.n_elsewhere == 1
    assert one.called_out() == [first]
    assert not one.called_out()
    assert one.n_connections == 1
    one.leave(first)
    # It had asked for an association meanwhile: it gets none that counts, as it is being cut.
    assert one.establish(first, "CT1", per_title=None, per_address=9, in_all=9) == ""
    assert one.n_established == 1
    assert one.idler("10.0.0.7", per_address=9) is None
    pair.clock.now += PATIENCE_S
    late = one.idler("10.0.0.7", per_address=9)
    assert isinstance(late, Elsewhere)
    assert late.since == pytest.approx(100.01)
    assert two.idler("10.0.0.7", per_address=9) is second


def test_one_that_was_established_since_is_not_called_out(pair: Pair) -> None:
    one, two = pair.gates
    visitor = pair.enter(0, "10.0.0.1")
    pair.enter(0, "10.0.0.1")
    idler = two.idler("10.0.0.7", per_address=9)
    assert isinstance(idler, Elsewhere)
    assert one.establish(visitor, "CT1", per_title=None, per_address=9, in_all=9) == ""
    two.leave(idler)
    assert not one.called_out()
    assert two.n_elsewhere == 2


def test_the_dead_do_not_count(table: int) -> None:
    clock = Clock()
    dead, lives = Crowd(table, 1), Crowd(table, 2)
    Gate(clock, dead).enter(Visitor("10.0.0.1"))
    dead.opened(True)
    gate = Gate(clock, lives)
    gate.enter(Visitor("10.0.0.1"))
    gate.enter(Visitor("10.0.0.1"))
    assert gate.n_elsewhere == 1
    assert (lives.busiest, gate.may_enter("10.0.0.2", per_address=9, in_all=3)) == (True, False)
    dead.close()  # as its end does, and nothing is struck out by it
    assert gate.may_enter("10.0.0.2", per_address=9, in_all=3)
    assert (lives.busiest, gate.n_elsewhere) == (False, 0)
    lives.close()


def test_nobody_waits_long_for_one_that_hangs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "_MOMENT_S", 0.05)
    with pair.crowds[0].turn(), pair.crowds[0].writing():
        pair.enter(1, "10.0.0.1")  # waits, and goes on
        began = time.monotonic()
        for _ in range(20):
            assert pair.gates[1].may_enter("10.0.0.2", per_address=9, in_all=9)  # waits no more
        assert time.monotonic() - began < 20 * 0.05
        with pair.crowds[1].writing():
            assert pair.gates[1].n_connections == 1
    assert pair.gates[0].n_elsewhere == 1


def test_places_are_used_again(pair: Pair) -> None:
    for _ in range(3):
        visitors = [pair.enter(0, f"10.0.0.{k}") for k in range(50)]
        for each in visitors:
            pair.gates[0].leave(each)
    assert pair.crowds[0]._head(0)[:2] == (50, 0)
    assert pair.gates[1].n_elsewhere == 0


@pytest.mark.parametrize(
    ("wanted", "cores", "n"),
    [("auto", 1, 1), ("auto", 4, 1), ("auto", 7, 1), ("auto", 8, 2), ("auto", 64, 4), (1, 64, 1), (3, 2, 3)],
)
def test_how_many_there_are(wanted: int, cores: int, n: int) -> None:
    node = NodeSettings(accept_from="any", listen=HostPort(host="127.0.0.1", port=0), receivers=wanted)
    assert how_many(Config(node=node), cores) == n


def test_one_alone_needs_nothing_and_a_port_that_is_taken_is_told() -> None:
    assert Doors("127.0.0.1", 0, 1).post(1) == ({}, ())
    doors = Doors("127.0.0.1", 0, 2)
    told, given = doors.post(2)
    assert [each.split()[:2] for each in told.values()] == [["2", "2"]]
    assert doors.post(1)[1] == given
    doors.close()
    assert len(doors.post(1)[1]) == 2
    doors.close()
    with pytest.raises(ReceiveError, match=r"cannot listen on 192\.0\.2\.1:1"):
        Doors("192.0.2.1", 1, 2).post(1)


def test_who_has_released_has_no_seat_anywhere_and_makes_room(pair: Pair) -> None:
    one, two = pair.gates
    limits = {"per_title": 1, "per_address": 9, "in_all": 9}
    first, second = pair.enter(0, "10.0.0.1"), pair.enter(1, "10.0.0.1")
    assert one.establish(first, "CT1", **limits) == ""
    assert two.establish(second, "CT1", **limits) == "title"
    one.unseat(first)
    one.unseat(first)
    assert one.n_established == 0
    assert two.establish(second, "CT1", **limits) == ""
    pair.clock.now += PATIENCE_S
    idler = two.idler("10.0.0.7", per_address=9)
    assert isinstance(idler, Elsewhere)
    two.leave(idler)
    assert one.called_out() == [first]
    one.unseat(first)
    one.leave(first)
    assert one.n_connections == 0
