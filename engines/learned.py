"""The front door of learned engines: from slices to a network's tensors and back.

::

    x  [N, 3, H, W]   the slice below, the slice, the slice above: HU / 1000, or I / scale of the series
    c  [N, 1, H, W]   noise: sigma / 100 HU, or sigma / scale
    r  [N, 1, H, W]   residual, the noise, in units of c

Where there is no true neighbour the slice stands in for it. Sizes are mirrored up to a multiple of the
card's alignment and cut off afterwards. The subtraction and all guards happen outside of the network, in
float32 (engines/front.py): no weights can break them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from engines.base import Card, Floats
from engines.errors import OutputImplausible
from engines.front import Task
from engines.runtime.network import Network
from engines.tiles import tiled, up

WHOLE = 1536
"""Larger slices than this (pixels along an axis) are tiled unless the caller says otherwise."""

TILE = 1024


class Learned:
    """The core of a learned engine."""

    def __init__(self, card: Card, network: Network) -> None:
        self._card = card
        self._network = network

    @property
    def runtime(self) -> str:
        return self._network.name

    @property
    def device(self) -> str:
        return self._network.device

    def residuals(self, tasks: Sequence[Task], *, tile: int) -> Iterator[Floats]:
        """Yield the residual of each task, in the unit of the volume."""
        return (self._residual(task, tile) for task in tasks)

    def _residual(self, task: Task, tile: int) -> Floats:
        hu = task.unit == "HU"
        unit_x = np.float32(1 / 1000 if hu else 1 / task.scale)
        unit_c = 100.0 if hu else task.scale
        n_rows, n_columns = task.values.shape
        slices = (task.below, task.values, task.above)
        x = np.stack([(task.values if s is None else s) * unit_x for s in slices])
        rows, columns = (up(n, self._card.alignment) - n for n in (n_rows, n_columns))
        x = np.pad(x, ((0, 0), (0, rows), (0, columns)), mode="symmetric")
        c = np.full((1, *x.shape[1:]), np.float32(task.sigma / unit_c), np.float32)
        if tile == 0 and max(x.shape[1:]) > WHOLE:
            tile = TILE
        r = tiled(
            partial(_run, self._network),
            x,
            c,
            size=tile,
            halo=self._card.receptive_field,
            alignment=self._card.alignment,
        )
        return np.multiply(r[0, :n_rows, :n_columns], np.float32(unit_c))


def _run(network: Network, x: Floats, c: Floats) -> Floats:
    r = network.run(x[None], c[None])
    if r.shape != (1, *c.shape):
        raise OutputImplausible("the network returned another shape than its input has")
    first: Floats = r[0]
    return first
