"""Gain and harm over dose, kernel and slice thickness, on drawn anatomy with a truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from engines.base import Floats
from training.evaluate.conventions import SOFT, body_mask
from training.evaluate.metrics import rmse
from training.report import plots, rows
from training.report.cases import HU_LIMITS, Case, case, only, plain
from training.report.section import Context, Section
from training.report.subjects import Grid
from training.report.tables import number, table, verdict
from training.simulate.anatomy import PAINTERS
from training.simulate.shapes import Canvas

DOSES = (0.50, 0.25, 0.10, 0.05)
KERNELS = {"soft": (0.14, 0.6), "std": (0.22, 1.0), "sharp": (0.35, 2.2)}
"""Cutoff in cycles per pixel, and noise beside that of the standard kernel."""
THICKNESSES = (0.6, 1.25, 3.0, 5.0)
FULL_DOSE_HU = 8.0
"""Noise of the standard kernel at 3 mm and full dose."""
KINDS = {"chest": 360.0, "abdomen": 380.0, "head": 240.0}
"""What is drawn, and the field of view in mm."""
SEED = 77001
N_STACKS = 2
MATRIX = 512
SHOWN = 288
"""Rows and columns around the middle that the engines are given: pixels of a real scan, a quarter of the work."""

Scalar = TypeVar("Scalar", bound=np.generic)

HOW = """
Drawn anatomy (the training's generator, but slice distances that are fixed and seeds that no training
uses), noise through projections and filtered back projection: sigma = 8 HU at full dose, 3 mm and the
standard kernel, rising with the root of 1 / dose and of 1 / thickness, times 0.6 and 2.2 for the soft
and the sharp kernel. The noise is Gaussian: streaks of starvation are not in it. Slices lie as far
apart as they are thick. Each cell is the mean of six stacks (two chests, two abdomens, two heads); the
middle slice is measured: RMSE in the soft tissue window in the body, at the strength of the engine's
card. Noise above an engine's range is left as it is: gain 0.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of the map, of one engine."""

    dose: float
    kernel: str
    thickness_mm: float
    sigma: float
    gain_db: float
    harmed: int
    n: int
    skipped: int


def truth(kind: str, thickness_mm: float, seed: int) -> tuple[Floats, tuple[float, float, float]]:
    """Three slices without noise."""
    pixel = KINDS[kind] / MATRIX
    rng = np.random.default_rng([SEED, seed])
    canvas = Canvas(shape=(3, MATRIX, MATRIX), pixel_mm=pixel, step_mm=thickness_mm, rng=rng)
    PAINTERS[kind](canvas)
    values = np.clip(canvas.values, *HU_LIMITS).astype(np.float32)
    return values, (thickness_mm, pixel, pixel)


def _middle(values: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    first = (MATRIX - SHOWN) // 2
    return np.ascontiguousarray(values[:, first : first + SHOWN, first : first + SHOWN])


def noise_hu(dose: float, kernel: str, thickness_mm: float) -> float:
    """The noise of a scan, HU."""
    return float(FULL_DOSE_HU * KERNELS[kernel][1] * np.sqrt(3.0 / thickness_mm) / np.sqrt(dose))


def stacks(quick: bool) -> Iterator[tuple[str, float, float, Case]]:
    """(kernel, thickness, dose, case) of every stack of every cell."""
    from training.simulate.dose import Kernel, noise_stack

    kinds = list(KINDS)[:1] if quick else list(KINDS)
    for thickness in THICKNESSES[2:3] if quick else THICKNESSES:
        for kind in kinds:
            for i in range(1 if quick else N_STACKS):
                whole, spacing = truth(kind, thickness, 10 * i + list(KINDS).index(kind))
                clean = _middle(whole)
                mask = only(_middle(body_mask(whole)), (1,))
                for kernel, (cutoff, _) in KERNELS.items():
                    rng = np.random.default_rng([SEED, 1, i, int(100 * cutoff), int(100 * thickness)])
                    unit_noise = noise_stack(
                        whole, spacing[1], rng, kernel=Kernel(fc=cutoff), target_sigma_hu=1.0
                    )
                    for dose in DOSES:
                        yield (
                            kernel,
                            thickness,
                            dose,
                            _stack(clean, _middle(unit_noise), kind, kernel, spacing, dose, mask),
                        )


def _stack(
    clean: Floats,
    unit_noise: Floats,
    kind: str,
    kernel: str,
    spacing: tuple[float, float, float],
    dose: float,
    mask: Any,
) -> Case:
    grid = Grid(slope=1.0, intercept=0.0, limits=HU_LIMITS)
    noisy = grid.written(clean + np.float32(noise_hu(dose, kernel, spacing[0])) * unit_noise)
    return case(
        plain(noisy, spacing, "HU"),
        name=f"{kind} {kernel} {spacing[0]:g} mm",
        patient=kind,
        kind=kind,
        group="heat",
        reference=clean,
        mask=mask,
        grid=grid,
        level=f"{dose:.0%}",
    )


def run(context: Context) -> Section:
    """Measure all learned CT engines."""
    cards = rows.learned(context.catalog, "HU")
    engines = {f: context.catalog.load(c.name, threads=1) for f, c in cards.items()}
    text = [" ".join(HOW.split()), ""]
    gone = rows.missing(context.catalog, "HU")
    if gone:
        text += [f"No engine of this family is in the catalogue: {', '.join(gone)}.", ""]
    found: dict[str, dict[tuple[str, float, float], list[tuple[float, float, bool]]]] = {
        f: {} for f in engines
    }
    last = 0.0
    for kernel, thickness, dose, one in stacks(context.quick):
        if thickness != last:
            context.say(f"heat: {thickness:g} mm")
            last = thickness
        a = SOFT.apply(one.reference[1])
        before = rmse(a, SOFT.apply(one.volume.values[1]), one.mask[1])
        for family, engine in engines.items():
            full = rows.at_full(engine, one)
            out = rows.blended(one, full.values, engine.card.default_strength)
            after = rmse(a, SOFT.apply(out[1]), one.mask[1])
            left = bool(np.array_equal(out[1], one.volume.values[1]))
            found[family].setdefault((kernel, thickness, dose), []).append((before, after, left))
    figures: dict[str, Any] = {"how": " ".join(HOW.split())}
    for family, of in found.items():
        cells = [_cell(where, errors) for where, errors in of.items()]
        figures[family] = [
            {name: getattr(c, name) for name in Cell.__slots__ if name != "__weakref__"} for c in cells
        ]
        text += _text(family, cards[family].name, cells, context)
    return Section(
        name="heat", title="Gain over dose, kernel and thickness", text="\n".join(text), figures=figures
    )


def _cell(where: tuple[str, float, float], errors: list[tuple[float, float, bool]]) -> Cell:
    kernel, thickness, dose = where
    return Cell(
        dose=dose,
        kernel=kernel,
        thickness_mm=thickness,
        sigma=noise_hu(dose, kernel, thickness),
        gain_db=float(np.mean([20 * np.log10(b / a) for b, a, _ in errors])),
        harmed=sum(a > b for b, a, _ in errors),
        n=len(errors),
        skipped=sum(left for _, _, left in errors),
    )


def _text(family: str, name: str, cells: list[Cell], context: Context) -> list[str]:
    thicknesses = sorted({c.thickness_mm for c in cells})
    by = {(c.kernel, c.thickness_mm, c.dose): c for c in cells}
    panels = {
        kernel: np.array([[by[kernel, t, d].gain_db for t in thicknesses] for d in DOSES])
        for kernel in KERNELS
    }
    path = context.image(f"heat-{family}.png")
    plots.heat(
        path,
        panels,
        rows=[f"{d:.0%}" for d in DOSES],
        columns=[f"{t:g}" for t in thicknesses],
        row_label="dose",
        column_label="thickness, mm",
        label="gain in windowed RMSE, dB",
        title=f"{name} at the strength of its card",
    )
    harmed, n = sum(c.harmed for c in cells), sum(c.n for c in cells)
    skipped = sum(c.skipped for c in cells)
    worst, best = (f(cells, key=lambda c: c.gain_db) for f in (min, max))
    made = [
        [
            f"{c.kernel}, {c.thickness_mm:g} mm, {c.dose:.0%}",
            number(c.sigma, 0),
            number(c.gain_db, signed=True),
            f"{c.harmed} of {c.n}",
            f"{c.skipped} of {c.n}",
        ]
        for c in sorted(cells, key=lambda c: c.gain_db)[:8]
    ]
    return [
        f"## {name}",
        "",
        f"![Gain of {name}](images/{path.name})",
        "",
        f"Gains from {worst.gain_db:+.2f} to {best.gain_db:+.2f} dB. Harm rate {harmed / n:.1%} "
        f"({harmed} of {n} stacks); {skipped} stacks were left as they were. "
        f"No stack gets worse: {verdict(harmed == 0)}.",
        "",
        "The cells with the least gain:",
        "",
        table(["cell", "noise HU", "gain dB", "harmed", "left as it was"], made),
        "",
    ]
