"""Evaluation cases: what the tables of the report are measured on, and what their rows are tuned on.

Test cases show what no network saw and no filter was tuned on:

- ``quarter``: real CT series at a simulated quarter dose (training/simulate/dose.py), against the series as it is;
- ``truth``: phantoms of another generator than the training's (engines/classical/phantoms.py), against the truth;
- ``pair``: reconstructions of one acquisition, and repeats, nothing simulated (training/report/pairs.py);
- ``added``: real MR series with noise added in both channels, against their mean magnitude;
- ``painted``: brains painted from label maps that the training never saw, against the truth.

Validation cases (:func:`validation`) are synthetic, of the shards that the networks validate on; painted brains are
shared out between test and validation by number. Those that rows are tuned on for ``quarter`` are made as it is: the
reference holds noise of its own, a quarter of the input's variance (:func:`quarter_validation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from engines import noise
from engines.base import Floats, Mask, Survey, Unit, Volume
from engines.classical import phantoms
from training.data import shards
from training.errors import DataError
from training.evaluate import classical
from training.evaluate.conventions import Window, body_mask, foreground_mask, volume_window
from training.report.section import Context
from training.report.subjects import Grid, Subject, find, grid_of, thinned
from training.simulate import grain, kspace

FRACTION = 0.25
MR_LEVELS = (0.04, 0.08)
"""Added noise of each channel, as a share of the series scale."""
SEED = 31337
HU_LIMITS = (-1024, 3071)
CT_LEVELS = (8.0, 15.0, 28.0, 50.0)
"""Noise of validation cases, HU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A noisy stack and what it is compared with.

    Attributes
    ----------
    name, patient, kind
        For tables; the patient is the unit of averages.
    group
        See the module.
    volume
        The noisy stack, on the grid of stored values.
    reference
        float32 (z, y, x).
    mask
        bool (z, y, x): what is measured; nothing in slices that are there as neighbours only.
    grid
        Of stored values, for outputs.
    survey
        Noise of the stack as the node measures it: what filters and networks are told.
    level
        Of the noise, in words.
    added, ratio
        Where noise was added to a reference with noise of its own: what was added, and its variance over that of the
        reference's noise. None and 0 where the reference is a truth, or its noise is its own.
    """

    name: str
    patient: str
    kind: str
    group: str
    volume: Volume = field(repr=False)
    reference: Floats = field(repr=False)
    mask: Mask = field(repr=False)
    grid: Grid
    survey: Survey = field(repr=False)
    level: str = ""
    added: Floats | None = field(default=None, repr=False)
    ratio: float = 0.0

    @property
    def unit(self) -> Unit:
        return self.volume.unit

    @property
    def measured(self) -> tuple[int, ...]:
        """Indices of the slices with anything to measure."""
        return tuple(int(i) for i in np.flatnonzero(self.mask.any(axis=(1, 2))))

    def range(self) -> Window:
        """The window of an MR case: 0 to the largest value of the reference."""
        return volume_window(self.reference)

    def stack(self, z: int, side: int = 0) -> classical.Case:
        """Three slices around ``z``, cut to ``side`` pixels around the middle of the mask: for tuning."""
        low, high = max(0, z - 1), min(self.volume.shape[0], z + 2)
        rows, columns = _window(self.mask[z], side)
        cut = (slice(low, high), rows, columns)
        mask = self.mask[cut].copy()
        mask[np.arange(low, high) != z] = False
        return classical.Case(
            patient=self.patient,
            domain=self.kind,
            noisy=np.ascontiguousarray(self.volume.values[cut]),
            reference=self.reference[cut],
            sigma=noise.steady(self.survey.sigma)[low:high],
            mask=mask,
            spacing_mm=self.volume.spacing_mm,
            unit=self.unit,
        )


def _window(mask: Mask, side: int) -> tuple[slice, slice]:
    """A square of ``side`` pixels around the centre of the mask; all of it where ``side`` is 0."""
    if side <= 0:
        return slice(None), slice(None)
    out = []
    for axis in (1, 0):
        where = np.flatnonzero(mask.any(axis=axis))
        n = mask.shape[1 - axis]
        first = min(max(0, int(where.mean()) - side // 2), max(0, n - side))
        out.append(slice(first, first + side))
    return out[0], out[1]


def only(mask: Mask, measured: Sequence[int]) -> Mask:
    """The mask in the measured slices, nothing in the others."""
    out = np.zeros_like(mask)
    out[list(measured)] = mask[list(measured)]
    return out


def plain(values: Floats, spacing_mm: tuple[float, float, float], unit: Unit, step: float = 1.0) -> Volume:
    """A stack without padding or gaps."""
    n = values.shape[0]
    return Volume(
        values=np.ascontiguousarray(values, np.float32),
        spacing_mm=spacing_mm,
        unit=unit,
        valid=np.ones(values.shape, np.bool_),
        contiguous=np.ones(n, np.bool_),
        step=np.full(n, step, np.float32),
    )


def case(volume: Volume, **told: object) -> Case:
    """A case with the survey of its volume."""
    return Case(volume=volume, survey=noise.survey(volume), **told)  # type: ignore[arg-type]


def object_mask(values: Floats) -> Mask:
    """The body, or all that is no air where that is twice as much: a hollow phantom is a shell with plastic in it."""
    body = body_mask(values)
    there = np.stack([ndimage.uniform_filter(s, 5) > -900 for s in values])
    return there if int(there.sum()) > 2 * int(body.sum()) else body


def quarter_dose(subject: Subject, *, n_blocks: int = 3, block: int = 4) -> Case:
    """A real CT series at a quarter of its dose.

    Raises
    ------
    DataError
        Its noise cannot be measured, or there is no body.
    """
    from training.simulate.dose import insert

    full, measured = thinned(subject.volume, n_blocks, block)
    rng = np.random.default_rng([SEED, int(subject.scan.key, 16) % 2**32])
    low = insert(full.values, full.spacing_mm, FRACTION, rng)
    grid = grid_of(full)
    low = np.where(full.valid, grid.written(low), full.values)
    mask = only(object_mask(full.values) & full.valid, measured)
    if not mask.any():
        raise DataError(f"{subject.name}: there is no body in it")
    return case(
        replace(full, values=low),
        name=subject.name,
        patient=subject.patient,
        kind=subject.kind,
        group="quarter",
        reference=full.values,
        mask=mask,
        grid=grid,
        level="quarter dose",
        added=low - full.values,
        ratio=1 / FRACTION - 1,
    )


def noise_added(subject: Subject, level: float, *, n_blocks: int = 2, block: int = 4) -> Case:
    """A real MR series with noise of ``level`` (share of the series scale) added to each channel.

    Raises
    ------
    DataError
        There is nothing in it but background.
    """
    full, measured = thinned(subject.volume, n_blocks, block)
    survey = noise.survey(full)
    scale = noise.scale(survey, "arbitrary")
    rng = np.random.default_rng([SEED, int(subject.scan.key, 16) % 2**32, int(1000 * level)])
    clean = np.maximum(full.values, 0)
    noisy, expected = kspace.acquire(clean, kspace.Acquisition(sigma=level), rng, scale=scale)
    grid = grid_of(full)
    noisy = np.where(full.valid, grid.written(noisy), full.values)
    mask = only(foreground_mask(full.values) & full.valid, measured)
    if not mask.any():
        raise DataError(f"{subject.name}: there is nothing in it but background")
    own = float(np.nanmedian(survey.sigma))
    return case(
        replace(full, values=noisy),
        name=subject.name,
        patient=subject.patient,
        kind=subject.kind,
        group="added",
        reference=expected,
        mask=mask,
        grid=grid,
        level=f"{level:.0%} of the scale",
        added=noisy - expected,
        ratio=(level * scale / own) ** 2 if own > 0 else 0.0,
    )


def ct_truth(seed: int, kind: str, sigma: float, cutoff: float) -> Case:
    """A phantom of the other generator."""
    made = phantoms.ct(seed, shape=(5, 288, 288), sigma=sigma, cutoff=cutoff, kind=kind)
    spacing = (1.0, 0.8, 0.8) if seed % 2 else (3.0, 0.8, 0.8)
    return case(
        plain(made.noisy, spacing, "HU"),
        name=f"phantom {kind} {sigma:.0f} HU",
        patient=f"phantom {seed}",
        kind=kind,
        group="truth",
        reference=made.truth,
        mask=only(body_mask(made.truth), (1, 2, 3)),
        grid=Grid(slope=1.0, intercept=0.0, limits=HU_LIMITS),
        level=f"{sigma:.0f} HU",
    )


def painted(shard: shards.Shard, level: float, rng: np.random.Generator, group: str) -> Case:
    """A synthetic MR truth, acquired."""
    clean = shard.crop(slice(None), slice(None), slice(None))
    how = replace(kspace.draw(rng, sigma=(level, level)), masked_background=False)
    noisy, expected = kspace.acquire(np.maximum(clean, 0), how, rng)
    grid = Grid(slope=1.0, intercept=0.0, limits=(0, 65535))
    stored = grid.written(noisy * np.float32(1000))
    middle = clean.shape[0] // 2
    return case(
        plain(stored, shard.spacing_mm, "arbitrary"),
        name=str(shard.facts.get("contrast", "")),
        patient=shard.name,
        kind=str(shard.facts.get("kind", "")),
        group=group,
        reference=expected * np.float32(1000),
        mask=only(foreground_mask(clean), (middle,)),
        grid=grid,
        level=f"{level:.0%} of the scale",
    )


def ct_validation(shard: shards.Shard, i: int, *, projected: bool, dose: float = 0.0) -> Case:
    """A validation stack with noise of the image domain or through projections.

    Parameters
    ----------
    dose
        The input's, as a share of the dose of a reference that has noise itself; 0 where the reference has none.
    """
    rng = np.random.default_rng([SEED, 5, i])
    clean = shard.crop(slice(None), slice(None), slice(None))
    sigma = CT_LEVELS[i % len(CT_LEVELS)]
    if projected:
        from training.simulate.dose import Kernel, noise_stack

        kernel = Kernel(fc=float(rng.uniform(0.14, 0.4)))

        def noise_of(level: float) -> Floats:
            return noise_stack(clean, shard.spacing_mm[1], rng, kernel=kernel, target_sigma_hu=level)
    else:
        made = grain.draw(rng)

        def noise_of(level: float) -> Floats:
            return np.float32(level) * grain.noise(made, clean.shape, rng)

    grid = Grid(slope=1.0, intercept=0.0, limits=HU_LIMITS)
    reference = grid.written(clean + noise_of(sigma * dose**0.5)) if dose else clean
    added = noise_of(sigma * (1 - dose) ** 0.5)
    return case(
        plain(grid.written(reference + added), shard.spacing_mm, "HU"),
        name=shard.name,
        patient=shard.name,
        kind=str(shard.facts.get("kind", "")),
        group="validation",
        reference=reference,
        mask=only(body_mask(clean), (clean.shape[0] // 2,)),
        grid=grid,
        level=f"{sigma:.0f} HU",
    )


def _shared_out(found: Sequence[shards.Shard], second: bool) -> list[shards.Shard]:
    """Every other shard of each kind: the first half validates, the second is tested on."""
    seen: dict[str, int] = {}
    out = []
    for shard in found:
        kind = str(shard.facts.get("kind", ""))
        seen[kind] = seen.get(kind, 0) + 1
        if (seen[kind] % 2 == 0) == second:
            out.append(shard)
    return out


def read_shards(folder: Path) -> tuple[shards.Shard, ...]:
    """The shards of a folder; none where there is no such folder."""
    return shards.read(folder) if (folder / "index.json").exists() else ()


def usable(case: Case) -> bool:
    """Whether there is enough to measure, and a noise to tell the filters."""
    told = noise.steady(case.survey.sigma)
    return bool(case.mask.any()) and all(np.isfinite(told[z]) and told[z] > 0 for z in case.measured)


def _validation(data: Path, unit: Unit, quick: bool) -> Iterator[Case]:
    if unit == "HU":
        found = read_shards(data / "ct-validation")
        n = 2 if quick else 16
        for i, shard in enumerate(found[:n]):
            yield ct_validation(shard, i, projected=i % 2 == 1 and not quick)
    else:
        half = _shared_out(read_shards(data / "mr-validation"), second=False)
        for i, shard in enumerate(half[: 2 if quick else 12]):
            level = (0.02, *MR_LEVELS)[i % 3]
            yield painted(shard, level, np.random.default_rng([SEED, 6, i]), "validation")


@cache
def validation(data: Path, unit: Unit, quick: bool = False) -> tuple[Case, ...]:
    """Cases to tune on. Where there are no shards, phantoms with seeds of their own."""
    found = tuple(c for c in _validation(data, unit, quick) if usable(c))
    if found:
        return found
    if unit == "HU":
        kinds = ("chest", "abdomen", "head")
        return tuple(
            ct_truth(201 + i, k, CT_LEVELS[i], 0.22) for i, k in enumerate(kinds[: 1 if quick else 3])
        )
    return (mr_truth(201, 0.05, 1.0),)


def mr_truth(seed: int, level: float, zero_fill: float) -> Case:
    """A phantom head; its mean magnitude is the reference."""
    made = phantoms.mr(seed, shape=(3, 192, 192), sigma=level, zero_fill=zero_fill)
    expected = kspace.mean_magnitude(made.truth, made.sigma)
    return case(
        plain(made.noisy, (2.0, 1.0, 1.0), "arbitrary"),
        name=f"phantom head {level:.0%}",
        patient=f"phantom {seed}",
        kind="phantom",
        group="painted",
        reference=expected,
        mask=only(foreground_mask(made.truth), (1,)),
        grid=Grid(slope=1.0, intercept=0.0, limits=(0, 65535)),
        level=f"{level:.0%} of the scale",
    )


def _synthetic(data: Path, unit: Unit, quick: bool) -> Iterator[Case]:
    if unit == "HU":
        kinds, cutoffs = ("chest", "abdomen", "head"), (0.16, 0.22, 0.32)
        for i in range(1 if quick else 18):
            sigma = (12.0, 22.0, 40.0)[(i // 3) % 3]
            yield ct_truth(301 + i, kinds[i % 3], sigma, cutoffs[(i + i // 9) % 3])
        return
    half = _shared_out(read_shards(data / "mr-validation"), second=True)
    for i, shard in enumerate(half[: 1 if quick else 16]):
        yield painted(shard, MR_LEVELS[i % 2], np.random.default_rng([SEED, 7, i]), "painted")
    if not half:
        yield mr_truth(301, 0.06, 1.3)


@cache
def quarter_validation(data: Path, quick: bool = False) -> tuple[Case, ...]:
    """CT cases to tune on for a quarter of a dose: their reference has half of the input's noise.

    None where there are no shards.
    """
    shards_ = read_shards(data / "ct-validation")[: 2 if quick else 16]
    found = (
        ct_validation(shard, i, projected=i % 2 == 1 and not quick, dose=FRACTION)
        for i, shard in enumerate(shards_)
    )
    return tuple(c for c in found if usable(c))


@cache
def synthetic(data: Path, unit: Unit, quick: bool = False) -> tuple[Case, ...]:
    """Test cases with a truth."""
    return tuple(c for c in _synthetic(data, unit, quick) if usable(c))


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """Test cases of real series, and series that could not be used, with the reason."""

    cases: tuple[Case, ...]
    left_out: tuple[str, ...]


def subjects(context: Context) -> tuple[Subject, ...]:
    """The real series there are; none without a corpus, or in a quick run."""
    if context.corpus is None or context.quick:
        return ()
    return find(context.corpus)[0]


_MADE: dict[tuple[str, str], Real] = {}


def real(context: Context, unit: Unit) -> Real:
    """Real series of more than one slice with noise added; made once for all sections."""
    key = (str(context.corpus), unit)
    if context.corpus is None or context.quick:
        return Real(cases=(), left_out=())
    if key not in _MADE:
        found: list[Case] = []
        left_out: list[str] = []
        for subject in subjects(context):
            if subject.unit != unit or subject.volume.shape[0] < 3:
                continue
            if unit == "arbitrary" and subject.kind not in ("T1", "T2", "FLAIR", "PD", "unknown"):
                continue
            context.say(f"cases: {subject.name}")
            try:
                made = (
                    [quarter_dose(subject)] if unit == "HU" else [noise_added(subject, s) for s in MR_LEVELS]
                )
            except DataError as error:
                left_out.append(f"{subject.name}: {error.message}")
                continue
            found += [c for c in made if usable(c)]
        _MADE[key] = Real(cases=tuple(found), left_out=tuple(left_out))
    return _MADE[key]
