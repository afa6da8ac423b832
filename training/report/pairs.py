"""Pairs of real images of one object, told by the headers: one study, one place, another series.

Nothing in them is simulated, and neither image is a truth. What differs beside the noise is said of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from engines import noise
from engines.base import Floats, Mask
from training.evaluate.conventions import foreground_mask
from training.report.cases import Case, case, only
from training.report.subjects import Subject

SAME = 0.75
"""Local means of thin slices may differ by this share of the noise and still show the same."""
MEAN_OF = 7
"""Pixels, of a local mean."""
REPEAT = 0.05
"""Repeats differ by less than this share of the high intensity."""


def pairs(everything: Sequence[Subject]) -> Iterator[Case]:
    """Thin slices against the mean of those around them and against a thick slice; repeats against each other.

    Thin slices are compared where local means of all five slices are the same within the noise: at the edges of an
    object that changes along z, thick and thin show other things.
    """
    for thin in everything:
        stack = thin.unit == "HU" and 5 <= thin.volume.shape[0] < 20
        if stack and 0 < thin.volume.spacing_mm[0] <= 1.5 and bool(thin.volume.contiguous[:-1].all()):
            yield from _thick(thin, everything)
    for i, first in enumerate(everything):
        for second in everything[i + 1 :]:
            if _repeated(first, second):
                reference = second.volume.values
                mask = foreground_mask(reference) & first.volume.valid
                yield _pair(first, reference, mask, "the other acquisition, alone", f"{first.name}, repeated")


def _repeated(first: Subject, second: Subject) -> bool:
    """Whether two series hold one slice each, at one place, that differ by little more than noise."""
    if first.unit != "arbitrary" or len(first.positions) != 1 or not first.study:
        return False
    place = (first.study, first.positions, first.volume.shape, first.kind)
    if (
        place != (second.study, second.positions, second.volume.shape, second.kind)
        or first.series == second.series
    ):
        return False
    a, b = first.volume.values, second.volume.values
    inner = foreground_mask(a)
    return bool(inner.any()) and float(np.std((a - b)[inner])) < REPEAT * float(np.percentile(a, 99))


def _pair(subject: Subject, reference: Floats, mask: Mask, level: str, name: str) -> Case:
    return case(
        subject.volume,
        name=name,
        patient=subject.patient,
        kind=subject.kind,
        group="pair",
        reference=reference,
        mask=mask,
        grid=subject.grid,
        level=level,
    )


def alike(values: Floats, sigma: float) -> Mask:
    """Where five slices (z, y, x) show the same object: bool (y, x)."""
    local = np.stack([ndimage.uniform_filter(s, MEAN_OF) for s in values])
    there = local.mean(axis=0) > -900
    return np.asarray(there & (local.std(axis=0) < SAME * sigma))


def _thick(thin: Subject, everything: Sequence[Subject]) -> Iterator[Case]:
    volume = thin.volume
    z = volume.shape[0] // 2
    five = volume.values[z - 2 : z + 3]
    sigma = noise.estimate(volume.values[z], volume.valid[z], unit="HU").sigma
    if not sigma > 0:
        return
    mask = np.zeros(volume.shape, np.bool_)
    mask[z] = alike(five, sigma)
    if not mask.any():
        return
    references = [
        (five.mean(axis=0), "mean of five thin slices, itself among them"),
        (0.5 * (five[0] + five[4]), "mean of the two thin slices 2 away, that no network sees"),
    ]
    for other in everything:
        if other is thin or other.study != thin.study or other.volume.shape[1:] != volume.shape[1:]:
            continue
        near = [j for j, p in enumerate(other.positions) if abs(p - thin.positions[z]) < 0.1]
        if near and other.thickness_mm > thin.thickness_mm:
            told = f"one slice of {other.thickness_mm:g} mm, kernel {other.scan.domains.get('kernel', '')}"
            references.append((other.volume.values[near[0]], told))
    for values, level in references:
        reference = volume.values.copy()
        reference[z] = values
        yield _pair(thin, reference, only(mask, (z,)), level, thin.name)
