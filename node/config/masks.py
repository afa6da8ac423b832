"""Passwords in text that people and logs are shown: in URLs, and in what looks like one."""

from __future__ import annotations

import re

_GIVEN = r"\$\{[A-Za-z0-9_]+\}"
_PASSWORD = re.compile(rf"(://[^\s:@/]*:)(?!{_GIVEN}@)[^\n]+(@)")
_QUERY = re.compile(rf"([?&](?:ssl)?password=)(?!{_GIVEN}(?:[&\s\"']|$))[^&\s\"']+", re.IGNORECASE)

_CUT_SHORT = re.compile(rf"(://[^\s:@/]*:)(?!{_GIVEN}@)(?!\*\*\*@)\S+")
_BARE = re.compile(rf"((?<![^\s\"'\[{{,])[^\s:@/\"']{{0,256}}:)(?!{_GIVEN}@)(?!//)\S+(@)")
_WORD = re.compile(r"\S+")


def has_password(text: str) -> bool:
    """True if a password stands in a URL, in clear."""
    return (
        any(_PASSWORD.search(_to_last(line)[0]) for line in text.split("\n"))
        or _QUERY.search(text) is not None
    )


def mask(text: str) -> str:
    """Text with the passwords of its URLs masked, between user and host or in the query; ``${NAME}`` stays."""
    return _QUERY.sub(r"\g<1>***", "\n".join(_masked(_PASSWORD, line) for line in text.split("\n")))


def mask_more(text: str) -> str:
    """As :func:`mask`, for a single value that is told because it is wrong: a URL that is cut short, or lacks its
    beginning, may have a password all the same."""
    text = _CUT_SHORT.sub(r"\g<1>***", mask(text))
    return _WORD.sub(lambda word: _masked(_BARE, word[0]), text)


def _masked(pattern: re.Pattern[str], text: str) -> str:
    before, after = _to_last(text)
    return pattern.sub(r"\g<1>***\g<2>", before) + after


def _to_last(text: str) -> tuple[str, str]:
    """Text up to its last ``@``, and the rest, in which each place would be tried up to the end in vain."""
    end = text.rfind("@") + 1
    return text[:end], text[end:]
