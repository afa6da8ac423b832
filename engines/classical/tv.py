"""Total variation (Chambolle), a fixed number of steps so that it is local and the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from skimage.restoration import denoise_tv_chambolle

from engines.base import Floats
from engines.front import Task
from engines.tiles import tiled


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalVariation:
    """The core.

    Attributes
    ----------
    weight
        Of the total variation, in units of the noise.
    steps
        How many; an output pixel depends on input no farther than this.
    """

    weight: float
    steps: int
    threads: int = 1
    runtime: str = "scikit-image"
    device: str = "cpu"

    @classmethod
    def of(cls, parameters: Mapping[str, Any], threads: int) -> TotalVariation:
        """Build it from a card's parameters."""
        return cls(weight=float(parameters["weight"]), steps=int(parameters["steps"]), threads=threads)

    @property
    def halo(self) -> int:
        return self.steps + 2

    @property
    def calls(self) -> int:
        return self.threads

    def residual(self, task: Task, *, tile: int) -> Floats:
        return tiled(partial(self.noise, sigma=task.sigma), task.values, size=tile, halo=self.halo)

    def noise(self, values: Floats, *, sigma: float) -> Floats:
        """Return what is taken for noise; ``sigma`` in the unit of the values."""
        # In units of the noise, so that float32 serves air and bone, and any MR scale, alike. eps=0 never
        # stops early: stopping depends on the whole image, and a tile would stop elsewhere.
        unit = np.float32(1.0 / sigma)
        scaled = values * unit
        smooth: Floats = denoise_tv_chambolle(  # type: ignore[no-untyped-call]
            scaled, weight=self.weight, eps=0.0, max_num_iter=self.steps
        )
        return (scaled - smooth) * np.float32(sigma)
