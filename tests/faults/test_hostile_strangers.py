"""R17, R25: who may not come in. Stalled handshakes block nobody; strangers leave no byte and an event."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.faults.hostile import BUSY_S, Node, good
from tests.faults.ledger import record
from tests.faults.scale import FULL, count, in_time
from tests.peers import wait_until
from tests.senders import CT, EXPLICIT, Peer, associate_rq, data_set, message, store_rq


class Site:
    """A node with TLS: its authority, and one that it does not know."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.other = trustme.CA(), trustme.CA()
        server = self.authority.issue_cert("127.0.0.1")
        server.cert_chain_pems[0].write_to_path(folder / "node.pem")
        server.private_key_pem.write_to_path(folder / "node.key")
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        self.tls = {
            "certificate": str(folder / "node.pem"),
            "key": str(folder / "node.key"),
            "authorities": str(folder / "ca.pem"),
        }

    def context(self, issuer: trustme.CA | None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if issuer is not None:
            issuer.issue_cert("scanner@hospital.example").configure_cert(context)
        return context

    def peer(self, node: Node, context: ssl.SSLContext, source: str = "127.0.0.2") -> Peer:
        peer = Peer(node.port, source=source)
        peer.sock = context.wrap_socket(peer.sock, server_hostname="127.0.0.1")
        return peer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("tls"))


def _client_hello(site: Site) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    machine = site.context(None).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        machine.do_handshake()
    return outgoing.read()


def test_a_stalled_handshake_blocks_nobody(tmp_path: Path, site: Site) -> None:
    """R17: peers that say nothing, half a greeting, or a whole one and then nothing."""
    each, within_s = 17, count(2, 10)
    timeouts = {} if FULL else {"timeouts": {"acse": "2s"}}
    hello = _client_hello(site)
    scanner = site.context(site.authority)
    with Node(tmp_path, node={"tls": site.tls, **timeouts}) as node:
        stalled = []
        began = time.monotonic()
        for first in (b"", hello[: len(hello) // 2], hello):
            for _ in range(each):
                sock = socket.create_connection(("127.0.0.1", node.port), timeout=30)
                sock.sendall(first)
                stalled.append(sock)
        waits = []
        for number in range(count(5, 30)):
            asked = time.monotonic()
            with site.peer(node, scanner) as peer:
                peer.associate(CT)
                waits.append(time.monotonic() - asked)
                assert peer.store(f"1.2.3.{number}", data_set(f"1.2.3.{number}")).status == 0
                assert peer.release() == 6
        stored = len(node.stored())
        for sock in stalled:
            while sock.recv(65536):
                pass
            sock.close()
        gone = time.monotonic() - began
        node.quiet()
        record(
            "R17",
            load=f"{len(stalled)} stalled TLS handshakes: silent, half a ClientHello, a whole one and then nothing",
            count=len(stalled),
            result=f"{stored}/{len(waits)} stored over TLS beside them, accepted in {max(waits):.2f} s at most; "
            f"stalled ones closed after {gone:.1f} s",
            ok=max(waits) <= 5 and gone <= within_s + 5 and in_time(max(waits), 1.0) and in_time(gone, 10.0),
            lost=len(waits) - stored,
        )
        assert stored == len(waits)
        assert max(waits) <= BUSY_S
        assert gone <= within_s + BUSY_S
        wait_until(lambda: node.threads() <= 12, 20.0, "threads are gone")


def test_only_today_s_tls_is_offered(tmp_path: Path, site: Site) -> None:
    """R17 and S3: no TLS before 1.2, no suite without forward secrecy or authenticated encryption."""
    old: list[tuple[str, ssl.TLSVersion, str]] = [
        ("TLS 1.0", ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0"),
        ("TLS 1.1", ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        ("RSA key exchange", ssl.TLSVersion.TLSv1_2, "AES256-GCM-SHA384:@SECLEVEL=0"),
        ("CBC", ssl.TLSVersion.TLSv1_2, "ECDHE-RSA-AES256-SHA384:ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0"),
    ]
    with Node(tmp_path, node={"tls": site.tls}) as node:
        for name, version, ciphers in old:
            context = site.context(site.authority)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that they are old is the point
                context.minimum_version = version
                context.maximum_version = version
            context.set_ciphers(ciphers)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                site.peer(node, context)
                raise AssertionError(name)
        told = set()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = site.context(site.authority)
            context.minimum_version = context.maximum_version = version
            with site.peer(node, context) as peer:
                peer.associate(CT)
                assert isinstance(peer.sock, ssl.SSLSocket)
                told.add(peer.sock.version())
                assert peer.release() == 6
        assert told == {"TLSv1.2", "TLSv1.3"}


def test_a_stranger_leaves_no_byte_and_an_event(tmp_path: Path) -> None:
    """R25: each way to be wrong, with a whole instance sent behind the request without waiting."""
    n = count(6, 100)
    allowed = [
        {"ae_title": "CT1", "addresses": ["127.0.0.2"]},
        {"ae_title": "MR1", "addresses": ["127.0.1.0/24"]},
    ]
    wrong: dict[str, tuple[str, dict[str, str], tuple[int, int, int]]] = {
        "calling AE title": ("127.0.0.2", {"calling": "CT2"}, (1, 1, 3)),
        "calling AE title in other letters": ("127.0.0.2", {"calling": "ct1"}, (1, 1, 3)),
        "called AE title": ("127.0.0.2", {"called": "ANY"}, (1, 1, 7)),
        "address": ("127.0.0.4", {}, (1, 1, 3)),
        "network": ("127.0.0.2", {"calling": "MR1"}, (1, 1, 3)),
        "application context": ("127.0.0.2", {"application": "1.2.3"}, (1, 1, 2)),
    }
    instance = message(1, store_rq("1.2.6.6"), data_set("1.2.6.6"))
    told: Counter[str] = Counter()
    with Node(tmp_path, node={"accept_from": allowed}) as node:
        for name, (source, more, reason) in wrong.items():
            request = associate_rq([(1, CT, [EXPLICIT])], **more)  # type: ignore[arg-type]
            for _ in range(n):
                with node.peer(source=source) as peer:
                    peer.send(request + instance)
                    kind, body = peer.read()
                    assert (kind, tuple(body[1:4])) == (3, reason), name
                    told[name] += 1
        node.quiet()
        assert node.tmp() == []
        spooled, events = node.spooled(), node.events("assoc.rejected")
        took = good(node, "1.2.3.1", source="127.0.0.2")
        record(
            "R25",
            load=f"{len(wrong)} ways to be a stranger ({', '.join(wrong)}), x{n}, each with an instance behind it",
            count=n * len(wrong),
            result=f"{sum(told.values())} rejected, {spooled} bytes stored, {events} events "
            f"(one for each in a minute); who may come is accepted in {took:.2f} s",
            ok=spooled == 0 and events >= len(wrong),
            extra=len(node.stored()) - 1,
        )
        assert spooled == 0
        assert events >= len(wrong)
        assert set(node.stored()) == {"1.2.3.1"}


def test_a_wrong_certificate_is_turned_away_and_told(tmp_path: Path, site: Site) -> None:
    """R25 with mTLS: of another authority, none at all, and no TLS at all."""
    n = count(4, 40)
    instance = associate_rq([(1, CT, [EXPLICIT])]) + message(1, store_rq("1.2.6.6"), data_set("1.2.6.6"))

    def tls(issuer: trustme.CA | None) -> Callable[[Node], Peer]:
        context = site.context(issuer)
        return lambda node: site.peer(node, context)

    ways: dict[str, Callable[[Node], Peer]] = {
        "another authority": tls(site.other),
        "no certificate": tls(None),
        "no TLS": lambda node: node.peer(),
    }
    with Node(tmp_path, node={"tls": site.tls}) as node:
        kinds: set[int] = set()
        for way in ways.values():
            for _ in range(n):
                with contextlib.suppress(OSError), way(node) as peer:
                    peer.send(instance)
                    kinds.add(peer.read()[0])
        node.quiet()
        spooled, events = node.spooled(), node.events("tls.refused")
        record(
            "R25",
            load=f"mTLS with {', '.join(ways)}, x{n}, each with an instance behind its request",
            count=n * len(ways),
            result=f"none accepted, {spooled} bytes stored, {events} events",
            ok=spooled == 0 and events >= 1,
        )
        assert not kinds & {2, 4}
        assert spooled == 0
        assert events >= 1
        assert node.stored() == {}
        with site.peer(node, site.context(site.authority)) as peer:
            peer.associate(CT)
            assert peer.store("1.2.3.1", data_set("1.2.3.1")).status == 0
