"""An archive may grow: no page and no round of the node takes more work in one ten times as large.

The database itself is asked. How much work a look is: SQLite counts the instructions of its virtual machine, the same
on every machine. How it finds its rows: ``EXPLAIN`` on both databases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, event

from node.errors import StoreError
from node.store import Spool, Store
from node.store.db import Database
from node.store.migrate import require_current
from node.store.tables import Base
from tests.archive import fill
from tests.looks import PAGES, ROUNDS, WHOLE, Desk, Look
from tests.postgres import create_database, drop_database, told

LOOKS: Mapping[str, Look] = {**PAGES, **ROUNDS}
SMALL, LARGE = (100, 500), (1000, 5000)
"""Series and instances."""

FIXED = {"provenance_chain", "config", "turn", "outlook"}
GROWING = {table.name for table in Base.metadata.sorted_tables} - FIXED
"""Tables that grow with what was received, done, sent and told."""

SHORT = {
    "ix_association_open": "of associations that are open now",
    "ix_instance_unindexed": "of instances whose header was not read yet",
}
"""Partial indices that hold what there is at the moment alone: they may be read from end to end."""

NEWEST = re.compile(r"SELECT [^()]* FROM (\w+) ORDER BY \1\.(id DESC|path) +LIMIT \S+( OFFSET \S+)?")
"""The first rows in the order of a key, without a condition: the scan ends at LIMIT."""

MANY = 100
"""Rows; a tenth of the series of the large archive."""

LOST = {
    "ix_job_state": "jobs list -s done",
    "ix_delivery_state": "deliveries list -s sent",
    "ix_association_ended": "retention finds nothing",
    "ix_series_purged": "daily report",
    "ix_series_kept": "retention finds nothing",
    "ix_series_state": "gather: a round",
    "ix_instance_series": "deliveries show (originals)",
    "ix_carried_association": "gather: a round",
    "ix_event_series": "series show",
}
"""Indices, and a look that is the slower without each."""


ADDED = ("ix_job_state", "ix_delivery_state", "ix_association_ended", "ix_series_purged")
"""By 0004."""


class Meter:
    """Counts the instructions of SQLite's virtual machine, in tens."""

    def __init__(self, database: Database) -> None:
        self.n = 0
        database.engine.dispose()
        event.listen(database.engine, "connect", lambda c, _: c.set_progress_handler(self._ten, 10))

    def _ten(self) -> int:
        self.n += 10
        return 0

    def of(self, look: Look, desk: Desk) -> int:
        """Of the second time: by then whoever looks knows what they keep in memory."""
        look(desk)
        before = self.n
        look(desk)
        return self.n - before


@pytest.fixture(scope="module")
def desks(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[tuple[Desk, Meter]]]:
    """A small and a large archive."""
    made = []
    for n_series, n_instances in (SMALL, LARGE):
        folder = tmp_path_factory.mktemp("archive")
        (folder / "luminode.db").write_bytes(sqlite_template.read_bytes())
        store = Store(Database(f"sqlite:///{folder}/luminode.db"), Spool(folder / "spool"))
        desk = Desk(store, fill(store.database, n_series=n_series, n_instances=n_instances), folder, limit=3)
        made.append((desk, Meter(store.database)))
    yield made
    for desk, _ in made:
        desk.store.close()


@pytest.fixture(autouse=True)
def _then(monkeypatch: pytest.MonkeyPatch, desks: list[tuple[Desk, Meter]]) -> None:
    """The daily report is of the archive's last day."""
    monkeypatch.setattr("node.housekeep._now", lambda: desks[0][0].archive.until)


def work(desks: list[tuple[Desk, Meter]], look: Look) -> tuple[int, int]:
    """Instructions in the small archive and in the large one."""
    small, large = (meter.of(look, desk) for desk, meter in desks)
    return small, large


def grows(small: int, large: int) -> bool:
    return large > 1.3 * small + 100


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_is_no_more_work_in_a_larger_archive(desks: list[tuple[Desk, Meter]], name: str) -> None:
    small, large = work(desks, LOOKS[name])
    assert small > 0
    assert not grows(small, large), f"{small} instructions in the small archive, {large} in the large one"


@pytest.mark.parametrize("name", WHOLE)
def test_what_reads_everything_does(desks: list[tuple[Desk, Meter]], name: str) -> None:
    """Whatever no longer does belongs to the looks."""
    look, because = WHOLE[name]
    assert because
    assert grows(*work(desks, look))


@pytest.mark.parametrize("index", LOST)
def test_a_lost_index_is_found_out(desks: list[tuple[Desk, Meter]], index: str) -> None:
    database = desks[1][0].store.database
    with database.write() as connection:
        made = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_master WHERE name = ?", (index,)
        ).scalar_one()
        connection.exec_driver_sql(f"DROP INDEX {index}")
    try:
        small, large = work(desks, LOOKS[LOST[index]])
    finally:
        with database.write() as connection:
            connection.exec_driver_sql(made)
    assert grows(small, large), f"{small} instructions with the index, {large} without it"


@contextmanager
def statements(database: Database) -> Iterator[dict[str, Any]]:
    """What SQLAlchemy sends meanwhile: each statement with its first parameters."""
    sent: dict[str, Any] = {}

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _x: Any, many: bool) -> None:
        if statement.split()[0] in ("SELECT", "UPDATE", "DELETE"):
            sent.setdefault(statement, parameters[0] if many else parameters)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def excused(statement: str) -> bool:
    return NEWEST.fullmatch(" ".join(statement.split())) is not None


def scans_of_sqlite(database: Database, sent: Mapping[str, Any]) -> dict[str, str]:
    """Statements that read a growing table, or an index of it, from end to end."""
    found: dict[str, str] = {}
    with closing(database.engine.raw_connection()) as connection:
        for statement, parameters in sent.items():
            for *_, step in connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters):
                scan = re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", step)
                if scan and _table(scan[1]) in GROWING and scan[2] not in SHORT and not excused(statement):
                    found[" ".join(statement.split())] = step
    return found


def _table(alias: str) -> str:
    """SQLAlchemy numbers its aliases: series_1."""
    return re.sub(r"_\d+$", "", alias)


def test_no_look_reads_a_growing_table_from_end_to_end(desks: list[tuple[Desk, Meter]]) -> None:
    desk, _ = desks[1]
    with statements(desk.store.database) as sent:
        for look in LOOKS.values():
            look(desk)
    assert len(sent) > 60
    assert scans_of_sqlite(desk.store.database, sent) == {}


def test_a_scan_is_found_out(desks: list[tuple[Desk, Meter]]) -> None:
    found = scans_of_sqlite(desks[1][0].store.database, {"SELECT id FROM series WHERE size > ?": (1,)})
    assert list(found.values()) == ["SCAN series"]


def test_an_archive_of_the_schema_before_is_upgraded(database_url: str, tmp_path: Path) -> None:
    """R56: from 0003, with rows in it; the indices are made, and nothing else is changed."""
    with Store.open(database_url, tmp_path / "spool") as store:
        archive = fill(store.database, n_series=SMALL[0], n_instances=SMALL[1])
        before = store.series.list(limit=1000), store.jobs.list(limit=1000), store.deliveries.list(limit=1000)
        with store.database.write() as connection:
            for name in ADDED:
                connection.exec_driver_sql(f"DROP INDEX {name}")
            for table in ("commitment", "pledge", "asked"):
                connection.exec_driver_sql(f"DROP TABLE {table}")
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0003'")
        with pytest.raises(StoreError, match="older"):
            require_current(store.database)
    with Store.open(database_url, tmp_path / "spool") as store:
        after = store.series.list(limit=1000), store.jobs.list(limit=1000), store.deliveries.list(limit=1000)
        assert after == before
        assert store.provenance.verify().ok
        assert store.provenance.story(archive.sop_uid).instances
        with store.database.read() as connection:
            found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert found == []


@pytest.fixture(scope="module")
def postgres_desk(postgres_server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A large archive on PostgreSQL, whose planner goes by how much there is."""
    url, folder = create_database(postgres_server), tmp_path_factory.mktemp("archive")
    with Store.open(told(url), folder / "spool") as store:
        yield Desk(store, fill(store.database, n_series=LARGE[0], n_instances=LARGE[1]), folder, limit=3)
    drop_database(postgres_server, url)


def scans_of_postgresql(database: Database, sent: Mapping[str, Any]) -> dict[str, str]:
    """Statements that looked at many rows with no condition on an index to lead them there.

    It is free to walk a key until it has what LIMIT wants, where it knows that it will soon have. Scans of tables are
    forbidden, for of one that is small they are right: what is planned as one all the same has no index to go by.
    """
    found: dict[str, str] = {}
    with closing(database.engine.raw_connection()) as connection:
        cursor: Any = connection.cursor()
        cursor.execute("SET enable_seqscan = off")
        for statement, parameters in sent.items():
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON, COSTS OFF, TIMING OFF) {statement}", parameters)
            for node in _nodes(cursor.fetchone()[0][0]["Plan"]):
                index = node.get("Index Name")
                if "Scan" in node["Node Type"] and "Index Cond" not in node and index not in SHORT:
                    seen = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node[
                        "Actual Loops"
                    ]
                    if seen > MANY:
                        found[" ".join(statement.split())] = (
                            f"{node['Node Type']} {index or ''} {seen:.0f} rows"
                        )
        connection.rollback()
    return found


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


@pytest.mark.postgres
def test_no_look_reads_a_growing_table_of_postgresql_from_end_to_end(postgres_desk: Desk) -> None:
    database = postgres_desk.store.database
    with statements(database) as sent:
        for look in LOOKS.values():
            look(postgres_desk)
    assert len(sent) > 60
    assert scans_of_postgresql(database, sent) == {}
    lost = {"SELECT id FROM series WHERE size > %(n)s": {"n": 1}}
    assert [found.split()[:2] for found in scans_of_postgresql(database, lost).values()] == [["Seq", "Scan"]]
