"""Series to enhance: small, noisy as their engines want it, as files and in a store; every part is real."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from engines.base import Card, Engine, Enhancement, Params, Survey, Volume
from engines.classical import phantoms
from node.config.load import parse
from node.dicom.derive import derive
from node.dicom.part10 import write_part10
from node.dicom.read import read_header
from node.dicom.source import Source, file_meta
from node.dicom.stacks import Stack, stacks
from node.enhance.chain import Item, Ran, Report, Stored, run
from node.enhance.work import content_order, neighbours_of
from node.gather.decide import decide_series
from node.gather.plan import plan
from node.model import Association, Decision, Instance, InstanceHeader
from node.store import Store
from node.store.jobs import NewJob
from tests.dicom_samples import CT_CLASS, EXPLICIT, MR_CLASS, how, image, part10

SIZE = 64
NOW = datetime(2026, 5, 6, 7, tzinfo=UTC)
STUDY = "1.2.826.0.77"


# data sets ----------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _noisy(modality: str, n: int, size: int, seed: int) -> npt.NDArray[np.float32]:
    if modality == "CT":
        return phantoms.ct(seed, shape=(n, size, size), kind="head", sigma=25.0).noisy
    return phantoms.mr(seed, shape=(n, size, size), sigma=0.05).noisy


def series(
    modality: str = "CT",
    n: int = 6,
    *,
    size: int = SIZE,
    seed: int = 3,
    number: int = 1,
    loud: Sequence[int] = (),
) -> list[Dataset]:
    """A series of ``n`` slices, 1 mm apart, ascending; those in ``loud`` drown in noise."""
    values = _noisy(modality, n, size, seed).copy()
    rng = np.random.default_rng(seed)
    for i in loud:
        values[i] = rng.normal(300, 400, values[i].shape)
    offset = 1024 if modality == "CT" else 0
    pixels = np.clip(np.rint(values) + offset, 0, 4095).astype(np.uint16)
    return [
        image(
            pixels[i], sop_class=CT_CLASS if modality == "CT" else MR_CLASS,
            StudyInstanceUID=STUDY, SeriesInstanceUID=f"{STUDY}.{number}",
            SOPInstanceUID=f"{STUDY}.{number}.{i + 1}", InstanceNumber=str(i + 1),
            ImagePositionPatient=[0, 0, float(i)], SeriesNumber=str(number),
        )
        for i in range(n)
    ]  # fmt: skip


def files(folder: Path, datasets: Sequence[Dataset], syntax: str = EXPLICIT) -> list[Item]:
    """The data sets as files, with their digests."""
    folder.mkdir(exist_ok=True)
    items = []
    for ds in datasets:
        path = folder / f"{ds.SOPInstanceUID}.dcm"
        data = part10(ds, syntax)
        path.write_bytes(data)
        _, offset = file_meta(data)
        digest = hashlib.sha256(data[offset:]).hexdigest()
        items.append(Item(sop_instance_uid=ds.SOPInstanceUID, path=path, offset=offset, sha256=digest))
    return items


def headers_of(items: Sequence[Item]) -> list[InstanceHeader]:
    return [read_header(i.path) for i in items]


def flip(path: Path, at: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


# the chain ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Chained:
    """What the chain made: SOP Instance UID of the source -> Part 10 file of the derived instance."""

    made: Mapping[str, bytes]
    stored: Mapping[str, Stored]
    report: Report


def chained(
    items: Sequence[Item], engine: Engine, scratch: Path, *, strength: float = 0.7, **more: Any
) -> Chained:
    """Run the chain over files as a job does; ``scratch`` is empty again afterwards."""
    headers = headers_of(items)
    found: tuple[Stack, ...] = stacks(headers)
    order = content_order(headers)
    near = neighbours_of(found, {h.sop_instance_uid: h for h in headers}, engine.card.neighbours)
    made: dict[str, bytes] = {}
    kept: dict[str, Stored] = {}

    def emit(item: Item, source: Source, stored: Stored, ran: Ran) -> None:
        uid = item.sop_instance_uid
        assert uid not in made, "emitted twice"
        plan = how(runtime=ran.runtime, device=ran.device, scale=engine.card.scale)
        out = io.BytesIO()
        write_part10(derive(source, stored, plan, order=order[uid], neighbours=near.get(uid, ())), out)
        made[uid], kept[uid] = out.getvalue(), np.array(stored)

    options = {"emit": emit, **more}
    try:
        report = run(items, found, engine, Params(strength=strength), scratch=scratch, **options)
    finally:
        assert not list(scratch.iterdir())
    return Chained(made=made, stored=kept, report=report)


class Watched:
    """An engine that tells what it is asked for, and where a test may step in.

    ``seen`` holds (step, first slice, slices kept) of every call; ``on(step, number of the call)`` is called
    before each.
    """

    def __init__(self, engine: Engine, on: Any = lambda _step, _n: None) -> None:
        self._engine, self.on = engine, on
        self.seen: list[tuple[str, int, int]] = []

    @property
    def card(self) -> Card:
        return self._engine.card

    def survey(self, volume: Volume) -> Survey:
        self._note("survey", 0, volume.shape[0])
        return self._engine.survey(volume)

    def enhance(
        self,
        volume: Volume,
        params: Params,
        survey: Survey | None = None,
        *,
        first: int = 0,
        keep: slice | None = None,
    ) -> Enhancement:
        kept = range(volume.shape[0])[keep or slice(None)]
        self._note("enhance", first + kept.start, len(kept))
        return self._engine.enhance(volume, params, survey, first=first, keep=keep)

    def n(self, step: str) -> int:
        """Slices that a step was asked for."""
        return sum(n for name, _, n in self.seen if name == step)

    def _note(self, step: str, first: int, n: int) -> None:
        self.seen.append((step, first, n))
        self.on(step, sum(name == step for name, _, _ in self.seen))


# a store ------------------------------------------------------------------------------------------

CONFIG = """\
node: {{accept_from: [CT1]}}
store: {{spool: var/spool}}
series: {{late: {late}}}
engines: {{it: {{engine: {engine}, strength: {strength}}}}}
destinations: {{pacs: {{kind: folder, path: out}}}}
rules:
  - {{name: all, when: any, enhance: it, send_to: [pacs]}}
"""


def receive(store: Store, datasets: Sequence[Dataset], association: str = "a") -> int:
    """Put instances into a store as the receiver and the gatherer do and close their series; its id."""
    series_id = take_in(store, datasets, association)
    assert store.series.close(series_id, "count", NOW)
    return series_id


def take_in(store: Store, datasets: Sequence[Dataset], association: str = "a") -> int:
    """As :func:`receive`, and more may come."""
    store.reception.open_association(
        Association(id=association, calling_ae="CT1", called_ae="LUMINODE", address="10.0.0.1", opened_at=NOW)
    )
    batch = []
    for ds in datasets:
        data = part10(ds)
        _, offset = file_meta(data)
        digest = hashlib.sha256(data[offset:]).hexdigest()
        with store.spool.create() as writer:
            writer.write(data)
            writer.sync()
            path = writer.publish(ds.SeriesInstanceUID, ds.SOPInstanceUID, digest)
        batch.append(
            Instance(
                sop_class_uid=ds.SOPClassUID, sop_instance_uid=ds.SOPInstanceUID,
                study_uid=ds.StudyInstanceUID, series_uid=ds.SeriesInstanceUID,
                transfer_syntax_uid="1.2.840.10008.1.2.1", calling_ae="CT1", called_ae="LUMINODE",
                association=association, path=path, size=len(data), offset=offset, sha256=digest,
                received_at=NOW,
            )
        )  # fmt: skip
    series_id = store.reception.record(batch)[0].series_id
    waiting = store.series.unindexed(10_000)
    store.series.index([(row, read_header(store.spool.path(one.path))) for row, one in waiting])
    return series_id


def queue(
    store: Store, series_id: int, card: Card, *, strength: float = 0.7, late: str = "append"
) -> list[int]:
    """Route a closed series to an engine; the ids of its jobs."""
    decision, jobs, digest = asked(store, series_id, card, strength=strength, late=late)
    return store.series.route(series_id, decision, jobs, digest, NOW)


def expect(store: Store, series_id: int, card: Card, *, strength: float = 0.7) -> None:
    """Say what an open series will be routed to, as the gatherer does."""
    _, jobs, _ = asked(store, series_id, card, strength=strength)
    store.outlooks.expect(series_id, jobs[0].engine, jobs[0].params)


def asked(
    store: Store, series_id: int, card: Card, *, strength: float = 0.7, late: str = "append"
) -> tuple[Decision, Sequence[NewJob], str]:
    """What the rules say of a series as it is: the decision, its jobs, the digest of the configuration."""
    loaded = parse(CONFIG.format(engine=card.name, strength=strength, late=late))
    config = loaded.config
    one = store.series.get(series_id)
    assert one is not None
    headers = store.series.headers(series_id, all_generations=one.generation > 1)
    decision = decide_series(headers, config, {card.name: card})
    return decision, plan(one, decision, config, {card.name: card}), loaded.digest
