"""Where the processes of the engines begin: what they need is imported here, and quickly.

They are spawned, never forked: a driver does not survive a fork.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any


def worker(*arguments: Any, **more: Any) -> None:
    """Begin :func:`node.enhance.worker.worker_main`."""
    gc.disable()  # while importing, as in node/__main__.py
    from node.enhance.worker import worker_main

    gc.freeze()
    gc.enable()
    _told(worker_main, *arguments, **more)


def check(*arguments: Any) -> None:
    """Begin :func:`node.enhance.prove.check_main`."""
    gc.disable()
    from node.enhance.prove import check_main

    gc.freeze()
    gc.enable()
    _told(check_main, *arguments)


def _told(main: Callable[..., None], *arguments: Any, **more: Any) -> None:
    """multiprocessing would print what an exception says, which may be a value."""
    from node.log import defect

    try:
        main(*arguments, **more)
    except Exception as error:
        sys.stderr.write(f"{defect(error)}\n")
        sys.exit(1)
