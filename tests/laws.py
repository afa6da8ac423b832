"""The laws of engines, written once and run over every engine of the catalogue.

Each law takes an engine and a stack and asserts. `stack` makes seeded stacks that hold what goes wrong:
padding outside of a circle, a gap, odd sizes.

An engine of scale 2 returns twice the rows and columns. What it does is told from what it returns at strength
0, the interpolated slice (`ground`), and the laws speak of its pixels.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engines import noise
from engines.base import Engine, Floats, Params, Survey, Volume, join
from engines.classical import phantoms
from engines.runtime.network import Network
from node.dicom.pixels import PixelFormat, to_stored

PADDING = {"CT": -2000.0, "MR": 0.0}


def stack(
    modality: str,
    shape: tuple[int, int, int] = (5, 113, 97),
    *,
    padded: bool = True,
    seed: int = 3,
    sigma: float | None = None,
    kind: str = "chest",
) -> Volume:
    """A noisy stack with its field of view, slices 1 mm apart, contiguous."""
    made_of = (shape[0], max(shape[1], 24), max(shape[2], 24))
    if modality == "CT":
        made = phantoms.ct(seed, shape=made_of, kind=kind, sigma=25.0 if sigma is None else sigma)
    else:
        made = phantoms.mr(seed, shape=made_of, sigma=0.05 if sigma is None else sigma)
    values = np.ascontiguousarray(made.noisy[:, : shape[1], : shape[2]])
    valid = np.ones(shape, np.bool_)
    if padded:
        y, x = np.ogrid[: shape[1], : shape[2]]
        away = np.hypot(y - shape[1] / 2, x - shape[2] / 2) > 0.55 * max(shape[1:])
        valid[:, away] = False
        values[~valid] = PADDING[modality]
    return Volume(
        values=values,
        spacing_mm=(1.0, 0.8, 0.8),
        unit="HU" if modality == "CT" else "arbitrary",
        valid=valid,
        contiguous=np.ones(shape[0], np.bool_),
        step=np.ones(shape[0], np.float32),
    )


def uniform(modality: str, level: float, sigma: float, shape: tuple[int, int, int] = (2, 96, 96)) -> Volume:
    """Nothing but white noise around one level, not rounded."""
    noise_of = np.random.default_rng(11).standard_normal(shape)
    return replace(
        stack(modality, shape, padded=False),
        values=(level + sigma * noise_of).astype(np.float32),
        step=np.full(shape[0], 0.01, np.float32),
    )


def run(engine: Engine, volume: Volume, strength: float = 1.0, **options: object) -> Floats:
    return engine.enhance(volume, Params(strength=strength, options=options)).volume.values


def repeated(engine: Engine, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What lies at every pixel of the volume, at every pixel of the result."""
    n = engine.card.scale
    return values.repeat(n, axis=-2).repeat(n, axis=-1)


def ground(engine: Engine, volume: Volume) -> Floats:
    """What the engine's changes are changes of: the stored values, or these interpolated."""
    return volume.values if engine.card.scale == 1 else run(engine, volume, 0.0)


def cut(volume: Volume, first: int, last: int) -> Volume:
    where = slice(first, last)
    return replace(
        volume,
        values=volume.values[where],
        valid=volume.valid[where],
        contiguous=volume.contiguous[where],
        step=volume.step[where],
    )


def same(a: Floats, b: Floats) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def works(engine: Engine, volume: Volume) -> None:
    """The engine does something to this stack: the other laws are not kept by doing nothing."""
    out = engine.enhance(volume, Params(strength=1.0))
    assert out.figures["skipped"] == 0, out.notes
    if engine.card.family != "identity":
        assert out.figures["largest_change"] > 0
    if engine.card.family != "identity" and engine.card.scale == 1:
        assert out.figures["noise_after"] < 0.9 * out.figures["noise_before"]


def keeps_form(engine: Engine, volume: Volume) -> None:
    """Shape, spacing, unit, validity and gaps kept (or shape doubled, spacing halved); float32 and finite."""
    out = engine.enhance(volume, Params(strength=0.7))
    v = out.volume
    (z, y, x), (dz, dy, dx), n = volume.values.shape, volume.spacing_mm, engine.card.scale
    assert v.values.shape == (z, n * y, n * x)
    assert v.values.dtype == np.float32
    assert np.isfinite(v.values[v.valid]).all()
    assert (v.spacing_mm, v.unit) == ((dz, dy / n, dx / n), volume.unit)
    assert np.array_equal(v.valid, repeated(engine, volume.valid))
    assert np.array_equal(v.contiguous, volume.contiguous)
    assert np.array_equal(v.step, volume.step)
    assert out.card is engine.card
    assert out.runtime
    assert out.device


def leaves_its_input_alone(engine: Engine, volume: Volume) -> None:
    before = volume.values.copy()
    run(engine, volume)
    assert same(before, volume.values)


def is_repeatable(engine: Engine, other: Engine, volume: Volume) -> None:
    """Same input, same bytes: again, and from ``other``, the same engine with another number of threads."""
    first = run(engine, volume)
    assert same(first, run(engine, volume))
    assert same(first, run(other, volume))


def tiled_equals_whole(engine: Engine, volume: Volume, tile: int) -> None:
    assert same(run(engine, volume), run(engine, volume, tile=tile))


def slabs_equal_whole(engine: Engine, volume: Volume, size: int) -> None:
    """Slabs of any size, with the survey of the whole, give the bytes of one slab; so do their surveys."""
    n = volume.shape[0]
    edges = [(a, min(a + size, n)) for a in range(0, n, size)]
    whole: Survey = engine.survey(volume)
    joined = join([engine.survey(cut(volume, a, b)) for a, b in edges])
    for one, other in (
        (whole.sigma, joined.sigma),
        (whole.high, joined.high),
        (whole.share, joined.share),
        (whole.frequency, joined.frequency),
    ):
        assert same(one, other)
    parts, k = [], engine.card.neighbours
    for a, b in edges:
        low, high = max(0, a - k), min(n, b + k)
        part = engine.enhance(
            cut(volume, low, high),
            Params(strength=0.8),
            joined,
            first=low,
            keep=slice(a - low, b - low),
        )
        assert part.volume.shape[0] == b - a
        parts.append(part.volume.values)
    assert same(np.concatenate(parts), run(engine, volume, 0.8))


def strength_zero_gives_the_input(engine: Engine, volume: Volume) -> None:
    """To the bit (G1); of an interpolated slice, the samples that lie where the stored ones lie."""
    n = engine.card.scale
    out = run(engine, volume, 0.0)
    assert same(np.ascontiguousarray(out[:, ::n, ::n]), volume.values)
    invalid = ~repeated(engine, volume.valid)
    assert same(out[invalid], repeated(engine, volume.values)[invalid])


def stays_within_bound(engine: Engine, volume: Volume) -> None:
    """|out - in| <= strength * min(bound_sigmas * sigma, bound), sigma steadied over z; detail: bound alone."""
    survey = engine.survey(volume)
    sigma, scale = noise.steady(survey.sigma), noise.scale(survey, volume.unit)
    bound = np.minimum(engine.card.bound_sigmas * sigma, engine.card.bound * scale)
    if engine.card.scale != 1:
        bound = np.full_like(sigma, engine.card.bound * scale)
    before = ground(engine, volume)
    for strength in (0.3, 1.0):
        change = np.abs(run(engine, volume, strength) - before)
        slack = 1e-5 * bound + float(np.abs(volume.values).max()) * 2.0**-22
        assert (change.max(axis=(1, 2)) <= strength * bound + slack).all()


def keeps_means(engine: Engine, volume: Volume) -> None:
    """The mean of every 32 mm square stays within 1 HU (MR: 0.2 % of the series scale), at full strength."""
    scale = noise.scale(engine.survey(volume), volume.unit)
    tolerance = 1.0 if volume.unit == "HU" else 0.002 * scale
    side = engine.card.scale * round(32.0 / volume.spacing_mm[1])
    change = (run(engine, volume) - ground(engine, volume)).astype(np.float64)
    assert min(change.shape[1:]) > side
    for one in change:
        sums = np.pad(one, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        means = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        assert np.abs(means).max() / side**2 < tolerance


def leaves_padding(engine: Engine, volume: Volume) -> None:
    """Voxels that are not valid keep their bits, and what they hold changes nothing else."""
    assert not volume.valid.all()
    out, valid = run(engine, volume), repeated(engine, volume.valid)
    assert same(out[~valid], repeated(engine, volume.values)[~valid])
    for other in (-32768.0, 3000.0, float("nan")):
        values = np.where(volume.valid, volume.values, np.float32(other))
        changed = run(engine, replace(volume, values=values))
        assert same(changed[valid], out[valid])
        assert np.array_equal(changed[~valid], repeated(engine, values)[~valid], equal_nan=True)


def is_linear_in_strength(engine: Engine, volume: Volume) -> None:
    """Half the strength is half the way; more strength never means less change, anywhere."""
    zero, quarter, half, full = (run(engine, volume, s) for s in (0.0, 0.25, 0.5, 1.0))
    scale = float(np.abs(volume.values).max())
    assert np.abs(half - (zero.astype(np.float64) + full) / 2).max() <= 4e-7 * scale
    changes = [np.abs(v - zero) for v in (quarter, half, full)]
    for less, more in itertools.pairwise(changes):
        assert (less <= more + 4e-7 * scale).all()


def scales(engine: Engine, volume: Volume, factor: float) -> None:
    """MR: f(k x) = k f(x), to a thousandth of the noise."""
    assert volume.unit == "arbitrary"
    factor32 = np.float32(factor)
    scaled = replace(volume, values=volume.values * factor32, step=volume.step * factor32)
    expected = run(engine, volume).astype(np.float64) * factor
    sigma = float(np.nanmedian(engine.survey(volume).sigma)) * factor
    assert np.abs(run(engine, scaled) - expected).max() <= 1e-3 * max(sigma, 1e-9)


def has_no_up_or_down(engine: Engine, volume: Volume) -> None:
    """Slices in reverse order give the same slices in reverse order."""
    backwards = Volume(
        values=np.ascontiguousarray(volume.values[::-1]),
        spacing_mm=volume.spacing_mm,
        unit=volume.unit,
        valid=np.ascontiguousarray(volume.valid[::-1]),
        contiguous=np.append(volume.contiguous[:-1][::-1], True),
        step=np.ascontiguousarray(volume.step[::-1]),
    )
    sigma = float(np.nanmedian(engine.survey(volume).sigma))
    assert np.abs(run(engine, backwards)[::-1] - run(engine, volume)).max() <= 1e-3 * sigma


def crosses_no_gap(engine: Engine, volume: Volume) -> None:
    """What lies beyond a gap is never looked at."""
    survey = engine.survey(volume)
    after = volume.shape[0] // 2
    contiguous = volume.contiguous.copy()
    contiguous[after - 1] = False
    gapped = replace(volume, contiguous=contiguous)
    values = volume.values.copy()
    values[after:] = values[after:, ::-1]
    changed = replace(gapped, values=values)
    full = Params(strength=1.0)
    one = engine.enhance(gapped, full, survey).volume.values[:after]
    other = engine.enhance(changed, full, survey).volume.values[:after]
    assert same(one, other)


def leaves_strange_noise(engine: Engine, quiet: Volume, loud: Volume) -> None:
    """Noise outside of the card's range: the slices come back as they were, and a note says so (G10)."""
    for volume in (quiet, loud):
        out = engine.enhance(volume, Params(strength=1.0))
        assert same(out.volume.values, ground(engine, volume))
        assert out.figures["skipped"] == volume.shape[0]
        assert any("noise" in note for note in out.notes)


def keeps_acquired_frequencies(engine: Engine, volume: Volume) -> None:
    """Detail lies beyond the k-space of the slice: within it nothing changes by a thousandth of the noise."""
    assert engine.card.scale == 2
    assert volume.valid.all()
    change = (run(engine, volume) - ground(engine, volume)).astype(np.float64)
    assert np.abs(change).max() > 0
    y, x = (n // 2 for n in volume.shape[1:])
    spectrum = np.fft.rfft2(change)
    kept = np.zeros(spectrum.shape[1:], np.bool_)
    kept[: y + 1, : x + 1] = kept[-y:, : x + 1] = True
    acquired = np.fft.irfft2(spectrum * kept, s=change.shape[1:])
    sigma = float(np.nanmedian(engine.survey(volume).sigma))
    assert np.abs(acquired).max() <= 1e-3 * sigma
    assert np.abs(change - acquired).max() > 0.5 * np.abs(change).max()


def stays_in_range(engine: Engine, volume: Volume) -> None:
    """Values at both ends of Bits Stored do not wrap around when they are stored again (G8)."""
    n, hu = engine.card.scale, volume.unit == "HU"
    fmt = PixelFormat(
        rows=volume.shape[1], columns=volume.shape[2], n_frames=1, bits_allocated=16, bits_stored=12,
        signed=False, slope=(1.0,), intercept=(-1024.0 if hu else 0.0,), padding=None, overlay_bits=0,
        unit=volume.unit,
    )  # fmt: skip
    whole = np.clip(np.rint(volume.values[:1] - fmt.intercept[0]), 0, 4095).astype("<u2")
    whole[0, ::9, ::9], whole[0, 4::9, 4::9] = 0, 4095
    given = replace(
        cut(volume, 0, 1), values=(whole + np.float32(fmt.intercept[0])).astype(np.float32),
        valid=np.ones(whole.shape, np.bool_),
    )  # fmt: skip
    out = run(engine, given)
    stored = to_stored(out, repeated(engine, whole), repeated(engine, given.valid), fmt)
    assert int(stored.max()) <= 4095
    # The nearest value that can be stored, and never one from the other end.
    wanted = np.clip(out - np.float32(fmt.intercept[0]), 0, 4095)
    assert np.abs(stored - wanted).max() <= 0.5 + 4096 * 2.0**-22
    assert stored.shape == (1, n * fmt.rows, n * fmt.columns)


def batch_changes_nothing(network: Network, x: Floats, c: Floats) -> None:
    """A network gives each slice of a batch the bits that it gives the slice alone (G6)."""
    both = network.run(x, c)
    for i in range(x.shape[0]):
        assert same(both[i : i + 1], network.run(x[i : i + 1], c[i : i + 1]))
