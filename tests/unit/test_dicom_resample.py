"""Derived objects of twice their source's matrix: what changes, what stays, what goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from node.dicom.derive import derive
from node.dicom.elements import Element, tag_of
from node.dicom.pixels import decode
from node.dicom.resample import halved
from node.errors import DeriveError, SeriesError
from tests.deriving import written
from tests.dicom_samples import MR_CLASS, enhanced, how, image, part10, read


def doubled(ds: Dataset, **changes: Any) -> pydicom.FileDataset:
    data = part10(ds)
    stored = decode(data).repeat(2, axis=1).repeat(2, axis=2)
    return read(written(derive(data, stored, how(scale=2, family="cnn", **changes), order=0)))


def differing(before: Dataset, after: Dataset) -> set[str]:
    tags = set(before.keys()) | set(after.keys())
    return {pydicom.datadict.keyword_for_tag(t) or str(t) for t in tags if before.get(t) != after.get(t)}


ALWAYS = differing(image(), read(written(derive(part10(image()), decode(part10(image())), how(), order=0))))


def test_only_the_matrix_and_what_depends_on_it_changes() -> None:
    source = image(
        ReconstructionDiameter="358.4", AcquisitionMatrix=[256, 0, 0, 192], SpacingBetweenSlices="1.0",
        PixelAspectRatio=["1", "1"],
    )  # fmt: skip
    made = doubled(source)
    assert differing(source, made) - ALWAYS == {"Rows", "Columns", "PixelSpacing", "PixelData"}
    assert (made.Rows, made.Columns) == (16, 12)
    assert made["PixelSpacing"].value == [0.35, 0.35]
    assert made.ImagePositionPatient == source.ImagePositionPatient
    assert made.pixel_array.shape == (16, 12)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"0.703125\\0.703125", b"0.3515625\\0.3515625"),
        (b"1\\1 ", b"0.5\\0.5"),
        (b" 0.70\\7.0E-1", b"0.35\\0.35"),
        (b"0.48828125\\100", b"0.244140625\\50"),
        (b"0.12345678901235\\1", b"0.06172839450618\\0.5"),
    ],
)
def test_half_a_spacing_is_told_exactly_in_sixteen_characters(before: bytes, after: bytes) -> None:
    made = halved(Element(tag_of("PixelSpacing"), "DS", before))
    assert all(len(v) <= 16 for v in made.raw.split(b"\\"))
    for told, wanted in zip(made.raw.split(b"\\"), after.split(b"\\"), strict=True):
        assert float(told) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("value", [b"", b"0\\0", b"-1\\1", b"wide\\1", b"NaN\\1", b"\xff\\1"])
def test_a_spacing_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(SeriesError, match="Pixel Spacing"):
        halved(Element(tag_of("PixelSpacing"), "DS", value))


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (["ORIGINAL", "PRIMARY", "AXIAL", "NORM"], ["DERIVED", "PRIMARY", "AXIAL", "NORM", "RESAMPLED"]),
        (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL", "RESAMPLED"]),
        (["DERIVED", "PRIMARY", "AXIAL", "RESAMPLED"], ["DERIVED", "PRIMARY", "AXIAL", "RESAMPLED"]),
    ],
)
def test_the_image_type_says_so(source: list[str], wanted: list[str]) -> None:
    assert list(doubled(image(ImageType=source)).ImageType) == wanted


def test_words_and_codes_claim_nothing_that_was_not_measured() -> None:
    made = doubled(image())
    codes = {(c.CodeValue, c.CodingSchemeDesignator) for c in made.DerivationCodeSequence}
    assert codes == {("113085", "DCM"), ("IPLD", "99LUMINODE")}
    told = made.DerivationDescription
    assert "Interpolation with learned detail" in told
    assert "was not measured" in told
    assert len(told) <= 1024
    assert "resolution" not in str(made).lower()
    assert {s.SpatialLocationsPreserved for s in made.SourceImageSequence} == {"NO"}


def test_what_is_told_in_pixels_of_the_source_goes() -> None:
    source = image(ShutterShape="RECTANGULAR", ShutterLeftVerticalEdge="2", ImagerPixelSpacing=["1", "1"])
    for tag, vr, value in (
        (0x60000010, "US", 8), (0x60000011, "US", 6), (0x60000040, "CS", "G"), (0x60000050, "SS", [1, 1]),
        (0x60000100, "US", 1), (0x60000102, "US", 0), (0x60003000, "OW", b"\x00" * 6),
    ):  # fmt: skip
        source.add_new(tag, vr, value)
    made = doubled(source)
    assert not [e for e in made if e.tag.group == 0x6000]
    assert not {"ShutterShape", "ShutterLeftVerticalEdge", "ImagerPixelSpacing"} & set(made.dir())


def test_overlays_within_the_pixels_are_not_kept_either() -> None:
    source = image(np.full((8, 6), 0x8123, np.uint16))
    for tag, vr, value in (
        (0x60000010, "US", 8), (0x60000011, "US", 6), (0x60000100, "US", 16), (0x60000102, "US", 15),
    ):  # fmt: skip
        source.add_new(tag, vr, value)
    made = doubled(source)
    assert not [e for e in made if e.tag.group == 0x6000]
    assert int(made.pixel_array.max()) == 0x123


@pytest.mark.parametrize("ct", [False, True])
@pytest.mark.parametrize("per_frame", [False, True])
def test_pixel_measures_of_multi_frame_objects(ct: bool, per_frame: bool) -> None:
    source = enhanced(3, ct=ct)
    shared = source.SharedFunctionalGroupsSequence[0]
    shutter = Dataset()
    shutter.ShutterShape = "RECTANGULAR"
    shared.FrameDisplayShutterSequence = Sequence([shutter])
    if per_frame:
        for frame in source.PerFrameFunctionalGroupsSequence:
            frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
        del shared.PixelMeasuresSequence
    made = doubled(source)
    assert made.pixel_array.shape == (3, 8, 12)
    now = made.SharedFunctionalGroupsSequence[0]
    assert "FrameDisplayShutterSequence" not in now
    for at, frame in enumerate(made.PerFrameFunctionalGroupsSequence):
        measures = (frame if per_frame else now).PixelMeasuresSequence[0]
        assert list(measures.PixelSpacing) == [0.35, 0.35]
        assert measures.SliceThickness == 1.0
        position = source.PerFrameFunctionalGroupsSequence[at].PlanePositionSequence[0]
        assert frame.PlanePositionSequence[0] == position
        (origin,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert origin.SpatialLocationsPreserved == "NO"
    kind = "CTImageFrameTypeSequence" if ct else "MRImageFrameTypeSequence"
    assert list(now[kind][0].FrameType) == ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    assert list(made.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]


def test_pixels_of_another_matrix_are_a_defect_of_ours() -> None:
    data = part10(image(sop_class=MR_CLASS))
    with pytest.raises(DeriveError, match="shape"):
        derive(data, decode(data), how(scale=2), order=0)
    with pytest.raises(DeriveError, match="shape"):
        derive(data, decode(data).repeat(2, axis=1).repeat(2, axis=2), how(), order=0)


def test_a_matrix_that_cannot_be_told_is_refused() -> None:
    wide = np.zeros((2, 40_000), np.uint16)
    with pytest.raises(SeriesError, match="more than Rows and Columns"):
        doubled(image(wide))
