"""``python -m training export``: from the best checkpoint of a recipe to an engine's folder, or not at all."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from torch import nn

from engines import card as engine_card
from engines.errors import EngineError
from engines.runtime.onnx import read_verified
from engines.runtime.onnxfile import inspect
from training import checkpoint as checkpoints
from training.errors import CheckpointError, ExportError
from training.export import Exported, export, write_card
from training.fit import BEST, finished
from training.networks.dae import Autoencoder
from training.recipe import EnginePart, Recipe


def _provenance(recipe: Recipe, engine: EnginePart, checkpoint: Path, other: Path | None) -> dict[str, str]:
    mean = {} if other is None else {"mean_with": str(engine.mean_with), "mean_with_sha256": _sha256(other)}
    return {
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest,
        # Synthetic material has no patients to split: the digest is of its seeds, which the recipe holds.
        "split_sha256": recipe.data.split or recipe.digest,
        "trained_on": " ".join(engine.trained_on.split()),
        "licence": recipe.data.licence,
        "checkpoint_sha256": _sha256(checkpoint),
        "torch": version("torch"),
        **mean,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mean_of(network: nn.Module, other: nn.Module) -> None:
    """Give a network the mean of its weights and another's."""
    theirs = other.state_dict()
    network.load_state_dict({k: 0.5 * (v + theirs[k]) for k, v in network.state_dict().items()})


def licence_of(recipe: Recipe) -> str:
    """What the card says of the weights: Apache-2.0 where all that they saw is, and was no patient's; else the terms
    of what they saw, word for word."""
    told = " ".join(recipe.data.licence.split())
    return "Apache-2.0" if not recipe.data.split and told.endswith(", Apache-2.0") else told


def _trained(recipe: Recipe, checkpoint: Path, *, itself: bool) -> nn.Module:
    """The network of a checkpoint, if it is what the card would say of it.

    Raises
    ------
    CheckpointError
        There is none; or it was trained with another recipe, or with patients of another split.
    """
    before, _ = checkpoints.read(checkpoint)
    if itself and before.recipe != recipe.digest:
        raise CheckpointError(
            f"the weights of {recipe.name} were trained with another recipe than the one that is to be exported",
            hint="export with the recipe as it was, or train again: what the engine says of itself must be true",
        )
    if before.split not in ("", recipe.data.split):
        raise CheckpointError(
            f"the weights of {checkpoint.parent.name} saw patients of another split than {recipe.name} tells of",
            hint="give both the same split",
        )
    return finished(checkpoint, recipe)


def _free(folder: Path, engine: EnginePart, told: dict[str, str]) -> None:
    """Refuse to put weights under a name and version that others have: derived images name both.

    Raises
    ------
    ExportError
    """
    try:
        there = engine_card.read(folder)
        if there.version != engine.version or there.model is None:
            return
        held = inspect(read_verified(folder / there.model, there.weights_sha256)).metadata
    except EngineError:  # nothing is there, or nothing that any node would load
        return
    keys = ("recipe_sha256", "checkpoint_sha256", "mean_with_sha256")
    if any(held.get(k, "") != told.get(k, "") for k in keys):
        raise ExportError(
            f"{engine.name} {engine.version} is there already, with other weights",
            hint="raise `version` in the recipe's part `engine`, or say --replace",
        )


def ship(recipe: Recipe, runs: Path, zoo: Path, *, replace: bool = False) -> Exported:
    """Export the best weights of a recipe into ``zoo/NAME``: ONNX files, parity gates, card.

    Parameters
    ----------
    replace
        Put them in the place of other weights of the same name and version.

    Raises
    ------
    ExportError
        The recipe makes no engine, a gate is missed, or there is such an engine already.
    CheckpointError
        There are no weights, or the recipe does not tell what they were trained with.
    """
    if recipe.engine is None:
        raise ExportError(f"{recipe.name} makes no engine", hint="its recipe has no part `engine`")
    engine, checkpoint = recipe.engine, runs / recipe.name / BEST
    network = _trained(recipe, checkpoint, itself=True)
    other = None
    if engine.mean_with is not None:
        other = runs / engine.mean_with / BEST
        mean_of(network, _trained(recipe, other, itself=False))
    provenance = _provenance(recipe, engine, checkpoint, other)
    if not replace:
        _free(zoo / engine.name, engine, provenance)
    trust = None
    if isinstance(network, Autoencoder):
        network.plain, trust = True, engine.trust or network.trust
    low, high = engine.sigma_range
    exported = export(
        network,
        zoo / engine.name,
        name=engine.name,
        meta=provenance,
        unit=recipe.data.unit,
        sigma_range=(low, high),
        scale=recipe.scale,
        carries_image=recipe.network.kind == "autoencoder",
    )
    write_card(
        exported,
        version=engine.version,
        title=engine.title,
        family=engine.family,
        modalities=[engine.modality],
        bound=engine.bound,
        trained_on=engine.trained_on,
        evaluated=engine.evaluated or "Not yet.",
        intended_use=engine.intended_use,
        not_for=engine.not_for,
        licence=licence_of(recipe),
        default_strength=engine.default_strength,
        lock=engine.lock,
        ood_limit=engine.ood_limit,
        trust=trust,
    )
    return exported
