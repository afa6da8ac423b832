"""From slices to patients to one figure with its interval; paired tests; harm rate.

Slices of one patient are not independent: the patient is the unit of every average and interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from training.errors import DataError

Doubles = npt.NDArray[np.float64]

N_BOOTSTRAP = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean and its bootstrap interval; ``n`` is how many independent values it is made of."""

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Difference of two methods on the same patients (second minus first), and Wilcoxon's p value."""

    difference: Estimate
    p_value: float


def _finite(values: Sequence[float] | Doubles, what: str) -> Doubles:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{what}: there is nothing to average")
    if not np.isfinite(array).all():
        raise DataError(
            f"{what}: some values are not finite",
            hint="a slice that equals its reference has no PSNR; a slice without mask has no figure",
        )
    return array


def per_patient(values: Sequence[float], patients: Sequence[str]) -> dict[str, float]:
    """Return the mean of each patient's slices, by patient, in order of first appearance.

    Raises
    ------
    DataError
        Nothing to average, values that are not finite, or lists of different length.
    """
    array = _finite(values, "per_patient")
    if len(patients) != array.size:
        raise DataError(f"{array.size} values but {len(patients)} patients")
    groups: dict[str, list[float]] = {}
    for value, patient in zip(array, patients, strict=True):
        groups.setdefault(patient, []).append(float(value))
    return {patient: float(np.mean(found)) for patient, found in groups.items()}


def resampled(n: int, *, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP) -> npt.NDArray[np.intp]:
    """Return indices (n_bootstrap, n) of seeded resamples with replacement."""
    return np.random.default_rng([seed, n]).integers(0, n, (n_bootstrap, n))


def percentile_interval(samples: Doubles, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap samples (Efron and Tibshirani, 1993, chapter 13)."""
    low, high = np.percentile(samples, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def estimate(
    values: Sequence[float] | Doubles | Mapping[str, float],
    *,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
    level: float = 0.95,
) -> Estimate:
    """Return the mean over patients and its percentile bootstrap interval.

    Parameters
    ----------
    values
        One value per patient, or what :func:`per_patient` gave. With one patient the interval has no width:
        ``n`` says so.

    Raises
    ------
    DataError
        Nothing to average, or values that are not finite.
    """
    given = list(values.values()) if isinstance(values, Mapping) else values
    array = _finite(given, "estimate")
    means = array[resampled(array.size, seed=seed, n_bootstrap=n_bootstrap)].mean(axis=1)
    low, high = percentile_interval(means, level)
    return Estimate(mean=float(array.mean()), low=low, high=high, n=array.size, level=level)


def paired(
    first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0, level: float = 0.95
) -> Paired:
    """Compare two methods on the same patients.

    Parameters
    ----------
    first, second
        Value by patient; the difference is second minus first.

    Returns
    -------
    Paired
        ``p_value`` of the two-sided Wilcoxon signed-rank test (Biometrics Bulletin 1(6), 1945); 1 where no
        patient differs.

    Raises
    ------
    DataError
        The patients are not the same.
    """
    if set(first) != set(second):
        raise DataError("the two methods were not measured on the same patients")
    differences = np.array([second[p] - first[p] for p in first])
    found = estimate(differences, seed=seed, level=level)
    if not differences.any():
        return Paired(difference=found, p_value=1.0)
    # The exact null distribution knows neither zeros nor ties; with them scipy would have to approximate.
    exact = bool(np.all(differences != 0)) and np.unique(np.abs(differences)).size == differences.size
    method = "exact" if exact and differences.size <= 50 else "asymptotic"
    tested = stats.wilcoxon(differences, zero_method="wilcox", method=method)
    return Paired(difference=found, p_value=float(tested.pvalue))


def harm_rate(before: Sequence[float], after: Sequence[float], *, tolerance: float = 0.0) -> float:
    """Return the share of cases whose error rises: mean(after > before * (1 + tolerance)).

    Parameters
    ----------
    before, after
        Windowed RMSE of each case, before and after.

    Raises
    ------
    DataError
        Nothing to compare, values that are not finite, or lists of different length.
    """
    a, b = _finite(before, "before"), _finite(after, "after")
    if a.size != b.size:
        raise DataError(f"{a.size} cases before but {b.size} after")
    return float(np.mean(b > a * (1 + tolerance)))
