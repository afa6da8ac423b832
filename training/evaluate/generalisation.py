"""How much of its gain a method keeps on a domain that it never saw: the project's Figure 2.

gain g_m(d) = mean over patients of (PSNR_out - PSNR_in), windowed, in the mask, in dB.

    G_m(d) = g of the model trained WITHOUT domain d, on d / g of the same recipe trained WITH d, on d

The same domain stands in numerator and denominator, so a noisy domain, which allows bigger gains, is no
confounder. 1: fully general; 0: useless; below 0: harmful. See docs/evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.errors import DataError
from training.evaluate.averaging import Estimate, estimate, percentile_interval, resampled

LEAST_GAIN_DB = 0.5
"""A ratio to less than this is a ratio to chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Generalisation of one family to one domain.

    Attributes
    ----------
    family, domain
        Names.
    score
        G and its interval over patients; None where it was refused.
    gain_without, gain_with
        Gains in dB on this domain of the models trained without and with it.
    harm_rate
        Share of patients that the model trained without the domain makes worse.
    refused
        Why there is no score, or "".
    cheap
        True for G' (:func:`relative`): normalised by a classical filter, not by a model that saw the domain.
    """

    family: str
    domain: str
    score: Estimate | None
    gain_without: Estimate
    gain_with: Estimate
    harm_rate: float
    refused: str = ""
    cheap: bool = False

    @property
    def name(self) -> str:
        """``G``, or ``G'`` for the cheap variant."""
        return "G'" if self.cheap else "G"


def gains(before_db: Mapping[str, float], after_db: Mapping[str, float]) -> dict[str, float]:
    """Return PSNR after minus before by patient, in dB.

    Raises
    ------
    DataError
        The patients are not the same.
    """
    if set(before_db) != set(after_db):
        raise DataError("before and after were not measured on the same patients")
    return {p: after_db[p] - before_db[p] for p in before_db}


def _ratio(top: Mapping[str, float], bottom: Mapping[str, float], seed: int) -> tuple[Estimate | None, str]:
    if set(top) != set(bottom):
        raise DataError("both models must be measured on the same patients")
    a = np.array([top[p] for p in top])
    b = np.array([bottom[p] for p in top])
    if a.size == 0 or not np.isfinite(a).all() or not np.isfinite(b).all():
        raise DataError("gains are missing or not finite")
    whole = float(b.mean())
    if whole < LEAST_GAIN_DB:
        return None, f"the model that saw the domain gains {whole:.2f} dB, less than {LEAST_GAIN_DB:g}"
    drawn = resampled(a.size, seed=seed)
    tops, bottoms = a[drawn].mean(axis=1), b[drawn].mean(axis=1)
    if float(np.percentile(bottoms, 2.5)) <= 0:
        return None, "the gain of the model that saw the domain cannot be told from 0"
    low, high = percentile_interval(tops / np.maximum(bottoms, 1e-9))
    return Estimate(mean=float(a.mean()) / whole, low=low, high=high, n=a.size), ""


def generalisation(
    family: str, domain: str, without: Mapping[str, float], with_: Mapping[str, float], *, seed: int = 0
) -> Score:
    """Return G of a family on a domain.

    Parameters
    ----------
    without, with_
        Gain in dB by patient *of this domain*, of the models trained without and with the domain (same
        recipe, same number of updates). The interval resamples patients, both gains together.

    Returns
    -------
    Score
        ``score`` is None where the denominator is below 0.5 dB or cannot be told from 0.

    Raises
    ------
    DataError
        The patients are not the same, or gains are missing.
    """
    score, refused = _ratio(without, with_, seed)
    return Score(
        family=family,
        domain=domain,
        score=score,
        gain_without=estimate(without, seed=seed),
        gain_with=estimate(with_, seed=seed),
        harm_rate=float(np.mean([g < 0 for g in without.values()])),
        refused=refused,
    )


def relative(
    family: str,
    domain: str,
    model: Mapping[str, float],
    classical: Mapping[str, float],
    *,
    seen_ratio: float,
    seed: int = 0,
) -> Score:
    """Return G', the cheap variant without retraining: (g_model / g_classical on d) / the same on seen data.

    Parameters
    ----------
    model, classical
        Gain in dB by patient of the domain, of the model and of the tuned classical filter.
    seen_ratio
        mean gain of the model over mean gain of the classical filter, on domains that both saw.
    """
    if seen_ratio <= 0:
        raise DataError("the model must gain on what it saw, or there is nothing to generalise")
    score, refused = _ratio(model, classical, seed)
    if score is not None:
        score = Estimate(
            mean=score.mean / seen_ratio,
            low=score.low / seen_ratio,
            high=score.high / seen_ratio,
            n=score.n,
        )
    return Score(
        family=family,
        domain=domain,
        score=score,
        gain_without=estimate(model, seed=seed),
        gain_with=estimate(classical, seed=seed),
        harm_rate=float(np.mean([g < 0 for g in model.values()])),
        refused=refused.replace("model that saw the domain", "classical filter"),
        cheap=True,
    )


def worst(scores: Sequence[Score]) -> Score:
    """Return the domain with the lowest score; those that were refused do not count.

    Raises
    ------
    DataError
        All were refused.
    """
    known = [(s.score.mean, i) for i, s in enumerate(scores) if s.score is not None]
    if not known:
        raise DataError("no domain has a score")
    return scores[min(known)[1]]
