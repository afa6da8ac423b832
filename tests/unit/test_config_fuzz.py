"""Random edits of config.yaml: a configuration or a ConfigError with places in the file, nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from node.config.load import decode, parse, shipped
from node.config.schema import Config
from node.errors import ConfigError, ConfigFault

_TEXT = shipped().read_text()
_WHOLE = re.sub(r"(?m)^( *)# ( *[a-z_0-9]+:(?: .*)?)$", r"\1\2", _TEXT)
_BARE = re.sub(r"(?m) *#.*$\n?", lambda m: "\n" if m[0].endswith("\n") else "", _TEXT)

_PIECES = st.one_of(
    st.sampled_from(
        ["\t", "  ", "\n", ": ", "- ", "[", "]", "{", "}", "*x", "&a ", "*a", "!x ", "!!binary ", "'", '"']
    )
    | st.sampled_from(
        ["#", "${X}", "${SECRET}", "${", "$${", "%", "@", "|", ">", "\\", "\x00", "\x85", "\u2028", "null"]
    )
    | st.sampled_from(
        ["~", "---\n", "...\n", "? ", "<<: *a", "not ", "at most ", "between ", "matches (", "1e999", ","]
    )
    | st.sampled_from(
        ['"\\U0FFFFFFF"', "%YAML 1.1\n", "\ufeff", "\U0001f600", "0x1F", "[[[[[[[[", "any", "equals "]
    ),
    st.text(max_size=6),
)
_EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["insert", "delete", "cut", "copy", "swap"]),
        _PIECES,
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=6,
)


def _edited(text: str, edits: list[tuple[float, str, str, int]]) -> str:
    for where, what, piece, n in edits:
        at = int(where * len(text))
        if what == "insert":
            text = text[:at] + piece + text[at:]
        elif what == "delete":
            text = text[:at] + text[at + n :]
        elif what == "cut":
            text = text[:at]
        elif what == "copy":
            source = (at * 7) % (len(text) + 1)
            text = text[:at] + text[source : source + n] + text[at:]
        else:
            lines = text.split("\n")
            one, other = at % len(lines), (at + n) % len(lines)
            lines[one], lines[other] = lines[other], lines[one]
            text = "\n".join(lines)
    return text


def _check(text: str) -> None:
    secret = "S3CR3T-VALUE"
    faults: tuple[ConfigFault, ...] = ()
    loaded = None
    try:
        loaded = parse(text, env={"DB_PASSWORD": "x", "SECRET": secret})
    except ConfigError as error:
        faults = error.faults
    n_lines = len(re.split("\r\n|[\n\r\x85\u2028\u2029]", text))
    for fault in faults:
        assert 0 <= fault.line <= n_lines + 1
        assert fault.message
        assert str(fault).isprintable()
        assert secret not in str(fault)
    if loaded is None:
        assert faults
        return
    again = Config.model_validate(loaded.config.model_dump(mode="json", by_alias=True))
    assert again == loaded.config
    assert secret not in str(loaded.shown) + loaded.text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([_TEXT, _WHOLE, _BARE]), _EDITS)
def test_random_edits_are_taken_or_refused(text: str, edits: list[tuple[float, str, str, int]]) -> None:
    _check(_edited(text, edits))


@settings(max_examples=100, deadline=None)
@example("*\u2427")  # a character that cannot be printed, in a hint
@given(st.text(max_size=200))
def test_any_text_is_taken_or_refused(text: str) -> None:
    _check(text)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    try:
        text = decode(data, str(Path("config.yaml")))
    except ConfigError as error:
        told = error.faults
        text = ""
    else:
        told = ()
    if told:
        assert told[0].line >= 1
    else:
        _check(text)
