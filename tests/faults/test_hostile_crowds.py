"""R18, R22, R23, R24: many, much and without end. The receiver's memory does not grow with any of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import time
from collections import Counter
from pathlib import Path

from node.receive.pace import FLOOR, LONG_FLOOR, Pace
from tests.faults.hostile import BUSY_S, LONGEST_S, MB, Crowd, Echo, Node, good
from tests.faults.ledger import record
from tests.faults.scale import FULL, count
from tests.peers import wait_until
from tests.receiving import at_once
from tests.senders import CT, Peer, data_set, p_data, pdv, store_rq

ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"


def test_128_associations_at_once(tmp_path: Path) -> None:
    """R18: none fails, none waits long, and nothing of them is left."""
    n, each, size = 128, count(4, 50), count(20_000, 524_288)
    block = os.urandom(size)
    waits: list[float] = []
    accepted: list[float] = []
    with Node(tmp_path) as node:
        good(node, "1.2.999.1")
        node.quiet()
        threads, files = node.threads(), node.files()
        with Crowd(node, []):  # as many files as this needs
            pass

        def scanner(number: int) -> None:
            began = time.monotonic()
            with node.peer(source=f"127.0.2.{1 + number % 8}", timeout=120.0) as peer:
                peer.associate(CT, calling=f"CT{number}")
                accepted.append(time.monotonic() - began)
                for k in range(each):
                    uid = f"1.2.{number}.{k}"
                    data = data_set(uid, series=f"1.2.{number}", pixels=block)
                    began = time.monotonic()
                    assert peer.store(uid, data).status == 0
                    waits.append(time.monotonic() - began)
                assert peer.release() == 6

        began = time.monotonic()
        at_once(scanner, n, LONGEST_S)
        took = time.monotonic() - began
        peak = node.peak()
        node.quiet()
        wait_until(lambda: node.threads() <= threads, 20.0, "threads are gone")
        with contextlib.suppress(AssertionError):  # names are settled a moment later
            wait_until(lambda: node.files() <= files + 2, 20.0)
        left = (node.threads() - threads, node.files() - files)
        stored = len(node.stored()) - 1
        waits.sort()
        p99 = waits[int(0.99 * len(waits))]
        record(
            "R18",
            load=f"{n} associations at once x {each} instances of {size // 1000} kB",
            count=n * each,
            result=f"{n * each - stored} failed, accepted within {max(accepted):.2f} s, answer p50 "
            f"{waits[len(waits) // 2]:.2f} s, p99 {p99:.2f} s, {n * each / took:.0f} instances/s, "
            f"{peak / MB:.0f} MB; then {left[0]} threads and {left[1]} files more than before",
            ok=stored == n * each and p99 <= 3.0 and peak <= 500 * MB and max(left) <= 0,
            lost=n * each - stored,
        )
        assert stored == n * each
        assert peak <= 500 * MB
        assert left[0] <= 0
        assert left[1] <= 2
        assert p99 <= BUSY_S


def test_many_slices_at_once_cost_no_memory(tmp_path: Path) -> None:
    """R22: 2,000 slices in a series, four such at once."""
    each, size = count(60, 2000), 524_288
    block = os.urandom(size)
    with Node(tmp_path) as node:
        good(node, "1.2.999.1")

        def scanner(number: int) -> None:
            with node.peer(timeout=120.0) as peer:
                peer.associate(CT, calling=f"CT{number}")
                for k in range(each):
                    uid = f"1.2.{number}.{k}"
                    assert peer.store(uid, data_set(uid, series=f"1.2.{number}", pixels=block)).status == 0
                assert peer.release() == 6

        before = node.forget_peak()
        at_once(scanner, 4, LONGEST_S)
        peak, stored = node.peak(), len(node.stored()) - 1
        record(
            "R22",
            load=f"4 series at once x {each} slices of 0.5 MB",
            count=4 * each,
            result=f"{peak / MB:.0f} MB resident at most, {(peak - before) / MB:+.0f} MB",
            ok=peak <= 300 * MB and stored == 4 * each,
            lost=4 * each - stored,
        )
        assert stored == 4 * each
        assert peak <= 300 * MB
        assert peak - before <= 64 * MB


def send_frames(peer: Peer, uid: str, size: int, block: bytes, *, number: int = 1) -> tuple[int, str]:
    """An Enhanced CT of ``size`` bytes of pixels, made on the way; (status, sha256 of the data set)."""
    head = data_set(uid, sop_class=ENHANCED, pixels=b"")[:-12]
    head += b"\xe0\x7f\x10\0OW\0\0" + (size % 2**32).to_bytes(4, "little")
    digest = hashlib.sha256(head)
    largest = peer.largest_pdu - 6
    peer.send(p_data(pdv(1, 3, store_rq(uid, ENHANCED, number)), pdv(1, 0, head)))
    left = size
    while left:
        piece = block[: min(largest, left, len(block))]
        digest.update(piece)
        peer.send(p_data(pdv(1, 0, piece)))
        left -= len(piece)
    peer.send(p_data(pdv(1, 2, b"")))
    return peer.answer().status, digest.hexdigest()


def test_an_enormous_multi_frame_object_passes_through(tmp_path: Path) -> None:
    """R23: byte for byte within 300 MB; one byte over the limit is A700H and leaves nothing."""
    sizes = [64 * MB] if not FULL else [1024 * MB, 1900 * 10**6]
    limit = max(sizes) + MB if not FULL else 2 * 1024 * MB
    block = os.urandom(200_000)
    told: dict[str, str] = {}
    peaks, growths = [], []
    with Node(tmp_path, node={"max_instance": limit}) as node, Echo(node) as echo:
        for number, size in enumerate(sizes):
            with node.peer(timeout=300.0) as peer:
                peer.associate(ENHANCED)
                before = node.forget_peak()
                uid = f"1.2.3.{number}"
                status, told[uid] = send_frames(peer, uid, size, block)
                peaks.append(node.peak())
                growths.append(peaks[-1] - before)
                assert status == 0
        with node.peer(timeout=300.0) as peer:
            peer.associate(ENHANCED)
            over, _ = send_frames(
                peer, "1.2.3.99", limit + 1 - len(data_set("1.2.3.99", sop_class=ENHANCED)) + 128, block
            )
            assert (
                peer.store("1.2.3.98", data_set("1.2.3.98", sop_class=ENHANCED), sop_class=ENHANCED).status
                == 0
            )
        peaks.append(node.peak())
        stored, tmp = node.stored(), node.tmp()
        for uid, digest in told.items():
            assert stored[uid] == digest
        for path in node.spool.glob("??/*.dcm"):  # what the row says is what the disk has
            with path.open("rb") as file:
                file.seek(640)
                assert hashlib.file_digest(file, "sha256").hexdigest() in stored.values()
        record(
            "R23",
            load=f"Enhanced CT of {[size // MB for size in sizes]} MB, then one byte over the limit of "
            f"{limit // MB} MB, then a small one on the same association",
            count=len(sizes) + 2,
            result=f"sha256 equal, {max(peaks) / MB:.0f} MB resident at most ({max(growths) / MB:+.0f} MB), "
            f"oversize {over:04X}H, "
            f"{len(tmp)} files left, slowest echo {echo.worst:.2f} s",
            ok=max(peaks) <= 300 * MB and over == 0xA700 and not tmp,
            lost=len(set(told) - set(stored)),
        )
        assert over == 0xA700
        assert tmp == []
        assert set(stored) == {*told, "1.2.3.98"}
        assert max(peaks) <= 300 * MB
        assert max(growths) <= 48 * MB
        assert echo.failed == []


def test_a_data_set_without_end_is_ended(tmp_path: Path) -> None:
    """R24: stopped at the cap for instances; several at once; the disk is given back."""
    limit, n = count(20, 400) * MB, count(3, 8)
    block = os.urandom(100_000)
    sent: Counter[int] = Counter()
    told: list[int] = []
    with Node(tmp_path, node={"max_instance": limit}) as node, Echo(node) as echo:
        good(node, "1.2.999.1")
        before = node.spooled()
        most = 0

        def scanner(number: int) -> None:
            nonlocal most
            head = data_set("1.2.3.1", pixels=b"")[:-12] + b"\xe0\x7f\x10\0OW\0\0\xfe\xff\xff\xff"
            with node.peer(timeout=20.0) as peer:
                peer.associate(CT)
                peer.send(p_data(pdv(1, 3, store_rq("1.2.3.1")), pdv(1, 0, head)))
                piece = p_data(pdv(1, 0, block))
                while sent[number] < 10 * limit and not select.select([peer.sock], [], [], 0)[0]:
                    peer.send(piece)
                    sent[number] += len(block)
                    most = max(most, node.spooled() - before) if number == 0 else most
                told.append(peer.read()[0])

        at_once(scanner, n, LONGEST_S)
        node.quiet()
        record(
            "R24",
            load=f"{n} data sets without a last fragment at once, max_instance {limit // MB} MB",
            count=n,
            result=f"cut after {max(sent.values()) / limit:.1f} times the limit at most, {most / MB:.0f} MB on disk at "
            f"most, {len(node.tmp())} files left",
            ok=max(sent.values()) <= 3 * limit and not node.tmp(),
        )
        assert told == [7] * n
        assert max(sent.values()) <= 3 * limit
        assert most <= n * (limit + MB)
        assert node.tmp() == []
        assert node.spooled() == before
        assert set(node.stored()) == {"1.2.999.1"}
        assert echo.failed == []
        assert good(node, "1.2.999.2") < BUSY_S


def test_a_data_set_that_creeps_is_ended() -> None:
    """R24: on a clock of its own, whole PDUs at a steady rate for a day: who is slow has 15 minutes."""
    rates = {FLOOR // 2: 240.0, FLOOR: 910.0, 32 * 1024: 910.0, LONG_FLOOR: None, 1_000_000: None}
    ended: dict[int, float | None] = {}
    for rate in rates:
        one = Pace(pdu_s=20, dimse_s=60, network_s=120, now=0.0)
        ended[rate] = None
        for second in range(0, 86_400, 2):
            one.heard(float(second), 2 * rate, pdus=second, partial=False, in_message=True)
            if one.late(float(second)):
                ended[rate] = float(second)
                break
    record(
        "R24",
        load="a data set without end at "
        + ", ".join(f"{rate / 1024:.0f}" for rate in rates)
        + " kB/s (fake clock)",
        count=len(rates),
        result="ended after " + ", ".join("the cap" if s is None else f"{s:.0f} s" for s in ended.values()),
        ok=all((s is None) == (rates[rate] is None) for rate, s in ended.items()),
    )
    for rate, bound in rates.items():
        seconds = ended[rate]
        assert (seconds is None) == (bound is None), rate
        assert seconds is None or bound is None or seconds <= bound
