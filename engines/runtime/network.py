"""What a runtime gives to the learned front door: a network that can be run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from engines.base import Floats, Mask


class Network(Protocol):
    """A loaded network; pure: same input, same bytes, whatever the batch. One on the CPU may be run from
    several threads at once."""

    @property
    def name(self) -> str:
        """Name of the runtime."""
        ...

    @property
    def device(self) -> str: ...

    def run(self, x: Floats, c: Floats) -> Floats:
        """Run the network.

        Parameters
        ----------
        x
            float32 [N, 3, H, W]: the slice below, the slice, the slice above; HU / 1000 or I / scale.
        c
            float32 [N, 1, H, W]: noise, sigma / 100 HU or sigma / scale.

        Returns
        -------
        ndarray
            float32 [N, 1, H, W]: the noise, in units of ``c``; of super-resolution [N, 1, 2H, 2W]: the
            detail, in units of ``x``.

        Raises
        ------
        engines.errors.RuntimeUnavailable, engines.errors.OutOfMemory, engines.errors.OutputImplausible
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One slice of a slab to be run: itself and its neighbours, by index into the slab's slices.

    Attributes
    ----------
    c
        Its noise, in the unit of the network's ``c``.
    largest, tolerance
        Bounds of its residual (G2) and of the mean of a region of it (G3), in the unit of the volume.
    """

    below: int
    self: int
    above: int
    c: float
    largest: float
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """What G3 asks, for all slices of a slab: see :func:`engines.guards.guarded`."""

    radius: int
    side: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Slices of one matrix, and which of them are to be run.

    Attributes
    ----------
    slices
        float32 (y, x) each, padding replaced.
    valid
        Of each item; None where all of it is valid. Read only where ``region`` is given.
    unit_x
        x = slice * unit_x.
    unit_r
        The residual in the unit of the volume is r * unit_r.
    factor
        Pixels along an axis that come out for one that goes in: 1 or 2.
    region
        Where it is given, :func:`engines.guards.guarded` is applied on the device but for the weakening of
        regions, and the largest mean of a region is told. None: the bare residual is wanted. Not with
        ``factor`` 2.
    """

    slices: Sequence[Floats]
    valid: Sequence[Mask | None]
    items: Sequence[Item]
    unit_x: float
    unit_r: float
    factor: int
    region: Region | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one item.

    Attributes
    ----------
    values
        float32 (factor y, factor x), in the unit of the volume.
    finite
        Whether all of the network's output was numbers.
    worst
        The largest mean of a region of it, unsigned; 0 if not asked for.
    """

    values: Floats
    finite: bool
    worst: float


@runtime_checkable
class SlabNetwork(Network, Protocol):
    """A network that is given many slices at once, because its device is faster than a thread can ask."""

    @property
    def largest(self) -> int:
        """Rows or columns of the largest window that it takes; larger slices are tiled."""
        ...

    def slab(self, slab: Slab) -> Iterator[Answer]:
        """Run the items of a slab; answers come in their order, from one thread.

        Raises
        ------
        engines.errors.RuntimeUnavailable, engines.errors.OutOfMemory, engines.errors.DeviceLost
            What was answered before it is whole and right; nothing comes after it.
        """
        ...
