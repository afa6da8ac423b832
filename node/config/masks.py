"""Passwords in text that people and logs are shown: in URLs, and in what looks like one."""

from __future__ import annotations

import re

_GIVEN = r"\$\{[A-Za-z0-9_]+\}"
_PASSWORD = re.compile(rf"(://[^\s:@/]*:)(?!{_GIVEN}@)[^\n]+(@)")
_QUERY = re.compile(rf"([?&](?:ssl)?password=)(?!{_GIVEN}(?:[&\s\"']|$))[^&\s\"']+", re.IGNORECASE)

_CUT_SHORT = re.compile(rf"(://[^\s:@/]*:)(?!{_GIVEN}@)(?!\*\*\*@)\S+")
_BARE = re.compile(rf"((?<![^\s\"'\[{{,])[^\s:@/\"']*:)(?!{_GIVEN}@)(?!//)\S+(@)")


def has_password(text: str) -> bool:
    """True if a password stands in a URL, in clear."""
    return _PASSWORD.search(text) is not None or _QUERY.search(text) is not None


def mask(text: str) -> str:
    """Text with the passwords of its URLs masked, between user and host or in the query; ``${NAME}`` stays."""
    return _QUERY.sub(r"\g<1>***", _PASSWORD.sub(r"\g<1>***\g<2>", text))


def mask_more(text: str) -> str:
    """As :func:`mask`, for a single value that is told because it is wrong: a URL that is cut short, or lacks its
    beginning, may have a password all the same."""
    return _BARE.sub(r"\g<1>***\g<2>", _CUT_SHORT.sub(r"\g<1>***", mask(text)))
