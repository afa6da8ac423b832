"""Pictures of the report: small, readable without colour vision, with units on every axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluate.averaging import Estimate

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")
"""Okabe and Ito's: told apart by everyone."""
DPI = 100


def _figure(width: float, height: float, n: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, n, figsize=(width, height), squeeze=False, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def _whiskers(estimates: Sequence[Estimate]) -> npt.NDArray[np.float64]:
    return np.array([[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]).clip(0)


def gains(path: Path, rows: Mapping[str, Estimate], *, title: str, label: str) -> None:
    """Means with intervals, one row each."""
    figure, axes = _figure(7, 0.9 + 0.42 * len(rows))
    axis = axes[0, 0]
    found = list(rows.values())
    at = np.arange(len(found))[::-1]
    for i, (y, e) in enumerate(zip(at, found, strict=True)):
        axis.errorbar(e.mean, y, xerr=_whiskers([e]), fmt="o", color=COLOURS[i % len(COLOURS)], capsize=4)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(at, list(rows))
    axis.set_ylim(-0.6, len(found) - 0.4)
    axis.set_xlabel(f"{label} (95 % interval over patients)")
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    _save(figure, path)


def heat(
    path: Path,
    panels: Mapping[str, npt.NDArray[np.float64]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
    label: str,
    title: str,
) -> None:
    """Panels of one heat map, with the number in every cell; one colour scale, centred at 0."""
    figure, axes = _figure(3.1 * len(panels) + 1.2, 0.5 * len(rows) + 1.6, len(panels))
    every = np.concatenate([p.ravel() for p in panels.values()])
    every = every[np.isfinite(every)]
    top = max(1.0, float(np.abs(every).max())) if every.size else 1.0
    shown = None
    for axis, (name, values) in zip(axes[0], panels.items(), strict=True):
        shown = axis.imshow(values, cmap="PuOr", vmin=-top, vmax=top, aspect="auto")
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_xlabel(column_label)
        axis.set_title(name, fontsize=10)
        for (y, x), v in np.ndenumerate(values):
            text = "-" if not np.isfinite(v) else f"{v:.1f}"
            dark = np.isfinite(v) and abs(v) > 0.6 * top
            axis.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes[0, 0].set_ylabel(row_label)
    if shown is not None:
        figure.colorbar(shown, ax=list(axes[0]), label=label)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def bars(
    path: Path,
    groups: Sequence[str],
    series: Mapping[str, Sequence[Estimate | None]],
    *,
    title: str,
    label: str,
    lines: Sequence[float] = (0.0, 1.0),
) -> None:
    """Grouped bars with intervals and lines; what was refused has a cross where its bar would stand."""
    figure, axes = _figure(1.6 + 1.9 * len(groups), 4.2)
    axis = axes[0, 0]
    width = 0.8 / max(1, len(series))
    for i, (name, found) in enumerate(series.items()):
        at = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        known = [(x, e) for x, e in zip(at, found, strict=True) if e is not None]
        gone = [x for x, e in zip(at, found, strict=True) if e is None]
        colour = COLOURS[i % len(COLOURS)]
        hatch = ("", "//", "..", "xx")[i % 4]
        axis.bar(
            [x for x, _ in known],
            [e.mean for _, e in known],
            width,
            yerr=_whiskers([e for _, e in known]) if known else None,
            capsize=3,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=name,
        )
        axis.plot(gone, [0.03] * len(gone), "x", color=colour)
    for at_ in lines:
        axis.axhline(at_, color="black", linewidth=0.8, linestyle="-" if at_ == 0 else "--")
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylabel(label)
    axis.set_title(title, fontsize=10)
    axis.set_ylim(top=axis.get_ylim()[1] * 1.2)
    axis.legend(fontsize=8, loc="upper center", ncols=max(1, len(series)))
    _save(figure, path)
