"""A process that proves the GPU: what lifts the mark of an unfit one."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from functools import partial

from engines.ladder import Place
from node.log import configure, get_logger
from node.process import die_with_parent, show_gpu

log = get_logger()


def check_main(
    warm: Sequence[tuple[str, str]],
    threads: int,
    level: str,
    fmt: str,
    place: Place | None = None,
    shown: str | None = None,
) -> None:
    """Entry of the spawned child: status 0 if at least one engine runs on the GPU, and all that do answer rightly.

    Parameters
    ----------
    warm
        The (engine, runtime) pairs of the configuration.
    place, shown
        As the worker's.
    """
    show_gpu(shown)
    die_with_parent()
    configure(level, fmt=fmt, waits=False)
    try:
        status = 0 if proven(warm, threads, place) else 1
    except BaseException as e:  # whatever a broken driver makes of a library
        log.warning("gpu.not_proven", because=type(e).__name__, told=getattr(e, "message", ""))
        status = 1
    atexit._run_exitfuncs()  # last lines of the log; destructors of a broken context may never return
    os._exit(status)


def proven(warm: Sequence[tuple[str, str]], threads: int, place: Place | None = None) -> bool:
    """Whether an engine of these runs on an accelerator and answers its canary rightly.

    Raises
    ------
    engines.errors.EngineError
        One that does run there answers wrongly, or the device is lost.
    """
    from engines import canary
    from engines.catalog import Catalog
    from engines.errors import CanaryRefused, PlanMismatch, RuntimeUnavailable

    catalog = Catalog.default(place=place)
    accelerated = catalog.accelerated()
    n = 0
    for name, runtime in dict.fromkeys(warm):
        if runtime != "auto" and runtime not in accelerated:
            continue
        try:
            engine = catalog.load(name, runtime=runtime, threads=threads, avoid={"onnx"})
            if engine.core.device == "cpu":
                continue
            canary.prove(engine, partial(catalog.load, name, threads=threads, avoid=accelerated))
        except (CanaryRefused, PlanMismatch):
            raise
        except RuntimeUnavailable as e:  # this engine has nothing that runs there
            log.info("gpu.not_used", engine=name, told=e.message)
            continue
        n += 1
    return n > 0
