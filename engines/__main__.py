"""``python -m engines VERB [ENGINE ...] [--json] [--zoo FOLDER]``: what engines there are, whether they work.

``list`` tells what the cards say, and which plans of TensorRT there are. ``build`` compiles them, for the GPUs
of this machine or for others (engines/compile.py). ``verify`` checks every card and digest, loads every engine
and lets it enhance a small phantom twice. ``bench`` measures how long they take (engines/bench.py). ``noise``
tells how well the noise estimate finds noise that is known (engines/known.py). Exit status 1 if anything is
wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from engines import bench, known, verbs
from engines.base import Params, Volume
from engines.catalog import KNOWN_RUNTIMES, Catalog
from engines.classical import phantoms
from engines.compile import PlanState
from engines.errors import EngineError
from engines.ladder import Place
from engines.runtime.onnx import read_verified
from engines.runtime.plans import Plans

KNOWN_SEED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of one engine or folder; ``output`` is a digest of its enhanced test phantom.

    ``runtime`` is the card's, and of an engine that was tried, as ``device``, what it really ran on.
    """

    name: str
    ok: bool
    version: str = ""
    family: str = ""
    modalities: tuple[str, ...] = ()
    runtime: str = ""
    device: str = ""
    weights_sha256: str = ""
    title: str = ""
    output: str = ""
    noise_ratio: float | None = None
    seconds: float = 0.0
    fault: str = ""
    hint: str = ""
    plans: tuple[PlanState, ...] = ()


def sample(modality: str) -> Volume:
    """A small seeded stack to try an engine on."""
    shape = (3, 96, 120)
    ct = modality == "CT"
    made = phantoms.ct(5, shape=shape, kind="abdomen") if ct else phantoms.mr(5, shape=shape)
    return Volume(
        values=made.noisy,
        spacing_mm=(1.0, 0.8, 0.8),
        unit="HU" if ct else "arbitrary",
        valid=np.ones(shape, np.bool_),
        contiguous=np.ones(shape[0], np.bool_),
        step=np.ones(shape[0], np.float32),
    )


def listed(catalog: Catalog, name: str) -> Finding:
    """Tell what the card says."""
    card = catalog.card(name)
    return Finding(
        name=card.name,
        ok=True,
        version=card.version,
        family=card.family,
        modalities=tuple(card.modalities),
        runtime=card.runtime,
        weights_sha256=card.weights_sha256,
        title=card.title,
    )


def verified(catalog: Catalog, name: str, runtime: str = "auto") -> Finding:
    """Load an engine, try it, and tell what came of it."""
    began = time.perf_counter()
    told = listed(catalog, name)
    fields = asdict(told)
    try:
        for path, sha256 in catalog.models(name).values():
            read_verified(path, sha256)
        engine = catalog.load(name, runtime)
        try:
            given = sample(told.modalities[0])
            strength = Params(strength=engine.card.default_strength)
            first, second = (engine.enhance(given, strength) for _ in range(2))
        finally:
            engine.close()  # the next one needs the GPU's memory
        output = hashlib.sha256(first.volume.values.tobytes()).hexdigest()
        fault = "" if np.array_equal(first.volume.values, second.volume.values) else "two runs differ"
        before, after = (first.figures.get(k, float("nan")) for k in ("noise_before", "noise_after"))
        ratio = after / before if before > 0 and np.isfinite(after) else None
    except EngineError as e:
        fields |= {"ok": False, "fault": e.message, "hint": e.hint}
        return Finding(**fields)
    fields |= {"ok": not fault, "fault": fault, "output": output, "noise_ratio": ratio}
    fields |= {"runtime": first.runtime, "device": first.device}
    return Finding(**(fields | {"seconds": round(time.perf_counter() - began, 3)}))


def broken(catalog: Catalog) -> list[Finding]:
    """The folders that are no engines."""
    return [
        Finding(name=name, ok=False, fault=e.message, hint=e.hint) for name, e in catalog.faults().items()
    ]


def _line(f: Finding) -> str:
    if not f.ok:
        return f"{f.name:14} BROKEN  {f.fault}" + (f"\n{'':14}         {f.hint}" if f.hint else "")
    text = f"{f.name:14} {f.version:7} {f.family:11} {'/'.join(f.modalities):6} {f.runtime:12} {f.title}"
    if f.output:
        ratio = "" if f.noise_ratio is None else f", noise x {f.noise_ratio:.2f}"
        text += f"\n{'':14} works on {f.device}: {f.seconds:.2f} s{ratio}, output {f.output[:12]}"
    return text + "".join(f"\n{'':14} {verbs.plan_line(p)}" for p in f.plans)


def _benched(catalog: Catalog, names: Sequence[str], repeat: int, runtime: str, as_json: bool) -> int:
    """Time engines, one line each as it is known."""
    told, failed = [], False
    for name in names:
        try:
            one = bench.timed(catalog, name, repeat=repeat, runtime=runtime)
        except EngineError as e:
            failed = True
            sys.stderr.write(f"{name}: {e.message}\n")
            continue
        told.append(asdict(one))
        if not as_json:
            sys.stdout.write(bench.line(one) + "\n")
            sys.stdout.flush()
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    return int(failed)


def _known(as_json: bool) -> int:
    """Print estimate over truth; a ratio outside of the law is a fault."""
    tables = [list(known.ct(KNOWN_SEED)), list(known.mr(KNOWN_SEED))]
    rows = [row for rows in tables for row in rows]
    if as_json:
        sys.stdout.write(json.dumps([asdict(r) | {"ratio": r.ratio} for r in rows], indent=2) + "\n")
    else:
        sys.stdout.write("\n\n".join(known.table(rows) for rows in tables) + "\n")
    return int(any(not abs(r.ratio - 1) <= known.WITHIN for r in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    try:
        return _main(arguments)
    except EngineError as e:
        sys.stderr.write(f"{e.message}\n" + (f"  {e.hint}\n" if e.hint else ""))
        return 1


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engines", description="Engines of the catalogue.")
    parser.add_argument("verb", choices=["list", "build", "verify", "bench", "noise"])
    parser.add_argument("engines", nargs="*", help="names; none means all")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--zoo", action="append", type=Path, default=[], help="another folder of engines")
    parser.add_argument("--repeat", type=int, default=5, help="runs of bench; its figures are medians")
    parser.add_argument(
        "--runtime",
        choices=KNOWN_RUNTIMES,
        default="auto",
        help="of verify and bench, for engines with a network",
    )
    verbs.arguments(parser)
    asked = parser.parse_args(arguments)
    if asked.verb == "noise":
        return _known(asked.json)
    catalog = Catalog.default(asked.zoo, place=Place(plans=asked.plans))
    names = asked.engines or catalog.names()
    for name in names:
        try:
            catalog.card(name)
        except EngineError as e:
            parser.error(f"{e.message}; {e.hint}" if e.hint else e.message)
    if asked.runtime != "auto" and not asked.engines:
        names = tuple(n for n in names if catalog.models(n))
    if asked.verb == "build":
        return verbs.build(catalog, names, asked)
    if asked.verb == "bench":
        return _benched(catalog, names, max(1, asked.repeat), asked.runtime, asked.json)
    if asked.verb == "verify":
        findings = [verified(catalog, name, asked.runtime) for name in names]
    else:
        plans = Plans(asked.plans)
        findings = [
            replace(listed(catalog, name), plans=verbs.planned(catalog, name, plans)) for name in names
        ]
    findings += [] if asked.engines else broken(catalog)
    if asked.json:
        sys.stdout.write(json.dumps([asdict(f) for f in findings], indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(_line(f) for f in findings) + "\n")
    return 0 if all(f.ok for f in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
