"""Which GPUs this process may use, as CUDA counts them; nothing is imported before it is asked."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.errors import DeviceLost, GpuUnusable, OutOfMemory, RuntimeUnavailable

LOST = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "CONTAINED", "ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION",
        "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "ASSERT", "HARDWARE_STACK_ERROR",
        "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "TENSOR_MEMORY_LEAK", "EXTERNAL_DEVICE", "CONTEXT_IS_DESTROYED", "UNKNOWN",
    )
)  # fmt: skip
"""Codes after which every later call of the process fails too (CUDA driver API, CUresult), whatever call tells them:
often one that has nothing to do with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG slice of one.

    Attributes
    ----------
    name
        As the driver tells it: a MIG slice has a name of its own, so that a plan tuned for a whole GPU is
        not taken for a seventh of it.
    compute_capability
        Major and minor in one: ``"86"`` is 8.6, ``"120"`` is 12.0.
    driver
        Version of the driver.
    index
        Its ordinal among the GPUs that CUDA shows to this process.
    """

    name: str
    compute_capability: str
    driver: str
    index: int = field(default=0, compare=False)


def dotted(capability: str) -> str:
    """A compute capability for people: ``"120"`` is 12.0."""
    return f"{capability[:-1]}.{capability[-1]}"


def local() -> tuple[Gpu, ...]:
    """The GPUs of this process, by ordinal; none without cuda-python or a driver.

    Initialises CUDA: a process that has asked must not fork workers that use the GPU.

    Raises
    ------
    GpuUnusable
        There is a driver that does not start: after an update of it, for example, and before the next boot.
    RuntimeUnavailable, OutOfMemory, DeviceLost
        There is a GPU that tells nothing of itself.
    """
    try:
        cuda = importlib.import_module("cuda.bindings.driver")
        # cuda-python raises, instead of returning a code, where there is no driver at all.
        started = cuda.cuInit(0)[0]
    except (ImportError, RuntimeError, OSError):
        return ()
    if name_of(started) in ("CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_STUB_LIBRARY"):
        return ()
    if int(started):
        raise GpuUnusable(
            f"the driver does not start: {short(started)}", hint="look at nvidia-smi; start again"
        )
    return tuple(_gpu(cuda, i) for i in range(opened(cuda, cuda.cuDeviceGetCount())))


def name_of(code: Any) -> str:
    """The name of a code, such as CUDA_ERROR_ILLEGAL_ADDRESS."""
    return str(getattr(code, "name", int(code)))


def short(code: Any) -> str:
    """The name of a code in a refusal. The whole name is kept for what is lost: whoever reads it ends the process."""
    return name_of(code).removeprefix("CUDA_ERROR_")


def opened(driver: Any, answer: Sequence[Any]) -> Any:
    """A value from a call made before anything of ours ran: a plain refusal leaves room for another runtime.

    Raises
    ------
    RuntimeUnavailable, OutOfMemory, DeviceLost
    """
    code, *values = answer
    if code == driver.CUresult.CUDA_SUCCESS:
        return values[0] if len(values) == 1 else values
    if code == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise OutOfMemory("the GPU has no memory left", hint="end what else uses it")
    if name_of(code) in LOST:
        raise DeviceLost(
            f"the GPU failed: {name_of(code)}",
            hint="look for Xid messages in the kernel log; see nvidia-smi -q -d ECC",
        )
    raise RuntimeUnavailable(f"the GPU cannot be used: {short(code)}", hint="look at nvidia-smi")


def _gpu(cuda: Any, index: int) -> Gpu:
    device = opened(cuda, cuda.cuDeviceGet(index))
    kind = cuda.CUdevice_attribute
    major, minor = (
        int(opened(cuda, cuda.cuDeviceGetAttribute(wanted, device)))
        for wanted in (
            kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    told = bytes(opened(cuda, cuda.cuDeviceGetName(256, device)))
    name = told.split(b"\0")[0].decode("utf-8", "replace").strip()
    return Gpu(name=name, compute_capability=f"{major}{minor}", driver=_driver(cuda), index=index)


def _driver(cuda: Any) -> str:
    """The driver's release; without NVML, the CUDA version that it brings."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        try:
            return str(nvml.nvmlSystemGetDriverVersion())
        finally:
            nvml.nvmlShutdown()
    except Exception:  # NVML may be missing, or refuse inside of a container: the plan still has a name then.
        return f"cuda-{int(opened(cuda, cuda.cuDriverGetVersion()))}"
