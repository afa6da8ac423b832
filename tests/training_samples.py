"""Small seeded shards for tests of training, made once for a session."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.data.shards import Writer
from training.simulate import anatomy

KINDS = ("abdomen", "head", "abstract", "chest")


def shards(root: Path, *, n: int = 8, matrix: int = 128, name: str = "toy", seed: int = 1) -> Path:
    """Write ``name``-truth and ``name``-validation under ``root``; returns ``root``."""
    for part, count, offset in (("truth", n, 0), ("validation", max(4, n // 4), 1000)):
        writer = Writer(root / f"{name}-{part}")
        for i in range(count):
            kind = KINDS[i % len(KINDS)]
            made = anatomy.draw(np.random.default_rng([seed, offset + i]), kind=kind, matrix=matrix)
            writer.add(
                f"{name}-{offset + i}", made.values, made.spacing_mm, span=(-1024.0, 3071.0), kind=made.kind
            )
    return root
