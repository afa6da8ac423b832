"""Rows over cases: figures by window, by patient; streaming, so that no outputs are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from engines.base import Floats
from training.evaluate import cards
from training.evaluate.averaging import Estimate, Paired, estimate
from training.evaluate.conventions import CHEST, FULL, SOFT, MetricCard, Window
from training.evaluate.metrics import SliceFigures
from training.report import rows
from training.report.cases import Case
from training.report.rows import Row, Tuned

INPUT = "input"
TRADITIONAL = "traditional"
CLASSICAL = "classical"
CT_WINDOWS = (SOFT, CHEST, FULL)
SOFT_INSIDE = (-100.0, 200.0)
"""HU of the reference where the soft tissue window cuts nothing off: there errors can be corrected for noise."""


@dataclass(slots=True, kw_only=True)
class Measured:
    """Figures of one group of cases.

    Attributes
    ----------
    found
        window name -> row key -> patient -> figures of slices.
    truth
        row key -> (patient, case, slice) -> RMSE to the truth behind the reference.
    by_kind
        kind -> row key -> patient -> figures of slices, in the first window.
    skipped, refused
        By family: slices that were left as they were, and why whole stacks were refused.
    """

    found: dict[str, dict[str, dict[str, list[SliceFigures]]]] = field(default_factory=dict)
    truth: dict[str, dict[tuple[str, str, int], float]] = field(default_factory=dict)
    by_kind: dict[str, dict[str, dict[str, list[SliceFigures]]]] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    refused: dict[str, set[str]] = field(default_factory=dict)
    n_slices: int = 0

    def names(self) -> tuple[str, ...]:
        """Rows, the input first."""
        return tuple(next(iter(self.found.values()), {}))

    def take(self, key: str, case: Case, output: Floats, windows: Sequence[Window]) -> None:
        """Add the figures of an output."""
        for i, window in enumerate(windows):
            self.windows.setdefault(window.name, window)
            made = rows.figures(case, output, window)
            by_row = self.found.setdefault(window.name, {})
            by_row.setdefault(key, {}).setdefault(case.patient, []).extend(made)
            if i == 0:
                by_row = self.by_kind.setdefault(case.kind, {})
                by_row.setdefault(key, {}).setdefault(case.patient, []).extend(made)
        inside = case.mask
        if case.unit == "HU":
            inside = inside & (case.reference > SOFT_INSIDE[0]) & (case.reference < SOFT_INSIDE[1])
        known = self.truth.setdefault(key, {})
        for z, error in rows.error_to_truth(case, output, inside).items():
            known[(case.patient, case.name + case.level, z)] = error

    def card(
        self, window: str, key: str, figure: str, *, domain: str, mask: str, reference: str
    ) -> MetricCard:
        """The metric card of one figure."""
        return cards.card(
            self.found[window][key],
            figure,
            domain=domain,
            window=self.windows[window],
            mask=mask,
            reference=reference,
        )

    def gain(self, window: str, before: str, after: str, figure: str = "psnr_db") -> Paired:
        """Figure of ``after`` minus that of ``before``, paired by patient."""
        return cards.gain(self.found[window][before], self.found[window][after], figure)

    def truth_gain(self, before: str, after: str) -> Estimate | None:
        """How much smaller the error to the truth is, dB, over patients; None where nothing could be corrected."""
        a, b = self.truth.get(before, {}), self.truth.get(after, {})
        by: dict[str, list[float]] = {}
        for where in a.keys() & b.keys():
            by.setdefault(where[0], []).append(20 * float(np.log10(a[where] / b[where])))
        return estimate({p: float(np.mean(by[p])) for p in sorted(by)}) if by else None

    def truth_rmse(self, key: str) -> Estimate | None:
        """RMSE to the truth over patients."""
        by: dict[str, list[float]] = {}
        for where, error in self.truth.get(key, {}).items():
            by.setdefault(where[0], []).append(error)
        return estimate({p: float(np.mean(by[p])) for p in sorted(by)}) if by else None

    def harm(self, window: str, key: str) -> float:
        """Share of patients whose windowed RMSE rises."""
        return cards.harmed(self.found[window][INPUT], self.found[window][key])


def shipped(family: str) -> str:
    """Key of an engine at the strength of its card."""
    return f"{family}, as shipped"


def windows_of(case: Case) -> tuple[Window, ...]:
    """What a case is measured in."""
    return CT_WINDOWS if case.unit == "HU" else (mr_window(case),)


def mr_window(case: Case) -> Window:
    """0 to the volume's maximum: every volume has a range of its own, under one name."""
    return case.range()


def run(cases: Sequence[Case], tuned: Tuned, say: Callable[[str], None]) -> Measured:
    """Run the main rows over cases."""
    out = Measured()
    for case in cases:
        say(f"  {case.group}: {case.name}, {case.level}")
        windows = windows_of(case)
        out.n_slices += len(case.measured)
        for key, output in _outputs(case, tuned, out):
            out.take(key, case, output, windows)
    return out


def _outputs(case: Case, tuned: Tuned, out: Measured) -> Iterator[tuple[str, Floats]]:
    yield INPUT, case.volume.values
    yield TRADITIONAL, rows.filtered(tuned.traditional, case)
    yield CLASSICAL, rows.filtered(tuned.best, case)
    for family, row in tuned.engines.items():
        full = rows.at_full(tuned.loaded[family], case)
        out.skipped[family] = out.skipped.get(family, 0) + full.skipped
        if full.refused:
            out.refused.setdefault(family, set()).add(full.refused)
        yield family, rows.blended(case, full.values, row.strength)
        default = tuned.loaded[family].card.default_strength
        yield shipped(family), rows.blended(case, full.values, default)


def title(key: str, tuned: Tuned) -> str:
    """How a row is called in a table."""
    if key == INPUT:
        return "input"
    if key == TRADITIONAL:
        return f"paper-style traditional ({tuned.traditional.name})"
    if key == CLASSICAL:
        return f"best tuned classical ({tuned.best.name})"
    return key.replace("cnn", "CNN").replace("gan", "GAN")


def strength(key: str, tuned: Tuned) -> float:
    """With which strength a row ran; NaN for the input."""
    rows_: Mapping[str, Row] = {TRADITIONAL: tuned.traditional, CLASSICAL: tuned.best, **tuned.engines}
    if key in rows_:
        return rows_[key].strength
    family = key.split(",")[0]
    return tuned.loaded[family].card.default_strength if family in tuned.loaded else float("nan")
