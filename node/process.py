"""How a process of the node lives and dies: signals, and its tie to its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1

_ARG_START = 45
"""Of the fields of /proc/self/stat after the name: the 48th of all, and ``arg_end`` comes after it."""

CUDA_VISIBLE = "CUDA_VISIBLE_DEVICES"

POST = "LUMINODE_RECEIVER"
"""Environment of one of several receivers: its number, how many there are, and two descriptors (node/app/doors.py)."""


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux for SIGTERM when the parent dies, however it dies (prctl(2), PR_SET_PDEATHSIG).

    Parameters
    ----------
    parent
        Its process id, where that is known for sure; else it is who is the parent now.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def name_process(command: Sequence[str]) -> None:
    """Show ``command`` in lists of processes for this one, as far as the room of its own command goes.

    The kernel shows what lies in the process's memory where its arguments were put at its start (proc(5),
    ``arg_start`` and ``arg_end``). Where it does not tell, nothing is changed.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_START + 1])
    except (OSError, ValueError, IndexError):
        return
    room = end - start - 1  # the last byte stays 0: otherwise the environment would be shown as well
    if start <= 0 or room <= 0:
        return
    shown = b"".join(os.fsencode(word) + b"\0" for word in command)[:room]
    ctypes.memset(start, 0, room)
    ctypes.memmove(start, shown, len(shown))


def tell_systemd(state: str) -> bool:
    """Tell systemd (sd_notify(3)), if it started this process; returns whether it was told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
        try:
            one.sendto(state.encode(), address.replace("@", "\0", 1))
        except OSError:
            return False
    return True


_kept: list[socket.socket] = []
"""The end of a pipe that the interpreter writes signals into: it lives as long as the process."""


def stop_on_signals(stop: threading.Event, reload: Callable[[], None] | None = None) -> None:
    """SIGTERM and SIGINT set ``stop``; SIGHUP calls ``reload``. To be called by the main thread.

    A handler runs in the middle of whatever the main thread does, and where that is about to wait for ``stop``, it
    holds the very lock that setting it takes: it would wait for itself for ever. So the handlers do nothing, and a
    thread acts on the numbers that the interpreter writes down as signals come.
    """

    def nothing(_number: int, _frame: FrameType | None) -> None:
        return

    def listen() -> None:
        while numbers := heard.recv(64):
            for number in numbers:
                if number in (signal.SIGTERM, signal.SIGINT):
                    stop.set()
                elif number == signal.SIGHUP and reload is not None:
                    reload()

    heard, told = socket.socketpair()
    told.setblocking(False)
    _kept[:] = [told]
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, nothing)
    threading.Thread(target=listen, name="signals", daemon=True).start()


def show_gpu(device: str | None) -> None:
    """Let this process, and those that it starts, see one GPU alone; before anything of CUDA is loaded.

    Parameters
    ----------
    device
        A number, which is then ``nvidia-smi``'s (CUDA's own order is by speed), or a UUID, of a MIG slice too. Empty
        shows none, None leaves things as they are.
    """
    if device is not None:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ[CUDA_VISIBLE] = device
