"""Does an exported file compute what the network computes? Compared on seeded images, in HU.

Three forms of a network are run on the same inputs: PyTorch, the fp32 file, the fp16 file. The last is run
twice, in ONNX Runtime as it is and with every value of its trunk rounded (training/export/half.py
``emulated``); the worse of both counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engines.base import Unit
from engines.classical import phantoms
from engines.tiles import up
from training.errors import ExportError

if TYPE_CHECKING:
    import onnxruntime

Floats = NDArray[np.float32]

SHAPES = ((1, 64, 64), (2, 72, 104), (1, 136, 96), (2, 256, 256))
"""Batch, height and width of the compared inputs."""

IMAGE_FACTOR = 10.0
"""How much further than others a network may be from PyTorch whose trunk carries the image: its values are
thousands of HU, of which float32 rounds off up to 1.2e-4 HU in every layer."""

LOUD = {"HU": 50.0, "arbitrary": 0.05}
"""Noise above which the bars of fp16 grow with it. Half precision rounds relative to what it carries, which is
noise: at 150 HU of it (no diagnostic series) a tenth of a HU is less than a thousandth. Below, they are absolute."""

EXTREMES = (-1.024, 3.071)
"""Air and the brightest stored metal, as HU / 1000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """What an export has to meet.

    Attributes
    ----------
    unit
        HU, or series scales, for one unit of r.
    fp32_max, fp16_max, fp16_rms
        Largest difference of fp32 from PyTorch; largest and root mean square of fp16 from fp32.
    """

    unit: float
    fp32_max: float
    fp16_max: float
    fp16_rms: float


def bars(unit: Unit, scale: int) -> Bars:
    """CT: 1e-3, 0.5 and 0.1 HU. MR: 1e-5, 5e-4 and 1e-4 of the series scale (design notes, models.md 6.1).

    Those of fp16 are for noise up to :data:`LOUD`.

    r is in units of c, where 1 is 100 HU; the detail of super-resolution is in units of x, where 1 is 1000 HU.
    """
    if unit == "HU":
        return Bars(unit=100.0 if scale == 1 else 1000.0, fp32_max=1e-3, fp16_max=0.5, fp16_rms=0.1)
    return Bars(unit=1.0, fp32_max=1e-5, fp16_max=5e-4, fp16_rms=1e-4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Measured differences, in HU or fractions of the series scale; the worst of all inputs."""

    unit: Literal["HU", "scale"]
    fp32_max: float
    fp16_max: float
    fp16_rms: float
    fp16_max_rounded: float
    fp16_rms_rounded: float
    largest_residual: float
    n_inputs: int


def inputs(
    unit: Unit,
    sigma_range: tuple[float, float],
    alignment: int = 8,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
) -> Iterator[tuple[Floats, Floats]]:
    """Yield x [N, 3, H, W] and c [N, 1, H, W]: seeded phantoms, noise from the lowest to the highest sigma."""
    low, high = max(sigma_range[0], 1e-3 * sigma_range[1]), sigma_range[1]
    kinds = ("chest", "head", "abdomen")
    for i, (n, *size) in enumerate(shapes):
        height, width = (up(s, alignment) for s in size)
        sigma = low * (high / low) ** (i / max(len(shapes) - 1, 1))
        stack = (n + 2, height, width)
        if unit == "HU":
            values = phantoms.ct(i, shape=stack, sigma=sigma, kind=kinds[i % 3]).noisy / np.float32(1000)
            level = sigma / 100
        else:
            values = phantoms.mr(i, shape=stack, sigma=sigma, scale=800.0).noisy / np.float32(800)
            level = sigma
        x = np.stack([values[z : z + 3] for z in range(n)]).astype(np.float32)
        yield x, np.full((n, 1, height, width), level, np.float32)


def _extreme(sigma_range: tuple[float, float], unit: Unit, alignment: int) -> tuple[Floats, Floats]:
    """Blocks of the lowest and highest value, at random: what drives activations highest."""
    rng = np.random.default_rng(7)
    blocks = np.kron(rng.integers(0, 2, (1, 3, 12, 12)), np.ones((1, 1, alignment, alignment)))
    x = np.where(blocks > 0, EXTREMES[1], EXTREMES[0] if unit == "HU" else 0.0).astype(np.float32)
    level = sigma_range[1] / (100 if unit == "HU" else 1)
    return x, np.full((1, 1, *x.shape[2:]), level, np.float32)


def measure(
    network: nn.Module,
    fp32: bytes,
    fp16: bytes | None,
    rounded: bytes | None,
    *,
    unit: Unit,
    scale: int,
    sigma_range: tuple[float, float],
    alignment: int = 8,
    threads: int = 1,
) -> Parity:
    """Run all forms of a network and compare them.

    Parameters
    ----------
    network
        On the CPU, in float32, in evaluation mode.
    fp32, fp16, rounded
        ONNX files: the two to ship, and the emulation of the second. Without the latter two the network is
        one that carries the image (:data:`IMAGE_FACTOR`).

    Raises
    ------
    ExportError
        A bar is missed (the figures are in the message), or fp16 overflows.
    """
    told = bars(unit, scale)
    if fp16 is None:
        told = replace(told, fp32_max=IMAGE_FACTOR * told.fp32_max)
    full = _session(fp32, threads)
    halves = [] if fp16 is None else [("fp16", "rms", _session(fp16, threads))]
    if rounded is not None:
        halves.append(("rounded", "rms_rounded", _session(rounded, threads, raw=True)))
    worst = dict.fromkeys(("fp32", "fp16", "rounded", "rms", "rms_rounded", "residual"), 0.0)
    n = 0

    def note(key: str, value: float) -> None:
        worst[key] = max(worst[key], value) if np.isfinite(value) else np.inf

    for x, c in inputs(unit, sigma_range, alignment):
        wanted = _torch(network, x, c) * told.unit
        r = _run(full, x, c) * told.unit
        if r.shape != wanted.shape:
            raise ExportError(f"the fp32 file returns {r.shape}, the network {wanted.shape}")
        note("fp32", float(np.abs(r - wanted).max()))
        note("residual", float(np.abs(wanted).max()))
        sigma = float(c.flat[0]) * (100.0 if unit == "HU" else 1.0)
        fair = min(1.0, LOUD[unit] / sigma)
        for key, rms, session in halves:
            away = (_run(session, x, c) * told.unit - r).astype(np.float64) * fair
            note(key, float(np.abs(away).max()))
            note(rms, float(np.sqrt(np.mean(away**2))))
        n += 1
    x, c = _extreme(sigma_range, unit, alignment)
    if not all(np.isfinite(_run(s, x, c)).all() for s in (full, *(h[2] for h in halves))):
        raise ExportError("the network overflows on bright metal", hint="train with smaller activations")
    made = Parity(
        unit="HU" if unit == "HU" else "scale",
        fp32_max=worst["fp32"],
        fp16_max=max(worst["fp16"], worst["rounded"]),
        fp16_rms=max(worst["rms"], worst["rms_rounded"]),
        fp16_max_rounded=worst["rounded"],
        fp16_rms_rounded=worst["rms_rounded"],
        largest_residual=worst["residual"],
        n_inputs=n,
    )
    _hold(made, told)
    return made


def _hold(made: Parity, told: Bars) -> None:
    found = {k: (getattr(made, k), getattr(told, k)) for k in ("fp32_max", "fp16_max", "fp16_rms")}
    missed = [f"{k} {a:.3g} > {b:g} {made.unit}" for k, (a, b) in found.items() if not a <= b]
    if missed:
        raise ExportError(
            f"the export disagrees with the network: {', '.join(missed)}",
            hint=f"residuals reach {made.largest_residual:.3g} {made.unit}; is the network trained?",
        )


def _torch(network: nn.Module, x: Floats, c: Floats) -> Floats:
    try:
        with torch.no_grad():
            out: Floats = network(torch.from_numpy(x), torch.from_numpy(c)).numpy()
    except RuntimeError as e:
        raise ExportError(
            f"the network cannot be run on {x.shape}: {e}", hint="is the alignment right?"
        ) from e
    return out


def _session(content: bytes, threads: int, *, raw: bool = False) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    if raw:
        # An optimiser may take pairs of casts away, and they are the point here.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime has no narrower root.
        raise ExportError(f"ONNX Runtime cannot load the export: {e}") from e


def _run(session: onnxruntime.InferenceSession, x: Floats, c: Floats) -> Floats:
    try:
        (r,) = session.run(["r"], {"x": x, "c": c})
    except Exception as e:  # ONNX Runtime has no narrower root.
        raise ExportError(f"ONNX Runtime cannot run the export on {x.shape}: {e}") from e
    out: Floats = np.asarray(r)
    return out
