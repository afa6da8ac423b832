"""From pydantic's errors to faults with the place in the file and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from node.config.checks import SECRET, Finding
from node.config.tree import Node
from node.config.values import Refused, did_you_mean, quote
from node.config.walk import models_at, name_of, walk


def findings(error: ValidationError, root: Node) -> list[Finding]:
    """Every error of ``error`` as a finding.

    A list whose items are all faulty seems empty to pydantic: that is no fault of its own.
    """
    errors = error.errors(include_url=False, include_input=False)
    return [
        _finding(each, root)
        for each in errors
        if not (each["type"] == "too_short" and locate(root, each["loc"])[0].items)
    ]


def locate(root: Node, loc: Sequence[str | int]) -> tuple[Node, tuple[int, int], list[str | int]]:
    """The node at pydantic's ``loc``, where its key stands, and the part of ``loc`` that the file has.

    Tags of unions and the insides of values that one scalar stands for are no part of the file.
    """
    node, key, there = root, (root.line, root.column), []
    for part in loc:
        if isinstance(part, int) and node.kind == "list" and part < len(node.items):
            node = node.items[part]
            key = (node.line, node.column)
        elif isinstance(part, str) and part in node.entries:
            entry = node.entries[part]
            node, key = entry.node, (entry.line, entry.column)
        else:
            continue
        there.append(part)
    return node, key, there


def path_text(loc: Sequence[str | int]) -> str:
    """A place for people: lists count from 1."""
    return ".".join(str(part + 1) if isinstance(part, int) else quote(part)[1:-1] for part in loc)


def _finding(error: Mapping[str, Any], root: Node) -> Finding:
    loc: tuple[str | int, ...] = error["loc"]
    kind: str = error["type"]
    node, key, there = locate(root, loc)
    if kind == "extra_forbidden":
        name = str(loc[-1])
        return Finding(
            *key, path_text(there), f"there is no key {quote(name)} here", _other_key(name, loc[:-1])
        )
    if kind == "missing":
        name = str(loc[-1])
        return Finding(node.line, node.column, path_text(there), f"{name} is missing", _about(loc[:-1], name))
    refused = error.get("ctx", {}).get("error")
    if loc[-1:] == ("[key]",) and isinstance(refused, Refused):
        return Finding(*key, path_text(there), refused.message, refused.hint)
    message, hint, wanted = _told(error, refused, node)
    said = node.get("kind") if there[:1] == ["destinations"] and len(there) == 2 else None
    where = said if said is not None else node  # a kind that is wrong is blamed where it stands
    if any(each.secret for each in node.nodes()):
        told = f"{SECRET} ({quote(node.written)})" if node.kind == "scalar" else SECRET
        return Finding(where.line, where.column, path_text(there), told, wanted)
    return Finding(where.line, where.column, path_text(there), message, hint)


def _told(error: Mapping[str, Any], refused: object, node: Node) -> tuple[str, str, str]:
    """Message, hint, and what fits without the value."""
    if isinstance(refused, Refused):
        return refused.message, refused.hint, refused.wanted
    kind: str = error["type"]
    context: Mapping[str, Any] = error.get("ctx", {})
    said = quote(node.value) if node.kind == "scalar" else f"a {node.kind}"
    if kind == "literal_error":
        words = [each.strip("'\"") for each in str(context["expected"]).replace(" or ", ", ").split(", ")]
        wanted = f"write {' or '.join(words)}"
        near = did_you_mean(node.value or "", words, wanted) if node.kind == "scalar" else wanted
        return f"{said} does not fit", near, wanted
    for bound, words_ in _BOUNDS.items():
        if bound in context and kind.startswith(_BOUND_KINDS):
            limit = context[bound]
            wanted = f"{words_} {int(limit) if float(limit).is_integer() else limit}"
            return f"{said} is out of range", wanted, wanted
    if kind == "too_short":
        return "the list is empty", "name at least one", "name at least one"
    if kind == "string_too_long":
        wanted = f"at most {context['max_length']} characters"
        return f"{said} is too long", wanted, wanted
    for prefix, wanted in _SHAPES.items():
        if kind.startswith(prefix):
            hint = (
                f"write [{node.value}]"
                if "list" in wanted and node.kind == "scalar" and node.value
                else wanted
            )
            return f"{said} does not fit here", hint, wanted
    return f"{said} does not fit here", str(error["msg"])[:80], "see docs/configuration.md"


_BOUND_KINDS = ("greater", "less")
_BOUNDS: Mapping[str, str] = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_SHAPES: Mapping[str, str] = {
    "model": "a section is wanted: keys with values, one a line",
    "dict": "names are wanted, each with its settings",
    "mapping": "keys with values are wanted",
    "tuple": "a list is wanted: [A, B]",
    "list": "a list is wanted: [A, B]",
    "string": "a text is wanted",
}


def _other_key(name: str, loc: Sequence[str | int]) -> str:
    models = models_at([part for part in loc if part not in ("list", "any")])
    here = [name_of(field, info) for model in models for field, info in model.model_fields.items()]
    near = did_you_mean(name, here)
    if near:
        return near
    elsewhere = next((key.path for key in walk() if key.name == name), "")
    if elsewhere:
        return f"it belongs at {elsewhere}"
    return f"known here: {', '.join(dict.fromkeys(here))}"[:200] if here else "take it out"


def _about(loc: Sequence[str | int], name: str) -> str:
    """The first sentence of a key's description."""
    for model in models_at([part for part in loc if part not in ("list", "any")]):
        for field, info in model.model_fields.items():
            if name_of(field, info) == name and info.description:
                return info.description.partition(". ")[0].rstrip(".")
    return ""
