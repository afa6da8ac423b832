"""Noticing cheaply that something was committed, by any process, to be looked at."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from node.store.db import CHANNEL, Database

_POLL_S = 0.02


class Changes:
    """`Store.changes`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def ticker(self) -> Ticker:
        """A ticker for one thread; it owns a connection until it is closed."""
        return Ticker(self._db)


class Ticker:
    """Waits for commits. Not shared between threads.

    It may tell of a change that was none and it never raises: whoever waits looks for work anyway, and
    meets the database's trouble there.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._connection: Any = None
        self._version = -1

    def wait(self, timeout_s: float) -> bool:
        """Return True as soon as anything was committed since the last call, False after ``timeout_s``.

        The first call returns True at once.
        """
        try:
            if self._connection is None:
                self._open()
                return True
            return (
                self._wait_sqlite(timeout_s)
                if self._db.kind == "sqlite"
                else self._wait_postgresql(timeout_s)
            )
        except Exception:  # noqa: BLE001, RUF100 - any driver's error means: look again later
            self.close()
            time.sleep(min(timeout_s, 1.0))
            return True

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _open(self) -> None:
        if self._db.kind == "sqlite":
            self._connection = self._db.engine.raw_connection()
            self._version = self._data_version()
            return
        raw = self._db.engine.raw_connection()
        self._connection = raw.driver_connection
        raw.detach()  # it is closed with the ticker, not given back
        self._connection.autocommit = True
        self._connection.execute(f"LISTEN {CHANNEL}")

    def _data_version(self) -> int:
        return int(self._connection.cursor().execute("PRAGMA data_version").fetchone()[0])

    def _wait_sqlite(self, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while True:
            version = self._data_version()
            if version != self._version:
                self._version = version
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(_POLL_S, left))

    def _wait_postgresql(self, timeout_s: float) -> bool:
        heard = False
        for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
            heard = True
        if heard:  # one look answers all that came together
            for _ in self._connection.notifies(timeout=0):
                pass
        return heard
