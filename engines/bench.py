"""How long engines take: ``python -m engines bench [ENGINE ...]``.

Each engine gets a phantom of its typical size (CT 512 x 512, MR 256 x 256). Beside each other: the core alone
(a network, or a classical filter) on one slice at a time, and the whole front door with its threads: survey,
core, guards, checks, per slice. Medians over runs, in wall time and in seconds of CPU: on a machine with other
work the second is the one to compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from engines.base import Floats, Params, Volume
from engines.catalog import Catalog, processors
from engines.classical import phantoms
from engines.front import Core, Enhancer, Task

SIDE = {"CT": 512, "MR": 256}
SLICES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds a slice of one engine: the core alone, and the whole; wall time and CPU time; what it ran on."""

    name: str
    runtime: str
    device: str
    modality: str
    rows: int
    columns: int
    threads: int
    core_ms: float
    core_cpu_ms: float
    whole_ms: float
    whole_cpu_ms: float

    @property
    def slices_a_second(self) -> float:
        return 1000.0 / self.whole_ms


class _Timed:
    """A core that keeps the time of each call."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.spent: list[tuple[float, float]] = []

    @property
    def runtime(self) -> str:
        return self._core.runtime

    @property
    def device(self) -> str:
        return self._core.device

    @property
    def calls(self) -> int:
        return 1

    def residual(self, task: Task, *, tile: int) -> Floats:
        """As the core's."""
        wall, cpu = time.perf_counter(), time.process_time()
        made = self._core.residual(task, tile=tile)
        self.spent.append((time.perf_counter() - wall, time.process_time() - cpu))
        return made


def stack(modality: str, side: int, n_slices: int = SLICES) -> Volume:
    """A seeded stack: an abdomen of 15 HU noise, or a head of 4 %."""
    shape, ct = (n_slices, side, side), modality == "CT"
    made = phantoms.ct(5, shape=shape, kind="abdomen", sigma=15.0) if ct else phantoms.mr(5, shape=shape)
    return Volume(
        values=made.noisy,
        spacing_mm=(1.0, 0.8, 0.8),
        unit="HU" if ct else "arbitrary",
        valid=np.ones(shape, np.bool_),
        contiguous=np.ones(n_slices, np.bool_),
        step=np.ones(n_slices, np.float32),
    )


def timed(
    catalog: Catalog, name: str, *, repeat: int = 5, threads: int = 0, side: int = 0, runtime: str = "auto"
) -> Timing:
    """Measure one engine.

    Parameters
    ----------
    repeat
        Runs over the stack; one more before them warms up.
    threads
        0 means one per processor.
    side
        Rows and columns; 0 means what is typical.
    runtime
        See :meth:`engines.catalog.Catalog.load`.

    Raises
    ------
    engines.errors.EngineError
        It cannot be loaded or fails.
    """
    n_threads = threads or processors()
    engine = catalog.load(name, runtime, threads=n_threads)
    try:
        modality = engine.card.modalities[0]
        given = stack(modality, side or SIDE[modality])
        full = Params(strength=engine.card.default_strength)
        watched = _Timed(engine.core)
        alone, found = Enhancer(engine.card, watched, 1), engine.survey(given)
        for _ in range(repeat + 1):
            alone.enhance(given, full, found)
        core = watched.spent[SLICES:] or [(0.0, 0.0)]
        whole = [_spent(lambda: engine.enhance(given, full, engine.survey(given))) for _ in range(repeat + 1)]
    finally:
        engine.close()  # the next one needs the GPU's memory
    per_slice = 1000.0 / SLICES
    return Timing(
        name=name,
        runtime=engine.core.runtime,
        device=engine.core.device,
        modality=modality,
        rows=given.shape[1],
        columns=given.shape[2],
        threads=n_threads,
        core_ms=1000 * median(wall for wall, _ in core),
        core_cpu_ms=1000 * median(cpu for _, cpu in core),
        whole_ms=per_slice * median(wall for wall, _ in whole[1:]),
        whole_cpu_ms=per_slice * median(cpu for _, cpu in whole[1:]),
    )


def _spent(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def line(one: Timing) -> str:
    """A timing for people."""
    return (
        f"{one.name:16} {one.modality} {one.rows} x {one.columns}: core {one.core_ms:7.1f} ms "
        f"({one.core_cpu_ms:.1f} of CPU), whole {one.whole_ms:7.1f} ms ({one.whole_cpu_ms:.1f} of CPU), "
        f"{one.slices_a_second:.1f} slices a second on {one.threads} threads, {one.runtime} on {one.device}"
    )
