"""A guardian over real workers on a real store, with the device of devices.py: how the engine tests run."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from engines.base import Card
from engines.catalog import Catalog
from node.enhance.guardian import Guardian, Patience
from node.enhance.health import Health
from node.enhance.signs import Watch
from node.model import Job, JobState
from node.store import Store
from tests.enhancing import queue, receive, series
from tests.faults import derived, devices, spawned
from tests.faults.scale import FULL

ENGINE = "ct-cnn"
PATIENCE = Patience(respawn_s=0.01, respawn_most_s=0.05, stalled_s=60.0)


def card() -> Card:
    return Catalog.default().card(ENGINE)


@dataclass(kw_only=True)
class Bench:
    """A store with series to enhance, and whoever works on them."""

    store: Store
    folder: Path
    patience: Patience = PATIENCE
    health: Health | None = None
    watch: Watch | None = None
    memory: int = 0
    warm: tuple[tuple[str, str], ...] = ()
    sources: dict[int, list[Dataset]] = field(default_factory=dict)
    guardian: Guardian | None = None

    def script(self, **told: Any) -> None:
        devices.write_script(self.folder, **told)

    def series(self, n: int, *, slices: int = 4) -> list[int]:
        """Receive and queue ``n`` series; the ids of their jobs, which are those of the series."""
        jobs = []
        for _ in range(n):
            number = len(self.sources) + 1
            made = series("CT", slices, seed=3 + number % 5, number=number)
            series_id = receive(self.store, made, f"a{number}")
            (job,) = queue(self.store, series_id, card())
            assert job == series_id, "one job a series: scripts name both by one number"
            self.sources[job] = made
            jobs.append(job)
        return jobs

    def start(self) -> Guardian:
        self.guardian = Guardian(
            spawned.worker,
            (
                str(self.store.database.url),
                str(self.store.spool.root),
                "error",
                "json",
                1,
                self.warm,
                self.memory,
            ),
            self.store.jobs,
            patience=self.patience,
            health=self.health,
            check=spawned.check if self.health is not None else None,
            check_arguments=(((ENGINE, "auto"),), 1, "error", "json"),
            watch=self.watch,
        )
        return self.guardian

    def stop(self) -> None:
        if self.guardian is not None:
            told = threading.Event()
            told.set()
            self.guardian.run(told)
            self.guardian = None

    def until(self, what: Callable[[], object], within_s: float = 3000.0 if FULL else 800.0) -> float:
        """Guard until something is so; returns the seconds."""
        guardian = self.guardian or self.start()
        began = asked = time.monotonic()
        while True:
            guardian.look()
            if time.monotonic() - asked > 0.05:
                asked = time.monotonic()
                if what():
                    return asked - began
                assert asked - began < within_s, {j.id: (j.state, j.attempt, j.failure) for j in self.jobs()}
            time.sleep(0.005)

    def jobs(self) -> list[Job]:
        return self.store.jobs.list(limit=1000)

    def ended(self, jobs: Iterable[int]) -> Callable[[], bool]:
        """Whether all of these are done or held."""
        wanted = set(jobs)
        return lambda: all(j.state in (JobState.DONE, JobState.HELD) for j in self.jobs() if j.id in wanted)

    def states(self, jobs: Sequence[int]) -> dict[int, tuple[JobState, int]]:
        found = {j.id: (j.state, j.attempt) for j in self.jobs()}
        return {j: found[j] for j in jobs}

    def no_pause(self) -> None:
        """Let what waits for its next attempt be due now."""
        with closing(sqlite3.connect(str(self.store.database.url.database), timeout=30)) as raw, raw:
            raw.execute("UPDATE job SET not_before = created_at WHERE state = 'QUEUED'")

    def violations(self, jobs: Iterable[int]) -> list[str]:
        """What the checker has against the derived series of these jobs."""
        found = []
        for number in jobs:
            job = self.store.jobs.get(number)
            assert job is not None
            found += derived.violations(self.store, job, self.sources[number])
        return found

    def runtimes(self, jobs: Iterable[int]) -> set[str]:
        """What the provenance says that these ran on."""
        found = set()
        for number in jobs:
            one = self.store.deliveries.derived_of_job(number)
            assert one is not None
            records = self.store.provenance.story(one.series_uid).records
            found.add(next(r.body["runtime"] for r in records if r.kind == "series.derived"))
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        return [dict(e.body) for e in self.store.events.list(name=name, limit=1000)]
