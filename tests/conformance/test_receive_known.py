"""A request that was accepted before is answered from memory: with the same bytes, and by today's rules."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from node.receive.known import MOST, Accepted, Known, Request
from node.store import Store
from tests.receiving import House, config, house
from tests.senders import CT, EXPLICIT, IMPLICIT, MR, RELEASE, associate_rq, data_set, message, store_rq

REQUEST = associate_rq([(1, CT, [EXPLICIT]), (3, MR, [IMPLICIT, EXPLICIT]), (5, "1.2.3.4.5", [EXPLICIT])])


@pytest.fixture
def door(store: Store) -> Iterator[House]:
    with house(store) as running:
        yield running


def read(sock: socket.socket) -> bytes:
    head = sock.recv(6, socket.MSG_WAITALL)
    return head + sock.recv(int.from_bytes(head[2:], "big"), socket.MSG_WAITALL)


def results(accepted: bytes) -> dict[int, int]:
    """Presentation context -> result (PS3.8 Table 9-18) of an A-ASSOCIATE-AC."""
    assert accepted[0] == 2
    return {i[0]: r[0] for i, r in re.findall(rb"\x21\0..(.)\0(.)\0", accepted[74:], re.DOTALL)}


def once(port: int, request: bytes, uid: str = "") -> tuple[bytes, bytes]:
    """(the answer to the request, the answer to an instance) of one association."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(request)
        accepted, stored = read(sock), b""
        if accepted[0] == 2 and uid:
            sock.sendall(message(1, store_rq(uid), data_set(uid)))
            stored = read(sock)
        if accepted[0] == 2:
            sock.sendall(RELEASE)
            assert read(sock)[0] == 6
        return accepted, stored


def test_the_answer_is_the_same_and_the_instance_is_stored(door: House) -> None:
    told = [once(door.port, REQUEST, f"1.2.3.{i}") for i in range(1, 4)]
    assert len({accepted for accepted, _ in told}) == 1
    assert len(door.receiver._house.known._known) == 1
    assert sorted(door.stored()) == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
    assert door.ends(3) == ["RELEASED"] * 3


def test_what_is_remembered_counts_only_under_the_terms_of_then(door: House) -> None:
    assert results(once(door.port, REQUEST)[0]) == {1: 0, 3: 0, 5: 3}
    door.receiver.apply(config(transfer_syntaxes=[IMPLICIT]))
    assert results(once(door.port, REQUEST)[0]) == {1: 4, 3: 0, 5: 3}
    door.receiver.apply(config(accept_from=["NOBODY"]))
    assert once(door.port, REQUEST)[0][0] == 3


def test_it_is_bounded() -> None:
    known = Known()
    for i in range(3 * MOST):
        known.keep(
            b"%d" % i, Accepted(request=Request(None), terms=None, answer=b"", syntaxes={})  # type: ignore[arg-type]
        )  # fmt: skip
    assert len(known._known) == MOST
    known.keep(bytes(65 * 1024), Accepted(request=Request(None), terms=None, answer=b"", syntaxes={}))  # type: ignore[arg-type]
    assert len(known._known) == MOST
