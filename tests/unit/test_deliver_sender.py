"""A sender at the mercy of what comes back, over a real socket: typed errors, or a true answer."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.deliver import pdu
from node.deliver.parcel import Ahead, MemoryBody
from node.deliver.sender import Peer, Sender, _negotiate
from node.deliver.wire import Wire
from node.errors import AssociationRejected, PeerUnreachable

CT, EXPLICIT, IMPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
PROPOSED = [(CT, EXPLICIT), (CT, IMPLICIT)]
PEER = Peer(host="", port=0, called_ae="PACS", calling_ae="LUMINODE", timeout_s=0.5)


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def context(number: int, result: int, syntax: str) -> bytes:
    return item(0x21, bytes((number, 0, result, 0)) + item(0x40, syntax.encode()))


def accepted(*contexts: bytes, maximum: int = 16384) -> bytes:
    user = item(0x50, item(0x51, struct.pack(">L", maximum)) + item(0x52, b"1.2.3"))
    body = struct.pack(">HH", 1, 0) + b"PACS".ljust(16) + b"LUMINODE".ljust(16) + b"\0" * 32
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + b"".join(contexts) + user
    return struct.pack(">BBL", 2, 0, len(body)) + body


@contextlib.contextmanager
def answered(answer: bytes) -> Iterator[tuple[Wire, socket.socket]]:
    """A wire whose other end has said all it will ever say, and hung up."""
    near, far = socket.socketpair()
    with near, far:
        far.sendall(answer)
        far.shutdown(socket.SHUT_WR)
        yield Wire(near, 20.0), far


def test_only_what_was_proposed_and_accepted_counts() -> None:
    odd = accepted(context(1, 0, EXPLICIT), context(3, 3, IMPLICIT), context(7, 0, EXPLICIT), maximum=4096)
    with answered(odd) as (wire, _):
        sender = _negotiate(wire, PEER, PROPOSED)
    assert sender.accepted == {(CT, EXPLICIT): 1}
    assert sender.peer_maximum == 4096


USER = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3")


@pytest.mark.parametrize(
    ("before", "user"),
    [
        (item(0x77, b"what nobody knows"), USER),
        (b"", USER + item(0x5F, b"what nobody knows")),
        (b"", USER + item(0x57, b"\0\0")),
        (b"", USER + item(0x55, b"a name of more than sixteen")),
        (b"", USER + item(0x55, b"PACS_1\0\0")),
        (b"", USER + item(0x55, b"M\xdcNCHEN\\3")),
        (b"", item(0x52, b"") + item(0x51, struct.pack(">L", 16384)) + item(0x55, b"")),
        (item(0x21, bytes((3, 0, 3, 0))), USER),
        (item(0x21, bytes((3, 0, 4, 0)) + item(0x40, b"")), USER),
    ],
    ids=[
        "unknown item", "unknown sub-item", "common extended negotiation", "long version name",
        "version name with NUL", "version name in Latin 1", "empty names", "refused without syntax",
        "refused with an empty syntax",
    ],
)  # fmt: skip
def test_what_an_acceptance_says_besides_keeps_nothing_from_a_pacs(before: bytes, user: bytes) -> None:
    """PS3.8 9.3.1: items that are not recognized are ignored; a version name decides nothing (PS3.7 D.3.3.2)."""
    body = struct.pack(">HH", 3, 0) + b"\0" * 32 + b"\0" * 32 + item(0x10, b"1.2.840.10008.3.1.1.1")
    body += before + context(1, 0, EXPLICIT) + item(0x50, user)
    with answered(struct.pack(">BBL", 2, 0, len(body)) + body) as (wire, _):
        sender = _negotiate(wire, PEER, PROPOSED)
    assert sender.accepted == {(CT, EXPLICIT): 1}
    assert sender.peer_maximum == 16384


def test_a_syntax_that_was_not_proposed_is_not_used() -> None:
    with answered(accepted(context(1, 0, IMPLICIT), context(3, 0, IMPLICIT))) as (wire, _):
        assert _negotiate(wire, PEER, PROPOSED).accepted == {(CT, IMPLICIT): 3}


GOOD = accepted(context(1, 0, EXPLICIT), context(3, 4, IMPLICIT))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_mangled_acceptance_is_a_peer_that_cannot_be_reached(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(GOOD)
    for at, value in changes:
        raw[at] = value
    with answered(bytes(raw)) as (wire, _):
        try:
            sender = _negotiate(wire, PEER, PROPOSED)
        except (PeerUnreachable, AssociationRejected):
            return
        assert set(sender.accepted) <= set(PROPOSED)


def response(message: int, status: int) -> bytes:
    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    body = element(0x0100, b"\x01\x80") + element(0x0120, struct.pack("<H", message))
    body += element(0x0800, b"\x01\x01") + element(0x0900, struct.pack("<H", status))
    return pdu.command_pdus(1, body, 100)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 0xFFFF),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    st.binary(max_size=20),
)
def test_an_answer_is_the_peers_or_none(status: int, changes: list[tuple[int, int]], rubbish: bytes) -> None:
    raw = bytearray(response(1, status))
    for at, value in changes:
        raw[at % len(raw)] = value
    with answered(bytes(raw) + rubbish) as (wire, far):
        sender = Sender(wire, PEER, {(CT, EXPLICIT): 1}, 16384)
        try:
            answer = sender.store(1, CT, "1.2.3", MemoryBody(b"\0" * 100))
        except PeerUnreachable:
            assert not sender.is_open
            with pytest.raises(PeerUnreachable, match="has ended"):
                sender.store(1, CT, "1.2.3", MemoryBody(b"\0" * 100))
            return
        assert answer.responds_to == 1
        if not changes:
            assert answer.status == status
        sent = far.recv(4096)
        assert sent.endswith(b"\0" * 100)


@given(st.integers(0, 5000), st.sampled_from([7, 8, 100, 1018, 4102, 4104, 16384]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_data_set_is_cut_into_even_fragments_of_which_the_last_is_marked(
    size: int, maximum: int, at_once: bool
) -> None:
    data = bytes(n % 251 for n in range(2 * size + 2))
    with answered(response(1, 0)) as (wire, far):
        sender = Sender(wire, PEER, {(CT, EXPLICIT): 1}, maximum)
        if maximum < 100:
            data = data[:200]
        sender.store(1, CT, "1.2.3", MemoryBody(data, at_once=at_once))
        sender.abort()
        raw = b""
        while piece := far.recv(65536):
            raw += piece
    got, marks = b"", []
    while raw and raw[0] == pdu.P_DATA:
        (length,) = struct.unpack_from(">L", raw, 2)
        assert length <= max(maximum, 8)
        for each in pdu.fragments(raw[6 : 6 + length]):
            if not each.is_command:
                assert len(each.data) % 2 == 0
                got += each.data
                marks.append(each.is_last)
        raw = raw[6 + length :]
    assert got == data
    assert marks == [False] * (len(marks) - 1) + [True]
    assert raw[0] == pdu.ABORT


def test_what_the_kernel_takes_in_part_goes_on_where_it_was() -> None:
    data = bytes(range(256)) * 12_000
    near, far = socket.socketpair()
    with near, far, ThreadPoolExecutor(1) as pool:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
        sender = Sender(Wire(near, 20.0), PEER, {(CT, EXPLICIT): 1}, 4102)
        reads = pool.submit(_read_until_the_last, far)
        assert sender.store(1, CT, "1.2.3", MemoryBody(data, at_once=True)).status == 0
    assert reads.result() == data


def _read_until_the_last(sock: socket.socket) -> bytes:
    got, raw = bytearray(), b""
    while True:
        while len(raw) < 6 or len(raw) < 6 + struct.unpack_from(">L", raw, 2)[0]:
            raw += sock.recv(50_000)
        (length,) = struct.unpack_from(">L", raw, 2)
        for each in pdu.fragments(raw[6 : 6 + length]):
            if not each.is_command:
                got += each.data
                if each.is_last:
                    sock.sendall(response(1, 0))
                    return bytes(got)
        raw = raw[6 + length :]


def test_the_peers_time_does_not_run_while_the_next_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, passed = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed)
    with answered(response(1, 0)) as (wire, far):
        sender = Sender(wire, replace(PEER, timeout_s=20.0), {(CT, EXPLICIT): 1}, 16384)
        seen: list[bytes] = []

        def meanwhile() -> None:
            nonlocal passed
            seen.append(far.recv(4096))
            passed = 3600.0

        assert sender.store(1, CT, "1.2.3", MemoryBody(b"\0" * 100), meanwhile=meanwhile).status == 0
    assert seen[0].endswith(b"\0" * 100)


def test_what_comes_behind_an_answer_is_kept_and_heard() -> None:
    with answered(response(1, 0) + pdu.abort()) as (wire, _):
        sender = Sender(wire, PEER, {(CT, EXPLICIT): 1}, 16384)
        sender.store(1, CT, "1.2.3", MemoryBody(b"\0" * 100))
        assert not sender.is_idle
        assert wire.receive_pdu(time.monotonic() + 1)[0] == pdu.ABORT


def test_preparing_is_one_ahead_in_order_and_keeps_each_fault_with_its_item() -> None:
    prepared: list[int] = []

    def prepare(n: int) -> int:
        prepared.append(n)
        if n == 3:
            raise ValueError
        return n * n

    got: list[int | None] = []
    with Ahead(range(6), prepare) as coming:
        for n, ready in coming:
            assert len(prepared) <= n + 2
            try:
                got.append(ready())
            except ValueError:
                got.append(None)
    assert got == [0, 1, 4, None, 16, 25]


def test_what_is_quick_is_prepared_by_whoever_waits_and_never_twice() -> None:
    by: list[tuple[int, str]] = []

    def prepare(n: int) -> int:
        by.append((n, threading.current_thread().name.partition("_")[0]))
        if n == 4:
            raise ValueError
        return n

    got: list[int] = []
    with Ahead(range(6), prepare, lambda n: n % 2 == 0) as coming:
        for n, ready in coming:
            if n != 4:
                got.append(ready())
            else:
                with pytest.raises(ValueError):
                    ready()
            assert max(n for n, _ in by) <= n + 1
            if n == 1:
                coming.look()
                coming.look()
                assert by[-1] == (2, threading.current_thread().name.partition("_")[0])
    me = threading.current_thread().name.partition("_")[0]
    assert got == [0, 1, 2, 3, 5]
    assert sorted(by) == [(n, "ahead" if n % 2 else me) for n in range(6)]


@pytest.mark.parametrize("quick", [False, True])
def test_what_was_prepared_in_vain_is_closed(quick: bool) -> None:
    closed: list[int] = []

    class Thing:
        def __init__(self, n: int) -> None:
            self.n = n

        def close(self) -> None:
            closed.append(self.n)

    with Ahead(range(6), Thing, lambda _: quick) as coming:
        for n, ready in coming:
            ready().close()
            coming.look()
            if n == 2:
                break
    assert closed == [0, 1, 2, 3]
