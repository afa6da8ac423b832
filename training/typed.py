"""Small YAML files with a schema, beside the recipes: spaces of tuning, recipes of generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from training.errors import RecipeError


class Part(BaseModel):
    """A mapping that knows all of its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], text: str, name: str) -> Model:
    """Check the text of a file against its schema.

    Raises
    ------
    RecipeError
        With every fault, by key.
    """
    try:
        loaded: Any = YAML(typ="safe", pure=True).load(text)
    # A date or number that is none (2001-99-99) leaves the parser as what its constructor raised.
    except (YAMLError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise RecipeError(f"{name}: not YAML") from e
    if not isinstance(loaded, dict):
        raise RecipeError(f"{name}: not a mapping")
    return checked(model, loaded, name)


def checked(model: type[Model], loaded: Any, name: str) -> Model:
    """Check plain values against a schema.

    Raises
    ------
    RecipeError
        With every fault, by key.
    """
    try:
        return model.model_validate(loaded)
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'file'}: {f['msg']}" for f in e.errors())
        raise RecipeError(f"{name}: {faults}") from e


def load(model: type[Model], path: Path | str, shipped: Path) -> Model:
    """Read a path, or a file of the folder ``shipped`` by its name without ending.

    Raises
    ------
    RecipeError
        It cannot be read, or does not fit the schema.
    """
    file = Path(path)
    if not file.suffix:
        file = shipped / f"{file.name}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        there = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
        raise RecipeError(f"{file.name}: cannot be read", hint=f"a path, or one of {there}") from e
    return parse(model, text, file.name)


def write(values: Any, path: Path, head: str = "") -> None:
    """Write plain values as YAML, atomically; ``head`` is a comment line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 118
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as stream:
        if head:
            stream.write(f"# {head}\n")
        yaml.dump(values, stream)
    part.replace(path)
