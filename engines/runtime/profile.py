"""Sizes that a plan is built for: how many slices at once, how many rows and columns.

A plan runs any size in its ranges, fastest at the one it is tuned for: CT at 512 x 512, MR at 256 x 256. What
is larger than :data:`LARGEST` is tiled, what is smaller than :data:`SMALLEST` is padded, both by the caller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from engines.base import Card
from engines.errors import CardInvalid

SMALLEST, LARGEST = 8, 1024
"""Rows and columns of a slice, or of a tile. The smallest is as small as networks are aligned: a slice or tile that
had to be padded further would meet a rim of its mirror image where the CPU's meets none (up to 94 HU apart)."""

BUCKETS = (1, 4, 8, 16)
"""Slices at once. A group of five runs as four and one: no other sizes, so that few CUDA graphs do."""

TYPICAL = {"CT": 512, "MR": 256}

Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Slices, rows, columns: the least, those it is tuned for, the most."""

    least: Size
    best: Size
    most: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The ranges of a plan; the position of a range is the number of TensorRT's optimisation profile.

    Attributes
    ----------
    buckets
        The numbers of slices that are run, ascending.
    alignment
        Rows and columns are multiples of this.
    """

    ranges: tuple[Range, ...]
    buckets: tuple[int, ...]
    alignment: int

    def digest(self) -> str:
        """SHA-256 of all of it: a plan of another profile is another plan."""
        told = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(told.encode()).hexdigest()

    def number(self, n_slices: int, rows: int, columns: int) -> int | None:
        """The range for a size: of those that hold it the one tuned for the nearest; None if none does."""
        asked = (n_slices, rows, columns)
        if rows % self.alignment or columns % self.alignment:
            return None
        fits = [
            (abs(r.best[1] * r.best[2] - rows * columns), i)
            for i, r in enumerate(self.ranges)
            if all(low <= n <= high for low, n, high in zip(r.least, asked, r.most, strict=True))
        ]
        return min(fits)[1] if fits else None

    def bucket(self, n_slices: int) -> int:
        """The largest bucket that ``n_slices`` fill."""
        return max((b for b in self.buckets if b <= n_slices), default=self.buckets[0])


def of(card: Card, *, buckets: Sequence[int] = BUCKETS) -> Profile:
    """The profile of an engine: one range for each of its modalities.

    Parameters
    ----------
    buckets
        Fewer for a GPU with little memory.

    Raises
    ------
    CardInvalid
        The card's alignment does not divide the largest size.
    """
    if LARGEST % card.alignment:
        raise CardInvalid(
            f"{card.name}: an alignment of {card.alignment} does not divide {LARGEST}",
            hint="a compiled engine needs an alignment of 1, 2, 4, 8, 16, 32 or 64",
        )
    least = max(SMALLEST, card.alignment)
    sizes = tuple(sorted({int(b) for b in buckets}))
    if not sizes or sizes[0] != 1 or sizes[-1] > 64:
        raise CardInvalid("buckets start at 1 slice and end at 64 or less")
    best = sizes[-2] if len(sizes) > 1 else 1
    return Profile(
        ranges=tuple(
            Range(
                least=(1, least, least),
                best=(best, TYPICAL[modality], TYPICAL[modality]),
                most=(sizes[-1], LARGEST, LARGEST),
            )
            for modality in card.modalities
        ),
        buckets=sizes,
        alignment=card.alignment,
    )
