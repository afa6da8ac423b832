"""The configuration in force, and the watch over its file.

An edit takes effect when it has stood still for one poll and validates as a whole. A bad one is refused
once, loudly, and the last good configuration stays. The content is compared, not the time stamp alone:
editors that keep it, clocks that jump and edits within one tick of it are all noticed.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.config.load import LoadedConfig, parse, read_text
from node.config.walk import walk
from node.errors import ConfigError, ConfigFault

INTERVAL_S = 1.0


def diff(old: LoadedConfig | None, new: LoadedConfig) -> str:
    """Unified diff of two configurations' texts, passwords masked; all of ``new`` if there is no old one."""
    return text_diff(old.text if old is not None else "", new.text)


def text_diff(before: str, after: str) -> str:
    """Unified diff of two texts, as :func:`diff` makes it."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=2)
    return "\n".join(lines)


def restart_needed(old: LoadedConfig, new: LoadedConfig) -> tuple[str, ...]:
    """Keys that differ and take effect only when the node starts again."""

    def value(loaded: LoadedConfig, path: str) -> Any:
        here: Any = loaded.config
        for name in path.split("."):
            here = getattr(here, name)
        return here

    marked = (key.path for key in walk() if isinstance(key.field.json_schema_extra, dict))
    return tuple(path for path in marked if value(old, path) != value(new, path))


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a look at the file found: its identity and content, or why it cannot be read."""

    mtime_ns: int
    inode: int
    sha256: str
    text: str
    error: ConfigError | None = field(default=None, compare=False)


class LiveConfig:
    """The configuration in force.

    Attributes
    ----------
    refusal
        What was wrong with the file at the start, if a fallback took its place; else None.

    Parameters
    ----------
    path
        The file. It is read at once.
    env
        What ``${NAME}`` may name.
    on_applied
        Called with the new configuration and its diff before it is in force. If it raises, the old one
        stays, and the next poll tries again.
    on_refused
        Called once for each bad version of the file; if it raises, again.
    catalogue
        Names of the installed engines; see :func:`node.config.load.load`.
    fallback
        Text of the configuration that the other processes of this node run on. This one begins with it if
        the file is bad, or differs in what waits for the node to start again: no process may move to
        another database alone. The file is watched all the same.

    Raises
    ------
    ConfigError
        If the file is bad at the start, and there is no fallback or that is bad as well.
    """

    def __init__(
        self,
        path: Path,
        env: Mapping[str, str],
        *,
        on_applied: Callable[[LoadedConfig, str], None],
        on_refused: Callable[[ConfigError], None],
        catalogue: Collection[str] | None = None,
        fallback: str | None = None,
    ) -> None:
        self.path = path
        self._env = env
        self._catalogue = catalogue
        self._on_applied = on_applied
        self._on_refused = on_refused
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._refused = ""
        self._told = ""
        self._pending: _Seen | None = None
        self._faults: tuple[ConfigFault, ...] = ()
        self.refusal: ConfigError | None = None
        seen, last = self._look(), self._last_good(fallback)
        try:
            self._current, self._in_force = self._good(seen), seen.sha256
        except ConfigError as error:
            if last is None:
                raise
            self.refusal, self._refused, self._told = error, seen.sha256, seen.sha256
            self._faults = error.faults
            self._current, self._in_force = last, _sha256(last.raw)
        else:
            if last is not None and restart_needed(last, self._current):
                self._current, self._in_force = last, _sha256(last.raw)

    @property
    def refused(self) -> tuple[ConfigFault, ...]:
        """What is wrong with the file as it is now; empty where it is in force or was not judged yet."""
        return self._faults if self._refused else ()

    @property
    def current(self) -> LoadedConfig:
        """The configuration in force."""
        return self._current

    def poll(self) -> bool:
        """Look at the file; True if a new configuration came into force.

        A changed file is read again at the next poll and judged only if nothing has moved in between, so
        that a file in the middle of being written is left alone.
        """
        with self._lock:
            seen = self._look()
            if seen.sha256 == self._in_force:
                self._refused = self._told = ""
            if seen.sha256 in (self._in_force, self._refused):
                self._pending = None
                return False
            if seen != self._pending:
                self._pending = seen
                return False
            return self._judge(seen)

    def reload(self) -> bool:
        """Read the file now, as for SIGHUP; True if a new configuration came into force.

        A version that was refused before is judged again: what it names may exist by now.
        """
        with self._lock:
            seen = self._look()
            if seen.sha256 == self._in_force:
                return False
            self._told = ""
            return self._judge(seen)

    def start(self, interval_s: float = INTERVAL_S) -> None:
        """Poll in a thread of its own until :meth:`stop`."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(
                target=self._run, args=(interval_s,), name="config-watch", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the watch; what is in force stays so."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, interval_s: float) -> None:
        while not self._stopping.wait(interval_s):
            with contextlib.suppress(Exception):  # on_refused failed: the next polls tell it again
                self.poll()

    def _parse(self, text: str) -> LoadedConfig:
        return parse(text, str(self.path), self._env, catalogue=self._catalogue, files=True, path=self.path)

    def _good(self, seen: _Seen) -> LoadedConfig:
        if seen.error is not None:
            raise seen.error
        return self._parse(seen.text)

    def _last_good(self, text: str | None) -> LoadedConfig | None:
        """What a fallback says; None if there is none, or if what it names is no longer there."""
        if text is None:
            return None
        try:
            return self._parse(text)
        except ConfigError:
            return None

    def _look(self) -> _Seen:
        try:
            text = read_text(self.path)
            status = self.path.stat()
        except ConfigError as error:
            return _Seen(0, 0, f"unreadable: {error.message}", "", error)
        except OSError as error:
            return _Seen(0, 0, f"unreadable: {error.errno}", "", self._fault("the file went away"))
        return _Seen(status.st_mtime_ns, status.st_ino, _sha256(text), text)

    def _judge(self, seen: _Seen) -> bool:
        self._pending = None
        try:
            new = self._good(seen)
        except ConfigError as error:
            self._tell(seen, error)
            self._refused, self._faults = seen.sha256, error.faults
            return False
        try:
            self._on_applied(new, diff(self._current, new))
        except Exception as error:  # whoever puts it in force failed (the database is away): try again
            self._tell(
                seen, self._fault(f"it is good, but could not be put in force: {type(error).__name__}")
            )
            return False
        self._current, self._in_force = new, seen.sha256
        self._refused = self._told = ""
        return True

    def _tell(self, seen: _Seen, error: ConfigError) -> None:
        if self._told != seen.sha256:
            self._on_refused(error)
            self._told = seen.sha256

    def _fault(self, message: str) -> ConfigError:
        hint = "the last good configuration stays in force"
        fault = ConfigFault(file=str(self.path), line=0, column=0, path="", message=message, hint=hint)
        return ConfigError((fault,))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
