"""Real scanners' files: which stacks the folder loader finds in the corpus. Its README says what is what."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.dicom_samples import corpus
from training.data import dicom
from training.data.folder import scan_folder

pytestmark = pytest.mark.corpus

NO_IMAGE = "not a single-frame CT or MR image (secondary capture, multi-frame, raw data ...)"
STACKS = {
    "ct/ct_abdomen_siemens_mct": [(20, 2.0, 1)],
    "ct/ct_chest_philips_lidc0314": [(60, 1.0, 1)],
    "ct/ct_head_ge_tilt": [(7, 4.0, 7), (13, 7.0, 13)],
    "ct/ct_headphantom_philips_study": [(5, 1.0, 1), (5, 1.0, 1), (5, 5.0, 1)],
    "ct/ct_lung_radphantom_pat1": [(60, 3.0, 1)],
    "ct/ct_lung_radphantom_pat2": [(41, 3.0, 1)],
    "mr/mr_acr_ge_artist_t1": [(11, 10.0, 1)],
    "mr/mr_acr_ge_artist_t2": [(11, 10.0, 1)],
    "mr/mr_acr_philips_achieva_t1": [(11, 10.0, 1)],
    "mr/mr_multiecho_ge_450w": [(1, 0.0, 1)] * 8,
    "mr/mr_snr_repeat_ge_explorer": [(1, 0.0, 1)] * 2,
    "mr/mr_snr_repeat_siemens_aera": [(1, 0.0, 1)] * 2,
    "mr/mr_t1_memprage_rms_siemens_trio_sag": [(16, 1.0, 1)],
    "mr/mr_t1_mprage_siemens_skyra_sag": [(32, 0.9, 1)],
    "mr/mr_t1_philips_studyforrest_ax": [(20, 0.667, 1)],
    "mr/mr_t2_tse_siemens_trio_ax": [(14, 2.5, 2)],
}
"""Folder -> (slices, spacing in mm, runs) of its stacks."""


@pytest.mark.parametrize("folder", STACKS)
def test_stacks(folder: str) -> None:
    scans = scan_folder(corpus(*folder.split("/"))).scans
    told = sorted((s.shape[0], round(s.spacing_mm[0], 2), len(s.runs)) for s in scans)
    assert told == [(n, pytest.approx(mm, abs=0.01), runs) for n, mm, runs in STACKS[folder]]
    for scan in scans:
        volume = scan.load()
        assert volume.values.dtype == np.float32
        assert np.isfinite(volume.values).all()
        if scan.modality == "CT":
            assert -1100 < volume.values.min() < -900
            assert 100 < volume.values.max() < 5000


@pytest.mark.parametrize(
    ("top", "n_stacks", "reasons"),
    [
        (
            "ct",
            9,
            {
                "a localizer": 1,
                NO_IMAGE: 2,
            },
        ),
        ("mr", 19, {"a diffusion image": 56, "tiles of many slices in one image": 9}),
    ],
)
def test_all_at_once(top: str, n_stacks: int, reasons: dict[str, int]) -> None:
    found = scan_folder(corpus(top))
    assert len(found.scans) == n_stacks == sum(len(v) for k, v in STACKS.items() if k.startswith(top))
    assert found.reasons() == reasons
    assert len({s.key for s in found.scans}) == n_stacks


def test_the_missing_slice_and_the_padding() -> None:
    (scan,) = scan_folder(corpus("mr", "mr_t2_tse_siemens_trio_ax")).scans
    assert scan.runs == ((0, 11), (11, 14))
    for scan in scan_folder(corpus("ct", "ct_head_ge_tilt")).scans:
        assert 0.7 < scan.load().valid.mean() < 0.8


def test_domains_of_real_scanners() -> None:
    found = [*scan_folder(corpus("ct")).scans, *scan_folder(corpus("mr")).scans]
    counted = Counter(s.domains["vendor"] for s in found)
    assert counted == {"GE": 14, "Siemens": 6, "Philips": 5, "other": 3}
    (lidc,) = [s for s in found if s.shape == (60, 512, 512)]
    assert lidc.domains == {"vendor": "Philips", "thickness": "thin", "kernel": "sharp", "dose": "high"}


def test_odd_files_are_taken_or_left_out_but_never_stop_the_loader() -> None:
    found = scan_folder(corpus("odd"))
    names = {one.what for one in found.left_out}
    for name in (
        "rtdose.dcm",
        "liver_1frame.dcm",
        "test-SR.dcm",
        "no_meta.dcm",
        "GH178.dcm",
        "eCT_Supplemental.dcm",
    ):
        assert name in names
    index = dicom.index(corpus("odd"))
    assert len(index.stacks) == len(found.scans)
