"""Fixtures for all tests: stores on both databases, real PostgreSQL included."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from node.store import Store
from tests.peers import orthanc, scripted, slow_network, storescp, storescps  # noqa: F401 - fixtures
from tests.postgres import (  # noqa: F401 - fixtures
    postgres_binaries,
    postgres_empty,
    postgres_server,
    postgres_shared,
    postgres_url,
)

# The machines of CI are noisy and a submission must not fail by chance: no deadlines, and the same examples each
# time; a person's run looks for new ones.
settings.register_profile("person", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "person")

OpenStore = Callable[[], Store]

# Nothing that collecting thousands of tests makes is garbage, and looking for some takes most of its time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed SQLite database with the current schema, to copy."""
    folder = tmp_path_factory.mktemp("template")
    Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool").close()
    return folder / "luminode.db"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database with the current schema: once SQLite, once PostgreSQL."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return str(request.getfixturevalue("sqlite_url"))


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """URL of an empty SQLite database with the current schema, for tests that need one database only."""
    shutil.copy(sqlite_template, tmp_path / "luminode.db")
    return f"sqlite:///{tmp_path}/luminode.db"


@pytest.fixture
def open_store(database_url: str, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens the same store again and again, as processes do after a restart."""
    opened: list[Store] = []

    def once_more() -> Store:
        opened.append(Store.open(database_url, tmp_path / "spool"))
        return opened[-1]

    yield once_more
    for one in opened:
        one.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """An empty store on each database in turn."""
    return open_store()


@pytest.fixture
def sqlite_store(sqlite_url: str, tmp_path: Path) -> Iterator[Store]:
    """An empty store on SQLite, for tests of other rooms that need one database only."""
    with Store.open(sqlite_url, tmp_path / "spool") as one:
        yield one


LONG_FIRST = (
    "faults/test_crash_points.py", "faults/test_restarts.py", "pipeline/test_corpus.py",
    "pipeline/test_training_toy.py", "faults/test_operation_repair.py", "conformance/test_bench.py",
    "faults/test_operation_health.py", "pipeline/test_kill.py", "faults/test_operation_clock.py",
    "pipeline/test_main_job.py", "faults/test_engines_workers.py", "faults/test_operation_soak.py",
    "unit/test_training_dose.py", "faults/test_engines_gpu.py", "pipeline/test_ahead.py",
    "faults/test_hostile_connections.py", "faults/test_power_loss.py", "faults/test_order_and_lateness.py",
    "pipeline/test_field_senders.py", "faults/test_closed_by_default.py", "pipeline/test_last_good.py",
    "faults/test_delivery_originals.py",
)  # fmt: skip
"""Modules that take long, the longest first, those that wait beside those that compute: at the end every worker of
``make test`` has short ones left."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    rank = {here / name: number for number, name in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing may be skipped for want of a peer: LUMINODE_REQUIRE_PEERS makes such a skip a failure."""
    report = yield
    wanted = any(item.get_closest_marker(name) for name in ("peer", "postgres", "tensorrt"))
    why = str(report.longrepr)
    for_want = "installed" in why or "no other user" in why
    if report.skipped and wanted and for_want and os.environ.get("LUMINODE_REQUIRE_PEERS"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {why}"
    return report
