"""JPEG in, pixels out: every predictor and precision, and nothing damaged or hostile gets through."""

from __future__ import annotations

import hashlib
import io
import struct
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from imagecodecs import jpeg8_decode, jpeg8_encode
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

from node.dicom import jpeg
from node.dicom.decode import frame_cells
from node.dicom.elements import PIXEL_DATA, Element, Fragments
from node.dicom.encode import encode
from node.dicom.jpeg import decode_jpeg
from node.dicom.pixels import decode
from node.dicom.source import Source
from node.dicom.transcode import transcode
from node.errors import SeriesError
from tests.dicom_samples import EXPLICIT, corpus, image, part10
from tests.jpegs import TABLE, dht, lossless, scan, segment, sof, sos

Pixels = np.ndarray[Any, Any]


def picture(precision: int = 12, shape: tuple[int, int] = (9, 14), *, seed: int = 5) -> Pixels:
    """Slopes, steps and noise that use every value of the precision."""
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(shape[0]) * 5, np.arange(shape[1]) * 3)
    slope[: shape[0] // 2] += rng.integers(0, 1 << precision, (shape[0] // 2, shape[1]))
    return (slope % (1 << precision)).astype(np.uint16)


def source(stream: bytes, syntax: str, shape: tuple[int, int] = (9, 14), **attributes: Any) -> Source:
    elements = Source.open(part10(image(np.zeros(shape, np.uint16), **attributes))).elements
    value = Fragments((b"", stream + b"\x00" * (len(stream) % 2)))
    return Source({**elements, PIXEL_DATA: Element(PIXEL_DATA, "OB", value)}, syntax)


@pytest.mark.parametrize("precision", range(2, 17))
@pytest.mark.parametrize("selection", range(1, 8))
def test_every_predictor_and_precision(precision: int, selection: int) -> None:
    whole = picture(precision)
    for restart_rows in (0, 1, 4):
        for shift in {0, 1, precision - 1}:
            pixels = whole >> shift << shift
            for pad in "10":
                stream = lossless(
                    pixels, precision, selection=selection, shift=shift, restart_rows=restart_rows, pad=pad
                )
                assert np.array_equal(decode_jpeg(stream, JPEGLossless, 9, 14, 16), pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (2, 65535), (65535, 2), (300, 301)])
def test_every_shape(shape: tuple[int, int]) -> None:
    pixels = np.zeros(shape, np.uint16)
    pixels[-1, -1] = 65535  # and the difference of 32768 that has no bits after its code
    pixels[0, 0] = 32768
    for selection in (1, 7):
        stream = lossless(pixels, 16, selection=selection)
        assert np.array_equal(decode_jpeg(stream, JPEGLosslessSV1, *shape, 16), pixels)


def test_what_encoders_write_differently() -> None:
    pixels = picture()
    plain = lossless(pixels, 12)
    body = scan(pixels, 12, 1, 0)
    app = segment(0xE0, b"JFIF\x00\xff\xd8\xff\xc3") + segment(0xFE, b"a comment") + segment(0xE1, b"")
    start = b"\xff\xd8" + app + b"\xff\xff" + dht(number=3) + dht({0: "0"}) + sof(9, 14, 12)
    table_3 = segment(0xDA, bytes([1, 1, 0x30, 1, 63, 0]))
    for stream in (
        start + table_3 + body + b"\xff\xd9",
        plain[:-2],  # no EOI
        plain[:-2] + b"\x00",
        plain[:-2] + b"\xff\xff\xd9",  # fill bytes
        plain[:-2] + b"\x00\xff\xd9",  # a byte too many
        plain[:-2] + b"\xff\x00\xff\xd9",
        plain + b"anything\xff\xda",
    ):
        assert np.array_equal(decode_jpeg(stream, JPEGLossless, 9, 14, 16), pixels)


def test_the_decoder_sees_only_what_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def decoder(data: bytes) -> Pixels:
        seen.append(data)
        return np.asarray(jpeg8_decode(data))

    monkeypatch.setattr(jpeg, "jpeg8_decode", decoder)
    pixels = picture()
    stream = lossless(
        pixels, 12, before=segment(0xEE, b"Adobe\x00d\x00\x00\x00\x00\x02") + segment(0xFE, b"PHI")
    )
    decode_jpeg(stream + b"PHI", JPEGLossless, 9, 14, 16)
    assert seen == [b"\xff\xd8" + dht() + sof(9, 14, 12) + sos(1) + scan(pixels, 12, 1, 0) + b"\xff\xd9"]


_P = picture()
_BODY = scan(_P, 12, 1, 0) + b"\xff\xd9"
_SOI = b"\xff\xd8"
_HEAD = _SOI + sof(9, 14, 12) + dht()


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (b"", "no JPEG"),
        (b"\x00" * 64, "no JPEG"),
        (_SOI, "malformed"),
        (_SOI + b"\xff" * 4000 + b"\x00" * 9, "malformed"),
        (_SOI + b"\x00" + sof(9, 14, 12), "malformed"),
        (_HEAD[:-3], "malformed"),
        (_HEAD + b"\xff\xda\x00\x01", "malformed"),
        (_HEAD, "malformed"),
        (_HEAD + sos(1)[:-2], "malformed"),
        (_SOI + dht() + sos(1) + _BODY, "unknown process"),  # no SOF
        (_HEAD + sof(9, 14, 12) + sos(1) + _BODY, "unknown process"),
        (_SOI + sof(9, 14, 12, 0xC2) + dht() + sos(1) + _BODY, "unknown process"),
        (_SOI + sof(9, 14, 12, 0xC9) + dht() + sos(1) + _BODY, "unknown process"),
        (_SOI + _SOI + sof(9, 14, 12), "malformed"),
        (_HEAD + segment(0xDC, b"\x00\x09") + sos(1) + _BODY, "unknown process"),  # DNL
        (
            _SOI + segment(0xC3, struct.pack(">BHHB", 8, 9, 14, 3) + bytes(9)) + dht() + sos(1),
            "one component",
        ),
        (
            _SOI + segment(0xC3, struct.pack(">BHHB", 8, 9, 14, 3) + bytes(3)) + dht() + sos(1),
            "one component",
        ),
        (_HEAD + segment(0xDA, bytes([1, 2, 0, 1, 0, 0])) + _BODY, "another scan"),
        (_HEAD + segment(0xDA, bytes([2, 1, 0, 1, 0, 0])) + _BODY, "another scan"),
        (_HEAD + segment(0xDA, bytes([1, 1, 0x10, 1, 0, 0])) + _BODY, "does not have"),
        (_SOI + sof(9, 14, 12) + sos(1) + _BODY, "does not have"),
        (_SOI + sof(9, 14, 12) + segment(0xC4, b"\x00" + bytes(15)) + sos(1) + _BODY, "Huffman"),
        (_SOI + sof(9, 14, 12) + segment(0xC4, b"\x00\x03" + bytes(15)) + sos(1) + _BODY, "Huffman"),
        (_SOI + sof(9, 14, 12) + segment(0xC4, b"\x00\x02" + bytes(17)) + sos(1) + _BODY, "Huffman"),
        (
            _SOI
            + sof(9, 14, 12)
            + segment(0xC4, b"\x00\xf0" + bytes(15) + bytes(range(240)))
            + sos(1)
            + _BODY,
            "dec",
        ),
        (_HEAD + sos(0) + _BODY, "does not know"),
        (_HEAD + sos(8) + _BODY, "does not know"),
        (_HEAD + sos(1, 12) + _BODY, "does not know"),
        (_SOI + sof(9, 14, 1) + dht() + sos(1) + _BODY, "does not know"),
        (_SOI + sof(9, 14, 17) + dht() + sos(1) + _BODY, "more bits"),
        (_HEAD + sos(2) + _BODY, "damaged"),
        (_SOI + sof(9, 14, 11) + dht() + sos(1) + _BODY, "damaged"),
        (_HEAD + segment(0xDD, b"\x00\x07") + sos(1) + _BODY, "restart intervals"),
        (_HEAD + segment(0xDD, b"\x00\x0e") + sos(1) + _BODY, "restart intervals"),
        (_HEAD + segment(0xDD, b"\x00\x00\x0e") + sos(1) + _BODY, "restart|decoded"),
        (_HEAD + sos(1) + _BODY[:40] + b"\xff\xd0" + _BODY[40:], "restart intervals"),
        (_HEAD + sos(1) + _BODY[:-2] + b"\xff\xd0\xff\xd9", "restart intervals"),
        (lossless(_P, 12, restart_rows=3).replace(b"\xff\xd1", b"\xff\xd2"), "restart intervals"),
        (_HEAD + sos(1) + _BODY[:40] + b"\xff\xda" + _BODY[40:], "more than one scan"),
        (_HEAD + sos(1) + b"\xff\xd9", "cut short"),
        (_HEAD + sos(1) + _BODY[:60] + b"\xff\xd9", "damaged"),
        (_HEAD + sos(1) + _BODY[:60], "damaged"),
        (_HEAD + sos(1) + _BODY[:60] + _BODY[63:], "damaged"),
        (_HEAD + sos(1) + _BODY[:60] + b"\x12\x34\x56" + _BODY[60:], "damaged"),
        (_HEAD + sos(1) + _BODY[:-2] + b"\x00\x00\xff\xd9", "damaged"),
        (_HEAD + sos(1) + _BODY[:-2] + b"\x5a\xff\xd9", "damaged"),
    ],
)
def test_streams_that_are_refused(stream: bytes, told: str) -> None:
    with pytest.raises(SeriesError, match=told):
        decode_jpeg(stream, JPEGLossless, 9, 14, 16)
    with pytest.raises(SeriesError):
        decode(source(stream, JPEGLossless))


def test_no_cut_of_a_stream_goes_unnoticed() -> None:
    for restart_rows in (0, 2):
        stream = lossless(_P, 12, restart_rows=restart_rows)
        for at in range(len(stream) - 3):
            for end in (b"", b"\xff\xd9"):
                with pytest.raises(SeriesError):
                    decode_jpeg(stream[:at] + end, JPEGLossless, 9, 14, 16)


def test_a_category_that_a_table_lacks_is_in_no_stream() -> None:
    table = {k: v for k, v in TABLE.items() if k < 3}
    stream = _SOI + sof(9, 14, 12) + dht(table) + sos(1) + _BODY
    with pytest.raises(SeriesError, match=r"damaged|decoded"):
        decode_jpeg(stream, JPEGLossless, 9, 14, 16)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_whatever_comes_is_pixels_or_a_typed_error(data: st.DataObject) -> None:
    syntax, good = data.draw(st.sampled_from(_GOOD))
    stream = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(stream) - 1))
        length = data.draw(st.integers(0, 4))
        stream[at : at + length] = data.draw(st.binary(max_size=4) | st.sampled_from(_MARKERS))
    try:
        pixels = decode_jpeg(bytes(stream), syntax, 9, 14, 16)
    except SeriesError as error:
        assert error.message  # noqa: PT017 - either is right
    else:
        assert pixels.shape == (9, 14)
        assert pixels.dtype in (np.uint8, np.uint16)


def lossy(shape: tuple[int, int] = (9, 14), mode: str = "L", **options: Any) -> bytes:
    out = io.BytesIO()
    gray = np.add.outer(np.arange(shape[0]) * 9, np.arange(shape[1]) * 7).astype(np.uint8)
    Image.fromarray(gray).convert(mode).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


_MARKERS = [
    b"\xff" + bytes([m]) for m in (0x00, 0xC0, 0xC2, 0xC3, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDC, 0xDD, 0xFF)
]
_GOOD = [
    *((JPEGLossless, lossless(picture(p), p, selection=s)) for p, s in ((2, 1), (8, 4), (12, 5), (16, 7))),
    *((JPEGLosslessSV1, lossless(picture(p), p, restart_rows=2)) for p in (8, 16)),
    (JPEGBaseline8Bit, lossy()),
    (JPEGExtended12Bit, lossy(restart_marker_rows=1)),
]


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGBaseline8Bit])
def test_nothing_is_allocated_for_a_short_stream(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "jpeg8_decode", lambda _: pytest.fail("the decoder was asked"))
    good = lossless(_P, 12) if syntax == JPEGLossless else lossy()
    old = struct.pack(">HH", 9, 14)
    stream = good.replace(old, b"\xff\xff\xff\xff", 1)
    with pytest.raises(SeriesError, match="another size"):
        decode_jpeg(stream, syntax, 9, 14, 16)
    with pytest.raises(SeriesError, match="cut short"):
        decode_jpeg(stream, syntax, 65535, 65535, 16)
    with pytest.raises(SeriesError, match="another size"):
        decode_jpeg(good.replace(old, b"\x00\x00\x00\x0e", 1), syntax, 9, 14, 16)


@pytest.mark.parametrize(("precision", "allocated"), [(8, 8), (8, 16), (12, 16), (16, 16), (10, 16)])
@pytest.mark.parametrize("signed", [False, True])
def test_signs_and_widths(precision: int, allocated: int, signed: bool) -> None:
    pixels = picture(precision)
    s = source(
        lossless(pixels, precision),
        JPEGLossless,
        signed=signed,
        bits_stored=precision,
        BitsAllocated=allocated,
    )
    wanted = pixels.astype(np.int64)
    if signed:
        wanted = np.where(wanted >= 1 << (precision - 1), wanted - (1 << precision), wanted)
    assert np.array_equal(decode(s)[0], wanted)
    cells = frame_cells(s, 9, 14, allocated, 1, 0)  # what is sent to a peer that wants native pixels
    assert np.array_equal(cells.view(f"<{'i' if signed else 'u'}{allocated // 8}"), wanted)


def test_bits_above_bits_stored_are_kept() -> None:
    pixels = picture(12)
    pixels[3] |= 0x8000  # an overlay
    pixels[4, 4] = 63536  # padding outside of the reconstruction
    for signed in (False, True):
        cells = frame_cells(source(lossless(pixels, 16), JPEGLossless, signed=signed), 9, 14, 16, 1, 0)
        assert np.array_equal(cells.view("<u2"), pixels)


def test_more_bits_than_allocated() -> None:
    with pytest.raises(SeriesError, match="more bits"):
        decode(source(lossless(_P, 12), JPEGLossless, bits_stored=8, BitsAllocated=8))
    for bits in (1, 12):
        with pytest.raises(SeriesError, match="bits are not decoded"):
            frame_cells(source(lossless(_P, 12), JPEGLossless), 9, 14, bits, 1, 0)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_lossy_streams(syntax: str) -> None:
    good = lossy()
    oracle = np.asarray(Image.open(io.BytesIO(good))).astype(int)
    s = source(good, syntax, bits_stored=8, BitsAllocated=8)
    assert np.abs(decode(s)[0].astype(int) - oracle).max() <= 1
    for bad, told in (
        (lossy(mode="RGB"), "one component"),
        (lossy(progressive=True), "unknown process"),
        (good[:-2], "cut short"),
        (lossless(_P, 8), "not of the process"),
    ):
        with pytest.raises(SeriesError, match=told):
            decode(source(bad, syntax, bits_stored=8, BitsAllocated=8))
    with pytest.raises(SeriesError, match="not of the process"):
        decode(source(good, JPEGLossless, bits_stored=8, BitsAllocated=8))


def test_twelve_bits_with_loss() -> None:
    pixels = np.add.outer(np.arange(40) * 30, np.arange(36) * 20).astype(np.uint16)
    stream = bytes(jpeg8_encode(pixels, level=98, bitspersample=12))
    got = decode(source(stream, JPEGExtended12Bit, (40, 36)))[0]
    assert np.abs(got.astype(int) - pixels).max() < 40


def test_a_peer_that_takes_no_jpeg_gets_the_same_pixels(tmp_path: Any) -> None:
    pixels = picture(12)
    s = source(lossless(pixels, 12), JPEGLosslessSV1)
    value = s.pixel_data
    assert value is not None
    assert isinstance(value.value, Fragments)
    path = tmp_path / "data"
    path.write_bytes(encode(s.elements, JPEGLosslessSV1))
    sent = Source.of(transcode(path, 0, JPEGLosslessSV1, EXPLICIT), EXPLICIT)
    assert np.array_equal(decode(sent)[0], pixels)


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "digest"), [("CT1_JPLL", "1add6ede29758c6f"), ("TEST_1_study_1234.dcm", "0d2a72198cb5f913")]
)
def test_real_files_as_two_other_decoders_see_them(name: str, digest: str) -> None:
    assert hashlib.sha256(decode(corpus("odd", name)).tobytes()).hexdigest().startswith(digest)


@pytest.mark.corpus
def test_a_real_file_cut_in_half() -> None:
    whole = Source.open(corpus("odd", "CT1_JPLL"))
    assert whole.pixel_data is not None
    assert isinstance(whole.pixel_data.value, Fragments)
    stream = b"".join(whole.pixel_data.value.parts[1:])
    for broken in (stream[: len(stream) // 2], stream[: len(stream) // 2] + b"\xff\xd9"):
        value = Fragments((b"", broken))
        elements = {**whole.elements, PIXEL_DATA: Element(PIXEL_DATA, "OB", value)}
        with pytest.raises(SeriesError, match="damaged"):
            decode(Source(elements, whole.transfer_syntax_uid))
