"""Figures of a training: a line of JSON each, and TensorBoard's files where TensorBoard is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


class Log:
    """Writes figures by step; a resumed training appends."""

    def __init__(self, folder: Path, first: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / "figures.jsonl").open("a" if first else "w", encoding="utf-8")
        self._board = _tensorboard(folder)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Note figures of a step."""
        self._lines.write(json.dumps({"step": step, **figures}) + "\n")
        self._lines.flush()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()
