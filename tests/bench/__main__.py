"""``make bench``: measures, keeps the results in docs/performance.json and writes docs/performance.md of them.

``--only`` runs some sections and leaves the results of the others as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from node.store.disk import filesystem_type
from tests.bench import archive, door, engines, four, memory, out, profiles, turnaround
from tests.bench.door import Case, Result
from tests.bench.page import page

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROUNDS = 5
SLOW = 1
"""Rounds of a section in which one takes minutes."""


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def made(command: str, where: Path | None) -> Result:
    """When, where and how something was measured."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    told = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=DOCS, capture_output=True, text=True, check=False
    )
    return {
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "commit": told.stdout.strip() or "unknown",
        "cores": os.cpu_count(),
        "processor": model[0] if model else platform.machine(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "filesystem": filesystem_type(where or Path(tempfile.gettempdir())),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def _door(args: argparse.Namespace) -> Result:
    return {"cases": _cases(args, door.DOOR)}


def _associations(args: argparse.Namespace) -> Result:
    cases = _cases(args, door.ASSOCIATIONS)
    n, seconds = (door.IDLE, door.IDLE_S) if args.scale >= 1 else (8, 1.0)
    return {"cases": cases, "idle": door.idle(seconds, n, args.dir, tell)}


def _cases(args: argparse.Namespace, cases: tuple[Case, ...]) -> Result:
    found: Result = {}
    for case in cases:
        if args.cases and case.name not in args.cases:
            continue
        small = replace(case, n=max(int(case.n * args.scale), 2 * case.associations))
        found[case.name] = door.compare(small, _rounds(args), args.seed, args.dir, tell)
    return found


def _sender(args: argparse.Namespace) -> Result:
    return out.sender(max(int(300 * args.scale), 4), _rounds(args), args.seed, args.dir, tell)


def _turnaround(args: argparse.Namespace) -> Result:
    ages = (1, 60) if args.scale >= 1 else (1,)
    n = _slices(args, 300)
    return turnaround.turnaround(n, _side(args), args.engine, _rounds(args), args.dir, tell, ages=ages)


def _memory(args: argparse.Namespace) -> Result:
    lengths = dict.fromkeys(_slices(args, n) for n in memory.LENGTHS)
    return memory.memory(list(lengths), _side(args), args.engine, args.dir, tell)


def _four(args: argparse.Namespace) -> Result:
    return four.four(_slices(args, 500), _side(args), args.engine, _rounds(args, SLOW), args.dir, tell)


def _engine(args: argparse.Namespace) -> Result:
    side = 0 if args.scale >= 1 else 256
    return {"engines": engines.engine(_rounds(args), _slices(args, 48), args.dir, tell, side=side)}


def _archive(args: argparse.Namespace) -> Result:
    return archive.archive(args.scale, _rounds(args, SLOW), args.seed, args.dir, tell)


def _profile(args: argparse.Namespace) -> Result:
    return profiles.profile(_slices(args, 300), _side(args), args.engine, args.dir, tell)


SECTIONS: Mapping[str, Callable[[argparse.Namespace], Result]] = {
    "door": _door,
    "associations": _associations,
    "sender": _sender,
    "turnaround": _turnaround,
    "memory": _memory,
    "four": _four,
    "engine": _engine,
    "archive": _archive,
    "profile": _profile,
}


def _rounds(args: argparse.Namespace, usual: int = ROUNDS) -> int:
    return args.rounds or usual


def _slices(args: argparse.Namespace, n: int) -> int:
    return max(int(n * args.scale), 8)


def _side(args: argparse.Namespace) -> int:
    return 512 if args.scale >= 1 else 256


def measure(section: str, args: argparse.Namespace) -> Result:
    """One section's results."""
    told, began = made(args.command, args.dir), time.monotonic()
    found = SECTIONS[section](args)
    told["seconds"] = time.monotonic() - began
    tell(f"{section}: {told['seconds']:.0f} s")
    return {"made": told, **found}


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    parser.add_argument("--cases", default="", help="of receiving: only these, with commas between them")
    parser.add_argument(
        "--rounds", type=int, default=0, help=f"else {ROUNDS}, and {SLOW} where one takes minutes"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="less is less of everything, to try it out")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--engine", default="ct-cnn", help="of what goes through a whole node")
    parser.add_argument(
        "--dir", type=Path, default=None, help="where everybody writes; else a temporary folder"
    )
    parser.add_argument("--out", type=Path, default=DOCS, help="where performance.json and .md are written")
    args = parser.parse_args(given)
    args.cases = args.cases.split(",") if args.cases else []
    words = list(given if given is not None else sys.argv[1:])
    for option in ("--out", "--dir"):  # where it was on this machine tells nobody anything
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    args.command = " ".join(["python -m tests.bench", *words])
    unknown = set(args.only.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    return args


def main(given: list[str] | None = None) -> int:
    args = arguments(given)
    kept = args.out / "performance.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"sections": {}}
    try:
        for section in args.only.split(","):
            new = measure(section, args)
            old = results["sections"].get(section, {})
            if args.cases and "cases" in old:
                new["cases"] = {**old["cases"], **new["cases"]}
            results["sections"][section] = new
            kept.write_text(json.dumps(results, indent=1) + "\n")
            (args.out / "performance.md").write_text(page(results))
    finally:
        door.remove_folders()
    return 0


if __name__ == "__main__":
    sys.exit(main())
