"""A broken or hostile peer harms only itself (lengths, dripping, idling, stalled TLS); crowds are served."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import random
import socket
import ssl
import threading
import time
import zlib
from pathlib import Path

import psutil
import pytest
import trustme

from node.config.network import ServerTLS
from node.errors import ReceiveError
from node.receive import Receiver
from node.receive.door import Door
from node.store import Store
from tests.peers import free_port, wait_until
from tests.receiving import at_once, config, house, utc
from tests.senders import (
    CT,
    DEFLATED,
    EXPLICIT,
    VERIFICATION,
    Peer,
    associate_rq,
    data_set,
    echo_rq,
    message,
    p_data,
    pdv,
    sha256,
    store_rq,
)

REQUEST = associate_rq([(1, CT, [EXPLICIT]), (3, VERIFICATION, [EXPLICIT])])
QUICK = {"acse": 0.6, "pdu": 0.6, "dimse": 1.0, "network": 1.5}


def good(port: int, number: int = 1, **more: object) -> float:
    """A scanner that stores one instance; seconds until its association was accepted."""
    began = time.monotonic()
    with Peer(port, **more) as peer:  # type: ignore[arg-type]
        peer.associate(CT)
        took = time.monotonic() - began
        assert peer.store(f"1.2.9.{number}", data_set(f"1.2.9.{number}")).status == 0
        assert peer.release() == 6
    return took


def gone(peer: Peer, within_s: float = 5.0) -> bool:
    """Whether the other side ends this connection."""
    peer.sock.settimeout(within_s)
    try:
        while True:
            kind, _ = peer.read()
            if kind == 0:
                return True
    except TimeoutError:
        return False


# --- R14: no PDU allocates beyond its cap ---------------------------------------------------------------


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 1024 * 1024 + 1])
def test_claimed_lengths_cost_no_memory_and_are_cut_off_at_once(sqlite_store: Store, length: int) -> None:
    before = psutil.Process().memory_info().rss
    with (
        house(sqlite_store, config(max_associations_per_address=100)) as door,
        contextlib.ExitStack() as stack,
    ):
        crowd = [stack.enter_context(door.peer()) for _ in range(60)]
        for peer in crowd:
            peer.send(b"\1\0" + length.to_bytes(4, "big"))
        for peer in crowd:
            assert peer.read()[0] in (0, 7)
        for peer in crowd:
            peer.close()
        assert good(door.port) < 15.0
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


def test_a_request_of_the_largest_size_is_still_read(sqlite_store: Store) -> None:
    padding = b"".join(b"\x7f\0\xff\xf0" + bytes(0xFFF0) for _ in range(15))
    with house(sqlite_store) as door, door.peer() as peer:
        assert peer.ask(associate_rq([(1, CT, [EXPLICIT])], extra=padding))[0] == 2


def deflated(data: bytes) -> bytes:
    machine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    out = machine.compress(data) + machine.flush()
    return out + b"\0" * (len(out) % 2)


def test_a_deflated_data_set_is_stored_as_it_came_and_a_bomb_costs_nothing(sqlite_store: Store) -> None:
    """R19: 80 MB of zeros in some hundred kB, before and behind the UIDs; only a header is ever inflated."""
    data = data_set("1.2.3.1", pixels=bytes(80 * 2**20))
    at = data.index(b"\x20\0\x0d\0")
    zeros = b"\x11\0\x10\0OB\0\0" + (80 * 2**20).to_bytes(4, "little") + bytes(80 * 2**20)
    late, early = deflated(data), deflated(data[:at] + zeros + data[at:])
    del data, zeros
    before = psutil.Process().memory_info().rss
    with house(sqlite_store) as door, door.peer() as peer:
        peer.associate(CT, syntaxes=(DEFLATED,))
        assert peer.store("1.2.3.2", early).status & 0xF000 in (0xC000, 0xA000)
        assert peer.store("1.2.3.1", late).status == 0
        assert door.stored() == {"1.2.3.1": sha256(late)}
        assert door.tmp() == []
    assert psutil.Process().memory_info().rss - before < 48 * 2**20


def test_a_large_object_passes_through_little_memory(sqlite_store: Store) -> None:
    """R23, the small one: 200 MB in one data set."""
    piece = os.urandom(2**20)
    head = data_set("1.2.3.1", pixels=b"")[:-12]
    head += b"\xe0\x7f\x10\0OW\0\0" + (200 * 2**20).to_bytes(4, "little")
    digest = hashlib.sha256(head)
    with house(sqlite_store) as door, door.peer() as peer:
        peer.associate(CT)
        before = psutil.Process().memory_info().rss
        peer.send(p_data(pdv(1, 3, store_rq("1.2.3.1")), pdv(1, 0, head)))
        for _ in range(200):
            digest.update(piece)
            peer.send(b"".join(p_data(pdv(1, 0, piece[at : at + 2**16])) for at in range(0, 2**20, 2**16)))
        peer.send(p_data(pdv(1, 2, b"")))
        assert peer.answer().status == 0
        assert psutil.Process().memory_info().rss - before < 32 * 2**20
        (one,) = [i for s in sqlite_store.series.list() for i in sqlite_store.series.instances(s.id)]
        assert one.sha256 == digest.hexdigest()
        assert one.size == one.offset + len(head) + 200 * 2**20


# --- R15: slow peers --------------------------------------------------------------------------------------


def test_drippers_are_cut_off_and_a_scanner_beside_them_is_served(sqlite_store: Store) -> None:
    with house(sqlite_store, config(timeouts=QUICK)) as door, contextlib.ExitStack() as stack:
        drippers = [stack.enter_context(door.peer()) for _ in range(30)]
        stop = threading.Event()

        def drip() -> None:
            at = 0
            while not stop.wait(0.1) and at < len(REQUEST) - 1:
                for peer in drippers:
                    with contextlib.suppress(OSError):
                        peer.send(REQUEST[at : at + 1])
                at += 1

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert good(door.port) < 15.0
            wait_until(lambda: door.receiver.load.connections == 0, 20.0, "drippers are gone")
        finally:
            stop.set()
            thread.join()


def test_bytes_that_drip_into_an_established_association_end_it(sqlite_store: Store) -> None:
    with house(sqlite_store, config(timeouts=QUICK)) as door, door.peer() as peer:
        peer.associate(CT)
        assert peer.store("1.2.3.1", data_set("1.2.3.1")).status == 0
        raw = message(1, store_rq("1.2.3.2"), data_set("1.2.3.2"))
        sent = 0
        with contextlib.suppress(OSError):
            for sent in range(200):
                peer.send(raw[sent : sent + 1])
                time.sleep(0.05)
                if door.receiver.load.connections == 0:
                    break
        assert sent < 199, "it was not cut off"
        assert door.ends(1) == ["LOST"]
        assert door.tmp() == []
        assert list(door.stored()) == ["1.2.3.1"]


def test_silence_ends_an_association_sooner_inside_a_message(sqlite_store: Store) -> None:
    with house(sqlite_store, config(timeouts=QUICK)) as door, door.peer() as idle, door.peer() as half:
        idle.associate(CT)
        half.associate(CT)
        began = time.monotonic()
        half.send(p_data(pdv(1, 3, store_rq("1.2.3.2")), pdv(1, 0, data_set("1.2.3.2")[:50])))
        assert half.read()[0] == 7
        assert time.monotonic() - began > 0.9
        assert idle.read()[0] == 7
        assert time.monotonic() - began > 1.3
        assert door.ends(2) == ["LOST", "LOST"]
        assert door.tmp() == []


# --- R16: idle floods -------------------------------------------------------------------------------------


def test_an_idle_flood_from_one_address_leaves_the_others_alone(sqlite_store: Store) -> None:
    threads = threading.active_count()
    with house(sqlite_store, config(max_associations_per_address=8)) as door, contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(door.peer())
        wait_until(lambda: door.receiver.load.connections <= 24, 20.0, "the flood is capped")
        assert threading.active_count() - threads < 40
        assert good(door.port, source="127.0.0.2") < 15.0
        cpu = time.process_time()
        time.sleep(2.0)
        assert time.process_time() - cpu < 1.0  # one that polls takes all of a core or more
    assert threading.active_count() <= threads + 1


def test_limits_reject_by_the_book(sqlite_store: Store) -> None:
    settings = config(max_associations=3, max_associations_per_address=2)
    with house(sqlite_store, settings) as door, contextlib.ExitStack() as stack:
        told = []
        for source in ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3"):
            peer = stack.enter_context(door.peer(source=source))
            kind, body = peer.ask(REQUEST)
            told.append((kind, *body[1:4]) if kind == 3 else (kind,))
        assert told == [(2,), (2,), (3, 2, 3, 2), (2,), (3, 2, 3, 2)]
        assert door.receiver.load.associations == 3
        stack.close()
        door.quiet()
        assert good(door.port) < 15.0


# --- R17: TLS ---------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[trustme.CA, ServerTLS]:
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    server.cert_chain_pems[0].write_to_path(tmp_path / "node.pem")
    server.private_key_pem.write_to_path(tmp_path / "node.key")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return (
        authority,
        ServerTLS(
            certificate=str(tmp_path / "node.pem"),
            key=str(tmp_path / "node.key"),
            authorities=str(tmp_path / "ca.pem"),
        ),
    )


def secure(port: int, authority: trustme.CA, issuer: trustme.CA | None) -> Peer:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if issuer is not None:
        issuer.issue_cert("scanner@hospital.example").configure_cert(context)
    peer = Peer(port)
    peer.sock = context.wrap_socket(peer.sock, server_hostname="127.0.0.1")
    return peer


def test_stalled_handshakes_block_nobody_and_a_certificate_is_asked_for(
    sqlite_store: Store, certificates: tuple[trustme.CA, ServerTLS]
) -> None:
    authority, files = certificates
    settings = config(tls=files, timeouts={**QUICK, "acse": 1.5, "network": 10, "dimse": 10, "pdu": 10})
    data = data_set("1.2.3.1", pixels=bytes(range(256)) * 2000)
    with house(sqlite_store, settings) as door, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(door.peer()) for _ in range(30)]
        began = time.monotonic()
        with secure(door.port, authority, authority) as peer:
            peer.associate(CT)
            assert time.monotonic() - began < 20.0  # one handshake after the other would take 45 s
            assert peer.store("1.2.3.1", data).status == 0
            assert peer.release() == 6
        assert door.stored() == {"1.2.3.1": sha256(data)}
        for issuer in (trustme.CA(), None):
            with contextlib.suppress(OSError), secure(door.port, authority, issuer) as peer:
                assert peer.ask(REQUEST)[0] == 0
        with door.peer() as plain, contextlib.suppress(OSError):
            assert plain.ask(REQUEST)[0] == 0
        assert all(gone(peer, 20.0) for peer in silent)
        assert len(door.associations()) == 1


def test_tls_files_that_cannot_be_used_are_told(sqlite_store: Store, tmp_path: Path) -> None:
    files = ServerTLS(certificate=str(tmp_path / "a.pem"), key=str(tmp_path / "a.key"))
    with pytest.raises(ReceiveError, match="TLS"):
        Receiver(config(tls=files), sqlite_store, utc).start()


def test_a_port_that_is_taken_is_told(sqlite_store: Store) -> None:
    from node.config.network import HostPort

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = HostPort(host="127.0.0.1", port=taken.getsockname()[1])
        with pytest.raises(ReceiveError, match="cannot listen"):
            Receiver(config(listen=listen), sqlite_store, utc).start()


# --- R18: crowds ------------------------------------------------------------------------------------------


def test_a_crowd_is_served_at_once_and_leaves_nothing_behind(sqlite_store: Store) -> None:
    """128 associations at the same moment, through a listen backlog, with several instances each."""
    n, each = 128, 4
    threads = threading.active_count()
    waits: list[float] = []
    with house(sqlite_store, config(max_associations_per_address=n)) as door:
        files = len(list(Path("/proc/self/fd").iterdir()))
        together = threading.Barrier(n)

        def scanner(number: int) -> None:
            with door.peer(timeout=60.0) as peer:
                peer.associate(CT)
                together.wait(60)
                for k in range(each):
                    uid = f"1.2.{number}.{k}"
                    began = time.monotonic()
                    assert peer.store(uid, data_set(uid, series=f"1.2.{number}")).status == 0
                    waits.append(time.monotonic() - began)
                assert peer.release() == 6

        at_once(scanner, n)
        assert len(door.stored()) == n * each
        assert door.ends(n) == ["RELEASED"] * n
        door.quiet()
        assert (
            sorted(waits)[int(0.99 * len(waits))] < 20.0
        )  # the target is R18's: tests/faults/test_hostile_crowds.py
        wait_until(
            lambda: len(list(Path("/proc/self/fd").iterdir())) <= files + 40, 20.0, "sockets are closed"
        )
        assert door.tmp() == []
        wait_until(lambda: not any(isinstance(o, Door) for o in gc.get_objects()), 20.0, "memory is free")
    wait_until(lambda: threading.active_count() <= threads + 1, 20.0, "threads are gone")


def test_the_same_instance_from_many_at_once_is_stored_once(sqlite_store: Store) -> None:
    """R7, M11: ten senders of the same UIDs at the same time."""
    sets = {f"1.2.3.{n}": data_set(f"1.2.3.{n}") for n in range(8)}
    with house(sqlite_store) as door:

        def sender(number: int) -> None:
            order = list(sets)
            random.Random(number).shuffle(order)
            with door.peer() as peer:
                peer.associate(CT, calling=f"CT{number % 3}")
                for uid in order:
                    assert peer.store(uid, sets[uid]).status == 0

        at_once(sender, 10)
        assert door.stored() == {uid: sha256(data) for uid, data in sets.items()}
        assert sqlite_store.events.list(name="instance.conflict") == []
        assert len(list(sqlite_store.spool.walk())) == len(sets)


def test_hostile_streams_never_stop_the_echo(sqlite_store: Store) -> None:
    """R21, the small one: mutated conversations over real sockets, and an echo in between."""
    seed = int(os.environ.get("FUZZ_SEED", "20261123"))
    choice = random.Random(seed)
    conversation = (
        REQUEST + message(1, store_rq("1.2.8.1"), data_set("1.2.8.1"), 60) + message(3, echo_rq(), None)
    )
    with house(sqlite_store, config(timeouts=QUICK)) as door:
        for number in range(120):
            raw = bytearray(conversation)
            start = choice.choice([0, 0, len(REQUEST)])
            for _ in range(choice.randint(1, 5)):
                at = choice.randrange(start, len(raw))
                if choice.random() < 0.6:
                    raw[at] = choice.randrange(256)
                elif choice.random() < 0.5:
                    del raw[at : at + choice.randint(1, 40)]
                else:
                    raw[at:at] = choice.randbytes(choice.randint(1, 40))
            with door.peer() as peer, contextlib.suppress(OSError):
                peer.send(bytes(raw))
                if choice.random() < 0.3:
                    peer.reset()
            if number % 20 == 0:
                with door.peer() as peer:
                    peer.associate(VERIFICATION)
                    peer.send(message(1, echo_rq(9), None))
                    assert peer.answer().status == 0
        door.quiet()
        assert good(door.port) < 15.0
        assert door.tmp() == []


# --- R11: stopping ----------------------------------------------------------------------------------------


def test_stopping_finishes_the_message_under_way_and_takes_no_more(sqlite_store: Store) -> None:
    data = data_set("1.2.3.2", pixels=bytes(100_000))
    raw = message(1, store_rq("1.2.3.2"), data)
    with house(sqlite_store) as door, door.peer() as busy, door.peer() as idle, door.peer() as early:
        busy.associate(CT)
        idle.associate(CT)
        busy.send(raw[:50_000])
        wait_until(lambda: len(door.tmp()) == 1, 20.0, "the data set is arriving")
        port = door.port
        stopper = threading.Thread(target=door.receiver.stop, args=(10.0,))
        stopper.start()
        assert idle.read()[0] == 7
        kind, _ = early.read()
        assert kind == 0
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=2)
        busy.send(raw[50_000:])
        assert busy.answer().status == 0
        assert busy.read()[0] == 7
        stopper.join(10)
        assert not stopper.is_alive()
        assert door.stored() == {"1.2.3.2": sha256(data)}
        assert sorted(str(a.end) for a in door.associations()) == ["ABORTED", "ABORTED"]
        assert door.tmp() == []


def test_stopping_does_not_wait_for_ever(sqlite_store: Store) -> None:
    with house(sqlite_store) as door, door.peer() as peer:
        peer.associate(CT)
        peer.send(message(1, store_rq("1.2.3.2"), data_set("1.2.3.2"))[:200])
        wait_until(lambda: len(door.tmp()) == 1, 20.0, "the data set is arriving")
        began = time.monotonic()
        door.receiver.stop(0.5)
        assert time.monotonic() - began < 30.0  # without an end it would be the minute of a message
        assert door.stored() == {}
        assert door.tmp() == []


def test_a_receiver_starts_again_on_the_same_port(sqlite_store: Store) -> None:
    from node.config.network import HostPort

    settings = config(listen=HostPort(host="127.0.0.1", port=free_port()))
    for number in range(3):
        with house(sqlite_store, settings) as door:
            good(door.port, number)


def test_ipv4_and_ipv6_on_one_port(sqlite_store: Store) -> None:
    from node.config.network import HostPort
    from node.config.network import Peer as Allowed

    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this machine")
    allowed = (Allowed(ae_title="CT1", addresses=("127.0.0.0/8", "::1")),)
    with house(sqlite_store, config(listen=HostPort(host="::", port=0), accept_from=allowed)) as door:
        good(door.port, 1, host="127.0.0.1")
        good(door.port, 2, host="::1")
        door.quiet()
        assert {a.address for a in door.associations()} == {"127.0.0.1", "::1"}
