"""What tests/unit/test_engines_driver.py runs in a process of its own, over the libcuda of tests/libcuda.py.

``python -m tests.libcuda_run sound|threads|memory|ladder|CODE`` prints JSON. With a code every call to the driver is
told to answer with it, one run of the whole path for each; what came of each run is told.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engines import compile as compiling
from engines.base import Floats
from engines.catalog import Catalog
from engines.errors import EngineError
from engines.ladder import Place, Wanted, climb
from engines.runtime import cuda, gpu
from engines.runtime.device import Device
from engines.runtime.network import Answer, Item, Region, Slab
from engines.runtime.pipeline import Pipeline
from engines.runtime.plans import Plans
from engines.runtime.profile import Profile, Range
from tests import libcuda
from tests.device_onnx import StandIn

SIDE = (13, 18)
PADDED = (16, 24)
TOTAL = 1 << 24
PROFILE = Profile(
    ranges=(Range(least=(1, 8, 8), best=(2, 8, 8), most=(4, 128, 128)),), buckets=(1, 2, 4), alignment=8
)


def pattern(rows: int, columns: int) -> Floats:
    """What the network of these runs says of every slice."""
    y, x = np.mgrid[:rows, :columns]
    return np.asarray(np.sin(0.7 * x + 1.3 * y) * 0.3, np.float32)


def _at(address: int, shape: tuple[int, ...]) -> Floats:
    return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(address)).reshape(shape)


class Bound:
    """Its answer lies there before it is asked, because what a graph replays is no Python."""

    scratch = 4096

    def __init__(self, size: tuple[int, int, int], capturable: bool) -> None:
        self._size, self.capturable = size, capturable
        self._places: dict[str, int] = {}

    def bind(self, *, x: int, c: int, r: int, scratch: int) -> None:
        """See :class:`engines.runtime.device.Bound`."""
        self._places = {"x": x, "c": c, "r": r}
        n, rows, columns = self._size
        _at(r, (n, rows, columns))[:] = pattern(rows, columns)

    def enqueue(self, stream: int, *, captured: bool = False) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing to give back."""


class Asked(Bound):
    """It looks at what it is given, at once: the library under it does not wait either. No graph holds that."""

    def enqueue(self, stream: int, *, captured: bool = False) -> None:
        """See :class:`engines.runtime.device.Bound`."""
        n, rows, columns = self._size
        x = _at(self._places["x"], (n, 3, rows, columns))
        c = _at(self._places["c"], (n, 1, rows, columns))
        _at(self._places["r"], (n, 1, rows, columns))[:] = seen(x, c)


def seen(x: Floats, c: Floats) -> Floats:
    """A network that looks at all three slices and the noise."""
    mixed = x[:, 1:2] * np.float32(2) - x[:, :1] * np.float32(0.5) - x[:, 2:] * np.float32(0.25)
    return np.asarray(mixed * np.float32(0.3) + c, np.float32)


class Program:
    """Meets :class:`engines.runtime.device.Program`."""

    factor = 1

    def __init__(self, kind: type[Bound], capturable: bool) -> None:
        self._kind, self._capturable = kind, capturable

    def open(self, n_slices: int, rows: int, columns: int, stream: int) -> Bound:
        """See :class:`engines.runtime.device.Program`."""
        return self._kind((n_slices, rows, columns), self._capturable)

    def close(self) -> None:
        """Nothing to give back."""


def slab(n: int, *, region: bool = True) -> Slab:
    """Slices with masks, of a size that no alignment divides."""
    rng = np.random.default_rng(n)
    return Slab(
        slices=[rng.normal(40, 30, SIDE).astype(np.float32) for _ in range(n)],
        valid=[None if i % 3 else rng.random(SIDE) < 0.8 for i in range(n)],
        items=[
            Item(
                below=max(i - 1, 0), self=i, above=min(i + 1, n - 1), c=0.1 + 0.01 * i, largest=20.0 + i, tolerance=1.0
            )
            for i in range(n)
        ],
        unit_x=float(np.float32(1e-3)),
        unit_r=100.0,
        factor=1,
        region=Region(radius=3, side=(6, 7)) if region else None,
    )  # fmt: skip


SLABS = (slab(13), slab(5, region=False), slab(9))


def run(device: Device, program: Program, got: list[Answer]) -> Floats:
    """The whole path: slabs of two kinds, tensors of the caller, and the end."""
    pipeline = Pipeline(device, program, PROFILE, patience_s=5.0)
    for one in SLABS:
        for answer in pipeline.slab(one, *PADDED):
            got += [answer]  # not extend: what was answered before a failure counts
    x, c = np.ones((3, 3, *PADDED), np.float32), np.ones((3, 1, *PADDED), np.float32)
    r = pipeline.run(x, c)
    if pipeline.close():
        program.close()
        device.close()
    return r


def told(answers: list[Answer]) -> list[tuple[bytes, bool, float]]:
    """Answers to compare."""
    return [(a.values.tobytes(), a.finite, a.worst) for a in answers]


KINDS: tuple[tuple[type[Bound], bool], ...] = ((Bound, True), (Asked, False))


def expected(kind: type[Bound], capturable: bool) -> tuple[list[tuple[bytes, bool, float]], bytes]:
    """What the stand-in of tests/device_onnx.py makes of the same: there the order of work is proven."""
    from tests.device_onnx import OnnxProgram

    device = StandIn()
    answers: list[Answer] = []
    program: Any = Program(kind, capturable)
    if kind is Asked:
        program = OnnxProgram(device, seen, capturable=False)
    pipeline = Pipeline(device, program, PROFILE, clock=device.clock, sleep=device.sleep)
    for one in SLABS:
        answers += pipeline.slab(one, *PADDED)
    x, c = np.ones((3, 3, *PADDED), np.float32), np.ones((3, 1, *PADDED), np.float32)
    r = pipeline.run(x, c)
    device.check()
    pipeline.close()
    return told(answers), r.tobytes()


def sound() -> dict[str, Any]:
    """One run of each kind without a fault."""
    library, found = libcuda.library(), []
    for kind, capturable in KINDS:
        library.stub_reset(0, 0, TOTAL)
        device = cuda.CudaDevice.open(0)
        answers: list[Answer] = []
        r = run(device, Program(kind, capturable), answers)
        wanted, wanted_r = expected(kind, capturable)
        found.append(
            {
                "trace": library.stub_trace().decode().split(),
                "same": told(answers) == wanted and r.tobytes() == wanted_r,
                "changed": float(np.abs(answers[1].values).max()),
                "held": library.stub_held(),
                "current": library.stub_current(),
            }
        )
    library.stub_reset(0, 0, TOTAL)
    return {
        "runs": found,
        "gpus": [(g.name, g.compute_capability) for g in gpu.local()],
        "uuid": _by_uuid(),
        "codes": {capability: _loaded(capability) for capability in ("86", "90", "75")},
    }


def _by_uuid() -> str:
    driver = cuda.bindings()
    wanted = bytes(range(0xA0, 0xB0)).hex()
    return str(int(cuda.find(driver, f"GPU-{wanted[:8]}-{wanted[8:12]}-{wanted[12:]}")))


def _loaded(capability: str) -> int:
    """The driver's answer to machine code for a compute capability."""
    driver, device = cuda.bindings(), cuda.CudaDevice.open(0)
    answer, *module = driver.cuModuleLoadData(cuda.compiled(capability))
    if not int(answer):
        driver.cuModuleUnload(module[0])
    device.close()
    return int(answer)


def memory() -> list[dict[str, Any]]:
    """Less and less memory: smaller groups do the same, and what does not fit is given back and told."""
    library, found = libcuda.library(), []
    wanted, _ = expected(Asked, False)
    for total in (TOTAL, 200_000, 130_000, 80_000, 50_000, 20_000):
        library.stub_reset(0, 0, total)
        device, answers = cuda.CudaDevice.open(0), list[Answer]()
        pipeline, error = Pipeline(device, Program(Asked, False), PROFILE, most_bytes=TOTAL), ""
        try:
            for one in SLABS:
                for answer in pipeline.slab(one, *PADDED):
                    answers += [answer]
        except EngineError as e:
            error = type(e).__name__
        downloads = library.stub_trace().decode().split().count("cuMemcpyDtoHAsync")
        if pipeline.close():
            device.close()
        found.append(
            {
                "total": total, "error": error, "right": told(answers) == wanted[: len(answers)],
                "answers": len(answers), "groups": downloads // 2, "held": library.stub_held(),
            }
        )  # fmt: skip
    return found


def threads() -> dict[str, Any]:
    """Each thread makes the context its own: loaded in one, asked in others, closed in another."""
    library = libcuda.library()
    library.stub_reset(0, 0, TOTAL)
    device = cuda.CudaDevice.open(0)
    pipeline = Pipeline(device, Program(Asked, False), PROFILE)
    got: list[list[tuple[bytes, bool, float]]] = []

    def ask() -> None:
        got.append(told(list(pipeline.slab(SLABS[0], *PADDED))))

    def end() -> None:
        if pipeline.close():
            device.close()

    for work in (ask, ask, end):
        one = threading.Thread(target=work)
        one.start()
        one.join()
    same = got[0] == got[1] == expected(Asked, False)[0][: len(SLABS[0].items)]
    return {"same": same, "held": library.stub_held()}


def ladder() -> dict[str, Any]:
    """A shipped engine, a real plan and the real TensorRT for RTX, for which this driver is none it can use."""
    library = libcuda.library()
    catalog = Catalog.default()
    with tempfile.TemporaryDirectory() as folder:
        plans = Plans(Path(folder) / "plans")
        (job,) = compiling.jobs(
            catalog, ["ct-cnn"], flavour="tensorrt_rtx", gpus=gpu.local(), precisions=["fp16"]
        )
        made = compiling.make(job, plans)
        library.stub_reset(0, 0, 1 << 32)
        wanted = Wanted(
            card=catalog.card("ct-cnn"), models=catalog.models("ct-cnn"), threads=1, place=Place(plans=plans.folder)
        )  # fmt: skip
        stood = climb(wanted)
    refused = {r.runtime: {"kind": r.kind, "message": r.message, "hint": r.hint} for r in stood.refusals}
    trace = library.stub_trace().decode().split()
    return {
        "built": made.state, "serves": stood.network.name, "refused": refused, "held": library.stub_held(),
        "opened": "cuModuleLoadData" in trace,
    }  # fmt: skip


def failing(code: int) -> Iterator[dict[str, Any]]:
    """One run for each call of a sound run, and that call answers with the code."""
    library = libcuda.library()
    kind, capturable = KINDS[0]
    wanted, _ = expected(kind, capturable)
    library.stub_reset(0, 0, TOTAL)
    run(cuda.CudaDevice.open(0), Program(kind, capturable), [])
    trace = library.stub_trace().decode().split()
    for n, name in enumerate(trace, 1):
        if trace[max(0, n - 12) : n] == [name] * 12:
            continue  # in the middle of many alike
        library.stub_reset(n, code, TOTAL)
        answers: list[Answer] = []
        error, opened = "", False
        try:
            device = cuda.CudaDevice.open(0)
            opened = True
            run(device, Program(kind, capturable), answers)
        except EngineError as e:
            error = type(e).__name__
        except Exception as e:  # one that is none of ours is told by its own name, and fails the test
            error = f"{type(e).__name__}: {e}"
        yield {
            "call": name, "number": n, "error": error, "opened": opened,
            "right": told(answers) == wanted[: len(answers)], "whole": len(answers) == len(wanted),
            "held": library.stub_held(), "after": library.stub_after(),
        }  # fmt: skip


def main(what: str) -> None:
    """Print what was found."""
    libcuda.library().stub_reset(0, 0, TOTAL)
    kinds: dict[str, Callable[[], Any]] = {
        "sound": sound,
        "threads": threads,
        "memory": memory,
        "ladder": ladder,
    }
    json.dump(kinds[what]() if what in kinds else list(failing(int(what))), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
