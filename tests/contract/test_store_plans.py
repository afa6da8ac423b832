"""No statement that runs for every instance, claim or page reads a table from end to end."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import event

from node.store import Store
from node.store.figures import FigureStore, Place, Settled
from tests.storing import NOW, after, delivered, header, outbox, received

GROWING = (
    "instance", "derived_instance", "outcome", "conflict", "provenance_subject", "trash", "association", "carried",
    "series", "job", "derived", "delivery", "event", "provenance",
)  # fmt: skip
"""Tables with a row for every instance, association or series: of these not even a part may be read in vain."""


def test_no_statement_scans_what_grows_with_every_instance(sqlite_store: Store) -> None:
    store = sqlite_store
    plans: dict[str, list[str]] = {}

    def explain(_c: Any, cursor: Any, statement: str, parameters: Any, _ctx: Any, many: bool) -> None:
        if statement.split()[0] in ("SELECT", "UPDATE", "DELETE", "INSERT") and statement not in plans:
            values = parameters[0] if many else parameters
            found = cursor.connection.execute("EXPLAIN QUERY PLAN " + statement, values)
            plans[statement] = [row[3] for row in found]

    event.listen(store.database.engine, "before_cursor_execute", explain)
    traced: list[str] = []
    event.listen(store.database.engine, "checkout", lambda c, *_: c.set_trace_callback(traced.append))

    outbox(store)
    delivery = store.deliveries.claim("d", 30, NOW)
    assert delivery is not None
    store.deliveries.finish(delivery.id, "d", 1, NOW, outcomes=delivered(store, delivery, "d"))
    store.reception.record([received(store, 1)])
    store.reception.record([received(store, 1, data=b"o")], duplicates="replace")
    store.reception.record([received(store, 2, data=b"o")])
    store.reception.record([received(store, 7), received(store, 8)])
    store.reception.known_path("x")
    waiting = store.series.unindexed()
    store.series.index([(i, header(one, 1)) for i, one in waiting])
    store.series.close(2, "count", NOW, count=3)
    store.series.headers(1, all_generations=True)
    store.series.instances(1)
    store.series.carried(1)
    store.series.studies_of("a1")
    store.series.find("1.2.3.1.1")
    store.provenance.story("1.2.3.1.1")
    store.deliveries.derived_of_series("1.2.3.1")
    store.deliveries.outcomes(1)
    store.deliveries.detail(1)
    store.jobs.requeue_expired(NOW)
    store.deliveries.waiting("pacs")
    store.deliveries.readdress("pacs", {"kind": "dimse"}, NOW)
    store.pledges.due(NOW)
    store.pledges.claim("pacs", "2.25.1", "p", 60, NOW)
    store.pledges.give_up(NOW)
    figures = FigureStore(store.database)
    figures.look(Settled(series=0), NOW)
    figures.history(figures.begin()[1], 10)
    figures.history(Place(id=0, hash=""), 10)
    store.reconcile.fsck()
    store.retention.purge(received_before=after(1), derived_before=after(1), at=NOW)

    assert len(plans) > 60
    scans = {
        " ".join(statement.split()): plan
        for statement, steps in plans.items()
        for plan in steps
        if re.fullmatch(rf"SCAN ({'|'.join(GROWING)})( .*)?", plan) and "USING" not in plan
    }
    assert scans == {}
    express = [s for s in traced if s.startswith("SELECT 1 FROM instance WHERE")]
    assert express, "what goes to the driver as it is, is looked at too"
    with store.database.read() as connection:
        for statement in dict.fromkeys(express):
            steps = [row[3] for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement)]
            assert all("USING" in step for step in steps), steps
