"""A receiver that the tests of a module share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.store import Store
from tests.receiving import House, house


@pytest.fixture(scope="module")
def shared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("door")
    shutil.copy(sqlite_template, folder / "luminode.db")
    with Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool") as store, house(store) as one:
        yield one


@pytest.fixture
def door(shared: House) -> Iterator[House]:
    """A receiver with an empty store; the same one for all, for it takes longer to start than to test."""
    yield shared
    shared.receiver.apply(shared.config)
    shared.forget()
