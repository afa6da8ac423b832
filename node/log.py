"""Logging: structlog events over the standard library, one line per state edge, never patient data.

``log.info("series.closed", series=12, instances=210, because="count")``: a dotted past-tense event, with its
values apart. Other packages' loggers carry values of data sets: SQLAlchemy's and the like are kept at WARNING
behind the same handler, and pynetdicom's, pydicom's and the pixel decoders' say nothing.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO, cast

import structlog

_QUIET = ("sqlalchemy", "alembic", "apscheduler", "watchfiles")
_SILENT = ("pynetdicom", "pydicom", "pylibjpeg", "openjpeg", "_openjpeg", "rle", "imagecodecs")


def configure(
    level: str = "info", *, fmt: str = "console", stream: TextIO | None = None, color: bool | None = None
) -> None:
    """Set up logging for a process.

    Parameters
    ----------
    level
        ``debug``, ``info``, ``warning`` or ``error``.
    fmt
        ``console`` for people, ``json`` for machines (one object a line).
    stream
        Where lines go; standard error unless given.
    color
        Colour for the console format; None asks the stream whether it is a terminal.
    """
    out = stream if stream is not None else sys.stderr
    number = getattr(logging, level.upper())
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=number, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info if fmt == "json" else _plain,
            structlog.processors.JSONRenderer()
            if fmt == "json"
            else structlog.dev.ConsoleRenderer(colors=out.isatty() if color is None else color),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )


def _plain(_logger: Any, _method: str, event: Any) -> Any:
    return event


def get_logger(**bound: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger with values bound to every line it writes."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(**bound))
