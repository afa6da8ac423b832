"""Runs sections and writes the report: pages, figures, and an index that tells what it was made from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.report.section import Context, Section

Run = Callable[[Context], Section]


def sections() -> Mapping[str, Run]:
    """All sections by name, in the order of the index."""
    from training.report import (
        corpus,
        generalisation,
        heat,
        physics,
        pictures,
        reference,
        table1,
        timing,
        widening,
    )

    return {
        "table1": table1.run,
        "corpus": corpus.run,
        "heat": heat.run,
        "generalisation": generalisation.run,
        "physics": physics.run,
        "reference": reference.run,
        "timing": timing.run,
        "widening": widening.run,
        "pictures": pictures.run,
    }


def _plain(value: Any) -> Any:
    """JSON knows no NaN: it becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def write(section: Section, out: Path) -> None:
    """Write a section's page and figures."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{section.name}.md").write_text(
        f"# {section.title}\n\n{section.text.strip()}\n", encoding="utf-8"
    )
    told = json.dumps(_plain(section.figures), indent=1, sort_keys=True)
    (out / f"{section.name}.json").write_text(told + "\n", encoding="utf-8")


def build(context: Context, names: Sequence[str] = ()) -> list[Section]:
    """Run the named sections (all if none is named), each written as soon as it is done.

    Raises
    ------
    TrainingError
        There is no such section.
    """
    known = sections()
    unknown = [n for n in names if n not in known]
    if unknown:
        raise TrainingError(f"no section {', '.join(unknown)}", hint=f"there are {', '.join(known)}")
    done = []
    for name in names or known:
        context.say(f"report: {name}")
        section = known[name](context)
        write(section, context.out)
        done.append(section)
    return done
