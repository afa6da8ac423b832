"""A head, as the signal of an MR sequence at 3 T: scalp, skull, folded cortex, deep nuclei.

Coordinates in mm: +x to the patient's left, +y to the back, +z to the head; the line between the commissures
lies near z = 0. The cortex is folded by a labyrinth of sheets (band-passed, sharpened noise) that is laid on
the surface and pushed inwards, so that each sulcus keeps its way while it gets deeper.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from node.trial.shapes import Canvas, Field, Tube, cover, ellipse, pick, smooth_min, smooth_noise

TISSUE: dict[str, tuple[float, float, float]] = {  # proton density, T1 ms, T2 ms at 3 T
    "white": (0.70, 850, 70),
    "grey": (0.82, 1350, 96),
    "csf": (1.00, 4200, 1100),
    "caudate": (0.81, 1280, 88),
    "putamen": (0.80, 1230, 82),
    "pallidum": (0.74, 1050, 62),
    "thalamus": (0.78, 1130, 81),
    "lesion": (0.86, 1500, 175),
    "plexus": (0.90, 1700, 190),
    "fat": (0.92, 370, 118),
    "skin": (0.70, 900, 42),
    "muscle": (0.78, 1400, 36),
    "marrow": (0.62, 480, 72),
    "bone": (0.06, 1000, 8),
    "dura": (0.30, 1100, 28),
    "flow": (0.10, 1600, 20),
}

SEQUENCES: dict[str, dict[str, float]] = {  # ms; they go into the DICOM header too. TI 0: no inversion
    "T2": {"TR": 4300.0, "TE": 98.0, "TI": 0.0},
    "T1": {"TR": 2300.0, "TE": 2.9, "TI": 900.0},
}


def signal(sequence: str) -> dict[str, float]:
    """Signal of each tissue, white matter = 1.

    Spin echo: PD (1 - exp(-TR/T1)) exp(-TE/T2); after an inversion: PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)|
    exp(-TE/T2).
    """
    tr, te, ti = (SEQUENCES[sequence][k] for k in ("TR", "TE", "TI"))
    s = {}
    for name, (pd, t1, t2) in TISSUE.items():
        along = 1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1) if ti else 1 - np.exp(-tr / t1)
        s[name] = pd * abs(along) * np.exp(-te / t2)
    if ti:
        s["fat"] *= 0.45  # chemical shift and coil saturation take their share
    return {name: float(v / s["white"]) for name, v in s.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """A small bright (T2) spot in the white matter; mm."""

    x: float
    y: float
    z: float
    radius: float


VENTRICLE = Tube.of(
    (13, -35, 1, 2.5), (9, -27, 8, 5.8), (8.5, -14, 15, 6.4), (10.5, 2, 21, 6.2), (14.5, 16, 22, 6.0),
    (21, 28, 16, 6.6), (26, 37, 7, 7.4), (27, 50, 4, 4.2), (25.5, 60, 3, 1.6),
)  # fmt: skip
TEMPORAL_HORN = Tube.of((27, 35, 3, 6.0), (32, 24, -7, 3.4), (33.5, 8, -14, 2.4))
CAUDATE = Tube.of(
    (14, -26, 2, 5.4),
    (15, -19, 9, 6.6),
    (17.5, -6, 18, 4.2),
    (20, 8, 22, 3.0),
    (25, 22, 19, 2.2),
    (31, 31, 10, 1.6),
)
PLEXUS = Tube.of((18, 20, 17, 1.6), (23, 30, 13, 2.8), (26.5, 36, 7, 3.4), (29, 31, 0, 2.0))
FORNIX = Tube.of(
    (2.0, -6, 2, 1.6), (2.2, -8, 10, 1.8), (3.0, 4, 15.5, 2.0), (8, 20, 14, 1.8), (16, 29, 8, 1.6)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One patient: random fields on a coarse grid, and what else the seed varies."""

    folds: npt.NDArray[np.float32] = field(repr=False)
    fine: npt.NDArray[np.float32] = field(repr=False)
    slow: npt.NDArray[np.float32] = field(repr=False)
    warp: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] = field(repr=False)
    wide: float
    long: float
    atrophy: float
    lesions: tuple[Lesion, ...]

    step: float

    @classmethod
    def of(cls, rng: np.random.Generator, step: float = 2.0) -> Head:
        """A head drawn from ``rng``, its fields known every ``step`` mm."""
        n = int(200 / step)
        lesions = []
        for _ in range(9):
            side = 1 if rng.random() < 0.5 else -1
            lesions.append(
                Lesion(
                    x=float(side * rng.uniform(19, 36)), y=float(rng.uniform(-34, 42)),
                    z=float(rng.uniform(21, 44)), radius=float(rng.uniform(1.2, 3.0)),
                )
            )  # fmt: skip
        return cls(
            folds=_labyrinth(rng, n, 28.0 / step),
            fine=_labyrinth(rng, n, 19.0 / step),
            slow=smooth_noise(rng, (n, n, n), 16.0 / step),
            warp=(smooth_noise(rng, (n, n, n), 11.0 / step), smooth_noise(rng, (n, n, n), 11.0 / step)),
            wide=float(66.0 * (1 + 0.02 * rng.standard_normal())),
            long=float(84.0 * (1 + 0.02 * rng.standard_normal())),
            atrophy=float(rng.uniform(0.8, 1.5)),
            lesions=tuple(lesions),
            step=step,
        )

    def sample(self, which: npt.NDArray[np.float32], x: Field, y: Field, z: Field | float) -> Field:
        """A random field at points in mm."""
        s = 1 / self.step
        at = np.stack([np.broadcast_to(z, x.shape).astype(np.float32), y, x]) * s + (100 / self.step - 0.5)
        out: Field = ndimage.map_coordinates(which, at, order=1, mode="mirror", output=np.float32)
        return out

    def hull(self, x: Field, y: Field, z: float) -> Field:
        """Signed distance to the smooth envelope of the brain."""
        ahead = np.clip(-y / 80, 0, 1)
        a = self.wide * (1 - 0.10 * ahead * ahead)
        c = 76.0 if z > 4 else 90.0
        zz = (z - 4.0) / c
        u, v = x / a, (y - 2.0) / self.long
        # A little squarer than an ellipsoid.
        p = 2.25
        q = (np.abs(u) ** p + np.abs(v) ** p + np.abs(zz) ** p) ** (1 / p)
        g = np.sqrt((u / a) ** 2 + (v / self.long) ** 2 + (zz / c) ** 2) + (1e-6)
        distance: Field = q * (q - 1) / g
        return distance.astype(np.float32)


def _labyrinth(rng: np.random.Generator, n: int, wave: float) -> npt.NDArray[np.float32]:
    """A field whose zero level winds like gyri: noise band-passed and sharpened in turn.

    ``wave`` is the wavelength in samples; between two zero crossings lies half of it.
    """
    f = rng.standard_normal((n, n, n), dtype=np.float32)
    sigma = wave / 6.6
    for i in range(3):
        f = ndimage.gaussian_filter(f, sigma, truncate=2.5) - ndimage.gaussian_filter(
            f, 1.7 * sigma, truncate=2.5
        )
        f /= f.std()
        if i < 2:
            f = np.tanh(2.5 * f)
    return np.ascontiguousarray(f, dtype=np.float32)


def pia(head: Head, x: Field, y: Field, z: float, slow: Field, depth: Field) -> Field:
    """Signed distance (about, mm) to the surface of the cortex: positive in the tissue, negative in CSF.

    ``depth`` is the distance inside the hull.
    """
    q = np.sqrt((x / head.wide) ** 2 + ((y - 2) / head.long) ** 2 + (((z - 4) / 78) ** 2)) + 0.02
    out = np.minimum(q ** (-0.78), 3.0)
    wx = head.sample(head.warp[0], x, y, z) * 5.5
    wy = head.sample(head.warp[1], x, y, z) * 5.5
    px, py, pz = x * out + wx, y * out + wy, z * out + wx - wy
    pixel = float(x[0, 1] - x[0, 0])
    pial = depth
    for which, wave, deep, half in (
        (head.folds, 28.0, 24.0 + 5.0 * slow, 0.20 * head.atrophy),
        (head.fine, 19.0, 2.5 + 6.0 * slow, 0.0),
    ):
        f = head.sample(which, px, py, pz)
        gy, gx = np.gradient(f, pixel)
        steep = np.sqrt(ndimage.gaussian_filter(gx * gx + gy * gy, 1.6 / pixel, truncate=2.0))
        aside = np.abs(f) / np.maximum(steep, (2.4 / wave))
        aside += np.maximum((3.2 / wave) - steep, 0) * (2.2 * wave)
        past = np.maximum(depth - deep, 0)
        open_ = half + (0.8 * head.atrophy) * np.exp(-np.maximum(depth, 0) / 4.0)
        sheet = np.sqrt(aside * aside + past * past) - open_
        pial = smooth_min(pial, sheet.astype(np.float32), 3.0)
    return pial


def medial(head: Head, x: Field, y: Field, z: float, aside: Field, outside: Field) -> Field:
    """Like :func:`pia` for the sulci of the inner face, the cingulate sulcus among them."""
    side = pick(aside > 0, 24.0, -24.0)
    lean = head.sample(head.warp[0], x, y, z) * 3.0
    f = head.sample(head.folds, side + aside * 0.25, y + lean, z - lean)
    gy, gx = np.gradient(f, (x[0, 1] - x[0, 0]))
    steep = np.sqrt(ndimage.gaussian_filter(gx * gx + gy * gy, 2.0, truncate=2.0))
    random = np.abs(f) / np.maximum(steep, 0.085) + np.maximum(0.16 - steep, 0) * 110
    cingulate = np.abs(outside - 14.0 - 2.2 * lean)
    # Where a sulcus runs within the slice it would only be a blur: let it pass above or below.
    cingulate += np.maximum(0.7 - np.abs(np.gradient(outside, float(y[1, 0] - y[0, 0]), axis=0)), 0) * 12
    past = np.maximum(np.abs(aside) - 8.5 - 1.3 * lean, 0)
    near = np.maximum(9.0 - outside, 0)
    along = np.minimum(random + near, cingulate + np.maximum(6.0 - outside, 0))
    sheet: Field = np.sqrt(along * along + past * past) - (0.22 * head.atrophy)
    return sheet


def midline(x: Field, y: Field, z: float) -> tuple[Field, Field]:
    """Distance aside of the plane between the hemispheres, and how far outside the corpus callosum (mm)."""
    sway = 1.1 * np.sin(y / 31 + (z / 23))
    ring = np.sqrt(((y - 2) / 42) ** 2 + (((z - 4) / 29) ** 2))
    outside = (ring - 1) * 32
    return (x - sway).astype(np.float32), outside.astype(np.float32)


def sylvian(x: Field, y: Field, z: float) -> Field:
    """Distance to the cistern over the insula and the stem that leads to it from the side."""
    ax = np.abs(x) + pick(x > 0, 0.8, 0.0)
    fade = max(0.0, z - 13.0) * 0.9
    y0 = -2.0 + 0.55 * z
    along = np.maximum(np.abs(y - y0) - (max(23.0 - 0.8 * abs(z), 1.0)), 0)
    cistern = np.hypot(
        along,
        ax - ((42.5 + 0.12 * z) - ((y - y0) / 17) ** 2 * 2.2),
    )
    stem_y = (y0 + 2.0) + 0.35 * (ax - 42) + 2.0 * np.sin(ax / 6)
    stem = np.hypot(np.maximum(41 - ax, 0), y - stem_y)
    distance: Field = (np.minimum(cistern, stem) + fade).astype(np.float32)
    return distance


def paint_head(c: Canvas, head: Head, z: float, s: dict[str, float]) -> None:
    """One thin slice: signal of every tissue, white matter = 1, air = 0."""
    slow = head.sample(head.slow, c.x, c.y, z)
    hull = head.hull(c.x, c.y, z)
    _paint_shell(c, hull, slow, z, s, head.atrophy)
    rows, columns = (np.flatnonzero((hull < 4).any(axis=i)) for i in (1, 0))
    if len(rows) > 4 and len(columns) > 4:
        w = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        part = Canvas(c.x[w], c.y[w], c.values[w], c.pixel)
        _paint_brain(part, head, hull[w], slow[w], z, s)
        _paint_deep(c, z, s)
        _paint_lesions(c, head, z, s)


def _paint_brain(c: Canvas, head: Head, hull: Field, slow: Field, z: float, s: dict[str, float]) -> None:
    """White matter, cortex, CSF, falx and the great sinus."""
    x, y, e = c.x, c.y, c.edge
    depth = -hull
    aside, outside = midline(x, y, z)
    pial = pia(head, x, y, z, slow, depth - 0.2)
    # The fissure between the hemispheres ends on the corpus callosum.
    near = np.exp(-np.maximum(depth, 0) / 6)
    gap = np.abs(aside) - (0.45 + 0.25 * head.atrophy) - (0.5 * head.atrophy) * near
    deep = np.maximum(-outside, 0)
    pial = smooth_min(pial, np.sqrt(np.maximum(gap, 0) ** 2 + deep * deep) + np.minimum(gap, 0), 2.0)
    strip = (slice(None), slice(*np.searchsorted(x[0], (-22.0, 22.0))))
    inner = medial(head, x[strip], y[strip], z, aside[strip], outside[strip])
    pial[strip] = smooth_min(pial[strip], inner, 2.0)
    pial = smooth_min(pial, sylvian(x, y, z) - (0.7 * head.atrophy + 0.2), 2.0)
    inside = cover(hull - 0.3, e)
    tone = 1 + 0.012 * slow
    c.paint(inside, s["white"] * tone)
    thick = 3.1 + 0.25 * slow
    c.paint(inside * cover(pial - thick, e * 1.6), s["grey"] * tone)
    c.paint(inside * cover(pial, e), s["csf"])
    falx = np.maximum(np.abs(aside) - 0.4, 11.0 - outside)
    c.paint(inside * cover(falx, e) * 0.8, s["dura"])
    rim = np.maximum(np.abs(hull + 1.0) - 1.5, 0)
    sinus = np.hypot(aside * 1.2, rim) - 2.6
    c.paint(cover(sinus, e) * ((y > 30) | (z > 60)), s["flow"])


def _paint_shell(c: Canvas, hull: Field, slow: Field, z: float, s: dict[str, float], atrophy: float) -> None:
    """Scalp, skull, dura and the CSF over the convexity."""
    x, y, e = c.x, c.y, c.edge
    bone = 6.4 + 0.45 * slow + 1.6 * np.clip(np.abs(y) / 80 - 0.5, 0, 1)
    low = max(0.0, min(1.0, (38.0 - z) / 30.0))
    temple = np.exp(-(((y + 22) / 26) ** 2)) * np.clip((np.abs(x) - 38) / 20, 0, 1) * (7.0 * low)
    space = (0.9 + 0.6 * atrophy) + 0.3 * slow
    fat = 4.2 + 0.35 * slow + 1.2 * np.clip(y / 80, 0, 1)
    inner, outer = space, space + bone
    c.paint(cover(hull - outer - temple - fat - 1.7, e), s["skin"])
    c.paint(cover(hull - outer - temple - fat, e), s["fat"] * (1 + 0.05 * slow))
    c.paint(cover(hull - outer - temple, e), s["muscle"] * (1 + 0.08 * slow))
    c.paint(cover(hull - outer - 0.9, e), s["muscle"] * 0.8)
    c.paint(cover(hull - outer, e), s["bone"])
    third = bone * 0.30
    diploe = np.maximum(hull - outer + third, inner + third * 1.1 - hull)
    c.paint(cover(diploe, e * 1.2) * np.clip(0.85 + 0.1 * slow, 0, 1), s["marrow"])
    c.paint(cover(hull - inner, e), s["dura"])
    c.paint(cover(hull - inner + 0.8, e), s["csf"])


def _paint_deep(c: Canvas, z: float, s: dict[str, float]) -> None:
    """Ventricles, nuclei, corpus callosum's neighbours, brain stem and the top of the cerebellum."""
    w = c.window(0, 12, 48, 76)
    x, y, e = c.x[w], c.y[w], c.edge
    ax = np.abs(x)

    def blob(
        cx: float, cy: float, cz: float, a: float, b: float, h: float, turn: float = 0.0
    ) -> Field | None:
        left = 1 - ((z - cz) / h) ** 2
        if left <= 0.02:
            return None
        k = left**0.5
        return ellipse(ax - cx, y - cy, a * k, b * k, turn)

    def lay(d: Field | None, tissue: str, share: float = 1.0, soft: float = 1.0) -> None:
        if d is not None:
            c.paint(cover(d, e * soft) * share, s[tissue], w)

    core = blob(0, 6, 4, 40, 46, 30)
    lay(None if core is None else core + 6, "white", 1.0, 10.0)
    lay(blob(11.5, 11, 6, 9.5, 15.5, 11, 0.35), "thalamus", 0.95, 2.0)
    lay(blob(9, 10, 6, 3.5, 9, 7, 0.35), "grey", 0.30, 3.0)
    lay(blob(28, -1, 5, 5.6, 17.5, 13, -0.22), "putamen", 1.0, 1.4)
    lay(blob(21, 3, 2, 4.6, 10.5, 8, -0.42), "pallidum", 1.0, 1.6)
    claustrum = np.maximum(np.abs(ax - (36.0 - ((y + 1) / 17) ** 2 * 2)) - 0.5, np.abs(y + 1) - 15)
    if -4 < z < 14:
        lay(claustrum.astype(np.float32), "grey", 0.6)
    # |x| is not monotonic along a row, so the tubes are laid on each side by itself.
    for sign in (-1.0, 1.0):
        half = c.window(sign * 25, 12, 26, 76)
        hx, hy = c.x[half] * sign, c.y[half]
        flip = slice(None, None, -1 if sign < 0 else 1)
        tubes = (VENTRICLE, TEMPORAL_HORN, CAUDATE, PLEXUS, FORNIX)
        ventricle, horn, caudate, plexus, fornix = (
            t.distance(hx[:, flip], hy[:, flip], z, 3.0)[:, flip] for t in tubes
        )

        c.paint(cover(caudate, e * 1.3), s["caudate"], half)
        ventricle = np.maximum(ventricle, -caudate - 0.3)
        septum = 0.8 - c.x[half] * sign
        ventricle = np.maximum(ventricle, septum)
        ventricle = np.minimum(ventricle, horn)
        c.paint(cover(ventricle - 1.1, e * 2) * 0.30, s["lesion"], half)
        c.paint(cover(ventricle, e), s["csf"], half)
        c.paint(cover(plexus, e) * 0.75, s["plexus"], half)
        c.paint(cover(fornix, e), s["white"], half)
    lay(blob(0, 7, 0, 2.3, 16, 10), "csf")
    cistern = blob(0, 33, -3, 12, 8, 11)
    lay(cistern, "csf")
    lay(blob(0, 29, 0, 3.0, 4.2, 4), "grey")
    lay(blob(2.6, 35, 2, 1.2, 1.6, 6), "flow")


def _paint_lesions(c: Canvas, head: Head, z: float, s: dict[str, float]) -> None:
    for k, n in enumerate(head.lesions):
        r2 = n.radius**2 - (z - n.z) ** 2
        if r2 > 0.05:
            c.ellipse(n.x, n.y, 1.25 * r2**0.5, r2**0.5, s["lesion"], angle=0.7 * k, edge=1.8)
