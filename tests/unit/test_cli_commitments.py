"""The verbs on requests for storage commitment."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from node.cli.examples import EXAMPLES
from node.model import CommitmentState
from node.store import Store
from tests.cli import luminode
from tests.storing import CT, NOW, after

CONFIG = """\
node: {{accept_from: [CT1]}}
store: {{spool: {folder}/spool, database: "sqlite:///{folder}/luminode.db", refuse_below: 1MB}}
"""


@pytest.fixture
def config(sqlite_template: Path, tmp_path: Path) -> Path:
    """A site with one request that was told, and one that could not be."""
    shutil.copy(sqlite_template, tmp_path / "luminode.db")
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path))
    with Store.open(f"sqlite:///{tmp_path}/luminode.db", tmp_path / "spool") as store:
        for number, failed in ((1, {}), (2, {"1.2.2.1": 0x112})):
            taken = store.commitments.ask(
                f"1.2.9.{number}", [(CT, f"1.2.{number}.{k}") for k in range(3)],
                calling_ae="CT1", called_ae="LUMINODE", address="10.1.2.3", promise="held",
                report_to={"address": {"host": "10.1.2.3", "port": 105}}, at=NOW,
                answer_by=NOW + timedelta(days=1), give_up_at=NOW + timedelta(days=7),
            )  # fmt: skip
            assert taken
            asked = store.commitments.claim(CommitmentState.ASKED, "me", 60, NOW)
            assert asked is not None
            assert store.commitments.ready(asked.id, "me", failed, NOW)
            ready = store.commitments.claim(CommitmentState.READY, "me", 60, NOW)
            assert ready is not None
            if failed:
                assert store.commitments.later(ready, "me", after(60), "nobody listens there", tried=True)
            else:
                assert store.commitments.told(ready.id, "me", NOW)
    return tmp_path / "config.yaml"


def test_requests_are_listed(config: Path) -> None:
    told = luminode("commitments", "list", "--config", config)
    lines = told.out.splitlines()
    assert lines[0].split() == EXAMPLES["commitments list"].strip().splitlines()[1].split()
    assert [line.split()[:5] for line in lines[1:]] == [
        ["2", "READY", "CT1", "3", "1"],
        ["1", "TOLD", "CT1", "3", "0"],
    ]
    only = luminode("commitments", "list", "--state", "told", "--json", "--config", config).json
    assert [one["transaction_uid"] for one in only] == ["1.2.9.1"]


def test_a_request_is_shown_with_what_is_not_committed(config: Path) -> None:
    told = luminode("commitments", "show", "2", "--config", config)
    assert told.status == 0
    assert "1.2.2.1" in told.out
    assert "not here" in told.out
    assert "10.1.2.3:105" in told.out
    assert "nobody listens there" in told.out
    missing = luminode("commitments", "show", "7", "--config", config)
    assert (missing.status, "commitments list" in missing.err) == (1, True)
