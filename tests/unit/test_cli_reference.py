"""docs/cli.md says what the verbs do: made from them, and its samples are what they print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from node.cli.examples import EXAMPLES, MORE, STATUS_1
from node.cli.reference import markdown, verbs
from node.store import Store
from tests.cli import luminode
from tests.storing import outbox

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {verb.name: verb for verb in verbs()}


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "cli.md").read_text()
    assert written == markdown(), "run: python -m node.cli.reference > docs/cli.md"


def test_every_verb_has_a_sample_and_nothing_else_has() -> None:
    assert set(EXAMPLES) == set(BY_NAME)
    assert set(MORE) <= set(BY_NAME)
    assert set(STATUS_1) <= set(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_help_and_the_page_know_the_same_options(name: str) -> None:
    told = luminode(*name.split(), "--help")
    assert told.status == 0
    in_help = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", told.out)) - {"--help"}
    declared = {d for p in BY_NAME[name].parameters if p.option for d in p.declared}
    assert declared <= in_help
    section = markdown().partition(f"## luminode {name}\n")[2].partition("\n## ")[0]
    for parameter in BY_NAME[name].parameters:
        assert parameter.declared[0] in section
        assert parameter.help, f"{name}: {parameter.name} has no help"


@pytest.mark.parametrize("name", BY_NAME)
def test_samples_are_calls_that_there_are(name: str) -> None:
    calls = [line[2:] for line in EXAMPLES[name].splitlines() if line.startswith("$ ")]
    assert calls
    options = {d for p in BY_NAME[name].parameters for d in p.declared}
    for call in calls:
        assert call.startswith(f"luminode {name}")
        assert {word for word in shlex.split(call) if word.startswith("-")} <= options


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("name", ["config explain", "db upgrade"])
def test_what_does_not_depend_on_the_site_is_shown_as_it_is(name: str) -> None:
    call, _, shown = EXAMPLES[name].strip().partition("\n")
    assert luminode(*shlex.split(call)[2:]).out.strip() == shown


@pytest.mark.parametrize("name", ["series list", "jobs list", "deliveries list"])
def test_lists_are_shown_with_their_columns(name: str, site_store: Store) -> None:
    outbox(site_store)
    shown = EXAMPLES[name].strip().splitlines()[1]
    assert luminode(*name.split()).out.splitlines()[0].split() == shown.split()


@pytest.mark.parametrize("name", ["series show", "jobs show", "deliveries show"])
def test_facts_are_shown_under_their_names(name: str, site_store: Store) -> None:
    outbox(site_store)
    facts = {line.split("  ")[0] for line in luminode(*name.split(), "1").out.splitlines() if "  " in line}
    shown = {line.split("  ")[0] for line in EXAMPLES[name].splitlines() if "  " in line}
    assert len(facts & shown) >= 6
