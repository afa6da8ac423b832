"""The configuration as a process of the node lives with it: recorded, kept for the next start, fallen back on."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node.app import lastgood
from node.app.settings import Settings
from node.errors import ConfigError, StoreError
from node.log import get_logger
from node.store import Store
from tests.cli import logging_kept
from tests.sites import CONFIG
from tests.storing import NOW, outbox

JSON_LOG = CONFIG + "log: {format: json}\n"


Log = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Log]:
    """Gives what was logged since it was asked last."""
    with logging_kept():
        yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.fixture
def config(site: Path, log: Log) -> Path:
    path = site / "config.yaml"
    path.write_text(JSON_LOG)
    return path


def edited(settings: Settings, path: Path, text: str) -> None:
    """An edit, seen at once."""
    path.write_text(text)
    before = set(threading.enumerate())
    settings.reload()
    for thread in set(threading.enumerate()) - before:
        thread.join()


# on disk ------------------------------------------------------------------------------------------
def test_what_is_kept_is_its_owners_alone_and_replaced_whole(tmp_path: Path) -> None:
    path = lastgood.last_good(tmp_path)
    assert lastgood.kept(path) is None
    assert lastgood.kept(None) is None
    for text in ("one: ${PW}\n", "zwei: ü\r\n"):
        lastgood.keep(path, text)
        assert lastgood.kept(path) == text
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["last-good.yaml"]


def test_what_a_killed_process_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    path = lastgood.last_good(tmp_path)
    (tmp_path / f".last-good.yaml.{os.getpid()}").write_text("half of")
    lastgood.keep(path, "whole")
    assert lastgood.kept(path) == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lastgood.last_good(tmp_path)
    lastgood.keep(path, "good")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left") as refused:
        lastgood.keep(path, "better")
    assert refused.value.hint
    assert lastgood.kept(path) == "good"
    assert len(list(tmp_path.iterdir())) == 1


# in force -----------------------------------------------------------------------------------------
def test_versions_are_recorded_with_their_differences(site_store: Store, config: Path) -> None:
    settings = Settings(config, "gather")
    settings.record_in(site_store)
    edited(settings, config, JSON_LOG.replace("strength: 0.6", "strength: 0.5"))
    third = JSON_LOG.replace("strength: 0.6", "strength: 0.4")
    config.write_text(third)  # while the node is down
    Settings(config, "gather").record_in(site_store)
    Settings(config, "gather").record_in(site_store)
    newest, middle, first = site_store.configs.history()
    assert first.diff == ""
    assert "-  ct: {engine: ct-wavelet, strength: 0.6}" in middle.diff
    assert (
        "-  ct: {engine: ct-wavelet, strength: 0.5}\n+  ct: {engine: ct-wavelet, strength: 0.4}"
        in newest.diff
    )
    assert lastgood.kept(lastgood.last_good(site_store.spool.root)) == third


def test_a_password_is_kept_for_its_owner_and_recorded_nowhere(site_store: Store, config: Path) -> None:
    text = JSON_LOG.replace("sqlite:///luminode.db", "postgresql+psycopg://u:hunter2@db.lan/x")
    config.write_text(text)
    settings = Settings(config, "gather")
    settings.record_in(site_store)
    assert lastgood.kept(lastgood.last_good(site_store.spool.root)) == text
    assert "hunter2" not in site_store.configs.history()[0].text
    assert "hunter2" not in str(settings.loaded.shown)


def test_a_bad_edit_is_told_and_recorded_and_not_kept(site_store: Store, config: Path, log: Log) -> None:
    settings = Settings(config, "gather")
    settings.record_in(site_store)
    edited(settings, config, JSON_LOG.replace("strength", "strenght"))
    (told,) = [e for e in log() if e["event"] == "config.refused"]
    assert "did you mean strength?" in told["told"]
    assert len(site_store.events.list(name="config.refused")) == 1
    assert settings.config.engines["ct"].strength == 0.6
    assert lastgood.kept(lastgood.last_good(site_store.spool.root)) == JSON_LOG


def test_listeners_hear_of_good_edits_only(config: Path) -> None:
    settings = Settings(config, "receive")
    heard: list[str] = []
    settings.on_change(lambda new: heard.append(new.node.ae_title))
    edited(settings, config, JSON_LOG.replace("ae_title: LUMINODE", "ae_title: ''"))
    edited(settings, config, JSON_LOG.replace("ae_title: LUMINODE", "ae_title: OTHER"))
    assert heard == ["OTHER"]


def test_the_level_of_the_log_follows_the_file(config: Path, log: Log) -> None:
    settings = Settings(config, "receive")
    get_logger().debug("before.edit")
    edited(settings, config, JSON_LOG.replace("{format: json}", "{format: json, level: debug}"))
    get_logger().debug("after.edit")
    assert [e["event"] for e in log()] == ["after.edit"]


def test_an_edit_that_waits_for_the_next_start_is_told_and_not_kept(
    site_store: Store, config: Path, log: Log
) -> None:
    settings = Settings(config, "gather")
    settings.record_in(site_store)
    edited(settings, config, JSON_LOG.replace("127.0.0.1:11112", "127.0.0.1:11119"))
    assert [e["key"] for e in log() if e["event"] == "config.needs_restart"] == ["node.listen"]
    assert lastgood.kept(lastgood.last_good(site_store.spool.root)) == JSON_LOG
    assert settings.started.node.listen.port == 11112
    again = Settings(config, "receive", fallback=lastgood.last_good(site_store.spool.root))
    assert again.started.node.listen.port == 11112


# at the start -------------------------------------------------------------------------------------
def test_a_role_falls_back_loudly(site: Path, site_store: Store, config: Path, log: Log) -> None:
    kept = Settings(config, "supervisor").keep_last_good()
    assert kept == (site / "spool" / "last-good.yaml").resolve()
    config.write_text(JSON_LOG.replace("strength", "strenght"))
    settings = Settings(config, "gather", fallback=kept)
    assert [(e["event"], e["level"], e["role"]) for e in log()] == [
        ("config.refused", "error", "gather"),
        ("config.last_good_used", "error", "gather"),
    ]
    assert settings.config.engines["ct"].strength == 0.6
    settings.record_in(site_store)
    assert len(site_store.events.list(name="config.refused")) == 1
    edited(settings, config, JSON_LOG.replace("strength: 0.6", "strength: 0.1"))
    assert settings.config.engines["ct"].strength == 0.1


@pytest.mark.parametrize("text", [None, "", "node: [", CONFIG.replace("strength", "strenght")])
def test_without_a_last_good_one_a_bad_file_is_refused(site: Path, config: Path, text: str | None) -> None:
    kept = site / "last-good.yaml"
    if text is not None:
        kept.write_text(text)
    config.write_text(JSON_LOG.replace("quiet", "quite").replace("CT1", "C" * 17))
    with pytest.raises(ConfigError, match=r"config\.yaml:1:"):
        Settings(config, "receive", fallback=kept)


def test_a_disk_that_refuses_is_told_and_no_reason_to_stop(config: Path, log: Log) -> None:
    settings = Settings(config, "supervisor")  # there is no spool yet
    settings.keep_last_good()
    (told,) = log()
    assert told["event"] == "config.last_good_not_kept"
    assert told["hint"]


def test_an_edit_says_what_still_goes_to_where_a_destination_was(
    site_store: Store, config: Path, log: Log
) -> None:
    outbox(site_store)
    settings = Settings(config, "gather")
    settings.record_in(site_store)
    edited(
        settings, config, JSON_LOG.replace("127.0.0.1:1", "127.0.0.1:2").replace("path: outbox", "path: out")
    )
    (told,) = [e for e in log() if e["event"].startswith("config.deliveries")]
    assert (told["event"], told["destination"], told["deliveries"]) == (
        "config.deliveries_keep_address",
        "pacs",
        1,
    )
    assert "deliveries readdress pacs" in told["hint"]
    without = "".join(line for line in JSON_LOG.splitlines(True) if "kind: dimse" not in line)
    edited(settings, config, without.replace("[outbox, pacs]", "[outbox]"))
    (told,) = [e for e in log() if e["event"].startswith("config.deliveries")]
    assert (told["event"], told["destination"], told["deliveries"]) == ("config.deliveries_go_on", "pacs", 1)
    edited(settings, config, JSON_LOG)
    site_store.deliveries.cancel(1, NOW)
    edited(settings, config, JSON_LOG.replace("127.0.0.1:1", "127.0.0.1:3"))
    assert [e for e in log() if e["event"].startswith("config.deliveries")] == []
