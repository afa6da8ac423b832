"""Forward projection and filtered back projection of 2-D slices, in pure torch (CPU and CUDA alike).

Parallel beam over half a turn, fan beam (equiangular arc or flat detector) over a full turn. Lengths are in
mm; a slice is (y, x) with the isocentre in its middle, and the ray (theta, t) is where
``x cos(theta) + y sin(theta) = t``. Accuracy is what counts here: the back projector is not the exact adjoint of
the projector.

Source: A. C. Kak, M. Slaney, Principles of Computerized Tomographic Imaging (1988), chapter 3: ramp eq. 61,
equiangular fan eq. 91-97, flat fan eq. 128-133.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from training.errors import DataError

Kind = Literal["parallel", "equiangular", "flat"]
Window = Callable[[Tensor], Tensor]
"""Gain by which the ramp is multiplied at a frequency (cycles per mm at the isocentre, >= 0)."""

UPSAMPLE = 8
"""How much finer than the detector the filtered rows are before the nearest sample is taken. The rows are band
limited, so this is interpolation by sinc: linear interpolation would damp the grain of sharp kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where rays run.

    Attributes
    ----------
    kind
        ``parallel``: half a turn; ``equiangular`` (arc around the source) and ``flat``: a full turn.
    n_views, n_detectors
        Views in the turn, elements in a detector row.
    detector_mm
        Distance of two elements: at the isocentre (parallel) or at the detector (fan; along the arc if equiangular).
    source_to_isocentre_mm, source_to_detector_mm
        Fan only.
    offset
        Shift of the detector, in elements (a quarter is usual in scanners).
    first_angle
        Angle of the first view, rad.
    """

    kind: Kind = "parallel"
    n_views: int
    n_detectors: int
    detector_mm: float
    source_to_isocentre_mm: float = math.inf
    source_to_detector_mm: float = math.inf
    offset: float = 0.0
    first_angle: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.n_views < 1 or self.n_detectors < 2 or not self.detector_mm > 0:
            raise DataError(f"no scan has {self.n_views} views of {self.n_detectors} x {self.detector_mm} mm")
        near, far = self.source_to_isocentre_mm, self.source_to_detector_mm
        if self.kind != "parallel" and not (0 < near <= far < math.inf):
            raise DataError(
                f"fan beam with source distances {near} and {far} mm",
                hint="give source_to_isocentre_mm and the larger source_to_detector_mm",
            )

    @property
    def arc(self) -> float:
        """Angle that the views cover, rad."""
        return math.pi if self.kind == "parallel" else 2 * math.pi

    @property
    def pitch_mm(self) -> float:
        """Distance of two elements as seen at the isocentre, mm."""
        if self.kind == "parallel":
            return self.detector_mm
        return self.detector_mm * self.source_to_isocentre_mm / self.source_to_detector_mm

    def angles(self) -> list[float]:
        """Return the angle of every view, rad."""
        return [self.first_angle + self.arc * i / self.n_views for i in range(self.n_views)]

    def positions(self) -> Tensor:
        """Return where elements are at the isocentre, mm (n_detectors,); equiangular: arc length."""
        index = torch.arange(self.n_detectors, dtype=torch.float32)
        return (index - (self.n_detectors - 1) / 2 + self.offset) * self.pitch_mm


def _rays(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """For angle 0: distance t of every ray from the isocentre, and its turn against the central ray (rad)."""
    where = geometry.positions()
    if geometry.kind == "parallel":
        return where, torch.zeros_like(where)
    near = geometry.source_to_isocentre_mm
    gamma = where / near if geometry.kind == "equiangular" else torch.atan(where / near)
    return near * torch.sin(gamma), gamma


def project(
    images: Tensor,
    geometry: Geometry,
    pixel_mm: float,
    *,
    angles: Sequence[float] | None = None,
    step: float = 1.0,
) -> Tensor:
    """Line integrals of slices, by bilinear samples along every ray.

    Parameters
    ----------
    images
        float (n, y, x), per mm.
    geometry, pixel_mm
        Rays; width of a pixel.
    angles
        Other angles (rad) than the geometry's.
    step
        Distance of two samples on a ray, in pixels.

    Returns
    -------
    Tensor
        (n, views, detectors), no unit.
    """
    height, width = images.shape[-2:]
    device = images.device
    reach = math.hypot(height, width) / 2 * pixel_mm
    n_steps = math.ceil(2 * reach / (step * pixel_mm))
    along = (torch.arange(n_steps, device=device, dtype=torch.float32) - (n_steps - 1) / 2) * (
        step * pixel_mm
    )
    distance, turn = (v.to(device) for v in _rays(geometry))
    to_x, to_y = 2 / (width * pixel_mm), 2 / (height * pixel_mm)
    grid = torch.empty((1, len(distance), n_steps, 2), device=device)
    stack = images[None].float()
    views = []
    for angle in geometry.angles() if angles is None else angles:
        cos, sin = torch.cos(angle + turn), torch.sin(angle + turn)
        grid[0, ..., 0] = (distance * cos * to_x)[:, None] - (sin * to_x)[:, None] * along
        grid[0, ..., 1] = (distance * sin * to_y)[:, None] + (cos * to_y)[:, None] * along
        seen = grid_sample(stack, grid, mode="bilinear", align_corners=False)
        views.append(seen[0].sum(dim=-1))
    return torch.stack(views, dim=1) * (step * pixel_mm)


def ramp(n: int, spacing: float, *, fan_angle: float = 0.0) -> Tensor:
    """Band-limited ramp in the spatial domain (Kak & Slaney eq. 61), float64 (n,), wrapped around.

    Sampling abs(f) instead would lose the mean of the slice. ``fan_angle`` (rad between elements) makes it the
    filter of the equiangular fan, ``(gamma / sin gamma)^2`` times the ramp (eq. 94).
    """
    index = torch.arange(n, dtype=torch.float64)
    index = torch.where(index > n // 2, index - n, index)
    odd = index.remainder(2) == 1
    safe = torch.where(odd, index, torch.ones_like(index))
    taps = torch.where(odd, -1 / (math.pi * safe * spacing) ** 2, torch.zeros_like(index))
    taps[0] = 1 / (4 * spacing**2)
    if fan_angle:
        gamma = (index * fan_angle).clamp(-1.5, 1.5)
        taps *= torch.where(index == 0, torch.ones_like(index), gamma / torch.sin(gamma)) ** 2
    return taps


def filter_rows(
    sinogram: Tensor, geometry: Geometry, window: Window | None = None, *, upsample: int = UPSAMPLE
) -> Tensor:
    """Filter detector rows with the (windowed) ramp, zero-padded, and interpolate them.

    Parameters
    ----------
    sinogram
        (n, views, detectors); for a fan already weighted.
    window
        Gain on the ramp; None: the bare ramp up to the detector's Nyquist frequency.
    upsample
        Samples per element in the result.

    Returns
    -------
    Tensor
        (n, views, (detectors - 1) * upsample + 1), per mm.
    """
    n = sinogram.shape[-1]
    padded = 1 << math.ceil(math.log2(2 * n))
    pitch = geometry.pitch_mm
    turn = pitch / geometry.source_to_isocentre_mm if geometry.kind == "equiangular" else 0.0
    gain = torch.fft.rfft(ramp(padded, pitch, fan_angle=turn)).real * pitch
    if window is not None:
        frequency = torch.arange(padded // 2 + 1, dtype=torch.float64) / (padded * pitch)
        gain = gain * window(frequency)
    if upsample > 1:
        gain[-1] /= 2
    spectrum = torch.fft.rfft(sinogram.float(), n=padded) * gain.to(sinogram.device, torch.float32)
    rows: Tensor = torch.fft.irfft(spectrum, n=padded * upsample) * upsample
    return rows[..., : (n - 1) * upsample + 1]


def back_project(
    rows: Tensor, geometry: Geometry, shape: tuple[int, int], pixel_mm: float, *, upsample: int
) -> Tensor:
    """Smear filtered rows back over the slices.

    Parameters
    ----------
    rows
        As of :func:`filter_rows`, (n, views, samples).
    shape
        (y, x) of the slices.

    Returns
    -------
    Tensor
        float32 (n, y, x); rays beyond the detector count as zero.
    """
    n, device = rows.shape[0], rows.device
    table = torch.nn.functional.pad(rows, (1, 1))
    last = table.shape[-1] - 1
    x = (torch.arange(shape[1], device=device, dtype=torch.float32) - (shape[1] - 1) / 2) * pixel_mm
    y = (torch.arange(shape[0], device=device, dtype=torch.float32) - (shape[0] - 1) / 2)[:, None] * pixel_mm
    scale = upsample / geometry.pitch_mm
    origin = ((geometry.n_detectors - 1) / 2 - geometry.offset) * upsample + 1.5
    near = geometry.source_to_isocentre_mm
    total = torch.zeros((n, shape[0] * shape[1]), device=device)
    for view, angle in enumerate(geometry.angles()):
        cos, sin = math.cos(angle), math.sin(angle)
        across = x * cos + y * sin
        weight = None
        if geometry.kind != "parallel":
            depth = near - y * cos + x * sin
            if geometry.kind == "equiangular":
                weight = 1 / (across**2 + depth**2)
                across = torch.atan2(across, depth) * near
            else:
                weight = (near / depth) ** 2
                across = across * near / depth
        index = (across * scale + origin).clamp(0, last).to(torch.int64).view(-1)
        for i in range(n):
            smeared = table[i, view].take(index)
            total[i].add_(smeared) if weight is None else total[i].addcmul_(smeared, weight.view(-1))
    return total.view(n, *shape) * (geometry.arc / geometry.n_views)


def reconstruct(
    sinogram: Tensor,
    geometry: Geometry,
    shape: tuple[int, int],
    pixel_mm: float,
    *,
    window: Window | None = None,
    upsample: int = UPSAMPLE,
) -> Tensor:
    """Filtered back projection.

    Parameters
    ----------
    sinogram
        float (n, views, detectors).
    geometry
        Rays of the sinogram.
    shape, pixel_mm
        (y, x) and pixel width of the result.
    window
        Gain on the ramp against frequency in cycles per mm; None: none.

    Returns
    -------
    Tensor
        float32 (n, y, x), per mm.

    Raises
    ------
    DataError
        If the sinogram is not of this geometry.
    """
    if sinogram.shape[-2:] != (geometry.n_views, geometry.n_detectors):
        raise DataError(
            f"sinogram {tuple(sinogram.shape)} for {geometry.n_views} views of {geometry.n_detectors} elements",
            hint="the last two axes are views and detector elements",
        )
    rows = sinogram
    if geometry.kind != "parallel":
        # Half, because a full turn sees every line twice.
        where, near = geometry.positions().to(sinogram.device), geometry.source_to_isocentre_mm
        if geometry.kind == "equiangular":
            rows = sinogram * (near * torch.cos(where / near) / 2) * near
        else:
            rows = sinogram * (near / torch.sqrt(near**2 + where**2) / 2)
    rows = filter_rows(rows, geometry, window, upsample=upsample)
    return back_project(rows, geometry, shape, pixel_mm, upsample=upsample)


def tabulated(frequencies: Sequence[float], gains: Sequence[float]) -> Window:
    """Window through a table, linear between its points and constant beyond them (cycles per mm)."""
    f = torch.tensor(frequencies, dtype=torch.float64)
    g = torch.tensor(gains, dtype=torch.float64)

    def window(frequency: Tensor) -> Tensor:
        at = frequency.to(torch.float64).clamp(float(f[0]), float(f[-1]))
        right = torch.searchsorted(f, at).clamp(1, len(f) - 1)
        share = (at - f[right - 1]) / (f[right] - f[right - 1])
        return g[right - 1] + share * (g[right] - g[right - 1])

    return window


def gaussian(cutoff: float, order: float = 2.0) -> Window:
    """Window ``exp(-(f / cutoff)^order / 2)``: with order 2, white noise comes out as ``f exp(-(f / cutoff)^2)``."""
    return lambda frequency: torch.exp(-0.5 * (frequency / cutoff) ** order)
