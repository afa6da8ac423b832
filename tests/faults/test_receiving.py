"""R4 to R7 on the real receiver: statuses of failures, cut streams, identical bytes, harmless duplicates."""

from __future__ import annotations

import errno
import os
import random
import select
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import AllTransferSyntaxes

from node.config.network import Peer as Allowed
from node.errors import HeaderFault, OutOfSpace, StoreError
from node.store import Store
from tests.faults.ledger import record
from tests.faults.scale import SEED, count
from tests.receiving import House, at_once, config, house
from tests.senders import (
    ABORT,
    CT,
    DEFLATED,
    IMPLICIT,
    MR,
    VERIFICATION,
    Peer,
    associate_rq,
    data_set,
    element,
    message,
    part10_data_set,
    sha256,
    store_rq,
)

pytestmark = pytest.mark.timeout(600)

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = data_set("1.2.3.1")


@pytest.fixture(scope="module")
def shared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("receiving")
    shutil.copy(sqlite_template, folder / "luminode.db")
    with Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool") as store, house(store) as one:
        yield one


@pytest.fixture
def door(shared: House) -> Iterator[House]:
    yield shared
    shared.receiver.apply(config())
    shared.forget()


# --- R4: every way to fail has its status -----------------------------------------------------------------

EXCEPTIONS: tuple[Exception, ...] = (
    OSError(errno.EIO, "x"), OSError(errno.ENOSPC, "x"), StoreError("x"), OutOfSpace("x"), MemoryError(),
    HeaderFault("x"), KeyError("x"), ValueError("x"), AssertionError("x"), RecursionError("x"),
    struct.error("x"), UnicodeDecodeError("ascii", b"\xff", 0, 1, "x"),
)  # fmt: skip
SEAMS = ("create", "write", "sync", "record")
RESOURCES, MISMATCH, UNREADABLE, FAILURE = 0xA700, 0xA900, 0xC000, 0x0110


def expected(seam: str, error: Exception) -> int:
    """The status that an exception at a place must come to (PS3.4 B.2.3, PS3.7 Annex C)."""
    if seam == "record" or isinstance(error, (OSError, StoreError, MemoryError)):
        return RESOURCES  # whatever the store says: nothing is recorded, and it may work later
    return UNREADABLE if isinstance(error, HeaderFault) else FAILURE


class Refusing:
    """Stands before a method of the store and raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_args: object, **_more: object) -> Any:
        raise self.error


def refusing(house_: House, patch: pytest.MonkeyPatch, seam: str, error: Exception) -> None:
    if seam == "create":
        patch.setattr(house_.store.spool, "create", Refusing(error))
    elif seam == "record":
        patch.setattr(house_.store.reception, "record", Refusing(error))
    else:
        method = {"write": "write_all", "sync": "sync"}[seam]
        patch.setattr(f"node.store.spool.SpoolWriter.{method}", Refusing(error))


Ask = Callable[[House, Peer], int]


def _of(uid: str, data: bytes, **how: Any) -> Ask:
    return lambda _door, peer: peer.store(uid, data, **how).status


def _no_data(_door: House, peer: Peer) -> int:
    peer.send(message(1, store_rq("1.2.3.1", data_type=0x101), None))
    return peer.answer().status


def _under(settings: dict[str, Any], uid: str, data: bytes) -> Ask:
    def ask(door: House, peer: Peer) -> int:
        door.receiver.apply(config(**settings))
        return peer.store(uid, data).status

    return ask


TABLE: dict[str, tuple[int, Ask]] = {
    "no UID": (0x0117, _of("1.2.x", data_set("1.2.x"))),
    "a path for a UID": (0x0117, _of("../../etc/passwd", data_set("1.2.3"))),
    "another instance in the data set": (MISMATCH, _of("1.2.3.1", data_set("1.2.3.2"))),
    "another class in the data set": (MISMATCH, _of("1.2.3.1", data_set("1.2.3.1", sop_class=MR))),
    "no series": (MISMATCH, _of("1.2.3.1", data_set("1.2.3.1", series=""))),
    "an empty data set": (UNREADABLE, _of("1.2.3.1", b"")),
    "noise": (UNREADABLE, _of("1.2.3.1", b"\x08\0\x18\0" * 300)),
    "another class than the context's": (0x0122, _of("1.2.3.1", DATA, sop_class=MR)),
    "a store on the verification context": (0x0122, _of("1.2.3.1", DATA, context=3, sop_class=VERIFICATION)),
    "no data set": (0x0212, _no_data),
    "a title that may no longer store": (
        0x0124, _under({"accept_from": (Allowed(ae_title="CT2"),)}, "1.2.3.1", DATA),
    ),
    "larger than the limit": (
        RESOURCES, _under({"max_instance": 1_000_000}, "1.2.3.1", data_set("1.2.3.1", pixels=bytes(1_000_001))),
    ),
    "a full disk": (RESOURCES, _under({"store": {"refuse_below": 10**18}}, "1.2.3.1", DATA)),
}  # fmt: skip


def test_every_way_to_fail_has_its_status(door: House, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[str] = []
    for name, (status, ask) in TABLE.items():
        with door.peer() as peer:
            peer.associate(CT, VERIFICATION)
            if (got := ask(door, peer)) != status:
                wrong.append(f"{name}: {got:04X}H instead of {status:04X}H")
            door.receiver.apply(config())
    for seam in SEAMS:
        for error in EXCEPTIONS:
            with door.peer() as peer:
                peer.associate(CT)
                with monkeypatch.context() as patch:
                    refusing(door, patch, seam, error)
                    got = peer.store("1.2.3.1", DATA).status
                if got != expected(seam, error):
                    wrong.append(f"{seam} {error!r}: {got:04X}H")
                assert door.tmp() == []
    assert door.stored() == {}
    with door.peer() as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", DATA).status == 0
    n = len(TABLE) + len(SEAMS) * len(EXCEPTIONS)
    record(
        "R4",
        load=f"{len(TABLE)} bad requests, and {len(EXCEPTIONS)} types of exception at {len(SEAMS)} places on the "
        "way to the spool",
        count=n,
        result=f"{n - len(wrong)} of {n} statuses exact, 0 of them 0000H; nothing left under tmp",
        ok=not wrong,
    )
    assert wrong == []


# --- R5: cut at any byte ----------------------------------------------------------------------------------


def test_wherever_the_stream_is_cut_what_was_answered_stays_and_nothing_of_the_rest(door: House) -> None:
    n, chance = count(45, 300), random.Random(SEED)
    sets = {f"1.2.3.{k}": data_set(f"1.2.3.{k}", pixels=bytes([k]) * 3000) for k in range(1, 6)}
    stream = b"".join(
        message(1, store_rq(uid, CT, k), data, 700) for k, (uid, data) in enumerate(sets.items(), 1)
    )
    wrong: list[str] = []
    n_acknowledged = 0
    for number in range(n):
        how = ("close", "reset", "abort")[number % 3]
        cut = chance.randrange(1, len(stream))
        acknowledged = _cut(door, stream, cut, how, chance)
        door.quiet()
        stored = door.stored()
        n_acknowledged += len(acknowledged)
        if not acknowledged <= set(stored):
            wrong.append(f"{how} at {cut}: lost {sorted(acknowledged - set(stored))}")
        if any(sha256(sets[uid]) != digest for uid, digest in stored.items()) or door.tmp():
            wrong.append(f"{how} at {cut}: {door.tmp()} or a part of an instance is left")
        door.forget()
    record(
        "R5",
        load="an association of 5 instances cut at a random byte: closed, reset, aborted in turn",
        count=n,
        result=f"{n - len(wrong)} of {n} keep the {n_acknowledged} acknowledged and nothing else; tmp empty",
        ok=not wrong,
    )
    assert wrong == []


def _cut(door: House, stream: bytes, cut: int, how: str, chance: random.Random) -> set[str]:
    at, acknowledged = 0, set()
    with door.peer() as peer:
        peer.associate(CT)
        while at < cut:
            step = chance.choice([100, 1000, 5000])
            peer.send(stream[at : min(at + step, cut)])
            at += step
            while select.select([peer.sock], [], [], chance.choice([0, 0.02, 0.1]))[0]:
                answer = peer.answer()
                assert answer.status == 0
                acknowledged.add(f"1.2.3.{answer.message}")
        if how == "abort":
            peer.send(ABORT)
        if how == "reset":
            peer.reset()
    return acknowledged


# --- R6: stored bytes are sent bytes ----------------------------------------------------------------------

PRIVATE = element(9, 0x10, "LO", b"ACME") + element(9, 0x1001, "OB", b"\1\2\3\4\5")
SEQUENCE = (
    b"\x21\0\x75\x02SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    b"\x21\0\x07\0LO\x02\0A " + b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
)
ODD = b"\xfc\xff\xfc\xffOB\0\0\3\0\0\0odd"


def odd_data_set(uid: str, chance: random.Random) -> bytes:
    """With private elements, a sequence of undefined length, pixels and an element of odd length."""
    data = data_set(uid, pixels=chance.randbytes(2 * chance.randint(1, 3000) + 1)) + ODD
    for before, more in ((b"\x10\0\x10\0PN", PRIVATE), (b"\x28\0\x02\0", SEQUENCE)):
        at = data.index(before)
        data = data[:at] + more + data[at:]
    return data


def scanner_files(most: int) -> list[tuple[str, str, str, bytes]]:
    """Real files, as (class, instance, syntax, data set); none where the corpus is not beside the checkout."""
    found: list[tuple[str, str, str, bytes]] = []
    for path in sorted(CORPUS.glob("*/**/*.dcm")) if CORPUS.is_dir() else []:
        if len(found) == most:
            break
        if path.is_file() and path.read_bytes()[128:132] == b"DICM":
            try:
                sop_class, uid, syntax, data = part10_data_set(path)
            except (KeyError, struct.error, IndexError):
                continue
            # What a scanner names in its command; a file's meta, written by somebody else, may say otherwise.
            inside = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True)
            uid, sop_class = inside.get("SOPInstanceUID") or uid, inside.get("SOPClassUID") or sop_class
            found.append((str(sop_class), str(uid), syntax, data))
    return found


def test_stored_bytes_are_sent_bytes(door: House) -> None:
    n, chance = count(120, 1000), random.Random(SEED)
    explicit = [
        str(s) for s in AllTransferSyntaxes
        if s.is_little_endian and not s.is_implicit_VR and str(s) not in (DEFLATED, "1.2.840.10008.1.2.4.205")
    ]  # fmt: skip
    # One context for each, and a real file now and then where there are any.
    real = [f for f in scanner_files(n // 4) if f[2] in (*explicit, IMPLICIT)]
    syntaxes = set()
    identical = n_real = 0
    for number in range(n):
        syntax = explicit[number % len(explicit)]
        uid, sop_class = f"1.2.6.{number}", CT
        data = odd_data_set(uid, chance)
        if real and number % 4 == 0:
            sop_class, uid, syntax, data = real.pop()
            n_real += 1
        with door.peer() as peer:
            assert peer.ask(associate_rq([(1, sop_class, [syntax])]))[0] == 2
            answered = 1 in peer.accepted and peer.store(uid, data, sop_class=sop_class).status == 0
        if answered:
            (held,) = (i for i in door.instances() if i.sop_instance_uid == uid)
            path = door.store.spool.path(held.path)
            same = path.read_bytes()[held.offset :] == data and held.sha256 == sha256(data)
            meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).file_meta
            identical += same and meta.TransferSyntaxUID == syntax
            syntaxes.add(syntax)
        door.forget()
    record(
        "R6",
        load=f"objects of {len(syntaxes)} transfer syntaxes with private elements, sequences of undefined length "
        f"and odd lengths, {n_real} of them real files of scanners; sha256 at both ends",
        count=n,
        result=f"{identical} of {n} identical",
        ok=identical == n and len(syntaxes) >= 24,
    )
    assert identical == n
    assert len(syntaxes) >= 24


# --- R7: duplicates ---------------------------------------------------------------------------------------


def test_a_duplicate_is_harmless_in_sequence_and_at_once(door: House) -> None:
    n, wrong = count(8, 60), []
    for number in range(n):
        uid = f"1.2.7.{number}"
        data = data_set(uid, pixels=os.urandom(5000))
        statuses: list[int] = []
        with door.peer() as peer:
            peer.associate(CT)
            if number % 2:
                statuses += [peer.store(uid, data, number=k).status for k in range(1, 11)]
        lock = threading.Lock()

        def send(
            _k: int, uid: str = uid, data: bytes = data, to: list[int] = statuses, lock: Any = lock
        ) -> None:
            with door.peer() as peer:
                peer.associate(CT)
                status = peer.store(uid, data).status
            with lock:
                to.append(status)

        at_once(send, 10)
        held = [i for i in door.instances() if i.sop_instance_uid == uid]
        if set(statuses) != {0} or len(held) != 1 or held[0].sha256 != sha256(data):
            wrong.append(f"{uid}: {statuses}, {len(held)} rows")
    record(
        "R7",
        load="the same instance 10 times in sequence and 10 times at once over 10 associations",
        count=n,
        result=f"{n - len(wrong)} of {n}: 0000H to all, 1 row",
        ok=not wrong,
    )
    assert wrong == []


def test_other_bytes_under_a_known_uid_are_both_kept_and_told(door: House) -> None:
    n, wrong = count(8, 60), []
    for number in range(n):
        uid = f"1.2.8.{number}"
        first, second = (data_set(uid, pixels=os.urandom(3000)) for _ in range(2))
        with door.peer() as peer:
            peer.associate(CT)
            statuses = [peer.store(uid, data).status for data in (first, second, first, second)]
        (held,) = (i for i in door.instances() if i.sop_instance_uid == uid)
        kept = {file.path for file in door.store.spool.walk()}
        bodies = {sha256(door.store.spool.path(p).read_bytes()[held.offset :]) for p in kept}
        if (
            statuses != [0, MISMATCH, 0, MISMATCH]
            or held.sha256 != sha256(first)
            or sha256(second) not in bodies
        ):
            wrong.append(f"{uid}: {[f'{s:04X}' for s in statuses]}")
    events = [e for e in door.store.events.list(limit=1000) if "conflict" in e.name]
    record(
        "R7",
        load="other bytes under a UID that is known, twice each in turn",
        count=n,
        result=f"{n - len(wrong)} of {n}: the first stays, the other is kept beside it, A900H, {len(events)} events",
        ok=not wrong and len(events) >= n,
    )
    assert wrong == []
    assert len(events) >= n
