"""What a receiver has done since it started, counted by kind and reason: for whoever watches the node."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Final

ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"
REFUSED: Final = "refused"
DOOR: Final = "door"
"""Associations accepted, and rejected by reason; instances refused by status; whatever else was told of a peer.

An instance that is taken counts nothing here: how many there are is in the database.
"""

KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    ACCEPTED: ("",),
    REJECTED: ("out_of_space", "too_many_associations", "calling_AE_title_not_known_at_this_address"),
    REFUSED: ("A700", "A900", "C000"),
    DOOR: (),
}
"""What is told as 0 before it happens, by kind: the rise from nothing to one is none to who watches."""


class Counts:
    """Thread-safe. Reasons are words of ours, so there are few: nothing that a peer says is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {kind: Counter(dict.fromkeys(known, 0)) for kind, known in KNOWN.items()}

    def add(self, kind: str, reason: str = "") -> None:
        """One more."""
        with self._lock:
            self._counts[kind][reason.replace(" ", "_")] += 1

    def told(self) -> Mapping[str, Mapping[str, int]]:
        """All of them: kind -> reason -> how many."""
        with self._lock:
            return {kind: dict(counts) for kind, counts in self._counts.items()}
