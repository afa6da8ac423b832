"""Inserts: resolution by contrast and noise (TTF), HU bias, and linearity.

All inserts lie in one slab of tissue, in all slices. Weak ones are measured with the same noise without the inserts
subtracted (training/evaluate/resolution.py: ``plain``), which takes most of the noise away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.base import Floats
from training.evaluate import physics as measure
from training.evaluate import resolution
from training.report.physics_bench import CT_SPACING, Subject, disc, drawn, passed, table, textured

CONTRASTS_HU = (-1000.0, -100.0, 10.0, 20.0, 30.0, 50.0, 120.0, 900.0)
DOSES_HU = (10.0, 25.0, 50.0)
WEAK_HU = 150.0
"""Below it the noise is subtracted."""
LEVEL_HU, TEXTURE_HU = 50.0, 5.0
BLUR_PIXELS = 0.9
"""Of the standard kernel's edge."""
HU_BAR_FROM = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One insert at one dose of one engine; f50 in cycles per mm, mean values and bias in HU."""

    engine: str
    sigma: float
    contrast: float
    strength: float
    f50_before: float
    f50_after: float
    f50_ratio: float
    f10_ratio: float
    cnr_of_edge: float
    bias: float
    mean: float
    true: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Linearity of one engine at one dose: slope of measured over true, and the largest bias of any insert."""

    engine: str
    sigma: float
    strength: float
    slope: float
    intercept: float
    slope_of_input: float
    largest_bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """The slab with and without inserts, without noise.

    ``weak`` is the contrast below which the noise is subtracted; a slab holds texture of ``level`` and up.
    """

    inserts: tuple[measure.Insert, ...]
    with_inserts: Floats
    without: Floats
    level: float
    weak: float
    spacing_mm: tuple[float, float, float]


def ct_slab(quick: bool) -> Slab:
    """Draw tissue of 50 HU with inserts; in quick runs a small slab with four of them."""
    contrasts = (-1000.0, 20.0, 120.0, 900.0) if quick else CONTRASTS_HU
    ground = textured((2, 192, 192) if quick else (8, 512, 512), LEVEL_HU, TEXTURE_HU)
    return slab(ground, contrasts, level=LEVEL_HU, weak=WEAK_HU, lowest=-1000.0, spacing_mm=CT_SPACING)


def slab(
    ground: Floats,
    contrasts: Sequence[float],
    *,
    level: float,
    weak: float,
    lowest: float,
    spacing_mm: tuple[float, float, float],
) -> Slab:
    """Put inserts on a ring into a slab (z, y, x); no insert is below ``lowest``."""
    side = ground.shape[1]
    radius, ring = 0.0586 * side + 7 * (side < 256), (0.3125 if side >= 256 else 0.29) * side
    inserts, picture = [], ground[0].astype(np.float64)
    for i, contrast in enumerate(contrasts):
        angle = 2 * np.pi * i / len(contrasts)
        centre = (side / 2 + ring * np.sin(angle) + 0.3, side / 2 + ring * np.cos(angle) + 0.2)
        shape = disc(side, centre, radius, BLUR_PIXELS)
        value = max(level + contrast, lowest)
        picture = picture * (1 - shape) + shape * (value + (ground[0] - level) * (abs(contrast) < weak))
        inserts.append(measure.Insert(name=f"{contrast:+.0f}", centre=centre, radius=radius, value=value))
    return Slab(
        inserts=tuple(inserts),
        with_inserts=np.broadcast_to(picture, ground.shape).astype(np.float32),
        without=ground,
        level=level,
        weak=weak,
        spacing_mm=spacing_mm,
    )


def ct_noise(made: Slab, sigma: float) -> tuple[Floats, Floats]:
    """Make the slab with and without inserts, with the same noise."""
    z, y, x = made.without.shape
    noise = drawn((z, y, x), kernel="standard", sigma=sigma, seed=500)
    return made.with_inserts + noise, made.without + noise


def edges(
    subject: Subject, made: Slab, noisy: tuple[Floats, Floats], sigma: float
) -> tuple[list[Edge], list[Line]]:
    """Measure every insert at one dose, at default strength and at 1.0.

    Parameters
    ----------
    noisy
        The slab with and without inserts, with the same noise of ``sigma``.
    """
    given, plain = noisy
    out, out_plain = (passed(subject, v, made.spacing_mm) for v in noisy)
    found: list[Edge] = []
    lines = []
    for strength, after, after_plain in (
        (subject.strength, out.default, out_plain.default),
        (1.0, out.full, out_plain.full),
    ):
        here = [
            _edge((subject.name, sigma, strength), made, insert, (given, plain), (after, after_plain))
            for insert in made.inserts
        ]
        found += here
        true = [i.value for i in made.inserts]
        line = measure.linearity(true, [e.mean for e in here])
        before = measure.linearity(true, [measure.insert_mean(given, i) for i in made.inserts])
        lines.append(
            Line(
                engine=subject.name,
                sigma=sigma,
                strength=strength,
                slope=line.slope,
                intercept=line.intercept,
                slope_of_input=before.slope,
                largest_bias=max(abs(e.bias) for e in here),
            )
        )
    return found, lines


def _edge(
    which: tuple[str, float, float],
    made: Slab,
    insert: measure.Insert,
    before: tuple[Floats, Floats],
    after: tuple[Floats, Floats],
) -> Edge:
    engine, sigma, strength = which
    contrast = insert.value - made.level
    weak = abs(contrast) < made.weak

    def one(pair: tuple[Floats, Floats]) -> resolution.Transfer:
        image, plain = (np.asarray(v, np.float64) for v in pair)
        near: npt.NDArray[np.float64] | None = plain if weak else None
        return resolution.transfer(image, insert, made.spacing_mm[1], plain=near)

    was, now = one(before), one(after)
    bias = measure.insert_bias(before[0], after[0], [insert])[insert.name]
    return Edge(
        engine=engine,
        sigma=sigma,
        contrast=contrast,
        strength=strength,
        f50_before=was.f50,
        f50_after=now.f50,
        f50_ratio=now.f50 / was.f50,
        f10_ratio=now.f10 / was.f10,
        cnr_of_edge=now.cnr,
        bias=bias,
        mean=measure.insert_mean(after[0], insert),
        true=insert.value,
    )


def text(found: Sequence[Edge], lines: Sequence[Line], unit: str = "HU") -> str:
    """Write f50 ratios as a matrix of contrast and dose for every engine, and linearity."""
    rows, seen = [], {(e.engine, e.sigma, e.contrast, e.strength): e for e in found}
    doses = sorted({e.sigma for e in found})
    for engine, contrast in dict.fromkeys((e.engine, e.contrast) for e in found):
        default = min(e.strength for e in found if e.engine == engine)
        here = [seen[engine, s, contrast, default] for s in doses]
        full = [seen[engine, s, contrast, 1.0] for s in doses]
        rows.append(
            (
                engine,
                f"{contrast:+.0f}",
                *(e.f50_ratio for e in here),
                *(e.f50_ratio for e in full),
                max((e.bias for e in here), key=abs),
                max((e.bias for e in full), key=abs),
            )
        )
    head = ("engine", f"contrast {unit}", *(f"f50 ratio at {s:.0f} {unit} noise" for s in doses))
    head += (
        *(f"the same, strength 1.0, {s:.0f} {unit}" for s in doses),
        f"largest bias {unit}",
        "bias at 1.0",
    )
    straight = [
        (
            li.engine,
            f"{li.sigma:.0f}",
            li.strength,
            f"{li.slope:.5f}",
            f"{li.slope_of_input:.5f}",
            li.largest_bias,
        )
        for li in lines
    ]
    second = ("engine", f"noise {unit}", "strength", "slope after", "slope before", f"largest bias {unit}")
    return table(head, rows) + "\n\n" + table(second, straight)
