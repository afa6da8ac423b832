"""From a recipe to batches: opens shards, leaves out what is held out, builds the samplers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from training.data import patches, shards
from training.data.patches import Batch, Draw, Sampler
from training.data.shards import LARGEST, Shard
from training.errors import DataError, SplitError
from training.recipe import Recipe

VALIDATION_SEED = 90210
VALIDATION_LEVELS = 3


def check(recipe: Recipe, found: Sequence[Shard], part: str) -> None:
    """Refuse shards of another unit, and patients that the recipe's split does not vouch for (training/data/real.py).

    Material without patients has no split and is free. What was generated from patients has theirs.

    Raises
    ------
    SplitError
        A shard is of another split, or of another part of it.
    DataError
        The recipe does not tell under which terms a patient's shard is, or works in another unit.
    """
    for shard in found:
        _in_unit(recipe, shard)
        split, of = str(shard.facts.get("split", "")), str(shard.facts.get("part", part))
        if split and split != recipe.data.split:
            raise SplitError(
                f"shard {shard.name} is of another split than the recipe {recipe.name}",
                hint=f"if it is meant to be: `split: {split}` under data",
            )
        if of != part:
            raise SplitError(f"shard {shard.name} is of a {of} patient and was given for {part}")
        terms = str(shard.facts.get("licence", ""))
        if split and terms not in recipe.data.licence:
            raise DataError(
                f"the terms of shard {shard.name} ({terms}) are not told by the recipe {recipe.name}",
                hint="add them to `licence` under data: they go into the card of what is exported",
            )


def _in_unit(recipe: Recipe, shard: Shard) -> None:
    """Refuse HU for a network of the series scale, and the other way round: it would learn, and learn nonsense."""
    low, high = shard.offset, shard.offset + shard.scale * LARGEST
    strange = low < -100.0 if recipe.data.unit == "arbitrary" else low >= 0.0 and high < 20.0
    if strange:
        raise DataError(
            f"shard {shard.name} holds {low:g} to {high:g}, the recipe {recipe.name} is for {recipe.data.unit}",
            hint="recipes for CT take shards of CT, those for MR shards of MR",
        )


def levels(recipe: Recipe) -> tuple[float, ...]:
    """Noise levels of a validation, in the recipe's unit."""
    low, high = recipe.data.sigma
    return tuple(
        float(v) for v in np.exp(np.linspace(np.log(low), np.log(high), VALIDATION_LEVELS + 2))[1:-1]
    )


def opened(
    root: Path, folders: Sequence[str], held_out: Sequence[str] = (), *, only: bool = False
) -> tuple[Shard, ...]:
    """Open shards of several folders, without the kinds that are held out (or, with ``only``, just these)."""
    found = [s for name in folders for s in shards.read(root / name)]
    kept = [s for s in found if (str(s.facts.get("kind", "")) in held_out) == only] if held_out else found
    if not kept:
        raise DataError(f"no shard is left of {', '.join(folders)}", hint="see data.held_out of the recipe")
    return tuple(kept)


def _draw(recipe: Recipe, sigma: tuple[float, float] | None = None, told: float | None = None) -> Draw:
    low, high = recipe.data.sigma
    return Draw(
        size=recipe.data.patch,
        sigma=(low, high) if sigma is None else sigma,
        told=recipe.data.told if told is None else told,
        alone=recipe.data.alone,
        lesions=recipe.data.lesions if told is None else 0.0,
        at_lesions=recipe.data.at_lesions,
        twins=recipe.data.twins if recipe.loss.kept else 0.0,
        large=recipe.data.large,
        sharp=recipe.data.sharp,
    )


def _sampler(recipe: Recipe, truth: Sequence[Shard], noise: Sequence[Shard], draw: Draw) -> Sampler:
    if recipe.data.task == "detail":
        return patches.detail(truth, draw, unit=recipe.data.unit)
    if recipe.data.unit == "arbitrary":
        return patches.mr(truth, draw)
    plain = patches.ct(truth, draw)
    known = {s.name for s in truth}
    usable = [n for n in noise if n.facts.get("truth") in known]
    if not usable or recipe.data.projected == 0:
        return plain
    share = recipe.data.projected
    return patches.mixed([(1 - share, plain), (share, patches.projected(truth, usable, draw))])


def training(
    recipe: Recipe, root: Path, *, first: int = 0, stride: int = 1, offset: int = 0
) -> Iterator[Batch]:
    """Endless batches from step ``first``; ``stride`` and ``offset`` keep the ranks of a group apart."""
    truth = opened(root, recipe.data.truth, recipe.data.held_out)
    check(recipe, truth, "train")
    noise = [s for name in recipe.data.noise for s in shards.read(root / name)]
    sample = _sampler(recipe, truth, noise, _draw(recipe))
    seed = recipe.seed * stride + offset
    return patches.batches(sample, recipe.optim.batch, seed, first)


def validation(
    recipe: Recipe, root: Path, n: int = 8, *, held_out: bool = False
) -> list[tuple[float, Batch]]:
    """Fixed batches at a few noise levels: (sigma in the recipe's unit, batch of ``n`` patches).

    With ``held_out`` they show just the kinds that the training never saw.
    """
    left = recipe.data.held_out
    truth = opened(root, recipe.data.validation, left if held_out else (), only=held_out)
    check(recipe, truth, "validation")
    out = []
    for i, level in enumerate(levels(recipe)):
        draw = _draw(recipe, (level, level), 0.0)
        sample = _sampler(recipe, truth, (), draw)
        rng = np.random.default_rng([VALIDATION_SEED, i])
        out.append((level, patches.batch([sample(rng) for _ in range(n)])))
    return out
