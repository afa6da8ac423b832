"""``make bench`` runs through: tiny counts, every section but the engines' hours; no time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import door as doors
from tests.bench.memory import fit
from tests.bench.page import BARS, page
from tests.bench.telling import WHOLE, slower
from tests.bench.traffic import CT512, Template, part10
from tests.faults.scale import FULL
from tests.peers import needs


def test_the_harness_makes_its_page(tmp_path: Path) -> None:
    needs("storescp", "storescu")
    given = ["--only", "door,associations,sender", "--scale", "0.01", "--rounds", "1", "--out", str(tmp_path)]
    given += ["--dir", str(tmp_path), "--cases", "mr200,four,each120"]
    assert bench.main(given) == 0
    results = json.loads((tmp_path / "performance.json").read_text())
    door = results["sections"]["door"]["cases"]
    assert set(door) == {"mr200", "four"}
    assert all(
        rate > 0 for case in door.values() for one in case["receivers"].values() for rate in one["rates"]
    )
    text = (tmp_path / "performance.md").read_text()
    assert text == page(results)
    assert "Luminode" in text
    bars = text.partition("## Bars")[2]
    assert sum(bars.count(f"| {verdict} |") for verdict in ("met", "**not met**", "open: busy machine")) >= 3


def test_what_goes_through_a_whole_node_makes_its_page(tmp_path: Path) -> None:
    needs("storescp")
    only = ["memory", "four", "engine", "profile"] if FULL else ["memory", "engine"]
    given = ["--only", ",".join(only), "--scale", "0.01", "--rounds", "1", "--out", str(tmp_path)]
    assert bench.main([*given, "--dir", str(tmp_path), "--engine", "ct-tv"]) == 0
    sections = json.loads((tmp_path / "performance.json").read_text())["sections"]
    assert set(sections) == set(only)
    assert all(one["peak"]["worker"][0] > 1e7 for one in sections["memory"]["runs"])
    assert all(one["n_given"] == one["n"] for one in sections["engine"]["engines"].values())
    if FULL:
        assert all(len(rates) == 1 for rates in sections["four"]["rates"].values())
        assert all(sections["profile"][name]["rows"] for name in ("receive", "job"))
    text = (tmp_path / "performance.md").read_text()
    assert all(f"## {head}" in text for name, head, _ in WHOLE if name in only)


def test_an_archive_makes_its_page(tmp_path: Path) -> None:
    given = [
        "--only",
        "archive",
        "--scale",
        "0.004",
        "--rounds",
        "1",
        "--out",
        str(tmp_path),
        "--dir",
        str(tmp_path),
    ]
    assert bench.main(given) == 0
    section = json.loads((tmp_path / "performance.json").read_text())["sections"]["archive"]
    assert section["databases"]
    for one in section["databases"].values():
        assert all(len(times) == 1 for look in one["looks"].values() for times in look.values())
        assert all(ms > 0 for what in one["record"].values() for times in what.values() for ms in times)
    text = (tmp_path / "performance.md").read_text()
    assert "## A large archive" in text
    assert text.partition("## Bars")[2].count("what is slower") == len(section["databases"])


def test_what_is_slower_is_noticed() -> None:
    assert slower({"small": [1.0], "large": [4.0]})
    assert not slower({"small": [0.1], "large": [0.4]}), "nobody notices"
    assert not slower({"small": [10.0], "large": [14.0]})


def test_a_straight_line_is_found() -> None:
    told = fit([(50, 3.0), (200, 6.0), (500, 12.0)])
    assert told["slope"] == pytest.approx(0.02)
    assert told["start"] == pytest.approx(2.0)
    assert told["r2"] == pytest.approx(1.0)
    bent = fit([(50, 3.0), (200, 6.0), (500, 30.0)])
    assert bent["r2"] < 0.99
    assert abs(bent["worst_s"]) > 1.0


def test_a_busy_machine_decides_nothing() -> None:
    rates = {
        name: {"rates": [rate], "cpu_ms": [1.0], "peak_mb": 1.0}
        for name, rate in (("luminode", 1.0), ("forking", 9.0))
    }
    case = {"told": "some", "n": 1, "receivers": rates}
    made = {
        "at": "",
        "command": "",
        "commit": "",
        "cores": 2,
        "processor": "",
        "memory_gb": 1.0,
        "python": "",
    }
    for load, verdict in ((0.2, "**not met**"), (3.0, "open: busy machine")):
        told = {"made": {**made, "filesystem": "", "load": load}, "cases": {"four": case}}
        assert f"| at least 0.75 x, aim 1 x | {verdict} |" in page({"sections": {"door": told}})


def test_every_bar_belongs_to_a_case_and_a_receiver_that_runs() -> None:
    cases = {case.name: case for case in (*doors.DOOR, *doors.ASSOCIATIONS)}
    assert all(beside in cases[name].who and "luminode" in cases[name].who for name, beside, _, _ in BARS)


def test_numbered_messages_differ_in_the_uid_alone() -> None:
    template = Template(CT512, 7)
    one, two = bytes(template.numbered(1)), bytes(template.numbered(23456))
    assert len(one) == len(two)
    assert one.replace(b".00001", b".23456") == two
    assert one == bytes(Template(CT512, 7).numbered(1))
    assert part10(CT512, "1.2", "1.3", 7)[128:132] == b"DICM"


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(SystemExit):
        bench.arguments(["--only", "door,walls"])
