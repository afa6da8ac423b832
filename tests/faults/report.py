"""docs/reliability.md, and the same as docs/reliability.json, made from what the fault tests wrote down.

``python -m tests.faults.report`` reads var/faults/results.jsonl and mutations.jsonl and puts them over what the JSON
holds already, so that the page can be made piece by piece. A run with full counts is not replaced by one with part
counts, but a later part run that is red is shown beside it. Nothing else writes either file.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.faults.ledger import OUT
from tests.faults.mutate import ROOT, all_mutations, all_unexercised
from tests.faults.promises import PROMISES, SECTIONS

JSON = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"

HEAD = """\
# Reliability: what is promised, and how each promise is attacked

Made by `make faults` (tests/faults/report.py); not edited by hand. Each promise has a test that tries to break it and
a *mutation*: a one-line break of the product that must turn that test red, or the test proves nothing. *load* says
what was done to what, *count* how many times. Where nothing runs, or not all of what the target says, the reason
stands in the row. Lost and extra are instances over all cases of the row: 0 unless told. Seeds repeat a run:
`LUMINODE_FAULTS_SEED=... make faults`. Rows marked *part* are the small counts of `make test`.

"""
COLUMNS = ("promise", "target", "test", "load", "count", "result", "seed", "date", "mutation")


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a ledger file; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def merge(
    known: dict[str, Any], results: Iterable[Mapping[str, Any]], proofs: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Put what was run over what is known. What tells of tests and mutations that are no more is dropped."""
    rows: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for row in (*known.get("results", []), *results):
        told = rows.setdefault((row["invariant"], row["test"], row["full"]), [])
        if told and told[0].get("run", "") != row.get("run", ""):
            told.clear()
        told[:] = [*(r for r in told if r["load"] != row["load"]), dict(row)]
    proven = {(p["invariant"], p["what"]): p for p in known.get("mutations", [])}
    proven |= {(p["invariant"], p["what"]): dict(p) for p in proofs}
    current = {(m.invariant, m.what) for m in all_mutations()}
    return {
        "results": sorted(
            (r for (_, test, _), told in rows.items() if exists(test) for r in told),
            key=lambda r: (_order(r["invariant"]), r["test"], r["load"], r["full"]),
        ),
        "mutations": sorted(
            (p for at, p in proven.items() if at in current),
            key=lambda p: (_order(p["invariant"]), p["what"]),
        ),
    }


def exists(test: str) -> bool:
    """Whether a test of this node id (parameters aside) is still there."""
    path, _, name = test.partition("[")[0].partition("::")
    return name in _tests_of(ROOT / path)


@cache
def _tests_of(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    module = ast.parse(path.read_text(encoding="utf-8"))
    found = {n.name for n in module.body if isinstance(n, ast.FunctionDef)}
    for one in module.body:
        if isinstance(one, ast.ClassDef):
            found |= {f"{one.name}::{n.name}" for n in one.body if isinstance(n, ast.FunctionDef)}
    return frozenset(found)


def _order(invariant: str) -> tuple[str, int]:
    return invariant[0], int(invariant[1:])


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Full runs, and part runs where there is no full one or the later part run is red."""
    full = {(r["test"], r["load"]): r for r in rows if r["full"]}
    tests = {r["test"] for r in rows if r["full"]}
    part = [
        r for r in rows
        if not r["full"] and (r["test"] not in tests or (not r["ok"] and not _older(r, full)))
    ]  # fmt: skip
    return _joined([*full.values(), *part])


def _older(row: Mapping[str, Any], full: Mapping[tuple[str, str], Mapping[str, Any]]) -> bool:
    same = full.get((row["test"], row["load"]))
    return same is not None and same["date"] > row["date"]


def _joined(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for all parameters of a test that were run with one load."""
    found: dict[tuple[str, str, bool, bool], dict[str, Any]] = {}
    for row in rows:
        test = row["test"].partition("[")[0]
        at = (test, row["load"], row["full"], row["ok"])
        if at not in found:
            found[at] = {**row, "test": test}
            continue
        one = found[at]
        one["count"] += row["count"]
        one["lost"] += row["lost"]
        one["extra"] += row["extra"]
        if row["result"] not in one["result"]:
            one["result"] = f"{one['result']}; {row['result']}"
        one["date"] = max(one["date"], row["date"])
    return list(found.values())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _result(row: Mapping[str, Any]) -> str:
    told = row["result"] if row["ok"] else f"**RED**: {row['result']}"
    for name in ("lost", "extra"):
        if row[name]:
            told += f"; **{row[name]} {name}**"
    return told + ("" if row["full"] else " (*part*)")


def _mutation(proofs: list[dict[str, Any]], invariant: str) -> str:
    known = {p["what"]: p for p in proofs if p["invariant"] == invariant}
    told = []
    for each in all_mutations():
        if each.invariant != invariant:
            continue
        proof = known.get(each.what)
        if proof is None:
            told.append(f"not run: {each.what}")
        else:
            told.append(f"{'red' if proof['red'] else '**NOT RED**'}: {each.what}")
    return "; ".join(told) or "none"


def _table(ids: Iterable[str], told: Mapping[str, Any]) -> list[str]:
    out = [f"| # | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for at in ids:
        one = PROMISES[at]
        rows = shown([r for r in told["results"] if r["invariant"] == at])
        why = " ".join(u.why for u in all_unexercised() if u.invariant == at)
        first = [at, one.promise, one.target]
        if not rows:
            reason = why or "its test was not run yet"
            out.append(
                f"| {' | '.join(map(_cell, first))} | | | | not exercised: {_cell(reason)} | | | "
                f"{_cell(_mutation(told['mutations'], at))} |"
            )
        for number, row in enumerate(rows):
            test = row["test"].replace("tests/", "").replace("::", " ")
            last = not rows[number + 1 :]
            cells = [
                *(first if number == 0 else ["", "", ""]), test, row["load"], f"{row['count']:,}",
                _result(row) + (f". Not exercised: {why}" if why and last else ""),
                str(row["seed"]), row["date"],
                _mutation(told["mutations"], at) if number == 0 else "",
            ]  # fmt: skip
            out.append(f"| {' | '.join(map(_cell, cells))} |")
    return out


def page(told: Mapping[str, Any]) -> str:
    """The page."""
    out = [HEAD]
    for heading, numbers in SECTIONS.items():
        out += [f"## {heading}", "", *_table((f"R{n}" for n in numbers), told), ""]
    out += ["## Security rows", "", *_table((p for p in PROMISES if p[0] == "S"), told), ""]
    n_red = sum(p["red"] for p in told["mutations"])
    out += [f"{len(told['mutations'])} mutations were run, {n_red} of them turned their test red.", ""]
    return "\n".join(out)


def main() -> None:
    """Make both files anew."""
    known = json.loads(JSON.read_text(encoding="utf-8")) if JSON.exists() else {}
    told = merge(known, lines(OUT / "results.jsonl"), lines(OUT / "mutations.jsonl"))
    JSON.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(told), encoding="utf-8")


if __name__ == "__main__":
    main()
