"""Low-contrast detectability: the channelized Hotelling observer (CHO).

It looks at regions with and without a known signal through a few channels, finds the best linear test in
them, and says how well it tells the two apart. Unlike PSNR it does not reward taking a lesion away with the
noise. Sources: Barrett and Myers, Foundations of Image Science (2004), chapter 13; Gallas and Barrett, JOSA A
20(9), 2003 (Laguerre-Gauss); Abbey and Barrett, JOSA A 18(3), 2001 (difference of Gaussians).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf, eval_laguerre
from scipy.stats import rankdata

from training.errors import DataError
from training.evaluate.averaging import Estimate, percentile_interval
from training.evaluate.conventions import Values

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.integer[Any]]

DISKS = ((3.0, 10.0), (5.0, 7.0), (7.0, 5.0), (14.0, 3.0))
"""(contrast in HU, diameter in mm) of the discs of the MITA low-contrast phantom."""

LARGEST_AUC_LOSS = 0.01
"""The gate: no disc may lose more than so much AUC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detectability:
    """How well a signal is seen.

    Attributes
    ----------
    d_prime
        Detectability index: difference of the mean scores over the root of their mean variance.
    auc
        Area under the ROC curve (Mann-Whitney), 0.5 is guessing.
    n_present, n_absent
        Realisations.
    """

    d_prime: Estimate
    auc: Estimate
    n_present: int
    n_absent: int


def disk(
    size: int, contrast: float, diameter_mm: float, spacing_mm: float, *, blur_mm: float = 0.0
) -> Doubles:
    """Return a centred disc (size, size) in the image's unit, its edge blurred so that pixels share it.

    The edge is contrast (1 - erf((r - R) / (sqrt 2 s))) / 2, s at least 0.3 pixel.
    """
    at = (np.arange(size) - (size - 1) / 2) * spacing_mm
    r = np.hypot(at[:, None], at[None, :])
    s = max(blur_mm, 0.3 * spacing_mm)
    return np.asarray(contrast * 0.5 * (1 - erf((r - diameter_mm / 2) / (np.sqrt(2) * s))))


def corners(shape: tuple[int, ...], size: int, *, gap: int = 0) -> tuple[tuple[int, int, int], ...]:
    """Return (z, y, x) of the first voxels of regions that lie side by side in a volume, ``gap`` pixels apart.

    Many realisations in one run of an engine: a gap of twice its receptive field keeps them independent.
    """
    z, y, x = shape
    step = size + gap
    return tuple(
        (k, j, i)
        for k in range(z)
        for j in range(0, y - size + 1, step)
        for i in range(0, x - size + 1, step)
    )


def paste(volume: Values, places: Sequence[tuple[int, int, int]], signal: Doubles) -> npt.NDArray[np.float32]:
    """Return the volume with the signal added at each place (before the noise, or to a noisy volume)."""
    out = np.asarray(volume, np.float64).copy()
    size = signal.shape[0]
    for z, y, x in places:
        out[z, y : y + size, x : x + size] += signal
    return out.astype(np.float32)


def cut(volume: Values, places: Sequence[tuple[int, int, int]], size: int) -> npt.NDArray[np.float32]:
    """Return the regions (n, size, size) at the places."""
    return np.stack([volume[z, y : y + size, x : x + size] for z, y, x in places]).astype(np.float32)


def laguerre_gauss(size: int, width: float, n: int = 6) -> Doubles:
    """Return Laguerre-Gauss channels as columns (size^2, n).

    u_j(r) = sqrt 2 / a * exp(-pi r^2 / a^2) L_j(2 pi r^2 / a^2), j = 0 .. n-1; orthonormal in the plane.

    Parameters
    ----------
    width
        a in pixels; the signal's diameter is best for discs (six channels then see 0.97 of its norm).
    """
    at = np.arange(size) - (size - 1) / 2
    r2 = (at[:, None] ** 2 + at[None, :] ** 2).ravel() / width**2
    fall = np.sqrt(2) / width * np.exp(-np.pi * r2)
    return np.stack([fall * eval_laguerre(j, 2 * np.pi * r2) for j in range(n)], axis=1)


def difference_of_gaussians(
    size: int, n: int = 10, *, first: float = 0.005, ratio: float = 1.4, spread: float = 1.67
) -> Doubles:
    """Return difference-of-Gaussians channels as columns (size^2, n), centred, norm 1.

    C_j(f) = exp(-(f / (Q s_j))^2 / 2) - exp(-(f / s_j)^2 / 2), s_j = s_0 ratio^(j + 1), f in cycles per pixel;
    the values are the "dense" set of Abbey and Barrett.
    """
    f = np.fft.fftfreq(size)
    radius = np.hypot(f[:, None], f[None, :])
    shift = np.exp(-2j * np.pi * f * (size - 1) / 2)
    columns = []
    for j in range(n):
        s = first * ratio ** (j + 1)
        band = np.exp(-0.5 * (radius / (spread * s)) ** 2) - np.exp(-0.5 * (radius / s) ** 2)
        channel = np.fft.ifft2(band * shift[:, None] * shift[None, :]).real.ravel()
        columns.append(channel / np.linalg.norm(channel))
    return np.stack(columns, axis=1)


def through(rois: Values, channels: Doubles) -> Doubles:
    """Return channel outputs (n, channels) of regions (n, size, size)."""
    flat = np.asarray(rois, np.float64).reshape(rois.shape[0], -1)
    if flat.shape[1] != channels.shape[0]:
        raise DataError("channels and regions are not of one size")
    return np.asarray(flat @ channels)


def template(present: Doubles, absent: Doubles) -> Doubles:
    """Return Hotelling's template w = S^-1 (mean present - mean absent), S the mean of both covariances.

    Parameters
    ----------
    present, absent
        Channel outputs (n, channels).
    """
    covariance = 0.5 * (np.cov(present, rowvar=False) + np.cov(absent, rowvar=False))
    signal = present.mean(axis=0) - absent.mean(axis=0)
    return np.asarray(np.linalg.lstsq(np.atleast_2d(covariance), signal, rcond=1e-10)[0])


def auc(present: Doubles, absent: Doubles) -> float:
    """Return P(score present > score absent) + P(equal) / 2 (Mann-Whitney)."""
    n = present.size
    ranks = rankdata(np.concatenate([present, absent]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * absent.size))


def separation(present: Doubles, absent: Doubles) -> float:
    """Return d' = (mean present - mean absent) / sqrt((var present + var absent) / 2) of scores."""
    spread = np.sqrt(0.5 * (present.var(ddof=1) + absent.var(ddof=1)))
    return float((present.mean() - absent.mean()) / spread) if spread > 0 else float("nan")


def _crossed(
    present: Doubles, absent: Doubles, folds_present: Indices, folds_absent: Indices
) -> tuple[float, float]:
    """d' and AUC, means over two folds, each scored with the template of the other."""
    scores = []
    for fold in (0, 1):
        w = template(present[folds_present != fold], absent[folds_absent != fold])
        a, b = present[folds_present == fold] @ w, absent[folds_absent == fold] @ w
        scores.append((separation(a, b), auc(a, b)))
    return float(np.mean([s[0] for s in scores])), float(np.mean([s[1] for s in scores]))


def _draws(n: int, rng: np.random.Generator) -> Indices:
    """A resample that keeps the halves (even and odd realisations), so none is in both folds."""
    even, odd = np.arange(0, n, 2), np.arange(1, n, 2)
    return np.concatenate([rng.choice(even, even.size), rng.choice(odd, odd.size)])


def _samples(
    pairs: list[tuple[Doubles, Doubles]], n_bootstrap: int, seed: int
) -> tuple[list[tuple[float, float]], npt.NDArray[np.float64]]:
    """Figures of each pair (d', AUC), and of the same resamples of realisations (n_bootstrap, pairs, 2)."""
    n, m = pairs[0][0].shape[0], pairs[0][1].shape[0]
    if any(p.shape[0] != n or a.shape[0] != m for p, a in pairs):
        raise DataError("the realisations are not the same before and after")
    if min(n, m) < 20:
        raise DataError(f"{n} and {m} realisations are too few for an observer", hint="100 and 200 are usual")
    folds = [np.arange(k) % 2 for k in (n, m)]
    whole = [_crossed(p, a, folds[0], folds[1]) for p, a in pairs]
    rng = np.random.default_rng([seed, n, m])
    drawn = np.empty((n_bootstrap, len(pairs), 2))
    for b in range(n_bootstrap):
        i, j = _draws(n, rng), _draws(m, rng)
        for k, (p, a) in enumerate(pairs):
            drawn[b, k] = _crossed(p[i], a[j], folds[0][i], folds[1][j])
    return whole, drawn


def _estimate(value: float, drawn: Doubles, n: int) -> Estimate:
    low, high = percentile_interval(drawn)
    return Estimate(mean=value, low=low, high=high, n=n)


def detect(
    present: Values, absent: Values, channels: Doubles, *, n_bootstrap: int = 500, seed: int = 0
) -> Detectability:
    """Measure how well a CHO tells regions with a signal from regions without.

    The template is made from one half of the realisations and scored on the other, and the reverse: an
    observer that is scored on what it learned from sees signals in pure noise.

    Parameters
    ----------
    present, absent
        (n, size, size): at least 20 each, 100 and 200 are usual.
    channels
        (size^2, k), from :func:`laguerre_gauss` or :func:`difference_of_gaussians`.
    n_bootstrap
        Resamples of realisations for the 95 % intervals.

    Raises
    ------
    DataError
        Too few realisations, or sizes that do not fit.
    """
    pair = (through(present, channels), through(absent, channels))
    whole, drawn = _samples([pair], n_bootstrap, seed)
    n, m = pair[0].shape[0], pair[1].shape[0]
    return Detectability(
        d_prime=_estimate(whole[0][0], drawn[:, 0, 0], n + m),
        auc=_estimate(whole[0][1], drawn[:, 0, 1], n + m),
        n_present=n,
        n_absent=m,
    )


def auc_change(
    before: tuple[Values, Values],
    after: tuple[Values, Values],
    channels: Doubles,
    *,
    n_bootstrap: int = 500,
    seed: int = 0,
) -> Estimate:
    """Return AUC after minus AUC before, with the interval over the same resamples of realisations.

    Parameters
    ----------
    before, after
        (present, absent) regions each; realisation i is the same noise before and after.
    """
    pairs = [(through(p, channels), through(a, channels)) for p, a in (before, after)]
    whole, drawn = _samples(pairs, n_bootstrap, seed)
    n = pairs[0][0].shape[0] + pairs[0][1].shape[0]
    return _estimate(whole[1][1] - whole[0][1], drawn[:, 1, 1] - drawn[:, 0, 1], n)
