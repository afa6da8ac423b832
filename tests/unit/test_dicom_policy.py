"""The table is literal, complete and obeyed; private attributes go along unless they hold the old picture."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from pydicom.dataset import Dataset

from node.dicom.elements import Element, Elements, tag_of
from node.dicom.policy import PRIVATE, ROWS, TABLE, Do, kept
from node.dicom.source import Source
from node.dicom.writers import WRITERS
from tests.dicom_samples import IMPLICIT, image, part10


def test_every_row_is_there_once_and_says_why() -> None:
    assert len({row.keyword for row in TABLE}) == len(TABLE)
    assert len({(p.creator, p.group, p.element) for p in PRIVATE}) == len(PRIVATE)
    assert all(row.why for row in TABLE)
    assert all(p.group & 1 for p in PRIVATE)


def test_every_written_attribute_has_its_writer() -> None:
    written = {row.keyword for row in TABLE if row.do is Do.WRITE}
    assert written == set(WRITERS) | {"PixelData"}


def _kept(ds: Dataset, syntax: str = "1.2.840.10008.1.2.1") -> Elements:
    return kept(Source.open(part10(ds, syntax)).elements, frame_bytes=8 * 6 * 2)


@pytest.mark.parametrize("keyword", [row.keyword for row in TABLE if row.do is Do.DROP])
def test_dropped_attributes_are_dropped(keyword: str) -> None:
    tag = tag_of(keyword)
    elements = Source.open(part10(image())).elements | {tag: Element(tag, "UN", b"\x01\x02")}
    out = kept(elements, frame_bytes=96)
    assert tag not in out
    assert len(out) == len(elements) - 1
    assert ROWS[tag].why


def test_what_no_row_names_is_copied() -> None:
    ds = image(PatientComments="as it is", KVP="120", BodyPartExamined="CHEST")
    out = _kept(ds)
    for keyword in ("PatientComments", "KVP", "BodyPartExamined", "WindowCenter"):
        assert out[tag_of(keyword)] == Source.open(part10(ds)).elements[tag_of(keyword)]


def test_curves_group_lengths_signatures_and_icons_go_at_any_depth() -> None:
    inner = Dataset()
    inner.add_new(0x00080000, "UL", 4)
    inner.ReferencedSOPInstanceUID = "1.2.3"
    inner.IconImageSequence = [image()]
    inner.add_new(0x04000500, "SQ", [])
    inner.add_new(0xFFFAFFFA, "SQ", [])
    ds = image()
    ds.add_new(0x50001000, "US", 1)
    ds.add_new(0x00100000, "UL", 4)
    ds.add_new(0xFFFAFFFA, "SQ", [Dataset()])
    ds.add_new(0xFFFCFFFC, "OB", b"\x00\x00")
    ds.ReferencedImageSequence = [inner]
    out = _kept(ds)
    assert not {0x50001000, 0x00100000, 0xFFFAFFFA, 0xFFFCFFFC} & set(out)
    assert set(out[tag_of("ReferencedImageSequence")].items[0]) == {tag_of("ReferencedSOPInstanceUID")}


def _private(creator: str, group: int, **elements: tuple[int, str, Any]) -> Dataset:
    ds = image()
    ds.add_new((group << 16) | 0x10, "LO", creator)
    for element, vr, value in elements.values():
        ds.add_new((group << 16) | 0x1000 | element, vr, value)
    return ds


_ICON = Dataset()
_ICON.Rows = 4
_ICON.add_new(0x7FE00010, "OB", b"\x00" * 16)
_NESTED = Dataset()
_NESTED.add_new(0x00091020, "SQ", [_ICON])


@pytest.mark.parametrize(
    ("creator", "group", "element", "vr", "value"),
    [
        ("GEIIS", 0x0009, 0x10, "SQ", [Dataset()]),
        ("GEMS_PARM_01", 0x0043, 0x29, "OB", b"\x01\x02"),
        ("ACME", 0x0029, 0x33, "SQ", [_ICON]),
        ("ACME", 0x0029, 0x33, "SQ", [_NESTED]),
        ("ACME", 0x0029, 0x33, "OW", b"\x01\x02" * 600),  # as large as the pixels
        ("ACME", 0x0029, 0x33, "OB", b"\xff\xd8\xff\xe0" + b"\x00" * 40),  # a JPEG
        ("ACME", 0x0029, 0x33, "UN", b"\x89PNG" + b"\x00" * 40),
    ],
)
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", IMPLICIT])
def test_private_elements_that_hold_the_old_picture(
    creator: str, group: int, element: int, vr: str, value: Any, syntax: str
) -> None:
    ds = _private(creator, group, it=(element, vr, value), other=(0x44, "LO", "stays"))
    out = _kept(ds, syntax)
    assert (group << 16) | 0x1000 | element not in out
    assert out[(group << 16) | 0x1044].raw.startswith(b"stays")
    assert out[(group << 16) | 0x10].raw.startswith(creator.encode())


@pytest.mark.parametrize(
    ("creator", "group", "element", "vr", "value"),
    [
        ("SIEMENS CSA HEADER", 0x0029, 0x10, "OB", b"SV10" + b"\x00" * 90000),  # parameters, however large
        ("SIEMENS MR HEADER", 0x0019, 0x0C, "IS", "1000"),
        ("GEMS_PARM_01", 0x0043, 0x39, "IS", [1000000800, 0, 0, 0]),
        ("GEMS_PARM_01", 0x0043, 0xCA, "LO", "0.75\\High"),
        ("Philips MR Imaging DD 005", 0x2005, 0x0E, "SQ", [Dataset()]),
        ("ACME", 0x0029, 0x33, "UN", b"\x00\x01\x02\x03"),
        ("ACME", 0x0029, 0x33, "OB", b"\x01\x02" * 200),
    ],
)
def test_private_elements_that_go_along(creator: str, group: int, element: int, vr: str, value: Any) -> None:
    ds = _private(creator, group, it=(element, vr, value))
    tag = (group << 16) | 0x1000 | element
    assert _kept(ds)[tag] == Source.open(part10(ds)).elements[tag]


def test_private_elements_without_a_creator_stay_as_they_are() -> None:
    ds = image()
    ds.add_new(0x00291033, "UN", b"\x01\x02\x03\x04")
    assert _kept(ds)[0x00291033].raw == b"\x01\x02\x03\x04"


def test_private_elements_inside_sequences_are_looked_at_too() -> None:
    item = Dataset()
    item.add_new(0x00090010, "LO", "GEIIS")
    item.add_new(0x00091010, "SQ", [_ICON])
    item.ReferencedSOPInstanceUID = "1.2"
    ds = image(ReferencedImageSequence=[item])
    inner = _kept(ds)[tag_of("ReferencedImageSequence")].items[0]
    assert 0x00091010 not in inner
    assert 0x00090010 in inner


def test_un_inside_un_without_end_is_dropped_and_not_followed() -> None:
    value = b"\x00" * 8
    for _ in range(2000):
        inner = struct.pack("<HHI", 0x0009, 0x1001, len(value)) + value
        value = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    ds = _private("ACME", 0x0029, it=(0x33, "UN", value))
    assert 0x00291033 not in kept(Source.open(part10(ds)).elements, frame_bytes=1 << 20)
