"""Requests that were accepted before: a scanner that opens an association an instance says the same each time.

What pynetdicom makes of an A-ASSOCIATE-RQ of a hundred contexts, and its answer, take ten times as long as
receiving the instance that follows. Both depend on nothing but the request's bytes and the terms in force.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from node.receive.terms import Terms

MOST: Final = 16
"""Requests that are remembered: as many as there are kinds of scanners, and a bound for memory."""

LONGEST: Final = 64 * 1024
"""Bytes of a request that is worth remembering: 128 contexts of five transfer syntaxes each are half of it."""


class Request:
    """An A-ASSOCIATE-RQ PDU for pynetdicom's state machine, whose primitive is made once."""

    __slots__ = ("_primitive", "protocol_version")

    def __init__(self, primitive: Any, protocol_version: int = 1) -> None:
        self.protocol_version = protocol_version
        self._primitive = primitive

    def to_primitive(self) -> Any:
        return self._primitive


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A request with its answer.

    ``terms`` are those that it was accepted by; ``answer`` is the A-ASSOCIATE-AC PDU; ``syntaxes`` maps accepted
    contexts to (abstract syntax, transfer syntax). Shared between threads, never changed.
    """

    request: Request
    terms: Terms
    answer: bytes
    syntaxes: Mapping[int, tuple[str, str]]


class Known:
    """The latest requests that were accepted. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Accepted] = OrderedDict()

    def get(self, raw: bytes, terms: Terms) -> Accepted | None:
        """What was answered to these bytes under these terms."""
        with self._lock:
            found = self._known.get(raw)
            if found is None or found.terms is not terms:
                return None
            self._known.move_to_end(raw)
            return found

    def keep(self, raw: bytes, accepted: Accepted) -> None:
        """Remember one; only of a peer that may be here, so that no stranger displaces the others."""
        if len(raw) > LONGEST:
            return
        with self._lock:
            self._known[raw] = accepted
            self._known.move_to_end(raw)
            while len(self._known) > MOST:
                self._known.popitem(last=False)
