"""Networks by name: what ``network.kind`` in a recipe may say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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


def build(kind: str, **options: Any) -> nn.Module:
    """Build a network with fresh weights.

    Raises
    ------
    RecipeError
        There is no such kind, or it has no such option.
    """
    if kind not in KINDS:
        raise RecipeError(f"there is no network {kind!r}", hint=f"one of {', '.join(KINDS)}")
    try:
        return KINDS[kind](**options)
    except (TypeError, KeyError) as e:
        raise RecipeError(f"network {kind}: {e} is no option of it") from e


def n_parameters(network: nn.Module) -> int:
    """How many numbers a network has learned."""
    return sum(p.numel() for p in network.parameters())
