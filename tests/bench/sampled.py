"""Run a module and tell in which functions its threads spend CPU: ``python -m tests.bench.sampled OUT MODULE ...``.

Every few milliseconds the CPU time that each thread used since the last look (``schedstat`` of proc(5), in ns) is
booked on the function that it is in: the innermost one in Python, so work in C is booked on who called it. Unlike
cProfile this sees every thread and slows none of them.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import FrameType

EVERY_S = 0.003


class Watch(threading.Thread):
    """Looks until it is stopped; ``seconds`` of CPU by (thread, function)."""

    def __init__(self) -> None:
        super().__init__(name="watch", daemon=True)
        self._done = threading.Event()
        self._before: dict[int, int] = {}
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    def run(self) -> None:
        while not self._done.wait(EVERY_S):
            self._look()

    def stop(self) -> None:
        self._done.set()
        self.join()

    def _look(self) -> None:
        frames = sys._current_frames()
        for thread in threading.enumerate():
            frame = frames.get(thread.ident or 0)
            if frame is None or thread.native_id is None or thread is self:
                continue
            try:
                told = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
            except OSError:
                continue
            now = int(told.split()[0])
            spent = now - self._before.get(thread.native_id, now)
            self._before[thread.native_id] = now
            if spent and not _imports(frame):
                code = frame.f_code
                place = "/".join(Path(code.co_filename).parts[-2:])
                self.seconds[thread.name, f"{place}: {code.co_qualname}"] += spent / 1e9


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being loaded: the start of a process, which happens once."""
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def main() -> None:
    out, module = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    watch = Watch()
    watch.start()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        watch.stop()
        told = [[thread, function, seconds] for (thread, function), seconds in watch.seconds.items()]
        out.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
