"""What a card says of a network, measured: how far it looks and how much it computes."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.errors import ExportError
from training.export.trace import plain

LARGEST = 1024
"""Pixels along the measured axis; a network that looks further is refused."""


def receptive_field(network: nn.Module, scale: int = 1, *, alignment: int = 8) -> int:
    """How far an output pixel looks, in pixels of the input.

    A copy gets random positive weights, no biases and positive inputs: no ReLU closes and no two paths
    cancel, so the gradient of an output pixel is zero exactly where it does not look. Networks with strides
    look further from some pixels than from others; all positions of the alignment are measured, along both
    axes. Float64: the gradient at the rim is a product of one weight per layer.

    Parameters
    ----------
    network
        forward(x [N, 3, H, W], c [N, 1, H, W]) -> r [N, 1, scale H, scale W].
    alignment
        The least common multiple of the network's strides, or a multiple of it.

    Returns
    -------
    The largest distance along an axis: 0 if a pixel sees itself only. A tile with a halo of this many
    pixels gives the bits of the whole.

    Raises
    ------
    ExportError
        The network looks further than half of 1024 pixels: at the whole slice, perhaps.
    """
    made = _positive(network)
    return max(_along(made, scale, alignment, upright) for upright in (True, False))


def _positive(network: nn.Module) -> nn.Module:
    made = plain(network).double()
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() < 2:
                p.zero_()
                continue
            share = 1.0 / p[0].numel()
            p.copy_((0.5 + torch.rand(p.shape, generator=drawn, dtype=p.dtype)) * share)
    return made


def _along(network: nn.Module, scale: int, alignment: int, upright: bool) -> int:
    long = 128
    while long <= LARGEST:
        found = _reach(network, scale, alignment, long, upright)
        # A field that ends before the border is whole.
        if found < long // 2 - alignment:
            return found
        long *= 2
    raise ExportError(f"the network looks further than {LARGEST // 2 - alignment} pixels")


def _reach(network: nn.Module, scale: int, alignment: int, long: int, upright: bool) -> int:
    """Of the output pixels of one period of the alignment, in the middle of a strip; one a batch entry."""
    wide = 2 * alignment
    n = alignment * scale
    size = (long, wide) if upright else (wide, long)
    # Neighbours differ, so that the gradient of their distance is none of zero.
    x = torch.arange(1.0, 4.0, dtype=torch.float64)[None, :, None, None].repeat(n, 1, *size)
    x.requires_grad_()
    c = torch.ones(n, 1, *size, dtype=torch.float64, requires_grad=True)
    r = network(x, c)
    if not upright:
        r = r.transpose(2, 3)
    middle = long // 2 * scale
    outputs = [middle + i for i in range(n)]
    torch.stack([r[i, 0, o].sum() for i, o in enumerate(outputs)]).sum().backward()  # type: ignore[no-untyped-call]
    seen = torch.zeros(n, long, dtype=torch.bool)
    for given in (x, c):
        if given.grad is not None:
            # x is [N, C, long, wide] or [N, C, wide, long]: what is left is [N, long].
            seen |= (given.grad != 0).any(1).any(2 if upright else 1)
    furthest = 0
    for i, o in enumerate(outputs):
        where = seen[i].nonzero().flatten()
        if where.numel():
            furthest = max(furthest, int((where - o // scale).abs().max()))
    return furthest


def gflop(network: nn.Module, size: int = 512) -> float:
    """Floating-point operations of one slice, in 10^9: two per multiplication and sum of every convolution.

    Counted by PyTorch on tensors that hold no data; additions, ReLU and resampling are not counted.

    Parameters
    ----------
    size
        Height and width of the input in pixels.
    """
    empty = copy.deepcopy(network).to("meta").eval()
    x, c = (torch.empty(1, n, size, size, device="meta") for n in (3, 1))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        empty(x, c)
    return float(counter.get_total_flops()) / 1e9
