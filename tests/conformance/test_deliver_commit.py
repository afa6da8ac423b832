"""Storage commitment as its user: PACS that answer where they like, or say that something is missing."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from node.config.schema import Config, DimseDestination
from node.deliver.files import echo
from node.model import Delivery, DeliveryState, Pledge, PledgeState
from node.store import Store
from tests.committing import MODEL, Pacs
from tests.forwarding import delivering
from tests.parcels import delivery
from tests.peers import HOST, OrthancPeer, StoreScp, free_port, program, wait_until
from tests.receiving import config, house
from tests.senders import CT, IMPLICIT, Peer, associate_rq, data_set
from tests.storing import delivered


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses are for PACS that need them."""
    monkeypatch.setattr("node.store.pledges.SOON", timedelta(seconds=0.1))
    monkeypatch.setattr("node.deliver.pledges.LISTEN_S", 0.3)
    monkeypatch.setattr("node.deliver.pledges._LOOK_S", 0.2)


def door(pacs_port: int, **node: Any) -> Config:
    """A node that lists a scanner only, and asks its PACS to commit."""
    settings = config(accept_from=[{"ae_title": "CT1"}], **node)
    there = DimseDestination(ae_title="PACS", address=f"{HOST}:{pacs_port}", commit=True)
    return settings.model_copy(update={"destinations": {"pacs": there}})


def committed(store: Store, one: Delivery) -> Callable[[], bool]:
    def look() -> bool:
        now = store.deliveries.get(one.id)
        return now is not None and now.state is DeliveryState.COMMITTED

    return look


def pledge(store: Store, one: Delivery) -> Pledge:
    found = store.pledges.get(one.id)
    assert found is not None
    return found


def test_a_pacs_that_calls_back_is_heard_though_no_scanner_is_listed_by_its_title(
    sqlite_store: Store,
) -> None:
    """PS3.4 J.3.3: the provider opens an association and proposes to be the SCP on it."""
    store, pacs = sqlite_store, Pacs("calls")
    with house(store, door(pacs.port)) as there, pacs.running(), delivering(store):
        pacs.calls = there.port
        one = delivery(store, {"pacs": pacs.settings()}, n=4)[0]
        wait_until(committed(store, one), 40, "the delivery is committed")
        wait_until(lambda: bool(pacs.statuses), 10, "the PACS has its answer")
        assert pacs.statuses == [0]
        assert pacs.roles == [(False, True)]  # as it proposed: the caller is the provider
        assert pledge(store, one).state is PledgeState.KEPT


def test_a_pacs_that_answers_at_once_on_the_same_association(sqlite_store: Store) -> None:
    store, pacs = sqlite_store, Pacs("early")
    with pacs.running(), delivering(store):
        one = delivery(store, {"pacs": pacs.settings()}, n=3)[0]
        wait_until(committed(store, one), 40, "the delivery is committed")
    assert len(pacs.asked) == 1


def test_what_a_pacs_has_lost_is_sent_again_and_nothing_else(sqlite_store: Store) -> None:
    store, pacs = sqlite_store, Pacs("calls")
    with house(store, door(pacs.port)) as there, pacs.running(), delivering(store):
        pacs.calls = there.port
        pacs.lost = {"1.2.826.0.1.3680043.2.1125.1.6.1.2"}
        one = delivery(store, {"pacs": pacs.settings()}, n=4)[0]
        wait_until(committed(store, one), 60, "the delivery is committed")
    assert sorted(pacs.stored.values()) == [1, 1, 1, 2]
    assert pledge(store, one).rounds == 1
    assert len(pacs.asked) == 2


def test_a_pacs_without_the_service_is_told_of_and_the_delivery_stays_sent(
    sqlite_store: Store, storescp: StoreScp
) -> None:
    store, pacs = sqlite_store, storescp
    with delivering(store):
        one = delivery(store, {"pacs": pacs.settings(commit=True, commit_within=3600.0)}, n=2)[0]
        wait_until(lambda: store.pledges.get(one.id) is not None, 30, "it is sent")
        wait_until(lambda: pledge(store, one).attempt > 0, 30, "it was asked")
        now = store.deliveries.get(one.id)
    assert now is not None
    assert now.state is DeliveryState.SENT
    assert "does not offer storage commitment" in pledge(store, one).failure
    asked = echo(DimseDestination.model_validate(pacs.settings(commit=True)), calling_ae="LUMINODE")
    assert asked.ok  # it is there all the same
    assert "does not offer storage commitment" in asked.doubt
    with Pacs("never").running() as other:
        asked = echo(DimseDestination.model_validate(other.settings()), calling_ae="LUMINODE")
        assert (asked.ok, asked.doubt) == (True, "")


def test_a_pacs_that_refuses_the_request_is_asked_again_later(sqlite_store: Store) -> None:
    store, pacs = sqlite_store, Pacs("early", status=0x0213)
    pacs.answers = "never"
    with pacs.running(), delivering(store):
        one = delivery(store, {"pacs": pacs.settings()}, n=2)[0]
        wait_until(
            lambda: store.pledges.get(one.id) is not None and pledge(store, one).attempt > 0,
            30,
            "it was asked",
        )
    assert "0213H" in pledge(store, one).failure
    assert pledge(store, one).state is PledgeState.DUE


def test_a_pacs_that_takes_the_request_and_hangs_up_has_taken_it(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.deliver.pledges.LISTEN_S", 20.0)
    store, pacs = sqlite_store, Pacs("aborts")
    with pacs.running(), delivering(store):
        one = delivery(store, {"pacs": pacs.settings()}, n=2)[0]
        wait_until(
            lambda: store.pledges.get(one.id) is not None and pledge(store, one).attempt > 0,
            30,
            "it was asked",
        )
    found = pledge(store, one)
    assert (found.state, found.failure) == (PledgeState.ASKED, "")


def test_a_node_that_was_away_for_longer_than_it_waits_asks_before_it_gives_up(sqlite_store: Store) -> None:
    store, pacs = sqlite_store, Pacs("early")
    long_ago = datetime.now(UTC) - timedelta(days=3)
    one = delivery(store, {"pacs": pacs.settings()}, n=2, at=long_ago)[0]
    claimed = store.deliveries.claim("d1", 30, long_ago)
    assert claimed is not None
    outcomes = delivered(store, claimed, "d1")
    store.deliveries.finish(one.id, "d1", claimed.attempt, long_ago, outcomes=outcomes)
    found = store.deliveries.derived(one.derived_id)
    assert found is not None
    pacs.stored = {each.sop_instance_uid: 1 for each in found.instances}
    with pacs.running(), delivering(store):
        wait_until(committed(store, one), 40, "the delivery is committed")
    assert [event.name for event in store.events.list()] == []


def test_only_a_destination_that_is_asked_comes_in_unlisted_and_only_to_tell(sqlite_store: Store) -> None:
    with house(sqlite_store, door(free_port())) as there:
        with Peer(there.port) as peer:  # by its title, but to store
            assert peer.ask(associate_rq([(1, CT, [IMPLICIT])], calling="PACS"))[0] == 3
        with Peer(there.port) as peer:  # to tell, but by another title
            assert peer.ask(associate_rq([(1, MODEL, [IMPLICIT])], calling="OTHER"))[0] == 3
        with Peer(there.port) as peer:  # a scanner is not offered what is not offered
            peer.associate(MODEL, CT, calling="CT1")
            assert peer.results == {1: 3, 3: 0}
            assert peer.store("1.2.3.1", data_set("1.2.3.1"), context=3).status == 0
        stranger = Pacs("calls", calls=there.port)
        stranger.call("2.25.1", {"1.2.3": CT})
        assert stranger.statuses == [0x0115]  # nobody asked so


@pytest.mark.skipif(program("Orthanc") is None, reason="Orthanc is not installed")
def test_orthanc_commits_and_says_what_it_lost(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commitment SCP of a real archive, which calls back as dcm4che and others do."""
    store, port = sqlite_store, free_port()
    with house(store, door(1, listen={"host": HOST, "port": port})) as there:
        known = {
            "luminode": {"AET": "LUMINODE", "Host": HOST, "Port": there.port, "AllowStorageCommitment": True}
        }
        archive = OrthancPeer(tmp_path / "orthanc", ae_title="PACS", DicomModalities=known)
        try:
            whole = archive.settings(commit=True, commit_within=3600.0)
            settings = DimseDestination.model_validate(whole).model_dump(mode="json", by_alias=True)
            with delivering(store):
                one = delivery(store, {"pacs": settings}, n=5)[0]
                wait_until(committed(store, one), 60, "the delivery is committed")
                monkeypatch.setattr("node.store.pledges.SOON", timedelta(seconds=4))
                two = delivery(store, {"pacs": settings}, n=5, series=2)[0]
                wait_until(lambda: store.pledges.get(two.id) is not None, 30, "it is sent", every_s=0.01)
                victim = archive.get("/instances?expand")[-1]["ID"]
                request = urllib.request.Request(
                    f"http://{HOST}:{archive.http_port}/instances/{victim}", method="DELETE"
                )
                urllib.request.urlopen(request, timeout=10).close()
                wait_until(committed(store, two), 90, "the second is committed as well")
                assert pledge(store, two).rounds == 1
                assert len(archive.uids()) == 10
        finally:
            archive.stop()
