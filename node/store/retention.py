"""Removing what is done and old. What is not done is never removed, however full the disk is (R58)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from node.store.db import Database
from node.store.spool import Spool


@dataclass(frozen=True, slots=True, kw_only=True)
class Purgeable:
    """What `Retention.purge` would remove: series row ids, derived ids, kept-aside conflict ids."""

    series: tuple[int, ...]
    derived: tuple[int, ...]
    conflicts: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What was removed."""

    n_series: int
    n_derived: int
    n_files: int
    n_bytes: int


class Retention:
    """`Store.retention`."""

    def __init__(self, database: Database, spool: Spool) -> None:
        self._db = database
        self._spool = spool

    def purgeable(
        self, *, received_before: datetime, derived_before: datetime, limit: int = 200
    ) -> Purgeable:
        """What is done and older than that. Changes nothing."""
        raise NotImplementedError

    def purge(
        self, *, received_before: datetime, derived_before: datetime, at: datetime, limit: int = 200
    ) -> Purged:
        """Remove up to ``limit`` series of each kind; call again until nothing is removed."""
        raise NotImplementedError

    def empty_trash(self, at: datetime) -> Purged:
        """Remove files whose rows are gone (done by `purge` too; at start after a crash)."""
        raise NotImplementedError
