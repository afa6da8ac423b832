"""Whether a widened set helps: classical widening to compare with, and the same training with and without.

Both trainings do equal updates from the same seed on the same validation shards, which hold nothing that was
generated. The interval is over shards (a shard stands for a patient); that two seeds differ by more than that is the
rule with small networks, so each seed's difference is told too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import nn

from training import feed, generate
from training.data import patches, shards
from training.data.patches import Draw, Floats, Sampler
from training.data.shards import Shard, Writer
from training.errors import DataError
from training.evaluate import averaging
from training.fit import BEST, LAST, Fit, finished, gain
from training.generate import Generation
from training.prepare import CT_SPAN, MR_SPAN
from training.recipe import Recipe

Say = Callable[[str], None]

SEED = 314159
N_PATCHES = 4
"""Of each validation shard and noise level."""

BEND_PX = 3.0
"""Standard deviation of a classical warp."""


def warped(values: Floats, unit: str, rng: np.random.Generator) -> Floats:
    """A patch (z, y, x) bent smoothly, scaled by up to 15 %, and with its contrast changed by up to 15 %.

    All slices are bent alike. Contrast is changed about 40 HU and within 300 HU of it (CT), or as a power (MR).
    """
    _, rows, columns = values.shape
    y, x = np.meshgrid(np.arange(rows, dtype=np.float64), np.arange(columns, dtype=np.float64), indexing="ij")
    zoom = float(np.exp(rng.normal(0, 0.07)))
    middle = ((rows - 1) / 2, (columns - 1) / 2)
    bends = [gaussian_filter(rng.standard_normal((rows, columns)), 12, mode="reflect") for _ in range(2)]
    dy, dx = (BEND_PX * b / (b.std() + 1e-9) for b in bends)
    at = np.stack([middle[0] + (y - middle[0]) * zoom + dy, middle[1] + (x - middle[1]) * zoom + dx])
    bent = np.stack([map_coordinates(s, at, order=1, mode="reflect") for s in values]).astype(np.float32)
    strength = float(rng.uniform(-0.15, 0.15))
    if unit == "HU":
        from_middle = bent - 40.0
        return np.asarray(bent + strength * from_middle * np.exp(-((from_middle / 300.0) ** 2)), np.float32)
    return np.asarray(np.maximum(bent, 0) ** (1 + strength), np.float32)


def write_classical(recipe: Generation, data: Path, folder: Path, n: int) -> int:
    """Write ``n`` warped patches of the recipe's truths as shards, labelled ``synthetic: classical``."""
    part = recipe.data
    writer = Writer(folder)
    if writer.names and any(s.facts.get("synthetic") != "classical" for s in shards.read(folder)):
        raise DataError(f"{folder.name} holds other shards", hint="give another --out")
    span = CT_SPAN if part.unit == "HU" else MR_SPAN
    source = generate.source_of(recipe, data)
    n_new = 0
    for i in range(n):
        name = f"{recipe.name}-classical-{i:05d}"
        if name in writer.names:
            continue
        rng = np.random.default_rng([recipe.seed, 6, i])
        values, _, shard = source.one(rng)
        facts: dict[str, Any] = {"kind": str(shard.facts.get("kind", "")), "synthetic": "classical"}
        if part.split:
            facts |= {"split": part.split, "part": "train"}
        made = warped(values, part.unit, rng)
        writer.add(name, made, shard.spacing_mm, span=span, **facts, licence=part.licence, of=shard.name)
        n_new += 1
    return n_new


def some(folder: Path, n: int) -> list[Floats]:
    """The values of the first shards of a folder."""
    return [s.crop(slice(None), slice(None), slice(None)) for s in shards.read(folder)[:n]]


def _sampler(recipe: Recipe, shard: Shard, draw: Draw) -> Sampler:
    if recipe.data.task == "detail":
        return patches.detail([shard], draw, unit=recipe.data.unit)
    return patches.ct([shard], draw) if recipe.data.unit == "HU" else patches.mr([shard], draw)


@torch.no_grad()
def by_shard(network: nn.Module, recipe: Recipe, data: Path, n: int = N_PATCHES) -> dict[str, float]:
    """Gain in dB by validation shard: mean over ``n`` fixed patches at each of the validation's noise levels."""
    out: dict[str, float] = {}
    for i, shard in enumerate(feed.opened(data, recipe.data.validation)):
        gains = []
        for j, level in enumerate(feed.levels(recipe)):
            draw = Draw(size=recipe.data.patch, sigma=(level, level), told=0.0, alone=recipe.data.alone)
            rng = np.random.default_rng([SEED, i, j])
            sample = _sampler(recipe, shard, draw)
            b = patches.batch([sample(rng) for _ in range(n)])
            gains.append(gain(network, *(torch.from_numpy(a) for a in (b.x, b.c, b.target, b.sigma))))
        out[shard.name] = float(np.mean(gains))
    return out


def _trained(recipe: Recipe, data: Path, runs: Path, say: Say) -> nn.Module:
    """Train to the end, or take what was trained; judged is the last state, of both alike."""
    out = runs / recipe.name
    fit = Fit(recipe, data, out, runs)
    if not (fit.resume() and fit.share() >= 1):
        say(f"{recipe.name}: {recipe.optim.updates} updates")
        fit.run()
    (out / BEST).unlink(missing_ok=True)
    return finished(out / LAST, recipe)


def _one(recipe: Recipe, data: Path, added: Sequence[str], seed: int) -> Recipe:
    """The recipe of one training, named by all that it depends on: what was trained before is not trained again."""
    rows = b"".join((data / name / "index.json").read_bytes() for name in added)
    short = hashlib.sha256(recipe.digest.encode() + "".join(added).encode() + rows).hexdigest()[:12]
    told = recipe.model_dump(mode="json")
    told["data"]["truth"] = [*recipe.data.truth, *added]
    return Recipe.model_validate(told | {"name": f"widen-{short}-{seed}", "seed": seed, "engine": None})


def compare(
    recipe: Recipe,
    data: Path,
    runs: Path,
    generated: str,
    *,
    seeds: Sequence[int] = (1, 2),
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Train a recipe with and without the generated shards, and tell the difference on validation shards.

    Parameters
    ----------
    generated
        Name of the folder of generated shards under ``data``. Patches are drawn evenly over shards, so their share
        of what is shown is their share of all shards.
    seeds
        A pair of trainings each.

    Returns
    -------
    dict
        As JSON, also written to ``runs/widening/GENERATED.json``: ``gain_db`` with and without, ``difference_db``
        (second minus first) with its 95 % interval over shards and Wilcoxon's p, ``by_seed``, ``by_kind``,
        ``helped``: whether the interval lies above zero and no seed disagrees.

    Raises
    ------
    DataError
        The folder holds shards that were not generated, or validation holds generated ones.
    """
    made = shards.read(data / generated)
    how = {str(s.facts.get("synthetic", "")) for s in made}
    if "" in how:
        raise DataError(
            f"{generated} holds shards that were not generated", hint="see `python -m training generate`"
        )
    validation = feed.opened(data, recipe.data.validation)
    if any(s.facts.get("synthetic") for s in validation):
        raise DataError("validation shards were generated: they judge nothing")
    if len(validation) < 2:
        raise DataError(
            "one validation shard has no interval: it shows neither help nor harm", hint="add others"
        )
    found: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    for seed in seeds:
        for which, added in (("without", []), ("with", [generated])):
            one = _one(recipe, data, added, seed)
            found[which].append(by_shard(_trained(one, data, runs / "widening", say), recipe, data))
    means = {which: _mean(held) for which, held in found.items()}
    pair = averaging.paired(means["without"], means["with"])
    by_seed = [
        averaging.paired(a, b).difference.mean for a, b in zip(found["without"], found["with"], strict=True)
    ]
    kinds = {s.name: str(s.facts.get("kind", "")) for s in validation}
    truths = sum(len(shards.read(data / name)) for name in recipe.data.truth)
    figures: dict[str, Any] = {
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest,
        "generated": generated,
        "using": sorted(how),
        "checkpoint_sha256": sorted(
            {str(s.facts["checkpoint_sha256"]) for s in made if "checkpoint_sha256" in s.facts}
        ),
        "n_generated": len(made),
        "n_truth": truths,
        "updates": recipe.optim.updates,
        "seeds": list(seeds),
        "n_validation": len(validation),
        "gain_db": {which: asdict(averaging.estimate(held)) for which, held in means.items()},
        "difference_db": {**asdict(pair.difference), "p": pair.p_value},
        "by_seed": by_seed,
        "by_kind": _by_kind(means, kinds),
        "helped": bool(pair.difference.low > 0 and min(by_seed) > 0),
    }
    path = runs / "widening" / f"{generated}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def _mean(held: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([h[name] for h in held])) for name in held[0]}


def _by_kind(means: Mapping[str, Mapping[str, float]], kinds: Mapping[str, str]) -> dict[str, float]:
    out: dict[str, list[float]] = {}
    for name, kind in kinds.items():
        out.setdefault(kind, []).append(means["with"][name] - means["without"][name])
    return {kind: float(np.mean(held)) for kind, held in sorted(out.items())}
