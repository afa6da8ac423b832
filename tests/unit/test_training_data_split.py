"""Splits: by patient, the same each time, hashed, and never a leak."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.base import Volume
from training.data import split as splits
from training.data.records import Scan, patient_key
from training.errors import DataError, SplitError


class Nothing:
    def load(self) -> Volume:
        return Volume(
            values=np.zeros((1, 2, 2), np.float32),
            valid=np.ones((1, 2, 2), bool),
            spacing_mm=(1, 1, 1),
            unit="HU",
            contiguous=np.zeros(1, bool),
            step=np.ones(1, np.float32),
        )


def scan(patient: int, series: int = 0, vendor: str = "GE") -> Scan:
    return Scan(
        patient=patient_key(str(patient)),
        key=f"{patient}-{series}",
        modality="CT",
        unit="HU",
        domains={"vendor": vendor},
        shape=(1, 2, 2),
        spacing_mm=(1, 1, 1),
        runs=((0, 1),),
        licence="none",
        source=Nothing(),
    )


MANY = [scan(p, s, "GE" if p % 4 else "Siemens") for p in range(100) for s in range(2)]


def test_every_patient_is_in_one_part() -> None:
    split = splits.make(MANY, salt="a")
    assert Counter({part: len(held) for part, held in split.parts.items()}) == {
        "train": 70,
        "validation": 15,
        "test": 15,
    }
    parts = {part: {s.patient for s in split.select(MANY, part)} for part in splits.PARTS}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 100
    assert sum(len(split.select(MANY, part)) for part in splits.PARTS) == len(MANY)


def test_strata_have_the_same_shares() -> None:
    split = splits.make(MANY, salt="a", by=["vendor"])
    for part, n in (("train", 17.5), ("validation", 3.75), ("test", 3.75)):
        siemens = {s.patient for s in split.select(MANY, part) if s.domains["vendor"] == "Siemens"}
        assert abs(len(siemens) - n) <= 1


def test_small_strata_do_not_starve_small_parts() -> None:
    alone = [scan(p, vendor=f"v{p}") for p in range(40)]
    split = splits.make(alone, salt="a", by=["vendor"])
    assert [len(split.parts[part]) for part in splits.PARTS] == [28, 6, 6]


def test_the_order_of_scans_does_not_matter_and_the_salt_does() -> None:
    split = splits.make(MANY, salt="a", by=["vendor"])
    assert splits.make(MANY[::-1], salt="a", by=["vendor"]).split_hash == split.split_hash
    other = splits.make(MANY, salt="b", by=["vendor"])
    assert other.parts != split.parts
    assert other.split_hash != split.split_hash


def test_the_hash_is_what_it_says() -> None:
    split = splits.from_parts({"train": ["b", "a"], "test": ["c"]})
    text = '{"by":[],"format":1,"fractions":[],"parts":{"test":["c"],"train":["a","b"]},"salt":""}'
    assert split.split_hash == hashlib.sha256(text.encode()).hexdigest()


def test_a_patient_in_two_parts_is_refused() -> None:
    with pytest.raises(SplitError, match="is in train and test"):
        splits.from_parts({"train": ["a", "b"], "test": ["b"]})
    with pytest.raises(SplitError, match="is in train, twice"):
        splits.from_parts({"train": ["a", "a"]})


def test_one_scan_under_two_patients_is_refused() -> None:
    leak = replace(scan(7), key=scan(8).key)
    with pytest.raises(SplitError, match="belongs to patients"):
        splits.make([*MANY, leak], salt="a")
    split = splits.make(MANY, salt="a")
    with pytest.raises(SplitError, match="belongs to patients"):
        split.select([*MANY, leak], "train")


def test_one_study_under_two_patients_is_refused() -> None:
    first, second, third = (replace(scan(p), study="s") for p in (7, 7, 8))
    splits.check(splits.make(MANY, salt="a"), [first, replace(second, key="7-9")])
    with pytest.raises(SplitError, match="of a study of patient") as caught:
        splits.make([*MANY, first, third], salt="a")
    assert "correct one of them" in caught.value.hint


def test_a_patient_whom_the_split_does_not_know_is_refused() -> None:
    with pytest.raises(SplitError, match="does not know patient"):
        splits.make(MANY, salt="a").select([scan(1000)], "train")


def test_too_few_patients_are_not_cut_up() -> None:
    slices = [scan(1, s) for s in range(50)]
    with pytest.raises(SplitError, match="1 patients cannot fill train and validation and test"):
        splits.make(slices, salt="a")
    three = splits.make([scan(p) for p in range(3)], salt="a")
    assert [len(three.parts[part]) for part in splits.PARTS] == [1, 1, 1]
    all_in = splits.make(slices, salt="a", fractions=(0, 0, 1))
    assert all_in.parts == {"train": (), "validation": (), "test": (slices[0].patient,)}


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.5), (0.9, 0.2, 0.1), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)]
)
def test_fractions_that_are_none(fractions: tuple[float, ...]) -> None:
    with pytest.raises(SplitError, match="are not 3 shares of 1"):
        splits.make(MANY, salt="a", fractions=fractions)


def test_a_domain_that_is_not_there() -> None:
    with pytest.raises(SplitError, match="no domain 'site'"):
        splits.make(MANY, salt="a", by=["site"])


def test_a_saved_split_is_the_same_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    split = splits.make(MANY, salt="a", by=["vendor"])
    splits.save(split, path)
    assert splits.load(path) == split
    content = json.loads(path.read_text())
    moved = content["parts"]["test"].pop()
    content["parts"]["train"].append(moved)
    path.write_text(json.dumps(content))
    with pytest.raises(SplitError, match="changed since it was saved"):
        splits.load(path)
    content["parts"]["test"].append(moved)
    path.write_text(json.dumps(content))
    with pytest.raises(SplitError, match="is in"):
        splits.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "parts": 3}'])
def test_files_that_are_no_split(tmp_path: Path, text: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(SplitError, match=r"split.json"):
        splits.load(path)
    with pytest.raises(SplitError, match=r"gone.json"):
        splits.load(tmp_path / "gone.json")


def test_keys_of_patients() -> None:
    assert patient_key(" IXI002") == patient_key("ixi002 ")
    assert patient_key("ward  7\0") == patient_key("WARD 7")
    assert patient_key("ﾀﾅｶ１") == patient_key("タナカ1")
    assert patient_key("Mu\u0308ller") == patient_key("M\u00fcller")
    assert patient_key("a", secret="s") != patient_key("a") != patient_key("b")
    assert len(patient_key("a", secret="s")) == 16
    with pytest.raises(DataError, match="empty"):
        patient_key("  ")


def test_a_scan_that_changed_is_refused() -> None:
    with pytest.raises(DataError, match="where the index saw"):
        replace(scan(1), shape=(2, 2, 2)).load()
    assert scan(1).load().shape == (1, 2, 2)
