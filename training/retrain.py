"""A shipped recipe on anyone's own images: a copy of it that names their shards and their split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.catalog import ZOO
from training import typed, warm
from training.data.real import SPLIT, WRITTEN
from training.data.shards import read
from training.data.split import load as load_split
from training.errors import RecipeError
from training.fit import BEST
from training.recipe import FOLDER, EnginePart, Recipe, load


def own(recipe: Recipe, data: Path, name: str, runs: Path, *, alone: bool = False) -> Recipe:
    """Return a copy named ``RECIPE-NAME`` that is trained on ``NAME-train`` too and judged on ``NAME-validation``.

    Where the weights that the recipe begins with are not there, as those of a stage in the middle never are, the copy
    begins with those of the shipped engine that the recipe is a stage of. It makes an engine of its own, even where the
    recipe is a stage that makes none.

    Parameters
    ----------
    name
        What ``shards real --name`` wrote under ``data``.
    runs
        The folder of all runs.
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
    terms = "; ".join(_licences(data, (train, validation)))
    told = recipe.model_dump(mode="json")
    told["name"] = f"{recipe.name}-{name}"
    told["data"] |= {
        "truth": [*kept, train],
        "validation": [validation],
        "noise": noise,
        "projected": recipe.data.projected if noise else 0,
        "held_out": [],
        "split": load_split(data / name / SPLIT).split_hash,
    }
    if recipe.begins_with is not None:
        told["begins_with"] = _beginning(recipe.begins_with, recipe, runs)
    if told["adversary"] is not None and recipe.adversary is not None:
        before = f"{recipe.adversary.begins_with}-{name}"
        there = (runs / before / BEST).exists()
        told["adversary"]["begins_with"] = (
            before if there else _beginning(recipe.adversary.begins_with, recipe, runs)
        )
    begins = told["begins_with"] or (told["adversary"] or {}).get("begins_with")
    told["data"]["licence"] = (
        f"{recipe.data.licence}; own images: {terms}" if kept or begins is not None else terms
    )
    engine = recipe.engine or _of_stage(recipe)
    if engine is not None:
        also = f" Beside or before them: {engine.trained_on}" if kept or begins is not None else ""
        told["engine"] = engine.model_dump(mode="json") | {
            "name": told["name"],
            "version": "1.0.0",
            "title": f"{engine.title}, retrained ({name})",
            # What was measured was measured of other weights, and so was the best mean of two stages.
            "evaluated": "",
            "mean_with": None,
            "trained_on": f"Own images, split by patient ({name}).{also}",
            "intended_use": "Noise reduction of series like those that it was retrained on, beside the original."
            if recipe.scale == 1
            else engine.intended_use,
        }
    return typed.checked(Recipe, told, told["name"])


def _licences(data: Path, folders: Sequence[str]) -> list[str]:
    """Under which terms the shards are."""
    return sorted({str(s.facts["licence"]) for name in folders for s in read(data / name)})


def _of_stage(recipe: Recipe) -> EnginePart | None:
    """What is said of the shipped engine that a recipe is a stage of; None if it is of none."""
    found = [
        r.engine
        for r in (load(p) for p in sorted(FOLDER.glob("*.yaml")))
        if r.engine is not None
        and f"{recipe.name}-".startswith(f"{r.engine.name}-")
        and (r.network, r.data.unit, r.scale) == (recipe.network, recipe.data.unit, recipe.scale)
    ]
    return max(found, key=lambda e: len(e.name), default=None)


def _beginning(wanted: str, recipe: Recipe, runs: Path) -> str:
    """The recipe whose weights to begin with: the wanted one, or the one that became the shipped engine."""
    if (runs / wanted / BEST).exists() or warm.shipped(wanted) is not None:
        return wanted
    engine = recipe.engine or _of_stage(recipe)
    return (warm.recipe_of(ZOO / engine.name) if engine is not None else "") or wanted


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
