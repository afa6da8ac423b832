"""What all associations of one receiver share."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from node.receive.alarm import Alarm
from node.receive.commit import GroupCommit
from node.receive.guard import Gate
from node.receive.known import Known
from node.receive.terms import Terms
from node.store.commitments import Commitments
from node.store.pledges import Pledges
from node.store.spool import Spool


@dataclass(slots=True, kw_only=True)
class House:
    """``terms`` is replaced as a whole when the configuration changes.

    ``stop_at`` is set when the node is stopping: associations end as soon as no message is under way, and by
    this time (seconds, monotonic) in any case.
    """

    terms: Terms
    spool: Spool
    commit: GroupCommit
    commitments: Commitments
    pledges: Pledges
    gate: Gate
    alarm: Alarm
    clock: Callable[[], datetime]
    known: Known = field(default_factory=Known)
    tls: ssl.SSLContext | None = None
    stop_at: float | None = None
