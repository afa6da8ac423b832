"""What may be shown and stored of a configuration, and its digest: secrets never leave in clear.

A value is a secret if the environment had a part in it (``${NAME}``), and so is a password in a URL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from node.config.masks import mask
from node.config.schema import Config
from node.config.tree import Node


def _secrets(node: Node, keys: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], str]]:
    """Places and written forms of the scalars that the environment had a part in."""
    if node.kind == "scalar":
        return [(keys, node.written)] if node.secret else []
    children: list[tuple[str | int, Node]] = [(key, entry.node) for key, entry in node.entries.items()]
    children += list(enumerate(node.items))
    return [each for key, child in children for each in _secrets(child, (*keys, key))]


def _replace(data: Any, keys: tuple[str | int, ...], make: Callable[[Any], Any]) -> Any:
    """``data`` with the value at ``keys`` made anew; as it is where there is no such place."""
    if not keys:
        return make(data)
    key, rest = keys[0], keys[1:]
    if isinstance(data, dict) and key in data:
        return {**data, key: _replace(data[key], rest, make)}
    if isinstance(data, list) and isinstance(key, int) and key < len(data):
        return [*data[:key], _replace(data[key], rest, make), *data[key + 1 :]]
    return data


def _always(value: str) -> Callable[[Any], Any]:
    return lambda _: value


def shown(config: Config, root: Node) -> Mapping[str, Any]:
    """The settings with their defaults, JSON-able; secrets as written or masked."""
    data: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    data = _masked(data)
    for keys, written in _secrets(root):
        data = _replace(data, keys, _always(mask(written)))
    return data


def _masked(data: Any) -> Any:
    """Every text without the passwords of URLs: one may stand where it does not belong."""
    if isinstance(data, dict):
        return {key: _masked(each) for key, each in data.items()}
    if isinstance(data, list):
        return [_masked(each) for each in data]
    return mask(data) if isinstance(data, str) else data


def digest(config: Config, root: Node) -> str:
    """SHA-256 (hex) of the settings in canonical JSON, in which secrets are digests themselves."""
    data: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    data["store"]["database"] = _hashed(data["store"]["database"])
    for keys, _ in _secrets(root):
        data = _replace(data, keys, _hashed)
    return _hashed(data)


def _hashed(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
