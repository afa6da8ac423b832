"""Roles of a node as children of one warm process, so that a life of a role costs a tenth of a second.

``python -m tests.faults.nursery`` imports the node once; then every line of its input is an order (JSON), and a child
is forked that is that role from its start to its end: `node.app.roles.run_role`, or the worker's own entry point,
with nothing replaced. Each line of its output is the pid of a child. A child that is to be traced waits for SIGUSR1
before it does anything, so that not one of its system calls goes unseen.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Child:
    """A forked role; not ours to wait for, so it is watched by its pidfd."""

    pid: int
    role: str
    fd: int = field(init=False)

    def __post_init__(self) -> None:
        self.fd = os.pidfd_open(self.pid)

    def dead(self, within_s: float = 0.0) -> bool:
        """Whether it has ended, or ends within so many seconds."""
        return bool(select.select([self.fd], [], [], within_s)[0])

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self.dead(20)
        os.close(self.fd)

    def traced(self) -> bool:
        """Whether a tracer is attached."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("TracerPid:"):
                    return line.split()[1] != "0"
        return False


class Nursery:
    """The warm process; a context manager."""

    def __enter__(self) -> Nursery:
        environment = {
            **os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def bear(self, role: str, folder: Path, *, failpoints: str = "", waits: bool = False) -> Child:
        """Fork a role of the node whose config.yaml lies in ``folder``."""
        order = {"role": role, "folder": str(folder), "failpoints": failpoints, "waits": waits}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Child(int(self._process.stdout.readline()), role)


def ended(folder: Path, pid: int) -> Path:
    """Holds the exit status of a role that ended by itself: one that was killed leaves none."""
    return folder / f"ended.{pid}"


# the other side -----------------------------------------------------------------------------------


def _serve() -> None:
    gc.disable()  # while importing, as in node/__main__.py
    import node.app.roles  # before the first fork, so that no child imports anything
    import node.deliver.deliverer
    import node.deliver.kinds
    import node.enhance.worker
    import node.gather.gatherer
    import node.housekeep
    import node.receive.server  # noqa: F401
    from engines.catalog import Catalog

    Catalog.default().names()
    gc.freeze()  # pages of what lives for ever stay shared
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # before the fork: it may come at once
    orders, out = sys.stdin, sys.stdout
    for line in orders:
        pid = os.fork()
        if pid == 0:
            _live(json.loads(line))
        out.write(f"{pid}\n")
        out.flush()


def _live(order: dict[str, Any]) -> None:
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(Path(order["folder"], "node.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if order["waits"]:
            signal.sigwait({signal.SIGUSR1})
        status = _role(order["role"], Path(order["folder"]), order["failpoints"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        ended(Path(order["folder"]), os.getpid()).write_text(str(status))
        os._exit(status)


def _role(role: str, folder: Path, failpoints: str) -> int:
    from node import failpoints as armed
    from node.app.roles import run_role

    armed.arm(failpoints)
    if role != "enhance":
        return run_role(role, folder / "config.yaml")
    from datetime import UTC, datetime

    from node.enhance.guardian import SIZE
    from node.enhance.worker import take_back, worker_main
    from node.store import Store

    url, spool = f"sqlite:///{folder}/luminode.db", folder / "spool"
    with Store.open(url, spool, create=False) as store:
        take_back(store, datetime.now(UTC))  # as the guardian's process does before it starts the worker
    worker_main([0.0] * SIZE, url, str(spool), "info", "json", 1)
    return 0


if __name__ == "__main__":
    _serve()
