"""A shipped recipe on anyone's own images: a copy of it that names their shards and their split."""

from __future__ import annotations

from pathlib import Path

from training import typed
from training.data.real import SPLIT, WRITTEN
from training.data.split import load as load_split
from training.errors import RecipeError
from training.recipe import Recipe


def own(recipe: Recipe, data: Path, name: str, *, licence: str, alone: bool = False) -> Recipe:
    """Return a copy named ``RECIPE-NAME`` that is trained on ``NAME-train`` too and judged on ``NAME-validation``.

    Parameters
    ----------
    name
        What ``shards real --name`` wrote under ``data``.
    licence
        Of the images.
    alone
        Without the recipe's own truths. Otherwise those of its folders that are there stay in.

    Raises
    ------
    SplitError
        There is no split under that name.
    RecipeError
        The copy does not fit.
    """
    train, validation = (f"{name}-{part}" for part in WRITTEN)
    kept = [] if alone else [f for f in recipe.data.truth if (data / f / "index.json").exists()]
    noise = [f for f in recipe.data.noise if kept and (data / f / "index.json").exists()]
    told = recipe.model_dump(mode="json")
    told["name"] = f"{recipe.name}-{name}"
    told["data"] |= {
        "truth": [*kept, train],
        "validation": [validation],
        "noise": noise,
        "projected": recipe.data.projected if noise else 0,
        "held_out": [],
        "licence": f"{recipe.data.licence}; own images: {licence}" if kept else licence,
        "split": load_split(data / name / SPLIT).split_hash,
    }
    if told["adversary"] is not None:
        told["adversary"]["begins_with"] = (
            f"{recipe.adversary.begins_with}-{name}" if recipe.adversary else ""
        )
    if told["engine"] is not None:
        before = told["engine"]["trained_on"] if kept else ""
        told["engine"] |= {
            "name": told["name"],
            "trained_on": f"{before} Retrained on own images, by patient ({name}).".strip(),
        }
    return typed.checked(Recipe, told, told["name"])


def write(recipe: Recipe, runs: Path) -> Path:
    """Write the copy where its run will be; returns the path.

    Raises
    ------
    RecipeError
        Another recipe of that name is there.
    """
    path = runs / recipe.name / f"{recipe.name}.yaml"
    if path.exists() and typed.load(Recipe, path, path.parent).digest != recipe.digest:
        raise RecipeError(
            f"{recipe.name} was trained with other images or another recipe",
            hint="give another --name, or remove its folder in runs",
        )
    typed.write(
        recipe.model_dump(mode="json", exclude_none=True), path, "Made by `python -m training retrain`."
    )
    return path
