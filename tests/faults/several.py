"""Several receivers on one port, as their supervisor runs them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from node.process import POST
from node.store import Store
from tests.faults.hostile import ROOT, Node
from tests.peers import wait_until

STARTED_S = 240.0
"""How long a start may take beside others that have the processors; it takes a second."""


class Several(Node):
    """A supervisor with ``n`` receivers; ``process`` is the supervisor's."""

    def __init__(self, folder: Path, n: int, **more: Any) -> None:
        self.n = n
        super().__init__(folder, **more)

    def __enter__(self) -> Several:
        return self

    def start(self) -> None:
        """Start them, and wait until all of them accept."""
        Store.open(f"sqlite:///{self.database}", self.spool).close()
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.together", str(self.config), str(self.n)],
                cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.ps = psutil.Process(self.process.pid)
        wait_until(self.complete, STARTED_S, "all receivers accept")

    def complete(self) -> bool:
        """Whether every receiver lives and tells of itself."""
        assert self.process.poll() is None, self.log()[-3000:]
        return len(self.pids()) == self.n and all(
            self._tells(number, pid) for number, pid in self.pids().items()
        )

    def _tells(self, number: int, pid: int) -> bool:
        name = "receive" if number == 1 else f"receive-{number}"
        with contextlib.suppress(OSError, ValueError):
            return bool(json.loads((self.spool / "health" / f"{name}.json").read_bytes())["pid"] == pid)
        return False

    def pids(self) -> dict[int, int]:
        """Process ids of the receivers by their number."""
        found = {}
        for child in self.ps.children():
            with contextlib.suppress(psutil.Error, OSError, KeyError):
                found[int(child.environ()[POST].split()[0])] = child.pid
        return found

    def holder(self, local: tuple[str, int]) -> int:
        """Number of the receiver that holds the connection which a peer has from this address; 0 if none does."""
        for number, pid in self.pids().items():
            with contextlib.suppress(psutil.Error):
                for each in psutil.Process(pid).net_connections("tcp"):
                    if tuple(each.raddr) == local:
                        return number
        return 0

    def held(self) -> dict[int, int]:
        """How many connections each receiver holds."""
        return {
            number: sum(c.status != psutil.CONN_LISTEN for c in psutil.Process(pid).net_connections("tcp"))
            for number, pid in self.pids().items()
        }

    def quiet(self, within_s: float = 30.0) -> None:
        """Wait until nobody is connected."""
        wait_until(lambda: not any(self.held().values()), within_s, "all connections are gone", every_s=0.05)
