"""The two TensorRTs, and how they differ: ``tensorrt`` (10, 11) and ``tensorrt_rtx`` (TensorRT for RTX, 1).

Their API is one. What is not is in :data:`FLAVOURS` and nowhere else. Both are imported when they are asked
for, never before: they are optional, and hundreds of megabytes.
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engines.errors import RuntimeUnavailable
from engines.runtime.gpu import Gpu, dotted

Name = Literal["tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """What is peculiar to one of them.

    Attributes
    ----------
    imports
        Ways to import it: the modules of one way in order, the last holds the bindings.
    versions
        The first version that will do, and the first that is not known yet.
    capabilities
        Compute capabilities that it runs on; None means all from ``least`` on.
    ahead_of_time
        Builds for GPUs that are not there: ``targets`` of :func:`engines.runtime.build.build`.
    bound_to_gpu
        A plan is tuned by timing on one GPU under one driver; else any GPU of its capabilities will do.
    timing_cache
        What it measured can be kept for the next build.
    runtime_cache
        It compiles kernels when a plan is loaded, and what it compiled can be kept.
    flags_on, flags_off
        Builder flags. TF32 is on by default and would round HU / 1000 to 11 bits: to 0.5 HU at 1000 HU.
        TensorRT for RTX cannot be captured in a CUDA graph if it allocates memory of its own.
    previews
        What this version may not know, and is asked for where it does. Without the one that is, a context may take
        memory for the largest sizes of its plan whatever it runs: too much for a small GPU's bound.
    workspace
        Bytes that a kernel may ask for beside its tensors; 0 leaves it to the library.
    """

    name: Name
    title: str
    imports: tuple[tuple[str, ...], ...]
    install: str
    versions: tuple[tuple[int, ...], tuple[int, ...]]
    least: int
    capabilities: frozenset[str] | None
    ahead_of_time: bool
    bound_to_gpu: bool
    timing_cache: bool
    runtime_cache: bool
    flags_on: tuple[str, ...]
    flags_off: tuple[str, ...]
    previews: tuple[str, ...]
    workspace: int


FLAVOURS: Mapping[str, Flavour] = {
    "tensorrt": Flavour(
        name="tensorrt",
        title="TensorRT",
        imports=(("tensorrt",), ("tensorrt_libs", "tensorrt_bindings")),
        install="pip install tensorrt; its libraries come from NVIDIA's own package index",
        # 10.0 cannot be given the size of a scratch memory (set_device_memory).
        versions=((10, 1), (12,)),
        least=75,
        capabilities=None,
        ahead_of_time=False,
        bound_to_gpu=True,
        timing_cache=True,
        runtime_cache=False,
        flags_on=(),
        flags_off=("TF32",),
        previews=("RUNTIME_ACTIVATION_RESIZE_10_10",),
        workspace=1 << 30,
    ),
    "tensorrt_rtx": Flavour(
        name="tensorrt_rtx",
        title="TensorRT for RTX",
        imports=(("tensorrt_rtx",), ("tensorrt_rtx_libs", "tensorrt_rtx_bindings")),
        install="pip install 'luminode[tensorrt]'",
        versions=((1, 2), (2,)),
        least=75,
        capabilities=frozenset({"75", "80", "86", "89", "120", "121"}),
        ahead_of_time=True,
        bound_to_gpu=False,
        # It takes one, has no use for it, and asks for a GPU then.
        timing_cache=False,
        runtime_cache=True,
        flags_on=("REQUIRE_USER_ALLOCATION",),
        flags_off=("TF32",),
        # Here it is on by itself.
        previews=(),
        workspace=0,
    ),
}


def flavour(name: str) -> Flavour:
    """The row of a flavour.

    Raises
    ------
    RuntimeUnavailable
        There is none of this name.
    """
    if name not in FLAVOURS:
        raise RuntimeUnavailable(
            f"there is no flavour {name!r} of TensorRT", hint=f"one of {', '.join(FLAVOURS)}"
        )
    return FLAVOURS[name]


@functools.cache
def bindings(name: str) -> Any:
    """The module of a flavour.

    Raises
    ------
    RuntimeUnavailable
        It is not installed, does not load, or is a version that this code is not written for.
    """
    row = flavour(name)
    said: list[str] = []
    for way in row.imports:
        try:
            module = [importlib.import_module(one) for one in way][-1]
            number = tuple(int(n) for n in str(module.__version__).split(".")[:3])
        except ModuleNotFoundError:
            continue
        except Exception as e:  # A library that does not load raises whatever its loader likes.
            said.append(f"{'.'.join(way[-1:])}: {type(e).__name__}: {e}"[:300])
            continue
        if not row.versions[0] <= number < row.versions[1]:
            raise RuntimeUnavailable(
                f"{row.title} {module.__version__} is not supported",
                hint=f"from {_number(row.versions[0])} up to, not including, {_number(row.versions[1])}",
            )
        return module
    if said:
        raise RuntimeUnavailable(f"{row.title} does not load: {said[0]}", hint=row.install)
    raise RuntimeUnavailable(f"{row.title} is not installed", hint=row.install)


def version(name: str) -> str:
    """The version of a flavour, in full: a plan of another is never loaded.

    Raises
    ------
    RuntimeUnavailable
    """
    return str(bindings(name).__version__)


def installed() -> tuple[str, ...]:
    """The flavours that can be imported here, the preferred first."""
    found = []
    for name in FLAVOURS:
        try:
            bindings(name)
        except RuntimeUnavailable:
            continue
        found.append(name)
    return tuple(found)


def check_gpu(name: str, gpu: Gpu) -> None:
    """Whether a flavour runs on a GPU.

    Raises
    ------
    RuntimeUnavailable
        It does not; the hint names what does.
    """
    check_capability(name, gpu.compute_capability, of=gpu.name)


def check_capability(name: str, capability: str, *, of: str = "") -> None:
    """Whether a flavour knows a compute capability, such as ``"86"``.

    Raises
    ------
    RuntimeUnavailable
    """
    row = flavour(name)
    if not (capability.isascii() and capability.isdigit() and 2 <= len(capability) <= 4):
        raise RuntimeUnavailable(
            f"{capability!r} is no compute capability", hint="major and minor in one: 86 is 8.6"
        )
    known = row.capabilities
    if int(capability) >= row.least and (known is None or capability in known):
        return
    subject = f"{of} (compute capability {dotted(capability)})" if of else f"capability {dotted(capability)}"
    others = [
        r.title
        for r in FLAVOURS.values()
        if r.name != name
        and int(capability) >= r.least
        and (r.capabilities is None or capability in r.capabilities)
    ]
    if others:
        hint = f"{others[0]} does: {flavour(next(n for n in FLAVOURS if n != name)).install}"
    else:
        hint = f"it needs {dotted(str(row.least))} or newer; the CPU serves"
    raise RuntimeUnavailable(f"{row.title} does not run on {subject}", hint=hint)


def options(name: str) -> str:
    """What the builder is told, in one word, for the key of a plan."""
    row = flavour(name)
    flags = [*(f"+{one}" for one in row.flags_on), *(f"-{one}" for one in row.flags_off)]
    return ",".join([*flags, *row.previews, f"workspace={row.workspace}"])


def strongly_typed(module: Any) -> int:
    """The flags of a network whose types are those of the ONNX file.

    TensorRT 10 has to be told; 11 knows nothing else, and may drop the flag.
    """
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


class Words:
    """The last complaints of a TensorRT, by thread: it tells why only through its log."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, str]] = deque(maxlen=64)

    def add(self, text: str) -> None:
        self._kept.append((threading.get_ident(), text))

    def take(self) -> tuple[str, ...]:
        """What this thread's calls complained of since it last asked."""
        mine = threading.get_ident()
        told = tuple(text for thread, text in self._kept if thread == mine)
        for one in [k for k in self._kept if k[0] == mine]:
            self._kept.remove(one)
        return told


@functools.cache
def logger(name: str) -> tuple[Any, Words]:
    """The one ILogger of a flavour, and what it heard.

    TensorRT keeps the first logger that it is given for good, so there is one per process. It tells of
    layers and memory, never of pixels or headers: it is given none.
    """
    module = bindings(name)
    base: Any = module.ILogger
    told, words = logging.getLogger(f"engines.{name}"), Words()
    severity = module.ILogger.Severity
    # Its INFO is what others call debugging; its VERBOSE is thousands of lines for one build.
    levels: Mapping[Any, int] = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
    }

    class Adapter(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.NOTSET + 1)
            if not told.isEnabledFor(level) and level != logging.ERROR:
                return
            line = plain(message)
            if level == logging.ERROR:
                words.add(line)
            told.log(level, "%s", line)

    return Adapter(), words


def plain(text: str, longest: int = 400) -> str:
    """One printable line of a library's message."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _number(parts: Sequence[int]) -> str:
    return ".".join(map(str, parts))
