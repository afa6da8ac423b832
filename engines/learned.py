"""The front door of learned engines: from slices to a network's tensors and back.

::

    x  [N, 3, H, W]   the slice below, the slice, the slice above: HU / 1000, or I / scale of the series
    c  [N, 1, H, W]   noise: sigma / 100 HU, or sigma / scale
    r  [N, 1, H, W]   residual, the noise, in units of c

A network of super-resolution (card: ``scale: 2``) takes the same and returns

::

    r  [N, 1, 2H, 2W]   detail, what the doubled slice lacks, in units of x; [2i, 2j] lies where [i, j] lies

and never the interpolated slice itself: that is made outside (engines/sinc.py).

Where there is no true neighbour the slice stands in for it. Sizes are mirrored up to a multiple of the
card's alignment and cut off afterwards. The subtraction and all guards happen outside of the network, in
float32 (engines/front.py): no weights can break them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from engines import guards
from engines.base import Card, Floats
from engines.errors import OutputImplausible, RuntimeUnavailable
from engines.front import Task
from engines.restore import Residual, limits
from engines.runtime.network import Item, Network, Region, Slab, SlabNetwork
from engines.tiles import tiled, up

WHOLE = 1536
"""Larger slices than this (pixels along an axis) are tiled unless the caller says otherwise."""

TILE = 1024


class Learned:
    """The core of a learned engine.

    Parameters
    ----------
    calls
        How many slices the network may be given at once, each from a thread of its own.
    """

    def __init__(self, card: Card, network: Network, calls: int = 1) -> None:
        self._card = card
        self._network = network
        self._calls = calls

    @property
    def runtime(self) -> str:
        return self._network.name

    @property
    def device(self) -> str:
        return self._network.device

    @property
    def calls(self) -> int:
        return self._calls

    def residual(self, task: Task, *, tile: int) -> Floats:
        """The residual of a slice, or its detail, in the unit of the volume."""
        factor = self._card.scale
        unit_x, unit_c = units(task)
        n_rows, n_columns = task.values.shape
        slices = (task.below, task.values, task.above)
        x = np.empty((len(slices), n_rows, n_columns), np.float32)
        for out, given in zip(x, slices, strict=True):
            np.multiply(task.values if given is None else given, np.float32(1 / unit_x), out=out)
        rows, columns = (up(n, self._card.alignment) - n for n in (n_rows, n_columns))
        if rows or columns:
            x = np.pad(x, ((0, 0), (0, rows), (0, columns)), mode="symmetric")
        c = np.full((1, *x.shape[1:]), np.float32(task.sigma / unit_c), np.float32)
        tile = self._tile(tile, max(x.shape[1:]))
        r = tiled(
            partial(_run, self._network, factor),
            x,
            c,
            size=tile,
            halo=self._card.receptive_field,
            alignment=self._card.alignment,
            factor=factor,
        )
        unit_r = unit_c if factor == 1 else unit_x
        return np.multiply(r[0, : factor * n_rows, : factor * n_columns], np.float32(unit_r))

    def _tile(self, asked: int, side: int) -> int:
        """The tile for a slice whose longer side is ``side``, 0 for none."""
        return TILE if asked == 0 and side > WHOLE else asked


class LearnedSlabs(Learned):
    """The core of a learned engine whose network takes whole slabs: meets :class:`engines.front.SlabCore`.

    Where its device can, the residuals come back guarded but for the last step, which is the host's.
    """

    def __init__(self, card: Card, network: SlabNetwork) -> None:
        super().__init__(card, network)
        self._slabs = network

    def residuals(self, tasks: Sequence[Task]) -> Iterator[Residual]:
        """The residuals of the slices of a slab, in order.

        Raises
        ------
        OutputImplausible
            A residual holds what is no number.
        """
        side = max(up(n, self._card.alignment) for n in tasks[0].values.shape)
        if side > self._slabs.largest:
            for task in tasks:
                yield Residual(values=self.residual(task, tile=0))
            return
        slab = self._slab(tasks)
        for answer in self._slabs.slab(slab):
            if not answer.finite:
                raise guards.not_finite()
            yield Residual(values=answer.values, worst=None if slab.region is None else answer.worst)

    def _slab(self, tasks: Sequence[Task]) -> Slab:
        """The tasks as the network takes them."""
        card, first = self._card, tasks[0]
        unit_x, unit_c = units(first)
        found: dict[int, int] = {}
        slices: list[Floats] = []

        def index(values: Floats) -> int:
            # Neighbours are the very arrays of the slices beside, made once (engines/front.py).
            if id(values) not in found:
                found[id(values)] = len(slices)
                slices.append(values)
            return found[id(values)]

        bounds = [
            limits(card, sigma=t.sigma, scale=t.scale, unit=t.unit, spacing_mm=t.spacing_mm) for t in tasks
        ]
        items = [
            Item(
                below=index(t.values if t.below is None else t.below),
                self=index(t.values),
                above=index(t.values if t.above is None else t.above),
                c=float(np.float32(t.sigma / unit_c)),
                largest=float(b.largest),
                tolerance=float(np.float32(b.tolerance)),
            )
            for t, b in zip(tasks, bounds, strict=True)
        ]
        guarded = card.scale == 1 and card.family != "autoencoder"
        return Slab(
            slices=slices,
            valid=[None if t.valid.all() else t.valid for t in tasks],
            items=items,
            unit_x=float(np.float32(1 / unit_x)),
            unit_r=float(np.float32(unit_c if card.scale == 1 else unit_x)),
            factor=card.scale,
            region=Region(radius=bounds[0].radius, side=bounds[0].side) if guarded else None,
        )

    def _tile(self, asked: int, side: int) -> int:
        """A tile whose window, with its halo at both sides, the network takes."""
        most = self._slabs.largest
        if side <= most and asked == 0:
            return 0
        room = most - 2 * up(self._card.receptive_field, self._card.alignment)
        room -= room % self._card.alignment
        if room < self._card.alignment:
            raise RuntimeUnavailable(
                f"the network takes windows of {most} pixels, fewer than two halos of this engine"
            )
        return min(asked, room) if asked else room


def core_of(card: Card, network: Network, calls: int = 1) -> Learned:
    """The core for a network: slabs for one that takes them, else slice by slice, ``calls`` at once."""
    return LearnedSlabs(card, network) if isinstance(network, SlabNetwork) else Learned(card, network, calls)


def units(task: Task) -> tuple[float, float]:
    """What divides slices to make the network's x, and noise to make its c."""
    return (1000.0, 100.0) if task.unit == "HU" else (task.scale, task.scale)


def _run(network: Network, factor: int, x: Floats, c: Floats) -> Floats:
    r = network.run(x[None], c[None])
    if r.shape != (1, 1, factor * c.shape[-2], factor * c.shape[-1]):
        raise OutputImplausible("the network returned another shape than the card promises")
    if r.dtype != np.float32:  # guards work in place, and would round it without a word
        raise OutputImplausible("the network returned another kind of numbers than float32")
    first: Floats = r[0]
    return first
