"""Tables, queue, records, provenance, spool, migrations: the only room that speaks SQL or keeps bytes."""

from __future__ import annotations

from node.store.changes import Ticker
from node.store.configs import AppliedConfig
from node.store.deliveries import DeliveryDetail
from node.store.events import Event
from node.store.jobs import JobDetail, NewJob
from node.store.outbox import NewDerived
from node.store.provenance import Report, Story
from node.store.reception import Recorded
from node.store.reconcile import Findings
from node.store.retention import Purgeable, Purged
from node.store.series import Carried
from node.store.spool import Scratch, Spool, SpoolFile, SpoolWriter, spool_path
from node.store.store import Store

__all__ = [
    "AppliedConfig",
    "Carried",
    "DeliveryDetail",
    "Event",
    "Findings",
    "JobDetail",
    "NewDerived",
    "NewJob",
    "Purgeable",
    "Purged",
    "Recorded",
    "Report",
    "Scratch",
    "Spool",
    "SpoolFile",
    "SpoolWriter",
    "Store",
    "Story",
    "Ticker",
    "spool_path",
]
