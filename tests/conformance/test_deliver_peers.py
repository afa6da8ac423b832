"""Delivery to programs that others wrote: DCMTK's storescp and Orthanc."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from node.deliver.files import echo, send_files
from node.deliver.kinds import destination
from node.deliver.parcel import Parcel
from node.errors import AssociationRejected, DeliveryError, PeerUnreachable
from node.model import Outcome
from tests.parcels import ct_parcels
from tests.peers import J2K_LOSSLESS, OrthancPeer, StoreScp, wait_until
from tests.scripted import SlowProxy, dimse_settings

pytestmark = pytest.mark.peer

CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def parcels(tmp_path: Path) -> list[Parcel]:
    return ct_parcels(tmp_path / "spool", 10)


def send(settings: dict[str, Any], parcels: list[Parcel], **how: Any) -> list[Outcome]:
    told: list[Outcome] = []
    destination(settings).send(parcels, on_outcome=told.append, **how)
    return told


def data_set(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[144 + int.from_bytes(raw[140:144], "little") :]


def uids(parcels: list[Parcel]) -> list[str]:
    return sorted(p.sop_instance_uid for p in parcels)


@pytest.mark.parametrize("options", [(), ("-pdu", "4096"), ("-pdu", "131072")], ids=str)
def test_dcmtk_stores_the_very_bytes(
    storescps: Callable[..., StoreScp], tmp_path: Path, options: tuple[str, ...]
) -> None:
    parcels = ct_parcels(tmp_path / "spool", 3, side=300)
    scp = storescps("+xa", *options)
    assert all(o.status == 0 for o in send(scp.settings(), parcels))
    assert scp.uids() == uids(parcels)
    for one in parcels:
        assert data_set(scp.folder / f"CT.{one.sop_instance_uid}") == one.path.read_bytes()[one.offset :]


def test_dcmtk_stores_compressed_data_as_it_is(storescp: StoreScp, tmp_path: Path) -> None:
    parcels = ct_parcels(tmp_path / "spool", 2, syntax=J2K_LOSSLESS)
    assert all(o.done for o in send(storescp.settings(), parcels))
    for one in parcels:
        assert data_set(storescp.folder / f"CT.{one.sop_instance_uid}") == one.path.read_bytes()[one.offset :]


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", J2K_LOSSLESS])
def test_a_pacs_that_knows_implicit_little_endian_only_gets_the_same_pixels(
    storescps: Callable[..., StoreScp], tmp_path: Path, syntax: str
) -> None:
    parcels = ct_parcels(tmp_path / "spool", 2, syntax=syntax)
    scp = storescps("+xi")
    assert all(o.status == 0 for o in send(scp.settings(), parcels))
    for one in parcels:
        there, here = dcmread(scp.folder / f"CT.{one.sop_instance_uid}"), dcmread(one.path)
        assert there.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2"
        assert (there.pixel_array == here.pixel_array).all()
        del there.PixelData, here.PixelData
        assert there == here


@pytest.mark.corpus
def test_a_real_series_arrives_bit_by_bit(storescp: StoreScp) -> None:
    if not CORPUS.is_dir():
        pytest.skip("the image corpus is not beside the checkout (../shared/data)")
    files = sorted(p for p in (CORPUS / "ct" / "ct_chest_philips_lidc0314").iterdir() if p.is_file())
    sent = send_files(files, storescp.settings(), associations=1)
    assert (sent.n_done, sent.errors) == (len(files), ())
    there = {p.name.split(".", 1)[1]: data_set(p) for p in storescp.folder.iterdir()}
    assert len(there) == len(files)
    for path in files:
        ds = dcmread(path, stop_before_pixels=True)
        assert path.read_bytes().endswith(there[str(ds.SOPInstanceUID)])


# frozen, dead, slow -------------------------------------------------------------------------------


def test_a_pacs_frozen_before_the_association_is_left_in_bounded_time(
    storescp: StoreScp, parcels: list[Parcel]
) -> None:
    storescp.freeze()
    started = time.monotonic()
    with pytest.raises(PeerUnreachable, match="no answer"):
        send(storescp.settings(timeout=1), parcels)
    assert 0.9 < time.monotonic() - started < 30
    storescp.thaw()
    wait_until(lambda: echo(storescp.settings(timeout=2)).ok)
    assert all(o.done for o in send(storescp.settings(), parcels))


@pytest.mark.parametrize("after", [1, 9])
def test_a_pacs_frozen_on_the_way_is_left_and_the_rest_is_sent_when_it_wakes(
    storescp: StoreScp, parcels: list[Parcel], after: int
) -> None:
    told: list[Outcome] = []

    def on_outcome(outcome: Outcome) -> None:
        told.append(outcome)
        if len(told) == after:
            storescp.freeze()

    started = time.monotonic()
    with pytest.raises(PeerUnreachable):
        destination(storescp.settings(timeout=1)).send(parcels, on_outcome=on_outcome)
    assert time.monotonic() - started < 30
    assert [o.done for o in told] == [True] * after + [False]
    assert told[-1].status == -1
    storescp.thaw()
    done = frozenset(o.sop_instance_uid for o in told if o.done)
    with contextlib.suppress(DeliveryError):  # it may still be busy with the association that was reset
        send(storescp.settings(), parcels, done=done)
    assert all(o.done for o in send(storescp.settings(), parcels, done=done))
    assert storescp.uids() == uids(parcels)


def test_a_pacs_that_dies_on_the_way_and_comes_back_gets_the_rest(
    storescps: Callable[..., StoreScp], parcels: list[Parcel]
) -> None:
    scp = storescps("+xa")
    told: list[Outcome] = []

    def on_outcome(outcome: Outcome) -> None:
        told.append(outcome)
        if len(told) == 4:
            scp.stop()

    with pytest.raises(PeerUnreachable):
        destination(scp.settings()).send(parcels, on_outcome=on_outcome)
    done = frozenset(o.sop_instance_uid for o in told if o.done)
    assert len(done) == 4
    again = storescps("+xa", port=scp.port)
    assert len(send(again.settings(), parcels, done=done)) == 6
    assert sorted(scp.uids() + again.uids()) == uids(parcels)


@pytest.mark.parametrize(
    "how",
    [{"bytes_per_s": 64 * 1024}, {"delay_s": 0.02, "chunk": 4096}, {"chunk": 1, "bytes_per_s": 4e4}],
    ids=str,
)
def test_a_slow_network_is_used_not_punished(
    storescp: StoreScp, slow_network: Callable[..., SlowProxy], tmp_path: Path, how: dict[str, Any]
) -> None:
    side = 16 if how.get("chunk") == 1 else 200
    parcels = ct_parcels(tmp_path / "spool", 1, side=side)
    proxy = slow_network(storescp.port, **how)
    settings = dimse_settings(proxy.port, storescp.ae_title, timeout=3)
    assert [o.status for o in send(settings, parcels)] == [0]
    assert storescp.uids() == uids(parcels)


def test_a_network_under_the_slowest_rate_is_given_up(
    storescp: StoreScp, slow_network: Callable[..., SlowProxy], tmp_path: Path
) -> None:
    parcels = ct_parcels(tmp_path / "spool", 1, side=256)  # 131 kB: 4 s at the slowest rate, and 1
    proxy = slow_network(storescp.port, bytes_per_s=4096, chunk=2048)
    started = time.monotonic()
    with pytest.raises(PeerUnreachable):
        send(dimse_settings(proxy.port, storescp.ae_title, timeout=1), parcels)
    assert time.monotonic() - started < 30


# Orthanc ------------------------------------------------------------------------------------------


def test_orthanc_holds_every_instance_once_however_often_it_is_sent(
    orthanc: OrthancPeer, parcels: list[Parcel]
) -> None:
    for _ in range(2):
        assert all(o.done for o in send(orthanc.settings(), parcels))
    assert orthanc.uids() == uids(parcels)
    assert orthanc.series() == {parcels[0].series_uid: uids(parcels)}
    kept = orthanc.instance_file(orthanc.get("/instances")[0])
    assert any(kept.endswith(p.path.read_bytes()[p.offset :]) for p in parcels)


def test_orthanc_turns_away_who_calls_it_by_another_name(orthanc: OrthancPeer, parcels: list[Parcel]) -> None:
    settings = {**orthanc.settings(), "ae_title": "SOMEBODY"}
    with pytest.raises(AssociationRejected) as refused:
        send(settings, parcels)
    assert not refused.value.retryable
    assert "another AE title" in refused.value.message
    assert not echo(settings).ok
    assert echo(orthanc.settings()).ok


# TLS ----------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Any]:
    trustme = pytest.importorskip("trustme")
    folder = tmp_path / "tls"
    folder.mkdir()
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("127.0.0.1", "luminode"):
        cert = ca.issue_cert(name)
        cert.private_key_pem.write_to_path(folder / f"{name}.key")
        cert.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    other = trustme.CA()
    other.cert_pem.write_to_path(folder / "other.pem")
    yield folder
    shutil.rmtree(folder)


def test_tls_with_certificates_on_both_sides(
    storescps: Callable[..., StoreScp], authority: Path, parcels: list[Parcel]
) -> None:
    scp = storescps(
        "+xa", "+tls", str(authority / "127.0.0.1.key"), str(authority / "127.0.0.1.pem"),
        "+cf", str(authority / "ca.pem"),
    )  # fmt: skip
    ours = {
        "authorities": str(authority / "ca.pem"),
        "certificate": str(authority / "luminode.pem"),
        "key": str(authority / "luminode.key"),
    }
    assert all(o.done for o in send(scp.settings(tls=ours), parcels))
    assert scp.uids() == uids(parcels)
    with pytest.raises(PeerUnreachable):  # it wants a certificate, and gets none
        send(scp.settings(tls={"authorities": ours["authorities"]}, timeout=3), parcels)
    with pytest.raises(PeerUnreachable, match="TLS handshake"):  # an authority that did not sign it
        send(scp.settings(tls={**ours, "authorities": str(authority / "other.pem")}, timeout=3), parcels)
    with pytest.raises(PeerUnreachable, match="TLS files"):
        send(scp.settings(tls={"authorities": str(authority / "nowhere.pem")}, timeout=3), parcels)
    with pytest.raises(PeerUnreachable):  # plain TCP to a TLS port
        send(scp.settings(timeout=3), parcels)
