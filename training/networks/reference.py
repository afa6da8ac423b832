"""Networks of the literature, as reference rows: RED-CNN, CNN-10 and a concatenating U-Net.

They meet the same contract (x, c -> r) so that one recipe trains them all, but see one slice and no noise
map, as published. None of them is shipped.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.blocks import conv


class RedCnn(nn.Module):
    """RED-CNN (Chen et al., IEEE TMI 36(12), 2017): 5 convolutions 5x5, 5 transposed ones, three shortcuts.

    Here all layers keep the size (padding 2), so that slices come back whole.
    """

    wide = ("down.0", "up.4")

    def __init__(self, channels: int = 96, unit: float = 10.0) -> None:
        super().__init__()
        self.unit = unit
        widths = [1, *[channels] * 5]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 5, padding=2) for a, b in itertools.pairwise(widths))
        back = [*[channels] * 5, 1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 5, padding=2) for a, b in itertools.pairwise(back))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """See the contract of this module."""
        given = x[:, 1:2]
        kept, h = [given], given
        for i, layer in enumerate(self.down):
            h = functional.relu(layer(h))
            if i in (1, 3):
                kept.append(h)
        for i, layer in enumerate(self.up):
            h = layer(h)
            if i in (0, 2, 4):
                h = h + kept.pop()
            h = functional.relu(h) if i < 4 else h
        out: Tensor = (given - h) * self.unit
        return out


class Cnn10(nn.Module):
    """CNN-10 (Chen et al., Biomed. Opt. Express 8(2), 2017), by layers of 3x3 and 32 channels."""

    def __init__(self, channels: int = 32, depth: int = 8, unit: float = 10.0) -> None:
        super().__init__()
        self.unit = unit
        layers: list[nn.Module] = [conv(1, channels), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [conv(channels, channels), nn.ReLU()]
        self.layers = nn.Sequential(*layers, conv(channels, 1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """See the contract of this module."""
        given = x[:, 1:2]
        out: Tensor = (given - self.layers(given)) * self.unit
        return out


class UNet(nn.Module):
    """A U-Net with concatenation (Ronneberger et al. 2015; the size of fastMRI's baseline at ``channels`` 32)."""

    def __init__(self, channels: int = 32, levels: int = 4, unit: float = 10.0) -> None:
        super().__init__()
        self.unit = unit
        widths = [channels * 2**i for i in range(levels + 1)]
        self.down = nn.ModuleList(self._pair(a, b) for a, b in zip([1, *widths], widths, strict=False))
        self.up = nn.ModuleList(self._pair(b + a, a) for a, b in itertools.pairwise(widths))
        self.last = nn.Conv2d(channels, 1, 1)

    @staticmethod
    def _pair(n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(conv(n_in, n_out), nn.ReLU(), conv(n_out, n_out), nn.ReLU())

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """See the contract of this module."""
        given = x[:, 1:2]
        kept, h = [], given
        for i, pair in enumerate(self.down):
            h = pair(h if i == 0 else functional.avg_pool2d(h, 2))
            kept.append(h)
        h = kept.pop()
        for pair in reversed(self.up):
            h = pair(torch.cat([functional.interpolate(h, scale_factor=2.0, mode="nearest"), kept.pop()], 1))
        out: Tensor = (given - self.last(h)) * self.unit
        return out
