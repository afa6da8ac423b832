"""Runs sections and writes the report: pages, figures, and an index that tells what it was made from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
        noise_table,
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
        "noise_table": noise_table.run,
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


_GPU = (
    "## On a GPU",
    "",
    "No GPU was at hand: none of these figures is of one. On a machine that has one, `make gpu` measures all of it in",
    "one command and writes gpu.md and gpu.json into this folder: whether TensorRT and TensorRT for RTX run there,",
    "every plan's parity with ONNX Runtime in fp32, milliseconds a slice of the full path and of the network alone,",
    "our kernels alone, memory under a bound, and PU-S, PU-M and PU-L under torch and CUDA graphs (fp16, channels",
    "last, 1, 4, 8 and 16 slices at once) beside the roofline. [GPUs](../operations/gpu.md) says what to install.",
)


def index(context: Context) -> None:
    """Write README.md: the pages that are there, and which weights each of them looked at."""
    lines = [
        "# Evaluation of the engines",
        "",
        "Made by `python -m training report` (see [training](../training.md)); nothing is written by hand but the",
        "words below the pictures. Each page has its figures as JSON beside it. What was measured of the node itself",
        "is in [docs/evaluation.md](../evaluation.md).",
        "",
    ]
    for name in sections():
        page = context.out / f"{name}.md"
        if page.exists():
            title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            lines.append(f"- [{title}]({name}.md)")
    lines += ["", "| engine | version | family | weights |", "|---|---|---|---|"]
    for name in context.catalog.names():
        card = context.catalog.card(name)
        lines.append(f"| {name} | {card.version} | {card.family} | {card.weights_sha256[:12]} |")
    measured = (context.out / "gpu.md").exists()
    lines += ["", *(("- [On a GPU](gpu.md), by `make gpu`",) if measured else _GPU)]
    (context.out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _weights(context: Context) -> dict[str, str]:
    return {name: context.catalog.card(name).weights_sha256 for name in context.catalog.names()}


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
        figures = {**section.figures, "weights_sha256": _weights(context)}
        section = replace(section, figures=figures)
        write(section, context.out)
        index(context)
        done.append(section)
    return done
