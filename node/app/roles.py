"""What each role's process does from start to stop. A role imports what it needs when it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from node.app.engines import cards, threads
from node.app.settings import Settings
from node.app.supervise import ROLES, STARTED
from node.log import get_logger
from node.process import die_with_parent, stop_on_signals
from node.store import Store

log = get_logger()


def run_role(role: str, config: Path, *, last_good: Path | None = None) -> int:
    """Run one role in this process until SIGTERM.

    Parameters
    ----------
    role
        One of :data:`node.app.supervise.ROLES`.
    config
        Path of config.yaml.
    last_good
        File with the configuration to go on with should config.yaml be bad; a supervisor knows where it lies.

    Returns
    -------
    int
        The exit status.
    """
    die_with_parent()
    stop = threading.Event()
    settings = Settings(config, role, fallback=last_good)
    stop_on_signals(stop, settings.reload)
    with settings, settings.open_store() as store:
        _ROLES[role](settings, store, stop)
    return 0


def _receive(settings: Settings, store: Store, stop: threading.Event) -> None:
    from node.receive.server import Receiver

    receiver = Receiver(settings.started, store, _now)
    receiver.start()
    try:
        settings.on_change(receiver.apply)
        receiver.apply(settings.config)  # an edit may have come while this process started
        stop.wait()
    finally:
        receiver.stop()


def _gather(settings: Settings, store: Store, stop: threading.Event) -> None:
    from node.gather.gatherer import Gatherer, InForce
    from node.housekeep import Housekeeper

    settings.record_in(store)
    gatherer = Gatherer(
        store, lambda: InForce(config=settings.config, digest=settings.loaded.digest), cards()
    )
    started = os.environ.get(STARTED, "")
    keeper = Housekeeper(
        store,
        lambda: settings.config,
        alive_since=datetime.fromtimestamp(float(started), UTC) if started else None,
    )
    keeper.start()
    try:
        gatherer.run(stop)
    finally:
        keeper.stop()


def _enhance(settings: Settings, store: Store, stop: threading.Event) -> None:
    from node.enhance.guardian import Guardian
    from node.enhance.worker import take_back, worker_main

    n = take_back(store, _now())
    if n:
        log.warning("jobs.taken_back", n=n)
    c = settings.started
    guardian = Guardian(
        worker_main,
        (
            c.store.database,
            str(Path(c.store.spool).resolve()),
            c.log.level,
            c.log.format,
            threads(),
            tuple(dict.fromkeys((e.engine, e.runtime) for e in c.engines.values())),
        ),
        store.jobs,
    )
    guardian.run(stop)


def _deliver(settings: Settings, store: Store, stop: threading.Event) -> None:
    from node.deliver.deliverer import Deliverer

    Deliverer(store, calling_ae=settings.config.node.ae_title).run(stop)


_ROLES: Mapping[str, Callable[[Settings, Store, threading.Event], None]] = {
    "receive": _receive,
    "gather": _gather,
    "enhance": _enhance,
    "deliver": _deliver,
}
assert set(_ROLES) == set(ROLES)


def _now() -> datetime:
    return datetime.now(UTC)
