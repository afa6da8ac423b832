"""MR stacks of no anatomy at all: dead leaves, tubes, organs of ellipses, plates with resolution inserts.

A network that has seen only heads takes the edges of a knee for noise. These stacks hold edges of every
contrast, size and direction, with texture, in slices that belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engines.base import Floats
from training.simulate.details import add_vessels
from training.simulate.fields import MATRICES, Painted, finished, textures

N_TEXTURES = 5


@dataclass(slots=True, kw_only=True)
class _Canvas:
    """A stack to draw on, in mm around its middle; edges are ``soft`` mm wide, ``inside`` is the body."""

    values: Floats
    fields: Floats
    spacing: tuple[float, float, float]
    soft: float
    rng: np.random.Generator
    inside: Floats | None = None

    @property
    def half(self) -> float:
        """Half of the shorter side, mm."""
        return float(min(self.values.shape[1:])) * self.spacing[1] / 2

    def blend(self, window: tuple[slice, ...], alpha: Floats, value: float, grain: float) -> None:
        """Lay ``value`` with a random texture over a part of the stack."""
        # Texture as fine as a pixel looks like noise: the finest is the faintest.
        k = int(self.rng.integers(N_TEXTURES))
        strength = np.float32(min(grain * (0.3 + 0.3 * k), 0.15))
        part = self.values[window]
        part += alpha * (value * (1 + strength * self.fields[k][window]) - part)

    def around(
        self, y: float, x: float, reach: float
    ) -> tuple[tuple[slice, ...], Floats, Floats, Floats] | None:
        """Window of the stack within ``reach`` mm of a point, and z, y, x mm from the point there."""
        n, rows, columns = self.values.shape
        pixel = self.spacing[1]
        cy, cx, r = y / pixel + (rows - 1) / 2, x / pixel + (columns - 1) / 2, reach / pixel + 2
        y0, y1 = max(int(cy - r), 0), min(int(cy + r) + 2, rows)
        x0, x1 = max(int(cx - r), 0), min(int(cx + r) + 2, columns)
        if y0 >= y1 or x0 >= x1:
            return None
        dz = ((np.arange(n) - (n - 1) / 2) * self.spacing[0]).astype(np.float32)[:, None, None]
        dy = ((np.arange(y0, y1) - cy) * pixel).astype(np.float32)[None, :, None]
        dx = ((np.arange(x0, x1) - cx) * pixel).astype(np.float32)[None, None, :]
        return (slice(None), slice(y0, y1), slice(x0, x1)), dz, dy, dx

    def alpha(self, distance: Floats, soft: float | None = None) -> Floats:
        """1 where the signed distance (mm) is below 0, 0 above, over the width of an edge."""
        width = np.float32(0.35 * (self.soft if soft is None else soft))
        return np.asarray(1 / (1 + np.exp(np.clip(distance / width, -30, 30))), dtype=np.float32)

    def shape(
        self, y: float, x: float, radius: float, value: float, grain: float, soft: float | None = None
    ) -> None:
        """One ellipse, box or wavy blob that leans from slice to slice."""
        rng = self.rng
        found = self.around(y, x, 1.8 * radius)
        if found is None:
            return
        window, z, dy, dx = found
        lean = rng.normal(0, 0.3, 2)
        swell = np.clip(1 + rng.normal(0, 0.3) * z / (radius + 2), 0.4, 1.4)
        dy, dx = dy - lean[0] * np.clip(z, -radius, radius), dx - lean[1] * np.clip(z, -radius, radius)
        angle, ratio = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.9, 0.0))
        a = (dy * np.cos(angle) + dx * np.sin(angle)) / swell
        b = (dx * np.cos(angle) - dy * np.sin(angle)) / swell / ratio
        kind = rng.integers(4)
        if kind == 0:
            distance = np.maximum(np.abs(a), np.abs(b)) - radius
        else:
            r = np.hypot(a, b)
            if kind == 1:
                turns = int(rng.integers(2, 7))
                r = r * (1 + rng.uniform(0.05, 0.25) * np.sin(turns * np.arctan2(a, b) + rng.uniform(0, 6)))
            distance = r - radius
        self.blend(window, self.alpha(np.asarray(distance * ratio, dtype=np.float32), soft), value, grain)


def _value(rng: np.random.Generator) -> float:
    return float(rng.uniform(0, 1) ** rng.uniform(0.7, 1.5))


def _body(canvas: _Canvas) -> None:
    """A body in air, mostly; sometimes the picture is full to its edges."""
    rng = canvas.rng
    reach = 3.0 if rng.random() < 0.3 else float(rng.uniform(0.6, 0.95))
    found = canvas.around(0, 0, 2 * canvas.half)
    if found is None:
        return
    window, _, y, x = found
    wobble = 1 + 0.04 * np.sin(3 * np.arctan2(y, x) + rng.uniform(0, 6))
    distance = np.hypot(y * rng.uniform(1, 1.4), x) * wobble - reach * canvas.half
    body = np.broadcast_to(canvas.alpha(distance.astype(np.float32)), canvas.values.shape)
    canvas.inside = np.array(body)
    canvas.blend(window, canvas.inside, float(rng.uniform(0.25, 0.9)), 0.03)


def _leaves(canvas: _Canvas) -> None:
    """Dead leaves: shapes over shapes, as many of each size, large ones below.

    Lee, Mumford and Huang, Int J Comput Vis 41 (2001) 35.
    """
    rng = canvas.rng
    smallest, largest = 1.5 * canvas.spacing[1], 0.45 * canvas.half
    radii = np.exp(rng.uniform(np.log(smallest), np.log(largest), int(rng.integers(150, 450))))
    for radius in np.sort(radii)[::-1]:
        y, x = rng.uniform(-0.95, 0.95, 2) * canvas.half
        canvas.shape(y, x, float(radius), _value(rng), float(rng.exponential(0.03)))


def _organs(canvas: _Canvas) -> None:
    """A few large organs, fainter nodules in and between them."""
    rng = canvas.rng
    for _ in range(int(rng.integers(5, 14))):
        y, x = rng.uniform(-0.65, 0.65, 2) * canvas.half
        radius = rng.uniform(0.1, 0.4) * canvas.half
        canvas.shape(
            y, x, float(radius), _value(rng), float(rng.exponential(0.04)), canvas.soft * rng.uniform(1, 3)
        )
    for _ in range(int(rng.integers(20, 80))):
        y, x = rng.uniform(-0.7, 0.7, 2) * canvas.half
        radius = np.exp(rng.uniform(np.log(0.5), np.log(6.0)))
        n, rows, columns = canvas.values.shape
        at = canvas.values[
            n // 2, int(y / canvas.spacing[1] + rows / 2), int(x / canvas.spacing[1] + columns / 2)
        ]
        canvas.shape(y, x, float(radius), float(at * (1 + rng.uniform(-0.5, 0.5))), 0.02)


def _tubes(canvas: _Canvas) -> None:
    """Layers and fibres: parallel wavy bands, as muscle, cartilage and tendon are."""
    rng = canvas.rng
    for _ in range(int(rng.integers(2, 6))):
        y0, x0 = rng.uniform(-0.5, 0.5, 2) * canvas.half
        found = canvas.around(y0, x0, rng.uniform(0.3, 0.9) * canvas.half)
        if found is None:
            continue
        window, z, y, x = found
        angle, curve = rng.uniform(0, np.pi), rng.normal(0, 0.6) / canvas.half
        along = y * np.cos(angle) + x * np.sin(angle)
        across = x * np.cos(angle) - y * np.sin(angle) + curve * along**2 + rng.normal(0, 0.2) * z
        reach = float(np.hypot(y, x).max()) / 1.5
        inside = canvas.alpha(np.asarray(np.hypot(along, across) - reach, dtype=np.float32), 3.0)
        width = np.exp(rng.uniform(np.log(2 * canvas.spacing[1]), np.log(12.0)))
        low, high = _value(rng), _value(rng)
        bands = np.clip(0.5 + 0.5 * np.sin(np.pi * across / width) * width / canvas.soft, 0, 1).astype(
            np.float32
        )
        canvas.blend(window, inside, low, 0.03)
        canvas.blend(window, np.asarray(inside * bands), high, 0.03)


def _plate(canvas: _Canvas) -> None:
    """A quality phantom: rows of holes at the limit of resolution, bars, spokes of low-contrast discs."""
    rng = canvas.rng
    pixel = canvas.spacing[1]
    value = float(rng.uniform(0.5, 1.0))
    found = canvas.around(0, 0, canvas.half)
    if found is None:
        return
    window, _, y, x = found
    disc = canvas.alpha(np.hypot(y, x) - np.float32(0.85 * canvas.half))
    canvas.blend(window, np.asarray(np.broadcast_to(disc, canvas.values.shape)), value, 0.005)

    def dot(at_y: float, at_x: float, radius: float, to: float, square: bool = False) -> None:
        spot = canvas.around(at_y, at_x, 1.5 * radius)
        if spot is not None:
            where, _, dy, dx = spot
            distance = np.maximum(np.abs(dy), np.abs(dx)) - radius if square else np.hypot(dy, dx) - radius
            alpha = canvas.alpha(np.asarray(distance, dtype=np.float32))
            canvas.blend(where, np.asarray(np.broadcast_to(alpha, canvas.values[where].shape)), to, 0.0)

    turn = rng.uniform(0, 2 * np.pi)
    for spoke in range(int(rng.integers(6, 11))):
        angle = turn + spoke * 0.63
        contrast = rng.choice((-1, 1)) * np.exp(rng.uniform(np.log(0.008), np.log(0.2)))
        size = np.exp(rng.uniform(np.log(0.75), np.log(4.0)))
        for k in (0.2, 0.35, 0.5):
            radius = k * canvas.half
            dot(radius * np.sin(angle), radius * np.cos(angle), size * (0.6 + k), value * (1 + contrast))
    for _ in range(int(rng.integers(3, 7))):
        hole = pixel * rng.uniform(0.6, 2.0)
        y0, x0 = rng.uniform(-0.6, 0.6, 2) * canvas.half
        to, tilt, square = (
            float(rng.choice((0.0, 1.2)) * value),
            rng.uniform(-0.2, 0.2),
            bool(rng.random() < 0.5),
        )
        for i in range(4):
            for j in range(4):
                dot(y0 + 2 * hole * (i + tilt * j), x0 + 2 * hole * (j - tilt * i), hole / 2, to, square)
    for _ in range(int(rng.integers(1, 4))):
        y0, x0 = rng.uniform(-0.5, 0.5, 2) * canvas.half
        canvas.shape(y0, x0, float(rng.uniform(4, 18)), float(rng.uniform(0, 1.2)), 0.0)


KINDS: dict[str, tuple[Callable[[_Canvas], None], ...]] = {
    "leaves": (_body, _leaves),
    "organs": (_body, _organs),
    "fibres": (_body, _organs, _tubes),
    "plate": (_plate,),
}


def phantom(
    rng: np.random.Generator, *, n_slices: int = 3, matrix: int | None = None, kind: str | None = None
) -> Painted:
    """Draw an abstract noise-free MR stack.

    Parameters
    ----------
    rng
        Draws everything.
    n_slices
        Slices of the stack.
    matrix
        Rows and columns; drawn from 192 to 384 when None.
    kind
        A key of ``KINDS``; drawn when None.

    Returns
    -------
    Painted
        float32 (n_slices, matrix, matrix), scaled; the contrast is ``"phantom " + kind``.
    """
    matrix = int(rng.choice(MATRICES)) if matrix is None else matrix
    kind = str(rng.choice(list(KINDS), p=(0.3, 0.3, 0.2, 0.2))) if kind is None else kind
    pixel = float(np.exp(rng.uniform(np.log(0.4), np.log(1.2))))
    thickness = float(np.exp(rng.uniform(np.log(0.8), np.log(5.0))))
    spacing = (thickness * float(rng.choice((1.0, 1.1, 1.2))), pixel, pixel)
    shape = (n_slices, matrix, matrix)
    canvas = _Canvas(
        values=np.zeros(shape, dtype=np.float32),
        fields=textures(shape, spacing, rng, N_TEXTURES),
        spacing=spacing,
        soft=float(rng.uniform(0.8, 1.6)) * pixel,
        rng=rng,
    )
    for draw in KINDS[kind]:
        draw(canvas)
    values = canvas.values
    if kind != "plate":
        values = add_vessels(values, np.ones(shape, dtype=np.float32), spacing, thickness, rng)
    if canvas.inside is not None and rng.random() < 0.8:
        values = values * canvas.inside
    return Painted(values=finished(values, rng), spacing_mm=spacing, contrast=f"phantom {kind}")
