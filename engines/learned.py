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
        hu, factor = task.unit == "HU", self._card.scale
        unit_x, unit_c = (1000.0, 100.0) if hu else (task.scale, task.scale)
        n_rows, n_columns = task.values.shape
        slices = (task.below, task.values, task.above)
        x = np.stack([(task.values if s is None else s) * np.float32(1 / unit_x) for s in slices])
        rows, columns = (up(n, self._card.alignment) - n for n in (n_rows, n_columns))
        if rows or columns:
            x = np.pad(x, ((0, 0), (0, rows), (0, columns)), mode="symmetric")
        c = np.full((1, *x.shape[1:]), np.float32(task.sigma / unit_c), np.float32)
        if tile == 0 and max(x.shape[1:]) > WHOLE:
            tile = TILE
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


def _run(network: Network, factor: int, x: Floats, c: Floats) -> Floats:
    r = network.run(x[None], c[None])
    if r.shape != (1, 1, factor * c.shape[-2], factor * c.shape[-1]):
        raise OutputImplausible("the network returned another shape than the card promises")
    first: Floats = r[0]
    return first
