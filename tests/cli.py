"""The command line in this process, from arguments to exit status, with nothing in between replaced."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog

from node.cli import run


@dataclass(frozen=True, slots=True)
class Told:
    """What a verb left behind: exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON; fails if it is anything else."""
        return json.loads(self.out)


@contextlib.contextmanager
def logging_kept() -> Iterator[None]:
    """Put logging back as it was: what is tested sets it up for a process of its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


def luminode(*arguments: object) -> Told:
    """Run a verb as ``luminode ARGUMENTS...`` does."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["luminode", *map(str, arguments)]
    status: object = 0
    try:
        with logging_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run()
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = before
    assert isinstance(status, int)
    return Told(status, out.getvalue(), err.getvalue())
