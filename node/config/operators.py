"""The words of the condition grammar, and the look-alikes that people try instead."""

from __future__ import annotations

import re
from collections.abc import Mapping

from node.config.values import Refused, quote

OPERATOR = re.compile(r"(not|equals|contains|matches|at most|at least|between)(?: +(.*))?", re.DOTALL)

EXAMPLES: Mapping[str, str] = {
    "not": "not LOCALIZER",
    "equals": "equals not for diagnosis",
    "contains": "contains CHEST",
    "matches": "matches ^T1",
    "at most": "at most 2.5",
    "at least": "at least 2.5",
    "between": "between 1 and 2.5",
    "present": "present",
    "absent": "absent",
}
"""Every operator, with an example."""

_FOREIGN: Mapping[str, str] = {
    "any of": "a list: [A, B]",
    "one of": "a list: [A, B]",
    "in": "a list: [A, B]",
    "none of": "not [A, B]",
    "not in": "not [A, B]",
    "is": "",
    "is not": "not",
    "except": "not",
    "starts with": "matches ^",
    "begins with": "matches ^",
    "ends with": "matches ...$",
    "like": "contains",
    "regex": "matches",
    "less than": "at most",
    "fewer than": "at most",
    "smaller than": "at most",
    "no more than": "at most",
    "up to": "at most",
    "more than": "at least",
    "greater than": "at least",
    "larger than": "at least",
    "no less than": "at least",
}
"""Words of other rule languages, in lower case, and ours."""

_BEFORE_NUMBERS = {"below": "at most", "under": "at most", "above": "at least", "over": "at least"}

_SYMBOLS: Mapping[str, str] = {
    "!=": "not", "<>": "not", "!": "not", "<=": "at most", ">=": "at least", "≤": "at most", "≥": "at least",
    "<": "at most", ">": "at least", "==": "", "=": "", "~": "matches",
}  # fmt: skip


def reads_as_operator(text: str) -> bool:
    """True if a text cannot stand as a value by itself, because it looks like an operator."""
    return bool(_instead(text)) or _begins(text, EXAMPLES) != ""


def _begins(text: str, words: Mapping[str, str]) -> str:
    """The longest of ``words`` that ``text`` is or begins with; empty if none."""
    found = [word for word in words if text == word or text.startswith(f"{word} ")]
    return max(found, key=len, default="")


def _instead(text: str) -> str:
    """What to write instead of a look-alike; empty if the text is none."""
    capital = _begins(text.casefold(), EXAMPLES)
    if capital and not _begins(text, EXAMPLES):
        return f"{capital}, in lower case"
    foreign = _begins(text, _FOREIGN)
    if foreign:
        return _ours(_FOREIGN[foreign], text[len(foreign) :])
    number = _begins(text, _BEFORE_NUMBERS)
    if number and text[len(number) :].strip()[:1].isdigit():
        return _ours(_BEFORE_NUMBERS[number], text[len(number) :])
    for symbol, ours in _SYMBOLS.items():
        if text.startswith(symbol):
            return _ours(ours, text[len(symbol) :])
    if text == "any":
        return "present, or leave the line out"
    if text.startswith("["):
        return "the list without quotes"
    if len(text) > 2 and text.startswith("*") and text.endswith("*"):
        return f"contains {text.strip('*')}"
    return ""


def _ours(operator: str, rest: str) -> str:
    operand = rest.strip()[:40]
    if operator.startswith("matches ") or "[" in operator:
        return operator
    return f"{operator} {operand}".strip() if operand else operator or "the value alone"


def misread(text: str) -> Refused:
    """The fault of a text that looks like an operator but is none."""
    return Refused(
        f"{quote(text)} looks like an operator, but is none",
        f"write {_instead(text)}; if it is meant as text, write: equals {text[:40]}",
        wanted=f"operators are: {', '.join(EXAMPLES)}",
    )
