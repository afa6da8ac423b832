"""What several receivers of one port are given by their supervisor, so that each may come and go by itself.

The port is bound here, once, and every receiver listens on that very socket: connections wait in one queue, and
whoever is free takes the next. One that dies takes nothing of it along. The port is open as long as one of them
lives, and closed otherwise: nobody is to wait at a door behind which nobody is.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

from node.config.schema import Config
from node.errors import ReceiveError
from node.process import POST

_CORES: Final = 4
"""Cores for each receiver: a core that receives keeps others busy with what it received."""

_MOST_BY_ITSELF: Final = 4


def how_many(config: Config, cores: int | None = None) -> int:
    """How many receivers a configuration wants on a machine with so many cores for us."""
    wanted = config.node.receivers
    if wanted != "auto":
        return wanted
    n_cores = len(os.sched_getaffinity(0)) if cores is None else cores
    n = max(1, min(_MOST_BY_ITSELF, n_cores // _CORES))
    return n if n == 1 or _possible() else 1


def _possible() -> bool:
    from node.receive.crowd import possible

    return possible()


class Doors:
    """The bound socket, and the memory in which receivers count together. None of it is made before it is needed.

    Parameters
    ----------
    host, port
        Where to listen.
    n
        How many receivers there are.
    """

    def __init__(self, host: str, port: int, n: int) -> None:
        self._address = (host, port)
        self.n = n
        self._door: socket.socket | None = None
        self._table = -1

    def post(self, number: int) -> tuple[dict[str, str], tuple[int, ...]]:
        """What a receiver needs: environment, and descriptors to leave open for it; nothing for one that is alone.

        Raises
        ------
        ReceiveError
            The address cannot be bound, or there is no memory to share on this system.
        """
        if self.n == 1:
            return {}, ()
        host, port = self._address
        try:
            if self._table < 0:
                self._table = os.memfd_create("luminode-receivers", os.MFD_CLOEXEC)
        except (AttributeError, OSError) as error:
            told = f"several receivers cannot share memory here ({type(error).__name__})"
            raise ReceiveError(0, told, hint="set node.receivers to 1") from None
        try:
            if self._door is None:
                self._door = _bound(self._address)
        except OSError as error:
            raise ReceiveError(
                0,
                f"cannot listen on {host}:{port}: {error.strerror or type(error).__name__}",
                hint="the port is taken or needs a privilege, or this machine has no such address",
            ) from None
        given = (self._door.fileno(), self._table)
        return {POST: f"{number} {self.n} {given[0]} {given[1]}"}, given

    def close(self) -> None:
        """Refuse whoever connects from here on, at every receiver."""
        door, self._door = self._door, None
        if door is not None:
            with contextlib.suppress(OSError):  # nobody may have listened yet
                door.shutdown(socket.SHUT_RDWR)
            door.close()


def _bound(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
    except OSError:
        door.close()
        raise
    return door
