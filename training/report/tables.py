"""Markdown of the report: tables, figures with their intervals, verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.evaluate.averaging import Estimate

NOT_THERE = "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is left, the others right."""
    if not rows:
        return ""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """A number, or a dash where there is none."""
    if not math.isfinite(value):
        return NOT_THERE
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def told(e: Estimate | None, digits: int = 2, *, signed: bool = False) -> str:
    """A mean and its interval."""
    if e is None:
        return NOT_THERE
    a, b, c = (number(v, digits, signed=signed) for v in (e.mean, e.low, e.high))
    return f"{a} [{b}, {c}]" if e.n > 1 else f"{a} (n = 1)"


def as_json(e: Estimate | None) -> dict[str, float | int] | None:
    """An estimate for the figures of a section."""
    return None if e is None else {"mean": e.mean, "low": e.low, "high": e.high, "n": e.n}


def verdict(met: bool | None) -> str:
    """The word for a bar: a matter of figures, never of taste."""
    return "not measured" if met is None else "**yes**" if met else "**no**"
