"""A network that finds no noise: proves the way of the data, changes nothing."""

from __future__ import annotations

import numpy as np

from engines.base import Floats


class Identity:
    """Meets :class:`engines.runtime.network.Network`."""

    name = "identity"
    device = "cpu"

    def run(self, x: Floats, c: Floats) -> Floats:
        """Return zeros of the shape of ``c``."""
        return np.zeros_like(c)
