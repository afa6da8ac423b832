"""Bringing the schema up to date with Alembic, one upgrader at a time, all or nothing.

Both databases can roll back what changes a schema, so an upgrade that is interrupted at any statement
has not happened (R56).
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from node.errors import SchemaTooNew, SchemaTooOld
from node.store.db import Database

HEAD = "0006"
KNOWN = frozenset({"0001", "0002", "0003", "0004", "0005", "0006"})
_UPGRADE_LOCK = 0x4C554D00
FOLDER = Path(__file__).parent / "migrations"


def upgrade(database: Database) -> None:
    """Make the schema current; cheap when it is.

    Raises
    ------
    SchemaTooNew
        The database was written by a newer Luminode; nothing is changed.
    """
    with database.read() as connection:
        if current(connection) == HEAD:
            return
    with database.write() as connection:  # SQLite: this holds the write lock from here on
        if database.kind == "postgresql":
            connection.execute(
                text("SET LOCAL statement_timeout = 0")
            )  # an index of a large table takes its time
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        if _checked(connection) != HEAD:
            _alembic(connection)


def require_current(database: Database) -> None:
    """Check the schema without changing it.

    Raises
    ------
    SchemaTooNew
    SchemaTooOld
        It is older than this Luminode's, or not there.
    """
    with database.read() as connection:
        if _checked(connection) != HEAD:
            raise SchemaTooOld(
                "the database's schema is older than this Luminode",
                hint="stop the node, then start it, or run `luminode db upgrade`; its own version can still back it up",
            )


def current(connection: Connection) -> str:
    """Revision of the schema, "" for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none() or ""


def _checked(connection: Connection) -> str:
    found = current(connection)
    if found and found not in KNOWN:
        raise SchemaTooNew(
            f"the database has schema {found}, which this Luminode (schema {HEAD}) does not know",
            hint="install the Luminode that wrote it, or a newer one",
        )
    return found


def _alembic(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
