"""Noise: how much an engine takes, and whether what it leaves has the same grain.

In anatomy the noise is the difference of two outputs that differ in noise alone, over root 2: what is the same in both
cancels. Uniform slabs flatter every denoiser; they are told apart from slabs with texture and from drawn anatomy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.base import Floats
from training.errors import DataError
from training.evaluate import physics as measure
from training.evaluate.conventions import Mask, body_mask
from training.report.physics_bench import (
    CT_SPACING,
    KERNELS,
    SEED,
    Passed,
    Subject,
    drawn,
    passed,
    projected,
    table,
    textured,
)

DOSES_HU = (10.0, 25.0, 50.0)
SIGMA_HU = 25.0
UNIFORM, TEXTURE = "uniform slab", "slab with texture"
ANATOMY = ("abdomen", "chest", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A truth and two noisy images of it.

    Attributes
    ----------
    ground, kernel, sigma
        What it shows, and its noise in HU (fraction of the scale for MR).
    mask
        Where noise is looked at.
    """

    ground: str
    kernel: str
    sigma: float
    truth: Floats
    noise: tuple[Floats, Floats]
    mask: Mask
    spacing_mm: tuple[float, float, float]

    @property
    def noisy(self) -> tuple[Floats, Floats]:
        return self.truth + self.noise[0], self.truth + self.noise[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grain:
    """Noise before and after of one engine on one case; ``strength`` is what it ran at, sigma in HU."""

    engine: str
    ground: str
    kernel: str
    strength: float
    sigma_before: float
    sigma_after: float
    nmr: float
    cfr: float
    plane_cfr: float
    peak_ratio: float
    n_rois: int
    skipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A case that went through an engine, kept for what else is measured on it."""

    case: Case
    first: Passed
    second: Passed


def cases(quick: bool) -> Iterator[Case]:
    """Make the CT cases: slabs with image-domain noise, drawn anatomy with noise through projections."""
    from training.simulate import anatomy

    side = 192 if quick else 512
    shape = (2 if quick else 3, side, side)
    kernels = ("standard",) if quick else tuple(KERNELS)
    for ground, spread in ((UNIFORM, 0.0), (TEXTURE, 8.0)):
        truth = textured(shape, 50.0, spread)
        for i, kernel in enumerate(kernels):
            a, b = (drawn(shape, kernel=kernel, sigma=SIGMA_HU, seed=10 * i + k) for k in (0, 1))
            yield Case(
                ground=ground,
                kernel=kernel,
                sigma=SIGMA_HU,
                truth=truth,
                noise=(a, b),
                mask=np.ones(shape, np.bool_),
                spacing_mm=CT_SPACING,
            )
    for j, kind in enumerate(ANATOMY[:1] if quick else ANATOMY):
        made = anatomy.draw(np.random.default_rng([SEED, 74, j]), kind=kind, n_slices=shape[0], matrix=side)
        body = body_mask(made.values)
        for i, kernel in enumerate(kernels):
            a, b = (
                projected(
                    made.values, made.spacing_mm, kernel=kernel, sigma=SIGMA_HU, seed=100 * j + 10 * i + k
                )
                for k in (0, 1)
            )
            for sigma in DOSES_HU if kernel == "standard" and kind == "abdomen" else (SIGMA_HU,):
                share = np.float32(sigma / SIGMA_HU)
                yield Case(
                    ground=f"drawn {kind}",
                    kernel=kernel,
                    sigma=sigma,
                    truth=made.values,
                    noise=(share * a, share * b),
                    mask=body,
                    spacing_mm=made.spacing_mm,
                )


def ran(subject: Subject, case: Case) -> Run:
    """Send both noisy images through an engine."""
    first, second = (passed(subject, v, case.spacing_mm) for v in case.noisy)
    return Run(case=case, first=first, second=second)


def spectra(case: Case, first: Floats, second: Floats) -> measure.NoisePower:
    """Return the NPS of two outputs; regions of 64 pixels, of 32 where those do not fit."""
    for size in (64, 32):
        try:
            return measure.noise_power_of_repeats(
                first, second, case.mask, case.spacing_mm[1], size=size, fewest=12
            )
        except DataError:
            if size == 32:
                raise
    raise AssertionError


def grains(subject: Subject, run: Run) -> list[Grain]:
    """Measure noise before and after, at default strength and at 1.0."""
    case = run.case
    before = spectra(case, *case.noisy)
    out = []
    for strength, a, b in (
        (subject.strength, run.first.default, run.second.default),
        (1.0, run.first.full, run.second.full),
    ):
        after = spectra(case, a, b)
        t = measure.texture(before, after)
        out.append(
            Grain(
                engine=subject.name,
                ground=case.ground,
                kernel=case.kernel,
                strength=strength,
                sigma_before=before.sigma,
                sigma_after=after.sigma,
                nmr=t.nmr,
                cfr=t.cfr,
                plane_cfr=t.plane_cfr,
                peak_ratio=t.peak_ratio,
                n_rois=after.n_rois,
                skipped=run.first.skipped + run.second.skipped,
            )
        )
    return out


def text(found: Sequence[Grain]) -> str:
    """Write the figures as a table: default strength, and 1.0 behind it."""
    full = {(g.engine, g.ground, g.kernel, round(g.sigma_before, 1)): g for g in found if g.strength == 1.0}
    default = [g for g in found if g.strength != 1.0] or list(found)
    rows = []
    for g in default:
        f = full[(g.engine, g.ground, g.kernel, round(g.sigma_before, 1))]
        rows.append(
            (
                g.engine,
                g.ground,
                g.kernel,
                g.sigma_before,
                f"{100 * (1 - g.nmr):.0f} %",
                g.cfr,
                g.plane_cfr,
                g.peak_ratio,
                f"{100 * (1 - f.nmr):.0f} %",
                f.cfr,
                f.plane_cfr,
            )
        )
    head = (
        "engine",
        "ground",
        "kernel",
        "noise before",
        "less noise",
        "CFR radial",
        "CFR plane",
        "peak ratio",
    )
    return table((*head, "less noise at 1.0", "CFR radial at 1.0", "CFR plane at 1.0"), rows)


def plot(runs: Sequence[tuple[str, Run]], path: Path) -> None:
    """Draw the NPS before and after of each engine on one case."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    n = len(runs)
    columns = min(3, n)
    rows = -(-n // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows), squeeze=False)
    for axis in axes.ravel()[n:]:
        axis.axis("off")
    for axis, (name, run) in zip(axes.ravel(), runs, strict=False):
        before = spectra(run.case, *run.case.noisy)
        axis.plot(before.frequency, before.radial, "k", label="input")
        for label, a, b, style in (
            ("default strength", run.first.default, run.second.default, "C0"),
            ("strength 1.0", run.first.full, run.second.full, "C1--"),
        ):
            after = spectra(run.case, a, b)
            axis.plot(after.frequency, after.radial, style, label=label)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("cycles per mm", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=7)
    case = runs[0][1].case
    figure.suptitle(f"Noise power spectrum: {case.ground}, {case.kernel} kernel", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def as_figures(found: Sequence[Grain]) -> list[dict[str, Any]]:
    """Make them JSON."""
    return [asdict(g) for g in found]
