"""A derived instance from a source instance and its new pixels.

The source's elements are copied as bytes through the table of policy.py; each attribute that the table says
is written has one function in writers.py. Single-frame CT and MR, Enhanced and Legacy Converted multi-frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from node.dicom import policy
from node.dicom.derivation import Derivation
from node.dicom.elements import PIXEL_DATA, Buffer, Elements, tag_of, text
from node.dicom.encode import chunks, header
from node.dicom.overlays import extracted
from node.dicom.parse import EXPLICIT_LE
from node.dicom.pixels import PixelFormat, pixel_format
from node.dicom.references import Reference
from node.dicom.resample import MOST
from node.dicom.source import CLASSIC, MULTI_FRAME, Source, SourceLike
from node.dicom.text import charsets_of, decoded
from node.dicom.words import words, zone_of
from node.dicom.writers import (
    WRITERS,
    Task,
    description_of_series,
    equipment,
    number_of_series,
    resampled,
)
from node.errors import DeriveError, SeriesError

__all__ = ["Derivation", "Derived", "Reference", "derive"]

_WRITERS: Final = {tag_of(keyword): write for keyword, write in WRITERS.items()}
_CLASS: Final = tag_of("SOPClassUID")
_CHARSET: Final = tag_of("SpecificCharacterSet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A derived instance, ready to be written (part10.py).

    ``head`` and ``tail`` are the encoded data set before and after the pixels; ``pixels`` is the array that
    :func:`derive` was given, little endian (frames, rows, columns), not copied. Always Explicit VR Little
    Endian.
    """

    sop_class_uid: str
    sop_instance_uid: str
    source_sop_instance_uid: str
    study_uid: str
    series_uid: str
    series_number: int
    series_description: str
    head: bytes
    pixels: npt.NDArray[np.integer[Any]]
    tail: bytes
    transfer_syntax_uid: str = EXPLICIT_LE


def derive(
    source: SourceLike,
    stored: npt.NDArray[np.integer[Any]],
    how: Derivation,
    *,
    order: int,
    neighbours: Sequence[Reference] = (),
) -> Derived:
    """Make the derived instance of one source instance.

    Parameters
    ----------
    source
        The received instance.
    stored
        (frames, rows, columns), what :func:`node.dicom.pixels.to_stored` gave: every frame of the instance;
        ``how.scale`` times the rows and columns of the source.
    how
        The same for all instances of the series.
    order
        Index of this instance (from 0) in its series' order of Content Date and Time: readers of dynamic
        series sort by it. One millisecond apart.
    neighbours
        Other instances that the engine looked at, named as sources after the instance itself.

    Raises
    ------
    SeriesError
        If the source is of a class that is not enhanced, lacks a UID, or cannot be read.
    DeriveError
        If ``stored`` does not fit the source.
    """
    s = Source.open(source)
    if s.sop_class_uid not in CLASSIC | MULTI_FRAME:
        raise SeriesError("instances of this SOP Class are not enhanced")
    fmt = pixel_format(s)
    matrix = (how.scale * fmt.rows, how.scale * fmt.columns)
    if stored.shape != (fmt.n_frames, *matrix) or stored.dtype != fmt.dtype:
        raise DeriveError("the pixels do not have the shape and type of their source's")
    if max(matrix) > MOST:
        raise SeriesError(f"{matrix[0]} x {matrix[1]} pixels are more than Rows and Columns can tell")
    reference = Reference(
        s.sop_class_uid, s.uid("SOPInstanceUID"), s.uid("SeriesInstanceUID"), s.uid("StudyInstanceUID")
    )
    out = policy.kept(s.elements, fmt.rows * fmt.columns * fmt.bits_allocated // 8)
    task = Task(
        source=s,
        elements=dict(out),
        how=how,
        n_frames=fmt.n_frames,
        matrix=matrix,
        words=words(how, zone_of(s.text("TimezoneOffsetFromUTC"), how.when.tzinfo or UTC)),
        charsets=charsets_of(s.elements[_CHARSET].raw if _CHARSET in s.elements else b""),
        reference=reference,
        neighbours=tuple(neighbours),
        order=order,
    )
    if how.scale == 1:
        out |= extracted(s, fmt)
    # Sources exist that name their class in their file meta information only.
    out[_CLASS] = text(_CLASS, "UI", s.sop_class_uid)
    changes = {tag: write(task) for tag, write in _WRITERS.items()}
    changes |= equipment(task) | resampled(task)
    for tag, element in changes.items():
        if element is None:
            out.pop(tag, None)
        else:
            out[tag] = element
    head, tail = _encoded(out, fmt, stored.nbytes)
    return Derived(
        sop_class_uid=s.sop_class_uid,
        sop_instance_uid=how.instance_uid(reference.sop_instance_uid),
        source_sop_instance_uid=reference.sop_instance_uid,
        study_uid=reference.study_uid,
        series_uid=how.series_uid,
        series_number=number_of_series(task),
        series_description=decoded(description_of_series(task), task.charsets),
        head=head,
        pixels=np.ascontiguousarray(stored),
        tail=tail,
    )


def _encoded(out: Elements, fmt: PixelFormat, n_bytes: int) -> tuple[bytes, bytes]:
    before: list[Buffer] = []
    after: list[Buffer] = []
    chunks({tag: e for tag, e in out.items() if tag < PIXEL_DATA}, before)
    chunks({tag: e for tag, e in out.items() if tag > PIXEL_DATA}, after)
    odd = n_bytes & 1
    before.append(header(PIXEL_DATA, "OW" if fmt.bits_allocated > 8 else "OB", n_bytes + odd))
    return b"".join(before), b"\x00" * odd + b"".join(after)
