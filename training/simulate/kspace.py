"""MR acquisition of a noise-free magnitude: what k-space loses, the noise it adds, and the mean that is left.

Made to run on patches while a network trains: a few FFTs of the sampled box and one table look-up. The
patch is taken as periodic; where ``zero_fill``, a window or partial Fourier is used, Gibbs ringing of the
jump between opposite borders reaches a few pixels into the patch (in the noisy image and in the expected
one alike), so cut the patch a little larger than it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import uniform_filter
from scipy.special import gamma, hyp1f1

from engines.base import Floats, Mask
from training.errors import DataError
from training.simulate.band import Window, centred, taper

Complex: TypeAlias = npt.NDArray[np.complex64]

TABLE_END = 64.0
TABLE_SIZE = 65537
SERIES_FROM = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """How a slice is acquired and reconstructed.

    Attributes
    ----------
    sigma
        Standard deviation of the noise in each of the real and imaginary channels of the final image, as a
        fraction of the image's scale; root mean square over the slice where ``g_strength`` varies it.
    zero_fill
        Shown samples per acquired sample along y and x, 1 to 2.
    partial_fourier
        Sampled share of k-space along y, 0.6 to 1; the rest is left empty.
    elliptical
        Whether the corners of k-space are left empty.
    window
        Apodisation of the sampled part, of signal and noise alike.
    n_coils
        Coils whose magnitudes are summed in squares: 1 gives Rician noise, more give nc-chi noise.
    g_strength
        How much the noise varies over the slice, as parallel imaging does: 0 not at all, 1 twofold.
    phase
        Smooth phase of the object in rad; partial Fourier turns it into blur.
    masked_background
        Whether the scanner sets the air to exactly 0.
    z_zero_fill
        Zero filling along z of a 3-D acquisition, 1 to 2: noise of neighbour slices is correlated. 1 for
        2-D acquisitions, whose slices are independent.
    """

    sigma: float
    zero_fill: tuple[float, float] = (1.0, 1.0)
    partial_fourier: float = 1.0
    elliptical: bool = False
    window: Window = "none"
    n_coils: int = 1
    g_strength: float = 0.0
    phase: float = 0.0
    masked_background: bool = False
    z_zero_fill: float = 1.0

    def __post_init__(self) -> None:
        within = (
            ("sigma", self.sigma, 0.0, np.inf),
            ("zero_fill along y", self.zero_fill[0], 1.0, 4.0),
            ("zero_fill along x", self.zero_fill[1], 1.0, 4.0),
            ("partial_fourier", self.partial_fourier, 0.5, 1.0),
            ("n_coils", self.n_coils, 1, 32),
            ("g_strength", self.g_strength, 0.0, 4.0),
            ("z_zero_fill", self.z_zero_fill, 1.0, 4.0),
        )
        for name, value, lowest, highest in within:
            if not lowest <= value <= highest:
                raise DataError(f"{name} is {value}; it must lie between {lowest} and {highest}")


def draw(rng: np.random.Generator, *, sigma: tuple[float, float] = (0.005, 0.15)) -> Acquisition:
    """Draw an acquisition as clinical protocols have them; ``sigma`` is log-uniform between the two."""
    zero_fill = (1.0, 1.0)
    kind = rng.random()
    if kind < 0.25:
        same = float(rng.uniform(1.05, 2.0))
        zero_fill = (same, same)
    elif kind < 0.45:
        zero_fill = (float(rng.uniform(1.0, 2.0)), float(rng.uniform(1.0, 2.0)))
    elif kind < 0.6:
        zero_fill = (float(rng.uniform(1.05, 1.6)), 1.0)
    windows: tuple[Window, ...] = ("none", "tukey", "hann")
    return Acquisition(
        sigma=float(np.exp(rng.uniform(np.log(sigma[0]), np.log(sigma[1])))),
        zero_fill=zero_fill,
        partial_fourier=float(rng.uniform(0.6, 0.95)) if rng.random() < 0.25 else 1.0,
        elliptical=bool(rng.random() < 0.25),
        window=windows[int(rng.choice(3, p=(0.6, 0.25, 0.15)))],
        n_coils=int(rng.integers(2, 5)) if rng.random() < 0.12 else 1,
        g_strength=float(rng.uniform(0.1, 1.0)) if rng.random() < 0.4 else 0.0,
        phase=float(rng.uniform(0.0, 3.0)),
        masked_background=bool(rng.random() < 0.12),
        z_zero_fill=float(rng.uniform(1.0, 1.6)) if rng.random() < 0.2 else 1.0,
    )


@cache
def _excess(n_coils: int) -> Floats:
    """E|.| / sigma - snr over snr on an even grid from 0 to TABLE_END, the last value kept beyond it.

    Rician and non-central chi mean: sqrt(2) Gamma(n + 1/2) / Gamma(n) 1F1(-1/2; n; -snr^2 / 2) (Koay and
    Basser, J Magn Reson 179 (2006) 317); the series for large snr where 1F1 loses digits.
    """
    snr = np.linspace(0.0, TABLE_END, TABLE_SIZE)
    lower = snr < SERIES_FROM
    x = snr[lower]
    mean = np.sqrt(2.0) * gamma(n_coils + 0.5) / gamma(n_coils) * hyp1f1(-0.5, n_coils, -(x**2) / 2)
    far = snr[~lower]
    d = 2 * n_coils - 1
    series = d / (2 * far) - d * (d - 2) / (8 * far**3)
    return np.concatenate([mean - x, series]).astype(np.float32)


def mean_magnitude(amplitude: Floats, sigma: Floats | float, n_coils: int = 1) -> Floats:
    """Return E|amplitude + noise|: the mean of a Rician (one coil) or nc-chi magnitude.

    Parameters
    ----------
    amplitude
        Noise-free magnitude, at or above 0, any shape.
    sigma
        Standard deviation of the noise per real channel; a number, or an array that broadcasts.
    n_coils
        Coils in the sum of squares.

    Returns
    -------
    Same shape; the table behind it is right within 0.001 ``sigma`` up to an SNR of 64 and within
    0.008 (2 n_coils - 1) ``sigma`` above.
    """
    noise: Floats = np.asarray(sigma, dtype=np.float32)
    per = np.float32((TABLE_SIZE - 1) / TABLE_END) / np.maximum(noise, np.float32(1e-12))
    index = np.minimum(amplitude * per + np.float32(0.5), np.float32(TABLE_SIZE - 1)).astype(np.int32)
    return np.asarray(amplitude + noise * _excess(n_coils).take(index), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Samples:
    """The sampled box of k-space: rows and columns in FFT order, and the weight of each sample."""

    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]
    weights: Floats
    share: float


def _axis(
    n: int, zero_fill: float, window: Window, part: float
) -> tuple[npt.NDArray[np.intp], Floats, Floats]:
    """Indices in FFT order, weights and frequencies (-1 to 1 over the band) of one axis's samples."""
    m = min(max(round(n / zero_fill), 4), n)
    k = np.arange(m) - m // 2
    weights = centred(m, taper(window))
    first = m - max(round(part * m), m // 2 + 1)
    return (k % n)[first:], weights[first:], np.asarray(k / max(m / 2, 1), dtype=np.float32)[first:]


def _sampled(shape: tuple[int, int], how: Acquisition) -> _Samples | None:
    """None where all of k-space is kept as it is."""
    rows, wy, ky = _axis(shape[0], how.zero_fill[0], how.window, how.partial_fourier)
    columns, wx, kx = _axis(shape[1], how.zero_fill[1], how.window, 1.0)
    whole = (len(rows), len(columns)) == shape and how.window == "none"
    if whole and not how.elliptical:
        return None
    weights = wy[:, None] * wx[None, :]
    if how.elliptical:
        weights = weights * (ky[:, None] ** 2 + kx[None, :] ** 2 <= 1.0)
    share = float(np.square(weights).sum()) / (shape[0] * shape[1])
    return _Samples(rows, columns, np.asarray(weights, dtype=np.float32), share)


def _image(box: Complex, samples: _Samples, shape: tuple[int, int]) -> Complex:
    """Inverse transform of a sampled box (n, rows, columns), zeros elsewhere; only needed lines are done."""
    lines = np.zeros((box.shape[0], shape[0], box.shape[2]), dtype=np.complex64)
    lines[:, samples.rows] = box
    lines = fft.ifft(lines, axis=1, overwrite_x=True)
    plane = np.zeros((box.shape[0], *shape), dtype=np.complex64)
    plane[:, :, samples.columns] = lines
    return np.asarray(fft.ifft(plane, axis=2, overwrite_x=True), dtype=np.complex64)


def _smooth(n: int, rng: np.random.Generator, period: tuple[float, float]) -> Floats:
    """One slow cosine over ``n`` samples, between -1 and 1."""
    turns = 1.0 / rng.uniform(*period)
    t = np.arange(n, dtype=np.float32) / n
    return np.asarray(np.cos(2 * np.pi * (turns * t + rng.random())), dtype=np.float32)


def _signal(truth: Floats, samples: _Samples | None, how: Acquisition, rng: np.random.Generator) -> Floats:
    """Magnitude of the noise-free image after k-space has lost what it does not sample."""
    ny, nx = truth.shape[1:]
    py, px = _smooth(ny, rng, (0.8, 3.0)), _smooth(nx, rng, (0.8, 3.0))
    if samples is None:
        return truth
    turn = np.exp(0.5j * how.phase * py)[:, None] * np.exp(0.5j * how.phase * px)[None, :]
    lines = fft.fft(truth * turn.astype(np.complex64), axis=2, overwrite_x=True)[:, :, samples.columns]
    box = fft.fft(lines, axis=1, overwrite_x=True)[:, samples.rows] * samples.weights
    return np.asarray(np.abs(_image(box, samples, (ny, nx))), dtype=np.float32)


def _white(shape: tuple[int, ...], rng: np.random.Generator) -> Complex:
    return rng.standard_normal((*shape[:-1], 2 * shape[-1]), dtype=np.float32).view(np.complex64)


def _noise(
    shape: tuple[int, int, int], samples: _Samples | None, how: Acquisition, rng: np.random.Generator
) -> Complex:
    """Complex noise (z, y, x) of unit standard deviation per channel, with the colour of the sampled band."""
    if samples is None:
        noise = _white(shape, rng)
    else:
        ny, nx = shape[1:]
        box = _white((shape[0], *samples.weights.shape), rng)
        box *= samples.weights * np.float32(np.sqrt(ny * nx / samples.share))
        noise = _image(box, samples, (ny, nx))
    if how.z_zero_fill > 1.0 and shape[0] > 1:
        apart = np.arange(shape[0])
        covariance = np.sinc((apart[:, None] - apart[None, :]) / how.z_zero_fill)
        values, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        noise = np.tensordot(root.astype(np.float32), noise, axes=1)
    return noise


def _air(amplitude: Floats, scale: float) -> Mask:
    """Where a scanner masks: smoothed signal below 3 % of the scale."""
    return np.asarray(uniform_filter(amplitude, size=(1, 5, 5), mode="wrap") < 0.03 * scale)


def acquire(
    truth: Floats, how: Acquisition, rng: np.random.Generator, *, scale: float = 1.0
) -> tuple[Floats, Floats]:
    """Acquire a noise-free magnitude image once.

    Parameters
    ----------
    truth
        (z, y, x) magnitude, at or above 0, in units where the robust maximum of the image is ``scale``.
    how
        The acquisition.
    rng
        Draws the phase, the map of noise and the noise.
    scale
        What ``how.sigma`` is a fraction of.

    Returns
    -------
    noisy
        (z, y, x) magnitude with noise.
    expected
        (z, y, x) mean of ``noisy`` over all noise: the truth through the same loss of resolution, with the
        Rician or nc-chi bias of the local noise. ``noisy - expected`` has zero mean everywhere.

    Raises
    ------
    DataError
        When ``truth`` is not a stack.
    """
    if truth.ndim != 3:
        raise DataError(f"a stack has 3 axes (z, y, x), not {truth.ndim}")
    truth = np.asarray(truth, dtype=np.float32)
    ny, nx = truth.shape[1:]
    samples = _sampled((ny, nx), how)
    amplitude = _signal(truth, samples, how, rng)
    sigma: Floats = np.asarray(how.sigma * scale, dtype=np.float32)
    if how.g_strength > 0:
        bump = (1 + _smooth(ny, rng, (0.8, 3.0)))[:, None] * (1 + _smooth(nx, rng, (0.8, 3.0)))[None, :]
        g = 1 + np.float32(how.g_strength / 4) * bump
        sigma = np.asarray(sigma * g / np.sqrt(np.mean(np.square(g))), dtype=np.float32)
    noise = _noise((truth.shape[0], ny, nx), samples, how, rng) * sigma
    real = noise.real + amplitude
    power = real * real + noise.imag * noise.imag
    for _ in range(how.n_coils - 1):
        other = _noise((truth.shape[0], ny, nx), samples, how, rng) * sigma
        power += other.real * other.real + other.imag * other.imag
    noisy = np.sqrt(power)
    expected = mean_magnitude(amplitude, sigma, how.n_coils)
    if how.masked_background:
        air = _air(amplitude, scale)
        noisy[air] = 0
        expected[air] = 0
    return noisy, expected
