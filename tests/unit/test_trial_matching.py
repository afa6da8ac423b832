from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.trial.matching import matches


@pytest.mark.parametrize(
    ("vr", "wanted", "found", "does"),
    [
        ("LO", [], ["x"], True),
        ("LO", [""], [], True),
        ("LO", ["*"], [], True),
        ("LO", ["A"], [], False),
        ("LO", ["CHEST*"], ["CHEST 1.0"], True),
        ("LO", ["*1.0"], ["CHEST 1.0 "], True),
        ("LO", ["CHEST ?.0"], ["CHEST 1.0"], True),
        ("LO", ["CHEST ?.0"], ["CHEST 10.0"], False),
        ("LO", ["chest*"], ["CHEST"], False),
        ("LO", ["(a+)+$*"], ["(a+)+$b"], True),
        ("PN", ["müller*"], ["MÜLLER^Jürgen"], True),
        ("PN", ["MÜLLER^JÜRGEN"], ["Müller^Jürgen^^^"], True),
        ("UI", ["1.2", "1.3"], ["1.3"], True),
        ("UI", ["1.2"], ["1.2.3"], False),
        ("UI", ["1.*"], ["1.2"], False),
        ("CS", ["CT"], ["DERIVED", "CT"], True),
        ("IS", ["7"], ["007"], True),
        ("DS", ["1.25"], ["1.250"], True),
        ("IS", ["7"], ["8"], False),
        ("DA", ["20260101"], ["20260101"], True),
        ("DA", ["20260101-20260331"], ["20260329"], True),
        ("DA", ["20260101-"], ["20251231"], False),
        ("DA", ["-20260101"], ["20260101"], True),
        ("DA", ["-20260101"], ["20260102"], False),
        ("TM", ["10-11"], ["105959.123"], True),
        ("TM", ["10-11"], ["115959"], True),
        ("TM", ["10-11"], ["12"], False),
        ("TM", ["1015"], ["101530.5"], True),
        ("DT", ["20260101-20260301"], ["20260215103000"], True),
        ("DT", ["20260215103000-0500"], ["20260215103000-0500"], True),
        ("DT", ["20260215103000-0500"], ["20260215103001-0500"], False),
    ],
)
def test_attribute_matching(vr: str, wanted: list[str], found: list[str], does: bool) -> None:
    assert matches(vr, wanted, found) is does


@given(st.text(alphabet="ab*?", max_size=12), st.text(alphabet="ab", max_size=12))
def test_wildcards_agree_with_a_slow_and_plain_matcher(pattern: str, value: str) -> None:
    def slow(p: str, v: str) -> bool:
        if not p:
            return not v
        if p[0] == "*":
            return slow(p[1:], v) or (bool(v) and slow(p, v[1:]))
        return bool(v) and p[0] in (v[0], "?") and slow(p[1:], v[1:])

    universal = pattern in ("", "*")
    assert matches("LO", [pattern], [value]) is (universal or (bool(value) and slow(pattern, value)))
