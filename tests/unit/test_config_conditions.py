"""The grammar of conditions: what holds, what is refused, and that writing and reading agree."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config.conditions import Sort, as_number
from node.config.grammar import ConditionRefused, doubtful, parse_condition, parse_when, write_when
from node.config.identifiers import DIRECT_IDENTIFIERS, keywords, may_be_seen, why_not
from node.config.operators import EXAMPLES
from node.config.values import Refused

HOLDS: list[tuple[str, Any, tuple[Any, ...], bool]] = [
    # codes: whatever their case, padding apart
    ("Modality", "CT", ("CT",), True),
    ("Modality", "ct", ("CT ",), True),
    ("Modality", "CT", ("MR",), False),
    ("Modality", "CT", (), False),
    ("Modality", "CT", ("",), False),
    # lists are any of their items; many values: any fits
    ("BodyPartExamined", ["CHEST", "LUNG"], ("LUNG",), True),
    ("BodyPartExamined", ["CHEST", "LUNG"], ("HEAD",), False),
    ("ImageType", "AXIAL", ("ORIGINAL", "PRIMARY", "AXIAL"), True),
    ("ImageType", ["CHEST", "contains XI"], ("AXIAL",), True),
    # not: none fits, so absent holds
    ("ImageType", "not LOCALIZER", ("ORIGINAL", "PRIMARY", "LOCALIZER"), False),
    ("ImageType", "not LOCALIZER", ("ORIGINAL", "PRIMARY", "AXIAL"), True),
    ("ImageType", "not LOCALIZER", (), True),
    ("ImageType", "not [LOCALIZER, SCOUT]", ("ORIGINAL", "SCOUT"), False),
    ("ImageType", ["not LOCALIZER", "not SCOUT"], ("ORIGINAL", "SCOUT"), False),
    ("ImageType", ["not LOCALIZER", "not SCOUT"], ("ORIGINAL",), True),
    # numbers
    ("SliceThickness", "2", (2.0,), True),
    ("SliceThickness", "2.50", ("2.5",), True),
    ("SliceThickness", "0.1", (0.10000000149011612,), True),
    ("SliceThickness", "at most 2.0", (2.0,), True),
    ("SliceThickness", "at most 2.0", (2.01,), False),
    ("SliceThickness", "at most 2.0", (), False),
    ("SliceThickness", "at most 2.0", ("thin",), False),
    ("SliceThickness", "not at most 2.0", (2.01,), True),
    ("SliceThickness", "at least 1e-1", (0.1,), True),
    ("SliceThickness", "between 1 and 2", (1,), True),
    ("SliceThickness", "between 1 and 2", (0.99, 2.01), False),
    ("SliceThickness", ["at most 1", "between 4 and 6"], (5,), True),
    ("SliceThickness", 2, (2,), True),
    ("RescaleIntercept", "-1024", ("-1024",), True),
    ("SeriesNumber", "012", (12,), True),
    ("Rows", "at least 512", (512,), True),
    ("StudyDate", "at least 20240101", ("20231231",), False),
    ("StudyDate", "between 20240101 and 20241231", ("20240229",), True),
    ("EchoTime", "at most 1000", ("1e999",), False),
    # ages
    ("PatientAge", "at least 18", ("045Y",), True),
    ("PatientAge", "at least 18Y", ("017Y",), False),
    ("PatientAge", "at most 6M", ("012W",), True),
    ("PatientAge", "between 1Y and 2Y", ("018M",), True),
    # text
    ("SeriesDescription", "Chest 1.0", ("Chest 1.0",), True),
    ("SeriesDescription", "Chest 1.0", ("chest 1.0",), False),
    ("SeriesDescription", "contains chest", ("CT CHEST 1.0",), True),
    ("SeriesDescription", "not contains chest", ("CT CHEST 1.0",), False),
    ("SeriesDescription", "matches ^CT .* [0-9]", ("CT CHEST 1.0",), True),
    ("SeriesDescription", "matches chest", ("CT CHEST 1.0",), False),
    ("SeriesDescription", "matches (?i)chest", ("CT CHEST 1.0",), True),
    ("SeriesDescription", "equals not for diagnosis", ("not for diagnosis",), True),
    ("SeriesDescription", "equals equals", ("equals",), True),
    ("SeriesDescription", "nothing", ("nothing",), True),
    ("SeriesDescription", "inner ear", ("inner ear",), True),
    ("SeriesDescription", "overview", ("overview",), True),
    ("SequenceName", "*tfl3d1", ("*tfl3d1",), True),
    ("ImageType", "matches ^orig", ("ORIGINAL",), True),  # codes have no case
    ("ConvolutionKernel", "present", ("B30f",), True),
    ("ConvolutionKernel", "present", ("",), False),
    ("ConvolutionKernel", "present", (), False),
    ("ConvolutionKernel", "absent", (), True),
    ("ConvolutionKernel", "absent", ("B30f",), False),
    ("ConvolutionKernel", ["B30f", "present"], ("x",), True),
    ("SliceThickness", "absent", (), True),
    ("SliceThickness", "present", (0.0,), True),
    # UIDs by name, and what is no DICOM attribute
    ("SOPClassUID", "CTImageStorage", ("1.2.840.10008.5.1.4.1.1.2",), True),
    ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2", ("1.2.840.10008.5.1.4.1.1.2",), True),
    ("SOPClassUID", "not [MRImageStorage]", ("1.2.840.10008.5.1.4.1.1.2",), True),
    ("CallingAE", "NO", ("NO",), True),
    ("CallingAE", "no", ("NO",), False),
    ("InstanceCount", "at least 3", (3,), True),
    ("InstanceCount", "at least 3", (2,), False),
]


@pytest.mark.parametrize(("keyword", "written", "values", "held"), HOLDS)
def test_what_holds(keyword: str, written: Any, values: tuple[Any, ...], held: bool) -> None:
    assert parse_condition(keyword, written).holds(values) is held


@pytest.mark.parametrize(("keyword", "written", "values", "held"), HOLDS)
def test_writing_and_reading_agree(keyword: str, written: Any, values: tuple[Any, ...], held: bool) -> None:
    condition = parse_condition(keyword, written)
    again = parse_condition(keyword, condition.written)
    assert again == condition
    assert pickle.loads(pickle.dumps(condition)) == condition


REFUSED: list[tuple[str, Any, str]] = [
    ("SliceThickness", ">= 2", "at least 2"),
    ("SliceThickness", "<2", "at most 2"),
    ("SliceThickness", "less than 2", "at most 2"),
    ("SliceThickness", "more than 2", "at least 2"),
    ("SliceThickness", "under 2", "at most 2"),
    ("SliceThickness", "thin", "2.5"),
    ("SliceThickness", "0x1F", "2.5"),
    ("SliceThickness", "1-2", "between 1 and 2"),
    ("SliceThickness", "between 1", "between 1 and 2.5"),
    ("SliceThickness", "between 2 and 1", "between 1 and 2"),
    ("SliceThickness", "at most", "at most 2.5"),
    ("SliceThickness", "contains 1", "at most"),
    ("SliceThickness", "matches 1", "at most"),
    ("SliceThickness", "nan", "2.5"),
    ("SliceThickness", "1e999", "2.5"),
    ("PatientAge", "old", "18Y"),
    ("ImageType", "!LOCALIZER", "not LOCALIZER"),
    ("ImageType", "!= LOCALIZER", "not LOCALIZER"),
    ("ImageType", "NOT LOCALIZER", "lower case"),
    ("ImageType", "ORIGINAL\\PRIMARY", "ORIGINAL"),
    ("ImageType", "not not A", "without"),
    ("ImageType", "not absent", "present"),
    ("ImageType", "not", "not LOCALIZER"),
    ("ImageType", ["A", "not B"], "two rules"),
    ("ImageType", ["A", "absent"], "two rules"),
    ("ImageType", [], "absent"),
    ("ImageType", [["A"]], "docs"),
    ("ImageType", {"a": "b"}, "docs"),
    ("ImageType", True, "docs"),
    ("ImageType", "", "absent"),
    ("ImageType", "x" * 300, "256"),
    ("ImageType", ["A"] * 300, "256"),
    ("BodyPartExamined", "CHEST or LUNG", "[CHEST, LUNG]"),
    ("BodyPartExamined", "CHEST, LUNG", "[CHEST, LUNG]"),
    ("BodyPartExamined", "[CHEST, LUNG]", "without quotes"),
    ("BodyPartExamined", "one of CHEST", "a list"),
    ("BodyPartExamined", "any", "leave the line out"),
    ("BodyPartExamined", "at most 3", "list"),
    ("SeriesDescription", "*chest*", "contains chest"),
    ("SeriesDescription", "starts with chest", "matches ^"),
    ("SeriesDescription", "Not for diagnosis", "equals Not for diagnosis"),
    ("SeriesDescription", "contains", "contains CHEST"),
    ("SeriesDescription", "matches (a", "backslash"),
    ("SeriesDescription", "two\nlines", "one line"),
    ("SOPClassUID", "CTImage", "CTImageStorage"),
]


@pytest.mark.parametrize(("keyword", "written", "hint"), REFUSED)
def test_what_is_refused_says_what_to_write(keyword: str, written: Any, hint: str) -> None:
    with pytest.raises(ConditionRefused) as refused:
        parse_condition(keyword, written)
    assert hint in refused.value.hint


def test_a_fault_in_a_list_names_its_item() -> None:
    with pytest.raises(ConditionRefused) as refused:
        parse_condition("SliceThickness", ["1", "thin", "2"])
    assert refused.value.item == 1


@pytest.mark.parametrize("operator", EXAMPLES)
def test_every_example_of_the_documentation_parses(operator: str) -> None:
    keyword = "SliceThickness" if "2.5" in EXAMPLES[operator] else "SeriesDescription"
    assert str(parse_condition(keyword, EXAMPLES[operator])) == EXAMPLES[operator]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        ["Modality", "SliceThickness", "SeriesDescription", "PatientAge", "SOPClassUID", "CallingAE"]
    ),
    st.one_of(
        st.text(max_size=20),
        st.tuples(st.sampled_from([*EXAMPLES, "not equals", "not between"]), st.text(max_size=12)).map(
            " ".join
        ),
        st.lists(st.text(max_size=8), max_size=3),
    ),
    st.lists(st.one_of(st.text(max_size=8), st.floats(), st.integers()), max_size=3),
)
def test_any_text_is_a_condition_that_reads_back_or_is_refused(
    keyword: str, written: Any, found: list[Any]
) -> None:
    try:
        condition = parse_condition(keyword, written)
    except ConditionRefused as refused:
        told = refused.message and refused.hint
        condition = None
    if condition is None:
        assert told
        return
    again = parse_condition(keyword, condition.written)
    assert again == condition
    assert again.holds(found) is condition.holds(found)


@given(
    st.sampled_from(["CT", "not CT", "present", "absent", "contains C", "matches C"]),
    st.lists(st.sampled_from(["CT", "MR", ""])),
)
def test_not_is_the_opposite(written: str, values: list[str]) -> None:
    plain = parse_condition("Modality", written)
    if written.startswith("not "):
        opposite = parse_condition("Modality", written.removeprefix("not "))
    elif written in ("present", "absent"):
        opposite = parse_condition("Modality", {"present": "absent", "absent": "present"}[written])
    else:
        opposite = parse_condition("Modality", f"not {written}")
    assert plain.holds(values) is not opposite.holds(values)


def test_any_is_no_condition_at_all() -> None:
    assert parse_when("any") == {}
    assert write_when({}) == "any"


@pytest.mark.parametrize("when", [None, "all", [], ["CT"], 5, {"PatientName": "x"}, {"Modalty": "CT"}])
def test_what_is_no_when(when: object) -> None:
    with pytest.raises(Refused):
        parse_when(when)


def test_a_when_survives_a_dump() -> None:
    when = parse_when({"Modality": "CT", "ImageType": ["not A", "not B"], "SliceThickness": "at most 2"})
    assert parse_when(write_when(when)) == when


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("Modalty", "Modality"),
        ("modality", "Modality"),
        ("Slice Thickness", "SliceThickness"),
        ("(0008,0060)", "Modality"),
        ("0008,0060", "Modality"),
        ("00080060", "Modality"),
        ("0019,100C", "private"),
        ("callingae", "CallingAE"),
        ("Qqqqqq", "PS3.6"),
        ("PatientName", "BodyPartExamined"),
        ("PixelData", "short"),
        ("RequestAttributesSequence", "short"),
        ("", "PS3.6"),
    ],
)
def test_what_no_rule_may_name(keyword: str, hint: str) -> None:
    message, told = why_not(keyword)
    assert message
    assert hint in told


def test_rules_never_see_who_the_patient_is() -> None:
    for keyword in DIRECT_IDENTIFIERS:
        assert not may_be_seen(keyword)
    for keyword in (
        "PatientName",
        "ReferringPhysicianName",
        "OperatorsName",
        "AccessionNumber",
        "StudyInstanceUID",
    ):
        assert not may_be_seen(keyword)
    assert "PatientAge" in keywords()
    assert "PatientSex" in keywords()


def test_numbers_and_ages() -> None:
    assert as_number(" 1.5e1 ") == 15
    assert as_number("1e999") is None
    assert as_number("") is None
    assert as_number(float("nan")) is None
    assert as_number("012M", Sort.AGE) == 1


@pytest.mark.parametrize(
    ("written", "near"), [("MRI", "MR"), ("CAT", "CT"), ("CTT", "CT"), (["CT", "PET"], "PT")]
)
def test_a_modality_that_nobody_sends_is_doubted(written: Any, near: str) -> None:
    assert f"did you mean {near}?" in doubtful(parse_condition("Modality", written))


@pytest.mark.parametrize("written", ["CT", "not MR", "SEG", "present"])
def test_a_usual_modality_is_not(written: str) -> None:
    assert doubtful(parse_condition("Modality", written)) == ""
