"""Pixel Data -> cells of one frame, native or compressed.

Native pixels are views into the file. Compressed ones go through jpeg.py (libjpeg-turbo) or pydicom's
decoders (openjpeg, CharLS, RLE) one frame at a time, after the size that the code stream announces has been
checked against the header: a decoder allocates what the stream asks for.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from node.dicom import jpeg
from node.dicom.elements import Fragments
from node.dicom.parse import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from node.dicom.source import Source
from node.errors import SeriesError

NATIVE: Final = frozenset({IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE, DEFLATED_LE})

_J2K: Final = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
_JPEG: Final = jpeg.LOSSLESS | jpeg.LOSSY
_JPEG_LS: Final = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
_RLE: Final = "1.2.840.10008.1.2.5"


def is_native(source: Source) -> bool:
    """Whether the pixels lie uncompressed in the file, which their form tells better than a file's syntax."""
    data = source.pixel_data
    return data is not None and not isinstance(data.value, Fragments)


def can_decode(transfer_syntax_uid: str) -> bool:
    """Whether pixels in this transfer syntax can be decoded by what is installed."""
    if transfer_syntax_uid in NATIVE or transfer_syntax_uid in _JPEG:
        return True
    try:
        return bool(get_decoder(UID(transfer_syntax_uid)).is_available)
    except NotImplementedError:
        return False


def n_cells(source: Source, bits_allocated: int) -> int | None:
    """Number of cells in native Pixel Data, None where it is encapsulated."""
    data = source.pixel_data
    if data is None or isinstance(data.value, Fragments | tuple):
        return None
    return len(data.value) // (bits_allocated // 8)


def frame_cells(
    source: Source, rows: int, columns: int, bits_allocated: int, n_frames: int, index: int
) -> npt.NDArray[Any]:
    """Cells of one frame, (rows, columns) of unsigned or signed integers of ``bits_allocated`` bits.

    Raises
    ------
    SeriesError
        If there are none, or they cannot be decoded. The message holds no value of the data set.
    """
    data = source.pixel_data
    if data is None or isinstance(data.value, tuple):
        raise SeriesError("there is no Pixel Data")
    if bits_allocated not in (8, 16, 32, 64):
        raise SeriesError(f"pixels of {bits_allocated} bits are not decoded")
    if isinstance(data.value, Fragments):
        return _decompressed(source, data.value, rows, columns, bits_allocated, n_frames, index)
    if source.transfer_syntax_uid not in NATIVE:
        raise SeriesError("Pixel Data is not encapsulated as its transfer syntax demands")
    count = rows * columns
    if (index + 1) * count * (bits_allocated // 8) > len(data.value):
        raise SeriesError("Pixel Data is cut short")
    start = index * count * (bits_allocated // 8)
    cells = np.frombuffer(data.value, dtype=f"<u{bits_allocated // 8}", count=count, offset=start)
    return cells.reshape(rows, columns)


def _decompressed(
    source: Source,
    value: Fragments,
    rows: int,
    columns: int,
    bits_allocated: int,
    n_frames: int,
    index: int,
) -> npt.NDArray[Any]:
    syntax = source.transfer_syntax_uid
    if syntax in NATIVE or not can_decode(syntax):
        raise SeriesError(f"no decoder for pixels in transfer syntax {_known(syntax)}")
    try:
        stream = _frame(value, n_frames, index)
    except Exception:  # pydicom raises whatever its parsing meets; the text may hold bytes of the file
        raise SeriesError("the fragments of Pixel Data are not what the number of frames asks for") from None
    size = announced_size(stream, syntax)
    if size is not None and size != (rows, columns):
        raise SeriesError("the compressed image has another size than its header")
    try:
        if syntax in _JPEG:
            array = _by_turbo(source, stream, rows, columns, bits_allocated)
        else:
            array = _by_pydicom(source, stream, rows, columns, bits_allocated)
    except (KeyboardInterrupt, SystemExit, MemoryError, SeriesError):
        raise
    except BaseException as error:  # a panic of the RLE decoder (Rust) is no Exception; texts may hold values
        raise SeriesError(f"pixels cannot be decoded ({type(error).__name__}, {_known(syntax)})") from None
    if array.shape != (rows, columns) or array.dtype.kind not in "iu":
        raise SeriesError("the decoded image has another size than its header")
    wanted = f"{array.dtype.kind}{bits_allocated // 8}"
    return np.ascontiguousarray(array.astype(f"<{wanted}", copy=False))


def _by_turbo(
    source: Source, stream: bytes, rows: int, columns: int, bits_allocated: int
) -> npt.NDArray[Any]:
    cells = jpeg.decode_jpeg(stream, source.transfer_syntax_uid, rows, columns, bits_allocated)
    cells = cells.astype(f"<u{bits_allocated // 8}", copy=False)
    stored = source.integer("BitsStored")
    unused = bits_allocated - stored
    if source.integer("PixelRepresentation") == 1 and unused > 0 and not (cells >> stored).any():
        # JPEG knows no sign: what has no bits above Bits Stored gets those that a native pixel would have.
        signed = cells.view(f"<i{bits_allocated // 8}")
        return (signed << unused) >> unused
    return cells


def _by_pydicom(
    source: Source, stream: bytes, rows: int, columns: int, bits_allocated: int
) -> npt.NDArray[Any]:
    syntax = source.transfer_syntax_uid
    plugin = "pyjpegls" if syntax in _JPEG_LS else ""
    options: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": bits_allocated,
        "bits_stored": source.integer("BitsStored"),
        "pixel_representation": source.integer("PixelRepresentation"),
        "pixel_keyword": "PixelData",
        "correct_unused_bits": False,  # overlays and padding may be there
    }
    array, _ = get_decoder(UID(syntax)).as_array(
        encapsulate([stream], has_bot=False),
        index=0,
        validate=False,  # checked here, and its warnings quote values
        raw=True,
        decoding_plugin=plugin,
        **options,
    )
    return array


def _frame(value: Fragments, n_frames: int, index: int) -> bytes:
    table, parts = value.parts[:1], value.parts[1:]
    if not parts:
        raise ValueError("no fragments")
    if n_frames == 1:
        return b"".join(parts)
    if len(parts) == n_frames:
        return bytes(parts[index])
    # Frames over several fragments: the offset table or the markers tell (PS3.5 A.4).
    raw = [struct.pack("<HHI", 0xFFFE, 0xE000, len(p)) + bytes(p) for p in (*table, *parts)]
    for at, frame in enumerate(generate_frames(b"".join(raw), number_of_frames=n_frames)):
        if at == index:
            return frame
    raise ValueError("too few frames")


def announced_size(stream: bytes, transfer_syntax_uid: str) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream says it has; None where it says nothing.

    ISO/IEC 10918-1 B.2.2 (SOFn), 14495-1 C.2.2 (SOF55), 15444-1 A.5.1 (SIZ).
    """
    if transfer_syntax_uid == _RLE:
        return None
    if transfer_syntax_uid in _J2K:
        at = stream.find(b"\xff\x4f\xff\x51")
        if at < 0 or len(stream) < at + 24:
            return None
        x1, y1, x0, y0 = struct.unpack_from(">IIII", stream, at + 8)
        return y1 - y0, x1 - x0
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns = struct.unpack_from(">HH", stream, at + 5)
            return rows, columns
        if marker == 0xDA:
            return None
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _known(syntax: str) -> str:
    """The syntax's name from the dictionary; a UID from the network is not repeated."""
    uid = UID(syntax)
    return uid.name if uid.name != syntax else "of an unknown UID"
