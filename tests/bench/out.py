"""What leaves the node: its own sender beside DCMTK's."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from node.deliver.files import send_files
from tests.bench import receivers, traffic
from tests.bench.door import Result, Told, folder_for
from tests.bench.receivers import Receiver


def sender(n: int, rounds: int, seed: int, where: Path | None, tell: Told) -> Result:
    """``n`` CT slices from files to storescp and to Orthanc: by this node's sender, and by DCMTK's storescu."""
    found: Result = {"n": n, "to": {}}
    for name in ("storescp", "orthanc"):
        if not receivers.is_there(name):
            continue
        rates: dict[str, list[float]] = {"luminode": [], "storescu": []}
        with folder_for(where) as folder, ExitStack() as stack:
            (folder / "in").mkdir()
            receiver = receivers.MAKERS[name](folder / "in")
            stack.callback(receiver.stop)
            for at in range(rounds + 1):
                for who in rates:
                    number = seed * 1000 + 2 * at + (who == "luminode")
                    files = traffic.write_files(folder / f"{who}{at}", traffic.CT512, n, number)
                    rate = n / (_ours(receiver, files) if who == "luminode" else _storescu(receiver, files))
                    if at:
                        rates[who].append(rate)
                    for path in files:
                        os.truncate(path, 0)
                    receiver.clean()
        found["to"][name] = rates
        for who, told in rates.items():
            tell(f"to {name} {who}: " + " ".join(f"{rate:.0f}" for rate in told))
    return found


def _ours(receiver: Receiver, files: list[Path]) -> float:
    settings = {"kind": "dimse", "ae_title": receiver.ae_title, "address": f"127.0.0.1:{receiver.port}"}

    def send(paths: list[Path]) -> float:
        began = time.perf_counter()
        sent = send_files(paths, settings, calling_ae="BENCH")
        took = time.perf_counter() - began
        if not sent.ok:
            raise RuntimeError("not everything was sent")
        return took

    return _less_start(send, files)


def _storescu(receiver: Receiver, files: list[Path]) -> float:
    """With TCP_NODELAY."""

    def send(paths: list[Path]) -> float:
        began = time.perf_counter()
        command = ["storescu", "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port), *map(str, paths)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TCP_NODELAY": "1"})
        return time.perf_counter() - began

    return _less_start(send, files)


def _less_start(send: Callable[[list[Path]], float], files: list[Path]) -> float:
    """Seconds for the files without what one file alone takes to begin with: a process, an association."""
    whole, one = send(files), send(files[:1])
    return max(whole - one, whole / len(files)) * len(files) / (len(files) - 1)
