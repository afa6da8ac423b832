"""What the physics sections share: engines at default strength, grounds to put things on, noise, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from engines.base import Floats, Modality, Params, Survey, Volume
from engines.catalog import Catalog
from engines.front import Enhancer

SEED = 20261201
"""No training and no validation uses it."""

LEARNED = ("cnn", "gan", "autoencoder")
TUNED = ("ct-nlm", "mr-nlm")
"""The best tuned classical filter of either modality stands beside the networks."""

CT_SPACING = (1.5, 0.7, 0.7)
MR_SPACING = (3.0, 0.9, 0.9)

KERNELS = {"soft": 0.15, "standard": 0.22, "sharp": 0.32}
"""fc of the spectrum f exp(-(f / fc)^2), in cycles per pixel."""

Function = Callable[[Floats], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine as it ships: all its guards, its default strength."""

    name: str
    engine: Enhancer
    strength: float

    @property
    def modality(self) -> Modality:
        return self.engine.card.modalities[0]

    @property
    def ct(self) -> bool:
        return self.modality == "CT"

    @property
    def tuned(self) -> bool:
        """Whether it is the classical filter that networks are compared with."""
        return self.name in TUNED


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What came out of an engine.

    Attributes
    ----------
    default, full
        float32 (z, y, x) at default strength and at 1.0. The second follows from the first: the output is
        linear in the strength (law G9), so x + (y - x) / strength is what a second run would give.
    skipped
        Slices that the engine left as they were.
    """

    default: Floats
    full: Floats
    skipped: int


def subjects(catalog: Catalog, modality: Modality, *, scale: int = 1, threads: int = 1) -> list[Subject]:
    """Load the learned engines of a modality and its tuned NLM, networks first."""
    found = []
    for name in catalog.names():
        card = catalog.card(name)
        fits = card.modalities == (modality,) or (modality in card.modalities and card.family != "identity")
        if not fits or card.scale != scale or not (card.family in LEARNED or name in TUNED):
            continue
        engine = catalog.load(name, threads=threads)
        found.append(Subject(name=name, engine=engine, strength=card.default_strength))
    return sorted(
        found, key=lambda s: (s.tuned, ("cnn", "gan", "autoencoder", "classical").index(s.engine.card.family))
    )


def volume(values: Floats, spacing_mm: tuple[float, float, float], modality: Modality) -> Volume:
    """Wrap a stack of true neighbours, nothing of it padding."""
    n = values.shape[0]
    return Volume(
        values=np.ascontiguousarray(values, np.float32),
        spacing_mm=spacing_mm,
        unit="HU" if modality == "CT" else "arbitrary",
        valid=np.ones(values.shape, np.bool_),
        contiguous=np.ones(n, np.bool_),
        step=np.ones(n, np.float32),
    )


def passed(subject: Subject, values: Floats, spacing_mm: tuple[float, float, float]) -> Passed:
    """Send a stack through the whole front door: survey, network, guards, checks."""
    given = volume(values, spacing_mm, subject.modality)
    out = subject.engine.enhance(given, Params(strength=subject.strength))
    made = out.volume.values
    full = given.values + (made - given.values) / np.float32(subject.strength)
    return Passed(default=made, full=full, skipped=int(out.figures["skipped"]))


def fixed(
    subject: Subject, values: Floats, spacing_mm: tuple[float, float, float], strength: float
) -> Function:
    """Make a function of the engine with the noise level that this stack has (training/evaluate/robustness.py)."""
    like = volume(values, spacing_mm, subject.modality)
    found: Survey = subject.engine.survey(like)

    def function(image: Floats) -> npt.NDArray[np.float32]:
        n = image.shape[0]
        at = Survey(
            sigma=found.sigma[:n], high=found.high[:n], share=found.share[:n], frequency=found.frequency[:n]
        )
        given = replace(volume(image, spacing_mm, subject.modality))
        return subject.engine.enhance(given, Params(strength=strength), at).volume.values

    return function


def textured(
    shape: tuple[int, int, int], level: float, spread: float, *, seed: int = SEED
) -> npt.NDArray[np.float32]:
    """Make a slab of tissue: a level and a random texture of 2 and 8 pixels that is the same in all slices."""
    rng = np.random.default_rng([seed, 71])
    out = np.zeros(shape[1:])
    for width, share in ((2.0, 0.5), (8.0, 0.87)):
        field = ndimage.gaussian_filter(rng.standard_normal(shape[1:]), width, mode="wrap")
        out += share * field / field.std()
    return np.broadcast_to(level + spread * out, shape).astype(np.float32)


def projected(
    truth: Floats, spacing_mm: tuple[float, float, float], *, kernel: str, sigma: float, seed: int
) -> npt.NDArray[np.float32]:
    """Make noise that went through projections; its standard deviation in the body is ``sigma`` HU."""
    from training.simulate.dose import Kernel, noise_stack

    made = noise_stack(
        truth,
        spacing_mm[1],
        np.random.default_rng([SEED, 72, seed]),
        kernel=Kernel(fc=KERNELS[kernel]),
        target_sigma_hu=sigma,
    )
    return np.asarray(made, np.float32)


def drawn(shape: tuple[int, int, int], *, kernel: str, sigma: float, seed: int) -> npt.NDArray[np.float32]:
    """Make noise in the image domain, the same everywhere."""
    from training.simulate.grain import Grain, noise

    rng = np.random.default_rng([SEED, 73, seed])
    return np.asarray(sigma * noise(Grain(cutoff=KERNELS[kernel]), shape, rng), np.float32)


def disc(side: int, centre: tuple[float, float], radius: float, blur: float) -> npt.NDArray[np.float64]:
    """Draw a disc of value 1 with a Gaussian edge (standard deviation ``blur`` pixels)."""
    from scipy.special import erf

    y, x = np.ogrid[:side, :side]
    r = np.hypot(y - centre[0], x - centre[1])
    return np.asarray(0.5 * (1 - erf((r - radius) / (np.sqrt(2) * blur))))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell(v) for v in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: object) -> str:
    """Write one figure for people."""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        if not np.isfinite(value):
            return "-"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"
    return str(value)
