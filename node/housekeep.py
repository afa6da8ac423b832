"""Housekeeping by the clock (APScheduler): what must happen now and then, and never the work queue itself.

Every task is idempotent and may be skipped: a task that fails is logged once and runs again at its next time. Of
several nodes on one database, one runs what is to happen once in its period (`Store.turns`, R54). A step of the
wall clock moves all times of the scheduler along (R53).
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor as Threads
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger

from node.config.schema import Config
from node.config.snapshot import forwarding
from node.deliver.destination import Echo
from node.deliver.files import echo
from node.dicom.scan import scan_file
from node.errors import NodeError
from node.log import get_logger
from node.model import DeliveryState, Instance, JobState, Series, SeriesState
from node.store import Store, owners
from node.store.clock import WATCH, Watch

log = get_logger()

TICK_S = 2.0
"""The scheduler shows that it runs this often."""

_ECHO_S = 8.0
_ANSWER_S = 5.0
_GRACE_S = 300.0
_FOREVER = timedelta(days=365 * 200)
_LOOKED_AT = 5000
"""Series whose records the daily report reads, at most: a few seconds."""
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
        self,
        store: Store,
        config: Callable[[], Config],
        *,
        alive_since: datetime | None = None,
        owner: str = "",
    ) -> None:
        self._store = store
        self._alive_since = alive_since or _now()
        self._owner = owner or owners.me("housekeep")
        self._config = config
        self._answers: dict[str, Echo] = {}
        self._clock = Watch()
        self._stopping = threading.Event()
        self._clock_thread = threading.Thread(target=self._watch_clock, name="clock-watch", daemon=True)
        self.seen_at = time.monotonic()
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(8)},  # a long task keeps none of the others waiting
            # The library's default skips a task that is a second late (reliability: R54).
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        self._tasks: Mapping[str, tuple[Callable[[], None], Callable[[], object]]] = {
            "tick": (self.tick, _every(TICK_S)),
            "leases": (self.leases, _every(15.0)),
            "destinations": (self.destinations, _every(_ECHO_S)),
            "reserve": (self.reserve, _every(60.0)),
            "retention": (self._once("retention", self.retention, 570.0), _every(600.0)),
            "reconcile": (self._once("reconcile", self.reconcile, 43200.0), _daily(3, 17)),
            "report": (self._once("report", self.report, 43200.0), _daily(6, 0)),
        }
        for name, (task, trigger) in self._tasks.items():
            self._scheduler.add_job(_guarded(name, task), trigger(), id=name)
        for task in (self.reserve, self.reconcile, self.destinations):
            name = f"{task.__name__}-at-start"
            self._scheduler.add_job(_guarded(name, task), id=name)

    def start(self) -> None:
        """Begin; the spool is reconciled and destinations are asked at once."""
        self._scheduler.start()
        self._clock_thread.start()

    def stop(self) -> None:
        """End; a task under way is waited for."""
        self._stopping.set()
        if self._clock_thread.is_alive():
            self._clock_thread.join()
        self._scheduler.shutdown(wait=True)

    @property
    def quiet_s(self) -> float:
        """Seconds since the scheduler last ran anything; it does so every :data:`TICK_S`."""
        return time.monotonic() - self.seen_at

    @property
    def answers(self) -> Mapping[str, Echo]:
        """What each destination said when it was last asked, by name."""
        return dict(self._answers)

    def _once(self, name: str, task: Callable[[], None], every_s: float) -> Callable[[], None]:
        """The task, where it is this node's turn: on one of those that share a database, and never two at once."""

        def run() -> None:
            if self._store.turns.take(name, self._owner, _now(), every_s=every_s):
                try:
                    task()
                finally:
                    self._store.turns.done(name, self._owner, _now())

        return run

    def _watch_clock(self) -> None:
        while not self._stopping.wait(TICK_S):
            step = self._clock.look()
            if not step:
                continue
            log.warning("clock.stepped", by_s=round(step), hint="keep the host's time by NTP")
            for name, (_, trigger) in self._tasks.items():
                self._scheduler.reschedule_job(name, trigger=trigger())
            try:
                if step < 0:
                    self._store.jobs.shorten_pauses(_now(), step)
                    self._store.deliveries.shorten_pauses(_now(), step)
                self._store.events.add("warning", "clock.stepped", {"by_s": round(step)}, _now())
            except NodeError as e:
                log.error("event.unrecorded", because=type(e).__name__)

    # tasks ----------------------------------------------------------------------------------------
    def tick(self) -> None:
        """Show that the scheduler runs what it is to run."""
        self.seen_at = time.monotonic()

    def leases(self) -> None:
        """Put back work whose lease ran out, so that lists tell the truth while nobody claims."""
        if not WATCH.settled:
            return  # holders that live have yet to beat by the new time
        now = _now()
        jobs, deliveries = self._store.jobs.requeue_expired(now), self._store.deliveries.requeue_expired(now)
        if jobs or deliveries:
            log.warning("leases.expired", jobs=jobs, deliveries=deliveries)

    def destinations(self) -> None:
        """Ask every destination whether it is there; tell when that changed."""
        config = self._config()
        with Threads(max(1, min(8, len(config.destinations)))) as pool:
            answers = dict(
                zip(
                    config.destinations,
                    pool.map(lambda d: _ask(d, config.node.ae_title), config.destinations.values()),
                    strict=True,
                )
            )
        before, self._answers = self._answers, answers
        for name, answer in answers.items():
            if name in before and before[name].ok == answer.ok:
                continue
            if answer.ok:
                log.info("destination.up", destination=name)
            else:
                log.warning("destination.down", destination=name, why=answer.text, hint=answer.hint)
            if name in before or not answer.ok:
                kind = "destination.up" if answer.ok else "destination.down"
                body = {"destination": name, "why": answer.text}
                self._store.events.add("info" if answer.ok else "warning", kind, body, _now())

    def reserve(self) -> None:
        """Keep room for the database, should the disk be full one day."""
        reserve = self._store.database.reserve
        if reserve is not None and self._store.spool.free_bytes() >= self._config().store.refuse_below:
            reserve.keep()

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
        found = self._store.reconcile.scan(
            read_orphan,
            now,
            grace_s=max(0.0, min(_GRACE_S, alive_s)),
            forward=forwarding(self._config()),
        )
        log.info(
            "spool.reconciled", files=found.n_files, adopted=len(found.adopted), swept=found.swept,
            missing=len(found.missing), unreadable=len(found.unreadable),
        )  # fmt: skip
        if found.missing:
            log.critical("spool.files_missing", n=len(found.missing), hint="run `luminode spool fsck`")

    def report(self) -> None:
        """One line and one event about the last day."""
        since = _now() - timedelta(days=1)
        series = self._store.series.since(since)
        body = {
            "series": len(series),
            "instances": sum(s.count for s in series),
            **{f"series_{s.value.lower()}": sum(x.state is s for x in series) for s in SeriesState},
            "derived_on": self._derived_on(series, since),
            "jobs_held": self._store.jobs.count(JobState.HELD),
            "deliveries_failed": self._store.deliveries.count(DeliveryState.FAILED),
            "free_gb": round(self._store.spool.free_bytes() / 1e9, 1),
        }
        log.info("report.daily", **body)
        self._store.events.add("info", "report.daily", body, _now())

    def _derived_on(self, series: Sequence[Series], since: datetime) -> dict[str, int]:
        """How many series were derived by each runtime: a GPU that serves no more shows here, who looks or not."""
        routed = [s.key.series_uid for s in series if s.state is SeriesState.ROUTED][:_LOOKED_AT]
        ran = [
            str(record.body["runtime"])
            for uid in dict.fromkeys(routed)
            for record in self._store.provenance.records(uid)
            if record.kind == "series.derived" and record.at >= since
        ]
        return {runtime: ran.count(runtime) for runtime in sorted(set(ran))}


class Every(BaseTrigger):  # type: ignore[misc]
    """Every so many seconds from now on.

    The library's own interval lists every run that was missed, one by one, with its lock held: after a clock that
    was set 400 days ahead that took a minute in which nothing ran at all (R53).

    Parameters
    ----------
    seconds
        Between two runs.
    """

    def __init__(self, seconds: float) -> None:
        self._interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The next time; after one that lies far from now, behind or ahead, an interval from now."""
        if previous_fire_time is not None and now - self._interval < previous_fire_time <= now:
            return previous_fire_time + self._interval
        return now + self._interval


def _every(seconds: float) -> Callable[[], object]:
    return lambda: Every(seconds)


def _daily(hour: int, minute: int) -> Callable[[], object]:
    return lambda: CronTrigger(hour=hour, minute=minute, timezone=UTC)


def _ask(settings: Any, calling_ae: str) -> Echo:
    """C-ECHO with less patience than a delivery has: who asks every few seconds wants to know now."""
    if getattr(settings, "timeout", 0.0) > _ANSWER_S:
        settings = settings.model_copy(update={"timeout": _ANSWER_S})
    return echo(settings, calling_ae=calling_ae)


def _guarded(name: str, task: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            task()
        except NodeError as e:
            why, told, hint = type(e).__name__, e.message, e.hint
            log.error("housekeeping.failed", task=name, because=why, told=told, hint=hint)
        except Exception as e:
            log.error("housekeeping.failed", task=name, because=type(e).__name__)

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
