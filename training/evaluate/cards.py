"""From figures of slices to metric cards: the last step before a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.errors import DataError
from training.evaluate.averaging import Estimate, Paired, estimate, harm_rate, paired
from training.evaluate.conventions import MetricCard, Window
from training.evaluate.metrics import SliceFigures

Found = Mapping[str, Sequence[SliceFigures]]
"""Figures of slices, by patient."""

FIGURES: Mapping[str, str] = {
    "psnr_db": "PSNR dB",
    "snr_db": "SNR dB",
    "ssim": "SSIM",
    "rmse_window": "RMSE in the window",
    "rmse": "RMSE",
    "bias": "mean error",
    "vif": "VIF",
    "gmsd": "GMSD",
    "psnr_minus_snr_db": "PSNR - SNR dB",
}
"""Fields of :class:`SliceFigures` and their names in tables."""


def by_patient(found: Found, figure: str) -> dict[str, float]:
    """Return the mean over each patient's slices of one figure (a field of SliceFigures).

    Raises
    ------
    DataError
        A patient has no slices.
    """
    out = {}
    for patient, slices in found.items():
        if not slices:
            raise DataError(f"patient {patient} has no slice that can be measured")
        out[patient] = sum(float(getattr(s, figure)) for s in slices) / len(slices)
    return out


def card(
    found: Found,
    figure: str,
    *,
    domain: str,
    window: Window,
    mask: str,
    reference: str,
    seed: int = 0,
) -> MetricCard:
    """Average one figure and say what it is made of.

    Parameters
    ----------
    figure
        A key of :data:`FIGURES`.
    domain, mask, reference
        For people, see MetricCard.

    Raises
    ------
    DataError
        Nothing to average, or figures that are not finite.
    """
    values = by_patient(found, figure)
    return MetricCard(
        figure=FIGURES[figure],
        domain=domain,
        window=window.name,
        data_range=window.width,
        mask=mask,
        reference=reference,
        n_patients=len(values),
        n_slices=sum(len(s) for s in found.values()),
        estimate=estimate(values, seed=seed),
    )


def gain(before: Found, after: Found, figure: str, *, seed: int = 0) -> Paired:
    """Return after minus before (or second method minus first) of one figure, paired by patient."""
    return paired(by_patient(before, figure), by_patient(after, figure), seed=seed)


def harmed(before: Found, after: Found) -> float:
    """Return the harm rate over patients: the share whose windowed RMSE rises.

    A patient's RMSE is the mean over its slices.
    """
    a, b = by_patient(before, "rmse_window"), by_patient(after, "rmse_window")
    if set(a) != set(b):
        raise DataError("before and after were not measured on the same patients")
    return harm_rate([a[p] for p in a], [b[p] for p in a])


def constant(found: Found) -> Estimate:
    """Return PSNR - SNR in dB over the data set: the same for every method, published as a check."""
    return estimate(by_patient(found, "psnr_minus_snr_db"))
