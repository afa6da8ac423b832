"""Every key is documented: in its field, in config.yaml and in docs/configuration.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from node.config.explain import explain, find, json_schema, keys, markdown
from node.config.load import parse, shipped
from node.config.schema import Config
from node.config.values import Refused

ROOT = Path(__file__).resolve().parents[2]
_COMMENTED = re.compile(r"(?m)^( *)# ( *[a-z_0-9]+:(?: .*)?)$")


def test_every_key_has_a_description() -> None:
    for doc in keys():
        assert doc.description.rstrip().endswith("."), doc.path
        assert doc.type not in ("", "value"), doc.path


def test_paths_are_unique() -> None:
    paths = [doc.path for doc in keys()]
    assert len(set(paths)) == len(paths)


def test_the_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text().rstrip("\n")
    assert written == markdown().rstrip("\n"), "run: luminode config explain > docs/configuration.md"


def test_every_key_stands_in_the_shipped_configuration() -> None:
    text = shipped().read_text()
    for doc in keys():
        name = doc.path.rpartition(".")[2]
        assert re.search(rf"(?m)(^|[{{,]|# ) *{name}:", text), doc.path


def test_what_is_commented_out_in_the_shipped_configuration_is_valid_too() -> None:
    text = shipped().read_text()
    whole = _COMMENTED.sub(r"\1\2", text)
    assert whole.count("\n") == text.count("\n")
    assert whole != text
    loaded = parse(whole)
    assert [warning.message for warning in loaded.warnings] == ["no rule uses this"]


def test_what_is_commented_out_shows_the_defaults() -> None:
    text = shipped().read_text()
    plain, whole = parse(text).config, parse(_COMMENTED.sub(r"\1\2", text)).config
    assert whole.node.model_copy(update={"tls": None}) == plain.node
    assert (whole.store, whole.series, whole.log) == (plain.store, plain.series, plain.log)
    assert whole.engines == plain.engines
    assert whole.destinations["outbox"] == plain.destinations["outbox"]


def test_every_line_of_the_shipped_configuration_fits_a_screen() -> None:
    assert max(len(line) for line in shipped().read_text().splitlines()) <= 115


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("rules.when", ["rules.when"]),
        ("rules[2].when", ["rules.when"]),
        ("rules.2.when", ["rules.when"]),
        ("when", ["rules.when"]),
        ("engines.ct-denoise.strength", ["engines.strength"]),
        ("destinations.pacs.address", ["destinations.dimse.address"]),
        ("destinations.address", ["destinations.dimse.address"]),
        ("destinations.dimse.address", ["destinations.dimse.address"]),
        ("destinations.pacs.retry.for", ["destinations.dimse.retry.for", "destinations.folder.retry.for"]),
        ("strength", ["engines.strength", "rules.strength"]),
        ("node", ["node"]),
    ],
)
def test_a_key_is_found_as_people_name_it(asked: str, found: list[str]) -> None:
    assert [doc.path for doc in find(asked)] == found


@pytest.mark.parametrize(
    ("asked", "near"), [("nod.listen", "node.listen"), ("rules.whem", "rules.when"), ("", "lists every")]
)
def test_an_unknown_key_has_a_hint(asked: str, near: str) -> None:
    with pytest.raises(Refused) as refused:
        explain(asked)
    assert near in refused.value.hint


def test_an_explanation_has_all_that_one_asks() -> None:
    text = explain("node.listen")
    assert "0.0.0.0:11112" in text
    assert "starts again" in text
    assert "must be given" in explain("node.accept_from")
    assert "between 1 and 2.5" in explain("rules.when")
    assert "store.keep.received" in explain("store")


def test_defaults_of_the_reference_are_those_of_the_schema() -> None:
    """Write every default into a file, as the reference shows it: the settings stay the same."""
    sections: dict[str, list[str]] = {}
    for doc in keys():
        top, _, rest = doc.path.partition(".")
        if top in ("node", "store", "series", "log") and rest and "." not in rest and doc.default:
            sections.setdefault(top, []).append(f"  {rest}: {doc.default}")
    sections["node"].append("  accept_from: [CT1]")
    text = "".join(f"{top}:\n" + "\n".join(lines) + "\n" for top, lines in sections.items())
    assert parse(text).config == parse("node: {accept_from: [CT1]}\n").config


def test_the_json_schema_is_json_and_knows_every_key() -> None:
    text = json.dumps(json_schema())
    for doc in keys():
        assert f'"{doc.path.rpartition(".")[2]}"' in text
    assert json_schema()["required"] == ["node"]
    assert Config.model_fields["rules"].description
