from __future__ import annotations

import subprocess
import sys

from node.store import owners


def test_this_process_is_alive() -> None:
    assert not owners.certainly_dead(owners.me("enhance"))


def test_a_process_that_ended_is_dead() -> None:
    name = subprocess.run(
        [sys.executable, "-c", "from node.store import owners; print(owners.me())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert owners.certainly_dead(name)


def test_a_pid_that_was_given_again_is_dead() -> None:
    host, boot, pid, start = owners.me().split("/")
    assert owners.certainly_dead(f"{host}/{boot}/{pid}/{int(start) - 1}")
    assert owners.certainly_dead(f"{host}/00000000/{pid}/{start}")


def test_another_host_is_left_to_the_clock() -> None:
    assert not owners.certainly_dead("elsewhere/aaaa/1/1")
    assert not owners.certainly_dead("nonsense")
