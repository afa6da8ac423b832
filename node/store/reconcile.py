"""Comparing the spool with the database, at start and daily."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from node.model import Instance
from node.store.db import Database
from node.store.reception import Reception
from node.store.spool import Spool

Reader = Callable[[Path, str], Instance | None]
"""(absolute path, relative path) -> the instance as it would have been received; None if unreadable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a scan found and did.

    ``missing`` are relative paths of rows whose file is gone: CRITICAL. ``adopted`` had no row and were
    recorded. ``unreadable`` had no row and could not be read; they stay where they are. ``corrupt`` do
    not match their digest (only where asked for).
    """

    n_files: int = 0
    n_rows: int = 0
    swept: int = 0
    adopted: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    corrupt: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.missing or self.corrupt or self.unreadable)


class Reconcile:
    """`Store.reconcile`."""

    def __init__(self, database: Database, spool: Spool, reception: Reception) -> None:
        self._db = database
        self._spool = spool
        self._reception = reception

    def scan(self, reader: Reader, now: datetime, *, grace_s: float = 300.0) -> Findings:
        """Sweep what dead writers left, adopt files without a row, look for rows without a file.

        ``grace_s``: files younger than this may be on their way to their row and are left alone (0 at
        the start of a node that is alone).
        """
        raise NotImplementedError

    def fsck(self, *, verify: bool = False) -> Findings:
        """The same without changing anything; ``verify`` reads every file and checks its digest."""
        raise NotImplementedError
