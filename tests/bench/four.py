"""Four series at once, over four associations, against the same number of series one after another."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.door import Result, Told, folder_for
from tests.bench.site import Site, remove, series, site

SERIES = 4


def four(n: int, size: int, engine: str, rounds: int, where: Path | None, tell: Told) -> Result:
    """Slices a second from the first sent to the last derived one stored, both ways; who begins changes each round."""
    rates: dict[str, list[float]] = {"at_once": [], "in_turn": []}
    with folder_for(where) as folder, site(folder / "site", engine) as at:
        for number in range(rounds):
            for way in sorted(rates, reverse=number % 2 == 0):
                seed = 1000 * (number + 1) + 10 * (way == "in_turn")
                many = [series(folder / f"{way}{number}-{i}", n, size, seed + i) for i in range(SERIES)]
                rates[way].append(SERIES * n / (_at_once if way == "at_once" else _in_turn)(at, many))
                for files in many:
                    remove(files)
                tell(f"four {way}: {rates[way][-1]:.1f} slices/s")
    return {"n": n, "series": SERIES, "size": size, "engine": engine, "rates": rates}


def _at_once(at: Site, many: list[list[Path]]) -> float:
    began = time.time()
    with ThreadPoolExecutor(SERIES) as pool:
        list(pool.map(at.send, many))
    at.delivered(SERIES)
    return _last(at, many) - began


def _in_turn(at: Site, many: list[list[Path]]) -> float:
    began = time.time()
    for files in many:
        at.send(files)
        at.delivered()
    return _last(at, many) - began


def _last(at: Site, many: list[list[Path]]) -> float:
    written = at.clear()
    if len(written) != sum(map(len, many)):
        raise RuntimeError(f"{len(written)} of {sum(map(len, many))} derived instances")
    return max(written)
