"""Work in threads whose results come in the order of the tasks, a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    function: Callable[[T], R], tasks: Iterable[T], threads: int, *, name: str = "lane", more: int = 0
) -> Generator[R]:
    """Map over tasks; the first one that fails, in their order, decides.

    Parameters
    ----------
    threads
        With one, or none, each task is done when its result is asked for, by whoever asks.
    name
        Of the threads.
    more
        Tasks that may be done before their results are asked for, beyond one per thread: what bounds memory.

    Returns
    -------
    Generator
        Of results. Close it, or let it end: no task is at work any more then.
    """
    if threads <= 1:
        yield from map(function, tasks)
        return
    left = iter(tasks)
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    begun: deque[Future[R]] = deque()
    try:
        begun.extend(pool.submit(function, task) for task in islice(left, threads + more))
        while begun:
            result = begun.popleft().result()
            begun.extend(pool.submit(function, task) for task in islice(left, 1))
            yield result
    finally:
        for each in begun:
            each.cancel()
        wait(begun)
        pool.shutdown(wait=True)
