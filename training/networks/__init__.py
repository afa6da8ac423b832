"""Networks by name: what ``network.kind`` in a recipe may say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from training.errors import RecipeError
from training.networks.dae import Autoencoder
from training.networks.pu import PU, SuperResolution
from training.networks.reference import Cnn10, RedCnn, UNet

KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "pu": PU,
    "sr": SuperResolution,
    "autoencoder": Autoencoder,
    "red-cnn": RedCnn,
    "cnn-10": Cnn10,
    "u-net": UNet,
}

SMALLEST = 32
"""Rows and columns of the slice that a new network is tried on."""


def build(kind: str, **options: Any) -> nn.Module:
    """Build a network with fresh weights.

    Raises
    ------
    RecipeError
        There is no such kind, it has no such option, or a network of these options cannot be run.
    """
    if kind not in KINDS:
        raise RecipeError(f"there is no network {kind!r}", hint=f"one of {', '.join(KINDS)}")
    try:
        made: nn.Module = KINDS[kind](**options)
    except (TypeError, KeyError) as e:
        raise RecipeError(f"network {kind}: {e} is no option of it") from e
    except (ValueError, RuntimeError) as e:
        raise RecipeError(f"network {kind} cannot be made of these options: {e}") from e
    training = made.training
    try:
        with torch.no_grad():
            made.eval()(torch.zeros(1, 3, SMALLEST, SMALLEST), torch.zeros(1, 1, SMALLEST, SMALLEST))
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as e:
        raise RecipeError(f"network {kind} cannot be run with these options: {e}") from e
    return made.train(training)


def n_parameters(network: nn.Module) -> int:
    """How many numbers a network has learned."""
    return sum(p.numel() for p in network.parameters())
