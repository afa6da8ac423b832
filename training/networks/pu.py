"""PU: a three-level residual U-Net on a stride-2 stem, and its super-resolution form (models.md 2.2).

::

    in   x [N, 3, H, W], c [N, 1, H, W]; H and W multiples of 8
    out  r [N, 1, H, W], the noise in units of c          (PU)
         r [N, 1, 2H, 2W], the detail in units of x       (SuperResolution)
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from training.networks.blocks import STEM, Up, chain, conv, joined, zeroed

SIZES: Mapping[str, tuple[int, tuple[int, int, int]]] = {
    "t": (16, (1, 1, 2)),
    "s": (24, (1, 1, 2)),
    "m": (32, (1, 1, 2)),
    "l": (64, (2, 2, 4)),
}
"""Channels at half size, and residual blocks of the outer, middle and inner level."""


class Trunk(nn.Module):
    """Encoder and decoder between a stem and a head: C0, 2 C0, 4 C0 channels at 1, 1/2, 1/4 of its input.

    Skips are added, not concatenated: half the bytes.
    """

    def __init__(self, n: int, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        outer, middle, inner = blocks
        self.enc0 = chain(n, outer)
        self.down0 = conv(n, 2 * n, 2, stride=2, padding=0)
        self.enc1 = chain(2 * n, middle)
        self.down1 = conv(2 * n, 4 * n, 2, stride=2, padding=0)
        self.mid = chain(4 * n, inner)
        self.up1 = Up(4 * n, 2 * n)
        self.dec1 = chain(2 * n, middle)
        self.up0 = Up(2 * n, n)
        self.dec0 = chain(n, outer)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the size and number of ``x``."""
        e0 = self.enc0(x)
        e1 = self.enc1(self.down0(e0))
        d1: Tensor = self.mid(self.down1(e1))
        d1 = self.dec1(self.up1(d1) + e1)
        out: Tensor = self.dec0(self.up0(d1) + e0)
        return out


class PU(nn.Module):
    """The denoiser: what it returns is the noise, and it begins by returning none.

    Parameters
    ----------
    size
        ``t``, ``s``, ``m`` or ``l``: 4, 9, 16 or 121 GFLOP a slice of 512 x 512.
    gain
        Of the noise map, see :func:`training.networks.blocks.joined`: MR noise is a few hundredths of the
        scale, CT noise a few tenths of 100 HU.
    """

    def __init__(self, size: str = "s", gain: float = 1.0) -> None:
        super().__init__()
        n, blocks = SIZES[size]
        self.gain = gain
        self.stem = conv(STEM, n, 4, stride=2, padding=1)
        self.trunk = Trunk(n, blocks)
        self.head = zeroed(conv(n, 4))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = functional.relu(self.stem(joined(x, c, self.gain)))
        return functional.pixel_shuffle(self.head(self.trunk(h)), 2) * (1.0 / self.gain)


class SuperResolution(nn.Module):
    """The detail that a slice of twice the matrix would have: the trunk of PU on the slice as it is.

    The upsampling itself (zero filling in k-space) and the projection that keeps what was acquired are
    outside of the network, like every guard.
    """

    def __init__(self, size: str = "s", gain: float = 1.0) -> None:
        super().__init__()
        n, blocks = SIZES[size]
        self.gain = gain
        self.stem = conv(STEM, n)
        self.trunk = Trunk(n, blocks)
        self.head = zeroed(conv(n, 4))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = functional.relu(self.stem(joined(x, c, self.gain)))
        return functional.pixel_shuffle(self.head(self.trunk(h)), 2)
