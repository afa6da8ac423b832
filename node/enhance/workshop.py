"""The engines of a worker: loaded once, and proven on a question of known answer before the first series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.base import Engine
from engines.catalog import Catalog
from engines.errors import CanaryRefused, OutOfMemory, RuntimeUnavailable
from node.enhance.pace import Pace
from node.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """An engine that answered its canary rightly, the device that it runs on, and how fast it is."""

    engine: Engine
    device: str
    pace: Pace


@dataclass(slots=True, kw_only=True)
class Workshop:
    """What a worker keeps between jobs: the store, the catalogue, and engines that stay warm.

    Attributes
    ----------
    avoid
        Runtimes that are not to be used now.
    alarm
        Called as ``alarm(event, body)`` where a runtime or an engine is refused.
    """

    store: Store
    threads: int = 0
    catalog: Catalog = field(default_factory=Catalog.default)
    avoid: frozenset[str] = frozenset()
    alarm: Callable[[str, Mapping[str, Any]], None] = lambda _event, _body: None
    _engines: dict[tuple[str, str, bool], Proven] = field(default_factory=dict)

    def proven(self, name: str, runtime: str, *, reference: bool = False) -> Proven:
        """An engine by catalogue name, loaded and proven once.

        Parameters
        ----------
        reference
            Do without accelerators.

        Raises
        ------
        engines.errors.EngineError
            It cannot be loaded, or no runtime of it answers the canary rightly.
        """
        key = (name, runtime, reference)
        if key not in self._engines:
            self._engines[key] = self._prove(name, runtime, reference)
        return self._engines[key]

    def _prove(self, name: str, runtime: str, reference: bool) -> Proven:
        from engines import canary  # numerical libraries are loaded when an engine is

        accelerated = self.catalog.accelerated()
        avoid = set(self.avoid | (accelerated if reference else frozenset()))
        refusal: CanaryRefused | OutOfMemory | None = None
        while True:
            try:
                engine = self.catalog.load(name, runtime=runtime, threads=self.threads, avoid=avoid)
            except RuntimeUnavailable as e:
                raise refusal or e from None
            ran, device = engine.core.runtime, engine.core.device
            try:
                answer = canary.prove(
                    engine,
                    (lambda: self.catalog.load(name, threads=self.threads, avoid=accelerated))
                    if ran in accelerated
                    else None,
                )
                return Proven(engine=engine, device=device, pace=Pace(answer.seconds))
            except (CanaryRefused, OutOfMemory) as e:
                told = {"engine": name, "runtime": ran, "device": device, "because": e.message}
                self.alarm("engine.runtime_refused", told)
                if ran not in accelerated or runtime != "auto":
                    raise
                refusal = e
                avoid.add(ran)
