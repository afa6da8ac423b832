"""Group commit: what waits is made durable together, and only then is anybody told.

An instance comes here written. Its bytes are synced, it gets its name, the name is made durable (or was made so ahead
of time, node/store/landing.py), then a transaction records it. That order is what durability rests on; only where
:meth:`GroupCommit.instance` returned may 0000H be answered.

There is no thread for instances: of the associations that wait, one leads. One that finds nobody there leads at
once, and has the database prepare its transaction while the disk writes the bytes. Others sync their own files
meanwhile, in parallel; the next leader names and records all of those together, and hands the lead to one that
came since. A lone association thus pays for no change of threads. Openings and endings of associations wait for
nobody: they ride along with the next batch, before its instances, or are written by a thread of their own a
moment later.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from node.errors import StoreError
from node.failpoints import failpoint
from node.log import get_logger
from node.model import Association, AssociationEnd, Instance
from node.store.originals import Forward
from node.store.reception import Duplicates, Ended, Reception, Recorded
from node.store.spool import Spool, SpoolWriter, spool_path

log = get_logger()

_MOST: Final = 256
"""Instances in one transaction."""

_SHORT: Final = 4 * 1024 * 1024
"""Bytes of an instance up to which its sync may go on inside a transaction, for which others have to wait."""

_FAST_S: Final = 0.005
"""Where syncs take longer, none goes on inside a transaction: SQLite has no queue of writers, and whoever else writes
would find the database locked nearly always."""

_QUIET_S: Final = 0.1
"""How long nobody must have met another for one to go alone."""

_NOTE_S: Final = 0.02
"""How long an opening or ending waits for instances to ride with."""

_AGAIN_S: Final = 1.0
"""How long the notes wait after the database refused them."""

_MOST_NOTES: Final = 10_000
"""Notes kept while the database is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """An instance whose bytes are written under a temporary name; ``sha256``, ``offset`` as in Instance."""

    writer: SpoolWriter
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    association: Association
    offset: int
    sha256: str
    received_at: datetime

    @property
    def instance(self) -> Instance:
        """As it is recorded."""
        return Instance(
            sop_class_uid=self.sop_class_uid,
            sop_instance_uid=self.sop_instance_uid,
            study_uid=self.study_uid,
            series_uid=self.series_uid,
            transfer_syntax_uid=self.transfer_syntax_uid,
            calling_ae=self.association.calling_ae,
            called_ae=self.association.called_ae,
            association=self.association.id,
            path=spool_path(self.series_uid, self.sop_instance_uid, self.sha256),
            size=self.writer.size,
            offset=self.offset,
            sha256=self.sha256,
            received_at=self.received_at,
        )

    def sync(self) -> None:
        """Make the bytes durable. If that fails, nothing of them is left."""
        try:
            self.writer.sync()
        except BaseException:
            self.discard()
            raise
        failpoint("receive.bytes_durable")

    def publish(self) -> None:
        """Give the synced file its name. The writer is used up, whatever happens."""
        self.writer.publish(self.series_uid, self.sop_instance_uid, self.sha256)

    def discard(self) -> None:
        """Leave nothing behind; harmless after `publish`."""
        with contextlib.suppress(OSError, StoreError):
            self.writer.discard()


class _Ticket:
    """An instance that waits, then its result or error."""

    __slots__ = ("arrived", "bell", "done", "error", "instance", "recorded")

    def __init__(self, arrived: Arrived) -> None:
        self.arrived = arrived
        self.instance = arrived.instance
        self.recorded: Recorded | None = None
        self.error: Exception | None = None
        self.done = False
        self.bell = threading.Lock()
        self.bell.acquire()


class GroupCommit:
    """Makes instances durable, together with whatever else waits.

    Parameters
    ----------
    reception, spool
        Of the store.
    receiver
        Name of this receiver in the association table.
    duplicates
        Returns the policy that holds now.
    forward
        Returns the destinations that get originals now: name -> settings.
    others
        Whether somebody is connected to another receiver of this port: then no instance goes alone.
    turn
        Gives what keeps other receivers from writing to the database meanwhile.
    """

    def __init__(
        self,
        reception: Reception,
        spool: Spool,
        *,
        receiver: str,
        duplicates: Callable[[], Duplicates],
        forward: Callable[[], Forward] = dict,
        others: Callable[[], bool] = lambda: False,
        turn: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._reception = reception
        self._spool = spool
        self._receiver = receiver
        self._duplicates = duplicates
        self._forward = forward
        self._others = others
        self._turn = turn
        self._lock = threading.Lock()
        self._waiting: list[_Ticket] = []
        self._led = False
        self._sync_s = 0.0  # what a sync has taken lately, at most
        self._met_at = 0.0  # when an instance last found another under way, seconds, monotonic
        # Held from taking notes to having written them: else an instance could overtake its association.
        self._writing = threading.RLock()
        self._opened: list[Association] = []
        self._ended: list[Ended] = []
        self._since = 0.0  # when the oldest of them was noted, seconds, monotonic
        self._noted = threading.Event()
        self._stopped = threading.Event()
        self._notes_thread: threading.Thread | None = None

    # instances ----------------------------------------------------------------------------------------

    def instance(self, arrived: Arrived) -> Recorded:
        """Record an instance; returns when it is durable in the spool and in the database.

        Raises
        ------
        StoreError
            It is not, whatever was the reason. The sender must not be told that it is.
        Exception
            The same: as the sync of its bytes raised it.
        """
        ticket = _Ticket(arrived)
        with self._lock:
            quiet = not self._led and time.monotonic() - self._met_at > _QUIET_S
            alone = quiet and arrived.writer.size <= _SHORT and self._sync_s < _FAST_S and not self._others()
            self._led = self._led or alone
        if alone:
            self._store_alone(ticket)
        else:
            self._sync(arrived)
            self._store_with_others(ticket)
        if ticket.error is not None:
            raise ticket.error
        if ticket.recorded is None:  # no path leads here; if ever one does, it must not end in 0000H
            raise StoreError("an instance was left unrecorded")
        return ticket.recorded

    def _sync(self, arrived: Arrived) -> None:
        began = time.monotonic()
        arrived.sync()
        self._sync_s = max(time.monotonic() - began, 0.9 * self._sync_s)

    def _store_alone(self, ticket: _Ticket) -> None:
        try:
            with self._writing, self._turn():
                self._record_all([ticket], self._durably(ticket))
            failpoint("receive.recorded")
        except BaseException as error:
            ticket.recorded, ticket.error = None, ticket.error or _as_store_error(error)
        finally:
            ticket.arrived.discard()
            self._hand_over()

    def _durably(self, ticket: _Ticket) -> Callable[[], None]:
        """What has to be done before the transaction of an instance is committed; once, if that is tried again."""
        left = [ticket]

        def make_durable() -> None:
            if left:
                left.clear()
                try:
                    self._sync(ticket.arrived)
                except Exception as error:
                    ticket.error = error
                else:
                    self._publish([ticket])
            if ticket.error is not None:
                raise ticket.error

        return make_durable

    def _store_with_others(self, ticket: _Ticket) -> None:
        with self._lock:
            self._waiting.append(ticket)
            lead = not self._led
            self._led = True
            if not lead:
                self._met_at = time.monotonic()
        if not lead:
            ticket.bell.acquire()  # rings when it is done, or when it is to lead
        if not ticket.done:
            self._lead(ticket)

    def _lead(self, own: _Ticket) -> None:
        while not own.done:
            with self._lock:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            try:
                self._store(batch)
            except BaseException as error:
                for ticket in batch:
                    ticket.recorded = None
                    ticket.error = ticket.error or _as_store_error(error)
            for ticket in batch:
                ticket.done = True
                if ticket is not own:
                    ticket.bell.release()
        self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            heir = self._waiting[0] if self._waiting else None
            self._led = heir is not None
        if heir is not None:
            heir.bell.release()

    def _store(self, tickets: Sequence[_Ticket]) -> None:
        named = self._publish(tickets)
        if not named:
            return
        with self._writing, self._turn():
            self._record_all(named)
        failpoint("receive.recorded")

    def _publish(self, tickets: Sequence[_Ticket]) -> list[_Ticket]:
        """Give synced files durable names; those that got one, the others have their error."""
        named: list[_Ticket] = []
        for ticket in tickets:
            try:
                ticket.arrived.publish()
                named.append(ticket)
            except Exception as error:
                ticket.error = _as_store_error(error)
        failpoint("receive.named")
        loose = [each.instance.path for each in named if not each.arrived.writer.anchored]
        if loose:
            self._spool.sync_dirs(loose)
        failpoint("receive.names_durable")
        return named

    def _record_all(self, named: Sequence[_Ticket], before_commit: Callable[[], None] | None = None) -> None:
        notes = self._take_notes()
        try:
            self._record(named, *notes, before_commit=before_commit)
        except Exception as error:
            self._keep_notes(*notes)
            if len(named) == 1:
                raise
            self.flush()  # never an instance before its association
            # One row that the database does not take must not cost the others: each alone, in order. A
            # second failure says that it is not the row: a database that is away is not asked 256 times.
            failures = 0
            for ticket in named:
                if failures >= 2:
                    ticket.error = _as_store_error(error)
                    continue
                try:
                    self._record([ticket])
                except Exception as own:
                    failures += 1
                    ticket.error = _as_store_error(own)

    def _record(
        self,
        tickets: Sequence[_Ticket],
        opened: Sequence[Association] = (),
        ended: Sequence[Ended] = (),
        *,
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        results = self._reception.record(
            [each.instance for each in tickets],
            duplicates=self._duplicates(),
            opened=opened,
            ended=ended,
            receiver=self._receiver,
            forward=self._forward(),
            before_commit=before_commit,
        )
        if len(results) != len(tickets):
            raise StoreError("the store answered for another number of instances")
        for ticket, recorded in zip(tickets, results, strict=True):
            ticket.recorded = recorded

    # openings and endings of associations -------------------------------------------------------------

    def opened(self, association: Association) -> None:
        """Note that an association was accepted; recorded before any instance of it, and soon."""
        with self._lock:
            self._note()
            self._opened.append(association)
        self._noted.set()

    def ended(self, association_id: str, end: AssociationEnd, at: datetime) -> None:
        """Note how an association ended. To be called after the last of its instances was recorded."""
        with self._lock:
            self._note()
            self._ended.append((association_id, end, at))
        self._noted.set()

    def _note(self) -> None:
        if not self._opened and not self._ended:
            self._since = time.monotonic()

    def _due_in(self) -> float:
        """Seconds until the notes have waited long enough for instances that would take them along."""
        with self._lock:
            return self._since + _NOTE_S - time.monotonic()

    def flush(self) -> None:
        """Record what was noted.

        Raises
        ------
        StoreError
            The database did not take it; it is kept for the next time.
        """
        with self._writing, self._turn():
            opened, ended = self._take_notes()
            if not opened and not ended:
                return
            try:
                self._reception.note_associations(opened, ended, receiver=self._receiver)
            except Exception as error:
                self._keep_notes(opened, ended)
                raise _as_store_error(error) from None

    def _take_notes(self) -> tuple[list[Association], list[Ended]]:
        with self._lock:
            opened, self._opened = self._opened, []
            ended, self._ended = self._ended, []
        return opened, ended

    def _keep_notes(self, opened: list[Association], ended: list[Ended]) -> None:
        with self._lock:
            self._opened = (opened + self._opened)[-_MOST_NOTES:]
            self._ended = (ended + self._ended)[-_MOST_NOTES:]

    def start(self) -> None:
        """Start the thread that writes notes with which no instance came along."""
        self._stopped.clear()
        self._notes_thread = threading.Thread(target=self._write_notes, name="door:notes", daemon=True)
        self._notes_thread.start()

    def stop(self) -> None:
        """Stop that thread and write what is left. Raises StoreError if that fails."""
        self._stopped.set()
        self._noted.set()
        if self._notes_thread is not None:
            self._notes_thread.join()
            self._notes_thread = None
        self.flush()

    def _write_notes(self) -> None:
        told = False
        while not self._stopped.is_set():
            self._noted.wait()
            self._noted.clear()
            while (left := self._due_in()) > 0:  # those noted since may be of another, later, association
                if self._stopped.wait(left):
                    return
            try:
                self.flush()
                told = False
            except StoreError as error:
                if not told:
                    log.error("assoc.unrecorded", error=str(error))
                told = True
                self._noted.set()
                self._stopped.wait(_AGAIN_S)


def _as_store_error(error: BaseException) -> StoreError:
    if isinstance(error, StoreError):
        return error
    # The text of a stranger's exception may quote a row: only its type is told.
    return StoreError(f"the store failed ({type(error).__name__})")
