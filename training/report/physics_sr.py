"""Engines that double the matrix: what they add to zero filling, measured against a truth.

The truth loses the outer half of its frequencies along either axis (training/simulate/band.py), gets noise, and is put
back on its matrix by the engine, by zero filling, and by bicubic interpolation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from engines.base import Floats, Modality, Params
from engines.classical import phantoms
from engines.sinc import doubled
from training.data import shards
from training.evaluate import physics as measure
from training.evaluate import resolution
from training.evaluate.averaging import Estimate, estimate
from training.evaluate.conventions import SOFT, Mask, Window, body_mask, foreground_mask
from training.report.physics_bench import SEED, Subject, disc, drawn, subjects, table, volume
from training.report.physics_verdicts import Page, Verdict
from training.report.section import Context
from training.simulate.band import low_resolution
from training.simulate.kspace import Acquisition, acquire

SIGMA = {"CT": 10.0, "MR": 0.02}
SCALE = 800.0
N_STACKS = 12
ACQUIRED_WITHIN = 1e-3
"""Largest change of an acquired frequency, as a share of the largest acquired amplitude but the mean's."""
METHODS = ("zero filling", "bicubic", "engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """PSNR against the truth, dB, means over stacks with 95 % intervals.

    ``gain`` is engine minus zero filling, ``over_bicubic`` engine minus bicubic.
    """

    engine: str
    kind: str
    psnr: dict[str, Estimate]
    gain: Estimate
    over_bicubic: Estimate
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """f50 and f10 in cycles per mm of a disc's edge, by method; the coarse pixels' Nyquist frequency beside."""

    engine: str
    contrast: float
    nyquist: float
    f50: dict[str, float]
    f10: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A noise-free stack with an even matrix and where PSNR is measured."""

    kind: str
    values: Floats
    mask: Mask
    window: Window
    spacing_mm: tuple[float, float, float]


def truths(context: Context, modality: Modality) -> Iterator[Truth]:
    """Held-out synthetic stacks; where there are no shards, drawn phantoms."""
    folder = context.data / f"{modality.lower()}-validation"
    ct = modality == "CT"
    if context.quick or not (folder / "index.json").exists():
        made = phantoms.ct(23, shape=(2, 192, 192)) if ct else phantoms.mr(23, shape=(2, 192, 192))
        yield _truth("phantom", made.truth, ct, (1.5, 0.7, 0.7))
        return
    for shard in shards.read(folder)[:N_STACKS]:
        values = shard.crop(slice(None), slice(None), slice(None)) * np.float32(1 if ct else SCALE)
        rows, columns = (4 * (n // 4) for n in values.shape[1:])
        yield _truth(str(shard.facts.get("kind", "")), values[:, :rows, :columns], ct, shard.spacing_mm)


def _truth(kind: str, values: Floats, ct: bool, spacing_mm: tuple[float, float, float]) -> Truth:
    return Truth(
        kind=kind,
        values=values,
        mask=body_mask(values) if ct else foreground_mask(values),
        window=SOFT if ct else Window(name="MR", low=0.0, high=float(np.quantile(values, 0.999)), clip=False),
        spacing_mm=spacing_mm,
    )


def coarse(values: Floats, modality: Modality, seed: int) -> npt.NDArray[np.float32]:
    """Make what a scanner with half the matrix would show, with noise."""
    low = low_resolution(values)
    z, y, x = low.shape
    if modality == "CT":
        return low + drawn((z, y, x), kernel="standard", sigma=SIGMA["CT"], seed=seed)
    rng = np.random.default_rng([SEED, 91, seed])
    noisy, _ = acquire(np.maximum(low, 0), Acquisition(sigma=SIGMA["MR"]), rng, scale=SCALE)
    return np.asarray(noisy, np.float32)


def fine(subject: Subject, low: Floats, spacing_mm: tuple[float, float, float]) -> dict[str, Floats]:
    """Put a coarse stack on twice its matrix, by every method."""
    dz, dy, dx = spacing_mm
    given = volume(low, (dz, 2 * dy, 2 * dx), subject.modality)
    made = subject.engine.enhance(given, Params(strength=subject.strength)).volume.values
    return {
        "zero filling": np.stack([doubled(s) for s in low]),
        "bicubic": np.stack([_bicubic(s) for s in low]),
        "engine": made,
    }


def _bicubic(image: Floats) -> Floats:
    rows, columns = image.shape
    y, x = np.mgrid[: 2 * rows, : 2 * columns] / 2.0
    return np.asarray(ndimage.map_coordinates(image, [y, x], order=3, mode="mirror"), np.float32)


def psnr(truth: Truth, image: Floats) -> float:
    """Mean over slices of the windowed PSNR in the mask, dB."""
    error = (truth.window.apply(image) - truth.window.apply(truth.values)) ** 2
    return float(
        np.mean([-10 * np.log10(e[m].mean()) for e, m in zip(error, truth.mask, strict=True) if m.any()])
    )


def gains(subject: Subject, made: Sequence[Truth]) -> list[Gain]:
    """Measure PSNR over stacks, for all and by kind."""
    rows: list[tuple[str, dict[str, float]]] = []
    for i, truth in enumerate(made):
        if not truth.mask.any():
            continue
        images = fine(subject, coarse(truth.values, subject.modality, i), truth.spacing_mm)
        rows.append((truth.kind, {name: psnr(truth, v) for name, v in images.items()}))
    out = []
    for kind in ("all", *dict.fromkeys(k for k, _ in rows)):
        some = [v for k, v in rows if kind in ("all", k)]
        out.append(
            Gain(
                engine=subject.name,
                kind=kind,
                psnr={m: estimate([v[m] for v in some]) for m in METHODS},
                gain=estimate([v["engine"] - v["zero filling"] for v in some]),
                over_bicubic=estimate([v["engine"] - v["bicubic"] for v in some]),
                n=len(some),
            )
        )
    return out


def edges(subject: Subject, quick: bool) -> list[Edge]:
    """Measure the TTF of discs' edges: the only thing that may be called resolution."""
    ct = subject.ct
    level, contrasts = (50.0, (-1000.0, 120.0, 900.0)) if ct else (400.0, (-350.0, 120.0, 350.0))
    side, n = (256, 2) if quick else (512, 6)
    spacing = (1.5, 0.4, 0.4)
    out = []
    for contrast in contrasts[:1] if quick else contrasts:
        centre = (side / 2 + 0.3, side / 2 + 0.2)
        truth = np.broadcast_to(level + contrast * disc(side, centre, 0.2 * side, 0.7), (n, side, side))
        low = coarse(truth.astype(np.float32), subject.modality, 900)
        insert = measure.Insert(
            name=f"{contrast:+.0f}", centre=centre, radius=0.2 * side, value=level + contrast
        )
        found = {
            "truth": resolution.transfer(truth, insert, spacing[1]),
            **{m: resolution.transfer(v, insert, spacing[1]) for m, v in fine(subject, low, spacing).items()},
        }
        out.append(
            Edge(
                engine=subject.name,
                contrast=contrast,
                nyquist=0.25 / spacing[1],
                f50={m: t.f50 for m, t in found.items()},
                f10={m: t.f10 for m, t in found.items()},
            )
        )
    return out


def acquired(low: Floats, images: dict[str, Floats]) -> float:
    """Return the largest change of an acquired frequency: engine against zero filling.

    As a share of the largest amplitude of zero filling within the acquired band, the mean left out.
    """
    worst = 0.0
    for made, plain in zip(images["engine"], images["zero filling"], strict=True):
        rows, columns = made.shape
        change, was = (np.abs(fft.rfft2(v.astype(np.float64))) for v in (made - plain, plain))
        band = np.zeros(change.shape, np.bool_)
        # The law of engines/sinc.py, without the rim.
        band[: rows // 4, : columns // 4] = True
        band[-(rows // 4) + 1 :, : columns // 4] = True
        was[0, 0] = 0
        worst = max(worst, float(change[band].max() / was[band].max()))
    return worst


def page(context: Context) -> Page:
    """Measure every engine that doubles the matrix."""
    found = [s for m in ("CT", "MR") for s in subjects(context.catalog, m, scale=2, threads=context.threads)]
    if not found:
        return Page(
            text="## Twice the matrix\n\nThere is no engine that doubles the matrix.", figures={}, verdicts=[]
        )
    parts, figures, judged = (
        ["## Twice the matrix", " ".join((__doc__ or "").split("\n\n")[1].split())],
        {},
        [],
    )
    rows, lines = [], []
    for subject in found:
        context.say(f"physics: {subject.name}")
        made = list(truths(context, subject.modality))
        told = gains(subject, made)
        sharp = edges(subject, context.quick)
        low = coarse(made[0].values, subject.modality, 0)
        changed = acquired(low, fine(subject, low, made[0].spacing_mm))
        rows += [
            (
                g.engine,
                g.kind,
                g.n,
                *(g.psnr[m].mean for m in METHODS),
                f"{g.gain.mean:+.2f} [{g.gain.low:+.2f}, {g.gain.high:+.2f}]",
            )
            for g in told
        ]
        lines += [
            (
                e.engine,
                f"{e.contrast:+.0f}",
                e.nyquist,
                *(e.f50[m] for m in ("truth", *METHODS)),
                *(e.f10[m] for m in METHODS),
            )
            for e in sharp
        ]
        figures[subject.name] = _figures(told, sharp, changed)
        judged += _judged(subject.name, told[0], changed)
    parts.append(
        table(
            (
                "engine",
                "pictures",
                "stacks",
                *(f"PSNR dB, {m}" for m in METHODS),
                "engine minus zero filling",
            ),
            rows,
        )
    )
    parts.append(
        "Edges of discs, in cycles per mm; the acquired frequencies end at the Nyquist frequency of the coarse pixels:"
    )
    head = (
        "engine",
        "contrast",
        "acquired up to",
        *(f"f50 {m}" for m in ("truth", *METHODS)),
        *(f"f10 {m}" for m in METHODS),
    )
    parts.append(table(head, lines))
    parts.append(
        "A frequency above the acquired ones at which a disc's edge still has contrast is what the engine believes of "
        "edges; on fine texture it believes nothing of the kind (the abstract pictures above)."
    )
    return Page(text="\n\n".join(parts), figures={"twice_the_matrix": figures}, verdicts=judged)


def _figures(told: Sequence[Gain], sharp: Sequence[Edge], changed: float) -> dict[str, Any]:
    return {
        "psnr": [asdict(g) for g in told],
        "edges": [asdict(e) for e in sharp],
        "acquired_change": changed,
    }


def _judged(name: str, every: Gain, changed: float) -> list[Verdict]:
    return [
        Verdict(
            engine=name,
            bar="acquired frequencies are kept (change, share of the largest)",
            measured=f"{changed:.1e}",
            holds=changed <= ACQUIRED_WITHIN,
        ),
        *(
            Verdict(
                engine=name,
                bar=f"nearer to the truth than {words} (PSNR, interval above 0)",
                measured=f"{e.mean:+.2f} dB [{e.low:+.2f}, {e.high:+.2f}]",
                holds=e.low > 0,
            )
            for words, e in (("zero filling", every.gain), ("bicubic", every.over_bicubic))
        ),
    ]
