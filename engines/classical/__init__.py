"""Classical engines: what needs no weights, tuned like a network and held to the same laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.classical.nlm import NonLocalMeans
    from engines.classical.tv import TotalVariation
    from engines.classical.wavelet import WaveletShrinkage

    Classical = NonLocalMeans | TotalVariation | WaveletShrinkage


def _of(module: str, name: str) -> Callable[[Mapping[str, Any], int], Classical]:
    """Imports a core when it is built: a worker need not wait for what another one's core stands on."""

    def build(parameters: Mapping[str, Any], threads: int) -> Classical:
        core: Classical = getattr(import_module(f"engines.classical.{module}"), name).of(parameters, threads)
        return core

    return build


CORES: Mapping[str, Callable[[Mapping[str, Any], int], Classical]] = {
    "nlm": _of("nlm", "NonLocalMeans"),
    "tv": _of("tv", "TotalVariation"),
    "wavelet": _of("wavelet", "WaveletShrinkage"),
}
"""What ``core`` in a card.yaml may say."""
