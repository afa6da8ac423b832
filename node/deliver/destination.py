"""What every kind of destination is: the one seam between the deliverer and the world outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from node.deliver.parcel import Parcel
from node.dicom.status import NO_ANSWER, Status
from node.model import Outcome

OnOutcome = Callable[[Outcome], None]
Stop = Callable[[], bool]

DAMAGED = int(Status.PROCESSING_FAILURE)
"""Status recorded for an instance that we did not send because its spooled bytes are damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """What came of asking a destination whether it is there.

    ``parts`` are seconds by step. ``text`` is for people: who answered, or what went wrong. ``hint`` tells
    a person what to do about it. ``doubt`` is what it will not do that it is configured for, "" if nothing.
    """

    ok: bool
    seconds: float
    text: str
    hint: str = ""
    doubt: str = ""
    parts: tuple[tuple[str, float], ...] = ()


class Destination(Protocol):
    """Somewhere that instances go. To add a kind: one module with this, one line in kinds.py, one member of
    the union in config/schema.py.

    A kind is stateless between calls; one thread uses it at a time.
    """

    @property
    def endpoint(self) -> str:
        """Where it is, for people and as the key of what is known about its health."""

    def send(
        self,
        parcels: Sequence[Parcel],
        *,
        on_outcome: OnOutcome,
        done: Set[str] = frozenset(),
        stop: Stop = lambda: False,
    ) -> None:
        """Send what is not in ``done`` (SOP Instance UIDs) and tell the outcome of each as it is known.

        An outcome that says done means that the destination holds the instance durably, as far as this
        kind can know. Sending an instance again is harmless. Returns early, between two instances, when
        ``stop()`` says so.

        Raises
        ------
        DeliveryError
            What ended the whole transfer; instances without an outcome were not tried.
        """

    def echo(self) -> Echo:
        """Ask whether it is there and would take something; never raises a DeliveryError."""


class Line(Protocol):
    """A way to a destination that stays open between sends."""

    def send(
        self,
        parcels: Sequence[Parcel],
        *,
        on_outcome: OnOutcome,
        done: Set[str] = frozenset(),
        stop: Stop = lambda: False,
    ) -> None:
        """As :meth:`Destination.send`; it stays usable whatever is raised."""

    def close(self) -> None:
        """Let go of whatever is open; sending opens it again."""


@runtime_checkable
class Keeps(Protocol):
    """A kind of destination for which it is worth while to stay connected."""

    def line(self) -> Line:
        """A line, not connected yet."""


class _Loose:
    """The line of a kind that has nothing to keep open."""

    def __init__(self, where: Destination) -> None:
        self.send = where.send

    def close(self) -> None:
        """There is nothing to close."""


def line_to(where: Destination) -> Line:
    """A line to a destination of any kind."""
    return where.line() if isinstance(where, Keeps) else _Loose(where)


def no_answer(sop_instance_uid: str, why: str) -> Outcome:
    """The outcome of an instance that may or may not have arrived."""
    return Outcome(
        sop_instance_uid=sop_instance_uid, status=NO_ANSWER, done=False, retryable=True, comment=why
    )


def refused(sop_instance_uid: str, status: int, why: str) -> Outcome:
    """The outcome of an instance that is not worth sending again as it is."""
    return Outcome(sop_instance_uid=sop_instance_uid, status=status, done=False, retryable=False, comment=why)
