"""Stored values <-> values: no bias, no stray bit, padding left alone, nothing unreadable goes unnoticed."""

from __future__ import annotations

import io
import struct
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.dicom import pixels
from node.dicom.decode import announced_size, can_decode, frame_cells
from node.dicom.elements import PIXEL_DATA, Element, Fragments
from node.dicom.modality import PROFILES, verdict_on
from node.dicom.pixels import PixelFormat, decode, pixel_format, to_stored, to_values
from node.dicom.read import read_bytes
from node.dicom.source import Source, file_meta
from node.errors import DeriveError, SeriesError
from tests.dicom_samples import BIG, DEFLATED, EXPLICIT, IMPLICIT, MR_CLASS, corpus, enhanced, image, part10


def fmt(**changes: Any) -> PixelFormat:
    fields: dict[str, Any] = {
        "rows": 4,
        "columns": 6,
        "n_frames": 1,
        "bits_allocated": 16,
        "bits_stored": 12,
        "signed": False,
        "slope": (1.0,),
        "intercept": (-1024.0,),
        "padding": None,
        "overlay_bits": 0,
        "unit": "HU",
    }
    return PixelFormat(**{**fields, **changes})


_SLOPES = st.sampled_from([1.0, 2.0, -1.0, 0.1, 0.00437, 1.24981684981685, 4096.5, 3.7e-6])
_INTERCEPTS = st.sampled_from([0.0, -1024.0, -8192.0, 0.5, 12345.678])


@given(
    hnp.arrays(np.uint16, (2, 3, 5), elements=st.integers(0, 65535)),
    _SLOPES,
    _INTERCEPTS,
    st.booleans(),
    st.integers(10, 16),
)
@settings(max_examples=200, deadline=None)
def test_strength_zero_gives_the_stored_bytes(
    cells: np.ndarray[Any, Any], slope: float, intercept: float, signed: bool, bits: int
) -> None:
    f = fmt(
        n_frames=2, rows=3, columns=5, signed=signed, bits_stored=bits,
        slope=(slope, slope * 1.5), intercept=(intercept, intercept), padding=(-2000, -2000),
    )  # fmt: skip
    stored = cells.view(f.dtype)
    v = to_values(stored, f)
    assert to_stored(v.values, stored, v.valid, f).tobytes() == stored.tobytes()


@given(
    hnp.arrays(np.int16, (1, 4, 6), elements=st.integers(-2048, 2047)),
    hnp.arrays(np.float32, (1, 4, 6), elements=st.floats(-4000, 4000, width=32)),
    _SLOPES,
)
@settings(max_examples=200, deadline=None)
def test_back_is_the_nearest_stored_value_within_range(
    stored: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], slope: float
) -> None:
    f = fmt(signed=True, slope=(slope,), intercept=(-7.0,))
    values = (wanted * np.float32(slope) - np.float32(7)).astype(np.float32)
    out = to_stored(values, stored, np.ones(stored.shape, bool), f)
    exact = (values.astype(np.float64) + 7.0) / slope
    assert out.min() >= -2048
    assert out.max() <= 2047
    # one part in 2**23 of float32 is what a value can be off before rounding
    slack = np.abs(values.astype(np.float64) / slope) * 2.0**-22 + 1e-9
    assert (np.abs(out - np.clip(exact, -2048, 2047)) <= 0.5 + slack).all()


def test_halves_are_rounded_to_even_and_make_no_bias() -> None:
    f = fmt(rows=1, columns=4)
    stored = np.array([[[10, 11, 12, 13]]], np.uint16)
    values = to_values(stored, f).values + np.float32(0.5)
    assert to_stored(values, stored, np.ones(stored.shape, bool), f).tolist() == [[[10, 12, 12, 14]]]


def _around_halves() -> Any:
    """Whole numbers, halves and what lies beside halves, far beyond what 16 bits hold; and any other float32."""
    halves = np.arange(-80_000, 80_000, dtype=np.float32) + np.float32(0.5)
    beside = [np.nextafter(halves, np.float32(side)) for side in (-1e9, 1e9)]
    others = np.random.default_rng(6).integers(0, 1 << 32, 1 << 17, np.uint32).view(np.float32)
    others = others[np.abs(others) < 1e30]  # also without NaN
    return np.concatenate([halves, halves - np.float32(0.5), *beside, others])[None]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("intercept", [0.0, -1024.0, -1000.0, -8192.0, 32768.0])
def test_the_short_way_back_gives_the_bits_of_the_long_one(intercept: float, signed: bool) -> None:
    values = _around_halves()
    near, good = np.empty_like(values), np.ones(values.shape, np.bool_)
    for bits in (8, 12, 16):
        how = fmt(bits_stored=bits, signed=signed, intercept=(intercept,))
        frame = np.random.default_rng(bits).integers(0, 1 << 16, values.shape, np.uint16).view(how.dtype)
        long, short = np.zeros_like(frame), np.zeros_like(frame)
        pixels._backward(values, frame, good, 1.0, intercept, how, near, long)
        assert pixels._shifted(values, intercept, how, near, short)
        assert np.array_equal(short, long)


@pytest.mark.parametrize("intercept", [-1023.0, 0.5, 1e7])
def test_the_short_way_back_is_not_taken_where_it_would_round_otherwise(intercept: float) -> None:
    values, out = np.zeros((1, 2), np.float32), np.zeros((1, 2), np.uint16)
    assert not pixels._shifted(values, intercept, fmt(), values.copy(), out)
    values[0, 0] = np.nan
    assert not pixels._shifted(values, 0.0, fmt(), values.copy(), out)


def test_each_frame_has_its_own_slope() -> None:
    ds = enhanced(3, slopes=(1.0, 2.5, 0.25))
    s = Source.open(part10(ds))
    f, stored = pixel_format(s), decode(s)
    assert f.slope == (1.0, 2.5, 0.25)
    v = to_values(stored, f)
    assert np.array_equal(v.values, stored * np.array([1.0, 2.5, 0.25], np.float32)[:, None, None])
    assert v.step.tolist() == [1.0, 2.5, 0.25]
    out = to_stored(v.values + np.float32(10), stored, v.valid, f)
    assert np.array_equal(
        out.astype(int) - stored, np.array([10, 4, 40])[:, None, None] + 0 * stored.astype(int)
    )
    part = to_values(stored[1:], f, first=1)
    assert np.array_equal(part.values, v.values[1:])
    assert np.array_equal(to_stored(part.values, stored[1:], part.valid, f, first=1), stored[1:])


@pytest.mark.parametrize(("low", "high"), [(0, 0), (100, 100), (100, 120), (4000, 4095)])
def test_padding_is_neither_changed_nor_made(low: int, high: int) -> None:
    f = fmt(rows=1, columns=4096, padding=(low, high))
    stored = np.arange(4096, dtype=np.uint16).reshape(1, 1, 4096)
    v = to_values(stored, f)
    assert np.array_equal(~v.valid, (stored >= low) & (stored <= high))
    for shift in (-700, -50, -1, 1, 50, 700):
        out = to_stored(v.values + np.float32(shift), stored, v.valid, f)
        assert np.array_equal(out[~v.valid], stored[~v.valid])
        assert not ((out[v.valid] >= low) & (out[v.valid] <= high)).any()
        assert out.max() <= 4095


@pytest.mark.parametrize(
    ("element", "signed"),
    [
        ((0x00280120, "US", 63536), True),
        ((0x00280120, "SS", -2000), True),
        ((0x00280120, "US", 63536), False),
    ],
)
def test_padding_counts_by_its_bits_whatever_its_vr(element: tuple[int, str, int], signed: bool) -> None:
    cells = np.array([[0, 1], [2, 63536]], np.uint16)
    ds = image(cells, bits_stored=16, signed=signed)
    ds.add_new(*element)
    s = Source.open(part10(ds))
    f = pixel_format(s)
    assert f.padding == ((-2000, -2000) if signed else (63536, 63536))
    assert to_values(decode(s), f).valid.tolist() == [[[True, True], [True, False]]]


def test_padding_range_in_either_order() -> None:
    for a, b in ((63, 7), (7, 63)):
        ds = image(PixelPaddingValue=a, PixelPaddingRangeLimit=b)
        assert pixel_format(part10(ds)).padding == (7, 63)


def test_padding_outside_bits_stored_stays_as_it_is() -> None:
    # 12 bits stored, unsigned, and 63536 outside the reconstruction: real scanners do that.
    cells = np.array([[0, 4095], [63536, 5]], np.uint16)
    s = Source.open(part10(image(cells)))
    f, stored = pixel_format(s), decode(s)
    v = to_values(stored, f)
    assert v.valid.tolist() == [[[True, True], [False, True]]]
    out = to_stored(v.values + np.float32(100), stored, v.valid, f)
    assert out.tolist() == [[[100, 4095], [63536, 105]]]


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG])
@pytest.mark.parametrize("signed", [False, True])
def test_native_encodings_agree_with_pydicom(syntax: str, signed: bool) -> None:
    rng = np.random.default_rng(5)
    cells = rng.integers(0, 4096, (9, 7)).astype(np.uint16)
    if signed:
        cells = (cells.astype(np.int16) - 2048).view(np.uint16)
    ds = image(cells, signed=signed)
    stored = decode(part10(ds, syntax))
    assert stored.dtype == (np.int16 if signed else np.uint16)
    assert np.array_equal(stored[0], cells.view(stored.dtype))


def test_sign_is_extended_from_bits_stored() -> None:
    cells = np.array([[0x0FFF, 0x0800], [0x07FF, 0xF800]], np.uint16)  # two of them without sign extension
    stored = decode(part10(image(cells, signed=True)))
    assert stored.tolist() == [[[-1, -2048], [2047, -2048]]]


def test_overlays_in_unused_bits_are_not_pixels() -> None:
    cells = np.array([[0x8001, 0x4002], [0xC003, 4]], np.uint16)
    ds = image(cells)
    for group, position in ((0x6000, 15), (0x6002, 14)):
        ds.add_new((group << 16) | 0x0010, "US", 2)
        ds.add_new((group << 16) | 0x0011, "US", 2)
        ds.add_new((group << 16) | 0x0100, "US", 16)
        ds.add_new((group << 16) | 0x0102, "US", position)
    s = Source.open(part10(ds))
    assert pixel_format(s).overlay_bits == 0xC000
    assert decode(s).tolist() == [[[1, 2], [3, 4]]]


def test_eight_bits() -> None:
    cells = np.arange(15, dtype=np.uint8).reshape(3, 5)
    s = Source.open(part10(image(cells, bits_stored=8, sop_class=MR_CLASS)))
    assert decode(s).dtype == np.uint8
    assert np.array_equal(decode(s)[0], cells)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
@pytest.mark.parametrize(("signed", "bits"), [(False, 12), (True, 16), (False, 16)])
def test_compressed_encodings(syntax: str, signed: bool, bits: int) -> None:
    rng = np.random.default_rng(7)
    top = 1 << bits
    cells = rng.integers(0, top, (40, 36))
    cells = (cells - top // 2 if signed else cells).astype(np.int16 if signed else np.uint16)
    assert np.array_equal(decode(compressed(image(cells, bits_stored=bits, signed=signed), syntax))[0], cells)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_bits_stored_survive_rle(signed: bool) -> None:
    # An overlay in bit 15, and padding of 63536 where 12 bits are stored: what a native file keeps.
    cells = np.array([[0, 4095, 63536], [0x8001, 5, 6]], np.uint16)
    ds = image(cells, bits_stored=16, signed=signed)
    packed = Source.open(compressed(ds, RLELossless))
    for keyword, value in (("BitsStored", 12), ("HighBit", 11)):
        tag = pydicom.datadict.tag_for_keyword(keyword)
        assert tag is not None
        packed.elements[tag] = Element(tag, "US", struct.pack("<H", value))
    assert np.array_equal(frame_cells(packed, 2, 3, 16, 1, 0).view("<u2"), cells)


def compressed(ds: Dataset, syntax: str) -> bytes:
    whole = pydicom.dcmread(io.BytesIO(part10(ds)))
    whole.compress(syntax, generate_instance_uid=False)
    out = io.BytesIO()
    whole.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_frames_of_a_compressed_multi_frame_object_one_by_one() -> None:
    ds = enhanced(3)
    plain, packed = part10(ds), compressed(ds, RLELossless)
    assert np.array_equal(decode(packed), decode(plain))
    assert np.array_equal(decode(packed, range(1, 3)), decode(plain)[1:])
    assert decode(packed, range(0)).shape == (0, 4, 6)
    with pytest.raises(ValueError, match="frame"):
        decode(packed, range(2, 4))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"RescaleSlope": "0"}, "Rescale Slope"),
        ({"RescaleSlope": None}, "Hounsfield"),
        ({"RescaleIntercept": None}, "Hounsfield"),
        ({"RescaleType": "HU_MOD"}, "not HU"),
        ({"RescaleType": "Z_EFF"}, "not HU"),
        ({"RescaleSlope": "1e-31"}, "Rescale Slope"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"BitsAllocated": 32}, "32 bits"),
        ({"BitsStored": 17}, "17 stored"),
        ({"HighBit": 15}, "High Bit"),
        ({"Rows": 0}, "rows"),
        ({"Rows": 65535, "Columns": 65535}, "not supported"),
        ({"NumberOfFrames": "0"}, "frames"),
        ({"Rows": 9000}, "cut short"),
        ({"PixelData": None}, "no Pixel Data"),
        ({"PixelData": b"\x00" * 10}, "cut short"),
        ({"Rows": None}, "Rows"),
        ({"ModalityLUTSequence": [Dataset()]}, "Modality LUT"),
    ],
)
def test_pixels_that_no_engine_can_work_on(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SeriesError, match=told):
        decode(part10(image(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"ModalityLUTSequence": []},
        {"NumberOfFrames": ""},
        {"NumberOfFrames": "1.0"},
        {"SamplesPerPixel": None},
        {"PhotometricInterpretation": "monochrome2"},
    ],
)
def test_what_is_odd_and_says_nothing_else_is_taken(changes: dict[str, Any]) -> None:
    data = part10(image(**changes))
    assert decode(data).shape == (1, 8, 6)
    assert verdict_on(read_bytes(data[file_meta(data)[1] :], EXPLICIT)) is None


@pytest.mark.parametrize("told", sorted(PROFILES["CT"].rescale_types))
def test_a_ct_that_the_profile_lets_in_has_pixels_in_hounsfield_units(told: str) -> None:
    assert pixel_format(part10(image(RescaleType=told))).unit == "HU"


@pytest.mark.parametrize("value", [b"abc ", b"nan ", b"inf ", b"1_0 ", b"0x10", b"1,5 "])
def test_a_slope_that_is_no_number_is_refused_without_telling_it(value: bytes) -> None:
    data = part10(image(RescaleSlope="1234"))
    assert data.count(b"1234") == 2  # Device Serial Number is the other
    at = data.index(b"\x28\x00\x53\x10DS\x04\x00") + 8
    with pytest.raises(SeriesError, match=r"\(0028,1053\) is no number") as caught:
        pixel_format(data[:at] + value + data[at + 4 :])
    assert value.decode().strip() not in caught.value.message


def test_mr_without_rescale_is_as_stored() -> None:
    f = pixel_format(part10(image(sop_class=MR_CLASS)))
    assert (f.slope, f.intercept, f.unit) == ((1.0,), (0.0,), "arbitrary")
    f = pixel_format(part10(image(sop_class=MR_CLASS, RescaleSlope="2.5", RescaleIntercept="")))
    assert (f.slope, f.intercept) == ((2.5,), (0.0,))


def test_functional_groups_must_be_as_many_as_frames() -> None:
    ds = enhanced(3)
    ds.NumberOfFrames = 2
    with pytest.raises(SeriesError, match="number"):
        pixel_format(part10(ds))


def test_results_that_are_no_numbers_or_of_another_shape() -> None:
    f = fmt()
    stored = np.zeros((1, 4, 6), np.uint16)
    valid = np.ones(stored.shape, bool)
    values = np.full(stored.shape, -1024, np.float32)
    for bad in ([np.nan, 0.0], [np.inf, -np.inf], [np.inf, 0.0]):
        values[0, 1, 1:3] = bad
        with pytest.raises(DeriveError, match="finite"):
            to_stored(values, stored, valid, f)
    values[0, 1, 2] = -1024
    valid[0, 1, 1] = False  # padding: whatever an engine wrote there is not looked at
    assert not to_stored(values, stored, valid, f).any()
    with pytest.raises(DeriveError, match="shape"):
        to_stored(values[:, :2], stored, valid, f)
    with pytest.raises(DeriveError, match="shape"):
        to_stored(values, stored.astype(np.int16), valid, f)


def test_a_stream_of_another_size_than_its_header_is_refused() -> None:
    data = bytearray(compressed(image(np.zeros((40, 36), np.uint16)), JPEG2000Lossless))
    at = data.index(b"\xff\x4f\xff\x51")
    data[at + 8 : at + 16] = b"\x00\x00\x7f\x00\x00\x00\x7f\x00"  # 32512 x 32512: 2 GB
    with pytest.raises(SeriesError, match="another size"):
        decode(bytes(data))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_damaged_streams_are_refused(syntax: str) -> None:
    data = compressed(image(np.arange(40 * 36, dtype=np.uint16).reshape(40, 36)), syntax)
    source = Source.open(data)
    value = source.pixel_data
    assert value is not None
    start = data.index(b"\xe0\x7f\x10\x00") + 12
    broken = data[: start + 40] + b"\xaa" * 60 + data[start + 100 :]
    try:
        assert decode(broken).shape == (1, 40, 36)  # a decoder may not notice
    except SeriesError as error:
        assert error.message  # noqa: PT017 - either is right


def test_a_decoder_that_panics_is_only_a_decoder() -> None:
    # Two segments that unpack to more than a frame: the RLE decoder, written in Rust, panics. What Python
    # then sees is no Exception, and must still be an error of this instance alone.
    segment = b"\x81\x07" * 40
    stream = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2
    elements = Source.open(part10(image(np.zeros((8, 6), np.uint16)))).elements
    value = Fragments((b"", stream))
    source = Source({**elements, PIXEL_DATA: Element(PIXEL_DATA, "OB", value)}, RLELossless)
    with pytest.raises(SeriesError, match="cannot be decoded"):
        decode(source)


def test_sizes_announced_in_streams() -> None:
    assert announced_size(b"\xff\xd8\xff\xf7\x00\x0b\x08\x00\x10\x00\x0c\x01", JPEGLSLossless) == (16, 12)
    assert announced_size(b"\xff\xd8\xff\xe0\x00\x02\xff\xc3\x00\x0b\x0c\x01\x00\x02\x00", "x") == (256, 512)
    assert announced_size(b"\xff\xd8\xff\xda", "x") is None
    assert announced_size(b"", "x") is None
    assert announced_size(b"\xff\x4f\xff\x51", JPEG2000Lossless) is None


@pytest.mark.corpus
def test_the_same_picture_in_many_encodings() -> None:
    for family, names in {
        "MR_small.dcm": [
            "_implicit.dcm",
            "_bigendian.dcm",
            "_RLE.dcm",
            "_jp2klossless.dcm",
            "_jpeg_ls_lossless.dcm",
        ],
        "emri_small.dcm": ["_RLE.dcm", "_big_endian.dcm"],
    }.items():
        reference = decode(corpus("odd", family))
        for name in names:
            assert np.array_equal(decode(corpus("odd", family.replace(".dcm", name))), reference), name
    ct = decode(corpus("odd", "GH1308.dcm"))
    for name in ("CT1_J2KR", "CT1_JLSL", "CT1_JPLL", "CT1_RLE"):
        assert decode(corpus("odd", name)).shape == ct.shape, name
    lossless = [decode(corpus("odd", n)) for n in ("CT1_J2KR", "CT1_JLSL", "CT1_JPLL", "CT1_RLE")]
    assert all(np.array_equal(one, lossless[0]) for one in lossless[1:])


@pytest.mark.corpus
def test_a_j2k_stream_whose_sign_is_not_its_headers() -> None:
    path = corpus("odd", "J2K_pixelrep_mismatch.dcm")
    assert np.array_equal(decode(path)[0], pydicom.dcmread(path).pixel_array)


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name", ["MR1_JPLY", "GH178.dcm", "GH179A.dcm", "no_meta.dcm", "meta_missing_tsyntax.dcm", "test-SR.dcm"]
)
def test_what_cannot_be_decoded_says_so(name: str) -> None:
    with pytest.raises(SeriesError):
        decode(corpus("odd", name))


def test_which_syntaxes_can_be_decoded() -> None:
    lossless = ["50", "51", "57", "70", "80", "81", "90", "91", "201", "202", "203"]
    assert all(can_decode(f"1.2.840.10008.1.2.4.{n}") for n in lossless)
    assert can_decode(EXPLICIT)
    assert not can_decode("1.2.840.10008.1.2.4.100")  # MPEG-2
    assert not can_decode("1.2.3")
    elements = Source.open(part10(image())).elements
    with pytest.raises(SeriesError, match="not encapsulated"):
        decode(Source(elements, JPEG2000Lossless))
    packed = {**elements, PIXEL_DATA: Element(PIXEL_DATA, "OB", Fragments((b"", b"\x01\x02")))}
    for syntax in ("1.2.840.10008.1.2.4.100", "1.2.3", EXPLICIT):
        with pytest.raises(SeriesError, match="no decoder") as caught:
            decode(Source(packed, syntax))
        assert "1.2.3" not in caught.value.message


@pytest.mark.parametrize(("n_frames", "parts"), [(2, 3), (3, 2)])
def test_fragments_that_are_not_frames(n_frames: int, parts: int) -> None:
    elements = Source.open(part10(enhanced(n_frames))).elements
    value = Fragments((b"", *(b"\x00" * 64,) * parts))
    with pytest.raises(SeriesError):
        decode(Source({**elements, PIXEL_DATA: Element(PIXEL_DATA, "OB", value)}, RLELossless))


def test_frames_over_several_fragments() -> None:
    ds = enhanced(2)
    whole = Source.open(compressed(ds, JPEGLSLossless))
    assert whole.pixel_data is not None
    assert isinstance(whole.pixel_data.value, Fragments)
    _, *frames = whole.pixel_data.value.parts
    halves = [half for f in frames for half in (bytes(f)[:40], bytes(f)[40:])]
    offsets = struct.pack("<2I", 0, sum(8 + len(h) for h in halves[:2]))
    value = Fragments((offsets, *halves))
    source = Source({**whole.elements, PIXEL_DATA: Element(PIXEL_DATA, "OB", value)}, JPEGLSLossless)
    assert np.array_equal(decode(source), decode(part10(ds)))
