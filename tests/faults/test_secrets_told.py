"""S7: whatever is wrong with a configuration, no text about it gives away a secret that stands in it."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import make_url

from node.config.live import text_diff
from node.config.load import LoadedConfig, parse
from node.errors import ConfigError
from node.log import configure, get_logger, tell_defects_without_values
from node.store.archive import _run
from tests.cli import logging_kept
from tests.faults.canary import Canary, aligned, found
from tests.faults.ledger import record
from tests.faults.scale import SEED, count

CLEAR, GIVEN = Canary(SEED), Canary(SEED + 1)
ENV = {"DB_PASSWORD": GIVEN.quoted, "TOKEN": GIVEN.secret, "N": f"9{GIVEN.words[0]}"}

URL = f"postgresql+psycopg://luminode:{CLEAR.quoted}@db.lan/luminode"
WHOLE = """\
node:
  accept_from: [CT1, {{ae_title: MR1, addresses: [10.1.2.3]}}]
  listen: 127.0.0.1:11112
store:
  spool: var/spool
  database: {url}
engines:
  ct: {{engine: identity, strength: 0.5}}
destinations:
  pacs: {{kind: dimse, ae_title: PACS, address: "pacs.lan:104"}}
rules:
  - {{name: ct, when: {{Modality: CT}}, enhance: ct, send_to: [pacs]}}
log: {{level: info, format: json}}
"""
URLS = {
    "password": URL,
    "password not quoted": f"postgresql+psycopg://luminode:{CLEAR.secret}@db.lan/luminode",
    "query": f"postgresql+psycopg://luminode@db.lan/luminode?password={CLEAR.quoted}",
    "key passphrase": f"postgresql+psycopg://l@db.lan/l?sslmode=require&sslpassword={CLEAR.quoted}&sslkey=k",
    "password and query": f"postgresql+psycopg://l:{CLEAR.quoted}@db.lan/l?password={CLEAR.quoted}",
    "user without name": f"postgresql+psycopg://:{CLEAR.quoted}@db.lan/luminode",
    "environment": "postgresql+psycopg://luminode:${DB_PASSWORD}@db.lan/luminode",
    "environment in query": "postgresql+psycopg://luminode@db.lan/luminode?password=${DB_PASSWORD}",
    "environment whole": "${TOKEN}",
}


def told_of(text: str) -> tuple[str, LoadedConfig | None]:
    """Everything that may be printed, logged, stored or raised of a configuration."""
    try:
        loaded = parse(text, env=ENV, catalogue=("identity",))
    except ConfigError as error:
        return "\n".join(
            [*map(str, error.faults), *map(repr, error.faults), repr(error), str(error),
             "".join(traceback.format_exception(error))]
        ), None  # fmt: skip
    shown = json.dumps(loaded.shown)
    return "\n".join(
        [shown, repr(loaded.shown), loaded.text, loaded.digest, *map(str, loaded.warnings), repr(loaded.warnings),
         text_diff("", loaded.text)]
    ), loaded  # fmt: skip


@pytest.mark.parametrize("how", URLS)
def test_a_good_configuration_is_told_without_its_secret(how: str) -> None:
    text = WHOLE.format(url=json.dumps(URLS[how]))
    told, loaded = told_of(text)
    told += repr(loaded) + repr(loaded.config if loaded is not None else "")
    hits = found([CLEAR, GIVEN], how, told.encode())
    record("S7", load="a good configuration with a secret in the database's URL: all that is told and kept of it",
           count=1, result="0 hits", ok=not hits, extra=len(hits))  # fmt: skip
    assert hits == []
    if loaded is not None and "environment" not in how:
        assert any("password stands in the file" in str(warning) for warning in loaded.warnings), how


def misplaced() -> Iterator[tuple[str, str]]:
    """The URL, or the variable, where something else belongs: each key of the file in turn."""
    good = WHOLE.format(url="sqlite:///var/l.db")
    values = (
        "[CT1, {ae_title: MR1, addresses: [10.1.2.3]}]", "MR1", "[10.1.2.3]", "10.1.2.3", "127.0.0.1:11112",
        "var/spool", "sqlite:///var/l.db", "identity", "0.5", "dimse", "PACS", '"pacs.lan:104"', "{Modality: CT}",
        "[pacs]", "info", "json", "{kind: dimse, ae_title: PACS, address: \"pacs.lan:104\"}",
    )  # fmt: skip
    for value in values:
        for how, url in (
            *URLS.items(),
            ("token", "x${TOKEN}y"),
            ("number", "${N}"),
            ("bare", f"u:{CLEAR.quoted}@h:1"),
        ):
            yield f"{how} for {value}", good.replace(value, json.dumps(url), 1)
    for key in ("database", "spool", "store", "listen", "engine", "rules", "Modality", "pacs"):
        for how, url in URLS.items():
            text = WHOLE.format(url=json.dumps(url))
            yield f"{how}, {key} misspelled", text.replace(f"{key}:", f"{key}x:", 1)
            yield f"{how}, {key} is the URL", text.replace(f"{key}:", f"{json.dumps(URLS['password'])}:", 1)


def torn(rng: np.random.Generator) -> str:
    """A file in the middle of being edited: cut off anywhere, lines moved, characters lost or put in.

    None is lost out of the URL, or put into it: what marks a password as one must still stand before it. One with an
    @ in it that is cut off may be a whole URL of another host, and is left out.
    """
    url = str(rng.choice([each for how, each in URLS.items() if how != "password not quoted"]))
    text = WHOLE.format(url=str(rng.choice([url, json.dumps(url), f"'{url}'"])))
    for _ in range(int(rng.integers(1, 4))):
        at, begin = int(rng.integers(1, len(text) + 1)), text.find(url[:14])
        lines = text.splitlines(keepends=True)
        match int(rng.integers(5)):
            case 0 if begin < 0 or not begin - 30 < at < begin + len(url):
                text = text[:at] + text[at + int(rng.integers(1, 30)) :]
            case 1 if begin < 0 or not begin < at < begin + len(url):
                text = text[:at] + str(rng.choice(list(":{}[]'\"#&*!|>%@`,-?\t\n \\$"))) + text[at:]
            case 2:
                text = text[:at]
            case 3:
                rng.shuffle(lines)
                text = "".join(lines)
            case _:
                line = int(rng.integers(len(lines)))
                lines[line] = " " * int(rng.integers(6)) + lines[line].lstrip()
                text = "".join(lines)
    return text


def test_a_wrong_edit_is_told_without_the_secret_in_it() -> None:
    rng = np.random.default_rng(SEED)
    named = list(misplaced())
    order = rng.permutation(len(named))[: count(150, len(named))]
    cases = [*(named[at] for at in order), *((f"torn {n}", torn(rng)) for n in range(count(150, 5_000)))]
    hits, n_good = dict[str, list[str]](), 0
    for what, text in cases:
        told, loaded = told_of(text)
        n_good += loaded is not None
        if loaded is not None and what.startswith("bare"):
            continue  # a path with a colon and an @ is a path
        if seen := found([CLEAR, GIVEN], what, told.encode()):
            hits[what] = [
                *seen[:1],
                *(line for line in told.splitlines() if found([CLEAR, GIVEN], "", line.encode())),
            ]
    record("S7", load="a wrong edit: the URL with its password, or a variable, in the place of every other value and "
           "key, and files torn at random places; faults, warnings, representations, tracebacks",
           count=len(cases), result=f"{len(hits)} hits ({n_good} were good all the same)",
           ok=not hits, extra=len(hits))  # fmt: skip
    assert hits == {}


def defective(password: str) -> None:
    """Fails with a value in what it says, after another error, with the value in its variables."""
    try:
        raise KeyError(password)
    except KeyError as error:
        raise RuntimeError(f"a defect that says {password}") from error


@pytest.mark.parametrize("how", ["console", "json"])
def test_a_defect_is_told_by_place_and_type_alone(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is logged with its traceback, and what nobody catches, in the main thread and in another."""
    for module, name in ((sys, "excepthook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    stream = io.StringIO()
    with logging_kept():
        configure("debug", fmt=how, stream=stream)
        try:
            defective(CLEAR.secret)
        except RuntimeError as error:
            get_logger().error("delivery.broke", exc_info=True)
            tell_defects_without_values()
            sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=defective, args=(CLEAR.secret,))
    thread.start()
    thread.join()
    told = {"log": stream.getvalue(), "hooks": capsys.readouterr().err}
    hits = [hit for where, text in told.items() for hit in found([CLEAR], where, text.encode())]
    record("S7", load=f"a defect with the secret in its text and its variables: {how} log, main thread, other thread",
           count=3, result="0 hits; files, lines and types are told", ok=not hits, extra=len(hits))  # fmt: skip
    assert hits == []
    for text in told.values():
        assert "test_secrets_told.py" in text
        assert "in defective" in text
        assert "RuntimeError" in text
        assert "KeyError" in text
    assert told["hooks"].count("builtins.RuntimeError") == 2


@pytest.mark.parametrize("how", ["password", "query"])
def test_a_dump_gets_the_password_where_nobody_else_can_read_it(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments of a process are for everybody to read (proc(5)); its environment is for its owner."""
    spy, told = tmp_path / "pg_dump", tmp_path / "told"
    spy.write_text(
        f'#!/bin/sh\ntr "\\0" " " </proc/$$/cmdline >{told}\nprintf %s "$PGPASSWORD" >{told}.given\n'
    )
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    _run("pg_dump", "--format=custom", url=make_url(URLS[how]))
    hits = found([CLEAR], how, told.read_bytes())
    record("S7", load="the command line of pg_dump, with the password in the URL or in its query", count=1,
           result="0 hits", ok=not hits, extra=len(hits))  # fmt: skip
    assert hits == []
    assert b"db.lan" in told.read_bytes()
    assert Path(f"{told}.given").read_text() == CLEAR.secret


def test_a_canary_is_found_however_it_is_written() -> None:
    """The search is one that can fail."""
    for before in ("", "x", "xy", "xyz "):
        text = base64.b64encode(f"{before}{CLEAR.secret} and more".encode())
        assert found([CLEAR], "b", text)
        assert found([CLEAR], "q", f"a={CLEAR.quoted}".encode())
    assert found([CLEAR], "w", CLEAR.words[2].encode("utf-16"))
    assert not found([CLEAR], "n", GIVEN.secret.encode())
    assert all(len(form) >= 12 for word in CLEAR.words for form in aligned(word.encode()))
