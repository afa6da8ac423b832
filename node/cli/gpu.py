"""What `luminode check` and `luminode plans` tell of GPUs and plans; the verb `plans`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from engines import compile as compiling
from engines.catalog import Catalog
from engines.errors import EngineError, GpuUnusable, RuntimeUnavailable
from engines.ladder import Place, Refusal
from engines.runtime import flavour, gpu
from engines.runtime.gpu import Gpu, dotted
from engines.runtime.plans import Plans
from node.app.engines import place, shown, threads
from node.cli.common import ConfigOption, JsonOption, err, loaded, out, print_json, print_table, visible
from node.config.schema import Config
from node.process import show_gpu

PATIENCE_S = 120.0
"""A driver that answers nothing for so long hangs."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("plans")(plans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How an engine of the configuration loads: its runtime and device, or why it does not."""

    engine: str
    runtime: str = ""
    device: str = ""
    refusals: tuple[Refusal, ...] = ()
    fault: str = ""
    hint: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU as a worker sees it; ``gpu`` is None if it sees none."""

    shown: str | None
    gpu: Gpu | None


def devices(config: Config) -> list[Device]:
    """The GPUs of the configuration, each seen by a process of its own where there are several."""
    every = shown(config)
    found = []
    for one in every:
        seen = _alone(gpu.local, one, several=len(every) > 1)
        found.append(Device(shown=one, gpu=seen[0] if seen else None))
    return found


def flavours() -> list[tuple[str, str]]:
    """Every flavour of TensorRT: its version, or why it is not used."""
    told = []
    for row in flavour.FLAVOURS.values():
        try:
            told.append((row.title, flavour.version(row.name)))
        except RuntimeUnavailable as e:
            told.append((row.title, e.message.removeprefix(f"{row.title} ").removeprefix("is ")))
    return told


def served(config: Config, n_threads: int) -> dict[str, Served]:
    """How each engine of the configuration loads on the first GPU."""
    every = shown(config)
    wanted = [(name, e.engine, e.runtime) for name, e in config.engines.items()]
    found: dict[str, Served] = _alone(
        _served, every[0], wanted, place(config), n_threads, several=len(every) > 1
    )
    return found


def _served(wanted: Sequence[tuple[str, str, str]], where: Place, n_threads: int) -> dict[str, Served]:
    catalog = Catalog.default(place=where)
    told = {}
    for name, engine, runtime in wanted:
        began = time.monotonic()
        try:
            one = catalog.load(engine, runtime=runtime, threads=n_threads)
        except EngineError as e:
            told[name] = Served(engine=engine, fault=e.message, hint=e.hint)
            continue
        told[name] = Served(
            engine=engine,
            runtime=one.core.runtime,
            device=one.core.device,
            refusals=one.refusals,
            seconds=time.monotonic() - began,
        )
        one.close()
    return told


def _alone(function: Callable[..., Any], device: str | None, *given: object, several: bool) -> Any:
    """Call a function where one GPU is shown: here, or in a process of its own where there are several.

    What a process has been shown it keeps: CUDA reads it once.

    Raises
    ------
    RuntimeUnavailable
        The driver does not answer.
    """
    if not several:
        show_gpu(device)
        return function(*given)
    pool = get_context("spawn").Pool(1, initializer=show_gpu, initargs=(device,))
    try:
        return pool.apply_async(function, given).get(PATIENCE_S)
    except TimeoutError:
        raise RuntimeUnavailable(
            f"GPU {device} does not answer within {PATIENCE_S:.0f} s",
            hint="look at nvidia-smi and the kernel's log",
        ) from None
    finally:
        pool.terminate()


# plans --------------------------------------------------------------------------------------------
def plans(
    engines: Annotated[list[str] | None, typer.Argument(help="Engines; else those of config.yaml.")] = None,
    build: Annotated[
        bool, typer.Option("--build", help="Build what is missing, for the GPUs of this host.")
    ] = False,
    for_: Annotated[
        str,
        typer.Option(
            "--for", help="Build for these compute capabilities, of GPUs that need not be here: 86,89."
        ),
    ] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Compiled plans of the learned engines: which there are, and building them."""
    settings = loaded(config).config
    catalog, kept = Catalog.default(), Plans(place(settings).plans)
    names = engines or list(dict.fromkeys(e.engine for e in settings.engines.values()))
    learned = [n for n in names if catalog.models(n)]
    capabilities = [c for part in for_.split(",") if (c := part.strip().replace(".", ""))]
    if for_ and not capabilities:
        raise typer.BadParameter("--for takes compute capabilities such as 86,89 or 8.6")
    if build or capabilities:
        fine = _build(settings, learned, capabilities, json)
    else:
        fine = _list(settings, catalog, kept, learned, json)
    if not fine:
        raise typer.Exit(1)


def _list(settings: Config, catalog: Catalog, kept: Plans, names: Sequence[str], json: bool) -> bool:
    here = [d.gpu for d in devices(settings) if d.gpu is not None]
    told = [(name, state) for name in names for state in compiling.states(catalog, name, kept, here)]
    wrong = [s for _, s in told if s.state == "refused" or (here and s.state != "ready")]
    if json:
        listed = [{"engine": n, **_plain(s)} for n, s in told]
        print_json({"folder": kept.folder, "gpus": here, "plans": listed})
        return not wrong
    rows = [(n, s.precision, s.flavour, s.state, s.words.removeprefix("ready ")) for n, s in told]
    print_table(["engine", "precision", "flavour", "state", ""], rows, empty="no plans")
    for hint in dict.fromkeys(s.hint for s in wrong if s.hint):
        out.print(visible(_hint(hint)), highlight=False)
    if not here:
        out.print("no GPU here: the CPU serves; --for 86,89 builds for GPUs elsewhere", highlight=False)
    return not wrong


def _plain(state: compiling.PlanState) -> dict[str, str]:
    return {
        "precision": state.precision, "flavour": state.flavour, "state": state.state, "words": state.words,
        "hint": _hint(state.hint),
    }  # fmt: skip


_ENGINES_BUILD = re.compile(r"python -m engines build(?: --plans (?:'[^']*'|\S+))?")


def _hint(hint: str) -> str:
    """What to do, with the folder of the configuration in it."""
    return _ENGINES_BUILD.sub("luminode plans --build", hint)


def _build(settings: Config, names: Sequence[str], capabilities: Sequence[str], json: bool) -> bool:
    every = (None,) if capabilities else shown(settings)
    outcomes: list[compiling.Outcome] = []
    for device in every:
        outcomes += _alone(
            build_on, device, names, place(settings).plans, capabilities, json, several=len(every) > 1
        )
    outcomes = list(dict.fromkeys(outcomes))
    if json:
        print_json(outcomes)
    elif not outcomes:
        out.print("nothing to build: none of these engines has a network", highlight=False)
    else:
        rows = [
            (o.engine, o.precision, o.flavour, o.target, o.state, _size(o), o.fault, _hint(o.hint))
            for o in outcomes
        ]
        columns = ["engine", "precision", "flavour", "for", "state", "", "fault", "hint"]
        print_table(columns, rows, empty="")
    return all(o.state != "failed" for o in outcomes)


def _size(one: compiling.Outcome) -> str:
    if one.state == "failed":
        return ""
    return f"{one.size / 1e6:.1f} MB" + (f" in {one.seconds:.1f} s" if one.state == "built" else "")


def build_on(
    names: Sequence[str], folder: Path | None, capabilities: Sequence[str], quiet: bool
) -> list[compiling.Outcome]:
    """Build for the GPU that this process is shown, or for others.

    Raises
    ------
    RuntimeUnavailable
        There is no TensorRT, or no GPU that it runs on.
    """
    if not names:
        return []
    here = () if capabilities else gpu.local()[:1]
    wanted = compiling.jobs(Catalog.default(), names, gpus=here, capabilities=capabilities)
    made = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=err, disable=quiet or not err.is_terminal,
    ) as progress:  # fmt: skip
        for number, job in enumerate(wanted, 1):
            task = progress.add_task(f"[{number}/{len(wanted)}] {job.title}", total=1.0)

            def tell(phase: str, share: float, task: Any = task, title: str = job.title) -> None:
                progress.update(task, completed=share, description=f"{title}: {phase[:40]}")

            made.append(compiling.make(job, Plans(folder), progress=tell))
            progress.update(task, completed=1.0)
    return made


# check --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that `luminode check` looked at. A ``note`` is in order, and yet not what an admin wants."""

    what: str
    ok: bool
    text: str
    hint: str = ""
    note: bool = False


def check_runtimes(config: Config) -> list[Finding]:
    """GPUs, drivers, engines and plans: what runs where, and why not on what is faster."""
    learned = any(Catalog.default().models(e.engine) for e in config.engines.values())
    try:
        found = devices(config)
        engines = check_engines(config, threads(len(found)), [d.gpu for d in found if d.gpu is not None])
    except GpuUnusable as e:
        # It answers, and says no: what the engines run on meanwhile can be told.
        wanted = learned or bool(config.gpu.devices)
        told = Finding(what="gpu", ok=not wanted, text=e.message, hint=e.hint, note=not wanted)
        return [told, *check_engines(config, threads(), [])]
    except EngineError as e:
        return [Finding(what="gpu", ok=False, text=e.message, hint=e.hint)]
    if config.gpu.devices == ():
        return [Finding(what="gpu", ok=True, text="none is used: gpu.devices is empty"), *engines]
    asked = config.gpu.devices is not None
    if not (learned or asked or any(d.gpu for d in found)):
        return engines
    seen = [_check_device(d, asked=asked, several=len(found) > 1) for d in found]
    return [*seen, *(Finding(what=title, ok=True, text=words) for title, words in flavours()), *engines]


def _check_device(one: Device, *, asked: bool, several: bool) -> Finding:
    what = f"gpu {one.shown}" if several else "gpu"
    if one.gpu is None:
        text = "there is none here, or no driver: learned engines run on the CPU"
        hint = "gpu.devices names one: see nvidia-smi -L, and CUDA_VISIBLE_DEVICES"
        return Finding(what=what, ok=not asked, text=text, hint=hint if asked else "")
    card = one.gpu
    text = f"{card.name}, compute capability {dotted(card.compute_capability)}, driver {card.driver}"
    return Finding(what=what, ok=True, text=text)


def check_engines(config: Config, n_threads: int, here: Sequence[Gpu]) -> list[Finding]:
    """What each engine of the configuration runs on; where there is a GPU, why not on what is faster; its plans."""
    told = []
    for name, one in served(config, n_threads).items():
        if one.fault:
            told.append(Finding(what=f"engine {name}", ok=False, text=one.fault, hint=_hint(one.hint)))
            continue
        card = Catalog.default().card(one.engine)
        text = (
            f"{card.name} {card.version}, {card.family}, {one.runtime} on {one.device}, "
            f"weights {card.weights_sha256[:12]}, loaded in {one.seconds:.2f} s"
        )
        told.append(Finding(what=f"engine {name}", ok=True, text=text))
        for r in one.refusals if here else ():
            text, note = f"not on {r.runtime}: {r.message}", r.kind in ("gpu", "plan", "memory")
            told.append(Finding(what=f"engine {name}", ok=True, text=text, hint=_hint(r.hint), note=note))
    for engine in dict.fromkeys(e.engine for e in config.engines.values()):
        told += _check_plans(engine, config, here)
    return told


def _check_plans(engine: str, config: Config, here: Sequence[Gpu]) -> list[Finding]:
    """How it stands with the plans of an engine: on a host without a GPU, with those built for others."""
    try:
        states = compiling.states(Catalog.default(), engine, Plans(place(config).plans), here)
    except EngineError as e:
        return [Finding(what=f"plans {engine}", ok=False, text=e.message, hint=e.hint)]
    return [
        Finding(
            what=f"plan {engine}",
            ok=s.state != "refused",
            text=f"{s.flavour} {s.precision}: {s.state}"
            + (f", {s.words}" if s.state != "ready" else s.words[5:]),
            hint=_hint(s.hint),
            note=s.state in ("missing", "stale"),
        )
        for s in states
    ]
