"""What the fault tests did, a line of JSON each: what docs/reliability.md is made from (tests/faults/report.py).

A figure without its seed, its count and its date is not a result: none can be written without them.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.scale import FULL, SEED

OUT = Path(os.environ.get("LUMINODE_FAULTS_OUT", "var/faults"))
"""Where the lines go; git ignores it."""

RUN = f"{datetime.now(UTC).isoformat(timespec='seconds')} {os.getpid()}"
"""Marks what one run of a test told: all of it gives way to what a later run of the same test tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One test of one invariant, as it went.

    Attributes
    ----------
    invariant
        ``R1`` ... ``R60``, or a row ``S1`` ... ``S16`` of the security model.
    load
        What was done to what, in words a person can judge: "SIGKILL at the n-th fsync, 3 senders x 20 slices".
    count
        How many cases were run; ``lost`` and ``extra`` are instances over all of them.
    result
        In words, with figures: "0 lost, 0 extra, ready after 0.8 s at most".
    full
        Whether it was the full load of ``make faults``.
    """

    invariant: str
    load: str
    count: int
    result: str
    ok: bool
    lost: int = 0
    extra: int = 0
    test: str = ""
    seed: int = SEED
    full: bool = FULL
    date: str = ""
    commit: str = ""
    run: str = RUN


def record(
    invariant: str, *, load: str, count: int, result: str, ok: bool = True, lost: int = 0, extra: int = 0
) -> None:
    """Append a row; call it before the last assertion, so that a red run is on record too."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]
    row = Row(
        invariant=invariant,
        load=load,
        count=count,
        result=result,
        ok=ok,
        lost=lost,
        extra=extra,
        test=test,
        date=datetime.now(UTC).date().isoformat(),
        commit=_commit(),
    )
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def _commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip()
