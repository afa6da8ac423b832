"""How a process of the node lives and dies: signals, and its tie to its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

_PR_SET_PDEATHSIG = 1

CUDA_VISIBLE = "CUDA_VISIBLE_DEVICES"


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, however it dies (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


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


def stop_on_signals(stop: threading.Event, reload: Callable[[], None] | None = None) -> None:
    """SIGTERM and SIGINT set ``stop``; SIGHUP calls ``reload``."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    def again(_number: int, _frame: FrameType | None) -> None:
        if reload is not None:
            reload()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGHUP, again)


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
