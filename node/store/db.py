"""Connections and transactions: the one place that knows which database is underneath.

SQLite: write-ahead log with ``synchronous=FULL`` (NORMAL may roll a commit back on power loss,
reliability.md M1); readers take a snapshot, writers ``BEGIN IMMEDIATE`` so that a lock is waited for
(``busy_timeout``) instead of failing at the first write. PostgreSQL: psycopg 3, ``synchronous_commit``
on, connections tested before use, statements and locks bounded in time.

Every error of a driver becomes a `StoreError` whose text holds no value of any row.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, Engine, PoolProxiedConnection, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from node.errors import OutOfSpace, StoreError
from node.failpoints import failpoint
from node.store.disk import make_folders, refuse_network_filesystem
from node.store.reserve import Reserve

BUSY_TIMEOUT_S = 30.0
CHANNEL = "luminode"
_RETRY = frozenset({"40001", "40P01", "23505"})
"""serialization_failure, deadlock_detected, unique_violation (another was first): run the whole again."""

_AGAIN = 5

_HELD_S = 0.1
_PAUSE_S = 0.12

T = TypeVar("T")


def to_json(value: Any) -> str:
    """Compact JSON in ASCII, so that no character can upset a database's text type."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


class Database:
    """An engine with two kinds of transaction; safe to share between threads, not over a fork.

    Parameters
    ----------
    url
        ``sqlite:///path`` or ``postgresql+psycopg://...``.
    busy_timeout_s
        How long a writer of SQLite waits for another.

    Raises
    ------
    StoreError
        The address is of neither kind, or SQLite would lie on a network file system.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        try:
            self.url: URL = make_url(url)
        except SQLAlchemyError:
            raise StoreError(
                "the database's address cannot be read", hint=_ADDRESSES, retryable=False
            ) from None
        self.reserve: Reserve | None = None
        self._express: list[PoolProxiedConnection] = []  # not given back: that takes longer than a row
        kind = self.url.get_backend_name()
        if kind == "sqlite":
            self.reserve = Reserve(Path(f"{self.url.database}.reserve"))
            self.kind: Literal["sqlite", "postgresql"] = "sqlite"
            self.engine = _sqlite(self.url, busy_timeout_s)
        elif kind == "postgresql":
            self.kind = "postgresql"
            self.engine = _postgresql(self.url)
        else:
            raise StoreError(f"{kind} is no database that this node knows", hint=_ADDRESSES, retryable=False)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, on one snapshot."""
        with self._typed(), self.engine.connect() as raw:
            connection = raw.execution_options(**_SNAPSHOT[self.kind])
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes; committed durably when the block ends without an exception."""
        with self._typed(), self.engine.connect() as raw:
            connection = raw.execution_options(luminode_write=True)
            with connection.begin():
                yield connection
                if self.kind == "postgresql":
                    connection.execute(_NOTIFY)
                failpoint("store.before_commit")
            failpoint("store.committed")

    @contextmanager
    def express(self) -> Iterator[sqlite3.Cursor]:
        """As `write`, of SQLite only, on a cursor of the driver: what runs for every instance that arrives.

        Between BEGIN and COMMIT, SQLAlchemy's own work takes longer than the database's.
        """
        with self._typed():
            try:
                connection = self._kept()
                try:
                    cursor: Any = connection.cursor()
                    cursor.execute("BEGIN IMMEDIATE")
                    yield cursor
                    failpoint("store.before_commit")
                    connection.commit()
                    cursor.close()
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):  # closing it tries again, and drops it
                        connection.rollback()
                    connection.close()
                    raise
                self._express.append(connection)
            except sqlite3.Error as error:
                raise DBAPIError("", None, error) from error
            failpoint("store.committed")

    def _kept(self) -> PoolProxiedConnection:
        try:
            return self._express.pop()
        except IndexError:
            return self.engine.raw_connection()

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a write transaction, again if another got in its way."""
        for again in range(_AGAIN):
            try:
                with self.write() as connection:
                    return work(connection)
            except StoreError as error:
                if again == _AGAIN - 1 or getattr(error, "code", "") not in _RETRY:
                    raise
        raise AssertionError("unreachable")

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            with _typed():
                yield
        except OutOfSpace:
            if self.reserve is not None:
                self.reserve.release()  # this one is refused; the next, which may be about it, finds room
            raise

    def breath(self) -> Breath:
        """Pauses for a long task of many transactions, where this database needs them."""
        return Breath(_PAUSE_S if self.kind == "sqlite" else 0.0)

    def close(self) -> None:
        while self._express:
            self._express.pop().close()
        self.engine.dispose()


class Breath:
    """Lets others write between the transactions of a long task.

    SQLite has no queue of writers: who waits looks again every 100 ms at worst, and one transaction right
    after the other would keep a scanner waiting until all are done.
    """

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._began = time.monotonic()

    def take(self) -> None:
        """To be called between two transactions: pauses if the last pause was a while ago."""
        if self._pause_s and time.monotonic() - self._began >= _HELD_S:
            time.sleep(self._pause_s)
            self._began = time.monotonic()


_ADDRESSES = "use sqlite:///var/luminode.db or postgresql+psycopg://user@host/database"
_SNAPSHOT: dict[str, dict[str, Any]] = {
    "sqlite": {},
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}
_NOTIFY = text(f"SELECT pg_notify('{CHANNEL}', '')")


def _to_wal(cursor: sqlite3.Cursor, patience_s: float) -> None:
    """Give a new database its log. SQLite does not wait for others here, whatever ``busy_timeout`` says."""
    until = time.monotonic() + patience_s
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(0.01)


def _sqlite(url: URL, busy_timeout_s: float) -> Engine:
    if not url.database or url.database == ":memory:":
        raise StoreError("a database in memory would forget everything", hint=_ADDRESSES, retryable=False)
    path = Path(url.database)
    make_folders(path.parent)  # SQLite syncs names in this folder, and none above it
    refuse_network_filesystem(path.parent)
    engine = create_engine(
        url,
        hide_parameters=True,
        json_serializer=to_json,
        connect_args={"timeout": busy_timeout_s, "check_same_thread": False},
        pool_size=16,
        max_overflow=112,
        pool_timeout=BUSY_TIMEOUT_S,
    )

    @event.listens_for(engine, "do_connect")
    def _connects(_dialect: Any, _record: Any, _arguments: Any, _named: Any) -> None:
        # SQLite would make it readable for others; its log gets the mode that the database has.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # no implicit BEGIN: the driver's is DEFERRED
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(busy_timeout_s * 1000)}")
        _to_wal(cursor, busy_timeout_s)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA trusted_schema=OFF")
        cursor.execute("PRAGMA journal_size_limit=67108864")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("luminode_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    if url.get_driver_name() != "psycopg":
        url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(
        url,
        hide_parameters=True,
        json_serializer=to_json,
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=24,
        pool_timeout=BUSY_TIMEOUT_S,
        pool_recycle=1800,
        connect_args={"connect_timeout": 5, "tcp_user_timeout": 15000, "application_name": "luminode"},
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SET synchronous_commit = on; SET statement_timeout = '60s';"
                " SET lock_timeout = '30s'; SET idle_in_transaction_session_timeout = '120s';"
                # No page is worth starting processes for, and indices are in memory or on a disk without a head.
                " SET timezone = 'UTC'; SET max_parallel_workers_per_gather = 0; SET random_page_cost = 1.1"
            )
        connection.commit()

    return engine


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _store_error(error) from None
    except StatementError as error:  # a value of the caller that no column takes: our defect, as it was
        raise (error.orig or error) from None
    except PoolTimeout:
        raise StoreError("no database connection became free in time") from None


def _store_error(error: DBAPIError) -> StoreError:
    orig = error.orig
    state = getattr(orig, "sqlstate", None)
    code = str(state or getattr(orig, "sqlite_errorname", "") or "")
    # a driver's whole text may quote the row (PostgreSQL's DETAIL): only its primary message is told
    told = getattr(getattr(orig, "diag", None), "message_primary", None) or (
        str(orig) if state is None and "sqlite" in type(orig).__module__ else ""
    )
    if not told:
        told, hint = next(((what, do) for said, what, do in _CANNOT_CONNECT if said in str(orig)), ("", ""))
        if told:
            return StoreError(f"the database {told}", hint=hint)
    raised = _KINDS.get(code, _OTHER)(f"the database refused: {type(orig).__name__} {code} {told}".strip())
    raised.code = code  # type: ignore[attr-defined]
    return raised


_CANNOT_CONNECT = (
    (
        "password authentication failed",
        "does not take the password",
        "check the user and password of store.database",
    ),
    (
        "no password supplied",
        "wants a password",
        "write ${DB_PASSWORD} in store.database, and set it for the node",
    ),
    (
        "Connection refused",
        "is not there: nobody listens",
        "start it, or check the host and port of store.database",
    ),
    (
        "No such file or directory",
        "is not there: nobody listens",
        "start it, or check the host of store.database",
    ),
)
"""What libpq says where there is no connection yet, and what of that may be told: the whole quotes the address."""


def _full(told: str) -> StoreError:
    return OutOfSpace(told, hint="free space where the database lies")


def _damaged(told: str) -> StoreError:
    hint = (
        "the database is damaged: restore a backup, or run `luminode db rebuild`, which sets it aside and "
        "records anew what is in the spool"
    )
    return StoreError(told, hint=hint, retryable=False)


_OTHER: Callable[[str], StoreError] = StoreError
_KINDS: dict[str, Callable[[str], StoreError]] = {
    "SQLITE_FULL": _full,
    "53100": _full,  # disk_full
    "SQLITE_NOTADB": _damaged,
    "SQLITE_CORRUPT": _damaged,
    "SQLITE_CORRUPT_INDEX": _damaged,
    "XX001": _damaged,  # data_corrupted
    "XX002": _damaged,  # index_corrupted
}
