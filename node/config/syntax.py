"""What a YAML syntax error means for the person who typed it."""

from __future__ import annotations

import re

from ruamel.yaml.error import MarkedYAMLError

_OPERATORS = "operators are words: not, at most, at least, between 1 and 2, contains, matches"

_MEANINGS: tuple[tuple[str, str, str], ...] = (
    (r"found character '\\t'", "there is a tab here", "indent with spaces; YAML does not allow tabs"),
    (
        r"expected chomping or indentation",
        "a value begins with > or |, which is YAML syntax",
        f"put it in quotes; {_OPERATORS}",
    ),
    (
        r"found character '[>|]'",
        "a value begins with > or |, which is YAML syntax",
        f"put it in quotes; {_OPERATORS}",
    ),
    (
        r"found character '[%@`&*!]'",
        "a value begins with a character that is YAML syntax",
        "put the value in quotes",
    ),
    (
        r"mapping values are not allowed",
        "a colon stands where YAML wants none",
        "put a value that has a colon and a space in quotes, or mend the indentation of this line",
    ),
    (
        r"got '\['",
        "a list stands inside a value",
        "inside { } write [not A, not B] for not [A, B]; a text with brackets stands in quotes",
    ),
    (r"stream end", "something is open to the end of the file", "close the bracket or quote that opens here"),
    (
        r"expected ',' or",
        "a comma or a closing bracket is missing",
        "close the bracket, put a comma between values, and put values with brackets or braces in quotes",
    ),
    (
        r"expected <block end>",
        "this line does not fit what stands above it",
        "give the lines of one list or section the same indentation; a list item begins with a dash",
    ),
    (r"could not find expected ':'", "a colon is missing", "write key: value"),
    (r"unknown escape|escape sequence", "a backslash begins an escape here", "use single quotes"),
    (r"undefined tag handle|tag", "an exclamation mark begins a YAML tag", "to deny a value write: not X"),
    (r"alias|anchor", "* and & begin YAML aliases and anchors", f"put the value in quotes; {_OPERATORS}"),
    (r"YAML document|directive", "a line that begins with % is a YAML directive", "take the line out"),
)


def tabs(text: str) -> list[tuple[int, int]]:
    """Line and column of the first tab in the indentation of every line that has one."""
    found = []
    for n, line in enumerate(text.splitlines(), 1):
        tab = re.match(r" *\t", line)
        if tab:
            found.append((n, tab.end()))
    return found


def explain_syntax(error: MarkedYAMLError) -> tuple[int, int, str, str]:
    """Line, column (from 1), message and hint for a syntax error.

    An unclosed bracket or quote is placed where it opens, not at the end of the file.
    """
    problem = " ".join(str(part) for part in (error.problem, error.context) if part)
    at_end = "stream end" in problem or "end of stream" in problem
    at_start = at_end or re.search("an? tag", problem) is not None
    mark = error.context_mark if at_start and error.context_mark is not None else error.problem_mark
    mark = mark if mark is not None else error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    if at_end:
        problem = "stream end"
    for pattern, message, hint in _MEANINGS:
        if re.search(pattern, problem):
            opened = error.context_mark
            if pattern == "expected ',' or" and opened is not None:
                hint = f"{hint}; the bracket opens in line {opened.line + 1}"
            return line, column, message, hint
    return line, column, f"this is no YAML: {error.problem or 'unreadable'}"[:200], "mend this line"
