"""Tasks: can low-contrast discs be detected, do small lesions keep their contrast, are there false ones.

Discs are those of the MITA low-contrast phantom, read by a channelized Hotelling observer. Lesions are spheres that are
put in before the noise; the same noise without them goes through the engine too, so that noise cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from engines.base import Floats
from training.evaluate import lesions, observer
from training.evaluate.conventions import Mask
from training.report.physics_bench import (
    CT_SPACING,
    SEED,
    Passed,
    Subject,
    drawn,
    passed,
    projected,
    table,
    textured,
)

GROUNDS = {"uniform": 0.0, "texture": 4.0}
"""Standard deviation of the texture under the discs, in HU."""
LEVEL_HU = 50.0
ROI, GAP = 40, 8
SIGMA_HU = 25.0
N_PRESENT, N_ABSENT = 3, 6
"""Slices, each with a hundred regions."""

LESION_SPACING = (2.0, 0.7, 0.7)
BLOB_RADII = (2.0, 4.0, 7.0)
BLOB_THRESHOLD = 3.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One disc of one engine; AUC and d' with 95 % intervals, ``change`` of the AUC over the same resamples."""

    engine: str
    ground: str
    contrast: float
    diameter_mm: float
    strength: float
    auc_before: tuple[float, float, float]
    auc_after: tuple[float, float, float]
    change: tuple[float, float, float]
    d_before: float
    d_after: float
    n_present: int
    n_absent: int


def _noisy(n: int, side: int, ground: float, seed: int, quick: bool) -> tuple[Floats, Floats]:
    """Truth without discs and its noise, of a low dose."""
    truth = textured((n, side, side), LEVEL_HU, ground, seed=seed)
    if ground:
        # Another texture in every slice: else the observer learns it.
        truth = np.concatenate([textured((1, side, side), LEVEL_HU, ground, seed=seed + i) for i in range(n)])
    if quick:
        return truth, drawn((n, side, side), kernel="standard", sigma=SIGMA_HU, seed=seed)
    return truth, projected(truth, CT_SPACING, kernel="standard", sigma=SIGMA_HU, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Noisy slabs without discs (``absent``), with each disc (``present``), and where regions lie."""

    ground: str
    absent: Floats
    present: dict[tuple[float, float], Floats]
    places: tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]]


def bench(ground: str, quick: bool) -> Bench:
    """Make the slabs of one ground."""
    side = 192 if quick else 512
    n, m = (2, 2) if quick else (N_PRESENT, N_ABSENT)
    spread = GROUNDS[ground]
    truth, noise = _noisy(n, side, spread, 7000, quick)
    empty, other = _noisy(m, side, spread, 7100, quick)
    places = observer.corners((n, side, side), ROI, gap=GAP)
    present = {}
    for contrast, diameter in observer.DISKS[2:] if quick else observer.DISKS:
        signal = observer.disk(ROI, contrast, diameter, CT_SPACING[1], blur_mm=0.9 * CT_SPACING[1])
        present[contrast, diameter] = observer.paste(truth, places, signal) + noise
    return Bench(
        ground=ground,
        absent=empty + other,
        present=present,
        places=(places, observer.corners((m, side, side), ROI, gap=GAP)),
    )


def detect(subject: Subject, made: Bench, *, n_bootstrap: int = 300) -> list[Seen]:
    """Read all discs before and after, at default strength and at 1.0."""
    with_places, without_places = made.places
    absent = _alone(subject, made.absent)
    a0 = observer.cut(made.absent, without_places, ROI)
    out = []
    for (contrast, diameter), given in made.present.items():
        present = _alone(subject, given)
        p0 = observer.cut(given, with_places, ROI)
        channels = observer.laguerre_gauss(ROI, diameter / CT_SPACING[1])
        before = observer.detect(p0, a0, channels, n_bootstrap=n_bootstrap)
        for strength, p, a in (
            (subject.strength, present.default, absent.default),
            (1.0, present.full, absent.full),
        ):
            p1, a1 = observer.cut(p, with_places, ROI), observer.cut(a, without_places, ROI)
            after = observer.detect(p1, a1, channels, n_bootstrap=n_bootstrap)
            change = observer.auc_change((p0, a0), (p1, a1), channels, n_bootstrap=n_bootstrap)
            out.append(
                Seen(
                    engine=subject.name,
                    ground=made.ground,
                    contrast=contrast,
                    diameter_mm=diameter,
                    strength=strength,
                    auc_before=(before.auc.mean, before.auc.low, before.auc.high),
                    auc_after=(after.auc.mean, after.auc.low, after.auc.high),
                    change=(change.mean, change.low, change.high),
                    d_before=before.d_prime.mean,
                    d_after=after.d_prime.mean,
                    n_present=before.n_present,
                    n_absent=before.n_absent,
                )
            )
    return out


def _alone(subject: Subject, values: Floats) -> Passed:
    """Each slice is another realisation with the same discs: neighbours in the stack are true neighbours."""
    return passed(subject, values, CT_SPACING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Contrast of lesions of one size and contrast, after over before, pooled over ``n`` of them."""

    engine: str
    diameter_mm: float
    contrast: float
    cnr: float
    strength: float
    retention: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spurious:
    """Blobs that a matched filter takes for lesions where there is none."""

    engine: str
    radius_pixels: float
    strength: float
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A slab without noise (MR: its mean), with noise, and with lesions and the same noise."""

    truth: Floats
    plain: Floats
    given: Floats
    placed: tuple[lesions.Lesion, ...]
    spacing_mm: tuple[float, float, float]
    sigma: float


def layout(
    side: int, step: int, kinds: Sequence[tuple[float, float]], seed: int
) -> tuple[lesions.Lesion, ...]:
    """Place lesions of (radius in mm, contrast) on a grid, in random order, in the middle of five slices."""
    along = range(step // 2, side - step // 2 + 1, step)
    at = [(float(y), float(x)) for y in along for x in along]
    order = np.random.default_rng([SEED, 75, seed]).permutation(len(at))
    chosen = [kinds[(k + seed * len(at)) % len(kinds)] for k in range(len(at))]
    return tuple(
        lesions.Lesion(centre=(2.0, *at[int(p)]), radius_mm=radius, contrast=contrast)
        for p, (radius, contrast) in zip(order, chosen, strict=True)
    )


def stacks(quick: bool) -> list[Stack]:
    """Put every size with every contrast into CT slabs with texture, at other places each time."""
    side, step, n_stacks = (192, 48, 1) if quick else (512, 56, 4)
    kinds = list(product(lesions.RADII_MM, lesions.CONTRASTS_HU))
    if quick:
        kinds = [k for k in kinds if k[0] in (1.5, 3.5) and abs(k[1]) in (20.0, 100.0)]
    out = []
    for i in range(n_stacks):
        placed = layout(side, step, kinds, i)
        truth = textured((5, side, side), LEVEL_HU, GROUNDS["texture"], seed=7510 + i)
        if quick:
            noise = drawn((5, side, side), kernel="standard", sigma=SIGMA_HU, seed=7520 + i)
        else:
            noise = projected(truth, LESION_SPACING, kernel="standard", sigma=SIGMA_HU, seed=7520 + i)
        out.append(
            Stack(
                truth=truth,
                plain=truth + noise,
                given=lesions.insert(truth, placed, LESION_SPACING) + noise,
                placed=placed,
                spacing_mm=LESION_SPACING,
                sigma=SIGMA_HU,
            )
        )
    return out


def keep(subject: Subject, made: Sequence[Stack]) -> tuple[list[Kept], list[Spurious]]:
    """Measure retention of lesions and count false ones, at default strength and at 1.0."""
    pairs: dict[tuple[float, float, float], list[tuple[float, float]]] = {}
    blobs: dict[tuple[float, float], list[tuple[int, int]]] = {}
    for one in made:
        out, out_plain = (passed(subject, v, one.spacing_mm) for v in (one.given, one.plain))
        mask: Mask = np.ones(one.plain.shape, np.bool_)
        for strength, after, after_plain in (
            (subject.strength, out.default, out_plain.default),
            (1.0, out.full, out_plain.full),
        ):
            _retained(pairs, strength, one, (after, after_plain))
            for radius in BLOB_RADII:
                b = lesions.false_blobs(
                    one.plain - one.truth,
                    after_plain - one.truth,
                    mask,
                    radius=radius,
                    threshold=BLOB_THRESHOLD,
                )
                blobs.setdefault((strength, radius), []).append((b.before, b.after))
    sigma = made[0].sigma
    kept = [
        Kept(
            engine=subject.name,
            diameter_mm=2 * radius,
            contrast=contrast,
            cnr=abs(contrast) / sigma,
            strength=strength,
            retention=lesions.retention_over(v),
            n=len(v),
        )
        for (strength, radius, contrast), v in pairs.items()
    ]
    counted = [
        Spurious(
            engine=subject.name,
            radius_pixels=radius,
            strength=strength,
            before=sum(b for b, _ in v),
            after=sum(a for _, a in v),
        )
        for (strength, radius), v in blobs.items()
    ]
    return kept, counted


def _retained(
    pairs: dict[tuple[float, float, float], list[tuple[float, float]]],
    strength: float,
    made: Stack,
    after: tuple[Floats, Floats],
) -> None:
    """Add (contrast before, contrast after) of every lesion of a stack; looked at in a box around each."""
    reach = int(np.ceil(10.0 / made.spacing_mm[1])) + 4
    for one in made.placed:
        _, y, x = (int(v) for v in one.centre)
        top, left = max(0, y - reach), max(0, x - reach)
        box = (slice(None), slice(top, y + reach), slice(left, x + reach))
        n_slices, rows, columns = made.given[box].shape
        here = replace(one, centre=(one.centre[0], y - top, x - left))
        shape = lesions.profile((n_slices, rows, columns), made.spacing_mm, here)
        was = lesions.contrast(made.given[box], shape, made.plain[box])
        now = lesions.contrast(after[0][box], shape, after[1][box])
        pairs.setdefault((strength, one.radius_mm, one.contrast), []).append((was, now))


def text_seen(found: Sequence[Seen]) -> str:
    """Write the observer's figures."""

    def interval(v: tuple[float, float, float]) -> str:
        return f"{v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]"

    def signed(v: tuple[float, float, float]) -> str:
        return f"{v[0]:+.3f} [{v[1]:+.3f}, {v[2]:+.3f}]"

    rows = [
        (
            s.engine,
            s.ground,
            f"{s.contrast:g} HU, {s.diameter_mm:g} mm",
            s.strength,
            interval(s.auc_before),
            interval(s.auc_after),
            signed(s.change),
            s.d_before,
            s.d_after,
        )
        for s in found
    ]
    return table(
        (
            "engine",
            "ground",
            "disc",
            "strength",
            "AUC before",
            "AUC after",
            "change",
            "d' before",
            "d' after",
        ),
        rows,
    )


def text_kept(kept: Sequence[Kept], strength: str = "default", unit: str = "HU") -> str:
    """Write retention as a matrix of contrast and size, for one strength."""
    out = []
    for engine in dict.fromkeys(k.engine for k in kept):
        mine = [k for k in kept if k.engine == engine]
        default = min(k.strength for k in mine)
        chosen = [k for k in mine if k.strength == (default if strength == "default" else 1.0)]
        sizes, contrasts = sorted({k.diameter_mm for k in chosen}), sorted({k.contrast for k in chosen})
        seen = {(k.diameter_mm, k.contrast): k.retention for k in chosen}
        rows = [(engine, f"{d:g} mm", *(seen.get((d, c), float("nan")) for c in contrasts)) for d in sizes]
        out.append(table(("engine", "diameter", *(f"{c:+.0f} {unit}" for c in contrasts)), rows))
    return "\n\n".join(out)


def text_spurious(found: Sequence[Spurious]) -> str:
    """Write false blobs."""
    rows = [(s.engine, f"{s.radius_pixels:g}", s.strength, s.before, s.after) for s in found]
    return table(("engine", "radius, pixels", "strength", "before", "after"), rows)
