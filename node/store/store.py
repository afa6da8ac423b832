"""The store as its users see it: one object with a room for each task."""

from __future__ import annotations

from pathlib import Path

from node.errors import StoreError
from node.store.backup import backup_sqlite
from node.store.changes import Changes
from node.store.commitments import Commitments
from node.store.configs import Configs
from node.store.db import Database
from node.store.deliveries import Deliveries
from node.store.events import Events
from node.store.jobs import Jobs
from node.store.migrate import require_current, upgrade
from node.store.outlooks import Outlooks
from node.store.place import require_database, require_spool
from node.store.pledges import Pledges
from node.store.provenance import ProvenanceStore
from node.store.reception import Reception
from node.store.reconcile import Reconcile
from node.store.retention import Retention
from node.store.series import SeriesStore
from node.store.spool import Spool
from node.store.turns import Turns


class Store:
    """Database and spool together. Thread-safe; each process opens its own (never over a fork).

    Attributes
    ----------
    spool, reception, series, jobs, deliveries, provenance, configs, retention, reconcile, events,
    changes, turns, outlooks, commitments, pledges
        See the modules of the same names.
    """

    def __init__(self, database: Database, spool: Spool) -> None:
        self.database = database
        self.spool = spool
        self.reception = Reception(database, spool)
        self.series = SeriesStore(database)
        self.jobs = Jobs(database, spool)
        self.deliveries = Deliveries(database)
        self.provenance = ProvenanceStore(database)
        self.configs = Configs(database)
        self.events = Events(database)
        self.changes = Changes(database)
        self.retention = Retention(database, spool)
        self.reconcile = Reconcile(database, spool, self.reception, self.retention)
        self.turns = Turns(database)
        self.outlooks = Outlooks(database)
        self.commitments = Commitments(database)
        self.pledges = Pledges(database)

    @classmethod
    def open(cls, database_url: str, spool_root: Path | str, *, create: bool = True) -> Store:
        """Open, and with ``create`` make or upgrade, the database and the spool.

        Parameters
        ----------
        database_url
            ``sqlite:///var/luminode.db`` or ``postgresql+psycopg://...``.
        spool_root
            Folder of the spool.
        create
            Bring the schema up to date, and make the database if there is none; False only checks that it is there.

        Raises
        ------
        SchemaTooNew
            A newer Luminode wrote this database.
        SchemaTooOld
            Without ``create``: it has an older schema.
        StoreError
            The database or the spool cannot be used; without ``create``, or where the database knows of files in the
            spool: it is not there.
        """
        if not create:
            require_database(database_url)
        database = Database(database_url)
        try:
            if create:
                upgrade(database)
            else:
                require_current(database)
            require_spool(database, Path(spool_root))
            return cls(database, Spool(Path(spool_root)))
        except BaseException:
            database.close()
            raise

    def backup(self, target: Path) -> None:
        """Copy the database while it is in use; what was committed before the call is in the copy.

        Raises
        ------
        StoreError
            The database is PostgreSQL (it has its own tools), or the copy cannot be written.
        """
        if self.database.kind != "sqlite":
            raise StoreError("PostgreSQL is backed up by its own tools", hint="pg_dump", retryable=False)
        backup_sqlite(self.database, target)

    def close(self) -> None:
        """Give all connections back; harmless when called twice."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
