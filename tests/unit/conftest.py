"""Fixtures of the unit tests: a working directory as an admin has it, with a config.yaml and a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from node.store import Store
from tests.sites import CONFIG

if TYPE_CHECKING:
    from node.enhance.scratch import Item


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a node, with its config.yaml."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LUMINODE_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def site_store(site: Path, sqlite_template: Path) -> Iterator[Store]:
    """The store of that node."""
    (site / "luminode.db").write_bytes(sqlite_template.read_bytes())
    with Store.open(f"sqlite:///{site}/luminode.db", site / "spool") as store:
        yield store


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A folder for decoded pixels."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """A CT series of six slices, as files."""
    from tests.enhancing import files, series  # numerical libraries: only for who asks

    return files(tmp_path_factory.mktemp("ct"), series("CT", 6))
