"""Before, after, and the difference: pictures of real series that may be shown.

Only series that are named here, with their licence, are drawn into the report: a series is known by the digest of its
Series Instance UID, so the corpus may be laid out in any way. Heads are shown in axial slices above the face.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from engines.base import Enhancement, Floats, Params, Volume
from engines.errors import EngineError
from engines.sinc import doubled
from training.data import dicom
from training.evaluate.conventions import BRAIN, CHEST, SOFT, Window
from training.report.pictures_words import WORDS
from training.report.section import Context, Section

LARGEST_BYTES = 245_000
PANEL = 300
GAP = 4
AROUND = 3
"""Slices at either side that go through the engine, too."""
BLACK, WHITE = 0, 255
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series that may be shown.

    Attributes
    ----------
    key
        First 12 hex digits of SHA-256 of its Series Instance UID.
    stack, at
        Which stack of it, and where in the stack (0 to 1).
    what
        What it shows.
    credit
        Whose it is, and its licence.
    """

    key: str
    stack: int
    at: float
    what: str
    credit: str


CHEST_CT = Series(
    key="e817874afa60",
    stack=0,
    at=0.5,
    what="chest CT, 1 mm, Philips Brilliance 16P, sharp kernel",
    credit="LIDC-IDRI-0314, The Cancer Imaging Archive, S. G. Armato et al., doi:10.7937/K9/TCIA.2015.LO9QL9SX, "
    "CC BY 3.0; windowed, cropped and filtered",
)
ABDOMEN_CT = Series(
    key="48b1a9aa0eb4",
    stack=0,
    at=0.5,
    what="abdominal CT, 3 mm, Siemens Biograph mCT",
    credit="example of TotalSegmentator, J. Wasserthal et al., Apache-2.0; windowed, cropped and filtered",
)
HEAD_CT = Series(
    key="cc1931f2adac",
    stack=1,
    at=0.17,
    what="head CT, 7 mm, GE HiSpeed Dual",
    credit="neurolabusc/dcm_qa_ct, from the samples of Aliza Medical Imaging, BSD-2-Clause; windowed, cropped and "
    "filtered",
)
T1_MR = Series(
    key="03aaccd6382d",
    stack=0,
    at=0.6,
    what="T1 of the brain, 0.67 mm, Philips 3 T",
    credit="studyforrest (datalad/example-dicom-structural), PDDL; windowed, cropped and filtered",
)
T2_MR = Series(
    key="aadd9f93d5eb",
    stack=0,
    at=0.72,
    what="T2 of the brain, 2.5 mm, Siemens Trio",
    credit="FNNDSC/data (adi_brain), Apache-2.0; windowed, cropped and filtered",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One picture to draw: a series in a window by some engines; ``zoom`` is the middle of the zoomed part."""

    name: str
    series: Series
    engines: tuple[str, ...]
    window: Window | None
    zoom: tuple[float, float]
    kind: str = "before"


SHOTS = (
    Shot(name="chest-lung", series=CHEST_CT, engines=("ct-cnn",), window=CHEST, zoom=(0.5, 0.27)),
    Shot(name="chest-soft", series=CHEST_CT, engines=("ct-cnn",), window=SOFT, zoom=(0.42, 0.55)),
    Shot(name="abdomen", series=ABDOMEN_CT, engines=("ct-cnn",), window=SOFT, zoom=(0.5, 0.4)),
    Shot(name="head", series=HEAD_CT, engines=("ct-cnn",), window=BRAIN, zoom=(0.5, 0.5)),
    Shot(name="t1", series=T1_MR, engines=("mr-cnn",), window=None, zoom=(0.5, 0.45)),
    Shot(name="t2", series=T2_MR, engines=("mr-cnn",), window=None, zoom=(0.45, 0.5)),
    Shot(
        name="families-ct",
        series=ABDOMEN_CT,
        engines=("ct-cnn", "ct-gan", "ct-autoencoder", "ct-nlm"),
        window=SOFT,
        zoom=(0.5, 0.4),
        kind="families",
    ),
    Shot(
        name="families-mr",
        series=T2_MR,
        engines=("mr-cnn", "mr-gan", "mr-autoencoder", "mr-nlm"),
        window=None,
        zoom=(0.45, 0.5),
        kind="families",
    ),
    Shot(name="twice-ct", series=CHEST_CT, engines=("ct-sr2",), window=CHEST, zoom=(0.5, 0.27), kind="twice"),
    Shot(name="twice-mr", series=T1_MR, engines=("mr-sr2",), window=None, zoom=(0.5, 0.45), kind="twice"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Figures of a picture: of the stack that went through the engine."""

    picture: str
    engine: str
    weights: str
    strength: float
    noise_before: float
    noise_after: float
    cfr: float
    largest_mean_change: float
    skipped: int


def crop(image: Floats, outside: float) -> tuple[slice, slice]:
    """Return the box around what is above ``outside``, with a small rim."""
    there = image > outside
    rows, columns = (np.flatnonzero(there.mean(axis=a) > 0.02) for a in (1, 0))
    if rows.size == 0 or columns.size == 0:
        return slice(0, image.shape[0]), slice(0, image.shape[1])
    return tuple(
        slice(max(0, int(r[0]) - 6), min(n, int(r[-1]) + 7))
        for r, n in zip((rows, columns), image.shape, strict=True)
    )  # type: ignore[return-value]


def around(image: Floats, middle: tuple[float, float], side: int) -> tuple[slice, slice]:
    """Return a square box of ``side`` pixels about a point given as shares of the picture."""
    out = []
    for n, share in zip(image.shape, middle, strict=True):
        length = min(side, n)
        start = min(max(0, round(share * n) - length // 2), n - length)
        out.append(slice(start, start + length))
    return out[0], out[1]


def grey(image: Floats, window: Window) -> Pixels:
    """Map a window to 8 bits."""
    clipped = np.clip((np.asarray(image, np.float64) - window.low) / window.width, 0, 1)
    return np.asarray(np.rint(clipped * 255), np.uint8)


def difference(before: Floats, after: Floats, window: Window) -> Pixels:
    """Map (after - before) x 10 to 8 bits: nothing is mid-grey."""
    moved = 0.5 + 10 * (np.asarray(after, np.float64) - before) / window.width
    return np.asarray(np.floor(np.clip(moved, 0, 1) * 255 + 0.5), np.uint8)


def panel(pixels: Pixels, size: int) -> Image.Image:
    """Scale to ``size`` pixels on the longer side: by area down, smoothly up; centred on black."""
    image = Image.fromarray(pixels)
    share = size / max(image.size)
    wanted = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    how = Image.Resampling.BOX if share < 1 else Image.Resampling.BICUBIC
    scaled = image.resize(wanted, how)
    out = Image.new("L", (size, size), BLACK)
    out.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
    return out


def sheet(rows: Sequence[Sequence[tuple[str, Pixels]]], size: int) -> Image.Image:
    """Lay panels out in rows, each with its label above."""
    label = 14
    columns = max(len(r) for r in rows)
    out = Image.new("L", (columns * (size + GAP) - GAP, len(rows) * (size + label + GAP) - GAP), WHITE)
    draw = ImageDraw.Draw(out)
    for j, row in enumerate(rows):
        for i, (words, pixels) in enumerate(row):
            x, y = i * (size + GAP), j * (size + label + GAP)
            draw.text((x + 2, y + 1), words, fill=BLACK)
            out.paste(panel(pixels, size), (x, y + label))
    return out


def save(rows: Sequence[Sequence[tuple[str, Pixels]]], path: Path, size: int = PANEL) -> int:
    """Write a PNG no larger than the limit: panels become smaller until it fits. Returns its bytes."""
    while True:
        sheet(rows, size).save(path, optimize=True)
        written = path.stat().st_size
        if written <= LARGEST_BYTES or size <= 100:
            return written
        size = int(size * 0.93)


def find(corpus: Path) -> Mapping[tuple[str, int], Volume]:
    """Read the stacks that may be shown."""
    wanted = {(s.series.key, s.series.stack) for s in SHOTS}
    out = {}
    for stack in dicom.index(corpus).stacks:
        key = hashlib.sha256(stack.series_instance_uid.encode()).hexdigest()[:12]
        if (key, stack.index) in wanted:
            out[key, stack.index] = dicom.scan_of(stack, licence="see the report").load()
    return out


def part(whole: Volume, at: float) -> tuple[Volume, int]:
    """Cut the slices around one out of a stack; also where it lies in them."""
    n = whole.shape[0]
    middle = min(n - 1, round(at * (n - 1)))
    low, high = max(0, middle - AROUND), min(n, middle + AROUND + 1)
    kept = slice(low, high)
    return replace(
        whole,
        values=whole.values[kept],
        valid=whole.valid[kept],
        contiguous=whole.contiguous[kept],
        step=whole.step[kept],
    ), middle - low


def shoot(context: Context, shot: Shot, given: Volume, middle: int) -> list[Told]:
    """Draw one picture; nothing is drawn where none of its engines is there."""
    made: dict[str, Enhancement] = {}
    for name in shot.engines:
        try:
            engine = context.catalog.load(name, threads=context.threads)
        except EngineError:
            continue
        made[name] = engine.enhance(given, Params(strength=engine.card.default_strength))
    if not made:
        return []
    before = given.values[middle]
    unit = given.unit
    top = float(np.quantile(before, 0.995))
    window = shot.window or Window(name="MR", low=0.0, high=top, clip=True)
    box = crop(before, -400.0 if unit == "HU" else 0.12 * top)
    side = 128 if max(before.shape) > 300 else 96
    rows = _rows(shot, before, {n: e.volume.values[middle] for n, e in made.items()}, box, window, side)
    save(rows, context.image(f"picture-{shot.name}.png"))
    return [
        Told(
            picture=shot.name,
            engine=name,
            weights=e.card.weights_sha256[:12],
            strength=e.params.strength,
            noise_before=e.figures.get("noise_before", float("nan")),
            noise_after=e.figures.get("noise_after", float("nan")),
            cfr=e.figures.get("cfr", float("nan")),
            largest_mean_change=abs(e.figures["mean_change"]),
            skipped=int(e.figures["skipped"]),
        )
        for name, e in made.items()
    ]


def _rows(
    shot: Shot,
    whole: Floats,
    after: Mapping[str, Floats],
    box: tuple[slice, slice],
    window: Window,
    side: int,
) -> list[list[tuple[str, Pixels]]]:
    before = whole[box]
    near = around(before, shot.zoom, side)
    if shot.kind == "twice":
        (name, made) = next(iter(after.items()))
        wide = tuple(slice(2 * s.start, 2 * s.stop) for s in box)
        fine = tuple(slice(2 * s.start, 2 * s.stop) for s in around(before, shot.zoom, side * 2 // 3))
        a, b = doubled(whole)[wide][fine], made[wide][fine]
        return [
            [
                ("zero filling", grey(a, window)),
                (name, grey(b, window)),
                ("difference x10", difference(a, b, window)),
            ]
        ]
    if shot.kind == "families":
        first = [("input", grey(before[near], window))]
        first += [(name, grey(v[box][near], window)) for name, v in after.items()]
        second = [("", np.full_like(first[0][1], 255))]
        second += [
            (f"{n}, difference x10", difference(before[near], v[box][near], window)) for n, v in after.items()
        ]
        return [first, second]
    (name, made) = next(iter(after.items()))
    now = made[box]
    return [
        [
            ("input", grey(before, window)),
            (name, grey(now, window)),
            ("difference x10", difference(before, now, window)),
        ],
        [
            ("input, zoomed", grey(before[near], window)),
            (f"{name}, zoomed", grey(now[near], window)),
            ("difference x10, zoomed", difference(before[near], now[near], window)),
        ],
    ]


def run(context: Context) -> Section:
    """Draw every picture whose series and engines are there."""
    if context.corpus is None:
        return Section(
            name="pictures",
            title="Pictures",
            text="There was no corpus of real series to draw.",
            figures={"pictures": []},
        )
    there = find(context.corpus)
    parts = [
        "Default engines at default strength. The difference is output minus input, ten times as strong as the window "
        "shows it; mid-grey is no change. A difference should look like noise: an edge or a vessel in it was changed."
    ]
    told: list[Told] = []
    for shot in SHOTS:
        whole = there.get((shot.series.key, shot.series.stack))
        if whole is None:
            continue
        context.say(f"pictures: {shot.name}")
        found = shoot(context, shot, *part(whole, shot.series.at))
        if found:
            told += found
            parts.append(_caption(shot, found, whole.unit))
    return Section(
        name="pictures",
        title="Pictures: before, after, difference",
        text="\n\n".join(parts),
        figures={"pictures": [asdict(t) for t in told]},
    )


def _caption(shot: Shot, found: Sequence[Told], unit: str) -> str:
    words: list[Any] = [f"## {shot.series.what}: {', '.join(t.engine for t in found)}"]
    words.append(f"![{shot.name}](images/picture-{shot.name}.png)")
    words.append(f"*{shot.series.credit}.*")
    named = "HU" if unit == "HU" else "units"
    lines = [
        f"{t.engine}: noise {t.noise_before:.3g} to {t.noise_after:.3g} {named} "
        f"({100 * (1 - t.noise_after / t.noise_before):.0f} % less), mean frequency of the noise x {t.cfr:.2f}, "
        f"strength {t.strength:g}."
        for t in found
        if t.noise_before > 0 and shot.kind != "twice"
    ]
    words += ["\n".join(lines)] if lines else []
    said = WORDS.get(shot.name)
    if said is None:
        words.append("Nobody has looked at this picture yet.")
    else:
        words.append(said.text)
        others = [t.engine for t in found if said.weights.get(t.engine) != t.weights]
        if others:
            words.append(f"(Said of other weights of {', '.join(others)}: look again.)")
    return "\n\n".join(words)
