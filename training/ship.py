"""``python -m training export``: from the best checkpoint of a recipe to an engine's folder, or not at all."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from torch import nn

from training.errors import ExportError
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


def ship(recipe: Recipe, runs: Path, zoo: Path) -> Exported:
    """Export the best weights of a recipe into ``zoo/NAME``: ONNX files, parity gates, card.

    Raises
    ------
    ExportError
        The recipe makes no engine, or a gate is missed.
    CheckpointError
        There are no weights.
    """
    if recipe.engine is None:
        raise ExportError(f"{recipe.name} makes no engine", hint="its recipe has no part `engine`")
    engine, checkpoint = recipe.engine, runs / recipe.name / BEST
    network = finished(checkpoint, recipe)
    other = None
    if engine.mean_with is not None:
        other = runs / engine.mean_with / BEST
        mean_of(network, finished(other, recipe))
    trust = None
    if isinstance(network, Autoencoder):
        network.plain, trust = True, engine.trust or network.trust
    low, high = engine.sigma_range
    exported = export(
        network,
        zoo / engine.name,
        name=engine.name,
        meta=_provenance(recipe, engine, checkpoint, other),
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
        licence="Apache-2.0",
        default_strength=engine.default_strength,
        lock=engine.lock,
        ood_limit=engine.ood_limit,
        trust=trust,
    )
    return exported
