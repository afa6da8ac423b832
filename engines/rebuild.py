"""Building plans in another process, while this one goes on with what it has.

The worker that finds its plan missing or stale serves on with the next runtime and asks for this; TensorRT may
then crash or hang without a series noticing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from engines.compile import Outcome
from engines.errors import RuntimeUnavailable
from engines.runtime.flavour import plain
from engines.runtime.plans import BUILD, Plans

MOST_SECONDS = 1800
"""A rebuild that takes longer than this hangs."""

_LOOK_S = 0.02


class Rebuild:
    """Plans being built by another process, so that a fault of TensorRT's ends that one and not this."""

    def __init__(self, child: subprocess.Popen[bytes], command: str = BUILD) -> None:
        self._child = child
        self._hint = f"{command} tells more"
        self._said: tuple[bytes, bytes] | None = None

    def outcomes(self, wait_s: float = 0.0) -> tuple[Outcome, ...] | None:
        """What became of it, or None while it goes on; waits for a moment at least.

        Raises
        ------
        RuntimeUnavailable
            It could not begin, or the process died.
        """
        if self._said is None:
            try:
                # With nothing to wait for it would give up before it has looked (subprocess, _communicate).
                self._said = self._child.communicate(timeout=max(wait_s, _LOOK_S))
            except subprocess.TimeoutExpired:
                return None
        told, complaint = self._said
        status = self._child.returncode
        try:
            outcomes = tuple(Outcome(**one) for one in json.loads(told))
        except (ValueError, TypeError) as e:
            raise RuntimeUnavailable(f"building plans ended with status {status}", hint=self._hint) from e
        if status and not outcomes:
            raise RuntimeUnavailable(
                f"plans cannot be built: {plain(complaint.decode('utf-8', 'replace'))}",
                hint=self._hint,
            )
        return outcomes

    def stop(self) -> None:
        """End it; nothing half-built is left behind."""
        self._child.kill()
        self._said = self._said or self._child.communicate()


def rebuild(
    names: Iterable[str] = (),
    *,
    plans: Plans,
    flavour: str = "",
    capabilities: Sequence[str] = (),
    zoo: Iterable[Path] = (),
    seconds: int = MOST_SECONDS,
) -> Rebuild:
    """Begin to build what is missing, in a process of its own that leaves the processors to others.

    Parameters
    ----------
    names
        Engines; all if empty.
    zoo
        More folders of engines.
    seconds
        After these it ends, whatever it is doing, even without the process that began it.
    """
    command = [sys.executable, "-m", "engines", "build", *names, "--json", "--plans", str(plans.folder)]
    command += ["--within", str(seconds)]
    command += ["--flavour", flavour] if flavour else []
    command += ["--for", ",".join(capabilities)] if capabilities else []
    for folder in zoo:
        command += ["--zoo", str(folder)]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return Rebuild(child, plans.build)
