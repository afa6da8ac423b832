"""Derived single-frame objects: what is copied is copied byte for byte, what is new is right and stable."""

from __future__ import annotations

import copy
import io
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from pydicom.dataset import Dataset

from node.dicom.derivation import Derivation
from node.dicom.derive import Reference, derive
from node.dicom.elements import Element, Elements, tag_of
from node.dicom.encode import encode
from node.dicom.ours import CODE_SCHEME, is_ours
from node.dicom.parse import EXPLICIT_LE, IMPLICIT_LE, parse
from node.dicom.part10 import file_meta, write_part10
from node.dicom.pixels import decode
from node.dicom.policy import ROWS, Do
from node.dicom.source import Source
from node.dicom.source import file_meta as meta_of
from node.errors import DeriveError, SeriesError
from tests.deriving import derived, made, written
from tests.dicom_samples import MR_CLASS, NATIVE, how, image, part10, read


def test_what_a_derived_object_is() -> None:
    ds = derived(image())
    assert ds.file_meta.TransferSyntaxUID == NATIVE[1]
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID == how().instance_uid("1.2.3.4.5.6.7")
    assert ds.SeriesInstanceUID == how().series_uid
    assert ds.ImageType == ["DERIVED", "PRIMARY", "AXIAL", "NORM"]
    assert (ds.SeriesNumber, ds.SeriesDescription) == (1003, "Thorax 1.0 [LUM ct-nlm]")
    assert ds.InstanceNumber == 47
    (source,) = ds.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == "1.2.3.4.5.6.7"
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert source.SpatialLocationsPreserved == "YES"
    assert [c.CodeValue for c in ds.DerivationCodeSequence] == ["113087", "NR"]
    assert [c.CodingSchemeDesignator for c in ds.DerivationCodeSequence] == ["DCM", CODE_SCHEME]
    for part in ("ct-nlm", "1.2.0", "0.6", "classical", "cdcdcd"):
        assert part in ds.DerivationDescription
    assert "not for primary diagnosis alone" in ds.ImageComments
    assert (ds.ContentDate, ds.ContentTime) == ("20260304", "050607.891000")
    assert (ds.InstanceCreationDate, ds.InstanceCreationTime) == ("20260304", "050607.891000")
    assert ds.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == CODE_SCHEME
    assert is_ours(ds)
    assert ds["PixelData"].VR == "OW"


@pytest.mark.parametrize("syntax", NATIVE)
def test_all_that_is_not_in_the_table_is_the_same_bytes(syntax: str) -> None:
    data = part10(image(), syntax)
    before, after = Source.open(data).elements, Source.open(written(made(data))).elements
    touched = {t for t, row in ROWS.items() if row.do is not Do.COPY}
    touched |= {
        tag_of(k) for k in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "StationName")
    }
    touched |= {tag_of(k) for k in ("SoftwareVersions", "DeviceUID")}
    assert {t: e for t, e in before.items() if t not in touched} == {
        t: e for t, e in after.items() if t not in touched
    }


NAMES = [
    ("ISO_IR 100", b"Buc^J\xe9r\xf4me"),
    (
        r"\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    (r"ISO 2022 IR 13\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J"),
    (
        r"\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6",
    ),
    ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030")),
    ("ISO_IR 192", "Wang^XiaoDong=王^小東".encode()),
    ("ISO_IR 192", b"\xff\xfe not UTF-8 at all"),
    (None, b"\xe4\xf6\xfc undeclared"),
    ("", b"plain  "),
]


@pytest.mark.parametrize(("charset", "name"), NAMES)
@pytest.mark.parametrize("syntax", NATIVE)
def test_names_and_sets_are_byte_identical(charset: str | None, name: bytes, syntax: str) -> None:
    elements = Source.open(part10(image())).elements
    if charset is None:
        del elements[tag_of("SpecificCharacterSet")]
    else:
        elements[0x00080005] = Element(0x00080005, "CS", charset.encode())
    elements[0x00100010] = Element(0x00100010, "PN", name)
    elements[0x00081030] = Element(0x00081030, "LO", name)
    elements[0x00104000] = Element(0x00104000, "LT", name)
    data = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5.6.7", syntax) + encode(elements, syntax)
    after = Source.open(written(made(data))).elements
    padded = name + b" " * (len(name) & 1)
    for tag in (0x00100010, 0x00081030, 0x00104000):
        assert after[tag].raw == padded
    assert after.get(0x00080005) == Source.open(data).elements.get(0x00080005)


@given(
    st.dictionaries(
        st.sampled_from([0x00100010, 0x00100020, 0x00101000, 0x00102160, 0x00104000, 0x00080090, 0x00091001]),
        st.tuples(st.sampled_from(["PN", "LO", "UN", "LT", "SH"]), st.binary(max_size=40)),
    ),
    st.sampled_from(["ISO_IR 192", "GB18030", r"\ISO 2022 IR 87", "nonsense"]),
)
@settings(max_examples=60, deadline=None)
def test_patient_bytes_of_any_kind_come_through(values: dict[int, tuple[str, bytes]], charset: str) -> None:
    elements = Source.open(part10(image())).elements
    elements[0x00080005] = Element(0x00080005, "CS", charset.encode())
    for tag, (vr, value) in values.items():
        elements[tag] = Element(tag, vr, value)
    data = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", NATIVE[1]) + encode(elements, NATIVE[1])
    before, after = Source.open(data).elements, Source.open(written(made(data))).elements
    for tag in values:
        assert after[tag] == before[tag]


def test_geometry_strings_are_not_reformatted() -> None:
    odd = {
        0x00200032: b"-1.50000000000\\+2.250\\ 3e0 ",
        0x00200037: b"1.0\\0.0\\-0.0\\0\\1.00000000000000\\0",
        0x00280030: b".70\\0.700 ",
        0x00180050: b"1.000 ",
        0x00201041: b"-0.00",
    }
    elements = Source.open(part10(image())).elements
    elements |= {t: Element(t, "DS", v) for t, v in odd.items()}
    data = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", NATIVE[1]) + encode(elements, NATIVE[1])
    after = Source.open(written(made(data))).elements
    for tag, value in odd.items():
        assert after[tag].raw.startswith(value)


def test_the_same_job_gives_the_same_bytes() -> None:
    data = part10(image())
    assert written(made(data)) == written(made(data))
    assert written(made(data)) == written(made(data, copy.deepcopy(how())))
    for syntax in NATIVE:  # however the source came over the wire
        assert written(made(part10(image(), syntax))) == written(made(data))


def test_another_job_gives_other_uids() -> None:
    data = part10(image())
    made_by = {written(made(data, how(derivation_key=k, revision=r))) for k in ("aa", "bb") for r in (1, 2)}
    assert len(made_by) == 4
    assert len({read(m).SOPInstanceUID for m in made_by} | {read(m).SeriesInstanceUID for m in made_by}) == 8


def test_written_pixels_offsets_and_digests() -> None:
    import hashlib

    one = made(image())
    out = io.BytesIO()
    told = write_part10(one, out)
    data = out.getvalue()
    assert told.size == len(data)
    assert hashlib.sha256(data[told.offset :]).hexdigest() == told.sha256
    assert np.array_equal(read(data).pixel_array, one.pixels[0])
    assert Source.open(data).elements == Source.of(data[told.offset :], NATIVE[1]).elements


def test_an_odd_number_of_bytes_is_padded() -> None:
    pixels = np.arange(15, dtype=np.uint8).reshape(3, 5)
    ds = derived(image(pixels, bits_stored=8, sop_class=MR_CLASS))
    assert ds["PixelData"].VR == "OB"
    assert len(ds.PixelData) == 16
    assert ds.pixel_array.shape == (3, 5)


# --- equipment


def test_standard_equipment_moves_the_scanner_as_a_whole() -> None:
    ds = derived(image(DateOfLastCalibration="20240101", GantryID="G1"))
    assert (ds.Manufacturer, ds.ManufacturerModelName) == ("Luminode", "Luminode DICOM node")
    assert ds.DeviceSerialNumber == "SN1"
    assert ds.SoftwareVersions == ["Luminode 0.1.0", "ct-nlm 1.2.0", "numpy 2.0", "cd" * 32]
    assert ds.InstitutionName == "General"
    for keyword in ("StationName", "DateOfLastCalibration", "GantryID"):
        assert keyword not in ds
    (scanner,) = ds.ContributingEquipmentSequence
    assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert (scanner.Manufacturer, scanner.DeviceSerialNumber) == ("ACME", "12345")
    assert scanner.SoftwareVersions == ["V1", "V2"]
    assert (scanner.StationName, scanner.GantryID, scanner.InstitutionName) == ("CT01", "G1", "General")


def test_retained_equipment_leaves_the_scanner_alone() -> None:
    ds = derived(image(), how(equipment="retain"))
    assert (ds.Manufacturer, ds.DeviceSerialNumber, ds.StationName) == ("ACME", "12345", "CT01")
    (us,) = ds.ContributingEquipmentSequence
    assert us.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert us.Manufacturer == "Luminode"
    assert us.SoftwareVersions[-1] == "cd" * 32
    assert us.ContributionDateTime == "20260304050607.891000+0000"
    assert is_ours(ds)


def as_un(data: bytes) -> bytes:
    """The same file with every sequence as a system without a dictionary leaves it: UN, implicit inside."""
    _, at = meta_of(data)
    elements = parse(data[at:], EXPLICIT_LE)
    for tag, element in elements.items():
        if element.vr == "SQ":
            value = encode({tag: element}, IMPLICIT_LE)[8:]
            elements[tag] = Element(tag, "UN", value)
    return data[:at] + encode(elements, EXPLICIT_LE)


@pytest.mark.parametrize("un", [False, True])
def test_a_source_that_was_processed_already_keeps_its_story(un: bool) -> None:
    scanner = Dataset()
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = "109101", "DCM", "Acquisition"
    scanner.PurposeOfReferenceCodeSequence, scanner.Manufacturer = [purpose], "FIRST"
    step = Dataset()
    step.CodeValue, step.CodingSchemeDesignator, step.CodeMeaning = (
        "113072",
        "DCM",
        "Multiplanar reformatting",
    )
    earlier = Dataset()
    earlier.ReferencedSOPClassUID, earlier.ReferencedSOPInstanceUID = MR_CLASS, "9.8.7"
    source = image(
        ContributingEquipmentSequence=[scanner],
        DerivationCodeSequence=[step],
        SourceImageSequence=[earlier],
        DerivationDescription="MPR 1 mm",
        ImageComments="motion",
    )
    ds = derived(as_un(part10(source, NATIVE[1])) if un else source)
    assert [e.Manufacturer for e in ds.ContributingEquipmentSequence] == ["FIRST", "ACME"]
    assert [e.PurposeOfReferenceCodeSequence[0].CodeValue for e in ds.ContributingEquipmentSequence] == [
        "109101",
        "109102",
    ]
    assert [c.CodeValue for c in ds.DerivationCodeSequence] == ["113072", "113087", "NR"]
    assert [s.ReferencedSOPInstanceUID for s in ds.SourceImageSequence] == ["1.2.3.4.5.6.7", "9.8.7"]
    assert ds.DerivationDescription.startswith("MPR 1 mm; Noise reduction by Luminode")
    assert ds.ImageComments.startswith("motion; Processed by Luminode")


def test_equipment_that_a_source_lacks() -> None:
    ds = derived(image(Manufacturer=None, DeviceSerialNumber="", StationName=None))
    (scanner,) = ds.ContributingEquipmentSequence
    assert scanner.Manufacturer == "Unknown"  # type 1
    assert "DeviceSerialNumber" not in scanner


# --- options


def test_value2_and_missing_image_types() -> None:
    assert derived(image(), how(value2="SECONDARY")).ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert derived(image(ImageType=["DERIVED", "SECONDARY"])).ImageType == ["DERIVED", "PRIMARY"]
    assert derived(image(ImageType=None)).ImageType == ["DERIVED", "PRIMARY", "AXIAL"]
    assert derived(image(sop_class=MR_CLASS, ImageType="")).ImageType == ["DERIVED", "PRIMARY", "OTHER"]


@pytest.mark.parametrize(
    ("family", "codes"),
    [
        ("cnn", ["113087", "DLNR"]),
        ("gan", ["113087", "DLNR"]),
        ("autoencoder", ["113087", "DLNR"]),
        ("classical", ["113087", "NR"]),
        ("identity", ["UNCHANGED"]),
    ],
)
def test_codes_by_family(family: str, codes: list[str]) -> None:
    assert [c.CodeValue for c in derived(image(), how(family=family)).DerivationCodeSequence] == codes


def test_revisions_and_partial_series_say_so() -> None:
    ds = derived(image(), how(revision=2))
    assert ds.SeriesDescription == "Thorax 1.0 [LUM ct-nlm] R2"
    assert ds.SeriesNumber == 2003
    assert "Revision 2" in ds.DerivationDescription
    ds = derived(image(), how(partial=True))
    assert ds.SeriesDescription == "Thorax 1.0 [LUM ct-nlm] partial"
    assert "not complete" in ds.DerivationDescription


def test_no_research_mark() -> None:
    assert "ImageComments" not in derived(image(), how(research_mark=False))
    assert derived(image(ImageComments="motion"), how(research_mark=False)).ImageComments == "motion"


def test_long_descriptions_lose_their_stem_and_keep_the_suffix() -> None:
    ds = derived(image(SeriesDescription="x" * 64))
    assert len(ds.SeriesDescription) == 64
    assert ds.SeriesDescription.endswith("x [LUM ct-nlm]")
    assert derived(image(SeriesDescription=None)).SeriesDescription == "[LUM ct-nlm]"
    long = derived(image(DerivationDescription="y" * 1024)).DerivationDescription
    assert len(long) == 1024
    assert long.endswith("numpy 2.0 on cpu.")


def test_series_without_a_number_and_images_without_one() -> None:
    one, two = image(SeriesNumber=None), image(SeriesNumber="", SeriesInstanceUID="1.2.3.4.6")
    assert derived(one).SeriesNumber != derived(two).SeriesNumber
    assert derived(image(InstanceNumber=None)).InstanceNumber is None
    assert "InstanceNumber" in derived(image(InstanceNumber=None))


def test_content_time_keeps_the_order_and_the_zone() -> None:
    at = [derived(image(), order=n).ContentTime for n in (0, 1, 999, 1000)]
    assert at == ["050607.891000", "050607.892000", "050608.890000", "050608.891000"]
    ds = derived(image(TimezoneOffsetFromUTC="-0730"))
    assert (ds.ContentDate, ds.ContentTime) == ("20260303", "213607.891000")
    assert ds.TimezoneOffsetFromUTC == "-0730"
    here = how(when=datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=2))))
    assert derived(image(), here).ContentTime == "050607.000000"
    for nonsense in ("+9900", "later", "+01:0"):
        elements = Source.open(part10(image())).elements
        elements[0x00080201] = Element(0x00080201, "SH", nonsense.encode())
        data = file_meta("1", "1", NATIVE[1]) + encode(elements, NATIVE[1])
        assert derived(data).ContentTime == "050607.891000"


def test_neighbours_are_named_after_the_slice_itself() -> None:
    near = [Reference("1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{n}", "1.2.3.4.5", "1.2.3.4") for n in (1, 2)]
    ds = derived(image(), neighbours=near)
    assert [s.ReferencedSOPInstanceUID for s in ds.SourceImageSequence] == [
        "1.2.3.4.5.6.7",
        "1.2.3.1",
        "1.2.3.2",
    ]


def test_a_list_of_referenced_instances_is_completed() -> None:
    instance, series = Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = MR_CLASS, "1.2.3.1"
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = "1.2.3.4.5", [instance]
    ds = derived(image(ReferencedSeriesSequence=[series]))
    (listed,) = ds.ReferencedSeriesSequence
    assert [i.ReferencedSOPInstanceUID for i in listed.ReferencedInstanceSequence] == [
        "1.2.3.1",
        "1.2.3.4.5.6.7",
    ]
    assert "ReferencedSeriesSequence" not in derived(image())


def test_what_is_stale_is_gone() -> None:
    ds = image(SmallestImagePixelValue=0, LargestImagePixelValue=4000, PerformedProcedureStepID="P1")
    ds.IconImageSequence = [image()]
    ds.ReferencedPerformedProcedureStepSequence = [Dataset()]
    out = derived(ds)
    for keyword in (
        *("SmallestImagePixelValue", "LargestImagePixelValue", "IconImageSequence"),
        *("PerformedProcedureStepID", "ReferencedPerformedProcedureStepSequence"),
    ):
        assert keyword not in out


def test_overlays_in_the_pixels_get_a_place_of_their_own() -> None:
    cells = np.zeros((8, 6), np.uint16)
    cells[2, 3] = 0x8005
    ds = image(cells)
    for element, value in ((0x0010, 8), (0x0011, 6), (0x0100, 16), (0x0102, 15)):
        ds.add_new(0x60000000 | element, "US", value)
    ds.add_new(0x60000040, "CS", "G")
    ds.add_new(0x60000050, "SS", [1, 1])
    out = derived(ds)
    assert out.pixel_array.max() == 4  # made() takes one off
    assert np.argwhere(out.overlay_array(0x6000)).tolist() == [[2, 3]]
    assert out[0x60000100].value == 1
    assert out[0x60000102].value == 0


def test_overlays_of_their_own_are_kept() -> None:
    ds = image()
    for element, value in ((0x0010, 8), (0x0011, 6), (0x0100, 1), (0x0102, 0)):
        ds.add_new(0x60000000 | element, "US", value)
    ds.add_new(0x60003000, "OW", b"\x01\x02\x03\x04\x05\x06")
    assert derived(ds)[0x60003000].value == b"\x01\x02\x03\x04\x05\x06"


def test_lossy_history_is_never_reset() -> None:
    ds = derived(image(LossyImageCompression="01", LossyImageCompressionRatio="7.5"))
    assert (ds.LossyImageCompression, ds.LossyImageCompressionRatio) == ("01", 7.5)


# --- refusals


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_sources_without_their_uids(keyword: str) -> None:
    for value in (None, "", "1.2.x"):
        elements: Elements = dict(Source.open(part10(image())).elements)
        if value is None:
            del elements[tag_of(keyword)]
        else:
            elements[tag_of(keyword)] = Element(tag_of(keyword), "UI", value.encode())
        data = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", NATIVE[1]) + encode(elements, NATIVE[1])
        with pytest.raises(SeriesError, match=keyword):
            made(data)


def test_class_and_instance_that_only_the_file_meta_names() -> None:
    elements = Source.open(part10(image())).elements
    for tag in (0x00080016, 0x00080018):
        elements[tag] = Element(tag, "UI", b"")
    data = file_meta("1.2.840.10008.5.1.4.1.1.2", "7.7.7", NATIVE[1]) + encode(elements, NATIVE[1])
    ds = derived(data)
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == "7.7.7"
    assert ds.SOPInstanceUID == how().instance_uid("7.7.7")


def test_other_classes_are_refused() -> None:
    with pytest.raises(SeriesError, match="SOP Class"):
        made(image(sop_class=MR_CLASS, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"))


def test_pixels_that_do_not_fit() -> None:
    data = part10(image())
    stored = decode(data)
    for wrong in (stored[:, :-1], stored.astype(np.int16), stored[0]):
        with pytest.raises(DeriveError):
            derive(data, wrong, how(), order=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"revision": 0},
        {"when": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"family": "magic"},
        {"strength": 1.5},
        {"strength": float("nan")},
        {"equipment": "both"},
        {"value2": "TERTIARY"},
        {"series_number_offset": 0},
        {"derivation_key": ""},
    ],
)
def test_a_derivation_that_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        how(**changes)


def test_a_derivation_has_no_defaults() -> None:
    with pytest.raises(TypeError, match="missing"):
        Derivation(derivation_key="k")  # type: ignore[call-arg]


def test_hostile_words_stay_inside_their_values() -> None:
    ds = derived(
        image(),
        how(
            engine="a\\b\nc" * 30,
            engine_title="ü\\" * 90,
            runtime="r\\s" * 60,
            device="d\x00" * 99,
            serial="\\" * 9,
        ),
    )
    assert len(ds.SoftwareVersions) == 4
    assert all(len(v) <= 64 for v in ds.SoftwareVersions)
    assert ds.DeviceSerialNumber == "0"
    assert len(ds.DerivationDescription) <= 1024


def test_errors_and_logs_hold_no_patient_data() -> None:
    for data in (
        part10(image(RescaleSlope="0")),
        part10(image(SeriesInstanceUID=None)),
        part10(image())[:700],
    ):
        with pytest.raises(SeriesError) as caught:
            made(data)
        told = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.hint}"
        for canary in ("Muster", "PID-7", "19500101", "ACC1"):
            assert canary not in told


def test_dst_and_years_do_not_matter_to_the_bytes() -> None:
    # the same instant, written down in two zones, is another record only where no zone is in the source
    one = how(when=datetime(2026, 7, 1, 12, tzinfo=UTC))
    two = how(when=datetime(2026, 7, 1, 14, tzinfo=timezone(timedelta(hours=2))))
    data = part10(image(TimezoneOffsetFromUTC="+0100"))
    assert written(made(data, one)) == written(made(data, two))
