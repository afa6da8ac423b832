"""A progress bar with figures: rich on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY_S = 20.0


class Bar:
    """Shows how far a training is."""

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr)
        self._quiet = quiet
        self._live = self._console.is_terminal and not quiet
        self._name, self._told, self._shown = name, dict[str, float](), 0.0
        self._progress = Progress(
            TextColumn(name), BarColumn(), TextColumn("{task.percentage:.1f} %"), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.description}"), console=self._console, disable=not self._live,
        )  # fmt: skip
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        self._task = self._progress.add_task("", total=1.0)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        if not self._quiet:
            self._console.print(text, highlight=False)

    def update(self, told: Mapping[str, float]) -> None:
        """Take the newest figures."""
        self._told |= told
        share = self._told.get("share", 0.0)
        names = ("step", "loss", "gain")
        text = "  ".join(f"{k} {self._told[k]:.4g}" for k in names if k in self._told)
        if self._live and self._task is not None:
            self._progress.update(self._task, completed=share, description=text)
        elif not self._quiet and (time.monotonic() - self._shown > EVERY_S or "gain" in told):
            self._shown = time.monotonic()
            self._console.print(f"{self._name} {100 * share:5.1f} %  {text}", highlight=False)
