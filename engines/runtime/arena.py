"""What is taken from a device is given back, all of it, in reverse; and waiting for a device has an end."""

from __future__ import annotations

import time
from collections.abc import Callable

from engines.errors import DeviceLost, OutOfMemory
from engines.runtime.device import Device, Pinned

LONGEST_NAP = 0.001
"""Seconds between two looks at an event, at most."""


class Arena:
    """Owns memory, streams, events and graphs of a device.

    After DeviceLost it must not be closed: no call may reach the device then, and the end of the process
    gives everything back.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._undo: list[Callable[[], None]] = []

    def allocate(self, n_bytes: int) -> int:
        """Memory of the device, never none: an address of nothing is no address."""
        address = self.device.allocate(max(256, n_bytes))
        self._undo.append(lambda: self.device.release(address))
        return address

    def pin(self, n_bytes: int) -> Pinned:
        pinned = self.device.pin(max(256, n_bytes))
        self._undo.append(lambda: self.device.unpin(pinned))
        return pinned

    def stream(self) -> int:
        stream = self.device.stream()
        self._undo.append(lambda: self.device.drop_stream(stream))
        return stream

    def event(self) -> int:
        event = self.device.event()
        self._undo.append(lambda: self.device.drop_event(event))
        return event

    def own(self, undo: Callable[[], None]) -> None:
        """Something else to be given back, before what was taken earlier."""
        self._undo.append(undo)

    def close(self) -> None:
        """Give everything back.

        Raises
        ------
        DeviceLost
            The device does not take something back.
        """
        while self._undo:
            undo = self._undo.pop()
            try:
                undo()
            except OutOfMemory as e:
                raise DeviceLost("the GPU does not take back what it gave") from e


class Patience:
    """Waits for a device, but not for ever.

    Parameters
    ----------
    seconds
        How long one wait may last. It must cover the slowest group of slices; compiling and loading happen
        in calls that return, and are the watchdog's matter.
    """

    def __init__(
        self,
        device: Device,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device = device
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep

    def until(self, event: int) -> None:
        """Return when the event has happened.

        Raises
        ------
        DeviceLost
            It does not happen in time.
        """
        end: float | None = None
        nap = LONGEST_NAP / 32
        while not self._device.done(event):
            now = self._clock()
            if end is None:
                end = now + self._seconds
            if now >= end:
                raise DeviceLost(
                    f"no answer of the GPU for {self._seconds:g} s",
                    hint="the worker ends and another takes over; look for Xid messages in the kernel log",
                )
            self._sleep(nap)
            nap = min(2 * nap, LONGEST_NAP)
