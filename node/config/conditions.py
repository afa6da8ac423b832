"""The closed grammar of rule conditions (first cut, the grammar follows)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    keyword: str
    written: tuple[str, ...]


def parse_when(value: object) -> Mapping[str, Condition]:
    if value == "any":
        return {}
    if isinstance(value, Mapping):
        return {
            k: v
            if isinstance(v, Condition)
            else Condition(keyword=k, written=tuple(v) if isinstance(v, (list, tuple)) else (str(v),))
            for k, v in value.items()
        }
    raise ValueError("write any, or keywords with conditions")


def write_when(when: Mapping[str, Condition]) -> Any:
    return {k: c.written[0] if len(c.written) == 1 else list(c.written) for k, c in when.items()} or "any"
