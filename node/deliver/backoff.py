"""How long to wait before trying again: pure functions."""

from __future__ import annotations

_MOST_DOUBLINGS = 40


def ceiling_s(failures: int, *, first_s: float, at_most_s: float) -> float:
    """The longest pause after so many failures on end: ``first_s``, doubled each time, up to ``at_most_s``.

    Parameters
    ----------
    failures
        Failures in a row, the last one included; at least 1.
    """
    return min(at_most_s, first_s * 2.0 ** min(max(failures, 1) - 1, _MOST_DOUBLINGS))


def full_jitter_s(failures: int, *, first_s: float, at_most_s: float, chance: float) -> float:
    """A pause drawn evenly between nothing and the ceiling, so that those who failed together part.

    Parameters
    ----------
    failures
        As for :func:`ceiling_s`.
    chance
        A random number in [0, 1).
    """
    return chance * ceiling_s(failures, first_s=first_s, at_most_s=at_most_s)
