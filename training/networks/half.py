"""Mixed precision where it pays: the trunk in bfloat16 or float16, stem and head in float32.

HU/1000 in bfloat16 would quantise the image itself by more than 1 HU, and the network would take the rounding for
noise (models.md 6.2). So only the parts named here are cast, and only while training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDE = ("stem", "head")
"""Modules that stay in float32, by name, unless a network names its own as ``wide``."""


def halve(network: nn.Module, dtype: torch.dtype) -> None:
    """Run every convolution but the wide ones in ``dtype``; weights stay in float32."""
    wide = getattr(network, "wide", WIDE)
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            continue
        if name in wide:
            module.register_forward_pre_hook(_widen)
        else:
            _wrap(module, dtype)


def _wrap(module: nn.Module, dtype: torch.dtype) -> None:
    run = module.forward

    def forward(x: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            out: Tensor = run(x, *rest)
        return out

    module.forward = forward


def _widen(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(g.float() if isinstance(g, Tensor) else g for g in given)
