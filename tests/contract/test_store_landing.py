"""Names made ahead: no name is waited for, and none that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import resource
import signal
import stat
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
from tests.storing import writer_at

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


def test_a_folder_that_could_not_be_synced_keeps_its_first_names(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that failed proves nothing when it succeeds the next time."""

    def refuse(_paths: object) -> None:
        raise StoreError("sync of a folder failed")

    with monkeypatch.context() as patch:
        patch.setattr(spool, "sync_dirs", refuse)
        relative = published(written(spool))
        wait_until(lambda: spool._landing is not None and spool._landing._troubled, 10, "it is troubled")
        assert spool.create().path.parent.name == "tmp"
    wait_until(lambda: spool.create().path.parent.name == "landing", 10, "names are made again")
    other = published(written(spool, f"{UID}.2"), f"{UID}.2")
    wait_until(lambda: spool.path(other).stat().st_nlink == 1, 10, "others are settled")
    assert spool.path(relative).stat().st_nlink == 2
    assert len(waiting(spool)) == 1
    spool.landed()
    assert spool.path(relative).stat().st_nlink == 2, "not even at the end"
    assert spool.sweep_tmp(datetime.now(UTC)) == 1, "the next start sees to it"


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
    spool = Spool(tmp_path / "spool")
    with writer_at(_land_and_wait, spool.root):
        assert spool.sweep_tmp(soon()) == 0, "it lives"
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


def abandoned(spool: Spool, uid: str = UID, data: bytes = DATA) -> Path:
    """A file whose writer has died."""
    writer = written(spool, uid, data)
    os.close(writer._fd)
    writer._fd = -1
    return writer.path


def test_a_dead_file_goes_at_once_and_is_never_taken_for_lost_again(tmp_path: Path) -> None:
    """A receiver that is back at once must not leave first names that retention knows nothing of."""
    spool = Spool(tmp_path / "spool")
    spool.land()
    path = abandoned(spool)
    spool.sweep_tmp(datetime.now(UTC))
    assert not path.exists()
    (file,) = spool.walk()
    spool.remove(file.path)
    spool.sweep_tmp(soon())
    assert list(spool.walk()) == [], "what retention removed stays removed"
    spool.landed()


def test_bytes_are_durable_before_a_name_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, steps = Spool(tmp_path / "spool"), list[str]()
    spool.land()
    abandoned(spool)
    sync, link = os.fsync, os.link

    def synced(fd: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        sync(fd)

    def linked(*names: Any) -> None:
        steps.append("name")
        link(*names)

    spool.landed()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    spool.sweep_tmp(soon())
    assert steps[:3] == ["file", "name", "folder"]


@pytest.mark.parametrize("refused", ["read", "folder", "unlink"])
def test_one_bad_file_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.land()
    bad, good = abandoned(spool), abandoned(spool, f"{UID}.2", b"another")
    spool.landed()
    number, sync, unlink = bad.stat().st_ino, spool.sync_dirs, Path.unlink

    def whole(fd: int) -> bool:
        if refused == "read" and os.fstat(fd).st_ino == number:
            raise OSError(errno.EIO, "the medium is bad")
        return landing.is_whole(fd)

    def syncs(paths: Any) -> None:
        if refused == "folder" and any(spool.path(p).stat().st_ino == number for p in paths):
            raise StoreError("sync of a folder failed")
        sync(paths)

    def unlinks(path: Path, **more: Any) -> None:
        if refused == "unlink" and path == bad:
            raise OSError(errno.EIO, "the medium is bad")
        unlink(path, **more)

    monkeypatch.setattr("node.store.sweep.is_whole", whole)
    monkeypatch.setattr(spool, "sync_dirs", syncs)
    monkeypatch.setattr(Path, "unlink", unlinks)
    assert spool.sweep_tmp(soon()) == 1
    assert bad.exists()
    assert not good.exists()
    monkeypatch.undo()
    assert spool.sweep_tmp(soon()) == 1
    assert sum(1 for _ in spool.walk()) == 2


def test_a_file_that_is_settled_while_it_is_looked_at_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.land()
    path = abandoned(spool)
    lock = fcntl.flock

    def late(fd: int, how: int) -> None:
        path.unlink(missing_ok=True)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    spool.sweep_tmp(soon())
    assert list(spool.walk()) == []
    monkeypatch.undo()
    spool.landed()


def test_what_cannot_get_its_name_back_stays_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.land()
    path = abandoned(spool)

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        spool.sweep_tmp(soon())
    assert path.exists()
    spool.sweep_tmp(soon())
    assert not path.exists()
    (file,) = spool.walk()
    assert spool.verify(file.path, OFFSET, hashlib.sha256(DATA).hexdigest())
    spool.landed()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP])
def test_names_made_ahead_that_are_of_no_use_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.land()

    def refuse(*_args: object) -> None:
        raise OSError(code, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    writer = written(spool)
    assert spool.exists(published(writer))
    assert spool._landing is not None
    spool._landing._wanted.set()
    wait_until(lambda: not list((spool.root / "landing").iterdir()), 10, "they are let go")
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
