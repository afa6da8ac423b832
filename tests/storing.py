"""Short ways to fill a store in tests; every file and row is real."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from node.model import (
    Action,
    Association,
    Decision,
    Delivery,
    DerivedInstance,
    FrameHeader,
    Instance,
    InstanceHeader,
    Job,
    Outcome,
    Verdict,
)
from node.store import NewDerived, NewJob, Store

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
STUDY = "1.2.3"


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def spool_bytes(
    store: Store, series_uid: str, sop: str, data: bytes, area: Any = "received"
) -> tuple[str, str]:
    """Write a durable file; returns (path, sha256)."""
    sha256 = hashlib.sha256(data).hexdigest()
    with store.spool.create() as writer:
        writer.write(data)
        writer.sync()
        path = writer.publish(series_uid, sop, sha256, area)
    store.spool.sync_dirs([path])
    return path, sha256


def received(
    store: Store,
    n: int,
    *,
    series: int = 1,
    data: bytes | None = None,
    association: str = "a1",
    calling_ae: str = "CT1",
    at: datetime = NOW,
    sop: str | None = None,
) -> Instance:
    """Instance ``n`` of a series, durable in the spool and not yet recorded."""
    series_uid = f"{STUDY}.{series}"
    sop = sop or f"{series_uid}.{n}"
    data = data if data is not None else f"pixels of {sop}".encode() * 10
    path, sha256 = spool_bytes(store, series_uid, sop, data)
    return Instance(
        sop_class_uid=CT,
        sop_instance_uid=sop,
        study_uid=STUDY,
        series_uid=series_uid,
        transfer_syntax_uid=EXPLICIT,
        calling_ae=calling_ae,
        called_ae="LUMINODE",
        association=association,
        path=path,
        size=len(data),
        offset=0,
        sha256=sha256,
        received_at=at,
    )


def associated(
    store: Store, association_id: str = "a1", *, calling_ae: str = "CT1", address: str = "127.0.0.1"
) -> Association:
    one = Association(
        id=association_id, calling_ae=calling_ae, called_ae="LUMINODE", address=address, opened_at=NOW
    )
    store.reception.open_association(one, receiver="r1")
    return one


def header(instance: Instance, number: int, **attributes: Any) -> InstanceHeader:
    """What would be read of an instance: a CT slice."""
    shared: dict[str, tuple[Any, ...]] = {
        "Modality": ("CT",),
        "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "SliceThickness": (1.25,),
        "Rows": (512,),
        "InstanceNumber": (number,),
    }
    return InstanceHeader(
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        study_uid=instance.study_uid,
        series_uid=instance.series_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        modality="CT",
        rows=512,
        columns=512,
        n_frames=1,
        instance_number=number,
        expected_count=0,
        expected_because="",
        attributes={**shared, **attributes},
        frames=(
            FrameHeader(
                position_mm=(-120.5, -100.25, 1.25 * number),
                orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
                spacing_mm=(0.7, 0.7),
                thickness_mm=1.25,
                volume_key=(("ConvolutionKernel", "B30f"),),
            ),
        ),
        has_pixels=True,
    )


def indexed(store: Store) -> None:
    """Read every header that was not read yet."""
    waiting = store.series.unindexed(10_000)
    store.series.index([(i, header(one, n)) for n, (i, one) in enumerate(waiting, 1)])


def closed_series(store: Store, *, n: int = 3, series: int = 1, at: datetime = NOW) -> int:
    """A series of ``n`` instances that is complete; returns its row id."""
    told = store.reception.record([received(store, i, series=series, at=at) for i in range(1, n + 1)])
    series_id = told[0].series_id
    indexed(store)
    assert store.series.close(series_id, "count", at, count=n)
    return series_id


def decision(*destinations: str) -> Decision:
    return Decision(
        rule="chest",
        action=Action.ENHANCE,
        reason="rule matched",
        engine="ct",
        destinations=destinations,
        verdicts=(Verdict(rule="chest", keyword="Modality", wanted="CT", found="CT", held=True),),
    )


def new_job(key: str = "k", *, destinations: Sequence[str] = ("pacs",), **more: Any) -> NewJob:
    settings: Mapping[str, Mapping[str, Any]] = {
        d: {"kind": "folder", "path": f"out/{d}"} for d in destinations
    }
    return NewJob(
        rule="chest",
        engine="ct-nlm",
        params={"strength": 0.5},
        destinations=settings,
        derivation_key=hashlib.sha256(key.encode()).hexdigest(),
        **more,
    )


def queued(store: Store, *, series: int = 1, n: int = 3, destinations: Sequence[str] = ("pacs",)) -> int:
    """A job that waits; returns its id."""
    series_id = closed_series(store, series=series, n=n)
    new = new_job(f"k{series}", destinations=destinations)
    return store.series.route(series_id, decision(*destinations), [new], "c" * 64, NOW)[0]


def queued_many(store: Store, n: int) -> list[int]:
    """Many jobs that wait, of one series."""
    series_id = closed_series(store, n=1)
    return store.series.route(
        series_id, decision("pacs"), [new_job(f"k{k}") for k in range(n)], "c" * 64, NOW
    )


def outbox(store: Store, *, n: int = 3, series: int = 1, destinations: Sequence[str] = ("pacs",)) -> int:
    """A derived series on its way; returns its derived id."""
    job_id = queued(store, series=series, n=n, destinations=destinations)
    job = store.jobs.claim("w", 30, NOW)
    assert job is not None
    assert job.id == job_id
    return store.jobs.finish(job.id, "w", job.attempt, made(store, job), {"engine": "ct-nlm 1.0"}, NOW)


def made(store: Store, job: Job, tag: str = "") -> NewDerived:
    """A derived series for a claimed job, its files durable in the spool."""
    series = store.series.get(job.series_id)
    assert series is not None
    uid = f"2.25.{job.id}"
    instances = []
    for source in store.series.instances(job.series_id):
        sop = f"{uid}.{source.sop_instance_uid.rpartition('.')[2]}"
        path, sha256 = spool_bytes(store, uid, sop, f"derived {sop}{tag}".encode(), "derived")
        instances.append(
            DerivedInstance(
                sop_class_uid=CT,
                sop_instance_uid=sop,
                source_sop_instance_uid=source.sop_instance_uid,
                transfer_syntax_uid=EXPLICIT,
                path=path,
                size=10,
                offset=0,
                sha256=sha256,
            )
        )
    return NewDerived(
        study_uid=series.key.study_uid, series_uid=uid, number=1001, description="CHEST", instances=instances
    )


def delivered(store: Store, delivery: Delivery, owner: str, status: int = 0) -> list[Outcome]:
    """Outcomes for every instance of a delivery."""
    series = store.deliveries.derived(delivery.derived_id)
    assert series is not None
    return [
        Outcome(sop_instance_uid=i.sop_instance_uid, status=status, done=True, retryable=False)
        for i in series.instances
    ]


@contextmanager
def writer_at(work: Callable[[str, Any], None], root: Path) -> Iterator[None]:
    """A process that runs ``work(root, ready)`` until it says that it is ready; it is killed when the block ends."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=work, args=(str(root), ready))
    process.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        process.kill()
        process.join()
