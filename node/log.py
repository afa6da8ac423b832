"""Logging: structlog events over the standard library, one line per state edge, never patient data.

``log.info("series.closed", series=12, instances=210, because="count")``: a dotted past-tense event, with its
values apart. Other packages' loggers carry values of data sets: SQLAlchemy's and the like are kept at WARNING
behind the same handler, and pynetdicom's, pydicom's and the pixel decoders' say nothing.

A process of the node writes its lines from a thread of its own (:class:`Spout`): a log target that is full, gone
or does not read never holds up an association (R55). What a person must not miss is an event in the database,
not a line.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import errno
import logging
import os
import sys
import threading
import time
import traceback
from typing import Any, Final, TextIO, cast

import structlog

_QUIET = ("sqlalchemy", "alembic", "apscheduler", "watchfiles")
_SILENT = ("pynetdicom", "pydicom", "pylibjpeg", "openjpeg", "_openjpeg", "rle", "imagecodecs")

MOST_LINES: Final = 20_000
"""Lines kept for a target that does not read; after that the oldest go, and it is told how many."""

_AGAIN_S: Final = 1.0
_LAST_S: Final = 1.0


def configure(
    level: str = "info",
    *,
    fmt: str = "console",
    stream: TextIO | None = None,
    color: bool | None = None,
    waits: bool = True,
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
    waits
        Whether who logs waits for the target. False for the processes of a node.
    """
    out = stream if stream is not None else sys.stderr
    colored = out.isatty() if color is None else color
    if not waits:
        out = cast(TextIO, _spout(out))
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
            structlog.processors.ExceptionRenderer(_formatted) if fmt == "json" else _plain,
            structlog.processors.JSONRenderer()
            if fmt == "json"
            else structlog.dev.ConsoleRenderer(colors=colored, exception_formatter=_written),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )


_MOST_FRAMES: Final = 64
"""Of a traceback, counted from where it was raised: a recursion without end has a thousand."""


def defect(error: BaseException | None) -> str:
    """A traceback for people: files, lines, functions, types of exceptions and what a system call failed
    with (``ENOSPC``), and no value.

    What an exception says may quote a patient's name or a password, and so may the variables around it.
    """
    told = list[str]()
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = "".join(
            f'  File "{one.filename}", line {one.lineno}, in {one.name}\n'
            for one in traceback.extract_tb(error.__traceback__, limit=-_MOST_FRAMES)
        )
        number = f" {errno.errorcode.get(error.errno or 0, '')}" if isinstance(error, OSError) else ""
        kind = f"{type(error).__module__}.{type(error).__qualname__}{number.rstrip()}"
        told.append(f"Traceback (most recent call last):\n{frames}{kind}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nwhich came of this:\n".join(told)


def tell_defects_without_values() -> None:
    """From now on an exception that nobody catches, in any thread, is told as :func:`defect` tells it."""
    sys.excepthook = lambda _kind, error, _where: _last_told(error)
    threading.excepthook = lambda told: _last_told(told.exc_value)


def _last_told(error: BaseException | None) -> None:
    if not isinstance(error, SystemExit | KeyboardInterrupt):
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{defect(error)}\n")
            sys.stderr.flush()


def _formatted(exc_info: structlog.typing.ExcInfo) -> str:
    return defect(exc_info[1])


def _written(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    stream.write(f"\n{defect(exc_info[1])}")


def _plain(_logger: Any, _method: str, event: Any) -> Any:
    return event


def get_logger(**bound: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger with values bound to every line it writes."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(**bound))


class Spout:
    """A text stream that never makes its writer wait, and never raises.

    Lines go to the file descriptor from a thread of its own. A target that refuses (disk full, pipe closed) is
    tried again with the next lines; one that does not read holds up that thread alone. Beyond ``most`` lines
    the oldest are lost, and a line ``log.lost`` with their number goes out as soon as anything does.

    Parameters
    ----------
    descriptor
        Where bytes go. It is not closed.
    most
        Lines kept.
    """

    def __init__(self, descriptor: int, most: int = MOST_LINES) -> None:
        self._fd = descriptor
        self._most = most
        self.begin()

    def begin(self) -> None:
        """Begin, and again in a forked child: the thread, and what it had yet to write, are its parent's."""
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._waiting: collections.deque[str] = collections.deque()
        self._writing = False
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Take a piece of text; returns its length."""
        with self._lock:
            if len(self._waiting) >= self._most:
                self.lost += self._waiting.popleft().count("\n")
            self._waiting.append(text)
            self._ready.notify()
        return len(text)

    def flush(self) -> None:
        """Nothing: the thread writes as fast as the target takes it."""

    def isatty(self) -> bool:
        return False

    def drain(self, within_s: float = _LAST_S) -> bool:
        """Wait until all was written, or for so many seconds; returns whether it was."""
        until = time.monotonic() + within_s
        while True:
            with self._lock:
                if not self._waiting and not self._writing:
                    return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.005)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._writing = False
                while not self._waiting:
                    self._ready.wait()
                text = "".join(self._waiting)
                n_lines = text.count("\n")
                self._waiting.clear()
                self._writing = True
                lost, self.lost = self.lost, 0
            if lost:
                text = f"log.lost lines={lost} because=the log target did not take them\n{text}"
            try:
                self._write(text.encode("utf-8", "backslashreplace"))
            except OSError:
                with self._lock:
                    self.lost += lost + n_lines
                time.sleep(_AGAIN_S)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


_spouts: dict[int, Spout] = {}


def _spout(stream: TextIO) -> Spout | TextIO:
    """The spout of a stream's descriptor; one for each, however often logging is set up anew. A stream without one
    lies in memory, for which nobody waits."""
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError):
        return stream
    if descriptor not in _spouts:
        _spouts[descriptor] = Spout(descriptor)
        atexit.register(_last_words, _spouts[descriptor])
    return _spouts[descriptor]


def _forked() -> None:
    for spout in _spouts.values():
        spout.begin()


os.register_at_fork(after_in_child=_forked)


def _last_words(spout: Spout) -> None:
    with contextlib.suppress(Exception):
        spout.drain()
