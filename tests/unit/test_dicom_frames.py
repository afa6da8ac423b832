"""Derived multi-frame objects: every frame says what was done to it and where it came from."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset

from node.dicom.derivation import Derivation
from node.dicom.ours import is_ours
from node.dicom.pixels import decode
from node.errors import SeriesError
from tests.deriving import derived, made, written
from tests.dicom_samples import NATIVE, corpus, enhanced, how, part10


def _step(value: str) -> Dataset:
    step, code = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", "Something"
    step.DerivationCodeSequence = [code]
    return step


def _values(ds: FileDataset, at: int) -> list[list[str]]:
    groups = ds.PerFrameFunctionalGroupsSequence[at].DerivationImageSequence
    return [[c.CodeValue for c in step.DerivationCodeSequence] for step in groups]


@pytest.mark.parametrize("ct", [False, True])
@pytest.mark.parametrize("syntax", NATIVE)
def test_every_frame_is_derived(ct: bool, syntax: str) -> None:
    source = enhanced(3, ct=ct)
    ds = derived(source, syntax=syntax)
    assert ds.SOPClassUID == source.SOPClassUID
    assert ds.ImageType == ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    shared = ds.SharedFunctionalGroupsSequence[0]
    group = shared.CTImageFrameTypeSequence if ct else shared.MRImageFrameTypeSequence
    assert group[0].FrameType == ds.ImageType
    assert group[0].VolumetricProperties == "VOLUME"
    assert len(ds.PerFrameFunctionalGroupsSequence) == 3
    for at, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        (step,) = frame.DerivationImageSequence
        (image,) = step.SourceImageSequence
        assert image.ReferencedFrameNumber == at + 1
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert image.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert (
            frame.PlanePositionSequence == source.PerFrameFunctionalGroupsSequence[at].PlanePositionSequence
        )
        assert frame.FrameContentSequence == source.PerFrameFunctionalGroupsSequence[at].FrameContentSequence
    (study,) = ds.SourceImageEvidenceSequence
    assert study.StudyInstanceUID == source.StudyInstanceUID
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    for keyword in (
        "DerivationDescription",
        "DerivationCodeSequence",
        "SourceImageSequence",
        "ImageComments",
    ):
        assert keyword not in ds
    assert ds.ContentQualification == "RESEARCH"
    assert ds.DeviceSerialNumber
    assert is_ours(ds)


def test_value2_is_primary_whatever_the_configuration_says() -> None:
    plan: Derivation = how(value2="SECONDARY", research_mark=False)
    ds = derived(enhanced(), plan)
    assert ds.ImageType[1] == "PRIMARY"
    assert ds.ContentQualification == "PRODUCT"


def test_frame_types_of_their_own() -> None:
    source = enhanced(2)
    for at, frame in enumerate(source.PerFrameFunctionalGroupsSequence):
        kind = Dataset()
        kind.FrameType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE" if at else "ADC"]
        frame.MRImageFrameTypeSequence = [kind]
    del source.SharedFunctionalGroupsSequence[0].MRImageFrameTypeSequence
    ds = derived(source)
    assert [f.MRImageFrameTypeSequence[0].FrameType[3] for f in ds.PerFrameFunctionalGroupsSequence] == [
        "ADC",
        "NONE",
    ]
    assert all(
        f.MRImageFrameTypeSequence[0].FrameType[:3] == ["DERIVED", "PRIMARY", "DIFFUSION"]
        for f in ds.PerFrameFunctionalGroupsSequence
    )


def test_earlier_steps_come_first_and_leave_the_shared_groups() -> None:
    source = enhanced(2)
    source.SharedFunctionalGroupsSequence[0].DerivationImageSequence = [_step("113040")]
    source.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence = [_step("113072")]
    ds = derived(source)
    assert "DerivationImageSequence" not in ds.SharedFunctionalGroupsSequence[0]
    assert _values(ds, 0) == [["113040"], ["113087", "NR"]]
    assert _values(ds, 1) == [["113072"], ["113087", "NR"]]


def test_evidence_is_merged_by_study_and_series() -> None:
    source = enhanced(2)
    sop, series, study = Dataset(), Dataset(), Dataset()
    sop.ReferencedSOPClassUID, sop.ReferencedSOPInstanceUID = source.SOPClassUID, "1.9"
    series.SeriesInstanceUID, series.ReferencedSOPSequence = source.SeriesInstanceUID, [sop]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = source.StudyInstanceUID, [series]
    source.SourceImageEvidenceSequence = [study]
    (merged,) = derived(source).SourceImageEvidenceSequence
    (listed,) = merged.ReferencedSeriesSequence
    assert [s.ReferencedSOPInstanceUID for s in listed.ReferencedSOPSequence] == [
        "1.9",
        source.SOPInstanceUID,
    ]


def test_parts_of_a_concatenation_stay_together() -> None:
    parts = []
    for number, uid in ((1, "1.2.3.71"), (2, "1.2.3.72")):
        source = enhanced(2)
        source.SOPInstanceUID, source.ConcatenationUID = uid, "1.2.3.7"
        source.SOPInstanceUIDOfConcatenationSource = "1.2.3.70"
        source.InConcatenationNumber, source.InConcatenationTotalNumber = number, 2
        parts.append(derived(source))
    assert parts[0].ConcatenationUID == parts[1].ConcatenationUID != "1.2.3.7"
    assert parts[0].SOPInstanceUIDOfConcatenationSource == parts[1].SOPInstanceUIDOfConcatenationSource
    assert [p.InConcatenationNumber for p in parts] == [1, 2]


def test_slopes_stay_with_their_frames() -> None:
    source = enhanced(3, slopes=(1.0, 2.5, 0.25))
    ds = derived(source)
    told = [f.PixelValueTransformationSequence[0].RescaleSlope for f in ds.PerFrameFunctionalGroupsSequence]
    assert told == [1.0, 2.5, 0.25]
    assert np.array_equal(decode(written(made(source))), ds.pixel_array)


def test_private_copies_of_pixels_inside_frames_are_dropped() -> None:
    source = enhanced(2)
    frame = source.PerFrameFunctionalGroupsSequence[0]
    inner = Dataset()
    inner.add_new(0x7FE00010, "OB", b"\x00" * 8)
    frame.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
    frame.add_new(0x2005140F, "SQ", [inner])
    frame.add_new(0x20051490, "LO", "stays")
    first = derived(source).PerFrameFunctionalGroupsSequence[0]
    assert 0x2005140F not in first
    assert first[0x20051490].value == "stays"


def test_groups_and_frames_must_be_as_many() -> None:
    source = enhanced(3)
    del source.PerFrameFunctionalGroupsSequence[2]
    with pytest.raises(SeriesError, match="number"):
        made(source)


def test_an_object_stripped_of_its_groups_says_it_at_its_top() -> None:
    source = enhanced(2)
    del source.SharedFunctionalGroupsSequence, source.PerFrameFunctionalGroupsSequence
    ds = derived(source)
    assert ds.ImageType[0] == "DERIVED"
    assert [c.CodeValue for c in ds.DerivationCodeSequence] == ["113087", "NR"]
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert is_ours(ds)


def test_many_frames() -> None:
    ds = derived(enhanced(300))
    assert ds.NumberOfFrames == 300
    step = ds.PerFrameFunctionalGroupsSequence[299].DerivationImageSequence[0]
    assert step.SourceImageSequence[0].ReferencedFrameNumber == 300


def test_bytes_depend_on_nothing_but_the_job() -> None:
    assert written(made(part10(enhanced()))) == written(made(part10(enhanced())))


@pytest.mark.corpus
def test_the_same_enhanced_object_in_three_encodings() -> None:
    files = [corpus("odd", n) for n in ("emri_small.dcm", "emri_small_RLE.dcm", "emri_small_big_endian.dcm")]
    pixels = [decode(f) for f in files]
    assert all(np.array_equal(p, pixels[0]) for p in pixels)
    for file in files:
        ds = derived(file.read_bytes())
        assert ds.pixel_array.shape == (10, 64, 64)
        assert is_ours(ds)
