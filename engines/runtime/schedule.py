"""In which groups slices are run, and where each lies on the device meanwhile. Pure: numbers in, numbers out.

A group is as large as the largest bucket that is left to fill; what remains goes in smaller ones, down to
one, so that no slice is run that nobody wants. Each slice is sent to the device once, into a slot, and stays
there while a group to come still needs it as a neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.runtime.network import Item

RING = 3
"""Groups in flight: one comes in, one is computed, one goes out. The host waits for a group's end before it
starts the third one after it, so that whatever belongs to one of three turns is free again by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One group: ``count`` items from ``first``; which slices to send to which slots before; and of each item
    the slots of the slice below, itself, and above."""

    first: int
    count: int
    uploads: tuple[tuple[int, int], ...]
    slots: tuple[tuple[int, int, int], ...]


def groups(n_items: int, buckets: Sequence[int]) -> tuple[int, ...]:
    """Sizes of groups, the largest first; ``buckets`` ascend from 1."""
    sizes: list[int] = []
    left = n_items
    while left:
        sizes.append(max(b for b in buckets if b <= left))
        left -= sizes[-1]
    return tuple(sizes)


def steps(items: Sequence[Item], buckets: Sequence[int]) -> tuple[Step, ...]:
    """The groups of a slab.

    A slot is taken again only :data:`RING` groups after the last one that read it: then the host knows that
    this group is done, and no event has to be waited for.
    """
    sizes = groups(len(items), buckets)
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    last: dict[int, int] = {}
    for k, (first, count) in enumerate(zip(starts, sizes, strict=True)):
        for item in items[first : first + count]:
            last.update(dict.fromkeys((item.below, item.self, item.above), k))
    where: dict[int, int] = {}
    free: list[tuple[int, int]] = []
    n_slots = 0
    made = []
    for k, (first, count) in enumerate(zip(starts, sizes, strict=True)):
        chosen = items[first : first + count]
        wanted = dict.fromkeys(i for item in chosen for i in (item.below, item.self, item.above))
        free.extend((last[i], where.pop(i)) for i in [i for i in where if last[i] < k])
        free.sort(reverse=True)
        uploads = []
        for i in wanted:
            if i in where:
                continue
            if free and free[-1][0] <= k - RING:
                where[i] = free.pop()[1]
            else:
                where[i] = n_slots
                n_slots += 1
            uploads.append((i, where[i]))
        made.append(
            Step(
                first=first,
                count=count,
                uploads=tuple(uploads),
                slots=tuple((where[o.below], where[o.self], where[o.above]) for o in chosen),
            )
        )
    return tuple(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a slab needs room for: items and new slices in one group, slots on the device."""

    bucket: int
    uploads: int
    slots: int

    def holds(self, other: Room) -> bool:
        """Whether another fits into it."""
        return self.bucket >= other.bucket and self.uploads >= other.uploads and self.slots >= other.slots


def room(planned: Sequence[Step]) -> Room:
    """The room that some groups need."""
    return Room(
        bucket=max(s.count for s in planned),
        uploads=max(len(s.uploads) for s in planned),
        slots=1 + max(slot for s in planned for three in s.slots for slot in three),
    )
