"""Scanners that are odd and within their rights, or a little beside them: they are served like any other."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.config.network import Peer as Allowed
from node.store import Store
from tests.receiving import House, config, house
from tests.senders import CT, data_set


@pytest.fixture(scope="module")
def shared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("door")
    shutil.copy(sqlite_template, folder / "luminode.db")
    with Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool") as store, house(store) as one:
        yield one


@pytest.fixture
def door(shared: House) -> Iterator[House]:
    """A receiver with an empty store; the same one for all, for it takes longer to start than to test."""
    yield shared
    shared.receiver.apply(shared.config)
    shared.forget()


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
