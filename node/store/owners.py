"""Names of lease owners that tell whether their process still lives.

A lease names ``host/boot/pid/start``. A process of this host whose pid is gone, or whose pid now belongs
to a process that started at another time, or that ran before the last boot, is dead beyond doubt: its
leases are taken back at once after a restart, with no wait for their expiry. Owners of other hosts are
left to the clock.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def me(role: str = "") -> str:
    """The name of this process as an owner of leases."""
    pid = os.getpid()
    name = f"{socket.gethostname()}/{_boot()}/{pid}/{_started(pid) or 0}"
    return f"{name}/{role}" if role else name


def certainly_dead(owner: str) -> bool:
    """True only if ``owner`` was a process of this host that no longer runs."""
    parts = owner.split("/")
    if len(parts) < 4 or parts[0] != socket.gethostname():
        return False
    boot, pid, start = parts[1:4]
    if boot != _boot():
        return True
    if not pid.isdigit():
        return False
    return str(_started(int(pid)) or -1) != start


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()[:8]
    except OSError:
        return "noboot"


def _started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (proc(5), field 22), None if it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])
