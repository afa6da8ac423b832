"""The shape of the schema: which model stands at a path, and every key with its field."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from node.config.conditions import Condition
from node.config.network import HostPort
from node.config.schema import Config


@dataclass(frozen=True, slots=True)
class Shape:
    """What a type is made of: the models below it, by their tag where there are several.

    ``container`` is ``mapping`` or ``list`` if the models are its entries, else empty.
    """

    container: str
    models: Mapping[str, type[BaseModel]]


def shape(annotation: Any) -> Shape:
    """The shape of a field's type. Addresses are models inside but one scalar in the file."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        return shape(arguments[0])
    if origin in (Union, types.UnionType):
        inner = [shape(each) for each in arguments if each is not type(None)]
        models = {tag: model for each in inner for tag, model in each.models.items()}
        return Shape(next((each.container for each in inner if each.container), ""), models)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Shape("mapping", shape(arguments[1]).models)
    if origin in (tuple, list):
        return Shape("list", shape(arguments[0]).models)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not HostPort:
        kind = annotation.model_fields.get("kind")
        return Shape("", {str(kind.default) if kind else "": annotation})
    return Shape("", {})


@dataclass(frozen=True, slots=True)
class Key:
    """One key of config.yaml.

    ``path`` leaves out the names that an admin chooses and the places in lists: ``engines.strength``,
    ``rules.when``. Where a section has kinds, the kind is part of it: ``destinations.dimse.address``.
    """

    path: str
    name: str
    field: FieldInfo
    model: type[BaseModel]
    section: bool


def name_of(field_name: str, field: FieldInfo) -> str:
    """The key as the file has it."""
    return field.alias or field_name


def walk(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[Key]:
    """Every key, each section before its keys, in the order of the schema."""
    for field_name, info in model.model_fields.items():
        name = name_of(field_name, info)
        path = f"{prefix}{name}"
        inside = shape(info.annotation)
        yield Key(path=path, name=name, field=info, model=model, section=bool(inside.models))
        for tag, below in inside.models.items():
            yield from walk(below, f"{path}.{tag}." if tag else f"{path}.")


def models_at(loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """The models that may stand at a place of the file, given by keys and list indices."""
    here: list[type[BaseModel]] = [Config]
    container = ""
    for part in loc:
        if container:
            container = ""  # this part names an entry of a mapping or a place in a list
            continue
        fields = [(f, m) for m in here for n, f in m.model_fields.items() if name_of(n, f) == part]
        if not fields:
            tagged = [m for m in here if getattr(m.model_fields.get("kind"), "default", None) == part]
            here = tagged
            continue
        inside = [shape(f.annotation) for f, _ in fields]
        here = [m for each in inside for m in each.models.values()]
        container = inside[0].container
    return here


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words, for the reference."""
    for each in metadata:
        wording = _WORDING.get(getattr(getattr(each, "func", None), "__name__", ""))
        if wording:
            return wording
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], arguments[1:])
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(each) for each in arguments if each is not type(None))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        inner = type_text(arguments[1])
        return "conditions by keyword" if arguments[1] is Condition else f"{inner} by name"
    if origin in (tuple, list):
        return f"list of {type_text(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "AE titles or sections" if "addresses" in annotation.model_fields else "section"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(annotation, "value")


_WORDING: Mapping[str, str] = {
    "duration": "duration",
    "kept_for": "duration or `forever`",
    "size": "size",
    "whole": "whole number",
    "receivers": "whole number or `auto`",
    "number": "number",
    "truth": "true or false",
    "text": "text",
    "filled": "text",
    "ae_title": "AE title",
    "network": "IP address or network",
    "uid": "UID",
    "name": "name",
    "gpu": "GPU",
    "natural": "settings by name",
    "database": "database URL",
    "_address": "host:port",
    "parse_when": "`any`, or conditions by keyword",
}
