"""What each role's process does from start to stop. A role imports what it needs when it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from node.app.engines import cards, place, shown, threads
from node.app.health import Loop, Pulse, health, late, signs
from node.app.settings import Settings
from node.app.supervise import ROLES, STARTED, WEB, named
from node.config.schema import Config
from node.log import get_logger
from node.process import POST, die_with_parent, stop_on_signals
from node.store import Store, owners

if TYPE_CHECKING:
    from node.enhance.guardian import Guardian
    from node.gather.gatherer import InForce
    from node.receive.crowd import Post

log = get_logger()


def run_role(role: str, config: Path, *, last_good: Path | None = None) -> int:
    """Run one role in this process until SIGTERM.

    Parameters
    ----------
    role
        One of :data:`node.app.supervise.ROLES`, or :data:`node.app.supervise.WEB`.
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
    stop = Loop()
    settings = Settings(config, role, fallback=last_good)
    stop_on_signals(stop, settings.reload)
    if role == WEB:  # it opens no store: it has to tell where the database is away
        with settings:
            _web(settings, stop)
        return 0
    with settings, settings.open_store() as store:
        store.spool.sweep_tmp(
            _now()
        )  # names that a power cut took are there before anybody looks for their files
        _ROLES[role](settings, store, stop)
    return 0


def _receive(settings: Settings, store: Store, stop: Loop) -> None:
    from node.receive.server import Receiver

    post = _post()
    receiver = Receiver(settings.started, store, _now, post=post)
    receiver.start()
    try:
        settings.on_change(receiver.apply)
        receiver.apply(settings.config)  # an edit may have come while this process started
        with Pulse(
            store.spool.root, named("receive", post.number if post is not None else 1),
            vital={"door": lambda: late(receiver.quiet_s, "it has not looked for connections")},
            probes={"spool": lambda: _spool(store, settings)},
            body=lambda: {"associations": receiver.load.associations, "counts": receiver.counts},
        ):  # fmt: skip
            stop.wait()
    finally:
        receiver.stop()


def _post() -> Post | None:
    """The place of this receiver, where its supervisor runs several of them."""
    from node.receive.crowd import Post

    told = os.environ.get(POST, "")
    if not told:
        return None
    number, of, door, table = map(int, told.split())
    return Post(number=number, of=of, door=door, table=table)


def _gather(settings: Settings, store: Store, stop: Loop) -> None:
    from node.gather.gatherer import Gatherer
    from node.housekeep import Housekeeper

    settings.record_in(store)
    gatherer = Gatherer(store, lambda: in_force(settings), cards())
    started = os.environ.get(STARTED, "")
    keeper = Housekeeper(
        store,
        lambda: settings.config,
        alive_since=datetime.fromtimestamp(float(started), UTC) if started else None,
    )
    keeper.start()
    try:
        with Pulse(
            store.spool.root, "gather",
            vital={"loop": stop.late, "scheduler": lambda: late(keeper.quiet_s)},
            probes={"database": lambda: _database(store), "configuration": lambda: settings.refused},
            groups=lambda: {
                f"destination {name}": "" if answer.ok else answer.text
                for name, answer in keeper.answers.items()
            },
        ):  # fmt: skip
            gatherer.run(stop)
    finally:
        keeper.stop()


def _enhance(settings: Settings, store: Store, stop: Loop) -> None:
    from node.enhance.guardian import guard
    from node.enhance.worker import take_back

    n = take_back(store, _now())
    if n:
        log.warning("jobs.taken_back", n=n)
    devices = shown(settings.started)
    guardians = [_guardian(settings.started, store, device, len(devices)) for device in devices]
    names = ["worker"] if len(guardians) == 1 else [f"worker {n}" for n in range(1, len(guardians) + 1)]
    vital = {name: partial(_worker, one) for name, one in zip(names, guardians, strict=True)}
    with Pulse(store.spool.root, "enhance", vital={"loop": stop.late, **vital}):
        guard(guardians, stop)


def _guardian(c: Config, store: Store, device: str | None, n_workers: int) -> Guardian:
    """The guardian of the worker on one GPU; several share cores and memory."""
    from node.app import spawned
    from node.enhance import memory, signs
    from node.enhance.guardian import Guardian
    from node.enhance.health import Health, mark_path

    warm = tuple(dict.fromkeys((e.engine, e.runtime) for e in c.engines.values()))
    where, n_threads = place(c), threads(n_workers)
    n_bytes = int(memory.SHARE * memory.there_is() / n_workers) if n_workers > 1 else 0
    spool = str(Path(c.store.spool).resolve())
    keep_free = c.store.reject_below or c.store.refuse_below * 5 // 4
    return Guardian(
        spawned.worker,
        (
            c.store.database,
            spool,
            c.log.level,
            c.log.format,
            n_threads,
            warm,
            n_bytes,
            where,
            device,
            keep_free,
        ),
        store.jobs,
        name="worker" if n_workers == 1 else f"worker on GPU {device}",
        health=Health(mark_path(store.spool.root, device or ""), store.events.tell, device=device or None),
        check=spawned.check,
        check_arguments=(warm, n_threads, c.log.level, c.log.format, where, device),
        watch=signs.Watch(partial(signs.sources, device)),
    )


def _deliver(settings: Settings, store: Store, stop: Loop) -> None:
    from node.deliver.deliverer import Deliverer

    with Pulse(store.spool.root, "deliver", vital={"loop": stop.late}):
        Deliverer(store, calling_ae=settings.config.node.ae_title).run(stop)


def _web(settings: Settings, stop: Loop) -> None:
    from node.web.site import Site

    spool = Path(settings.started.store.spool).resolve()
    site = Site(lambda: settings.config, spool, parts=lambda: health(spool), signs=lambda: signs(spool))
    with Pulse(spool, WEB, vital={}, groups=lambda: {"page": site.told}):
        site.run(stop)


_ROLES: Mapping[str, Callable[[Settings, Store, Loop], None]] = {
    "receive": _receive,
    "gather": _gather,
    "enhance": _enhance,
    "deliver": _deliver,
}
assert set(_ROLES) == set(ROLES)


def in_force(settings: Settings) -> InForce:
    """What decides now, and the digest of that: read once, for an edit may come between two looks (R49)."""
    from node.gather.gatherer import InForce

    now = settings.loaded
    return InForce(config=now.config, digest=now.digest)


def _spool(store: Store, settings: Settings) -> str:
    """Whether an instance would be taken: there is room, and a file can be made durable."""
    with store.spool.create(ahead=False) as writer:
        writer.write(b"\0" * 4096)
        writer.sync()
    free, least = store.spool.free_bytes(), settings.config.store.refuse_below
    return f"C-STORE is refused: {free / 1e9:.1f} GB free of {least / 1e9:.1f} GB" if free < least else ""


def _database(store: Store) -> str:
    """Whether the database takes a transaction."""
    store.turns.take("health", owners.me("health"), _now(), every_s=0.0)
    return ""


def _worker(guardian: Guardian) -> str:
    """Whether the engine's worker lives and gets on."""
    pid = guardian.pid
    if pid is None:
        return "it is being started again"
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
        if state in "TtZX":
            return "its process is stopped"
    # The steps of a series may take their time, and the guardian knows how long.
    return "" if guardian.job or guardian.series else late(guardian.quiet_s, "it has shown nothing")


def _now() -> datetime:
    return datetime.now(UTC)
