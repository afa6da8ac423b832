"""Which frames of one kind make one volume, when their positions repeat.

A series of volumes (diffusion, perfusion, fMRI, cine) shows every position many times. Frames of different
volumes must never become neighbours, so a volume is only put together on evidence, tried in this order:

1. No position repeats: it is one volume.
2. A soft key (acquisition number, trigger time, acquisition time ...) has exactly as many values as the most
   frequent position has frames, and no position repeats under one value: each value is a volume.
3. Every position has the same number of frames, and their order tells the rank of each: the n-th frame of
   every position is of the n-th volume. The order must be that of a scanner: either volume after volume
   or position after position. By instance number, else by acquisition time, else by frame number.
4. Else every frame stands alone. A slice without neighbours is enhanced a little less well; a slice with
   the wrong neighbours is a wrong picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, TypeAlias

from node.dicom.placement import SOFT

SAME_MM: Final = 0.01
SAME_SHARE: Final = 0.02
"""Positions closer than this, or than this share of the slice thickness, are one position."""


@dataclass(slots=True, kw_only=True)
class Placed:
    """One frame in a group of its kind.

    ``at_mm`` is its position along the normal, ``across_mm`` that along rows and columns; ``order`` is
    (instance number, frame number).
    """

    uid: str
    number: int
    instance_number: int | None
    at_mm: float
    across_mm: tuple[float, float]
    thickness_mm: float | None
    soft: Mapping[str, str]
    slot: int = field(default=0)


Group: TypeAlias = list[Placed]


def volumes(group: Sequence[Placed]) -> list[Group]:
    """Split frames of one kind (same hard key, orientation, matrix) into volumes.

    Returns
    -------
    list[list[Placed]]
        Each with every position at most once, ascending; in no particular order.
    """
    ordered = sorted(group, key=lambda p: (p.at_mm, p.uid, p.number))
    n_slots = _assign_slots(ordered)
    counts = [0] * n_slots
    for placed in ordered:
        counts[placed.slot] += 1
    most = max(counts)
    if most == 1:
        return [ordered]
    for name in SOFT:
        parts = _by(name, ordered, most)
        if parts:
            return parts
    if min(counts) == most:
        for rank in _RANKS:
            parts = _ranked(ordered, n_slots, rank)
            if parts:
                return parts
    return [[placed] for placed in ordered]


def _assign_slots(ordered: Sequence[Placed]) -> int:
    """Number the positions; frames within the tolerance of the first at a position share it."""
    slot, start = 0, ordered[0].at_mm
    for placed in ordered:
        if placed.at_mm - start > max(SAME_MM, SAME_SHARE * (placed.thickness_mm or 0.0)):
            slot, start = slot + 1, placed.at_mm
        placed.slot = slot
    return slot + 1


def _by(name: str, ordered: Sequence[Placed], most: int) -> list[Group]:
    """Frames grouped by one soft key if that makes ``most`` volumes, else nothing."""
    parts: dict[str, Group] = defaultdict(list)
    for placed in ordered:
        value = placed.soft.get(name)
        if value is None:
            return []
        parts[value].append(placed)
    if len(parts) != most:
        return []
    for part in parts.values():
        if any(a.slot == b.slot for a, b in pairwise(part)):
            return []
    return list(parts.values())


def _instance_rank(placed: Placed) -> tuple[float | str, ...] | None:
    return None if placed.instance_number is None else (placed.instance_number, placed.number)


def _time_rank(placed: Placed) -> tuple[float | str, ...] | None:
    times = tuple(placed.soft[name] for name in ("acquired", "acquired_at") if name in placed.soft)
    return times or None


_Rank: TypeAlias = Callable[[Placed], "tuple[float | str, ...] | None"]
_RANKS: Final[tuple[_Rank, ...]] = (_instance_rank, _time_rank)


def _ranked(ordered: Sequence[Placed], n_slots: int, rank: _Rank) -> list[Group]:
    """The n-th frame of every position as the n-th volume, if the order is that of a scanner."""
    keys = [rank(placed) for placed in ordered]
    if None in keys or len(set(keys)) < len(keys):
        return []
    line = [
        placed.slot for _, placed in sorted(zip(keys, ordered, strict=True), key=lambda pair: pair[0] or ())
    ]
    by_volume = all(len(set(line[i : i + n_slots])) == n_slots for i in range(0, len(line), n_slots))
    by_position = sum(a != b for a, b in pairwise(line)) == n_slots - 1
    if not by_volume and not by_position:
        return []
    slots: dict[int, Group] = defaultdict(list)
    for _, placed in sorted(zip(keys, ordered, strict=True), key=lambda pair: pair[0] or ()):
        slots[placed.slot].append(placed)
    return [[slots[s][n] for s in range(n_slots)] for n in range(len(slots[0]))]
