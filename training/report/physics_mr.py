"""MR: noise and grain over zero filling, Rician bias, resolution and lesions, and real phantoms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from engines.base import Floats
from engines.classical import phantoms
from training.data import shards
from training.evaluate import lesions
from training.evaluate.conventions import foreground_mask
from training.report import physics_acr as acr
from training.report import physics_inserts as inserts
from training.report import physics_noise as noise
from training.report import physics_safety as safety
from training.report import physics_tasks as tasks
from training.report import physics_verdicts as verdicts
from training.report.physics_bench import MR_SPACING, SEED, Passed, Subject, subjects, table, textured
from training.report.physics_noise import Case, Run
from training.report.section import Context
from training.simulate.kspace import Acquisition, acquire

SCALE = 800.0
FILLINGS = (1.0, 1.5, 2.0)
DOSES = (0.03, 0.06)
LEVEL = 480.0
CONTRASTS = (-400.0, -150.0, -80.0, 40.0, 80.0, 150.0, 300.0)
LESION_CONTRASTS = (-200.0, -100.0, -48.0, -24.0, 24.0, 48.0, 100.0, 200.0)
LESION_SIGMA = 0.05
EDGE_BAR_FROM = 75.0
"""Contrast, of a scale of 800, from which the TTF bar is judged: 50 HU of CT has no counterpart in MR."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """Mean of a kind of pixel, in units of the series scale: noise-free, as the scanner shows it, and after."""

    engine: str
    sigma: float
    strength: float
    where: str
    true: float
    before: float
    after: float


def truths(context: Context) -> list[tuple[str, Floats, tuple[float, float, float]]]:
    """Noise-free stacks that no training saw: painted heads where there are shards, else a drawn head."""
    folder = context.data / "mr-validation"
    if context.quick or not (folder / "index.json").exists():
        size = 128 if context.quick else 256
        made = phantoms.mr(17, shape=(3, size, size), sigma=0.0)
        return [("drawn head", made.truth, MR_SPACING)]
    found = []
    for kind in ("axial", "coronal", "abstract"):
        for shard in shards.read(folder):
            if shard.facts.get("kind") == kind:
                values = SCALE * shard.crop(slice(None), slice(None), slice(None))
                found.append((f"painted {kind}", np.asarray(values, np.float32), shard.spacing_mm))
                break
    return found


def cases(context: Context) -> Iterator[Case]:
    """Two acquisitions of each truth, over zero filling and doses."""
    for i, (name, truth, spacing) in enumerate(truths(context)):
        body = foreground_mask(truth)
        for filling, sigma in product(
            FILLINGS[:1] if context.quick else FILLINGS, DOSES[:1] if context.quick else DOSES
        ):
            how = Acquisition(sigma=sigma, zero_fill=(filling, filling))
            images = [
                acquire(truth, how, np.random.default_rng([SEED, 81, i, k]), scale=SCALE) for k in (0, 1)
            ]
            expected = images[0][1]
            yield Case(
                ground=name,
                kernel=f"filled x{filling:g}",
                sigma=sigma * SCALE,
                truth=expected,
                noise=(images[0][0] - expected, images[1][0] - expected),
                mask=body,
                spacing_mm=spacing,
            )


def biases(subject: Subject, sigma: float, side: int) -> list[Bias]:
    """Look at what an engine does to means where the signal is a few times the noise or nothing."""
    truth = np.zeros((3, side, side), np.float32)
    levels = (0.0, 1.0, 2.0, 4.0, 10.0)
    width = side // 6
    y, x = np.mgrid[:side, :side]
    at = [
        (side // 2 + round(side * 0.3 * np.sin(a)), side // 2 + round(side * 0.3 * np.cos(a)))
        for a in np.arange(5) * 1.2566
    ]
    truth[:, np.hypot(y - side / 2, x - side / 2) < 0.47 * side] = SCALE * 0.8
    masks = []
    for level, (cy, cx) in zip(levels, at, strict=True):
        truth[:, np.hypot(y - cy, x - cx) < width / 2] = level * sigma * SCALE
        masks.append(np.hypot(y - cy, x - cx) < 0.35 * width)
    noisy, _ = acquire(truth, Acquisition(sigma=sigma), np.random.default_rng([SEED, 82]), scale=SCALE)
    out = _passed(subject, noisy)
    found = []
    for strength, after in ((subject.strength, out.default), (1.0, out.full)):
        for level, mask in zip(levels, masks, strict=True):
            found.append(
                Bias(
                    engine=subject.name,
                    sigma=sigma,
                    strength=strength,
                    where=f"signal of {level:g} sigma",
                    true=float(truth[:, mask].mean()) / SCALE,
                    before=float(noisy[:, mask].mean()) / SCALE,
                    after=float(after[:, mask].mean()) / SCALE,
                )
            )
    return found


def _passed(subject: Subject, values: Floats) -> Passed:
    from training.report.physics_bench import passed

    return passed(subject, values, MR_SPACING)


def slab(quick: bool) -> inserts.Slab:
    """Draw tissue of 480 with inserts."""
    side, n = (192, 2) if quick else (384, 6)
    ground = textured((n, side, side), LEVEL, 12.0)
    chosen = (-400.0, 80.0, 300.0) if quick else CONTRASTS
    return inserts.slab(ground, chosen, level=LEVEL, weak=200.0, lowest=20.0, spacing_mm=MR_SPACING)


def _twice(truths_of: tuple[Floats, Floats], sigma: float, seed: int) -> tuple[Floats, Floats]:
    """Acquire two truths with the same noise in both channels."""
    a, b = (
        acquire(t, Acquisition(sigma=sigma), np.random.default_rng([SEED, 83, seed]), scale=SCALE)[0]
        for t in truths_of
    )
    return a, b


def stacks(quick: bool) -> list[tasks.Stack]:
    """Put lesions into MR slabs with texture."""
    side, step = (192, 48) if quick else (384, 48)
    kinds = list(product(lesions.RADII_MM, LESION_CONTRASTS))
    out = []
    for i in range(1 if quick else 3):
        placed = tasks.layout(side, step, kinds, i)
        spacing = (2.0, MR_SPACING[1], MR_SPACING[2])
        truth = textured((5, side, side), LEVEL, 12.0, seed=7610 + i)
        given, plain = _twice((lesions.insert(truth, placed, spacing), truth), LESION_SIGMA, 90 + i)
        expected = acquire(truth, Acquisition(sigma=LESION_SIGMA), np.random.default_rng(0), scale=SCALE)[1]
        out.append(
            tasks.Stack(
                truth=expected,
                plain=plain,
                given=given,
                placed=placed,
                spacing_mm=spacing,
                sigma=LESION_SIGMA * SCALE,
            )
        )
    return out


def page(context: Context) -> verdicts.Page:
    """Measure all MR engines."""
    found = subjects(context.catalog, "MR", threads=context.threads)
    if not found:
        return verdicts.Page(text="There is no MR engine to measure.", figures={}, verdicts=[])
    grains: list[noise.Grain] = []
    structures: list[safety.Structure] = []
    shown: dict[str, Run] = {}
    for case in cases(context):
        context.say(f"physics: MR, {case.ground}, {case.kernel}, {case.sigma:.0f}")
        for subject in found:
            run = noise.ran(subject, case)
            grains += noise.grains(subject, run)
            shown.setdefault(subject.name, run)
            if case.kernel == "filled x1":
                structures += safety.structure(subject, run, unit="arbitrary")
    noise.plot(list(shown.items()), context.image("physics-nps-mr.png"))
    made, edges, lines = slab(context.quick), [], []
    kept: list[tasks.Kept] = []
    spurious: list[tasks.Spurious] = []
    bias: list[Bias] = []
    with_lesions = stacks(context.quick)
    behaviours = []
    for subject in found:
        context.say(f"physics: MR, inserts, lesions and bias, {subject.name}")
        for sigma in (0.05,) if context.quick else (0.02, 0.05, 0.1):
            noisy = _twice((made.with_inserts, made.without), sigma, 1)
            some, straight = inserts.edges(subject, made, noisy, sigma * SCALE)
            edges += some
            lines += straight
        some_kept, some_spurious = tasks.keep(subject, with_lesions)
        kept += some_kept
        spurious += some_spurious
        bias += biases(subject, 0.05, 128 if context.quick else 256)
        one = shown[subject.name].case
        behaviours.append(safety.behaviour(subject, one.noisy[0], one.spacing_mm, one.sigma))
    details = _details(context, found)
    judged = []
    for subject in found:
        judged += _judged(subject, grains, edges, kept, spurious, details, behaviours)
    parts = [
        "## MR: noise",
        f"Intensities are in units of which the series scale has {SCALE:.0f}; noise before is in those units.",
        "![Noise power spectra, MR](images/physics-nps-mr.png)",
        noise.text(grains),
        "## MR: resolution and bias",
        inserts.text(edges, lines, "units"),
        "Mean of discs whose signal is a few times the noise, as a fraction of the series scale. Magnitudes are biased "
        "(Rician); an engine keeps local means and takes none of this bias away.",
        _bias_text(bias),
        "## MR: lesions",
        f"Contrast after over before, noise {LESION_SIGMA * SCALE:.0f} units on tissue of {LEVEL:.0f}:",
        tasks.text_kept(kept, unit="units"),
        "At strength 1.0:",
        tasks.text_kept(kept, "full", unit="units"),
        tasks.text_spurious(spurious),
        "## MR: structure and safety",
        safety.text(structures, "units"),
        safety.text_behaviour(behaviours, "units"),
        "## MR: real phantoms",
        acr.text(details) if details else "No ACR series was given.",
    ]
    figures: dict[str, Any] = {
        "mr": {
            "noise": [asdict(g) for g in grains],
            "inserts": [asdict(e) for e in edges],
            "linearity": [asdict(li) for li in lines],
            "bias": [asdict(b) for b in bias],
            "lesions": [asdict(k) for k in kept],
            "false_blobs": [asdict(s) for s in spurious],
            "structure": [asdict(s) for s in structures],
            "behaviour": [asdict(b) for b in behaviours],
            "acr": [asdict(d) for d in details],
        }
    }
    return verdicts.Page(text="\n\n".join(parts), figures=figures, verdicts=judged)


def _details(context: Context, found: Sequence[Subject]) -> list[acr.Detail]:
    if context.corpus is None or context.quick:
        return []
    context.say("physics: MR, ACR series")
    series = acr.series(context.corpus)
    return [d for subject in found for name, given in series for d in acr.measured(subject, name, given)]


def _judged(
    subject: Subject,
    grains: Sequence[noise.Grain],
    edges: Sequence[inserts.Edge],
    kept: Sequence[tasks.Kept],
    spurious: Sequence[tasks.Spurious],
    details: Sequence[acr.Detail],
    behaviours: Sequence[safety.Behaviour],
) -> list[verdicts.Verdict]:
    def mine(rows: Sequence[Any]) -> list[Any]:
        return [r for r in rows if r.engine == subject.name and r.strength == subject.strength]

    return verdicts.mr(
        subject.name,
        mine(grains),
        [e for e in mine(edges) if abs(e.contrast) >= EDGE_BAR_FROM],
        mine(kept),
        mine(spurious),
        mine(details),
        mine(behaviours)[0],
    )


def _bias_text(found: Sequence[Bias]) -> str:
    rows = [
        (b.engine, f"{b.sigma:g}", b.strength, b.where, f"{b.true:.4f}", f"{b.before:.4f}", f"{b.after:.4f}")
        for b in found
    ]
    return table(("engine", "noise of scale", "strength", "where", "true", "before", "after"), rows)
