"""Soft shapes: signed distances in millimetres and how much of a pixel they cover.

Everything that the phantoms draw is a signed distance field (negative inside), turned into coverage
between 0 and 1 over about one pixel, so that edges have the partial volume that a scanner's have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Field: TypeAlias = npt.NDArray[np.floating[Any]]
"""Samples of a field, float32 in fact."""

Window: TypeAlias = tuple[slice, slice]
Point: TypeAlias = tuple[float, float, float]

FAR = 1e3


def cover(distance: Field, width: float) -> Field:
    """Share of a pixel inside the shape, given the signed distance (mm) at the pixel's centre.

    Parameters
    ----------
    distance
        Negative inside.
    width
        Over how many mm the edge goes from 0 to 1; a pixel or more.
    """
    share: Field = np.clip(0.5 - distance / width, 0.0, 1.0)
    return share


def pick(mask: npt.NDArray[np.bool_], yes: float, no: float) -> Field:
    """One value where the mask holds, another elsewhere, in single precision."""
    return np.where(mask, np.float32(yes), np.float32(no))


def smooth_min(a: Field, b: Field, k: float) -> Field:
    """Union of two shapes with the crease between them filled over ``k`` mm."""
    h = np.clip(0.5 + (0.5 / k) * (b - a), 0.0, 1.0)
    joined: Field = b + (a - b) * h - k * h * (1 - h)
    return joined


def ellipse(x: Field, y: Field, a: float, b: float, angle: float = 0.0) -> Field:
    """Approximate signed distance to an ellipse about the origin, good near its edge.

    ``a`` and ``b`` are the half axes in mm; ``angle`` turns it, in radians, from x towards y.
    """
    if angle:
        c, s = math.cos(angle), math.sin(angle)
        x, y = c * x + s * y, c * y - s * x
    u, v = x / a, y / b
    q = np.sqrt(u * u + v * v)
    g = np.hypot(u / a, v / b) + (1e-6)
    distance: Field = q * (q - 1) / g
    return distance


def superellipse(x: Field, y: Field, a: Field | float, b: Field | float, n: Field | float) -> Field:
    """Approximate signed distance to a superellipse of exponent ``n`` about the origin."""
    q = (np.abs(x / a) ** n + np.abs(y / b) ** n) ** (1 / n)
    # Along the ray from the origin; the obliquity of the edge is made good to first order.
    r = np.hypot(x, y) + (1e-3)
    along: Field = r * (1 - 1 / np.maximum(q, (1e-3)))
    return along.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tube:
    """A bent round rod in space: points (x, y, z) in mm and a radius at each."""

    points: npt.NDArray[np.float32]
    radii: npt.NDArray[np.float32]

    @classmethod
    def of(cls, *knots: tuple[float, float, float, float]) -> Tube:
        """From (x, y, z, radius) at each knot; a smooth curve is laid through them."""
        k = np.asarray(knots, dtype=np.float64)
        if len(k) > 2:
            t = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(k[:, :3], axis=0), axis=1))])
            fine = np.linspace(0, t[-1], 3 * (len(k) - 1) + 1)
            k = np.stack([_catmull(t, k[:, i], fine) for i in range(4)], axis=1)
        return cls(points=k[:, :3].astype(np.float32), radii=k[:, 3].astype(np.float32))

    def grown(self, by: float) -> Tube:
        return Tube(points=self.points, radii=self.radii + by)

    def distance(self, x: Field, y: Field, z: float, reach: float = 8.0) -> Field:
        """Signed distance on a grid (y, x) at height z; ``FAR`` further than about ``reach`` mm away."""
        out = np.full(x.shape, FAR, dtype=np.float32)
        self.touch(out, x, y, z, reach)
        return out

    def touch(self, out: Field, x: Field, y: Field, z: float, reach: float = 8.0, blend: float = 0.0) -> None:
        """Join this tube to the shape ``out`` in place, smoothly over ``blend`` mm if that is not 0."""
        column, row = x[0], y[:, 0]
        for (p, q), (r0, r1) in zip(_pairs(self.points), _pairs(self.radii), strict=True):
            far = max(r0, r1) + reach
            if not min(p[2], q[2]) - far < z < max(p[2], q[2]) + far:
                continue
            i0, i1 = np.searchsorted(column, (min(p[0], q[0]) - far, max(p[0], q[0]) + far))
            j0, j1 = np.searchsorted(row, (min(p[1], q[1]) - far, max(p[1], q[1]) + far))
            if i0 == i1 or j0 == j1:
                continue
            w = (slice(j0, j1), slice(i0, i1))
            d = segment(x[w], y[w], z, p, q, float(r0), float(r1))
            out[w] = smooth_min(out[w], d, blend) if blend else np.minimum(out[w], d)


def segment(
    x: Field,
    y: Field,
    z: float | Field,
    p: npt.NDArray[np.float32],
    q: npt.NDArray[np.float32],
    r0: float,
    r1: float,
) -> Field:
    """Signed distance to a rod from ``p`` to ``q`` whose radius goes from ``r0`` to ``r1``."""
    d = q - p
    length2 = max(float(d @ d), 1e-6)
    ax, ay, az = x - p[0], y - p[1], z - p[2]
    t = np.clip((ax * d[0] + ay * d[1] + az * d[2]) / length2, 0, 1)
    ax, ay, az = ax - t * d[0], ay - t * d[1], az - t * d[2]
    distance: Field = np.sqrt(ax * ax + ay * ay + az * az) - (r0 + t * (r1 - r0))
    return distance


def _pairs(a: npt.NDArray[np.float32]) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    return list(itertools.pairwise(a))


def _catmull(
    t: npt.NDArray[np.float64], v: npt.NDArray[np.float64], at: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Cubic Hermite curve through (t, v) with slopes from the neighbours."""
    m = np.gradient(v, t)
    i = np.clip(np.searchsorted(t, at, side="right") - 1, 0, len(t) - 2)
    h = t[i + 1] - t[i]
    s = (at - t[i]) / h
    out: npt.NDArray[np.float64] = (
        (1 + 2 * s) * (1 - s) ** 2 * v[i]
        + s * (1 - s) ** 2 * h * m[i]
        + s**2 * (3 - 2 * s) * v[i + 1]
        + s**2 * (s - 1) * h * m[i + 1]
    )
    return out


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float | Sequence[float], wrap: bool = False
) -> Field:
    """A smooth random field of unit variance; ``scale`` is the Gaussian's sigma in samples per axis."""
    white = rng.standard_normal(shape, dtype=np.float32)
    field = ndimage.gaussian_filter(white, scale, mode="wrap" if wrap else "reflect", truncate=3.0)
    unit: Field = (field / (field.std() + 1e-6)).astype(np.float32)
    return unit


@dataclass(slots=True)
class Canvas:
    """One slice being painted, or some of its pixels.

    Attributes
    ----------
    x, y
        Coordinates of the pixel centres in mm; +x is the patient's left, +y the patient's back.
    values
        What has been painted so far.
    pixel
        Pixel size in mm, square.
    """

    x: Field
    y: Field
    values: Field
    pixel: float

    @classmethod
    def blank(cls, size: int, pixel: float, centre: tuple[float, float], fill: float) -> Canvas:
        line = (np.arange(size, dtype=np.float32) - ((size - 1) / 2)) * pixel
        x, y = np.meshgrid(line + centre[0], line + centre[1])
        return cls(x, y, np.full((size, size), fill, dtype=np.float32), pixel)

    @property
    def edge(self) -> float:
        """Over how many mm an edge is spread."""
        return max(self.pixel, 0.5)

    def some(self, mask: npt.NDArray[np.bool_]) -> Canvas:
        """A canvas of the masked pixels only (1-D); :meth:`put` lays it back."""
        return Canvas(self.x[mask], self.y[mask], self.values[mask], self.pixel)

    def put(self, mask: npt.NDArray[np.bool_], part: Canvas) -> None:
        self.values[mask] = part.values

    def window(self, cx: float, cy: float, rx: float, ry: float) -> Window:
        """Pixels within ``rx``, ``ry`` mm of a point (and a margin for the soft edge)."""
        n = self.values.shape[0]
        m = 2 * self.edge
        x0, y0 = float(self.x[0, 0]), float(self.y[0, 0])
        i0, i1 = (int(np.clip((cx + s - x0) / self.pixel, 0, n)) for s in (-rx - m, rx + m + self.pixel))
        j0, j1 = (int(np.clip((cy + s - y0) / self.pixel, 0, n)) for s in (-ry - m, ry + m + self.pixel))
        return slice(j0, j1), slice(i0, i1)

    def paint(self, share: Field, value: float | Field, where: Window | None = None) -> None:
        """Lay ``value`` over what is there, ``share`` of each pixel."""
        target = self.values if where is None else self.values[where]
        target += share * (value - target)

    def ellipse(
        self,
        cx: float,
        cy: float,
        a: float,
        b: float,
        value: float | None,
        angle: float = 0.0,
        edge: float = 0.0,
    ) -> None:
        """Paint a filled ellipse."""
        r = max(a, b)
        w = self.window(cx, cy, r, r)
        if value is None or self.values[w].size == 0:
            return
        distance = ellipse(self.x[w] - cx, self.y[w] - cy, a, b, angle)
        self.paint(cover(distance, max(edge, self.edge)), value, w)

    def rod(self, p: tuple[float, float], q: tuple[float, float], r0: float, r1: float, value: float) -> None:
        """Paint a thick line from ``p`` to ``q`` (mm) whose half width goes from ``r0`` to ``r1``."""
        r = max(r0, r1)
        w = self.window(
            (p[0] + q[0]) / 2, (p[1] + q[1]) / 2, abs(p[0] - q[0]) / 2 + r, abs(p[1] - q[1]) / 2 + r
        )
        if self.values[w].size == 0:
            return
        ends = np.array([(*p, 0.0), (*q, 0.0)], dtype=np.float32)
        self.paint(cover(segment(self.x[w], self.y[w], 0.0, ends[0], ends[1], r0, r1), self.edge), value, w)


def doubled(coarse: Field, size: int) -> Field:
    """Linear interpolation of a field known at every second pixel (``size / 2 + 1`` points a side)."""
    rows = np.empty((size, coarse.shape[1]), dtype=np.float32)
    rows[0::2], rows[1::2] = coarse[:-1], (coarse[:-1] + coarse[1:]) / 2
    out = np.empty((size, size), dtype=np.float32)
    out[:, 0::2], out[:, 1::2] = rows[:, :-1], (rows[:, :-1] + rows[:, 1:]) / 2
    return out


def enlarged(small: Field, size: int) -> Field:
    """Linear interpolation of a square field up to ``size`` x ``size``."""
    n = small.shape[0]
    if n == size:
        return small
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    i = np.minimum(at.astype(int), n - 2)
    t = (at - i).astype(np.float32)
    rows = small[i] * (1 - t)[:, None] + small[i + 1] * t[:, None]
    out: Field = rows[:, i] * (1 - t) + rows[:, i + 1] * t
    return out
