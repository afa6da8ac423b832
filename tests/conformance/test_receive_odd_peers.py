"""Scanners that are odd and within their rights, or a little beside them: they are served like any other."""

from __future__ import annotations

import contextlib

import pytest
from pynetdicom.sop_class import _STORAGE_CLASSES

from node.config.network import Peer as Allowed
from tests.peers import wait_until
from tests.receiving import House, config
from tests.senders import (
    CT,
    EXPLICIT,
    IMPLICIT,
    MR,
    VERIFICATION,
    Peer,
    associate_rq,
    data_set,
    echo_rq,
    item,
    message,
    sha256,
)

RETIRED = (
    "1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.5", "1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.9",
    "1.2.840.10008.5.1.4.1.1.12.3", "1.2.840.10008.5.1.4.1.1.129", "1.2.840.10008.5.1.4.1.1.200.1",
)  # fmt: skip
"""Some that pynetdicom has no name for; the last is new."""


# --- who closes late -----------------------------------------------------------------------------------


def test_who_has_released_takes_no_seat_though_it_closes_late(door: House) -> None:
    """One association an instance, each released, none closed: as from a sender that leaves closing to its system."""
    door.receiver.apply(config(accept_from=(Allowed(ae_title="CT1", max_associations=2),)))
    with contextlib.ExitStack() as stack:
        for n in range(12):
            peer = stack.enter_context(door.peer())
            peer.associate(CT)
            assert peer.store(f"1.2.3.{n}", data_set(f"1.2.3.{n}")).status == 0
            assert peer.release() == 6
        assert door.receiver.load.associations == 0
    assert len(door.stored()) == 12


def test_a_release_is_on_record_before_the_peer_closes(door: House) -> None:
    """Its series must not wait for a socket that nobody will use again."""
    with door.peer() as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", data_set("1.2.3.1")).status == 0
        assert peer.release() == 6
        assert door.ends(1) == ["RELEASED"]
        peer.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.sock.recv(1)


def test_who_only_echoes_keeps_no_series_waiting(door: House) -> None:
    """An association that a scanner keeps to see whether we are there brings no slices: it is no reason to wait."""
    with door.peer() as watch, door.peer() as peer:
        watch.associate(VERIFICATION)
        watch.send(message(1, echo_rq(), None))
        assert watch.answer().status == 0
        peer.associate(CT)
        assert peer.store("1.2.3.1", data_set("1.2.3.1")).status == 0
        (one,) = door.instances()
        assert [each.id for each in door.store.series.open_associations("CT1")] == [one.association]
        watch.send(message(1, echo_rq(), None))
        assert watch.answer().status == 0


# --- odd requests ----------------------------------------------------------------------------------------


def stores_one(peer: Peer, request: bytes) -> None:
    kind, body = peer.ask(request)
    assert kind == 2, (kind, body)
    assert peer.store("1.2.3.1", data_set("1.2.3.1")).status == 0
    assert peer.release() == 6


@pytest.mark.parametrize("version", [1, 3, 0x8001, 0xFFFF])
def test_a_peer_that_speaks_later_versions_too_is_served(door: House, version: int) -> None:
    """PS3.8 9.3.2: a receiver of version 1 tests only that bit 0 is set."""
    with door.peer() as peer:
        stores_one(peer, associate_rq([(1, CT, [EXPLICIT])], version=version))


@pytest.mark.parametrize(
    "name", [b"CT_1\0\0", b"A\\B", b"\xdcBER", b"   ", b"", b"a name of more than sixteen"], ids=repr
)
def test_an_odd_version_name_decides_nothing(door: House, name: bytes) -> None:
    with door.peer() as peer:
        stores_one(peer, associate_rq([(1, CT, [EXPLICIT])], extra_user=item(0x55, name)))


@pytest.mark.parametrize(
    ("abstract", "syntaxes", "result"),
    [
        (MR, [], 4), (MR, [""], 4), (MR, ["1." * 40 + "1"], 4), (MR, ["", IMPLICIT], 0), ("", [EXPLICIT], 3),
        ("1." * 40 + "1", [EXPLICIT], 3), ("\xc4", [EXPLICIT], 3), ("no UID", [EXPLICIT], 3),
    ],
)  # fmt: skip
def test_a_context_that_makes_no_sense_is_refused_and_the_others_are_not(
    door: House, abstract: str, syntaxes: list[str], result: int
) -> None:
    with door.peer() as peer:
        stores_one(peer, associate_rq([(1, CT, [EXPLICIT]), (3, abstract, syntaxes), (5, MR, [IMPLICIT])]))
    assert peer.results == {1: 0, 3: result, 5: 0}


def test_titles_padded_with_nul_are_titles(door: House) -> None:
    door.receiver.apply(config(accept_from=(Allowed(ae_title="CT1"),)))
    with door.peer() as peer:
        request = associate_rq([(1, CT, [EXPLICIT])], calling="CT1".ljust(16, "\0"), called="LUMINODE\0")
        stores_one(peer, request)
    assert [one.calling_ae for one in door.instances()] == ["CT1"]


def test_what_is_no_title_is_rejected_by_the_book_and_told(door: House) -> None:
    """Even where anybody may come: an A-ABORT, which says nothing, was all that such a peer got."""
    contexts = [(1, CT, [EXPLICIT])]
    for title in ("", " " * 16, "A\\B", "M\xdcNCHEN", "\0CT1", "CT1\0X", "CT1\n"):
        for which, reason in (("calling", 3), ("called", 7)):
            with door.peer() as peer:
                kind, body = peer.ask(associate_rq(contexts, **{which: title}))  # type: ignore[arg-type]
                assert (kind, *body[1:4]) == (3, 1, 1, reason), (which, title)
    wanted = {f"{which} AE title is none (PS3.5 6.2)" for which in ("calling", "called")}

    def told() -> set[str]:
        return {event.body["because"] for event in door.store.events.list(name="assoc.rejected")}

    wait_until(lambda: told() >= wanted, 10.0, "both are told")


def test_a_scanner_that_is_cut_off_for_a_broken_protocol_is_an_event(door: House) -> None:
    """Whoever has been let in is somebody's scanner, which now fails: not a line of the log alone."""
    with door.peer() as peer:
        peer.associate(CT)
        peer.send(b"\4\0\xff\xff\xff\xff")
        assert peer.read()[0] == 7
    with door.peer() as stranger:
        stranger.send(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.read()[0] in (0, 7)
    wait_until(lambda: door.store.events.list(name="assoc.fault"), 10.0, "an event")
    door.quiet()
    (event,) = door.store.events.list(name="assoc.fault")
    assert (event.body["calling_ae"], event.body["because"]) == ("CT1", "PDU too long")


# --- what is no image --------------------------------------------------------------------------------------


def test_whatever_a_scanner_has_beside_its_images_is_stored(door: House) -> None:
    """Every storage class that the standard has, and had, 100 in an association; a refused one ends many a job."""
    classes = sorted({*map(str, _STORAGE_CLASSES.values()), *RETIRED})
    stored = {}
    for at in range(0, len(classes), 100):
        some = classes[at : at + 100]
        with door.peer() as peer:
            peer.associate(*some)
            assert {peer.results[2 * n + 1] for n in range(len(some))} == {0}
            for n in range(0, len(some), 10):
                uid = f"1.2.3.{at + n}"
                data = data_set(uid, series=f"1.2.4.{at + n}", sop_class=some[n])
                assert peer.store(uid, data, context=2 * n + 1, sop_class=some[n]).status == 0
                stored[uid] = sha256(data)
            assert peer.release() == 6
    assert door.stored() == stored
