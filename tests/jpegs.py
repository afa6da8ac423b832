"""A lossless JPEG encoder after ITU-T T.81 annex H, that shares no code with node.dicom, and its parts."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

TABLE: Mapping[int, str] = {
    0: "000",
    1: "001",
    2: "010",
    3: "011",
    4: "100",
    5: "101",
    **{6 + n: "11" + "1" * n + "0" for n in range(11)},
}
"""A code for each of the 17 categories."""


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def dht(table: Mapping[int, str] = TABLE, number: int = 0) -> bytes:
    by_length = sorted(table, key=lambda symbol: (len(table[symbol]), table[symbol]))
    counts = bytes(sum(len(table[s]) == n for s in by_length) for n in range(1, 17))
    return segment(0xC4, bytes([number]) + counts + bytes(by_length))


def sof(rows: int, columns: int, precision: int, marker: int = 0xC3) -> bytes:
    return segment(marker, struct.pack(">BHHBBBB", precision, rows, columns, 1, 1, 0x11, 0))


def sos(selection: int, shift: int = 0, last: int = 0) -> bytes:
    return segment(0xDA, bytes([1, 1, 0, selection, last, shift]))


def lossless(
    pixels: np.ndarray[Any, Any],
    precision: int,
    *,
    selection: int = 1,
    shift: int = 0,
    restart_rows: int = 0,
    pad: str = "1",
    before: bytes = b"",
    after: bytes = b"\xff\xd9",
) -> bytes:
    """The stream of ``pixels``, whose ``shift`` lowest bits are lost."""
    rows, columns = pixels.shape
    per = restart_rows or rows
    parts = [scan(pixels[at : at + per], precision, selection, shift, pad) for at in range(0, rows, per)]
    body = parts[0] + b"".join(bytes([0xFF, 0xD0 + n % 8]) + part for n, part in enumerate(parts[1:]))
    dri = segment(0xDD, struct.pack(">H", restart_rows * columns)) if restart_rows else b""
    head = b"\xff\xd8" + before + sof(rows, columns, precision) + dht() + dri + sos(selection, shift)
    return head + body + after


def scan(pixels: np.ndarray[Any, Any], precision: int, selection: int, shift: int, pad: str = "1") -> bytes:
    """Entropy-coded bytes of one restart interval."""
    x = [[int(v) >> shift for v in row] for row in pixels]
    bits: list[str] = []
    for i, row in enumerate(x):
        for j, value in enumerate(row):
            if i == 0:
                predicted = row[j - 1] if j else 1 << (precision - shift - 1)
            elif j == 0:
                predicted = x[i - 1][0]
            else:
                a, b, c = row[j - 1], x[i - 1][j], x[i - 1][j - 1]
                predicted = (
                    a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1
                )[selection - 1]  # fmt: skip
            difference = (value - predicted + 32767) % 65536 - 32767  # -32767..32768
            category = abs(difference).bit_length()
            bits.append(TABLE[category])
            if 0 < category < 16:
                extra = difference if difference > 0 else difference + (1 << category) - 1
                bits.append(f"{extra:0{category}b}")
    text = "".join(bits)
    text += pad * (-len(text) % 8)
    return int(text or "0", 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
