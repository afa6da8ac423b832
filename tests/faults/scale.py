"""How much of a fault test runs: a part in ``make test``, all of it in ``make faults``."""

from __future__ import annotations

import os

FULL = os.environ.get("LUMINODE_FAULTS", "") == "full"
"""Whether this is ``make faults``."""

SEED = int(os.environ.get("LUMINODE_FAULTS_SEED", "20261128"))
"""Printed with every result; another seed is another run."""


def in_time(seconds: float, bar: float) -> bool:
    """Whether a bar of the target is met; with the counts of ``make test``, where others work beside, it is not asked.

    What a test itself asserts is wider, and is there for what hangs: no test may depend on a quiet machine.
    """
    return seconds <= bar or not FULL


def count(part: int, full: int) -> int:
    """Return how many cases to run: ``part`` in ``make test``, ``full`` in ``make faults``."""
    return full if FULL else part
