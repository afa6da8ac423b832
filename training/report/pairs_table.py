"""Table of the real pairs: nothing simulated, and no truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.base import Floats, Unit
from training.evaluate.metrics import rmse
from training.report import rows
from training.report.cases import Case, subjects
from training.report.measures import shipped
from training.report.pairs import pairs
from training.report.rows import Tuned
from training.report.section import Context
from training.report.tables import number, table

WHAT = {
    "HU": """Reconstructions of one acquisition (a plastic head: it proves nothing about brains). RMSE in HU without
a window, where local means of the five thin slices agree. A mean of five that holds the slice itself
shares its noise, and the neighbours' that networks read: it flatters everyone. The mean of the slices
two away shares none, but has noise of its own (sigma over root 2) which no method can remove. A thick
slice differs in kernel as well: what remains is mostly that.""",
    "arbitrary": """Repeats of one phantom. RMSE to the other repeat, and the same without its noise: sigma is
the standard deviation of the difference over root 2, so the input's corrected RMSE is that sigma by
construction.""",
}


def _outputs(case: Case, tuned: Tuned) -> dict[str, Floats]:
    out = {
        "input": case.volume.values,
        f"traditional ({tuned.traditional.name})": rows.filtered(tuned.traditional, case),
        f"classical ({tuned.best.name})": rows.filtered(tuned.best, case),
    }
    for family, row in tuned.engines.items():
        engine = tuned.loaded[family]
        full = rows.at_full(engine, case).values
        out[family] = rows.blended(case, full, row.strength)
        out[shipped(family)] = rows.blended(case, full, engine.card.default_strength)
    return out


def _own_noise(case: Case) -> float:
    """Noise of the reference that is known: of repeats, and of the mean of two slices that are not looked at."""
    difference = (case.volume.values - case.reference)[case.mask]
    if case.unit == "arbitrary":
        return float(np.std(difference) / np.sqrt(2))
    if "two thin slices" in case.level:
        # var(difference) = s^2 + s^2 / 2
        return float(np.std(difference) / np.sqrt(3))
    return float("nan")


def pairs_text(context: Context, tuned: Tuned, unit: Unit, figures: dict[str, Any]) -> list[str]:
    """The page's part, and its figures."""
    found = [c for c in pairs(subjects(context)) if c.unit == unit and rows_usable(c)]
    if not found:
        return []
    made, told = [], []
    names: list[str] = []
    every: list[dict[str, float]] = []
    for case in found:
        outputs = _outputs(case, tuned)
        names = list(outputs)
        own = _own_noise(case)
        errors = {k: rmse(case.reference, v, case.mask) for k, v in outputs.items()}
        every.append(errors)
        rest = {k: float(np.sqrt(max(e**2 - own**2, 0.0))) for k, e in errors.items()}
        known = bool(np.isfinite(own))
        cells = [f"{number(e)} ({number(rest[k])})" if known else number(e) for k, e in errors.items()]
        made.append([f"{case.name} against {case.level}", *cells])
        told.append(
            {
                "pair": case.name,
                "against": case.level,
                "n_pixels": int(case.mask.sum()),
                "rmse": errors,
                "reference_noise": own,
                "rmse_without_reference_noise": rest if known else None,
            }
        )
    figures[f"{'CT' if unit == 'HU' else 'MR'} pairs"] = told
    worse = sum(e > errors["input"] for errors in every for e in errors.values())
    total = sum(len(errors) - 1 for errors in every)
    return [
        "### Real pairs",
        "",
        WHAT[unit],
        "",
        table(["pair", *names], made),
        "",
        "In brackets: without the reference's own noise, where it is known. "
        f"{worse} of {total} figures are worse than the input's.",
        "",
    ]


def rows_usable(case: Case) -> bool:
    """Whether a pair has noise to tell the filters and enough pixels."""
    sigma = case.survey.sigma
    return int(case.mask.sum()) >= 1000 and all(np.isfinite(sigma[z]) for z in case.measured)
