"""The verb ``build`` of ``python -m engines``, and what ``list`` tells of plans."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from engines.catalog import Catalog
from engines.compile import PRECISIONS, Job, Outcome, PlanState, Precision, jobs, make, purge, states
from engines.errors import EngineError
from engines.runtime import gpu
from engines.runtime.flavour import FLAVOURS
from engines.runtime.plans import Plans

LEAST_PRIORITY = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what concerns plans to the command's arguments."""
    plans = parser.add_argument_group("plans of TensorRT (build, list, verify, bench)")
    plans.add_argument(
        "--plans",
        type=_folder,
        default=None,
        help="their folder; else in the user's cache, which no node reads",
    )
    plans.add_argument("--flavour", choices=list(FLAVOURS), default="", help="else all that are installed")
    plans.add_argument(
        "--for",
        dest="capabilities",
        metavar="86,89",
        default="",
        help="compute capabilities to build for, of GPUs that need not be here; else the GPUs of this machine",
    )
    plans.add_argument("--precision", choices=[*PRECISIONS, "both"], default="both")
    plans.add_argument(
        "--purge", action="store_true", help="build, then remove plans that nobody loads again"
    )
    plans.add_argument(
        "--within", type=int, default=0, metavar="SECONDS", help="in the background; end after these"
    )


def _folder(text: str) -> Path:
    """A path that was meant: of an empty one, a variable that is not set, plans would go into the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("no folder is named")
    return Path(text)


def build(catalog: Catalog, names: Sequence[str], asked: argparse.Namespace) -> int:
    """Build what is missing and tell of each plan; the exit status is 1 if one is missing afterwards."""
    if asked.within > 0:
        os.nice(LEAST_PRIORITY)
        # Not a handler: the alarm has to end the process though TensorRT does not come back.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(asked.within)
    plans = Plans(asked.plans)
    # 8.6 is how NVIDIA's tables write 86.
    capabilities = [p for part in asked.capabilities.split(",") if (p := part.strip().replace(".", ""))]
    precisions = PRECISIONS if asked.precision == "both" else (cast(Precision, asked.precision),)
    try:
        gpus = () if capabilities else gpu.local()
        wanted = jobs(
            catalog,
            names,
            flavour=asked.flavour,
            gpus=gpus,
            capabilities=capabilities,
            precisions=precisions,
        )
    except EngineError as e:
        return _cannot(e, as_json=asked.json)
    told = []
    for number, job in enumerate(wanted, 1):
        with _Progress(job) as progress:
            outcome = make(job, plans, progress=None if asked.json else progress)
        told.append(outcome)
        if not asked.json:
            sys.stdout.write(f"[{number}/{len(wanted)}] {line(outcome)}\n")
            sys.stdout.flush()
    failed = any(o.state == "failed" for o in told)
    if not asked.engines:
        for name, error in catalog.faults().items():
            failed = True
            sys.stderr.write(f"{name}: {error.message}\n")
    if asked.json:
        sys.stdout.write(json.dumps([asdict(o) for o in told], indent=2) + "\n")
    elif not wanted:
        sys.stdout.write("nothing to build: none of these engines has a network of this precision\n")
    elif any(o.state != "failed" for o in told):
        sys.stdout.write(f"they are in {plans.folder}\n")
    if asked.purge:
        try:
            removed = purge(catalog, plans, gpus)
        except EngineError as e:
            return _cannot(e, as_json=False)
        if not asked.json:
            sys.stdout.write(f"removed {removed} files that nobody here will load again\n")
    return int(failed)


def _cannot(error: EngineError, *, as_json: bool) -> int:
    sys.stderr.write(f"{error.message}\n" + (f"  {error.hint}\n" if error.hint else ""))
    if as_json:
        sys.stdout.write("[]\n")
    return 1


class _Progress:
    """What TensorRT is at, on the terminal's last line; nothing where nobody watches."""

    def __init__(self, job: Job) -> None:
        self._title = job.title
        self._shown = sys.stderr.isatty()

    def __call__(self, phase: str, share: float) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{self._title}: {phase[:60]} {share:.0%}\r")
            sys.stderr.flush()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def line(one: Outcome) -> str:
    """What became of one plan, for people."""
    text = f"{one.engine:16} {one.precision} {one.flavour}, {one.target}: {one.state}"
    if one.state == "failed":
        return text + f": {one.fault}" + (f"\n      {one.hint}" if one.hint else "")
    return text + f", {one.size / 1e6:.1f} MB" + (f" in {one.seconds:.1f} s" if one.state == "built" else "")


def planned(catalog: Catalog, name: str, plans: Plans) -> tuple[PlanState, ...]:
    """How it stands with the plans of an engine, here."""
    return states(catalog, name, plans, gpu.local())


def plan_line(one: PlanState) -> str:
    """The state of one plan, for people."""
    text = f"{one.flavour} {one.precision}: {one.state}"
    return text + (f", {one.words}" if one.state != "ready" else one.words.removeprefix("ready"))
