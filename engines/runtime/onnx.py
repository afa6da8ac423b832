"""ONNX Runtime: fp32, deterministic, one self-contained file whose digest is the card's.

On the CPU it is the reference that every other runtime is compared with, and the fallback of them all. With CUDA it
is the runtime of GPUs for which no plan can be built; a site installs it (onnxruntime-gpu) in place of the other.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from engines.base import Floats
from engines.errors import (
    CardInvalid,
    DeviceLost,
    OutOfMemory,
    OutputImplausible,
    RuntimeUnavailable,
    WeightsMismatch,
)
from engines.runtime import gpu
from engines.runtime.onnxfile import inspect

if TYPE_CHECKING:
    import onnxruntime

MAX_BYTES = 1 << 30

Provider = Literal["cpu", "cuda"]

CUDA = "CUDAExecutionProvider"

_NO_MEMORY = ("allocate", "bad_alloc", "out of memory", "alloc_failed")
_DEVICE = ("cuda failure", "cudnn failure", "cublas failure", "cufft failure", "cuda error", "cudaerror")


def read_verified(path: Path, sha256: str) -> bytes:
    """Read a weights file once, and return its bytes if their digest is the wanted one.

    No parser sees the file before this; what is parsed afterwards is these bytes, not the file again.

    Raises
    ------
    CardInvalid
        The file is missing, a link, or too large.
    WeightsMismatch
    """
    try:
        # A link could lead out of the folder, a pipe would block.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as e:
        raise CardInvalid(
            f"the weights file {path.name} cannot be opened: {e.strerror}",
            hint="it must be a plain file in the engine's folder",
        ) from e
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CardInvalid(f"the weights file {path.name} is not a plain file")
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise CardInvalid(f"the weights file {path.name} is larger than 1 GiB")
        content = file.read(size + 1)  # what is asked for is allocated at once, and memory may be bounded
    seen = hashlib.sha256(content).hexdigest()
    if seen != sha256:
        raise WeightsMismatch(
            f"the weights file {path.name} is not the one the card names: {seen[:12]}, not {sha256[:12]}",
            hint="restore the file from the release; never edit the digest to fit",
        )
    return content


class OnnxNetwork:
    """Meets :class:`engines.runtime.network.Network`."""

    def __init__(
        self, session: onnxruntime.InferenceSession, *, name: str = "onnx", device: str = "cpu"
    ) -> None:
        self._session = session
        self.name, self.device = name, device

    @classmethod
    def load(
        cls,
        path: Path,
        sha256: str,
        *,
        threads: int = 0,
        provider: Provider = "cpu",
        which: int = 0,
        most_bytes: int = 0,
    ) -> OnnxNetwork:
        """Load a network.

        Parameters
        ----------
        threads
            Of one run; 0 means one per physical core. The number does not change the result.
        provider
            ``cuda`` is the runtime ``onnx_cuda``: all of the network on the GPU, or RuntimeUnavailable.
        which
            The GPU, by ordinal among those that are shown to this process.
        most_bytes
            Of its memory, weights included; 0 leaves it to ONNX Runtime.

        Raises
        ------
        CardInvalid
            The file is not a network of our contract, or not self-contained.
        WeightsMismatch
            Its digest is not ``sha256``; nothing has parsed it.
        RuntimeUnavailable
            ONNX Runtime is not installed or cannot run it.
        """
        content = read_verified(path, sha256)
        inspect(content)
        try:
            import onnxruntime as ort
        except ImportError as e:
            raise RuntimeUnavailable("ONNX Runtime is not installed", hint="pip install onnxruntime") from e
        except Exception as e:  # A library that does not load raises whatever its loader likes.
            raise RuntimeUnavailable(
                f"ONNX Runtime does not load ({type(e).__name__})",
                hint="install it again: pip install onnxruntime",
            ) from e
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        # Threads that wait do not burn the cores that receive and deliver.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if provider == "cuda":
            if CUDA not in ort.get_available_providers():
                raise RuntimeUnavailable(
                    "this ONNX Runtime has no CUDA",
                    hint="pip install onnxruntime-gpu in place of onnxruntime",
                )
            providers = [(CUDA, cuda_options(which, most_bytes)), *providers]
        try:
            session = ort.InferenceSession(content, options, providers=providers)
        except Exception as e:  # ONNX Runtime has no narrower root.
            raise RuntimeUnavailable(
                f"ONNX Runtime cannot load {path.name} ({type(e).__name__})",
                hint="it may need a newer ONNX Runtime; see `python -m engines verify`",
            ) from e
        _contract(session)
        if provider == "cpu":
            return cls(session)
        # Where CUDA does not start, ONNX Runtime takes the CPU and says so in its log alone.
        if session.get_providers()[:1] != [CUDA]:
            raise RuntimeUnavailable(
                "ONNX Runtime cannot use the GPU", hint="CUDA, cuDNN and the driver must fit onnxruntime-gpu"
            )
        shown = gpu.local()
        return cls(
            session, name="onnx_cuda", device=shown[which].name if which < len(shown) else f"GPU {which}"
        )

    def run(self, x: Floats, c: Floats) -> Floats:
        """Run the network; see the protocol."""
        try:
            (r,) = self._session.run(["r"], {"x": x, "c": c})
        except MemoryError as e:
            raise OutOfMemory("no memory for this slab", hint="smaller slabs, or option tile") from e
        except Exception as e:  # ONNX Runtime has no narrower root.
            if any(word in str(e).lower() for word in _NO_MEMORY):
                raise OutOfMemory("no memory for this slab", hint="smaller slabs, or option tile") from e
            if self.device != "cpu" and any(word in str(e).lower() for word in _DEVICE):
                raise DeviceLost(
                    "the GPU failed under ONNX Runtime", hint="look for Xid messages in the kernel log"
                ) from e
            raise RuntimeUnavailable(f"ONNX Runtime failed ({type(e).__name__})") from e
        out = np.asarray(r)
        wanted = {(*c.shape[:2], f * c.shape[2], f * c.shape[3]) for f in (1, 2)}
        if out.shape not in wanted or out.dtype != np.float32:
            raise OutputImplausible("the network returned another shape or kind than the card promises")
        return out


def cuda_options(which: int, most_bytes: int) -> dict[str, Any]:
    """Options of ONNX Runtime's CUDA provider."""
    told: dict[str, Any] = {
        "device_id": which,
        # TF32 would round HU / 1000 to 11 bits.
        "use_tf32": 0,
        # The search for algorithms may choose others each time.
        "cudnn_conv_algo_search": "DEFAULT",
        "arena_extend_strategy": "kSameAsRequested",
    }
    return told | ({"gpu_mem_limit": most_bytes} if most_bytes else {})


def _contract(session: Any) -> None:
    """Inputs x [N, 3, H, W] and c [N, 1, H, W], output r [N, 1, H, W] or [N, 1, 2H, 2W], all float32."""
    wanted = {"x": 3, "c": 1}
    seen = {i.name: i for i in session.get_inputs()}
    out = {o.name: o for o in session.get_outputs()}
    if set(seen) != set(wanted) or "r" not in out:
        raise CardInvalid("the network's inputs must be x and c, its output r")
    for name, n_channels in (*wanted.items(), ("r", 1)):
        value = out["r"] if name == "r" else seen[name]
        fits = value.type == "tensor(float)" and len(value.shape) == 4
        # The output's channels may be unknown to shape inference; a wrong number shows at the first run.
        fits = fits and (
            value.shape[1] == n_channels or (name == "r" and not isinstance(value.shape[1], int))
        )
        if not fits:
            raise CardInvalid(f"the network's {name} must be float32 [N, {n_channels}, H, W]")
