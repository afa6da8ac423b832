"""Files that are code: plans and kernels, kept so that only what this host wrote is ever loaded.

A compiled plan is executed by whoever loads it, so a file is one record, checked before any library sees it::

    magic | length of the label, 4 bytes | label, JSON | HMAC-SHA256 of all before it | content

The label holds the content's length and SHA-256. The key of the HMAC is made at first use, lies in the same
folder and is for its owner only: a plan of another host, or one that somebody put there, has another seal. Who
can read the key can forge a seal; that is the owner, who may do anything here in any case.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.errors import PlanMismatch, RuntimeUnavailable

MAGIC = b"luminode sealed file 1\n"
KEY_FILE = "host.key"
KEY_BYTES = 32
MOST_LABEL = 64 * 1024
MOST_CONTENT = 4 << 30
LEFT_BEHIND_S = 3600.0
"""A partial file that is older than this belongs to a process that died."""

_SEAL = hashlib.sha256().digest_size
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Vault:
    """Sealed files in a folder.

    Parameters
    ----------
    folder
        Made at the first write, for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, content: bytes, label: Mapping[str, Any]) -> None:
        """Seal a file and put it there, whole or not at all, and durably.

        Raises
        ------
        PlanMismatch
            The folder or its key is not for its owner only.
        RuntimeUnavailable
            The disk refused; what was there before still is.
        """
        told = {**label, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        text = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
        head = MAGIC + len(text).to_bytes(4, "big") + text
        try:
            with self._opened(make=True) as folder:
                key = self._key(folder) or self._new_key(folder)
                self._sweep(folder)
                _write(folder, name, head + hmac.digest(key, head, "sha256"), content)
        except OSError as e:
            raise RuntimeUnavailable(
                f"{self.folder} cannot keep {name}: {e.strerror}", hint="it needs space and write permission"
            ) from e

    def get(self, name: str) -> tuple[Mapping[str, Any], bytes] | None:
        """The label and content of a file, verified; None if there is no such file.

        Raises
        ------
        PlanMismatch
            It is not what this host wrote; the message says how, the hint what to do.
        """
        with self._file(name) as file:
            if file is None:
                return None
            label = self._label(name, *file)
            with os.fdopen(os.dup(file[1]), "rb") as stream:
                content = stream.read(int(label["size"]) + 1)
        if len(content) != label["size"]:
            raise _refused(name, "it is cut off or has grown")
        if not hmac.compare_digest(hashlib.sha256(content).hexdigest(), str(label["sha256"])):
            raise _refused(name, "its content has been changed or damaged")
        return label, content

    def label(self, name: str) -> Mapping[str, Any] | None:
        """The label of a file, verified, its content only by length; None if there is no such file.

        Raises
        ------
        PlanMismatch
        """
        with self._file(name) as file:
            if file is None:
                return None
            label = self._label(name, *file)
            left = os.fstat(file[1]).st_size - os.lseek(file[1], 0, os.SEEK_CUR)
        if left != label["size"]:
            raise _refused(name, "it is cut off or has grown")
        return label

    def names(self) -> tuple[str, ...]:
        """What is there but the key, partial files and locks; nothing if there is no folder.

        Raises
        ------
        PlanMismatch
        """
        try:
            with self._opened() as folder:
                found = _names(folder)
        except FileNotFoundError:
            return ()
        except OSError as e:
            raise PlanMismatch(
                f"{self.folder} cannot be read: {e.strerror}", hint="run as the user that owns it"
            ) from e
        return tuple(sorted(n for n in found if not n.startswith(".") and n != KEY_FILE))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there and may be."""
        with contextlib.suppress(OSError), self._opened() as folder:
            os.unlink(name, dir_fd=folder)

    @contextlib.contextmanager
    def lock(self, name: str, wait_s: float = 900.0) -> Iterator[None]:
        """Hold a name among all processes of this host; a process that dies lets go.

        Raises
        ------
        RuntimeUnavailable
            Another held it all the time.
        """
        file = f".{name}.lock"
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(self._opened(make=True))
                held = _locked(folder, file, time.monotonic() + wait_s)
            except OSError as e:
                raise RuntimeUnavailable(
                    f"{self.folder} cannot be used: {e.strerror}", hint="it needs space and write permission"
                ) from e
            if held is None:
                raise RuntimeUnavailable(
                    f"another process has held {name} for {wait_s:g} s",
                    hint="see what it is doing; then retry",
                )
            stack.callback(os.close, held)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(file, dir_fd=folder)

    @contextlib.contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[int]:
        """The folder, checked once open: no name can be exchanged under its users."""
        if make:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _owned(os.fstat(folder), str(self.folder), loose=0o022, hint=f"chmod 700 {self.folder}")
            yield folder
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[tuple[int, int] | None]:
        """(folder, file), or None if there is no such file."""
        try:
            with self._opened() as folder:
                file = _open(folder, name)
                if file is None:
                    yield None
                    return
                try:
                    yield folder, file
                finally:
                    os.close(file)
        except FileNotFoundError:
            yield None
        except OSError as e:
            raise _refused(name, f"it cannot be read: {e.strerror}") from e

    def _label(self, name: str, folder: int, file: int) -> dict[str, Any]:
        key = self._key(folder)
        if key is None:
            raise _refused(name, "this host has no key yet, so another one wrote it")
        head = _read(file, len(MAGIC) + 4)
        length = int.from_bytes(head[len(MAGIC) :], "big")
        if head[: len(MAGIC)] != MAGIC or len(head) < len(MAGIC) + 4 or length > MOST_LABEL:
            raise _refused(name, "it is no sealed file")
        text, seal = _read(file, length), _read(file, _SEAL)
        if not hmac.compare_digest(hmac.digest(key, head + text, "sha256"), seal):
            raise _refused(name, "its seal is not of this host's key")
        label: dict[str, Any] = json.loads(text)
        if not 0 <= int(label["size"]) <= MOST_CONTENT:
            raise _refused(name, "it is larger than 4 GiB")
        return label

    def _key(self, folder: int) -> bytes | None:
        """The host's key; None if there is none, or only half of one."""
        file = _open(folder, KEY_FILE, loose=0o077)
        if file is None:
            return None
        try:
            key = _read(file, KEY_BYTES + 1)
        finally:
            os.close(file)
        return key if len(key) == KEY_BYTES else None

    def _new_key(self, folder: int) -> bytes:
        """Make a key; of two processes that do, one wins and both have its key."""
        with contextlib.closing(_Lock(folder, f".{KEY_FILE}.lock")):
            key = self._key(folder)
            if key is None:
                key = secrets.token_bytes(KEY_BYTES)
                _write(folder, KEY_FILE, key, b"")
        return key

    @staticmethod
    def _sweep(folder: int) -> None:
        """Remove partial files of processes that died."""
        for name in _names(folder):
            if name.startswith(".") and name.endswith(".new"):
                with contextlib.suppress(OSError):
                    if (
                        time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
                        > LEFT_BEHIND_S
                    ):
                        os.unlink(name, dir_fd=folder)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as found:
        return [one.name for one in found]


class _Lock:
    """A lock that waits as long as it takes."""

    def __init__(self, folder: int, name: str) -> None:
        self._held = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
        )
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def close(self) -> None:
        os.close(self._held)


def _locked(folder: int, name: str, until: float) -> int | None:
    """A lock that is held, or None if another held it until ``until`` of the monotonic clock."""
    while True:
        held = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it before may have removed this very file: then it locks nobody out.
            if os.fstat(held).st_ino == os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino:
                return held
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(held)
        if time.monotonic() >= until:
            return None
        time.sleep(0.05)


def _open(folder: int, name: str, *, loose: int = 0o022) -> int | None:
    """Open a file of ours, or None if there is none; a link, a pipe or another's file is refused."""
    if name in ("", ".", "..") or "/" in name:
        raise _refused(name, "it is no name of a file")
    try:
        file = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise _refused(name, f"it cannot be opened, or is a link: {e.strerror}") from e
    try:
        seen = os.fstat(file)
        if not stat.S_ISREG(seen.st_mode):
            raise _refused(name, "it is not a plain file")
        _owned(seen, name, loose=loose, hint=f"remove {name} and build again")
    except PlanMismatch:
        os.close(file)
        raise
    return file


def _owned(seen: os.stat_result, name: str, *, loose: int, hint: str) -> None:
    if seen.st_uid not in (os.geteuid(), 0):
        raise PlanMismatch(
            f"{name} belongs to user {seen.st_uid}, not to {os.geteuid()}",
            hint="run as the user that owns it, or remove it and build again",
        )
    if stat.S_IMODE(seen.st_mode) & loose:
        may = "write" if stat.S_IMODE(seen.st_mode) & 0o022 else "read"
        raise PlanMismatch(f"{name} is not to be trusted: others may {may} it", hint=hint)


def _read(file: int, length: int) -> bytes:
    parts = []
    while length > 0 and (part := os.read(file, length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _write(folder: int, name: str, *parts: bytes) -> None:
    partial = f".{name}.{secrets.token_hex(8)}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(partial, flags, 0o600, dir_fd=folder), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise


def _refused(name: str, why: str) -> PlanMismatch:
    return PlanMismatch(f"{name} is refused: {why}", hint="build again: python -m engines build")
