"""YAML's edge cases: values stay as written, places are exact, and nothing is unbounded."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from node.config.tree import MAX_CHARACTERS, MAX_DEPTH, Node, read_tree
from node.errors import ConfigFault


def read(text: str, env: Mapping[str, str] | None = None) -> Node:
    root, faults = read_tree(text, "config.yaml", env or {})
    assert not faults
    assert root is not None
    return root


def faults_of(text: str, env: Mapping[str, str] | None = None) -> list[ConfigFault]:
    _, faults = read_tree(text, "config.yaml", env or {})
    return faults


_SCALARS = """NO no yes on off 012 0o17 0x1F 1e3 1_000 1:30 2024-01-01 2024-01-01T00:00:00Z .5 +1 true .inf
.nan -0 1.0 0b1 = a:b"""


@pytest.mark.parametrize("scalar", _SCALARS.split())
def test_a_plain_scalar_stays_as_written(scalar: str) -> None:
    assert read(f"k: {scalar}\n").plain() == {"k": scalar}
    assert read(f"k: '{scalar}'\n").plain() == {"k": scalar}
    assert read(f"k: [{scalar}]\n").plain() == {"k": [scalar]}


@pytest.mark.parametrize("empty", ["", "~", "null", "Null", "NULL", "  # comment"])
def test_a_plain_null_is_no_value(empty: str) -> None:
    assert read(f"k: {empty}\n").plain() == {"k": None}


def test_quoted_it_is_a_text() -> None:
    assert read("k: 'null'\nl: \"~\"\nm: ''\n").plain() == {"k": "null", "l": "~", "m": ""}


def test_keys_stay_as_written_too() -> None:
    assert read("NO: a\n012: b\n").plain() == {"NO": "a", "012": "b"}


def test_places_count_from_one() -> None:
    root = read("# comment\nnode:\n  list: [a, {b: c}]\n")
    entry = root.get("node").entries["list"]  # type: ignore[union-attr]
    assert (entry.line, entry.column) == (3, 3)
    assert (entry.node.line, entry.node.column) == (3, 9)
    assert (entry.node.items[1].line, entry.node.items[1].column) == (3, 13)
    assert (entry.node.items[1].entries["b"].node.column) == 17


@pytest.mark.parametrize(
    "text", ["a: b\r\nc: d\r\n", "a: b\nc: d", "---\na: b\nc: d\n...\n", "%YAML 1.2\n---\na: b\nc: d"]
)
def test_line_ends_and_document_marks(text: str) -> None:
    assert read(text).plain() == {"a": "b", "c": "d"}


def test_anchors_and_aliases_repeat_a_value() -> None:
    assert read("a: &x [1, 2]\nb: *x\nc: {d: *x}\ne: &y z\nf: *y\n").plain() == {
        "a": ["1", "2"],
        "b": ["1", "2"],
        "c": {"d": ["1", "2"]},
        "e": "z",
        "f": "z",
    }


@pytest.mark.parametrize(
    ("text", "line", "column", "word"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, "second time"),
        ("a:\n  b: 1\n  b: 2\n", 3, 3, "second time"),
        ("a: {b: 1, b: {c: d}}\n", 1, 11, "second time"),
        ("a: b\n\tc: d\n", 2, 1, "tab"),
        ("a:\n  b: 1\n\tc: 2\n", 3, 1, "tab"),
        ("a: >= 2\n", 1, 5, "> or |"),
        ("a: {b: >= 2}\n", 1, 8, "> or |"),
        ("a: @x\n", 1, 4, "character"),
        ("a: `x`\n", 1, 4, "character"),
        ("a: %x\n", 1, 4, "character"),
        ("a: !LOCALIZER\n", 1, 4, "tag"),
        ("a: !!python/object:os.system x\n", 1, 4, "tag"),
        ("a: {b: !LOC}\n", 1, 8, "tag"),
        ("a: *lung*\n", 1, 4, "alias"),
        ("a: &x [*x]\n", 1, 8, "inside"),
        ("a: [b, c\nd: e\n", 2, 2, "comma"),
        ("a: [b, c\n", 1, 4, "open"),
        ("a: 'b\n", 1, 4, "open"),
        ("a: {b: not [c, d]}\n", 1, 12, "list stands inside"),
        ("a: b: c\n", 1, 5, "colon"),
        ("a:\n - b\nc\nd: e\n", 4, 1, "colon"),
        ("a:\n  b: c\n d: e\n", 3, 2, "does not fit"),
        ('a: "\\q"\n', 1, 6, "escape"),
        ("a: b\n---\nc: d\n", 2, 1, "second document"),
        ("? [a]\n: b\n", 1, 3, "key is a word"),
        ("? {a: b}\n: b\n", 1, 3, "key is a word"),
        (": b\n", 1, 1, "key is a word"),
        ("<<: {a: b}\n", 1, 1, "merge"),
        ("a: b\nc: \x07\n", 2, 4, "U+0007"),
        ("a: \x00\n", 1, 4, "U+0000"),
    ],
)
def test_faults_have_their_place_and_a_hint(text: str, line: int, column: int, word: str) -> None:
    fault = faults_of(text)[0]
    assert (fault.line, fault.column) == (line, column)
    assert word in fault.message
    assert fault.hint


@pytest.mark.parametrize(
    "text", ['a: "\\UFFFFFFFF"\n', "%YAML 1.3\n---\na: b\n", "a: !<x\n", "a: !%zz b\n", "%FOO\n"]
)
def test_what_trips_the_yaml_library_itself_is_a_fault_too(text: str) -> None:
    root, faults = read_tree(text, "config.yaml", {})
    assert faults or root is None or root.plain() == {"a": "b"}


def test_every_tab_is_told() -> None:
    assert [(f.line, f.column) for f in faults_of("a:\n\tb: c\n  \td: e\n")] == [(2, 1), (3, 3)]


def test_a_fault_inside_names_its_path() -> None:
    assert faults_of("a:\n  - {b: c}\n  - {b: {d: *x}}\n")[0].path == "a.2.b.d"


def test_the_environment_fills_in() -> None:
    root = read("a: ${ONE}\nb: 'x${ONE}y${TWO}'\nc: $${ONE}\nd: $5\n", {"ONE": "1", "TWO": "${ONE}"})
    assert root.plain() == {"a": "1", "b": "x1y${ONE}", "c": "${ONE}", "d": "$5"}
    assert root.get("a").secret  # type: ignore[union-attr]
    assert root.get("b").written == "x${ONE}y${TWO}"  # type: ignore[union-attr]
    assert not root.get("c").secret  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: ${NOPE}", "NOPE"),
        ("a: ${}", "names no"),
        ("a: ${X:-y}", "names no"),
        ("a: ${X", "names no"),
        ("a: ${a b}", "names no"),
    ],
)
def test_a_variable_that_is_not_there_is_a_fault(text: str, word: str) -> None:
    fault = faults_of(text, {"X": "secret"})[0]
    assert word in fault.message
    assert "secret" not in str(fault)


def test_the_environment_fills_no_keys() -> None:
    assert read("${ONE}: a\n", {"ONE": "1"}).plain() == {"${ONE}": "a"}


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    started = time.monotonic()
    faults = faults_of("\n".join(lines))
    assert "values" in faults[0].message
    assert time.monotonic() - started < 60  # written out, it would have 10^12 values


def test_a_chain_of_aliases_cannot_get_deep() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 200))]
    assert "levels" in faults_of("\n".join(lines))[0].message


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 3000, "- " * 3000, "a: " + "[" * (MAX_DEPTH + 1)])
def test_nesting_is_bounded(text: str) -> None:
    assert faults_of(text)


def test_size_is_bounded() -> None:
    assert "characters" in faults_of("a: " + "x" * MAX_CHARACTERS)[0].message


def test_an_empty_file_has_no_root() -> None:
    assert read_tree("", "config.yaml", {}) == (None, [])
    assert read_tree("# only a comment\n", "config.yaml", {}) == (None, [])
