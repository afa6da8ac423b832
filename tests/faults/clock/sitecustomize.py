"""Python imports this at the start of every process of a node under test: its wall clock can be set from outside.

The file that LUMINODE_TEST_CLOCK names holds by how many seconds the wall clock is off; every process follows it within
20 ms. time-machine replaces what Python asks for the time of day; the monotonic clock and all waits stay real.
(libfaketime would do it for C as well, but 0.9.10 makes clock_nanosleep with an absolute time fail, and with it
``time.sleep``.)
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import time_machine

EVERY_S = 0.02


def _follow(file: Path, coordinates: time_machine.Coordinates) -> None:
    off_s = 0.0
    while True:
        with suppress(OSError, ValueError):
            wanted_s = float(file.read_text())
            if wanted_s != off_s:
                coordinates.move_to(_begun + (time.monotonic() - _steady) + wanted_s)
                off_s = wanted_s
        time.sleep(EVERY_S)


_file = os.environ.get("LUMINODE_TEST_CLOCK")
_begun, _steady = time.time(), time.monotonic()
if _file:
    _coordinates = time_machine.travel(_begun, tick=True).start()

    def _start() -> None:
        """In this process, and in every one that is forked from it."""
        threading.Thread(
            target=_follow, args=(Path(_file), _coordinates), name="test-clock", daemon=True
        ).start()

    os.register_at_fork(after_in_child=_start)
    _start()
