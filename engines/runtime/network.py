"""What a runtime gives to the learned front door: a network that can be run."""

from __future__ import annotations

from typing import Protocol

from engines.base import Floats


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
