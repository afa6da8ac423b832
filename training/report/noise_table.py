"""How well noise is measured: estimate over truth, and whether input that was smoothed before is told.

Everything an engine does stands on the noise that is measured in one slice (engines/noise.py). Where the truth is
known, it is the median over the body of what was added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import ndimage

from engines import known, noise
from engines.base import Floats, Params, Volume
from engines.errors import EngineError
from engines.known import Known
from training.data import dicom, shards
from training.evaluate.conventions import body_mask, foreground_mask
from training.report.physics_bench import KERNELS, SEED, projected, table, volume
from training.report.section import Context, Section
from training.simulate import anatomy
from training.simulate.kspace import Acquisition, acquire

DOSES_HU = (5.0, 15.0, 30.0, 60.0)
DOSES_MR = (0.02, 0.04, 0.08)
FILLINGS = (1.0, 1.3, 1.6, 2.0)
SCALE = 800.0
N_DRAWN = 3
ANATOMY = ("chest", "abdomen", "head", "limb")
SMOOTHINGS = (0.8, 1.5, 2.5)
"""Standard deviations in pixels of a Gaussian that goes over the noise of a slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Whether a stack is said to have been smoothed: its mean noise frequency, and what was done to it."""

    what: str
    treatment: str
    frequency: float
    frequency_mm: float
    sigma: float
    said: bool


def drawn_ct(quick: bool) -> Iterator[Known]:
    """Drawn anatomy with noise that went through projections, over kernels and doses."""
    for kind in ANATOMY[1:2] if quick else ANATOMY:
        for i in range(1 if quick else N_DRAWN):
            made = _drawn(kind, i, quick)
            body = body_mask(made.values)
            for kernel in ("standard",) if quick else KERNELS:
                one = projected(made.values, made.spacing_mm, kernel=kernel, sigma=1.0, seed=900 + i)
                for sigma in DOSES_HU:
                    added = np.float32(sigma) * one
                    yield _known(f"drawn {kind} {i + 1}", kernel, f"{sigma:g} HU", made.values, added, body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What is found in a drawn slice that holds no noise at all: texture that one slice cannot tell from noise, HU."""

    ground: str
    pixel_mm: float
    found: float


def floors(quick: bool) -> list[Floor]:
    """Look at the drawn anatomy of :func:`drawn_ct` before there is noise in it."""
    out = []
    for kind in ANATOMY[1:2] if quick else ANATOMY:
        for i in range(1 if quick else N_DRAWN):
            made = _drawn(kind, i, quick)
            valid = np.ones(made.values.shape[1:], np.bool_)
            found = noise.estimate(made.values[0], valid, unit="HU")
            out.append(Floor(ground=f"drawn {kind} {i + 1}", pixel_mm=made.spacing_mm[1], found=found.sigma))
    return out


def _drawn(kind: str, i: int, quick: bool) -> anatomy.Truth:
    rng = np.random.default_rng([SEED, 95, i])
    return anatomy.draw(rng, kind=kind, n_slices=1, matrix=256 if quick else 512)


def _known(ground: str, kernel: str, dose: str, truth: Floats, added: Floats, body: np.ndarray) -> Known:
    found = noise.estimate(truth[0] + added[0], np.ones(truth.shape[1:], np.bool_), unit="HU")
    # The median over the body of the local noise: its middle, not its extremes.
    local = np.sqrt(ndimage.uniform_filter(added[0].astype(np.float64) ** 2, 31))
    true = float(np.median(local[body[0]]))
    return Known(
        anatomy=ground, kernel=kernel, dose=dose, true=true, found=found.sigma, frequency=found.frequency
    )


def painted_mr(context: Context) -> Iterator[Known]:
    """Painted heads that no training saw, over zero filling and doses."""
    folder = context.data / "mr-validation"
    if context.quick or not (folder / "index.json").exists():
        return
    counts: dict[str, int] = {}
    for shard in shards.read(folder):
        kind = str(shard.facts.get("kind", ""))
        counts[kind] = counts.get(kind, 0) + 1
        if kind == "abstract" or counts[kind] > N_DRAWN - 1:
            continue
        truth = SCALE * shard.crop(slice(1, 2), slice(None), slice(None))
        if not foreground_mask(truth).any():
            continue
        for filling in FILLINGS:
            for dose in DOSES_MR:
                how = Acquisition(sigma=dose, zero_fill=(filling, filling))
                noisy, _ = acquire(truth, how, np.random.default_rng([SEED, 96, counts[kind]]), scale=SCALE)
                found = noise.estimate(noisy[0], np.ones(truth.shape[1:], np.bool_), unit="arbitrary")
                yield Known(
                    anatomy=f"painted {kind} {counts[kind]}",
                    kernel=f"filled x{filling:g}",
                    dose=f"{dose:g} of the scale",
                    true=dose * SCALE,
                    found=found.sigma,
                    frequency=found.frequency,
                )


def remark(what: str, treatment: str, given: Volume) -> Remark:
    """Ask whether a stack was smoothed."""
    found = noise.survey(given)
    frequency = np.asarray(found.frequency, np.float64)
    sigma = np.asarray(found.sigma, np.float64)
    middle = (
        float(np.median(frequency[np.isfinite(frequency)])) if np.isfinite(frequency).any() else float("nan")
    )
    pixel = given.spacing_mm[1]
    return Remark(
        what=what,
        treatment=treatment,
        frequency=middle,
        frequency_mm=middle / pixel,
        sigma=float(np.median(sigma[np.isfinite(sigma)])) if np.isfinite(sigma).any() else float("nan"),
        said=noise.smoothed_already(found, pixel if given.unit == "HU" else 0.0),
    )


def remarks(context: Context) -> list[Remark]:
    """Drawn anatomy as it comes from a kernel, smoothed, and denoised by engines at full strength."""
    out = []
    engines = [n for n in ("ct-nlm", "ct-cnn") if n in context.catalog.names()]
    for kind in ("abdomen",) if context.quick else ("abdomen", "head", "chest"):
        made = anatomy.draw(
            np.random.default_rng([SEED, 97]), kind=kind, n_slices=2, matrix=256 if context.quick else 512
        )
        for kernel in ("standard",) if context.quick else KERNELS:
            added = projected(made.values, made.spacing_mm, kernel=kernel, sigma=25.0, seed=950)
            what = f"drawn {kind}, {kernel} kernel"
            noisy = volume(made.values + added, made.spacing_mm, "CT")
            out.append(remark(what, "none", noisy))
            for width in SMOOTHINGS:
                softer = ndimage.gaussian_filter(added, (0, width, width))
                out.append(
                    remark(
                        what,
                        f"noise smoothed over {width:g} pixels",
                        volume(made.values + softer, made.spacing_mm, "CT"),
                    )
                )
            for name in engines:
                try:
                    done = context.catalog.load(name, threads=context.threads).enhance(
                        noisy, Params(strength=1.0)
                    )
                except EngineError:
                    continue
                out.append(remark(what, f"{name} at strength 1.0", done.volume))
    return out


def real(context: Context) -> list[Remark]:
    """Ask of every CT stack of the corpus; what was done to it stands in its kernel's name, if anywhere."""
    if context.corpus is None:
        return []
    out = []
    for stack in dicom.index(context.corpus).stacks:
        if stack.modality != "CT" or len(stack.slices) < 2:
            continue
        given = dicom.scan_of(stack, licence="unknown").load()
        n = given.shape[0]
        kept = slice(max(0, n // 2 - 3), n // 2 + 3)
        some = replace(
            given,
            values=given.values[kept],
            valid=given.valid[kept],
            contiguous=given.contiguous[kept],
            step=given.step[kept],
        )
        header = stack.header
        kernel = header.get("ConvolutionKernel", "")
        name = f"{header.get('Manufacturer', '')}, {stack.usual_gap:g} mm apart, kernel {kernel}"
        out.append(remark(name, "as it came", some))
    return out


def _span(rows: Sequence[Known]) -> str:
    ratios = np.array([r.ratio for r in rows])
    within = int((np.abs(ratios - 1) <= known.WITHIN).sum())
    unknown = int((~np.isfinite(ratios)).sum())
    seen = ratios[np.isfinite(ratios)]
    told = f"{within} of {len(rows)} within {100 * known.WITHIN:.0f} %, from {seen.min():.2f} to {seen.max():.2f}"
    return told + (f", {unknown} could not be measured" if unknown else "")


def _matrix(rows: Sequence[Known]) -> str:
    doses = list(dict.fromkeys(r.dose for r in rows))
    cells = {(r.anatomy, r.kernel, r.dose): r for r in rows}
    lines = []
    for ground, kernel in dict.fromkeys((r.anatomy, r.kernel) for r in rows):
        ratios = [cells[ground, kernel, d].ratio for d in doses]
        shown = [f"{v:.2f}" if abs(v - 1) <= known.WITHIN else f"**{v:.2f}**" for v in ratios]
        lines.append((ground, kernel, *shown))
    return table(("ground", "kernel", *doses), lines)


def run(context: Context) -> Section:
    """Measure the noise estimate."""
    context.say("noise: CT phantoms")
    small = (("abdomen", 256),) if context.quick else ()
    groups = {"CT phantoms of the engines' laws": list(known.ct(SEED, small))}
    context.say("noise: drawn anatomy")
    groups["CT, drawn anatomy, noise through projections"] = list(drawn_ct(context.quick))
    context.say("noise: MR")
    if not context.quick:
        groups["MR phantoms of the engines' laws"] = list(known.mr(SEED))
    groups["MR, painted heads"] = list(painted_mr(context))
    groups = {name: rows for name, rows in groups.items() if rows}
    context.say("noise: what was smoothed before")
    told = remarks(context)
    came = real(context)
    every = [r for rows in groups.values() for r in rows]
    parts = [
        "Estimate over truth of one slice; bold lies outside of 25 %. The truth is the median over the body of the "
        "noise's local standard deviation.",
        f"**Within 25 %: {'yes' if all(abs(r.ratio - 1) <= known.WITHIN for r in every) else 'no'}**: {_span(every)}.",
    ]
    for name, rows in groups.items():
        parts += [f"## {name}", _span(rows) + ".", _matrix(rows)]
    bare = floors(context.quick)
    parts += [
        "## What drawn anatomy holds by itself",
        "Found in drawn slices without any noise: texture in every block of 12 pixels, which no measurement of one "
        "slice tells from noise. Where it is as strong as the noise, the estimate is too high.",
        table(("ground", "pixel mm", "found HU"), [(f.ground, f"{f.pixel_mm:.2f}", f.found) for f in bare]),
        _smooth_text(told, came),
    ]
    return Section(
        name="noise_table",
        title="Noise: how well it is measured",
        text="\n\n".join(parts),
        figures={
            "known": {name: [asdict(r) | {"ratio": r.ratio} for r in rows] for name, rows in groups.items()},
            "without_noise": [asdict(f) for f in bare],
            "smoothed": [asdict(r) for r in (*told, *came)],
        },
    )


def _smooth_text(told: Sequence[Remark], came: Sequence[Remark]) -> str:
    rows = [
        (
            r.what,
            r.treatment,
            f"{r.sigma:.1f}",
            f"{r.frequency:.3f}",
            f"{r.frequency_mm:.2f}",
            "smooth" if r.said else "",
        )
        for r in (*told, *came)
    ]
    plain = [r for r in told if r.treatment == "none"]
    heavy = [r for r in told if r.treatment.endswith(f"{SMOOTHINGS[-1]:g} pixels")]
    engines = [r for r in told if "strength" in r.treatment]
    counts = [
        f"{sum(r.said for r in some)} of {len(some)} {words}"
        for some, words in (
            (plain, "that came from a kernel alone (false alarms)"),
            (heavy, f"whose noise was smoothed over {SMOOTHINGS[-1]:g} pixels"),
            (engines, "that an engine had denoised at full strength"),
        )
    ]
    return "\n\n".join(
        [
            "## Smoothed before",
            f"Said to be smooth: {'; '.join(counts)}. The remark is for people. What a vendor's network or iterative "
            "reconstruction has denoised is told by headers, for grain alone cannot tell it: what strong denoising "
            "leaves may have any grain.",
            table(("stack", "treatment", "noise HU", "cycles per pixel", "per mm", "said"), rows),
        ]
    )
