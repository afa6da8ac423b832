"""Classical engines: what needs no weights, tuned like a network and held to the same laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engines.classical.nlm import NonLocalMeans
from engines.classical.tv import TotalVariation
from engines.classical.wavelet import WaveletShrinkage

Classical = NonLocalMeans | TotalVariation | WaveletShrinkage

CORES: Mapping[str, Callable[[Mapping[str, Any], int], Classical]] = {
    "nlm": NonLocalMeans.of,
    "tv": TotalVariation.of,
    "wavelet": WaveletShrinkage.of,
}
"""What ``core`` in a card.yaml may say."""
