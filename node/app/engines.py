"""What the node asks of the engines' catalogue."""

from __future__ import annotations

import os

from engines.base import Card
from engines.catalog import Catalog


def cards() -> dict[str, Card]:
    """The cards of the installed engines, by name. A broken folder is left out; `luminode check` tells."""
    catalog = Catalog.default()
    return {name: catalog.card(name) for name in catalog.names()}


def threads() -> int:
    """Threads for the engine: every core that this process may use."""
    return len(os.sched_getaffinity(0))
