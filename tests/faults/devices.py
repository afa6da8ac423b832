"""An accelerator that breaks as it is told to, on the CPU: what the engine tests of this folder inject.

It says what it is: no GPU, no driver and no plan takes part. A child process installs it as the runtime ``tensorrt``
of the catalogue; the network behind it is the shipped one under ONNX Runtime, and what comes out is what ONNX Runtime
makes, until the script says otherwise. What breaks is real: the process really dies of SIGSEGV, really holds the GIL
for ever, really runs into its memory bound.

The script is a file of JSON that the test may rewrite while the processes run::

    {"gpu": true,                         whether the accelerator is there
     "runs": {"3": {"1": "segv"}},        what happens at attempt 1 at series 3; "*" is any
     "only_gpu": true,                    whether it happens on the accelerator only
     "canary": "lost",                    what happens when the accelerator is asked the canary
     "offset_hu": 0.0}                    what the accelerator adds to every residual

Every call leaves a line in a journal: process, runtime, series, attempt, what happened.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from engines import catalog, ladder
from engines.base import Floats
from engines.errors import DeviceLost
from engines.ladder import Rung
from engines.runtime.network import Network
from node.enhance import worker
from node.enhance.prove import check_main

FOLDER = "LUMINODE_TEST_DEVICE"
"""Environment: the folder with script.json and the journal."""

DEVICE = "a device that tests break (CPU)"

AT_CALL = 2
"""Of the network, within a series: something was done before."""

_now: tuple[int, int] | None = None
_calls = 0


def folder() -> Path:
    return Path(os.environ[FOLDER])


def script() -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder() / "script.json").read_text())
    return told


def write_script(where: Path, **told: Any) -> None:
    """Put a script in place, whole."""
    new = where / ".script"
    new.write_text(
        json.dumps({"gpu": False, "runs": {}, "only_gpu": False, "canary": "", "offset_hu": 0.0} | told)
    )
    new.replace(where / "script.json")


def journal(where: Path) -> list[dict[str, Any]]:
    """What every process did, in order."""
    path = where / "journal"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _note(runtime: str, what: str) -> None:
    line = {"pid": os.getpid(), "runtime": runtime, "job": _now, "what": what, "at": time.monotonic()}
    descriptor = os.open(folder() / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def reference(wanted: ladder.Wanted) -> Network:
    """The network of the reference runtime."""
    return cast(Network, ladder.RUNGS[ladder.REFERENCE](wanted))


class Breaking:
    """Meets :class:`engines.runtime.network.Network`."""

    def __init__(self, inner: Network, *, gpu: bool) -> None:
        self._inner = inner
        self._gpu = gpu
        self._last: Floats | None = None

    @property
    def name(self) -> str:
        return "tensorrt" if self._gpu else self._inner.name

    @property
    def device(self) -> str:
        return DEVICE if self._gpu else self._inner.device

    def run(self, x: Floats, c: Floats) -> Floats:
        global _calls
        _calls += 1
        told = script()
        what = ""
        if _now is None:
            what = str(told["canary"]) if self._gpu else ""
        elif _calls >= AT_CALL and (self._gpu or not told["only_gpu"]):
            attempts = told["runs"].get(str(_now[0]), told["runs"].get("*", {}))
            what = attempts.get(str(_now[1]), attempts.get("*", ""))
        _note(self.name, what or "ran")
        if what in DEEDS:
            DEEDS[what]()
        r = self._inner.run(x, c)
        if what in SPOILS:
            r = SPOILS[what](r)
        if self._gpu and told["offset_hu"]:  # alternating: no mean, no low frequency that a guard takes out
            rows, columns = r.shape[-2:]
            signs = np.where((np.arange(rows)[:, None] + np.arange(columns)) % 2, 1, -1).astype(np.float32)
            r = r + np.float32(told["offset_hu"] / 100) * signs
        return r


def _lost() -> None:
    raise DeviceLost("the test device is lost")


def _cuda() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _alloc() -> None:
    held = []
    while True:
        held.append(np.empty(1 << 26, np.uint8))  # address space only: nobody else pays


def _spin() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # years, and the GIL is held all the while


DEEDS: dict[str, Callable[[], Any]] = {
    "segv": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(0),
    "lost": _lost,
    "cuda": _cuda,
    "sleep": lambda: time.sleep(1e6),
    "spin": _spin,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "alloc": _alloc,
}
SPOILS: dict[str, Callable[[Floats], Any]] = {
    "nan": lambda r: np.full_like(r, np.nan),
    "inf": lambda r: np.where(np.arange(r.shape[-1]) == 3, np.float32(np.inf), r),
    "zeros": np.zeros_like,
    "wrong": lambda r: r[..., ::-1].copy(),
}


def install() -> None:
    """Make the catalogue of this process use the device, as the script says."""

    def build(gpu: bool) -> Rung:
        return lambda wanted: Breaking(reference(wanted), gpu=gpu)

    there = {"tensorrt": build(True)} if script()["gpu"] else {}
    setattr(catalog, "RUNGS", {**there, "onnx": build(False)})  # noqa: B010 - names that they do not export
    do = getattr(worker, "do")  # noqa: B009

    def watched(workshop: Any, job: Any, *args: Any, **more: Any) -> None:
        global _now, _calls
        runtime, reference = str(job.params.get("runtime", "auto")), more.get("reference", False)
        workshop.proven(
            job.engine, runtime, reference=reference
        )  # with its canary, which is none of the job's calls
        _now, _calls = (job.series_id, job.attempt), 0
        try:
            do(workshop, job, *args, **more)
        finally:
            _now = None

    setattr(worker, "do", watched)  # noqa: B010


def worker_main(*args: Any, **more: Any) -> None:
    """The worker with the device: entry of the spawned child."""
    install()
    worker.worker_main(*args, **more)


def check(*args: Any) -> None:
    """The health check with the device: entry of the spawned child."""
    install()
    check_main(*args)
