"""What the tests of hostile peers share: the real receiver in a process of its own, its meters, good and bad peers."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.scale import FULL
from tests.peers import free_port, listens, wait_until
from tests.receiving import unnamed
from tests.senders import CT, EXPLICIT, VERIFICATION, Peer, associate_rq, data_set, echo_rq, message

ROOT = Path(__file__).resolve().parents[2]
MB = 1 << 20

BUSY_S = 20.0
"""What a test waits for an answer on a machine that is busy with others. The target is in the ledger's ``ok``."""

LONGEST_S = 120.0 if not FULL else 2400.0
"""How long peers that run at once may take in all."""

SCANNER = "127.0.0.2"
"""Where the good scanner calls from; the bad peers call from 127.0.0.1 unless a test says otherwise."""

REQUEST = associate_rq([(1, CT, [EXPLICIT]), (3, VERIFICATION, [EXPLICIT])])


class Node:
    """``python -m node.app receive``: the role as its supervisor starts it, with a store of its own.

    Parameters
    ----------
    folder
        Empty; holds configuration, database, spool and log.
    node, store
        Keys of those sections of config.yaml beside the ones that every test needs.
    host
        Address to listen on, as config.yaml has it: ``[::]`` is IPv4 and IPv6.
    wrap
        Shell command to run first in a user and mount namespace of the process ("mount -t tmpfs ...").
    run
        Program and arguments that run the process ("prlimit", "--nofile=99").
    """

    def __init__(
        self,
        folder: Path,
        *,
        node: Mapping[str, Any] | None = None,
        store: Mapping[str, Any] | None = None,
        host: str = "127.0.0.1",
        wrap: str = "",
        run: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.spool, self.database = folder / "spool", folder / "data" / "luminode.db"
        for made in (self.spool, self.database.parent):
            made.mkdir(exist_ok=True)
        self._log = folder / "node.log"
        self.config = folder / "config.yaml"
        self.config.write_text(
            json.dumps(
                {
                    "node": {"accept_from": "any", "listen": f"{host}:{self.port}", **(node or {})},
                    "store": {
                        "spool": str(self.spool),
                        "database": f"sqlite:///{self.database}",
                        "refuse_below": "0",
                        **(store or {}),
                    },
                }
            )
        )
        self._wrap, self._run = wrap, run
        self.process: subprocess.Popen[bytes]
        self.ps: psutil.Process
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it listens."""
        command = [
            sys.executable,
            "-m",
            "node.app",
            "receive",
            str(self.config),
            str(self.folder / "good.yaml"),
        ]
        command = [*self._run, *command]
        if self._wrap:
            command = ["unshare", "-rm", "sh", "-c", f'{self._wrap} && exec "$@"', "sh", *command]
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self.ps = psutil.Process(self.process.pid)
        wait_until(self._ready, 60.0, "the receiver listens")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log()[-3000:]
        return listens(self.port)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise
        finally:
            shutil.rmtree(self.spool, ignore_errors=True)  # some of these tests fill gigabytes

    def inside(self, path: Path) -> Path:
        """A path as the process sees it, mounts of its own included."""
        return Path(f"/proc/{self.process.pid}/root{path}") if self._wrap else path

    # meters -------------------------------------------------------------------------------------------

    def rss(self) -> int:
        """Resident bytes now."""
        return int(self.ps.memory_info().rss)

    def peak(self) -> int:
        """Most resident bytes since :meth:`forget_peak`, or since the start."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def forget_peak(self) -> int:
        """Begin a new peak; returns resident bytes now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.rss()

    def cpu_s(self) -> float:
        """Seconds of processor used so far."""
        times = self.ps.cpu_times()
        return float(times.user + times.system)

    def threads(self) -> int:
        return int(self.ps.num_threads())

    def files(self) -> int:
        return int(self.ps.num_fds())

    def sockets(self) -> int:
        """Connections that the process holds."""
        return sum(each.status != psutil.CONN_LISTEN for each in self.ps.net_connections("tcp"))

    def quiet(self, within_s: float = 30.0) -> None:
        """Wait until nobody is connected."""
        wait_until(lambda: self.sockets() == 0, within_s, "all connections are gone", every_s=0.05)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    # what it holds ------------------------------------------------------------------------------------

    def stored(self) -> dict[str, str]:
        """SOP Instance UID -> sha256 of the data set, of every row whose file is there."""
        rows = self.rows("select sop_instance_uid, sha256, path from instance")
        for _, _, path in rows:
            assert self.inside(self.spool / path).is_file()
        return {uid: digest for uid, digest, _ in rows}

    def events(self, name: str) -> int:
        """How many events of a name are on record."""
        return sum(each == name for (each,) in self.rows("select name from event"))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the database answers. SQLite does not open one in another mount namespace: a copy is asked."""
        with tempfile.TemporaryDirectory() as folder:
            database = self.database
            if self._wrap:
                for suffix in ("", "-wal"):
                    shutil.copy(
                        self.inside(Path(f"{self.database}{suffix}")), f"{folder}/luminode.db{suffix}"
                    )
                database = Path(folder, "luminode.db")
            with contextlib.closing(sqlite3.connect(database)) as connection:
                return connection.execute(query).fetchall()

    def spooled(self) -> int:
        """Bytes of instances in the spool, those being written included."""
        total = 0
        for pattern in ("tmp/*", "landing/*", "[0-9a-f][0-9a-f]/*"):
            for path in self.inside(self.spool).glob(pattern):
                with contextlib.suppress(FileNotFoundError):
                    told = path.stat()
                    total += told.st_size // told.st_nlink
        return total

    def tmp(self) -> list[Path]:
        return unnamed(self.inside(self.spool))

    def peer(self, **more: Any) -> Peer:
        return Peer(self.port, **more)


def good(node: Node, uid: str, *, source: str = SCANNER, pixels: bytes = bytes(2000)) -> float:
    """A good scanner: one association, one instance, a release. Seconds until it was accepted."""
    began = time.monotonic()
    with node.peer(source=source) as peer:
        peer.associate(CT)
        took = time.monotonic() - began
        assert peer.store(uid, data_set(uid, pixels=pixels)).status == 0
        assert peer.release() == 6
    return took


@dataclass
class Echo:
    """Asks for an echo again and again, each on an association of its own, as a monitor does.

    Attributes
    ----------
    waits
        Seconds from connecting to the answer, of each.
    failed
        What was not an answer.
    """

    node: Node
    every_s: float = 0.2
    source: str = "127.0.0.3"
    waits: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def once(self) -> None:
        began = time.monotonic()
        try:
            with self.node.peer(source=self.source) as peer:
                peer.associate(VERIFICATION)
                peer.send(message(1, echo_rq(), None))
                assert peer.answer().status == 0
                assert peer.release() == 6
        except (AssertionError, OSError) as error:
            self.failed.append(f"{type(error).__name__}: {error}")
            return
        self.waits.append(time.monotonic() - began)

    @property
    def worst(self) -> float:
        return max(self.waits, default=0.0)

    def __enter__(self) -> Echo:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        while True:
            self.once()
            if self._stop.wait(self.every_s):
                return

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(60)


class Crowd:
    """Many bare connections at once, none of them ever read unless asked."""

    def __init__(self, node: Node, sources: Sequence[str]) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < len(sources) + 400:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, len(sources) + 4096), hard))
        self.sockets: list[socket.socket] = []
        for source in sources:
            self.sockets.append(
                socket.create_connection(("127.0.0.1", node.port), timeout=20, source_address=(source, 0))
            )

    def send(self, data: bytes) -> int:
        """The same to each; how many connections took it."""
        took = 0
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.sendall(data)
                took += 1
        return took

    def alive(self) -> int:
        """How many the node has not ended."""
        return sum(not _ended(each) for each in self.sockets)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_exc: object) -> None:
        for each in self.sockets:
            each.close()


def _ended(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        while sock.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        sock.setblocking(True)
    return True
