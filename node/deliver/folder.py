"""A folder: each instance one Part 10 file, complete or absent, ``<series>/<instance>.dcm``.

An instance is copied into a hidden file beside its place, checked, synced, renamed, and told as done only
when the folder's own entry is on disk. The names are UIDs where they are made of digits and dots, digests of
them otherwise: nothing that came over the network decides about a path.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from node.config.schema import FolderDestination
from node.deliver.destination import DAMAGED, Echo, OnOutcome, Stop, refused
from node.deliver.parcel import Parcel, ParcelDamaged
from node.dicom.status import Status
from node.errors import READ_ONLY_HINT, DeliveryError, PeerUnreachable
from node.model import Outcome
from node.store.disk import make_folders

BATCH = 32
"""Instances that share one sync of the folder."""

_UID = re.compile(r"[0-9]{1,62}(\.[0-9]{1,62})+")
_TEMPORARY = ".luminode-"
_STALE_S = 86400.0
_PIECE = 1 << 20
_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def safe_name(uid: str) -> str:
    """A file name for a UID: itself if it is one (PS3.5 9.1), else a digest."""
    if len(uid) <= 64 and _UID.fullmatch(uid):
        return uid
    return "x" + hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:40]


class Folder:
    """Destination of kind ``folder``."""

    def __init__(self, settings: FolderDestination) -> None:
        self._root = Path(settings.path)

    @property
    def endpoint(self) -> str:
        return str(self._root)

    def send(
        self,
        parcels: Sequence[Parcel],
        *,
        on_outcome: OnOutcome,
        done: Set[str] = frozenset(),
        stop: Stop = lambda: False,
    ) -> None:
        """See :meth:`node.deliver.destination.Destination.send`.

        Raises
        ------
        PeerUnreachable
            If the folder cannot be written; ``retryable``, for a disk fills and is emptied.
        """
        missing = [p for p in parcels if p.sop_instance_uid not in done]
        by_series: dict[str, list[Parcel]] = {}
        for parcel in missing:
            by_series.setdefault(parcel.series_uid, []).append(parcel)
        for series_uid, group in by_series.items():
            with _told(self._root), _opened(self._root, safe_name(series_uid)) as folder:
                for at in range(0, len(group), BATCH):
                    if stop():
                        return
                    self._write(folder, group[at : at + BATCH], on_outcome)

    def _write(self, folder: int, parcels: Sequence[Parcel], on_outcome: OnOutcome) -> None:
        placed: list[Outcome] = []
        try:
            for parcel in parcels:
                try:
                    status = _place(folder, parcel)
                except ParcelDamaged as error:
                    uid = parcel.sop_instance_uid
                    on_outcome(refused(uid, DAMAGED, f"not sent: {error.message}"))
                    continue
                placed.append(
                    Outcome(
                        sop_instance_uid=parcel.sop_instance_uid, status=status, done=True, retryable=False
                    )
                )
        finally:
            os.fsync(folder)
            for outcome in placed:
                on_outcome(outcome)

    def echo(self) -> Echo:
        start = time.monotonic()
        try:
            with _told(self._root), _opened(self._root, "") as folder:
                name = _temporary_name()
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=folder))
                os.unlink(name, dir_fd=folder)
        except DeliveryError as error:
            seconds = time.monotonic() - start
            return Echo(ok=False, seconds=seconds, text=error.message, hint=error.hint)
        return Echo(ok=True, seconds=time.monotonic() - start, text="the folder can be written")


def _place(folder: int, parcel: Parcel) -> int:
    """Put one file in its place; the status is 0 for written, 0111H for there already."""
    name = f"{safe_name(parcel.sop_instance_uid)}.dcm"
    try:
        source = os.open(parcel.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ParcelDamaged(f"the spooled file cannot be opened ({error.strerror})") from None
    try:
        if _is_there(folder, name, parcel):
            return int(Status.DUPLICATE_SOP_INSTANCE)
        temporary = _temporary_name()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        out = os.open(temporary, flags, 0o666, dir_fd=folder)
        try:
            _copy(source, out, parcel)
            os.fsync(out)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        finally:
            os.close(out)
    finally:
        os.close(source)
    return int(Status.SUCCESS)


def _copy(source: int, out: int, parcel: Parcel) -> None:
    digest, at = hashlib.sha256(), 0
    while True:
        try:
            piece = os.read(source, _PIECE)
        except OSError as error:
            raise ParcelDamaged(f"the spooled file cannot be read ({error.strerror})") from None
        if not piece:
            break
        digest.update(piece[max(0, parcel.offset - at) :])
        at += len(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(out, view) :]
    if at != parcel.size:
        raise ParcelDamaged("the spooled file has another size than the one recorded")
    if parcel.sha256 and digest.hexdigest() != parcel.sha256:
        raise ParcelDamaged("the spooled file has changed since it was written")


def _is_there(folder: int, name: str, parcel: Parcel) -> bool:
    """Whether the folder holds this very instance; other bytes under its name are written anew."""
    if not parcel.sha256:
        return False
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_size != parcel.size:
            return False
        digest = hashlib.sha256()
        os.lseek(fd, parcel.offset, os.SEEK_SET)
        while piece := os.read(fd, _PIECE):
            digest.update(piece)
        return digest.hexdigest() == parcel.sha256
    finally:
        os.close(fd)


@contextlib.contextmanager
def _opened(root: Path, name: str) -> Iterator[int]:
    """A descriptor of ``root/name``, made if absent and synced into its parent; no link is followed there."""
    make_folders(root)
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not name:
            yield top
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o777, dir_fd=top)
        os.fsync(top)  # also where it is there: whoever made it may have died before he came to this
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        folder = os.open(name, flags, dir_fd=top)
        try:
            _sweep(folder)
            yield folder
        finally:
            os.close(folder)
    finally:
        os.close(top)


def _sweep(folder: int) -> None:
    """Remove what an interrupted copy left behind long ago."""
    for name in os.listdir(folder):
        if name.startswith(_TEMPORARY):
            with contextlib.suppress(OSError):
                if time.time() - os.stat(name, dir_fd=folder).st_mtime > _STALE_S:
                    os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def _told(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "Check that it exists and that the node may write there."
        if error.errno in _OUT_OF_SPACE:
            hint = "Make room there."
        elif error.errno == errno.EROFS:
            hint = READ_ONLY_HINT
        raise PeerUnreachable(
            f"the folder {root} cannot be written: {(error.strerror or type(error).__name__).lower()}",
            hint=hint,
        ) from None


def _temporary_name() -> str:
    return f"{_TEMPORARY}{secrets.token_hex(8)}"
