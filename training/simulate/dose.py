"""Noise of a lower dose, made where it arises: in the projections.

``LD = FD + FBP(dp)``: only the noise ``dp`` is reconstructed, so the resolution and the kernel of a real series
survive. For a scan of I0 photons per ray that is cut to the dose fraction a::

    var(dp) = (1/a - 1) e^p / I0  +  (1/a^2 - 1) s_e^2 e^(2p) / I0^2

with p the line integral of mu = mu_water (1 + HU/1000), never below 0, and s_e the electronic noise in photons.
Noise on a truth without any has 1 in both brackets. Where few photons are left the logarithm is no longer linear:
``starved=True`` draws photons, and counts below one are set to one, which gives bias and streaks.

Sources: L. Yu et al., J Comput Assist Tomogr 36 (2012) 477 (noise insertion); S. Zabic et al., Med Phys 40 (2013)
031102 (electronic noise); S. Divel, N. Pelc, Accurate image domain noise
insertion in CT images, IEEE TMI 39 (2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor

from engines.noise import BLOCK, TISSUE_HU, Noise, estimate, steady
from training.errors import DataError
from training.simulate.matched import matched_gain
from training.simulate.photons import MU_WATER, Tube, correlated, gaussian_dp, paths, starved_dp
from training.simulate.projector import Geometry, Window, reconstruct, tabulated

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]

PADDING_HU = -1500.0
"""Below it there is no picture."""
BODY_HU = -500.0
MAD_TO_SIGMA = 1.4826
N_TOGETHER = 4
"""Slices that are reconstructed at once."""
N_PILOTS = 5
"""Slices on which the grain of a series is tuned."""
N_REFINEMENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Reconstruction kernel: the gain on the ramp ``exp(-(f / fc)^order / 2)``, or a table.

    Attributes
    ----------
    fc
        Cycles per pixel: 0.12 is very soft, 0.35 sharp. White noise comes out with the spectrum
        ``f exp(-(f / fc)^order)``.
    order
        2 is a Gaussian; higher falls more steeply.
    table
        Pairs (cycles per pixel, gain), rising; overrides the two above.
    """

    fc: float = 0.22
    order: float = 2.0
    table: tuple[tuple[float, float], ...] = ()

    def window(self, pixel_mm: float) -> Window:
        """Return the gain against cycles per mm for pixels of ``pixel_mm``."""
        if self.table:
            return tabulated([f / pixel_mm for f, _ in self.table], [g for _, g in self.table])
        return lambda frequency: torch.exp(-0.5 * (frequency * pixel_mm / self.fc) ** self.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """All that turns photons into noise but the photons."""

    geometry: Geometry
    shape: tuple[int, int]
    pixel_mm: float
    window: Window
    fraction: float | None
    z_correlation: float

    def noise(
        self, lines: Sequence[Tensor], tube: Tube, rng: np.random.Generator, *, starved: bool
    ) -> Floats:
        """Noise in HU (n, y, x) for the line integrals (views, detectors) of each of n slices."""
        noise = np.empty((len(lines), *self.shape), np.float32)
        drawn = self._draw(lines, tube, rng, starved)
        for first in range(0, len(lines), N_TOGETHER):
            dp = torch.stack(list(islice(drawn, N_TOGETHER)))
            made = reconstruct(dp, self.geometry, self.shape, self.pixel_mm, window=self.window)
            noise[first : first + N_TOGETHER] = (made * (1000 / MU_WATER)).cpu().numpy()
        return noise

    def _draw(
        self, lines: Sequence[Tensor], tube: Tube, rng: np.random.Generator, starved: bool
    ) -> Iterator[Tensor]:
        if starved:
            for line in lines:
                yield starved_dp(tube.photons(line, self.geometry), rng, tube.electronic, self.fraction)
            return
        size = (self.geometry.n_views, self.geometry.n_detectors)
        white = correlated(rng, len(lines), size, self.z_correlation)
        for line, drawn in zip(lines, white, strict=True):
            photons = tube.photons(line, self.geometry)
            yield gaussian_dp(photons, drawn.to(photons.device), tube.electronic, self.fraction)


def default_geometry(shape: tuple[int, int], pixel_mm: float) -> Geometry:
    """Parallel beam that covers the corners; elements of 0.75 pixel, so kernels reach 0.67 cycles per pixel."""
    n_detectors = int(np.ceil(np.hypot(*shape) / 0.75)) | 1
    n_views = max(180, min(720, 2 * round(0.352 * max(shape))))
    return Geometry(n_views=n_views, n_detectors=n_detectors, detector_mm=0.75 * pixel_mm)


def robust_sigma(noise: Floats, body: Mask) -> float:
    """Standard deviation by the median absolute deviation inside of the body (all, if there is no body)."""
    values = noise[body] if int(body.sum()) >= 100 else noise.ravel()
    return float(MAD_TO_SIGMA * np.median(np.abs(values - np.median(values))))


def _lines(volume_hu: Floats, geometry: Geometry, pixel_mm: float, device: str) -> list[Tensor]:
    """Line integrals of every slice."""
    slices = (torch.from_numpy(np.ascontiguousarray(s, np.float32)).to(device) for s in volume_hu)
    return [paths(s[None], geometry, pixel_mm)[0] for s in slices]


def _check(volume: Floats, fraction: float | None, z_correlation: float, starved: bool) -> None:
    if volume.ndim != 3 or not volume.size:
        raise DataError(f"a stack is (z, y, x), not {volume.shape}")
    if fraction is not None and not 0 < fraction < 1:
        raise DataError(f"dose fraction {fraction} is not between 0 and 1")
    if starved and z_correlation:
        raise DataError("drawn photons of slices cannot correlate", hint="starved=True needs z_correlation=0")


def noise_stack(
    truth_hu: Floats,
    pixel_mm: float,
    rng: np.random.Generator,
    *,
    kernel: Kernel,
    geometry: Geometry | None = None,
    tube: Tube | None = None,
    fraction: float | None = None,
    target_sigma_hu: float | None = None,
    z_correlation: float = 0.0,
    each: bool = False,
    starved: bool = False,
    device: str = "cpu",
) -> Floats:
    """CT noise for a stack of neighbouring slices.

    Parameters
    ----------
    truth_hu
        float (z, y, x), HU.
    pixel_mm
        Width of a (square) pixel.
    rng
        Where chance comes from.
    kernel
        Grain.
    geometry
        Rays; None: :func:`default_geometry`.
    tube
        Source and detector; its ``i0`` is not used when there is a ``target_sigma_hu``.
    fraction
        None: all the noise of a scan; else what is to be added to it for this share of its dose.
    target_sigma_hu
        What :func:`robust_sigma` of the noise in the body (above -500 HU) is to be over the stack; None: as ``i0``
        makes it.
    z_correlation
        Correlation of two neighbouring slices, 0 to less than 1.
    each
        Whether every slice is projected; if not, the middle one serves all.
    starved
        Whether photons are drawn, and counts below one set to one. ``target_sigma_hu`` then sets ``i0`` by what
        the noise is without starvation; what starvation adds comes on top.
    device
        Of torch.

    Returns
    -------
    numpy.ndarray
        float32 (z, y, x), HU; another realisation in each slice.

    Raises
    ------
    DataError
        If the stack is not 3-D, or the fraction or the correlation is out of range.
    """
    _check(truth_hu, fraction, z_correlation, starved)
    n, height, width = truth_hu.shape
    scan = _Scan(
        geometry=geometry or default_geometry((height, width), pixel_mm),
        shape=(height, width),
        pixel_mm=pixel_mm,
        window=kernel.window(pixel_mm),
        fraction=fraction,
        z_correlation=z_correlation,
    )
    tube = tube or Tube()
    middle = n // 2
    lines = _lines(truth_hu if each else truth_hu[middle : middle + 1], scan.geometry, pixel_mm, device)
    lines = lines if each else lines * n
    if target_sigma_hu is None:
        return scan.noise(lines, tube, rng, starved=starved)
    if not starved:
        noise = scan.noise(lines, tube, rng, starved=False)
        return noise * np.float32(target_sigma_hu / robust_sigma(noise, truth_hu > BODY_HU))
    quiet = replace(tube, electronic=0.0)
    trial = scan.noise(lines[middle : middle + 1], quiet, rng, starved=False)
    factor = target_sigma_hu / robust_sigma(trial, truth_hu[middle : middle + 1] > BODY_HU)
    return scan.noise(lines, replace(tube, i0=tube.i0 / factor**2), rng, starved=True)


def _measured(volume: Floats) -> list[Noise]:
    return [estimate(s, s > PADDING_HU, unit="HU") for s in volume]


def _alike(noise: Floats, slice_hu: Floats) -> Noise:
    """Estimate for the noise alone, where it would look in the slice."""
    around = uniform_filter(slice_hu, BLOCK)
    tissue = (around > TISSUE_HU[0]) & (around < TISSUE_HU[1]) & (slice_hu > PADDING_HU)
    return estimate(noise, tissue, unit="HU", step=0.0)


def _sigma_alike(noise: Floats, slice_hu: Floats) -> float:
    found = _alike(noise, slice_hu).sigma
    return found if np.isfinite(found) else robust_sigma(noise, slice_hu > BODY_HU)


def _levels(volume: Floats) -> Doubles:
    """Band levels of the noise (HU^2), median over the slices."""
    found = [m.spectrum for m in _measured(volume) if m.spectrum]
    if not found:
        raise DataError(
            "no slice of the series has noise that can be measured", hint="give a kernel and sigma_hu"
        )
    return np.asarray(np.median(found, axis=0), np.float64)


def measured_kernel(volume_hu: Floats) -> Kernel:
    """Kernel that gives noise the grain of a series' own.

    Parameters
    ----------
    volume_hu
        float32 (z, y, x), HU.

    Raises
    ------
    DataError
        If there is no slice whose noise can be measured.
    """
    return Kernel(table=matched_gain(_levels(volume_hu)))


def _refined(
    volume: Floats, scan: _Scan, tube: Tube, fraction: float, rng: np.random.Generator, device: str
) -> Kernel:
    """Kernel with which the bands of the series and noise together are those of the series, over the fraction.

    The bands of a real series hold some anatomy, the low ones most; more noise drowns it. Noise with the bands of the
    series would therefore be too coarse and too strong (by 50 % of the variance in the abdomen).
    """
    chosen = volume[np.unique(np.linspace(0, len(volume) - 1, N_PILOTS).round().astype(int))]
    lines = _lines(chosen, scan.geometry, scan.pixel_mm, device)
    before = _levels(chosen)
    wanted = before
    rise = 1 / fraction - 1
    seed = int(rng.integers(2**32))
    for _ in range(N_REFINEMENTS):
        kernel = Kernel(table=matched_gain(wanted))
        tried = replace(scan, window=kernel.window(scan.pixel_mm), z_correlation=0.0)
        noise = tried.noise(lines, replace(tube, electronic=0.0), np.random.default_rng(seed), starved=False)
        alone = [m.spectrum for m in (_alike(u, s) for u, s in zip(noise, chosen, strict=True)) if m.spectrum]
        if not alone:
            break
        scale = np.sqrt(wanted.sum() * rise / np.median(alone, axis=0).sum())
        gained = (_levels(chosen + noise * np.float32(scale)) - before) / rise
        wanted = wanted * np.clip(before / np.maximum(gained, 1e-3 * before), 1 / 3, 3) ** 0.8
    return Kernel(table=matched_gain(wanted))


def _factors(full: Floats, noise: Floats, fraction: float, sigma_hu: float | None) -> Floats:
    """Per slice, what the noise is to be multiplied by."""
    rise = np.sqrt(1 / fraction - 1)
    made = steady(np.array([_sigma_alike(u, s) for u, s in zip(noise, full, strict=True)], np.float32))
    if sigma_hu is not None:
        return np.asarray(sigma_hu * rise / made, np.float32)
    own = steady(np.array([m.sigma for m in _measured(full)], np.float32))
    if not np.isfinite(own).any():
        raise DataError(
            "no slice of the series has noise that can be measured", hint="give sigma_hu and a kernel"
        )
    own = np.where(np.isfinite(own), own, np.nanmedian(own))
    factor = own * rise / made
    for _ in range(2):
        # Judged with the anatomy under it, as the series is: the estimate errs alike on both.
        total = steady(
            np.array([m.sigma for m in _measured(full + factor[:, None, None] * noise)], np.float32)
        )
        gained = np.sqrt(np.maximum(total**2 - own**2, (0.25 * own * rise) ** 2))
        factor = np.where(np.isfinite(gained), factor * own * rise / gained, factor)
    return np.asarray(factor, np.float32)


def insert(
    volume_hu: Floats,
    spacing_mm: tuple[float, float, float],
    fraction: float,
    rng: np.random.Generator,
    *,
    kernel: Kernel | None = None,
    sigma_hu: float | None = None,
    geometry: Geometry | None = None,
    tube: Tube | None = None,
    z_correlation: float = 0.0,
    starved: bool = False,
    device: str = "cpu",
) -> Floats:
    """A series as it would be at a lower dose.

    Parameters
    ----------
    volume_hu
        float32 (z, y, x), HU; what lies below -1500 (padding) stays as it is.
    spacing_mm
        (z, y, x); pixels are square.
    fraction
        Share of the dose that is left, between 0 and 1.
    rng
        Where chance comes from.
    kernel
        Grain of the noise; None: :func:`measured_kernel`.
    sigma_hu
        Noise of the series; None: measured slice by slice.
    geometry, tube
        Rays, source and detector; ``i0`` follows from the noise of the series and is not read.
    z_correlation
        Correlation of the noise of two neighbouring slices.
    starved
        Whether photons are drawn, and counts below one set to one.
    device
        Of torch.

    Returns
    -------
    numpy.ndarray
        float32 (z, y, x), HU, not clipped: the variance of its noise is that of the series divided by ``fraction``.

    Raises
    ------
    DataError
        If the noise cannot be measured, pixels are not square, or an argument is out of range.
    """
    _check(volume_hu, fraction, z_correlation, starved)
    _, pixel_y, pixel_mm = spacing_mm
    if abs(pixel_y - pixel_mm) > 0.01 * pixel_mm:
        raise DataError(f"pixels of {pixel_y} x {pixel_mm} mm are not square", hint="resample the series")
    full = np.asarray(volume_hu, np.float32)
    height, width = full.shape[1:]
    scan = _Scan(
        geometry=geometry or default_geometry((height, width), pixel_mm),
        shape=(height, width),
        pixel_mm=pixel_mm,
        window=(kernel or Kernel()).window(pixel_mm),
        fraction=fraction,
        z_correlation=z_correlation,
    )
    tube = tube or Tube()
    if kernel is None:
        refined = _refined(full, scan, tube, fraction, rng, device)
        scan = replace(scan, window=refined.window(pixel_mm))
    lines = _lines(full, scan.geometry, pixel_mm, device)
    noise = scan.noise(lines, replace(tube, electronic=0.0), rng, starved=False)
    factor = _factors(full, noise, fraction, sigma_hu)
    if tube.electronic or starved:
        for z, line in enumerate(lines):
            exact = replace(tube, i0=tube.i0 / float(factor[z]) ** 2)
            noise[z] = scan.noise([line], exact, rng, starved=starved)[0]
    else:
        noise *= factor[:, None, None]
    return np.where(full > PADDING_HU, full + noise, full)
