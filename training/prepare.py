"""``python -m training shards``: the synthetic material of the shipped recipes, made from seeds.

Every stack depends on the seed and its own number alone: a run that was stopped goes on, and two runs with the same
number of stacks make the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data import shards
from training.data.shards import Writer
from training.errors import DataError
from training.simulate import anatomy

CT_SPAN = (-1024.0, 3071.0)
NOISE_HU = 25.0
"""Noise of the shards that went through projections; a training scales it."""

MR_SPAN = (0.0, 4.0)
ABSTRACT_SHARE = 0.3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to make.

    Attributes
    ----------
    folder
        Of the shards.
    n
        How many.
    seed
        Trainings and validations differ in it.
    """

    folder: Path
    n: int
    seed: int


def ct_truth(wanted: Wanted, say: Say, *, calm: bool = False) -> None:
    """Synthetic CT without noise (training.simulate.anatomy).

    ``calm`` draws the same anatomy with weaker textures, each stack's by a factor of its own: what has 3 to 17 HU of
    it everywhere teaches a network to keep noise. Names are the same, so noise that went through the projections of
    the one fits the other (it depends on line integrals, in which textures cancel).
    """
    writer = Writer(wanted.folder)
    for i in range(wanted.n):
        name = f"ct-{wanted.seed}-{i:05d}"
        if name in writer.names:
            continue
        texture = _calm(np.random.default_rng([wanted.seed, 4, i])) if calm else 1.0
        made = anatomy.draw(np.random.default_rng([wanted.seed, i]), texture=texture)
        writer.add(name, made.values, made.spacing_mm, span=CT_SPAN, kind=made.kind, texture=texture)
        say(name)


def _calm(rng: np.random.Generator) -> float:
    """A share of texture: next to none in four of ten stacks, anything up to all of it in the others."""
    return float(rng.uniform(0, 0.15) if rng.random() < 0.4 else np.exp(rng.uniform(np.log(0.15), 0.0)))


def ct_noise(wanted: Wanted, truth: Path, say: Say) -> None:
    """Noise that went through projections of the first ``n`` truths, kernels from very soft to very sharp."""
    from training.simulate.dose import Kernel, noise_stack

    writer = Writer(wanted.folder)
    for i, shard in enumerate(shards.read(truth)[: wanted.n]):
        name = f"noise-{wanted.seed}-{i:05d}"
        if name in writer.names:
            continue
        rng = np.random.default_rng([wanted.seed, 2, i])
        values = shard.crop(slice(None), slice(None), slice(None))
        made = noise_stack(
            values,
            shard.spacing_mm[1],
            rng,
            kernel=Kernel(
                fc=float(np.exp(rng.uniform(np.log(0.12), np.log(0.5)))), order=float(rng.uniform(1.5, 3))
            ),
            target_sigma_hu=NOISE_HU,
            z_correlation=float(rng.choice([0.0, 0.0, rng.uniform(0, 0.8)])),
        )
        span = 8 * NOISE_HU
        writer.add(name, made, shard.spacing_mm, span=(-span, span), truth=shard.name, sigma=NOISE_HU)
        say(name)


def mr_truth(wanted: Wanted, labels: Sequence[Path], say: Say) -> None:
    """Brains painted from label maps, and abstract stacks for everything that is no brain."""
    from training.simulate import heads
    from training.simulate.abstract import phantom

    if not labels:
        raise DataError("no label map was given", hint="NIfTI files of whole-head labels: --labels FOLDER")
    writer = Writer(wanted.folder)
    maps = [heads.read_labels(path) for path in labels]
    for i in range(wanted.n):
        name = f"mr-{wanted.seed}-{i:05d}"
        if name in writer.names:
            continue
        rng = np.random.default_rng([wanted.seed, 3, i])
        abstract = bool(rng.random() < ABSTRACT_SHARE)
        matrix = int(rng.choice([224, 256, 288, 320, 384]))
        if abstract:
            made = phantom(rng, matrix=matrix)
        else:
            which = int(rng.integers(len(maps)))
            made = heads.paint(*maps[which], rng, matrix=matrix)
        kind = "abstract" if abstract else made.contrast.split()[0]
        writer.add(name, made.values, made.spacing_mm, span=MR_SPAN, kind=kind, contrast=made.contrast)
        say(name)


SEEDS: Mapping[str, int] = {"train": 20261128, "validation": 7}
