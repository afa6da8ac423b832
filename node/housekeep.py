"""Housekeeping by the clock (APScheduler): what must happen now and then, and never the work queue itself.

Every task is idempotent and may be skipped: a task that fails is logged once and runs again at its next time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from node.config.schema import Config
from node.deliver.files import echo
from node.dicom.scan import scan_file
from node.errors import NodeError
from node.log import get_logger
from node.model import DeliveryState, Instance, JobState, SeriesState
from node.store import Store

log = get_logger()

_GRACE_S = 300.0
_FOREVER = timedelta(days=365 * 200)
RECOVERED = "RECOVERED"
"""Calling AE title of an instance that was found in the spool without its record."""


class Housekeeper:
    """Runs the tasks in threads of its own.

    Parameters
    ----------
    config
        Gives the configuration in force.
    alive_since
        When this node's first process started; before that, nobody of it could write.
    """

    def __init__(
        self, store: Store, config: Callable[[], Config], *, alive_since: datetime | None = None
    ) -> None:
        self._store = store
        self._alive_since = alive_since or _now()
        self._config = config
        self._up: dict[str, bool] = {}
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(2)},
            # The library's default skips a task that is a second late (reliability: R54).
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        every, daily = IntervalTrigger, CronTrigger
        tasks: tuple[tuple[Callable[[], None], object], ...] = (
            (self.leases, every(seconds=15, timezone=UTC)),
            (self.destinations, every(seconds=60, timezone=UTC)),
            (self.retention, every(minutes=10, timezone=UTC)),
            (self.reconcile, daily(hour=3, minute=17, timezone=UTC)),
            (self.report, daily(hour=6, minute=0, timezone=UTC)),
        )
        for task, trigger in tasks:
            self._scheduler.add_job(_guarded(task), trigger, id=task.__name__)
        for task in (self.reconcile, self.destinations):
            self._scheduler.add_job(_guarded(task), id=f"{task.__name__}-at-start")

    def start(self) -> None:
        """Begin; the spool is reconciled and destinations are asked at once."""
        self._scheduler.start()

    def stop(self) -> None:
        """End; a task under way is waited for."""
        self._scheduler.shutdown(wait=True)

    # tasks ----------------------------------------------------------------------------------------
    def leases(self) -> None:
        """Put back work whose lease ran out, so that lists tell the truth while nobody claims."""
        now = _now()
        jobs, deliveries = self._store.jobs.requeue_expired(now), self._store.deliveries.requeue_expired(now)
        if jobs or deliveries:
            log.warning("leases.expired", jobs=jobs, deliveries=deliveries)

    def destinations(self) -> None:
        """Ask every destination whether it is there; tell when that changed."""
        config = self._config()
        for name, settings in config.destinations.items():
            answer = echo(settings, calling_ae=config.node.ae_title)
            if self._up.get(name) == answer.ok:
                continue
            first = name not in self._up
            self._up[name] = answer.ok
            if answer.ok:
                log.info("destination.up", destination=name)
            else:
                log.warning("destination.down", destination=name, why=answer.text, hint=answer.hint)
            if not (first and answer.ok):
                kind = "destination.up" if answer.ok else "destination.down"
                body = {"destination": name, "why": answer.text}
                self._store.events.add("info" if answer.ok else "warning", kind, body, _now())

    def retention(self) -> None:
        """Remove what is done and older than ``store.keep``; what is not done stays, however old."""
        keep, now = self._config().store.keep, _now()
        while True:
            purged = self._store.retention.purge(
                received_before=now - _age(keep.received), derived_before=now - _age(keep.derived), at=now
            )
            if not purged.n_files:
                return
            log.info("retention.purged", series=purged.n_series, files=purged.n_files, bytes=purged.n_bytes)

    def reconcile(self) -> None:
        """Compare the spool with the database: orphans are adopted, missing files told loudly."""
        now = _now()
        alive_s = (now - self._alive_since).total_seconds()
        # What is older than this node cannot be on its way to its record: everybody who could write it is dead.
        found = self._store.reconcile.scan(read_orphan, now, grace_s=max(0.0, min(_GRACE_S, alive_s)))
        log.info(
            "spool.reconciled", files=found.n_files, adopted=len(found.adopted), swept=found.swept,
            missing=len(found.missing), unreadable=len(found.unreadable),
        )  # fmt: skip
        if found.missing:
            log.critical("spool.files_missing", n=len(found.missing), hint="run `luminode spool fsck`")

    def report(self) -> None:
        """One line and one event about the last day."""
        since = _now() - timedelta(days=1)
        series = self._store.series.list(since=since, limit=100_000)
        body = {
            "series": len(series),
            "instances": sum(s.count for s in series),
            **{f"series_{s.value.lower()}": sum(x.state is s for x in series) for s in SeriesState},
            "jobs_held": self._store.jobs.counts().get(JobState.HELD, 0),
            "deliveries_failed": sum(
                n
                for (_, state), n in self._store.deliveries.counts().items()
                if state is DeliveryState.FAILED
            ),
            "free_gb": round(self._store.spool.free_bytes() / 1e9, 1),
        }
        log.info("report.daily", **body)
        self._store.events.add("info", "report.daily", body, _now())


def _guarded(task: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            task()
        except NodeError as e:
            why, told, hint = type(e).__name__, e.message, e.hint
            log.error("housekeeping.failed", task=task.__name__, because=why, told=told, hint=hint)
        except Exception as e:
            log.error("housekeeping.failed", task=task.__name__, because=type(e).__name__)

    return run


def read_orphan(path: Path, relative: str) -> Instance | None:
    """An instance found in the spool without a record, as it would have been received; None if unreadable.

    Its AE titles are lost with its record; it makes a series of its own from ``RECOVERED``.
    """
    try:
        with path.open("rb") as file:
            meta = _meta(file.read(4096))
            if meta is None:
                return None
            offset, sop_class, sop_instance, syntax = meta
            file.seek(offset)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        ids = scan_file(path, offset, syntax)
        stat = path.stat()
    except (OSError, NodeError):
        return None
    return Instance(
        sop_class_uid=ids.sop_class_uid or sop_class,
        sop_instance_uid=ids.sop_instance_uid or sop_instance,
        study_uid=ids.study_uid,
        series_uid=ids.series_uid,
        transfer_syntax_uid=syntax,
        calling_ae=RECOVERED,
        called_ae=RECOVERED,
        association="",
        path=relative,
        size=stat.st_size,
        offset=offset,
        sha256=digest,
        received_at=datetime.fromtimestamp(stat.st_mtime, UTC),
    )


def _meta(head: bytes) -> tuple[int, str, str, str] | None:
    """(offset of the data set, SOP class, SOP instance, transfer syntax) of a Part 10 file of ours."""
    if head[128:132] != b"DICM" or head[132:138] != b"\x02\x00\x00\x00UL":
        return None
    end = 144 + struct.unpack_from("<I", head, 140)[0]
    found: dict[int, str] = {}
    at = 144
    while at + 8 <= min(end, len(head)):
        element, vr = struct.unpack_from("<H2s", head, at + 2)
        long = vr in (b"OB", b"UN")
        length = struct.unpack_from("<I" if long else "<H", head, at + (8 if long else 6))[0]
        start = at + (12 if long else 8)
        found[element] = head[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        at = start + length
    if 0x0010 not in found:
        return None
    return end, found.get(0x0002, ""), found.get(0x0003, ""), found[0x0010]


def _age(seconds: float | None) -> timedelta:
    return _FOREVER if seconds is None else timedelta(seconds=seconds)


def _now() -> datetime:
    return datetime.now(UTC)
