"""What pynetdicom's parts lack in a process that runs for months, and that opens associations all the time."""

from __future__ import annotations

import queue
import time
from collections import deque
from typing import Any

from pynetdicom.timer import Timer
from pynetdicom.transport import AddressInformation


class MonotonicTimer(Timer):  # type: ignore[misc]
    """Starts, stops and expires as pynetdicom's does, which counts by the time of day."""

    _start_time: float | None
    _end_time: float | None

    def start(self) -> None:
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return float(self.timeout)
        now = time.monotonic() if self._end_time is None else self._end_time
        return float(self.timeout - (now - self._start_time))

    @property
    def expired(self) -> bool:
        return self._start_time is not None and self._end_time is None and self.remaining < 0


class Lane(deque[Any]):
    """A queue between parts that one thread serves: without locks, and it never waits."""

    def put(self, item: Any) -> None:
        self.append(item)

    def get(self, block: bool = False, timeout: float | None = None) -> Any:
        """The oldest item; raises queue.Empty if there is none, whatever the arguments."""
        try:
            return self.popleft()
        except IndexError:
            raise queue.Empty from None

    get_nowait = get

    @property
    def queue(self) -> Lane:
        """As queue.Queue names what it holds."""
        return self


class Address(AddressInformation):  # type: ignore[misc]
    """One end of a connection, as its socket tells it: pynetdicom's asks a name server about it."""

    def __init__(self, told: tuple[Any, ...]) -> None:
        self._addr: str = told[0]
        self.port: int = told[1]
        self.flowinfo: int = told[2] if len(told) == 4 else 0
        self.scope_id: int = told[3] if len(told) == 4 else 0


def lighten(association: Any) -> None:
    """Give the parts of an association that has not begun queues for the one thread that will serve it."""
    dul = association.dul
    dul.event_queue, dul.to_provider_queue, dul.to_user_queue, dul._recv_pdu = Lane(), Lane(), Lane(), Lane()
    association.dimse.msg_queue = Lane()


def loosen(association: Any) -> None:
    """Undo the circles between an ended association and its parts, so that it is freed at once.

    Each of them knows the association and is known by it. The garbage collector would find them, some
    thousands of associations later, while everybody waits.
    """
    association.__dict__.pop("abort", None)
    wrapped = association.dul.socket
    for part in (association.acse, association.dimse, association.dul, wrapped):
        if part is not None:
            part._assoc = None
    for user in (association.requestor, association.acceptor):
        user.assoc = None
    association.dul.state_machine.dul = None
    association.dul._target = None
