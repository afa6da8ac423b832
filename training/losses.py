"""What a network is asked for: little error in units of the noise, edges, no shift of means, and the right grain.

All functions take residuals r and target (N, 1, H, W) in units of c, and sigma (N, 1, 1, 1) in the same, so that every
dose counts alike.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def charbonnier(error: Tensor, epsilon: float, weight: Tensor | None = None) -> Tensor:
    """sqrt(e^2 + epsilon^2) - epsilon: quadratic near zero, linear for outliers; the mean, weighted."""
    each = torch.sqrt(error.square() + epsilon**2) - epsilon
    return each.mean() if weight is None else (each * weight).mean()


def gradient(error: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring errors: an error along an edge costs more."""
    dy = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    dx = (error[..., :, 1:] - error[..., :, :-1]).abs().mean()
    return dy + dx


def lowpass(error: Tensor, side: int = 16) -> Tensor:
    """Mean absolute error of means over squares: HU are what a region of interest measures."""
    means = functional.avg_pool2d(error, side, stride=side // 2)
    return torch.mean(torch.abs(means))


def kept(change: Tensor, ruler: Tensor) -> Tensor:
    """How much of the lesions goes with the noise: mean over patches of the share of their contrast, squared.

    ``change`` is what lesions do to the residual, which should be nothing; ``ruler`` is of training.simulate.blobs.
    """
    return (change.square() * ruler).sum(dim=(1, 2, 3)).mean()


def high_band(error: Tensor) -> Tensor:
    """Mean absolute difference of Fourier magnitudes above half of the Nyquist frequency (super-resolution)."""
    spectrum = torch.fft.rfft2(error.float(), norm="ortho")
    fy = torch.fft.fftfreq(error.shape[-2], device=error.device).abs()[:, None]
    fx = torch.fft.rfftfreq(error.shape[-1], device=error.device)[None, :]
    return torch.mean(spectrum.abs() * (torch.maximum(fy, fx) >= 0.25))


def radial(image: Tensor, n_bins: int = 16) -> Tensor:
    """Logarithm of the radial power spectrum (N, n_bins), each scaled to mean zero: shape only, no amount."""
    detrended = image.float() - functional.avg_pool2d(image.float(), 17, 1, 8, count_include_pad=False)
    power = torch.fft.rfft2(detrended, norm="ortho").abs().square()[:, 0]
    fy = torch.fft.fftfreq(image.shape[-2], device=image.device)[:, None]
    fx = torch.fft.rfftfreq(image.shape[-1], device=image.device)[None, :]
    ring = (torch.hypot(fy, fx) * 2 * n_bins).long().clamp(max=n_bins).flatten()
    sums = power.new_zeros(len(power), n_bins + 1).index_add(1, ring, power.flatten(1))
    counts = power.new_zeros(n_bins + 1).index_add(0, ring, torch.ones_like(ring, dtype=power.dtype))
    level = torch.log(sums[:, :n_bins] / counts[:n_bins] + 1e-8)
    return level - level.mean(dim=1, keepdim=True)


def texture(left: Tensor, noise: Tensor) -> Tensor:
    """Distance of the shape of the spectrum of what noise is left from that of the noise (NPS, CFR near 1)."""
    return (radial(left) - radial(noise)).abs().mean()


def hinge_critic(real: Tensor, made: Tensor) -> Tensor:
    """Loss of the critic (Lim and Ye 2017)."""
    return functional.relu(1 - real).mean() + functional.relu(1 + made).mean()


def hinge_maker(made: Tensor) -> Tensor:
    """Loss of the generator."""
    return -made.mean()
