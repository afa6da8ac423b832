"""The configuration as a process of the node lives with it: watched, applied, recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from engines.catalog import Catalog
from node.config.live import LiveConfig, restart_needed
from node.config.load import LoadedConfig
from node.config.schema import Config
from node.errors import ConfigError
from node.log import configure, get_logger
from node.store import Store

log = get_logger()


class Settings:
    """config.yaml in force in this process. Use as a context manager: inside, the file is watched.

    Every role watches the file for itself; only the one that :meth:`record_in` was called on tells of refused
    edits and keeps versions in the database.

    Raises
    ------
    ConfigError
        The file is bad at the start.
    """

    def __init__(self, path: Path, role: str) -> None:
        self._role = role
        self._store: Store | None = None
        self._listeners: list[Callable[[Config], None]] = []
        self._live = LiveConfig(
            path,
            os.environ,
            on_applied=self._applied,
            on_refused=self._refused,
            catalogue=Catalog.default().names(),
        )
        configure(self.config.log.level, fmt=self.config.log.format)

    @property
    def loaded(self) -> LoadedConfig:
        return self._live.current

    @property
    def config(self) -> Config:
        return self._live.current.config

    def open_store(self) -> Store:
        """The store of this configuration; the supervisor has brought its schema up to date."""
        return Store.open(self.config.store.database, Path(self.config.store.spool), create=True)

    def on_change(self, listener: Callable[[Config], None]) -> None:
        """Call ``listener`` with every new configuration."""
        self._listeners.append(listener)

    def record_in(self, store: Store) -> None:
        """Keep every version in the database, the present one first, and tell of refused edits."""
        self._store = store
        store.configs.applied(self.loaded.digest, self.loaded.text, "", datetime.now(UTC))
        for warning in self.loaded.warnings:
            log.warning("config.doubtful", told=str(warning))

    def reload(self) -> None:
        """Read the file now (SIGHUP)."""
        self._live.reload()

    def __enter__(self) -> Settings:
        self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._live.stop()

    def _applied(self, new: LoadedConfig, diff: str) -> None:
        if self._store is not None:
            self._store.configs.applied(new.digest, new.text, diff, datetime.now(UTC))
            log.info("config.applied", digest=new.digest[:12])
            for key in restart_needed(self._live.current, new):
                log.warning("config.needs_restart", key=key)
            for warning in new.warnings:
                log.warning("config.doubtful", told=str(warning))
        for listener in self._listeners:
            listener(new.config)

    def _refused(self, error: ConfigError) -> None:
        if self._store is None:
            return
        for fault in error.faults:
            log.error("config.refused", told=str(fault))
        body = {"faults": [str(f) for f in error.faults][:50]}
        self._store.events.add("error", "config.refused", body, datetime.now(UTC))
