"""A new database from the spool, where the old one is damaged (R52)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from node.errors import StoreError
from node.housekeep import read_orphan
from node.store import Findings, Store
from node.store.backup import sound
from node.store.db import Database
from node.store.originals import Forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """``aside`` is the damaged database; ``findings`` tell what of the spool was recorded anew."""

    aside: Path
    findings: Findings


def rebuild(database_url: str, spool: Path, at: datetime, *, forward: Forward | None = None) -> Rebuilt:
    """Set a damaged SQLite database aside, and record anew what is in the spool.

    What had been received and not purged comes back as series from ``RECOVERED``; what was made of it is made
    again, with the same UIDs and bytes. The old file is kept for whoever may save records from it. Originals are
    queued anew for the destinations of ``forward``, for nobody knows any more what had been sent.

    Raises
    ------
    StoreError
        The database is sound, or is PostgreSQL, whose damage is for its own tools.
    """
    database = Database(database_url)
    try:
        if database.kind != "sqlite":
            hint = "restore it by its own tools; the spool is adopted at the start of the node"
            raise StoreError("only SQLite is rebuilt here", hint=hint, retryable=False)
        if sound(database):
            raise StoreError("the database is sound", hint="there is nothing to rebuild", retryable=False)
    finally:
        database.close()
    place = Path(str(database.url.database))
    stamp = at.strftime("%Y%m%d-%H%M%S")
    aside = place.with_name(f"{place.name}.damaged-{stamp}")
    for end in ("-wal", "-shm", ""):
        part = place.with_name(place.name + end)
        if part.exists():
            part.rename(aside.with_name(aside.name + end))
    with Store.open(database_url, spool) as store:
        findings = store.reconcile.scan(read_orphan, at, grace_s=0.0, derived_grace_s=0.0, forward=forward)
        store.events.add("warning", "database.rebuilt", {"adopted": len(findings.adopted)}, at)
    return Rebuilt(aside=aside, findings=findings)
