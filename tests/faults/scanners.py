"""Scanners that send series for ever and note what was acknowledged: each is a thread with a raw socket.

A scanner sends a slice until it is answered 0000H, as a person at a console would have it: whatever it was told is
stored must come out at the other end, and nothing else.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import lru_cache

from node.dicom.source import file_meta
from tests.dicom_samples import part10
from tests.enhancing import series
from tests.senders import CT, Peer

N_SLICES = 20
_ROOT = "1.2.826.0.77.9"
_FIRST = 100_000
"""Numbers of series all have as many digits, so that one encoded slice serves them all."""


def series_uid(number: int) -> str:
    return f"{_ROOT}.{_FIRST + number}"


def slice_uid(number: int, k: int) -> str:
    return f"{series_uid(number)}.{k + 1}"


@lru_cache(maxsize=4)
def _templates(n: int, size: int) -> tuple[bytes, ...]:
    found = []
    for k, ds in enumerate(series("CT", n, size=size)):  # noisy enough for any engine to look at
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{series_uid(0)}.0", series_uid(0)
        ds.SOPInstanceUID = slice_uid(0, k)
        raw = part10(ds)
        found.append(raw[file_meta(raw)[1] :])
    return tuple(found)


def encoded(number: int, k: int, *, n: int = N_SLICES, size: int = 64) -> bytes:
    """Slice ``k`` of a series of ``n``, in Explicit VR Little Endian; series share nothing but their pixels."""
    return _templates(n, size)[k].replace(series_uid(0).encode(), series_uid(number).encode())


@dataclass
class Log:
    """What all scanners were told. ``sent`` holds what was begun, ``acknowledged`` what was answered 0000H."""

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    refused: dict[int, int] = field(default_factory=dict)
    _next: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> int:
        """The number of a new series."""
        with self._lock:
            self._next += 1
            return self._next - 1

    def told(self, uid: str, status: int) -> bool:
        with self._lock:
            if status == 0:
                self.acknowledged.add(uid)
            else:
                self.refused[status] = self.refused.get(status, 0) + 1
        return status == 0


@dataclass
class Scanner:
    """One scanner: its series goes on over the deaths of the node until each slice is acknowledged."""

    log: Log
    title: str
    n_slices: int = N_SLICES
    number: int = -1
    left: list[int] = field(default_factory=list)
    told: str = ""

    @property
    def done(self) -> bool:
        return not self.left

    def begin(self) -> None:
        self.number = self.log.begin()
        self.left = list(range(self.n_slices))

    def send(self, port: int, stop: threading.Event, *, n_new: int) -> None:
        """Send what is left of the series at hand and ``n_new`` others, unless the node dies or ``stop`` is set."""
        try:
            for _ in range(n_new + bool(self.left)):
                if stop.is_set():
                    return
                if not self.left:
                    self.begin()
                self._series(port, stop)
        except (OSError, AssertionError, EOFError) as error:  # it died under us; the next life gets the rest
            self.told = repr(error)

    def _series(self, port: int, stop: threading.Event) -> None:
        with Peer(port, timeout=30.0) as peer:
            peer.associate(CT, calling=self.title)
            for k in list(self.left):
                if stop.is_set():
                    return
                uid = slice_uid(self.number, k)
                self.log.sent.add(uid)
                if self.log.told(uid, peer.store(uid, encoded(self.number, k, n=self.n_slices)).status):
                    self.left.remove(k)
            peer.release()


def at_work(
    scanners: list[Scanner], port: int, stop: threading.Event, *, n_new: int
) -> list[threading.Thread]:
    """A thread for each scanner, started; see `Scanner.send`."""
    threads = [threading.Thread(target=s.send, args=(port, stop), kwargs={"n_new": n_new}) for s in scanners]
    for thread in threads:
        thread.start()
    return threads
