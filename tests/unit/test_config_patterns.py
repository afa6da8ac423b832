"""Patterns find what ``re.search`` finds, in linear time."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.config.patterns import MAX_PROGRAM, MAX_TEXT, Pattern, compile_pattern
from node.config.values import Refused

_ATOMS = st.sampled_from(
    """a b C 1 . _ - \\. \\d \\w \\s \\D \\W \\S [ab] [^a] [a-c1-3_] [\\d-] []a] [^]\\s] [a\\]] é""".split()  # noqa: SIM905
)


def _wrap(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    quantifiers = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?", "+?", "{,2}"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("({})".format),
        st.tuples(inner.map("(?:{})".format), quantifiers).map("".join),
        st.tuples(st.sampled_from(["^", "\\b", "\\B", ""]), inner, st.sampled_from(["$", "\\b", ""])).map(
            "".join
        ),
    )


_PATTERNS = st.recursive(_ATOMS, _wrap, max_leaves=8)
_TEXTS = st.text(alphabet="abcABC123 ._-é]", max_size=14)


@settings(max_examples=200, deadline=None)
@given(_PATTERNS, st.lists(_TEXTS, min_size=1, max_size=4), st.booleans())
def test_it_finds_what_re_finds(pattern: str, texts: list[str], fold: bool) -> None:
    ours = compile_pattern(pattern, fold=fold)
    theirs = re.compile(pattern, re.IGNORECASE if fold else 0)
    for text in texts:
        if not text and "\\B" in pattern:
            continue  # until Python 3.14 \\B does not match the empty text
        assert ours.found_in(text) == (theirs.search(text) is not None), (pattern, text)


@pytest.mark.filterwarnings("ignore:Possible (nested set|set [a-z ]+):FutureWarning")
@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab(){}[]|*+?.^$\\d,1-:?", max_size=20))
@example("[1||]")
@example("[1--]")
def test_any_text_compiles_or_is_refused_and_re_agrees(source: str) -> None:
    try:
        ours = compile_pattern(source)
    except Refused:
        return
    theirs = re.compile(source)
    for text in ("", "a", "ab", "d1", "(a)", "aab1b"):
        assert ours.found_in(text) == (theirs.search(text) is not None)


@pytest.mark.parametrize(
    "source",
    ["(a+)+$", "(a|aa)+$", "(.*a){12}$", "^(([a-z])+.)+[A-Z]([a-z])+$", "(a?){60}a{60}", "(x+x+)+y"],
)
def test_patterns_that_stop_a_backtracking_engine_cost_nothing(source: str) -> None:
    pattern = compile_pattern(source)
    text = "a" * (MAX_TEXT - 1) + "!"
    steps = 0
    closure = Pattern._closure

    def counted(self: Pattern, states: set[int], text: str, at: int) -> set[int]:
        nonlocal steps
        steps += 1
        found = closure(self, states, text, at)
        assert len(found) <= len(self.program)
        return found

    Pattern._closure = counted  # type: ignore[method-assign]
    try:
        pattern.found_in(text)
    finally:
        Pattern._closure = closure  # type: ignore[method-assign]
    assert steps <= len(text) + 1
    assert len(pattern.program) <= MAX_PROGRAM


_OUTSIDE = r"""( ) (a a) [ [a * a** a{ a{x} a{3,1} (?P<x>a) (?=a) (?<!a) \1 \x41 a\ ^* \b+ [z-a] [a-\d] a++
a{1}{2} (a{99}){99} (){999}(){999} ((){99}){99} (?x)a {2} a{,} ((((((((((((((((((a))))))))))))))))))"""


@pytest.mark.parametrize("source", [*_OUTSIDE.split(), "", "a" * 201])
def test_what_is_outside_is_refused_with_a_hint(source: str) -> None:
    with pytest.raises(Refused) as refused:
        compile_pattern(source)
    assert refused.value.hint


def test_a_leading_flag_ignores_case() -> None:
    assert compile_pattern("(?i)chest").found_in("CT Chest")
    assert not compile_pattern("chest").found_in("CT Chest")


def test_a_text_beyond_the_cap_is_not_looked_at() -> None:
    assert compile_pattern("a").found_in("a" * MAX_TEXT)
    assert not compile_pattern("a").found_in("a" * (MAX_TEXT + 1))


def test_a_pattern_goes_to_another_process() -> None:
    pattern = compile_pattern("^T[12]( |_)MPR")
    again = pickle.loads(pickle.dumps(pattern))
    assert again == pattern
    assert again.found_in("T1 MPRAGE")
