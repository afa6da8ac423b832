"""One picture of what an engine did to an instance: before, after, and what was taken away.

Windowed like on a reading screen, with an enlarged detail in each panel and the noise measured on both. No
patient data goes in: of the header only the series' description, kernel and geometry are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from scipy import ndimage

from engines.noise import estimate
from node.dicom.pixels import decode, pixel_format, to_values

Floats = npt.NDArray[np.float32]
Grey = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

GROUND = (13, 16, 22)
INK, DIM, ACCENT = (232, 236, 241), (140, 149, 163), (255, 186, 73)
PANEL, GAP, MARGIN, HEAD, FOOT = 540, 14, 30, 84, 46
DETAIL_SHARE, DETAIL_ZOOM = 0.17, 2.3

# Towards blue where the engine took away, towards orange where it added, black where nothing changed.
COLD, WARM = np.array([64, 156, 255], np.float32), np.array([255, 138, 48], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How values become grey: name, centre and width, in HU or stored units (PS3.3 C.11.2)."""

    name: str
    centre: float
    width: float

    def grey(self, values: Floats) -> Floats:
        """0 to 1."""
        grey: Floats = np.clip((values - self.centre) / self.width + 0.5, 0, 1).astype(np.float32)
        return grey

    def __str__(self) -> str:
        return f"{self.name}  C {self.centre:.0f}  W {self.width:.0f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One frame before and after, in the same units.

    Attributes
    ----------
    before, after
        float32 (y, x).
    valid
        bool (y, x): False on padding.
    spacing
        mm between rows and between columns.
    modality, unit
        ``CT`` and ``HU``, or ``MR`` and ``""``.
    noise
        Standard deviation before and after, NaN where it cannot be measured.
    title, subtitle
        What the picture is called.
    """

    before: Floats
    after: Floats
    valid: npt.NDArray[np.bool_]
    spacing: tuple[float, float]
    modality: str
    unit: str
    noise: tuple[float, float]
    title: str
    subtitle: str


def picture(
    before: Path, after: Path, target: Path, *, noise: tuple[float, float] | None = None, title: str = ""
) -> Path:
    """Write a PNG: before, after and difference of one instance; a row per window.

    Parameters
    ----------
    before, after
        Part 10 files of the source and the derived instance. Of several frames the middle one is shown.
    target
        The PNG; its folder is made if absent.
    noise
        Noise before and after; measured on the shown frame if not given.
    title
        In place of the derived series' description.

    Raises
    ------
    ValueError
        The two are not of the same matrix.
    NodeError
        The pixels of one of them cannot be read.
    """
    pair = _pair(before, after, noise, title)
    target.parent.mkdir(parents=True, exist_ok=True)
    render(pair).save(target, compress_level=7)
    return target


def _pair(before: Path, after: Path, noise: tuple[float, float] | None, title: str) -> Pair:
    derived = dcmread(after, stop_before_pixels=True)
    (a, valid, step), (b, _, _) = _values(before), _values(after)
    if a.shape != b.shape:
        raise ValueError(f"the two are of different size: {a.shape} and {b.shape}")
    modality = str(derived.get("Modality", ""))
    is_ct = modality == "CT"
    if noise is None:
        both = (estimate(v, valid, unit="HU" if is_ct else "arbitrary", step=step).sigma for v in (a, b))
        first, second = both
        noise = (float(first), float(second))
    spacing = [float(v) for v in derived.get("PixelSpacing", None) or (1.0, 1.0)]
    kernel = derived.get("ConvolutionKernel", "") if is_ct else ""
    thickness = derived.get("SliceThickness", None)
    parts = [
        f"{a.shape[1]} x {a.shape[0]}",
        f"{float(thickness):g} mm" if thickness else "",
        f"kernel {kernel if isinstance(kernel, str) else kernel[0]}" if kernel else "",
        f"{float(derived.KVP):g} kV" if is_ct and derived.get("KVP") else "",
    ]
    return Pair(
        before=a, after=b, valid=valid, spacing=(spacing[0], spacing[1]), modality=modality,
        unit="HU" if is_ct else "", noise=noise,
        title=_printable(title or str(derived.get("SeriesDescription", "")) or modality),
        subtitle="   ".join(p for p in parts if p),
    )  # fmt: skip


def _values(path: Path) -> tuple[Floats, npt.NDArray[np.bool_], float]:
    """The middle frame in HU or stored units, where it is valid, and the width of one stored unit."""
    form = pixel_format(path)
    middle = form.shape[0] // 2
    found = to_values(decode(path, range(middle, middle + 1)), form, first=middle)
    return found.values[0], found.valid[0], float(found.step[0])


def _printable(text: str) -> str:
    """Header text for a caption: no control characters, at most 64."""
    return "".join(c for c in text if c.isprintable())[:64]


def body_of(pair: Pair) -> Mask:
    """The patient without table and air: the largest connected thing, its holes filled."""
    smooth = ndimage.uniform_filter(np.where(pair.valid, pair.before, pair.before[pair.valid].min()), 5)
    level = -400.0 if pair.modality == "CT" else 0.25 * float(np.percentile(smooth, 98))
    labels, n = ndimage.label(ndimage.binary_opening(smooth > level, iterations=2))
    if n == 0:
        return pair.valid
    sizes = np.bincount(labels.ravel())[1:]
    return np.asarray(ndimage.binary_fill_holes(labels == 1 + int(sizes.argmax())), dtype=np.bool_)


def windows(pair: Pair, body: Mask) -> tuple[Window, ...]:
    """Which windows show this image: by what is in it, not by what its header says."""
    if pair.modality != "CT":
        low, high = (float(v) for v in np.percentile(pair.before[body], (1, 97)))
        low = min(low, 0.15 * high)
        return (Window(name="", centre=(low + high) / 2, width=max(high - low, 1.0)),)
    smooth = ndimage.uniform_filter(pair.before, 5)[body]
    soft = Window(name="Soft tissue", centre=40, width=400)
    if ((smooth > -950) & (smooth < -700)).mean() > 0.08:
        return (Window(name="Lung", centre=-600, width=1500), soft)
    if ((smooth > 20) & (smooth < 45)).mean() > 0.3 and (smooth < -60).mean() < 0.15:
        return (Window(name="Brain", centre=40, width=90),)
    return (soft,)


def _crop(body: Mask) -> tuple[slice, slice]:
    """A rectangle about the patient, with a little air."""
    edges = []
    for axis, n in ((1, body.shape[0]), (0, body.shape[1])):
        seen = np.flatnonzero(body.any(axis=axis))
        air = 4 + n // 64
        edges.append(
            slice(max(int(seen[0]) - air, 0), min(int(seen[-1]) + air, n)) if len(seen) else slice(0, n)
        )
    return edges[0], edges[1]


def _detail(after: Floats, body: Mask, window: Window) -> tuple[int, int, int]:
    """Where there is most to see in this window: (row, column, side) of a square in pixels."""
    grey = window.grey(after)
    side = max(int(DETAIL_SHARE * min(grey.shape)), 8)
    smooth = ndimage.gaussian_filter(grey, 1.2)
    edges = np.minimum(ndimage.gaussian_gradient_magnitude(smooth, 1.0), 0.12)
    shown = ((grey > 0.06) & (grey < 0.8)).astype(np.float32)
    score = ndimage.uniform_filter(edges, side) * ndimage.uniform_filter(shown, side) ** 2
    # Well inside the patient, not on the skin.
    score *= ndimage.uniform_filter(body.astype(np.float32), int(1.9 * side)) > 0.999
    half = side // 2
    score[: half + 1], score[-half - 1 :], score[:, : half + 1], score[:, -half - 1 :] = 0, 0, 0, 0
    y, x = (
        np.unravel_index(int(score.argmax()), score.shape)
        if score.max() > 0
        else (n // 2 for n in score.shape)
    )
    return int(y) - half, int(x) - half, side


def render(pair: Pair) -> Image.Image:
    """The picture: a head line, then a row of three panels per window."""
    body = body_of(pair)
    rows = windows(pair, body)
    inside = _crop(body)
    before, after, body = pair.before[inside], pair.after[inside], body[inside]
    change = np.where(pair.valid[inside], after - before, 0).astype(np.float32)
    height = round(PANEL * before.shape[0] * pair.spacing[0] / (before.shape[1] * pair.spacing[1]))
    width = 3 * PANEL + 2 * GAP + 2 * MARGIN
    sheet = Image.new("RGB", (width, HEAD + len(rows) * (height + FOOT) + MARGIN // 2), GROUND)
    pen = ImageDraw.Draw(sheet)
    _head(pen, pair, width)
    for i, window in enumerate(rows):
        top = HEAD + i * (height + FOOT)
        detail = _detail(after, body, window)
        corner = _corner(body, detail)
        reach = _reach(change, window)
        panels = (_coloured(window.grey(before)), _coloured(window.grey(after)), _difference(change, reach))
        for k, pixels in enumerate(panels):
            panel = _panel(pixels, detail, corner, (PANEL, height))
            sheet.paste(panel, (MARGIN + k * (PANEL + GAP), top))
        _feet(pen, pair, window, reach, top + height + 12)
    return sheet


def _head(pen: ImageDraw.ImageDraw, pair: Pair, width: int) -> None:
    pen.text((MARGIN, 20), pair.title, font=_font(24), fill=INK)
    pen.text((MARGIN, 52), pair.subtitle, font=_font(15), fill=DIM)
    before, after = pair.noise
    if np.isfinite(before) and np.isfinite(after) and before > 0:
        unit = f" {pair.unit}" if pair.unit else ""
        text = f"noise  {before:.1f} to {after:.1f}{unit}"
        share = f"{100 * (after / before - 1):+.0f} %"
        right = width - MARGIN
        pen.text((right, 20), share, font=_font(24), fill=ACCENT, anchor="ra")
        pen.text((right, 52), text, font=_font(15), fill=DIM, anchor="ra")


def _feet(pen: ImageDraw.ImageDraw, pair: Pair, window: Window, reach: float, top: int) -> None:
    name = str(window) if window.name else f"C {window.centre:.0f}  W {window.width:.0f}"
    unit = f" {pair.unit}" if pair.unit else ""
    told = (
        ("Before", name),
        ("After", name),
        ("Difference", f"-{reach:.0f} to +{reach:.0f}{unit}"),
    )
    for k, (what, how) in enumerate(told):
        left = MARGIN + k * (PANEL + GAP)
        pen.text((left, top), what, font=_font(16), fill=INK)
        pen.text((left + PANEL, top + 1), how, font=_font(15), fill=DIM, anchor="ra")
        if what == "Difference":
            _scale(pen, left + 104, top + 4, 150, 11)


def _scale(pen: ImageDraw.ImageDraw, left: int, top: int, width: int, height: int) -> None:
    """The colours of the difference, from taken away to added."""
    for x in range(width):
        u = 2 * x / (width - 1) - 1
        r, g, b = (int(v) for v in (COLD if u < 0 else WARM) * abs(u))
        pen.line([(left + x, top), (left + x, top + height)], fill=(r, g, b))


def _reach(change: Floats, window: Window) -> float:
    """How large a change gets the full colour: what nearly all changes stay within, a round number."""
    seen = np.abs(change[change != 0])
    high = float(np.percentile(seen, 99)) if seen.size else 1.0
    high = min(max(high, 1e-3), window.width)
    size = 10.0 ** np.floor(np.log10(high))
    return float(max(next(m * size for m in (1, 2, 3, 5, 10) if m * size >= high * 0.999), 1.0))


def _coloured(grey: Floats) -> Grey:
    eight = np.rint(grey * 255).astype(np.uint8)
    return np.repeat(eight[..., None], 3, axis=2)


def _difference(change: Floats, reach: float) -> Grey:
    u = np.clip(change / np.float32(reach), -1, 1)[..., None]
    eight: Grey = np.rint(np.where(u < 0, COLD, WARM) * np.abs(u)).astype(np.uint8)
    return eight


def _corner(body: Mask, detail: tuple[int, int, int]) -> tuple[bool, bool]:
    """Which corner (right, bottom) the enlarged detail hides least in."""
    y, x, side = detail
    n_rows, n_columns = body.shape
    wide = int(side * DETAIL_ZOOM)

    def hidden(corner: tuple[bool, bool]) -> float:
        right, bottom = corner
        left, top = (n_columns - wide if right else 0), (n_rows - wide if bottom else 0)
        over = left < x + side and x < left + wide and top < y + side and y < top + wide
        return float(body[max(top, 0) : top + wide, max(left, 0) : left + wide].mean()) + 2 * over

    return min(((True, True), (False, True), (True, False), (False, False)), key=hidden)


def _panel(
    pixels: Grey, detail: tuple[int, int, int], corner: tuple[bool, bool], size: tuple[int, int]
) -> Image.Image:
    """One panel with its detail enlarged in a corner."""
    whole = Image.fromarray(pixels)
    panel = whole.resize(size, Image.Resampling.BICUBIC)
    y, x, side = detail
    fx, fy = size[0] / pixels.shape[1], size[1] / pixels.shape[0]
    pen = ImageDraw.Draw(panel)
    pen.rectangle((x * fx, y * fy, (x + side) * fx, (y + side) * fy), outline=ACCENT, width=1)
    wide, high = int(side * fx * DETAIL_ZOOM), int(side * fy * DETAIL_ZOOM)
    inset = whole.crop((x, y, x + side, y + side)).resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (size[0] - wide - 2 if corner[0] else 0), (size[1] - high - 2 if corner[1] else 0)
    pen.rectangle((left, top, left + wide + 1, top + high + 1), outline=ACCENT, width=1)
    panel.paste(inset, (left + 1, top + 1))
    return panel


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
