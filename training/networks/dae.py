"""Autoencoders: a bottleneck at 1/8 of the size, no skips; what does not pass the bottleneck is called noise.

The paper's autoencoders denoise, compress and find anomalies. Here the decoded slice is what the network
believes, the residual x0 - decoded goes through the same guards as any other, and how far the decoded slice
lies from the given one tells whether the engine has ever seen such a thing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks.blocks import STEM, Up, chain, conv, joined


class Autoencoder(nn.Module):
    """Denoising autoencoder (or variational, which is run at its mean and so is deterministic too).

    Parameters
    ----------
    channels
        At 1/2, 1/4 and 1/8 of the size.
    code
        Channels of the bottleneck: 32 numbers for 64 pixels.
    unit
        Of x over that of c: 10 for CT (HU/1000 against HU/100), 1 for MR.
    variational
        The bottleneck holds mean and log variance.

    Attributes
    ----------
    plain
        Return what did not pass the bottleneck as it is: an exported network does, since how much that is tells
        the node whether it has ever seen such a slice; the node weakens it itself (engines/restore.py).
    trust
        What did not pass the bottleneck is believed to be noise where its power over 9 x 9 pixels is at most
        this many times that of the noise; where it is more there is structure in it, and it is weakened.
    """

    def __init__(
        self,
        channels: tuple[int, int, int] = (32, 64, 96),
        code: int = 32,
        gain: float = 1.0,
        unit: float = 10.0,
        variational: bool = False,
        trust: float = 1.7,
    ) -> None:
        super().__init__()
        a, b, d = channels
        self.gain, self.unit, self.variational, self.trust = gain, unit, variational, trust
        self.plain = False
        self.stem = conv(STEM, a, 4, stride=2, padding=1)
        self.enc0 = chain(a, 1)
        self.down0 = conv(a, b, 2, stride=2, padding=0)
        self.enc1 = chain(b, 1)
        self.down1 = conv(b, d, 2, stride=2, padding=0)
        self.enc2 = chain(d, 1)
        self.mean = conv(d, code, 1)
        self.spread = conv(d, code, 1) if variational else None
        self.open = conv(code, d, 1)
        self.dec2 = chain(d, 1)
        self.up1 = Up(d, b)
        self.dec1 = chain(b, 1)
        self.up0 = Up(b, a)
        self.dec0 = chain(a, 1)
        self.head = conv(a, 4)
        if self.spread is not None and self.spread.bias is not None:
            nn.init.constant_(self.spread.bias, -6.0)

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean of the code, and its log variance if it has one."""
        h = self.enc0(functional.relu(self.stem(joined(x, c, self.gain))))
        h = self.enc2(self.down1(self.enc1(self.down0(h))))
        spread = None if self.spread is None else self.spread(h).clamp(-12.0, 6.0)
        return self.mean(h), spread

    def decode(self, code: Tensor) -> Tensor:
        """The slice [N, 1, H, W] in units of x."""
        h = self.dec2(functional.relu(self.open(code)))
        h = self.dec0(self.up0(self.dec1(self.up1(h))))
        return functional.pixel_shuffle(self.head(h), 2)

    def sampled(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For training: r, what it is before it is weakened, and the Kullback-Leibler divergence per code value.

        A variational code is drawn once.
        """
        mean, spread = self.encode(x, c)
        divergence = mean.new_zeros(())
        if spread is not None:
            divergence = 0.5 * (mean.square() + spread.exp() - 1.0 - spread).mean()
            mean = mean + torch.exp(0.5 * spread) * torch.randn_like(mean)
        all_of_it = self.lost(x, self.decode(mean))
        return self.noise_of(all_of_it, c), all_of_it, divergence

    def lost(self, x: Tensor, decoded: Tensor) -> Tensor:
        """What did not pass the bottleneck, in units of c."""
        wide = decoded if decoded.dtype == x.dtype else decoded.to(x.dtype)
        return (x[:, 1:2] - wide) * self.unit

    def noise_of(self, lost: Tensor, c: Tensor) -> Tensor:
        """The part of it that can be noise."""
        power = functional.avg_pool2d(lost * lost, 9, 1, 4, count_include_pad=False)
        share = (c * c * self.trust) / (power + 1e-6)
        # The smaller of share and 1, in operators that every runtime has.
        return lost * (functional.relu(share * -1.0 + 1.0) * -1.0 + 1.0)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        code, _ = self.encode(x, c)
        lost = self.lost(x, self.decode(code))
        return lost if self.plain else self.noise_of(lost, c)
