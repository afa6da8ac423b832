"""A receiver and a deliverer on one store, as a node that is the only way from the scanner to its PACS."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from node.config.schema import Config, Destination
from node.deliver.deliverer import Deliverer
from node.model import Delivery, DeliveryState
from node.store import Store
from tests.parcels import CT, EXPLICIT, ct, part10
from tests.peers import wait_until
from tests.receiving import House, config, house
from tests.senders import Peer


def forwarding(settings: Mapping[str, Mapping[str, Any]], *, originals: bool = True, **more: Any) -> Config:
    """A configuration whose destinations get originals."""
    kinds: TypeAdapter[Any] = TypeAdapter(Destination)
    made = {
        name: kinds.validate_python({**told, "forward_originals": originals})
        for name, told in settings.items()
    }
    return config(**more).model_copy(update={"destinations": made})


@contextmanager
def delivering(store: Store, **how: Any) -> Iterator[Deliverer]:
    """A deliverer that runs inside the block."""
    stop = threading.Event()
    deliverer = Deliverer(store, calling_ae="LUMINODE", **how)
    thread = threading.Thread(target=deliverer.run, args=(stop,), kwargs={"drain_s": 2.0})
    thread.start()
    try:
        yield deliverer
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def forwarder(store: Store, settings: Mapping[str, Mapping[str, Any]], **more: Any) -> Iterator[House]:
    """Both of them, for these destinations."""
    with house(store, forwarding(settings, **more)) as there, delivering(store):
        yield there


@dataclass
class Scanner:
    """A scanner that sends slices of CT series, and remembers what was acknowledged, byte by byte."""

    port: int
    calling: str = "CT1"
    side: int = 32
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    _peer: Peer | None = None

    def slices(self, *numbers: int, series: int = 1, syntax: str = EXPLICIT) -> list[str]:
        """Send slices over an association that stays open; returns their UIDs."""
        if self._peer is None:
            self._peer = Peer(self.port)
            self._peer.associate(CT, syntaxes=(syntax,), calling=self.calling)
        uids = []
        for n in numbers:
            uid, data = encoded(n, series, side=self.side, syntax=syntax)
            assert self._peer.store(uid, data, number=n).status == 0
            self.acknowledged[uid] = data
            uids.append(uid)
        return uids

    def release(self) -> None:
        """End the association."""
        if self._peer is not None:
            self._peer.release()
            self._peer.close()
            self._peer = None


def encoded(
    n: int, series: int, *, side: int = 32, syntax: str = EXPLICIT, sop_class: str = CT
) -> tuple[str, bytes]:
    """UID and encoded data set of slice ``n`` of a series."""
    ds = ct(n, series=f"1.2.826.0.1.3680043.2.1125.1.8.{series}", side=side, sop_class=sop_class)
    raw = part10(ds, syntax)
    return str(ds.SOPInstanceUID), raw[144 + int.from_bytes(raw[140:144], "little") :]


def close_all(store: Store) -> None:
    """Every open series has ended, as gather would have it."""
    for one in store.series.open_series():
        assert store.series.close(one.id, "quiet", datetime.now(UTC))


def all_sent(store: Store) -> bool:
    """Whether every delivery there is was sent."""
    found = store.deliveries.list(limit=100_000)
    return bool(found) and all(d.state is DeliveryState.SENT for d in found)


def until_sent(store: Store, within_s: float = 30.0) -> list[Delivery]:
    """Close what is open, and wait until all is sent."""
    close_all(store)
    wait_until(lambda: all_sent(store), within_s, "all originals are sent")
    return store.deliveries.list(limit=100_000)
