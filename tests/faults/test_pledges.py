"""R12: a delivery is COMMITTED by the word of its PACS, whoever dies while it is asked."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.model import DeliveryState
from node.store import Store
from tests.committing import Pacs
from tests.faults.ledger import record
from tests.faults.nursery import Child, Nursery
from tests.faults.scale import SEED, count
from tests.peers import free_port, listens, wait_until
from tests.senders import CT, Peer, data_set

pytestmark = pytest.mark.timeout(600)

CONFIG = """\
node:
  listen: "127.0.0.1:{port}"
  accept_from: [CT1]
store: {{spool: {folder}/spool, database: "sqlite:///{folder}/luminode.db", refuse_below: 100MB}}
series: {{quiet_after: 1s}}
destinations:
  pacs: {{kind: dimse, ae_title: PACS, address: "127.0.0.1:{pacs}", forward_originals: true, commit: true}}
rules: [{{name: all, when: any, ignore: true}}]
"""
POINTS = (
    ("deliver", "deliver.pledge_asked=kill:1"),
    ("receive", "receive.before_report_answer=kill:1"),
    ("deliver", "deliver.before_pledge_asked=kill:1"),
    ("deliver", "deliver.finished=kill:1"),
    *(("receive", f"store.committed=kill:{n}") for n in range(1, 4)),
    *(
        ("deliver", f"{name}=kill:{n}")
        for n in range(1, 7)
        for name in ("store.committed", "store.before_commit")
    ),
)
"""Where a role dies. Of the database's transactions some belong to the delivery itself."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as one:
        yield one


def test_whatever_the_crash_point_the_pacs_is_asked_until_it_has_answered(
    sqlite_template: Path, tmp_path: Path, nursery: Nursery
) -> None:
    chance = random.Random(SEED)
    points = POINTS[: count(1, len(POINTS))]
    wrong: list[str] = []
    port, pacs = free_port(), Pacs("calls")
    pacs.calls = port
    shutil.copy(sqlite_template, tmp_path / "luminode.db")
    text = CONFIG.format(port=port, pacs=pacs.port, folder=tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    alive: list[Child] = []

    def bear(role: str, failpoints: str = "") -> Child:
        one = nursery.bear(role, tmp_path, failpoints=failpoints)
        if role == "receive":
            wait_until(lambda: one.dead() or listens(port), 60, "the receiver listens, or is dead already")
        alive.append(one)
        return one

    def kill() -> None:
        for one in alive:
            one.send(signal.SIGKILL)
            assert one.dead(20)
        alive.clear()

    database = f"sqlite:///{tmp_path}/luminode.db"
    with Store.open(database, tmp_path / "spool") as store, pacs.running():
        for number, (role, point) in enumerate(points, 1):
            bear("receive")
            uids = [f"1.2.3.{number}.{k}" for k in range(1, 5)]
            with Peer(port) as peer:
                peer.associate(CT, calling="CT1")
                for uid in uids:
                    data = data_set(uid, series=f"1.2.3.{number}", study="1.2.3.0", pixels=uid.encode() * 40)
                    assert peer.store(uid, data).status == 0
                assert peer.release() == 6
            lost = chance.choice(uids)
            pacs.lost.add(lost)
            gather = nursery.bear("gather", tmp_path)
            alive.append(gather)
            if role == "receive":
                alive[0].send(signal.SIGKILL)
                assert alive.pop(0).dead(20)
            dies = bear(role, point)
            if role == "receive":
                bear("deliver")
            wait_until(lambda one=dies: one.dead(), 60, f"{point}: nobody came by")  # type: ignore[misc]
            alive.remove(dies)
            bear(role)

            def committed() -> bool:
                found = store.deliveries.list([DeliveryState.COMMITTED], limit=100)
                return len(found) == number  # noqa: B023 - asked within this turn

            try:
                wait_until(committed, 90, f"{point}: the delivery is committed")
            except AssertionError as late:
                wrong.append(str(late))
            kill()
            wrong += [f"{point}: {uid} is not there" for uid in uids if uid not in pacs.stored]
            wrong += [f"{point}: what was lost was not sent again"] if pacs.stored.get(lost, 0) < 2 else []
    record(
        "R12",
        load="as its user: deliverer or receiver killed (SIGKILL) at each step of asking a PACS to commit and of its "
        "answer, started again; each time the PACS has lost one instance of four",
        count=len(points),
        result=f"{len(points) - len({w.partition(': ')[0] for w in wrong})} of {len(points)} deliveries committed in "
        "the end, what was lost sent again",
        ok=not wrong,
    )
    assert wrong == []
