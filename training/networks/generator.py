"""The GAN that draws new patches: plain convolutions from a small code to three slices, and its critic.

Both see companded values: asinh opens up soft tissue and keeps air and bone within -1 and 1, so that 20 HU of an organ
count beside 1000 HU of a lung's rim. The noise that is fed in at the finer levels is for texture, which a code of
64 numbers cannot tell (the idea of StyleGAN, Karras et al. 2019). It makes training material and is never shipped.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.blocks import conv

SLICES = 3
SMALLEST = 4
"""Side of the first map, pixels."""

CT_KNEE, CT_TOP = 100.0, 30.31
MR_KNEE, MR_TOP = 0.5, 8.0
CT_MIDDLE = 40.0


def pressed(values: Tensor, unit: str) -> Tensor:
    """Compand HU (-1024 to 3071) or shares of the MR scale (0 to 4) to -1 ... 1."""
    if unit == "HU":
        return torch.asinh((values - CT_MIDDLE) / CT_KNEE) / torch.asinh(torch.tensor(CT_TOP))
    return 2 * torch.asinh(values / MR_KNEE) / torch.asinh(torch.tensor(MR_TOP)) - 1


def opened(pressed_values: Tensor, unit: str) -> Tensor:
    """The inverse of :func:`pressed`."""
    if unit == "HU":
        return CT_KNEE * torch.sinh(pressed_values * torch.asinh(torch.tensor(CT_TOP))) + CT_MIDDLE
    return MR_KNEE * torch.sinh((pressed_values + 1) / 2 * torch.asinh(torch.tensor(MR_TOP)))


class Grain(nn.Module):
    """Adds white noise, as much in each channel as was learned."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.zeros(1, n, 1, 1))

    def forward(self, h: Tensor, noise: Tensor) -> Tensor:
        return h + self.amount * noise


class Generator(nn.Module):
    """Code and kind to three slices.

    Parameters
    ----------
    size
        Of a patch: 64 or 128.
    kinds
        How many kinds there are; 1 is none.
    code
        Numbers of a code.
    width
        Channels at the coarse levels; a half at the last but one, a quarter at the last.
    """

    def __init__(self, size: int = 64, kinds: int = 1, code: int = 64, width: int = 64) -> None:
        super().__init__()
        self.size, self.code = size, code
        self.kind = nn.Embedding(kinds, code)
        self.first = nn.Linear(2 * code, width * SMALLEST**2)
        levels = (size // SMALLEST).bit_length() - 1
        channels = [width] * (levels - 1) + [width // 2, width // 4]
        pairs = list(pairwise(channels))
        self.convs = nn.ModuleList(conv(a, b) for a, b in pairs)
        self.grains = nn.ModuleList(Grain(b) for _, b in pairs)
        self.head = conv(channels[-1], SLICES)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, z: Tensor, kind: Tensor, seed: torch.Generator) -> Tensor:
        """Patches [N, 3, size, size] in companded units, for z [N, code] and kind [N]; ``seed`` draws the grain."""
        h = self.first(torch.cat([z, self.kind(kind)], dim=1)).view(len(z), -1, SMALLEST, SMALLEST)
        for layer, grain in zip(self.convs, self.grains, strict=True):
            h = layer(functional.interpolate(functional.leaky_relu(h, 0.2), scale_factor=2.0, mode="nearest"))
            noise = torch.randn(len(h), 1, *h.shape[2:], generator=seed, dtype=h.dtype)
            h = grain(h, noise.to(h.device))
        out: Tensor = torch.tanh(self.head(functional.leaky_relu(h, 0.2)))
        return out


class PatchCritic(nn.Module):
    """Scores of patches: plain strided convolutions, the spread of the batch as one channel, the kind by projection.

    The spread (Karras et al. 2018) shows a generator that draws one thing again and again; the projection is that of
    Miyato and Koyama (2018). No spectral norm: over four strided layers it shrank all scores towards nothing, and
    the generator learned nothing. :func:`steepness` holds the critic back instead.
    """

    def __init__(self, kinds: int = 1, width: int = 32) -> None:
        super().__init__()
        channels = [SLICES, width, 2 * width, 3 * width, 3 * width]
        self.layers = nn.ModuleList(conv(a, b, 4, 2, 1) for a, b in pairwise(channels))
        self.last = conv(channels[-1] + 1, channels[-1])
        self.score = nn.Conv2d(channels[-1], 1, 1)
        self.kind = nn.Embedding(kinds, channels[-1])
        nn.init.normal_(self.kind.weight, std=0.02)

    def forward(self, patches: Tensor, kind: Tensor) -> Tensor:
        """Scores [N, 1, H/16, W/16] of patches [N, 3, H, W]."""
        h = patches
        for layer in self.layers:
            h = functional.leaky_relu(layer(h), 0.2)
        spread = h.std(dim=0, unbiased=False).mean().expand(len(h), 1, *h.shape[2:])
        h = functional.leaky_relu(self.last(torch.cat([h, spread], dim=1)), 0.2)
        matched = (self.kind(kind)[:, :, None, None] * h).sum(dim=1, keepdim=True)
        out: Tensor = self.score(h) + matched
        return out


def steepness(critic: PatchCritic, real: Tensor, kind: Tensor) -> Tensor:
    """R1: mean squared gradient of the scores at real patches, summed over pixels (Mescheder et al. 2018)."""
    given = real.detach().requires_grad_(True)
    scores = critic(given, kind).mean(dim=(1, 2, 3)).sum()
    (slope,) = torch.autograd.grad(scores, given, create_graph=True)
    return slope.square().sum(dim=(1, 2, 3)).mean()
