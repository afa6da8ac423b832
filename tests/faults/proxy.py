"""A TCP proxy on the loopback that makes a network bad, in one thread with one loop of events.

Towards the port behind it there may be a delay, a rate, a chunk size, a byte at which the connection is cut, reset,
or at which everything is swallowed from then on (half open); the way back may lose whole answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

HOST = "127.0.0.1"
_ABORT = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What happens to one connection.

    Attributes
    ----------
    delay_s
        Before each piece, both ways.
    bytes_per_s, chunk
        Towards the port behind.
    at
        The byte towards the port behind at which ``then`` happens; -1 for never.
    then
        ``fin`` or ``reset`` both sides, or ``swallow``: nothing passes any more, and nobody is told.
    loses
        n (answers in P-DATA-TF from 0, over all connections) -> whether the way back loses this one.
    """

    delay_s: float = 0.0
    bytes_per_s: float = 1e9
    chunk: int = 65536
    at: int = -1
    then: Literal["fin", "reset", "swallow"] = "fin"
    loses: Callable[[int], bool] | None = None


@dataclass
class Passed:
    """One connection as it went: bytes towards the port behind, whether the caller ended it."""

    bytes: int = 0
    left: bool = False


@dataclass
class FaultProxy:
    """The proxy; a context manager.

    Parameters
    ----------
    port_behind
        Where it leads.
    network
        n (connections from 0) -> what happens to it.
    on_byte
        Called with (connection, bytes so far) before a piece is passed on.
    """

    port_behind: int
    network: Callable[[int], Network] = lambda _n: Network()
    on_byte: Callable[[int, int], None] = lambda _n, _at: None
    passed: list[Passed] = field(default_factory=list)
    n_answers: int = 0

    def __enter__(self) -> FaultProxy:
        self._listener = socket.socket()
        # Small buffers, set before listening, or the kernel takes a whole image at once.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        self._listener.bind((HOST, 0))
        self._listener.listen(64)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._serving = self._loop.create_task(self._serve())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self) -> None:
        while True:
            near, _ = await self._loop.sock_accept(self._listener)
            near.setblocking(False)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._connection(near))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connection(self, near: socket.socket) -> None:
        n, one = len(self.passed), Passed()
        self.passed.append(one)
        how = self.network(n)
        far = socket.socket()
        far.setblocking(False)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways: list[asyncio.Future[None]] = []
        try:
            await self._loop.sock_connect(far, (HOST, self.port_behind))
            ways = [
                asyncio.ensure_future(self._forward(n, near, far, how, one)),
                asyncio.ensure_future(self._back(far, near, how)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            near.close()
            far.close()

    async def _forward(
        self, n: int, near: socket.socket, far: socket.socket, how: Network, one: Passed
    ) -> None:
        while True:
            size = how.chunk if how.at < 0 else min(how.chunk, max(how.at - one.bytes, 1))
            piece = await self._from(near, size, one)
            if not piece:
                return
            if 0 <= how.at <= one.bytes:
                await self._end(near, far, how, one)
                return
            self.on_byte(n, one.bytes)
            await asyncio.sleep(how.delay_s + len(piece) / how.bytes_per_s)
            one.bytes += len(piece)
            await self._loop.sock_sendall(far, piece)

    async def _from(self, near: socket.socket, size: int, one: Passed) -> bytes:
        """A piece from the caller; nothing once it has ended or reset the connection."""
        piece = b""
        with contextlib.suppress(OSError):
            piece = await self._loop.sock_recv(near, size)
        one.left = not piece
        return piece

    async def _end(self, near: socket.socket, far: socket.socket, how: Network, one: Passed) -> None:
        if how.then == "swallow":
            while await self._from(near, 65536, one):
                pass
        elif how.then == "reset":
            for each in (near, far):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)

    async def _back(self, far: socket.socket, near: socket.socket, how: Network) -> None:
        if how.loses is None:
            while piece := await self._loop.sock_recv(far, 65536):
                await asyncio.sleep(how.delay_s)
                await self._loop.sock_sendall(near, piece)
            return
        while True:
            head = await self._exactly(far, 6)
            body = await self._exactly(far, struct.unpack(">L", head[2:])[0])
            lost = False
            if head[0] == 4:
                lost = how.loses(self.n_answers)
                self.n_answers += 1
            if not lost:
                await self._loop.sock_sendall(near, head + body)

    async def _exactly(self, sock: socket.socket, size: int) -> bytes:
        got = b""
        while len(got) < size:
            piece = await self._loop.sock_recv(sock, size - len(got))
            if not piece:
                raise OSError("ended")
            got += piece
        return got
