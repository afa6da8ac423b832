"""Names made ahead: no name is waited for, and none that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from node.errors import StoreError
from node.store import landing
from node.store.spool import Spool, SpoolWriter
from tests.peers import wait_until

DATA = b"the data set of an instance"
OFFSET = 200
SERIES, UID = "1.2.3", "1.2.3.4"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    one = Spool(tmp_path / "spool")
    one.land()
    yield one
    one.landed()


def written(spool: Spool, uid: str = UID, data: bytes = DATA) -> SpoolWriter:
    """A file as the receiver has it before it gets its name."""
    writer = spool.create()
    writer.write(bytes(OFFSET) + data)
    writer.seal(SERIES, uid, hashlib.sha256(data).hexdigest(), OFFSET)
    writer.sync()
    return writer


def published(writer: SpoolWriter, uid: str = UID, data: bytes = DATA) -> str:
    return writer.publish(SERIES, uid, hashlib.sha256(data).hexdigest())


def waiting(spool: Spool) -> list[Path]:
    """Files under ``landing/`` that hold something."""
    found = []
    for path in (spool.root / "landing").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was settled meanwhile
            if path.stat().st_size:
                found.append(path)
    return found


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(minutes=1)


def lose_name(spool: Spool, relative: str) -> None:
    """As a power cut does that comes before the folder was synced."""
    (spool.root / relative).unlink()


def test_a_file_has_two_names_until_the_second_is_durable(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, synced = threading.Event(), []
    sync = spool.sync_dirs

    def slow(paths: Any) -> None:
        paths = list(paths)
        assert held.wait(20)
        sync(paths)
        synced.extend(paths)

    monkeypatch.setattr(spool, "sync_dirs", slow)
    writer = written(spool)
    relative = published(writer)
    assert writer.anchored
    assert spool.path(relative).stat().st_nlink == 2
    assert len(waiting(spool)) == 1
    assert spool.verify(relative, OFFSET, hashlib.sha256(DATA).hexdigest())
    held.set()
    wait_until(lambda: not waiting(spool), 10, "the first name is taken away")
    assert synced == [relative]
    assert spool.path(relative).stat().st_nlink == 1


def test_there_is_always_a_name_ready(spool: Spool) -> None:
    anchored = 0
    for number in range(300):
        uid = f"{UID}.{number}"
        writer = written(spool, uid)
        published(writer, uid)
        anchored += writer.anchored
    assert anchored > 100
    assert sum(1 for _ in spool.walk()) == 300
    wait_until(lambda: not waiting(spool), 10, "all are settled")


def test_the_same_instance_again_takes_the_place_of_the_first(spool: Spool) -> None:
    first, again = written(spool), written(spool)
    relative = published(first)
    (spool.root / relative).write_bytes(b"rotten")
    assert published(again) == relative
    assert not again.anchored
    assert spool.verify(relative, OFFSET, hashlib.sha256(DATA).hexdigest())


def test_without_hard_links_files_are_renamed(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    writer = written(spool)
    relative = published(writer)
    assert not writer.anchored
    assert spool.exists(relative)
    assert spool.create().path.parent.name == "tmp", "no name is taken that cannot be used"


def test_what_is_not_sealed_is_renamed(spool: Spool) -> None:
    writer = spool.create()
    assert writer.path.parent.name == "landing"
    writer.write(bytes(OFFSET) + DATA)
    writer.sync()
    published(writer)
    assert not writer.anchored


def test_few_open_files_mean_few_names_ahead(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (240, before[1]))
    try:
        spool = Spool(tmp_path / "spool")
        spool.land()
        assert len(list((spool.root / "landing").iterdir())) == 240 // 8 // 3
        spool.landed()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert landing.most_files() <= 192


def test_a_stop_settles_all_and_leaves_no_names(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.land()
    relative = published(written(spool))
    spool.landed()
    assert list((spool.root / "landing").iterdir()) == []
    assert spool.path(relative).stat().st_nlink == 1


def test_while_the_disk_refuses_first_names_stay_and_no_more_are_given(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_paths: object) -> None:
        raise StoreError("sync of a folder failed")

    with monkeypatch.context() as patch:
        patch.setattr(spool, "sync_dirs", refuse)
        relative = published(written(spool))
        wait_until(lambda: spool._landing is not None and spool._landing._troubled, 10, "it is troubled")
        assert len(waiting(spool)) == 1
        assert spool.create().path.parent.name == "tmp"
    wait_until(lambda: not waiting(spool), 10, "it is settled when the disk takes it again")
    assert spool.exists(relative)


def test_a_disk_that_refuses_at_the_start_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")

    def full(_path: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(landing, "sync_folder", full)
        spool.land()
        assert spool.create().path.parent.name == "tmp"
    wait_until(lambda: spool.create().path.parent.name == "landing", 10, "names are made when it has room")
    spool.landed()


def test_a_file_that_retention_took_holds_nothing_up(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    held, sync = threading.Event(), spool._sync_landed

    def slow(paths: Any) -> None:
        assert held.wait(20)
        sync(paths)

    assert spool._landing is not None
    monkeypatch.setattr(spool._landing, "_sync_names", slow)
    relative = published(written(spool))
    lose_name(spool, relative)
    spool.path(relative).parent.rmdir()
    held.set()
    wait_until(lambda: not waiting(spool), 10, "it is settled")
    assert not spool._landing._troubled


# --- after a death ------------------------------------------------------------------------------------


def _land_and_wait(root: str, ready: Any) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    spool = Spool(Path(root))
    spool._sync_landed = lambda _paths: signal.pause()  # type: ignore[method-assign, assignment]
    spool.land()
    published(written(spool))
    published(written(spool, f"{UID}.2", b"another"), f"{UID}.2", b"another")
    written(spool, f"{UID}.3", b"whole, and not named")
    torn = written(spool, f"{UID}.4", b"torn by the power cut")
    os.pwrite(torn._fd, b"\0\0\0\0", OFFSET)
    spool.create().write(b"half an instance")
    ready.set()
    signal.pause()


def test_what_landed_whole_gets_its_name_back_and_the_rest_is_swept(tmp_path: Path) -> None:
    spool, spawn = Spool(tmp_path / "spool"), multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=_land_and_wait, args=(str(spool.root), ready))
    process.start()
    assert ready.wait(30)
    assert spool.sweep_tmp(soon()) == 0, "it lives"
    process.kill()
    process.join()
    named = {file.path: file for file in spool.walk()}
    assert len(named) == 2
    lost, kept = sorted(named)
    lose_name(spool, lost)
    assert spool.sweep_tmp(soon()) > 4
    assert list((spool.root / "landing").iterdir()) == []
    found = {file.path for file in spool.walk()}
    assert {lost, kept} < found
    assert len(found) == 3, "the third was whole: it may have been the last before the cut"
    assert all(spool.path(path).stat().st_nlink == 1 for path in found)


def test_what_cannot_get_its_name_back_stays_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.land()
    writer = written(spool)
    os.close(writer._fd)  # as if its process had died
    writer._fd = -1

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        spool.sweep_tmp(soon())
    assert writer.path.exists()
    spool.sweep_tmp(soon())
    assert not writer.path.exists()
    (file,) = spool.walk()
    assert spool.verify(file.path, OFFSET, hashlib.sha256(DATA).hexdigest())
    spool.landed()


@pytest.mark.parametrize(
    "preamble",
    [b"", b"LUMINODE", bytes(300), landing.seal("../../etc/passwd", "0" * 64, 0), b"\xff" * 200],
)
def test_no_preamble_makes_a_file_land_elsewhere(tmp_path: Path, preamble: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(preamble)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert landing.sealed_name(fd) == ""
    finally:
        os.close(fd)
