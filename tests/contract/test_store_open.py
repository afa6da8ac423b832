"""Opening a store: schema, migrations, refusals."""

from __future__ import annotations

from node.store import Store


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert store.series.open_series() == []
    assert store.jobs.list() == []
    assert store.provenance.verify().ok
