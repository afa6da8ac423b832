"""config.yaml as a whole: every fault at once with its place, secrets never in clear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from node.config.load import LoadedConfig, load, parse, read_text, shipped
from node.config.schema import Config, DimseDestination, FolderDestination
from node.errors import ConfigError, ConfigFault
from tests.faults.tls_samples import Authority

HEAD = "node: {accept_from: [CT1]}\n"
WHOLE = """\
node:
  accept_from: [CT1]
engines:
  ct: {engine: ct-nlm}
destinations:
  pacs: {kind: dimse, ae_title: PACS, address: "pacs:104"}
  out: {kind: folder, path: out}
rules:
  - name: thin
    when: {Modality: CT, SliceThickness: at most 2.0}
    enhance: ct
    send_to: [pacs, out]
  - {name: the rest, when: any, ignore: true}
"""


def faults_of(text: str, **more: Any) -> tuple[ConfigFault, ...]:
    with pytest.raises(ConfigError) as raised:
        parse(text, **more)
    return raised.value.faults


def only(text: str, **more: Any) -> ConfigFault:
    faults = faults_of(text, **more)
    assert len(faults) == 1, [str(fault) for fault in faults]
    return faults[0]


def warnings_of(loaded: LoadedConfig) -> list[str]:
    return [fault.message for fault in loaded.warnings]


def test_a_whole_configuration() -> None:
    config = parse(WHOLE).config
    assert config.series.quiet_after == 30
    pacs = config.destinations["pacs"]
    assert isinstance(pacs, DimseDestination)
    assert (pacs.host, pacs.port, pacs.retry.for_) == ("pacs", 104, None)
    assert isinstance(config.destinations["out"], FolderDestination)
    assert config.rules[0].send_to == ("pacs", "out")
    assert config.rules[0].when["SliceThickness"].holds((1.25,))
    assert config.rules[1].when == {}


def test_a_dumped_configuration_reads_back() -> None:
    config = parse(WHOLE).config
    assert Config.model_validate(config.model_dump(mode="json", by_alias=True)) == config
    assert Config.model_validate(json.loads(config.model_dump_json())) == config
    for destination in config.destinations.values():
        settings = json.loads(json.dumps(destination.model_dump(mode="json")))
        assert type(destination).model_validate(settings) == destination


EVERYTHING_WRONG = """\
node:
  ae_title: LUMINODE_IS_FAR_TOO_LONG
  listen: 11112
  acept_from: [CT1]
  max_pdu: 0
  max_associations: 1e3
  timeouts: {acse: 30}
  tls:
store:
  keep: {received: 7days, provenance: 3d}
  refuse_below: 20 gigs
  database: postgres://u:pw@h/x
  duplicates: keep
  duplicates: replace
series: {quiet_after: 2h, give_up_after: 1h}
engines:
  ct: {engine: ct-nlmm, strength: 1.6}
  "b d": {engine: ct-nlm}
destinations:
  pacs: {kind: dimse, ae_title: PACS, address: pacs, commit: maybe, path: x}
  web: {kind: dicomweb, url: x}
  fol: {kind: foldr}
  non: {path: x}
rules:
  - name: thin
    when: {Modalty: CT, BodyPartExamined: CHEST or LUNG, SliceThickness: ">= 2.0", PatientName: X}
    enhance: mr
    send_to: pacs
  - {name: rest, when: any, ignore: true}
  - {name: rest, when: {Modality: CT}, enhance: ct, send_to: [pacs, pacx]}
  - {name: zz, when: {StudyDescription: 'matches (a'}, ignore: yes}
  - {name: both, when: {Rows: [1, x]}, enhance: ct, send_to: [fol], ignore: true}
log: {level: loud}
secret: ${NOPE}
"""

EXPECTED: Sequence[tuple[int, int, str, str]] = [
    (2, 3, "accept_from is missing", "AE titles"),
    (2, 13, "24 characters", "1 to 16"),
    (3, 11, "no host:port", "0.0.0.0:11112"),
    (4, 3, 'no key "acept_from"', "accept_from?"),
    (5, 12, "out of range", "at least 4096"),
    (6, 21, "no whole number", "decimal digits"),
    (7, 20, "no duration", "30s for seconds"),
    (8, 3, "the value is missing", "take the line out"),
    (10, 20, "no duration", "7d"),
    (10, 39, "does not fit", "forever"),
    (11, 17, "no size", "20GB"),
    (12, 13, "driver", "postgresql+psycopg://"),
    (13, 15, "does not fit", "keep_first or replace"),
    (14, 3, "second time", "line 13"),
    (15, 42, "give_up_after is shorter", "longer one"),
    (17, 16, "no engine", "ct-nlm?"),
    (17, 35, "out of range", "at most 1"),
    (18, 3, "no name", "letters"),
    (20, 48, "no host:port", "pacs.hospital.lan:104"),
    (20, 62, "maybe", "true or false"),
    (20, 69, 'no key "path"', "destinations.folder.path"),
    (21, 15, "not built yet", "dimse or kind: folder"),
    (22, 15, "no kind", "folder?"),
    (23, 8, "has no kind", "kind: dimse or kind: folder"),
    (26, 12, "no DICOM keyword", "Modality?"),
    (26, 43, "more than one value", "[CHEST, LUNG]"),
    (26, 74, "looks like an operator", "at least 2.0"),
    (26, 84, "identifies a patient", "what was scanned"),
    (27, 14, 'no entry "mr"', "there are: ct"),
    (28, 14, "does not fit", "[pacs]"),
    (30, 5, "never be reached", "above"),
    (30, 12, "not unique", "rule 2"),
    (30, 69, 'no entry "pacx"', "pacs?"),
    (31, 5, "does nothing", "ignore: true"),
    (31, 41, "( without )", "backslash"),
    (31, 64, "neither true nor false", "true or false"),
    (32, 35, '"x" is no number', "compared as a number"),
    (32, 77, "both enhances and ignores", "one of the two"),
    (33, 14, "does not fit", "debug or info"),
    (34, 1, 'no key "secret"', ""),
    (34, 9, "no variable NOPE", "systemd"),
]


def test_every_fault_at_once_with_its_place_and_what_to_do() -> None:
    faults = faults_of(EVERYTHING_WRONG, catalogue=["ct-nlm", "mr-nlm"])
    assert [(fault.line, fault.column) for fault in faults] == [
        (line, column) for line, column, _, _ in EXPECTED
    ]
    for fault, (_, _, message, hint) in zip(faults, EXPECTED, strict=True):
        assert message in fault.message, str(fault)
        assert hint in fault.hint, str(fault)


def test_the_error_reads_as_compilers_do() -> None:
    with pytest.raises(ConfigError) as raised:
        parse(f"{HEAD}log: {{level: loud}}\n", file="/etc/luminode/config.yaml")
    assert str(raised.value).startswith('/etc/luminode/config.yaml:2:14: log.level: "loud" does not fit (')
    assert raised.value.exit_status == 78


@pytest.mark.parametrize(
    ("text", "word"),
    [("", "empty"), ("# nothing\n", "empty"), ("~\n", "empty"), ("- a\n", "list"), ("hello\n", "scalar")],
)
def test_what_is_no_configuration_at_all(text: str, word: str) -> None:
    fault = only(text)
    assert word in fault.message
    assert "node:" in fault.hint


def test_sections_may_be_left_empty_or_out() -> None:
    config = parse(f"{HEAD}store:\nseries:\nengines:\ndestinations:\nrules:\nlog:\n").config
    assert config == parse(HEAD).config


def test_a_configuration_without_accept_from_lets_nobody_in_by_mistake() -> None:
    assert "accept_from" in only("node: {ae_title: X}\n").message
    assert "node is missing" in only("log: {level: info}\n").message


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("CT1", "[CT1]"),
        ("[]", "at least one"),
        ("{CT1: x}", "list"),
        ("[[CT1]]", "section"),
        ("[{ae_title: A, adresses: [x]}]", "addresses?"),
        ("[{ae_title: A, max_associations: 0}]", "1"),
    ],
)
def test_accept_from_says_how_it_is_written(written: str, hint: str) -> None:
    assert hint in only(f"node: {{accept_from: {written}}}\n").hint


def test_everybody_is_let_in_with_a_warning_only() -> None:
    loaded = parse("node: {accept_from: any}\nrules: [{name: a, when: any, ignore: true}]\n")
    assert loaded.config.node.accept_from == "any"
    assert warnings_of(loaded) == ["every AE title may send from everywhere"]
    assert (loaded.warnings[0].line, loaded.warnings[0].column) == (1, 21)


@pytest.mark.parametrize("title", ["NO", "012", "1e3", "0x1F", "2024-01-01", "true", "1_000"])
def test_ae_titles_that_yaml_would_turn_into_something_else(title: str) -> None:
    loaded = parse(f"node: {{ae_title: {title}, accept_from: [{title}, {{ae_title: {title}}}]}}\n")
    assert loaded.config.node.ae_title == title
    assert loaded.config.node.peer(title, "10.0.0.1")


def test_tls_files_go_in_pairs() -> None:
    text = WHOLE.replace('"pacs:104"', '"pacs:104", tls: {authorities: a, key: b}')
    assert "together" in only(text).message


def test_first_pause_is_the_shorter_one() -> None:
    text = WHOLE.replace("path: out", "path: out, retry: {first: 1h}")
    assert "longer than" in only(text).message


RULES = "engines: {e: {engine: ct-nlm}}\ndestinations: {d: {kind: folder, path: x}}\nrules:\n"


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ("  - {name: a, when: any}", "does nothing"),
        ("  - {name: a, when: any, ignore: false}", "does nothing"),
        ("  - {name: a, when: any, enhance: e}", "send_to is missing"),
        ("  - {name: a, when: any, enhance: e, send_to: []}", "send_to is empty"),
        ("  - {name: a, when: any, enhance: e, send_to: [d, d]}", "twice"),
        ("  - {name: a, when: any, ignore: true, send_to: [d]}", "no meaning"),
        ("  - {name: a, when: any, ignore: true, strength: 0.5}", "no meaning"),
        ("  - {when: any, ignore: true}", "name is missing"),
        ("  - {name: '', when: any, ignore: true}", "empty"),
        ("  - {name: a, ignore: true}", "when is missing"),
        ("  - {name: a, when: , ignore: true}", "value is missing"),
        ("  - {name: a, when: all, ignore: true}", "neither"),
        ("  - {name: a, when: {}, ignore: true}", "neither"),
        ("  - {name: a, when: {Modality: }, ignore: true}", "value is missing"),
        ("  - {name: a, when: {Modality: [CT, ~]}, ignore: true}", "value is missing"),
        ("  - a", "does not fit"),
        (
            "  - {name: a, when: any, ignore: true}\n  - {name: b, when: {Rows: 3}, ignore: true}",
            "never be reached",
        ),
        (
            "  - {name: a, when: {Rows: 3}, ignore: true}\n"
            "  - {name: b, when: {Modality: CT, Rows: 3}, ignore: true}",
            "never be reached",
        ),
    ],
)
def test_rules_that_cannot_be_meant(rules: str, word: str) -> None:
    faults = faults_of(f"{HEAD}{RULES}{rules}\n")
    assert any(word in fault.message for fault in faults), [str(fault) for fault in faults]


def test_rules_as_one_mapping_are_a_list_without_dashes() -> None:
    assert "list" in only(f"{HEAD}rules: {{name: a, when: any, ignore: true}}\n").hint


def test_a_wider_rule_below_is_reached() -> None:
    rules = "rules:\n  - {name: a, when: {Rows: 3, Modality: CT}, ignore: true}\n"
    rules += "  - {name: b, when: {Rows: 3}, ignore: true}\n  - {name: c, when: any, ignore: true}\n"
    parse(f"{HEAD}{rules}")


def test_an_engine_is_looked_up_where_the_catalogue_is_known() -> None:
    parse(WHOLE)
    parse(WHOLE, catalogue=["ct-nlm"])
    fault = only(WHOLE, catalogue=["ct-tv", "mr-nlm"])
    assert (fault.line, fault.column) == (4, 16)


def test_warnings_about_what_is_probably_not_meant() -> None:
    text = WHOLE.replace("[pacs, out]", "[out]").replace("Modality: CT", "Modality: MRI")
    text += "store: {database: 'postgresql+psycopg://u:hunter2@db/x'}\n"
    said = warnings_of(parse(text))
    assert any("modality" in each for each in said)
    assert "no rule uses this" in said
    assert "the password stands in the file" in said
    assert "there are no rules: every series will be ignored" in warnings_of(parse(HEAD))
    loop = WHOLE.replace('"pacs:104"', '"localhost:11112"')
    assert "this destination is the node itself" in warnings_of(parse(loop))


SECRET = "hunter2-s3cr3t"


def test_a_password_in_the_file_is_masked_wherever_it_goes() -> None:
    text = f"{WHOLE}store: {{database: 'postgresql+psycopg://u:{SECRET}@db/x'}}\n"
    loaded = parse(text)
    assert SECRET in loaded.config.store.database
    assert SECRET not in loaded.text + json.dumps(loaded.shown) + repr(loaded.config) + str(loaded.warnings)
    assert loaded.shown["store"]["database"] == "postgresql+psycopg://u:***@db/x"


def test_what_comes_from_the_environment_is_shown_as_written() -> None:
    text = WHOLE.replace("ae_title: PACS", "ae_title: '${AET}'").replace("pacs:104", "${PACS_HOST}:104")
    text += "store: {database: 'postgresql+psycopg://u:${PW}@db/x'}\n"
    env = {"AET": "TOPSECRETAE", "PACS_HOST": "topsecrethost", "PW": SECRET}
    loaded = parse(text, env=env)
    assert isinstance(pacs := loaded.config.destinations["pacs"], DimseDestination)
    assert (pacs.ae_title, pacs.host) == ("TOPSECRETAE", "topsecrethost")
    assert loaded.shown["destinations"]["pacs"]["ae_title"] == "${AET}"
    assert loaded.shown["destinations"]["pacs"]["address"] == "${PACS_HOST}:104"
    assert loaded.shown["store"]["database"] == "postgresql+psycopg://u:${PW}@db/x"
    told = loaded.text + json.dumps(loaded.shown) + str(loaded.warnings)
    assert not any(value in told for value in env.values())


@pytest.mark.parametrize(
    "key", ["ae_title", "listen", "max_pdu", "max_instance", "require_called_ae", "private_classes"]
)
def test_a_fault_in_a_secret_tells_what_fits_but_not_the_secret(key: str) -> None:
    secret = "Z" * 17 + "!:"
    faults = faults_of(f"node: {{accept_from: [CT1], {key}: '${{X}}'}}\n", env={"X": secret})
    assert all("${X}" in fault.message and secret not in str(fault) for fault in faults)


def test_secrets_in_every_place_of_a_faulty_file_stay_out_of_its_faults() -> None:
    text = EVERYTHING_WRONG.replace("${NOPE}", "${X}").replace("matches (a", "matches ${X}(")
    bad = ["LUMINODE_IS_FAR_TOO_LONG", "11112", "7days", "ct-nlmm", "1.6", "foldr", "pacx", "loud", "1e3"]
    for word in [*bad, "CHEST or LUNG", '">= 2.0"', "postgres://u:pw@h/x"]:
        assert word in text
        text = text.replace(word, "'${X}'")
    faults = faults_of(text, env={"X": SECRET}, catalogue=["ct-nlm"])
    assert len(faults) > 30
    assert not any(SECRET in str(fault) for fault in faults)


def test_the_digest_is_of_the_settings_not_of_the_typing() -> None:
    plain = parse(WHOLE)
    again = parse("# a comment\n" + WHOLE.replace('"pacs:104"', "pacs:104") + "log: {level: info}\n")
    assert again.digest == plain.digest
    assert parse(WHOLE.replace("2.0", "2.5")).digest != plain.digest
    assert len(plain.digest) == 64


def test_a_changed_secret_changes_the_digest() -> None:
    text = WHOLE.replace("ae_title: PACS", "ae_title: '${AET}'")
    first, second = (parse(text, env={"AET": value}).digest for value in ("A", "B"))
    assert first != second
    assert first != parse(WHOLE.replace("ae_title: PACS", "ae_title: A")).digest


def test_the_order_of_rules_is_part_of_the_digest() -> None:
    rules = [
        "  - {name: a, when: {Rows: 1}, ignore: true}\n",
        "  - {name: b, when: {Rows: 2}, ignore: true}\n",
    ]
    head = f"{HEAD}rules:\n"
    assert parse(head + "".join(rules)).digest != parse(head + "".join(reversed(rules))).digest


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.encode())
    loaded = load(path, {})
    assert loaded.path == path
    assert loaded.digest == parse(WHOLE).digest


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match="no such file"):
        load(path, {})
    with pytest.raises(ConfigError, match="no ordinary file"):
        read_text(tmp_path)
    path.write_bytes(b"node: x\n  caf\xe9: y\n")
    with pytest.raises(ConfigError) as raised:
        read_text(path)
    assert (raised.value.faults[0].line, raised.value.faults[0].column) == (2, 6)


def test_tls_files_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"node: {{accept_from: [CT1], tls: {{certificate: {tmp_path}/c.pem, key: {tmp_path}/k.pem}}}}\n"
    )
    good = Authority(tmp_path, "ca").issue("node")
    (tmp_path / "c.pem").write_bytes(good.certificate.read_bytes())
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    assert [fault.path for fault in raised.value.faults] == ["node.tls.key"]
    (tmp_path / "k.pem").write_bytes(good.key.read_bytes())
    load(path, {})


@pytest.mark.parametrize(
    ("spoil", "key", "told"),
    [
        ("other key", "key", "this is not the key of `certificate`"),
        ("passphrase", "key", "the key has no passphrase"),
        ("text", "key", "certificate and key cannot be used"),
        ("authorities", "authorities", "no certificate can be read"),
    ],
)
def test_tls_files_are_tried_before_the_node_starts_on_them(
    tmp_path: Path, spoil: str, key: str, told: str
) -> None:
    authority = Authority(tmp_path, "ca")
    files = authority.issue("node", passphrase="secret" if spoil == "passphrase" else "")
    chosen = authority.issue("other").key if spoil == "other key" else files.key
    if spoil == "text":
        files.certificate.write_text("no PEM")
    if spoil == "authorities":
        authority.pem.write_text("no PEM")
    path = tmp_path / "config.yaml"
    tls = f"tls: {{certificate: {files.certificate}, key: {chosen}, authorities: {authority.pem}}}"
    path.write_text(f"node: {{accept_from: [CT1], {tls}}}\n")
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    (fault,) = raised.value.faults
    assert fault.path == f"node.tls.{key}"
    assert told in str(fault)
    load(path, {}, files=False)


def test_faults_are_capped() -> None:
    faults = faults_of(HEAD + "".join(f"key{n}: x\n" for n in range(300)))
    assert len(faults) == 101
    assert "200 more" in faults[-1].message


def test_the_shipped_configuration_is_sound() -> None:
    loaded = load(shipped(), {}, catalogue=["ct-cnn", "mr-cnn"])
    assert loaded.warnings == ()
    assert {engine.engine for engine in loaded.config.engines.values()} == {"ct-cnn", "mr-cnn"}
    assert loaded.config.rules[-1].when == {}
