"""What failures mean, how fast engines are, and how much memory there is: the pure parts of the worker."""

from __future__ import annotations

from pathlib import Path

import pytest

import engines.errors as ee
from node.enhance.failures import judge, lost
from node.enhance.memory import there_is
from node.enhance.pace import ENOUGH, KEPT, SLOWEST_DISK, Pace


def caused(by: BaseException) -> BaseException:
    """An error of ours that came from another's."""
    try:
        try:
            raise by
        except type(by) as e:
            raise ee.RuntimeUnavailable("ONNX Runtime failed") from e
    except ee.RuntimeUnavailable as e:
        return e


@pytest.mark.parametrize(
    ("e", "is_lost"),
    [
        (ee.DeviceLost("gone"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA_ERROR_LAUNCH_FAILED"), True),
        (RuntimeError("cudaErrorIllegalAddress (700)"), True),
        (caused(RuntimeError("CUDA failure 719: unspecified launch failure ; GPU=0")), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"), False),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), False),
        (ee.OutOfMemory("no memory for this slab"), False),
        (ee.RuntimeUnavailable("there is no GPU here"), False),
        (ValueError("barracuda error"), False),
        (None, False),
    ],
    ids=str,
)
def test_what_speaks_of_a_device_in_an_unknown_state(e: BaseException | None, is_lost: bool) -> None:
    assert lost(e) == is_lost


def test_an_error_of_the_device_always_costs_the_process() -> None:
    first, second = (judge(caused(RuntimeError("CUDA failure 700: illegal")), n, 2) for n in (1, 2))
    assert (first.held, first.trusted) == (False, False)
    assert (second.held, second.trusted) == (True, False)
    assert not judge(ee.DeviceLost("gone"), 2, 3).held, "the third try is the fallback's"


def test_the_pace_is_the_median_once_there_are_enough_steps() -> None:
    pace = Pace(0.5)
    slab = 4 * 128 * 128
    for i, seconds in enumerate((1.0, 128.0, 3.0, 4.0, 5.0)):
        if i < ENOUGH:
            assert pace.expected_s(slab) == 2.0, "until then what the canary took, for so many pixels"
        pace.worked(seconds, slab)
    assert pace.expected_s(slab) == 4.0
    assert pace.expected_s(slab, n_bytes=int(10 * SLOWEST_DISK)) == 14.0


def test_steps_in_which_little_was_left_to_make_do_not_quicken_the_pace() -> None:
    pace = Pace(0.5)
    for _ in range(KEPT):
        pace.worked(2.0, 128 * 128)
    assert pace.expected_s(16 * 128 * 128) == 32.0


def test_memory_is_that_of_the_control_group(tmp_path: Path) -> None:
    told, whole = tmp_path / "cgroup", there_is(tmp_path, tmp_path / "none")
    assert whole > 1 << 28
    told.write_text("0::/system.slice/luminode.service\n")
    place = tmp_path / "system.slice" / "luminode.service" / "memory.max"
    place.parent.mkdir(parents=True)
    place.write_text("max\n")
    assert there_is(tmp_path, told) == whole
    place.write_text(f"{1 << 28}\n")
    assert there_is(tmp_path, told) == 1 << 28
    told.write_text("7:memory,hugetlb:/a\n")
    old = tmp_path / "memory" / "a" / "memory.limit_in_bytes"
    old.parent.mkdir(parents=True)
    old.write_text(f"{1 << 27}\n")
    assert there_is(tmp_path, told) == 1 << 27
