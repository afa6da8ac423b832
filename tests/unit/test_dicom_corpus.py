"""Every file of the image corpus: read as pydicom reads it, stacked, judged. Its README says what is what."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import keyword_dict

from node.config.identifiers import may_be_seen, vr_of
from node.dicom.headers import merge, promise
from node.dicom.modality import eligibility, split
from node.dicom.read import read_header, read_instance
from node.dicom.stacks import regular, stacks
from node.errors import SeriesError
from node.model import InstanceHeader
from tests.dicom_samples import CORPUS, corpus

pytestmark = pytest.mark.corpus

UNREADABLE = {
    "odd/no_meta.dcm": "prefix DICM is missing",
    "odd/meta_missing_tsyntax.dcm": "names no transfer syntax",
    "odd/GH179A.dcm": "longer than what encloses it",
    "odd/FreezePattern.dcm": "unexpected delimiter",
}
"""No Part 10 files, or no data sets: pydicom guesses its way through some of them."""

SERIES: dict[str, tuple[str, list[int], str]] = {
    "ct/ct_abdomen_siemens_mct": ("no Study Instance UID", [20], "20 slices 2 mm apart"),
    "ct/ct_chest_philips_lidc0314": ("", [60], "60 slices 1 mm apart"),
    "ct/ct_head_ge_tilt": ("", [7, 13], "do not cover the same positions"),
    "ct/ct_headphantom_philips_study/S1000_localizer": ("localizer", [1], "proves nothing"),
    "ct/ct_headphantom_philips_study/S2010_brain5mm": ("", [5], "5 slices 5 mm apart"),
    "ct/ct_headphantom_philips_study/S2020_brain1mm_idose": ("", [5], "5 slices 1 mm apart"),
    "ct/ct_headphantom_philips_study/S2030_bone1mm": ("", [5], "5 slices 1 mm apart"),
    "ct/ct_headphantom_philips_study/S4010_exam_summary_SC": (
        "secondary capture",
        [1, 1],
        "without a position",
    ),
    "ct/ct_lung_radphantom_pat1": ("", [60], "60 slices 3 mm apart"),
    "ct/ct_lung_radphantom_pat2": ("", [41], "41 slices 3 mm apart"),
    "mr/mr_acr_ge_artist_t1": ("", [11], "11 slices 10 mm apart"),
    "mr/mr_acr_ge_artist_t2": ("", [11], "11 slices 10 mm apart"),
    "mr/mr_acr_philips_achieva_t1": ("", [11], "11 slices 10 mm apart"),
    "mr/mr_dwi_philips_achieva": ("", [14, 14, 14, 14], "diffusion"),
    "mr/mr_dwi_uih_tiled": ("mosaic", [1] * 7, "without a position"),
    "mr/mr_mosaic_siemens_skyra_epi": ("mosaic", [1, 1], "echo planar"),
    "mr/mr_multiecho_ge_450w": ("", [1] * 8, "proves nothing"),
    "mr/mr_snr_repeat_ge_explorer": ("", [1, 1], "repeated positions"),
    "mr/mr_snr_repeat_siemens_aera": ("", [1, 1], "repeated positions"),
    "mr/mr_t1_memprage_rms_siemens_trio_sag": ("", [16], "16 slices 1 mm apart"),
    "mr/mr_t1_mprage_siemens_skyra_sag": ("", [32], "32 slices 0.9 mm apart"),
    "mr/mr_t1_philips_studyforrest_ax": ("", [20], "20 slices 0.6667 mm apart"),
    "mr/mr_t2_tse_siemens_trio_ax": ("", [14], "a gap of 5 mm where 2.5 mm are usual"),
    "headers_only/hdr_ct_bolus_monitoring_siemens": ("monitoring", [1] * 4, "repeated positions"),
    "headers_only/hdr_mr_dwi_ge_mr750": ("", [4, 4], "diffusion"),
    "headers_only/hdr_mr_enhanced_philips_dti": ("", [8, 8, 8, 8], "one multi-frame object with 32 frames"),
    "headers_only/hdr_mr_flair_philips_intera": ("", [4], "no header says how far"),
    "headers_only/hdr_mr_flair_siemens_trio_space": ("", [4], "no header says how far"),
    "headers_only/hdr_mr_fmri_ge_mr750": ("", [4, 4], "echo planar"),
}
"""Folder -> (why it must not be enhanced, slices per stack, what `regular` says)."""

ODD: dict[str, str] = {
    "1403-OB.dcm": "secondary capture",
    "36747062": "map",
    "693_J2KI.dcm": "with loss",
    "CT1_J2KR": "",
    "CT1_JLSL": "",
    "CT1_JLSN": "with loss",
    "CT1_JPLL": "",
    "CT1_RLE": "",
    "CT_small.dcm": "",
    "GH1308.dcm": "",
    "GH178.dcm": "secondary capture",
    "IM-0001-0001-0001.dcm": "secondary capture",
    "ISO_IR13.dcm": "",
    "J2K_pixelrep_mismatch.dcm": "",
    "MR1_JPLY": "with loss",
    "MR_small.dcm": "",
    "MR_small_RLE.dcm": "",
    "MR_small_bigendian.dcm": "",
    "MR_small_implicit.dcm": "",
    "MR_small_jp2klossless.dcm": "",
    "MR_small_jpeg_ls_lossless.dcm": "",
    "TEST_1_study_1234.dcm": "reformat",
    "TOSHIBA_TM_MR_DCM_V3_0.dcm": "localizer",
    "chrH31.dcm": "secondary capture",
    "chrI2.dcm": "secondary capture",
    "chrX1.dcm": "secondary capture",
    "eCT_Supplemental.dcm": "colour",
    "emri_small.dcm": "says nothing of its 10 frames",
    "emri_small_RLE.dcm": "says nothing of its 10 frames",
    "emri_small_big_endian.dcm": "says nothing of its 10 frames",
    "explicit_VR-UN.dcm": "",
    "image_dfl.dcm": "secondary capture",
    "liver_1frame.dcm": "segmentation",
    "rtdose.dcm": "radiotherapy",
    "test-SR.dcm": "structured report",
}
"""File in odd/ -> why it must not be enhanced."""


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@cache
def headers_of(folder: str) -> tuple[InstanceHeader, ...]:
    return tuple(read_header(path) for path in files(corpus(*folder.split("/"))))


def test_the_tables_name_every_file() -> None:
    corpus()
    named = {CORPUS / folder for folder in SERIES}
    found = {path.parent for top in ("ct", "mr", "headers_only") for path in files(corpus(top))}
    assert found == named
    odd = {path.name for path in files(corpus("odd"))}
    assert odd == set(ODD) | {Path(name).name for name in UNREADABLE}


@pytest.mark.parametrize("folder", SERIES)
def test_series(folder: str) -> None:
    reason, lengths, proof = SERIES[folder]
    headers = list(headers_of(folder))
    merged = merge(headers)
    assert merged.count == len(headers)
    told = eligibility(merged, headers)
    assert reason in told if reason else not told, told
    assert len(split(headers).eligible) == (0 if reason else len(headers))
    assert len(split(headers).left_out) == (len(headers) if reason else 0)
    found = stacks(headers)
    assert [len(stack) for stack in found] == lengths
    assert sum(len(stack) for stack in found) == merged.n_frames
    random.Random(1).shuffle(headers)
    assert stacks(headers) == found
    held, why = regular(headers)
    assert proof in why
    assert held == ("apart, none missing" in why or "whole by itself" in why)


@pytest.mark.parametrize("name", ODD)
def test_odd(name: str) -> None:
    header = read_header(corpus("odd", name))
    told = eligibility(merge([header]), [header])
    assert ODD[name] in told if ODD[name] else not told, told


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_dicom_file(name: str) -> None:
    for read in (read_header, read_instance):
        with pytest.raises(SeriesError, match=UNREADABLE[name]):
            read(corpus(*name.split("/")))


def test_a_tilted_head_is_two_stacks_of_sheared_slices() -> None:
    thin, thick = stacks(headers_of("ct/ct_head_ge_tilt"))
    assert (thin.thickness_mm, thick.thickness_mm) == (4.0, 7.0)
    assert thin.spacing_mm[0] == pytest.approx(4.0, abs=0.01)
    assert thick.spacing_mm[0] == pytest.approx(7.0, abs=0.01)
    assert not any(thin.contiguous + thick.contiguous)  # shifted by five pixels from slice to slice


def test_the_missing_slice() -> None:
    (stack,) = stacks(headers_of("mr/mr_t2_tse_siemens_trio_ax"))
    assert [i for i, here in enumerate(stack.contiguous) if not here] == [10, 13]
    assert stack.spacing_mm[0] == pytest.approx(2.5, abs=0.01)


def test_every_evenly_spaced_series_is_contiguous() -> None:
    for folder, (_, lengths, proof) in SERIES.items():
        if "mm apart" in proof and "no header" not in proof:
            (stack,) = stacks(headers_of(folder))
            assert stack.contiguous == (*[True] * (lengths[0] - 1), False), folder


def test_diffusion_volumes_hold_one_b_value_and_direction_each() -> None:
    for folder in ("mr/mr_dwi_philips_achieva", "headers_only/hdr_mr_enhanced_philips_dti"):
        keys = [dict(stack.volume_key) for stack in stacks(headers_of(folder))]
        assert sorted(float(key["b_value"]) > 0 for key in keys) == [False, True, True, True]
        assert len({(key["b_value"], key.get("direction")) for key in keys}) == 4
    positions = {
        tuple(f.position_mm for f in s.frames) for s in stacks(headers_of("mr/mr_dwi_philips_achieva"))
    }
    assert len(positions) == 1


def test_echoes_in_order() -> None:
    found = stacks(headers_of("mr/mr_multiecho_ge_450w"))
    assert [dict(stack.volume_key)["echo"] for stack in found] == list("12345678")


def test_fmri_without_any_key_goes_by_instance_number() -> None:
    by_uid = {h.sop_instance_uid: h.instance_number for h in headers_of("headers_only/hdr_mr_fmri_ge_mr750")}
    found = stacks(headers_of("headers_only/hdr_mr_fmri_ge_mr750"))
    assert [[by_uid[f.sop_instance_uid] for f in stack.frames] for stack in found] == [
        [1, 2, 3, 4],
        [43, 44, 45, 46],
    ]


def test_promises_of_real_scanners() -> None:
    assert promise(headers_of("mr/mr_acr_ge_artist_t1")) == (11, "Images in Acquisition")
    assert promise(headers_of("mr/mr_multiecho_ge_450w")) == (24, "Images in Acquisition")
    assert promise(headers_of("ct/ct_chest_philips_lidc0314")) == (0, "")


def as_told(element: pydicom.DataElement) -> list[object]:
    value = element.value
    found = list(value) if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
    numbers = {pydicom.valuerep.DSfloat: float, pydicom.valuerep.IS: int}
    return [
        numbers[type(one)](one)
        if type(one) in numbers
        else one
        if isinstance(one, (int, float))
        else str(one).strip()
        for one in found
        if one is not None
    ]


def test_attributes_are_those_that_pydicom_reads() -> None:
    """Every tenth file, and every file of odd/."""
    paths = [path for top in ("ct", "mr", "headers_only") for path in files(corpus(top))[::10]]
    n_compared = 0
    for path in paths + files(corpus("odd")):
        if f"odd/{path.name}" in UNREADABLE:
            continue
        header = read_header(path)
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert header.instance_number == (
            None if ds.get("InstanceNumber") in (None, "") else int(ds.InstanceNumber)
        )
        assert (header.rows, header.columns) == (ds.get("Rows", 0), ds.get("Columns", 0))
        for keyword, tag in keyword_dict.items():
            if tag not in ds or not may_be_seen(keyword) or vr_of(keyword) == "SQ":
                continue
            wanted = as_told(ds[tag])
            if any(one != "" for one in wanted):
                assert list(header.attributes[keyword]) == wanted, (path.name, keyword)
                n_compared += 1
            else:
                assert keyword not in header.attributes
    assert n_compared > 4000


def test_no_patient_in_any_header() -> None:
    for folder in SERIES:
        paths = files(corpus(*folder.split("/")))
        ds = pydicom.dcmread(paths[0], stop_before_pixels=True)
        header = repr(read_header(paths[0]).attributes)
        for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyInstanceUID"):
            value = str(ds.get(keyword, ""))
            if (
                len(value) > 8
                and value != str(ds.get("StudyDate"))
                and value not in str(ds.get("SequenceName"))
            ):
                assert value not in header, (folder, keyword)
