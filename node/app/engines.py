"""What the node asks of the engines' catalogue, and where its engines run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from engines.base import Card
from engines.catalog import Catalog
from engines.ladder import Place
from node.config.schema import Config
from node.process import CUDA_VISIBLE


def cards() -> dict[str, Card]:
    """The cards of the installed engines, by name. A broken folder is left out; `luminode check` tells."""
    catalog = Catalog.default()
    return {name: catalog.card(name) for name in catalog.names()}


def offered() -> dict[str, tuple[str, ...]]:
    """The modalities of each installed engine, by its name: what a configuration may name."""
    return {name: tuple(map(str, card.modalities)) for name, card in cards().items()}


def threads(workers: int = 1) -> int:
    """Threads for an engine: every core that this process may use, shared by so many workers."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, workers))


def place(config: Config) -> Place:
    """Where the engines of a configuration run; its GPU is the first that a process is shown."""
    folder = config.gpu.plans
    plans = Path(folder) if folder else Path(config.store.spool).resolve().parent / "plans"
    return Place(plans=plans.resolve(), most_bytes=config.gpu.memory or 0)


def shown(config: Config, environment: Mapping[str, str] = os.environ) -> tuple[str | None, ...]:
    """What each worker's CUDA_VISIBLE_DEVICES is to be; None leaves it as it is.

    A number counts among the GPUs that this process itself is shown, as a container or an admin has narrowed them
    down. One that is not among them shows none.
    """
    devices = config.gpu.devices
    if devices is None:
        return (None,)
    outer = [d.strip() for d in environment[CUDA_VISIBLE].split(",")] if CUDA_VISIBLE in environment else None

    def named(device: str) -> str:
        if outer is None or not device.isdigit():
            return device
        return outer[int(device)] if int(device) < len(outer) else ""

    return tuple(map(named, devices)) or ("",)
