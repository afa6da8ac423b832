"""Mixed precision where it pays: the trunk in bfloat16 or float16, stem and head in float32.

HU/1000 in bfloat16 would quantise the image itself by more than 1 HU, and the network would take the rounding for
noise (models.md 6.2). So only the parts named here are cast, and only while training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDE = ("stem", "head")
"""Modules that stay in float32, by name."""


def halve(network: nn.Module, dtype: torch.dtype) -> None:
    """Run every convolution outside of :data:`WIDE` in ``dtype``; weights stay in float32."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and name.split(".")[0] not in WIDE:
            _wrap(module, dtype)
    for name in WIDE:
        module_ = getattr(network, name, None)
        if isinstance(module_, nn.Module):
            module_.register_forward_pre_hook(_widen)


def _wrap(module: nn.Module, dtype: torch.dtype) -> None:
    run = module.forward

    def forward(x: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            out: Tensor = run(x, *rest)
        return out

    module.forward = forward  # type: ignore[method-assign]


def _widen(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(g.float() if isinstance(g, Tensor) else g for g in given)
