"""Signs of life that every process of the node gives, and what they add up to (R59).

Each role writes a small file in ``spool/health`` every two seconds: when that was (the monotonic clock, which all
processes of a host share), and what is wrong with each of its parts, found by using it: a row is written, a file is
made durable, a loop comes round, a worker gets on. Whoever reads them needs neither the network nor the
database; a file that is old tells of a process that hangs. The file is written in place, in blocks it has
already, so that a full disk can still be told.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.errors import NodeError

EVERY_S: Final = 2.0
OLD_S: Final = 8.0
"""A sign of life that is older is none."""
LATE_S: Final = 10.0
"""A loop or a worker that shows nothing for so long does not work."""

NODE: Final = "node"
ASIDE: Final = frozenset({"web"})
"""Roles whose end stops nobody's work: no reason to start the node again."""

_SIZE: Final = 4096
_FOLDER: Final = "health"
_PARTS: Final = _SIZE // 160

Probe = Callable[[], str]
"""Uses a part; returns what is wrong with it, "" if nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the node.

    ``role`` is the process that tells; ``told`` says what is wrong, "" if nothing is. ``vital`` parts are those
    that starting the node again may heal: processes and their loops; not a disk, a database or a PACS.
    """

    role: str
    name: str
    told: str
    vital: bool

    @property
    def ok(self) -> bool:
        """Whether it works."""
        return not self.told


class Loop(threading.Event):
    """The event that tells a loop to end, which remembers when it was last asked: once a round."""

    def __init__(self) -> None:
        super().__init__()
        self.seen_at = time.monotonic()

    def is_set(self) -> bool:
        """As that of Event."""
        self.seen_at = time.monotonic()
        return super().is_set()

    def late(self) -> str:
        """What is wrong with the loop, as a `Probe` tells it."""
        return late(time.monotonic() - self.seen_at)


def late(quiet_s: float, what: str = "it has not come round") -> str:
    """What is wrong with something that was quiet for so long, "" if it was not too long."""
    return f"{what} for {quiet_s:.0f} s" if quiet_s > LATE_S else ""


class Pulse:
    """Tells of a process in its file until it is stopped; a context manager.

    Parameters
    ----------
    spool
        Root of the spool.
    role
        Name of the file.
    vital
        Probes that only look, by part; a start of the node may heal what they find.
    probes
        Probes that use something and may take their time; they run in a thread of their own, and one that does
        not come back is what is told.
    body
        What else to tell.
    """

    def __init__(
        self,
        spool: Path,
        role: str,
        *,
        vital: Mapping[str, Probe],
        probes: Mapping[str, Probe] | None = None,
        body: Callable[[], Mapping[str, Any]] = dict,
        groups: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._path = _file(spool, role)
        self._vital, self._probes, self._body, self._groups = vital, probes or {}, body, groups
        self._found: dict[str, str] = {}
        self._asking: tuple[str, float] | None = None
        self._stop = threading.Event()
        self._descriptor = -1
        self._threads = [threading.Thread(target=self._write_on, name="health", daemon=True)]
        if self._probes:
            self._threads.append(threading.Thread(target=self._probe_on, name="health-probe", daemon=True))

    def __enter__(self) -> Pulse:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._threads[0].join(EVERY_S)
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _probe_on(self) -> None:
        while not self._stop.is_set():
            for name, probe in self._probes.items():
                self._asking = (name, time.monotonic())
                told = _told(probe)
                self._asking = None
                self._found[name] = told
            self._stop.wait(2 * EVERY_S)

    def _write_on(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # an old file is what tells of it
                self._write()
            if self._stop.wait(EVERY_S):
                return

    def _write(self) -> None:
        found = {**dict.fromkeys(self._probes, ""), **self._found, **self._groups()}
        asking = self._asking
        if asking is not None and time.monotonic() - asking[1] > OLD_S:
            found[asking[0]] = f"no answer for {time.monotonic() - asking[1]:.0f} s"
        told = {
            "pid": os.getpid(),
            "steady_s": time.monotonic(),
            "vital": {name: _told(probe) for name, probe in self._vital.items()},
            "parts": dict(list(found.items())[:_PARTS]),
            **self._body(),
        }
        if self._descriptor >= 0 and not self._is_there():
            os.close(self._descriptor)
            self._descriptor = -1
        if self._descriptor < 0:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        os.pwrite(self._descriptor, json.dumps(told).encode().ljust(_SIZE), 0)

    def _is_there(self) -> bool:
        """Whether the file still has its name: somebody may have cleaned up, and nobody would read it any more."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False


def _told(probe: Probe) -> str:
    try:
        return probe()[:120]
    except NodeError as error:
        return error.message[:120]
    except Exception as error:  # what a stranger's text holds is not known: only its type is told
        return type(error).__name__


def health(spool: Path) -> list[Part]:
    """What all processes of the node on this spool tell, the worst first.

    Parameters
    ----------
    spool
        Root of the spool.
    """
    told = signs(spool)
    if not told:
        what = "the node does not run here"
        if not spool.is_dir():
            what = f"there is no spool at {spool.absolute()}: run this where the node runs"
        return [Part(role=NODE, name="processes", told=what, vital=True)]
    wanted: Sequence[str] = told[NODE].get("roles", ()) if NODE in told else ()
    parts: list[Part] = []
    for role in dict.fromkeys([*wanted, *told]):
        parts += _parts(role, told.get(role, {}))
    return sorted(parts, key=lambda part: part.ok)


def signs(spool: Path) -> dict[str, dict[str, Any]]:
    """What each process wrote, as it wrote it and however long ago, by the name of its file.

    Parameters
    ----------
    spool
        Root of the spool.
    """
    return {path.stem: _read(path) for path in sorted((spool / _FOLDER).glob("*.json"))}


def forget(spool: Path, but: Sequence[str]) -> None:
    """Remove what processes left that a node no longer has; an old file would tell of one that hangs.

    Parameters
    ----------
    spool
        Root of the spool.
    but
        Names of the processes that the node has.
    """
    aside = [_file(spool, role) for role in ASIDE]
    for path in (*(spool / _FOLDER).glob("receive-*.json"), *aside):
        if path.stem not in but:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _parts(role: str, told: Mapping[str, Any]) -> list[Part]:
    vital = role not in ASIDE
    age_s = time.monotonic() - float(told.get("steady_s", float("-inf")))
    if not 0 <= age_s <= OLD_S:
        how = f"no sign of life for {age_s:.0f} s" if 0 <= age_s < 1e9 else "no sign of life"
        return [Part(role=role, name="process", told=how, vital=vital)]
    return [
        Part(role=role, name="process", told="", vital=vital),
        *(Part(role=role, name=name, told=what, vital=True) for name, what in told["vital"].items()),
        *(Part(role=role, name=name, told=what, vital=False) for name, what in told["parts"].items()),
    ]


def _file(spool: Path, role: str) -> Path:
    return spool / _FOLDER / f"{role}.json"


def _read(path: Path) -> dict[str, Any]:
    for _ in range(3):
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(path.read_bytes())
            if isinstance(told, dict):
                return told
        time.sleep(0.01)  # it was just being written
    return {}
