"""Where the time goes: the receiver while slices come, and the worker's chain on a series, by function."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from node.store import Store
from tests.bench import traffic
from tests.bench.door import Result, Told, folder_for
from tests.bench.receivers import CONFIG, REPOSITORY, Receiver
from tests.bench.site import series
from tests.peers import free_port
from tests.scripted import HOST

ROWS = 12


def profile(n: int, size: int, engine: str, where: Path | None, tell: Told) -> Result:
    """CPU by function: of the receiver for ``n`` slices, and of ``luminode enhance`` on as many."""
    with folder_for(where) as folder:
        receive = _receive(folder, n)
        tell(f"profile of receiving: {receive['seconds']:.2f} s of CPU")
        job = _job(folder, n, size, engine)
        tell(f"profile of a job: {job['seconds']:.2f} s of CPU")
    return {"n": n, "size": size, "engine": engine, "receive": receive, "job": job}


def _receive(folder: Path, n: int) -> Result:
    port, config, out = free_port(), folder / "config.yaml", folder / "receive.json"
    config.write_text(CONFIG.format(host=HOST, port=port, folder=folder))
    Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool").close()
    role = ["node.app", "receive", str(config), str(folder / "last-good.yaml")]
    with ExitStack() as stack:
        peer = Receiver([sys.executable, "-m", "tests.bench.sampled", str(out), *role], port, folder)
        stack.callback(peer.stop)
        took = traffic.blast(port, traffic.CT512, n, 6, ae_title=peer.ae_title)
    return _told(out) | {"took": took}


def _job(folder: Path, n: int, size: int, engine: str) -> Result:
    source, out = folder / "in", folder / "job.json"
    series(source, n, size, 6)
    command = [sys.executable, "-m", "tests.bench.sampled", str(out), "node", "enhance"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, str(source), "--engine", engine, "--output", str(folder / "made")],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return _told(out) | {"took": time.perf_counter() - began}


def _told(out: Path) -> Result:
    """The functions that took most, with their share of all CPU; threads of one pool are one."""
    shares: dict[tuple[str, str], float] = defaultdict(float)
    for thread, function, seconds in json.loads(out.read_text()):
        shares[re.sub(r"[-_ ]?\d.*", "", thread), function] += seconds
    whole = sum(shares.values())
    most = sorted(shares.items(), key=lambda one: -one[1])[:ROWS]
    rows = [[thread, function, seconds / whole] for (thread, function), seconds in most]
    return {"seconds": whole, "rows": rows}
