"""Headers: every attribute as pydicom has it, no patient in them, and no bytes that break the reader."""

from __future__ import annotations

import contextlib
import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import keyword_dict
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from node.config.identifiers import DIRECT_IDENTIFIERS, VISIBLE_VRS, vr_of
from node.dicom.encoding import Limits
from node.dicom.headers import merge
from node.dicom.modality import eligibility
from node.dicom.read import read_bytes, read_header, read_instance
from node.errors import NodeError, SeriesError, StoreError
from node.model import InstanceHeader, Values
from tests.deriving import made, written
from tests.dicom_samples import (
    BIG,
    CT_CLASS,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    MR_CLASS,
    enhanced,
    how,
    image,
    part10,
)
from tests.encoded import ITEM, UNDEFINED, dataset, deflated, element, head
from tests.encoded import part10 as own_part10

SYNTAXES = [IMPLICIT, EXPLICIT, DEFLATED, BIG]


def reading(ds: Dataset, tmp_path: Path, syntax: str = EXPLICIT) -> InstanceHeader:
    path = tmp_path / "a.dcm"
    path.write_bytes(part10(ds, syntax))
    return read_header(path)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_an_image_tells(syntax: str, tmp_path: Path) -> None:
    ds = image(ImagesInAcquisition="40", ConvolutionKernel="B30f", KVP="120")
    header = reading(ds, tmp_path, syntax)
    assert (header.sop_class_uid, header.sop_instance_uid) == (CT_CLASS, ds.SOPInstanceUID)
    assert (header.study_uid, header.series_uid) == (ds.StudyInstanceUID, ds.SeriesInstanceUID)
    assert header.transfer_syntax_uid == syntax
    assert (header.modality, header.rows, header.columns, header.n_frames) == ("CT", 8, 6, 1)
    assert header.instance_number == 47
    assert (header.expected_count, header.expected_because) == (40, "Images in Acquisition")
    assert header.has_pixels
    assert header.faults == ()
    assert not header.derived_by_us
    (frame,) = header.frames
    assert frame.position_mm == (-1.5, 2.25, 3.0)
    assert frame.orientation == (1, 0, 0, 0, 1, 0)
    assert frame.spacing_mm == (0.7, 0.7)
    assert frame.thickness_mm == 1.0
    key = dict(frame.volume_key)
    assert key["image_type"] == "ORIGINAL\\PRIMARY\\AXIAL\\NORM"
    assert (key["kernel"], key["kvp"], key["units"], key["acquisition"]) == ("B30f", "120", "HU", "1")
    seen = header.attributes
    assert seen["ImageType"] == ("ORIGINAL", "PRIMARY", "AXIAL", "NORM")
    assert seen["SliceThickness"] == (1.0,)
    assert seen["PixelSpacing"] == (0.7, 0.7)
    assert seen["SeriesNumber"] == (3,)
    assert seen["BitsStored"] == (12,)
    assert isinstance(seen["SeriesNumber"][0], int)
    assert isinstance(seen["SliceThickness"][0], float)


def test_identifiers_are_left_out(tmp_path: Path) -> None:
    ds = image()
    texts = {"LO", "SH", "ST", "PN", "LT", "UT", "DA", "AS", "CS", "TM", "UI"}
    for keyword in DIRECT_IDENTIFIERS:
        if vr_of(keyword) in texts and keyword not in ds:
            secret = {"DA": "19010101", "TM": "0101", "UI": "1.9.9.9", "CS": "CANARY"}.get(
                vr_of(keyword), "CANARY^X"
            )
            setattr(ds, keyword, secret)
    ds.PatientComments = "CANARY" * 50
    ds.ReferringPhysicianName = "CANARY^R"
    header = reading(ds, tmp_path)
    assert not set(header.attributes) & DIRECT_IDENTIFIERS
    assert not [k for k in header.attributes if vr_of(k) not in VISIBLE_VRS]
    assert "CANARY" not in repr(header.attributes)
    assert "Muster" not in repr(header)
    assert "PID-7" not in repr(header)


def test_values_that_are_odd_are_told_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(
        own_part10(
            dataset(
                element(0x00080060, "CS", "CT"),
                element(0x0008103E, "LO", b"A\\ B \\"),
                element(0x00180050, "DS", "1.25mm"),
                element(0x00180060, "DS", "nan"),
                element(0x00180088, "DS", "1_0"),
                element(0x00181151, "IS", "12.0"),
                element(0x00181152, "IS", "1e300"),
                element(0x00189087, "FD", struct.pack("<d", float("nan"))),
                element(0x00189311, "FD", struct.pack("<d", 0.5) + b"cut"),
                element(0x00180010, "LO", "x" * 2000),
                element(0x00180015, "CS", "  "),
            ),
            EXPLICIT,
        )
    )
    seen = read_header(path).attributes
    assert seen["SeriesDescription"] == ("A", "B", "")
    assert seen["SliceThickness"] == ("1.25mm",)
    assert seen["KVP"] == ("nan",)
    assert seen["SpacingBetweenSlices"] == ("1_0",)
    assert seen["XRayTubeCurrent"] == (12,)
    assert seen["Exposure"] == (1e300,)
    assert "DiffusionBValue" not in seen
    assert seen["SpiralPitchFactor"] == (0.5,)
    assert "ContrastBolusAgent" not in seen
    assert "BodyPartExamined" not in seen


@pytest.mark.parametrize(
    ("charset", "raw", "told"),
    [
        ("ISO_IR 100", "Schädel".encode("latin-1"), "Schädel"),
        ("ISO_IR 192", "頭部 CT".encode(), "頭部 CT"),
        ("ISO_IR 144", "Грудь".encode("iso8859-5"), "Грудь"),
        ("GB18030", "头部".encode("gb18030"), "头部"),
        ("ISO 2022 IR 6\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B", "山田"),
        ("ISO_IR 192", b"\xff\xfe broken", None),
        ("NO SUCH SET", "ä".encode(), None),
        ("", b"\xe4", None),
    ],
)  # fmt: skip
def test_character_sets(charset: str, raw: bytes, told: str | None) -> None:
    data = (
        element(0x00080005, "CS", charset) + element(0x0008103E, "LO", raw) + element(0x0020000D, "UI", "1.2")
    )
    values = read_bytes(data, EXPLICIT).attributes["SeriesDescription"]
    assert values == (told,) if told is not None else isinstance(values[0], str)


def test_the_file_meta_names_what_the_data_set_leaves_out(tmp_path: Path) -> None:
    data = part10(image(), EXPLICIT)
    at = data.index(b"\x08\0\x05\0CS")  # the data set begins with its character set
    body = data[at:].replace(CT_CLASS.encode(), bytes(len(CT_CLASS))).replace(b"1.2.3.4.5.6.7", bytes(13))
    header = read_header_of(data[:at] + body, tmp_path / "a")
    assert "SOPClassUID" not in header.attributes
    assert (header.sop_class_uid, header.sop_instance_uid) == (CT_CLASS, "1.2.3.4.5.6.7")
    assert header.faults == ()


def test_missing_and_bad_uids_are_faults(tmp_path: Path) -> None:
    header = reading(image(StudyInstanceUID="", SeriesInstanceUID="1.2.x"), tmp_path)
    assert header.faults == ("it has no Study Instance UID", "its Series Instance UID is no UID")
    assert (header.study_uid, header.series_uid) == ("", "")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"Rows": 0}, "rows and columns"),
        ({"NumberOfFrames": "4"}, "it says nothing of its 4 frames"),
        ({"NumberOfFrames": "200000"}, "absurd number of frames"),
        ({"NumberOfFrames": "0"}, "no frames"),
        ({"ModalityLUTSequence": [Dataset()]}, "Modality LUT"),
    ],
)
def test_what_does_not_fit_is_a_fault(change: dict[str, object], fault: str, tmp_path: Path) -> None:
    (told,) = reading(image(**change), tmp_path).faults
    assert fault in told


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG, IMPLICIT])
def test_pixel_data_cut_short_empty_or_floating(syntax: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    whole = part10(image(), syntax)
    path.write_bytes(whole[:-2])
    assert read_header(path).faults == ("its pixel data is cut short",)
    empty = part10(image(PixelData=b""), syntax)
    path.write_bytes(empty)
    assert not read_header(path).has_pixels
    ds = image(PixelData=None)
    assert not reading(ds, tmp_path, syntax).has_pixels
    ds.FloatPixelData = np.zeros(48, np.float32).tobytes()
    header = reading(ds, tmp_path, syntax)
    assert not header.has_pixels
    assert header.faults == ("its pixels are floating point numbers",)


def test_promises_of_a_header(tmp_path: Path) -> None:
    def promise(**told: object) -> tuple[int, str]:
        header = reading(image(**told), tmp_path)
        return header.expected_count, header.expected_because

    assert promise() == (0, "")
    assert promise(ImagesInAcquisition="0") == (0, "")
    assert promise(ImagesInAcquisition="-3") == (0, "")
    assert promise(ImagesInAcquisition="12", NumberOfTemporalPositions="1")[0] == 12
    assert promise(ImagesInAcquisition="12", NumberOfTemporalPositions="5")[0] == 60
    assert promise(InConcatenationTotalNumber=3, ImagesInAcquisition="99") == (
        3,
        "In-concatenation Total Number",
    )


# vendors


def mr(**attributes: object) -> Dataset:
    return image(sop_class=MR_CLASS, EchoTime="90", RepetitionTime="5000", **attributes)


def key_of(ds: Dataset, tmp_path: Path, syntax: str = EXPLICIT) -> dict[str, str]:
    return dict(reading(ds, tmp_path, syntax).frames[0].volume_key)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("block", [0x10, 0x11, 0x42])
def test_diffusion_of_each_vendor(syntax: str, block: int, tmp_path: Path) -> None:
    def private(group: int, creator: str, *elements: tuple[int, str, object], maker: str = "X") -> Dataset:
        ds = mr(Manufacturer=maker)
        ds.add_new(group << 16 | block, "LO", creator)
        for number, vr, value in elements:
            ds.add_new(group << 16 | block << 8 | number, vr, value)
        return ds

    wanted = {"b_value": "1000", "direction": "0\\0.6\\0.8"}
    siemens = private(
        0x0019,
        "SIEMENS MR HEADER",
        (0x0C, "IS", "1000"),
        (0x0E, "FD", [0.0, 0.6, 0.8]),
        (0x0D, "CS", "DIRECTIONAL"),
    )
    assert key_of(siemens, tmp_path, syntax).items() >= (wanted | {"directionality": "DIRECTIONAL"}).items()
    uih = private(0x0065, "Image Private Header", (0x09, "FD", 1000.0), (0x37, "FD", [0.0, 0.6, 0.8]))
    assert key_of(uih, tmp_path, syntax).items() >= wanted.items()
    philips = private(0x2001, "Philips Imaging DD 001", (0x03, "FL", 1000.0), (0x04, "CS", "O"))
    philips.add_new(0x20050012, "LO", "Philips MR Imaging DD 001")
    for n, value in enumerate((0.0, 0.6, 0.8)):
        philips.add_new(0x200512B0 + n, "FL", value)
    assert key_of(philips, tmp_path, syntax).items() >= wanted.items()
    ge = private(0x0043, "GEMS_PARM_01", (0x39, "IS", ["1000001000", "8", "0", "0"]), (0x2F, "SS", 1))
    ge.add_new(0x00190011, "LO", "GEMS_ACQU_01")
    for n, value in enumerate(("0.0", "0.6", "0.8")):
        ge.add_new(0x001911BB + n, "DS", value)
    assert key_of(ge, tmp_path, syntax).items() >= (wanted | {"component": "PHASE"}).items()
    standard = mr(DiffusionBValue=1000.0, DiffusionGradientOrientation=[0.0, 0.6, 0.8])
    assert key_of(standard, tmp_path, syntax).items() >= wanted.items()


def test_elements_whose_creator_was_dropped_are_believed_of_their_maker_only(tmp_path: Path) -> None:
    ds = mr(Manufacturer="GE MEDICAL SYSTEMS")
    ds.add_new(0x00431039, "IS", ["700", "0"])
    assert key_of(ds, tmp_path)["b_value"] == "700"
    ds.Manufacturer = "SIEMENS"
    assert "b_value" not in key_of(ds, tmp_path)
    ds.Manufacturer = "GE MEDICAL SYSTEMS"
    ds.add_new(0x00430010, "LO", "SOMEBODY ELSE")
    assert "b_value" not in key_of(ds, tmp_path)


def test_b0_has_no_direction_and_other_images_none_from_ge_user_data(tmp_path: Path) -> None:
    ds = mr(Manufacturer="GE MEDICAL SYSTEMS")
    ds.add_new(0x00190010, "LO", "GEMS_ACQU_01")
    for n in range(3):
        ds.add_new(0x001910BB + n, "DS", "7")
    assert "direction" not in key_of(ds, tmp_path)
    assert "direction" not in key_of(
        mr(DiffusionBValue=0.0, DiffusionGradientOrientation=[0, 0, 0]), tmp_path
    )


# multi-frame


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_frames_of_an_enhanced_object(syntax: str, tmp_path: Path) -> None:
    ds = enhanced(4)
    shared = ds.SharedFunctionalGroupsSequence[0]
    orientation = Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PlaneOrientationSequence = [orientation]
    for n, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        echo, diffusion, gradient = Dataset(), Dataset(), Dataset()
        echo.EffectiveEchoTime = 20.0 + n % 2
        diffusion.DiffusionBValue = 800.0
        gradient.DiffusionGradientOrientation = [0.0, 0.0, 1.0]
        diffusion.DiffusionGradientDirectionSequence = [gradient]
        frame.MREchoSequence, frame.MRDiffusionSequence = [echo], [diffusion]
        frame.FrameContentSequence[0].TemporalPositionIndex = 1 + n // 2
    header = reading(ds, tmp_path, syntax)
    assert header.faults == ()
    assert [f.number for f in header.frames] == [1, 2, 3, 4]
    assert [f.position_mm for f in header.frames] == [(0, 0, n + 0.5) for n in range(4)]
    assert {f.orientation for f in header.frames} == {(1, 0, 0, 0, 1, 0)}
    assert {f.thickness_mm for f in header.frames} == {1.0}
    keys = [dict(f.volume_key) for f in header.frames]
    assert [k["echo_time"] for k in keys] == ["20", "21", "20", "21"]
    assert [k["temporal"] for k in keys] == ["1", "1", "2", "2"]
    assert {k["direction"] for k in keys} == {"0\\0\\1"}
    assert header.attributes["EffectiveEchoTime"] == (20.0, 21.0)
    assert header.attributes["FrameType"] == ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
    assert header.attributes["PixelSpacing"] == (0.7, 0.7)
    assert header.attributes["RescaleType"] == ("US",)


def test_codes_and_units_are_lifted(tmp_path: Path) -> None:
    def coded(value: str, keyword: str = "CodeValue") -> Dataset:
        code = Dataset()
        setattr(code, keyword, value)
        return code

    mapping = Dataset()
    mapping.MeasurementUnitsCodeSequence = [coded("um2/s")]
    ds = mr(DerivationCodeSequence=Sequence([coded("113072"), coded("urn:x", "URNCodeValue")]),
            RealWorldValueMappingSequence=Sequence([mapping]))  # fmt: skip
    seen = reading(ds, tmp_path).attributes
    assert seen["DerivationCodeSequence"] == ("113072", "urn:x")
    assert seen["MeasurementUnitsCodeSequence"] == ("um2/s",)
    ds = enhanced(2)
    derivation = Dataset()
    derivation.DerivationCodeSequence = [coded("113041")]
    ds.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence = [derivation]
    ds.PerFrameFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [mapping]
    seen = reading(ds, tmp_path).attributes
    assert seen["DerivationCodeSequence"] == ("113041",)
    assert seen["MeasurementUnitsCodeSequence"] == ("um2/s",)


def test_functional_groups_that_do_not_fit(tmp_path: Path) -> None:
    ds = enhanced(3)
    del ds.PerFrameFunctionalGroupsSequence[-1]
    header = reading(ds, tmp_path)
    assert header.faults == ("it has 3 frames but functional groups for 2",)
    assert header.frames == ()


# bounds


def test_large_headers_are_read_in_growing_windows(tmp_path: Path) -> None:
    big = element(0x00091001, "UN", bytes(3 << 20))
    for syntax in (EXPLICIT, DEFLATED):
        data = dataset(big, after=element(0x00280010, "US", b"\x08\0") + element(0x00280011, "US", b"\x06\0"))
        data += element(0x7FE00010, "OW", bytes(96))
        path = tmp_path / "a"
        stored = deflated(data) + random.Random(1).randbytes(60_000) if syntax == DEFLATED else data
        path.write_bytes(own_part10(stored, syntax))
        header = read_header(path)
        assert (header.rows, header.columns, header.has_pixels) == (8, 6, True)
        with pytest.raises(SeriesError):
            read_header(path, limits=Limits(header_bytes=1 << 20, inflated_header_bytes=1 << 20))


@pytest.mark.parametrize("cut_of", [EXPLICIT, IMPLICIT, BIG])
def test_a_header_cut_anywhere_is_typed(cut_of: str, tmp_path: Path) -> None:
    data = part10(enhanced(2), cut_of)
    path = tmp_path / "a"
    whole = read_header_of(data, path)
    for n in range(0, len(data), 7):
        path.write_bytes(data[:n])
        try:
            header = read_header(path)
        except SeriesError:
            continue
        assert set(header.attributes.items()) <= set(whole.attributes.items())


def read_header_of(data: bytes, path: Path) -> InstanceHeader:
    path.write_bytes(data)
    return read_header(path)


def nested(depth: int) -> bytes:
    return b"".join(head(0x00081140, UNDEFINED, vr="SQ") + head(ITEM, UNDEFINED) for _ in range(depth))


def explicit_nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        item = head(ITEM, len(data)) + data
        data = head(0x00081140, len(item), vr="SQ") + item
    return data


BOMBS = {
    "depth 65": nested(65),
    "depth 20,000": nested(20_000),
    "depth 1,000 of defined length": explicit_nested(1000),
    "a million elements": b"".join(element(0x00090000 | n % 60000 + 300, "CS", "") for n in range(1_000_000)),
    "half a million items": head(0x00081140, UNDEFINED, vr="SQ") + head(ITEM, 0) * 500_000,
    "half a million items of defined length": head(0x00081140, 8 * 500_000, vr="SQ")
    + head(ITEM, 0) * 500_000,
    "4 GiB claimed": head(0x00091001, 0xFFFFFFFE, vr="UN"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_soon(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(own_part10(BOMBS[bomb], EXPLICIT))
    began = time.process_time()
    with pytest.raises(SeriesError):
        read_header(path)
    assert time.process_time() - began < 20


def test_deflate_bombs_stay_small(tmp_path: Path) -> None:
    machine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [machine.compress(head(0x00091001, 1 << 30, vr="UN"))]
    parts += [machine.compress(bytes(1 << 20)) for _ in range(128)]
    path = tmp_path / "a"
    path.write_bytes(own_part10(b"".join(parts) + machine.flush(), DEFLATED))
    for read in (read_header, read_instance):
        tracemalloc.start()
        with pytest.raises(SeriesError):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (b"", b"x" * 100, b"\0" * 200, b"\0" * 128 + b"DICM", own_part10(dataset(), "")):
        path.write_bytes(data)
        with pytest.raises(SeriesError):
            read_header(path)
        with pytest.raises(SeriesError):
            read_instance(path)
    with pytest.raises(StoreError):
        read_header(tmp_path / "none")
    with pytest.raises(StoreError):
        read_header(tmp_path)


CANARY = "CANARY^PATIENT"


def test_no_message_holds_a_value(tmp_path: Path) -> None:
    """Malformed values of every VR, in every encoding, with a patient in each."""
    chance = random.Random(3)
    path = tmp_path / "a"
    ds = enhanced(2)
    for keyword in ("SeriesDescription", "ProtocolName", "PatientName", "PatientID", "InstitutionName"):
        setattr(ds, keyword, CANARY)
    seeds = [part10(ds, syntax) for syntax in SYNTAXES]
    raised: list[NodeError] = []
    for _ in range(300):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(132, min(len(data), 2500))
            data[at] = chance.randrange(256)
        path.write_bytes(data[: chance.randrange(200, len(data) + 1)])
        for read in (read_header, read_instance):
            try:
                read(path)
            except NodeError as error:
                raised.append(error)
    assert len(raised) > 100
    for error in raised:
        assert "CANARY" not in f"{error!r} {error.hint}"
        assert error.__suppress_context__ or error.__context__ is None


@given(st.binary(max_size=300), st.sampled_from([*SYNTAXES, "", "9.9"]))
def test_total_for_any_bytes(data: bytes, syntax: str) -> None:
    try:
        header = read_bytes(data, syntax)
    except SeriesError:
        return
    assert header.transfer_syntax_uid == syntax


def test_total_for_mutations(tmp_path: Path) -> None:
    chance = random.Random(11)
    seeds = [(part10(ds, syntax), syntax) for syntax in SYNTAXES for ds in (image(), mr(), enhanced(3))]
    bodies = [(data[data.index(b"\0" * 4 + b"DICM") + 8 :], syntax) for data, syntax in seeds]
    for _ in range(3000):
        body, syntax = chance.choice(bodies)
        data = bytearray(body)
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data))
            if chance.random() < 0.3:
                data[at : at + 4] = struct.pack(
                    "<L", chance.choice([0, UNDEFINED, 0x7FFFFFFF, 8, 0xE000FFFE])
                )
            else:
                data[at] = chance.randrange(256)
        began = time.process_time()
        with contextlib.suppress(SeriesError):
            read_bytes(bytes(data), syntax)
        assert time.process_time() - began < 10


# pydicom's data set, for tools


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_read_instance(syntax: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(part10(image(), syntax))
    ds = read_instance(path)
    assert ds.PatientID == "PID-7"
    assert ds.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(ds.pixel_array, np.arange(48).reshape(8, 6) * 50)


def as_told(value: object) -> Values:
    """What pydicom found, in our terms."""
    several = value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
    found: list[object] = []
    for one in several:
        if isinstance(one, pydicom.valuerep.DSfloat):
            found.append(float(one))
        elif isinstance(one, pydicom.valuerep.IS):
            found.append(int(one))
        elif one is not None:
            found.append(one if isinstance(one, (int, float)) else str(one).strip(" \0"))
    return tuple(found) if any(v != "" for v in found) else ()  # type: ignore[arg-type]


def test_every_short_attribute_as_pydicom_has_it(tmp_path: Path) -> None:
    """One value of every visible VR in every standard attribute that may hold it."""
    samples = {
        "AE": "STATION", "AS": "045Y", "CS": "CODE", "DA": "20240102", "DS": "1.5", "DT": "20240102101112",
        "LO": "Long text", "SH": "Short", "ST": "Sentence", "TM": "101112", "UI": "1.2.840", "IS": "12",
        "FD": 2.5, "FL": 0.5, "SL": -7, "SS": -3, "UL": 70000, "US": 7, "SV": -(2**40), "UV": 2**40,
    }  # fmt: skip
    ds = Dataset()
    for keyword, tag in keyword_dict.items():
        if 0x0008 <= tag >> 16 < 0x5200 and vr_of(keyword) in samples:
            ds.add_new(tag, vr_of(keyword), samples[vr_of(keyword)])
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SpecificCharacterSet = "1.2", "1.3", "ISO_IR 100"
    for syntax in SYNTAXES:
        seen = reading(ds, tmp_path, syntax).attributes
        for keyword in (k for k in keyword_dict if keyword_dict[k] in ds):
            if keyword in DIRECT_IDENTIFIERS:
                assert keyword not in seen
            else:
                assert seen[keyword] == as_told(ds[keyword].value), keyword


@pytest.mark.parametrize("equipment", ["standard", "retain"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_luminode_made_is_recognised(syntax: str, equipment: str, tmp_path: Path) -> None:
    """Loop immunity, through the header that the decision is made on."""
    for ds in (image(), mr(), enhanced(2), enhanced(2, ct=True)):
        header = read_header_of(written(made(ds, how(equipment=equipment), syntax=syntax)), tmp_path / "a")
        assert header.derived_by_us
        assert "Luminode" in eligibility(merge([header]), [header])
        assert not reading(ds, tmp_path, syntax).derived_by_us
