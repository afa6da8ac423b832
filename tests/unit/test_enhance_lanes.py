"""Work in threads: results in order, the first failure in order decides, nothing goes on afterwards."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.enhance.lanes import in_order


@settings(max_examples=30, deadline=None)
@given(pauses=st.lists(st.floats(0, 0.004), max_size=12), threads=st.integers(0, 4), more=st.integers(0, 2))
def test_results_come_in_the_order_of_the_tasks(pauses: list[float], threads: int, more: int) -> None:
    def one(task: tuple[int, float]) -> int:
        time.sleep(task[1])
        return task[0]

    assert list(in_order(one, enumerate(pauses), threads, more=more)) == list(range(len(pauses)))


def test_the_first_failure_in_order_decides() -> None:
    later = threading.Event()

    def one(i: int) -> int:
        if i == 1:
            assert later.wait(10)
            raise ValueError("the first in order")
        if i == 2:
            later.set()
            raise KeyError("the first in time")
        return i

    found = in_order(one, range(8), 3)
    assert next(found) == 0
    with pytest.raises(ValueError, match="first in order"):
        next(found)


def test_no_more_is_begun_than_there_is_room_for() -> None:
    begun: list[int] = []

    def one(i: int) -> int:
        begun.append(i)
        return i

    with closing(in_order(one, range(100), 2, more=1)) as found:
        assert next(found) == 0
        time.sleep(0.05)
        assert len(begun) <= 4


def test_nothing_is_at_work_once_it_is_closed() -> None:
    at_work, ended = threading.Event(), threading.Event()

    def one(i: int) -> int:
        if i == 1:
            at_work.set()
            time.sleep(0.05)
            ended.set()
        return i

    found = in_order(one, range(8), 2, name="laned")
    assert next(found) == 0
    assert at_work.wait(10)
    found.close()
    assert ended.is_set()
    assert not [t for t in threading.enumerate() if t.name.startswith("laned")]


@pytest.mark.parametrize("threads", [0, 1])
def test_with_one_thread_a_task_is_done_when_it_is_asked_for(threads: int) -> None:
    where: list[str] = []
    found = in_order(lambda i: where.append(threading.current_thread().name) or i, range(3), threads)
    assert not where
    next(found)
    assert where == [threading.current_thread().name]
