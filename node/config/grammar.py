"""From what config.yaml says of an attribute to a :class:`~node.config.conditions.Condition`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pydicom.uid

from node.config.conditions import Condition, Criterion, Sort, as_number, sort_of
from node.config.identifiers import why_not
from node.config.operators import EXAMPLES, OPERATOR, misread, reads_as_operator
from node.config.patterns import compile_pattern
from node.config.values import Refused, did_you_mean, nearest, quote

MAX_OPERAND = 256
MAX_TESTS = 256

_BETWEEN = re.compile(r"(.+?) +and +(.+)", re.DOTALL)


def _number(keyword: str, sort: Sort, text: str) -> float:
    found = as_number(text, sort)
    if found is None or not text:
        example = "18Y, 6M or 90D" if sort is Sort.AGE else "2.5"
        hint = f"{keyword} is compared as a number: write one such as {example}"
        spread = re.fullmatch(r"([0-9.]+) ?(?:-|\.\.|to) ?([0-9.]+)", text)
        if spread:
            hint = f"write between {spread[1]} and {spread[2]}"
        raise Refused(f"{quote(text)} is no {'age' if sort is Sort.AGE else 'number'}", hint, wanted=hint)
    return found


def _numeric(keyword: str, sort: Sort, operator: str, operand: str) -> Criterion:
    if sort not in (Sort.NUMBER, Sort.AGE):
        raise Refused(
            f"{keyword} does not hold numbers, so `{operator}` cannot compare it",
            f"use a value, a list, contains or matches; if it is meant as text, write: equals {operator} ...",
        )
    if operator != "between":
        at = _number(keyword, sort, operand)
        return (
            Criterion(operator, operand, high=at)
            if operator == "at most"
            else Criterion(operator, operand, low=at)
        )
    both = _BETWEEN.fullmatch(operand)
    if both is None:
        raise Refused(f"{quote('between ' + operand)} is not complete", "write between 1 and 2.5")
    low, high = _number(keyword, sort, both[1]), _number(keyword, sort, both[2])
    if low > high:
        turned = f"write between {both[2]} and {both[1]}"
        raise Refused("the smaller number comes first", turned, wanted="the smaller number comes first")
    return Criterion(operator, f"{both[1]} and {both[2]}", low=low, high=high)


def _textual(keyword: str, sort: Sort, operator: str, operand: str) -> Criterion:
    if sort in (Sort.NUMBER, Sort.AGE):
        raise Refused(
            f"{keyword} is compared as a number, so `{operator}` cannot be used",
            "use a number, at most, at least or between A and B",
        )
    if operator == "contains":
        return Criterion(operator, operand)
    return Criterion(operator, operand, pattern=compile_pattern(operand, fold=sort is Sort.CODE))


def _equal(keyword: str, sort: Sort, text: str) -> Criterion:
    if sort in (Sort.NUMBER, Sort.AGE):
        return Criterion("equals", text, low=_number(keyword, sort, text))
    if "\\" in text:
        one = text.split("\\")[0] or "one of them"
        hint = f"a backslash separates values: name one of them, for example {one}"
        raise Refused(
            f"{quote(text)} is several values", hint, wanted="a backslash separates values: name one"
        )
    if sort is Sort.UID and not re.fullmatch(r"[0-9.]+", text):
        return Criterion("equals", _uid_named(text))
    if sort is Sort.CODE and re.search(r", | or | and ", text):
        parts = ", ".join(part.strip() for part in re.split(r",| or | and ", text))
        raise Refused(
            f"{quote(text)} is more than one value", f"write a list: [{parts}]", wanted="a list: [A, B]"
        )
    return Criterion("equals", text)


def _uid_named(text: str) -> str:
    names = {name: str(uid) for name, uid in vars(pydicom.uid).items() if isinstance(uid, pydicom.uid.UID)}
    if text in names:
        return names[text]
    hint = did_you_mean(
        text, names, "write a UID, or the keyword of PS3.6 Table A-1, for example CTImageStorage"
    )
    raise Refused(f"{quote(text)} is neither a UID nor the name of one", hint)


_PARSERS: Mapping[str, Callable[[str, Sort, str, str], Criterion]] = {
    "at most": _numeric,
    "at least": _numeric,
    "between": _numeric,
    "contains": _textual,
    "matches": _textual,
    "equals": lambda keyword, sort, _, operand: _equal(keyword, sort, operand),
}


def _parse_one(keyword: str, sort: Sort, written: str) -> tuple[bool, list[Criterion]]:
    """(negated, tests) of one scalar."""
    text = written.strip()
    if not text:
        raise Refused("the condition is empty", "write a value; or absent for an attribute without a value")
    if len(text) > MAX_OPERAND:
        raise Refused(f"the condition has {len(text)} characters", f"at most {MAX_OPERAND} are allowed")
    if not all(c.isprintable() for c in text):
        raise Refused(f"{quote(text)} has characters that cannot be printed", "write it on one line")
    if text == "present":
        return False, [Criterion("present")]
    if text == "absent":
        return True, [Criterion("present")]
    found = OPERATOR.fullmatch(text)
    if found is None:
        if reads_as_operator(text):
            raise misread(text)
        return False, [_equal(keyword, sort, text)]
    operator, operand = found[1], (found[2] or "").strip()
    if not operand:
        raise Refused(f"something is missing after `{operator}`", f"write {EXAMPLES[operator]}")
    if operator != "not":
        return False, [_PARSERS[operator](keyword, sort, operator, operand)]
    if operand.startswith("[") and operand.endswith("]"):
        parts = [part.strip().strip("'\"") for part in operand[1:-1].split(",")]
    else:
        parts = [operand]
    tests: list[Criterion] = []
    for part in parts:
        negated, inner = _parse_one(keyword, sort, part)
        if negated:
            raise Refused(
                f"{quote(text)} denies twice", "say it without `not`, or present", wanted="one `not`"
            )
        tests += inner
    return True, tests


class ConditionRefused(Refused):
    """A condition is wrong; ``item`` is the index in its list, None for the condition as a whole."""

    def __init__(self, refused: Refused, item: int | None) -> None:
        super().__init__(refused.message, refused.hint, wanted=refused.wanted)
        self.item = item


def parse_condition(keyword: str, written: object) -> Condition:
    """Parse what config.yaml says of one attribute.

    Parameters
    ----------
    keyword
        A keyword that rules may name; see :func:`node.config.identifiers.why_not`.
    written
        A scalar or a list of scalars.

    Raises
    ------
    ConditionRefused
        With what to write instead.
    """
    sort = sort_of(keyword)
    items = written if isinstance(written, (list, tuple)) else [written]
    if not items:
        raise ConditionRefused(Refused("the list is empty", "name a value, or write absent"), None)
    if len(items) > MAX_TESTS:
        raise ConditionRefused(Refused(f"the list has {len(items)} items", f"at most {MAX_TESTS}"), None)
    negations: list[bool] = []
    tests: list[Criterion] = []
    for n, item in enumerate(items):
        try:
            if isinstance(item, bool) or not isinstance(item, (str, int, float)):
                raise Refused(
                    "a condition is a word, a number or a list of them", "see docs/configuration.md"
                )
            negated, parsed = _parse_one(keyword, sort, str(item))
        except Refused as refused:
            raise ConditionRefused(refused, n if isinstance(written, (list, tuple)) else None) from None
        negations.append(negated)
        tests += parsed
    if len(set(negations)) > 1:
        mixed = Refused(
            "the list mixes what is wanted with what is not",
            "a list is any of its values, or, with `not` before every one, none of them; make two rules",
        )
        raise ConditionRefused(mixed, negations.index(not negations[0]))
    return Condition(keyword=keyword, sort=sort, tests=tuple(tests), negated=negations[0])


_SCALAR_JSON = {"type": ["string", "number"]}
WHEN_JSON: dict[str, Any] = {
    "anyOf": [
        {"const": "any"},
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [_SCALAR_JSON, {"type": "array", "items": _SCALAR_JSON}]},
        },
    ]
}


def parse_when(value: object) -> Mapping[str, Condition]:
    """Parse the whole of a rule's ``when``: ``any`` gives no condition at all.

    Raises
    ------
    Refused
        For the first fault; :mod:`node.config.checks` finds all of them.
    """
    if isinstance(value, str) and value.strip() == "any":
        return {}
    if not isinstance(value, Mapping):
        raise Refused("`when` is neither `any` nor keywords with conditions", "write {Modality: CT}, or any")
    when: dict[str, Condition] = {}
    for keyword, written in value.items():
        if isinstance(written, Condition):
            when[keyword] = written
            continue
        message, hint = why_not(str(keyword))
        if message:
            raise Refused(message, hint)
        when[str(keyword)] = parse_condition(str(keyword), written)
    return when


def write_when(when: Mapping[str, Condition]) -> Any:
    """The inverse of :func:`parse_when`."""
    return {keyword: condition.written for keyword, condition in when.items()} or "any"


MODALITIES = ("CT", "MR", "PT", "NM", "US", "XA", "CR", "DX", "MG", "RF", "SR", "OT", "SC", "PR", "KO", "SEG")


def doubtful(condition: Condition) -> str:
    """A warning about a condition that is well-formed but probably not what was meant; empty if none."""
    if condition.keyword != "Modality":
        return ""
    for test in condition.tests:
        word = test.operand.upper()
        if test.operator == "equals" and (len(word) != 2 or not word.isalpha()) and word not in MODALITIES:
            near = {"MRI": "MR", "CAT": "CT", "PET": "PT"}.get(word) or nearest(word, MODALITIES)
            return f"{quote(test.operand)} is no usual modality" + (f"; did you mean {near}?" if near else "")
    return ""
