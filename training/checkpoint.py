"""Checkpoints: one safetensors file, written and synced under another name and renamed; never a pickle.

Tensors ``net.*`` are the weights, ``ema.*`` their running mean (what is evaluated and exported), ``critic.*``
the critic's, ``optim.*`` and ``optim2.*`` the optimisers' moments. The header tells step, seconds, the digests of
the recipe and of the split, and the best figure so far.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from training.errors import CheckpointError, Diverged


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
    """Write a checkpoint atomically and durably.

    Raises
    ------
    Diverged
        A weight is no number; what was there before still is.
    CheckpointError
        The disk refuses; what was there before still is.
    """
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()
    for name, optimiser in optimisers.items():
        tensors |= {k: v.cpu().contiguous() for k, v in _moments(name, optimiser).items()}
    broken = sorted(k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all())
    if broken:
        raise Diverged(
            f"{broken[0]} is not a number at step {progress.step}: {path.name} stays as it was",
            hint="lower optim.rate, or precision: fp32; `fit` goes on from the last checkpoint",
        )
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(part), metadata={"progress": json.dumps(asdict(progress))})
        _synced(part)
        part.replace(path)
        _synced(path.parent)
    except (OSError, SafetensorError) as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path.name} cannot be written ({getattr(e, 'strerror', None) or e})",
            hint="it needs space and write permission; what was written before still is, `fit` goes on from it",
        ) from e


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Train in a folder while no other process does; one that dies lets go.

    Raises
    ------
    CheckpointError
        Another is at it: each would write over the other's checkpoints. Or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise CheckpointError(
            f"{folder.name} cannot be written: {e.strerror}", hint="--runs names the folder of all trainings"
        ) from e
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise CheckpointError(
                f"another process trains {folder.name}", hint="wait for it, or give the recipe another name"
            ) from e
        yield
    finally:
        os.close(held)


def _synced(path: Path) -> None:
    """Have the disk hold what was written: a machine that loses power would otherwise keep the new name of nothing."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        It is not there, cut off, or not one of ours.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path.parent.name} has no {path.name}",
            hint=f"first `python -m training fit {path.parent.name}`",
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            told = Progress(**json.loads((file.metadata() or {})["progress"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{path.name}: not a checkpoint of this training", hint="begin anew with --fresh"
        ) from e
    return told, tensors


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
    """Put an optimiser's moments back.

    Raises
    ------
    CheckpointError
        They do not fit.
    """
    held_by = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in _under(tensors, name).items():
        index, _, what = key.partition(".")
        at = int(index) if index.isdigit() else len(held_by)
        if at >= len(held_by) or (value.dim() and value.shape != held_by[at].shape):
            raise CheckpointError(
                f"the moments {name!r} of the checkpoint do not fit this network",
                hint="begin anew with --fresh",
            )
        state.setdefault(at, {})[what] = value
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
