"""A node without sockets and processes: its gatherer and its worker, driven by hand on a clock of our own.

What arrives is recorded as the receiver does it; reading, judging, routing, enhancing and recording are the product's.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pydicom

from node.app.engines import cards
from node.config.load import parse
from node.enhance.work import do
from node.enhance.workshop import Workshop
from node.gather.gatherer import Gatherer, InForce
from node.model import Association, AssociationEnd, DerivedSeries, Instance
from node.receive import part10
from node.store import Store
from tests.senders import CT, EXPLICIT

CONFIG = """\
node: {{accept_from: [CT1]}}
store: {{spool: var/spool}}
series: {{late: {late}, quiet_after: 30s, settle: 1s, give_up_after: 1000h}}
engines: {{it: {{engine: {engine}, strength: 0.7}}}}
destinations: {{pacs: {{kind: folder, path: out}}}}
rules: [{{name: all, when: any, enhance: it, send_to: [pacs]}}]
"""
START = datetime(2026, 5, 6, 7, tzinfo=UTC)


def nothing(_step: str, _share: float) -> None:
    """What a job tells, to nobody."""


class Shop:
    """The parts, and the clock."""

    def __init__(
        self, store: Store, *, late: str = "append", engine: str = "ct-nlm", workshop: Workshop | None = None
    ) -> None:
        self.store, self.now = store, START
        loaded = parse(CONFIG.format(late=late, engine=engine))
        in_force = InForce(config=loaded.config, digest=loaded.digest)
        self.gatherer = Gatherer(store, lambda: in_force, cards())
        self.workshop = workshop or Workshop(store=store, threads=1)
        self.workshop.store = store
        self.gatherer.step(self.now)  # it is awake before anything comes

    def after(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # what the receiver does ---------------------------------------------------------------------------
    def open(self, association: str) -> None:
        self.store.reception.open_association(
            Association(
                id=association, calling_ae="CT1", called_ae="LUMINODE", address="10.0.0.1", opened_at=self.now
            )
        )

    def end(self, association: str, how: AssociationEnd = AssociationEnd.RELEASED) -> None:
        self.store.reception.end_association(association, how, self.now)

    def arrive(self, data: bytes, association: str) -> None:
        """One instance: an encoded data set of Explicit VR Little Endian."""
        ds = pydicom.dcmread(BytesIO(part10.head(CT, "1.2.3", EXPLICIT) + data), stop_before_pixels=True)
        digest = hashlib.sha256(data).hexdigest()
        with self.store.spool.create() as writer:
            writer.write(part10.head(CT, ds.SOPInstanceUID, EXPLICIT))
            writer.write(data)
            writer.sync()
            size = writer.size
            path = writer.publish(ds.SeriesInstanceUID, ds.SOPInstanceUID, digest)
        self.store.spool.sync_dirs([path])
        self.store.reception.record([
            Instance(
                sop_class_uid=ds.SOPClassUID, sop_instance_uid=ds.SOPInstanceUID, study_uid=ds.StudyInstanceUID,
                series_uid=ds.SeriesInstanceUID, transfer_syntax_uid=EXPLICIT, calling_ae="CT1",
                called_ae="LUMINODE", association=association, path=path, size=size, offset=part10.OFFSET,
                sha256=digest, received_at=self.now,
            )
        ])  # fmt: skip

    # what the others do -------------------------------------------------------------------------------
    def gather(self, rounds: int = 4) -> None:
        for _ in range(rounds):
            self.gatherer.step(self.now)

    def work(self, tell: Callable[[str, float], None] = nothing) -> int:
        """Work off what is queued; how many jobs. A failure is the test's."""
        n = 0
        while (job := self.store.jobs.claim("test/worker", 600.0, self.now)) is not None:
            do(self.workshop, job, "test/worker", tell)
            n += 1
        return n

    # what came out ------------------------------------------------------------------------------------
    def derived(self) -> list[DerivedSeries]:
        """Every derived series, in the order in which they were made."""
        found: dict[int, DerivedSeries] = {}
        for delivery in self.store.deliveries.list(limit=10_000):
            assert delivery.derived_id is not None
            one = self.store.deliveries.derived(delivery.derived_id)
            assert one is not None
            found[delivery.derived_id] = one
        return [found[at] for at in sorted(found)]

    def pixels(self, one: DerivedSeries) -> dict[str, tuple[str, str]]:
        """Source SOP Instance UID -> (derived SOP Instance UID, sha256 of its pixels)."""
        out = {}
        for i in one.instances:
            ds = pydicom.dcmread(self.store.spool.path(i.path))
            out[i.source_sop_instance_uid] = (i.sop_instance_uid, hashlib.sha256(ds.PixelData).hexdigest())
        return out


def fresh(template: Path, folder: Path) -> Store:
    """An empty store on SQLite."""
    folder.mkdir()
    shutil.copy(template, folder / "luminode.db")
    return Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool")
