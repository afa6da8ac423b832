"""Any tree of DICOM files: what is taken, what is left out and why, order, runs, rescale, padding."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from training.data import dicom, headers, split
from training.data.folder import scan_folder
from training.data.lookalike import Series, stored_of, uid, write_ct
from training.data.records import Scan, patient_key
from training.errors import DataError, SplitError

SIDE = 8


def write(
    root: Path,
    series: Series,
    positions: list[float],
    *,
    change: Callable[[Dataset, int], None] | None = None,
    first: int = 0,
) -> list[Path]:
    """Slices whose HU are their position, under names that say nothing."""
    paths = []
    names = random.Random(series.name).sample(range(10_000), len(positions))
    for i, (z, name) in enumerate(zip(positions, names, strict=True)):
        path = root / f"{name % 7}" / "x" / f"{series.name}{name}"
        stored = stored_of(np.full((SIDE, SIDE), z, np.float32), series.intercept)
        write_ct(path, series, stored, number=i, z_mm=z, sop_uid=uid(series.name, first + i))
        if change:
            ds = pydicom.dcmread(path)
            change(ds, i)
            ds.save_as(path)
        paths.append(path)
    return paths


def one(root: Path) -> Scan:
    (scan,) = scan_folder(root).scans
    return scan


CT = Series(patient="P1", name="a")


def test_slices_are_ordered_along_the_normal(tmp_path: Path) -> None:
    positions = [30.0, -10.0, 10.0, 0.0, 20.0]
    write(tmp_path, CT, positions)
    volume = one(tmp_path).load()
    assert volume.values[:, 0, 0].tolist() == [-10.0, 0.0, 10.0, 20.0, 30.0]
    assert volume.spacing_mm == (10.0, 1.0, 1.0)


def test_oblique_and_turned_slices(tmp_path: Path) -> None:
    turn = np.deg2rad(20)
    row, column = [1.0, 0, 0], [0, np.cos(turn), np.sin(turn)]
    normal = np.cross(row, column)

    def tilt(ds: Dataset, i: int) -> None:
        ds.ImageOrientationPatient = [float(v) for v in (*row, *column)]
        ds.ImagePositionPatient = [float(v) for v in normal * float(ds.ImagePositionPatient[2])]

    write(tmp_path, CT, [0.0, 5.0, 10.0], change=tilt)
    scan = one(tmp_path)
    assert scan.spacing_mm[0] == pytest.approx(5.0)
    assert scan.runs == ((0, 3),)


def test_gantry_tilt_leaves_no_neighbours(tmp_path: Path) -> None:
    def shear(ds: Dataset, i: int) -> None:
        ds.ImagePositionPatient[1] = float(ds.ImagePositionPatient[1]) + 2.0 * i

    write(tmp_path, CT, [0.0, 5.0, 10.0], change=shear)
    scan = one(tmp_path)
    assert scan.runs == ((0, 1), (1, 2), (2, 3))
    assert not scan.load().contiguous.any()


def test_several_series_in_one_folder_and_one_series_in_several(tmp_path: Path) -> None:
    write(tmp_path, CT, [0.0, 1.0, 2.0])
    write(tmp_path, Series(patient="P1", name="b", kernel="B70f"), [0.0, 2.0])
    write(tmp_path, Series(patient="P2", name="c"), [5.0])
    scans = scan_folder(tmp_path).scans
    assert sorted(s.shape[0] for s in scans) == [1, 2, 3]
    assert {s.patient for s in scans} == {patient_key("P1"), patient_key("P2")}
    assert len({s.key for s in scans}) == 3
    (single,) = [s for s in scans if s.shape[0] == 1]
    assert single.spacing_mm == (0.0, 1.0, 1.0)
    assert single.load().shape == (1, SIDE, SIDE)


def test_two_thicknesses_in_one_series_are_two_stacks(tmp_path: Path) -> None:
    def thicken(ds: Dataset, i: int) -> None:
        ds.SliceThickness = 2.5 if i < 3 else 5

    write(tmp_path, CT, [0.0, 2.5, 5.0, 10.0, 15.0], change=thicken)
    scans = scan_folder(tmp_path).scans
    assert sorted((s.shape[0], s.spacing_mm[0], s.domains["thickness"]) for s in scans) == [
        (2, 5.0, "thick"),
        (3, 2.5, "medium"),
    ]


def test_copies_of_a_file_and_repeated_positions(tmp_path: Path) -> None:
    paths = write(tmp_path, CT, [0.0, 1.0, 2.0, 3.0])
    (tmp_path / "copy").write_bytes(paths[0].read_bytes())
    write(tmp_path / "again", CT, [2.0], first=50)
    found = scan_folder(tmp_path)
    assert found.reasons() == {"a second copy of an image": 1, "a second image at the same position": 1}
    assert found.scans[0].shape[0] == 4


def test_repeats_that_nothing_tells_apart_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, CT, [0.0, 1.0, 2.0, 3.0])
    write(tmp_path / "again", CT, [0.0, 1.0, 2.0, 3.0], first=50)
    with pytest.raises(DataError, match="nothing in their headers tells them apart"):
        scan_folder(tmp_path)


def attribute(keyword: str, value: Any) -> Callable[[Dataset, int], None]:
    return lambda ds, i: setattr(ds, keyword, value)


def without(keyword: str) -> Callable[[Dataset, int], None]:
    return lambda ds, i: delattr(ds, keyword)


def mr(**fields: Any) -> Callable[[Dataset, int], None]:
    def change(ds: Dataset, i: int) -> None:
        ds.Modality, ds.SOPClassUID = "MR", headers.MR_IMAGE
        for keyword, value in fields.items():
            setattr(ds, keyword, value)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (attribute("Modality", "PT"), "neither CT nor MR"),
        (attribute("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"), "not a single-frame"),
        (attribute("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localizer"),
        (attribute("ImageType", ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 TOP"]), ""),
        (attribute("ImageType", ["DERIVED", "SECONDARY", "MIP"]), "a projection"),
        (attribute("ImageType", ["DERIVED", "SECONDARY", "MPR"]), "a reformat"),
        (attribute("ImageType", ["DERIVED", "SECONDARY"]), ""),
        (attribute("SamplesPerPixel", 3), "colour"),
        (attribute("PhotometricInterpretation", "MONOCHROME1"), "not MONOCHROME2"),
        (attribute("NumberOfFrames", 4), "multi-frame"),
        (attribute("BurnedInAnnotation", "YES"), "burned in"),
        (attribute("LossyImageCompression", "01"), "with loss"),
        (without("RescaleSlope"), "no Hounsfield units"),
        (without("RescaleIntercept"), "no Hounsfield units"),
        (attribute("RescaleType", "HU_MOD"), "no Hounsfield units"),
        (without("ImagePositionPatient"), "without position"),
        (without("ImageOrientationPatient"), "without position"),
        (attribute("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "perpendicular"),
        (without("PixelSpacing"), "without pixel spacing"),
        (mr(DiffusionBValue=1000.0), "diffusion"),
        (mr(ScanningSequence="EP"), "echo planar"),
        (mr(ImageType=["ORIGINAL", "PRIMARY", "P"]), "a phase"),
        (mr(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), "tiles"),
        (mr(ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]), "calculated map"),
        (mr(ImageType=["ORIGINAL", "PRIMARY", "M"]), ""),
    ],
)
def test_what_is_no_slice(tmp_path: Path, change: Callable[[Dataset, int], None], reason: str) -> None:
    path = write(tmp_path, CT, [0.0], change=change)[0]
    told = headers.objection(headers.read(path))
    assert reason in told if reason else told == ""
    write(tmp_path, Series(patient="P2", name="good"), [0.0])
    found = scan_folder(tmp_path)
    assert len(found.left_out) == bool(reason)
    assert all(one.what == path.relative_to(tmp_path).as_posix() for one in found.left_out)


def test_padding_value_range_and_what_is_thinner_than_air(tmp_path: Path) -> None:
    def pad(ds: Dataset, i: int) -> None:
        pixels = ds.pixel_array.copy()
        pixels[0, :4] = (-2000, -1990, 3071 - 1024, 1100)
        ds.PixelData = pixels.tobytes()
        ds.RescaleIntercept = 0
        ds.add_new("PixelPaddingValue", "SS", 1090)
        ds.add_new("PixelPaddingRangeLimit", "SS", 1110)

    write(tmp_path, CT, [0.0, 1.0], change=pad)
    volume = one(tmp_path).load()
    assert volume.valid[0, 0].tolist() == [False, False, True, False, True, True, True, True]
    assert volume.values[0, 0, :4].tolist() == [-1000.0, -1000.0, 2047.0, -1000.0]


def test_padding_value_written_with_the_wrong_sign() -> None:
    ds = Dataset()
    ds.PixelRepresentation, ds.BitsAllocated = 1, 16
    ds.add_new("PixelPaddingValue", "US", 65436)
    assert headers.padding(ds, np.array([[-100, 100]], np.int16)).tolist() == [[True, False]]
    ds.PixelRepresentation = 0
    assert headers.padding(ds, np.array([[65436, 100]], np.uint16)).tolist() == [[True, False]]


def test_rescale_is_that_of_each_slice(tmp_path: Path) -> None:
    def slope(ds: Dataset, i: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = i + 1, -100

    write(tmp_path, CT, [0.0, 1.0, 2.0], change=slope)
    volume = one(tmp_path).load()
    assert volume.values[:, 0, 0].tolist() == [924.0, 1950.0, 2978.0]
    assert volume.step.tolist() == [1.0, 2.0, 3.0]


def test_echoes_and_volumes_of_one_mr_series_are_apart(tmp_path: Path) -> None:
    for echo in (1, 2):
        write(
            tmp_path / str(echo),
            CT,
            [0.0, 1.0],
            first=10 * echo,
            change=mr(EchoNumbers=echo, EchoTime=20.0 * echo),
        )
    scans = scan_folder(tmp_path).scans
    assert [s.shape[0] for s in scans] == [2, 2]
    assert {s.unit for s in scans} == {"arbitrary"}


@pytest.mark.parametrize(
    ("tr", "te", "ti", "sequence", "wanted"),
    [
        (500, 15, None, "SE", "T1"),
        (2000, 2.5, 900, ["GR", "IR"], "T1"),
        (4000, 100, None, "SE", "T2"),
        (2500, 20, None, "SE", "PD"),
        (9000, 120, 2500, ["SE", "IR"], "FLAIR"),
        (None, 120, 2500, "SE", "unknown"),
    ],
)
def test_contrasts(tr: Any, te: Any, ti: Any, sequence: Any, wanted: str) -> None:
    ds = Dataset()
    ds.ScanningSequence = sequence
    for keyword, value in (("RepetitionTime", tr), ("EchoTime", te), ("InversionTime", ti)):
        if value is not None:
            setattr(ds, keyword, value)
    assert headers.contrast(ds) == wanted


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (
            ["B10f", "B30f", "H20s", "FC01", "SOFT", "A", "Br36d"],
            ["soft", "standard", "soft", "soft", "soft", "soft", "standard"],
        ),
        (["B45f", "Br44", "STANDARD", "FC10", "C", "UB"], ["standard"] * 6),
        (["B60f", "Bl57", "Hr68", "LUNG", "BONEPLUS", "FC51", "D", "YA"], ["sharp"] * 8),
        (["", "Qx1"], ["unknown"] * 2),
    ],
)
def test_kernels(names: list[str], wanted: list[str]) -> None:
    told = []
    for name in names:
        ds = Dataset()
        ds.ConvolutionKernel = name
        told.append(headers.kernel(ds))
    assert told == wanted


def test_patients_without_a_number(tmp_path: Path) -> None:
    study = generate_uid()

    def nameless(ds: Dataset, i: int) -> None:
        ds.PatientID, ds.StudyInstanceUID = "", study

    write(tmp_path, CT, [0.0], change=nameless)
    scan = one(tmp_path)
    assert scan.patient == patient_key(study)
    assert "no patient ID" in scan.notes[0]


def test_files_that_are_no_dicom_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    paths = write(tmp_path, CT, [0.0, 1.0])
    found = scan_folder(tmp_path)
    reasons = {one.what: one.reason for one in found.left_out}
    assert reasons["a.txt"] == "neither DICOM nor NIfTI"
    assert "b" in reasons
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:-60])
    name = paths[0].relative_to(tmp_path).as_posix()
    with pytest.raises(DataError, match=f"{name}: its pixels cannot be decoded"):
        found.scans[0].load()
    paths[0].unlink()
    with pytest.raises(DataError, match=f"{name}: the file is gone"):
        found.scans[0].load()


def test_pipes_and_dead_links_are_no_files(tmp_path: Path) -> None:
    write(tmp_path / "in", CT, [0.0, 1.0])
    os.mkfifo(tmp_path / "in" / "pipe.nii")
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / "dead").symlink_to(tmp_path / "nowhere")
    (scan,) = scan_folder(tmp_path, nifti_modality="CT").scans
    assert scan.shape[0] == 2


def test_a_study_under_two_numbers_is_no_two_patients(tmp_path: Path) -> None:
    study = generate_uid()

    def of(number: str) -> Callable[[Dataset, int], None]:
        def change(ds: Dataset, i: int) -> None:
            ds.PatientID, ds.StudyInstanceUID = number, study

        return change

    write(tmp_path / "a", CT, [0.0], change=of("4711"))
    write(tmp_path / "b", replace(CT, name="b"), [0.0], change=of("4712"))
    with pytest.raises(SplitError, match="study"):
        split.make(scan_folder(tmp_path).scans, salt="a", fractions=(0.5, 0.5, 0))


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "in", CT, [0.0])
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert len(list(dicom.files_below(tmp_path))) == 1
