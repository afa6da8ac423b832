"""Send any DICOM files to a destination, as a scanner would: ``luminode send``, and the demo's scanner."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from node.deliver.destination import Echo, Stop
from node.deliver.kinds import destination
from node.deliver.parcel import Parcel
from node.dicom.elements import tag_of
from node.dicom.scan import Ids, NeedMore, scan_file, scan_uids
from node.dicom.source import file_meta, text_of
from node.dicom.status import describe
from node.errors import DeliveryError, NodeError, SeriesError
from node.model import Outcome

_HEAD = 16 * 1024
"""Bytes in which the UIDs nearly always lie."""
_META = 256 * 1024
_SYNTAX, _CLASS = tag_of("TransferSyntaxUID"), tag_of("MediaStorageSOPClassUID")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOutcome:
    """What became of one file. ``status`` is a DIMSE status, -1 for no answer, None if it was never sent.

    ``text`` is for people and holds nothing of the file's contents.
    """

    path: Path
    sop_instance_uid: str = ""
    series_uid: str = ""
    status: int | None = None
    done: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of all files. ``n_bytes`` counts the files that are done; ``errors`` are the distinct
    troubles that ended an association."""

    n_files: int
    n_done: int
    n_bytes: int
    seconds: float
    not_done: tuple[FileOutcome, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the destination holds every file."""
        return self.n_done == self.n_files


def read_parcel(path: Path, folders: dict[str, str] | None = None) -> Parcel:
    """What is needed to send a Part 10 file: UIDs from its data set, syntax from its file meta information.

    Parameters
    ----------
    folders
        Where folders really lie, filled while files are read in a row; None: it is looked up.

    Raises
    ------
    SeriesError, HeaderFault
        If it is no Part 10 file or lacks a UID.
    StoreError
        If it cannot be read.
    OSError
        If it cannot be opened.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        head = memoryview(file.read(_HEAD))
        try:
            meta, offset = file_meta(head)
        except SeriesError:
            if len(head) < _HEAD:
                raise
            file.seek(0)
            meta, offset = file_meta(file.read(_META))
    syntax = text_of(meta.get(_SYNTAX))
    ids: Ids | NeedMore = NeedMore(0)
    if offset < len(head):
        ids = scan_uids(head[offset:], syntax, final=size == len(head))
    if isinstance(ids, NeedMore):
        ids = scan_file(path, offset, syntax, at_least=ids.size)
    return Parcel(
        sop_class_uid=ids.sop_class_uid or text_of(meta.get(_CLASS)),
        sop_instance_uid=ids.sop_instance_uid,
        transfer_syntax_uid=syntax,
        path=_real(path, folders if folders is not None else {}),
        offset=offset,
        size=size,
        series_uid=ids.series_uid,
    )


def _real(path: Path, folders: dict[str, str]) -> Path:
    """The path of a file without links, as :meth:`Path.resolve` tells it."""
    folder, name = os.path.split(path)
    if path.is_symlink():
        return path.resolve()
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return Path(folders[folder], name)


def send_files(
    paths: Iterable[Path],
    settings: Mapping[str, Any] | BaseModel,
    progress: Callable[[FileOutcome], None] | None = None,
    *,
    calling_ae: str = "LUMINODE",
    associations: int = 1,
    pace: float = 0.0,
    stop: Stop = lambda: False,
) -> Sent:
    """Send files, in order, over one or several associations at once.

    Parameters
    ----------
    paths
        Files; folders are the caller's business.
    settings
        Of a destination, as for :func:`node.deliver.kinds.destination`.
    progress
        Called with each file's outcome as it is known, by one thread at a time.
    associations
        How many associations share the files, dealt out like cards.
    pace
        Instances a second over all associations; 0 is as fast as it goes.
    stop
        Asked before each instance.
    """
    started = time.monotonic()
    told: list[FileOutcome] = []
    lock = threading.Lock()

    def tell(outcome: FileOutcome) -> None:
        with lock:
            told.append(outcome)
            if progress is not None:
                progress(outcome)

    ready: list[Parcel] = []
    folders: dict[str, str] = {}
    for path in paths:
        try:
            ready.append(read_parcel(path, folders))
        except NodeError as error:
            tell(FileOutcome(path=path, text=error.message))
        except OSError as error:
            tell(FileOutcome(path=path, text=f"cannot be read: {error.strerror}"))
    shares = [ready[n::associations] for n in range(associations)]
    with ThreadPoolExecutor(max_workers=max(1, associations), thread_name_prefix="send") as pool:
        errors = pool.map(
            lambda share: _send_share(share, settings, calling_ae, tell, pace / associations, stop),
            [share for share in shares if share],
        )
        found = tuple(dict.fromkeys(e for e in errors if e))
    done = [o for o in told if o.done]
    sizes = {p.path: p.size for p in ready}
    return Sent(
        n_files=len(told),
        n_done=len(done),
        n_bytes=sum(sizes[o.path] for o in done),
        seconds=time.monotonic() - started,
        not_done=tuple(o for o in told if not o.done),
        errors=found,
    )


def _send_share(
    parcels: Sequence[Parcel],
    settings: Mapping[str, Any] | BaseModel,
    calling_ae: str,
    tell: Callable[[FileOutcome], None],
    pace: float,
    stop: Stop,
) -> str:
    """Send one share over its own association; returns the trouble that ended it, if any."""
    by_uid: dict[str, list[Parcel]] = {}
    for parcel in parcels:
        by_uid.setdefault(parcel.sop_instance_uid, []).append(parcel)
    started, n = time.monotonic(), 0

    def on_outcome(outcome: Outcome) -> None:
        nonlocal n
        parcel = by_uid[outcome.sop_instance_uid].pop(0)
        tell(_told(parcel, outcome))
        n += 1
        while pace > 0 and not stop() and (left := started + n / pace - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    why = "not tried"
    error = ""
    try:
        destination(settings, calling_ae).send(parcels, on_outcome=on_outcome, stop=stop)
    except NodeError as failed:
        error = f"{failed.message} ({failed.hint})" if failed.hint else failed.message
        why = f"not tried: {failed.message}"
    for rest in by_uid.values():
        for parcel in rest:
            tell(
                FileOutcome(
                    path=parcel.path,
                    sop_instance_uid=parcel.sop_instance_uid,
                    series_uid=parcel.series_uid,
                    text=why,
                )
            )
    return error


def _told(parcel: Parcel, outcome: Outcome) -> FileOutcome:
    text = describe(outcome.status)
    if outcome.comment:
        text = f"{text}: {outcome.comment}"
    return FileOutcome(
        path=parcel.path,
        sop_instance_uid=parcel.sop_instance_uid,
        series_uid=parcel.series_uid,
        status=outcome.status,
        done=outcome.done,
        text=text,
    )


def echo(settings: Mapping[str, Any] | BaseModel, *, calling_ae: str = "LUMINODE") -> Echo:
    """Ask a destination whether it is there: C-ECHO for ``dimse``, a trial file for ``folder``.

    Never raises a DeliveryError; the answer says what went wrong.
    """
    try:
        where = destination(settings, calling_ae)
    except DeliveryError as error:
        return Echo(ok=False, seconds=0.0, text=error.message, hint=error.hint)
    return where.echo()
