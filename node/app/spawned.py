"""Where the processes of the engines begin: what they need is imported here, and quickly.

They are spawned, never forked: a driver does not survive a fork.
"""

from __future__ import annotations

import gc
from typing import Any


def worker(*arguments: Any, **more: Any) -> None:
    """Begin :func:`node.enhance.worker.worker_main`."""
    gc.disable()  # while importing, as in node/__main__.py
    from node.enhance.worker import worker_main

    gc.freeze()
    gc.enable()
    worker_main(*arguments, **more)


def check(*arguments: Any) -> None:
    """Begin :func:`node.enhance.prove.check_main`."""
    gc.disable()
    from node.enhance.prove import check_main

    gc.freeze()
    gc.enable()
    check_main(*arguments)
