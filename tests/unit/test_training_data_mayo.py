"""Mayo LDCT-and-Projection-data: pairs by header, and the split of ldct-benchmark."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from training.data import mayo
from training.data.lookalike import MAYO_GE, MAYO_PATIENTS, body
from training.data.lookalike import mayo as write_mayo
from training.data.records import patient_key
from training.errors import DataError, SplitError


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mayo(tmp_path_factory.mktemp("mayo"))


def test_pairs(top: Path) -> None:
    found = mayo.load(top)
    wanted = {patient_key(p) for patients in MAYO_PATIENTS.values() for p in patients}
    assert {p.patient for p in found.pairs} == wanted
    assert len(found.pairs) == len(wanted)
    for pair in found.pairs:
        assert (pair.input.domains["level"], pair.target.domains["level"]) == ("low", "full")
        assert (pair.input.domains["dose"], pair.target.domains["dose"]) == ("low", "high")
    anatomy = {p.patient: p.target.domains["anatomy"] for p in found.pairs}
    assert [anatomy[patient_key(p)] for p in ("C001", "L002", "N003")] == ["chest", "abdomen", "head"]


def test_slices_of_a_pair_show_the_same_place(top: Path) -> None:
    (pair,) = [p for p in mayo.load(top).pairs if p.patient == patient_key("L002")]
    low, full = pair.input.load(), pair.target.load()
    truth = sum(map(ord, "L002"))
    assert np.abs(low.values - body(6, seed=truth + 1, noise_hu=30.0)).max() <= 0.501
    assert np.abs(full.values - body(6, seed=truth, noise_hu=8.0)).max() <= 0.501


def test_what_is_left_out(top: Path) -> None:
    reasons = {one.reason: one for one in mayo.load(top).left_out}
    assert set(reasons) == {"projections, not images", "no series at low dose (as of all GE exams)"}
    assert MAYO_GE not in repr(reasons["no series at low dose (as of all GE exams)"])


def test_shifted_slices_are_no_pair(top: Path, tmp_path: Path) -> None:
    shutil.copytree(top, tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.dcm"):
        ds = pydicom.dcmread(path)
        if ds.PatientID == "N003" and "Low" in ds.SeriesDescription:
            ds.ImagePositionPatient[2] += 1.0
            ds.save_as(path)
    found = mayo.load(tmp_path / "moved")
    assert patient_key("N003") not in {p.patient for p in found.pairs}
    assert "no series at full dose has the same slices" in {one.reason for one in found.left_out}


def test_names_of_folders_do_not_matter(top: Path, tmp_path: Path) -> None:
    for i, path in enumerate(sorted(top.rglob("*.dcm"))):
        shutil.copy(path, tmp_path / f"{i}")
    assert mayo.load(tmp_path).pairs == mayo.load(top).pairs


def test_no_pair(top: Path, tmp_path: Path) -> None:
    shutil.copytree(top / MAYO_GE, tmp_path / "ge")
    with pytest.raises(
        DataError, match="no pair of full and low dose can be used: 1 x no series at low dose"
    ):
        mayo.load(tmp_path)


def test_split_of_ldctbench(top: Path) -> None:
    scans = mayo.load(top).scans()
    split = mayo.ldctbench_split(top.parent / "info.yml", scans)
    assert split.parts["train"] == tuple(sorted(patient_key(p) for p in MAYO_PATIENTS["train_set"]))
    assert split.part_of(patient_key("N003")) == "test"
    assert len(split.select(scans, "validation")) == 2


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        (
            "train_set: [{id: A}]\nval_set: [{id: A}]\ntest_set: []\n",
            SplitError,
            "is in train and validation",
        ),
        ("train_set: [{id: A}]\n", DataError, "no split of ldct-benchmark"),
        ("train_set: [a, b]\nval_set: []\ntest_set: []\n", DataError, "no split of ldct-benchmark"),
        ("[", DataError, "info.yml"),
        ("!!python/object/apply:os.getcwd []", DataError, "info.yml"),
    ],
)
def test_split_files_that_are_refused(tmp_path: Path, text: str, error: type[Exception], why: str) -> None:
    (tmp_path / "info.yml").write_text(text)
    with pytest.raises(error, match=why):
        mayo.ldctbench_split(tmp_path / "info.yml")


def test_a_patient_in_none_of_the_sets(top: Path, tmp_path: Path) -> None:
    (tmp_path / "info.yml").write_text("train_set: [{id: C001}]\nval_set: []\ntest_set: []\n")
    with pytest.raises(SplitError, match="does not know patient"):
        mayo.ldctbench_split(tmp_path / "info.yml", mayo.load(top).scans())
