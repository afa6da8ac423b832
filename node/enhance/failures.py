"""What a failure of a job means: whose it is, whether to try again, whether the process may go on, what may be told."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import engines.errors as ee
from node.errors import DeriveError, EnhanceError, NodeError, OutOfSpace, SeriesError, StoreError

TRIES = 5
"""Attempts at a job whose failure may pass by itself, before it is held for a person."""

_CUDA = re.compile(
    r"\bCUDA_ERROR_\w+|\bcudaError\w*|\bCUDA (error|failure|driver error)\b|\bGPU is lost\b",
    re.IGNORECASE,
)
_ONLY_MEMORY = re.compile(r"out.of.memory|cudaErrorMemoryAllocation|failure 2\b", re.IGNORECASE)


def lost(e: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, speaks of an accelerator in an unknown state.

    Running out of its memory leaves it as it was; any other error of CUDA may not (reliability: R41).
    """
    while e is not None:
        if isinstance(e, ee.DeviceLost):
            return True
        told = f"{type(e).__name__}: {e}"
        if _CUDA.search(told) and not _ONLY_MEMORY.search(told):
            return True
        e = e.__cause__ or e.__context__
    return False


class Verdict(NamedTuple):
    """What a failure means: whether it is a person's, how long to wait, whether this process is to go on."""

    held: bool
    wait_s: float
    trusted: bool


_PERMANENT: tuple[type[BaseException], ...] = (
    SeriesError, DeriveError, ee.VolumeUnsuitable, ee.OutputImplausible, ee.CardInvalid, ee.WeightsMismatch,
)  # fmt: skip


def judge(e: BaseException, attempt: int, n_tries: int) -> Verdict:
    """What to do. ``n_tries`` is how many attempts a failure has that costs the process."""
    wait_s = min(5.0 * 2 ** min(attempt, 10), 300.0)
    worn_out, spent = attempt >= TRIES, attempt >= n_tries
    if isinstance(e, OutOfSpace):
        return Verdict(held=False, wait_s=wait_s, trusted=True)  # as long as it takes somebody to make room
    if lost(e):
        return Verdict(held=spent, wait_s=1.0, trusted=False)
    if isinstance(e, _PERMANENT) or (isinstance(e, EnhanceError | StoreError) and not e.retryable):
        return Verdict(held=True, wait_s=0.0, trusted=True)
    if isinstance(e, ee.OutOfMemory | MemoryError):
        return Verdict(held=spent, wait_s=wait_s, trusted=False)
    if isinstance(e, ee.CanaryRefused):
        return Verdict(held=worn_out, wait_s=wait_s, trusted=False)
    if isinstance(e, ee.RuntimeUnavailable | EnhanceError | StoreError | OSError):
        return Verdict(held=worn_out, wait_s=wait_s, trusted=True)
    return Verdict(held=spent, wait_s=1.0, trusted=False)


def text(e: BaseException) -> str:
    """What may be told of an exception: our own texts hold no values of data sets, others' may."""
    if isinstance(e, ee.EngineError | NodeError):
        return (f"{e.message} ({e.hint})" if e.hint else e.message)[:500]
    if isinstance(e, OSError):
        return f"{e.strerror or 'the system refused'}, at {_where(e.__traceback__)}"
    return f"unexpected, at {_where(e.__traceback__)}"


def _where(traceback: TracebackType | None) -> str:
    """File and line where an exception was raised, behind the last place of ours that it came through."""
    ours = inner = ""
    while traceback is not None:
        path = Path(traceback.tb_frame.f_code.co_filename)
        inner = f"{path.name}:{traceback.tb_lineno}"
        if any(path.is_relative_to(room) for room in _OURS):
            ours = inner
        traceback = traceback.tb_next
    return inner if ours in ("", inner) else f"{ours} > {inner}"


_ROOT = Path(__file__).resolve().parents[2]
_OURS = (_ROOT / "node", _ROOT / "engines")
