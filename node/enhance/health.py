"""Whether the GPU of this host is to be used: a breaker that opens by what happened and closes by proof.

It opens when runs on the GPU failed on three *different* series within ten minutes (one series that brings down its
worker again and again is a poison pill, and no fault of the GPU), or at one sign of the driver's that leaves no
doubt (node/enhance/signs.py). While it is open, workers are started without the runtimes that need the GPU, so that
the declared fallback serves, or jobs that insist are held. It closes when a process of its own has loaded an engine
on the GPU and answered a question of known answer, tried once in a few minutes. Nothing here ever resets a GPU.

The mark is a small file in the spool, named for this host, and for the GPU where there are several: a restart forgets
nothing, and it holds while the database is away.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from node.log import get_logger

log = get_logger()

Tell = Callable[[Literal["info", "critical"], str, Mapping[str, Any]], bool]
Untold = tuple[Literal["info", "critical"], str, Mapping[str, Any]]

_TELL_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When the breaker opens and how often it is tried, in seconds and counts."""

    failures: int = 3
    within_s: float = 600.0
    check_every_s: float = 300.0
    check_first_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Since when, and why, the GPU of this host is not used."""

    since: str
    why: str


def mark_path(spool: Path, gpu: str = "") -> Path:
    """Where the mark of this host lies; of one of its GPUs, where each has a worker of its own."""
    name = re.sub(r"[^A-Za-z0-9.-]", "_", f"{socket.gethostname()}-{gpu}" if gpu else socket.gethostname())
    return spool / f"gpu-unfit-{name[:128]}.json"


def read_mark(path: Path) -> Mark | None:
    """The mark; None if there is none. One that cannot be read counts: nobody wrote it for nothing."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Mark(since=str(told["since"]), why=str(told["why"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Mark(since="", why="its mark cannot be read")


def marks(spool: Path) -> dict[str, Mark]:
    """All marks in a spool, by host (and GPU, where each has a worker of its own)."""
    found = {}
    for path in sorted(spool.glob("gpu-unfit-*.json")):
        mark = read_mark(path)
        if mark is not None:
            found[path.stem.removeprefix("gpu-unfit-")] = mark
    return found


class Health:
    """The breaker. Used by the guardian alone, from one thread.

    Parameters
    ----------
    path
        Of the mark.
    tell
        Called as ``tell(level, event, body)`` when the breaker opens or closes; called again until it returns True.
        It must not raise.
    device
        The GPU in what is told, where there are several.
    """

    def __init__(
        self,
        path: Path,
        tell: Tell,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        device: str | None = None,
    ) -> None:
        self._path = path
        self._of = {} if device is None else {"gpu": device}
        self._tell = tell
        self._limits = limits or Limits()
        self._clock = clock
        self._failures: list[tuple[float, int]] = []
        self._strange = 0
        self._untold: list[Untold] = []
        self._tell_at = 0.0
        self.mark = read_mark(path)
        self._check_at = clock() + self._limits.check_first_s
        if self.mark is not None:
            log.error("gpu.still_unfit", **self._of, since=self.mark.since, why=self.mark.why)

    @property
    def unfit(self) -> bool:
        return self.mark is not None

    def failed(self, series: int, how: str) -> None:
        """Count a run on the GPU that failed for a reason that may be the GPU's.

        Parameters
        ----------
        series
            Whose; 0 where it was nobody's (loading, the canary): each such failure counts by itself.
        """
        now = self._clock()
        if not series:
            self._strange -= 1
            series = self._strange
        self._failures = [(at, s) for at, s in self._failures if now - at < self._limits.within_s]
        self._failures.append((now, series))
        n = len({s for _, s in self._failures})
        log.error("gpu.run_failed", how=how, series=series if series > 0 else None, different=n)
        if n >= self._limits.failures:
            minutes = round(self._limits.within_s / 60)
            self.condemn(f"it failed on {n} different series within {minutes} min, last: {how}")

    def condemn(self, why: str) -> None:
        """Mark the GPU unfit; nothing happens if it is already."""
        if self.mark is not None:
            return
        self.mark = Mark(since=datetime.now(UTC).isoformat(timespec="seconds"), why=why)
        self._failures.clear()
        self._check_at = self._clock() + self._limits.check_every_s
        try:
            _write(self._path, json.dumps({"since": self.mark.since, "why": why}))
        except OSError as e:
            log.error("gpu.mark_not_kept", because=e.strerror)
        self._say("critical", "gpu.unfit", {**self._of, "why": why, "since": self.mark.since})

    def check_due(self) -> bool:
        """Whether it is time to try the GPU again; asking starts the next pause."""
        if self.mark is None or self._clock() < self._check_at:
            return False
        self._check_at = self._clock() + self._limits.check_every_s
        return True

    def proven(self) -> None:
        """The GPU answered rightly: use it again."""
        if self.mark is None:
            return
        mark, self.mark = self.mark, None
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._say("info", "gpu.fit", {**self._of, "was": mark.why, "since": mark.since})

    def tell(self) -> None:
        """Tell again what could not be told; cheap when there is nothing."""
        if self._untold and self._clock() >= self._tell_at:
            self._tell_at = self._clock() + _TELL_AGAIN_S
            while self._untold and self._tell(*self._untold[0]):
                self._untold.pop(0)

    def _say(self, level: Literal["info", "critical"], event: str, body: Mapping[str, Any]) -> None:
        (log.critical if level == "critical" else log.info)(event, **body)
        self._untold.append((level, event, body))
        self._tell_at = 0.0
        self.tell()


def _write(path: Path, text: str) -> None:
    """Put a file in place whole or not at all, durably."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        new.unlink(missing_ok=True)
