"""How much memory the worker may take: it is told of the bound by an error, and nobody else pays (R40)."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

SHARE = 0.8
"""Of the host's or the service's memory: beyond, the kernel would have to choose whom to kill."""

_CGROUPS = Path("/sys/fs/cgroup")


def there_is(cgroups: Path = _CGROUPS, told: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process has at most: the host's, or those of its control group (v2 or v1)."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    places = [cgroups / "memory.max", cgroups / "memory" / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        for line in told.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = path.lstrip("/")
            if not controllers:
                places.append(cgroups / inside / "memory.max")
            elif "memory" in controllers.split(","):
                places.append(cgroups / "memory" / inside / "memory.limit_in_bytes")
    for place in places:
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            least = min(least, int(place.read_text()))
    return least


def bound(n_bytes: int = 0) -> int:
    """Bound the private memory of this process; 0 means a share of what there is. Returns the bytes.

    The bound is RLIMIT_DATA (setrlimit(2)): address space that a driver reserves and files that are mapped cost
    nothing.
    """
    n_bytes = n_bytes or int(SHARE * there_is())
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        n_bytes = min(n_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, hard))
    return n_bytes
