"""R13: a bit that flipped in the spool is found before the bytes are used: never processed, never sent."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from node.deliver.deliverer import Deliverer
from node.errors import NodeError
from node.model import AssociationEnd, DeliveryState
from node.store import Store
from tests.faults.ledger import record
from tests.faults.scale import SEED, count
from tests.faults.scanners import encoded
from tests.faults.shop import Shop, fresh
from tests.parcels import delivery
from tests.peers import wait_until
from tests.scripted import ScriptedScp

pytestmark = pytest.mark.timeout(600)

N = 5


def flip(path: Path, offset: int, chance: random.Random) -> None:
    """Flip one bit of a data set."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(offset, len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def test_rotten_bytes_are_never_processed(sqlite_template: Path, tmp_path: Path) -> None:
    n, chance, workshop = count(15, 60), random.Random(SEED), None
    found = 0
    wrong: list[str] = []
    for number in range(n):
        store = fresh(sqlite_template, tmp_path / str(number))
        shop = Shop(store, engine="identity", workshop=workshop)
        workshop = shop.workshop
        told = _rotten(shop, store, chance, before_reading=bool(number % 2))
        found += not told
        wrong += [told] if told else []
        store.close()
    record(
        "R13",
        load="one bit flipped anywhere in one of 5 received files, before its header was read or before the engine ran",
        count=n,
        result=f"{found} of {n} found; nothing derived from them",
        ok=not wrong,
    )
    assert wrong == []


def _rotten(shop: Shop, store: Store, chance: random.Random, *, before_reading: bool) -> str:
    shop.open("a")
    for k in range(N):
        shop.arrive(encoded(0, k, n=N), "a")
    shop.end("a", AssociationEnd.RELEASED)
    (series,) = store.series.list()
    one = chance.choice(store.series.instances(series.id))
    path = store.spool.path(one.path)
    if before_reading:
        flip(path, one.offset, chance)
    shop.after(40)
    shop.gather()
    if not before_reading:
        flip(path, one.offset, chance)
    with contextlib.suppress(NodeError):
        shop.work()
    if made := store.deliveries.list():
        return f"{path.name}: {len(made)} deliveries of what was made from rotten bytes"
    if one.path not in store.reconcile.fsck(verify=True).corrupt:
        return f"{path.name}: fsck does not see it"
    return ""


Scripted = Callable[..., ScriptedScp]


def test_rotten_bytes_are_never_sent(sqlite_template: Path, tmp_path: Path, scripted: Scripted) -> None:
    n, chance = count(15, 60), random.Random(SEED)
    store = fresh(sqlite_template, tmp_path / "store")
    pacs = scripted()
    settings = pacs.settings(retry={"first": 0.02, "at_most": 0.1, "for": 86400.0})
    (one,) = delivery(store, {"pacs": settings}, 2 * n)
    assert one.derived_id is not None
    derived = store.deliveries.derived(one.derived_id)
    assert derived is not None
    rotten = set()
    for instance in chance.sample(list(derived.instances), n):
        flip(store.spool.path(instance.path), instance.offset, chance)
        rotten.add(instance.sop_instance_uid)
    whole = {i.sop_instance_uid for i in derived.instances} - rotten
    stop = threading.Event()
    thread = threading.Thread(target=Deliverer(store, calling_ae="LUMINODE").run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: whole <= set(pacs.uids()), 60, "what is whole is sent")
        wait_until(
            lambda: _state(store, one.id) is DeliveryState.FAILED, 60, "a person is asked about the rest"
        )
    finally:
        stop.set()
        thread.join(30)
    sent = rotten & set(pacs.uids())
    store.close()
    record(
        "R13",
        load=f"one bit flipped in each of {n} of {2 * n} derived files before they were sent",
        count=n,
        result=f"{n - len(sent)} of {n} found and not sent, the other {len(whole)} sent; the delivery held",
        ok=not sent,
    )
    assert sent == set()


def _state(store: Store, delivery_id: int) -> DeliveryState:
    found = store.deliveries.get(delivery_id)
    assert found is not None
    return found.state
