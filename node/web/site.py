"""The pages together, at their place: /healthz, /readyz, /readyz/receive and /metrics."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from prometheus_client.exposition import choose_encoder

from node.config.schema import Config
from node.enhance.health import marks
from node.errors import MonitoringError
from node.log import get_logger
from node.store.db import Database
from node.store.disk import free_bytes
from node.web import parts as health
from node.web.lookout import Lookout
from node.web.metrics import Disk, Once, Receiver, View
from node.web.parts import Part
from node.web.server import Answer, Page, Server

log = get_logger()

AGAIN_S: Final = 5.0
"""How often a place that is taken is tried."""


class Site:
    """Shows the pages until it is told to stop.

    Parameters
    ----------
    config
        Gives the configuration in force; the place is that of the one at the start.
    spool
        Root of the spool.
    parts
        What the node's parts tell of themselves, read anew.
    signs
        What each process wrote, by its name.

    Raises
    ------
    MonitoringError
        The configuration has no place for them.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        spool: Path,
        *,
        parts: Callable[[], Sequence[Part]],
        signs: Callable[[], Mapping[str, Mapping[str, Any]]],
    ) -> None:
        started = config()
        if started.monitoring.listen is None:
            raise MonitoringError(
                "there is no place for the pages", hint="set monitoring.listen, for example to 127.0.0.1:9464"
            )
        self._listen = started.monitoring.listen
        self._config = config
        self._spool = spool
        self._parts = parts
        self._signs = signs
        self._lookout = Lookout(
            lambda: Database(started.store.database),
            spool,
            sums=lambda: config().store.keep.received is not None,
        )
        self._pages: Mapping[str, Page] = {
            "/": self._index,
            "/healthz": lambda _accept: self._health(health.alive, vital=True),
            "/readyz": lambda _accept: self._health(health.ready),
            "/readyz/receive": lambda _accept: self._health(health.takes),
            "/metrics": self._metrics,
        }
        self.told = ""

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop`` is set. While the place is taken it is tried again, and :attr:`told` says so."""
        with self._lookout:
            while not stop.is_set():
                try:
                    server = Server(
                        self._listen.host,
                        self._listen.port,
                        page=self._pages.get,
                        admits=lambda address: self._config().monitoring.admits(address),
                    )
                except MonitoringError as error:
                    if not self.told:
                        log.error("web.not_shown", told=error.message, hint=error.hint)
                    self.told = error.message
                    stop.wait(AGAIN_S)
                    continue
                self.told = ""
                log.info("web.started", listen=str(self._listen))
                server.serve(stop)

    def _index(self, _accept: str) -> Answer:
        told = "".join(f"{path}\n" for path in self._pages if path != "/")
        return Answer(status=HTTPStatus.OK, kind="text/plain; charset=utf-8", body=told.encode())

    def _health(self, judge: Callable[[Sequence[Part]], bool], *, vital: bool = False) -> Answer:
        parts = self._parts()
        ok = judge(parts)
        told = health.document([part for part in parts if part.vital or not vital], ok)
        return Answer(
            status=HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE,
            kind="application/json",
            body=json.dumps(told, indent=1).encode() + b"\n",
        )

    def _metrics(self, accept: str) -> Answer:
        try:
            encoder, kind = choose_encoder(accept)
        except (ValueError, TypeError):  # a version that is no number
            encoder, kind = choose_encoder("")
        return Answer(status=HTTPStatus.OK, kind=kind, body=encoder(Once(self.view())))

    def view(self) -> View:
        """All there is to tell now."""
        config = self._config()
        return View(
            config=config,
            parts=self._parts(),
            receivers=_receivers(self._signs()),
            disk=_disk(self._spool, config),
            unfit=list(marks(self._spool)),
            look=self._lookout.look(),
            now=datetime.now(UTC),
        )


def _receivers(signs: Mapping[str, Mapping[str, Any]]) -> list[Receiver]:
    return [
        Receiver(name=name, associations=int(told.get("associations", 0)), counts=told["counts"])
        for name, told in signs.items()
        if isinstance(told.get("counts"), Mapping)
    ]


def _disk(spool: Path, config: Config) -> Disk | None:
    store = config.store
    with contextlib.suppress(OSError):
        told = os.statvfs(spool)
        return Disk(
            free=free_bytes(spool),
            size=told.f_blocks * told.f_frsize,
            refuse_below=store.refuse_below,
            reject_below=store.refuse_below * 5 // 4 if store.reject_below is None else store.reject_below,
        )
    return None
