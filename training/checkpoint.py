"""Checkpoints: one safetensors file, written under another name and renamed; never a pickle.

Tensors ``net.*`` are the weights, ``ema.*`` their running mean (what is evaluated and exported), ``critic.*``
the critic's, ``optim.*`` and ``optim2.*`` the optimisers' moments. The header tells step, seconds, the digests of
the recipe and of the split, and the best figure so far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from training.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a training is.

    Attributes
    ----------
    step
        Updates done.
    seconds
        Time spent on them, over all runs.
    best
        Best gain on the validation patches so far, dB.
    recipe, split
        Digests.
    """

    step: int
    seconds: float
    best: float
    recipe: str
    split: str


def _moments(prefix: str, optimiser: optim.Optimizer) -> dict[str, Tensor]:
    out = {}
    for i, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            out[f"{prefix}.{i}.{key}"] = torch.as_tensor(value).detach().clone()
    return out


def save(
    path: Path,
    progress: Progress,
    networks: Mapping[str, nn.Module],
    optimisers: Mapping[str, optim.Optimizer],
) -> None:
    """Write a checkpoint atomically."""
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()
    for name, optimiser in optimisers.items():
        tensors |= {k: v.cpu().contiguous() for k, v in _moments(name, optimiser).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, str(part), metadata={"progress": json.dumps(asdict(progress))})
    part.replace(path)


def read(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        It is not there, cut off, or not one of ours.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {})["progress"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, ValueError) as e:
        raise CheckpointError(
            f"{path.name}: not a checkpoint of this training", hint="begin anew with --fresh"
        ) from e
    return Progress(**told), tensors


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}


def restore(tensors: Mapping[str, Tensor], name: str, network: nn.Module) -> None:
    """Put the weights ``name`` of a checkpoint into a network.

    Raises
    ------
    CheckpointError
        They do not fit.
    """
    try:
        network.load_state_dict(_under(tensors, name))
    except RuntimeError as e:
        raise CheckpointError(
            f"the weights {name!r} of the checkpoint do not fit this network",
            hint="the recipe was changed: begin anew with --fresh",
        ) from e


def restore_moments(tensors: Mapping[str, Tensor], name: str, optimiser: optim.Optimizer) -> None:
    """Put an optimiser's moments back."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in _under(tensors, name).items():
        index, _, what = key.partition(".")
        state.setdefault(int(index), {})[what] = value
    held = optimiser.state_dict()
    held["state"] = state
    optimiser.load_state_dict(held)


def go_on(
    path: Path,
    name: str,
    wanted: tuple[str, str],
    networks: Mapping[str, nn.Module],
    optimisers: Mapping[str, optim.Optimizer],
) -> Progress | None:
    """Put a checkpoint back into a training; None where there is none.

    Parameters
    ----------
    wanted
        Digests of the recipe and of the split that the training has.

    Raises
    ------
    CheckpointError
        The checkpoint was made with others, is broken, or does not fit.
    """
    if not path.exists():
        return None
    progress, tensors = read(path)
    if (progress.recipe, progress.split) != wanted:
        raise CheckpointError(
            f"{name}: the checkpoint was made with another recipe or split",
            hint="give the changed recipe a name of its own, or begin anew with --fresh",
        )
    for key, network in networks.items():
        restore(tensors, key, network)
    for key, optimiser in optimisers.items():
        restore_moments(tensors, key, optimiser)
    return progress
