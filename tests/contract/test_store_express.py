"""The express lane writes what the ordinary way writes, row for row, on both databases."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from node.errors import StoreError
from node.model import Association, AssociationEnd, Instance
from node.store import Store, express
from node.store.tables import AssociationRow, CarriedRow, InstanceRow, SeriesRow
from tests.receiving import utc
from tests.senders import CT, EXPLICIT, sha256


def published(store: Store, uid: str, series: str, content: bytes, **more: Any) -> Instance:
    writer = store.spool.create()
    writer.write(content)
    writer.sync()
    digest = sha256(content)
    values = {
        "sop_class_uid": CT, "sop_instance_uid": uid, "study_uid": "1.2", "series_uid": series,
        "transfer_syntax_uid": EXPLICIT, "calling_ae": "CT1", "called_ae": "NODE", "association": "a" * 32,
        "path": writer.publish(series, uid, digest), "size": len(content), "offset": 0, "sha256": digest,
        "received_at": utc(), **more,
    }  # fmt: skip
    return Instance(**values)


def tables(store: Store) -> list[list[dict[str, Any]]]:
    with store.database.read() as connection:
        return [
            [dict(row._mapping) for row in connection.execute(select(*table.__table__.columns).order_by(*by))]
            for table, by in (
                (InstanceRow, [InstanceRow.sop_instance_uid, InstanceRow.sha256]),
                (SeriesRow, [SeriesRow.series_uid, SeriesRow.generation]),
                (CarriedRow, [CarriedRow.series_id, CarriedRow.association]),
                (AssociationRow, [AssociationRow.id]),
            )
        ]


def batches(store: Store, seed: int) -> list[list[Instance]]:
    """New ones, known ones, conflicts, twos of the same in one batch; three series, two associations."""
    choice = random.Random(seed)
    began = utc()
    out, n = [], 0
    for _ in range(12):
        batch = []
        for _ in range(choice.randint(1, 5)):
            fresh = choice.random() < 0.8
            n += fresh
            number = n if fresh else choice.randint(1, max(n, 1))
            content = b"pixels" if choice.random() < 0.8 else b"other"
            at = began + timedelta(seconds=choice.randint(0, 100))
            batch.append(
                published(
                    store, f"1.2.3.{number}", f"1.2.{number % 3}", content,
                    association=choice.choice("ab") * 32, received_at=at,
                )
            )  # fmt: skip
        out.append(batch)
    return out


def notes(at: int) -> dict[str, Any]:
    """An association that opens with a batch, and the one before the last, which ends; some say so twice."""
    began = datetime(2026, 1, 2, 3, 4, at, 5, tzinfo=UTC)
    opened = Association(
        id=f"{at:032x}", calling_ae="CT1", called_ae="LUMINODE", address="10.0.0.1", opened_at=began
    )
    ended = [(f"{one:032x}", AssociationEnd.RELEASED, began) for one in (at - 2, at - 2, at + 5)]
    return {"opened": [opened] * (1 + at % 2), "ended": ended}


@pytest.mark.parametrize("seed", [1, 2])
def test_both_ways_write_the_same(store: Store, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    all_batches = batches(store, seed)
    used: list[bool] = []
    take = express._take

    def counted(*args: Any) -> Any:
        took = take(*args)
        used.append(took is not None)
        return took

    written = []
    for lane in (counted, lambda *_: None):
        with monkeypatch.context() as patch:
            patch.setattr(express, "_take", lane)
            told = [
                [(r.kind, r.stale_path) for r in store.reception.record(batch, **notes(at), receiver="r")]
                for at, batch in enumerate(all_batches)
            ]
        written.append((told, tables(store)))
        with store.database.write() as connection:
            for table in ("carried", "conflict", "event", "instance", "series", "association"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
    assert True in used
    assert False in used

    def without_ids(rows: list[list[dict[str, Any]]]) -> Any:
        return [[{k: v for k, v in r.items() if k not in ("id", "series_id")} for r in t] for t in rows]

    assert written[0][0] == written[1][0]
    assert without_ids(written[0][1]) == without_ids(written[1][1])


def test_a_drivers_error_is_a_store_error_without_values(store: Store) -> None:
    one = published(store, "1.2.3.1", "1.2.5", b"x")
    assert store.reception.record([one])[0].kind == "new"
    two = published(store, "1.2.3.2", "1.2.5", b"x", sha256=None)
    with pytest.raises(StoreError) as raised:
        store.reception.record([two])
    assert "1.2.3.2" not in str(raised.value)
    assert [i.sop_instance_uid for s in store.series.list() for i in store.series.instances(s.id)] == [
        "1.2.3.1"
    ]


def test_a_file_leaves_the_trash_when_it_is_recorded(store: Store) -> None:
    first = published(store, "1.2.3.1", "1.2.5", b"x")
    store.reception.record([first])
    one = published(store, "1.2.3.2", "1.2.5", b"x")
    with store.database.write() as connection:
        mark = "%s" if connection.dialect.name == "postgresql" else "?"
        connection.exec_driver_sql(
            f"INSERT INTO trash (path, at) VALUES ({mark}, '2020-01-01 00:00:00')", (one.path,)
        )
    store.reception.record([one])
    with store.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM trash").scalar_one() == 0
