"""Patches: what a network is shown, drawn anew for every step from shards.

An :class:`Example` is in the units of the networks (engines/learned.py): CT x = HU/1000 and c, r in 100 HU; MR all in
the series scale. The noise map is one number for a patch, as it is for a slice in the node, and it is told a little
wrong, as an estimate is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from training.data.shards import Shard
from training.errors import DataError
from training.simulate import blobs, grain, kspace
from training.simulate.band import Window, crisp, low_resolution, zero_filled

Floats = npt.NDArray[np.float32]

NEIGHBOUR_MM = 3.0
"""As in engines/base.py: slices further apart stand in for nobody."""

STRUCTURE = 0.018
"""What the node's estimate reads in a brain without noise, as a share of the scale: where noise is low it is told too
high, and the network must know that from the picture."""

BLUR = 0.5
"""Pixels of blur that are undone, at most, in truths that reach to the end of k-space."""

RIM = 8
"""Pixels that are cut off after k-space was cut, where the ringing of the patch's own border lies."""


_WINDOWS: tuple[Window, ...] = ("none", "tukey", "hann")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One patch.

    Attributes
    ----------
    x
        float32 (3, P, P).
    c
        The noise as it is told, in units of c.
    target
        float32 (1, P, P): the noise in units of c; super-resolution: the detail (1, 2P, 2P) in units of x.
    sigma
        The noise as it is, in units of c: what an error is measured against.
    weight
        float32 (1, P, P): how much an error counts where; None means 1 everywhere.
    twin
        What x would be without the lesions that were put in: float32 (3, P, P), or None.
    ruler
        float32 (1, P, P): weights of the square of the change that the lesions make to the residual (in units of c),
        see training.simulate.blobs. None without a twin.
    """

    x: Floats
    c: float
    target: Floats
    sigma: float
    weight: Floats | None = None
    twin: Floats | None = None
    ruler: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How patches are drawn.

    Attributes
    ----------
    size
        P, a multiple of 8.
    sigma
        Range of the noise (HU, or share of the series scale), drawn evenly in its logarithm.
    told
        Standard deviation of the logarithm of told over true noise.
    alone
        Share of patches without neighbours, beside those whose slices lie too far apart.
    lesions, at_lesions
        Share of patches that get small lesions (training.simulate.blobs), and how many times an error counts in
        the middle of one.
    twins, large
        Share of patches with a twin without the lesions; and of those with a large disc under the lesions.
    sharp
        MR: share of patches of half the matrix, whose picture reaches as far in k-space as white noise does, and rings
        at edges; others are soft, as if white noise had been acquired with a finer matrix than the picture.
    """

    size: int
    sigma: tuple[float, float]
    told: float = 0.15
    alone: float = 0.2
    lesions: float = 0.0
    at_lesions: float = 5.0
    twins: float = 0.0
    large: float = 0.0
    sharp: float = 0.0


Sampler = Callable[[np.random.Generator], Example]


def place(shard: Shard, size: int, rng: np.random.Generator) -> tuple[slice, slice, slice]:
    """A random place of three slices and ``size`` pixels."""
    z, y, x = shard.shape
    if z < 3 or y < size or x < size:
        raise DataError(f"shard {shard.name} is smaller than a patch of {size}")
    at = [int(rng.integers(n - k + 1)) for n, k in ((z, 3), (y, size), (x, size))]
    return slice(at[0], at[0] + 3), slice(at[1], at[1] + size), slice(at[2], at[2] + size)


def turned(arrays: Sequence[Floats], rng: np.random.Generator) -> list[Floats]:
    """Flip and turn all arrays (z, y, x) alike; slices may be reversed."""
    flips, turns = rng.integers(0, 2, 3), int(rng.integers(4))
    out = []
    for a in arrays:
        b = a[::-1] if flips[0] and a.shape[0] > 1 else a
        b = b[:, ::-1] if flips[1] else b
        b = b[:, :, ::-1] if flips[2] else b
        out.append(np.ascontiguousarray(np.rot90(b, turns, (1, 2))))
    return out


def _inner(values: Floats, rim: int = RIM) -> Floats:
    return np.ascontiguousarray(values[:, rim:-rim, rim:-rim])


def _log_uniform(rng: np.random.Generator, span: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(np.log(span[0]), np.log(span[1]))))


def _neighbours(shard: Shard, draw: Draw, rng: np.random.Generator) -> list[int]:
    """Which slices stand at three places: the middle one stands in for neighbours that are too far away, and sometimes
    for one or both all the same."""
    there = [0, 1, 2]
    if shard.spacing_mm[0] > NEIGHBOUR_MM or rng.random() < draw.alone:
        which = rng.choice(["both", "below", "above"], p=[0.8, 0.1, 0.1])
        if which in ("both", "below") or shard.spacing_mm[0] > NEIGHBOUR_MM:
            there[0] = 1
        if which in ("both", "above") or shard.spacing_mm[0] > NEIGHBOUR_MM:
            there[2] = 1
    return there


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lesions:
    """Lesions of a patch: with them, the weights of errors, and the ruler of a twin (None: no twin)."""

    clean: Floats
    weight: Floats | None = None
    ruler: Floats | None = None


def _with_lesions(
    clean: Floats, shard: Shard, sigma: float, draw: Draw, rng: np.random.Generator, inner: int
) -> _Lesions:
    """Put small lesions into a patch; weights and ruler are of its inner (1, P, P) pixels."""
    if not draw.lesions or rng.random() >= draw.lesions:
        return _Lesions(clean=clean)
    z, y, x = clean.shape
    step = shard.spacing_mm[0] / max(shard.spacing_mm[1], 1e-3)
    made = blobs.draw(rng, (z, y, x), sigma, step, large=draw.large)
    weight = 1 + np.float32(draw.at_lesions - 1) * made.seen[None]
    ruler = made.ruler[None] if draw.twins and rng.random() < draw.twins else None
    if inner:
        weight = _inner(weight, inner)
        ruler = None if ruler is None else _inner(ruler, inner)
    return _Lesions(clean=clean + made.added, weight=weight, ruler=ruler)


def _telling(
    rng: np.random.Generator, shards: Sequence[Shard], size: int, above: float, enough: float
) -> tuple[Shard, Floats]:
    """A patch that is not all air: of three tries the one that lies most ``above``, or the first with ``enough``."""
    best: tuple[float, Shard, Floats] | None = None
    for _ in range(3):
        shard = shards[int(rng.integers(len(shards)))]
        values = shard.crop(*place(shard, size, rng))
        seen = float((values[1, ::8, ::8] > above).mean())
        if best is None or seen > best[0]:
            best = (seen, shard, values)
        if seen > enough:
            break
    assert best is not None
    return best[1], best[2]


_body = partial(_telling, above=-950.0, enough=0.5)
_signal = partial(_telling, above=0.1, enough=0.4)


def ct(truth: Sequence[Shard], draw: Draw) -> Sampler:
    """Patches of synthetic or cleaned CT with noise of the image domain (training.simulate.grain)."""

    def sample(rng: np.random.Generator) -> Example:
        shard, clean = _body(rng, truth, draw.size)
        sigma = _log_uniform(rng, draw.sigma)
        added = sigma * grain.noise(grain.draw(rng), (3, draw.size, draw.size), rng)
        return _ct_example(shard, clean, added, sigma, draw, rng)

    return sample


def projected(truth: Sequence[Shard], noise: Sequence[Shard], draw: Draw) -> Sampler:
    """Patches whose noise went through projections (training.simulate.dose), made before and scaled here.

    ``noise`` shards are named as the truth they belong to, and tell their ``sigma`` in HU.
    """
    by_name = {shard.name: shard for shard in truth}
    pairs = [(by_name[str(n.facts["truth"])], n) for n in noise]

    def sample(rng: np.random.Generator) -> Example:
        best: tuple[float, Shard, Shard, tuple[slice, slice, slice]] | None = None
        for _ in range(3):
            shard, made = pairs[int(rng.integers(len(pairs)))]
            where = place(shard, draw.size, rng)
            seen = float((shard.crop(slice(1, 2), where[1], where[2])[0, ::8, ::8] > -950).mean())
            if best is None or seen > best[0]:
                best = (seen, shard, made, where)
        assert best is not None
        _, shard, made, where = best
        sigma = _log_uniform(rng, draw.sigma)
        added = made.crop(*where) * np.float32(sigma / float(made.facts["sigma"]))
        return _ct_example(shard, shard.crop(*where), added, sigma, draw, rng)

    return sample


def _ct_example(
    shard: Shard, clean: Floats, added: Floats, sigma: float, draw: Draw, rng: np.random.Generator
) -> Example:
    clean, added = turned([clean, added], rng)
    held = _with_lesions(clean, shard, sigma, draw, rng, 0)
    rounded = rng.random() < 0.7

    def measured(values: Floats) -> Floats:
        noisy = values + added
        above: Floats = np.maximum(np.rint(noisy) if rounded else noisy, np.float32(-1024.0))
        return above

    noisy = measured(held.clean)
    target = (noisy[1:2] - held.clean[1:2]) / np.float32(100)
    told = sigma * float(np.exp(rng.normal(0, draw.told)))
    there = _neighbours(shard, draw, rng)
    twin = None if held.ruler is None else measured(clean)[there] / np.float32(1000)
    ruler = None if held.ruler is None else held.ruler * np.float32(100**2)
    return Example(
        x=noisy[there] / np.float32(1000),
        c=told / 100,
        target=target,
        sigma=sigma / 100,
        weight=held.weight,
        twin=twin,
        ruler=ruler,
    )


def mr(truth: Sequence[Shard], draw: Draw) -> Sampler:
    """Patches of MR truths (scale 1), acquired with noise in k-space (training.simulate.kspace)."""

    def sample(rng: np.random.Generator) -> Example:
        factor = 2 if draw.sharp and rng.random() < draw.sharp else 1
        shard, clean = _signal(rng, truth, factor * (draw.size + 2 * RIM))
        (clean,) = turned([clean], rng)
        if factor > 1:
            clean = low_resolution(clean, factor, _WINDOWS[int(rng.choice(3, p=(0.7, 0.2, 0.1)))])
            clean = crisp(clean, float(rng.uniform(0, BLUR)))
            z, y, x = shard.spacing_mm
            shard = replace(shard, spacing_mm=(z, factor * y, factor * x))
        sigma = _log_uniform(rng, draw.sigma)
        held = _with_lesions(clean, shard, max(sigma, 0.01), draw, rng, RIM)
        how = kspace.draw(rng, sigma=(sigma, sigma))
        again = copy.deepcopy(rng)
        noisy, expected = (_inner(a) for a in kspace.acquire(np.maximum(held.clean, 0), how, rng))
        target = noisy[1:2] - expected[1:2]
        read = float(np.hypot(sigma, STRUCTURE * rng.uniform(0, 1.2)))
        told = read * float(np.exp(rng.normal(0, draw.told)))
        there = _neighbours(shard, draw, rng)
        twin = None
        if held.ruler is not None:
            twin = _inner(kspace.acquire(np.maximum(clean, 0), how, again)[0])[there]
        return Example(
            x=noisy[there],
            c=told,
            target=target,
            sigma=sigma,
            weight=held.weight,
            twin=twin,
            ruler=held.ruler,
        )

    return sample


def detail(truth: Sequence[Shard], draw: Draw, *, unit: str) -> Sampler:
    """Pairs for super-resolution: the middle of k-space of a truth, with noise, and the detail that is missing."""
    hu = unit == "HU"
    per_x, per_c = (1000.0, 100.0) if hu else (1.0, 1.0)

    def sample(rng: np.random.Generator) -> Example:
        find = _body if hu else _signal
        shard, high = find(rng, truth, 2 * (draw.size + 2 * RIM))
        (high,) = turned([high], rng)
        low = low_resolution(high, 2)
        sigma = _log_uniform(rng, draw.sigma)
        if hu:
            noisy = low + sigma * grain.noise(grain.draw(rng), (3, *low.shape[1:]), rng)
        else:
            how = kspace.Acquisition(sigma=sigma, phase=float(rng.uniform(0, 3)))
            noisy, _ = kspace.acquire(np.maximum(low, 0), how, rng)
        noisy = _inner(noisy)
        target = _inner(high[1:2] - zero_filled(low[1:2], 2), 2 * RIM)
        told = sigma * float(np.exp(rng.normal(0, draw.told)))
        x = np.asarray(noisy, np.float32)[_neighbours(shard, draw, rng)] / np.float32(per_x)
        return Example(x=x, c=told / per_c, target=target / np.float32(per_x), sigma=sigma / per_c)

    return sample


def mixed(parts: Sequence[tuple[float, Sampler]]) -> Sampler:
    """Draw from several samplers by their weights."""
    weights = np.array([w for w, _ in parts], np.float64)
    if not len(weights) or weights.min() < 0 or weights.sum() <= 0:
        raise DataError("the weights of the samplers are not positive")
    share = weights / weights.sum()

    def sample(rng: np.random.Generator) -> Example:
        return parts[int(rng.choice(len(parts), p=share))][1](rng)

    return sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples side by side: x (N, 3, P, P), c (N, 1, P, P), target and weight (N, 1, P', P'), sigma (N, 1, 1, 1).

    ``twin`` (K, 3, P, P) and ``ruler`` (K, 1, P, P) are of those K examples ``which`` (K) that have them.
    """

    x: Floats
    c: Floats
    target: Floats
    sigma: Floats
    weight: Floats
    twin: Floats
    ruler: Floats
    which: npt.NDArray[np.int64]


def batch(examples: Sequence[Example]) -> Batch:
    """Put examples together."""
    x = np.stack([e.x for e in examples]).astype(np.float32)
    told = np.array([e.c for e in examples], np.float32).reshape(-1, 1, 1, 1)
    twins = [
        (i, e.twin, e.ruler) for i, e in enumerate(examples) if e.twin is not None and e.ruler is not None
    ]
    side = x.shape[2:]
    return Batch(
        x=x,
        c=np.ascontiguousarray(np.broadcast_to(told, (len(x), 1, *x.shape[2:]))),
        target=np.stack([e.target for e in examples]).astype(np.float32),
        sigma=np.array([e.sigma for e in examples], np.float32).reshape(-1, 1, 1, 1),
        weight=np.stack([np.ones_like(e.target) if e.weight is None else e.weight for e in examples]),
        twin=np.array([t for _, t, _ in twins], np.float32).reshape(-1, 3, *side),
        ruler=np.array([r for _, _, r in twins], np.float32).reshape(-1, 1, *side),
        which=np.array([i for i, _, _ in twins], np.int64),
    )


def batches(sample: Sampler, size: int, seed: int, first: int = 0) -> Iterator[Batch]:
    """Endless batches; batch number n depends on the seed and n alone, so that training resumes where it was."""
    step = first
    while True:
        rng = np.random.default_rng([seed, step])
        yield batch([sample(rng) for _ in range(size)])
        step += 1


def kinds(shards: Sequence[Shard]) -> Mapping[str, int]:
    """How many shards there are of each kind."""
    out: dict[str, int] = {}
    for shard in shards:
        kind = str(shard.facts.get("kind", ""))
        out[kind] = out.get(kind, 0) + 1
    return out
