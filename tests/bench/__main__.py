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
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from node.store.disk import filesystem_type
from tests.bench import door, out
from tests.bench.door import Case, Result
from tests.bench.page import page

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECTIONS = ("door", "associations", "sender", "turnaround", "engine")
ENGINES = ("ct-cnn", "mr-cnn")


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


def measure(section: str, args: argparse.Namespace) -> Result:
    """One section's results."""
    told = made(args.command, args.dir)
    if section in ("door", "associations"):
        cases = door.DOOR if section == "door" else door.ASSOCIATIONS
        found: Result = {"cases": {}}
        for case in cases:
            if args.cases and case.name not in args.cases:
                continue
            found["cases"][case.name] = door.compare(
                _scaled(case, args.scale), args.rounds, args.seed, args.dir, tell
            )
        if section == "associations":
            n, seconds = (door.IDLE, door.IDLE_S) if args.scale >= 1 else (8, 1.0)
            found["idle"] = door.idle(seconds, n, args.dir, tell)
    elif section == "sender":
        found = out.sender(max(int(300 * args.scale), 4), args.rounds, args.seed, args.dir, tell)
    elif section == "turnaround":
        n = max(int(300 * args.scale), 8)
        size = 512 if args.scale >= 1 else 256
        found = out.turnaround(n, size, args.engine, min(args.rounds, 3), args.dir, tell)
    else:
        found = {"engines": out.engine(ENGINES, args.rounds, tell, side=0 if args.scale >= 1 else 64)}
    return {"made": told, **found}


def _scaled(case: Case, scale: float) -> Case:
    return replace(case, n=max(int(case.n * scale), 2 * case.associations))


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    parser.add_argument("--cases", default="", help="of receiving: only these, with commas between them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="less is less of everything, to try it out")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--engine", default="ct-cnn", help="of the turnaround")
    parser.add_argument(
        "--dir", type=Path, default=None, help="where everybody writes; else a temporary folder"
    )
    parser.add_argument("--out", type=Path, default=DOCS, help="where performance.json and .md are written")
    args = parser.parse_args(given)
    args.cases = args.cases.split(",") if args.cases else []
    args.command = " ".join(["python -m tests.bench", *(given if given is not None else sys.argv[1:])])
    unknown = set(args.only.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    return args


def main(given: list[str] | None = None) -> int:
    args = arguments(given)
    kept = args.out / "performance.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"sections": {}}
    for section in args.only.split(","):
        new = measure(section, args)
        old = results["sections"].get(section, {})
        if args.cases and "cases" in old:
            new["cases"] = {**old["cases"], **new["cases"]}
        results["sections"][section] = new
        kept.write_text(json.dumps(results, indent=1) + "\n")
        (args.out / "performance.md").write_text(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
