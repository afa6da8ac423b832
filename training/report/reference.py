"""PU-M beside RED-CNN: the same updates on the same batches, at a fraction of the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from training import checkpoint, feed
from training.errors import TrainingError
from training.evaluate.averaging import estimate
from training.export.measure import gflop
from training.fit import BEST, LAST, finished
from training.recipe import Recipe, load
from training.report.section import Context, Section
from training.report.tables import as_json, number, table, told, verdict

SMALL, LARGE = "reference-pu-m", "reference-red-cnn"
BAR_DB = 0.3
N_PATCHES = 24

HOW = """
Two networks trained from nothing on the same batches of 64 x 64 patches for the same number of updates,
judged on fixed validation patches that neither saw, without guards, strength 1: 10 log10 of the error
power before over after, mean over patches. The interval is over patches.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network with what its checkpoint says."""

    recipe: Recipe
    network: nn.Module
    updates: int


def opened(name: str, context: Context) -> Trained | None:
    """A trained network of the folder of runs, or None."""
    path = context.runs / name / BEST
    if not path.exists():
        return None
    recipe = load(name)
    # The best weights may be older than the last: what counts is how long it was trained.
    last = path.with_name(LAST)
    updates = checkpoint.read(last if last.exists() else path)[0].step
    return Trained(recipe=recipe, network=finished(path, recipe), updates=updates)


@torch.no_grad()
def gains(trained: Trained, context: Context, n: int) -> dict[float, list[float]]:
    """Gain in dB of each patch, by noise level in HU."""
    out: dict[float, list[float]] = {}
    for level, batch in feed.validation(trained.recipe, context.data, n):
        x, c, target = (torch.from_numpy(a) for a in (batch.x, batch.c, batch.target))
        parts = [trained.network(x[i : i + 1], c[i : i + 1]).float() for i in range(len(x))]
        error = torch.cat(parts) - target
        before, after = (v.square().mean(dim=(1, 2, 3)) for v in (target, error))
        out[level] = [float(g) for g in 10 * torch.log10((before + 1e-12) / (after + 1e-12))]
    return out


def run(context: Context) -> Section:
    """Compare the two, or say what is missing."""
    text = [" ".join(HOW.split()), ""]
    figures: dict[str, Any] = {}
    found: dict[str, Trained] = {}
    for name in (SMALL, LARGE):
        try:
            trained = opened(name, context)
        except TrainingError as error:
            text += [f"{name} cannot be read: {error.message}.", ""]
            continue
        if trained is None:
            text += [f"{name} is not trained: `python -m training fit {name}`.", ""]
        else:
            found[name] = trained
    measured: dict[str, dict[float, list[float]]] = {}
    made = []
    for name, trained in found.items():
        context.say(f"reference: {name}")
        try:
            measured[name] = gains(trained, context, 4 if context.quick else N_PATCHES)
        except TrainingError as error:
            text += [f"{name} cannot be judged: {error.message}.", ""]
            continue
        work = gflop(trained.network)
        parameters = sum(p.numel() for p in trained.network.parameters())
        levels = {level: estimate(v) for level, v in measured[name].items()}
        mean = estimate([float(v) for v in np.mean(list(measured[name].values()), axis=0)])
        made.append(
            [
                name,
                str(trained.updates),
                f"{parameters / 1e3:.0f}",
                number(work, 1),
                *(told(e) for e in levels.values()),
                told(mean),
            ]
        )
        figures[name] = {
            "updates": trained.updates,
            "parameters": parameters,
            "gflop": work,
            "gain_db": {f"{level:.3g} HU": as_json(e) for level, e in levels.items()},
            "mean_gain_db": as_json(mean),
        }
    if made:
        names = [f"gain at {level:.3g} HU, dB" for level in next(iter(measured.values()))]
        header = [
            "network",
            "updates",
            "parameters, thousands",
            "GFLOP a slice of 512 x 512",
            *names,
            "mean gain dB",
        ]
        text += [table(header, made), ""]
    if len(measured) == 2:
        text += _judged(measured, figures)
    else:
        figures["met"] = None
        text += [f"PU-M within {BAR_DB:g} dB of RED-CNN: {verdict(None)}."]
    return Section(name="reference", title="PU-M beside RED-CNN", text="\n".join(text), figures=figures)


def _judged(measured: dict[str, dict[float, list[float]]], figures: dict[str, Any]) -> list[str]:
    small, large = (np.mean(list(measured[n].values()), axis=0) for n in (SMALL, LARGE))
    difference = estimate([float(v) for v in small - large])
    met = difference.mean >= -BAR_DB
    same = figures[SMALL]["updates"] == figures[LARGE]["updates"]
    ratio = figures[LARGE]["gflop"] / figures[SMALL]["gflop"]
    figures |= {
        "difference_db": as_json(difference),
        "met": met and same,
        "same_updates": same,
        "gflop_ratio": ratio,
    }
    text = [
        f"PU-M minus RED-CNN: {told(difference, signed=True)} dB, paired by patch, at 1/{ratio:.0f} of the work. "
        f"PU-M within {BAR_DB:g} dB of RED-CNN: {verdict(met)}."
    ]
    if not same:
        text.append(
            "The two were not trained for the same number of updates: this is no fair comparison, "
            "and the bar counts as missed."
        )
    return text
