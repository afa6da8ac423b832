"""Export of trained networks: a typed fp32 and fp16 ONNX file, parity gates, and the engine's card.

Nothing is written unless both files compute what the network computes (training/export/parity.py).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from engines.base import Unit
from training.errors import ExportError
from training.export.card import write_card
from training.export.graph import OPSET, to_bytes
from training.export.half import emulated, to_half
from training.export.measure import gflop, receptive_field
from training.export.parity import Parity, measure
from training.export.trace import plain, trace

__all__ = ["PROVENANCE", "Exported", "Parity", "export", "gflop", "receptive_field", "write_card"]

FP32, FP16 = "model.fp32.onnx", "model.fp16.onnx"

PROVENANCE = ("recipe", "recipe_sha256", "split_sha256", "trained_on", "licence", "checkpoint_sha256")
"""Keys that ``meta`` must hold: where the weights come from, and under which terms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and what was measured.

    Attributes
    ----------
    fp32, fp16
        The files; no fp16 for a network that carries the image.
    sha256
        Of both, by file name.
    sigma_range
        Noise that the network is for, in HU or as a fraction of the series scale.
    receptive_field
        Radius in pixels of the input.
    n_nodes
        Operators of the fp32 file.
    """

    name: str
    fp32: Path
    fp16: Path | None
    sha256: Mapping[str, str]
    unit: Unit
    scale: int
    alignment: int
    sigma_range: tuple[float, float]
    receptive_field: int
    gflop: float
    n_nodes: int
    parity: Parity


def export(
    network: nn.Module,
    folder: Path,
    *,
    name: str,
    meta: Mapping[str, str],
    unit: Unit,
    sigma_range: tuple[float, float],
    scale: int = 1,
    alignment: int = 8,
    carries_image: bool = False,
    threads: int = 1,
) -> Exported:
    """Write ``model.fp32.onnx`` and ``model.fp16.onnx`` of a network into an engine's folder.

    The same network, versions and ``meta`` give the same bytes.

    Parameters
    ----------
    network
        forward(x [N, 3, H, W], c [N, 1, H, W]) -> r [N, 1, scale H, scale W]; it is not changed.
    folder
        Made if it is not there; its name must be ``name``, as the catalogue wants it.
    meta
        Goes into the files' metadata; must hold the keys of :data:`PROVENANCE`.
    unit
        ``HU`` or ``arbitrary``: decides the compared images and the bars.
    sigma_range
        Lowest and highest noise: HU, or fraction of the series scale.
    carries_image
        The trunk holds the image itself and not only its noise: autoencoders. Such a network has no fp16 file
        (rounding alone would change the image by more than the noise is estimated to), and its fp32 file may
        differ from PyTorch by the roundings of an image, not of its noise.
    threads
        Of ONNX Runtime, for the comparison.

    Raises
    ------
    ExportError
        The network uses an operator that is not exported, a key of ``meta`` is missing, the folder cannot be
        written, or a parity gate is missed; then no file is written.
    """
    if folder.name != name:
        raise ExportError(f"the folder of the engine {name} must have its name, not {folder.name}")
    missing = [key for key in PROVENANCE if not meta.get(key)]
    if missing:
        raise ExportError(
            f"the provenance lacks {', '.join(missing)}", hint="no weights without their origin"
        )
    graph = trace(network, scale=scale)
    half = None if carries_image else to_half(graph)
    radius = receptive_field(network, scale, alignment=alignment)
    ours = {
        "name": name,
        "unit": unit,
        "x": "HU/1000" if unit == "HU" else "I/scale",
        "c": "sigma/100 HU" if unit == "HU" else "sigma/scale",
        "r": "units of c" if scale == 1 else "units of x",
        "scale": str(scale),
        "sigma_range": f"{sigma_range[0]:g} {sigma_range[1]:g}",
        "receptive_field": str(radius),
        "alignment": str(alignment),
        "versions": f"torch {torch.__version__}, onnx {onnx.__version__}, numpy {np.__version__}, opset {OPSET}",
    }
    taken = sorted((ours.keys() | {"precision"}) & meta.keys())
    if taken:
        raise ExportError(f"meta must not hold {', '.join(taken)}: the export writes them")
    told = {**meta, **ours}
    contents = {FP32: to_bytes(graph, {**told, "precision": "fp32"})}
    if half is not None:
        contents[FP16] = to_bytes(half, {**told, "precision": "fp16, fp32 stem and head"})
    parity = measure(
        plain(network),
        contents[FP32],
        contents.get(FP16),
        None if half is None else to_bytes(emulated(graph, half), {}),
        unit=unit,
        scale=scale,
        sigma_range=sigma_range,
        alignment=alignment,
        threads=threads,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            _write(folder / file, content)
        if half is None:
            # One that an earlier export left would belong to other weights.
            (folder / FP16).unlink(missing_ok=True)
    except OSError as e:
        raise ExportError(f"{folder.name} cannot be written: {e.strerror}") from e
    return Exported(
        name=name,
        fp32=folder / FP32,
        fp16=None if half is None else folder / FP16,
        sha256={file: hashlib.sha256(content).hexdigest() for file, content in contents.items()},
        unit=unit,
        scale=scale,
        alignment=alignment,
        sigma_range=sigma_range,
        receptive_field=radius,
        gflop=gflop(network),
        n_nodes=len(graph.nodes),
        parity=parity,
    )


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: an engine's folder may be read at any moment."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
