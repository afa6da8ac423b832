"""Whether database and spool are where they should be, asked before anything is made in their place.

A command in the wrong folder, or a volume that is not mounted yet, finds nothing where a node's data should be. What
is made there instead looks like a node that has never seen a scanner.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from node.errors import StoreError
from node.store.db import Database
from node.store.tables import ConflictRow, DerivedInstanceRow, InstanceRow


def sqlite_file(database_url: str) -> Path | None:
    """The file of a SQLite database (absolute); None for any other, and for an address that is none."""
    try:
        url = make_url(database_url)
    except SQLAlchemyError:
        return None
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database).absolute()


def require_database(database_url: str) -> None:
    """Refuse a SQLite database that is not there yet.

    Raises
    ------
    StoreError
    """
    file = sqlite_file(database_url)
    if file is not None and not file.exists():
        raise StoreError(
            f"there is no database at {file}",
            hint="run this where the node runs, as its user; the first `luminode serve` makes one",
            retryable=False,
        )


def require_spool(database: Database, root: Path) -> None:
    """Refuse a folder that was never a spool where the database knows of files in it.

    What is received into the folder below a volume that comes later would be gone when it is there.

    Raises
    ------
    StoreError
    """
    if (root / "tmp").is_dir():
        return
    with database.read() as connection:
        wanted = any(
            connection.execute(select(t.id).limit(1)).first() is not None
            for t in (InstanceRow, DerivedInstanceRow, ConflictRow)
        )
    if wanted:
        raise StoreError(
            f"the database knows of files in the spool, and {root.absolute()} is none",
            hint="is its volume mounted, is this the folder where the node runs? If all its files are lost, make the "
            "folder `tmp` in it: the node then goes on with an empty spool",
            retryable=False,
        )


def require_owner(*places: Path) -> None:
    """Refuse that root makes files among those of another user, who could then not use them.

    Parameters
    ----------
    places
        What will be written to, or made.

    Raises
    ------
    StoreError
    """
    if os.geteuid() != 0:
        return
    for place in places:
        there = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
        owner = there.stat().st_uid
        if owner != 0:
            name = _name(owner)
            raise StoreError(
                f"{there} belongs to {name}, and this is root: the node could not use what root makes there",
                hint=f"run it as that user: sudo -u {name} ...",
                retryable=False,
            )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
