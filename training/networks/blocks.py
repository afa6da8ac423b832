"""Parts that all of Luminode's networks are made of: plain 3x3 convolutions, no norm, no attention, no pooling.

Nothing here looks further than its kernel, so that a tile with a halo of the receptive field gives the bits
of the whole, and every operator is one that ONNX Runtime and TensorRT run natively.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STEM = 4
"""Channels that a stem sees, see :func:`joined`."""


def conv(n_in: int, n_out: int, size: int = 3, stride: int = 1, padding: int | None = None) -> nn.Conv2d:
    """A convolution with He initialisation for ReLU."""
    made = nn.Conv2d(n_in, n_out, size, stride, size // 2 if padding is None else padding)
    nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Start a branch from nothing: the network begins as the identity."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """x + Conv3(ReLU(Conv3(x))); the last convolution starts at zero."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first = conv(n, n)
        self.last = zeroed(conv(n, n))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.last(functional.relu(self.first(x)))
        return x + change


def chain(n: int, count: int) -> nn.Sequential:
    """``count`` residual blocks of ``n`` channels."""
    return nn.Sequential(*(Residual(n) for _ in range(count)))


class Up(nn.Module):
    """Conv1x1, then nearest x2: exports as one Resize, which every precision of TensorRT builds."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.mix = conv(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = functional.interpolate(self.mix(x), scale_factor=2.0, mode="nearest")
        return mixed


def joined(x: Tensor, c: Tensor, gain: float) -> Tensor:
    """The input of a stem, four channels: the slice, its neighbours, and the noise map times ``gain``.

    The neighbours enter as what is the same from either side (their mean, less the slice, and half of their
    difference, without sign), so that a stack upside down gives the same slices upside down, bit by bit.
    """
    below, own, above = torch.split(x, 1, dim=1)
    mean = (below + above) * 0.5 - own
    apart = torch.abs(below - above) * 0.5
    return torch.cat([own, mean, apart, c * gain], dim=1)
