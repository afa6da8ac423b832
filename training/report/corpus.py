"""Every real CT and MR series there is, through every learned engine at the strength of its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from engines import noise
from engines.base import Floats, Mask, Params, Unit, Volume
from engines.errors import EngineError
from engines.front import Enhancer
from training.errors import DataError
from training.evaluate import physics
from training.evaluate.conventions import CHEST, Window, body_mask, foreground_mask
from training.report import cases, rows
from training.report.cases import Case
from training.report.section import Context, Section
from training.report.subjects import Subject, find, grid_of, thinned
from training.report.tables import number, table, verdict

REGION_MM = 32.0
LARGEST_MEAN_HU = 1.0
REDUCTION = (0.40, 0.50)
LEAST_CFR = 0.90
FEWEST_SOFT = 0.2
"""Share of the measured pixels that must lie in the soft tissue window for it to tell of harm."""
ROI = 32
ROI_STRIDE = 8

HOW = """
Each series goes through each learned engine at the strength of its card, as the node would run it:
whole front door, guards on, rounded to stored integers; up to twelve slices in blocks of four. Noise is
what engines/noise.py estimates, median over the slices that were changed. CFR is the mean frequency of
the noise after over before: over the plane of frequencies (the engine's own figure) and, where twenty
uniform regions of 32 pixels are found, by the radial mean of AAPM TG-233, which falls lower. "Largest
mean" is the largest |mean change| of any 32 mm box inside of the body or head (MR: in % of the series
scale). Harm is told by adding noise to the series: CT at a simulated quarter dose, MR with 4 % of its
scale; the RMSE to the series as it is, in the soft tissue window (the chest window where hardly a pixel
lies in that; MR: 0 to the maximum), must not rise.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an engine did to a series.

    Attributes
    ----------
    before, after
        Noise, in the unit of the series; NaN where every slice was left as it was.
    cfr, radial_cfr
        Of the plane and of TG-233's radial mean.
    largest_mean
        Largest |mean change| of a box, HU or share of the series scale.
    error_before, error_after
        RMSE with noise added, before and after.
    """

    series: str
    engine: str
    family: str
    n_slices: int
    skipped: int
    before: float
    after: float
    cfr: float
    radial_cfr: float
    largest_mean: float
    error_before: float
    error_after: float
    notes: tuple[str, ...]

    @property
    def reduction(self) -> float:
        """Share of the noise that is gone."""
        return 1 - self.after / self.before

    @property
    def harmed(self) -> bool | None:
        """Whether noise was added and the error rose."""
        if not np.isfinite(self.error_before):
            return None
        return self.error_after > self.error_before


def run(context: Context) -> Section:
    """Measure both modalities."""
    text = [" ".join(HOW.split()), ""]
    figures: dict[str, Any] = {}
    if context.corpus is None or context.quick:
        text.append("There was no corpus of real series: nothing is measured here.")
        return Section(
            name="corpus", title="Every series of the corpus", text="\n".join(text), figures=figures
        )
    units: tuple[Unit, ...] = ("HU", "arbitrary")
    for unit in units:
        cards = rows.learned(context.catalog, unit)
        engines = {f: context.catalog.load(c.name, threads=1) for f, c in cards.items()}
        found: list[Seen] = []
        for subject in cases.subjects(context):
            if subject.unit == unit:
                context.say(f"corpus: {subject.name}")
                found += series(subject, engines, context)
        modality = "CT" if unit == "HU" else "MR"
        text += [f"## {modality}", "", *_text(found, unit)]
        gone = rows.missing(context.catalog, unit)
        if gone:
            text += [f"No engine of this family is in the catalogue: {', '.join(gone)}.", ""]
        figures[modality] = [{**asdict(s), "reduction": s.reduction, "harmed": s.harmed} for s in found]
        figures[f"{modality} bars"] = [b for f in cards for b in judged(found, f, unit)]
    text += ["## What was left out", "", *_left_out(context)]
    return Section(name="corpus", title="Every series of the corpus", text="\n".join(text), figures=figures)


def _left_out(context: Context) -> list[str]:
    """How many files no engine may touch, by reason."""
    assert context.corpus is not None
    counts: dict[str, int] = {}
    for one in find(context.corpus)[1]:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    return [table(["reason", "files"], [[r, str(n)] for r, n in sorted(counts.items(), key=lambda i: -i[1])])]


def _noisy(subject: Subject, context: Context) -> Case | None:
    """The series with noise added, made once for all sections where it has slices enough."""
    for case in cases.real(context, subject.unit).cases:
        if case.name == subject.name:
            return case
    try:
        made = cases.quarter_dose(subject) if subject.unit == "HU" else cases.noise_added(subject, 0.04)
    except DataError:
        return None
    return made if cases.usable(made) else None


def harm_window(case: Case) -> Window:
    """Soft tissue, or the chest's where next to nothing of a CT lies in that (a hollow phantom, a lung's corner)."""
    window = rows.window_of(case)
    if case.unit == "HU":
        seen = case.reference[case.mask]
        if float(((seen > window.low) & (seen < window.high)).mean()) < FEWEST_SOFT:
            return CHEST
    return window


def _error(case: Case, output: Floats) -> float:
    """RMSE in the window, mean over slices, in the unit of the images."""
    window = harm_window(case)
    return float(np.mean([s.rmse_window for s in rows.figures(case, output, window)] or [np.nan]))


def series(subject: Subject, engines: Mapping[str, Enhancer], context: Context) -> list[Seen]:
    """Run all engines on one series."""
    volume, _ = thinned(subject.volume, 3, 4)
    noisy = _noisy(subject, context)
    out = []
    for family, engine in engines.items():
        error = (float("nan"), float("nan"))
        if noisy is not None:
            full = rows.at_full(engine, noisy).values
            cleaned = rows.blended(noisy, full, engine.card.default_strength)
            error = (_error(noisy, noisy.volume.values), _error(noisy, cleaned))
        out.append(_seen(subject.name, volume, family, engine, error))
    return out


def _seen(name: str, volume: Volume, family: str, engine: Enhancer, error: tuple[float, float]) -> Seen:
    n = volume.shape[0]
    nothing = float("nan")
    try:
        done = engine.enhance(volume, Params(strength=engine.card.default_strength))
        values, skipped, notes = done.volume.values, int(done.figures["skipped"]), done.notes
    except EngineError as refused:
        values, skipped, notes = volume.values, n, (refused.message,)
    values = np.where(volume.valid, grid_of(volume).written(values), volume.values)
    changed = [z for z in range(n) if np.any(values[z] != volume.values[z])]
    was = [noise.estimate(volume.values[z], volume.valid[z], unit=volume.unit) for z in changed]
    now = [noise.estimate(values[z], volume.valid[z], unit=volume.unit) for z in changed]
    pairs = [(a, b) for a, b in zip(was, now, strict=True) if np.isfinite(a.sigma) and np.isfinite(b.sigma)]
    scale = noise.scale(noise.survey(volume), volume.unit)
    inside = (body_mask if volume.unit == "HU" else foreground_mask)(volume.values) & volume.valid
    return Seen(
        series=name,
        engine=engine.card.name,
        family=family,
        n_slices=n,
        skipped=skipped,
        before=float(np.median([a.sigma for a, _ in pairs])) if pairs else nothing,
        after=float(np.median([b.sigma for _, b in pairs])) if pairs else nothing,
        cfr=float(np.median([b.frequency / a.frequency for a, b in pairs])) if pairs else nothing,
        radial_cfr=_radial(volume, values, changed) if pairs else nothing,
        largest_mean=largest_mean(values - volume.values, inside, volume.spacing_mm[1:]) / scale,
        error_before=error[0],
        error_after=error[1],
        notes=notes,
    )


def largest_mean(change: Floats, inside: Mask, pixel_mm: tuple[float, float]) -> float:
    """Largest |mean| of a change (z, y, x) of any 32 mm box that lies inside."""
    side = [max(1, round(REGION_MM / p)) for p in pixel_mm]
    worst = 0.0
    for values, mask in zip(change, inside, strict=True):
        share = ndimage.uniform_filter(mask.astype(np.float64), side, mode="constant")
        total = ndimage.uniform_filter(np.where(mask, values, 0).astype(np.float64), side, mode="constant")
        whole = share > 0.99
        if whole.any():
            worst = max(worst, float(np.abs(total[whole] / share[whole]).max()))
    return worst


def uniform(values: Floats, sigma: float) -> Mask:
    """Where a slice is as flat as its noise allows: the gradient of its smoothed values is small."""
    smooth = ndimage.gaussian_filter(values, 3.0)
    steep = np.hypot(*np.gradient(smooth))
    return np.asarray(steep < 0.08 * sigma)


def _radial(volume: Volume, values: Floats, changed: Sequence[int]) -> float:
    """CFR by TG-233's radial mean in uniform regions; NaN where there are too few."""
    mask = np.zeros(volume.shape, np.bool_)
    for z in changed:
        sigma = noise.estimate(volume.values[z], volume.valid[z], unit=volume.unit).sigma
        if np.isfinite(sigma):
            there = (
                foreground_mask(volume.values[z : z + 1])[0]
                if volume.unit == "arbitrary"
                else volume.values[z] > -300
            )
            mask[z] = uniform(volume.values[z], sigma) & there & volume.valid[z]
    try:
        before, after = (
            physics.noise_power(
                physics.uniform_rois(v, mask, size=ROI, stride=ROI_STRIDE), volume.spacing_mm[1]
            )
            for v in (volume.values, values)
        )
    except DataError:
        return float("nan")
    return physics.texture(before, after).cfr


def judged(found: Sequence[Seen], family: str, unit: Unit) -> list[dict[str, Any]]:
    """The bars of one family: what was measured, and whether it is met."""
    own = [s for s in found if s.family == family]
    noisy = [s for s in own if s.harmed is not None]
    changed = [s for s in own if np.isfinite(s.before)]
    if not own:
        return []
    harmed = [s.series for s in noisy if s.harmed]
    mean = max(s.largest_mean for s in own)
    within = [s for s in changed if REDUCTION[0] <= s.reduction <= REDUCTION[1]]
    keep = [s for s in changed if s.cfr >= LEAST_CFR]
    median = float(np.median([s.reduction for s in changed])) if changed else float("nan")
    out: list[dict[str, Any]] = [
        {
            "bar": "no series gets worse (harm rate 0)",
            "measured": f"{len(harmed)} of {len(noisy)}" + (f": {', '.join(harmed)}" if harmed else ""),
            "met": not harmed if noisy else None,
        },
        {
            "bar": "noise falls by 40 to 50 %",
            "measured": f"median {median:.0%}; {len(within)} of {len(changed)} series within",
            "met": len(within) == len(changed) if changed else None,
        },
        {
            "bar": f"CFR over the plane at least {LEAST_CFR:.2f}",
            "measured": f"{len(keep)} of {len(changed)} series, lowest "
            f"{number(min((s.cfr for s in changed), default=float('nan')), 3)}",
            "met": len(keep) == len(changed) if changed else None,
        },
    ]
    if unit == "HU":
        told = {"bar": "|mean change| below 1 HU in every 32 mm box", "measured": f"largest {mean:.2f} HU"}
        out.insert(1, {**told, "met": mean < LARGEST_MEAN_HU})
    return [{"family": family, **b} for b in out]


def _text(found: Sequence[Seen], unit: Unit) -> list[str]:
    per = 1.0 if unit == "HU" else 100.0
    text: list[str] = []
    for family in dict.fromkeys(s.family for s in found):
        own = [s for s in found if s.family == family]
        made = [
            [
                s.series,
                f"{number(s.before)} to {number(s.after)}" if np.isfinite(s.before) else "left as it was",
                f"{s.reduction:.0%}" if np.isfinite(s.before) else "-",
                number(s.cfr),
                number(s.radial_cfr),
                number(per * s.largest_mean),
                f"{number(s.error_before)} to {number(s.error_after)}" if s.harmed is not None else "-",
                "-" if s.harmed is None else "worse" if s.harmed else "better",
                f"{s.skipped} of {s.n_slices}",
            ]
            for s in own
        ]
        header = ["series", "noise", "less by", "CFR plane", "CFR TG-233"]
        header += [
            "largest mean " + ("HU" if unit == "HU" else "%"),
            "RMSE with noise added",
            "harm",
            "slices left",
        ]
        bars = [[b["bar"], b["measured"], verdict(b["met"])] for b in judged(own, family, unit)]
        notes = sorted({n for s in own for n in s.notes})
        text += [
            f"### {own[0].engine}",
            "",
            table(header, made),
            "",
            table(["bar", "measured", "met"], bars),
            "",
        ]
        text += [f"- {n}" for n in notes] + [""]
    return text
