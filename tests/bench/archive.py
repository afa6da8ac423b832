"""Pages, rounds of the node and the receiver's transaction, in a small archive and in a large one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from node.log import configure
from node.store import Store
from tests import postgres
from tests.archive import fill
from tests.bench.door import Told, folder_for
from tests.cli import logging_kept
from tests.looks import PAGES, ROUNDS, Desk, receive

Result = dict[str, Any]

SMALL, LARGE = (50, 10_000), (5_000, 1_000_000)
"""Series and instances."""

TIMES = 7
"""How often each is timed in a round, in both archives in turn; once where it is only tried out."""

ROWS = 10
"""Of a list: as many as the small archive has of each kind."""

RECORDED: Mapping[str, int] = {"receiver: a batch of one": 1, "receiver: a batch of ten": 10}
"""Instances that one transaction records."""


def archive(scale: float, rounds: int, seed: int, where: Path | None, tell: Told) -> Result:
    """Milliseconds of each look, and of the receiver's transaction, on both databases."""
    sizes = {"small": _scaled(SMALL, scale, 1), "large": _scaled(LARGE, scale, 2)}
    found: Result = {"sizes": sizes, "rows": ROWS, "databases": {}, "absent": ""}
    times = rounds * (TIMES if scale >= 1 else 1)
    with folder_for(where) as folder, logging_kept():
        configure("error")
        for kind, urls in (("sqlite", _sqlite), ("postgresql", _postgresql)):
            if kind == "postgresql" and postgres.binaries() is None:
                found["absent"] = "no PostgreSQL server is installed"
                continue
            (folder / kind).mkdir()
            with urls(folder / kind, list(sizes)) as named:
                found["databases"][kind] = _measured(folder / kind, named, sizes, times, seed, tell)
            shutil.rmtree(folder / kind)
    return found


def _scaled(size: tuple[int, int], scale: float, least: int) -> list[int]:
    return [max(int(n * scale), floor * least) for n, floor in zip(size, (30, 150), strict=True)]


def _measured(
    folder: Path,
    urls: Mapping[str, str],
    sizes: Mapping[str, Sequence[int]],
    times: int,
    seed: int,
    tell: Told,
) -> Result:
    found: Result = {"fill_s": {}, "looks": {}, "record": {}}
    now = datetime.now(UTC)
    with ExitStack() as stack:
        desks: dict[str, Desk] = {}
        for name, (n_series, n_instances) in sizes.items():
            (folder / name).mkdir()
            store = stack.enter_context(Store.open(urls[name], folder / name / "spool"))
            began = time.monotonic()
            filled = fill(store.database, n_series=n_series, n_instances=n_instances, seed=seed, until=now)
            found["fill_s"][name] = time.monotonic() - began
            tell(f"archive {store.database.kind} {name}: filled in {found['fill_s'][name]:.1f} s")
            desks[name] = Desk(store, filled, folder / name, limit=ROWS)
        for look, call in {**PAGES, **ROUNDS}.items():
            calls = {name: partial(partial, call, desk) for name, desk in desks.items()}
            found["looks"][look] = _timed(calls, times)
        for what, n in RECORDED.items():
            prepared = {name: partial(receive, desk, n) for name, desk in desks.items()}
            found["record"][what] = _timed(prepared, 5 * times)
    return found


def _timed(prepared: Mapping[str, Callable[[], Callable[[], object]]], times: int) -> dict[str, list[float]]:
    """Milliseconds in each archive, in turn; the first time warms up. What is timed is what ``prepared`` gives."""
    took: dict[str, list[float]] = {name: [] for name in prepared}
    for again in range(times + 1):
        for name, prepare in prepared.items():
            call = prepare()
            began = time.perf_counter()
            call()
            if again:
                took[name].append(1000 * (time.perf_counter() - began))
    return took


@contextmanager
def _sqlite(folder: Path, names: Sequence[str]) -> Iterator[dict[str, str]]:
    yield {name: f"sqlite:///{folder}/{name}.db" for name in names}


@contextmanager
def _postgresql(_: Path, names: Sequence[str]) -> Iterator[dict[str, str]]:
    found = postgres.binaries()
    assert found is not None
    server = postgres.Server(found)
    try:
        server.start()
        yield {name: postgres.told(postgres.create_database(server.url)) for name in names}
    finally:
        server.remove()
