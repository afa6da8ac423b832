"""The configuration as a process of the node lives with it: watched, applied, recorded."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from node.app.engines import offered
from node.app.lastgood import keep, kept, last_good
from node.config.live import LiveConfig, restart_needed, text_diff
from node.config.load import LoadedConfig
from node.config.schema import Config
from node.config.snapshot import snapshot
from node.errors import ConfigError, StoreError
from node.log import configure, get_logger
from node.store import Store

log = get_logger()


class Settings:
    """config.yaml in force in this process. Use as a context manager: inside, the file is watched.

    Every role watches the file for itself; only the one that :meth:`record_in` was called on tells of refused
    edits and keeps versions in the database.

    Parameters
    ----------
    path
        config.yaml.
    role
        Whose process this is, for the log.
    fallback
        File with the last good configuration, which its supervisor gives to a role: it goes on with that if
        config.yaml is bad by the time it has to start again.

    Raises
    ------
    ConfigError
        The file is bad at the start, and there is no last good configuration.
    """

    def __init__(self, path: Path, role: str, *, fallback: Path | None = None) -> None:
        self._role = role
        self._store: Store | None = None
        self._listeners: list[Callable[[Config], None]] = []
        self._live = LiveConfig(
            path,
            os.environ,
            on_applied=self._applied,
            on_refused=self._refused,
            catalogue=offered(),
            fallback=kept(fallback),
        )
        self._at_start = self.loaded
        configure(self.config.log.level, fmt=self.config.log.format, waits=False)
        if self._live.refusal is not None:
            for fault in self._live.refusal.faults:
                log.error("config.refused", told=str(fault), role=role)
            log.error("config.last_good_used", role=role, digest=self.loaded.digest[:12])

    @property
    def loaded(self) -> LoadedConfig:
        """The configuration in force, with its digest and its text."""
        return self._live.current

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self._live.current.config

    @property
    def started(self) -> Config:
        """The settings that this process started with: what waits for a restart is taken from here."""
        return self._at_start.config

    @property
    def refused(self) -> str:
        """What is wrong with the file where it is not what is in force, "" if nothing is."""
        faults = self._live.refused
        return f"config.yaml is refused, the last good one is in force: {faults[0]}" if faults else ""

    def open_store(self) -> Store:
        """The store of this configuration; the supervisor has brought its schema up to date."""
        return Store.open(self.started.store.database, Path(self.started.store.spool), create=True)

    def on_change(self, listener: Callable[[Config], None]) -> None:
        """Call ``listener`` with every new configuration."""
        self._listeners.append(listener)

    def record_in(self, store: Store) -> None:
        """Keep every version in the database, the present one first, and tell of refused edits."""
        self._store = store
        before = store.configs.current()
        change = text_diff(before.text, self.loaded.text) if before is not None else ""
        store.configs.applied(self.loaded.digest, self.loaded.text, change, datetime.now(UTC))
        for warning in self.loaded.warnings:
            log.warning("config.doubtful", told=str(warning))
        if self._live.refusal is not None:
            self._record_refusal(store, self._live.refusal)
        else:
            self._keep(last_good(store.spool.root), self.loaded)

    def reload(self) -> None:
        """Read the file now (SIGHUP), in a thread of its own.

        A signal's handler runs in the middle of anything the main thread does, a transaction included; a
        second one begun there would wait for the first for ever.
        """
        threading.Thread(target=self._live.reload, name="config-reload", daemon=True).start()

    def keep_last_good(self) -> Path:
        """Keep the configuration in force for roles that start again; returns where it lies.

        A disk that refuses is told and is no reason to stop.
        """
        path = last_good(Path(self.started.store.spool))
        self._keep(path, self.loaded)
        return path

    def __enter__(self) -> Settings:
        self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._live.stop()

    def _applied(self, new: LoadedConfig, diff: str) -> None:
        if new.config.log != self.config.log:
            configure(new.config.log.level, fmt=new.config.log.format, waits=False)
        if self._store is not None:
            self._store.configs.applied(new.digest, new.text, diff, datetime.now(UTC))
            log.info("config.applied", digest=new.digest[:12])
            waiting = restart_needed(self._at_start, new)
            for key in waiting:
                log.warning("config.needs_restart", key=key)
            if not waiting:  # a role that starts again must find the node as the others have it
                self._keep(last_good(self._store.spool.root), new)
            for warning in new.warnings:
                log.warning("config.doubtful", told=str(warning))
            self._tell_of_moved(self._store, new.config)
        for listener in self._listeners:
            listener(new.config)

    def _tell_of_moved(self, store: Store, new: Config) -> None:
        """Whoever mends an address expects that what waits goes there; it keeps the one that it was queued with."""
        for name, before in self.config.destinations.items():
            after = new.destinations.get(name)
            if after is not None and snapshot(after, new) == snapshot(before, self.config):
                continue
            n = store.deliveries.waiting(name)
            if n and after is not None:
                hint = f"`luminode deliveries readdress {name}` sends them by the settings of now"
                log.warning("config.deliveries_keep_address", destination=name, deliveries=n, hint=hint)
            elif n:
                hint = "they go on to where it was, no commitment is heard; `luminode deliveries cancel N` ends one"
                log.warning("config.deliveries_go_on", destination=name, deliveries=n, hint=hint)

    def _keep(self, path: Path, loaded: LoadedConfig) -> None:
        try:
            keep(path, loaded.raw)
        except StoreError as error:
            log.error("config.last_good_not_kept", because=error.message, hint=error.hint)

    def _refused(self, error: ConfigError) -> None:
        if self._store is None:
            return
        for fault in error.faults:
            log.error("config.refused", told=str(fault), role=self._role)
        self._record_refusal(self._store, error)

    def _record_refusal(self, store: Store, error: ConfigError) -> None:
        body = {"faults": [str(f) for f in error.faults][:50]}
        store.events.add("error", "config.refused", body, datetime.now(UTC))
