"""Phantoms for tests: those of ``luminode demo``, small and fast."""

from __future__ import annotations

from node.trial.phantoms import (
    Phantom,
    brain_mr,
    chest_ct,
    ct_phantom,
    mr_phantom,
    small_ct,
    small_mr,
    write_series,
)

__all__ = [
    "Phantom",
    "brain_mr",
    "chest_ct",
    "ct_phantom",
    "mr_phantom",
    "small_ct",
    "small_mr",
    "write_series",
]
