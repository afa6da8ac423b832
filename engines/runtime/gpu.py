"""Which GPUs this process may use, as CUDA counts them; nothing is imported before it is asked."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any


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
    """
    try:
        cuda = importlib.import_module("cuda.bindings.driver")
        # cuda-python raises, instead of returning a code, where there is no driver at all.
        failed = int(cuda.cuInit(0)[0])
    except (ImportError, RuntimeError, OSError):
        return ()
    if failed:
        return ()
    return tuple(_gpu(cuda, i) for i in range(_ask(cuda.cuDeviceGetCount)))


def _gpu(cuda: Any, index: int) -> Gpu:
    device = _ask(cuda.cuDeviceGet, index)
    kind = cuda.CUdevice_attribute
    major, minor = (
        int(_ask(cuda.cuDeviceGetAttribute, wanted, device))
        for wanted in (
            kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    name = bytes(_ask(cuda.cuDeviceGetName, 256, device)).split(b"\0")[0].decode("utf-8", "replace")
    return Gpu(name=name.strip(), compute_capability=f"{major}{minor}", driver=_driver(cuda), index=index)


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
        return f"cuda-{int(_ask(cuda.cuDriverGetVersion))}"


def _ask(call: Any, *arguments: Any) -> Any:
    """Call the driver; its answer is a code and a value."""
    failed, value = call(*arguments)
    if int(failed):
        raise RuntimeError(f"the CUDA driver refused {call.__name__}: code {int(failed)}")
    return value
