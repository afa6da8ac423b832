"""Every look at the records that a person or the running node takes again and again.

``PAGES`` are the verbs of the command line that show what is on record, ``ROUNDS`` what the node's processes ask
between two pieces of work. Each is called on a store that tests/archive.py filled, and leaves it as it was but for a
lease, an event or a row that says when it was called.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

from node.app import roles
from node.app.engines import cards
from node.cli import admin, records
from node.config.load import LoadedConfig, parse
from node.enhance.worker import take_back
from node.gather.gatherer import Gatherer, InForce
from node.housekeep import Housekeeper
from node.model import DeliveryState
from node.store import Store, archive
from node.store.spool import SpoolFile
from node.store.tables import InstanceRow
from tests.archive import Archive
from tests.storing import associated, received

CONFIG = """\
node: {accept_from: [CT1]}
store: {spool: var/spool}
series: {quiet_after: 30s, give_up_after: 1h, settle: 1s}
engines: {ct: {engine: ct-nlm, strength: 0.4}}
destinations: {pacs: {kind: folder, path: out}}
rules:
  - {name: chest, when: {Modality: CT}, enhance: ct, send_to: [pacs]}
  - {name: the rest, when: any, ignore: true}
"""


@dataclass(slots=True)
class Desk:
    """An archive with whoever looks at it: what they keep between two looks is kept here. ``limit``: rows of a list."""

    store: Store
    archive: Archive
    folder: Path
    loaded: LoadedConfig = field(default_factory=lambda: parse(CONFIG))
    limit: int = 50
    n_received: int = 0
    _gatherer: Gatherer | None = None

    @property
    def config(self) -> Path:
        path = self.folder / "config.yaml"
        if not path.exists():
            path.write_text(CONFIG)
        return path

    @property
    def gatherer(self) -> Gatherer:
        if self._gatherer is None:
            in_force = InForce(config=self.loaded.config, digest=self.loaded.digest)
            self._gatherer = Gatherer(self.store, lambda: in_force, cards())
        return self._gatherer

    def verb(self, call: Callable[..., None], *given: Any, **named: Any) -> None:
        """A verb of the command line on the open store, as JSON."""
        out = io.StringIO()
        with (
            patch.object(records, "opened", lambda _: contextlib.nullcontext(self.store)),
            patch.object(admin, "opened", lambda _: contextlib.nullcontext(self.store)),
            contextlib.redirect_stdout(out),
        ):
            call(*given, config=self.config, json=True, **named)
        assert out.getvalue().strip() not in ("", "[]"), "there is nothing to show"


Look: TypeAlias = Callable[[Desk], object]


def _listed(verb: Callable[..., None], *states: str) -> Look:
    return lambda desk: desk.verb(verb, state=list(states), limit=desk.limit)


def _shown(verb: Callable[..., None], of: str) -> Look:
    return lambda desk: desk.verb(verb, getattr(desk.archive, of))


def _told(of: str) -> Look:
    return lambda desk: desk.verb(records.provenance, getattr(desk.archive, of), verify=False)


PAGES: Mapping[str, Look] = {
    "series list": _listed(records.series_list),
    "series list -s routed": _listed(records.series_list, "routed"),
    "series list -s routed -s rejected": _listed(records.series_list, "routed", "rejected"),
    "series show": _shown(records.series_show, "routed"),
    "series show (forwarded)": _shown(records.series_show, "forwarded"),
    "series show (open)": _shown(records.series_show, "open"),
    "jobs list": _listed(records.jobs_list),
    "jobs list -s done": _listed(records.jobs_list, "done"),
    "jobs list -s held -s failed": _listed(records.jobs_list, "held", "failed"),
    "jobs show": _shown(records.jobs_show, "job"),
    "deliveries list": _listed(records.deliveries_list),
    "deliveries list -s sent": _listed(records.deliveries_list, "sent"),
    "deliveries list -s pending -s sent": _listed(records.deliveries_list, "pending", "sent"),
    "deliveries show": _shown(records.deliveries_show, "delivery"),
    "deliveries show (originals)": _shown(records.deliveries_show, "originals"),
    "provenance STUDY": _told("study_uid"),
    "provenance SERIES": _told("series_uid"),
    "provenance INSTANCE": _told("sop_uid"),
    "provenance DERIVED SERIES": _told("derived_uid"),
    "provenance DERIVED INSTANCE": _told("derived_sop_uid"),
    "config history": lambda desk: desk.verb(admin.config_history),
}
"""By what a person types."""


def _a_moment_later(desk: Desk) -> Any:
    return desk.archive.until + timedelta(seconds=1)


def _claim_job(desk: Desk) -> None:
    now = _a_moment_later(desk)
    job = desk.store.jobs.claim("bench", 60, now)
    assert job is not None
    assert desk.store.jobs.release(job.id, "bench", job.attempt, job.not_before)


def _claim_delivery(desk: Desk) -> None:
    now, deliveries = _a_moment_later(desk), desk.store.deliveries
    assert deliveries.claim("bench", 60, now, destination="pacs", originals=True) is None
    one = deliveries.claim("bench", 60, now, destination="pacs")
    assert one is not None
    assert deliveries.cargo(one) is not None
    assert deliveries.release(one.id, "bench", one.attempt, one.not_before)


def _orphans(desk: Desk) -> None:
    desk.store.deliveries.list([DeliveryState.SENDING], limit=1000)


def _house(desk: Desk) -> Housekeeper:
    return Housekeeper(desk.store, lambda: desk.loaded.config, owner="bench")


def _retention(desk: Desk) -> None:
    before = desk.archive.before
    done = desk.store.retention.purge(received_before=before, derived_before=before, at=desk.archive.until)
    assert done.n_series == done.n_derived == 0


def _reconcile(desk: Desk) -> None:
    """One page of files against the rows, and one of rows."""
    files = [SpoolFile(path=p, area="received", size=1, modified_s=0.0) for p in desk.archive.paths]
    assert desk.store.reconcile._without_row(files) == []
    assert len(next(iter(desk.store.reconcile._pages(InstanceRow)))) > 0


def _turn(desk: Desk) -> None:
    now = _a_moment_later(desk)
    desk.store.turns.take("retention", "bench", now, every_s=0.0)
    desk.store.turns.done("retention", "bench", now)


def receive(desk: Desk, n: int = 1) -> Callable[[], object]:
    """What records the next instances of a series of their own; their files are there when it is called."""
    desk.n_received += n
    if desk.n_received == n:
        associated(desk.store, "bench")
    batch = [
        received(desk.store, desk.n_received - k, series=7777, association="bench", at=_a_moment_later(desk))
        for k in range(n)
    ]
    return lambda: desk.store.reception.record(batch, receiver="r1")


ROUNDS: Mapping[str, Look] = {
    "gather: a round": lambda desk: desk.gatherer.step(_a_moment_later(desk)),
    "worker: claim and put back": _claim_job,
    "worker: take back at its start": lambda desk: take_back(desk.store, desk.archive.until),
    "worker: what may be begun early": lambda desk: desk.store.outlooks.list(),
    "deliver: what is due": lambda desk: desk.store.deliveries.due_queues(_a_moment_later(desk)),
    "deliver: claim, look, put back": _claim_delivery,
    "deliver: orphans": _orphans,
    "leases": lambda desk: _house(desk).leases(),
    "a turn": _turn,
    "retention finds nothing": _retention,
    "reconcile: a page": _reconcile,
    "daily report": lambda desk: _house(desk).report(),
    "health: the database": lambda desk: roles._database(desk.store),
    "receiver: what it had open when it died": lambda desk: desk.store.reception.lose_open_associations(
        desk.archive.until, receiver="nobody"
    ),
    "clock put back": lambda desk: (
        desk.store.jobs.shorten_pauses(desk.archive.until - timedelta(seconds=5), -1.0),
        desk.store.deliveries.shorten_pauses(desk.archive.until, -1.0),
    ),
    "receiver: an instance": lambda desk: receive(desk)(),
}
"""By who asks, and what for."""

WHOLE: Mapping[str, tuple[Look, str]] = {
    "provenance --verify": (
        lambda desk: desk.verb(records.provenance, None, verify=True),
        "whether the chain holds shows only on the way through all of it",
    ),
    "spool fsck": (
        lambda desk: desk.store.reconcile.fsck(),
        "every file is compared with every record, a page at a time",
    ),
    "backup": (
        lambda desk: archive._wanted(desk.store.database, False),
        "what is not done is found by looking at all that is here",
    ),
}
"""What reads everything because that is what it is for, with the reason."""
