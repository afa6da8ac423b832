"""The catalogue: finds engine folders, verifies what is in them, picks the runtime.

An engine is a folder with a card.yaml (engines/card.py), in ``engines/zoo`` or in a folder of the caller's.
A broken folder is kept as its fault and hides no other; a name that is taken cannot be taken again, so
that no folder of a site shadows a shipped engine.

Reading cards is cheap and every process of the node does it; the numerical libraries are imported when an
engine is loaded, in the worker.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import Card
from engines.card import SEAL, CardFile, as_card, digest, read, seals
from engines.errors import CardInvalid, EngineError, RuntimeUnavailable, WeightsMismatch
from engines.ladder import ACCELERATED, MOST_CALLS, RUNGS, Place, Rung, Wanted, climb

if TYPE_CHECKING:
    from engines.front import Enhancer

ZOO = Path(__file__).resolve().parent / "zoo"


KNOWN_RUNTIMES = ("auto", *RUNGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    folder: Path
    file: CardFile
    card: Card


class Catalog:
    """The engines of some folders, by name.

    Parameters
    ----------
    folders
        Each holds one folder per engine; earlier ones keep a name that later ones repeat. A folder that
        is not there holds nothing.
    place
        Where engines run: plans, and how much of which GPU.
    rungs
        The runtimes to choose from, the fastest first; None for all that there are.
    """

    def __init__(
        self, folders: Sequence[Path], *, place: Place | None = None, rungs: Mapping[str, Rung] | None = None
    ) -> None:
        self._place = place or Place()
        self._rungs = RUNGS if rungs is None else rungs
        self._entries: dict[str, _Entry] = {}
        self._faults: dict[str, EngineError] = {}
        for folder in folders:
            self._scan(folder)

    @classmethod
    def default(cls, extra: Sequence[Path] = (), *, place: Place | None = None) -> Catalog:
        """The shipped zoo, then the caller's folders."""
        return cls([ZOO, *extra], place=place)

    def _scan(self, folder: Path) -> None:
        try:
            inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
        except OSError as e:
            if not isinstance(e, FileNotFoundError):
                self._faults[self._free(folder.name)] = CardInvalid(
                    f"{folder.name}: cannot be listed: {e.strerror}"
                )
            return
        try:
            seal = seals(folder)
            if seal is None and folder == ZOO:  # a folder of a site needs none
                raise CardInvalid(f"{folder.name}: {SEAL} is missing", hint="install the release again")
        except CardInvalid as e:
            self._faults[self._free(folder.name)] = e
            return
        for path in inside:
            try:
                file = read(path, seal)
                if file.name in self._entries:
                    raise CardInvalid(
                        f"{file.name}: there is an engine of this name already",
                        hint="a site's engine needs a name of its own",
                    )
                self._entries[file.name] = _Entry(folder=path, file=file, card=as_card(file))
            except EngineError as e:
                self._faults[self._free(path.name)] = e

    def _free(self, name: str) -> str:
        """A key for a fault: the folder's name, and a number if that is taken."""
        key, n = name, 2
        while key in self._faults or key in self._entries:
            key, n = f"{name}#{n}", n + 1
        return key

    @property
    def place(self) -> Place:
        """Where engines run."""
        return self._place

    def names(self) -> tuple[str, ...]:
        """Names of all engines whose cards are sound, sorted."""
        return tuple(sorted(self._entries))

    def faults(self) -> Mapping[str, EngineError]:
        """What is wrong with the other folders, by folder name."""
        return dict(self._faults)

    def card(self, name: str) -> Card:
        """The card of an engine; nothing is loaded.

        Raises
        ------
        CardInvalid
            There is no such engine, or its folder is broken.
        """
        return self._entry(name).card

    @staticmethod
    def accelerated() -> frozenset[str]:
        """Names of the runtimes that need an accelerator: what to avoid while it is not to be trusted."""
        return ACCELERATED

    def models(self, name: str) -> Mapping[str, tuple[Path, str]]:
        """The network files of an engine and their digests, by precision: fp32, and fp16 if it has one.

        Raises
        ------
        CardInvalid
        """
        entry = self._entry(name)
        file, found = entry.file, {}
        if file.model is not None:
            found["fp32"] = (entry.folder / file.model, file.weights_sha256)
        if file.model_fp16 is not None and file.model_fp16_sha256 is not None:
            found["fp16"] = (entry.folder / file.model_fp16, file.model_fp16_sha256)
        return found

    def load(
        self, name: str, runtime: str = "auto", threads: int = 0, avoid: Collection[str] = frozenset()
    ) -> Enhancer:
        """Verify and load an engine.

        Parameters
        ----------
        runtime
            ``auto`` takes the best that is there; a name insists on it. Classical engines have none to
            choose: they take ``auto`` only.
        threads
            How many the engine may use; 0 means one per processor. No bit of the result depends on it.
        avoid
            Runtimes that are not to be used now, whatever ``runtime`` says; unknown names are none.

        Raises
        ------
        CardInvalid, WeightsMismatch, RuntimeUnavailable
        """
        entry = self._entry(name)
        if runtime not in KNOWN_RUNTIMES:
            raise RuntimeUnavailable(
                f"there is no runtime {runtime!r}", hint=f"one of {', '.join(KNOWN_RUNTIMES)}"
            )
        n_threads = threads if threads > 0 else processors()
        if entry.file.model is None:
            return self._without_weights(entry, runtime, n_threads)
        from engines.front import Enhancer
        from engines.learned import core_of

        wanted = Wanted(card=entry.card, models=self.models(name), threads=n_threads, place=self._place)
        stood = climb(wanted, runtime, avoid, self._rungs)
        calls = min(n_threads, MOST_CALLS) if stood.network.device == "cpu" else 1
        core = core_of(entry.card, stood.network, calls)
        return Enhancer(
            entry.card, core, n_threads, refusals=stood.refusals, keep=stood.keep, close=stood.close
        )

    def _without_weights(self, entry: _Entry, runtime: str, threads: int) -> Enhancer:
        from engines.classical import CORES
        from engines.front import Enhancer
        from engines.learned import Learned
        from engines.runtime.identity import Identity

        file, card = entry.file, entry.card
        seen = digest(file.core, file.parameters)
        if seen != file.weights_sha256:
            raise WeightsMismatch(
                f"{file.name}: the parameters are not the ones that were evaluated: "
                f"{seen[:12]}, not {file.weights_sha256[:12]}",
                hint="a site's own parameters need a folder, a name and a version of their own",
            )
        if runtime != "auto":
            raise RuntimeUnavailable(
                f"{file.name} runs without a network runtime", hint="say `runtime: auto`, or nothing"
            )
        if file.core is None:
            return Enhancer(card, Learned(card, Identity()), threads)
        try:
            core = CORES[file.core](file.parameters, threads)
        except (KeyError, TypeError, ValueError) as e:
            raise CardInvalid(f"{file.name}: parameters do not fit the core {file.core}: {e}") from e
        if card.receptive_field < core.halo:
            raise CardInvalid(f"{file.name}: receptive_field must be at least {core.halo}")
        return Enhancer(card, core, threads)

    def _entry(self, name: str) -> _Entry:
        if name in self._entries:
            return self._entries[name]
        if name in self._faults:
            raise self._faults[name]
        near = difflib.get_close_matches(name, self._entries, n=1)
        raise CardInvalid(
            f"there is no engine {name!r}",
            hint=f"did you mean {near[0]}?" if near else f"there are {', '.join(self.names())}",
        )


def processors() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
