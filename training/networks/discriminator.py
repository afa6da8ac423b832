"""The critic of the GAN: a small patch network with spectral norm, on the slice and on its gradients.

It sees the cleaned slice beside the noisy one (a pair), and the gradient magnitude of the cleaned one (the
idea of DU-GAN: blur shows there first). It is used in training only and never shipped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


def _layer(n_in: int, n_out: int, stride: int) -> nn.Module:
    made: nn.Module = spectral_norm(nn.Conv2d(n_in, n_out, 3, stride, 1))
    return made


class Discriminator(nn.Module):
    """Patch critic.

    Parameters
    ----------
    n
        Channels of the first layer.
    """

    def __init__(self, n: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [_layer(3, n, 1), _layer(n, 2 * n, 2), _layer(2 * n, 2 * n, 1), _layer(2 * n, 4 * n, 2)]
        )
        self.last = _layer(4 * n, 1, 1)

    def forward(self, cleaned: Tensor, noisy: Tensor) -> Tensor:
        """Scores [N, 1, H/4, W/4]; both inputs [N, 1, H, W] in units of the noise."""
        h = torch.cat([cleaned, noisy, edges(cleaned)], dim=1)
        for layer in self.layers:
            h = functional.leaky_relu(layer(h), 0.2)
        out: Tensor = self.last(h)
        return out


def edges(image: Tensor) -> Tensor:
    """Gradient magnitude by forward differences, of the size of the image."""
    dy = functional.pad(image[..., 1:, :] - image[..., :-1, :], (0, 0, 0, 1))
    dx = functional.pad(image[..., :, 1:] - image[..., :, :-1], (0, 1, 0, 0))
    return torch.sqrt(dy.square() + dx.square() + 1e-6)
