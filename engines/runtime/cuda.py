"""A GPU through CUDA's driver interface: the real :class:`engines.runtime.device.Device`.

``cuda.bindings`` is imported when a device is opened. Every return code is looked at: no memory is OutOfMemory, a
capture that failed is CaptureFailed, and everything else is DeviceLost, because after most of CUDA's errors every
later call of the process fails too, and a process that goes on computes nobody knows what.

The device is one of those that CUDA shows to this process, by ordinal or by UUID. The ordinal is no number of a
slot: CUDA_VISIBLE_DEVICES, the order of CUDA and MIG change it. The context is the device's primary one, which is
what TensorRT uses on the same thread.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import DeviceLost, OutOfMemory, RuntimeUnavailable
from engines.runtime import kernels
from engines.runtime.device import Argument, CaptureFailed, Extent, Memory, Pinned
from engines.runtime.gpu import name_of, opened, short

INSTALL = "pip install 'luminode[tensorrt]'"


def bindings() -> Any:
    """CUDA's driver interface.

    Raises
    ------
    RuntimeUnavailable
        It is not installed, or there is no driver.
    """
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        # Raises, instead of returning a code, where there is no driver at all.
        failed = driver.cuInit(0)[0]
    except ImportError as e:
        raise RuntimeUnavailable("cuda-python is not installed", hint=INSTALL) from e
    except (RuntimeError, OSError) as e:
        raise RuntimeUnavailable(
            "there is no NVIDIA driver", hint="install it, and look at nvidia-smi"
        ) from e
    if int(failed):
        raise RuntimeUnavailable(f"CUDA does not start: {short(failed)}", hint="look at nvidia-smi")
    return driver


def find(driver: Any, which: int | str) -> Any:
    """The device of an ordinal or a UUID (with or without ``GPU-`` or ``MIG-``) among those that are shown.

    Raises
    ------
    RuntimeUnavailable
    """
    n_devices = opened(driver, driver.cuDeviceGetCount())
    if isinstance(which, int):
        if not 0 <= which < n_devices:
            raise RuntimeUnavailable(
                f"there is no GPU {which}", hint=f"CUDA shows {n_devices} here; see CUDA_VISIBLE_DEVICES"
            )
        return opened(driver, driver.cuDeviceGet(which))
    wanted = which.removeprefix("GPU-").removeprefix("MIG-").replace("-", "").lower()
    for i in range(n_devices):
        device = opened(driver, driver.cuDeviceGet(i))
        if bytes(opened(driver, driver.cuDeviceGetUuid(device)).bytes).hex() == wanted:
            return device
    raise RuntimeUnavailable(f"there is no GPU {which}", hint="see nvidia-smi -L, and CUDA_VISIBLE_DEVICES")


@functools.cache
def compiled(capability: str) -> bytes:
    """The kernels as machine code for a compute capability, such as ``"86"``; needs no GPU.

    Raises
    ------
    RuntimeUnavailable
        NVRTC is not installed, or is older than the GPU.
    """
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        code, *version = nvrtc.nvrtcVersion()
    except ImportError as e:
        raise RuntimeUnavailable("cuda-python is not installed", hint=INSTALL) from e
    except (RuntimeError, OSError) as e:
        raise RuntimeUnavailable("NVRTC is not installed", hint="pip install nvidia-cuda-nvrtc") from e
    number = ".".join(map(str, version))

    def ask(answer: Sequence[Any]) -> Any:
        code, *values = answer
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeUnavailable(f"NVRTC {number} does not compile the kernels: {name_of(code)}")
        return values[0] if values else None

    ask((code,))
    if int(capability) not in ask(nvrtc.nvrtcGetSupportedArchs()):
        raise RuntimeUnavailable(
            f"NVRTC {number} does not know compute capability {capability}", hint="a newer nvidia-cuda-nvrtc"
        )
    program = ask(nvrtc.nvrtcCreateProgram(kernels.SOURCE.encode(), b"kernels.cu", 0, None, None))
    try:
        flags = kernels.options(capability)
        ask(nvrtc.nvrtcCompileProgram(program, len(flags), flags))
        made = bytes(ask(nvrtc.nvrtcGetCUBINSize(program)))
        ask(nvrtc.nvrtcGetCUBIN(program, made))
        return made
    finally:
        nvrtc.nvrtcDestroyProgram(program)


class PinnedMemory:
    """Page-locked memory of the host: meets :class:`engines.runtime.device.Pinned`."""

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    @property
    def size(self) -> int:
        return int(self._bytes.size)

    def write(self, at: int, values: npt.NDArray[Any]) -> None:
        """Copy an array's bytes in."""
        place = self._bytes[at : at + values.nbytes].view(values.dtype).reshape(values.shape)
        np.copyto(place, values)

    def read(self, at: int, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """Copy an array out."""
        dtype = np.dtype(kind)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        taken: npt.NDArray[Any] = self._bytes[at : at + n_bytes].view(dtype).reshape(shape).copy()
        return taken


class CudaDevice:
    """Meets :class:`engines.runtime.device.Device`.

    Attributes
    ----------
    name
        As the driver tells it; a MIG slice has a name of its own.
    capability
        Such as ``"86"``.
    """

    def __init__(self, driver: Any, device: Any, context: Any, name: str, capability: str) -> None:
        self._driver, self._device, self._context = driver, device, context
        self.name, self.capability = name, capability
        result = driver.CUresult
        self._success, self._not_ready = result.CUDA_SUCCESS, result.CUDA_ERROR_NOT_READY
        self._no_memory = result.CUDA_ERROR_OUT_OF_MEMORY
        self._no_capture = frozenset(
            {
                result.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                result.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
                result.CUDA_ERROR_STREAM_CAPTURE_MERGE,
                result.CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
                result.CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                result.CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                result.CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                result.CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
                result.CUDA_ERROR_CAPTURED_EVENT,
                result.CUDA_ERROR_NOT_SUPPORTED,
            }
        )
        self._capturing = False
        self._module: Any = None
        self._functions: dict[str, Any] = {}

    @classmethod
    def open(cls, which: int | str = 0) -> CudaDevice:
        """Open a device, and compile the kernels for it.

        Parameters
        ----------
        which
            Ordinal among the devices that are shown to this process, or UUID (``GPU-...``, ``MIG-...``).

        Raises
        ------
        RuntimeUnavailable, OutOfMemory
            Nothing of the device is held then.
        DeviceLost
        """
        driver = bindings()
        device = find(driver, which)
        kind = driver.CUdevice_attribute
        major, minor = (
            int(opened(driver, driver.cuDeviceGetAttribute(wanted, device)))
            for wanted in (
                kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        told = bytes(opened(driver, driver.cuDeviceGetName(256, device)))
        name = told.split(b"\0")[0].decode("utf-8", "replace").strip()
        code = compiled(f"{major}{minor}")
        context = opened(driver, driver.cuDevicePrimaryCtxRetain(device))
        made = cls(driver, device, context, name, f"{major}{minor}")
        try:
            opened(driver, driver.cuCtxSetCurrent(context))
            made._module = opened(driver, driver.cuModuleLoadData(code))
            for kernel in kernels.NAMES:
                function = driver.cuModuleGetFunction(made._module, kernel.encode())
                made._functions[kernel] = opened(driver, function)
        except DeviceLost:
            raise
        except BaseException:
            made.close()
            raise
        return made

    def _ask(self, answer: Sequence[Any]) -> Any:
        """The value of a call's answer.

        Raises
        ------
        OutOfMemory, CaptureFailed, DeviceLost
        """
        code, *values = answer
        if code == self._success:
            return values[0] if len(values) == 1 else values
        if code == self._no_memory:
            raise OutOfMemory("the GPU has no memory left", hint="end what else uses it")
        name = name_of(code)
        if self._capturing and code in self._no_capture:
            raise CaptureFailed(name)
        raise DeviceLost(
            f"the GPU failed: {name}",
            hint="look for Xid messages in the kernel log; see nvidia-smi -q -d ECC",
        )

    def enter(self) -> None:
        """Make the context that of the calling thread."""
        self._ask(self._driver.cuCtxSetCurrent(self._context))

    def memory(self) -> Memory:
        """Of the device, whoever uses it."""
        free, total = self._ask(self._driver.cuMemGetInfo())
        return Memory(free=int(free), total=int(total))

    def allocate(self, n_bytes: int) -> int:
        """Device memory, aligned to 256 bytes."""
        return int(self._ask(self._driver.cuMemAlloc(n_bytes)))

    def release(self, address: int) -> None:
        """Give device memory back."""
        self._ask(self._driver.cuMemFree(address))

    def pin(self, n_bytes: int) -> PinnedMemory:
        """Host memory that copies need not be staged for."""
        return PinnedMemory(int(self._ask(self._driver.cuMemHostAlloc(n_bytes, 0))), n_bytes)

    def unpin(self, pinned: Pinned) -> None:
        """Give pinned memory back; nobody may read it afterwards."""
        self._ask(self._driver.cuMemFreeHost(_pinned(pinned).address))

    def stream(self) -> int:
        """A stream that waits for no other."""
        flags = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(self._ask(self._driver.cuStreamCreate(flags)))

    def drop_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._ask(self._driver.cuStreamDestroy(stream))

    def event(self) -> int:
        """An event without a clock."""
        flags = int(self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        return int(self._ask(self._driver.cuEventCreate(flags)))

    def drop_event(self, event: int) -> None:
        """Give an event back."""
        self._ask(self._driver.cuEventDestroy(event))

    def record(self, event: int, stream: int) -> None:
        """See :class:`engines.runtime.device.Device`."""
        self._ask(self._driver.cuEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        """See :class:`engines.runtime.device.Device`."""
        self._ask(self._driver.cuStreamWaitEvent(stream, event, 0))

    def done(self, event: int) -> bool:
        """See :class:`engines.runtime.device.Device`."""
        answer = self._driver.cuEventQuery(event)
        if answer[0] == self._not_ready:
            return False
        self._ask(answer)
        return True

    def upload(self, address: int, pinned: Pinned, at: int, n_bytes: int, stream: int) -> None:
        """Copy from pinned memory."""
        source = _pinned(pinned).address + at
        self._ask(self._driver.cuMemcpyHtoDAsync(address, source, n_bytes, stream))

    def download(self, pinned: Pinned, at: int, address: int, n_bytes: int, stream: int) -> None:
        """Copy to pinned memory."""
        target = _pinned(pinned).address + at
        self._ask(self._driver.cuMemcpyDtoHAsync(target, address, n_bytes, stream))

    def launch(
        self, kernel: str, grid: Extent, block: Extent, arguments: Sequence[Argument], stream: int
    ) -> None:
        """Run a kernel; its arguments are copied before this returns."""
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        function = self._functions[kernel]
        self._ask(
            self._driver.cuLaunchKernel(function, *grid, *block, 0, stream, ctypes.addressof(places), 0)
        )

    def begin_capture(self, stream: int) -> None:
        """Capture what this thread enqueues; other threads' work does not disturb it."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._capturing = True
        try:
            self._ask(self._driver.cuStreamBeginCapture(stream, mode))
        except BaseException:
            self._capturing = False
            raise

    def end_capture(self, stream: int) -> int:
        """The graph, ready to be replayed."""
        try:
            graph = self._ask(self._driver.cuStreamEndCapture(stream))
            if not int(graph):
                raise CaptureFailed("nothing was captured")
            try:
                made = int(self._ask(self._driver.cuGraphInstantiate(graph, 0)))
            except (OutOfMemory, CaptureFailed):
                self._give_back(self._driver.cuGraphDestroy(graph))
                raise
        finally:
            self._capturing = False
        self._give_back(self._driver.cuGraphDestroy(graph))
        return made

    def replay(self, graph: int, stream: int) -> None:
        """Run a graph."""
        self._ask(self._driver.cuGraphLaunch(graph, stream))

    def drop_graph(self, graph: int) -> None:
        """Give a graph back."""
        self._ask(self._driver.cuGraphExecDestroy(graph))

    def close(self) -> None:
        """Give the context back; nothing of it may be used afterwards.

        Raises
        ------
        DeviceLost
        """
        if self._context is None:
            return
        self._context = None
        if self._module is not None:
            self._give_back(self._driver.cuModuleUnload(self._module))
        # What may be gone in a moment is no thread's current context: the next runtime would stumble over it.
        self._give_back(self._driver.cuCtxSetCurrent(None))
        self._give_back(self._driver.cuDevicePrimaryCtxRelease(self._device))

    def _give_back(self, answer: Sequence[Any]) -> None:
        try:
            self._ask(answer)
        except (OutOfMemory, CaptureFailed) as e:
            raise DeviceLost("the GPU does not take back what it gave") from e


def _pinned(pinned: Pinned) -> PinnedMemory:
    if not isinstance(pinned, PinnedMemory):
        raise TypeError("memory of another device")
    return pinned
