"""IXI: read out of its tars, sites and contrasts by name, and a table with missing and repeated ids."""

from __future__ import annotations

import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from training.data import ixi
from training.data.folder import scan_folder
from training.data.ixi_table import read_table
from training.data.lookalike_ixi import CORNER, SUBJECTS, head, xls
from training.data.lookalike_ixi import ixi as write_ixi
from training.data.records import Found, Scan, patient_key
from training.errors import DataError

pytest.importorskip("nibabel")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ixi(tmp_path_factory.mktemp("ixi"), unpacked=True)


@pytest.fixture(scope="module")
def found(root: Path) -> Found:
    return ixi.load(root)


def of(found: Found, number: int, contrast: str) -> Scan:
    key = patient_key(f"IXI{number:03d}")
    (scan,) = [s for s in found.scans if s.patient == key and s.domains["contrast"] == contrast]
    return scan


def test_every_image_once(found: Found) -> None:
    assert len(found.scans) == 3 * len(SUBJECTS)
    assert found.reasons() == {"diffusion": 6, "a second copy of an image": 6}
    assert {of(found, n, "T2").domains["site"] for n in (12, 51)} == {"HH"}
    assert of(found, 35, "PD").domains["vendor"] == "GE"
    assert of(found, 12, "PD").domains["field"] == "3 T"


@pytest.mark.parametrize(
    ("number", "age", "sex", "note"),
    [
        (2, "35 to 49", "female", ""),
        (12, "65 and above", "male", ""),
        (35, "unknown", "unknown", "not in the table"),
        (50, "unknown", "unknown", "several ages"),
        (51, "50 to 64", "female", ""),
        (52, "unknown", "male", ""),
    ],
)
def test_the_table(found: Found, number: int, age: str, sex: str, note: str) -> None:
    for contrast in ("T1", "T2", "PD"):
        scan = of(found, number, contrast)
        assert (scan.domains["age"], scan.domains["sex"]) == (age, sex)
        assert note in " ".join(scan.notes)
        assert bool(scan.notes) == bool(note)


@pytest.mark.parametrize(
    ("contrast", "plane", "axes"), [("T1", "sagittal", (0, 2, 1)), ("T2", "axial", (2, 1, 0))]
)
def test_slices_first_and_ras(found: Found, contrast: str, plane: str, axes: tuple[int, int, int]) -> None:
    scan = of(found, 2, contrast)
    volume = scan.load()
    assert scan.domains["plane"] == plane
    assert scan.spacing_mm[0] == pytest.approx(1.2 if contrast == "T1" else 1.25)
    assert volume.values[-1, -1, -1] == CORNER
    assert np.abs(volume.values - head(2, contrast).transpose(axes)).max() <= 0.25
    assert volume.step == pytest.approx(0.5)


def test_a_member_of_a_tar_travels_to_another_process(found: Found) -> None:
    scan = of(found, 12, "PD")
    assert np.array_equal(pickle.loads(pickle.dumps(scan)).load().values, scan.load().values)


def test_only_what_is_wanted(root: Path) -> None:
    assert {s.domains["contrast"] for s in ixi.load(root, contrasts=["T2"]).scans} == {"T2"}
    with pytest.raises(DataError, match="no contrast T9"):
        ixi.load(root, contrasts=["T9"])


def test_the_same_patient_as_in_any_folder(root: Path, found: Found) -> None:
    folder = scan_folder(root / "IXI-T1", nifti_modality="MR")
    assert set(folder.patients()) == set(found.patients())


def test_a_tar_that_is_cut_short(tmp_path: Path) -> None:
    write_ixi(tmp_path, table="none")
    whole = (tmp_path / "IXI-T1.tar").read_bytes()
    (tmp_path / "IXI-T1.tar").write_bytes(whole[: len(whole) // 2])
    found = ixi.load(tmp_path)
    assert any("IXI-T1.tar" in one.what for one in found.left_out)
    assert {s.domains["age"] for s in found.scans} == {"unknown"}
    assert len([s for s in found.scans if s.domains["contrast"] == "T2"]) == 6


def test_a_tar_that_changed_after_the_index(tmp_path: Path) -> None:
    write_ixi(tmp_path, table="none")
    scan = of(ixi.load(tmp_path), 52, "T2")
    tar = tmp_path / "IXI-T2.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"IXI-T2.tar:IXI052-IOP-0852-T2.nii.gz"):
        scan.load()


def test_names_and_links_that_are_not_ixis(tmp_path: Path) -> None:
    write_ixi(tmp_path, table="none")
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        for name in ("IXI009-Oxford-0001-T1.nii", "brain.nii", "IXI010-HH-0001-T1.nii"):
            tar.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("IXI011-HH-0001-T1.nii")
        link.type, link.linkname = tarfile.SYMTYPE, "IXI010-HH-0001-T1.nii"
        tar.addfile(link)
    reasons = {one.what: one.reason for one in ixi.load(tmp_path).left_out if one.what.startswith("more.tar")}
    assert reasons["more.tar:IXI009-Oxford-0001-T1.nii"] == "a site that IXI does not have"
    assert reasons["more.tar:brain.nii"] == "not named as IXI names its images"
    assert "not a NIfTI file" in reasons["more.tar:IXI010-HH-0001-T1.nii"]
    assert len(reasons) == 3


def test_xls(tmp_path: Path) -> None:
    pytest.importorskip("xlrd")
    write_ixi(tmp_path, table="xls")
    by_xls = ixi.load(tmp_path)
    (tmp_path / "IXI.xls").unlink()
    write_ixi(tmp_path, table="csv")
    assert by_xls.scans == ixi.load(tmp_path).scans
    (tmp_path / "IXI.xls").write_bytes(b"no Excel")
    with pytest.raises(DataError, match=r"IXI.xls: no Excel file"):
        read_table(tmp_path / "IXI.xls")


def test_xls_without_xlrd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xlrd", None)
    (tmp_path / "IXI.xls").write_bytes(xls((("IXI_ID",),)))
    with pytest.raises(DataError, match="xlrd is not installed") as told:
        read_table(tmp_path / "IXI.xls")
    assert "save the table as CSV" in told.value.hint


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("t.csv", "IXI_ID,AGE\n", "no column SEX_ID"),
        ("t.csv", "", "empty"),
        ("t.xlsx", "", "neither .xls nor .csv"),
        ("t.csv", "IXI_ID\xe9", "UnicodeDecodeError"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=f"{name}: {why}"):
        read_table(tmp_path / name)


def test_age_bands() -> None:
    bands = [ixi.age_band(a) for a in (19.9, 34.99, 35, 49.9, 50, 64.9, 65, 90, None)]
    assert bands == ["below 35"] * 2 + ["35 to 49"] * 2 + ["50 to 64"] * 2 + ["65 and above"] * 2 + [
        "unknown"
    ]
