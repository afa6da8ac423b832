"""NIfTI in any folder: orientation, slope, slices, patients by path, and what is refused."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from training.data import nifti
from training.data.folder import scan_folder
from training.data.records import patient_key
from training.errors import DataError

nibabel = pytest.importorskip("nibabel")


def write(
    path: Path,
    array: np.ndarray,
    *,
    axes: str = "RAS",
    spacing: tuple[float, ...] = (1, 1, 2),
    slope: float = 1,
    inter: float = 0,
    slices: int | None = None,
) -> Path:
    """Write RAS values stored in another orientation."""
    wanted = nibabel.orientations.axcodes2ornt(axes)
    affine = np.diag([*spacing, 1.0])
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_slope_inter(1, 0)
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), wanted)
    )
    if slices is not None:
        turned.header.set_dim_info(slice=slices)
    raw = bytearray(turned.to_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    return path


ARRAY = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PSR", "SLA", "IPR"])
@pytest.mark.parametrize("name", ["sub-1_T1w.nii", "sub-1_T1w.nii.gz"])
def test_any_orientation_gives_the_same_volume(tmp_path: Path, axes: str, name: str) -> None:
    write(tmp_path / name, ARRAY, axes=axes, slope=2, inter=-10)
    (scan,) = scan_folder(tmp_path, nifti_modality="MR").scans
    volume = scan.load()
    assert scan.spacing_mm == pytest.approx((2, 1, 1))
    assert scan.domains["plane"] == "axial"
    assert np.array_equal(volume.values, 2.0 * ARRAY.transpose(2, 1, 0) - 10)
    assert volume.step == pytest.approx(2.0)


def test_which_axis_is_the_slices(tmp_path: Path) -> None:
    write(tmp_path / "sub-1.nii", ARRAY, spacing=(3, 1, 1))
    write(tmp_path / "sub-2.nii", ARRAY, spacing=(1, 3, 1))
    write(tmp_path / "sub-3.nii", ARRAY, spacing=(1, 1, 1.05))
    write(tmp_path / "sub-4.nii", ARRAY, spacing=(1, 1, 1), slices=1)
    found = scan_folder(tmp_path, nifti_modality="MR").scans
    assert [s.domains["plane"] for s in found] == ["sagittal", "coronal", "axial", "coronal"]
    assert [s.shape for s in found] == [(4, 6, 5), (5, 6, 4), (6, 5, 4), (5, 6, 4)]
    assert np.array_equal(found[0].load().values, ARRAY.transpose(0, 2, 1))
    assert np.array_equal(found[1].load().values, ARRAY.transpose(1, 2, 0))


def test_padding_of_ct_and_values_that_are_none(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 4), np.float32)
    values[0, 0, 0], values[1, 1, 1] = -2000, np.nan
    write(tmp_path / "sub-1.nii", values)
    (ct,) = scan_folder(tmp_path, nifti_modality="CT").scans
    (mr,) = scan_folder(tmp_path, nifti_modality="MR").scans
    assert (~ct.load().valid).sum() == 2
    assert set(np.unique(ct.load().values)) == {-1000.0, 0.0}
    assert (~mr.load().valid).sum() == 1
    assert np.isfinite(mr.load().values).all()


def test_a_series_of_volumes_is_refused(tmp_path: Path) -> None:
    four = nibabel.Nifti1Image(np.zeros((3, 3, 3, 5), np.int16), np.eye(4))
    nibabel.save(four, tmp_path / "sub-1_dwi.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 1), np.int16), np.eye(4)), tmp_path / "sub-2.nii")
    found = scan_folder(tmp_path, nifti_modality="MR")
    assert [s.load().shape for s in found.scans] == [(3, 3, 3)]
    (left,) = found.left_out
    assert left.what == "sub-1_dwi.nii"
    assert "4 dimensions (3, 3, 3, 5): a series of volumes" in left.reason
    with pytest.raises(DataError, match=r"sub-1_dwi.nii: 4 dimensions") as told:
        nifti.decode((tmp_path / "sub-1_dwi.nii").read_bytes(), "sub-1_dwi.nii", "HU")
    assert "one volume a file" in told.value.hint


def test_files_that_are_damaged(tmp_path: Path) -> None:
    whole = write(tmp_path / "sub-1.nii.gz", ARRAY).read_bytes()
    (tmp_path / "sub-2.nii.gz").write_bytes(whole[:30])
    (tmp_path / "sub-3.nii").write_bytes(b"")
    colour = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), tmp_path / "sub-4.nii")
    found = scan_folder(tmp_path, nifti_modality="MR")
    assert [one.what for one in found.left_out] == ["sub-2.nii.gz", "sub-3.nii", "sub-4.nii"]
    assert "plain numbers" in found.left_out[2].reason
    (tmp_path / "sub-1.nii.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"sub-1.nii.gz: damaged or cut short"):
        found.scans[0].load()
    (tmp_path / "sub-1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"sub-1.nii.gz: FileNotFoundError"):
        found.scans[0].load()


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "LARGEST_BYTES", 1000)
    with pytest.raises(DataError, match="larger than"):
        nifti.unpack(gzip.compress(bytes(5000)), "a.nii.gz")


def test_who_the_patient_is(tmp_path: Path) -> None:
    for name in (
        "sub-01/anat/sub-01_T1w.nii",
        "T2/patient03_study1.nii",
        "x/IXI012-HH-1.nii",
        "Case-7/a.nii",
    ):
        write(tmp_path / name, ARRAY)
    patients = set(scan_folder(tmp_path, nifti_modality="MR").patients())
    assert patients == {patient_key(p) for p in ("sub-01", "patient03", "IXI012", "Case-7")}
    keyed = set(scan_folder(tmp_path, nifti_modality="MR", secret="s").patients())
    assert not keyed & patients


def test_one_patient_in_several_spellings_is_one(tmp_path: Path) -> None:
    for name in (
        "a/patient03.nii",
        "b/Patient_3.nii",
        "c/patient-003_T1.nii",
        "d/patient30.nii",
        "e/sub-a1.nii",
    ):
        write(tmp_path / name, ARRAY)
    found = scan_folder(tmp_path, nifti_modality="MR")
    assert set(found.patients()) == {patient_key(p) for p in ("patient03", "patient30", "sub-a1")}
    told = scan_folder(tmp_path, nifti_modality="MR", patient_pattern="([^/]+).nii")
    assert len(told.patients()) == 5, "who gives a pattern means it"


def test_nothing_is_guessed(tmp_path: Path) -> None:
    write(tmp_path / "a" / "scan.nii", ARRAY)
    with pytest.raises(DataError, match=r"a/scan.nii: .* which patient") as told:
        scan_folder(tmp_path, nifti_modality="MR")
    assert "patient_pattern" in told.value.hint
    (scan,) = scan_folder(tmp_path, nifti_modality="MR", patient_pattern="([^/]+)/").scans
    assert scan.patient == patient_key("a")
    with pytest.raises(DataError, match="CT or MR"):
        scan_folder(tmp_path, patient_pattern="([^/]+)/")
    with pytest.raises(DataError, match="patient pattern"):
        scan_folder(tmp_path, nifti_modality="MR", patient_pattern="(")


def test_without_nibabel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write(tmp_path / "sub-1.nii", ARRAY).read_bytes()
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match="need nibabel"):
        nifti.decode(raw, "sub-1.nii", "HU")
