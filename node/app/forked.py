"""Roles as forks of their supervisor: each begins with everything loaded that it needs.

Importing the node takes most of a second of CPU, and a node that starts has four roles. They are forked before the
supervisor has a thread or a handler of its own. Two kinds are executed instead: the receiver, to which strangers
talk, for it is to have nothing in its memory that decodes (S12) and a layout of its own; and a role that died, so that
nothing of what it may have come to grief with is there again.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from node.process import die_with_parent, name_process

FORKED = frozenset({"deliver", "enhance", "gather", "web"})
"""Roles that are forked at the start of a node."""


class Forked:
    """A forked child, to be looked after as a `subprocess.Popen`.

    Parameters
    ----------
    pid
        Of a child of this process that nobody else waits for.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None
        self._waits = threading.Lock()  # who looks after it and who tells of its health both ask

    def poll(self) -> int | None:
        """The exit status, negative for the signal that ended it; None while it lives."""
        with self._waits:
            if self._status is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except (
                    ChildProcessError
                ):  # whoever started us has SIGCHLD ignored: dead, and nobody knows how
                    pid, status = self.pid, 0
                if pid:
                    self._status = os.waitstatus_to_exitcode(status)
            return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns the exit status.

        Raises
        ------
        subprocess.TimeoutExpired
            It lives on after ``timeout`` seconds.
        """
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        while (status := self.poll()) is None:
            if time.monotonic() >= until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.02)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if it lives: until it was waited for, its number is nobody else's."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def load(roles: Collection[str] = FORKED) -> None:
    """Import what these roles of :data:`FORKED` need, so that it is there after a fork."""
    import node.app.roles
    import node.deliver.deliverer
    import node.enhance.guardian
    import node.enhance.health
    import node.enhance.signs
    import node.enhance.worker
    import node.gather.gatherer
    import node.housekeep

    if "web" in roles:
        import node.web.site  # noqa: F401
    gc.freeze()  # pages of what lives for ever stay shared


def fork(work: Callable[[], int], command: Sequence[str]) -> Forked:
    """Run ``work`` in a child, which ends with its result as the exit status.

    Parameters
    ----------
    work
        What the child does.
    command
        What lists of processes show for it: the command that would do the same.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return Forked(pid)
    try:
        die_with_parent(parent)
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        name_process(command)
        status = work()
    except Exception:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.exit(status)
