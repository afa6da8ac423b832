"""The traditional rows of the tables: filters tuned on validation data, as the networks are.

A table that beats an untuned filter shows nothing. So each row has a grid of parameters *relative to the
noise*, the strength of the blend among them; :func:`tune` takes the best on validation patients by the same
score as the networks, and the test set is never touched. Rows:

- of scikit-image, without guards: ``gaussian``, ``median``, ``bilateral`` (the paper's traditional methods),
  ``tv`` (Chambolle), ``wavelet`` (BayesShrink), ``nlm`` (fast non-local means);
- of this product, with guards, through the front door: ``ct-nlm``, ``mr-tv``, ... (engines/zoo).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.restoration import denoise_bilateral, denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from engines.base import Mask, Params, Unit, Volume
from engines.card import as_card, read
from engines.catalog import ZOO
from engines.classical import CORES
from engines.front import Enhancer
from training.errors import DataError

Floats = npt.NDArray[np.float32]
Parameters = Mapping[str, Any]
Filter = Callable[[Floats, Floats, Parameters], npt.NDArray[np.floating[Any]]]

BLENDS = tuple(round(0.05 * n, 2) for n in range(6, 21))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One validation (or test) stack.

    Attributes
    ----------
    patient, domain
        Names: the patient is the unit of averages.
    noisy, reference
        float32 (z, y, x) in ``unit``.
    sigma
        Noise per slice (z,), as the networks are told it.
    mask
        bool (z, y, x): where it is scored.
    spacing_mm
        (z, y, x).
    unit
        ``HU`` or ``arbitrary``.
    """

    patient: str
    domain: str
    noisy: Floats
    reference: Floats
    sigma: Floats
    mask: Mask
    spacing_mm: tuple[float, float, float] = (1.0, 0.7, 0.7)
    unit: Unit = "HU"


Score = Callable[[Case, Floats], float]
"""Of an output for a case: higher is better."""


def _gaussian(values: Floats, sigma: Floats, p: Parameters) -> npt.NDArray[np.floating[Any]]:
    return np.asarray(ndimage.gaussian_filter(values, (0, p["width"], p["width"])))


def _median(values: Floats, sigma: Floats, p: Parameters) -> npt.NDArray[np.floating[Any]]:
    return np.asarray(ndimage.median_filter(values, (1, p["side"], p["side"])))


def _bilateral(values: Floats, sigma: Floats, p: Parameters) -> npt.NDArray[np.floating[Any]]:
    # scikit-image takes no negative values: shifted up and back.
    lowest = float(values.min())
    return np.stack(
        [
            denoise_bilateral(
                (v - lowest).astype(np.float64),
                win_size=2 * int(np.ceil(2 * p["width"])) + 1,
                sigma_color=p["range"] * float(s),
                sigma_spatial=p["width"],
                bins=4096,
            )
            + lowest
            for v, s in zip(values, sigma, strict=True)
        ]
    )


def _tv(values: Floats, sigma: Floats, p: Parameters) -> npt.NDArray[np.floating[Any]]:
    return np.stack(
        [
            denoise_tv_chambolle(v / s, weight=p["weight"], eps=1e-5, max_num_iter=60) * s  # type: ignore[no-untyped-call]
            for v, s in zip(values, sigma, strict=True)
        ]
    )


def _wavelet(values: Floats, sigma: Floats, p: Parameters) -> npt.NDArray[np.floating[Any]]:
    return np.stack(
        [
            denoise_wavelet(
                v,
                sigma=p["gain"] * float(s),
                wavelet=p["wavelet"],
                mode="soft",
                method="BayesShrink",
                wavelet_levels=p["levels"],
                rescale_sigma=False,
            )
            for v, s in zip(values, sigma, strict=True)
        ]
    )


def _nlm(values: Floats, sigma: Floats, p: Parameters) -> npt.NDArray[np.floating[Any]]:
    return np.stack(
        [
            denoise_nl_means(
                v,
                patch_size=p["patch"],
                patch_distance=p["reach"],
                h=p["width"] * float(s),
                sigma=p["own"] * float(s),
                fast_mode=True,
            )
            for v, s in zip(values, sigma, strict=True)
        ]
    )


FILTERS: Mapping[str, Filter] = {
    "gaussian": _gaussian,
    "median": _median,
    "bilateral": _bilateral,
    "tv": _tv,
    "wavelet": _wavelet,
    "nlm": _nlm,
}

PAPER_ROWS = ("gaussian", "median", "bilateral")
"""What the seed's Table 1 calls traditional."""

_GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "gaussian": {"width": [0.5, 0.7, 0.9, 1.2, 1.6]},
    "median": {"side": [3, 5, 7]},
    "bilateral": {"width": [1.0, 1.6, 2.5, 4.0], "range": [1.5, 2.5, 4.0]},
    "tv": {"weight": [0.3, 0.5, 0.75, 1.0, 1.4, 2.0]},
    "wavelet": {"wavelet": ["db2", "sym4"], "levels": [3], "gain": [0.7, 1.0, 1.4, 2.0, 2.8]},
    "nlm": {"patch": [5, 7, 9], "reach": [9], "width": [0.6, 0.8, 1.0, 1.3], "own": [0.0, 0.7]},
}

_CORE_GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "nlm": {"far": [1.6, 2.0, 2.5, 3.2, 4.0], "lock": [5, 32]},
    "tv": {"weight": [0.5, 0.8, 1.2, 1.8, 2.7], "lock": [5, 32]},
    "wavelet": {"gain": [0.9, 1.2, 1.6, 2.2], "window": [2, 3], "lock": [5, 32]},
}


def rows(unit: Unit) -> tuple[str, ...]:
    """Return the names of all rows for CT (HU) or MR (arbitrary)."""
    prefix = "ct-" if unit == "HU" else "mr-"
    return (*FILTERS, *(prefix + core for core in _CORE_GRIDS))


def candidates(name: str) -> tuple[dict[str, Any], ...]:
    """Return the grid of a row: parameters relative to the noise, times ``blend``.

    ``blend`` is the strength: out = in + blend (filtered - in). Engines of the zoo take their card's other
    parameters as they are.

    Raises
    ------
    DataError
        There is no such row.
    """
    grid, fixed = _grid(name)
    return tuple(
        {**fixed, **dict(zip(grid, values, strict=True)), "blend": blend}
        for values in itertools.product(*grid.values())
        for blend in BLENDS
    )


def at_edge(name: str, parameters: Parameters) -> tuple[str, ...]:
    """Return the numbers that tuning left at an end of the grid: there the row could be better still.

    The blend's upper end, 1, is no end: more than the whole is not asked for.
    """
    grid = {**_grid(name)[0], "blend": (*BLENDS, 2.0)}
    return tuple(
        key
        for key, values in grid.items()
        if len(values) > 2 and not isinstance(values[0], str) and parameters[key] in (values[0], values[-1])
    )


def _grid(name: str) -> tuple[Mapping[str, Sequence[Any]], dict[str, Any]]:
    if name in _GRIDS:
        return _GRIDS[name], {}
    _, _, core = name.partition("-")
    if name in (*rows("HU"), *rows("arbitrary")) and core in _CORE_GRIDS:
        return _CORE_GRIDS[core], dict(read(ZOO / name).parameters)
    raise DataError(f"there is no classical row {name!r}", hint=f"one of {', '.join(rows('HU'))}, mr-...")


def apply(name: str, parameters: Parameters, volume: Volume, sigma: Floats) -> Floats:
    """Run a row on a stack.

    Parameters
    ----------
    name, parameters
        One of :func:`rows`, with parameters such as :func:`candidates` gives.
    volume
        float32 (z, y, x); voxels that are not valid come back as they were.
    sigma
        Noise per slice (z,) in the volume's unit; slices where it is not above 0 come back as they were.

    Returns
    -------
    Floats
        float32 (z, y, x), not rounded.
    """
    full = _filtered(name, parameters, volume, sigma)
    return _blended(volume.values, full, float(parameters["blend"]))


def _blended(values: Floats, full: Floats, blend: float) -> Floats:
    return values + np.float32(blend) * (full - values)


def _filtered(name: str, parameters: Parameters, volume: Volume, sigma: Floats) -> Floats:
    """The row at full strength."""
    told = np.asarray(sigma, np.float32)
    if told.shape != (volume.shape[0],):
        raise DataError("sigma must be one value per slice")
    if name in FILTERS:
        known = np.isfinite(told) & (told > 0)
        out = volume.values.copy()
        if known.any():
            out[known] = FILTERS[name](volume.values[known], told[known], parameters).astype(np.float32)
        out[~volume.valid] = volume.values[~volume.valid]
        return out
    engine = _engine(name, parameters)
    survey = replace(engine.survey(volume), sigma=told)
    result: Floats = engine.enhance(volume, Params(strength=1.0), survey).volume.values
    return result


def _engine(name: str, parameters: Parameters) -> Enhancer:
    """An engine of the zoo with other parameters than its card's; one thread, for repeatable timings."""
    _grid(name)
    file = read(ZOO / name)
    own = {k: v for k, v in parameters.items() if k != "blend"}
    assert file.core is not None
    core = CORES[file.core](own, 1)
    card = as_card(file)
    return Enhancer(
        replace(card, parameters=own, receptive_field=max(card.receptive_field, core.halo)), core, 1
    )


def volume_of(case: Case) -> Volume:
    """Return the noisy stack of a case as engines take it."""
    n = case.noisy.shape[0]
    return Volume(
        values=np.ascontiguousarray(case.noisy, np.float32),
        spacing_mm=case.spacing_mm,
        unit=case.unit,
        valid=np.ones(case.noisy.shape, np.bool_),
        contiguous=np.ones(n, np.bool_),
        step=np.ones(n, np.float32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Parameters and their score: the mean over patients of the mean over their cases."""

    parameters: Parameters
    score: float


def trials(name: str, cases: Sequence[Case], score: Score) -> tuple[Trial, ...]:
    """Score every candidate of a row on validation cases.

    Each filter runs once per case; the strengths are blended from it. Give stacks of three slices of which
    only the middle one is in the mask: enough for rows that use neighbours, and three times as fast.

    Raises
    ------
    DataError
        No cases, or no such row.
    """
    if not cases:
        raise DataError("there are no validation cases to tune on")
    grid = candidates(name)
    by_filter: dict[tuple[tuple[str, Any], ...], list[dict[str, Any]]] = {}
    for parameters in grid:
        own = tuple((k, v) for k, v in parameters.items() if k != "blend")
        by_filter.setdefault(own, []).append(parameters)
    found = []
    for blends in by_filter.values():
        per_patient: list[dict[str, list[float]]] = [{} for _ in blends]
        for case in cases:
            volume = volume_of(case)
            # Slices that are not scored are there as neighbours: filters that use none need not run on them.
            told = np.where(case.mask.any(axis=(1, 2)) | (name not in FILTERS), case.sigma, np.nan)
            full = _filtered(name, blends[0], volume, told.astype(np.float32))
            for parameters, scores in zip(blends, per_patient, strict=True):
                out = _blended(volume.values, full, float(parameters["blend"]))
                scores.setdefault(case.patient, []).append(score(case, out))
        found += [
            Trial(parameters=p, score=float(np.mean([np.mean(v) for v in s.values()])))
            for p, s in zip(blends, per_patient, strict=True)
        ]
    return tuple(found)


def tune(name: str, validation_cases: Sequence[Case], score: Score) -> Parameters:
    """Return the parameters of a row with the highest score on validation cases (the first of equals)."""
    return max(trials(name, validation_cases, score), key=lambda t: t.score).parameters
