"""The supervisor: one child process a role, started again when it dies, ended in order.

It holds no work and no state. Whatever a child was doing when it died is in the database and the spool, so
starting it again is all the help it needs. Children get SIGTERM should the supervisor be killed outright.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from node.app.doors import Doors
from node.app.forked import FORKED, Forked, fork, load
from node.app.health import ASIDE, EVERY_S, NODE, Pulse, forget, health
from node.errors import ReceiveError
from node.log import get_logger
from node.process import stop_on_signals, tell_systemd

log = get_logger()

ROLES: tuple[str, ...] = ("deliver", "enhance", "gather", "receive")
"""In start order: the door opens last, when everyone behind it is up. They stop in the reverse order."""

WEB = "web"
"""The role that shows the pages of ``monitoring``, where there is a place for them. Nobody's work depends on it."""

STARTED = "LUMINODE_STARTED"
"""Environment of the roles: when the supervisor began (seconds since the epoch). Nobody wrote before that."""

_DOOR = "receive"

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_STEADY_S = 60.0
_FIRST_LOOK_S = 20.0
"""Roles need some time until they can tell of themselves."""


def named(role: str, number: int) -> str:
    """What one of several processes of a role is called; the first is called as if it were alone."""
    return role if number == 1 else f"{role}-{number}"


@dataclass(slots=True, kw_only=True)
class _Child:
    role: str
    number: int = 1
    process: subprocess.Popen[bytes] | Forked | None = None
    started_at: float = 0.0
    wait_s: float = _FIRST_WAIT_S
    start_at: float = field(default=0.0)

    @property
    def name(self) -> str:
        return named(self.role, self.number)

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Supervisor:
    """Run the roles as children of this process.

    Parameters
    ----------
    config
        Path of config.yaml; children read it themselves.
    last_good
        Path of the last good configuration, which children go on with should config.yaml be bad by the time
        they are started again.
    roles
        Which of :data:`ROLES` to run, and whether :data:`WEB`.
    drain_s
        How long the children together may take to end after SIGTERM before they are killed; whatever they
        still held is in the database.
    doors
        What receivers share, where there are to be several.
    """

    def __init__(
        self,
        config: Path,
        roles: Sequence[str] = ROLES,
        *,
        last_good: Path,
        drain_s: float = 15.0,
        doors: Doors | None = None,
    ) -> None:
        self._config = config
        self._last_good = last_good
        self._doors = doors
        n_receivers = doors.n if doors is not None else 1
        self._children = [
            _Child(role=r, number=n + 1)
            for r in (*ROLES, WEB)
            if r in roles
            for n in range(n_receivers if r == _DOOR else 1)
        ]
        self._drain_s = drain_s
        self._environment = {**os.environ, STARTED: str(time.time())}
        self.stop = threading.Event()
        self._reload = threading.Event()
        self._ill: Set[str] = frozenset()

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT. Returns the exit status."""
        forked = [child for child in self._children if child.role in FORKED]
        if forked:
            load([child.role for child in forked])
        for child in forked:
            self._fork(child)
        stop_on_signals(self.stop, self._reload.set)
        names = [c.name for c in self._children]
        forget(self._last_good.parent, [*names, NODE])
        log.info("node.started", roles=names, pid=os.getpid())
        with Pulse(
            self._last_good.parent, NODE,
            vital={"roles": self._dead}, body=lambda: {"roles": names},
        ):  # fmt: skip
            self._supervise()
        self._end()
        log.info("node.stopped")
        return 0

    def _supervise(self) -> None:
        look_at = time.monotonic() + _FIRST_LOOK_S
        while not self.stop.is_set():
            now = time.monotonic()
            for child in self._children:
                self._look_after(child, now)
            if self._reload.is_set():
                self._reload.clear()
                self._signal(signal.SIGHUP)
            if now >= look_at:
                look_at = now + EVERY_S
                self._look_at_health()
            self.stop.wait(0.1)

    def _dead(self) -> str:
        dead = [c.name for c in self._children if not c.lives and c.role not in ASIDE]
        return f"not running: {', '.join(dead)}" if dead else ""

    def _look_at_health(self) -> None:
        """Tell what changed, and systemd that the node works: not that it lives, but that it gets on."""
        parts = health(self._last_good.parent)
        ill = {f"{p.role} {p.name}": p.told for p in parts if not p.ok}
        if ill.keys() != self._ill:
            self._ill = ill.keys()
            if ill:
                log.error("health.lost", **{what.replace(" ", "_"): told for what, told in ill.items()})
            else:
                log.info("health.regained")
        if all(p.ok for p in parts if p.vital):
            tell_systemd("WATCHDOG=1")

    def _look_after(self, child: _Child, now: float) -> None:
        if child.process is not None:
            status = child.process.poll()
            if status is None:
                if now - child.started_at > _STEADY_S:
                    child.wait_s = _FIRST_WAIT_S
                return
            log.error("role.died", role=child.name, status=status, again_in_s=child.wait_s)
            self._again_later(child, now)
            if self._doors is not None and not any(c.lives for c in self._children if c.role == _DOOR):
                self._doors.close()
        if now >= child.start_at:
            self._start(child, now)

    def _again_later(self, child: _Child, now: float) -> None:
        child.process = None
        child.start_at = now + child.wait_s
        child.wait_s = min(child.wait_s * 2, _LONGEST_WAIT_S)

    def _start(self, child: _Child, now: float) -> None:
        environment, left_open = self._environment, tuple[int, ...]()
        if child.role == _DOOR and self._doors is not None:
            try:
                more, left_open = self._doors.post(child.number)
            except ReceiveError as error:
                log.error("role.failed", role=child.name, told=error.message, hint=error.hint)
                self._again_later(child, now)
                return
            environment = {**environment, **more}
        # Anew, not forked: this process has threads by now.
        child.process = subprocess.Popen(
            self._command(child.role), env=environment, stdin=subprocess.DEVNULL, pass_fds=left_open
        )
        child.started_at = now

    def _command(self, role: str) -> list[str]:
        return [sys.executable, "-m", "node.app", role, str(self._config), str(self._last_good)]

    def _fork(self, child: _Child) -> None:
        """Start a role for the first time. The child leaves by SystemExit, up through whoever called."""

        def work() -> int:
            from node.app.__main__ import live

            os.environ.update(self._environment)
            return live(child.role, self._config, self._last_good)

        child.process = fork(work, ["python", *self._command(child.role)[1:]])
        child.started_at = time.monotonic()

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(number)

    def _end(self) -> None:
        # The receiver first: no new association while the others put down what they hold.
        deadline = time.monotonic() + self._drain_s
        if self._doors is not None:
            self._doors.close()
        for child in reversed(self._children):
            if child.process is not None and child.process.poll() is None:
                child.process.terminate()
        for child in reversed(self._children):
            if child.process is None:
                continue
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("role.killed", role=child.name, after_s=self._drain_s)
                child.process.kill()
                child.process.wait()
