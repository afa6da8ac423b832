"""Who may associate, how slow a peer may be, which refusal has which status: pure rules."""

from __future__ import annotations

import errno
from datetime import UTC, datetime

import pytest
from pynetdicom import build_context

from node.config.network import HostPort, Peer
from node.config.schema import Config, NodeSettings, StoreSettings
from node.dicom.scan import Ids
from node.errors import HeaderFault, OutOfSpace, StoreError
from node.receive.alarm import AGAIN_S, MOST, Alarm
from node.receive.commands import parse
from node.receive.guard import COURTESY, PATIENCE_S, Gate
from node.receive.intake import Refusal, as_refusal, refuse_command, refuse_ids
from node.receive.pace import FLOOR, LONG_S, Pace
from node.receive.terms import APPLICATION_CONTEXT, admit, seats, terms
from tests.senders import CT, MR, store_rq

NODE = NodeSettings(
    listen=HostPort(host="127.0.0.1", port=0),
    accept_from=(Peer(ae_title="CT1"), Peer(ae_title="MR1", addresses=("10.1.0.0/16", "192.0.2.7"))),
)


@pytest.mark.parametrize(
    ("calling", "called", "address", "context", "told"),
    [
        ("CT1", "LUMINODE", "10.9.9.9", APPLICATION_CONTEXT, None),
        ("MR1", "LUMINODE", "10.1.2.3", APPLICATION_CONTEXT, None),
        ("MR1", "LUMINODE", "192.0.2.7", APPLICATION_CONTEXT, None),
        ("MR1", "LUMINODE", "::ffff:10.1.2.3", APPLICATION_CONTEXT, None),
        ("MR1", "LUMINODE", "10.2.0.1", APPLICATION_CONTEXT, (1, 1, 3)),
        ("WHO", "LUMINODE", "10.1.2.3", APPLICATION_CONTEXT, (1, 1, 3)),
        ("ct1", "LUMINODE", "10.1.2.3", APPLICATION_CONTEXT, (1, 1, 3)),
        ("CT1", "OTHER", "10.9.9.9", APPLICATION_CONTEXT, (1, 1, 7)),
        ("WHO", "OTHER", "10.9.9.9", APPLICATION_CONTEXT, (1, 1, 7)),
        ("CT1", "LUMINODE", "10.9.9.9", "1.2.3", (1, 1, 2)),
        ("CT1", "LUMINODE", "10.9.9.9", "", (1, 1, 2)),
    ],
)
def test_who_may_associate(
    calling: str, called: str, address: str, context: str, told: tuple[int, int, int] | None
) -> None:
    rejection = admit(NODE, calling_ae=calling, called_ae=called, address=address, context=context)
    assert (rejection and (rejection.result, rejection.source, rejection.reason)) == told


def test_any_and_another_called_title_if_the_config_says_so() -> None:
    node = NODE.model_copy(update={"accept_from": "any", "require_called_ae": False})
    assert admit(node, calling_ae="X", called_ae="Y", address="1.2.3.4", context=APPLICATION_CONTEXT) is None


def test_terms_are_a_snapshot_of_the_configuration() -> None:
    config = Config(node=NODE, store=StoreSettings(refuse_below=7, duplicates="replace"))
    one = terms(config)
    assert (one.refuse_below, one.duplicates, one.max_instance) == (7, "replace", 2_000_000_000)
    assert terms(config, one.contexts).contexts is one.contexts


def test_new_jobs_are_rejected_before_instances_are_refused() -> None:
    def of(**store: int) -> int:
        return terms(Config(node=NODE, store=StoreSettings(**store))).reject_below  # type: ignore[arg-type]

    assert of(refuse_below=8_000) == 10_000
    assert of(refuse_below=0) == 0
    assert of(refuse_below=8_000, reject_below=8_000) == 8_000
    with pytest.raises(ValueError, match="less than `refuse_below`"):
        of(refuse_below=8_000, reject_below=7_999)


def test_an_association_that_proposes_storage_is_told_from_an_echo() -> None:
    contexts = terms(Config(node=NODE)).contexts
    assert not contexts.for_storage([build_context("1.2.840.10008.1.1"), build_context("1.2.3")])
    assert contexts.for_storage([build_context("1.2.840.10008.1.1"), build_context(CT)])


# --- pace ---------------------------------------------------------------------------------------------


def pace() -> Pace:
    return Pace(pdu_s=20, dimse_s=60, network_s=120, now=0.0)


def test_silence_is_bounded_more_tightly_inside_a_message() -> None:
    one = pace()
    assert one.late(120.0) == ""
    assert one.late(120.1) == "silence"
    one.heard(100.0, 10, pdus=1, partial=False, in_message=True)
    assert one.late(160.0) == ""
    assert one.late(160.1) == "silence inside a message"
    assert one.wait_s(100.0) == pytest.approx(60.001)


def test_dripping_bytes_do_not_extend_a_pdu() -> None:
    one = pace()
    for second in range(0, 30, 2):
        one.heard(float(second), 1, pdus=0, partial=True, in_message=False)
    assert one.late(19.9) == ""
    assert one.late(20.1) == "a PDU took too long"
    assert one.wait_s(19.0) == pytest.approx(1.001)


def test_a_new_pdu_has_its_own_time() -> None:
    one = pace()
    one.heard(0.0, 1, pdus=0, partial=True, in_message=False)
    one.heard(15.0, 100, pdus=1, partial=True, in_message=False)
    assert one.late(30.0) == ""
    assert one.late(35.1) == "a PDU took too long"


def test_tiny_complete_pdus_do_not_hold_a_message_open_for_ever() -> None:
    one = pace()
    told = ""
    for second in range(0, 600, 5):
        one.heard(float(second), 13, pdus=second, partial=False, in_message=True)
        told = one.late(float(second))
        if told:
            break
    assert told == "a message comes too slowly"
    assert second <= 70


def test_a_slow_but_steady_message_is_let_through_and_the_next_has_its_own_time() -> None:
    one = pace()
    for second in range(int(LONG_S)):
        one.heard(float(second), FLOOR, pdus=second, partial=False, in_message=True)
        assert one.late(float(second)) == ""
    one.message_ended(1000.0)
    one.heard(1000.0, 13, pdus=2000, partial=False, in_message=True)
    assert one.late(1050.0) == ""


# --- the gate -----------------------------------------------------------------------------------------


class Visitor:
    def __init__(self, address: str) -> None:
        self.address = address

    def cut(self) -> None:
        raise AssertionError("the gate only counts")


def test_the_gate_counts_connections_by_address_and_established_ones_apart() -> None:
    gate = Gate()
    crowd = [Visitor("10.0.0.1") for _ in range(4 + COURTESY)]
    for one in crowd:
        assert gate.may_enter("10.0.0.1", per_address=4, in_all=1000)
        gate.enter(one)
    assert not gate.may_enter("10.0.0.1", per_address=4, in_all=1000)
    assert gate.may_enter("10.0.0.2", per_address=4, in_all=1000)
    assert not gate.may_enter("10.0.0.2", per_address=4, in_all=4 + COURTESY)
    most = {"per_address": 2, "in_all": 3}
    assert [gate.establish(one, "CT1", per_title=None, **most) for one in crowd[:3]] == ["", "", "address"]
    for address in ("10.0.0.3", "10.0.0.4"):
        crowd.append(Visitor(address))
        gate.enter(crowd[-1])
    assert [gate.establish(one, "CT1", per_title=None, **most) for one in crowd[-2:]] == ["", "all"]
    gate.leave(crowd[0])
    gate.leave(crowd[0])
    assert gate.establish(crowd[2], "CT1", per_title=None, **most) == ""
    assert gate.n_established == 3
    for one in crowd:
        gate.leave(one)
    assert (gate.n_connections, gate.n_established) == (0, 0)
    assert gate.may_enter("10.0.0.1", per_address=4, in_all=1)


def test_a_title_has_its_own_number_of_seats_from_wherever_it_calls() -> None:
    gate = Gate()
    crowd = [Visitor(f"10.0.0.{n}") for n in range(5)]
    for one in crowd:
        gate.enter(one)
    most = {"per_address": 9, "in_all": 9}
    assert [gate.establish(one, "CT1", per_title=2, **most) for one in crowd[:3]] == ["", "", "title"]
    assert gate.establish(crowd[2], "CT2", per_title=None, **most) == ""
    gate.leave(crowd[0])
    assert gate.establish(crowd[3], "CT1", per_title=2, **most) == ""
    assert gate.establish(crowd[4], "CT1", per_title=2, **most) == "title"


def test_seats_are_those_of_the_entry_that_admits() -> None:
    known = NodeSettings(
        accept_from=(
            Peer(ae_title="CT1", addresses=("10.1.0.1",), max_associations=3),
            Peer(ae_title="CT1", max_associations=2),
            Peer(ae_title="CT2"),
        )
    )
    asked = (("CT1", "10.1.0.1"), ("CT1", "10.1.0.2"), ("CT2", "10.1.0.1"), ("CT3", "10.1.0.1"))
    assert [seats(known, *each) for each in asked] == [3, 2, None, None]
    assert seats(NodeSettings(accept_from="any"), "CT1", "10.1.0.1") is None


def test_the_oldest_idle_connection_makes_room_and_an_association_never_does() -> None:
    now = [0.0]
    gate = Gate(lambda: now[0])
    here = [Visitor("10.0.0.1") for _ in range(1 + COURTESY)]
    there = Visitor("10.0.0.2")
    for one in (there, *here):
        gate.enter(one)
    assert gate.establish(here[0], "CT1", per_title=None, per_address=1, in_all=9) == ""
    assert gate.idler("10.0.0.1", per_address=1) is None
    now[0] = PATIENCE_S + 0.1
    assert gate.idler("10.0.0.1", per_address=1) is here[1]
    assert gate.idler("10.0.0.3", per_address=1) is here[1]  # of the address that has most
    for one in here[2:]:
        gate.leave(one)
    assert gate.idler("10.0.0.3", per_address=1) is there  # of all
    for one in (there, here[1]):
        gate.leave(one)
    assert gate.idler("10.0.0.3", per_address=1) is None


def test_a_storm_of_newcomers_does_not_take_the_seats_of_those_who_come_alone() -> None:
    gate = Gate(lambda: 0.0)
    storm = [Visitor("10.0.0.1") for _ in range(8)] + [Visitor("10.0.0.2") for _ in range(7)]
    for one in storm:
        gate.enter(one)
    alone = Visitor("10.0.0.3")
    assert gate.idler(alone.address, per_address=9) is storm[0]
    gate.leave(storm[0])
    gate.enter(alone)
    assert gate.idler("10.0.0.1", per_address=9) is None
    assert gate.idler("10.0.0.2", per_address=9) is None


# --- statuses (R4) --------------------------------------------------------------------------------------


def refused(uid: str = "1.2.3", sop_class: str = CT, data_type: int = 1, **more: object) -> int | None:
    arguments: dict[str, object] = {
        "abstract_syntax": CT, "is_storage": True, "authorized": True, "free": 100, "refuse_below": 10,
        **more,
    }  # fmt: skip
    wrong = refuse_command(parse(store_rq(uid, sop_class, data_type=data_type)), **arguments)  # type: ignore[arg-type]
    return wrong.status if wrong else None


def test_each_refusal_of_a_command_has_its_status() -> None:
    assert refused() is None
    assert refused(authorized=False) == 0x0124
    assert refused(is_storage=False) == 0x0122
    assert refused(sop_class=MR) == 0x0122
    assert refused(sop_class="nonsense") == 0x0122
    assert refused(uid="") == 0x0117
    assert refused(uid="1.2.x") == 0x0117
    assert refused(uid="1" * 65) == 0x0117
    assert refused(data_type=0x101) == 0x0212
    assert refused(free=9) == 0xA700


def test_a_data_set_that_contradicts_its_command_is_a900() -> None:
    command = parse(store_rq("1.2.3", CT))
    assert refuse_ids(command, Ids(CT, "1.2.3", "1.4", "1.5")) is None
    assert refuse_ids(command, Ids("", "", "1.4", "1.5")) is None
    for ids in (Ids(CT, "1.2.4", "1.4", "1.5"), Ids(MR, "1.2.3", "1.4", "1.5")):
        wrong = refuse_ids(command, ids)
        assert wrong is not None
        assert wrong.status == 0xA900


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OutOfSpace("full"), 0xA700),
        (StoreError("away"), 0xA700),
        (OSError(errno.EIO, "input/output error"), 0xA700),
        (OSError(errno.ENOSPC, "no space"), 0xA700),
        (Refusal(0xA900, "x"), 0xA900),
        (HeaderFault("x"), 0xC000),
        (ValueError("1.2.3 DOE^JANE"), 0x0110),
        (KeyError("x"), 0x0110),
        (AssertionError(), 0x0110),
        (RecursionError(), 0x0110),
        (MemoryError(), 0xA700),
        (NotImplementedError(), 0x0110),
    ],
)
def test_no_exception_is_ever_success_nor_quoted(error: Exception, status: int) -> None:
    wrong = as_refusal(error)
    assert wrong.status == status
    assert len(wrong.message) <= 64
    assert "DOE" not in wrong.message


# --- alarm --------------------------------------------------------------------------------------------


class Events:
    def __init__(self) -> None:
        self.added: list[tuple[str, dict[str, object]]] = []

    def add(self, level: str, name: str, body: dict[str, object], at: object) -> None:
        self.added.append((name, body))
        if body.get("because") == "broken":
            raise OSError("away")


def test_the_same_is_told_once_a_minute_and_never_more_than_a_person_can_read() -> None:
    events, now = Events(), [0.0]
    alarm = Alarm(events, lambda: datetime.now(UTC), lambda: now[0])  # type: ignore[arg-type]
    for _ in range(5):
        alarm.tell("assoc.rejected", event=True, address="10.0.0.1", because="unknown")
    alarm.tell("connection.refused", address="10.0.0.1")
    assert events.added == [("assoc.rejected", {"address": "10.0.0.1", "because": "unknown"})]
    now[0] = AGAIN_S
    alarm.tell("assoc.rejected", event=True, address="10.0.0.1", because="unknown")
    assert events.added[1][1]["times_before"] == 4
    for face in range(1000):
        alarm.tell("assoc.rejected", event=True, address="10.0.0.1", calling_ae=f"X{face}")
    assert len(events.added) <= 2 + MOST
    now[0] = 2 * AGAIN_S
    alarm.tell("assoc.rejected", event=True, because="broken")


def test_what_is_told_as_0_before_it_happens_can_happen() -> None:
    from node.receive import counts, intake
    from node.receive import terms as rejections

    told = (v for v in vars(rejections).values() if isinstance(v, rejections.Rejection))
    reasons = {each.because.replace(" ", "_") for each in told}
    assert set(counts.KNOWN[counts.REJECTED]) <= reasons
    refusals = {f"{v[0]:04X}" for v in vars(intake).values() if isinstance(v, tuple) and len(v) == 2 and v[1]}
    assert set(counts.KNOWN[counts.REFUSED]) <= refusals
    one = counts.Counts()
    one.add(counts.REJECTED, "out of space")
    assert one.told()[counts.REJECTED]["out_of_space"] == 1
