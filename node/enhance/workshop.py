"""The engines of a worker: loaded once, and proven on a question of known answer before the first series.

Why a faster runtime does not serve is told once, and kept with what is derived. A plan that is missing is built
meanwhile, and taken up by the next job; a GPU that has too little memory for a job is done without from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engines.base import Engine
from engines.catalog import Catalog
from engines.errors import CanaryRefused, EngineError, OutOfMemory, PlanMismatch, RuntimeUnavailable
from engines.ladder import Kind, Refusal
from node.enhance.building import Building, Note
from node.enhance.failures import lost
from node.enhance.pace import Pace
from node.log import get_logger
from node.store import Store

if TYPE_CHECKING:
    from engines.front import Enhancer  # numerical libraries are loaded when an engine is

log = get_logger()

_Key = tuple[str, str, bool]

TOLD: frozenset[Kind] = frozenset({"gpu", "plan", "memory"})
"""Refusals that a person may want to know of: all was there, and yet it does not serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """An engine that answered its canary rightly, the device that it runs on, and how fast it is.

    Attributes
    ----------
    refused
        Faster runtimes that were there and do not serve, and why.
    """

    engine: Engine
    device: str
    pace: Pace
    refused: tuple[Refusal, ...] = ()


@dataclass(slots=True, kw_only=True)
class Workshop:
    """What a worker keeps between jobs: the store, the catalogue, and engines that stay warm.

    Attributes
    ----------
    avoid
        Runtimes that are not to be used now.
    alarm
        Called as ``alarm(event, body)`` where a runtime or an engine is refused that should not be.
    note
        Called as ``note(level, event, body)`` with what a person may want to know of runtimes and plans.
    """

    store: Store
    threads: int = 0
    catalog: Catalog = field(default_factory=Catalog.default)
    avoid: frozenset[str] = frozenset()
    alarm: Callable[[str, Mapping[str, Any]], None] = lambda _event, _body: None
    note: Note = lambda _level, _event, _body: None
    _engines: dict[_Key, Proven] = field(default_factory=dict)
    _loaded: dict[_Key, Enhancer] = field(default_factory=dict)
    _worked: set[_Key] = field(default_factory=set)
    _told: set[tuple[str, Refusal]] = field(default_factory=set)
    _spent: dict[str, dict[str, Refusal]] = field(default_factory=dict)
    _building: Building | None = None
    _built: list[tuple[str, str]] = field(default_factory=list)

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
        self.look()
        while self._built:
            built, on = self._built.pop()
            for key in [k for k in self._engines if k[0] == built and k[1] in ("auto", on) and not k[2]]:
                self._drop(key)
        key = (name, runtime, reference)
        if key not in self._engines:
            self._engines[key] = self._prove(name, runtime, reference)
        return self._engines[key]

    def holds(self, proven: Proven, name: str, runtime: str) -> bool:
        """Whether this is still what a job would be done with."""
        return self._engines.get((name, runtime, False)) is proven

    def look(self) -> None:
        """See which plans were built meanwhile: their engines are loaded anew when they are next asked for."""
        if self._building is not None:
            self._built += self._building.done()

    def worked(self, name: str, runtime: str, *, reference: bool = False) -> None:
        """An engine has done a job: the kernels that it compiled for it are kept, the first time."""
        key = (name, runtime, reference)
        if key in self._loaded and key not in self._worked:
            self._worked.add(key)
            _keep(self._loaded[key])

    def step_down(self, name: str, runtime: str, e: OutOfMemory | RuntimeUnavailable) -> bool:
        """Do without the runtime whose GPU could not do a job, in this process and for this engine.

        Returns
        -------
        Whether there may be another: the rule leaves it to the node, and it was no CPU that had too little.
        """
        key = (name, runtime, False)
        engine = self._loaded.get(key)
        if engine is None or runtime != "auto" or engine.core.device == "cpu":
            return False
        ran = engine.core.runtime
        kind: Kind = "memory" if isinstance(e, OutOfMemory) else "gpu"
        refusal = Refusal(runtime=ran, kind=kind, message=e.message, hint=e.hint)
        self._spent.setdefault(name, {})[ran] = refusal
        self._tell(name, refusal)
        self._drop(key)
        return True

    def stop(self) -> None:
        """End what goes on beside the jobs."""
        if self._building is not None:
            self._building.stop()

    def _drop(self, key: _Key) -> None:
        self._engines.pop(key, None)
        self._worked.discard(key)
        engine = self._loaded.pop(key, None)
        if engine is not None:
            engine.close()

    def _prove(self, name: str, runtime: str, reference: bool) -> Proven:
        from engines import canary  # numerical libraries are loaded when an engine is

        accelerated = self.catalog.accelerated()
        spent = self._spent.get(name, {})
        avoid = set(self.avoid | (accelerated if reference else frozenset()) | spent.keys())
        refused = dict(spent)
        refusal: CanaryRefused | OutOfMemory | None = None
        while True:
            try:
                engine = self.catalog.load(name, runtime=runtime, threads=self.threads, avoid=avoid)
            except RuntimeUnavailable as e:
                if isinstance(e, PlanMismatch) and runtime in accelerated:
                    self._tell(name, Refusal(runtime=runtime, kind="plan", message=e.message, hint=e.hint))
                raise refusal or e from None
            for one in engine.refusals:
                self._tell(name, one)
                if one.kind in TOLD:
                    refused.setdefault(one.runtime, one)
            ran, device = engine.core.runtime, engine.core.device
            try:
                answer = canary.prove(
                    engine,
                    (lambda: self.catalog.load(name, threads=self.threads, avoid=accelerated))
                    if ran in accelerated
                    else None,
                )
            except (CanaryRefused, OutOfMemory) as e:
                told = {"engine": name, "runtime": ran, "device": device, "because": e.message}
                self.alarm("engine.runtime_refused", told)
                engine.close()
                if ran not in accelerated or runtime != "auto":
                    raise
                refusal = e
                kind: Kind = "memory" if isinstance(e, OutOfMemory) else "canary"
                refused[ran] = Refusal(runtime=ran, kind=kind, message=e.message, hint=e.hint)
                avoid.add(ran)
                continue
            self._loaded[name, runtime, reference] = engine
            _keep(engine)
            return Proven(
                engine=engine, device=device, pace=Pace(answer.seconds), refused=tuple(refused.values())
            )

    def _tell(self, name: str, one: Refusal) -> None:
        """Record why a runtime does not serve, once; what is not there is no fault. A missing plan is built."""
        if (name, one) in self._told:
            return
        self._told.add((name, one))
        if one.kind not in TOLD:
            log.debug("engine.runtime_absent", engine=name, runtime=one.runtime, because=one.message)
            return
        body = {"engine": name, "runtime": one.runtime, "kind": one.kind}
        self.note("warning", "engine.runtime_refused", {**body, "because": one.message, "hint": one.hint})
        if one.kind == "plan":
            if self._building is None:
                self._building = Building(self.catalog.place, self.note)
            self._building.want(name, one.runtime)


def _keep(engine: Enhancer) -> None:
    """Keep what was compiled for the next start; without it that one takes longer, and that is all."""
    try:
        engine.keep()
    except (EngineError, OSError, RuntimeError) as e:
        if lost(e):
            raise
        log.warning(
            "kernels.not_kept", engine=engine.card.name, because=getattr(e, "message", type(e).__name__)
        )
