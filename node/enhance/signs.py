"""Signs of a broken GPU that the driver gives: read in a thread of their own, for a driver that hangs may not answer.

NVML (package ``nvidia-ml-py``, if it is installed) tells of Xid events, of uncorrected memory errors and of a GPU
that is lost; the kernel's log tells of Xid events to whoever may read it. Most Xid numbers are a program's own fault
or pass by themselves; those below mean that the GPU has to be reset or its host started again (NVIDIA, Xid catalogue:
RESET_GPU, RESTART_BM). Doing that is a person's work.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from node.log import get_logger

log = get_logger()

FATAL: Mapping[int, str] = {
    46: "the GPU stopped processing",
    48: "a double bit memory error",
    62: "its microcontroller halted",
    64: "a memory row could not be remapped",
    79: "the GPU has fallen off the bus",
    95: "an uncontained memory error",
    109: "a context switch timed out",
    119: "its system processor does not answer",
    120: "its system processor reports an error",
    140: "an unrecovered memory error",
}
"""Xid -> what it means, in the driver's words made short."""

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)[^)]*\): (\d+)")
_LOST = re.compile(r"NVRM: .*(GPU is lost|has fallen off the bus)")

KERNEL_LOG = Path("/dev/kmsg")
DRIVER = Path("/proc/driver/nvidia/version")


_ADDRESS = re.compile(r"\b([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\b")

Address = tuple[int, int, int]
"""Domain, bus and device on PCI."""


def addresses(text: str) -> set[Address]:
    """The PCI addresses in a text."""
    return {(int(a, 16), int(b, 16), int(c, 16)) for a, b, c in _ADDRESS.findall(text)}


def told(line: str, of: Address | None = None) -> str:
    """What a line of the kernel's log says of a GPU, or of the one at an address, if it is fatal; else ""."""
    if of is not None and addresses(line) - {of}:
        return ""
    found = _XID.search(line)
    if found:
        number = int(found[2])
        return f"Xid {number} at {found[1]}: {FATAL[number]}" if number in FATAL else ""
    return "the driver lost the GPU" if _LOST.search(line) else ""


class Source(Protocol):
    """Where signs come from."""

    def read(self) -> Sequence[str]:
        """The signs since the last call; may take as long as the driver does."""
        ...


class KernelLog:
    """New lines of the kernel's log; only its end: what was there before is the mark's business."""

    def __init__(self, path: Path = KERNEL_LOG, of: Address | None = None) -> None:
        self._of = of
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def read(self) -> Sequence[str]:
        """Fatal lines; one record of /dev/kmsg a read, many of a file."""
        found = []
        for _ in range(10_000):
            try:
                data = os.read(self._fd, 8192)
            except BrokenPipeError:  # records were overwritten before they were read (kernel: EPIPE)
                continue
            except OSError:
                break
            if not data:
                break
            found += [
                t for line in data.decode("utf-8", "replace").splitlines() if (t := told(line, self._of))
            ]
        return found


class Nvml:
    """What NVML tells of every GPU of the host, or of the one that a worker is shown."""

    def __init__(self, nvml: Any, shown: str | None = None) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._n = int(nvml.nvmlDeviceGetCount())
        self._gpus = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self._n)]
        self.of: Address | None = None
        if shown:
            self._narrow(shown)
        self._broken_bits = [self._uncorrected(gpu) for gpu in self._gpus]
        self._events = nvml.nvmlEventSetCreate()
        for gpu in self._gpus:
            with contextlib.suppress(nvml.NVMLError):  # not on every model
                nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlEventTypeXidCriticalError, self._events)

    def _narrow(self, shown: str) -> None:
        """Look at one GPU alone. NVML counts as ``nvidia-smi`` does; a MIG slice has the signs of its GPU."""
        nvml = self._nvml
        try:
            if shown.isdigit():
                gpu = self._gpus[int(shown)]
            else:
                gpu = nvml.nvmlDeviceGetHandleByUUID(shown)
                if shown.startswith("MIG-"):
                    gpu = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(gpu)
            bus = nvml.nvmlDeviceGetPciInfo(gpu).busId
        except (nvml.NVMLError, IndexError):  # better the signs of all than those of none
            return
        self._gpus = [gpu]
        self.of = next(iter(addresses(bus.decode() if isinstance(bus, bytes) else str(bus))), None)

    @classmethod
    def there(cls, shown: str | None = None) -> Nvml | None:
        """NVML with at least one GPU; None where the package, the driver or the GPU is not there."""
        try:
            found = cls(importlib.import_module("pynvml"), shown)
        except Exception as e:  # its root class is in the module that may not be there
            log.debug("nvml.absent", because=type(e).__name__)
            return None
        return found if found._n else None

    def read(self) -> Sequence[str]:
        """Xid events, lost GPUs, new uncorrected memory errors."""
        nvml, signs = self._nvml, []
        for i, gpu in enumerate(self._gpus):
            try:
                nvml.nvmlDeviceGetMemoryInfo(gpu)
            except nvml.NVMLError as e:
                if e.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                    signs.append(f"GPU {i}: {e}")
            n = self._uncorrected(gpu)
            if n > self._broken_bits[i]:
                signs.append(f"GPU {i}: {n - self._broken_bits[i]} uncorrected memory errors")
            self._broken_bits[i] = n
        while True:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:  # a time-out: no more of them
                return signs
            number = int(event.eventData)
            if number in FATAL:
                signs.append(f"Xid {number}: {FATAL[number]}")

    def _uncorrected(self, gpu: Any) -> int:
        nvml = self._nvml
        try:
            return int(
                nvml.nvmlDeviceGetTotalEccErrors(
                    gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                )
            )
        except nvml.NVMLError:  # no ECC on this model
            return 0


def sources(shown: str | None = None) -> list[Source]:
    """What can be read on this host, of one GPU or of all; nothing where there is no NVIDIA driver."""
    found: list[Source] = []
    if not DRIVER.exists():
        return found
    nvml = Nvml.there(shown)
    if nvml is not None:
        found.append(nvml)
    with contextlib.suppress(OSError):  # privileges are needed, and not in a container
        found.append(KernelLog(of=nvml.of if nvml is not None else None))
    return found


class Watch:
    """Reads signs in a thread of its own.

    Parameters
    ----------
    find
        Opens the sources, in that thread.
    every_s
        Pause between two looks.
    answer_s
        A driver that does not answer for so long is a sign as well.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[Source]] = sources,
        *,
        every_s: float = 5.0,
        answer_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._every_s = every_s
        self._answer_s = answer_s
        self._clock = clock
        self._seen: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._asked_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="gpu-signs", daemon=True)
        self._thread.start()

    def signs(self) -> list[str]:
        """What was seen since the last call; never waits."""
        found = []
        while not self._seen.empty():
            found.append(self._seen.get())
        asked_at = self._asked_at
        if asked_at is not None and self._clock() - asked_at > self._answer_s:
            self._asked_at = None  # told once
            found.append(f"the driver did not answer for {self._answer_s:.0f} s")
        return found

    def _run(self) -> None:
        self._asked_at = self._clock()
        sources = list(self._find())
        self._asked_at = None
        while sources:
            self._asked_at = self._clock()
            for source in list(sources):
                try:
                    for sign in source.read():
                        self._seen.put(sign)
                except Exception as e:  # others' code in a thread that nobody looks after
                    log.warning(
                        "gpu.signs_unreadable", source=type(source).__name__, because=type(e).__name__
                    )
                    sources.remove(source)
            self._asked_at = None
            time.sleep(self._every_s)
