"""What real senders send is stored byte for byte: DCMTK, pynetdicom, and every file of the corpus."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from time import sleep

import pytest
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE

from node.store import Store
from tests.peers import StoreScp, needs, wait_until
from tests.receiving import House, at_once, config, house
from tests.senders import (
    CT,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    associate_rq,
    data_set,
    part10_data_set,
    sha256,
)

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def shared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("peers")
    shutil.copy(sqlite_template, folder / "luminode.db")
    classes = ("1.3.46.670589.11.0.0.12.1", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.12.1")
    settings = config(private_classes=classes)
    with (
        Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool") as store,
        house(store, settings) as one,
    ):
        yield one


@pytest.fixture
def door(shared: House) -> Iterator[House]:
    yield shared
    shared.forget()


def corpus(*parts: str) -> list[Path]:
    folder = CORPUS.joinpath(*parts)
    if not folder.is_dir():
        pytest.skip("the image corpus is not beside the checkout (../shared/data)")
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.read_bytes()[128:132] == b"DICM")


def dcmtk(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a DCMTK program; without TCP_NODELAY, as it comes."""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


# --- R6: bytes are what they were -------------------------------------------------------------------------


@pytest.mark.corpus
def test_every_odd_file_is_stored_byte_for_byte(door: House) -> None:
    """Each by hand, its data set as it lies in the file, in its own transfer syntax."""
    stored, syntaxes = 0, set()
    for path in corpus("odd"):
        if path.name == "meta_missing_tsyntax.dcm":
            continue
        sop_class, uid, syntax, data = part10_data_set(path)
        inside = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True)
        sop_class, uid = inside.get("SOPClassUID") or sop_class, inside.get("SOPInstanceUID") or uid
        with door.peer() as peer:
            assert peer.ask(associate_rq([(1, sop_class, [syntax])]))[0] == 2
            assert peer.accepted == {1: syntax}, path.name
            answer = peer.store(uid, data, sop_class=sop_class)
            assert answer.status == 0, (path.name, answer)
            assert peer.release() == 6
        assert door.stored() == {uid: sha256(data)}, path.name
        (one,) = door.instances()
        found = dcmread(door.store.spool.path(one.path), stop_before_pixels=True)
        assert found.file_meta.TransferSyntaxUID == one.transfer_syntax_uid == syntax
        assert found.file_meta.MediaStorageSOPInstanceUID == uid
        stored += 1
        syntaxes.add(syntax)
        door.forget()
    assert stored >= 35
    assert len(syntaxes) >= 9


def test_every_transfer_syntax_is_stored_as_received(door: House) -> None:
    """All that pydicom knows, with odd lengths, private elements and a sequence of undefined length."""
    private = b"\x09\0\x10\0LO\x04\0ACME" + b"\x09\0\x01\x10OB\0\0\x06\0\0\0\1\2\3\4\5\6"
    sequence = b"\x40\0\x75\x02SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    sequence += b"\x40\0\x07\0LO\x02\0A " + b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    sent = {}
    explicit = [str(s) for s in AllTransferSyntaxes if s.is_little_endian and not s.is_implicit_VR]
    explicit = [s for s in explicit if s not in ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.205")]
    assert len(explicit) > 25
    for n, syntax in enumerate(explicit):
        uid = f"1.2.3.{n}"
        data = data_set(uid, pixels=os.urandom(4001)) + b"\xfc\xff\xfc\xffOB\0\0\3\0\0\0odd"
        at = data.index(b"\x10\0\x10\0PN")
        data = data[:at] + private + data[at:]
        at = data.index(b"\x28\0\x02\0")
        data = data[:at] + sequence.replace(b"\x40\0", b"\x21\0") + data[at:]
        with door.peer() as peer:
            assert peer.ask(associate_rq([(1, CT, [syntax])]))[0] == 2
            assert peer.accepted == {1: syntax}
            assert peer.store(uid, data).status == 0, syntax
        sent[uid] = sha256(data)
    assert door.stored() == sent
    assert {one.transfer_syntax_uid for one in door.instances()} == set(explicit)


@pytest.mark.peer
def test_storescu_stores_what_dcmtks_own_receiver_stores(door: House, tmp_path: Path) -> None:
    """The same storescu sends to storescp, which keeps every bit, and to us: the data sets are the same."""
    needs("storescu", "storescp", "echoscu")
    files = [str(p) for p in corpus("odd") if p.name in ("CT_small.dcm", "MR_small.dcm")]
    scp = StoreScp(tmp_path / "theirs", "+xe")
    try:
        for options in (["-xe"], ["-xi"]):
            for path in files:
                for port in (scp.port, door.port):
                    done = dcmtk("storescu", "-aec", "LUMINODE", *options, "127.0.0.1", str(port), path)
                    assert done.returncode == 0, done.stderr
                theirs = dict(map(_digest, (tmp_path / "theirs").iterdir()))
                ours = door.stored()
                assert ours
                assert ours == {uid: theirs[uid] for uid in ours}
                door.forget()
    finally:
        scp.stop()
    assert dcmtk("echoscu", "-aec", "LUMINODE", "127.0.0.1", str(door.port)).returncode == 0
    assert dcmtk("echoscu", "-aec", "WRONG", "127.0.0.1", str(door.port)).returncode != 0


def _digest(path: Path) -> tuple[str, str]:
    _, uid, _, data = part10_data_set(path)
    return uid, sha256(data)


@pytest.mark.peer
@pytest.mark.corpus
def test_dcmsend_sends_compressed_and_deflated_files_of_many_classes(door: House) -> None:
    needs("dcmsend")
    names = {
        "CT1_J2KR", "CT1_RLE", "MR_small_jpeg_ls_lossless.dcm", "emri_small.dcm", "test-SR.dcm",
        "image_dfl.dcm", "GH178.dcm", "liver_1frame.dcm", "J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm",
    }  # fmt: skip
    files = [p for p in corpus("odd") if p.name in names]
    done = dcmtk(
        "dcmsend", "-v", "--decompress-never", "--no-halt", "-aec", "LUMINODE", "127.0.0.1", str(door.port),
        *map(str, files),
    )  # fmt: skip
    expected = {part10_data_set(p)[1] for p in files}
    assert set(door.stored()) == expected, done.stdout + done.stderr
    assert set(door.ends(1)) == {"RELEASED"}


@pytest.mark.peer
@pytest.mark.corpus
def test_four_senders_at_once_send_a_whole_series_each(door: House) -> None:
    needs("storescu")
    folders = [
        ["ct", "ct_lung_radphantom_pat1"], ["ct", "ct_head_ge_tilt"], ["mr", "mr_multiecho_ge_450w"],
        ["mr", "mr_dwi_philips_achieva"],
    ]  # fmt: skip
    files = [corpus(*folder)[:20] for folder in folders]

    def send(number: int) -> None:
        command = ["storescu", "-aec", "LUMINODE", "-R", "-xe"]
        done = dcmtk(*command, "127.0.0.1", str(door.port), *map(str, files[number]))
        assert done.returncode == 0, done.stderr

    at_once(send, 4)
    assert set(door.stored()) == {part10_data_set(p)[1] for group in files for p in group}
    assert door.ends(4) == ["RELEASED"] * 4


def test_pynetdicom_sends_and_echoes(door: House) -> None:
    ae = AE(ae_title="PYNET")
    ae.add_requested_context(CT, [IMPLICIT, EXPLICIT])
    ae.add_requested_context(VERIFICATION)
    assoc = ae.associate("127.0.0.1", door.port, ae_title="LUMINODE")
    assert assoc.is_established
    # Its sender now and then takes the answer away from itself (its two threads race for it): hold one of
    # the two still while messages are sent.
    assoc._reactor_checkpoint.clear()
    assoc._reactor_checkpoint.set, resume = lambda: None, assoc._reactor_checkpoint.set
    wait_until(lambda: assoc._is_paused, told="its reactor is paused")
    sleep(0.05)
    try:
        assert assoc.send_c_echo().Status == 0
        for n in range(5):
            ds = dcmread(BytesIO(data_set(f"1.2.3.{n}")), force=True)
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = UID(EXPLICIT)
            ds.set_original_encoding(False, True)
            assert assoc.send_c_store(ds).Status == 0
        assert assoc.send_c_echo().Status == 0
    finally:
        assoc._reactor_checkpoint.set = resume
        assoc.release()
    assert sorted(door.stored()) == [f"1.2.3.{n}" for n in range(5)]
    assert door.ends(1) == ["RELEASED"]
