"""A receiver on the loopback for tests, and a look at what it stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node.config.network import HostPort
from node.config.schema import Config, NodeSettings, StoreSettings, Timeouts
from node.model import Association, Instance
from node.receive import Receiver
from node.store import Store
from tests.peers import wait_until
from tests.senders import Peer, sha256


def utc() -> datetime:
    return datetime.now(UTC)


def config(
    *, timeouts: dict[str, float] | None = None, store: dict[str, Any] | None = None, **node: Any
) -> Config:
    """A configuration for a receiver on a free port; keywords are those of ``node:``."""
    settings = {"accept_from": "any", "listen": HostPort(host="127.0.0.1", port=0), **node}
    return Config(
        node=NodeSettings(timeouts=Timeouts(**(timeouts or {})), **settings),
        store=StoreSettings(**{"refuse_below": 0, **(store or {})}),
    )


@dataclass
class House:
    """A running receiver and its store."""

    receiver: Receiver
    store: Store
    config: Config

    @property
    def port(self) -> int:
        return self.receiver.port

    def peer(self, **more: Any) -> Peer:
        return Peer(self.port, **more)

    def instances(self) -> list[Instance]:
        """All that is recorded, each checked to lie in the spool with the digest it is recorded with."""
        found = []
        for series in self.store.series.list(limit=10_000):
            for one in self.store.series.instances(series.id, all_generations=False):
                path = self.store.spool.path(one.path)
                raw = path.read_bytes()
                assert len(raw) == one.size
                assert sha256(raw[one.offset :]) == one.sha256
                found.append(one)
        return found

    def stored(self) -> dict[str, str]:
        """SOP Instance UID -> sha256 of the data set."""
        return {one.sop_instance_uid: one.sha256 for one in self.instances()}

    def associations(self) -> list[Association]:
        from sqlalchemy import select

        from node.model import AssociationEnd
        from node.store.tables import AssociationRow as Row

        with self.store.database.read() as connection:
            rows = connection.execute(
                select(*Row.__table__.columns).order_by(Row.opened_at)
            ).all()  # fmt: skip
        return [
            Association(
                id=r.id, calling_ae=r.calling_ae, called_ae=r.called_ae, address=r.address,
                opened_at=r.opened_at, ended_at=r.ended_at, end=AssociationEnd(r.ending),
            )
            for r in rows
        ]  # fmt: skip

    def ends(self, n: int) -> list[str]:
        """How associations ended, once ``n`` are recorded with an end."""

        def ended() -> list[str]:
            return [str(a.end) for a in self.associations() if a.ended_at is not None]

        wait_until(lambda: len(ended()) >= n, 10.0, f"{n} associations have ended")
        return ended()

    def tmp(self) -> list[Path]:
        """Files that are being written, or were left behind."""
        return unnamed(self.store.spool.root)

    def forget(self) -> None:
        """Wait until nobody is connected, then empty the store."""
        from sqlalchemy import delete

        from node.store import tables

        self.quiet()
        self.receiver._house.commit.flush()
        with self.store.database.write() as connection:
            for row in ("Carried", "Conflict", "Trash", "Event", "Instance", "Series", "Association"):
                connection.execute(delete(getattr(tables, f"{row}Row")))
        for file in list(self.store.spool.walk()):
            self.store.spool.remove(file.path)
        wait_until(lambda: not self.tmp(), 5.0, "first names are taken away")

    def quiet(self) -> None:
        """Wait until nobody is connected."""
        wait_until(lambda: self.receiver.load.connections == 0, 10.0, "all connections are gone")


@contextmanager
def house(store: Store, settings: Config | None = None) -> Iterator[House]:
    """A receiver that runs inside the block."""
    settings = settings or config()
    receiver = Receiver(settings, store, utc)
    receiver.start()
    try:
        yield House(receiver, store, settings)
    finally:
        receiver.stop(1.0)


def unnamed(spool: Path, within_s: float = 0.5) -> list[Path]:
    """Files of a spool that are being written, or were left behind; those that are being settled have a moment.

    They are not those that have a final name, nor the empty ones whose names were made ahead.
    """
    until = time.monotonic() + within_s
    while True:
        found = list((spool / "tmp").iterdir())
        for path in (spool / "landing").iterdir():
            with suppress(FileNotFoundError):
                told = path.stat()
                if told.st_size and told.st_nlink == 1:
                    found.append(path)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.01)


def at_once(work: Callable[[int], None], n: int, within_s: float = 120.0) -> None:
    """Run ``work(0)`` to ``work(n - 1)`` in as many threads; the first failure fails."""
    failures: list[BaseException] = []
    start = threading.Barrier(n)

    def run(number: int) -> None:
        try:
            start.wait(30)
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(within_s)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
