"""Looks at the database for those who ask, in a thread of its own: one look for all of them, and none for nobody.

Whoever asks gets a look that is a few seconds old at most, or waits for the one under way; where that takes too long,
as with a database that does not answer, it is told so.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from node.errors import NodeError
from node.log import get_logger
from node.store.db import Database
from node.store.figures import Figures, FigureStore, Place, Settled
from node.web import totals
from node.web.totals import Totals

log = get_logger()

FRESH_S: Final = 3.0
PATIENCE_S: Final = 4.0
"""How long somebody who asks waits: less than Prometheus does (10 s)."""
OLD_S: Final = 20.0
"""A look that is older is none."""
_KEPT_EVERY_S: Final = 15.0
_SUMMED_EVERY_S: Final = 60.0
_AT_ONCE: Final = 200
_BUDGET_S: Final = 0.5
"""How long one look reads the provenance: of a long absence, a thousand records each time somebody asks."""
_FEW: Final = 5000
"""Records of the provenance up to which a database is counted from its beginning; one with more, from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was found; ``told`` says why there is nothing, "" where there is. ``at`` is on the monotonic clock."""

    at: float
    told: str = ""
    figures: Figures | None = None
    totals: Totals | None = None
    kept_bytes: int | None = None


_NONE: Final = Look(at=float("-inf"), told="nobody has looked yet")


class Lookout:
    """Use as a context manager.

    Parameters
    ----------
    database
        Opens the database; called once, and again where that failed.
    spool
        Root of the spool, where totals are kept.
    sums
        Whether to sum up what lies in the spool now and then: not where that is all there ever was.
    """

    def __init__(self, database: Callable[[], Database], spool: Path, *, sums: Callable[[], bool]) -> None:
        self._open = database
        self._spool = spool
        self._sums = sums
        self._changed = threading.Condition()
        self._last = _NONE
        self._asked, self._served = 1, 0  # a first look for nobody: it is where counting begins
        self._stopping = False
        self._database: Database | None = None
        self._totals: Totals | None = None
        self._kept_at = float("-inf")
        self._summed: tuple[float, int | None] = (float("-inf"), None)
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    def __enter__(self) -> Lookout:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(PATIENCE_S)

    def look(self) -> Look:
        """A look that is fresh; the last one where the next takes its time; else none, with the reason."""
        with self._changed:
            if time.monotonic() - self._last.at > FRESH_S:
                self._asked += 1
                mine = self._asked
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._served >= mine or self._stopping, PATIENCE_S)
            if time.monotonic() - self._last.at <= OLD_S:
                return self._last
        return Look(at=time.monotonic(), told=f"the database has not answered for {PATIENCE_S:.0f} s")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._served or self._stopping)
                if self._stopping:
                    break
                asked = self._asked  # one look for all who ask until it begins
            found = self._look()
            with self._changed:
                self._last, self._served = found, asked
                self._changed.notify_all()
        if self._totals is not None:
            totals.write(self._spool, self._totals)
        if self._database is not None:
            self._database.close()

    def _look(self) -> Look:
        try:
            if self._database is None:
                self._database = self._open()
            store = FigureStore(self._database)
            counted = self._count(store)
            figures = store.look(counted.settled, datetime.now(UTC))
            counted.settled = figures.settled
            kept_bytes = self._kept_bytes(store)
        except NodeError as error:
            return Look(at=time.monotonic(), told=error.message)
        except Exception as error:
            log.error("web.failed", error=type(error).__name__)
            return Look(at=time.monotonic(), told=type(error).__name__)
        if time.monotonic() - self._kept_at > _KEPT_EVERY_S:
            self._kept_at = time.monotonic()
            totals.write(self._spool, counted)
        return Look(
            at=time.monotonic(), figures=figures, totals=copy.deepcopy(counted), kept_bytes=kept_bytes
        )

    def _count(self, store: FigureStore) -> Totals:
        """Take in what was recorded since; of a long time, as much as can be done now."""
        counted = self._totals or totals.read(self._spool)
        if counted is None:
            settled, place = store.begin()
            if place.id <= _FEW:
                settled, place = Settled(series=0), Place(id=0, hash="")
            counted = Totals(place=place, settled=settled)
        self._totals = counted
        until = time.monotonic() + _BUDGET_S
        while time.monotonic() < until:
            happenings, place = store.history(counted.place, _AT_ONCE)
            if not happenings and place != counted.place:
                log.warning(
                    "figures.begun_anew", hint="the database is another one: counters go on from here"
                )
                counted.settled = replace(counted.settled, series=store.begin()[0].series)
            counted.count(happenings, place)
            if len(happenings) < _AT_ONCE:
                break
        return counted

    def _kept_bytes(self, store: FigureStore) -> int | None:
        at, n_bytes = self._summed
        if not self._sums():
            return None
        if time.monotonic() - at > _SUMMED_EVERY_S:
            n_bytes = store.kept_bytes()
            self._summed = (time.monotonic(), n_bytes)
        return n_bytes
