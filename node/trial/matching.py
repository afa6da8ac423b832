"""Attribute matching of a query (PS3.4 C.2.2.2): pure functions of a key's value and a stored value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_RANGES = frozenset({"DA", "TM", "DT"})
_WILD = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_FOLDED = frozenset({"PN"})
_NUMBERS = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "FL", "FD"})


def matches(vr: str, wanted: Sequence[str], found: Sequence[str]) -> bool:
    """Whether a stored element matches a key.

    Parameters
    ----------
    vr
        Value representation of both.
    wanted
        The key's values as text; empty, or one empty text, matches everything (universal matching). Several
        are a list, of which one must match (list of UID matching).
    found
        The stored values as text; empty matches only a universal key or a lone ``*``.
    """
    keys = [w for w in (w.strip(" \0") for w in wanted) if w]
    if not keys or keys == ["*"]:
        return True
    values = [f.strip(" \0") for f in found]
    return any(_one(vr, key, value) for key in keys for value in values if value)


def _one(vr: str, key: str, value: str) -> bool:
    if vr in _RANGES and "-" in key and not (vr == "DT" and _is_offset(key)):
        return _in_range(vr, key, value)
    if vr in _RANGES:
        return value.startswith(key) if vr == "TM" and len(key) < len(value) else value == key
    if vr in _NUMBERS:
        return _number(key) == _number(value)
    if vr in _WILD and ("*" in key or "?" in key):
        return _pattern(key, vr in _FOLDED).fullmatch(value) is not None
    if vr == "PN":
        return key.casefold().rstrip("^") == value.casefold().rstrip("^")
    return key == value


def _in_range(vr: str, key: str, value: str) -> bool:
    low, _, high = key.partition("-")
    if vr == "TM":
        value, low, high = (t.replace(":", "").replace(".", "") for t in (value, low, high))
    width = max(len(value), len(low), len(high))
    value = value.ljust(width, "0")
    # The end of a range is the end of the time that it names: until 10 is until 10:59:59.999.
    return (not low or low.strip().ljust(width, "0") <= value) and (
        not high or value <= high.strip().ljust(width, "9")
    )


def _is_offset(key: str) -> bool:
    """A DT with a negative offset from UTC is no range: exactly four digits follow its only minus."""
    before, _, after = key.partition("-")
    return len(before) > 8 and len(after) == 4 and after.isdigit() and int(after) <= 1400


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@lru_cache(maxsize=256)
def _pattern(key: str, folded: bool) -> re.Pattern[str]:
    # Runs of stars are one star: the pattern that comes out cannot run away.
    parts = re.split(r"\*+", key)
    regex = ".*".join("".join("." if c == "?" else re.escape(c) for c in part) for part in parts)
    return re.compile(regex, re.DOTALL | (re.IGNORECASE if folded else 0))
