"""The closed grammar of rule conditions: words, never symbols, and nothing evaluated as code.

======================  =====================================================================
``CT``                  equals; a number compares as a number, a code (VR CS) whatever its case
``[CHEST, LUNG]``       any of these; each may be an operator
``not X``               none of the values is X; also for every operator below
``[not X, not Y]``      neither; ``not [X, Y]`` says the same
``at most 2.5``         a number up to this; ``at least 2.5`` from this; ``between 1 and 2.5``
``contains TEXT``       the text occurs somewhere, whatever its case
``matches REGEX``       the pattern is found somewhere (:mod:`node.config.patterns`)
``present, absent``     the attribute has a value, or none
``equals TEXT``         for a text that begins like an operator
======================  =====================================================================

An attribute may have many values, in one instance and over a series. A positive condition holds if any
value fits, ``not`` if none does; so ``not X`` holds for an attribute that is absent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from node.config.identifiers import vr_of
from node.config.operators import reads_as_operator
from node.config.patterns import Pattern
from node.model import Scalar


class Sort(StrEnum):
    """How values of an attribute compare, by its VR."""

    TEXT = "text"
    CODE = "code"
    NUMBER = "number"
    AGE = "age"
    UID = "uid"


_SORTS: Mapping[str, Sort] = {
    "CS": Sort.CODE,
    "AS": Sort.AGE,
    "UI": Sort.UID,
    **dict.fromkeys(("DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "DA", "TM"), Sort.NUMBER),
}

_AGE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,2})?) ?([DWMY])?", re.ASCII)
_PER_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)


def as_number(value: Scalar, sort: Sort = Sort.NUMBER) -> float | None:
    """The number that a value stands for; ages (``045Y``, PS3.5 6.2 VR AS) in years; None if it is none."""
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    text = value.strip(" \0")[:64]
    if sort is Sort.AGE:
        age = _AGE.fullmatch(text.upper())
        return float(age[1]) / _PER_YEAR[age[2] or "Y"] if age else None
    number = float(text) if _DECIMAL.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None


def sort_of(keyword: str) -> Sort:
    """How values of this attribute compare."""
    return _SORTS.get(vr_of(keyword), Sort.TEXT)


@dataclass(frozen=True, slots=True)
class Criterion:
    """One positive test of one value.

    ``operator`` is ``equals``, ``at most``, ``at least``, ``between``, ``contains``, ``matches`` or
    ``present``; ``operand`` what follows it, as written; ``low`` and ``high`` bound numbers, inclusive.
    """

    operator: str
    operand: str = ""
    low: float = -math.inf
    high: float = math.inf
    pattern: Pattern | None = None

    def fits(self, value: Scalar, sort: Sort) -> bool:
        """True if this one value passes."""
        if sort in (Sort.NUMBER, Sort.AGE):
            found = as_number(value, sort)
            if self.operator == "equals":
                return found is not None and math.isclose(found, self.low, rel_tol=1e-6, abs_tol=1e-12)
            return found is not None and self.low <= found <= self.high
        text = str(value).strip(" \0")
        if self.operator == "equals":
            return text.casefold() == self.operand.casefold() if sort is Sort.CODE else text == self.operand
        if self.operator == "contains":
            return self.operand.casefold() in text.casefold()
        return self.pattern is not None and self.pattern.found_in(text)

    def __str__(self) -> str:
        if self.operator == "equals" and not reads_as_operator(self.operand):
            return self.operand
        return f"{self.operator} {self.operand}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a rule wants of one attribute: any of ``tests``, or, ``negated``, none of them."""

    keyword: str
    sort: Sort
    tests: tuple[Criterion, ...]
    negated: bool = False

    def holds(self, values: Sequence[Scalar]) -> bool:
        """True if the condition holds for all values that a series has of the attribute.

        An empty value is no value.
        """
        there = [v for v in values if not isinstance(v, str) or v.strip(" \0")]
        return self.negated != any(self._passes(test, there) for test in self.tests)

    def _passes(self, test: Criterion, values: Sequence[Scalar]) -> bool:
        if test.operator == "present":
            return bool(values)
        return any(test.fits(value, self.sort) for value in values)

    @property
    def written(self) -> str | list[str]:
        """As config.yaml would have it; :func:`~node.config.grammar.parse_condition` reads it back."""
        if self.negated and len(self.tests) == 1 and self.tests[0].operator == "present":
            return "absent"
        said = [f"not {test}" if self.negated else str(test) for test in self.tests]
        return said[0] if len(said) == 1 else said

    def __str__(self) -> str:
        said = self.written
        if isinstance(said, str):
            return said
        tests = ", ".join(str(test) for test in self.tests)
        return f"not [{tests}]" if self.negated else f"[{tests}]"
