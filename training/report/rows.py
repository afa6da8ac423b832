"""The rows of the tables: engines through the whole front door, and classical filters; both tuned on validation.

The output of an engine is linear in its strength (guarantee G9 of the laws), so each runs once at full strength and
every other strength is blended from it, then rounded to what can be stored, as the node does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from engines import noise
from engines.base import Card, Family, Floats, Params, Unit
from engines.catalog import Catalog
from engines.errors import EngineError
from engines.front import Enhancer
from training.evaluate import classical
from training.evaluate.classical import FILTERS, PAPER_ROWS
from training.evaluate.conventions import SOFT, Mask, Values, Window, volume_window
from training.evaluate.metrics import SliceFigures, measure, psnr
from training.report.cases import Case

FAMILIES: tuple[Family, ...] = ("cnn", "gan", "autoencoder")
STRENGTHS = tuple(float(s) for s in np.round(np.arange(0.3, 1.01, 0.05), 2))
SIDE = 224
"""Pixels of validation patches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method with its parameters.

    Attributes
    ----------
    name
        Of the engine or the filter.
    title
        In tables.
    family
        ``cnn``, ``gan``, ``autoencoder``, ``classical``.
    strength
        Of an engine, or the blend of a filter.
    score
        PSNR in the window on validation, dB; NaN where it was not tuned.
    """

    name: str
    title: str
    family: str
    strength: float
    score: float
    parameters: Mapping[str, object] = field(default_factory=dict)


def learned(catalog: Catalog, unit: Unit) -> dict[str, Card]:
    """The learned engines of a unit that keep the matrix, by family: the first of each by name."""
    found: dict[str, Card] = {}
    for name in catalog.names():
        card = catalog.card(name)
        if card.family in FAMILIES and card.unit == unit and card.scale == 1:
            found.setdefault(card.family, card)
    return {f: found[f] for f in FAMILIES if f in found}


def missing(catalog: Catalog, unit: Unit) -> tuple[str, ...]:
    """Families without an engine of this unit."""
    there = learned(catalog, unit)
    return tuple(f for f in FAMILIES if f not in there)


def window_of(case: Case) -> Window:
    """The window that rows are tuned in: soft tissue for CT, 0 to the maximum for MR."""
    return SOFT if case.unit == "HU" else volume_window(case.reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """What a method makes of a case at full strength, and why it refused if it did."""

    values: Floats
    skipped: int = 0
    refused: str = ""


def at_full(engine: Enhancer, case: Case) -> Full:
    """Run an engine at strength 1, guards on. A refusal leaves the input, as the node does."""
    try:
        done = engine.enhance(case.volume, Params(strength=1.0), case.survey)
    except EngineError as error:
        return Full(values=case.volume.values, skipped=case.volume.shape[0], refused=error.message)
    return Full(values=done.volume.values, skipped=int(done.figures.get("skipped", 0)))


def blended(case: Case, full: Floats, strength: float) -> Floats:
    """The output at a strength, as it would be stored."""
    values = case.volume.values
    out = values + np.float32(strength) * (full - values)
    return np.where(case.volume.valid, case.grid.written(out), values)


def filtered(row: Row, case: Case) -> Floats:
    """Run a classical row on a case, as it would be stored; slices that are not measured stay as they are."""
    told = noise.steady(case.survey.sigma)
    if row.name in FILTERS:
        told = np.where(case.mask.any(axis=(1, 2)), told, np.nan).astype(np.float32)
    done = classical.apply(row.name, row.parameters, case.volume, told)
    return np.where(case.volume.valid, case.grid.written(done), case.volume.values)


def windowed_psnr(reference: Values, output: Values, mask: Mask, window: Window) -> float:
    """Mean over the measured slices of the PSNR in the window, dB."""
    found = [
        psnr(window.apply(reference[z]), window.apply(output[z]), mask=mask[z])
        for z in np.flatnonzero(mask.any(axis=(1, 2)))
    ]
    return float(np.mean(found))


def _mean_over_patients(values: Iterable[tuple[str, float]]) -> float:
    by: dict[str, list[float]] = {}
    for patient, value in values:
        by.setdefault(patient, []).append(value)
    return float(np.mean([np.mean(v) for v in by.values()]))


def tuned_engine(engine: Enhancer, cases: Sequence[Case], fulls: Sequence[Full]) -> Row:
    """The strength with the highest PSNR on validation cases; ``fulls`` are the outputs at full strength."""
    best: tuple[float, float] | None = None
    for strength in STRENGTHS:
        score = _mean_over_patients(
            (c.patient, windowed_psnr(c.reference, blended(c, f.values, strength), c.mask, window_of(c)))
            for c, f in zip(cases, fulls, strict=True)
        )
        if best is None or score > best[0]:
            best = (score, strength)
    assert best is not None
    card = engine.card
    return Row(
        name=card.name,
        title=f"{card.family} {card.name}",
        family=card.family,
        strength=best[1],
        score=best[0],
    )


def default_row(card: Card) -> Row:
    """An engine at the strength of its card: the product."""
    return Row(
        name=card.name,
        title=f"{card.family} {card.name}, as shipped",
        family=card.family,
        strength=card.default_strength,
        score=float("nan"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """All rows of one unit, tuned.

    Attributes
    ----------
    filters
        Every classical row, best on validation first.
    traditional
        The best of the paper's kind (Gaussian, median, bilateral), by validation.
    best
        The best classical row, by validation.
    engines
        By family, with the strength that is best on validation.
    loaded
        The engines themselves, by family: loaded once, so that all figures of a page are of one set of weights.
    """

    filters: tuple[Row, ...]
    traditional: Row
    best: Row
    engines: Mapping[str, Row]
    loaded: Mapping[str, Enhancer] = field(default_factory=dict, repr=False)


def tune_filters(
    cases: Sequence[Case], unit: Unit, say: Callable[[str], None], *, names: Sequence[str] = ()
) -> tuple[Row, ...]:
    """Tune every classical row of a unit on validation cases; the best first."""
    stacks = [(c, c.stack(z, SIDE)) for c in cases for z in c.measured[:1]]
    windows = {id(stack): window_of(c) for c, stack in stacks}

    def score(stack: classical.Case, out: Floats) -> float:
        return windowed_psnr(stack.reference, out, stack.mask, windows[id(stack)])

    rows = []
    for name in names or classical.rows(unit):
        trials = classical.trials(name, [s for _, s in stacks], score)
        best = max(trials, key=lambda t: t.score)
        told = ", ".join(f"{k} {v}" for k, v in best.parameters.items() if k != "blend")
        say(f"  tuned {name}: {best.score:.2f} dB, {told}")
        rows.append(
            Row(
                name=name,
                title=name,
                family="classical",
                strength=float(best.parameters["blend"]),
                score=best.score,
                parameters=best.parameters,
            )
        )
    return tuple(sorted(rows, key=lambda r: -r.score))


def tune_all(
    catalog: Catalog, unit: Unit, cases: Sequence[Case], say: Callable[[str], None], *, quick: bool = False
) -> Tuned:
    """Tune filters and engines of a unit on validation cases, and nothing else."""
    names = ("gaussian", "median", "tv") if quick else ()
    filters = tune_filters(cases, unit, say, names=names)
    engines, loaded = {}, {}
    for family, card in learned(catalog, unit).items():
        try:
            engine = catalog.load(card.name, threads=1)
        except EngineError as error:
            say(f"  {card.name} cannot be loaded: {error.message}")
            continue
        loaded[family] = engine
        engines[family] = tuned_engine(engine, cases, [at_full(engine, c) for c in cases])
        say(f"  tuned {card.name}: strength {engines[family].strength:g}, {engines[family].score:.2f} dB")
    traditional = next(r for r in filters if r.name in PAPER_ROWS)
    return Tuned(filters=filters, traditional=traditional, best=filters[0], engines=engines, loaded=loaded)


def figures(case: Case, output: Floats, window: Window) -> tuple[SliceFigures, ...]:
    """Figures of the measured slices, cut to what the mask holds (and the reach of SSIM)."""
    rows, columns = (_span(np.asarray(case.mask.any(axis=(0, a)))) for a in (2, 1))
    chosen = list(case.measured)
    cut = (chosen, rows, columns)
    return measure(case.reference[cut], output[cut], window=window, mask=case.mask[cut])


def _span(where: Mask) -> slice:
    seen = np.flatnonzero(where)
    return slice(max(0, int(seen[0]) - 12), int(seen[-1]) + 13)


def error_to_truth(case: Case, output: Floats, inside: Mask) -> dict[int, float]:
    """RMSE to the truth behind a noisy reference, by slice, in the unit of the images.

    The reference holds noise n of its own, and the input holds n and the added noise a, var(a) = ratio var(n). For an
    output y and the truth t::

        E (y - t)^2 = E (y - ref)^2 - var(n) + 2 cov(y - t, n),   cov(y - t, n) = cov(y - ref, a) / ratio

    since n and a are alike and independent, and neither the truth nor the reference knows of a. It is 0 for y = t and
    (1 + ratio) var(n) for the input. Without noise in the reference it is the RMSE. Slices whose estimate is not
    above 0 are left out.
    """
    out: dict[int, float] = {}
    for z in case.measured:
        where = inside[z]
        if int(where.sum()) < 256:
            continue
        e = (output[z] - case.reference[z])[where].astype(np.float64)
        power = float(np.mean(e**2))
        if case.added is not None and case.ratio > 0:
            a = case.added[z][where].astype(np.float64)
            a = a - a.mean()
            power += (-float(np.mean(a**2)) + 2 * float(np.mean(e * a))) / case.ratio
        if power > 0:
            out[z] = float(np.sqrt(power))
    return out
