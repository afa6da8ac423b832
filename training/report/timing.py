"""How long engines take: ONNX Runtime beside PyTorch and the tuned filter, in one run, one after the other.

All contestants take turns, so that whatever else the machine does hits them alike. Wall time tells what was seen on
this machine in this hour; seconds of CPU tell what the work costs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from engines import bench, noise
from engines.base import Modality, Params, Volume
from engines.catalog import processors
from engines.front import Enhancer, Task
from training import recipe as recipes
from training.errors import TrainingError
from training.report.physics_bench import Subject, subjects, table
from training.report.section import Context, Section

THREADS = 2
REPEAT = 7
SLICES = 4
Network = tuple[str, str, dict[str, str]]
"""Name, kind and options."""

BAR = 20.0
"""Slices of 512 x 512 a second that the default CT engine is to reach on two cores."""
SIZES: tuple[Network, ...] = (
    ("PU-T", "pu", {"size": "t"}),
    ("PU-S", "pu", {"size": "s"}),
    ("PU-M", "pu", {"size": "m"}),
)
REFERENCES: tuple[Network, ...] = (
    ("PU-L", "pu", {"size": "l"}),
    ("DAE", "autoencoder", {}),
    ("RED-CNN", "red-cnn", {}),
)

Work = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Medians of one contestant: milliseconds of wall and of CPU time a slice, and the quartiles of the wall time."""

    engine: str
    what: str
    rows: int
    wall_ms: float
    wall_low_ms: float
    wall_high_ms: float
    cpu_ms: float
    runs: int

    @property
    def slices_a_second(self) -> float:
        """As seen on this machine while it did other work, too."""
        return 1000 / self.wall_ms

    @property
    def slices_of_two_cores(self) -> float:
        """What two cores reach that have nothing else to do, if the work splits evenly."""
        return 2 * 1000 / self.cpu_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Work of a network on one slice of 512 x 512."""

    name: str
    parameters_k: float
    gflop: float
    eager_ms: float
    eager_cpu_ms: float


def in_turns(contestants: Mapping[tuple[str, str], tuple[Work, int, int]], repeat: int) -> list[Turn]:
    """Run all contestants in turn, again and again.

    Parameters
    ----------
    contestants
        (engine, what) -> (work, slices that one run makes, rows).
    repeat
        Runs that count; one more before them warms up.
    """
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in contestants}
    for turn in range(repeat + 1):
        for key, (work, n, _) in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if turn:
                spent[key].append(
                    (1000 * (time.perf_counter() - wall) / n, 1000 * (time.process_time() - cpu) / n)
                )
    out = []
    for (engine, what), times in spent.items():
        walls = np.array([w for w, _ in times])
        out.append(
            Turn(
                engine=engine,
                what=what,
                rows=contestants[engine, what][2],
                wall_ms=float(np.median(walls)),
                wall_low_ms=float(np.quantile(walls, 0.25)),
                wall_high_ms=float(np.quantile(walls, 0.75)),
                cpu_ms=median(c for _, c in times),
                runs=len(times),
            )
        )
    return out


def _tasks(engine: Enhancer, given: Volume) -> list[Task]:
    """The slices of a stack as a core sees them."""
    survey = engine.survey(given)
    scale = noise.scale(survey, given.unit)
    n = given.shape[0]
    return [
        Task(
            values=given.values[z],
            below=given.values[z - 1] if z else None,
            above=given.values[z + 1] if z + 1 < n else None,
            valid=given.valid[z],
            sigma=float(survey.sigma[z]),
            scale=scale,
            unit=given.unit,
            step=1.0,
        )
        for z in range(n)
    ]


def _core(subject: Subject, given: Volume) -> Work:
    """The network or filter alone, as many slices at once as the engine allows."""
    tasks, core = _tasks(subject.engine, given), subject.engine.core
    at_once = min(THREADS, core.calls)

    def work() -> object:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda task: core.residual(task, tile=0), tasks))

    return work


def _whole(subject: Subject, given: Volume) -> Work:
    params = Params(strength=subject.strength)
    return lambda: subject.engine.enhance(given, params)


def recipe_of(engine: str) -> recipes.Recipe | None:
    """Find the shipped recipe that makes an engine."""
    for path in sorted(recipes.FOLDER.glob("*.yaml")):
        found = recipes.load(path)
        if found.engine is not None and found.engine.name == engine:
            return found
    return None


def eager(context: Context, engine: str, side: int, n: int) -> Work | None:
    """PyTorch on the CPU with the network of an engine, ``n`` slices, two beside each other as ONNX Runtime has them;
    its own weights where the training is there."""
    found = recipe_of(engine)
    if found is None:
        return None
    import torch

    from training.fit import BEST, finished
    from training.networks import build

    try:
        network = finished(context.runs / found.name / BEST, found)
    except TrainingError:
        # The time does not depend on the weights.
        network = build(found.network.kind, **found.network.options).eval().requires_grad_(False)
    one = _forward(network, torch.rand(1, 3, side, side), torch.full((1, 1, side, side), 0.2))

    def work() -> object:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda _: one(), range(n)))

    return work


def _forward(network: Any, x: Any, c: Any) -> Work:
    import torch

    def work() -> object:
        with torch.inference_mode():
            return network(x, c)

    return work


@contextlib.contextmanager
def _torch_threads(n: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def costs(quick: bool, repeat: int) -> list[Cost]:
    """Count the work of every size and of the reference networks, and time PyTorch on them."""
    import torch

    from training.export.measure import gflop
    from training.networks import build, n_parameters

    side = 64 if quick else 512
    networks = {
        name: build(kind, **options).eval().requires_grad_(False)
        for name, kind, options in (SIZES if quick else (*SIZES, *REFERENCES))
    }
    x, c = torch.rand(1, 3, side, side), torch.full((1, 1, side, side), 0.2)
    timed = in_turns(
        {(name, "eager"): (_forward(net, x, c), 1, side) for name, net in networks.items()}, repeat
    )
    times = {t.engine: t for t in timed}
    return [
        Cost(
            name=name,
            parameters_k=n_parameters(network) / 1000,
            gflop=gflop(network),
            eager_ms=times[name].wall_ms,
            eager_cpu_ms=times[name].cpu_ms,
        )
        for name, network in networks.items()
    ]


def run(context: Context) -> Section:
    """Time every learned engine and the tuned NLM."""
    repeat = 2 if context.quick else REPEAT
    found: list[Turn] = []
    load = _load()
    # One thread a slice: where others want the processors, threads of one slice wait for each other and burn them.
    with _torch_threads(1):
        modalities: tuple[Modality, ...] = ("CT", "MR")
        for modality in modalities:
            context.say(f"timing: {modality}")
            found += in_turns(_contestants(context, modality), repeat)
        context.say("timing: networks of the reference rows")
        cost = costs(context.quick, 1 if context.quick else 5)
    return Section(
        name="timing",
        title="Speed: ONNX Runtime, PyTorch and the tuned filter side by side",
        text=_text(found, cost, repeat, load),
        figures={
            "threads": THREADS,
            "processors": processors(),
            "load": load,
            "turns": [asdict(t) | {"slices_a_second": t.slices_a_second} for t in found],
            "costs": [asdict(c) for c in cost],
        },
    )


def _contestants(context: Context, modality: Modality) -> dict[tuple[str, str], tuple[Work, int, int]]:
    out: dict[tuple[str, str], tuple[Work, int, int]] = {}
    side = 96 if context.quick else bench.SIDE[modality]
    n = 2 if context.quick else SLICES
    for factor in (1, 2):
        for subject in subjects(context.catalog, modality, scale=factor, threads=THREADS):
            # An engine that doubles the matrix is given half of it: what comes out is of one size.
            rows = side // factor
            given = bench.stack(modality, rows, n)
            out[subject.name, "alone"] = (_core(subject, given), n, rows)
            out[subject.name, "whole"] = (_whole(subject, given), n, rows)
            if not subject.tuned:
                torch_work = eager(context, subject.name, rows, n)
                if torch_work is not None:
                    out[subject.name, "eager"] = (torch_work, n, rows)
    return out


def _load() -> float:
    """Processes that waited for a processor in the last minute; NaN where the system does not tell."""
    return float(os.getloadavg()[0]) if hasattr(os, "getloadavg") else float("nan")


def _text(found: Sequence[Turn], cost: Sequence[Cost], repeat: int, load: float) -> str:
    rows, seen = [], {(t.engine, t.what): t for t in found}
    filters = {(t.engine[:2], t.rows): t for t in found if t.engine.endswith("-nlm") and t.what == "alone"}
    for engine in dict.fromkeys(t.engine for t in found):
        alone, whole, torch_run = (seen.get((engine, what)) for what in ("alone", "whole", "eager"))
        if alone is None or whole is None:
            continue
        nlm = filters.get((engine[:2], alone.rows))
        rows.append(
            (
                engine,
                f"{alone.rows} x {alone.rows}",
                f"{alone.wall_ms:.1f} [{alone.wall_low_ms:.1f}, {alone.wall_high_ms:.1f}]",
                f"{alone.cpu_ms:.1f}",
                f"{torch_run.wall_ms:.1f}" if torch_run else "-",
                f"{torch_run.cpu_ms:.1f}" if torch_run else "-",
                f"{torch_run.cpu_ms / alone.cpu_ms:.2f}" if torch_run else "-",
                f"{nlm.cpu_ms / alone.cpu_ms:.2f}" if nlm else "-",
                f"{whole.wall_ms:.1f}",
                f"{whole.cpu_ms:.1f}",
                f"{whole.slices_a_second:.1f}",
                f"{whole.slices_of_two_cores:.1f}",
            )
        )
    head = ("engine", "slice", "alone ms [quartiles]", "alone CPU ms", "PyTorch ms", "PyTorch CPU ms")
    more = ("PyTorch over alone, CPU", "NLM over alone, CPU", "whole ms", "whole CPU ms", "whole slices/s")
    work = [
        (c.name, f"{c.parameters_k:.0f}", f"{c.gflop:.1f}", f"{c.eager_ms:.0f}", f"{c.eager_cpu_ms:.0f}")
        for c in cost
    ]
    parts = [
        f"{THREADS} threads, a machine with {processors()} processors that does other work as well: "
        f"{load:.1f} processes wanted a processor when this began. Contestants took turns; figures are medians of "
        f"{repeat} runs. *Alone* is the network in ONNX Runtime with its input made (or the filter), two slices beside "
        "each other; *PyTorch* is the same network eager, in the same way; *whole* is what a node does: "
        "survey, network, guards, checks. Where processes wait, wall time is too long; seconds of CPU are the ones to "
        "compare. The last column is two processors divided by them: what an idle machine would reach at best.",
        table((*head, *more, "of two idle cores"), rows),
        _judged(found),
        "Work of the networks on a slice of 512 x 512 (two operations per multiplication and sum of the "
        "convolutions), and PyTorch's time for it on one thread:",
        table(("network", "parameters k", "GFLOP", "PyTorch ms", "PyTorch CPU ms"), work),
    ]
    by_name = {c.name: c for c in cost}
    if {"PU-M", "RED-CNN"} <= set(by_name):
        small, large = by_name["PU-M"], by_name["RED-CNN"]
        parts.append(
            f"RED-CNN does {large.gflop / small.gflop:.0f} times the work of PU-M, and takes "
            f"{large.eager_cpu_ms / small.eager_cpu_ms:.0f} times the CPU time."
        )
    return "\n\n".join(parts)


def _judged(found: Sequence[Turn]) -> str:
    """Say whether the default CT engine is fast enough."""
    words = {"alone": "its network alone", "whole": "the whole engine"}
    lines = [
        f"- **{words[t.what]}**: {t.slices_a_second:.1f} slices a second as seen, {t.slices_of_two_cores:.1f} of two "
        f"idle cores; the bar of {BAR:.0f} is {_met(t.slices_a_second)} as seen, "
        f"{_met(t.slices_of_two_cores)} by CPU time."
        for t in found
        if t.engine == "ct-cnn" and t.what in words
    ]
    return "The default CT engine:\n\n" + "\n".join(lines) if lines else "The default CT engine is not there."


def _met(slices: float) -> str:
    return "met" if slices >= BAR else "not met"
