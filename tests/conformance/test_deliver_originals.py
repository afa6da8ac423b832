"""Originals forwarded by a node that is the only way: as they came, as they come, whatever else goes on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from node.app.rebuild import rebuild
from node.config.snapshot import forwarding as snapshots
from node.model import DeliveryState
from node.store import Store
from tests.forwarding import Scanner, close_all, delivering, encoded, forwarder, forwarding, until_sent
from tests.parcels import EXPLICIT, delivery
from tests.peers import DEFLATED, IMPLICIT, J2K_LOSSLESS, OrthancPeer, StoreScp, wait_until
from tests.receiving import house
from tests.scripted import ScriptedScp
from tests.senders import Peer

Scripted = Callable[..., ScriptedScp]
FAST = {"first": 0.02, "at_most": 0.2}
MR, SR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.11"


def data_set(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[144 + int.from_bytes(raw[140:144], "little") :]


@pytest.mark.peer
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, J2K_LOSSLESS])
def test_dcmtk_gets_the_very_bytes(store: Store, storescp: StoreScp, syntax: str) -> None:
    with forwarder(store, {"pacs": storescp.settings()}) as node:
        scanner = Scanner(node.port)
        uids = scanner.slices(*range(1, 9), syntax=syntax)
        scanner.release()
        (sent,) = until_sent(store)
    assert storescp.uids() == sorted(uids)
    for uid, data in scanner.acknowledged.items():
        assert data_set(storescp.folder / f"CT.{uid}") == data
        meta = dcmread(storescp.folder / f"CT.{uid}", stop_before_pixels=True).file_meta
        assert meta.TransferSyntaxUID == syntax
    detail = store.deliveries.detail(sent.id)
    assert detail is not None
    assert (detail.n_done, detail.n_instances) == (8, 8)


@pytest.mark.peer
def test_orthanc_gets_the_very_bytes(sqlite_store: Store, orthanc: OrthancPeer) -> None:
    store = sqlite_store
    with forwarder(store, {"pacs": orthanc.settings()}) as node:
        scanner = Scanner(node.port)
        scanner.slices(*range(1, 6))
        scanner.slices(*range(1, 4), series=2)
        scanner.release()
        until_sent(store)
    assert orthanc.uids() == sorted(scanner.acknowledged)
    files = [orthanc.instance_file(i) for i in orthanc.get("/instances")]
    for data in scanner.acknowledged.values():
        assert any(kept.endswith(data) for kept in files)


def test_a_folder_gets_them_too(sqlite_store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with forwarder(sqlite_store, {"share": {"kind": "folder", "path": str(out)}}) as node:
        scanner = Scanner(node.port)
        uids = scanner.slices(1, 2, 3)
        scanner.release()
        until_sent(sqlite_store)
    assert sorted(p.stem for p in out.rglob("*.dcm")) == sorted(uids)
    assert {data_set(p) for p in out.rglob("*.dcm")} == set(scanner.acknowledged.values())


def test_they_go_out_as_they_come_over_one_association_and_before_the_series_ends(
    sqlite_store: Store, scripted: Scripted
) -> None:
    scp = scripted()
    with forwarder(sqlite_store, {"pacs": scp.settings()}) as node:
        scanner = Scanner(node.port)
        for n in range(1, 21):
            (uid,) = scanner.slices(n)
            wait_until(lambda uid=uid: uid in scp.uids(), 10.0, f"slice {n} is there")  # type: ignore[misc]
        assert len(sqlite_store.series.open_series()) == 1, "nobody has closed it"
        assert scp.n_associations <= 3, "on an idle machine: one"
        wait_until(lambda: scp.n_released == scp.n_associations, 15.0, "it is released when nothing comes")
        scanner.release()
        until_sent(sqlite_store)
    assert len(scp.stored) == 20, "and nothing twice"
    assert {s.sop_instance_uid: s.data for s in scp.stored} == scanner.acknowledged


def test_a_class_that_comes_later_gets_an_association_that_offers_it(
    sqlite_store: Store, scripted: Scripted
) -> None:
    scp = scripted()
    with forwarder(sqlite_store, {"pacs": scp.settings()}) as node:
        scanner = Scanner(node.port)
        scanner.slices(1)
        wait_until(lambda: len(scp.stored) == 1)
        with Peer(node.port) as other:
            other.associate(MR, SR)
            for context, sop_class in ((1, MR), (3, SR)):
                uid, data = encoded(context, 2, sop_class=sop_class)
                assert other.store(uid, data, context=context, sop_class=sop_class).status == 0
            other.release()
        scanner.slices(2)
        scanner.release()
        until_sent(sqlite_store)
        held = {o.sop_instance_uid for o in node.instances()}
    assert set(scp.uids()) == held


def test_a_syntax_that_is_refused_is_re_encoded_without_loss(
    sqlite_store: Store, storescps: Callable[..., StoreScp]
) -> None:
    scp = storescps("+xi")
    with forwarder(sqlite_store, {"pacs": scp.settings()}) as node:
        scanner = Scanner(node.port)
        (uid,) = scanner.slices(1, syntax=J2K_LOSSLESS)
        scanner.release()
        until_sent(sqlite_store)
        (held,) = node.instances()
        there, here = dcmread(scp.folder / f"CT.{uid}"), dcmread(sqlite_store.spool.path(held.path))
    assert there.file_meta.TransferSyntaxUID == IMPLICIT
    assert (there.pixel_array == here.pixel_array).all()
    assert there.SOPInstanceUID == here.SOPInstanceUID


def test_nobody_gets_back_what_he_sent(sqlite_store: Store, scripted: Scripted) -> None:
    """A PACS that routes to the node for enhancement is not sent its own images."""
    scp = scripted()
    with forwarder(sqlite_store, {"pacs": scp.settings()}) as node:
        scanner, pacs = Scanner(node.port), Scanner(node.port, calling="SCRIPTED")
        pacs.slices(1, 2, series=5)
        uids = scanner.slices(1)
        until_sent(sqlite_store)
        pacs.release()
        scanner.release()
    assert scp.uids() == uids


def test_it_begins_and_ends_with_an_edit_of_the_configuration(
    sqlite_store: Store, scripted: Scripted
) -> None:
    scp = scripted()
    on = forwarding({"pacs": scp.settings()})
    off = forwarding({"pacs": scp.settings()}, originals=False)
    with house(sqlite_store, off) as node, delivering(sqlite_store):
        scanner = Scanner(node.port)
        scanner.slices(1)
        node.receiver.apply(on)
        uids = scanner.slices(1, 2, series=2)
        wait_until(lambda: scp.uids() == sorted(uids))
        node.receiver.apply(off)
        scanner.slices(1, series=3)
        scanner.release()
        until_sent(sqlite_store)
    assert scp.uids() == sorted(uids)


# trouble ------------------------------------------------------------------------------------------


def test_an_instance_that_is_refused_holds_up_nothing_and_is_failed_when_the_series_has_ended(
    sqlite_store: Store, scripted: Scripted
) -> None:
    store = sqlite_store
    poison, _ = encoded(2, 1)
    mended, asked = threading.Event(), []

    def answer(_n: int, uid: str) -> int:
        asked.append(uid)
        return 0xC000 if uid == poison and not mended.is_set() else 0

    scp = scripted(store=answer)
    with forwarder(store, {"pacs": scp.settings(retry=FAST)}) as node:
        scanner = Scanner(node.port)
        for n in range(1, 12):
            (uid,) = scanner.slices(n)
            wait_until(lambda uid=uid: uid in asked)  # type: ignore[misc]
        wait_until(lambda: len(scp.uids()) == 10)
        assert asked.count(poison) == 1, "while the series grows it is left alone"
        (one,) = store.deliveries.list()
        wait_until(lambda: "series has ended" in store.deliveries.list()[0].failure)
        close_all(store)
        wait_until(lambda: store.deliveries.list([DeliveryState.FAILED]) != [])
        assert asked.count(poison) == 4
        assert [e.level for e in store.events.list(name="delivery.failed")] == ["error"]
        failed = store.deliveries.get(one.id)
        assert failed is not None
        assert "10 of 11 instances are there" in failed.failure
        mended.set()
        store.deliveries.retry(one.id, failed.created_at)
        until_sent(store)
        scanner.release()
    assert asked[-1] == poison
    assert len(scp.stored) == 11


def test_an_instance_at_which_the_pacs_breaks_off_holds_up_nothing(
    sqlite_store: Store, scripted: Scripted
) -> None:
    poison, _ = encoded(2, 1)
    scp = scripted(store=lambda _n, uid: "abort" if uid == poison else 0)
    with forwarder(sqlite_store, {"pacs": scp.settings(retry=FAST)}) as node:
        scanner = Scanner(node.port)
        scanner.slices(*range(1, 12))
        scanner.slices(*range(1, 6), series=2)
        others = {encoded(n, s)[0] for s, last in ((1, 12), (2, 6)) for n in range(1, last)} - {poison}
        wait_until(lambda: others <= set(scp.uids()), 20.0, "all but one are there")
        scanner.release()

        def failing() -> list[DeliveryState]:
            return [d.state for d in sqlite_store.deliveries.list() if d.failure]

        wait_until(failing, 20.0, "one is tried again")  # between two tries it tells of none
        assert set(failing()) <= {DeliveryState.PENDING, DeliveryState.SENDING}


def taken(store: Store) -> int:
    """How many instances of the one delivery are known to be there."""
    return sum(o.done for one in store.deliveries.list() for o in store.deliveries.outcomes(one.id).values())


def test_a_pacs_that_ends_the_kept_association_costs_no_try(sqlite_store: Store, scripted: Scripted) -> None:
    scp = scripted()
    with forwarder(sqlite_store, {"pacs": scp.settings()}) as node:
        scanner = Scanner(node.port)
        for n in range(1, 6):
            scanner.slices(n)
            wait_until(lambda n=n: taken(sqlite_store) == n)  # type: ignore[misc] # its answer is here, too
            for each in list(scp._open):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            time.sleep(0.05)
        scanner.release()
        (sent,) = until_sent(sqlite_store)
    assert len(scp.stored) == 5
    assert sqlite_store.events.list(level="warning") == []
    assert sent.failure == ""


def test_derived_series_of_the_same_destination_wait_for_nothing_and_are_waited_for_by_nothing(
    sqlite_store: Store, scripted: Scripted
) -> None:
    """A derived series of which every answer takes its time: originals pass it by."""
    go_on = threading.Event()

    def answer(_n: int, uid: str) -> int:
        if ".6.1." in uid:
            go_on.wait(20)
        return 0

    scp = scripted(store=answer)
    (derived,) = delivery(sqlite_store, {"pacs": scp.settings(timeout=30)}, 3)
    with forwarder(sqlite_store, {"pacs": scp.settings(timeout=30)}) as node:
        wait_until(lambda: scp.n_stores == 1, told="the derived series is under way")
        scanner = Scanner(node.port)
        uids = scanner.slices(1, 2, 3)
        wait_until(lambda: set(uids) <= set(scp.uids()))
        found = sqlite_store.deliveries.get(derived.id)
        assert found is not None
        assert found.state is DeliveryState.SENDING
        go_on.set()
        scanner.release()
        until_sent(sqlite_store)


def test_a_destination_that_is_down_is_tried_by_one_of_its_queues_and_tells_one_alarm(
    sqlite_store: Store, scripted: Scripted
) -> None:
    up, there = threading.Event(), scripted()
    scp = scripted(associate=lambda _n: None if up.is_set() else "close")
    slow = {"first": 0.3, "at_most": 0.3}
    delivery(sqlite_store, {"pacs": scp.settings(retry=slow)}, 2)
    settings = {"pacs": scp.settings(retry=slow), "other": there.settings()}
    with forwarder(sqlite_store, settings) as node:
        scanner = Scanner(node.port)
        started = time.monotonic()
        for n in range(1, 16):
            scanner.slices(n)
            time.sleep(0.1)
        wait_until(lambda: len(there.stored) == 15, told="the other destination got them")
        tries = scp.n_associations
        assert tries <= 3 + 2 * (time.monotonic() - started) / 0.3
        up.set()
        scanner.release()
        until_sent(sqlite_store)
    assert len(scp.uids()) == 17


PROGRAM = """
import sys, threading
from node.store import Store
from node.deliver.deliverer import Deliverer
Deliverer(Store.open(sys.argv[1], sys.argv[2]), calling_ae="LUMINODE").run(threading.Event())
"""


def test_kill_9_of_the_sender_while_slices_come_in_loses_nothing_and_repeats_little(
    sqlite_store: Store, sqlite_url: str, scripted: Scripted
) -> None:
    store, dice, kills = sqlite_store, random.Random(5), 3

    def answer(_n: int, _uid: str) -> int:
        time.sleep(0.005)
        return 0

    scp = scripted(store=answer)
    settings: dict[str, Any] = {"pacs": scp.settings(retry=FAST)}
    with house(store, forwarding(settings)) as node:
        scanner, stop = Scanner(node.port), threading.Event()

        def scan() -> None:
            for n in range(1, 151):
                scanner.slices(n, series=1 + n % 3)
                stop.wait(0.01)

        thread = threading.Thread(target=scan)
        thread.start()
        for _ in range(kills):
            process = subprocess.Popen([sys.executable, "-c", PROGRAM, sqlite_url, str(store.spool.root)])
            try:
                at = scp.n_stores + dice.randint(5, 30)
                wait_until(lambda at=at: scp.n_stores >= at, 60, "some more is sent")  # type: ignore[misc]
            finally:
                os.kill(process.pid, signal.SIGKILL)
                process.wait(10)
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        scanner.release()
        with delivering(store):
            until_sent(store)
    assert scp.uids() == sorted(scanner.acknowledged)
    assert len(scp.stored) - 150 <= 21 * kills  # on an idle machine: one or two a kill
    by_uid = {s.sop_instance_uid: s.data for s in scp.stored}
    assert by_uid == scanner.acknowledged


def test_a_database_that_is_lost_and_rebuilt_from_the_spool_forgets_no_original(
    sqlite_store: Store, sqlite_url: str, tmp_path: Path, scripted: Scripted
) -> None:
    """R52: nobody knows any more what had been sent, so all of it is."""
    scp = scripted()
    settings = forwarding({"pacs": scp.settings()})
    with house(sqlite_store, settings) as node:
        scanner = Scanner(node.port)
        uids = scanner.slices(1, 2, 3)
        scanner.release()
    sqlite_store.close()
    for part in tmp_path.glob("luminode.db*"):
        part.write_bytes(b"\0" * 8192)
    rebuild(sqlite_url, tmp_path / "spool", datetime.now(UTC), forward=snapshots(settings))
    with Store.open(sqlite_url, tmp_path / "spool") as store, delivering(store):
        until_sent(store)
    assert scp.uids() == sorted(uids)
