"""Work in threads: results in order, the first failure in order decides, nothing goes on afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.enhance.lanes import in_order


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 12), threads=st.integers(0, 4), more=st.integers(0, 2))
def test_every_task_is_done_once(n: int, threads: int, more: int) -> None:
    assert list(in_order(lambda i: -i, range(n), threads, more=more)) == [-i for i in range(n)]


def test_results_come_in_the_order_of_the_tasks() -> None:
    done = [threading.Event() for _ in range(8)]

    def one(i: int) -> int:
        if i % 2 == 0:
            assert done[i + 1].wait(10), "the next one is at work meanwhile"
        done[i].set()
        return i

    assert list(in_order(one, range(8), 2)) == list(range(8))


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


@pytest.mark.parametrize(("threads", "more"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_no_more_is_begun_than_there_is_room_for(threads: int, more: int) -> None:
    begun = 0

    def tasks() -> Iterator[int]:
        nonlocal begun
        while True:
            begun += 1
            yield begun

    found = in_order(lambda i: i, tasks(), threads, more=more)
    for n in range(1, 6):
        assert next(found) == n
        assert begun - n <= (threads + more if threads > 1 else 0)
    found.close()


def test_nothing_is_at_work_once_it_is_closed() -> None:
    at_work, go, ended = threading.Event(), threading.Event(), threading.Event()

    def one(i: int) -> int:
        if i == 1:
            at_work.set()
            assert go.wait(10)
            ended.set()
        return i

    found = in_order(one, range(8), 2, name="laned")
    assert next(found) == 0
    assert at_work.wait(10)
    threading.Timer(0.05, go.set).start()
    found.close()
    assert ended.is_set()
    assert not [t for t in threading.enumerate() if t.name.startswith("laned")]


@pytest.mark.parametrize("threads", [0, 1])
def test_with_one_thread_a_task_is_done_when_it_is_asked_for(threads: int) -> None:
    where: list[threading.Thread] = []

    def one(i: int) -> int:
        where.append(threading.current_thread())
        return i

    found = in_order(one, range(3), threads)
    assert not where
    assert next(found) == 0
    assert where == [threading.current_thread()]
