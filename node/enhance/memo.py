"""What is known of the slices of a series before all of it has come.

A result is found again by everything that it was made from: the slice and those that the engine saw beside it, each
by name (what an instance holds is fixed by its digest, :class:`~node.enhance.scratch.Item`), the noise steadied over
z, the scale of the series and the spacing in the plane. Engine and parameters are those of the memo. Whatever came
since, a result is used only where the whole series asks for the very same; so slices may come in any order, and
what was made too early is made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from engines.base import Card, Survey, Unit
from node.dicom.stacks import Stack, StackFrame
from node.enhance.scratch import PageFile
from node.enhance.tally import Made

Name: TypeAlias = tuple[str, int]
"""SOP Instance UID and frame."""


@dataclass(frozen=True, slots=True)
class Key:
    """All that a slice's result depends on, for one engine and one set of parameters.

    ``below`` and ``above`` are None where the engine does not see them; ``numbers`` are the bits of the steadied
    noise, of the scale and of the spacing (rows, columns).
    """

    below: Name | None
    slice: Name
    above: Name | None
    numbers: bytes


def name(ref: StackFrame) -> Name:
    """The name of a slice."""
    return ref.sop_instance_uid, ref.frame_number


def keys(
    card: Card, stack: Stack, survey: Survey, unit: Unit, first: int = 0, last: int | None = None
) -> list[Key]:
    """Keys of slices [first, last) of a stack that is taken for complete, with its survey."""
    from engines.front import beside, numbers  # numerical libraries are loaded when an engine is

    sigmas, scale = numbers(survey, unit)
    names = [name(ref) for ref in stack.frames]
    shared = np.array([scale, *stack.spacing_mm[1:]], np.float64).tobytes()
    out = []
    for i in range(first, len(names) if last is None else last):
        own = names[i]
        below, above = beside(card, stack.spacing_mm, stack.contiguous, i)
        out.append(
            Key(
                below=names[i - 1] if below else None,
                slice=own,
                above=names[i + 1] if above else None,
                numbers=sigmas[i].tobytes() + shared,
            )
        )
    return out


class Memo:
    """Surveys and results of slices, for one engine and one set of parameters. Pixels lie in a file without a name.

    Parameters
    ----------
    folder
        On a disk with room for them; nothing of it shows there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: PageFile | None = None
        self._end = 0
        self._made: dict[Key, tuple[int, Made]] = {}
        self._last: dict[Name, Key] = {}
        self.surveys: dict[Name, Survey] = {}
        self.times: Counter[Name] = Counter()
        """How often a slice was made."""

    def __contains__(self, key: Key) -> bool:
        return key in self._made

    def __len__(self) -> int:
        return len(self._made)

    @property
    def n_bytes(self) -> int:
        """What it takes on the disk."""
        return self._end

    def put(self, key: Key, made: Made) -> None:
        """Keep a result; one that the same slice had before is let go.

        Raises
        ------
        StoreError
            The disk did not take it.
        """
        if self._file is None:
            self._file = PageFile(self._folder)
        stored = np.ascontiguousarray(made.stored)
        old = self._last.get(key.slice)
        at = self._made.pop(old)[0] if old is not None and old in self._made else self._end
        self._file.write(at, stored)
        # The pixels stay in the file: an empty array remembers their kind and, by its strides, nothing more.
        bare = replace(made, stored=np.empty((0, *stored.shape[1:]), stored.dtype))
        self._made[key], self._last[key.slice] = (at, bare), key
        self._end = max(self._end, at + stored.nbytes)
        self.times[key.slice] += 1

    def get(self, key: Key) -> Made | None:
        """A result that was kept, or None."""
        found = self._made.get(key)
        if found is None or self._file is None:
            return None
        at, bare = found
        stored = np.empty((1, *bare.stored.shape[1:]), bare.stored.dtype)
        self._file.read(at, stored)
        return replace(bare, stored=stored)

    def known(self, names: Sequence[Name]) -> bool:
        """Whether all of these slices are surveyed."""
        return all(each in self.surveys for each in names)

    def close(self) -> None:
        """Give the disk back; harmless when called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._made.clear()
