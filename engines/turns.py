"""A semaphore whose waiters are served in the order in which they came.

That of the standard library serves whoever asks when it is free: a thread that gives a turn back and asks for the
next one finds it free, and one that waits is passed by again and again. Slices of two slabs would end together then,
after slices that came later, and both slabs would leave the network without work at once.
"""

from __future__ import annotations

from collections import deque
from threading import Lock


class Turns:
    """So many turns at once; a context manager, which takes one and gives it back.

    Parameters
    ----------
    n
        How many may be taken at once, at least 1.
    """

    def __init__(self, n: int) -> None:
        self._free = n
        self._lock = Lock()
        self._waiting: deque[Lock] = deque()

    def acquire(self, blocking: bool = True) -> bool:
        """Take a turn: wait for it after all who wait already, or say whether there was one.

        Returns
        -------
        bool
            False where there was none, and ``blocking`` is not set.
        """
        with self._lock:
            if self._free:  # nobody waits then: turns are handed over, never put back beside a waiter
                self._free -= 1
                return True
            if not blocking:
                return False
            mine = Lock()
            mine.acquire()
            self._waiting.append(mine)
        try:
            mine.acquire()  # released by whoever hands its turn over
        except BaseException:  # a signal's handler raised, in the main thread
            self._leave(mine)
            raise
        return True

    def _leave(self, mine: Lock) -> None:
        """Wait no more; a turn that was handed over meanwhile goes on to the next."""
        with self._lock:
            waits = mine in self._waiting
            if waits:
                self._waiting.remove(mine)
        if not waits:
            self.release()

    def release(self) -> None:
        """Give a turn back: to whoever waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_exc: object) -> None:
        self.release()
