"""Headers of instances -> the header of their series: what rules see, and what the headers promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

from node.dicom.stacks import stacks
from node.model import InstanceHeader, Scalar, SeriesHeader, Values

MOST_VALUES: Final = 128
"""Distinct values kept of an attribute. Of more, which only numbers of slices have, the extremes are kept."""

_MOST_FAULTS: Final = 16
_T = TypeVar("_T")


def merge(headers: Sequence[InstanceHeader]) -> SeriesHeader:
    """The header of a series out of all of its instances.

    Parameters
    ----------
    headers
        At least one; the order is that in which values are told.

    Returns
    -------
    SeriesHeader
        ``shape``, ``spacing_mm``, ``modality`` and ``sop_class_uid`` are those of the largest stack's kind;
        ``attributes`` the union.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not headers:
        raise ValueError("a series has at least one instance")
    rows, columns = _most_common((h.rows, h.columns) for h in headers)
    largest = [h for h in headers if (h.rows, h.columns) == (rows, columns)]
    longest = max(stacks(largest), key=len, default=None)
    return SeriesHeader(
        modality=_most_common(h.modality for h in headers),
        sop_class_uid=_most_common(h.sop_class_uid for h in headers),
        shape=(len(largest), rows, columns),
        spacing_mm=longest.spacing_mm if longest is not None else (0.0, 0.0, 0.0),
        count=len(headers),
        attributes=_union({}, headers),
        n_frames=sum(h.n_frames for h in headers if h.has_pixels),
        derived_by_us=any(h.derived_by_us for h in headers),
        faults=_faults((), headers),
    )


def extend(series: SeriesHeader | None, headers: Sequence[InstanceHeader]) -> SeriesHeader:
    """The header of a series to which instances were added, without looking at the others again.

    It is what :func:`merge` gives of all of them, except for what needs all positions at once: ``spacing_mm``
    keeps its z, and modality, class and matrix stay those of the first instances where a series is mixed.
    For showing a series while it grows; decisions are made on a merged header.
    """
    if series is None:
        return merge(headers)
    matching = sum((h.rows, h.columns) == series.shape[1:] for h in headers)
    return SeriesHeader(
        modality=series.modality,
        sop_class_uid=series.sop_class_uid,
        shape=(series.shape[0] + matching, series.shape[1], series.shape[2]),
        spacing_mm=series.spacing_mm,
        count=series.count + len(headers),
        attributes=_union(series.attributes, headers),
        n_frames=series.n_frames + sum(h.n_frames for h in headers if h.has_pixels),
        derived_by_us=series.derived_by_us or any(h.derived_by_us for h in headers),
        faults=_faults(series.faults, headers),
    )


def promise(headers: Sequence[InstanceHeader]) -> tuple[int, str]:
    """How many instances a series should have, by its headers taken together, and which attribute says so.

    A single header's ``expected_count`` may count one acquisition of several, or be a counter that is still
    running. The promise of a series is believed only if all headers make the same one, all are of one
    acquisition, and no instance number or number of instances is beyond it. 0 if there is none.
    """
    promises = {(h.expected_count, h.expected_because) for h in headers}
    if len(promises) != 1:
        return 0, ""
    ((count, because),) = promises
    acquisitions = {h.attributes.get("AcquisitionNumber", ()) for h in headers}
    numbers = [h.instance_number for h in headers if h.instance_number is not None]
    if len(acquisitions) > 1 or len(headers) > count or any(n > count for n in numbers):
        return 0, ""
    return count, because


def _most_common(values: Iterable[_T]) -> _T:
    return Counter(values).most_common(1)[0][0]


def _union(known: Mapping[str, Values], headers: Sequence[InstanceHeader]) -> dict[str, Values]:
    found: dict[str, dict[Scalar, None]] = {k: dict.fromkeys(values) for k, values in known.items()}
    last: dict[str, Values] = {}
    for header in headers:
        for keyword, values in header.attributes.items():
            if last.get(keyword) == values:
                continue
            last[keyword] = values
            there = found.setdefault(keyword, {})
            for value in values:
                if value not in there:
                    _add(there, value)
    return {keyword: tuple(values) for keyword, values in found.items()}


def _add(there: dict[Scalar, None], value: Scalar) -> None:
    if len(there) >= MOST_VALUES:
        numbers = [v for v in there if not isinstance(v, str)]
        if isinstance(value, str) or not numbers:
            return
        low, high = min(numbers), max(numbers)
        if low <= value <= high:
            return
        del there[low if value < low else high]
    there[value] = None


def _faults(known: tuple[str, ...], headers: Sequence[InstanceHeader]) -> tuple[str, ...]:
    faults = dict.fromkeys(known)
    for header in headers:
        faults.update(dict.fromkeys(header.faults))
    return tuple(faults)[:_MOST_FAULTS]
