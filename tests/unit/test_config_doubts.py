"""What is allowed and probably not meant: told with its place, and no reason to stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.config.load import LoadedConfig, parse
from node.errors import ConfigError

WHOLE = """\
node: {accept_from: [CT1, MR1]}
store: {spool: var/spool}
engines: {ct: {engine: ct-nlm}}
destinations: {pacs: {kind: dimse, ae_title: PACS, address: "pacs:104"}}
rules:
  - {name: CT, when: {Modality: CT}, enhance: ct, send_to: [pacs]}
"""
CATALOGUE = {"ct-nlm": ("CT",), "both": ("CT", "MR")}


def told(before: str, after: str) -> list[str]:
    """The warnings once ``before`` reads ``after``, without the name of the file."""
    assert before in WHOLE
    loaded: LoadedConfig = parse(WHOLE.replace(before, after), catalogue=CATALOGUE)
    return [str(warning).partition(":")[2] for warning in loaded.warnings]


def test_the_configuration_of_these_tests_leaves_no_doubt() -> None:
    assert told("CT1", "CT1") == []


@pytest.mark.parametrize(
    ("condition", "place", "message", "hint"),
    [
        ("CallingAE: ct1", "6:48", '"ct1" is not in node.accept_from', "did you mean CT1?"),
        ("CallingAE: [CT1, XA7]", "6:48", '"XA7" is not in node.accept_from', "add it there"),
        ("CalledAE: PACS", "6:47", '"PACS" is not node.ae_title', "write LUMINODE"),
        ("SeriesDescription: LUNG*", "6:56", "has no wildcard", "write contains LUNG"),
        ("BodyPartExamined: '%CHEST%'", "6:55", "has no wildcard", "write contains CHEST"),
    ],
)
def test_a_rule_that_no_series_will_ever_match(condition: str, place: str, message: str, hint: str) -> None:
    (warning,) = told("Modality: CT}", f"Modality: CT, {condition}}}")
    keyword = condition.partition(":")[0]
    assert warning.startswith(f"{place}: rules.1.when.{keyword}: ")
    assert message in warning
    assert hint in warning


@pytest.mark.parametrize(
    "condition", ["CallingAE: MR1", "CallingAE: not XA7", "CallingAE: RECOVERED", "CalledAE: LUMINODE",
                  "SeriesDescription: contains *", "KVP: 120"],
)  # fmt: skip
def test_a_rule_that_some_series_may_match(condition: str) -> None:
    assert told("Modality: CT}", f"Modality: CT, {condition}}}") == []


def test_whoever_lets_everybody_in_may_name_anybody() -> None:
    text = WHOLE.replace("[CT1, MR1]", "any").replace("Modality: CT}", "Modality: CT, CallingAE: XA7}")
    assert [w.message for w in parse(text).warnings] == ["every AE title may send from everywhere"]


@pytest.mark.parametrize("modality", ["MR", "[MR, PT]", "mr"])
def test_an_engine_for_another_modality(modality: str) -> None:
    (warning,) = told("Modality: CT}", f"Modality: {modality}}}")
    assert ' rules.1.enhance: "ct-nlm" is for CT: all that this rule takes will be rejected' in warning
    assert "name an engine for MR" in warning


@pytest.mark.parametrize("modality", ["[CT, MR]", "not CT", "matches ^M"])
def test_an_engine_for_some_of_what_a_rule_takes(modality: str) -> None:
    assert told("Modality: CT}", f"Modality: {modality}}}") == []


def test_without_the_modalities_of_the_engines_nothing_is_said_of_them() -> None:
    assert parse(WHOLE.replace("Modality: CT}", "Modality: MR}"), catalogue=["ct-nlm"]).warnings == ()


def test_a_word_for_everybody_in_a_list_is_an_ae_title() -> None:
    (warning,) = told("[CT1, MR1]", "[any]")
    assert warning.startswith('1:21: node.accept_from: "any" in a list is an AE title as any other')
    assert "accept_from: any" in warning


def test_a_pin_that_another_entry_takes_away() -> None:
    (warning,) = told("[CT1, MR1]", "[{ae_title: CT1, addresses: [10.1.2.3]}, CT1]")
    assert '"CT1" is pinned to addresses, and stands here without any as well' in warning
    assert (
        told("[CT1, MR1]", "[{ae_title: CT1, addresses: [10.1.2.3]}, {ae_title: CT1, addresses: [10.1.2.4]}]")
        == []
    )


@pytest.mark.parametrize("path", ["~/spool", "$HOME/spool"])
def test_a_path_that_a_shell_would_have_read(path: str) -> None:
    (warning,) = told("var/spool", path)
    assert f'store.spool: "{path}" is taken as it is written' in warning


@pytest.mark.parametrize("path", ["var/spool", "var/spool/tmp", "./var/../var/spool/out"])
def test_derived_series_do_not_go_where_the_spool_is_swept(path: str) -> None:
    text = WHOLE.replace(
        '{kind: dimse, ae_title: PACS, address: "pacs:104"}', f"{{kind: folder, path: {path}}}"
    )
    with pytest.raises(ConfigError) as raised:
        parse(text)
    (fault,) = raised.value.faults
    assert (fault.path, fault.message) == ("destinations.pacs.path", "this folder lies in store.spool")
    parse(text.replace(f"path: {path}", f"path: {Path('var').absolute() / 'out'}"))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[CT1, MR1]", "[CT1], timeouts: {pdu: 0s}", "is out of range"),
        ("[CT1, MR1]", "[CT1], timeouts: {dimse: 0s}", "is out of range"),
        ("var/spool", "var/spool, keep: {received: 99999999d}", "is more than 100 years"),
        ("engine: ct-nlm", r"engine: ct-nlm, description_suffix: 'a\\b'", "has a backslash"),
    ],
)
def test_values_that_would_only_fail_while_a_scanner_sends(before: str, after: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(WHOLE.replace(before, after))
    (fault,) = raised.value.faults
    assert message in fault.message
    assert fault.hint


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("'*'", "write any"), ("ANY", "write any"), ("\n    CT1\n    MR1", "write [CT1, MR1]"),
        ("\n    -CT1\n    -MR1", "write [CT1, MR1]"), ("CT-1", "write [CT-1]"),
    ],
)  # fmt: skip
def test_accept_from_in_the_words_of_other_systems(written: str, hint: str) -> None:
    text = WHOLE.replace("node: {accept_from: [CT1, MR1]}", f"node:\n  accept_from: {written}")
    with pytest.raises(ConfigError) as raised:
        parse(text)
    assert raised.value.faults[0].hint.startswith(hint)
