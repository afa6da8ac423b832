"""Plans that a worker misses, built by other processes while the next runtime serves.

One at a time and at a low priority, so that the series at hand hardly notice. A plan is tried once in the life of a
worker: what failed is an event with its words, and fails again until a person has seen to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from engines.errors import EngineError, RuntimeUnavailable
from engines.ladder import Place
from node.log import get_logger

log = get_logger()

Note = Callable[[Literal["info", "warning", "error", "critical"], str, Mapping[str, Any]], None]
Pair = tuple[str, str]
"""An engine and a runtime."""


class Building:
    """What a worker has asked for.

    Parameters
    ----------
    note
        Called as ``note(level, event, body)`` with what begins and how it ends.
    """

    def __init__(self, place: Place, note: Note) -> None:
        self._place = place
        self._note = note
        self._asked: set[Pair] = set()
        self._waiting: list[Pair] = []
        self._now: tuple[Pair, Any] | None = None

    def want(self, engine: str, runtime: str) -> None:
        """Build the plans of an engine, unless that was asked for before."""
        pair = (engine, runtime)
        if pair not in self._asked:
            self._asked.add(pair)
            self._waiting.append(pair)
            self._next()

    def done(self) -> list[Pair]:
        """Whose plans are there since the last call; never waits."""
        found = []
        while self._now is not None:
            pair, one = self._now
            try:
                outcomes = one.outcomes()
            except RuntimeUnavailable as e:
                self._failed(pair, e)
            else:
                if outcomes is None:
                    break
                if self._told(pair, outcomes):
                    found.append(pair)
            self._now = None
            self._next()
        return found

    def stop(self) -> None:
        """End what goes on; nothing half-built is left behind."""
        self._waiting.clear()
        if self._now is not None:
            self._now[1].stop()
            self._now = None

    def _next(self) -> None:
        from engines.rebuild import rebuild
        from engines.runtime import flavour, gpu
        from engines.runtime.plans import Plans

        while self._now is None and self._waiting:
            pair = self._waiting.pop(0)
            engine, runtime = pair
            try:
                # What can be built without touching the GPU leaves its memory to the engines.
                ahead = flavour.flavour(runtime).ahead_of_time
                here = gpu.local()[self._place.gpu : self._place.gpu + 1] if ahead else ()
                one = rebuild(
                    [engine],
                    plans=Plans(self._place.plans),
                    flavour=runtime,
                    capabilities=[g.compute_capability for g in here],
                )
            except (EngineError, OSError) as e:
                self._failed(pair, e)
                continue
            self._now = (pair, one)
            self._note("info", "plans.building", {"engine": engine, "runtime": runtime})

    def _told(self, pair: Pair, outcomes: Any) -> bool:
        """Tell of outcomes; whether there is at least one plan more to be loaded."""
        engine, runtime = pair
        there = [o for o in outcomes if o.state != "failed"]
        for o in outcomes:
            if o.state == "failed":
                told = {"engine": engine, "runtime": runtime, "precision": o.precision, "because": o.fault}
                self._note("error", "plans.not_built", {**told, "hint": o.hint})
        if there:
            seconds = round(sum(o.seconds for o in there), 1)
            body = {"engine": engine, "runtime": runtime, "plans": len(there), "seconds": seconds}
            self._note("info", "plans.built", body)
        return bool(there)

    def _failed(self, pair: Pair, e: Exception) -> None:
        because = e.message if isinstance(e, EngineError) else f"{type(e).__name__}"
        self._note(
            "error",
            "plans.not_built",
            {"engine": pair[0], "runtime": pair[1], "because": because, "hint": getattr(e, "hint", "")},
        )
