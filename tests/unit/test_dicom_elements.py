"""The byte codec: what goes in comes out, in every encoding, and nothing hostile gets through."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import hypothesis.strategies as st
import pydicom
import pytest
from hypothesis import given, settings

from node.dicom.elements import Element, Elements, Fragments, code, private_vr, sequence, standard_vr, text
from node.dicom.encode import encode
from node.dicom.parse import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    MAX_DEPTH,
    inflate,
    items_in,
    parse,
)
from node.dicom.source import Source
from node.errors import DeriveError, SeriesError
from tests.dicom_samples import NATIVE, enhanced, image, part10

_VALUES: dict[str, st.SearchStrategy[bytes]] = {
    "PN": st.binary(max_size=20),
    "LO": st.binary(max_size=20),
    "DS": st.sampled_from([b"1.50", b"-0.0010", b"+3", b"  7 "]),
    "US": st.binary(min_size=2, max_size=2),
    "FD": st.binary(min_size=16, max_size=16),
    "UL": st.binary(min_size=4, max_size=4),
    "OW": st.binary(max_size=8).filter(lambda b: len(b) % 2 == 0),
    "OB": st.binary(max_size=9),
    "UN": st.binary(max_size=9).filter(lambda b: not b.startswith(b"\xfe\xff")),
    "UT": st.binary(max_size=9),
    "AT": st.binary(min_size=4, max_size=4),
}
_TAGS = st.integers(0x00090011, 0x7FDFFFFF).filter(lambda t: t & 0xFFFF > 0x00FF)


def _leaf(tag: int) -> st.SearchStrategy[Element]:
    return st.sampled_from(sorted(_VALUES)).flatmap(
        lambda vr: _VALUES[vr].map(lambda value: Element(tag, vr, value))
    )


def _elements(depth: int) -> st.SearchStrategy[Elements]:
    def element(tag: int) -> st.SearchStrategy[Element]:
        if depth == 0:
            return _leaf(tag)
        nested = st.lists(_elements(depth - 1), max_size=2).map(lambda i: Element(tag, "SQ", tuple(i)))
        return st.one_of(_leaf(tag), nested)

    return (
        st.lists(_TAGS, max_size=5, unique=True)
        .flatmap(lambda tags: st.tuples(*(element(t) for t in tags)))
        .map(lambda es: {e.tag: e for e in es})
    )


def _padded(elements: Elements) -> Elements:
    """What a value of odd length becomes: one pad byte more."""
    out: Elements = {}
    for tag, e in elements.items():
        if e.vr == "SQ":
            out[tag] = Element(tag, "SQ", tuple(_padded(i) for i in e.items))
        else:
            pad = b" " if e.vr in ("PN", "LO", "DS", "UT") else b"\x00"
            out[tag] = Element(tag, e.vr, e.raw + pad * (len(e.raw) & 1))
    return out


@given(_elements(2), st.sampled_from([EXPLICIT_LE, EXPLICIT_BE, DEFLATED_LE]))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back_byte_for_byte(elements: Elements, syntax: str) -> None:
    assert parse(encode(elements, syntax), syntax) == _padded(elements)


@given(st.binary(max_size=300), st.sampled_from([*NATIVE]))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_with_a_typed_error(data: bytes, syntax: str) -> None:
    with contextlib.suppress(SeriesError):
        parse(data, syntax)


@given(st.integers(0, 5000), st.integers(0, 255), st.sampled_from([EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE]))
@settings(max_examples=100, deadline=None)
def test_a_damaged_file_is_read_or_refused(at: int, byte: int, syntax: str) -> None:
    data = bytearray(part10(enhanced(), syntax))
    data[132 + at % (len(data) - 132)] = byte
    with contextlib.suppress(SeriesError):
        Source.open(bytes(data))


@pytest.mark.parametrize("syntax", NATIVE)
def test_pydicom_writes_and_we_read_the_same(syntax: str) -> None:
    ds = enhanced()
    ours = Source.open(part10(ds, syntax)).elements
    reference = Source.open(part10(ds, EXPLICIT_LE)).elements
    assert encode(ours, EXPLICIT_LE) == encode(reference, EXPLICIT_LE)


@pytest.mark.parametrize("syntax", NATIVE)
def test_we_write_and_pydicom_reads_the_same(syntax: str) -> None:
    ds = image()
    written = encode(Source.open(part10(ds)).elements, syntax)
    if syntax == DEFLATED_LE:
        written = zlib.decompress(written, -zlib.MAX_WBITS)
    back = pydicom.filereader.read_dataset(
        io.BytesIO(written), is_implicit_VR=syntax == IMPLICIT_LE, is_little_endian=syntax != EXPLICIT_BE
    )
    del back.PixelData, ds.PixelData  # compared elsewhere: pydicom does not swap words
    assert back == ds


def test_undefined_lengths_and_delimiters() -> None:
    item = (
        struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        + struct.pack("<HH2sH", 0x0008, 0x0100, b"SH", 2)
        + b"AB"
    )
    item += struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    data = struct.pack("<HH2sHI", 0x0008, 0x2112, b"SQ", 0, 0xFFFFFFFF) + item * 2
    data += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    assert [i[0x00080100].raw for i in parse(data, EXPLICIT_LE)[0x00082112].items] == [b"AB", b"AB"]


def test_un_of_undefined_length_is_an_implicit_sequence() -> None:
    inner = encode({0x00100010: Element(0x00100010, "PN", b"A^B ")}, IMPLICIT_LE)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    data = struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF) + items
    data += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    element = parse(data, EXPLICIT_LE)[0x00091001]
    assert element.vr == "SQ"
    assert element.items[0][0x00100010].raw == b"A^B "


def test_un_values_with_items_inside_are_found_in_either_encoding() -> None:
    elements = {0x7FE00010: Element(0x7FE00010, "OW", b"\x01\x02")}
    for syntax in (IMPLICIT_LE, EXPLICIT_LE):
        inner = encode(elements, syntax)
        found = items_in(struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner)
        assert found is not None
        assert 0x7FE00010 in found[0]
    assert items_in(b"\xfe\xff\x00\xe0\xff\xff\x00\x00nonsense") is None
    assert items_in(b"plain bytes") is None


@pytest.mark.parametrize("vr", [b"  ", b"\x00\x00", b"ox", b"??"])
def test_elements_without_a_vr_are_read_as_implicit_ones(vr: bytes) -> None:
    # A VR that is none can only be the low bytes of a 32-bit length.
    length = int.from_bytes(vr, "little")
    data = struct.pack("<HHI", 0x0009, 0x1001, length) + b"x" * length
    assert len(parse(data, EXPLICIT_LE)[0x00091001].raw) == length


def test_a_vr_of_the_future_keeps_its_value_and_becomes_un() -> None:
    data = struct.pack("<HH2sHI", 0x0009, 0x1001, b"ZZ", 0, 4) + b"abcd"
    assert parse(data, EXPLICIT_LE)[0x00091001] == Element(0x00091001, "UN", b"abcd")
    data = struct.pack("<HH2sH", 0x0009, 0x1001, b"ZZ", 4) + b"abcd"
    assert parse(data, EXPLICIT_LE)[0x00091001] == Element(0x00091001, "UN", b"abcd")


def test_implicit_and_explicit_confused_by_the_sender() -> None:
    elements = Source.open(part10(image())).elements
    for told, sent in ((EXPLICIT_LE, IMPLICIT_LE), (IMPLICIT_LE, EXPLICIT_LE)):
        back = parse(encode(elements, sent), told)
        assert {t: e.raw for t, e in back.items()} == {t: e.raw for t, e in elements.items()}


def test_implicit_private_elements_get_the_vr_of_their_creator() -> None:
    elements = {
        0x00190010: text(0x00190010, "LO", "SIEMENS MR HEADER "),
        0x0019100C: Element(0x0019100C, "IS", b"1000"),
        0x00191099: Element(0x00191099, "UN", b"\x00\x01"),
        0x00291010: Element(0x00291010, "OB", b"no creator"),
    }
    back = parse(encode(elements, IMPLICIT_LE), IMPLICIT_LE)
    assert [back[t].vr for t in sorted(back)] == ["LO", "IS", "UN", "UN"]
    assert {t: e.raw for t, e in back.items()} == {t: e.raw for t, e in elements.items()}


def test_a_private_dictionary_that_is_wrong_costs_nothing() -> None:
    # (2005,140F) is a sequence of Philips, (0019,100C) an IS; bytes that fit neither stay UN.
    data = encode(
        {
            0x20050014: text(0x20050014, "LO", "Philips MR Imaging DD 005 "),
            0x2005140F: Element(0x2005140F, "UN", b"not items"),
            0x20051400: Element(0x20051400, "UN", b"odd"),
        },
        IMPLICIT_LE,
    )
    back = parse(data, IMPLICIT_LE)
    assert back[0x2005140F] == Element(0x2005140F, "UN", b"not items\x00")


def test_us_or_ss_follows_pixel_representation() -> None:
    for signed, vr in ((b"\x01\x00", "SS"), (b"\x00\x00", "US")):
        data = encode(
            {
                0x00280103: Element(0x00280103, "US", signed),
                0x00280120: Element(0x00280120, "US", b"\x30\xf8"),
            },
            IMPLICIT_LE,
        )
        assert parse(data, IMPLICIT_LE)[0x00280120] == Element(0x00280120, vr, b"\x30\xf8")


def test_values_too_long_for_a_short_vr_become_un() -> None:
    long = Element(0x00081030, "LO", b"x" * 70000)
    data = encode({long.tag: long}, EXPLICIT_LE)
    assert data[4:6] == b"UN"
    assert parse(data, EXPLICIT_LE)[long.tag].raw == long.raw


def test_fragments_survive() -> None:
    value = Fragments((b"", b"\x01\x02", b"\x03\x04\x05\x06"))
    data = encode({0x7FE00010: Element(0x7FE00010, "OB", value)}, EXPLICIT_LE)
    back = parse(data, EXPLICIT_LE)[0x7FE00010].value
    assert isinstance(back, Fragments)
    assert [bytes(p) for p in back.parts] == [bytes(p) for p in value.parts]


def test_nul_padding_at_the_end_of_a_file_is_no_fault() -> None:
    data = encode({0x00080060: text(0x00080060, "CS", "CT")}, EXPLICIT_LE)
    assert parse(data + b"\x00" * 5, EXPLICIT_LE)[0x00080060].raw == b"CT"


def test_depth_is_bounded() -> None:
    elements: Elements = {}
    for _ in range(MAX_DEPTH + 2):
        elements = {0x00082112: sequence(0x00082112, [elements])}
    with pytest.raises(SeriesError, match="nested"):
        parse(encode(elements, EXPLICIT_LE), EXPLICIT_LE)


def test_inflation_is_bounded() -> None:
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = machine.compress(b"\x00" * 10_000_000) + machine.flush()
    with pytest.raises(SeriesError, match="larger"):
        inflate(bomb, limit=1000)
    with pytest.raises(SeriesError):
        inflate(bomb[:-3])
    with pytest.raises(SeriesError):
        inflate(b"\xff\xff\xff\xff")


@pytest.mark.parametrize("cut", [0, 10, 131, 140, 200, 340])
def test_files_that_are_none(cut: int) -> None:
    with pytest.raises(SeriesError):
        Source.open(part10(image())[:cut])


def test_meta_without_a_transfer_syntax() -> None:
    data = b"\x00" * 128 + b"DICM" + struct.pack("<HH2sH", 2, 2, b"UI", 2) + b"1\x00"
    with pytest.raises(SeriesError, match="transfer syntax"):
        Source.open(data)


def test_codes_and_texts_are_checked() -> None:
    with pytest.raises(ValueError, match="16"):
        code("x" * 17, "DCM", "too long")
    with pytest.raises(ValueError, match="ascii"):
        text(0x00080060, "CS", "ü")


def test_lengths_that_do_not_fit_are_refused() -> None:
    from node.dicom.encode import header

    with pytest.raises(DeriveError):
        header(0x7FE00010, "OW", 1 << 32)


def test_dictionary_vrs() -> None:
    assert standard_vr(0x7FE00010) == "OW"
    assert standard_vr(0x60003000) == "OW"
    assert standard_vr(0x00280106) == "US/SS"
    assert standard_vr(0x00100000) == "UL"
    assert standard_vr(0x00090010) == "LO"
    assert standard_vr(0x00200002) == "UN"
    assert private_vr(0x0019100C, "SIEMENS MR HEADER") == "IS"
    assert private_vr(0x0019100C, "nobody") == "UN"
