"""S3: what the door and the sender offer and take of TLS, scanned by OpenSSL's programs and by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.config.load import parse
from node.config.network import ClientTLS, HostPort
from node.config.schema import DimseDestination
from node.deliver.dimse import peer_of
from node.deliver.wire import connect
from node.errors import PeerUnreachable, ReceiveError
from node.receive.server import _tls
from tests.faults.hostile import Node
from tests.faults.ledger import record
from tests.faults.scale import FULL, SEED, count
from tests.faults.tls_samples import (
    AEAD_12,
    AEAD_13,
    CLIENT,
    SERVER,
    VERSIONS,
    Authority,
    Pair,
    agreed,
    chosen,
    client_hello,
    every_cipher,
    every_suite,
    s_client,
    s_server,
)
from tests.peers import needs
from tests.senders import CT, Peer

pytestmark = pytest.mark.peer

MAY = {
    "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
    *(
        f"ECDHE-{key}-{cipher}" for key in ("RSA", "ECDSA")
        for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    ),
}  # fmt: skip
"""All that may be agreed, in OpenSSL's names: RFC 9325 4.2 and 4.2.1, with ECDHE alone."""

OLD = ("-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0", "-legacy_renegotiation")


class Site:
    """A node's authority and a stranger's; a scanner's certificate."""

    def __init__(self, folder: Path) -> None:
        needs("openssl")
        self.folder = folder
        self.ours, self.other = Authority(folder, "ours"), Authority(folder, "other")
        self.scanner = self.ours.issue("scanner", usages=(CLIENT,))
        self.server = {kind: self.ours.issue(f"server-{kind}", kind=kind) for kind in ("rsa", "ec")}

    def tls(self, kind: str) -> dict[str, Any]:
        pair = self.server[kind]
        return {
            "certificate": str(pair.certificate), "key": str(pair.key), "authorities": str(self.ours.pem),
        }  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=("rsa", "ec")[: count(1, 2)])
def door(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, site: Site
) -> Iterator[tuple[Node, str]]:
    """A receiver that wants certificates, and the kind of its own key."""
    folder = tmp_path_factory.mktemp("door")
    with Node(folder, node={"tls": site.tls(request.param)}) as node:
        yield node, request.param


def shown(pair: Pair) -> tuple[str, ...]:
    return ("-cert", str(pair.certificate), "-key", str(pair.key))


def established(told: str) -> bool:
    """Whether a handshake went through and stood: in TLS 1.3 a client hears of its rejection only afterwards."""
    return bool(agreed(told)) and "alert" not in told


def test_the_door_takes_aead_suites_of_tls_1_2_and_1_3_alone(door: tuple[Node, str], site: Site) -> None:
    """Each suite by OpenSSL's client, then every number that a suite can have, by hand."""
    node, kind = door
    ciphers, rng = every_cipher(), np.random.default_rng(SEED)
    certificate = shown(site.scanner)
    taken, wrong = set(), []
    part = {name for name, _ in ciphers} & MAY
    part |= set(rng.permutation([name for name, _ in ciphers if name not in MAY])[: count(8, 1000)])
    for name, version in ciphers:
        if name not in part:
            continue
        if version == "TLSv1.3":
            options = ("-tls1_3", "-ciphersuites", name)
        else:
            options = ("-tls1_2", "-cipher", f"{name}:@SECLEVEL=0")
        told = agreed(s_client(node.port, *options, *certificate))
        if told:
            taken.add(told)
    wrong += [v for v in ("-tls1", "-tls1_1") if agreed(s_client(node.port, v, *OLD, *certificate))]
    for name, number in VERSIONS.items():
        allowed = AEAD_12 if number == VERSIONS["TLS 1.2"] else set()
        suites = every_suite(allowed | AEAD_13)
        for some in (suites[:30000], suites[30000:60000], suites[60000:]):
            answer = chosen(node.port, client_hello(number, some))
            if answer is not None:
                wrong.append(f"{name}: {answer}")
    one_by_one = (
        sorted(AEAD_12) if not FULL else [*range(0x100), *range(0xC000, 0xC200), *range(0xCC00, 0xCD00)]
    )
    by_hand = {n for n in one_by_one if chosen(node.port, client_hello(0x0303, [n])) is not None}
    control = chosen(node.port, client_hello(0x0303, [*every_suite(AEAD_12)[:30000], *AEAD_12]))
    node.quiet()
    events = node.events("tls.refused")
    of_this_key = {
        name for name in MAY if "ECDHE" not in name or f"-{'RSA' if kind == 'rsa' else 'ECDSA'}-" in name
    }
    n_numbers = 0x10000 - 2 - len(AEAD_12 | AEAD_13)
    record(
        "S3",
        load=f"the door, {kind.upper()} key: s_client with each of the suites that OpenSSL has, TLS 1.0 and 1.1 with "
        "all of them; by hand ClientHellos of SSL 3.0, TLS 1.0, 1.1 and 1.2 with every number of a suite but AEAD",
        count=len(part) + 2 + len(VERSIONS) * n_numbers,
        result=f"{len(taken)} suites taken, all AEAD with ECDHE or of TLS 1.3; nothing before TLS 1.2; {events} events",
        ok=taken == of_this_key and not wrong and by_hand <= AEAD_12,
    )
    assert taken == of_this_key
    assert wrong == []
    assert control is not None, "a hello by hand that also names an AEAD suite is answered"
    assert len(by_hand) == 3
    assert by_hand <= AEAD_12
    assert events >= 1


def test_the_door_renegotiates_and_compresses_nothing(door: tuple[Node, str], site: Site) -> None:
    certificate = shown(site.scanner)
    node, _ = door
    plain = s_client(node.port, "-tls1_2", *certificate)
    again = s_client(node.port, "-tls1_2", "-legacy_renegotiation", *certificate, say="R\nx\n")
    fallen = s_client(node.port, "-tls1_2", "-fallback_scsv", *certificate)
    node.quiet()
    ok = (
        agreed(plain) in MAY and "Secure Renegotiation IS supported" in plain
        and "Compression: NONE" in plain and "Expansion: NONE" in plain
        and "RENEGOTIATING" in again and "no renegotiation" in again
        and not agreed(fallen)
    )  # fmt: skip
    record(
        "S3",
        load="the door: a client that renegotiates, one that would compress, one that fell back from TLS 1.3",
        count=3,
        result="no renegotiation, no compression, the fallen one refused (RFC 7507)",
        ok=ok,
    )
    assert ok, (plain[-800:], again[-800:], fallen[-800:])


def test_the_door_wants_a_certificate_that_is_good_for_a_client(door: tuple[Node, str], site: Site) -> None:
    bad = {
        "none": (),
        "of another authority": shown(site.other.issue("other-scanner", usages=(CLIENT,))),
        "expired": shown(site.ours.issue("expired", usages=(CLIENT,), days=(-40, -1))),
        "not yet valid": shown(site.ours.issue("early", usages=(CLIENT,), days=(2, 40))),
        "of a server": shown(site.ours.issue("server-only", usages=(SERVER,))),
    }
    wrong = []
    node, _ = door
    for version in ("-tls1_2", "-tls1_3"):
        assert established(s_client(node.port, version, *shown(site.scanner))), version
        for what, options in bad.items():
            # Read until the node ends it: a client of TLS 1.3 is done before its certificate is looked at.
            told = s_client(node.port, version, "-ign_eof", *options, say="x")
            if established(told):
                wrong.append(f"{version} {what}")
    node.quiet()
    spooled, events = node.spooled(), node.events("tls.refused")
    with pytest.raises((OSError, AssertionError)), Peer(node.port) as peer:
        peer.associate(CT)
    record(
        "S3",
        load=f"the door with authorities: TLS 1.2 and 1.3, a certificate that is {', '.join(bad)}; no TLS at all",
        count=2 * len(bad) + 1,
        result=f"{len(wrong)} came in, {spooled} bytes stored, {events} events",
        ok=not wrong and not spooled,
    )
    assert wrong == []
    assert events >= 1


def dial(site: Site, port: int) -> str:
    """The version with which the node's sender reaches a server; raises PeerUnreachable."""
    destination = DimseDestination(
        kind="dimse",
        ae_title="PACS",
        address=HostPort(host="127.0.0.1", port=port),
        tls=ClientTLS(
            authorities=str(site.ours.pem),
            certificate=str(site.scanner.certificate),
            key=str(site.scanner.key),
        ),
    )
    peer = peer_of(destination, "LUMINODE")
    wire = connect(peer.host, peer.port, 20.0, peer.tls)
    try:
        return str(wire._sock.version())  # type: ignore[attr-defined]
    finally:
        wire.close()


def test_the_sender_gives_no_image_to_a_weak_or_false_pacs(site: Site) -> None:
    ours, good = site.ours, site.server["rsa"]
    weak = "@SECLEVEL=0"
    mutual = ("-Verify", "2", "-verify_return_error", "-CAfile", str(ours.pem))
    fair: dict[str, tuple[Pair, tuple[str, ...]]] = {
        "TLS 1.2": (good, ("-tls1_2", *mutual)), "TLS 1.3": (good, ("-tls1_3", *mutual)),
        "ECDSA": (site.server["ec"], ("-tls1_2", *mutual)),
    }  # fmt: skip
    bad: dict[str, tuple[Pair, tuple[str, ...]]] = {
        "TLS 1.0": (good, ("-tls1", "-cipher", f"ALL:{weak}")),
        "TLS 1.1": (good, ("-tls1_1", "-cipher", f"ALL:{weak}")),
        "CBC with ECDHE": (
            good,
            ("-tls1_2", "-cipher", f"ECDHE-RSA-AES256-SHA384:ECDHE-RSA-AES128-SHA256:{weak}"),
        ),
        "CBC with DHE": (good, ("-tls1_2", "-cipher", f"DHE-RSA-AES256-SHA256:DHE-RSA-AES256-SHA:{weak}")),
        "no forward secrecy": (good, ("-tls1_2", "-cipher", f"AES256-GCM-SHA384:AES128-GCM-SHA256:{weak}")),
        "no encryption": (good, ("-tls1_2", "-cipher", f"NULL:{weak}")),
        "no authentication": (good, ("-tls1_2", "-cipher", f"aNULL:{weak}")),
        "another authority": (site.other.issue("other-pacs", kind="rsa"), ()),
        "expired": (ours.issue("old-pacs", days=(-40, -1)), ()),
        "not yet valid": (ours.issue("early-pacs", days=(2, 40)), ()),
        "for a client only": (ours.issue("client-pacs", usages=(CLIENT,)), ()),
        "of another host": (ours.issue("far-pacs", address="127.0.0.77"), ()),
    }
    for what, (pair, options) in fair.items():
        with s_server(pair, *options) as port:
            assert dial(site, port).startswith("TLSv1."), what
    reached, untold = [], []
    for what, (pair, options) in bad.items():
        with s_server(pair, *options) as port:
            try:
                reached.append(f"{what}: {dial(site, port)}")
            except PeerUnreachable as error:
                if "TLS handshake failed" not in error.message or "BCP 195" not in error.hint:
                    untold.append(f"{what}: {error.message}")
    record(
        "S3",
        load=f"the sender to OpenSSL's server: {', '.join(bad)}; {', '.join(fair)} with mutual authentication",
        count=len(bad) + len(fair),
        result=f"{len(reached)} of {len(bad)} reached, each refused with what to do; {len(fair)} fair ones reached",
        ok=not reached and not untold,
    )
    assert reached == []
    assert untold == []


def test_a_key_with_a_passphrase_is_refused_and_asked_for_at_no_terminal(site: Site) -> None:
    """OpenSSL would ask the terminal for it, and a node that starts in one would wait there for ever."""
    locked = site.ours.issue("locked", passphrase="open sesame")
    tls = ClientTLS(authorities=str(site.ours.pem), certificate=str(locked.certificate), key=str(locked.key))
    address = HostPort(host="127.0.0.1", port=9)
    with pytest.raises(PeerUnreachable) as told:
        peer_of(DimseDestination(kind="dimse", ae_title="PACS", address=address, tls=tls), "LUMINODE")
    assert "without passphrase" in told.value.hint
    settings = {
        "accept_from": ["CT1"],
        "tls": {"certificate": str(locked.certificate), "key": str(locked.key)},
    }
    rules = [{"name": "r", "when": "any", "ignore": True}]
    with pytest.raises(ReceiveError) as refused:
        _tls(parse(json.dumps({"node": settings, "rules": rules})).config)
    assert "without passphrase" in refused.value.hint
