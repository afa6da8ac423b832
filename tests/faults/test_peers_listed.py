"""S2: only listed peers come in. Titles as they stand on the wire x addresses x called titles, over real sockets."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

from node.config.load import parse
from node.errors import ConfigError
from tests.faults.hostile import Node
from tests.faults.ledger import record
from tests.faults.scale import SEED, count
from tests.peers import wait_until
from tests.senders import CT, EXPLICIT, Peer, associate_rq, data_set, message, store_rq

LISTED = [
    {"ae_title": "CT1", "addresses": ["127.0.0.2", "127.0.1.0/24"]},
    "MR1",
    {"ae_title": "A B", "addresses": ["::1"]},
    {"ae_title": "US1", "addresses": ["::ffff:127.0.0.5"]},
    {"ae_title": "*", "addresses": ["127.0.0.6"]},
]
ADDRESSES = ("127.0.0.2", "127.0.0.5", "127.0.0.6", "127.0.1.7", "127.0.2.1", "::1")
MAY = {
    ("CT1", "127.0.0.2"), ("CT1", "127.0.1.7"), ("A B", "::1"), ("US1", "127.0.0.5"), ("*", "127.0.0.6"),
    *(("MR1", address) for address in ADDRESSES),
}  # fmt: skip
"""Written by hand: what the list says, for the addresses that call."""

TITLES = {
    "CT1": "CT1", " CT1": "CT1", "             CT1": "CT1", "MR1": "MR1", "A B": "A B", "US1": "US1", "*": "*",
    "ct1": "", "Ct1": "", "CT": "", "CT11": "", "CT1             ": "CT1", "C T1": "", "CT1 MR1": "", "CT1\\MR1": "",
    "CT1,MR1": "", "mr1": "", "MR1X": "", "AB": "", "A  B": "", "any": "", "ANY": "", "": "", "CT?": "", "%": "",
    "C*": "", "CT1\0": "CT1", "\0CT1": "", "CT1\n": "", "\xa0CT1": "", "CT1\xa0": "", "\xc3\x87T1": "", "LUMINODE": "",
}  # fmt: skip
"""As on the wire (16 characters with their padding), and whose title that is: case counts, spaces at the ends do not
(PS3.5 6.2, VR AE), nor NULs behind it, and nothing is a pattern."""

CALLED = {"LUMINODE": True, " LUMINODE": True, "luminode": False, "LUMINODE1": False, "": False, "CT1": False}


def near(rng: np.random.Generator) -> str:
    """A listed title with one character changed, left out or put in: the title of nobody."""
    letters = "ABCMNRTUS0129 .*-"
    while True:
        title = list(str(rng.choice(["CT1", "MR1", "A B", "US1"])))
        at, letter = int(rng.integers(len(title) + 1)), str(rng.choice(list(letters)))
        how = int(rng.integers(3))
        title[at : at + (how != 0)] = [letter] if how < 2 else []
        made = "".join(title)
        if made.strip(" ") not in ("CT1", "MR1", "A B", "US1", "*"):
            return made


def comes_in(node: Node, title: str, address: str, called: str) -> bool:
    """Whether an association is accepted; who is turned away has an instance behind the request."""
    instance = message(1, store_rq("1.2.6.6"), data_set("1.2.6.6"))
    request = associate_rq([(1, CT, [EXPLICIT])], calling=title, called=called)
    with Peer(node.port, host="::1" if ":" in address else "127.0.0.1", source=address) as peer:
        peer.send(request)
        kind, _ = peer.read()
        if kind == 2:
            return peer.release() == 6
        with contextlib.suppress(OSError):  # it is cut off already
            peer.send(instance)
        assert kind in (3, 7), f"{title!r} from {address}: PDU {kind}"
        return False


@pytest.mark.parametrize("host", ("[::]", "127.0.0.1")[: count(1, 2)])
def test_only_who_is_listed_comes_in(tmp_path: Path, host: str) -> None:
    """Every title that is spelled like a listed one, from every address, in an order that mixes them."""
    addresses = ADDRESSES if host == "[::]" else ADDRESSES[:-1]
    rng = np.random.default_rng(SEED)
    cases = [
        (title, whose, address, called, ours)
        for title, whose in TITLES.items() for address in addresses for called, ours in CALLED.items()
    ]  # fmt: skip
    cases += [
        (near(rng), "", str(rng.choice(list(addresses))), "LUMINODE", True) for _ in range(count(40, 2000))
    ]
    order = rng.permutation(len(cases))[: count(300, len(cases))]
    wrong, n_in = [], 0
    with Node(tmp_path, node={"accept_from": LISTED}, host=host) as node:
        for at in order:
            title, whose, address, called, ours = cases[at]
            may = ours and (whose, address) in MAY
            came = comes_in(node, title, address, called)
            n_in += came
            if came != may:
                wrong.append((title, address, called, came))
        for title, address in sorted(MAY & {(t, a) for t in TITLES.values() for a in addresses}):
            if not comes_in(node, title, address, "LUMINODE"):
                wrong.append((title, address, "LUMINODE", False))
        node.quiet()
        spooled = node.spooled()
    record(
        "S2",
        load=f"listening on {host}: titles spelled like a listed one (case, padding, patterns, NUL, one character "
        "off) x addresses (IPv4, IPv4-mapped, IPv6) x called titles",
        count=len(order),
        result=f"{len(wrong)} wrong; {n_in} that are listed came in; {spooled} bytes stored of the others",
        ok=not wrong and not spooled and n_in > 0,
    )
    assert wrong == []
    assert spooled == 0
    assert n_in > 0


EMPTY = {
    "an empty list": {"accept_from": []},
    "a title without addresses": {"accept_from": ["CT1", {"ae_title": "MR1", "addresses": []}]},
    "nothing": {"accept_from": None},
    "an empty title": {"accept_from": [""]},
    "a star for any": {"accept_from": "*"},
}


def test_an_empty_list_is_nobody(tmp_path: Path) -> None:
    """It is no configuration: no node starts on it (as S16 shows), and one that runs keeps the list that it has."""
    refused = []
    for what, node_ in EMPTY.items():
        with pytest.raises(ConfigError) as told:
            parse(json.dumps({"node": node_, "rules": [{"name": "r", "when": "any", "ignore": True}]}))
        assert all(fault.hint for fault in told.value.faults), what
        refused.append(what)
    with Node(tmp_path, node={"accept_from": ["CT1", "MR1"]}) as node:
        settings = json.loads(node.config.read_text())

        def edit(accept: object) -> None:
            settings["node"]["accept_from"] = accept
            node.config.write_text(json.dumps(settings))

        assert comes_in(node, "CT1", "127.0.0.2", "LUMINODE")
        edit([])
        for _ in range(12):  # an edit is taken, or not, within three looks at the file, one a second
            time.sleep(0.25)
            assert comes_in(node, "CT1", "127.0.0.2", "LUMINODE")
            assert not comes_in(node, "XX1", "127.0.0.2", "LUMINODE")
        edit(["MR1"])
        wait_until(lambda: not comes_in(node, "CT1", "127.0.0.2", "LUMINODE"), 60, "the list is in force")
        left = comes_in(node, "MR1", "127.0.0.2", "LUMINODE")
    record(
        "S2",
        load=f"{', '.join(EMPTY)}; the list emptied, and shortened, while the node runs",
        count=len(refused) + 3,
        result="each refused with what to do; who was taken off the list is turned away, its request "
        "known from before or not",
        ok=left,
    )
    assert left
