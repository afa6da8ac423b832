"""Turns are taken in the order in which they were asked for, and none is lost."""

from __future__ import annotations

import threading

import pytest

from engines import turns as module
from engines.turns import Turns


def test_whoever_waits_longest_is_next_and_nobody_is_passed_by() -> None:
    turns, served = Turns(1), list[int]()
    turns.acquire()

    def wait(i: int) -> None:
        with turns:
            served.append(i)

    threads = []
    for i in range(5):
        threads.append(threading.Thread(target=wait, args=(i,)))
        threads[-1].start()
        while len(turns._waiting) < len(threads):
            threads[-1].join(0.001)
    turns.release()  # it is handed over: whoever asks now comes after all of them
    turns.acquire()
    assert served == [0, 1, 2, 3, 4]
    turns.release()
    for thread in threads:
        thread.join()
    assert turns.acquire(blocking=False)


def test_no_more_are_taken_than_there_are_and_none_is_lost() -> None:
    turns, lock, inside, most = Turns(2), threading.Lock(), 0, 0

    def take() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turns:
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= 2
    assert [turns.acquire(blocking=False) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("handed", [False, True])
def test_whoever_is_interrupted_while_it_waits_leaves_no_turn_behind(
    monkeypatch: pytest.MonkeyPatch, handed: bool
) -> None:
    """A signal's handler may raise in the main thread: before the turn came, or when it had come already."""
    turns = Turns(1)
    turns.acquire()

    class Interrupted:
        def __init__(self) -> None:
            self._n = 0

        def acquire(self) -> bool:
            self._n += 1
            if self._n == 2:
                if handed:
                    turns.release()
                raise KeyboardInterrupt
            return True

        def release(self) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(module, "Lock", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            turns.acquire()
    if not handed:
        assert not turns.acquire(blocking=False)
        turns.release()
    assert turns.acquire(blocking=False)
    assert not turns.acquire(blocking=False)
