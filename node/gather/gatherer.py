"""The gatherer: reads the headers of what arrived, closes series, asks the rules, queues jobs.

It keeps what it read of open series in memory, so that a look at a growing series costs no query per instance;
after a restart the same is read back from the store.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from engines.base import Card
from node.config.schema import Config
from node.dicom.headers import merge
from node.dicom.read import read_header
from node.dicom.stacks import regular
from node.errors import NodeError, StoreError
from node.failpoints import failpoint
from node.gather.complete import Carried, Judgement, Ladder, SeriesView, judge
from node.gather.decide import decide_series
from node.gather.plan import plan
from node.log import get_logger
from node.model import Action, Association, Decision, Instance, InstanceHeader, Series
from node.store import Store
from node.store.clock import Watch

log = get_logger()

_AT_ONCE = 200
_WEAK = ("quiet", "give_up")
"""Rungs that prove nothing: what better evidence was missing is put on record, for who wonders later."""
_LOOK_AGAIN_S = 0.5
_FIRST_LOOK = 4
"""Instances of a series that are there before it is asked what the rules would do with it."""
_BREATH_S = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """The configuration that decides now, with its digest."""

    config: Config
    digest: str


@dataclass(slots=True)
class _Growing:
    """What is known of one open generation."""

    earlier: Mapping[str, InstanceHeader]
    mine: dict[str, InstanceHeader] = field(default_factory=dict)
    n_unreadable: int = 0
    last_by_association: dict[str, datetime] = field(default_factory=dict)
    look_at: int = 0
    decided_by: str = ""
    expected: bool | None = None
    whole: int = 0

    def headers(self) -> list[InstanceHeader]:
        return [*(h for uid, h in self.earlier.items() if uid not in self.mine), *self.mine.values()]

    def note(self, instance: Instance) -> None:
        known = self.last_by_association.get(instance.association)
        if known is None or instance.received_at > known:
            self.last_by_association[instance.association] = instance.received_at


class Gatherer:
    """Run by one process; a second one would only repeat reads, since every transition is fenced.

    Parameters
    ----------
    store
        Database and spool.
    in_force
        Gives the configuration to decide with.
    cards
        Engine cards by catalogue name.
    """

    def __init__(self, store: Store, in_force: Callable[[], InForce], cards: Mapping[str, Card]) -> None:
        self._store = store
        self._in_force = in_force
        self._cards = cards
        self._growing: dict[int, _Growing] = {}
        self._open: dict[tuple[str, str], int] = {}
        self._senders: dict[tuple[str, str], list[tuple[Association, frozenset[str]]]] = {}
        self._awake_since: datetime | None = None
        self._heard: dict[str, datetime] = {}
        """When each association last brought anything, of whatever series."""

    def run(self, stop: threading.Event) -> None:
        """Gather until ``stop`` is set. A database that is away is waited for."""
        ticker = self._store.changes.ticker()
        clock = Watch()
        wait_s = 0.0
        try:
            while not stop.is_set():
                try:
                    ticker.wait(wait_s)
                    now = datetime.now(UTC)
                    if clock.look():  # stepped: silence counts from here, as after a start
                        self._awake_since = now
                        self._heard.clear()
                    wait_s = self.step(now)
                    stop.wait(_BREATH_S)  # a receiver at work commits all the time
                except StoreError as e:
                    log.error("gather.store_failed", because=type(e).__name__, told=e.message)
                    self._growing.clear()
                    stop.wait(1.0)
        finally:
            ticker.close()

    def step(self, now: datetime) -> float:
        """One round: index, judge, route. Returns after how many seconds to look again at the latest."""
        self._awake_since = self._awake_since or now
        if self._index(now):
            return 0.0
        again = _LOOK_AGAIN_S
        open_series = self._store.series.open_series()
        self._open = {(s.key.study_uid, s.key.series_uid): s.id for s in open_series}
        self._senders.clear()
        for series in open_series:
            told = self._judge_safely(series, now)
            if told is None:
                continue
            if told.close:
                if self._store.series.close(series.id, told.because, now, count=series.count):
                    failpoint("gather.closed")
                    self._growing.pop(series.id, None)
                    log.info(
                        "series.closed", series=series.id, generation=series.generation,
                        instances=series.count, because=told.because, detail=told.detail,
                    )  # fmt: skip
                    if told.because in _WEAK:
                        why = {"because": told.because, "detail": told.detail}
                        self._store.events.add("info", "series.closed", why, now, series_id=series.id)
                continue
            self._look_ahead(series, settling=told.settling)
            if told.at is not None:
                again = min(again, max(0.01, (told.at - now).total_seconds()))
        for known in set(self._growing) - {s.id for s in open_series}:
            del self._growing[known]
        silent_since = now - timedelta(seconds=self._in_force().config.series.quiet_after)
        self._heard = {a: at for a, at in self._heard.items() if at > silent_since}
        for series in self._store.series.closed_series():
            self._route_safely(series, now)
        return again

    # reading --------------------------------------------------------------------------------------
    def _index(self, now: datetime) -> bool:
        """Read headers that were not read yet. Returns True if there may be more."""
        waiting = self._store.series.unindexed(_AT_ONCE)
        if not waiting:
            return False
        read: list[tuple[int, InstanceHeader]] = []
        for row_id, instance in waiting:
            self._heard[instance.association] = max(
                instance.received_at, self._heard.get(instance.association, instance.received_at)
            )
            try:
                header = read_header(self._store.spool.path(instance.path))
            except NodeError as e:
                passing = isinstance(e, StoreError) and self._store.spool.exists(instance.path)
                log.warning("instance.unreadable", instance=row_id, because=type(e).__name__, again=passing)
                if not passing:  # a file that is there but cannot be opened now is read in the next round
                    self._store.series.mark_unreadable(row_id, e.message, now)
                continue
            read.append((row_id, header))
            growing = self._growing.get(self._open.get((instance.study_uid, instance.series_uid), 0))
            if growing is not None:
                growing.mine[header.sop_instance_uid] = header
                growing.note(instance)
        if read:
            self._store.series.index(read)
            failpoint("gather.indexed")
        return bool(read) and len(waiting) == _AT_ONCE

    def _known(self, series: Series) -> _Growing | None:
        """What is known of an open series, brought up to date; None while headers are still unread."""
        growing = self._growing.get(series.id)
        if growing is not None and len(growing.mine) + growing.n_unreadable == series.count:
            return growing
        if self._store.series.pending(series.id):
            return None
        mine = self._store.series.headers(series.id)
        whole = self._store.series.headers(series.id, all_generations=True) if series.generation > 1 else mine
        own = {h.sop_instance_uid: h for h in mine}
        growing = _Growing(
            earlier={h.sop_instance_uid: h for h in whole if h.sop_instance_uid not in own},
            mine=own,
            n_unreadable=self._store.series.unreadable(series.id),
        )
        for instance in self._store.series.instances(series.id):
            growing.note(instance)
        if len(own) + growing.n_unreadable != series.count:
            return None  # something arrived since the series' row was read
        self._growing[series.id] = growing
        return growing

    # judging --------------------------------------------------------------------------------------
    def waits_for(self, series: Series, now: datetime) -> Judgement | None:
        """What an open series waits for, for whoever asks; None if that is just changing."""
        return self._judge(series, now)

    def _judge_safely(self, series: Series, now: datetime) -> Judgement | None:
        """Judge a series; one that cannot be is closed by time, and must not keep the others waiting."""
        try:
            return self._judge(series, now)
        except StoreError:
            raise
        except Exception as e:
            where = traceback.extract_tb(e.__traceback__)[-1]
            told = f"it could not be judged: {type(e).__name__} in {Path(where.filename).name}:{where.lineno}"
            log.error("series.not_judged", series=series.id, because=told)
            view = SeriesView(
                opened_at=series.opened_at, last_received_at=series.last_received_at, headers=(),
                n_unread=0, carried=(), awake_since=self._awake_since,
            )  # fmt: skip
            return judge(view, now, _ladder(self._in_force().config), lambda _headers: (False, told))

    def _judge(self, series: Series, now: datetime) -> Judgement | None:
        ladder = _ladder(self._in_force().config)
        growing = self._known(series)
        if growing is None:
            view = SeriesView(
                opened_at=series.opened_at, last_received_at=series.last_received_at, headers=(),
                n_unread=1, carried=(), awake_since=self._awake_since,
            )  # fmt: skip
            return judge(view, now, ladder, regular)
        carried = [
            Carried(
                association=c.association,
                n_instances=c.n_seen,
                last_received_at=max(
                    growing.last_by_association.get(c.association_id, series.last_received_at),
                    self._heard.get(c.association_id, series.last_received_at),
                ),
            )
            for c in self._store.series.carried(series.id)
            if c.association is not None
        ]
        view = SeriesView(
            opened_at=series.opened_at,
            last_received_at=series.last_received_at,
            headers=growing.headers(),
            n_unread=0,
            carried=carried,
            others_open=self._others(series, carried),
            awake_since=self._awake_since,
        )
        return judge(view, now, ladder, regular)

    def _others(self, series: Series, carried: Sequence[Carried]) -> list[Association]:
        own = {c.association.id for c in carried}
        return [
            a
            for sender in sorted({(c.association.calling_ae, c.association.address) for c in carried})
            for a, studies in self._at_work(*sender)
            if a.id not in own and (not studies or series.key.study_uid in studies)
        ]

    def _at_work(self, calling_ae: str, address: str) -> list[tuple[Association, frozenset[str]]]:
        """Open associations of a sender with the studies they carried; asked once a round."""
        key = (calling_ae, address)
        if key not in self._senders:
            self._senders[key] = [
                (a, self._store.series.studies_of(a.id))
                for a in self._store.series.open_associations(calling_ae, address)
            ]
        return self._senders[key]

    # looking ahead --------------------------------------------------------------------------------
    def _look_ahead(self, series: Series, *, settling: bool) -> None:
        """Say what the rules would do with a growing series, so that work on it may begin.

        Asked at 4 slices, 8, 16 and so on; a decision may change as the header fills. Whatever fails here fails
        again when the series is routed, where it is told.
        """
        growing, in_force = self._growing.get(series.id), self._in_force()
        if growing is None or series.generation > 1:
            return
        if not in_force.config.series.begin_early:
            if growing.expected:
                self._store.outlooks.forget(series.id)
                growing.expected = False
            return
        if settling and growing.expected and growing.whole != series.count:
            growing.whole = series.count
            self._store.outlooks.whole(series.id, series.count)
        if len(growing.mine) < growing.look_at and in_force.digest == growing.decided_by:
            return
        growing.look_at, growing.decided_by = max(_FIRST_LOOK, 2 * len(growing.mine)), in_force.digest
        if len(growing.mine) < _FIRST_LOOK:
            return
        try:
            config = in_force.config
            decision = self._decided(series, config, growing.headers(), growing.n_unreadable)
            jobs = plan(series, decision, config, self._cards)
            if jobs:
                self._store.outlooks.expect(series.id, jobs[0].engine, jobs[0].params)
                growing.expected = True
        except StoreError:
            raise
        except Exception as e:
            log.debug("series.no_outlook", series=series.id, because=type(e).__name__)
            return
        if not jobs and growing.expected is not False:
            self._store.outlooks.forget(series.id)
            growing.expected = False

    # deciding -------------------------------------------------------------------------------------
    def _route_safely(self, series: Series, now: datetime) -> None:
        """Route a series; whatever is wrong with this one must not keep the others waiting."""
        try:
            self._route(series, now)
        except StoreError as e:
            if e.retryable:
                raise
            log.error("series.not_routed", series=series.id, because=type(e).__name__, told=e.message)
        except Exception as e:
            where = traceback.extract_tb(e.__traceback__)[-1]
            reason = (
                f"it could not be decided: {type(e).__name__} in {Path(where.filename).name}:{where.lineno}"
            )
            log.error("series.not_routed", series=series.id, because=reason)
            decision = Decision(rule="", action=Action.REJECT, reason=f"{reason}, a defect of Luminode")
            self._store.series.route(series.id, decision, (), self._in_force().digest, now)

    def _route(self, series: Series, now: datetime) -> None:
        config = self._in_force()
        headers = self._store.series.headers(series.id, all_generations=series.generation > 1)
        generations = self._store.series.generations(series.id) if series.generation > 1 else [series]
        n_unreadable = sum(self._store.series.unreadable(g.id) for g in generations)
        decision = self._decided(series, config.config, headers, n_unreadable)
        offset = now.astimezone().utcoffset() or timedelta(0)
        jobs = plan(
            series, decision, config.config, self._cards,
            utc_offset_minutes=int(offset.total_seconds()) // 60,
            derived_gone=series.generation > 1 and self._store.series.derived_gone(series.id),
        )  # fmt: skip
        if headers:
            self._store.series.index((), {series.id: merge(headers)})
        ids = self._store.series.route(series.id, decision, jobs, config.digest, now)
        failpoint("gather.routed")
        log.info(
            "series.routed", series=series.id, action=str(decision.action), rule=decision.rule,
            because=decision.reason, jobs=ids,
        )  # fmt: skip

    def _decided(
        self, series: Series, config: Config, headers: Sequence[InstanceHeader], n_unreadable: int
    ) -> Decision:
        senders = self._store.series.senders(series.id)
        return decide_series(
            headers, config, self._cards,
            calling_ae=[calling for calling, _ in senders], called_ae=[called for _, called in senders],
            n_unreadable=n_unreadable,
        )  # fmt: skip


def _ladder(config: Config) -> Ladder:
    series = config.series
    return Ladder(
        quiet_after_s=series.quiet_after,
        give_up_after_s=series.give_up_after,
        settle_s=series.settle,
        on_count=series.close_on.count,
        on_release=series.close_on.release,
    )
