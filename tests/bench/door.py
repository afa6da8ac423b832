"""Receiving: everybody in turn, round after round, on the same traffic."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import receivers, traffic
from tests.bench.receivers import Receiver
from tests.bench.traffic import CT512, MR256, Kind

Told = Callable[[str], None]
Result = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison. ``n`` instances on ``associations``, or one association for each; ``shipped`` sends
    with DCMTK's storescu as it comes, Nagle's algorithm on, instead of our own sender."""

    name: str
    told: str
    who: Sequence[str]
    n: int
    kind: Kind = CT512
    associations: int = 1
    one_each: bool = False
    many: bool = False
    shipped: bool = False


DOOR = (
    Case(name="ct300", told="{n} CT slices, one association", n=300,
         who=("storescp", "luminode", "orthanc", "pynetdicom", "sink", "durable")),
    Case(name="ct1000", told="{n} CT slices, one association", n=1000, who=("storescp", "luminode")),
    Case(name="mr200", told="{n} MR slices, one association", n=200, kind=MR256,
         who=("storescp", "luminode")),
    Case(name="four", told="{n} CT slices over four associations at once", n=300, associations=4,
         who=("forking", "luminode", "durable")),
    Case(name="crowd", told="{n} MR slices over 128 associations at once", n=1280, kind=MR256, associations=128,
         who=("luminode", "two")),
    Case(name="nagle", told="{n} CT slices by DCMTK's storescu as shipped (Nagle's algorithm on)", n=60,
         shipped=True, who=("as_shipped", "luminode")),
)  # fmt: skip
ASSOCIATIONS = (
    Case(name="each", told="{n} associations of one CT slice", n=300, one_each=True,
         who=("forking", "luminode", "storescp")),
    Case(name="each120", told="{n} associations of one CT slice, 120 contexts proposed", n=300, one_each=True,
         many=True, who=("forking", "luminode", "storescp")),
)  # fmt: skip
IDLE, IDLE_S = 128, 5.0


_left: list[str] = []


@contextmanager
def folder_for(where: Path | None) -> Iterator[Path]:
    """A folder; it is removed by `remove_folders`, when nobody is measured any more."""
    path = tempfile.mkdtemp(dir=where, prefix="bench-")
    _left.append(path)
    yield Path(path)


def remove_folders() -> None:
    """Remove what `folder_for` made."""
    while _left:
        shutil.rmtree(_left.pop(), ignore_errors=True)


def compare(case: Case, rounds: int, seed: int, where: Path | None, tell: Told) -> Result:
    """Run a case: instances a second and CPU ms an instance of each receiver, round by round."""
    found: dict[str, Result] = {}
    names = [each for each in case.who if receivers.is_there(each)]
    with folder_for(where) as folder, ExitStack() as stack:
        running: dict[str, Receiver] = {}
        for each in names:
            (folder / each).mkdir()
            running[each] = _start(each, folder / each, case, seed)
            stack.callback(running[each].stop)
            found[each] = {"rates": [], "cpu_ms": []}
        for at in range(rounds + 1):  # the first warms up
            for each in names:
                rate, cpu = _once(running[each], case, seed * 1000 + at)
                if at:
                    found[each]["rates"].append(rate)
                    found[each]["cpu_ms"].append(cpu)
        for each in names:
            found[each]["peak_mb"] = running[each].peak_mb
    for each in names:
        tell(f"{case.name} {each}: " + " ".join(f"{rate:.0f}" for rate in found[each]["rates"]))
    return {"told": case.told.format(n=f"{case.n:,}"), "n": case.n, "receivers": found}


def _start(name: str, folder: Path, case: Case, seed: int) -> Receiver:
    if name in ("sink", "durable"):
        message_bytes = len(
            traffic.Template(case.kind, seed * 1000 * (1 if case.associations == 1 else 1000))
        )
        return receivers.sink(folder, message_bytes, durable=name == "durable")
    return receivers.MAKERS[name](folder)


def _once(receiver: Receiver, case: Case, seed: int) -> tuple[float, float]:
    before = receiver.cpu_s
    n = case.n // case.associations * case.associations
    if case.shipped:
        took = storescu(receiver, case, seed)
    else:
        took = traffic.blast_all(
            receiver.port, case.kind, n, seed, case.associations,
            ae_title=receiver.ae_title, one_each=case.one_each, many=case.many,
        )  # fmt: skip
    spent = receiver.cpu_s - before
    receiver.clean()
    return n / took, 1000 * spent / n


def storescu(receiver: Receiver, case: Case, seed: int) -> float:
    """Seconds that storescu takes; without its start, which one file shows."""
    source = receiver.folder / f"source{seed}"
    files = traffic.write_files(source, case.kind, case.n, seed)
    environment = {k: v for k, v in os.environ.items() if k != "TCP_NODELAY"}

    def send(paths: Sequence[Path]) -> float:
        began = time.perf_counter()
        command = ["storescu", "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
        subprocess.run([*command, *map(str, paths)], check=True, env=environment, capture_output=True)
        return time.perf_counter() - began

    whole, one = send(files), send(files[:1])
    for path in files:
        path.unlink()
    return max(whole - one, whole / case.n) * case.n / (case.n - 1)  # tiny runs are all noise


def idle(seconds: float, n: int, where: Path | None, tell: Told) -> Result:
    """Share of a core that idle associations cost, in percent."""
    with folder_for(where) as folder, ExitStack() as stack:
        receiver = receivers.luminode(folder)
        stack.callback(receiver.stop)
        for sock in traffic.idle(receiver.port, n, receiver.ae_title):
            stack.callback(sock.close)
        time.sleep(1.0)
        before, began = receiver.cpu_s, time.monotonic()
        time.sleep(seconds)
        percent = 100 * (receiver.cpu_s - before) / (time.monotonic() - began)
    tell(f"{n} idle associations: {percent:.1f} % of a core")
    return {"n": n, "percent": percent}
