"""Named places where a test can make the process die; they cost a look into an empty dictionary otherwise.

``LUMINODE_FAILPOINTS="commit.before_answer=kill:3 store.committed=kill:7"`` in the environment of a process that
starts: at the third passing of the one, or the seventh of the other, whichever comes first, its whole process group
dies as from ``kill -9``: nothing is flushed, no lock is released by hand, no destructor runs. Nobody but the tests of
tests/faults sets it, and whoever can set the environment of the node can kill it anyway.
"""

from __future__ import annotations

import os
import signal
import threading

ARMED: dict[str, int] = {}
"""Name -> passings left. Empty unless the environment of the start says otherwise."""

_lock = threading.Lock()


def arm(told: str) -> None:
    """Arm the points of ``told``, and none but these; the form is that of the module.

    Raises
    ------
    ValueError
        ``told`` is not of that form: a test that kills nothing would pass for the wrong reason.
    """
    points: dict[str, int] = {}
    for part in told.split():
        name, found, rest = part.partition("=kill:")
        if not found or int(rest) < 1:
            raise ValueError(f"not a failpoint: {part}")
        points[name] = int(rest)
    ARMED.clear()
    ARMED.update(points)


def failpoint(name: str) -> None:
    """Die here if the environment wants it."""
    if ARMED:
        _pass(name)


def _pass(name: str) -> None:
    with _lock:
        if name not in ARMED:
            return
        ARMED[name] -= 1
        if ARMED[name] == 0:
            os.killpg(os.getpgrp(), signal.SIGKILL)


arm(os.environ.get("LUMINODE_FAILPOINTS", ""))
