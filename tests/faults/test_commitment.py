"""R12: storage commitment never lies: not about rotten bytes, and not by forgetting what was asked."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from node.model import CommitmentState
from node.store import Store
from tests.committing import Result, Scanner
from tests.faults.ledger import record
from tests.faults.nursery import Child, Nursery
from tests.faults.scale import SEED, count
from tests.faults.test_bit_rot import flip
from tests.peers import free_port, listens, wait_until
from tests.senders import CT, Peer, data_set

pytestmark = pytest.mark.timeout(600)

CONFIG = """\
node:
  listen: "127.0.0.1:{port}"
  accept_from: [{{ae_title: CT1, report_to: "127.0.0.1:{told}"}}]
  commitment: {{promise: held}}
store: {{spool: {folder}/spool, database: "sqlite:///{folder}/luminode.db", refuse_below: 100MB}}
destinations: {{pacs: {{kind: dimse, ae_title: PACS, address: "127.0.0.1:{pacs}", forward_originals: true}}}}
rules: [{{name: all, when: any, ignore: true}}]
"""
"""The PACS is away: what is committed is committed on the node's own word."""


@dataclass
class Site:
    """A receiver and a deliverer that come and go, and a scanner that may listen."""

    folder: Path
    nursery: Nursery
    store: Store
    port: int
    scanner: Scanner
    alive: list[Child] = field(default_factory=list)
    n: int = 0

    def bear(self, *roles: str, failpoints: str = "") -> None:
        self.alive += [self.nursery.bear(role, self.folder, failpoints=failpoints) for role in roles]
        if "receive" in roles:
            one = self.alive[-1]
            wait_until(
                lambda: one.dead() or listens(self.port), 60, "the receiver listens, or is dead already"
            )

    def kill(self) -> None:
        """SIGKILL to every role that lives."""
        for one in self.alive:
            one.send(signal.SIGKILL)
            assert one.dead(20)
        self.alive.clear()

    def died(self) -> None:
        """Wait until the failpoint that was armed has killed its process."""
        assert self.alive.pop().dead(60), "nobody came by the place where it was to die"

    def sent(self, n: int) -> list[str]:
        """Store ``n`` instances of a new series; their UIDs, all acknowledged."""
        self.n += 1
        uids = [f"1.2.3.{self.n}.{k}" for k in range(1, n + 1)]
        with Peer(self.port) as peer:
            peer.associate(CT, calling="CT1")
            for uid in uids:
                data = data_set(uid, series=f"1.2.3.{self.n}", study="1.2.3.0", pixels=uid.encode() * 40)
                assert peer.store(uid, data).status == 0
            assert peer.release() == 6
        return uids

    def rot(self, uids: Sequence[str], chance: random.Random) -> None:
        """Flip a bit in the files of these instances."""
        wanted = set(uids)
        for series in self.store.series.list(limit=1000):
            for one in self.store.series.instances(series.id):
                if one.sop_instance_uid in wanted:
                    flip(self.store.spool.path(one.path), one.offset, chance)

    def ask(self, transaction: str, uids: Sequence[str]) -> int:
        """N-ACTION; -1 if no answer came."""
        try:
            return self.scanner.ask(self.port, transaction, uids)
        except (AttributeError, AssertionError):  # what pynetdicom and we make of a connection that broke
            return -1

    def told(self, transaction: str, within_s: float = 60.0) -> Result:
        """The result of a request, waited for; the last one, should it have been told twice."""

        def of() -> list[Result]:
            return [r for r in self.scanner.results if r.transaction == transaction]

        wait_until(lambda: bool(of()), within_s, f"the result of {transaction}")
        return of()[-1]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as one:
        yield one


@contextmanager
def site(template: Path, folder: Path, nursery: Nursery) -> Iterator[Site]:
    folder.mkdir(parents=True)
    shutil.copy(template, folder / "luminode.db")
    scanner, port = Scanner("CT1"), free_port()
    text = CONFIG.format(port=port, told=scanner.port, pacs=free_port(), folder=folder)
    (folder / "config.yaml").write_text(text)
    with Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool") as store:
        one = Site(folder, nursery, store, port, scanner)
        try:
            yield one
        finally:
            one.kill()
            scanner.stop()


def lies(told: Result, uids: Sequence[str], rotten: set[str]) -> list[str]:
    """What a result says that is not so."""
    wrong = [f"{uid} is rotten and was committed" for uid in sorted(told.committed & rotten)]
    wrong += [f"{uid} is not told as failed" for uid in sorted(rotten - set(told.failed))]
    wrong += [f"{uid} is whole and was not committed" for uid in sorted(set(uids) - rotten - told.committed)]
    wrong += [f"event {told.event}"] if told.event != (2 if rotten else 1) else []
    return wrong


def test_rotten_bytes_are_never_committed_and_the_result_outlives_everybody(
    sqlite_template: Path, tmp_path: Path, nursery: Nursery
) -> None:
    n, n_rotten, chance = count(30, 1000), count(4, 100), random.Random(SEED)
    with site(sqlite_template, tmp_path / "site", nursery) as here:
        here.bear("receive")
        uids = here.sent(n)
        rotten = set(chance.sample(uids, n_rotten))
        here.rot(sorted(rotten), chance)
        status = here.ask("1.2.9.1", uids)
        here.kill()  # between N-ACTION-RSP and N-EVENT-REPORT
        here.bear("deliver")
        wait_until(lambda: tries(here.store) >= 1, 60, "the scanner was called in vain")
        here.kill()
        here.scanner.listen()
        here.bear("deliver")
        told = here.told("1.2.9.1")
        wait_until(lambda: state(here.store) is CommitmentState.TOLD, 60, "that it was told is on record")
    wrong = lies(told, uids, rotten)
    found = len(rotten & set(told.failed))
    record(
        "R12",
        load=f"N-ACTION over {n:,} instances, one bit flipped in {n_rotten} files; all of the node killed (SIGKILL) "
        "after N-ACTION-RSP, the scanner gone at the time of N-EVENT-REPORT, the node killed and started again",
        count=n_rotten,
        result=f"{found} of {n_rotten} flips told as failed, {len(told.committed):,} of {n - n_rotten:,} whole ones "
        "committed; the result outlived both kills and was told when the scanner listened",
        ok=not wrong and status == 0,
    )
    assert status == 0
    assert wrong == []


POINTS = (
    ("receive", "receive.before_action_answer=kill:1"),
    ("receive", "receive.action_answered=kill:1"),
    ("deliver", "deliver.before_commitment_told=kill:1"),
    *(("receive", f"store.committed=kill:{n}") for n in range(1, 6)),
    *(
        ("deliver", f"{name}=kill:{n}")
        for n in range(1, 5)
        for name in ("store.committed", "store.before_commit")
    ),
)
"""Where a role dies while it deals with a request. Of the database's transactions some belong to other work."""


def test_whatever_the_crash_point_a_request_that_was_taken_is_answered_rightly(
    sqlite_template: Path, tmp_path: Path, nursery: Nursery
) -> None:
    chance = random.Random(SEED)
    points = POINTS[: count(2, len(POINTS))]
    wrong: list[str] = []
    with site(sqlite_template, tmp_path / "site", nursery) as here:
        here.scanner.listen()
        for number, (role, point) in enumerate(points):
            transaction = f"1.2.9.{number}"
            here.bear("receive")
            uids = here.sent(5)
            rotten = set(chance.sample(uids, 2))
            here.rot(sorted(rotten), chance)
            if role == "receive":
                here.kill()
                here.bear("receive", failpoints=point)
            status = here.ask(transaction, uids)
            if role == "receive" and status != 0:
                here.kill()
                here.bear("receive")
                status = here.ask(transaction, uids)  # the scanner does not know: it asks again
            here.bear("deliver", failpoints=point if role == "deliver" else "")
            if role == "deliver":
                here.died()
                here.bear("deliver")
            told = here.told(transaction)
            wrong += [f"{point}: {each}" for each in lies(told, uids, rotten)]
            wrong += [f"{point}: N-ACTION was answered {status:04X}H"] if status else []
            here.kill()
    record(
        "R12",
        load="receiver or deliverer killed (SIGKILL) at each step of a request, started again; a scanner without an "
        "answer asks again",
        count=len(points),
        result=f"{len(points) - len({w.partition(': ')[0] for w in wrong})} of {len(points)} requests answered, "
        "rightly",
        ok=not wrong,
    )
    assert wrong == []


def tries(store: Store) -> int:
    return sum(one.attempt for one in store.commitments.list())


def state(store: Store) -> CommitmentState:
    (one,) = store.commitments.list()
    return one.state
