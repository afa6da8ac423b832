"""Decoded pixels of a series, in files without a name: gone with the process, however it ends.

What was decoded is kept for the survey, for the enhancement and as neighbours; what came out is kept only
where an instance has many frames, which are finished one by one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.base import Unit, Volume
from engines.errors import OutputImplausible
from node.dicom.pixels import PixelFormat, decode, pixel_format, to_stored, to_values
from node.dicom.resample import MOST
from node.dicom.source import Source
from node.dicom.stacks import Stack
from node.enhance.lanes import in_order
from node.errors import SeriesError
from node.store.disk import disk_error

Stored: TypeAlias = npt.NDArray[np.integer[Any]]

_DECODE_AT_ONCE = 16
_DECODE_BYTES = 8 << 20
"""Frames of one instance that are decoded at once, at most, by number and by what they take."""
_READ_WHOLE = 32 << 20
"""Files up to this size are read in one go; larger ones are mapped, and digested in pieces."""
_HEAD_BYTES = 64 << 10
_HEADS_BYTES = 32 << 20
"""What is kept of files without their pixels, at most: of each, and of all in a series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One source instance. ``sha256`` is of the data set at ``offset``; empty where none was recorded."""

    sop_instance_uid: str
    path: Path
    offset: int
    sha256: str

    def open(self) -> Source:
        """The instance, proved to be what was received (R13).

        Raises
        ------
        SeriesError
            It is not, or cannot be parsed.
        OSError
            It cannot be read.
        """
        return self.opened()[0]

    def opened(self) -> tuple[Source, bytes]:
        """As :meth:`open`, with the same bytes but for the pixels: an instance whose Pixel Data is empty.

        These are empty where they cannot be had by leaving out one part of the file.
        """
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) > _READ_WHOLE:
                file.seek(self.offset)
                digest = hashlib.file_digest(file, "sha256").hexdigest() if self.sha256 else ""
                self._must_be(digest)
                return Source.open(self.path), b""
            file.seek(0)
            data = file.read()
        self._must_be(hashlib.sha256(memoryview(data)[self.offset :]).hexdigest() if self.sha256 else "")
        source = Source.open(data)
        return source, _without_pixels(data, source)

    def _must_be(self, digest: str) -> None:
        if digest != self.sha256:
            raise SeriesError(
                "the bytes in the spool are not those that were received",
                hint="the disk is failing: `luminode spool fsck` names the files; send the series again",
            )


def _without_pixels(data: bytes, source: Source) -> bytes:
    """A file with an empty Pixel Data element, or nothing."""
    value = source.pixel_data.value if source.pixel_data is not None else None
    if (
        not isinstance(value, memoryview) or value.obj is not data
    ):  # encapsulated, inflated, swapped or very small
        return b""
    where = (np.frombuffer(v, np.uint8).__array_interface__["data"][0] for v in (value, data))
    at = next(where) - next(where)
    if len(data) - len(value) > _HEAD_BYTES:
        return b""
    # The four bytes before a native value are its length, in every encoding (PS3.5 7.1).
    return data[: at - 4] + bytes(4) + data[at + len(value) :]


@dataclass(slots=True)
class Place:
    """Where an instance lies in the scratch files, and how it is stored.

    ``head`` is the file as it was verified, without its pixels; empty where it is to be read again.
    """

    item: Item
    fmt: PixelFormat
    at: int
    head: bytes = b""

    @property
    def frame_bytes(self) -> int:
        return _frame_bytes(self.fmt)


class Opened(NamedTuple):
    """An instance that was verified, and the first of its frames."""

    item: Item
    source: Source
    fmt: PixelFormat
    stored: Stored
    head: bytes


class Slab(NamedTuple):
    """Consecutive slices of a stack: as an engine wants them, and as they were stored."""

    volume: Volume
    stored: Sequence[Stored]


class Encoded(NamedTuple):
    """A slice as its source was stored, (1, rows, columns); ``kept`` is False where it *is* its source, because too
    much of what an engine made of it cannot be stored."""

    stored: Stored
    kept: bool


class Scratch:
    """Decoded pixels before and after. Use as a context manager; any thread may read.

    Parameters
    ----------
    folder
        On a disk with room for them; nothing of it shows there.
    scale
        How many rows and columns come out for one that goes in.
    """

    def __init__(self, folder: Path, scale: int = 1) -> None:
        self._folder, self._scale = folder, scale
        self._end = 0
        self._heads_left = _HEADS_BYTES
        self.places: dict[str, Place] = {}

    def __enter__(self) -> Scratch:
        self._before, self._after = PageFile(self._folder), PageFile(self._folder)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._before.close()
        self._after.close()

    def read(self, item: Item) -> Opened:
        """Verify and open an instance and decode its first frames; any thread may, for any instance.

        Raises
        ------
        SeriesError, OSError
            See :meth:`Item.open` and :func:`node.dicom.pixels.decode`.
        """
        source, head = item.opened()
        fmt = pixel_format(source)
        if max(fmt.rows, fmt.columns) * self._scale > MOST:
            raise SeriesError(f"{fmt.rows} x {fmt.columns} pixels cannot be doubled")
        stored = decode(source, range(min(_frames_at_once(fmt), fmt.n_frames)), fmt=fmt)
        return Opened(item, source, fmt, stored, b"" if fmt.overlay_bits else head)

    def take(self, opened: Opened, threads: int = 1) -> Iterator[float]:
        """Put an instance away, its other frames too; yields the share that is done after every few of them."""
        item, fmt = opened.item, opened.fmt
        if item.sop_instance_uid in self.places:
            raise SeriesError("an instance is there twice")
        head = opened.head if len(opened.head) <= self._heads_left else b""
        self._heads_left -= len(head)
        place = Place(item=item, fmt=fmt, at=self._end, head=head)
        step = _frames_at_once(fmt)
        left = [range(n, min(n + step, fmt.n_frames)) for n in range(step, fmt.n_frames, step)]
        others = in_order(
            partial(decode, opened.source, fmt=fmt), left, min(threads, len(left)), name="decode"
        )
        done = 0
        with closing(others):
            for stored in chain([opened.stored], others):
                self._before.write(place.at + done * place.frame_bytes, stored)
                done += len(stored)
                if done == fmt.n_frames:
                    self.places[item.sop_instance_uid] = place
                    # Whole pages: a mapping begins at one.
                    self._end += -(-place.frame_bytes * fmt.n_frames // _PAGE) * _PAGE
                yield done / fmt.n_frames

    def source(self, place: Place) -> Source:
        """The instance that lies there, for all but its pixels: as it was verified, or verified anew.

        Raises
        ------
        SeriesError, OSError
            See :meth:`Item.open`.
        """
        return Source.open(place.head) if place.head else place.item.open()

    def slab(self, stack: Stack, first: int, last: int) -> Slab:
        """Slices [first, last) of a stack."""
        refs = stack.frames[first:last]
        places = [self.places[r.sop_instance_uid] for r in refs]
        units = {p.fmt.unit for p in places}
        shapes = {(p.fmt.rows, p.fmt.columns) for p in places}
        if len(units) != 1 or len(shapes) != 1:
            raise SeriesError("slices of one stack differ in matrix or unit")
        shape = (len(refs), *shapes.pop())
        values, valid = np.empty(shape, np.float32), np.empty(shape, np.bool_)
        step = np.empty(len(refs), np.float32)
        kept = []
        for i, (ref, place) in enumerate(zip(refs, places, strict=True)):
            frame = ref.frame_number - 1
            if not 0 <= frame < place.fmt.n_frames:
                raise SeriesError("a header tells of frames that its pixels do not have")
            stored = np.empty((1, *shape[1:]), place.fmt.dtype)
            self._before.read(place.at + frame * place.frame_bytes, stored)
            one = slice(i, i + 1)
            told = to_values(stored, place.fmt, first=frame, into=(values[one], valid[one]))
            step[one] = told.step
            kept.append(stored)
        volume = Volume(
            values=values,
            spacing_mm=stack.spacing_mm,
            unit=units.pop(),
            valid=valid,
            contiguous=np.asarray(stack.contiguous[first:last], np.bool_),
            step=step,
        )
        return Slab(volume, kept)

    def unit(self, stack: Stack) -> Unit:
        """The unit of a stack's values."""
        return self.places[stack.frames[0].sop_instance_uid].fmt.unit

    @property
    def n_bytes(self) -> int:
        """What the decoded pixels take on the disk."""
        return self._end

    def encoded(self, stack: Stack, first: int, slab: Slab, at: int, result: Volume) -> list[Encoded]:
        """Enhanced slices as their sources were stored.

        ``result`` holds slices of the stack from ``first`` on, which are those of ``slab`` from ``at`` on.

        Raises
        ------
        OutputImplausible
            A large part of a slice of another matrix cannot be stored.
        """
        out = []
        for i, values in enumerate(result.values):
            ref = stack.frames[first + i]
            fmt, frame = self.places[ref.sop_instance_uid].fmt, ref.frame_number - 1
            stored, valid = slab.stored[at + i], slab.volume.valid[at + i][None]
            if self._scale != 1:  # each pixel stands for those that were made beside it
                stored, valid = (_repeated(v, self._scale) for v in (stored, valid))
            if _storable(values, valid[0], fmt, frame, MOST_CLIPPED[self._scale]):
                out.append(Encoded(to_stored(values[None], stored, valid, fmt, first=frame), True))
            elif self._scale == 1:
                out.append(Encoded(stored.copy(), False))
            else:
                raise OutputImplausible("a large part of a slice lies outside of what its source can store")
        return out

    def put(self, place: Place, frame: int, stored: Stored) -> None:
        """Put one finished frame of a multi-frame instance away."""
        self._after.write(place.at * self._scale**2 + frame * stored.nbytes, stored)

    def whole(self, place: Place) -> Stored:
        """All finished frames of an instance, mapped and not read: as many as there may be."""
        fmt, more = place.fmt, self._scale**2
        data = self._after.map(place.at * more, place.frame_bytes * fmt.n_frames * more)
        shape = (fmt.n_frames, fmt.rows * self._scale, fmt.columns * self._scale)
        return np.frombuffer(data, fmt.dtype).reshape(shape)


def _frame_bytes(fmt: PixelFormat) -> int:
    return fmt.rows * fmt.columns * fmt.dtype.itemsize


def _frames_at_once(fmt: PixelFormat) -> int:
    return max(1, min(_DECODE_AT_ONCE, _DECODE_BYTES // max(1, _frame_bytes(fmt))))


MOST_CLIPPED = {1: 0.05, 2: 0.25}
"""Share of the valid voxels that may lie outside of what the source can store, by more than a unit; by the scale
of the engine: noise that a scanner cut off at the lowest value rings below it when it is interpolated."""


def _storable(
    values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], fmt: PixelFormat, frame: int, most: float
) -> bool:
    """Whether a slice can be stored but for a small share of its voxels, at ``most``."""
    slope, intercept = fmt.slope[frame], fmt.intercept[frame]
    ends = sorted(slope * end + intercept for end in (fmt.minimum, fmt.maximum))
    low, high = ends[0] - abs(slope), ends[1] + abs(slope)
    if values.min() >= low and values.max() <= high:
        return True
    n = int((((values < low) | (values > high)) & valid).sum())
    return n <= most * max(1, int(valid.sum()))


def _repeated(values: npt.NDArray[Any], times: int) -> npt.NDArray[Any]:
    return np.repeat(np.repeat(values, times, axis=-2), times, axis=-1)


_PAGE = mmap.ALLOCATIONGRANULARITY


class PageFile:
    """A file without a name, written and read at positions."""

    def __init__(self, folder: Path) -> None:
        try:
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - closed by its owner
        except OSError as error:
            raise disk_error(error, "scratch") from None

    def close(self) -> None:
        self._file.close()

    def write(self, at: int, data: Stored) -> None:
        """Put an array at a position."""
        left = np.ascontiguousarray(data).data.cast("B")
        try:
            while left:
                n = os.pwrite(self._file.fileno(), left, at)
                at, left = at + n, left[n:]
        except OSError as error:
            raise disk_error(error, "scratch") from None

    def read(self, at: int, into: Stored) -> None:
        """Fill an array from a position."""
        left = into.data.cast("B")
        try:
            while left:
                n = os.preadv(self._file.fileno(), [left], at)
                if n == 0:
                    raise SeriesError("the scratch file is shorter than what was put there")
                at, left = at + n, left[n:]
        except OSError as error:
            raise disk_error(error, "scratch") from None

    def map(self, at: int, n_bytes: int) -> mmap.mmap:
        try:
            return mmap.mmap(self._file.fileno(), n_bytes, access=mmap.ACCESS_READ, offset=at)
        except OSError as error:
            raise disk_error(error, "scratch") from None
