"""A file system that forgets, at a power cut, everything that was not synced; it is stricter than any real one.

Bytes are durable when their file was synced, names (new, renamed, removed) when their folder was. ext4 is kinder: it
writes names along with other things. LazyFS does not model names at all. This one runs in a process of its own
(FUSE, mfusepy), does one operation at a time, and cuts the power by itself: at the k-th sync or the k-th change it
kills whoever writes, and then writes down what a disk would hold. As it answers nobody in between, nothing that was
acknowledged can rest on a later sync.

``python -m tests.faults.powerloss MOUNT`` serves; its input takes orders: ``sync`` (all is durable now),
``arm sync|change K before|after PID...``, ``cut FOLDER``. `PowerlessDisk` is the other end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.peers import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]


class CannotMount(Exception):
    """No such file system can be mounted here; the text says why."""


class PowerlessDisk:
    """A mounted disk; a context manager, which raises `CannotMount`.

    Parameters
    ----------
    mount
        Folder to mount on; made if absent.
    after
        Folder into which the content is written that survives the cut.
    """

    def __init__(self, mount: Path, after: Path) -> None:
        self.mount, self.after = mount, after

    def __enter__(self) -> PowerlessDisk:
        self.mount.mkdir(exist_ok=True)
        if not Path("/dev/fuse").exists():
            raise CannotMount("there is no /dev/fuse")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.powerloss", str(self.mount), str(self.after)],
            cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_until(self._mounted, 60, "the disk is mounted", every_s=0.01)
        return self

    def _mounted(self) -> bool:
        if self._process.poll() is not None:
            assert self._process.stderr is not None
            told = self._process.stderr.read().strip().rpartition("\n")[2]
            raise CannotMount(f"a file system of our own cannot be mounted here: {told}")
        return os.path.ismount(self.mount)

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait(20)
        lazily = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
        subprocess.run([*lazily, str(self.mount)], check=False, capture_output=True)

    def _say(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def _hear(self, within_s: float) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], within_s)[0]:
            return ""
        return self._process.stdout.readline().strip()

    def sync(self) -> None:
        """All that is there is durable."""
        self._say("sync")
        assert self._hear(20) == "synced"

    def arm(self, what: str, k: int, when: str, pids: Sequence[int]) -> None:
        """Cut at the ``k``-th ``sync`` or ``change`` from now, ``before`` or ``after`` it is done."""
        self._say(f"arm {what} {k} {when} {' '.join(map(str, pids))}")
        assert self._hear(20) == "armed"

    def is_cut(self, within_s: float) -> bool:
        """Whether the power was cut, or is within so many seconds."""
        return self._hear(within_s) == "cut"

    def cut(self, pids: Sequence[int]) -> None:
        """Cut now."""
        self._say(f"cut {' '.join(map(str, pids))}")
        assert self._hear(60) == "cut"


# the other side -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A file or a folder: as it is, and as the platter has it."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, _Node] = field(default_factory=dict)
    durable_data: bytes = b""
    durable_names: dict[str, _Node] = field(default_factory=dict)
    at_ns: int = field(default_factory=time.time_ns)
    n_names: int = 1
    written: Path | None = None

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def sync(self) -> None:
        if self.is_folder:
            self.durable_names = dict(self.names)
        else:
            self.durable_data = bytes(self.data)

    def sync_all(self) -> None:
        self.sync()
        for one in self.names.values():
            one.sync_all()

    def write_down(self, path: Path) -> None:
        """Make what is durable into real files."""
        if not self.is_folder:
            if self.written is not None:
                path.hardlink_to(self.written)
                return
            path.write_bytes(self.durable_data)
            os.utime(path, ns=(self.at_ns, self.at_ns))
            self.written = path
            return
        path.mkdir(exist_ok=True)
        for name, one in self.durable_names.items():
            one.write_down(path / name)


class _Disk:
    """The operations that FUSE asks for."""

    use_ns = True

    def __init__(self, after: Path) -> None:
        self.after = after
        self.root = _Node(stat.S_IFDIR | 0o755)
        self.open_files: dict[int, _Node] = {}
        self.lock = threading.RLock()
        self.left = {"sync": 0, "change": 0}
        self.when, self.pids = "after", list[int]()
        self.is_cut = False

    # the cut ----------------------------------------------------------------------------------------
    def orders(self) -> None:
        for line in sys.stdin:
            verb, *rest = line.split()
            with self.lock:
                if verb == "sync":
                    self.root.sync_all()
                    self.say("synced")
                elif verb == "arm":
                    self.left[rest[0]], self.when, self.pids = (
                        int(rest[1]),
                        rest[2],
                        [int(p) for p in rest[3:]],
                    )
                    self.say("armed")
                elif verb == "cut" and not self.is_cut:
                    self.pids = [int(p) for p in rest]
                    self.cut()

    def say(self, what: str) -> None:
        sys.stdout.write(what + "\n")
        sys.stdout.flush()

    def cut(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.is_cut = True
        self.root.write_down(self.after)
        self.say("cut")

    def due(self, what: str, when: str) -> None:
        """Cut if this is the operation that it was armed for; after the cut nothing works any more."""
        if self.is_cut:
            raise OSError(errno.EIO, "no power")
        if when == "before":
            self.left[what] -= 1
        if self.left[what] == 0 and self.when == when:
            self.left = {"sync": 0, "change": 0}
            self.cut()
            raise OSError(errno.EIO, "no power")

    # names ------------------------------------------------------------------------------------------
    def find(self, path: str) -> _Node:
        node = self.root
        for name in path.strip("/").split("/"):
            if name:
                if name not in node.names:
                    raise OSError(errno.ENOENT, "absent")
                node = node.names[name]
        return node

    def parent(self, path: str) -> tuple[_Node, str]:
        folder, _, name = path.rpartition("/")
        return self.find(folder), name

    def handle(self, node: _Node) -> int:
        number = max(self.open_files, default=0) + 1
        self.open_files[number] = node
        return number

    def new(self, path: str, mode: int) -> _Node:
        folder, name = self.parent(path)
        folder.names[name] = _Node(mode)
        return folder.names[name]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return self.handle(self.new(path, stat.S_IFREG | mode & 0o7777))

    def mkdir(self, path: str, mode: int) -> int:
        self.new(path, stat.S_IFDIR | mode & 0o7777)
        return 0

    def unlink(self, path: str) -> int:
        folder, name = self.parent(path)
        folder.names.pop(name).n_names -= 1
        return 0

    def link(self, new: str, old: str) -> int:
        node, (folder, name) = self.find(old), self.parent(new)
        if name in folder.names:
            raise OSError(errno.EEXIST, "taken")
        folder.names[name] = node
        node.n_names += 1
        return 0

    def rmdir(self, path: str) -> int:
        if self.find(path).names:
            raise OSError(errno.ENOTEMPTY, "not empty")
        return self.unlink(path)

    def rename(self, old: str, new: str) -> int:
        (here, name), (there, other) = self.parent(old), self.parent(new)
        if (replaced := there.names.get(other)) is not None:
            replaced.n_names -= 1
        there.names[other] = here.names[name]
        if (here, name) != (there, other):
            del here.names[name]
        return 0

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self.find(path).names]

    # bytes ------------------------------------------------------------------------------------------
    def open(self, path: str, flags: int) -> int:
        node = self.find(path)
        if flags & os.O_TRUNC:
            del node.data[:]
        return self.handle(node)

    def opendir(self, path: str) -> int:
        return self.handle(self.find(path))

    def release(self, path: str, fh: int) -> int:
        self.open_files.pop(fh, None)
        return 0

    releasedir = release

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self.open_files[fh].data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        node = self.open_files[fh]
        if offset > len(node.data):
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        node.at_ns = time.time_ns()
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        node = self.open_files[fh] if fh else self.find(path)
        del node.data[length:]
        node.data.extend(bytes(length - len(node.data)))
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self.open_files[fh].sync()
        return 0

    fsyncdir = fsync

    # the rest ---------------------------------------------------------------------------------------
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        node = self.open_files[fh] if fh else self.find(path)
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), node.at_ns)
        owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
        return {"st_mode": node.mode, "st_nlink": node.n_names, "st_size": len(node.data), **times, **owner}

    def statfs(self, path: str) -> dict[str, int]:
        room = 1 << 24
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": room, "f_bfree": room, "f_bavail": room}

    def chmod(self, path: str, mode: int) -> int:
        node = self.find(path)
        node.mode = stat.S_IFMT(node.mode) | mode & 0o7777
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self.find(path).at_ns = times[1] if times else time.time_ns()
        return 0


_KINDS = {
    **dict.fromkeys(("fsync", "fsyncdir"), "sync"),
    **dict.fromkeys(("create", "mkdir", "unlink", "link", "rmdir", "rename", "write", "truncate"), "change"),
}
_OTHERS = (
    "getattr", "readdir", "open", "opendir", "release", "releasedir", "read", "statfs", "chmod", "chown", "utimens",
)  # fmt: skip


def _serve(mount: str, after: str) -> None:
    import mfusepy

    disk = _Disk(Path(after))

    def through(name: str) -> Any:
        kind = _KINDS.get(name)
        operation = getattr(disk, name)

        def call(_self: object, *arguments: Any, **more: Any) -> Any:
            with disk.lock:
                try:
                    if kind is not None:
                        disk.due(kind, "before")
                    result = operation(*arguments, **more)
                    if kind is not None:
                        disk.due(kind, "after")
                    return result
                except OSError as error:
                    raise mfusepy.FuseOSError(error.errno) from None

        return call

    offered = {name: through(name) for name in (*_KINDS, *_OTHERS)}
    operations = type("Operations", (mfusepy.Operations,), {"use_ns": True, **offered})()
    threading.Thread(target=disk.orders, daemon=True).start()
    mfusepy.FUSE(operations, mount, foreground=True, nothreads=True, default_permissions=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
