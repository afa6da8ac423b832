"""What each role's process does from start to stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from engines.base import Card
from engines.catalog import Catalog
from node.app.settings import Settings
from node.app.supervise import ROLES
from node.deliver.deliverer import Deliverer
from node.enhance.guardian import Guardian
from node.enhance.worker import take_back, worker_main
from node.gather.gatherer import Gatherer, InForce
from node.housekeep import Housekeeper
from node.log import get_logger
from node.process import die_with_parent, stop_on_signals
from node.receive.server import Receiver
from node.store import Store

log = get_logger()


def run_role(role: str, config: Path) -> int:
    """Run one role in this process until SIGTERM.

    Returns
    -------
    int
        The exit status.
    """
    die_with_parent()
    stop = threading.Event()
    settings = Settings(config, role)
    stop_on_signals(stop, settings.reload)
    with settings, settings.open_store() as store:
        _ROLES[role](settings, store, stop)
    return 0


def _receive(settings: Settings, store: Store, stop: threading.Event) -> None:
    receiver = Receiver(settings.config, store, _now)
    settings.on_change(receiver.apply)
    receiver.start()
    try:
        stop.wait()
    finally:
        receiver.stop()


def _gather(settings: Settings, store: Store, stop: threading.Event) -> None:
    settings.record_in(store)
    gatherer = Gatherer(
        store, lambda: InForce(config=settings.config, digest=settings.loaded.digest), cards()
    )
    keeper = Housekeeper(store, lambda: settings.config)
    keeper.start()
    try:
        gatherer.run(stop)
    finally:
        keeper.stop()


def _enhance(settings: Settings, store: Store, stop: threading.Event) -> None:
    n = take_back(store, _now())
    if n:
        log.warning("jobs.taken_back", n=n)
    c = settings.config
    guardian = Guardian(
        worker_main,
        (c.store.database, str(Path(c.store.spool).resolve()), c.log.level, c.log.format, threads()),
        store.jobs,
    )
    guardian.run(stop)


def _deliver(settings: Settings, store: Store, stop: threading.Event) -> None:
    Deliverer(store, calling_ae=settings.config.node.ae_title).run(stop)


_ROLES: Mapping[str, Callable[[Settings, Store, threading.Event], None]] = {
    "receive": _receive,
    "gather": _gather,
    "enhance": _enhance,
    "deliver": _deliver,
}
assert set(_ROLES) == set(ROLES)


def cards() -> dict[str, Card]:
    """The cards of the installed engines, by name. A broken folder is left out; `luminode check` tells."""
    catalog = Catalog.default()
    return {name: catalog.card(name) for name in catalog.names()}


def threads() -> int:
    """Threads for the engine: every core this process may use."""
    return len(os.sched_getaffinity(0))


def _now() -> datetime:
    return datetime.now(UTC)
