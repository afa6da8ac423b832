"""One engine a database for all contract tests, emptied between them.

What SQLAlchemy compiled belongs to its engine: with a new one for each test, most of the time would go into
compiling the same statements again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL

from node.store import Spool, Store
from node.store.db import Database
from tests.postgres import empty, told


@pytest.fixture(scope="session")
def sqlite_shared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('shared')}/luminode.db")
    yield database
    database.close()


@pytest.fixture(scope="session")
def postgres_database(postgres_shared: URL) -> Iterator[Database]:
    database = Database(told(postgres_shared))
    yield database
    database.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, sqlite_template: Path) -> Database:
    """An empty database with the current schema: once SQLite, once PostgreSQL."""
    if request.param == "postgresql":
        found: Database = request.getfixturevalue("postgres_database")
        found.engine.dispose()
        empty(found.url)
        return found
    found = request.getfixturevalue("sqlite_shared")
    found.engine.dispose()
    with (
        closing(sqlite3.connect(sqlite_template)) as clean,
        closing(sqlite3.connect(str(found.url.database))) as used,
    ):
        clean.backup(used)
    return found


@pytest.fixture
def database_url(database: Database) -> str:
    return told(database.url)


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Store:
    """An empty store on each database in turn."""
    return Store(database, Spool(tmp_path / "spool"))
