"""Every promise has a test that can break it or a reason, every mutation fits the product as it is."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.mutate import ROOT, all_mutations, all_unexercised
from tests.faults.mutations import Mutation
from tests.faults.promises import PROMISES, SECTIONS

MUTATIONS = all_mutations()


def test_every_promise_has_a_mutation_with_its_test_or_a_reason() -> None:
    told = {m.invariant for m in MUTATIONS} | {u.invariant for u in all_unexercised()}
    assert sorted(set(PROMISES) - told) == []
    assert sorted(told - set(PROMISES)) == []


def test_every_promise_stands_in_one_part_of_the_page() -> None:
    numbered = [f"R{n}" for numbers in SECTIONS.values() for n in numbers]
    assert numbered == [p for p in PROMISES if p[0] == "R"]


def test_every_reason_says_something() -> None:
    assert [u.invariant for u in all_unexercised() if len(u.why) < 20] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[f"{m.invariant}-{m.what[:40]}" for m in MUTATIONS])
def test_what_a_mutation_breaks_stands_there_exactly_once_and_its_test_exists(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1
    assert mutation.new != mutation.old
    if mutation.file.endswith(".py"):
        ast.parse(text.replace(mutation.old, mutation.new))
    path, _, name = mutation.test.partition("::")
    module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {n.name for n in ast.walk(module) if isinstance(n, ast.FunctionDef)}
    assert not name or name.rpartition("::")[2].partition("[")[0] in names


def recorded() -> set[str]:
    """Ids that tests tell the ledger of, as far as they are literal."""
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py")]
    return set(re.findall(r"""\brecord\(\s*["']([RS]\d+)["']""", "\n".join(sources)))


def test_every_promise_that_is_attacked_is_put_on_record() -> None:
    assert sorted({m.invariant for m in MUTATIONS} - recorded()) == []


# the page -----------------------------------------------------------------------------------------


HERE = "tests/faults/test_promises.py::test_the_page_keeps_what_was_run_and_shows_what_was_not"


def row(**more: object) -> dict[str, object]:
    whole = {
        "invariant": "R1", "load": "a load", "count": 3, "result": "fine", "ok": True, "lost": 0, "extra": 0,
        "test": HERE, "seed": 5, "full": False, "date": "2026-01-02", "commit": "",
    }  # fmt: skip
    return whole | more


def test_the_page_keeps_what_was_run_and_shows_what_was_not() -> None:
    first = report.merge({}, [row(full=True, count=2000), row(count=100)], [])
    again = report.merge(
        first,
        [row(count=99), row(invariant="R2", test=f"{HERE}[a]"), row(invariant="R2", test=f"{HERE}[b]")],
        [],
    )
    text = report.page(again)
    assert "| 2,000 |" in text
    assert "| 99 |" not in text
    assert len([line for line in text.splitlines() if line.startswith("| R2 |")]) == 1
    assert "| 6 |" in text
    assert "not exercised" in next(line for line in text.splitlines() if line.startswith("| R51 |"))


def test_a_later_run_takes_the_place_of_an_earlier_one_and_what_is_no_more_is_dropped() -> None:
    first = report.merge(
        {}, [row(run="1", load="a"), row(run="1", load="b"), row(test="tests/gone.py::test_x")], []
    )
    assert [r["load"] for r in first["results"]] == ["a", "b"]
    again = report.merge(first, [row(run="2", load="c")], [])
    assert [r["load"] for r in again["results"]] == ["c"]


def test_a_red_row_cannot_hide_behind_a_full_one() -> None:
    told = report.merge({}, [row(full=True), row(ok=False, lost=2, date="2026-01-03")], [])
    assert "**RED**: fine; **2 lost** (*part*)" in report.page(told)


def test_the_page_is_what_its_json_says() -> None:
    told = json.loads(report.JSON.read_text(encoding="utf-8"))
    assert {r["invariant"] for r in told["results"]} <= set(PROMISES)
    assert Path(report.PAGE).exists()
