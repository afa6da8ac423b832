"""The receiver: the node's side of every association that others open."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pynetdicom import AE

from node.config.network import TLS_SUITES
from node.config.schema import Config
from node.dicom.ours import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.errors import ReceiveError, StoreError
from node.log import get_logger
from node.receive.alarm import Alarm
from node.receive.commit import GroupCommit
from node.receive.crowd import MOST, Crowd, Post
from node.receive.door import Door
from node.receive.guard import Gate, Guard
from node.receive.house import House
from node.receive.terms import terms
from node.store import landing
from node.store.store import Store

log = get_logger()

DRAIN_S: Final = 10.0
"""How long associations may go on after the node was told to stop, in seconds."""

_CUT_S: Final = 2.0

FILES: Final = 48
"""Of the files that the process may open, how many are kept for database and log; the spool has its own share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy the door is: TCP connections, and associations among them that are established."""

    connections: int
    associations: int


class Receiver:
    """Verification and Storage SCP.

    Parameters
    ----------
    config
        The configuration to start with; later ones come by :meth:`apply`.
    store
        Where instances go. The receiver does not close it.
    clock
        Gives the time of day, timezone-aware UTC.
    post
        Its place, where several receivers serve the port.

    Raises
    ------
    ReceiveError
        The place is taken, or this system lets no receivers share a port.
    """

    def __init__(
        self, config: Config, store: Store, clock: Callable[[], datetime], *, post: Post | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._config = config
        self._ae = AE(ae_title=config.node.ae_title)
        self._ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_associations = 2**31  # the gate counts, and not the half-open ones
        self._post = post
        self._crowd = crowd = Crowd(post.table, post.number) if post is not None else None
        names = _names(config)
        self.name = names[post.number - 1 if post is not None else 0]
        gate = Gate(crowd=crowd)
        queues = crowd is not None and store.database.kind == "sqlite"
        commit = GroupCommit(
            store.reception,
            store.spool,
            receiver=self.name,
            duplicates=lambda: self._house.terms.duplicates,
            forward=lambda: self._house.terms.forward,
            others=lambda: gate.n_elsewhere > 0,
            turn=crowd.writing if crowd is not None and queues else contextlib.nullcontext,
        )
        self._house = House(
            terms=terms(config),
            spool=store.spool,
            commit=commit,
            commitments=store.commitments,
            pledges=store.pledges,
            gate=gate,
            alarm=Alarm(store.events, clock),
            clock=clock,
        )
        self._guard: Guard | None = None

    @property
    def port(self) -> int:
        """The TCP port that is listened on; 0 before :meth:`start`."""
        return self._guard.port if self._guard is not None else 0

    @property
    def quiet_s(self) -> float:
        """Seconds since the thread that accepts connections showed a sign of life; it does so every 0.2 s."""
        return time.monotonic() - self._guard.seen_at if self._guard is not None else 0.0

    @property
    def load(self) -> Load:
        gate = self._house.gate
        return Load(connections=gate.n_connections, associations=gate.n_established)

    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """What it has done since it was made, by kind and reason (node/receive/counts.py)."""
        return self._house.alarm.counts.told()

    def start(self) -> None:
        """Clear what an earlier life left behind, then listen.

        Raises
        ------
        StoreError
            The store cannot be used.
        ReceiveError
            The address cannot be listened on, or the TLS files cannot be used.
        """
        now = self._clock()
        lost = self._store.reception.lose_open_associations(now, receiver=self.name, also=self._gone())
        swept = self._store.spool.sweep_tmp(now)
        self._house.tls = _tls(self._config)
        self._house.stop_at = None
        self._guard = self._listen(self._config)
        self._store.spool.land()
        self._house.commit.start()
        self._guard.start()
        node = self._config.node
        log.info(
            "receiver.started",
            ae_title=node.ae_title,
            listen=f"{node.listen.host}:{self._guard.port}",
            tls=self._house.tls is not None,
            lost_associations=lost,
            swept_files=swept,
        )
        if self._limits()[1] < node.max_associations:
            log.warning("receiver.few_files", hint="node.max_associations needs twice as many open files")
        if node.accept_from == "any":
            log.warning("receiver.open", hint="accept_from: any lets everybody in; list the scanners instead")

    def apply(self, config: Config) -> None:
        """Take a new configuration. Associations go on; each C-STORE is judged by the terms of its moment.

        Address, port and TLS files are those of the start: they change when the node starts again.
        """
        old = self._config.node
        new = config.node
        same = old.private_classes == new.private_classes and old.transfer_syntaxes == new.transfer_syntaxes
        self._house.terms = terms(config, self._house.terms.contexts if same else None)
        self._config = config

    def stop(self, drain: float = DRAIN_S) -> None:
        """Accept no more, let the messages under way finish and be answered, end every association.

        Parameters
        ----------
        drain
            Seconds after which associations are aborted even inside a message.
        """
        if self._guard is None:
            return
        self._house.stop_at = time.monotonic() + drain
        self._guard.close()
        self._guard = None
        until = time.monotonic() + drain + _CUT_S
        for door in self._house.gate.visitors():
            door.join(max(until - time.monotonic(), 0.0))
        cut = self._house.gate.visitors()
        for door in cut:
            door.cut()
        for door in cut:
            door.join(_CUT_S)
        try:
            self._house.commit.stop()
        except StoreError as error:  # what is not noted now is marked as lost at the next start
            log.error("assoc.unrecorded", error=str(error))
        self._store.spool.landed()
        log.info("receiver.stopped", cut_off=len(cut))

    def _gone(self) -> Sequence[str]:
        """Names of receivers that the port had when there were more of them; the first one looks after those."""
        post = self._post
        if post is not None and post.number > 1:
            return ()
        return _names(self._config)[post.of if post is not None else 1 :]

    def _listen(self, config: Config) -> Guard:
        listen, shared = config.node.listen, None
        try:
            if self._post is not None and self._crowd is not None:
                shared = socket.socket(fileno=os.dup(self._post.door)), self._crowd
            return Guard(
                self._ae,
                (listen.host, listen.port),
                gate=self._house.gate,
                alarm=self._house.alarm,
                limits=self._limits,
                welcome=self._welcome,
                shared=shared,
            )
        except OSError as error:
            raise ReceiveError(
                0,
                f"cannot listen on {listen}: {error.strerror or type(error).__name__}",
                hint="the port is taken or needs a privilege, or this machine has no such address",
            ) from None

    def _limits(self) -> tuple[int, int]:
        node = self._house.terms.node
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        in_all = 2 * node.max_associations + 64
        if files != resource.RLIM_INFINITY:  # each has a socket, and a file while it stores
            own = max((files - FILES - landing.most_files()) // 2, 1)
            in_all = min(in_all, own + self._house.gate.n_elsewhere)
        return node.max_associations_per_address, in_all

    def _welcome(self, sock: socket.socket, client: tuple[Any, ...]) -> None:
        try:
            door = Door(self._ae, self._house, sock, client, sock.getsockname())
        except OSError:
            sock.close()
            return
        self._house.gate.enter(door)
        try:
            door.start()
        except RuntimeError:  # no more threads: this peer has to come again, the others are served
            self._house.gate.leave(door)
            sock.close()
            self._house.alarm.tell("door.exhausted", error="threads")


def _names(config: Config) -> list[str]:
    """What the receivers of a port are called in the table of associations, the first one as if it were alone."""
    name = f"{socket.gethostname()}:{config.node.listen.port}"[:128]
    return [name, *(f"{name[:124]}/{number}" for number in range(2, MOST + 1))]


def _tls(config: Config) -> ssl.SSLContext | None:
    """TLS 1.2 or later with forward secrecy and AEAD ciphers (PS3.15 B.12, RFC 9325)."""
    files = config.node.tls
    if files is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(files.certificate, files.key, password="")  # else OpenSSL asks the terminal
        if files.authorities is not None:
            context.load_verify_locations(files.authorities)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ReceiveError(
            0,
            f"the TLS files cannot be used ({type(error).__name__})",
            hint="check that certificate, key and authorities are PEM files that this user may read, the key without "
            "passphrase",
        ) from None
    return context
