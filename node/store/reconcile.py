"""Comparing the spool with the database, at start and daily.

A file without a row was made durable by a receiver that died before it could write the row, or the
database was restored from a backup: it is adopted, never deleted unread. A row without its file must
never be; it is reported as CRITICAL. Derived files without a row can be made again and are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from node.model import Instance
from node.store import events
from node.store.db import Database
from node.store.dialect import own_files
from node.store.originals import Forward
from node.store.reception import Reception, is_known
from node.store.retention import Retention
from node.store.spool import Spool, SpoolFile, spool_path
from node.store.tables import ConflictRow, DerivedInstanceRow, InstanceRow, TrashRow

Reader = Callable[[Path, str], Instance | None]
"""(absolute path, relative path) -> the instance as it would have been received; None if unreadable.

It reads the file meta and the data set, and computes ``sha256`` over the data set's bytes: whether that
fits the file's name is what proves the file whole.
"""

_PAGE = 500
_TOLD = 100
_TABLES: tuple[Any, ...] = (InstanceRow, DerivedInstanceRow, ConflictRow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a scan found and did; the tuples hold paths relative to the spool.

    ``missing``: of rows whose file is gone (CRITICAL). ``adopted``: had no row and were recorded.
    ``unreadable``: have no row and are not what their name says; they stay where they are.
    ``removed``: derived files without a row. ``corrupt``: do not match their digest (only where asked
    for). ``unknown``: have no row (only where nothing may be changed). ``swept``: what dead writers left.
    """

    n_files: int = 0
    n_rows: int = 0
    swept: int = 0
    adopted: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    corrupt: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing is missing, broken or unexplained."""
        return not (self.missing or self.corrupt or self.unreadable or self.unknown)


class Reconcile:
    """`Store.reconcile`."""

    def __init__(self, database: Database, spool: Spool, reception: Reception, retention: Retention) -> None:
        self._db = database
        self._spool = spool
        self._reception = reception
        self._retention = retention

    def scan(
        self,
        reader: Reader,
        now: datetime,
        *,
        grace_s: float = 300.0,
        derived_grace_s: float = 86400.0,
        forward: Forward | None = None,
    ) -> Findings:
        """Sweep what dead writers left, adopt files without a row, look for rows without a file.

        Parameters
        ----------
        reader
            Reads a file without a row; see `Reader`.
        now
            UTC; compared with the files' times.
        grace_s
            Received files younger than this may be on their way to their row and are left alone (0 at
            the start of a node whose receiver does not run yet).
        derived_grace_s
            The same for derived files, whose row comes only when the whole series is done.
        forward
            Destinations that get originals: what is adopted is queued for them, as if it were just received.
        """
        swept = self._spool.sweep_tmp(now)
        self._retention.empty_trash()
        adopted: list[str] = []
        unreadable: list[str] = []
        removed: list[str] = []
        n_files = 0
        breath = self._db.breath()
        for files in _pages_of(self._spool.walk()):
            n_files += len(files)
            for file in self._without_row(files):
                breath.take()
                age_s = now.timestamp() - file.modified_s
                if file.area == "derived":
                    if age_s >= derived_grace_s and self._remove(file.path):
                        removed.append(file.path)
                elif age_s >= grace_s:
                    (adopted if self._adopt(reader, file.path, forward) else unreadable).append(file.path)
        n_rows, missing, _ = self._check_rows(verify=False)
        found = Findings(
            n_files=n_files,
            n_rows=n_rows,
            swept=swept,
            adopted=tuple(adopted),
            unreadable=tuple(unreadable),
            removed=tuple(removed),
            missing=tuple(missing),
        )
        self._tell(found, now)
        return found

    def fsck(self, *, verify: bool = False) -> Findings:
        """Look without changing anything; ``verify`` reads every file and checks its digest (R13)."""
        unknown: list[str] = []
        n_files = 0
        for files in _pages_of(self._spool.walk()):
            n_files += len(files)
            unknown += [f.path for f in self._without_row(files)]
        n_rows, missing, corrupt = self._check_rows(verify=verify)
        return Findings(
            n_files=n_files,
            n_rows=n_rows,
            unknown=tuple(unknown),
            missing=tuple(missing),
            corrupt=tuple(corrupt),
        )

    def _without_row(self, files: list[SpoolFile]) -> list[SpoolFile]:
        paths = [f.path for f in files]
        with self._db.read() as connection:
            known = set(
                chain.from_iterable(
                    connection.execute(select(t.path).where(t.path.in_(paths))).scalars()
                    for t in (*_TABLES, TrashRow)
                )
            )
        return [f for f in files if f.path not in known]

    def _adopt(self, reader: Reader, relative: str, forward: Forward | None) -> bool:
        found = reader(self._spool.path(relative), relative)
        if found is None or found.path != relative:
            return False
        if spool_path(found.series_uid, found.sop_instance_uid, found.sha256) != relative:
            return False
        self._spool.sync_dirs([relative])  # its writer died; perhaps before it had done so
        self._reception.adopt(found, forward=forward)
        return True

    def _remove(self, relative: str) -> bool:
        with self._db.write() as connection:
            own_files(connection)
            if is_known(connection, relative):
                return False
            self._spool.remove(relative)
            return True

    def _check_rows(self, *, verify: bool) -> tuple[int, list[str], list[str]]:
        n_rows = 0
        missing: list[str] = []
        corrupt: list[str] = []
        for table in _TABLES:
            for page in self._pages(table):
                n_rows += len(page)
                lost = [row.path for row in page if not self._spool.exists(row.path)]
                missing += self._still(table, lost)
                if verify:
                    whole = [row for row in page if row.path not in lost]
                    bad = [r.path for r in whole if not self._spool.verify(r.path, r.offset, r.sha256)]
                    corrupt += self._still(table, bad)
        return n_rows, list(dict.fromkeys(missing)), list(dict.fromkeys(corrupt))

    def _pages(self, table: Any) -> Iterator[list[Any]]:
        last = 0
        while True:
            statement = (
                select(table.id, table.path, table.offset, table.sha256)
                .where(table.id > last)
                .order_by(table.id)
                .limit(_PAGE)
            )
            with self._db.read() as connection:
                page = list(connection.execute(statement))
            if not page:
                return
            yield page
            last = page[-1].id

    def _still(self, table: Any, paths: list[str]) -> list[str]:
        """Those of the paths that a row still speaks of: retention may have been at work meanwhile."""
        if not paths:
            return []
        with self._db.read() as connection:
            return list(connection.execute(select(table.path).where(table.path.in_(paths))).scalars())

    def _tell(self, found: Findings, at: datetime) -> None:
        with self._db.write() as connection:
            _event(connection, "critical", "spool.file_missing", found.missing, at)
            _event(connection, "error", "spool.file_unreadable", found.unreadable, at)
            _event(connection, "warning", "spool.file_adopted", found.adopted, at)


def _pages_of(files: Iterator[SpoolFile]) -> Iterator[list[SpoolFile]]:
    while page := list(islice(files, _PAGE)):
        yield page


def _event(
    connection: Connection, level: events.Level, name: str, paths: tuple[str, ...], at: datetime
) -> None:
    if paths:
        events.add(connection, level, name, {"n": len(paths), "paths": list(paths[:_TOLD])}, at)
