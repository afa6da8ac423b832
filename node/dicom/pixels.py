"""Pixels in and out: stored values <-> values that an engine understands.

Stored values come out as the scanner meant them (sign, Bits Stored, overlays in unused bits stripped) and go
back into the same encoding: same slope and intercept, per frame, rounded half to even, clipped to Bits
Stored.
Padding is never looked at, never changed and never made. Rules: PS3.3 C.7.5.1.1.2, C.7.6.3, C.8.2.1, C.11.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from node.dicom.decode import frame_cells, n_cells
from node.dicom.elements import Element, Elements, tag_of
from node.dicom.source import (
    CT_CLASSES,
    HOUNSFIELD_TYPES,
    Source,
    SourceLike,
    functional_groups,
    integer_of,
    items_of,
    number_of,
    text_of,
)
from node.dicom.voids import voids
from node.errors import DeriveError, SeriesError

Integers: TypeAlias = npt.NDArray[np.integer[Any]]
Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

MAX_PIXELS: Final = 1 << 26
"""Pixels of a frame: more than four times the largest CT matrix in use, and no bomb."""

_SLOPE, _INTERCEPT = tag_of("RescaleSlope"), tag_of("RescaleIntercept")
_TYPE = tag_of("RescaleType")
_TRANSFORMATION = tag_of("PixelValueTransformationSequence")
_PADDING, _PADDING_LIMIT = tag_of("PixelPaddingValue"), tag_of("PixelPaddingRangeLimit")
_MODALITY_LUT = tag_of("ModalityLUTSequence")


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """How the pixels of one instance are stored.

    Attributes
    ----------
    slope, intercept
        Per frame (``n_frames`` each): value = stored * slope + intercept. Never 0, never infinite.
    padding
        First and last stored value that mean "nothing here", None where there are none.
    overlay_bits
        Bits above Bits Stored that hold overlay planes (PS3.3 C.9.2, retired).
    unit
        ``HU``, or ``arbitrary`` for MR.
    """

    rows: int
    columns: int
    n_frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    slope: tuple[float, ...]
    intercept: tuple[float, ...]
    padding: tuple[int, int] | None
    overlay_bits: int
    unit: Literal["HU", "arbitrary"]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of stored arrays: (u)int8 or (u)int16, little endian."""
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def minimum(self) -> int:
        return -(1 << (self.bits_stored - 1)) if self.signed else 0

    @property
    def maximum(self) -> int:
        return (1 << (self.bits_stored - self.signed)) - 1

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.n_frames, self.rows, self.columns)


class Values(NamedTuple):
    """What an engine gets.

    ``values`` float32 (frames, rows, columns) in the format's unit; ``valid`` bool of the same shape, False
    where there is padding or a void (voids.py); ``step`` float32 (frames,): |slope|, the width of one stored unit.
    """

    values: Floats
    valid: Mask
    step: Floats


def pixel_format(source: SourceLike) -> PixelFormat:
    """How an instance's pixels are stored, checked.

    Raises
    ------
    SeriesError
        If an engine cannot work on such pixels: no or float pixels, colour, more than 16 bits, a bit layout
        that PS3.3 C.8.2.1 and C.8.3.1 do not allow, a slope of 0 or no number, a CT not in Hounsfield units,
        a Modality LUT.
    """
    s = Source.open(source)
    if s.integer("SamplesPerPixel", 1) != 1 or not s.text("PhotometricInterpretation").upper().startswith(
        "MONO"
    ):
        raise SeriesError("pixels are in colour or by palette")
    allocated, stored = s.integer("BitsAllocated"), s.integer("BitsStored")
    if allocated not in (8, 16) or not 1 < stored <= allocated:
        raise SeriesError(f"{allocated} bits allocated, {stored} stored: not supported")
    if s.integer("HighBit", stored - 1) != stored - 1:
        raise SeriesError("High Bit is not Bits Stored - 1 (PS3.3 C.8.2.1.1.6)")
    rows, columns = s.integer("Rows"), s.integer("Columns")
    n_frames = s.integer("NumberOfFrames", 1)
    if rows < 1 or columns < 1 or n_frames < 1:
        raise SeriesError("an image without rows, columns or frames")
    if rows * columns > MAX_PIXELS:
        raise SeriesError(f"{rows} x {columns} pixels a frame: not supported")
    if s.pixel_data is None:
        raise SeriesError("there is no Pixel Data")
    signed = s.integer("PixelRepresentation") == 1
    slope, intercept, unit = _rescale(s, n_frames)
    return PixelFormat(
        rows=rows,
        columns=columns,
        n_frames=n_frames,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        slope=slope,
        intercept=intercept,
        padding=_padding(s, allocated, signed),
        overlay_bits=_overlay_bits(s.elements, allocated, stored),
        unit=unit,
    )


def decode(source: SourceLike, frames: range | None = None, *, fmt: PixelFormat | None = None) -> Integers:
    """Stored values of an instance.

    Parameters
    ----------
    source
        Decoding a part of a large multi-frame object reads only that part.
    frames
        Indices (from 0) to decode; None means all.
    fmt
        What :func:`pixel_format` says of the source, where that was asked already.

    Returns
    -------
    ndarray
        (frames, rows, columns) of ``pixel_format(source).dtype``, C-contiguous, the caller's own. Values
        outside Bits Stored, that some scanners use as padding, are kept as they are: ``to_values`` calls
        them not valid.

    Raises
    ------
    SeriesError
        If the pixels cannot be decoded, are cut short, or :func:`pixel_format` refuses them.
    """
    s = Source.open(source)
    fmt = pixel_format(s) if fmt is None else fmt
    wanted = range(fmt.n_frames) if frames is None else frames
    if wanted and not (0 <= wanted[0] < fmt.n_frames and 0 <= wanted[-1] < fmt.n_frames):
        raise ValueError("no such frame")
    had = n_cells(s, fmt.bits_allocated)
    if had is not None and had < fmt.n_frames * fmt.rows * fmt.columns:
        raise SeriesError("Pixel Data is cut short")
    out = np.empty((len(wanted), fmt.rows, fmt.columns), fmt.dtype)
    for i, frame in enumerate(wanted):
        out[i] = _stored(frame_cells(s, fmt.rows, fmt.columns, fmt.bits_allocated, fmt.n_frames, frame), fmt)
    return out


def to_values(
    stored: Integers, fmt: PixelFormat, *, first: int = 0, into: tuple[Floats, Mask] | None = None
) -> Values:
    """Stored values -> values in HU or arbitrary units.

    Parameters
    ----------
    stored
        (frames, rows, columns) as from :func:`decode`.
    fmt
        Of the same instance.
    first
        Index of the instance's frame that ``stored[0]`` is.
    into
        Where values and valid are to be put, of the shape of ``stored``; None: into new arrays.
    """
    if into is None:
        into = np.empty(stored.shape, np.float32), np.empty(stored.shape, np.bool_)
    values, valid = into
    _valid(stored, fmt, valid)
    for i, frame in enumerate(stored):
        slope, intercept = fmt.slope[first + i], fmt.intercept[first + i]
        _forward(frame, slope, intercept, values[i])
        nothing = voids(frame, slope, intercept, fmt.unit, fmt.padding)
        if nothing is not None:
            np.copyto(valid[i], False, where=nothing)
    step = np.abs(np.asarray(fmt.slope[first : first + len(stored)], np.float32))
    return Values(values, valid, step)


def to_stored(values: Floats, stored: Integers, valid: Mask, fmt: PixelFormat, *, first: int = 0) -> Integers:
    """Values -> stored values, in the encoding of the source.

    Parameters
    ----------
    values
        float32 (frames, rows, columns), what the engine made of ``to_values(stored).values``.
    stored
        What :func:`decode` gave: kept where not ``valid``, and exactly kept where a value was not changed,
        whatever slope and intercept are.
    valid
        bool of the same shape.
    first
        Index of the instance's frame that ``values[0]`` is.

    Returns
    -------
    ndarray
        Same shape and dtype as ``stored``.

    Raises
    ------
    DeriveError
        If shapes differ or a valid value is not finite.
    """
    if values.shape != stored.shape or valid.shape != stored.shape or stored.dtype != fmt.dtype:
        raise DeriveError("an engine's result does not have the shape of what it was given")
    out = np.empty_like(stored)
    near = np.empty(stored.shape[1:], np.float32)
    for i, frame in enumerate(stored):
        slope, intercept, good = fmt.slope[first + i], fmt.intercept[first + i], valid[i]
        if slope != 1.0 or not _shifted(values[i], intercept, fmt, near, out[i]):
            _backward(values[i], frame, good, slope, intercept, fmt, near, out[i])
        if fmt.padding is not None:
            _leave_padding(out[i], frame, good, fmt.padding)
        if not good.all():
            np.copyto(out[i], frame, where=~good)
    return out


def _shifted(values: Floats, intercept: float, fmt: PixelFormat, near: Floats, out: Integers) -> bool:
    """What :func:`_backward` makes of a slope of 1 and an even intercept, in float32; False where it cannot be.

    An even number moves halves to the side to which they are rounded anyway, and nothing else is rounded.
    """
    low, high = fmt.minimum + intercept, fmt.maximum + intercept
    if intercept % 2 or max(abs(low), abs(high)) > 1 << 22:
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        if not np.isfinite(values.sum()):
            return False
    np.clip(values, np.float32(low), np.float32(high), out=near)
    np.rint(near, out=near)
    np.subtract(near, np.float32(intercept), out=out, casting="unsafe")
    return True


def _backward(
    values: Floats,
    frame: Integers,
    good: Mask,
    slope: float,
    intercept: float,
    fmt: PixelFormat,
    before: Floats,
    out: Integers,
) -> None:
    # stored + change / slope, and not (value - intercept) / slope: no change is then no change
    # whatever float32 makes of the slope, and elsewhere it is the same number.
    _forward(frame, slope, intercept, before)
    exact = np.subtract(values, before, dtype=np.float64, casting="unsafe")
    if slope != 1.0:
        exact /= slope
    exact += frame
    with np.errstate(invalid="ignore"):
        all_finite = np.isfinite(exact.sum())  # one pass: a sum is finite only if every part is
    if not all_finite:
        if not np.isfinite(exact[good]).all():
            raise DeriveError("an engine returned values that are not finite")
        exact[~good] = 0.0
    np.rint(exact, out=exact)
    np.clip(exact, fmt.minimum, fmt.maximum, out=exact)
    out[:] = exact  # whole numbers within range: the cast is exact


def _forward(frame: Integers, slope: float, intercept: float, out: Floats) -> None:
    if slope == 1.0 and intercept.is_integer() and abs(intercept) < 1 << 22:
        np.add(frame, np.float32(intercept), out=out, dtype=np.float32)  # exact in float32
        return
    np.add(np.multiply(frame, slope, dtype=np.float64), intercept, out=out, casting="unsafe")


def _valid(stored: Integers, fmt: PixelFormat, valid: Mask) -> None:
    if fmt.padding is None:
        valid[:] = True
    else:
        low, high = fmt.padding
        if low == high:
            np.not_equal(stored, low, out=valid)
        else:
            np.logical_or(stored < low, stored > high, out=valid)
    if fmt.bits_stored == fmt.bits_allocated:
        return
    # Few scanners store what their bits do not hold: its ends tell of all of a frame.
    if stored.size and stored.max() > fmt.maximum:
        valid &= stored <= fmt.maximum
    if fmt.signed and stored.size and stored.min() < fmt.minimum:
        valid &= stored >= fmt.minimum


def _leave_padding(out: Integers, before: Integers, valid: Mask, padding: tuple[int, int]) -> None:
    """Move what came to mean padding to the nearest value on the side that it came from."""
    low, high = padding
    landed = (out >= low) & (out <= high) & valid
    if landed.any():
        out[landed] = np.where(before[landed] < low, low - 1, high + 1)


def _stored(cells: Integers, fmt: PixelFormat) -> Integers:
    """Cells -> stored values: overlay bits stripped, sign extended from Bits Stored.

    Bits above Bits Stored mean nothing by the standard, but some scanners put padding there that does not
    fit (63536 in 12 bits): what is neither an overlay nor a sign is left for :func:`_valid` to see.
    """
    unused = fmt.bits_allocated - fmt.bits_stored
    unsigned = cells.view(f"<u{fmt.bits_allocated // 8}")
    if not unused:
        return unsigned.view(fmt.dtype)
    if fmt.overlay_bits:
        unsigned = unsigned & ~unsigned.dtype.type(fmt.overlay_bits)
    if not fmt.signed:
        return unsigned
    above = unsigned >> fmt.bits_stored
    if above.any():
        whole = unsigned.view(fmt.dtype)
        odd = (above != 0) & (above != (1 << unused) - 1)
        if not odd.any():
            return (whole << unused) >> unused
        return np.where(odd, whole, (whole << unused) >> unused)
    return (unsigned.view(fmt.dtype) << unused) >> unused


def _rescale(
    s: Source, n_frames: int
) -> tuple[tuple[float, ...], tuple[float, ...], Literal["HU", "arbitrary"]]:
    is_ct = s.sop_class_uid in CT_CLASSES
    lut = s.elements.get(_MODALITY_LUT)
    if lut is not None and items_of(lut):
        raise SeriesError("a Modality LUT instead of a rescale is not supported (PS3.3 C.11.1)")
    if not s.is_multi_frame:
        slope, intercept = _linear(s.elements, is_ct)
        return (slope,) * n_frames, (intercept,) * n_frames, "HU" if is_ct else "arbitrary"
    shared, per_frame = functional_groups(s.elements)
    if len(per_frame) not in (0, n_frames):
        raise SeriesError("functional groups and frames differ in number")
    pairs = []
    for frame in per_frame or ({},) * n_frames:
        found = frame.get(_TRANSFORMATION) or shared.get(_TRANSFORMATION)
        pairs.append(_linear(found.items[0] if found is not None and found.items else {}, is_ct))
    return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), "HU" if is_ct else "arbitrary"


def _linear(elements: Elements, is_ct: bool) -> tuple[float, float]:
    slope, intercept = number_of(elements.get(_SLOPE)), number_of(elements.get(_INTERCEPT))
    if is_ct:
        if slope is None or intercept is None:
            raise SeriesError("a CT without Rescale Slope and Intercept is not in Hounsfield units")
        if text_of(elements.get(_TYPE)).upper() not in HOUNSFIELD_TYPES:
            raise SeriesError("the Rescale Type of this CT is not HU")
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    # Less than the smallest float32 is no slope; past the largest nothing is representable.
    if not 1e-30 < abs(slope) < 1e30 or abs(intercept) > 1e30:
        raise SeriesError("Rescale Slope is 0 or out of all bounds")
    return slope, intercept


def _padding(s: Source, allocated: int, signed: bool) -> tuple[int, int] | None:
    """First and last padding value. The bits count, whatever the VR: GE writes US 63536 for -2000."""
    low = _bits(s.elements.get(_PADDING), allocated, signed)
    if low is None:
        return None
    high = _bits(s.elements.get(_PADDING_LIMIT), allocated, signed)
    return (low, low) if high is None else (min(low, high), max(low, high))


def _bits(element: Element | None, allocated: int, signed: bool) -> int | None:
    value = integer_of(element)
    if value is None:
        return None
    value &= (1 << allocated) - 1
    return value - (1 << allocated) if signed and value >> (allocated - 1) else value


def _overlay_bits(elements: Elements, allocated: int, stored: int) -> int:
    bits = 0
    for tag, position in overlays_in_pixels(elements):
        del tag
        if stored <= position < allocated:
            bits |= 1 << position
    return bits


def overlays_in_pixels(elements: Elements) -> list[tuple[int, int]]:
    """Overlay groups without data of their own, as (group << 16, bit position) (PS3.3 C.9.2, retired)."""
    found = []
    for group in range(0x6000, 0x6020, 2):
        base = group << 16
        position = integer_of(elements.get(base | 0x0102))
        if position is not None and position > 0 and base | 0x3000 not in elements:
            found.append((base, position))
    return found
