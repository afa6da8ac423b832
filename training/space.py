"""What a tuning may vary: dotted keys of a recipe with their ranges, checked before the first trial.

::

    penalty: {bias: 20.0, cfr: 10.0}
    keys:
      optim.rate: {range: [3.0e-4, 3.0e-3], log: true}
      optim.warmup: {range: [30, 400], whole: true}
      network.options.size: {choices: [t, s]}
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from training import typed
from training.errors import RecipeError
from training.networks import KINDS
from training.recipe import Recipe

FOLDER = Path(__file__).resolve().parent / "recipes" / "spaces"

FIXED = ("name", "seed", "engine", "data.unit", "data.task", "data.split", "data.truth", "data.validation",
         "data.held_out", "data.licence", "network.kind", "optim.updates", "optim.minutes", "optim.checkpoint_s",
         "optim.validate_s")  # fmt: skip
"""What is judged, by what, and how long: a trial that changed these could not be compared with another."""

Weight = Annotated[float, Field(ge=0)]


class Penalty(typed.Part):
    """What faults cost beside the gain, in dB.

    Attributes
    ----------
    bias
        For a mean error as large as the noise: 20 costs 1 dB for 5 % of it.
    cfr
        For a centre frequency of the noise left that is off by all of it: 10 costs 1 dB for 0.9.
    """

    bias: Weight = 20.0
    cfr: Weight = 10.0


class Choice(typed.Part):
    """The values of a key: ``range`` with ``log`` or ``whole`` (numbers without fraction), or ``choices``."""

    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    log: bool = False
    whole: bool = False
    choices: Annotated[list[int | float | str | bool], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Choice:
        if (self.range is None) == (self.choices is None):
            raise ValueError("give either range or choices")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("a range goes from a smaller to a larger number")
        if self.log and (self.range is None or self.range[0] <= 0):
            raise ValueError("log needs a range above zero")
        if self.whole and (self.range is None or any(v != int(v) for v in self.range)):
            raise ValueError("whole needs a range of whole numbers")
        return self

    def ends(self) -> list[Any]:
        """Values that must all fit the recipe: both ends, or every choice."""
        if self.choices is not None:
            return list(self.choices)
        assert self.range is not None
        return [int(v) for v in self.range] if self.whole else list(self.range)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it."""
        if self.choices is not None:
            return value in self.choices
        assert self.range is not None
        return isinstance(value, (int, float)) and self.range[0] <= value <= self.range[1]


class Space(typed.Part):
    """All keys that are varied."""

    penalty: Penalty = Penalty()
    keys: Annotated[dict[str, Choice], Field(min_length=1)]

    @property
    def digest(self) -> str:
        """SHA-256 of the space as canonical JSON."""
        told = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(told.encode()).hexdigest()


def load(path: Path | str, recipe: Recipe) -> Space:
    """Read a space (a path, or ``defaults``) and check every key and value against the recipe.

    Raises
    ------
    RecipeError
        It names the key that the recipe does not have, that may not be tuned, or whose value does not fit.
    """
    space = typed.load(Space, path, FOLDER)
    for key, choice in space.keys.items():
        _known(recipe, key)
        for value in choice.ends():
            changed(recipe, {key: value})
    return space


def _known(recipe: Recipe, key: str) -> None:
    if any(key == f or key.startswith(f + ".") for f in FIXED):
        raise RecipeError(
            f"{key} may not be tuned", hint="it decides what is compared; change the recipe itself"
        )
    parts = key.split(".")
    if parts[:2] == ["network", "options"] and len(parts) == 3:
        if recipe.network.kind not in KINDS:
            raise RecipeError(
                f"there is no network {recipe.network.kind!r}", hint=f"one of {', '.join(KINDS)}"
            )
        if parts[2] in inspect.signature(KINDS[recipe.network.kind]).parameters:
            return
    else:
        held: Any = recipe
        for part in parts:
            if not isinstance(held, BaseModel) or part not in type(held).model_fields:
                break
            held = getattr(held, part)
        else:
            if not isinstance(held, BaseModel) and held is not None:
                return
    raise RecipeError(f"{key}: the recipe {recipe.name} has no such key", hint="dotted, as in optim.rate")


def value_of(recipe: Recipe, key: str) -> Any:
    """The value that the recipe has now; None for an option that it leaves to the network."""
    held: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        held = held.get(part) if isinstance(held, Mapping) else None
    return held


def changed(recipe: Recipe, values: Mapping[str, Any], **more: Any) -> Recipe:
    """A copy with other values at dotted keys, checked as any recipe is; ``more`` are keys of the top.

    Raises
    ------
    RecipeError
        A value does not fit.
    """
    told = recipe.model_dump(mode="json")
    for key, value in values.items():
        *way, last = key.split(".")
        held = told
        for part in way:
            held = held[part]
        held[last] = value
    return typed.checked(Recipe, {**told, **more}, ", ".join(values) or recipe.name)
