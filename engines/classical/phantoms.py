"""Seeded phantoms with a known truth and known, correlated noise: what tuning and the laws measure on.

They are not anatomy and prove nothing clinical. They hold what a denoiser gets wrong: soft heterogeneous
tissue, low-contrast discs, thin vessels in air, trabecular bone, folded cortex, sharp air edges. Noise
has the spectrum of a reconstruction kernel (CT: f * exp(-(f/fc)^2), the ramp with a roll-off) or comes
from complex k-space, zero-filled or not (MR), and its strength varies over the slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A noisy stack and its truth.

    Attributes
    ----------
    truth, noisy
        float32 (z, y, x), HU or arbitrary units.
    sigma
        float32 (z, y, x): the standard deviation of the noise that was added (MR: of either channel).
    flat
        bool (z, y, x): where the truth varies by less than the noise could show (for noise metrics).
    """

    truth: npt.NDArray[np.float32]
    noisy: npt.NDArray[np.float32]
    sigma: npt.NDArray[np.float32]
    flat: npt.NDArray[np.bool_]


def _grid(n_rows: int, n_columns: int) -> tuple[Doubles, Doubles]:
    """Coordinates in [-1, 1] along the longer side, isotropic."""
    half = max(n_rows, n_columns) / 2
    y = (np.arange(n_rows) - (n_rows - 1) / 2) / half
    x = (np.arange(n_columns) - (n_columns - 1) / 2) / half
    rows, columns = np.meshgrid(y, x, indexing="ij")
    return rows, columns


def _ellipse(
    y: Doubles,
    x: Doubles,
    cy: float,
    cx: float,
    ry: float,
    rx: float,
    angle: float = 0.0,
    soft: float = 0.004,
) -> Doubles:
    """Share of each pixel inside an ellipse: 1 inside, 0 outside, a blurred edge between (band-limited)."""
    c, s = np.cos(angle), np.sin(angle)
    u, v = (x - cx) * c + (y - cy) * s, -(x - cx) * s + (y - cy) * c
    r = np.sqrt((u / rx) ** 2 + (v / ry) ** 2)
    return np.asarray(1 / (1 + np.exp(np.clip((r - 1) * min(rx, ry) / soft, -40, 40))))


def coloured(
    rng: np.random.Generator, shape: tuple[int, int, int], cutoff: float, ramp: bool = True
) -> Doubles:
    """Noise of unit variance, independent from slice to slice.

    Parameters
    ----------
    cutoff
        fc of the amplitude spectrum sqrt(f) * exp(-(f/fc)^2 / 2), in cycles per pixel: 0.12 is a very soft
        kernel, 0.35 a sharp one. 0 gives white noise.
    ramp
        False leaves the ramp out (MR-like texture).
    """
    white = rng.standard_normal(shape)
    if cutoff == 0:
        return white
    fy, fx = np.fft.fftfreq(shape[1])[:, None], np.fft.rfftfreq(shape[2])[None, :]
    f = np.hypot(fy, fx)
    gain = (np.sqrt(f) if ramp else 1.0) * np.exp(-0.5 * (f / cutoff) ** 2)
    noise = np.fft.irfft2(np.fft.rfft2(white) * gain, s=shape[1:])
    return np.asarray(noise / noise.std())


def _field(rng: np.random.Generator, shape: tuple[int, int, int], low: float, high: float) -> Doubles:
    """A band-limited random field of unit variance that drifts slowly from slice to slice."""
    f = np.hypot(np.fft.fftfreq(shape[1])[:, None], np.fft.rfftfreq(shape[2])[None, :])
    band = np.exp(-0.5 * (f / high) ** 2) * (1 - np.exp(-0.5 * (f / max(low, 1e-6)) ** 2))
    a, b = (np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape[1:])) * band, s=shape[1:]) for _ in "ab")
    turn = np.linspace(0, 0.05 * shape[0], shape[0])[:, None, None]
    field = np.cos(turn) * a + np.sin(turn) * b
    return np.asarray(field / field.std())


def _falloff(y: Doubles, x: Doubles, variation: float) -> Doubles:
    """Noise is strongest where the rays are longest: 1 + v in the middle, 1 - v at the rim."""
    return np.asarray(1 + variation * (1 - 2 * np.clip(x**2 + y**2, 0, 1)))


def _vessels(rng: np.random.Generator, y: Doubles, x: Doubles, n: int, reach: float, drift: float) -> Doubles:
    """Branches of random width, direction and place; ``drift`` moves them from slice to slice."""
    out = np.zeros_like(y)
    for _ in range(n):
        cy, cx = rng.uniform(-reach, reach, 2)
        angle, width = rng.uniform(0, np.pi), rng.choice([0.002, 0.003, 0.005, 0.009, 0.015])
        length = rng.uniform(0.01, 0.2)
        moved = drift * rng.uniform(-1, 1)
        out = np.maximum(out, _ellipse(y, x, cy + moved, cx - moved, width, length, angle, 0.0025))
    return out


def _within(share: Doubles) -> tuple[slice, slice]:
    """The window outside of which a share is nothing."""
    rows, columns = (np.flatnonzero(share.max(axis=a) > 1e-4) for a in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def ct(
    seed: int,
    *,
    shape: tuple[int, int, int] = (5, 256, 256),
    sigma: float = 25.0,
    cutoff: float = 0.22,
    kind: str = "chest",
    variation: float = 0.25,
) -> Phantom:
    """A CT-like stack in HU.

    Parameters
    ----------
    sigma
        Noise in HU, mean over the body.
    cutoff
        Kernel, see :func:`coloured`.
    kind
        ``chest`` (lungs with vessels), ``abdomen`` (organs with low-contrast discs), ``head`` (bone shell,
        brain of 6 HU contrast), ``water``.
    variation
        How much the noise varies from the middle to the rim.
    """
    rng = np.random.default_rng([seed, 1])
    y, x = _grid(shape[1], shape[2])
    slow = _field(rng, shape, 0.002, 0.02)
    fine = _field(rng, shape, 0.03, 0.12)
    cortex = _field(rng, shape, 0.01, 0.03)
    draws = int(rng.integers(1 << 31))
    truth = np.empty(shape)
    smooth = np.empty(shape, bool)
    body = _ellipse(y, x, 0, 0, 0.72, 0.92)
    for z in range(shape[0]):
        r, drift = np.random.default_rng(draws), 0.004 * z
        v = -1000 * (1 - body)
        if kind == "water":
            truth[z], smooth[z] = v, _ellipse(y, x, 0, 0, 0.66, 0.86) > 0.99
            continue
        inner = _ellipse(y, x, 0, 0, 0.64, 0.84)
        v += body * (-95 * (1 - inner) + 45 * inner) + 2.5 * slow[z] * body
        flat = _ellipse(y, x, 0, 0, 0.61, 0.81) > 0.99
        if kind == "chest":
            for side in (-1, 1):
                lung = _ellipse(y, x, -0.05, side * 0.42, 0.44 + drift, 0.30, side * 0.15)
                v += lung * (-895 - v + 12 * slow[z])
                box = _within(lung)
                v[box] += lung[box] * 890 * _vessels(r, y[box], x[box] - side * 0.42, 80, 0.35, drift)
                flat &= lung < 0.01
            v += 22 * _ellipse(y, x, 0.02, 0.02, 0.22 + drift, 0.14)
        elif kind == "abdomen":
            v += 35 * _ellipse(y, x, -0.1, -0.35, 0.38, 0.36 + drift)
            v += 60 * _ellipse(y, x, 0.15, 0.5, 0.14, 0.1)
            v -= 40 * _ellipse(y, x, -0.25, 0.32, 0.17, 0.2 + drift)
            liver = _ellipse(y, x, -0.1, -0.35, 0.36, 0.34)
            v += 110 * liver * _vessels(r, y + 0.1, x + 0.35, 25, 0.3, drift)
        else:
            shell = _ellipse(y, x, 0, 0, 0.72, 0.92) - _ellipse(y, x, 0, 0, 0.64, 0.84)
            v += 950 * shell * (1 + 0.25 * fine[z])
            folds = 1 / (1 + np.exp(-6 * (cortex[z] + 0.3 * slow[z])))
            v += inner * (-15 + 8 * folds) - 25 * _ellipse(y, x, 0, 0.1, 0.22, 0.05)
            flat &= np.abs(folds - 0.5) > 0.49
        for i, contrast in enumerate((-20, -12, -7, 7, 12, 20)):
            for j, radius in enumerate((0.05, 0.03, 0.018, 0.011)):
                angle = 2 * np.pi * (i / 6 + j / 24)
                away = 0.5 if kind != "chest" else 0.12 + 0.02 * j
                v += contrast * _ellipse(y, x, away * np.sin(angle), away * np.cos(angle), radius, radius)
        spine = _ellipse(y, x, 0.47, 0, 0.1, 0.12)
        if kind != "head":
            v += spine * (230 + 110 * fine[z]) + 600 * (spine - _ellipse(y, x, 0.47, 0, 0.09, 0.11))
            flat &= spine < 0.01
        truth[z] = v
        gy, gx = np.gradient(v)
        smooth[z] = flat & (np.hypot(gy, gx) < 1.0)
    spread = sigma * _falloff(y, x, variation) * np.ones(shape)
    noisy = truth + spread * coloured(rng, shape, cutoff)
    rounded = np.clip(np.rint(noisy), -1024, 3071)
    return Phantom(
        truth=truth.astype(np.float32),
        noisy=rounded.astype(np.float32),
        sigma=spread.astype(np.float32),
        flat=smooth,
    )


def mr(
    seed: int,
    *,
    shape: tuple[int, int, int] = (5, 256, 256),
    sigma: float = 0.04,
    zero_fill: float = 1.0,
    variation: float = 0.25,
    scale: float = 800.0,
    masked: bool = False,
) -> Phantom:
    """An MR-like head: magnitude of a complex image with noise in both channels.

    Parameters
    ----------
    sigma
        Noise of either channel as a fraction of white matter (``scale``).
    zero_fill
        The matrix is interpolated by this factor in k-space, which is what correlates clinical MR noise.
    masked
        The background is set to 0, as some vendors do.
    """
    rng = np.random.default_rng([seed, 2])
    y, x = _grid(shape[1], shape[2])
    slow, fine = _field(rng, shape, 0.002, 0.015), _field(rng, shape, 0.015, 0.04)
    head = _ellipse(y, x, 0, 0, 0.88, 0.70)
    truth = np.empty(shape)
    smooth = np.empty(shape, bool)
    for z in range(shape[0]):
        drift = 0.004 * z
        inner = _ellipse(y, x, 0, 0, 0.76, 0.58)
        white = 1 / (1 + np.exp(-10 * (fine[z] + 0.3 * slow[z])))
        deep = _ellipse(y, x, 0, 0, 0.5, 0.38, soft=0.03)
        white = white + (1 - white) * deep
        brain = 0.62 + 0.38 * white
        for side in (-1, 1):
            ventricle = _ellipse(y, x, -0.05, side * 0.1, 0.25 + drift, 0.05, side * 0.2)
            brain = brain * (1 - ventricle) + 0.2 * ventricle
            nucleus = _ellipse(y, x, 0.05, side * 0.24, 0.1, 0.07)
            brain = brain * (1 - nucleus) + 0.7 * nucleus
        for i, contrast in enumerate((-0.12, -0.06, 0.06, 0.12)):
            brain = brain + contrast * _ellipse(y, x, 0.28 * (i - 1.5) / 1.5, 0.0, 0.02, 0.02)
        skull = _ellipse(y, x, 0, 0, 0.80, 0.62) - inner
        scalp = head - _ellipse(y, x, 0, 0, 0.80, 0.62)
        v = inner * brain + 0.05 * skull + 0.9 * scalp
        truth[z] = v * (1 + 0.12 * y - 0.08 * x) * (1 + 0.02 * slow[z])
        gy, gx = np.gradient(truth[z])
        smooth[z] = (inner > 0.99) & (np.hypot(gy, gx) < 0.004)
    spread = sigma * (1 - variation * (1 - 2 * np.clip(x**2 + y**2, 0, 1))) * np.ones(shape)
    real, imaginary = (_filled(rng, shape, zero_fill) for _ in "ri")
    noisy = np.hypot(truth + spread * real, spread * imaginary)
    if masked:
        noisy = noisy * (head > 0.02)
    return Phantom(
        truth=(truth * scale).astype(np.float32),
        noisy=np.rint(noisy * scale).astype(np.float32),
        sigma=(spread * scale).astype(np.float32),
        flat=smooth,
    )


def _filled(rng: np.random.Generator, shape: tuple[int, int, int], factor: float) -> Doubles:
    """White noise of unit variance whose k-space ends at 1/factor of the Nyquist frequency."""
    white = rng.standard_normal(shape)
    if factor <= 1:
        return white
    fy, fx = np.abs(np.fft.fftfreq(shape[1]))[:, None], np.abs(np.fft.rfftfreq(shape[2]))[None, :]
    kept = (fy <= 0.5 / factor) & (fx <= 0.5 / factor)
    noise = np.fft.irfft2(np.fft.rfft2(white) * kept, s=shape[1:])
    return np.asarray(noise / noise.std())
