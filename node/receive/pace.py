"""How slow a peer may be: pure, the clock is handed in.

Four limits. A PDU that has begun must end within ``pdu_s``, however its bytes drip.
Silence is bounded, more tightly inside a message than between messages. A message as a whole must keep up
:data:`FLOOR` bytes a second on average once it has lasted longer than ``dimse_s``: tiny but complete PDUs
would otherwise hold an association, and a file, for ever. And what takes longer than :data:`LONG_S` must have come
at :data:`LONG_FLOOR`: it is an enormous object on a line that can carry it, or it never ends.
"""

from __future__ import annotations

from typing import Final

FLOOR: Final = 2048
"""Bytes a second. A 0.5 MB slice then has five minutes: less than any line that a scanner is behind."""

LONG_S: Final = 900.0
LONG_FLOOR: Final = 64 * 1024
"""Seconds, and bytes a second: half a megabit, with which 59 MB come in that time."""


class Pace:
    """Watches one connection.

    Parameters
    ----------
    pdu_s, dimse_s, network_s
        Seconds for a whole PDU, of silence inside a message, of silence between messages.
    now
        Seconds on a monotonic clock.
    """

    __slots__ = (
        "_bytes", "_dimse_s", "_heard", "_in_message", "_message", "_network_s", "_pdu", "_pdu_s", "_pdus",
    )  # fmt: skip

    def __init__(self, *, pdu_s: float, dimse_s: float, network_s: float, now: float) -> None:
        self._pdu_s, self._dimse_s, self._network_s = pdu_s, dimse_s, network_s
        self._heard = now
        self._pdu: float | None = None
        self._pdus = 0
        self._message = now
        self._in_message = False
        self._bytes = 0

    def heard(self, now: float, n_bytes: int, *, pdus: int, partial: bool, in_message: bool) -> None:
        """Bytes came; the other arguments are what :class:`~node.receive.wire.Wire` says after them."""
        self._heard = now
        if not partial:
            self._pdu = None
        elif self._pdu is None or pdus != self._pdus:
            self._pdu = now
        self._pdus = pdus
        if in_message and not self._in_message:
            self._message, self._bytes = now, 0
        self._in_message = in_message
        self._bytes += n_bytes

    def message_ended(self, now: float) -> None:
        """A message was complete: one that follows in the same bytes gets its own time."""
        self._message, self._bytes, self._heard = now, 0, now

    def late(self, now: float) -> str:
        """Why the peer has used up its time, "" if it has not."""
        if self._pdu is not None and now - self._pdu > self._pdu_s:
            return "a PDU took too long"
        silence = now - self._heard
        if not self._in_message:
            return "silence" if silence > self._network_s else ""
        if silence > min(self._dimse_s, self._network_s):
            return "silence inside a message"
        lasted = now - self._message
        if lasted > LONG_S and self._bytes < lasted * LONG_FLOOR:
            return "a message takes too long"
        overtime = lasted - self._dimse_s
        if overtime > 0 and self._bytes < overtime * FLOOR:
            return "a message comes too slowly"
        return ""

    def wait_s(self, now: float) -> float:
        """Seconds after which :meth:`late` is worth asking again, if nothing comes."""
        limit = min(self._dimse_s, self._network_s) if self._in_message else self._network_s
        left = self._heard + limit - now
        if self._pdu is not None:
            left = min(left, self._pdu + self._pdu_s - now)
        return max(left, 0.0) + 0.001
