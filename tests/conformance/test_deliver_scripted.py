"""What a sender makes of everything that a peer may answer, or not answer (R30-R33)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from node.deliver.dimse import FALLBACKS, associations
from node.deliver.kinds import destination
from node.deliver.parcel import Parcel
from node.deliver.wire import connect
from node.dicom.transcode import transcode
from node.errors import AssociationRejected, DeliveryError, InstanceRefused, PeerUnreachable
from node.model import Outcome
from tests.parcels import CT, EXPLICIT, ct_parcels
from tests.peers import BIG_ENDIAN, DEFLATED, IMPLICIT, J2K_LOSSLESS, wait_until
from tests.scripted import (
    ABORT,
    CLOSE,
    ENDLESS,
    GARBAGE,
    PROVIDER_ABORT,
    RELEASE,
    RESET,
    SILENCE,
    WRONG_COMMAND,
    WRONG_MESSAGE,
    Reject,
    ScriptedScp,
    Status,
    dimse_settings,
)

Scripted = Callable[..., ScriptedScp]


@pytest.fixture
def parcels(tmp_path: Path) -> list[Parcel]:
    return ct_parcels(tmp_path / "spool", 6)


def send(
    scp: ScriptedScp, parcels: list[Parcel], *, done: frozenset[str] = frozenset(), timeout: float = 5.0
) -> tuple[list[Outcome], DeliveryError | None]:
    told: list[Outcome] = []
    where = destination(scp.settings(timeout=timeout))
    try:
        where.send(parcels, on_outcome=told.append, done=done)
    except DeliveryError as error:
        return told, error
    return told, None


REJECTIONS = [
    (Reject(1, 1, 1), False), (Reject(1, 1, 2), False), (Reject(1, 1, 3), False), (Reject(1, 1, 7), False),
    (Reject(1, 2, 1), False), (Reject(1, 2, 2), False), (Reject(2, 3, 0), True), (Reject(2, 3, 1), True),
    (Reject(2, 3, 2), True), (Reject(2, 1, 1), True),
]  # fmt: skip


@pytest.mark.parametrize(("reject", "transient"), REJECTIONS, ids=str)
def test_a_rejection_is_retryable_as_the_peer_says(
    scripted: Scripted, parcels: list[Parcel], reject: Reject, transient: bool
) -> None:
    scp = scripted(associate=lambda _n: reject)
    told, error = send(scp, parcels)
    assert told == []
    assert isinstance(error, AssociationRejected)
    assert error.retryable is transient
    assert f"{reject.result}/{reject.source}/{reject.reason}" in error.message
    assert bool(error.hint) is not transient


@pytest.mark.parametrize("what", [ABORT, PROVIDER_ABORT, CLOSE, RESET, GARBAGE, ENDLESS, SILENCE])
def test_no_association_is_a_peer_that_cannot_be_reached(
    scripted: Scripted, parcels: list[Parcel], what: str
) -> None:
    scp = scripted(associate=lambda _n: what)
    started = time.monotonic()
    told, error = send(scp, parcels, timeout=1.0)
    assert told == []
    assert isinstance(error, PeerUnreachable)
    assert error.retryable
    assert time.monotonic() - started < 30


STATUSES = [
    # status, done, retryable
    (0x0000, True, False), (0x0111, True, False), (0xB000, True, False), (0xB006, True, False),
    (0xB007, True, False), (0xB123, True, False), (0xA700, False, True), (0xA701, False, True),
    (0xA7FF, False, True), (0x0110, False, True), (0xA900, False, False), (0xA9FF, False, False),
    (0xC000, False, False), (0xC123, False, False), (0xCFFF, False, False), (0x0117, False, False),
    (0x0122, False, False), (0x0124, False, False), (0x1234, False, False),
]  # fmt: skip


@pytest.mark.parametrize(("status", "done", "retryable"), STATUSES, ids=lambda v: f"{v:04X}")
def test_a_status_means_what_the_table_says_and_one_poison_instance_stops_no_other(
    scripted: Scripted, parcels: list[Parcel], status: int, done: bool, retryable: bool
) -> None:
    poison = parcels[2].sop_instance_uid
    scp = scripted(store=lambda _n, uid: Status(status, "disk 3") if uid == poison else 0)
    told, error = send(scp, parcels)
    assert error is None
    assert scp.n_associations == scp.n_released == 1
    by_uid = {o.sop_instance_uid: o for o in told}
    assert len(told) == len(by_uid) == 6
    one = by_uid.pop(poison)
    assert (one.status, one.done, one.retryable, one.comment) == (status, done, retryable, "disk 3")
    assert all(o.status == 0 and o.done for o in by_uid.values())


@pytest.mark.parametrize(
    "what",
    [ABORT, PROVIDER_ABORT, CLOSE, RESET, RELEASE, GARBAGE, ENDLESS, WRONG_MESSAGE, WRONG_COMMAND, SILENCE],
)
def test_a_lost_answer_is_unknown_and_the_association_is_not_used_again(
    scripted: Scripted, parcels: list[Parcel], what: str
) -> None:
    scp = scripted(store=lambda n, _uid: what if n == 2 else 0)
    told, error = send(scp, parcels, timeout=1.0)
    assert isinstance(error, PeerUnreachable)
    assert error.retryable
    assert [o.done for o in told] == [True, True, False]
    assert told[2].status == -1
    assert told[2].retryable
    assert scp.n_stores == 3
    # the rest, on a new association; what was unknown is simply sent again
    done = frozenset(o.sop_instance_uid for o in told if o.done)
    again, error = send(scp, parcels, done=done)
    assert error is None
    assert [o.done for o in again] == [True] * 4
    assert scp.n_associations == 2
    assert scp.uids() == sorted(p.sop_instance_uid for p in parcels)


def test_a_peer_that_is_full_is_left_before_all_is_thrown_at_it(
    scripted: Scripted, parcels: list[Parcel]
) -> None:
    scp = scripted(store=lambda n, _uid: 0 if n == 0 else 0xA700)
    told, error = send(scp, parcels)
    assert isinstance(error, InstanceRefused)
    assert (error.status, error.retryable) == (0xA700, True)
    assert [o.done for o in told] == [True, False, False, False]


def test_an_error_comment_with_a_patient_in_it_gets_into_no_exception(
    scripted: Scripted, parcels: list[Parcel]
) -> None:
    scp = scripted(store=lambda _n, _uid: Status(0xA700, "Doe^John 4711"))
    _, error = send(scp, parcels)
    assert error is not None
    assert "Doe" not in error.message + error.hint + repr(error)


# presentation contexts ----------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, J2K_LOSSLESS])
@pytest.mark.parametrize("taken", [EXPLICIT, IMPLICIT])
def test_a_refused_transfer_syntax_is_re_encoded_without_loss(
    scripted: Scripted, tmp_path: Path, stored: str, taken: str
) -> None:
    one = ct_parcels(tmp_path / "spool", 2, syntax=stored)
    plain = ct_parcels(tmp_path / "plain", 2, syntax=taken)
    scp = scripted(accepts=lambda _c, s: s == taken)
    told, error = send(scp, one)
    assert error is None
    assert all(o.done for o in told)
    assert [s.transfer_syntax_uid for s in scp.stored] == [taken, taken]
    for stored_there, same in zip(scp.stored, plain, strict=True):
        assert stored_there.data == same.path.read_bytes()[same.offset :]


def test_an_archive_that_takes_compressed_images_only_gets_them_without_loss(
    scripted: Scripted, tmp_path: Path
) -> None:
    parcels = ct_parcels(tmp_path / "spool", 2)
    scp = scripted(accepts=lambda _c, s: s == J2K_LOSSLESS)
    told, error = send(scp, parcels)
    assert error is None
    assert all(o.done for o in told)
    wanted = [transcode(p.path, p.offset, p.transfer_syntax_uid, J2K_LOSSLESS) for p in parcels]
    assert [s.data for s in scp.stored] == wanted


def test_what_is_taken_as_stored_goes_out_byte_by_byte(scripted: Scripted, tmp_path: Path) -> None:
    parcels = ct_parcels(tmp_path / "spool", 2, syntax=J2K_LOSSLESS)
    scp = scripted()
    send(scp, parcels)
    assert [s.data for s in scp.stored] == [p.path.read_bytes()[p.offset :] for p in parcels]
    assert {s.transfer_syntax_uid for s in scp.stored} == {J2K_LOSSLESS}


def test_a_class_that_is_not_accepted_is_refused_and_others_go_through(
    scripted: Scripted, tmp_path: Path
) -> None:
    mr = "1.2.840.10008.5.1.4.1.1.4"
    first = ct_parcels(tmp_path / "ct", 2)
    second = ct_parcels(tmp_path / "mr", 2, first=11, sop_class=mr)
    scp = scripted(accepts=lambda c, _s: c == CT)
    told, error = send(scp, [second[0], *first, second[1]])
    assert error is None
    assert [(o.status, o.done, o.retryable) for o in told] == [
        (0x0122, False, False), (0, True, False), (0, True, False), (0x0122, False, False),
    ]  # fmt: skip


def test_nothing_accepted_at_all_is_told_of_each(scripted: Scripted, parcels: list[Parcel]) -> None:
    scp = scripted(accepts=lambda _c, _s: False)
    told, error = send(scp, parcels)
    assert error is None
    assert [o.status for o in told] == [0x0122] * 6
    assert scp.n_released == 1


def test_each_class_is_proposed_once_for_each_syntax_and_no_association_has_too_many(tmp_path: Path) -> None:
    some = ct_parcels(tmp_path / "spool", 1)[0]
    many = [
        replace(some, sop_class_uid=f"1.2.{n % 90}", transfer_syntax_uid=s, sop_instance_uid=f"1.3.{n}")
        for n in range(180)
        for s in (EXPLICIT, J2K_LOSSLESS)
    ]
    groups = list(associations(many))
    assert sorted(p.sop_instance_uid for _, g in groups for p in g) == sorted(
        p.sop_instance_uid for p in many
    )
    assert [len(contexts) for contexts, _ in groups] == [126, 126, 18]
    for contexts, group in groups:
        assert len(set(contexts)) == len(contexts)
        classes = {p.sop_class_uid for p in group}
        assert {c for c, _ in contexts} == classes
        assert {s for _, s in contexts} == {*FALLBACKS, J2K_LOSSLESS}


# the wire -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_pdu", [0, 4096, 16382, 16384, 131072, 4 << 20])
def test_no_pdu_is_larger_than_the_peer_allows(scripted: Scripted, tmp_path: Path, max_pdu: int) -> None:
    parcels = ct_parcels(tmp_path / "spool", 2, side=400)  # 320 kB
    scp = scripted(max_pdu=max_pdu)
    told, error = send(scp, parcels)
    assert error is None
    assert all(o.done for o in told)
    assert scp.largest_pdu <= (max_pdu or 1 << 20)
    assert [s.data for s in scp.stored] == [p.path.read_bytes()[p.offset :] for p in parcels]


def test_a_data_set_larger_than_memory_is_meant_for_is_streamed(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.deliver.parcel.IN_MEMORY", 100_000)
    parcels = ct_parcels(tmp_path / "spool", 3, side=400)
    scp = scripted(max_pdu=16384)
    told, error = send(scp, parcels)
    assert error is None
    assert [o.done for o in told] == [True] * 3
    assert [s.data for s in scp.stored] == [p.path.read_bytes()[p.offset :] for p in parcels]


def test_a_peer_that_stops_reading_is_left_in_bounded_time(scripted: Scripted, tmp_path: Path) -> None:
    parcels = ct_parcels(tmp_path / "spool", 2, side=2000)  # 8 MB: more than the buffers on the way hold
    scp = scripted(reads_at_most=100_000)
    started = time.monotonic()
    told, error = send(scp, parcels, timeout=1.0)
    assert isinstance(error, PeerUnreachable)
    assert "stopped taking data" in error.message
    assert [(o.status, o.done) for o in told] == [(-1, False)]
    assert time.monotonic() - started < 30


def test_an_address_that_swallows_connections_is_left_in_bounded_time(parcels: list[Parcel]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        port = full.getsockname()[1]
        for _ in range(4):  # whoever comes after the backlog is full gets no answer to its SYN
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        started = time.monotonic()
        with pytest.raises(PeerUnreachable, match="nobody answers"):
            destination(dimse_settings(port, "X", timeout=0.5)).send(parcels, on_outcome=lambda _o: None)
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("dead", ["silent", "refuses", "unreachable"])
def test_a_dead_address_of_a_name_keeps_nothing_from_the_live_one(
    scripted: Scripted, parcels: list[Parcel], monkeypatch: pytest.MonkeyPatch, dead: str
) -> None:
    """As with IPv6 that leads nowhere, or a PACS of two hosts of which one is off."""
    scp = scripted()
    family = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
    where = {"silent": "127.0.0.2", "refuses": "127.0.0.3", "unreachable": "255.255.255.255"}[dead]
    with socket.create_server(("127.0.0.2", scp.port), backlog=0), contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.2", scp.port))
        found = [(*family, (where, scp.port)), (*family, ("127.0.0.1", scp.port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: list(found))
        destination(scp.settings(timeout=5)).send(parcels, on_outcome=lambda _o: None)
    assert scp.uids() == sorted(p.sop_instance_uid for p in parcels)


def test_a_name_that_cannot_be_one_is_a_peer_that_cannot_be_reached() -> None:
    with pytest.raises(PeerUnreachable, match="has no address"):
        connect("a" * 70, 104, 1.0)  # no name server is asked for a label this long


def test_the_calling_ae_title_is_the_destinations_own_or_the_nodes(
    scripted: Scripted, parcels: list[Parcel]
) -> None:
    scp = scripted()
    destination(scp.settings(), "NODE").send(parcels[:1], on_outcome=lambda _o: None)
    destination(scp.settings(calling_ae="SPECIAL"), "NODE").send(parcels[:1], on_outcome=lambda _o: None)
    assert scp.calling == ["NODE", "SPECIAL"]


def test_an_echo_measures_and_tells(scripted: Scripted) -> None:
    there = destination(scripted().settings()).echo()
    assert there.ok
    assert [name for name, _ in there.parts] == ["associate", "echo"]
    assert 0 < sum(s for _, s in there.parts) <= there.seconds
    shy = destination(scripted(accepts=lambda _c, _s: False).settings()).echo()
    assert shy.ok
    stern = destination(scripted(associate=lambda _n: Reject(1, 1, 7)).settings()).echo()
    assert not stern.ok
    assert "1/1/7" in stern.text
    assert "administrator" in stern.hint
    # One that takes one association at once, which a delivery has, is not down: that was told every few seconds.
    busy = destination(scripted(associate=lambda _n: Reject(2, 3, 2)).settings()).echo()
    assert busy.ok
    assert "2/3/2" in busy.text


@pytest.mark.parametrize("how", [RELEASE, ABORT])
def test_a_pacs_that_takes_so_many_over_one_association_gets_the_rest_over_others(
    scripted: Scripted, parcels: list[Parcel], how: str
) -> None:
    """It answers, and then ends the association by itself: no try is lost over it, nor anything sent twice."""
    scp = scripted(goes_after=2, how=how)
    told, error = send(scp, parcels)
    assert error is None
    assert [o.done for o in told] == [True] * len(parcels)
    assert len(scp.stored) == len(parcels)
    assert scp.n_associations == -(-len(parcels) // 2)


def test_the_end_of_the_peer_between_two_sends_is_noticed(scripted: Scripted, parcels: list[Parcel]) -> None:
    scp = scripted()
    send(scp, parcels[:1])
    scp.stop()
    wait_until(lambda: send(scp, parcels, timeout=1.0)[1] is not None)
