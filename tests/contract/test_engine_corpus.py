"""The default engines on real series: known noise is found and falls by half; texture and means stay."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest

from engines import noise
from engines.base import Floats, Params, Volume
from engines.catalog import Catalog
from tests import laws

pytestmark = pytest.mark.corpus

CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "data"

HEAD = "ct/ct_headphantom_philips_study"


@cache
def series(folder: str, first: int, last: int) -> Volume:
    """Slices of a series in order of position."""
    if not (CORPUS / folder).is_dir():
        pytest.skip("the image corpus is not beside the checkout (../shared/data)")
    read = [pydicom.dcmread(p) for p in sorted((CORPUS / folder).rglob("*")) if p.is_file()]

    def along(ds: pydicom.Dataset) -> float:
        o = np.array(ds.ImageOrientationPatient, float)
        return float(np.cross(o[:3], o[3:]) @ np.array(ds.ImagePositionPatient, float))

    read.sort(key=along)
    at = [along(ds) for ds in read]
    gap = float(np.median(np.diff(at))) if len(at) > 1 else 0.0
    chosen = read[first:last]
    slopes = np.array([float(getattr(ds, "RescaleSlope", 1)) for ds in chosen], np.float32)
    values = np.stack(
        [
            ds.pixel_array.astype(np.float32) * s + float(getattr(ds, "RescaleIntercept", 0))
            for ds, s in zip(chosen, slopes, strict=True)
        ]
    ).astype(np.float32)
    valid = np.ones(values.shape, np.bool_)
    for i, ds in enumerate(chosen):
        if "PixelPaddingValue" in ds:
            valid[i] = ds.pixel_array != ds.PixelPaddingValue
    return Volume(
        values=values,
        spacing_mm=(gap, *(float(s) for s in chosen[0].PixelSpacing)),
        unit="HU" if chosen[0].Modality == "CT" else "arbitrary",
        valid=valid,
        contiguous=np.ones(len(chosen), np.bool_),
        step=slopes,
    )


def sigma(volume: Volume) -> float:
    return float(np.nanmedian(noise.survey(volume).sigma))


@pytest.mark.parametrize(
    ("folder", "expected", "tolerance"),
    [
        # By hand, in uniform regions.
        ("ct/ct_chest_philips_lidc0314", 21.1, 0.25),
        ("ct/ct_abdomen_siemens_mct", 13.1, 0.25),
        (f"{HEAD}/S2030_bone1mm", 14.5, 0.30),
        # By subtraction of two acquisitions.
        ("mr/mr_snr_repeat_siemens_aera", 6.9, 0.25),
        ("mr/mr_snr_repeat_ge_explorer", 9.6, 0.25),
    ],
)
def test_known_noise_is_found(folder: str, expected: float, tolerance: float) -> None:
    assert sigma(series(folder, 0, 5)) == pytest.approx(expected, rel=tolerance)


def test_three_reconstructions_of_one_acquisition_are_told_apart() -> None:
    thick, thin, sharp = (
        noise.survey(series(f"{HEAD}/{name}", 0, 5))
        for name in ("S2010_brain5mm", "S2020_brain1mm_idose", "S2030_bone1mm")
    )
    sigmas = [float(np.median(s.sigma)) for s in (thick, thin, sharp)]
    assert sigmas == sorted(sigmas)
    assert sigmas[2] > 4 * sigmas[1]
    assert np.median(sharp.frequency) > np.median(thin.frequency) + 0.05


@pytest.mark.parametrize(
    "folder",
    [
        *("ct/ct_chest_philips_lidc0314", "ct/ct_abdomen_siemens_mct", "ct/ct_head_ge_tilt"),
        *(f"{HEAD}/S2010_brain5mm", f"{HEAD}/S2020_brain1mm_idose", f"{HEAD}/S2030_bone1mm"),
        "ct/ct_lung_radphantom_pat2",
    ],
)
def test_kernels_and_hybrid_reconstruction_are_not_called_smoothed(folder: str) -> None:
    volume = series(folder, 0, 5)
    found = noise.survey(volume)
    pixel_mm = volume.spacing_mm[1]
    assert not noise.smoothed_already(found, pixel_mm)
    assert 0.25 < float(np.nanmedian(found.frequency)) / pixel_mm < 0.7


def test_a_small_field_of_view_is_not_called_smoothed() -> None:
    """GE with ASiR 40 %, 0.25 mm pixels: coarse in pixels, and as sharp as any in millimetres."""
    path = CORPUS / "odd" / "GH1308.dcm"
    if not path.is_file():
        pytest.skip("the image corpus is not beside the checkout (../shared/data)")
    ds = pydicom.dcmread(path)
    values = ds.pixel_array.astype(np.float32) * np.float32(ds.RescaleSlope) + np.float32(ds.RescaleIntercept)
    found = noise.estimate(values, ds.pixel_array != -2000, unit="HU")
    assert found.frequency < noise.SMOOTH
    assert found.frequency / float(ds.PixelSpacing[0]) > 0.4


DEFAULTS = [
    ("ct-nlm", "ct/ct_chest_philips_lidc0314", 28, 33),
    ("ct-nlm", "ct/ct_abdomen_siemens_mct", 8, 12),
    ("ct-nlm", "ct/ct_head_ge_tilt", 8, 11),
    ("ct-nlm", f"{HEAD}/S2030_bone1mm", 0, 4),
    ("mr-nlm", "mr/mr_t1_mprage_siemens_skyra_sag", 14, 19),
    ("mr-nlm", "mr/mr_t2_tse_siemens_trio_ax", 5, 9),
    ("mr-nlm", "mr/mr_t1_philips_studyforrest_ax", 8, 12),
    ("mr-nlm", "mr/mr_acr_ge_artist_t1", 7, 11),
]


@pytest.mark.parametrize(("name", "folder", "first", "last"), DEFAULTS)
def test_default_engines_at_default_strength(name: str, folder: str, first: int, last: int) -> None:
    volume = series(folder, first, last)
    engine = Catalog.default().load(name)
    out = engine.enhance(volume, Params(strength=engine.card.default_strength))
    assert out.figures["skipped"] == 0
    before, after = (float(np.nanmean(noise.survey(v).sigma)) for v in (volume, out.volume))
    assert 0.40 < after / before < 0.67
    assert out.figures["cfr"] > 0.9
    laws.keeps_means(engine, laws.cut(volume, 1, 2))


def disc_contrasts(image: Floats, discs: list[tuple[int, int, int]]) -> list[float]:
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    found = []
    for cy, cx, r in discs:
        away = np.hypot(y - cy, x - cx)
        found.append(float(image[away <= r * 0.8].mean() - image[(away > r + 2) & (away < r + 4)].mean()))
    return found


def test_low_contrast_discs_of_the_acr_phantom_stay() -> None:
    """The largest low-contrast discs (4 % of the signal or less) keep 90 % of their contrast."""
    volume = series("mr/mr_acr_ge_artist_t1", 9, 11)
    engine = Catalog.default().load("mr-nlm")
    after = engine.enhance(volume, Params(strength=0.6)).volume.values[1]
    discs = [(114, 140, 3), (126, 134, 3), (132, 140, 3), (126, 152, 3), (102, 146, 3)]
    before = disc_contrasts(volume.values[1], discs)
    assert all(c > 0 for c in before)
    for was, now in zip(before, disc_contrasts(after, discs), strict=True):
        assert now > 0.9 * was


def test_a_resolution_insert_does_not_fool_its_neighbours() -> None:
    """Slice 5 of the ACR phantom is a grid: the noise that is used there is that of its neighbours."""
    volume = series("mr/mr_acr_philips_achieva_t1", 0, 11)
    found = noise.survey(volume)
    used = noise.steady(found.sigma)
    assert used.max() < 1.6 * np.median(used)
