"""The spool: what is published is whole, under a name that no peer can choose."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import resource
import signal
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import OutOfSpace, StoreError
from node.store import Spool, spool_path
from node.store.disk import free_bytes
from tests.storing import writer_at

SHA = hashlib.sha256(b"pixels").hexdigest()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "deep" / "spool")


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(minutes=1)


def put(spool: Spool, data: bytes = b"pixels", sop: str = "1.2.3.4", area: Any = "received") -> str:
    with spool.create() as writer:
        assert writer.write(memoryview(data)) == len(data)
        assert writer.size == len(data)
        writer.sync()
        path = writer.publish("1.2.3", sop, hashlib.sha256(data).hexdigest(), area)
    spool.sync_dirs([path])
    return path


def test_what_is_published_is_what_was_written(spool: Spool) -> None:
    with spool.create() as writer:
        for part in (b"abc", bytearray(b"def"), memoryview(b"ghi"), b""):
            writer.write(part)
        writer.sync()
        path = writer.publish("1.2.3", "1.2.3.4", "0" * 64)
    with spool.open(path) as file:
        assert file.read() == b"abcdefghi"
    assert list((spool.root / "tmp").iterdir()) == []


def test_a_numpy_like_view_is_written_as_bytes(spool: Spool) -> None:
    with spool.create() as writer:
        assert writer.write(memoryview(bytes(8)).cast("H")) == 8
        assert writer.size == 8


def test_nothing_is_left_of_what_was_not_published(spool: Spool) -> None:
    with spool.create() as writer:
        writer.write(b"abc")
    writer.discard()
    assert list(spool.walk()) == []
    assert list((spool.root / "tmp").iterdir()) == []


def test_files_and_folders_are_for_nobody_else(spool: Spool) -> None:
    old = os.umask(0)
    try:
        path = put(spool)
    finally:
        os.umask(old)
    assert stat.S_IMODE(spool.path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(spool.path(path).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(spool.root.stat().st_mode) == 0o700


def test_one_series_lies_in_one_folder_and_derived_files_apart(spool: Spool) -> None:
    received = {put(spool, str(n).encode(), f"1.2.3.{n}").partition("/")[0] for n in range(9)}
    assert len(received) == 1
    path = put(spool, area="derived")
    assert path.startswith("derived/")
    assert {(f.area, f.size) for f in spool.walk()} == {("received", 1), ("derived", 6)}
    assert len([f for f in spool.walk() if f.area == "received"]) == 9


def test_other_bytes_under_the_same_uid_have_another_name() -> None:
    one = spool_path("1.2", "1.2.3", "a" * 64)
    assert one != spool_path("1.2", "1.2.3", "b" * 64)
    assert one == spool_path("1.2", "1.2.3", "a" * 64)
    assert one != spool_path("1.2", "1.2.4", "a" * 64)


@given(series=st.text(), sop=st.text())
@settings(max_examples=60, derandomize=True)
def test_no_uid_leads_out_of_the_spool(series: str, sop: str) -> None:
    """R26: whatever a peer sends, its bytes are hashed and never part of a path."""
    for area in ("received", "derived"):
        path = spool_path(series, sop, SHA, area)  # type: ignore[arg-type]
        parts = path.split("/")
        assert parts[-1].removesuffix(".dcm").isalnum()
        assert len(parts) == (3 if area == "derived" else 2)


@pytest.mark.parametrize(
    "relative",
    ["", "/etc/passwd", "../x", "ab/../../x", "tmp/x", "ab/" + "0" * 64, "AB/" + "0" * 64 + ".dcm",
     "ab/" + "0" * 64 + ".dcm\n", "derived/../ab/" + "0" * 64 + ".dcm", "ab/\0" + "0" * 63 + ".dcm"],
)  # fmt: skip
def test_only_names_of_its_own_making_are_opened(spool: Spool, relative: str) -> None:
    for use in (spool.path, spool.open, spool.exists, spool.remove):
        with pytest.raises(StoreError):
            use(relative)


def test_a_link_in_place_of_a_file_is_not_followed(spool: Spool, tmp_path: Path) -> None:
    path = put(spool)
    (tmp_path / "secret").write_bytes(b"secret")
    spool.remove(path)
    spool.path(path).symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError):
        spool.open(path)
    assert not spool.exists(path)
    assert list(spool.walk()) == []


@pytest.mark.parametrize("planted", ["tmp", "derived", "scratch"])
def test_a_link_in_place_of_a_folder_is_refused_at_opening(tmp_path: Path, planted: str) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool" / planted).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        Spool(tmp_path / "spool")


def test_a_link_in_place_of_a_series_folder_is_refused(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = spool_path("1.2.3", "1.2.3.4", SHA).partition("/")[0]
    (spool.root / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        put(spool)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert list((spool.root / "tmp").iterdir()) == []


def test_a_folder_that_was_removed_is_made_again(spool: Spool) -> None:
    path = put(spool)
    spool.remove(path)
    spool.path(path).parent.rmdir()
    with pytest.raises(StoreError) as raised:
        put(spool)
    assert raised.value.retryable
    assert put(spool) == path


def test_bit_rot_is_found(spool: Spool) -> None:
    """R13."""
    path = put(spool, b"meta" + b"pixels")
    assert spool.verify(path, 4, SHA)
    with spool.path(path).open("r+b") as file:
        file.seek(7)
        file.write(b"X")
    assert not spool.verify(path, 4, SHA)
    spool.remove(path)
    assert not spool.verify(path, 4, SHA)


def test_receiving_the_same_again_heals_rotten_bytes(spool: Spool) -> None:
    path = put(spool)
    spool.path(path).write_bytes(b"rotten")
    assert put(spool) == path
    assert spool.verify(path, 0, SHA)


def test_ten_writers_of_the_same_instance_do_not_disturb_each_other(spool: Spool) -> None:
    """reliability.md M11: names of files being written are random."""
    with ThreadPoolExecutor(10) as pool:
        paths = set(pool.map(lambda _: put(spool, b"pixels" * 5000), range(40)))
    (path,) = paths
    assert spool.verify(path, 0, hashlib.sha256(b"pixels" * 5000).hexdigest())
    assert list((spool.root / "tmp").iterdir()) == []


def test_new_names_and_their_folders_are_made_durable(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of reliability.md section 2: data, name, folder, and the folder's own name once."""
    did: list[str] = []
    real_fsync, real_data = os.fsync, os.fdatasync

    def named(fd: int) -> str:
        return str(Path(f"/proc/self/fd/{fd}").readlink()).removeprefix(str(spool.root))

    def fsync(fd: int) -> None:
        did.append(f"fsync {named(fd)}")
        real_fsync(fd)

    def fdatasync(fd: int) -> None:
        did.append("fdatasync")
        real_data(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    folder = put(spool).partition("/")[0]
    assert did == ["fdatasync", f"fsync /{folder}", "fsync "]
    did.clear()
    put(spool, sop="1.2.3.5")
    assert did == ["fdatasync", f"fsync /{folder}"]
    did.clear()
    put(Spool(spool.root), sop="1.2.3.6")
    assert did[-2:] == ["fdatasync", f"fsync /{folder}"], "another process finds it durable at its start"


@pytest.mark.parametrize(
    ("call", "step"),
    [("write", lambda w: w.write(b"x")), ("fdatasync", lambda w: w.sync()),
     ("rename", lambda w: w.publish("1.2", "1.3", SHA))],
)  # fmt: skip
@pytest.mark.parametrize(
    ("code", "raised"), [(errno.ENOSPC, OutOfSpace), (errno.EDQUOT, OutOfSpace), (errno.EIO, StoreError)]
)
def test_what_the_disk_refuses_is_typed_and_can_be_discarded(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str, step: Callable[[Any], object], code: int,
    raised: type[StoreError],
) -> None:  # fmt: skip
    """R3."""

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    writer = spool.create()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(raised) as told:
            step(writer)
    assert type(told.value) is raised
    assert errno.errorcode[code] in str(told.value)
    writer.discard()
    assert list((spool.root / "tmp").iterdir()) == []
    assert list(spool.walk()) == []


def test_a_real_limit_is_out_of_space(spool: Spool) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with spool.create() as writer, pytest.raises(OutOfSpace):
            writer.write(bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)


def test_free_space_is_that_of_the_file_system(spool: Spool) -> None:
    assert abs(spool.free_bytes() - free_bytes(spool.root)) < 1 << 30
    assert spool.free_bytes() > 0


# what dead writers leave ----------------------------------------------------------------------------


def test_a_living_writer_keeps_its_file(spool: Spool) -> None:
    writer = spool.create()
    scratch = spool.scratch("job-1")
    assert spool.sweep_tmp(soon()) == 0
    assert writer.path.exists()
    assert scratch.folder.exists()
    writer.discard()
    scratch.close()


def test_a_writer_just_begun_is_not_taken_for_dead(spool: Spool) -> None:
    (spool.root / "tmp" / "unlocked").write_bytes(b"")
    assert spool.sweep_tmp(datetime.now(UTC)) == 0
    assert spool.sweep_tmp(soon()) == 1


def _write_and_wait(root: str, ready: Any) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    spool = Spool(Path(root))
    writer = spool.create()
    writer.write(b"half an instance")
    scratch = spool.scratch("job-7")
    (scratch.folder / "pixels").write_bytes(b"x")
    ready.set()
    signal.pause()


def test_what_a_killed_writer_left_is_swept(spool: Spool) -> None:
    with writer_at(_write_and_wait, spool.root):
        assert spool.sweep_tmp(soon()) == 0, "it lives"
    assert spool.sweep_tmp(soon()) == 2
    assert list((spool.root / "tmp").iterdir()) == []
    assert list((spool.root / "scratch").iterdir()) == []


def test_scratch_is_private_and_goes(spool: Spool) -> None:
    with spool.scratch("../../evil name") as scratch:
        assert scratch.folder.parent == spool.root / "scratch"
        assert stat.S_IMODE(scratch.folder.stat().st_mode) == 0o700
        (scratch.folder / "pixels").write_bytes(b"x")
        folder = scratch.folder
    assert not folder.exists()
    scratch.close()
