"""How well the noise estimate finds noise that is known: ``python -m engines noise`` prints this table.

Every phantom of engines/classical/phantoms.py, over kernels (CT: fc of the spectrum; MR: zero filling, the
background masked or not) and doses (standard deviation of the noise). The truth is the median of what was
added, over the body. Seeded: the same table every time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engines import noise
from engines.base import Unit
from engines.classical import phantoms
from engines.classical.phantoms import Phantom

WITHIN = 0.25
"""The law: estimate over truth lies within 1 +- this."""

ANATOMY = (("water", 256), ("abdomen", 256), ("head", 256), ("chest", 512))
"""The chest of 256 pixels has no flat place that a scanner's pixels would show."""
CUTOFFS = (0.12, 0.2, 0.28, 0.35, 0.0)
DOSES_HU = (5.0, 15.0, 30.0, 60.0)
FILLINGS = (1.0, 1.5, 2.0)
DOSES_MR = (0.02, 0.04, 0.08)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One phantom: the noise that was added and the noise that was found, in its unit."""

    anatomy: str
    kernel: str
    dose: str
    true: float
    found: float
    frequency: float

    @property
    def ratio(self) -> float:
        return self.found / self.true


def ct(seed: int, anatomy: Sequence[tuple[str, int]] = ()) -> Iterator[Known]:
    """The CT phantoms, anatomy by anatomy; none named means all."""
    for kind, size in anatomy or ANATOMY:
        for cutoff in CUTOFFS:
            for sigma in DOSES_HU:
                made = phantoms.ct(seed, kind=kind, shape=(1, size, size), sigma=sigma, cutoff=cutoff)
                kernel = f"fc {cutoff:g}" if cutoff else "white"
                yield _known(made, "HU", -200.0, kind, kernel, f"{sigma:g} HU")


def mr(seed: int) -> Iterator[Known]:
    """The MR phantoms: a head, whole and with its background masked."""
    for masked in (False, True):
        for filling in FILLINGS:
            for sigma in DOSES_MR:
                made = phantoms.mr(seed, shape=(1, 384, 384), sigma=sigma, zero_fill=filling, masked=masked)
                name = "MR head, masked" if masked else "MR head"
                yield _known(made, "arbitrary", 200.0, name, f"filled x{filling:g}", f"{sigma:g} of white")


def _known(made: Phantom, unit: Unit, above: float, anatomy: str, kernel: str, dose: str) -> Known:
    found = noise.estimate(made.noisy[0], np.ones(made.noisy.shape[1:], np.bool_), unit=unit)
    true = float(np.median(made.sigma[0][made.truth[0] > above]))
    return Known(
        anatomy=anatomy,
        kernel=kernel,
        dose=dose,
        true=true,
        found=found.sigma,
        frequency=found.frequency,
    )


def table(rows: Sequence[Known]) -> str:
    """Estimate over truth as text: a line for each anatomy and kernel, a column for each dose."""
    doses = list(dict.fromkeys(r.dose for r in rows))
    lines = [f"{'estimate / truth':18} {'kernel':12}" + "".join(f"{d:>14}" for d in doses)]
    for anatomy, kernel in dict.fromkeys((r.anatomy, r.kernel) for r in rows):
        cells = {r.dose: r.ratio for r in rows if (r.anatomy, r.kernel) == (anatomy, kernel)}
        lines.append(f"{anatomy:18} {kernel:12}" + "".join(f"{cells[d]:14.2f}" for d in doses))
    return "\n".join(lines)
