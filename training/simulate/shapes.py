"""Primitives that synthetic anatomy is drawn with: random fields, soft shapes, tubes, septa.

Everything is drawn in millimetres on a stack of a few slices, so that neighbours belong together as those of
a scanner do, and every edge is soft: what a scanner cannot resolve is never in a truth.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft2, rfft2

Floats = npt.NDArray[np.float32]


def share(distance: npt.NDArray[np.floating], soft: float) -> Floats:
    """1 inside (distance < 0), 0 outside, over ``soft`` mm."""
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(distance / soft, -30, 30))), np.float32)


@dataclass(slots=True, kw_only=True)
class Canvas:
    """A stack to draw on.

    Attributes
    ----------
    pixel_mm, step_mm
        In the slice, and from slice to slice.
    textured
        How strong textures of tissues are: 1 as they are drawn, 0 none.
    values
        float32 (z, y, x), HU.
    """

    shape: tuple[int, int, int]
    pixel_mm: float
    step_mm: float
    rng: np.random.Generator
    soft: float = 0.0
    textured: float = 1.0
    values: Floats = field(init=False)
    y: Floats = field(init=False)
    x: Floats = field(init=False)
    z: Floats = field(init=False)
    _f: Floats = field(init=False)

    def __post_init__(self) -> None:
        n, rows, columns = self.shape
        self.values = np.full(self.shape, -1000.0, np.float32)
        self.y = ((np.arange(rows) - (rows - 1) / 2) * self.pixel_mm).astype(np.float32)[None, :, None]
        self.x = ((np.arange(columns) - (columns - 1) / 2) * self.pixel_mm).astype(np.float32)[None, None, :]
        self.z = ((np.arange(n) - (n - 1) / 2) * self.step_mm).astype(np.float32)[:, None, None]
        self._f = np.hypot(
            np.fft.fftfreq(rows, self.pixel_mm)[:, None], np.fft.rfftfreq(columns, self.pixel_mm)[None, :]
        ).astype(np.float32)
        if self.soft <= 0:
            self.soft = 0.3 * self.pixel_mm

    @property
    def half_mm(self) -> float:
        """Half of the shorter side."""
        return 0.5 * self.pixel_mm * min(self.shape[1:])

    def field(self, fine_mm: float, coarse_mm: float, slope: float = 0.0) -> Floats:
        """Return a random field of unit variance with wavelengths between two lengths, that drifts along z.

        Parameters
        ----------
        slope
            Of the amplitude against frequency: 0 is white within the band, 1.5 a cloud.
        """
        f = self._f
        band = np.exp(-2.0 * (f * fine_mm) ** 2) * (1 - np.exp(-0.5 * (f * coarse_mm) ** 2))
        if slope:
            band = band / np.maximum(f, 1e-3) ** slope
        a, b = (
            irfft2(rfft2(self.rng.standard_normal(self.shape[1:], np.float32)) * band, s=self.shape[1:])
            for _ in "ab"
        )
        # Over a quarter of the mean wavelength along z the field becomes another one.
        turn = (np.pi / 2) * self.z / max(np.sqrt(fine_mm * coarse_mm), self.step_mm)
        made = np.cos(turn) * a + np.sin(turn) * b
        return np.asarray(made / (made.std() + 1e-9), np.float32)

    def texture(self, fine_mm: float, coarse_mm: float, slope: float = 0.0) -> Floats:
        """Return a :meth:`field` that is a texture of a tissue, not a shape, as strong as this canvas has them."""
        return self.field(fine_mm, coarse_mm, slope) * np.float32(self.textured)

    def distance(
        self,
        at: tuple[float, float, float],
        radii: tuple[float, float, float],
        angle: float = 0.0,
        ragged: Floats | None = None,
        ragged_mm: float = 0.0,
        power: float = 2.0,
    ) -> Floats:
        """Signed distance in mm (about) to an ellipsoid, or superellipsoid, at (z, y, x), rotated in the slice."""
        c, s = np.cos(angle), np.sin(angle)
        dy, dx = self.y - at[1], self.x - at[2]
        u, v = (dx * c + dy * s) / radii[2], (dy * c - dx * s) / radii[1]
        w = np.abs((self.z - at[0]) / radii[0])
        r = (np.abs(u) ** power + np.abs(v) ** power + w**power) ** (1 / power)
        d = (r - 1) * min(radii[1:])
        if ragged is not None:
            d = d + ragged_mm * ragged
        return np.asarray(d, np.float32)

    def fill(self, where: Floats, value: float | Floats) -> None:
        """Paint ``value`` to the share ``where``."""
        self.values += where * (value - self.values)

    def septa(self, where: Floats, value: float, of: Floats, width: float) -> None:
        """Paint the zero lines of a field: sheets that are thin curves in a slice (fascia, sulci, fissures)."""
        self.fill(np.asarray(where * np.exp(-((of / width) ** 2)), np.float32), value)

    def tube(
        self, value: float, radius_mm: float, length_mm: float, at: tuple[float, float], where: Floats
    ) -> None:
        """Paint a curved vessel of falling radius, within ``where``."""
        rng, p = self.rng, self.pixel_mm
        n = int(np.clip(length_mm / max(0.5 * radius_mm, 0.5 * p), 6, 120))
        t = np.linspace(0, 1, n, dtype=np.float32)
        angle, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 1.0)
        heading = angle + bend * t + 0.4 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * t + rng.uniform(0, 6))
        step = length_mm / n
        cy = at[0] + np.cumsum(np.sin(heading)) * step
        cx = at[1] + np.cumsum(np.cos(heading)) * step
        steep = rng.normal(0, 0.5)
        cz = (t - rng.uniform(0, 1)) * length_mm * steep
        r = radius_mm * (1 - 0.6 * t)
        pad = radius_mm + 3 * self.soft
        rows = self._span(cy.min() - pad, cy.max() + pad, 1)
        columns = self._span(cx.min() - pad, cx.max() + pad, 2)
        if rows.stop <= rows.start or columns.stop <= columns.start:
            return
        yy, xx = self.y[0, rows, 0], self.x[0, 0, columns]
        for k, z in enumerate(self.z[:, 0, 0]):
            near = np.abs(cz - z) < r + self.step_mm
            if not near.any():
                continue
            dy = (yy[:, None] - cy[near][None, :]) ** 2
            dx = (xx[:, None] - cx[near][None, :]) ** 2
            out = (cz[near] - z) ** 2
            d = np.sqrt(dy[:, None, :] + dx[None, :, :] + out) - r[near]
            s = share(np.asarray(d.min(axis=2), np.float32), self.soft) * where[k, rows, columns]
            box = self.values[k, rows, columns]
            box += s * (value - box)

    def _span(self, low: float, high: float, axis: int) -> slice:
        n = self.shape[axis]
        middle = (n - 1) / 2
        first = int(np.clip(np.floor(low / self.pixel_mm + middle), 0, n))
        return slice(first, int(np.clip(np.ceil(high / self.pixel_mm + middle) + 1, 0, n)))

    def bone(self, distance: Floats, shell_mm: float, cortex: float, marrow: float, grain: Floats) -> None:
        """Paint a bone: a dense shell and trabeculae within."""
        self.fill(share(distance, self.soft), cortex)
        self.fill(share(distance + shell_mm, self.soft), marrow + 0.45 * abs(marrow) * grain)
