"""Where a spawned child with the accelerator of devices.py begins, as node/app/spawned.py: quickly."""

from __future__ import annotations

import gc
from typing import Any


def worker(*arguments: Any, **more: Any) -> None:
    """Begin :func:`tests.faults.devices.worker_main`."""
    gc.disable()
    from tests.faults import devices

    gc.freeze()
    gc.enable()
    devices.worker_main(*arguments, **more)


def check(*arguments: Any) -> None:
    """Begin :func:`tests.faults.devices.check`."""
    gc.disable()
    from tests.faults import devices

    gc.freeze()
    gc.enable()
    devices.check(*arguments)
