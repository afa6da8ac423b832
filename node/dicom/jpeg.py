"""JPEG (ITU-T T.81) of one grey component: lossless (process 14) and sequential DCT (processes 1, 2, 4).

Like every JPEG decoder, libjpeg-turbo makes up what a damaged stream leaves out, without a word. So it gets a
stream made anew from what was checked here, and the codes of the pixels that come out of a lossless one are
counted: they must take the bits that there are. Nothing of the kind can be known of a lossy stream.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from imagecodecs import jpeg8_decode

from node.errors import SeriesError

LOSSLESS: Final = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70))
LOSSY: Final = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51))

_Integers: TypeAlias = npt.NDArray[np.integer[Any]]

_SOF0, _SOF1, _SOF3, _DHT, _SOS, _DQT, _DRI = 0xC0, 0xC1, 0xC3, 0xC4, 0xDA, 0xDB, 0xDD
_PASSED_OVER: Final = frozenset({0xFE, *range(0xE0, 0xF0)})  # COM, APPn

_MARKER: Final = re.compile(rb"\xff+([^\x00\xff])(..)", re.DOTALL)
_END_OF_SCAN: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_RESTART: Final = re.compile(rb"\xff([\xd0-\xd7])")
_FILL: Final = re.compile(rb"\xff(?=\xff)")

_BLOCK: Final = 1 << 16
"""Pixels counted at a time."""


@dataclass(slots=True)
class _Stream:
    """What the headers say. ``tables`` holds DQT, DHT and DRI as they came; ``lengths`` the code length of
    each symbol, by class and number of its Huffman table."""

    frame: int = 0
    precision: int = 0
    rows: int = 0
    columns: int = 0
    quantization: int = 0
    restart: int = 0
    tables: bytearray = field(default_factory=bytearray)
    lengths: dict[int, dict[int, int]] = field(default_factory=dict)
    coding: int = 0
    selection: int = 0
    shift: int = 0
    scan: bytes = b""
    ended: bool = False

    @property
    def clean(self) -> bytes:
        """The stream again, of nothing but what was looked at."""
        last = (self.selection, 0, self.shift) if self.frame == _SOF3 else (0, 63, 0)
        size = (self.precision, self.rows, self.columns)
        head = struct.pack(">BBHBHHBBBB", 0xFF, self.frame, 11, *size, 1, 1, 0x11, self.quantization)
        scan = struct.pack(">BBHBBBBBB", 0xFF, _SOS, 8, 1, 1, self.coding, *last)
        return b"".join((b"\xff\xd8", self.tables, head, scan, self.scan, b"\xff\xd9"))


def decode_jpeg(stream: bytes, transfer_syntax_uid: str, rows: int, columns: int, bits: int) -> _Integers:
    """Decode one frame.

    Parameters
    ----------
    stream
        From SOI on; what follows EOI is not looked at.
    transfer_syntax_uid
        One of :data:`LOSSLESS` or :data:`LOSSY`.
    rows, columns, bits
        What the data set says; ``bits`` are the allocated ones.

    Returns
    -------
    ndarray
        (rows, columns) of uint8 or uint16. Memory is bounded by the length of the stream.

    Raises
    ------
    SeriesError
        If the stream is malformed, damaged, of another size or process than it should, or in colour.
    """
    lossless = transfer_syntax_uid in LOSSLESS
    s = _read(stream)
    if (s.rows, s.columns) != (rows, columns):
        raise SeriesError("the compressed image has another size than its header")
    if (s.frame == _SOF3) != lossless:
        raise SeriesError("the JPEG stream is not of the process that its transfer syntax names")
    if s.precision > bits:
        raise SeriesError("the JPEG stream has more bits a sample than its header allocates")
    # A sample takes a bit at least, a block of 8 x 8 takes two: no larger image is asked for.
    if rows * columns > len(s.scan) * (8 if lossless else 8 * 32):
        raise SeriesError("the JPEG stream is cut short")
    parts = _intervals(s, rows * columns if lossless else -(-rows // 8) * -(-columns // 8))
    if lossless:
        _check_lossless(s)
    elif not s.ended:
        raise SeriesError("the JPEG stream is cut short")
    try:
        pixels: _Integers = jpeg8_decode(s.clean)
    except RuntimeError:  # what the decoder calls an error; its text may hold values
        raise SeriesError("the JPEG stream cannot be decoded") from None
    if pixels.shape != (rows, columns):
        raise SeriesError("the decoded image has another size than its header")
    if lossless and ((pixels >> s.precision).any() or not _ends_where_it_should(parts, _used(pixels, s))):
        raise SeriesError("the JPEG stream is damaged: its codes are not those of its pixels")
    return pixels


def _read(stream: bytes) -> _Stream:
    """Headers and scan (T.81 B.2). Only what a DICOM image of one component has is taken."""
    s = _Stream()
    if stream[:2] != b"\xff\xd8":
        raise SeriesError("the compressed image is no JPEG stream")
    at, component = 2, -1
    while True:
        found = _MARKER.match(stream, at)
        if found is None:
            raise SeriesError("the JPEG stream is malformed")
        marker, length = found[1][0], int.from_bytes(found[2], "big")
        at = found.end() - 2 + length
        body = stream[found.end() : at]
        if length < 2 or len(body) != length - 2:
            raise SeriesError("the JPEG stream is malformed")
        if marker in (_DQT, _DHT, _DRI):
            s.tables += b"\xff%c%c%c%b" % (marker, length >> 8, length & 0xFF, body)
            if marker == _DHT:
                _huffman(body, s.lengths)
            elif marker == _DRI:
                s.restart = int.from_bytes(body, "big")
        elif marker in (_SOF0, _SOF1, _SOF3) and not s.frame:
            if len(body) != 9 or body[5] != 1:
                raise SeriesError("the JPEG stream has more than one component")
            s.frame = marker
            s.precision, s.rows, s.columns, _, component, _, s.quantization = struct.unpack(">BHHBBBB", body)
        elif marker == _SOS and s.frame:
            if len(body) != 6 or body[0] != 1 or body[1] != component:
                raise SeriesError("the JPEG stream has another scan than that of its component")
            break
        elif marker not in _PASSED_OVER:
            raise SeriesError("the JPEG stream is of an unknown process, or malformed")
    _, _, s.coding, s.selection, last, steps = body
    s.shift = steps & 15
    if s.frame != _SOF3 and (s.selection, last, steps) != (0, 63, 0):
        raise SeriesError("the JPEG stream has a scan that is not sequential")
    end = _END_OF_SCAN.search(stream, at)
    if end is not None and end[0] != b"\xff\xd9":
        raise SeriesError("the JPEG stream has more than one scan")
    s.ended = end is not None
    s.scan = stream[at : end.start() if end else len(stream)].rstrip(b"\xff")
    if b"\xff\xff" in s.scan:
        s.scan = _FILL.sub(b"", s.scan)
    return s


def _huffman(body: bytes, lengths: dict[int, dict[int, int]]) -> None:
    """Code lengths of the tables of a DHT segment (T.81 B.2.4.2)."""
    at = 0
    while at < len(body):
        counts = body[at + 1 : at + 17]
        symbols = body[at + 17 : at + 17 + sum(counts)]
        each = (n for n, count in enumerate(counts, 1) for _ in range(count))
        lengths[body[at]] = table = dict(zip(symbols, each, strict=False))
        if len(counts) != 16 or len(table) != sum(counts):
            raise SeriesError("the JPEG stream has a Huffman table that is malformed")
        at += 17 + len(symbols)


def _intervals(s: _Stream, units: int) -> list[bytes]:
    """The scan in restart intervals, of which there must be as many as ``units`` of coding ask for."""
    wanted = -(-units // s.restart) if s.restart else 1
    parts = _RESTART.split(s.scan, maxsplit=wanted)
    if len(parts) != 2 * wanted - 1 or any(m[0] != 0xD0 + i % 8 for i, m in enumerate(parts[1::2])):
        raise SeriesError("the JPEG stream has other restart intervals than it says")
    return parts[::2]


def _ends_where_it_should(parts: list[bytes], used: npt.NDArray[np.int64]) -> bool:
    """Whether all that is left of each interval is padding: bits of a last byte, and at most a byte more."""
    for part, bits in zip(parts, used.tolist(), strict=True):
        left = 8 * (len(part) - part.count(b"\xff\x00")) - bits
        end = int.from_bytes(part[-4:].replace(b"\xff\x00", b"\xff")[-2:], "big")
        if left > 7:
            if end & 0xFF not in (0, 0xFF):
                return False
            end, left = end >> 8, left - 8
        if not 0 <= left < 8 or end & (ones := (1 << left) - 1) not in (0, ones):
            return False
    return True


def _check_lossless(s: _Stream) -> None:
    if not 2 <= s.precision <= 16 or not 1 <= s.selection <= 7 or s.shift >= s.precision:
        raise SeriesError("the JPEG stream has parameters that lossless JPEG does not know")
    if s.restart % s.columns:
        raise SeriesError("the JPEG stream has restart intervals that are no whole rows")
    if s.coding >> 4 not in s.lengths:
        raise SeriesError("the JPEG stream names a Huffman table that it does not have")


def _used(pixels: _Integers, s: _Stream) -> npt.NDArray[np.int64]:
    """Bits that the pixels' codes take in each restart interval (T.81 H.1.2)."""
    rows, columns = pixels.shape
    cost = np.full(17, 1 << 20, np.int64)  # a category without a code can be in no stream
    for category, length in s.lengths[s.coding >> 4].items():
        if category <= 16:
            cost[category] = length + (category if category < 16 else 0)
    costs = cost[_CATEGORIES]
    per = s.restart // columns or rows
    used = np.empty(rows, np.int64)
    step = max(1, _BLOCK // columns)
    x = np.zeros((step + 1, columns), np.int32)
    difference = np.empty((step, columns), np.int32)
    for first in range(0, rows, step):
        n = min(step, rows - first)
        x[0] = x[step]  # the last row of the block before
        np.right_shift(pixels[first : first + n], s.shift, out=x[1 : n + 1])
        now, above, d = x[1 : n + 1], x[:n], difference[:n]
        np.subtract(
            now[:, 1:], _predicted(now[:, :-1], above[:, 1:], above[:, :-1], s.selection), out=d[:, 1:]
        )
        np.subtract(now[:, 0], above[:, 0], out=d[:, 0])
        starts = slice(-first % per, n, per)
        np.subtract(now[starts, 1:], now[starts, :-1], out=d[starts, 1:])
        d[starts, 0] = now[starts, 0] - (1 << (s.precision - s.shift - 1))
        used[first : first + n] = costs[d & 0xFFFF].sum(axis=1)
    return np.add.reduceat(used, np.arange(0, rows, per))


def _predicted(left: Any, above: Any, corner: Any, selection: int) -> Any:
    """T.81 table H.1."""
    match selection:
        case 1:
            return left
        case 2:
            return above
        case 3:
            return corner
        case 4:
            return left + above - corner
        case 5:
            return left + ((above - corner) >> 1)
        case 6:
            return above + ((left - corner) >> 1)
        case _:
            return (left + above) >> 1


_CATEGORIES: Final = np.frexp(np.abs(np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.int32)))[1]
"""Category of each difference modulo 2**16: the bits of its magnitude (T.81 table H.2)."""
