"""Safety: structure in what was taken, patches that stop agreeing, gain, idempotence, turned images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.base import Floats, Unit
from training.errors import DataError
from training.evaluate import hallucination, robustness
from training.evaluate.conventions import SOFT, Window, volume_window
from training.report.physics_bench import Subject, fixed, table
from training.report.physics_noise import Run

LEAST_STRUCTURE = 0.02
"""Of a patch in the soft-tissue window (0 to 1): in flat patches only noise can agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """One engine on one drawn anatomy.

    Attributes
    ----------
    signed, energy
        Residual-structure index against the truth, mean over slices. 0: noise was taken.
    flagged_before, flagged_after, n_patches
        sFRC against the truth: patches that stop agreeing below the limit that 5 % of the input's patches miss.
    crossing_before, crossing_after
        Mean frequency at which patches stop agreeing, cycles per mm.
    largest_region_change
        Largest |mean change| of any 32 mm region, in HU (law G3 of the engines).
    largest_body_change
        The same of what of a region lies in the body, where that is half of it or more.
    """

    engine: str
    ground: str
    kernel: str
    sigma: float
    strength: float
    signed: float
    energy: float
    flagged_before: int
    flagged_after: int
    n_patches: int
    crossing_before: float
    crossing_after: float
    largest_region_change: float
    largest_body_change: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What an engine does to small changes, to its own output, and to turned images (RMS, in HU or units).

    ``linear`` is the largest difference between a run at strength 1.0 and what the run at default strength says of it.
    """

    engine: str
    strength: float
    gain_largest: float
    gain_last: float
    idempotence_ratio: float
    turned: dict[str, float]
    first_change: float
    linear: float


def structure(subject: Subject, run: Run, unit: Unit = "HU") -> list[Structure]:
    """Measure one case at default strength and at 1.0; MR is windowed from 0 to the truth's maximum."""
    before = run.case.noisy[0]
    window = SOFT if unit == "HU" else volume_window(run.case.truth)
    return [
        _structure(subject, run, window, strength, before, after)
        for strength, after in ((subject.strength, run.first.default), (1.0, run.first.full))
    ]


def _structure(
    subject: Subject, run: Run, window: Window, strength: float, before: Floats, after: Floats
) -> Structure:
    case = run.case
    indices = [
        hallucination.residual_structure(
            before[z], after[z], case.mask[z], structure=case.truth[z], strength=strength
        )
        for z in range(len(before))
        if case.mask[z].any()
    ]
    scans = []
    for image in (before, after):
        crossings: list[float] = []
        for z in range(len(image)):
            try:
                one = hallucination.scan(
                    window.apply(image[z]),
                    window.apply(case.truth[z]),
                    case.spacing_mm[1],
                    mask=case.mask[z],
                    size=64,
                    least_structure=LEAST_STRUCTURE,
                )
            except DataError:
                continue
            crossings += list(one.crossings)
        scans.append(np.asarray(crossings))
    limit = float(np.quantile(scans[0], 0.05, method="lower")) if scans[0].size else float("nan")
    every, body = (robustness.region_changes(before, after, case.spacing_mm, m) for m in (None, case.mask))
    return Structure(
        engine=subject.name,
        ground=case.ground,
        kernel=case.kernel,
        sigma=case.sigma,
        strength=strength,
        signed=float(np.mean([i.signed for i in indices])),
        energy=float(np.mean([i.energy for i in indices])),
        flagged_before=int((scans[0] < limit).sum()),
        flagged_after=int((scans[1] < limit).sum()),
        n_patches=int(scans[0].size),
        crossing_before=float(scans[0].mean()) if scans[0].size else float("nan"),
        crossing_after=float(scans[1].mean()) if scans[1].size else float("nan"),
        largest_region_change=float(np.abs(every).max()),
        largest_body_change=float(np.abs(body).max()),
    )


def behaviour(
    subject: Subject, noisy: Floats, spacing_mm: tuple[float, float, float], sigma: float
) -> Behaviour:
    """Measure gain (8 steps), idempotence and turned images on the middle 192 pixels of a stack.

    Parameters
    ----------
    sigma
        Of the noise, in the stack's unit; small changes are a tenth of it.
    """
    side = min(192, *noisy.shape[1:])
    y, x = ((n - side) // 2 for n in noisy.shape[1:])
    image = np.ascontiguousarray(noisy[:, y : y + side, x : x + side])
    engine = fixed(subject, noisy, spacing_mm, subject.strength)
    whole = fixed(subject, noisy, spacing_mm, 1.0)
    gain = robustness.local_gain(engine, image, size=0.1 * sigma, steps=6)
    again = robustness.idempotence(engine, image)
    turned = robustness.metamorphic(engine, image, margin=8)
    once = engine(image)
    derived = image + (once - image) / np.float32(subject.strength)
    return Behaviour(
        engine=subject.name,
        strength=subject.strength,
        gain_largest=gain.largest,
        gain_last=gain.last,
        idempotence_ratio=again.ratio,
        turned={name: change.rms for name, change in turned.items()},
        first_change=again.first.rms,
        linear=float(np.abs(whole(image) - derived).max()),
    )


def text(found: Sequence[Structure], unit: str = "HU") -> str:
    """Write structure figures."""
    rows = [
        (
            s.engine,
            s.ground,
            s.kernel,
            f"{s.sigma:.0f}",
            s.strength,
            s.signed,
            s.energy,
            f"{s.flagged_before} / {s.flagged_after} of {s.n_patches}",
            s.crossing_before,
            s.crossing_after,
            s.largest_region_change,
            s.largest_body_change,
        )
        for s in found
    ]
    head = ("engine", "ground", "kernel", f"noise {unit}", "strength", "structure index", "at edges")
    more = (
        "sFRC flagged before / after",
        "agrees up to, before",
        "after (per mm)",
        f"largest mean change of a region, {unit}",
        "of its body part",
    )
    return table((*head, *more), rows)


def text_behaviour(found: Sequence[Behaviour], unit: str) -> str:
    """Write what engines do to changes."""
    turns = list(found[0].turned) if found else []
    rows = [
        (
            b.engine,
            b.gain_largest,
            b.idempotence_ratio,
            b.first_change,
            *(b.turned[t] for t in turns),
            b.linear,
        )
        for b in found
    ]
    head = ("engine", "largest local gain", "second pass over first", f"RMS change {unit}")
    return table((*head, *(f"{t}: RMS {unit}" for t in turns), f"strength law, largest {unit}"), rows)
