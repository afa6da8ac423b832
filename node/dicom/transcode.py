"""A stored data set in another transfer syntax, without losing a bit, for a peer that refuses the stored one.

Values stay the bytes that they were (parse.py, encode.py). Compressed pixels are decoded again and compared
before they go out: an encoder that a pixel surprises must not be noticed by a radiologist.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import UID

from node.dicom.decode import NATIVE, can_decode, frame_cells, is_native
from node.dicom.elements import PIXEL_DATA, Element, Elements, Fragments
from node.dicom.encode import encode
from node.dicom.parse import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from node.dicom.source import Source
from node.errors import DeriveError, SeriesError

JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"
J2K_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"
RLE_LOSSLESS: Final = "1.2.840.10008.1.2.5"

TARGETS: Final = (
    *(EXPLICIT_LE, IMPLICIT_LE, J2K_LOSSLESS, JPEG_LS_LOSSLESS, RLE_LOSSLESS, DEFLATED_LE, EXPLICIT_BE),
)
"""What a data set can be re-encoded to, in the order in which a sender should prefer them."""


def can_transcode(source_syntax: str, target_syntax: str) -> bool:
    """Whether :func:`transcode` knows the way; the pixels of one object may still refuse it."""
    if source_syntax == target_syntax:
        return True
    if target_syntax in NATIVE:
        return source_syntax in NATIVE or can_decode(source_syntax)
    return source_syntax in NATIVE and target_syntax in TARGETS and _encoder(target_syntax).is_available


def transcode(path: Path, offset: int, source_syntax: str, target_syntax: str) -> bytes:
    """Re-encode a data set of a stored file.

    Parameters
    ----------
    path, offset
        The file and where in it its data set begins.
    source_syntax, target_syntax
        Transfer Syntax UIDs; the same twice gives the bytes as they are.

    Returns
    -------
    bytes
        The data set, without file meta information. The same input always gives the same bytes.

    Raises
    ------
    DeriveError
        If there is no lossless way: an unknown syntax, colour to or from a compressed one, pixels that do
        not survive an encoder.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    if source_syntax == target_syntax:
        return data
    if not can_transcode(source_syntax, target_syntax):
        raise DeriveError("no lossless way from one of these transfer syntaxes to the other")
    try:
        source = Source.of(data, source_syntax)
        elements = dict(source.elements)
        if source.pixel_data is not None and target_syntax not in NATIVE:
            elements[PIXEL_DATA] = Element(PIXEL_DATA, "OB", _compressed(source, target_syntax))
        elif source.pixel_data is not None and not is_native(source):
            elements |= _native(source)
    except SeriesError as error:
        raise DeriveError(f"cannot be re-encoded: {error.message}") from None
    return encode(elements, target_syntax)


def _shape(source: Source) -> tuple[int, int, int, int]:
    """Rows, columns, bits allocated, frames; one sample a pixel."""
    if source.integer("SamplesPerPixel", 1) != 1:
        raise DeriveError("pixels in colour are not re-encoded to or from a compressed transfer syntax")
    return (
        source.integer("Rows"),
        source.integer("Columns"),
        source.integer("BitsAllocated"),
        source.integer("NumberOfFrames", 1),
    )


def _native(source: Source) -> Elements:
    rows, columns, bits, n_frames = _shape(source)
    cells = [frame_cells(source, rows, columns, bits, n_frames, at).tobytes() for at in range(n_frames)]
    return {PIXEL_DATA: Element(PIXEL_DATA, "OW" if bits > 8 else "OB", b"".join(cells))}


def _compressed(source: Source, target_syntax: str) -> Fragments:
    rows, columns, bits, n_frames = _shape(source)
    if bits not in (8, 16):
        raise DeriveError(f"pixels of {bits} bits are not compressed")
    signed = source.integer("PixelRepresentation") == 1
    options: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": bits,
        "bits_stored": source.integer("BitsStored"),
        "pixel_representation": int(signed),
    }
    dtype = np.dtype(f"<{'i' if signed else 'u'}{bits // 8}")
    frames, offsets, at = [], [], 0
    for index in range(n_frames):
        cells = frame_cells(source, rows, columns, bits, n_frames, index).view(dtype)
        try:
            made = bytes(_encoder(target_syntax).encode(np.ascontiguousarray(cells), **options))
        except Exception as error:  # encoders raise everything there is; the text may hold values
            raise DeriveError(f"pixels cannot be compressed ({type(error).__name__})") from None
        made += b"\x00" * (len(made) & 1)
        if not np.array_equal(
            _back(source, made, target_syntax, (rows, columns), bits), cells.view(f"<u{bits // 8}")
        ):
            raise DeriveError("pixels do not survive compression")
        frames.append(made)
        offsets.append(at)
        at += len(made) + 8
    table = struct.pack(f"<{n_frames}I", *offsets) if at < 1 << 32 else b""
    return Fragments((table, *frames))


def _back(source: Source, stream: bytes, syntax: str, size: tuple[int, int], bits: int) -> Any:
    elements = source.elements | {PIXEL_DATA: Element(PIXEL_DATA, "OB", Fragments((b"", stream)))}
    return frame_cells(Source(elements, syntax), *size, bits, 1, 0).view(f"<u{bits // 8}")


def _encoder(syntax: str) -> Any:
    return get_encoder(UID(syntax))
