"""Telling people about peers that are turned away, without letting those peers fill log and database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from node.log import get_logger
from node.receive.counts import DOOR, Counts
from node.store.events import Events

log = get_logger()

AGAIN_S: Final = 60.0
"""The same of the same peer is told once in this time; the next telling says how often it was meanwhile."""

MOST: Final = 60
"""Tellings in that time, of whatever kind: a peer that shows another face each time is not told each time."""


class Alarm:
    """Log lines and events about peers. Thread-safe; never raises.

    Attributes
    ----------
    counts
        What there was to tell, whether or not it was told.

    Parameters
    ----------
    events
        Of the store.
    clock
        Time of day for the events.
    seconds
        Monotonic seconds.
    """

    def __init__(
        self, events: Events, clock: Callable[[], datetime], seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._events = events
        self._clock = clock
        self._seconds = seconds
        self._lock = threading.Lock()
        self._began = seconds()
        self.counts = Counts()
        self._told: dict[tuple[str, ...], int] = {}
        self._unsaid: dict[tuple[str, ...], int] = {}

    def tell(self, name: str, *, event: bool = False, **values: str) -> None:
        """Write a warning, and an event for the operator's list if asked for.

        Parameters
        ----------
        name
            Dotted and in the past tense.
        values
            Strings without patient data; together with the name they say what is the same.
        """
        self.counts.add(DOOR, name)
        key = (name, *values.values())
        now = self._seconds()
        with self._lock:
            if now - self._began >= AGAIN_S:
                self._began = now
                self._unsaid = {what: n for what, n in self._told.items() if n}
                self._told = {}
            if key in self._told:
                self._told[key] += 1
                return
            if len(self._told) >= MOST:
                return
            self._told[key] = 0
            unsaid = self._unsaid.pop(key, 0)
        more = {"times_before": unsaid} if unsaid else {}
        log.warning(name, **values, **more)
        if not event:
            return
        try:
            self._events.add("warning", name, {**values, **more}, self._clock())
        except Exception as error:
            log.error("event.unrecorded", error=type(error).__name__)
