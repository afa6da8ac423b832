"""C-STORE over real sockets, spoken by hand: every shape a message may have, every answer it may get."""

from __future__ import annotations

import struct

import pytest
from structlog.testing import capture_logs

from node.config.network import Peer as Allowed
from node.store import Store
from tests.receiving import House, config
from tests.senders import (
    CT,
    EXPLICIT,
    IMPLICIT,
    MR,
    RELEASE,
    VERIFICATION,
    associate_rq,
    cancel_rq,
    command_set,
    data_set,
    echo_rq,
    message,
    p_data,
    pdv,
    sha256,
    store_rq,
    ui,
    us,
)

# --- shapes -------------------------------------------------------------------------------------------

DATA = data_set("1.2.3.1", pixels=bytes(range(256)) * 40)
COMMAND = store_rq("1.2.3.1")


def split(data: bytes, *sizes: int) -> list[bytes]:
    """Pieces of these sizes, over and over."""
    out, at = [], 0
    while at < len(data):
        size = sizes[len(out) % len(sizes)]
        out.append(data[at : at + size])
        at += size
    return out


def pdvs(bits: int, parts: list[bytes]) -> list[bytes]:
    return [pdv(1, bits | (2 if n == len(parts) else 0), part) for n, part in enumerate(parts, 1)]


SHAPES = {
    "one PDU for all": p_data(pdv(1, 3, COMMAND), *pdvs(0, split(DATA, 4000))),
    "one PDV for all data": p_data(pdv(1, 3, COMMAND)) + p_data(pdv(1, 2, DATA)),
    "command in fragments": b"".join(map(p_data, pdvs(1, split(COMMAND, 7)))) + p_data(pdv(1, 2, DATA)),
    "odd fragments": p_data(pdv(1, 3, COMMAND)) + b"".join(map(p_data, pdvs(0, split(DATA, 1, 333, 77)))),
    "many in each": p_data(pdv(1, 3, COMMAND)) + p_data(*pdvs(0, split(DATA, 100))),
    "empty ones": p_data(pdv(1, 1, b""), pdv(1, 3, COMMAND), pdv(1, 0, b""))
    + p_data(pdv(1, 0, DATA), pdv(1, 0, b""), pdv(1, 2, b"")),
    "command's end with data": p_data(pdv(1, 1, COMMAND[:9]))
    + p_data(pdv(1, 3, COMMAND[9:]), pdv(1, 2, DATA)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [100_000, 997])
def test_every_shape_of_a_message_is_stored_as_sent(door: House, shape: str, step: int) -> None:
    with door.peer() as peer:
        peer.associate(CT)
        raw = SHAPES[shape]
        for at in range(0, len(raw), step):
            peer.send(raw[at : at + step])
        assert peer.answer().status == 0
        assert peer.release() == 6
    assert door.stored() == {"1.2.3.1": sha256(DATA)}
    assert door.ends(1) == ["RELEASED"]
    assert door.tmp() == []


def test_what_is_stored_says_where_it_came_from(door: House) -> None:
    with door.peer() as peer:
        peer.associate(CT, calling="CT1")
        assert peer.store("1.2.3.1", DATA).status == 0
        assert peer.release() == 6
    (one,) = door.instances()
    (association,) = door.associations()
    assert (one.calling_ae, one.called_ae, one.association) == ("CT1", "LUMINODE", association.id)
    assert (one.sop_class_uid, one.study_uid, one.series_uid) == (CT, "1.2.3", "1.2.3.4")
    assert one.transfer_syntax_uid == EXPLICIT
    assert association.address == "127.0.0.1"
    assert association.opened_at <= one.received_at


def test_a_peer_that_never_waits_is_answered_in_order(door: House) -> None:
    sets = {f"1.2.3.{n}": data_set(f"1.2.3.{n}") for n in range(1, 41)}
    with door.peer() as peer:
        peer.associate(CT, VERIFICATION)
        stream = b"".join(
            message(1, store_rq(uid, CT, n), data)
            + (message(3, echo_rq(1000 + n), None) if n % 4 == 0 else b"")
            for n, (uid, data) in enumerate(sets.items(), 1)
        )
        peer.send(stream + RELEASE)
        numbers = [peer.answer().message for _ in range(50)]
        assert peer.read()[0] == 6
    expected = [m for n in range(1, 41) for m in ((n, 1000 + n) if n % 4 == 0 else (n,))]
    assert numbers == expected
    assert door.stored() == {uid: sha256(data) for uid, data in sets.items()}
    assert door.ends(1) == ["RELEASED"]


def test_messages_interleaved_on_two_contexts_are_both_stored(door: House) -> None:
    one, two = data_set("1.2.3.1"), data_set("1.2.3.2", sop_class=MR)
    with door.peer() as peer:
        peer.associate(CT, MR)
        peer.send(
            p_data(
                pdv(1, 3, store_rq("1.2.3.1", CT, 1)),
                pdv(1, 0, one[:50]),
                pdv(3, 3, store_rq("1.2.3.2", MR, 2)),
            )
            + p_data(pdv(3, 0, two[:31]), pdv(1, 0, one[50:90]), pdv(3, 2, two[31:]), pdv(1, 2, one[90:]))
        )
        assert [(a.message, a.status) for a in (peer.answer(), peer.answer())] == [(2, 0), (1, 0)]
    assert door.stored() == {"1.2.3.1": sha256(one), "1.2.3.2": sha256(two)}


def test_an_echo_between_stores_and_an_echo_inside_one(door: House) -> None:
    with door.peer() as peer:
        peer.associate(CT, VERIFICATION)
        assert peer.store("1.2.3.1", DATA).status == 0
        peer.send(message(3, echo_rq(7), None))
        answer = peer.answer()
        assert (answer.field, answer.message, answer.status) == (0x8030, 7, 0)
        peer.send(p_data(pdv(1, 3, store_rq("1.2.3.2"))) + p_data(pdv(3, 3, echo_rq(8)), pdv(1, 0, b"")))
        assert peer.answer().message == 8
        peer.send(p_data(pdv(1, 2, data_set("1.2.3.2"))))
        assert peer.answer().status == 0


def test_a_cancel_of_nothing_and_a_response_to_nothing_are_passed_over(door: House) -> None:
    with door.peer() as peer:
        peer.associate(CT)
        for number in range(30):
            peer.send(message(1, cancel_rq(number), None))
        stray = command_set({0x100: us(0x8001), 0x120: us(5), 0x800: us(1), 0x900: us(0)})
        peer.send(message(1, stray, b"whatever"))
        assert peer.store("1.2.3.1", DATA).status == 0


@pytest.mark.parametrize(
    ("field", "has_data"), [(0x20, True), (0x21, True), (0x100, True), (0x130, True), (0x150, False)]
)
def test_other_operations_are_refused_and_the_association_goes_on(
    door: House, field: int, has_data: bool
) -> None:
    rq = command_set(
        {2: ui(CT), 0x100: us(field), 0x110: us(4), 0x800: us(1 if has_data else 0x101), 0x1000: ui("1.2.9")}
    )
    with door.peer() as peer:
        peer.associate(CT)
        peer.send(message(1, rq, b"some data set" if has_data else None))
        answer = peer.answer()
        assert (answer.field, answer.message, answer.status) == (field | 0x8000, 4, 0x211)
        assert peer.store("1.2.3.1", DATA).status == 0


def test_an_event_report_on_the_verification_context_is_refused(door: House) -> None:
    rq = command_set({2: ui("1.2.840.10008.1.20.1"), 0x100: us(0x100), 0x110: us(4), 0x800: us(0x101)})
    with door.peer() as peer:
        peer.associate(CT, VERIFICATION)
        peer.send(message(3, rq, None))
        assert peer.answer().status == 0x211


def test_a_response_respects_the_peers_largest_pdu(door: House) -> None:
    with door.peer() as peer:
        peer.associate(CT, largest_pdu=64)
        peer.send(message(1, store_rq("1.2.3.1"), DATA))
        raw, control = b"", 1
        while not control & 2:
            kind, body = peer.read()
            assert kind == 4
            assert len(body) <= 64
            raw, control = raw + body[6:], body[5]
        assert us(0x8001) in raw
        assert raw.endswith(ui("1.2.3.1"))


# --- statuses -----------------------------------------------------------------------------------------

BAD = {
    "0117 no UID": ("1.2.x", data_set("1.2.x"), 0x0117),
    "0117 none": ("", data_set("1.2.3"), 0x0117),
    "0117 path": ("../../etc/passwd", data_set("1.2.3"), 0x0117),
    "0117 long": ("1" * 65, data_set("1.2.3"), 0x0117),
    "A900 instance": ("1.2.3.1", data_set("1.2.3.2"), 0xA900),
    "A900 class": ("1.2.3.1", data_set("1.2.3.1", sop_class=MR), 0xA900),
    "A900 no study": ("1.2.3.1", data_set("1.2.3.1", study=""), 0xA900),
    "A900 no series": ("1.2.3.1", data_set("1.2.3.1", series=""), 0xA900),
    "0117 series": ("1.2.3.1", data_set("1.2.3.1", series="1.2/../3"), 0x0117),
    "C000 empty": ("1.2.3.1", b"", 0xC000),
    "C000 noise": ("1.2.3.1", b"\x08\0\x18\0" * 300, 0xC000),
    "C000 cut": ("1.2.3.1", data_set("1.2.3.1")[:40], 0xC000),
    "C000 implicit": ("1.2.3.1", struct.pack("<HHL", 8, 0x18, 8) + b"1.2.3.1\0", 0xC000),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_stored_has_its_status_and_leaves_nothing(door: House, case: str) -> None:
    uid, data, status = BAD[case]
    with door.peer() as peer:
        peer.associate(CT)
        answer = peer.store(uid, data)
        assert answer.status & 0xFFFF == status
        assert 0 < len(answer.comment) <= 64
        assert "TEST" not in answer.comment
        assert answer.values.get(0x1000, b"").rstrip(b"\0").decode() in (uid, "")
        assert door.tmp() == []
        assert peer.store("1.2.3.1", DATA).status == 0
    assert list(door.stored()) == ["1.2.3.1"]


def test_a_class_that_is_not_that_of_its_context_and_a_store_without_data(door: House) -> None:
    with door.peer() as peer:
        peer.associate(CT, VERIFICATION)
        assert peer.store("1.2.3.1", DATA, sop_class=MR).status == 0x0122
        assert peer.store("1.2.3.1", DATA, context=3, sop_class=VERIFICATION).status == 0x0122
        peer.send(message(1, store_rq("1.2.3.1", data_type=0x101), None))
        assert peer.answer().status == 0x0212
    assert door.stored() == {}


def test_a_data_set_without_sop_uids_goes_by_its_command(door: House) -> None:
    data = data_set("", sop_class="")
    with door.peer() as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", data).status == 0
    assert door.stored() == {"1.2.3.1": sha256(data)}


def test_out_of_space_is_a700_until_there_is_space(door: House) -> None:
    with door.peer() as peer:
        peer.associate(CT)
        door.receiver.apply(config(store={"refuse_below": 10**18}))
        answer = peer.store("1.2.3.1", DATA)
        assert (answer.status, door.tmp()) == (0xA700, [])
        door.receiver.apply(config())
        assert peer.store("1.2.3.1", DATA).status == 0


def test_a_data_set_over_the_limit_is_a700_and_one_without_end_is_aborted(door: House) -> None:
    door.receiver.apply(config(max_instance=1_000_000))
    with door.peer() as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", data_set("1.2.3.1", pixels=bytes(1_000_001))).status == 0xA700
        assert door.tmp() == []
        assert peer.store("1.2.3.1", data_set("1.2.3.1", pixels=bytes(999_000))).status == 0
        peer.send(p_data(pdv(1, 3, store_rq("1.2.3.2"))))
        peer.send(p_data(pdv(1, 0, bytes(16000))) * 200)
        assert peer.read()[0] == 7
    assert door.ends(1) == ["ABORTED"]
    assert door.tmp() == []
    assert list(door.stored()) == ["1.2.3.1"]


def test_a_title_that_is_no_longer_accepted_may_not_store(door: House) -> None:
    with door.peer() as peer:
        peer.associate(CT, calling="CT1")
        assert peer.store("1.2.3.1", DATA).status == 0
        door.receiver.apply(config(accept_from=(Allowed(ae_title="CT2"),)))
        assert peer.store("1.2.3.2", data_set("1.2.3.2")).status == 0x0124
        door.receiver.apply(config(accept_from=(Allowed(ae_title="CT1"),)))
        assert peer.store("1.2.3.2", data_set("1.2.3.2")).status == 0


# --- duplicates (R7) ------------------------------------------------------------------------------------


def send_twice(door: House, first: bytes, second: bytes) -> list[int]:
    with door.peer() as peer:
        peer.associate(CT)
        return [peer.store("1.2.3.1", first).status, peer.store("1.2.3.1", second).status]


def conflicts(store: Store) -> list[str]:
    return [event.name for event in store.events.list(name="instance.conflict")]


def test_the_same_bytes_again_are_a_success_and_nothing_more(door: House) -> None:
    assert send_twice(door, DATA, DATA) == [0, 0]
    assert door.stored() == {"1.2.3.1": sha256(DATA)}
    assert conflicts(door.store) == []


def test_other_bytes_under_the_same_uid_keep_the_first(door: House) -> None:
    other = data_set("1.2.3.1", pixels=b"other pixels")
    assert send_twice(door, DATA, other) == [0, 0xA900]
    assert door.stored() == {"1.2.3.1": sha256(DATA)}
    assert conflicts(door.store) == ["instance.conflict"]
    assert len([f for f in door.store.spool.walk() if f.area == "received"]) == 2


def test_a_release_after_a_refusal_is_no_evidence_that_all_was_sent(door: House) -> None:
    """Many senders release at once after the first refusal, with the rest of the series unsent."""
    with door.peer() as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", DATA).status == 0
        assert peer.store("1.2.3.1", data_set("1.2.3.1", pixels=b"other pixels")).status == 0xA900
        peer.release()
    assert door.ends(1) == ["INCOMPLETE"]


def test_other_bytes_under_the_same_uid_replace_if_the_policy_says_so(door: House) -> None:
    other = data_set("1.2.3.1", pixels=b"other pixels")
    door.receiver.apply(config(store={"duplicates": "replace"}))
    assert send_twice(door, DATA, other) == [0, 0]
    assert door.stored() == {"1.2.3.1": sha256(other)}
    assert conflicts(door.store) == ["instance.conflict"]


def test_the_same_bytes_under_another_transfer_syntax_do_not_move_a_byte(door: House) -> None:
    with door.peer() as peer:
        contexts = [(1, CT, [EXPLICIT]), (3, CT, ["1.2.840.10008.1.2.4.201"])]
        assert peer.ask(associate_rq(contexts))[0] == 2
        assert [peer.store("1.2.3.1", DATA, context).status for context in (1, 3, 1)] == [0, 0, 0]
    assert door.stored() == {"1.2.3.1": sha256(DATA)}


# --- association control --------------------------------------------------------------------------------


def rejected(door: House, **more: object) -> tuple[int, int, int] | None:
    """(result, source, reason) of the rejection, None if the association was accepted."""
    contexts = [(1, CT, [EXPLICIT])]
    with door.peer() as peer:
        kind, body = peer.ask(associate_rq(contexts, **more))  # type: ignore[arg-type]
        assert kind in (2, 3)
        return (body[1], body[2], body[3]) if kind == 3 else None


def test_who_is_rejected_and_how(door: House) -> None:
    allowed = (Allowed(ae_title="CT1"), Allowed(ae_title="MR1", addresses=("192.0.2.0/24",)))
    door.receiver.apply(config(accept_from=allowed, ae_title="NODE"))
    assert rejected(door, calling="CT1", called="NODE") is None
    assert rejected(door, calling="CT1", called="LUMINODE") == (1, 1, 7)
    assert rejected(door, calling="CT2", called="NODE") == (1, 1, 3)
    assert rejected(door, calling="MR1", called="NODE") == (1, 1, 3)
    assert rejected(door, calling="CT1", called="NODE", application="1.2.3") == (1, 1, 2)
    assert rejected(door, calling="CT1", called="NODE", version=2) == (1, 2, 2)
    assert door.ends(1) == ["LOST"]  # the accepted one, which closed without a release
    assert len(door.store.series.list()) == 0


def test_contexts_are_answered_one_by_one(door: House) -> None:
    contexts = [
        (1, CT, [IMPLICIT, EXPLICIT]), (3, CT, ["1.2.3.4"]), (5, "1.2.840.10008.5.1.4.1.2.2.1", [IMPLICIT]),
        (7, VERIFICATION, [IMPLICIT]), (9, CT, ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"]),
    ]  # fmt: skip
    with door.peer() as peer:
        assert peer.ask(associate_rq(contexts))[0] == 2
        assert peer.results == {1: 0, 3: 4, 5: 3, 7: 0, 9: 0}
        assert peer.accepted == {1: EXPLICIT, 7: IMPLICIT, 9: "1.2.840.10008.1.2.4.70"}
        assert peer.largest_pdu == 131072


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (message(3, store_rq("1.2.3.1"), DATA), 6),
        (message(99, store_rq("1.2.3.1"), DATA), 6),
        (p_data(pdv(1, 2, DATA)), 5),
        (p_data(pdv(1, 3, b"nonsense")), 6),
        (b"\x09\0\0\0\0\1x", 1),
        (associate_rq([(1, CT, [EXPLICIT])]), 2),
        (b"\4\0\xff\xff\xff\xff", 6),
    ],
    ids=[
        "context rejected",
        "context unknown",
        "data only",
        "no command",
        "no PDU",
        "second request",
        "4 GiB",
    ],
)
def test_a_broken_protocol_is_aborted_with_the_reason_and_stores_nothing(
    door: House, raw: bytes, reason: int
) -> None:
    with door.peer() as peer:
        contexts = [(1, CT, [EXPLICIT]), (3, "1.2.3.4", [EXPLICIT])]
        assert peer.ask(associate_rq(contexts))[0] == 2
        assert peer.store("1.2.3.9", data_set("1.2.3.9")).status == 0
        peer.send(raw)
        kind, body = peer.read()
        assert (kind, body[2], body[3]) == (7, 2, reason)
    assert list(door.stored()) == ["1.2.3.9"]
    assert door.ends(1) == ["ABORTED"]


@pytest.mark.parametrize(
    "raw", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\3\1\2\0\1\0", p_data(pdv(1, 3, COMMAND)), b"\1"]
)
def test_what_is_no_association_request_is_cut_off(door: House, raw: bytes) -> None:
    with door.peer() as peer:
        peer.send(raw)
        if len(raw) > 1:
            assert peer.read()[0] in (0, 7)
    door.quiet()
    assert door.associations() == []


def test_a_release_inside_a_message_is_no_evidence_of_an_end(door: House) -> None:
    with door.peer() as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", DATA).status == 0
        peer.send(p_data(pdv(1, 3, store_rq("1.2.3.2")), pdv(1, 0, DATA[:100])) + RELEASE)
        assert peer.read()[0] == 6
    assert door.ends(1) == ["ABORTED"]
    assert list(door.stored()) == ["1.2.3.1"]
    assert door.tmp() == []


def test_one_association_an_instance(door: House) -> None:
    for n in range(1, 16):
        with door.peer() as peer:
            peer.associate(CT)
            assert peer.store(f"1.2.3.{n}", data_set(f"1.2.3.{n}")).status == 0
            assert peer.release() == 6
    assert len(door.stored()) == 15
    assert door.ends(15) == ["RELEASED"] * 15
    (series,) = door.store.series.list()
    assert [c.n_new for c in door.store.series.carried(series.id)] == [1] * 15


def test_nothing_of_a_patient_is_ever_logged_or_told(door: House) -> None:
    """Canaries in names, identifiers and noise; every answer and every log line is looked at."""
    canary = "CANARY^JANE"
    good = data_set("1.2.3.1", name=canary)
    bad = [
        good[:-200] + b"\xff" * 50, good[:70], data_set("1.2.3.9", name=canary),
        data_set("1.2.3.1", study=canary), good.replace(b"PN", b"\0\0"),
        data_set("1.2.3.1", series=canary, name=canary), canary.encode() * 50,
    ]  # fmt: skip
    with capture_logs() as logs, door.peer() as peer:
        peer.associate(CT)
        comments = [peer.store("1.2.3.1", data).comment for data in (good, *bad)]
        comments.append(peer.store(canary, good).comment)
        peer.send(message(1, store_rq("1.2.3.2"), None) + canary.encode() * 100)
        assert peer.read()[0] == 7
        door.quiet()
    assert any(line["event"] == "instance.refused" for line in logs)
    assert "CANARY" not in repr(logs) + repr(comments)
    assert "CANARY" not in repr(door.store.events.list())


def test_who_is_turned_away_is_an_event(door: House) -> None:
    door.receiver.apply(config(accept_from=(Allowed(ae_title="CT1"),)))
    for _ in range(3):
        assert rejected(door, calling="STRANGER") == (1, 1, 3)
    door.quiet()
    (event,) = door.store.events.list(name="assoc.rejected")
    assert event.body["calling_ae"] == "STRANGER"
    assert event.body["address"] == "127.0.0.1"
