"""One instance on its way from the wire to the spool: written as it comes, hashed, checked, made durable.

Nothing of a data set is decoded but the four UIDs that say what it is and where it belongs (bounded scan).
Statuses are those of PS3.4 B.2.3 and PS3.7 Annex C. The text of a refusal becomes the Error Comment and never
holds a value from the data set.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from node.dicom.scan import Ids, NeedMore, scan_file, scan_uids
from node.dicom.status import Status
from node.errors import HeaderFault, OutOfSpace, ReceiveError, StoreError
from node.failpoints import failpoint
from node.model import Association
from node.receive import part10
from node.receive.commands import Command
from node.receive.commit import Arrived
from node.receive.terms import Terms
from node.store.spool import Spool, SpoolWriter

_LOOK: Final = 4 * 1024
"""Bytes of a data set after which its UIDs are first looked for; mostly they are there."""

_PREFIX: Final = 1024 * 1024
"""Bytes of a data set kept to look again; UIDs further back are looked for in the file, at the end."""

_GLANCE: Final = 2 * _LOOK
"""Bytes of the first piece that are looked at where they are; a copy of all is made if this does not do."""

_LATER: Final = 4 * 1024 * 1024
"""Bytes of a data set up to which it is hashed at its end, from memory, while the disk is at work on it already;
a larger one is hashed as it comes."""

_AHEAD: Final = 64 * 1024
"""Bytes of a data set from which on the disk is told to begin before the digest is computed."""

_SPACE_EVERY: Final = 64 * 1024 * 1024
"""Bytes of one instance after which free space is looked at again."""

DRAIN: Final = 2
"""An instance over its limit is read on, to be answered, up to this many times the limit."""


class Refusal(ReceiveError):
    """Why an instance is not stored: DIMSE status and Error Comment."""


NOT_AUTHORIZED = (Status.NOT_AUTHORIZED, "calling AE title may not store here")
CLASS = (Status.SOP_CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context")
NO_STORAGE = (Status.SOP_CLASS_NOT_SUPPORTED, "presentation context is not for storage")
INSTANCE = (Status.INVALID_SOP_INSTANCE, "SOP Instance UID is missing or no UID")
NO_DATA = (Status.MISTYPED_ARGUMENT, "C-STORE-RQ without a data set")
SPACE = (Status.OUT_OF_RESOURCES, "out of space, try again later")
STORE = (Status.OUT_OF_RESOURCES, "storage failed, try again later")
TOO_LARGE = (Status.OUT_OF_RESOURCES, "data set is larger than this node takes")
OTHER_INSTANCE = (Status.DATA_SET_MISMATCH, "SOP Instance UID of data set and command differ")
OTHER_CLASS = (Status.DATA_SET_MISMATCH, "SOP Class UID of data set and command differ")
CONFLICT = (Status.DATA_SET_MISMATCH, "SOP Instance UID is known with other content")
UNREADABLE = (Status.CANNOT_UNDERSTAND, "data set cannot be parsed")
DEFECT = (Status.PROCESSING_FAILURE, "processing failure")


def refuse_command(
    command: Command,
    *,
    abstract_syntax: str,
    is_storage: bool,
    authorized: bool,
    free: int,
    refuse_below: int,
) -> Refusal | None:
    """What is wrong with a C-STORE-RQ before any of its data set is here; None if nothing is.

    Parameters
    ----------
    abstract_syntax
        Of the presentation context; ``is_storage`` says whether it is a storage class.
    authorized
        Whether the peer may still store, by the configuration of the moment.
    free, refuse_below
        Bytes free in the spool, and how many there must be.
    """
    if not authorized:
        return Refusal(*NOT_AUTHORIZED)
    if not is_storage:
        return Refusal(*NO_STORAGE)
    if command.sop_class_uid != abstract_syntax:
        return Refusal(*CLASS)
    if not command.sop_instance_uid:
        return Refusal(*INSTANCE)
    if not command.has_data:
        return Refusal(*NO_DATA)
    if free < refuse_below:
        return Refusal(*SPACE)
    return None


def refuse_ids(command: Command, ids: Ids) -> Refusal | None:
    """What is wrong with the UIDs of a data set; None if nothing is.

    A data set without SOP UIDs of its own is let through, and goes by those of the command: it contradicts
    nothing, and such objects are in the archives of the world.
    """
    if ids.sop_instance_uid not in ("", command.sop_instance_uid):
        return Refusal(*OTHER_INSTANCE)
    if ids.sop_class_uid not in ("", command.sop_class_uid):
        return Refusal(*OTHER_CLASS)
    return None


class Intake:
    """A data set being received.

    The first thing that goes wrong decides: the file is removed at once, the rest of the data set is read and
    thrown away, and :meth:`finish` raises.

    Parameters
    ----------
    spool
        Where the bytes go.
    command
        The C-STORE-RQ.
    transfer_syntax_uid
        Of the presentation context.
    association
        That it came on.
    terms
        Those in force when the request came.
    """

    __slots__ = (
        "_association", "_hash", "_hashed", "_ids", "_look", "_next_space", "_prefix", "_spool", "_terms",
        "_ts", "_writer", "command", "refused", "size",
    )  # fmt: skip

    def __init__(
        self,
        spool: Spool,
        command: Command,
        transfer_syntax_uid: str,
        association: Association,
        terms: Terms,
    ) -> None:
        self.command = command
        self.size = 0
        self.refused: Refusal | None = None
        self._spool, self._association, self._terms = spool, association, terms
        self._ts = transfer_syntax_uid
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._prefix = bytearray()
        self._ids: Ids | None = None
        self._look = _LOOK
        self._next_space = _SPACE_EVERY
        self._writer: SpoolWriter | None = None
        try:
            self._writer = spool.create()
            self._writer.write(
                part10.head(command.sop_class_uid, command.sop_instance_uid, transfer_syntax_uid)
            )
        except Exception as error:
            self._refuse(error)

    @property
    def hopeless(self) -> bool:
        """True once so much has come that even reading on to answer makes no sense (R24)."""
        return self.size > DRAIN * self._terms.max_instance

    def take(self, pieces: Sequence[memoryview]) -> None:
        """The next bytes of the data set; they are not kept. Never raises: see :attr:`refused`."""
        self.size += sum(map(len, pieces))
        if self.refused is not None or self._writer is None:
            return
        try:
            if self.size > self._terms.max_instance:
                raise Refusal(*TOO_LARGE)
            if self.size >= self._next_space:
                self._next_space = self.size + _SPACE_EVERY
                if self._spool.free_bytes() < self._terms.refuse_below:
                    raise Refusal(*SPACE)
            self._writer.write_all(pieces)
            if self.size > _LATER:
                self._digest(self._writer, self.size - sum(map(len, pieces)))
                for piece in pieces:
                    self._hash.update(piece)
                self._hashed = self.size
            if self._ids is None:
                self._look_for_ids(pieces)
        except Exception as error:
            self._refuse(error)

    def finish(self, received_at: datetime) -> Arrived:
        """The data set is complete: check it, and have the disk begin with it.

        Raises
        ------
        Refusal
            It is not stored; nothing of it is left on disk.
        """
        try:
            if self.refused is None and self._writer is not None:
                if not self.size:
                    raise Refusal(*UNREADABLE)
                if self._ids is None:
                    self._identify_whole(self._writer)
                if self._ids is None:
                    raise Refusal(*UNREADABLE)
                failpoint("receive.written")
                if self.size >= _AHEAD:
                    self._writer.start_sync()
                self._digest(self._writer, self.size)
                self._writer.seal(
                    self._ids.series_uid,
                    self.command.sop_instance_uid,
                    self._hash.hexdigest(),
                    part10.OFFSET,
                )
        except Exception as error:
            self._refuse(error)
        if self.refused is not None or self._writer is None or self._ids is None:
            raise self.refused or Refusal(*DEFECT)
        writer, self._writer = self._writer, None
        return Arrived(
            writer=writer,
            sop_class_uid=self.command.sop_class_uid,
            sop_instance_uid=self.command.sop_instance_uid,
            study_uid=self._ids.study_uid,
            series_uid=self._ids.series_uid,
            transfer_syntax_uid=self._ts,
            association=self._association,
            offset=part10.OFFSET,
            sha256=self._hash.hexdigest(),
            received_at=received_at,
        )

    def discard(self) -> None:
        """The rest will not come: leave nothing behind. Harmless at any time."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError, StoreError):
                writer.discard()
        self._prefix = bytearray()

    def _digest(self, writer: SpoolWriter, end: int) -> None:
        """Hash what was written of the data set up to ``end`` and is not hashed yet."""
        if self._hashed < end:
            writer.read_back(self._hash.update, part10.OFFSET + self._hashed, part10.OFFSET + end)
            self._hashed = end

    def _look_for_ids(self, pieces: Sequence[memoryview]) -> None:
        if not self._prefix and len(pieces[0]) >= _LOOK:
            self._identify(lambda: scan_uids(bytes(pieces[0][:_GLANCE]), self._ts))
        if self._ids is None and len(self._prefix) < _PREFIX:
            self._prefix += b"".join(pieces)
            if len(self._prefix) >= self._look:
                self._identify(lambda: scan_uids(self._prefix, self._ts))

    def _identify(self, scan: Callable[[], Ids | NeedMore]) -> None:
        try:
            found = scan()
        except (HeaderFault, StoreError):
            raise
        except Exception:
            raise Refusal(*UNREADABLE) from None
        if isinstance(found, NeedMore):
            # Not at every piece that comes: a long header that trickles would be gone through each time.
            self._look = max(found.size, 2 * len(self._prefix))
            return
        wrong = refuse_ids(self.command, found)
        if wrong is not None:
            raise wrong
        self._ids = found
        self._prefix = bytearray()

    def _identify_whole(self, writer: SpoolWriter) -> None:
        """All is here: look in what was kept if that is all of it, else in the file."""
        if self.size == len(self._prefix):
            self._identify(lambda: scan_uids(self._prefix, self._ts, final=True))
        else:
            self._identify(
                lambda: scan_file(writer.path, part10.OFFSET, self._ts, at_least=min(self._look, self.size))
            )

    def _refuse(self, error: Exception) -> None:
        self.refused = self.refused or as_refusal(error)
        self.discard()


def as_refusal(error: Exception) -> Refusal:
    """The answer to whatever went wrong while an instance was received. Never success."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HeaderFault):
        return Refusal(error.status, error.message)
    if isinstance(error, OutOfSpace):
        return Refusal(*SPACE)
    if isinstance(error, StoreError | OSError | MemoryError):
        return Refusal(*STORE)
    return Refusal(*DEFECT)  # a defect of ours
