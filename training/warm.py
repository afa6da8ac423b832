"""Weights out of exported engines: the zoo is what lasts when the checkpoints of a training are gone."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from engines.catalog import ZOO


def recipe_of(folder: Path) -> str:
    """Name of the recipe that an engine's weights were made by; empty where that is not told."""
    path = folder / "model.fp32.onnx"
    if not path.exists():
        return ""
    told = {p.key: p.value for p in onnx.load(path).metadata_props}
    return str(told.get("recipe", ""))


def weights(folder: Path) -> dict[str, Tensor]:
    """Weights of an engine by their names in the network; constants of the graph are among them."""
    graph = onnx.load(folder / "model.fp32.onnx").graph
    return {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}


def shipped(recipe: str, zoo: Path = ZOO) -> Path | None:
    """The folder of the engine that a recipe made, if there is one."""
    return next((p for p in sorted(zoo.iterdir()) if p.is_dir() and recipe_of(p) == recipe), None)
