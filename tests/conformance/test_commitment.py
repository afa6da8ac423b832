"""Storage commitment over real sockets: what is promised, what is not, and how a scanner gets to know (PS3.4 J)."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pynetdicom.dsutils import encode

from node.config.commitment import CommitmentSettings
from node.config.network import HostPort, ReportTo
from node.config.network import Peer as Allowed
from node.deliver.commitments import Commitments
from node.model import DeliveryState
from node.store import Store
from tests.committing import INSTANCE, MODEL, Scanner, listening, request
from tests.faults.scale import SEED
from tests.forwarding import Scanner as Sender
from tests.forwarding import all_sent, close_all, delivering, forwarding
from tests.peers import OrthancPeer, free_port, wait_until
from tests.receiving import House, config, house
from tests.scripted import ScriptedScp
from tests.senders import CT, MR, VERIFICATION, Peer, command_set, data_set, echo_rq, message, ui, us

pytestmark = pytest.mark.timeout(120)

NOWHERE: dict[str, Any] = {"kind": "dimse", "ae_title": "PACS"}
Scripted = Callable[..., ScriptedScp]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.deliver.commitments._LOOK_S", 0.03)
    monkeypatch.setattr("node.deliver.commitments._WAIT_S", (0.1, 0.3))
    monkeypatch.setattr("node.receive.commitment._LOOK_S", 0.03)
    monkeypatch.setattr("node.receive.door.TICK_S", 0.05)


def peers(*scanners: Scanner) -> Any:
    """The scanners as the configuration lists them; those that listen, with their address."""
    return tuple(
        Allowed(
            ae_title=each.ae_title,
            report_to=ReportTo(address=HostPort(host="127.0.0.1", port=each.port)) if each._server else None,
        )
        for each in scanners
    )


@contextmanager
def node(
    store: Store, *scanners: Scanner, pacs: dict[str, Any] | None = None, promise: Any = "held", **more: Any
) -> Iterator[House]:
    """A node whose PACS is away unless one is given."""
    settings = pacs or {**NOWHERE, "address": f"127.0.0.1:{free_port()}"}
    commitment = CommitmentSettings(promise=promise, **more)
    told = forwarding({"pacs": settings}, accept_from=peers(*scanners), commitment=commitment)
    with house(store, told) as there, delivering(store):
        yield there


def sent(port: int, n: int = 3, calling: str = "CT1") -> list[str]:
    scanner = Sender(port, calling=calling)
    uids = scanner.slices(*range(1, n + 1))
    scanner.release()
    return uids


def test_a_scanner_that_listens_is_told_on_an_association_of_ours(sqlite_store: Store) -> None:
    with listening() as scanner, node(sqlite_store, scanner) as there:
        uids = sent(there.port)
        assert scanner.ask(there.port, "1.2.9.1", uids) == 0
        told = scanner.result()
        assert (told.event, told.transaction, told.committed) == (1, "1.2.9.1", frozenset(uids))
        assert told.calling == "LUMINODE"
        assert scanner.roles == [(True, False)]
        wait_until(lambda: states(sqlite_store) == ["TOLD"], 60, "the scanner's answer is on record")


def test_a_scanner_that_waits_is_told_on_its_association(sqlite_store: Store) -> None:
    scanner = Scanner()
    with node(sqlite_store, scanner) as there:
        uids = sent(there.port)
        assert scanner.ask(there.port, "1.2.9.1", uids, wait_s=60) == 0
        assert scanner.results[0].committed == frozenset(uids)
        wait_until(lambda: states(sqlite_store) == ["TOLD"], 60, "the scanner's answer is on record")


def test_a_scanner_that_did_not_wait_is_told_when_it_comes_again(sqlite_store: Store) -> None:
    scanner, other = Scanner(), Scanner("CT2")
    with node(sqlite_store, scanner, other) as there:
        assert scanner.ask(there.port, "1.2.9.1", sent(there.port)) == 0
        wait_until(lambda: states(sqlite_store) == ["READY"], 60, "the result is there")
        assert other.ask(there.port, "1.2.9.2", ["1.2.3"], wait_s=60) == 0
        assert [r.transaction for r in other.results] == ["1.2.9.2"]
        with scanner.associated(there.port):
            assert scanner.result().event == 1


def test_a_result_is_for_who_asked_and_not_for_whoever_calls_by_its_title(sqlite_store: Store) -> None:
    """Without an address in the configuration a title says nothing of who is there (S2)."""
    scanner = Scanner()
    with node(sqlite_store, scanner) as there, Peer(there.port, source="127.0.0.2") as other:
        other.associate(MODEL, VERIFICATION, calling="CT1")
        scanner.ask(there.port, "1.2.9.1", uids := sent(there.port))
        wait_until(lambda: states(sqlite_store) == ["READY"], 60, "the result is there")
        for _ in range(4):  # between two messages it would be told
            other.send(message(3, echo_rq(), None))
            assert other.answer().field == 0x8030
            time.sleep(0.05)
        with scanner.associated(there.port):
            assert scanner.result().committed == frozenset(uids)
        wait_until(lambda: states(sqlite_store) == ["TOLD"], 60, "told")
        assert other.release() == 6  # the first that it is sent


def test_a_scanner_that_says_nothing_keeps_no_other_from_its_result(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.deliver.commitments._PATIENCE_S", 25.0)
    with (
        listening() as silent,
        listening(ae_title="CT2") as scanner,
        node(sqlite_store, silent, scanner) as there,
    ):
        silent.stop()
        with socket.create_server(("127.0.0.1", silent.port)) as mute:
            uids = sent(there.port)
            silent.ask(there.port, "1.2.9.1", uids)
            called, _ = mute.accept()
            with called:
                scanner.ask(there.port, "1.2.9.2", uids)
                assert scanner.result(within_s=20.0).committed == frozenset(uids)


def test_every_reason_not_to_commit_is_told(sqlite_store: Store) -> None:
    with listening() as scanner, node(sqlite_store, scanner) as there:
        good, rotten, gone, known = sent(there.port, 4)
        paths = {
            i.sop_instance_uid: sqlite_store.spool.path(i.path)
            for s in sqlite_store.series.list()
            for i in sqlite_store.series.instances(s.id)
        }
        data = bytearray(paths[rotten].read_bytes())
        data[-1] ^= 1
        paths[rotten].write_bytes(data)
        paths[gone].unlink()
        with Peer(
            there.port
        ) as peer:  # other bytes of a UID that is there: refused, and nobody knows which is meant
            peer.associate(CT, calling="CT1")
            series, _, _ = known.rpartition(".")
            other = data_set(known, series=series, study="1.2.826.0.1.3680043.2.1125.1")
            assert peer.store(known, other).status == 0xA900
            assert peer.release() == 6
        unknown = "1.2.3.4.5"
        scanner.ask(there.port, "1.2.9.1", [good, rotten, gone, known, unknown])
        told = scanner.result()
        assert told.event == 2
        assert told.committed == frozenset({good})
        assert told.failed == {rotten: 0x110, gone: 0x110, known: 0x110, unknown: 0x112}
        scanner.ask(there.port, "1.2.9.2", [good], sop_class=MR)
        assert scanner.result(2).failed == {good: 0x119}
        assert scanner.result(2).committed == frozenset()
        events = [e.body["failed"] for e in sqlite_store.events.list(name="commitment.refused")]
        assert events == [1, 4]


def test_what_is_delivered_is_committed_when_pacs_has_it(sqlite_store: Store, scripted: Scripted) -> None:
    full = [True]
    pacs = scripted(store=lambda _n, _uid: 0xA700 if full else 0)
    settings = pacs.settings(retry={"first": 0.05, "at_most": 0.2})
    with listening() as scanner, node(sqlite_store, scanner, pacs=settings, promise="delivered") as there:
        uids = sent(there.port)
        assert scanner.ask(there.port, "1.2.9.1", uids) == 0
        wait_until(lambda: pacs.n_stores >= 6, 60, "PACS has refused, more than once")
        assert states(sqlite_store) == ["ASKED"]
        assert scanner.results == []
        full.clear()
        assert scanner.result().committed == frozenset(uids)
        assert pacs.uids() == sorted(uids)


def test_what_pacs_has_of_a_series_says_nothing_of_the_rest(sqlite_store: Store, scripted: Scripted) -> None:
    """One of three is refused, first for now and then for good: each instance is committed for itself."""
    answer = [0xA700]
    pacs = scripted(store=lambda _n, uid: answer[0] if uid.endswith(".2") else 0)
    settings = pacs.settings(retry={"first": 0.05, "at_most": 0.2})
    with listening() as scanner, node(sqlite_store, scanner, pacs=settings, promise="delivered") as there:
        uids = sent(there.port)
        scanner.ask(there.port, "1.2.9.1", uids)
        wait_until(lambda: pacs.n_stores >= 6, 60, "one was refused, more than once")
        held = sqlite_store.commitments.held(uids, "delivered")
        assert [held[uid].way for uid in uids] == ["safe", "waits", "safe"]
        assert states(sqlite_store) == ["ASKED"]
        answer[0] = 0xC000
        close_all(sqlite_store)
        assert scanner.result().committed == {uids[0], uids[2]}
        assert scanner.result().failed == {uids[1]: 0x110}


def test_what_pacs_says_it_had_before_is_not_committed_as_delivered(
    sqlite_store: Store, scripted: Scripted
) -> None:
    """0111H speaks of a UID: whether PACS holds these bytes under it nobody has said."""
    pacs = scripted(store=lambda n, _uid: 0x0111 if n == 1 else 0)
    with (
        listening() as scanner,
        node(sqlite_store, scanner, pacs=pacs.settings(), promise="delivered") as there,
    ):
        uids = sent(there.port)
        close_all(sqlite_store)
        wait_until(lambda: all_sent(sqlite_store), 60, "PACS has said what it says")
        scanner.ask(there.port, "1.2.9.1", uids)
        assert len(scanner.result().failed) == 1
        assert len(scanner.result().committed) == 2


def test_what_pacs_does_not_get_in_time_is_not_committed(sqlite_store: Store) -> None:
    with listening() as scanner, node(sqlite_store, scanner, promise="delivered", answer_within=1.0) as there:
        uids = sent(there.port)
        scanner.ask(there.port, "1.2.9.1", uids)
        assert scanner.result().failed == dict.fromkeys(uids, 0x110)


def test_what_nobody_gets_is_not_committed(sqlite_store: Store) -> None:
    """The sender is the only destination, or a person cancelled the delivery: retention would remove the last copy."""
    with (
        listening() as scanner,
        listening(ae_title="PACS") as pacs,
        node(sqlite_store, scanner, pacs) as there,
    ):
        own = sent(there.port, calling="PACS")
        pacs.ask(there.port, "1.2.9.1", own)
        assert pacs.result().failed == dict.fromkeys(own, 0x110)
        sender = Sender(there.port)
        uids = sender.slices(1, 2, series=2)
        sender.release()
        close_all(sqlite_store)
        for one in sqlite_store.deliveries.list():
            wait_until(lambda i=one.id: cancelled(sqlite_store, i), 60, "it is cancelled")  # type: ignore[misc]
        scanner.ask(there.port, "1.2.9.2", uids)
        assert scanner.result().failed == dict.fromkeys(uids, 0x110)


def cancelled(store: Store, number: int) -> bool:
    one = store.deliveries.get(number)
    assert one is not None
    if one.state is DeliveryState.PENDING:
        store.deliveries.cancel(number, datetime.now(UTC))
    return one.state is DeliveryState.CANCELLED


def test_a_node_that_keeps_everything_needs_no_destination(sqlite_store: Store) -> None:
    with listening() as scanner:
        told = config(
            accept_from=peers(scanner), commitment=CommitmentSettings(promise="held"),
            store={"keep": {"received": None}},
        )  # fmt: skip
        with house(sqlite_store, told) as there, delivering(sqlite_store):
            uids = sent(there.port)
            scanner.ask(there.port, "1.2.9.1", uids)
            assert scanner.result().committed == frozenset(uids)


def test_it_is_offered_only_where_it_is_configured(sqlite_store: Store) -> None:
    scanner = Scanner()
    with house(sqlite_store, config(accept_from=peers(scanner))) as there:
        with scanner.associated(there.port) as assoc:
            assert assoc.accepted_contexts == []
        on = forwarding({"pacs": {**NOWHERE, "address": "127.0.0.1:1"}}, accept_from=peers(scanner),
                        commitment=CommitmentSettings(promise="held"))  # fmt: skip
        there.receiver.apply(on)
        with scanner.associated(there.port) as assoc:
            assert len(assoc.accepted_contexts) == 1
            there.receiver.apply(config(accept_from=peers(scanner)))
            status, _ = assoc.send_n_action(request("1.2.9.1", ["1.2.3"]), 1, MODEL, INSTANCE)
            assert status.Status == 0x124
    assert sqlite_store.commitments.list() == []


def test_the_same_request_again_is_told_again_and_another_is_refused(sqlite_store: Store) -> None:
    with (
        listening() as scanner,
        listening(ae_title="CT2") as other,
        node(sqlite_store, scanner, other) as there,
    ):
        uids = sent(there.port)
        for n in (1, 2):
            assert scanner.ask(there.port, "1.2.9.1", uids if n == 1 else uids[::-1]) == 0
            assert scanner.result(n).committed == frozenset(uids)
            wait_until(lambda: states(sqlite_store) == ["TOLD"], 60, "told")
        assert scanner.ask(there.port, "1.2.9.1", uids[:2]) == 0x131
        assert other.ask(there.port, "1.2.9.1", uids) == 0x131
        assert states(sqlite_store) == ["TOLD"]
        (one,) = sqlite_store.commitments.list()
        assert one.calling_ae == "CT1"


def test_a_scanner_that_is_away_or_refuses_is_told_later(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.deliver.commitments._FIRST_S", 0.1)
    scanner = Scanner(refuse=1)
    scanner.listen()
    allowed = peers(scanner)
    scanner.stop()
    with node(sqlite_store, scanner) as there:
        there.receiver.apply(there.config.model_copy(
            update={"node": there.config.node.model_copy(update={"accept_from": allowed})}))  # fmt: skip
        uids = sent(there.port)
        scanner.ask(there.port, "1.2.9.1", uids)
        wait_until(
            lambda: any(c.attempt for c in sqlite_store.commitments.list()), 60, "it was tried in vain"
        )
        scanner.listen()
        try:
            assert scanner.result().committed == frozenset(uids)
        finally:
            scanner.stop()
        assert scanner.refuse == 0


@pytest.mark.parametrize("listens", [True, False])
def test_a_result_that_got_old_is_not_told_before_a_new_look(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    """While nobody listened, the files went and a person cancelled what was to pass them on."""
    scanner, later = Scanner(), timedelta(days=2)
    if listens:
        scanner.listen()
    allowed = peers(scanner)
    scanner.stop()
    with node(sqlite_store, scanner) as there:
        node_settings = there.config.node.model_copy(update={"accept_from": allowed})
        there.receiver.apply(there.config.model_copy(update={"node": node_settings}))
        uids = sent(there.port)
        scanner.ask(there.port, "1.2.9.1", uids)
        wait_until(lambda: states(sqlite_store) == ["READY"], 60, "the result is there")
        for series in sqlite_store.series.list():
            for one in sqlite_store.series.instances(series.id):
                sqlite_store.spool.path(one.path).unlink()
    late = Commitments(sqlite_store, lambda: datetime.now(UTC) + later)

    def told() -> bool:
        late.look()
        late.tell()
        return bool(scanner.results)

    with contextlib.ExitStack() as stack:
        if listens:
            stack.callback(scanner.stop)
            scanner.listen()
        else:
            monkeypatch.setattr("tests.receiving.utc", lambda: datetime.now(UTC) + later)
            there = stack.enter_context(house(sqlite_store, there.config))
            stack.enter_context(scanner.associated(there.port))
        wait_until(told, 60, "a result")
    assert scanner.result().failed == dict.fromkeys(uids, 0x110)


def test_who_never_listens_is_given_up_with_an_event(sqlite_store: Store) -> None:
    scanner = Scanner()
    with node(sqlite_store, scanner, tell_for=0.5) as there:
        scanner.ask(there.port, "1.2.9.1", sent(there.port))
        wait_until(lambda: states(sqlite_store) == ["READY"], 60, "the result is there")
    later = Commitments(sqlite_store, lambda: datetime.now(UTC) + timedelta(seconds=60))
    later.tidy()
    assert states(sqlite_store) == ["GIVEN_UP"]
    (event,) = sqlite_store.events.list(name="commitment.given_up")
    assert event.body["calling_ae"] == "CT1"
    later = Commitments(sqlite_store, lambda: datetime.now(UTC) + timedelta(days=100))
    later.tidy()
    assert sqlite_store.commitments.list() == []


def test_nothing_is_stored_on_the_context_of_the_service(sqlite_store: Store) -> None:
    with node(sqlite_store, Scanner()) as there, Peer(there.port) as peer:
        peer.associate(MODEL, VERIFICATION, calling="CT1")
        assert peer.store("1.2.3.1", data_set("1.2.3.1"), sop_class=MODEL).status == 0x122
        assert peer.release() == 6
    assert sqlite_store.series.list() == []


def action(
    number: int = 1, *, sop_class: str = MODEL, instance: str = INSTANCE, kind: int = 1, data_type: int = 1
) -> bytes:
    """The command set of an N-ACTION-RQ."""
    return command_set(
        {
            3: ui(sop_class), 0x100: us(0x130), 0x110: us(number), 0x800: us(data_type), 0x1001: ui(instance),
            0x1008: us(kind),
        }
    )  # fmt: skip


def test_whatever_a_peer_asks_it_is_answered_and_the_door_stays_open(sqlite_store: Store) -> None:
    good = encode(request("1.2.9.1", ["1.2.3"]), False, True)
    bad = encode(request("", ["1.2.3"]), False, True)
    assert good is not None
    assert bad is not None
    chance = random.Random(SEED)
    noise = [bytes(chance.randrange(256) for _ in range(chance.randrange(1, 300))) for _ in range(50)]
    nested = b"".join(struct.pack("<HH2sHL", 8, 0x1199, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
                      for _ in range(1000))  # fmt: skip
    cases: list[tuple[bytes, bytes | None, int]] = [
        (action(sop_class=CT), good, 0x118),
        (action(instance="1.2.840.10008.1.20.1.2"), good, 0x112),
        (action(kind=2), good, 0x123),
        (action(data_type=0x101), None, 0x115),
        (action(), b"", 0x115),
        (action(), bad, 0x115),
        (action(), good[:-3], 0x115),
        (action(), nested, 0x115),
        (action(), b"\0" * (4 * 1024 * 1024 + 2), 0x213),
        *((action(), each, 0x115) for each in noise),
        (command_set({0x100: us(0x110), 3: ui(MODEL), 0x110: us(1), 0x800: us(0x101)}), None, 0x211),
        (action(), good, 0),
    ]
    with node(sqlite_store, Scanner(), Scanner("CT2")) as there, Peer(there.port) as peer:
        peer.associate(MODEL, calling="CT1")
        told = []
        for command, data, _ in cases:
            peer.send(message(1, command, data))
            told.append(peer.answer().status)
        assert told == [status for _, _, status in cases]
        with Peer(there.port) as endless:
            endless.associate(MODEL, calling="CT2")
            with contextlib.suppress(OSError):
                endless.send(message(1, action(), b"\0" * (10 * 1024 * 1024)))
            assert endless.read()[0] in (0, 7)
    (one,) = sqlite_store.commitments.list()
    assert one.references == ((CT, "1.2.3"),)


def test_a_request_that_is_cut_off_is_none(sqlite_store: Store) -> None:
    data = encode(request("1.2.9.1", ["1.2.3"]), False, True)
    assert data is not None
    with node(sqlite_store, Scanner()) as there:
        with Peer(there.port) as peer:
            peer.associate(MODEL, calling="CT1")
            peer.send(message(1, action(), data)[:-20])
        there.quiet()
        assert sqlite_store.commitments.list() == []
        assert there.associations() == []  # no series waits for who cannot send one


@pytest.mark.peer
def test_orthanc_asks_and_is_told(sqlite_store: Store, orthanc: OrthancPeer) -> None:
    """A requester that is none of ours: it stores, asks, and listens for the result."""
    listens = ReportTo(address=HostPort(host="127.0.0.1", port=orthanc.port))
    told = forwarding(
        {"pacs": {**NOWHERE, "address": f"127.0.0.1:{free_port()}"}},
        accept_from=(Allowed(ae_title="ORTHANC", report_to=listens),),
        commitment=CommitmentSettings(promise="held"),
    )
    with house(sqlite_store, told) as there, delivering(sqlite_store):
        uids = sent(there.port, calling="ORTHANC")
        put(orthanc, "/modalities/node", ["LUMINODE", "127.0.0.1", there.port], "PUT")
        wanted = {"DicomInstances": [[CT, uid] for uid in (*uids, "1.2.3.4")]}
        asked = put(orthanc, "/modalities/node/storage-commitment", wanted, "POST")
        where = f"/storage-commitment/{asked['ID']}"
        wait_until(lambda: orthanc.get(where)["Status"] != "Pending", 60, "Orthanc was told")
        result = orthanc.get(where)
        assert result["Status"] == "Failure"
        assert {i["SOPInstanceUID"] for i in result["Success"]} == set(uids)
        assert [i["SOPInstanceUID"] for i in result["Failures"]] == ["1.2.3.4"]
        assert "not available" in result["Failures"][0]["Description"]  # its words for 0112H


def put(orthanc: OrthancPeer, path: str, body: object, method: str) -> dict[str, str]:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{orthanc.http_port}{path}", json.dumps(body).encode(), method=method
    )
    with urllib.request.urlopen(asked, timeout=20) as answer:
        found: dict[str, str] = json.loads(answer.read() or b"{}")
        return found


def states(store: Store) -> list[str]:
    return [str(each.state) for each in store.commitments.list()]
